//! Field selectors, and the fields that objects of each kind can be selected by.

use std::collections::BTreeMap;

use serde_json::Value;

use super::ParseError;
use crate::resource::Resource;
use crate::status::quote;

/// All requirements must hold; none at all selects everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

/// One field must (or must not) have one value. A field that an object lacks has the empty value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FieldRequirement {
    /// Such as `spec.nodeName`.
    pub field: String,
    /// `false` for `!=`.
    pub equal: bool,
    /// What with.
    pub value: String,
}

impl FieldSelector {
    /// Selects everything.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Reads a query's text, such as `spec.nodeName=n1,status.phase!=Failed`. Call [`Self::check`] next.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut requirements = Vec::new();
        for term in split_terms(text).into_iter().filter(|term| !term.is_empty()) {
            let (field, equal, raw) = split_term(&term)
                .ok_or_else(|| ParseError(format!("invalid selector: '{text}'; can't understand '{term}'")))?;
            requirements.push(FieldRequirement { field: field.into(), equal, value: unescape(raw)? });
        }
        requirements.sort();
        Ok(Self { requirements })
    }

    /// Whether this kind's objects have all the fields; old names are replaced by today's.
    pub fn check(mut self, resource: &Resource) -> Result<Self, ParseError> {
        for requirement in &mut self.requirements {
            if let Some(custom) = &resource.custom {
                let field = requirement.field.as_str();
                let common = field == "metadata.name" || (field == "metadata.namespace" && resource.namespaced);
                if !common && !custom.selectable.iter().any(|(name, _)| name == field) {
                    return Err(ParseError(format!("field label not supported: {field}")));
                }
                continue;
            }
            requirement.field = known_field(&resource.group, &resource.kind, &requirement.field).map_err(ParseError)?;
        }
        Ok(self)
    }

    /// Whether the fields of an object (see [`fields`]) satisfy the selector.
    pub fn matches(&self, fields: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|r| {
            let value = fields.get(&r.field).map_or("", String::as_str);
            (value == r.value) == r.equal
        })
    }

    /// Whether every object is selected.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The value that every selected object must have in `field`, if the selector pins it.
    pub fn pinned(&self, field: &str) -> Option<&str> {
        self.requirements.iter().find(|r| r.equal && r.field == field).map(|r| r.value.as_str())
    }

    /// The conditions.
    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }
}

/// The fields of an object that a field selector can name.
pub fn fields(resource: &Resource, object: &Value) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut put = |field: &str, value: String| out.insert(field.to_owned(), value);
    put("metadata.name", text(object, "/metadata/name"));
    if resource.namespaced {
        put("metadata.namespace", text(object, "/metadata/namespace"));
    }
    for (field, path) in resource.custom.iter().flat_map(|custom| &custom.selectable) {
        put(field, path.find(object).first().map(|value| scalar(value)).unwrap_or_default());
    }
    for (field, pointer) in paths(&resource.group, &resource.kind) {
        let value = match *field {
            "spec.schedulerName" => or(text(object, pointer), "default-scheduler"),
            "spec.hostNetwork" | "spec.unschedulable" => or(text(object, pointer), "false"),
            "source" => or(text(object, pointer), &text(object, "/reportingComponent")),
            _ => text(object, pointer),
        };
        put(field, value);
    }
    out
}

/// Fields beside name and namespace, and where they are found.
fn paths(group: &str, kind: &str) -> &'static [(&'static str, &'static str)] {
    match (group, kind) {
        ("", "Pod") => &[
            ("spec.nodeName", "/spec/nodeName"),
            ("spec.restartPolicy", "/spec/restartPolicy"),
            ("spec.schedulerName", "/spec/schedulerName"),
            ("spec.serviceAccountName", "/spec/serviceAccountName"),
            ("spec.hostNetwork", "/spec/hostNetwork"),
            ("status.phase", "/status/phase"),
            ("status.podIP", "/status/podIP"),
            ("status.podIPs", "/status/podIPs"),
            ("status.nominatedNodeName", "/status/nominatedNodeName"),
        ],
        ("", "Event") => &[
            ("involvedObject.kind", "/involvedObject/kind"),
            ("involvedObject.namespace", "/involvedObject/namespace"),
            ("involvedObject.name", "/involvedObject/name"),
            ("involvedObject.uid", "/involvedObject/uid"),
            ("involvedObject.apiVersion", "/involvedObject/apiVersion"),
            ("involvedObject.resourceVersion", "/involvedObject/resourceVersion"),
            ("involvedObject.fieldPath", "/involvedObject/fieldPath"),
            ("reason", "/reason"),
            ("reportingComponent", "/reportingComponent"),
            ("source", "/source/component"),
            ("type", "/type"),
        ],
        ("events.k8s.io", "Event") => &[
            ("regarding.kind", "/regarding/kind"),
            ("regarding.namespace", "/regarding/namespace"),
            ("regarding.name", "/regarding/name"),
            ("regarding.uid", "/regarding/uid"),
            ("regarding.apiVersion", "/regarding/apiVersion"),
            ("regarding.resourceVersion", "/regarding/resourceVersion"),
            ("regarding.fieldPath", "/regarding/fieldPath"),
            ("reason", "/reason"),
            ("reportingController", "/reportingController"),
            ("type", "/type"),
        ],
        ("", "Namespace") => &[("status.phase", "/status/phase")],
        ("", "Node") => &[("spec.unschedulable", "/spec/unschedulable")],
        ("", "Secret") => &[("type", "/type")],
        ("", "Service") => &[("spec.clusterIP", "/spec/clusterIP"), ("spec.type", "/spec/type")],
        _ => &[],
    }
}

