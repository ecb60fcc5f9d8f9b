//! Custom kinds: from a CustomResourceDefinition to entries of the registry.
//!
//! A definition is an object like any other; this module says what it means. [`resources`] gives one
//! [`Resource`] per served version, each with a [`CustomKind`] that holds what built-in kinds have in tables:
//! schema, columns, the paths of scale, the fields that can be selected by.
//!
//! ```text
//! definition ─▶ validate  (what may be written)
//!            ─▶ names     which names are taken; conditions, accepted names
//!            ─▶ resources one per served version ─▶ registry
//! ```

use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::resource::{Resource, Subresource, VERBS};
use crate::structural::path::{self, JsonPath};
use crate::structural::{self, Structural};

mod names;
mod object;
mod scale;
mod validate;

pub use names::{Taken, condition, is_true, naming_status, set_condition};
pub use object::{apply_defaults, convert, decode_value, validate_object, validate_status};
pub use scale::Scale;
pub(crate) use validate::{create, status, update};

/// Group of definitions.
pub const GROUP: &str = "apiextensions.k8s.io";
/// Kind of definitions.
pub const KIND: &str = "CustomResourceDefinition";
/// Plural of definitions.
pub const PLURAL: &str = "customresourcedefinitions";
/// What holds a definition until its objects are gone.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// What is known about a kind that a definition declares, in one of its versions. Cheap to clone.
#[derive(Clone)]
pub struct Custom(Arc<CustomKind>);

/// What a definition says about one version.
pub struct CustomKind {
    /// Name of the definition.
    pub definition: String,
    /// The version's schema, compiled.
    pub schema: Structural,
    /// The version's schema as it is written.
    pub document: Value,
    /// What tables show beside the name.
    pub columns: Vec<Column>,
    /// Where the number of replicas is, if the kind can be scaled.
    pub scale: Option<Scale>,
    /// Fields that objects can be selected by, with their paths.
    pub selectable: Vec<(String, JsonPath)>,
    /// What clients of a deprecated version are told.
    pub deprecation: Option<String>,
    /// Whether objects are stored as this version sees them.
    pub is_storage: bool,
    /// Whether reading through this version may show other things than are stored.
    pub reads_differ: bool,
    /// Whether the definition is being deleted: nothing new is created.
    pub is_terminating: bool,
    /// Changes when anything of this does.
    fingerprint: String,
}

/// A column of a custom kind's table.
#[derive(Debug)]
pub struct Column {
    /// Title.
    pub name: String,
    /// Type of the cells.
    pub kind: String,
    /// More about the type.
    pub format: String,
    /// For people.
    pub description: String,
    /// Above 0: shown on request.
    pub priority: i64,
    /// Where the value is; `None` if the path is malformed.
    pub path: Option<JsonPath>,
}

impl std::ops::Deref for Custom {
    type Target = CustomKind;

    fn deref(&self) -> &CustomKind {
        &self.0
    }
}

impl PartialEq for Custom {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for Custom {}

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Custom({} {})", self.definition, self.fingerprint)
    }
}

/// The kinds that a definition declares: one for each version that is served. Names are those accepted.
pub fn resources(definition: &Value) -> Result<Vec<Resource>, structural::ParseError> {
    let versions = list(&definition["spec"]["versions"]);
    let storage = versions.iter().find(|v| v["storage"] == true).map(|v| &v["schema"]);
    let served = versions.iter().filter(|version| version["served"] == true);
    served.map(|version| resource(definition, version, storage)).collect()
}

/// The kind in its storage version, served or not: how objects are kept.
pub fn storage(definition: &Value) -> Result<Option<Resource>, structural::ParseError> {
    let versions = list(&definition["spec"]["versions"]);
    let Some(version) = versions.iter().find(|v| v["storage"] == true) else { return Ok(None) };
    resource(definition, version, Some(&version["schema"])).map(Some)
}

/// One version of a kind.
fn resource(definition: &Value, version: &Value, storage: Option<&Value>) -> Result<Resource, structural::ParseError> {
    let spec = &definition["spec"];
    let names = &definition["status"]["acceptedNames"];
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let words = |value: &Value| list(value).iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let (group, name, kind) = (word(&spec["group"]), word(&version["name"]), word(&names["kind"]));
    let custom = CustomKind::read(definition, version, storage)?;
    let subresources = subresources(&group, &name, &kind, &version["subresources"]);
    Ok(Resource {
        type_name: format!("{group}/{name}.{kind}"),
        list_kind: word(&names["listKind"]),
        plural: word(&names["plural"]),
        singular: word(&names["singular"]),
        short_names: words(&names["shortNames"]),
        categories: words(&names["categories"]),
        namespaced: spec["scope"] == "Namespaced",
        verbs: VERBS.map(str::to_owned).to_vec(),
        subresources,
        custom: Some(Custom(Arc::new(custom))),
        group,
        version: name,
        kind,
    })
}

