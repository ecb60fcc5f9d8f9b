//! A stored object as the server holds it: its bytes, and what reads need to know without parsing them.
//!
//! Stored bytes have no resourceVersion, because it is not known before the commit, and neither `kind` nor
//! `apiVersion`, which the key tells and lists leave out. [`Object::write`] puts them in: the place is found
//! once per write, and serving copies bytes around it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use api::events;
use api::resource::Resource;
use bytes::Bytes;
use serde_json::Value;

use crate::skim;

/// One object at one revision.
#[derive(Debug)]
pub(crate) struct Object {
    /// Where it lives.
    pub(crate) key: Key,
    /// How its JSON begins when it is served: kind and apiVersion.
    head: Arc<str>,
    /// Its JSON as stored.
    pub(crate) raw: Bytes,
    /// The revision that wrote it: its resourceVersion.
    pub(crate) revision: u64,
    /// Where in `raw` the resourceVersion goes: just after the brace that opens metadata.
    splice_at: usize,
    /// Its labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Whether it is marked as deleted.
    pub(crate) terminating: bool,
    /// What field selectors may ask for.
    pub(crate) fields: BTreeMap<String, String>,
}

/// Namespace (empty for cluster-wide kinds) and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    /// Namespace, or empty.
    pub(crate) namespace: Box<str>,
    /// Name.
    pub(crate) name: Box<str>,
}

impl Key {
    /// A key from its parts.
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl Object {
    /// Takes a stored value in; `None` if it is no object with metadata. `head` is [`head`] of the resource.
    pub(crate) fn new(resource: &Resource, head: &Arc<str>, key: Key, raw: Bytes, revision: u64) -> Option<Self> {
        let (value, raw) = match &resource.custom {
            None => (skim::skim(&raw)?, raw),
            Some(custom) => {
                // What was stored under an older schema is seen through today's.
                let mut value: Value = serde_json::from_slice(&raw).ok()?;
                api::crd::convert(custom, &mut value);
                let raw = Bytes::from(value.to_string());
                (value, raw)
            }
        };
        let splice_at = splice_point(&raw)?;
        let labels = value
            .pointer("/metadata/labels")
            .and_then(Value::as_object)
            .map(|map| map.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect())
            .unwrap_or_default();
        let fields = api::selector::fields(resource, &value);
        let terminating = value.pointer("/metadata/deletionTimestamp").is_some();
        Some(Self { key, head: head.clone(), raw, revision, splice_at, labels, terminating, fields })
    }

    /// Appends the object as it is served, with a given resourceVersion (its own, or that of its deletion).
    pub(crate) fn write(&self, revision: u64, out: &mut Vec<u8>) {
        out.reserve(self.head.len() + self.raw.len() + 40);
        out.extend_from_slice(self.head.as_bytes());
        splice(&self.raw[1..], self.splice_at - 1, revision, out);
    }

    /// Appends the object as lists hold it: without kind and apiVersion.
    pub(crate) fn write_item(&self, out: &mut Vec<u8>) {
        splice(&self.raw, self.splice_at, self.revision, out);
    }

    /// The object as a document, with a given resourceVersion.
    pub(crate) fn value_at(&self, resource: &Resource, revision: u64) -> Value {
        value_of(resource, &self.raw, revision)
    }

    /// The object as a document.
    pub(crate) fn value(&self, resource: &Resource) -> Value {
        self.value_at(resource, self.revision)
    }

    /// About how many bytes it holds.
    pub(crate) fn weight(&self) -> usize {
        self.raw.len() + 512
    }
}

/// How a served object of this kind begins.
pub(crate) fn head(resource: &Resource) -> Arc<str> {
    format!("{{\"kind\":\"{}\",\"apiVersion\":\"{}\",", resource.kind, resource.api_version()).into()
}

/// Whether objects are served in another form than that in which they are kept.
fn is_converted(resource: &Resource) -> bool {
    events::is_view(resource) || resource.custom.as_ref().is_some_and(|custom| custom.reads_differ)
}

/// A stored value as a document. Revision 0 means that it has none (a dry run).
pub(crate) fn value_of(resource: &Resource, raw: &[u8], revision: u64) -> Value {
    let mut value: Value = serde_json::from_slice(raw).unwrap_or_default();
    if events::is_view(resource) {
        events::to_view(&mut value);
    } else if let Some(custom) = resource.custom.as_ref().filter(|custom| custom.reads_differ) {
        api::crd::convert(custom, &mut value);
    }
    if let Some(object) = value.as_object_mut() {
        object.insert("kind".to_owned(), resource.kind.as_str().into());
        object.insert("apiVersion".to_owned(), resource.api_version().into());
    }
    if revision > 0
        && let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.insert("resourceVersion".to_owned(), revision.to_string().into());
    }
    value
}

