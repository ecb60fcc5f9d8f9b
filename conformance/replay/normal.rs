//! Placeholders for what no two runs share: uids, versions, times, generated names, allocated addresses and
//! ports. Equal values get equal placeholders within a scenario, so that relations between answers are compared.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use ambient::Ambient;
use regex::{Captures, Regex};
use serde_json::{Map, Value, json};

use super::scenario::Scenario;

/// A server that made a time made it within this many seconds of now.
const RECENT_SECONDS: u64 = 86_400;
/// How many characters generateName adds.
const GENERATED_SUFFIX: usize = 5;

/// Gives placeholders; keeps its tables for one run of one scenario.
pub(super) struct Normalizer {
    namespace: String,
    keeps_managed_fields: bool,
    /// What the scenario itself sends stays as it is.
    literals: HashSet<String>,
    uids: HashMap<String, String>,
    versions: HashMap<String, String>,
    /// In the order in which they appeared.
    generated: Vec<(String, String)>,
    allocated: HashMap<String, String>,
    counters: HashMap<(String, String), usize>,
}

impl Normalizer {
    /// For a scenario as it was written.
    pub(super) fn new(scenario: &Scenario, namespace: &str) -> Self {
        let mut literals = HashSet::new();
        for step in &scenario.steps {
            let query = Value::Object(step.query.clone());
            for value in step.body.iter().chain([&query]) {
                collect_literals(value, "", &mut literals);
            }
            literals.extend(step.raw.clone());
            literals.insert(step.path.clone());
            literals.extend(step.headers.values().flatten().cloned());
        }
        Self {
            namespace: namespace.to_owned(),
            keeps_managed_fields: scenario.managed_fields,
            literals,
            uids: HashMap::new(),
            versions: HashMap::new(),
            generated: Vec::new(),
            allocated: HashMap::new(),
            counters: HashMap::new(),
        }
    }

    /// One answer, normalized.
    pub(super) fn document(&mut self, value: &Value) -> Value {
        self.register(value);
        self.walk(value, "", None)
    }

    /// One text, normalized.
    pub(super) fn text(&mut self, text: &str) -> String {
        let mut text = text.replace(&self.namespace, "${ns}");
        for (name, placeholder) in &self.generated {
            text = text.replace(name, placeholder);
        }
        text = self.replace_uids(&text);
        let version = |c: &Captures<'_>| format!("{}{}", &c[1], self.versions.get(&c[2]).map_or(&c[2], |v| v));
        text = VERSION_IN_TEXT.replace_all(&text, version).into_owned();
        for (pattern, with) in &*REPLACED {
            text = pattern.replace_all(&text, *with).into_owned();
        }
        if TIME.is_match(&text) && !self.literals.contains(&text) && is_recent(&text) {
            return if text.contains('.') { "<micro-time>".to_owned() } else { "<time>".to_owned() };
        }
        text
    }

    /// Gives placeholders to the names, uids and versions of the objects in an answer, in their order.
    fn register(&mut self, value: &Value) {
        match value {
            Value::Array(list) => list.iter().for_each(|item| self.register(item)),
            Value::Object(map) => {
                if let Some(meta) = map.get("metadata").and_then(Value::as_object) {
                    self.register_metadata(meta);
                }
                map.values().for_each(|member| self.register(member));
            }
            _ => {}
        }
    }

    fn register_metadata(&mut self, meta: &Map<String, Value>) {
        let text = |field: &str| meta.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
        let Some(name) = meta.get("name").and_then(Value::as_str) else { return };
        if let Some(prefix) = text("generateName")
            && name.strip_prefix(prefix).is_some_and(|suffix| suffix.len() == GENERATED_SUFFIX)
            && !self.literals.contains(name)
            && !self.generated.iter().any(|(known, _)| known == name)
        {
            let prefix = prefix.replace(&self.namespace, "${ns}");
            let n = self.count(&prefix, "");
            self.generated.push((name.to_owned(), format!("{prefix}<gen:{n}>")));
        }
        let name = self.text(name);
        if let Some(uid) = text("uid").filter(|uid| !self.literals.contains(*uid) && !self.uids.contains_key(*uid)) {
            let placeholder = self.numbered("uid", &name);
            self.uids.insert(uid.to_owned(), placeholder);
        }
        if let Some(version) = text("resourceVersion").filter(|version| !self.versions.contains_key(*version)) {
            let placeholder = self.numbered("rv", &name);
            self.versions.insert(version.to_owned(), placeholder);
        }
    }

