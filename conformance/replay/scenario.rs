//! What a recording looks like.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::paths;

/// Steps in their order, all in one namespace.
#[derive(Debug, Deserialize)]
pub(super) struct Scenario {
    /// Its name; the file is named so too.
    pub(super) name: String,
    /// What is asked, and what was answered.
    pub(super) steps: Vec<Step>,
    /// Cluster-wide objects to delete afterwards, by path. `#finalizers` behind it: they are taken off first.
    #[serde(default)]
    pub(super) cleanup: Vec<String>,
    /// Whether managedFields are compared.
    #[serde(default, rename = "managedFields")]
    pub(super) managed_fields: bool,
}

/// A request, the opening of a watch, or the collecting of what a watch has seen.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Step {
    /// What it is about.
    pub(super) name: String,
    /// The method of a request.
    pub(super) method: Option<String>,
    /// The name of a watch that is opened.
    pub(super) watch: Option<String>,
    /// The name of a watch whose events are collected.
    pub(super) collect: Option<String>,
    /// How many events to wait for; without it, for the end of the stream.
    pub(super) events: Option<usize>,
    /// How long to wait for them.
    pub(super) timeout_seconds: Option<u64>,
    /// Whether there must have been bookmarks is compared.
    #[serde(default)]
    pub(super) bookmarks: bool,
    /// Where to ask.
    #[serde(default)]
    pub(super) path: String,
    /// The query: values are texts, numbers, or lists of them.
    #[serde(default)]
    pub(super) query: Map<String, Value>,
    /// Further headers; null takes a usual one away.
    #[serde(default)]
    pub(super) headers: BTreeMap<String, Option<String>>,
    /// A document to send.
    pub(super) body: Option<Value>,
    /// Text to send.
    pub(super) raw: Option<String>,
    /// The request is repeated until this holds.
    pub(super) until: Option<Until>,
    /// Variables that take a value from the answer, by path.
    #[serde(default)]
    pub(super) capture: BTreeMap<String, String>,
    /// What was answered.
    pub(super) expect: Value,
    /// How much of the answer is compared: `status`, `headers`, `shape`; everything without it.
    pub(super) compare: Option<String>,
    /// Only the values at these paths are compared.
    pub(super) only: Option<Vec<String>>,
    /// Values at these paths are not compared.
    #[serde(default)]
    pub(super) drop: Vec<String>,
    /// Of a list only some entries are compared.
    pub(super) keep: Option<Keep>,
    /// Items and causes may come in any order.
    #[serde(default)]
    pub(super) any_order: bool,
}

/// What a repeated request waits for.
#[derive(Debug, Deserialize)]
pub(super) struct Until {
    status: Option<u16>,
    #[serde(default, rename = "match")]
    matches: BTreeMap<String, Value>,
}

impl Until {
    /// Whether an answer is the one.
    pub(super) fn holds(&self, code: u16, body: &Value) -> bool {
        self.status.is_none_or(|status| status == code)
            && self.matches.iter().all(|(path, want)| paths::find(body, path).first() == Some(&want))
    }
}

/// Of the list at a path, the entries whose member `by` is one of `in`, sorted by it.
#[derive(Debug, Deserialize)]
pub(super) struct Keep {
    list: String,
    by: String,
    #[serde(rename = "in")]
    wanted: Vec<Value>,
}

impl Step {
    /// The part of an answer that is compared.
    pub(super) fn project(&self, mut body: Value) -> Value {
        if self.any_order {
            for path in ["items", "details.causes"] {
                paths::change(&mut body, path, &|list| {
                    if let Some(list) = list.as_array_mut() {
                        list.sort_by_key(Value::to_string);
                    }
                });
            }
        }
        if let Some(keep) = &self.keep {
            paths::change(&mut body, &keep.list, &|list| {
                let Some(list) = list.as_array_mut() else { return };
                list.retain(|entry| entry.get(&keep.by).is_some_and(|value| keep.wanted.contains(value)));
                list.sort_by_key(|entry| entry[&keep.by].to_string());
            });
        }
        for path in &self.drop {
            paths::remove(&mut body, path);
        }
        if let Some(only) = &self.only {
            let found = |path: &String| paths::find(&body, path).into_iter().cloned().collect();
            body = Value::Object(only.iter().map(|path| (path.clone(), Value::Array(found(path)))).collect());
        }
        if self.compare.as_deref() == Some("shape") { shape(&body) } else { body }
    }
}

/// A value with every scalar replaced by the name of its type (as the recorder, a Python program, names it).
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(map.iter().map(|(k, v)| (k.clone(), shape(v))).collect()),
        Value::Array(list) => list.iter().map(shape).collect(),
        Value::String(_) => json!("<str>"),
        Value::Bool(_) => json!("<bool>"),
        Value::Null => json!("<NoneType>"),
        Value::Number(n) => json!(if n.is_f64() { "<float>" } else { "<int>" }),
    }
}