/// The bytes to store.
pub(crate) fn stored_bytes(mut value: Value) -> Bytes {
    if value["kind"] == events::KIND && value["apiVersion"].as_str().is_some_and(|v| v.starts_with(events::GROUP)) {
        events::to_stored(&mut value);
    }
    if let Some(object) = value.as_object_mut() {
        object.remove("kind");
        object.remove("apiVersion");
    }
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    Bytes::from(value.to_string())
}

/// A stored value as it is served.
pub(crate) fn served_bytes(resource: &Resource, raw: &[u8], revision: u64) -> Vec<u8> {
    if is_converted(resource) {
        return value_of(resource, raw, revision).to_string().into_bytes();
    }
    let mut out = Vec::with_capacity(raw.len() + 128);
    out.extend_from_slice(head(resource).as_bytes());
    match splice_point(raw) {
        Some(at) => splice(&raw[1..], at - 1, revision, &mut out),
        None => out.extend_from_slice(&raw[1..]),
    }
    out
}

/// Appends `raw` with a resourceVersion put in at `at`.
fn splice(raw: &[u8], at: usize, revision: u64, out: &mut Vec<u8>) {
    if revision == 0 {
        return out.extend_from_slice(raw);
    }
    let mut version = String::with_capacity(40);
    let comma = if raw.get(at) == Some(&b'}') { "" } else { "," };
    write!(version, "\"resourceVersion\":\"{revision}\"{comma}").expect("writing to a String never fails");
    out.extend_from_slice(&raw[..at]);
    out.extend_from_slice(version.as_bytes());
    out.extend_from_slice(&raw[at..]);
}

/// Just after the brace that opens the top level's `metadata`, if `raw` is compact JSON that has one.
fn splice_point(raw: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"\"metadata\":{";
    let (mut depth, mut at) = (0usize, 0usize);
    while at < raw.len() {
        match raw[at] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            b'"' => {
                if depth == 1 && raw[at..].starts_with(NAME) {
                    return Some(at + NAME.len());
                }
                at = string_end(raw, at)?;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// The place after the string that begins at `at`.
fn string_end(raw: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    loop {
        match raw.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use api::resource::Registry;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn pods() -> Arc<Resource> {
        Registry::builtin().find("", "v1", "pods").unwrap()
    }

    fn served(value: &Value, revision: u64) -> Value {
        serde_json::from_slice(&served_bytes(&pods(), &stored_bytes(value.clone()), revision)).unwrap()
    }

    #[test]
    fn the_version_goes_into_the_top_levels_metadata() {
        let value = json!({
            "apiVersion": "v1", "data": {"metadata": {"x": 1}, "q\"": "\"metadata\":{\\"},
            "kind": "Pod", "metadata": {"name": "a"}, "spec": {"metadata": {"name": "b"}}
        });
        let mut expected = value.clone();
        expected["metadata"]["resourceVersion"] = "7".into();
        assert_eq!(served(&value, 7), expected);
        assert_eq!(served(&value, 0), value);
    }

    #[test]
    fn empty_metadata_stays_valid() {
        assert_eq!(served(&json!({"metadata": {}}), 7)["metadata"], json!({"resourceVersion": "7"}));
    }

    #[test]
    fn an_object_serves_what_was_stored() {
        let value = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"nodeName": "n"}
        });
        let resource = pods();
        let key = Key::new("default", "a");
        let object = Object::new(&resource, &head(&resource), key, stored_bytes(value.clone()), 5).unwrap();
        assert_eq!(object.labels["x"], "y");
        let mut out = Vec::new();
        object.write(5, &mut out);
        let mut expected = value;
        expected["metadata"]["resourceVersion"] = "5".into();
        assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), expected);
        assert_eq!(object.value(&resource), expected);
        out.clear();
        object.write_item(&mut out);
        assert!(serde_json::from_slice::<Value>(&out).unwrap().get("kind").is_none());
    }

    proptest! {
        #[test]
        fn any_text_survives_splicing(text in "\\PC*", key in "\\PC*") {
            let value = json!({"a": {key.clone(): text.clone()}, "metadata": {"name": "n"}, "z": text});
            let served = served(&value, 1);
            prop_assert_eq!(&served["metadata"]["resourceVersion"], "1");
            prop_assert_eq!(&served["a"], &value["a"]);
        }
    }
}