    /// The next number among those of a kind and owner.
    fn count(&mut self, kind: &str, owner: &str) -> usize {
        let counter = self.counters.entry((kind.to_owned(), owner.to_owned())).or_default();
        *counter += 1;
        *counter
    }

    fn numbered(&mut self, kind: &str, owner: &str) -> String {
        let n = self.count(kind, owner);
        format!("<{kind}:{owner}.{n}>")
    }

    /// Uids in a text, those of unknown objects too.
    fn replace_uids(&mut self, text: &str) -> String {
        let found: Vec<String> = UID.find_iter(text).map(|m| m.as_str().to_owned()).collect();
        for uid in found {
            if !self.literals.contains(&uid) && !self.uids.contains_key(&uid) {
                let placeholder = self.numbered("uid", "?");
                self.uids.insert(uid, placeholder);
            }
        }
        UID.replace_all(text, |c: &Captures<'_>| {
            let known = self.uids.get(&c[0]).filter(|_| !self.literals.contains(&c[0]));
            known.cloned().unwrap_or_else(|| c[0].to_owned())
        })
        .into_owned()
    }

    fn walk(&mut self, value: &Value, key: &str, parent: Option<&Map<String, Value>>) -> Value {
        match value {
            Value::String(text) => self.string(text, key, parent).into(),
            Value::Array(list) if key == "managedFields" => {
                let mut entries: Vec<Value> = list.iter().map(|entry| self.walk(entry, "", None)).collect();
                entries.sort_by_key(manager_key);
                entries.into()
            }
            Value::Array(list) => list.iter().map(|item| self.walk(item, key, parent)).collect(),
            Value::Object(map) => self.object(map),
            Value::Number(n) if matches!(key, "nodePort" | "healthCheckNodePort") && n.as_i64() != Some(0) => {
                let known = format!("{key}={n}");
                if self.literals.contains(&known) {
                    value.clone()
                } else {
                    self.allocated(n.to_string(), "port", "node")
                }
            }
            other => other.clone(),
        }
    }

    fn object(&mut self, map: &Map<String, Value>) -> Value {
        let without_ages;
        let map = if map.get("kind") == Some(&json!("Table")) {
            without_ages = table(map);
            &without_ages
        } else {
            map
        };
        let mut out = Map::new();
        for (key, value) in map {
            let mut value = value.clone();
            if let Some(meta) = value.as_object_mut().filter(|_| key == "metadata") {
                meta.remove("selfLink");
                if !self.keeps_managed_fields {
                    meta.remove("managedFields");
                }
            }
            let value = self.walk(&value, key, Some(map));
            out.insert(self.text(key), value);
        }
        Value::Object(out)
    }

    fn string(&mut self, text: &str, key: &str, parent: Option<&Map<String, Value>>) -> String {
        let has = |field: &str| parent.is_some_and(|map| map.contains_key(field));
        match key {
            "resourceVersion" if !text.is_empty() && parent.is_some() && !has("name") && !has("kind") => {
                "<list-rv>".to_owned()
            }
            "resourceVersion" if has("name") && self.versions.contains_key(text) => self.versions[text].clone(),
            "continue" if !text.is_empty() => "<continue>".to_owned(),
            "clusterIP" | "clusterIPs" if ADDRESS.is_match(text) && !self.literals.contains(text) => {
                self.allocated(text.to_owned(), "ip", "cluster").as_str().unwrap_or_default().to_owned()
            }
            _ => self.text(text),
        }
    }

    fn allocated(&mut self, value: String, kind: &str, owner: &str) -> Value {
        if !self.allocated.contains_key(&value) {
            let placeholder = self.numbered(kind, owner);
            self.allocated.insert(value.clone(), placeholder);
        }
        self.allocated[&value].clone().into()
    }
}

