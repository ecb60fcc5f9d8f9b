//! What absent fields mean.

use serde_json::Value;

use super::{Additional, Structural};

/// Fills in every default. Applying it again changes nothing.
pub fn apply_defaults(schema: &Structural, value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (name, property) in &schema.properties {
                let is_missing = object.get(name).is_none_or(|v| v.is_null() && !property.nullable);
                if let (true, Some(default)) = (is_missing, &property.default) {
                    object.insert(name.clone(), default.clone());
                }
            }
            for (name, member) in object.iter_mut() {
                match (schema.properties.get(name), &schema.additional) {
                    (Some(property), _) => apply_defaults(property, member),
                    (None, Additional::Schema(inner)) => {
                        if let (true, false, Some(default)) = (member.is_null(), inner.nullable, &inner.default) {
                            *member = default.clone();
                        }
                        apply_defaults(inner, member);
                    }
                    _ => {}
                }
            }
        }
        Value::Array(items) => {
            let Some(schema) = &schema.items else { return };
            for item in items {
                if let (true, false, Some(default)) = (item.is_null(), schema.nullable, &schema.default) {
                    *item = default.clone();
                }
                apply_defaults(schema, item);
            }
        }
        _ => {}
    }
}

/// Drops nulls of fields that are neither nullable nor have a default: clients write them for "absent".
pub fn drop_nulls(schema: &Structural, value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|name, member| match schema.properties.get(name) {
                Some(property) => !member.is_null() || property.nullable || property.default.is_some(),
                None => true,
            });
            for (name, member) in object.iter_mut() {
                if let Some(schema) = schema.field(name) {
                    drop_nulls(schema, member);
                }
            }
        }
        Value::Array(items) => {
            let Some(schema) = &schema.items else { return };
            items.iter_mut().for_each(|item| drop_nulls(schema, item));
        }
        _ => {}
    }
}