/// Today's name of a field that may be selected by, or upstream's refusal.
fn known_field(group: &str, kind: &str, field: &str) -> Result<String, String> {
    let own = paths(group, kind);
    let cluster_scoped = matches!((group, kind), ("", "Node" | "Namespace"));
    if field == "metadata.name" || (field == "metadata.namespace" && !cluster_scoped) {
        return Ok(field.into());
    }
    if own.iter().any(|(name, _)| *name == field) {
        // Both groups select among the same stored events.
        return Ok(if group == crate::events::GROUP { crate::events::stored_field(field) } else { field.into() });
    }
    match (group, kind, field) {
        ("", "Pod", "spec.host") => Ok("spec.nodeName".into()),
        ("", "Namespace", "name") | ("", "PersistentVolume" | "PersistentVolumeClaim", "name") => {
            Ok("metadata.name".into())
        }
        _ if own.is_empty() => Err(format!(
            "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
            quote(field)
        )),
        _ => Err(format!("field label not supported: {field}")),
    }
}

/// A scalar at a JSON pointer as text; empty where there is none.
fn text(object: &Value, pointer: &str) -> String {
    object.pointer(pointer).map(scalar).unwrap_or_default()
}

/// A scalar as text; anything else is empty.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

/// A text, or another one if it is empty.
fn or(text: String, otherwise: &str) -> String {
    if text.is_empty() { otherwise.to_owned() } else { text }
}

/// Splits at commas that no backslash precedes.
fn split_terms(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        let last = terms.last_mut().expect("starts with one term and only grows");
        match c {
            ',' if !escaped => terms.push(String::new()),
            c => last.push(c),
        }
        escaped = c == '\\' && !escaped;
    }
    terms
}

/// Field, whether equal is asked, raw value.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let starts = |(at, _): &(usize, char)| ["!=", "="].iter().any(|op| term[*at..].starts_with(op));
    let (at, _) = term.char_indices().find(starts)?;
    let (field, rest) = term.split_at(at);
    let (operator, equal) = if rest.starts_with("!=") {
        (2, false)
    } else if rest.starts_with("==") {
        (2, true)
    } else {
        (1, true)
    };
    Some((field, equal, &rest[operator..]))
}

/// Takes the backslashes off `\\`, `\,` and `\=`; nothing else may be escaped, and those must be.
fn unescape(raw: &str) -> Result<String, ParseError> {
    let mut out = String::with_capacity(raw.len());
    let mut chars = raw.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(next @ ('\\' | ',' | '=')) => out.push(next),
                Some(next) => {
                    return Err(ParseError(format!("invalid field selector: invalid escape sequence: \\{next}")));
                }
                None => return Err(ParseError("invalid field selector: invalid escape sequence: \\".into())),
            },
            ',' | '=' => {
                return Err(ParseError(format!("invalid field selector: unescaped character in value: {c}")));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn terms_are_read_and_matched() {
        let selector = FieldSelector::parse("spec.nodeName=n1,status.phase!=Failed").expect("well-formed");
        assert!(selector.matches(&of(&[("spec.nodeName", "n1"), ("status.phase", "Running")])));
        assert!(!selector.matches(&of(&[("spec.nodeName", "n1"), ("status.phase", "Failed")])));
        assert!(!selector.matches(&of(&[("spec.nodeName", "n2")])));
        assert_eq!(selector.pinned("spec.nodeName"), Some("n1"));
        assert_eq!(selector.pinned("status.phase"), None);
        let unbound = FieldSelector::parse("spec.nodeName=").expect("well-formed");
        assert!(unbound.matches(&of(&[])));
    }

    #[test]
    fn escapes_are_taken_off() {
        let selector = FieldSelector::parse(r"a=x\,y\=z").expect("well-formed");
        assert_eq!(selector.pinned("a"), Some("x,y=z"));
        assert!(FieldSelector::parse(r"a=x\y").is_err());
        assert!(FieldSelector::parse("a=b=c").is_err());
        assert_eq!(
            FieldSelector::parse("a").expect_err("no operator").0,
            "invalid selector: 'a'; can't understand 'a'"
        );
    }

    #[test]
    fn unknown_fields_are_refused_in_upstreams_words() {
        assert_eq!(
            known_field("", "ConfigMap", "data.x").expect_err("unknown"),
            "\"data.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        );
        assert_eq!(known_field("", "Event", "message").expect_err("unknown"), "field label not supported: message");
        assert_eq!(known_field("", "Pod", "spec.host").expect("old name"), "spec.nodeName");
    }
}