/// What lies below objects of a kind.
fn subresources(group: &str, version: &str, kind: &str, given: &Value) -> Vec<Subresource> {
    let one = |name: &str, group: &str, version: &str, kind: &str| Subresource {
        name: name.to_owned(),
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.to_owned(),
        verbs: ["get", "patch", "update"].map(str::to_owned).to_vec(),
    };
    let mut out = Vec::new();
    if given["scale"].is_object() {
        out.push(one("scale", "autoscaling", "v1", "Scale"));
    }
    if given["status"].is_object() {
        out.push(one("status", group, version, kind));
    }
    out
}

impl CustomKind {
    /// Reads what a definition says about a version.
    fn read(definition: &Value, version: &Value, storage: Option<&Value>) -> Result<Self, structural::ParseError> {
        let document = &version["schema"]["openAPIV3Schema"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let columns = list(&version["additionalPrinterColumns"]);
        let selectable = list(&version["selectableFields"]);
        let is_terminating = definition["metadata"]["deletionTimestamp"].is_string();
        let identity = json!([
            definition["metadata"]["uid"],
            definition["spec"],
            version["name"],
            definition["status"]["acceptedNames"],
            is_terminating
        ]);
        let mut fingerprint = DefaultHasher::new();
        fingerprint.write(identity.to_string().as_bytes());
        Ok(CustomKind {
            definition: text(&definition["metadata"]["name"]),
            schema: structural::parse(document)?,
            document: document.clone(),
            columns: if columns.is_empty() { vec![Column::age()] } else { columns.iter().map(Column::read).collect() },
            scale: Scale::read(&version["subresources"]["scale"]),
            selectable: selectable
                .iter()
                .filter_map(|field| field["jsonPath"].as_str())
                .filter_map(|p| Some((path::simple(p).join("."), JsonPath::parse(p).ok()?)))
                .collect(),
            deprecation: deprecation(definition, version),
            is_storage: version["storage"] == true,
            reads_differ: version["storage"] != true && storage != Some(&version["schema"]),
            is_terminating,
            fingerprint: format!("{:016x}", fingerprint.finish()),
        })
    }
}

impl Column {
    /// Reads one column.
    fn read(column: &Value) -> Self {
        let text = |name: &str| column[name].as_str().unwrap_or_default().to_owned();
        Column {
            name: text("name"),
            kind: text("type"),
            format: text("format"),
            description: text("description"),
            priority: column["priority"].as_i64().unwrap_or(0),
            path: JsonPath::parse(&text("jsonPath")).ok(),
        }
    }

    /// The column of kinds that declare none.
    fn age() -> Self {
        Column {
            name: "Age".to_owned(),
            kind: "date".to_owned(),
            format: String::new(),
            description: "When the object was created.".to_owned(),
            priority: 0,
            path: JsonPath::parse(".metadata.creationTimestamp").ok(),
        }
    }
}

/// What clients of a deprecated version are told.
fn deprecation(definition: &Value, version: &Value) -> Option<String> {
    if version["deprecated"] != true {
        return None;
    }
    let own = version["deprecationWarning"].as_str().map(str::to_owned);
    own.or_else(|| {
        let (group, kind) = (definition["spec"]["group"].as_str()?, definition["spec"]["names"]["kind"].as_str()?);
        Some(format!("{group}/{} {kind} is deprecated", version["name"].as_str()?))
    })
}

/// Fills in what a new or changed definition leaves out, as far as it is not a matter of one type alone.
pub(crate) fn complete_spec(spec: &mut Map<String, Value>) {
    if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) {
        let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        let is_empty = |v: Option<&Value>| v.is_none_or(|v| v.is_null() || v == "");
        if is_empty(names.get("singular")) && !kind.is_empty() {
            names.insert("singular".to_owned(), kind.to_lowercase().into());
        }
        if is_empty(names.get("listKind")) && !kind.is_empty() {
            names.insert("listKind".to_owned(), format!("{kind}List").into());
        }
    }
    if spec.get("conversion").is_none_or(Value::is_null) {
        spec.insert("conversion".to_owned(), json!({"strategy": "None"}));
    }
}

/// The status that a new definition begins with.
pub(crate) fn first_status(definition: &Value) -> Value {
    let mut status = json!({});
    note_storage_version(definition, &mut status);
    status
}

/// Adds the storage version to those that objects may be stored in.
pub(crate) fn note_storage_version(definition: &Value, status: &mut Value) {
    let versions = list(&definition["spec"]["versions"]);
    let Some(name) = versions.iter().find(|v| v["storage"] == true).map(|v| &v["name"]) else { return };
    if !status["storedVersions"].is_array() {
        status["storedVersions"] = json!([]);
    }
    if let Some(stored) = status["storedVersions"].as_array_mut()
        && !stored.contains(name)
    {
        stored.push(name.clone());
    }
}

/// The items of a list; none if it is something else.
fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}
