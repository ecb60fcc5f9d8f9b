//! OpenAPI documents for clients.

use serde_json::{Value, json};

use crate::resource::Registry;

/// The index of the v3 documents, as `/openapi/v3` answers.
pub fn v3_index(registry: &Registry) -> Value {
    let _ = registry;
    json!({"paths": {}})
}

/// The v3 document of one group and version; `None` if nothing is served there.
pub fn v3(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let _ = (registry, group, version);
    None
}

/// The v2 document, as `/openapi/v2` answers.
pub fn v2(registry: &Registry) -> Value {
    let _ = registry;
    json!({"swagger": "2.0"})
}
