//! Custom kinds in documents: the schema of their definition, with what every object has besides.

use serde_json::{Map, Value, json};

use super::Dialect;
use super::schemas::reference_text;
use crate::crd::Custom;
use crate::resource::Resource;

/// Name of the type of metadata.
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
/// What version 2 does not know, or understands differently.
const NOT_IN_V2: [&str; 6] = ["allOf", "anyOf", "nullable", "not", "oneOf", "x-kubernetes-validations"];

/// The name of a kind's type: its group the other way round, version and kind.
pub(super) fn name(resource: &Resource) -> String {
    let mut parts: Vec<&str> = resource.group.split('.').collect();
    parts.reverse();
    format!("{}.{}.{}", parts.join("."), resource.version, resource.kind)
}

/// The description of a kind's type.
pub(super) fn definition(dialect: Dialect, resource: &Resource, custom: &Custom) -> Value {
    let mut document = match &custom.document {
        Value::Object(document) => document.clone(),
        _ => Map::new(),
    };
    if dialect == Dialect::V2 {
        simplify(&mut document);
    }
    document.insert("type".to_owned(), "object".into());
    let properties = document.entry("properties").or_insert_with(|| json!({}));
    if let Some(properties) = properties.as_object_mut() {
        let metadata = json!({"$ref": reference_text(dialect, OBJECT_META)});
        let metadata = match dialect {
            Dialect::V3 => {
                json!({"allOf": [metadata], "description": "Name, labels and what else is known about every object."})
            }
            Dialect::V2 => metadata,
        };
        properties.insert("metadata".to_owned(), metadata);
        let texts = [
            ("apiVersion", "Group and version of the API that the object belongs to."),
            ("kind", "What the object is, in CamelCase."),
        ];
        for (field, description) in texts {
            properties.insert(field.to_owned(), json!({"type": "string", "description": description}));
        }
    }
    document.insert(
        "x-kubernetes-group-version-kind".to_owned(),
        json!([{"group": resource.group, "version": resource.version, "kind": resource.kind}]),
    );
    Value::Object(document)
}

/// Takes out what version 2 does not know.
fn simplify(schema: &mut Map<String, Value>) {
    for word in NOT_IN_V2 {
        schema.remove(word);
    }
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().filter_map(Value::as_object_mut).for_each(simplify);
    }
    for part in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(part).and_then(Value::as_object_mut) {
            simplify(inner);
        }
    }
}
