//! Lists whose items are told apart: no value, and no combination of keys, appears twice.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::{ListType, Structural, child};
use crate::status::FieldError;

/// Finds items that appear twice in sets and in lists that are keyed.
pub fn check_lists(schema: &Structural, value: &Value, path: &str, out: &mut Vec<FieldError>) {
    match value {
        Value::Object(object) => {
            for (name, member) in object {
                if let Some(schema) = schema.field(name) {
                    check_lists(schema, member, &child(path, name), out);
                }
            }
        }
        Value::Array(items) => {
            match &schema.list {
                ListType::Atomic => {}
                ListType::Set => twice(items.iter().map(Clone::clone), path, out),
                ListType::Map(keys) => twice(items.iter().map(|item| keys_of(schema, item, keys)), path, out),
            }
            let Some(schema) = &schema.items else { return };
            for (index, item) in items.iter().enumerate() {
                check_lists(schema, item, &format!("{path}[{index}]"), out);
            }
        }
        _ => {}
    }
}

/// Names every value that was there before.
fn twice(values: impl Iterator<Item = Value>, path: &str, out: &mut Vec<FieldError>) {
    let mut seen = HashSet::new();
    for (index, value) in values.enumerate() {
        // Texts of JSON are canonical here: objects are sorted by key.
        if !seen.insert(value.to_string()) {
            out.push(FieldError::duplicate(format!("{path}[{index}]"), value));
        }
    }
}

/// What tells an item apart.
fn keys_of(schema: &Structural, item: &Value, keys: &[String]) -> Value {
    let mut found = Map::new();
    for key in keys {
        let default = || schema.items.as_ref()?.properties.get(key)?.default.as_ref();
        if let Some(value) = item.get(key).or_else(default) {
            found.insert(key.clone(), value.clone());
        }
    }
    Value::Object(found)
}
