//! Printer columns: objects as the rows that `kubectl get` shows.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::resource::Resource;

/// How much of each object a row carries along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Kind and metadata.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

/// The column definitions of a kind.
pub fn columns(_resource: &Resource) -> Vec<Value> {
    Vec::new()
}

/// A meta/v1 Table of objects. The caller adds the list's metadata.
pub fn render(resource: &Resource, _items: &[&Value], _now: Timestamp, _include: IncludeObject) -> Value {
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "columnDefinitions": columns(resource), "rows": []})
}