static UID: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"));
static TIME: LazyLock<Regex> = LazyLock::new(|| pattern(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$"));
static ADDRESS: LazyLock<Regex> = LazyLock::new(|| pattern(r"^[\d.]+$|:"));
static VERSION_IN_TEXT: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(ResourceVersion in (?:the )?(?:precondition|object meta|record)(?:: | \())(\d+)"));
/// What in texts is replaced by fixed placeholders: Go's own print-outs, positions, the server's revisions.
static REPLACED: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
    let all = [
        // A struct as Go prints it (or as newer servers do, as JSON).
        (
            r#"(?s)Invalid value: [&*]?(?:map\[\w+\])?(?:\[\])*[\w*]*\.?\w*(?:\{.*?\}|\(nil\)): ([^"\s])"#,
            "Invalid value: <value>: $1",
        ),
        ("0xc[0-9a-f]{9}", "<pointer>"),
        (r#"(?s)Invalid value: "\{(?:[^"\\]|\\.)*""#, "Invalid value: <document>"),
        (r"(?s), error found in #\d+ byte of .*", ", error found <position>"),
        // A sentence that is followed by a printed difference.
        (r"(?s)(may not change fields[^\n]*|except resources.requests for bound claims)\n.*", "$1\n<diff>"),
        (r"too old resource version: \d+ \(\d+\)", "too old resource version: <rv> (<rv>)"),
        (r"(Too large resource version: \d+, current: )\d+", "$1<rv>"),
    ];
    all.into_iter().map(|(text, with)| (pattern(text), with)).collect()
});

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a pattern of ours is valid")
}

/// A table whose Age cells are placeholders and whose column descriptions are gone.
fn table(map: &Map<String, Value>) -> Map<String, Value> {
    let mut map = map.clone();
    let mut ages = Vec::new();
    for (at, column) in map.get_mut("columnDefinitions").and_then(Value::as_array_mut).into_iter().flatten().enumerate()
    {
        if let Some(column) = column.as_object_mut() {
            column.remove("description");
        }
        if column.get("name") == Some(&json!("Age")) {
            ages.push(at);
        }
    }
    for row in map.get_mut("rows").and_then(Value::as_array_mut).into_iter().flatten() {
        for at in &ages {
            if let Some(cell) = row.get_mut("cells").and_then(|cells| cells.get_mut(*at)) {
                *cell = json!("<age>");
            }
        }
    }
    map
}

/// What entries of managedFields are sorted by.
pub(super) fn manager_key(entry: &Value) -> String {
    let member = |name: &str| entry.get(name).unwrap_or(&Value::Null).clone();
    let all = ["operation", "manager", "apiVersion", "subresource", "fieldsV1"].map(member);
    Value::from(all.to_vec()).to_string()
}

/// Every text that a document holds, and its numbers as `key=number`.
fn collect_literals(value: &Value, key: &str, literals: &mut HashSet<String>) {
    match value {
        Value::String(text) => drop(literals.insert(text.clone())),
        Value::Array(list) => list.iter().for_each(|item| collect_literals(item, key, literals)),
        Value::Object(map) => map.iter().for_each(|(key, member)| collect_literals(member, key, literals)),
        Value::Number(n) if !key.is_empty() => drop(literals.insert(format!("{key}={n}"))),
        _ => {}
    }
}

/// Whether a time is within a day of now.
fn is_recent(text: &str) -> bool {
    let now = Ambient::system().now();
    text.parse::<jiff::Timestamp>().is_ok_and(|time| now.as_second().abs_diff(time.as_second()) < RECENT_SECONDS)
}
