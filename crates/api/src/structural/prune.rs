//! Unknown fields are dropped, and named for those who want to know.

use serde_json::{Map, Value};

use super::{Additional, Structural, child};

/// Fields that every object has, whatever its schema says.
const ROOT: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Drops what the schema does not know from an object of a custom kind. `unknown` is told the path of each
/// field that goes, such as `spec.parts[0].junk`.
pub fn prune(schema: &Structural, object: &mut Value, unknown: &mut dyn FnMut(String)) {
    visit(schema, object, true, "", unknown);
}

/// Drops what is unknown below one value; `is_resource` keeps the fields of [`ROOT`] as they are.
fn visit(schema: &Structural, value: &mut Value, is_resource: bool, path: &str, unknown: &mut dyn FnMut(String)) {
    match value {
        Value::Array(items) => {
            let Some(schema) = &schema.items else { return clear(schema, items, path, unknown) };
            for (index, item) in items.iter_mut().enumerate() {
                visit(schema, item, schema.embedded, &format!("{path}[{index}]"), unknown);
            }
        }
        Value::Object(object) => members(schema, object, is_resource || schema.embedded, path, unknown),
        _ => {}
    }
}

/// Items of a list that is not described are kept where anything is, else emptied of their fields.
fn clear(schema: &Structural, items: &mut [Value], path: &str, unknown: &mut dyn FnMut(String)) {
    if schema.preserve_unknown {
        return;
    }
    for (index, item) in items.iter_mut().enumerate() {
        visit(&Structural::default(), item, false, &format!("{path}[{index}]"), unknown);
    }
}

/// Drops what is unknown among the members of an object, and below them.
fn members(
    schema: &Structural,
    object: &mut Map<String, Value>,
    is_resource: bool,
    path: &str,
    unknown: &mut dyn FnMut(String),
) {
    object.retain(|name, value| {
        if is_resource && ROOT.contains(&name.as_str()) {
            return true;
        }
        match (schema.properties.get(name), &schema.additional) {
            (Some(property), _) => visit(property, value, property.embedded, &child(path, name), unknown),
            (None, Additional::Schema(inner)) => visit(inner, value, inner.embedded, &child(path, name), unknown),
            (None, Additional::Any) => {}
            _ if schema.preserve_unknown => {}
            _ => {
                unknown(child(path, name));
                return false;
            }
        }
        true
    });
}
