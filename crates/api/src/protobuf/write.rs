//! From JSON to messages. Values that are not of their type are left out: objects come from the
//! store, where they were checked.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::wire::Writer;
use crate::schema::{Field, Node, NodeId, Schema};

/// Writes the content of a struct, or of a value that has a message of its own.
pub(super) fn message(schema: &Schema, id: NodeId, value: &Value, out: &mut Writer) {
    match (schema.node(id), value) {
        (Node::Struct(s), Value::Object(object)) => {
            let present: Vec<(&Field, &Value)> = s
                .fields
                .iter()
                .filter(|f| !f.proto.is_empty())
                .filter_map(|f| Some((f, object.get(f.name.as_ref()).filter(|v| !v.is_null())?)))
                .collect();
            fields(schema, 0, present, out);
        }
        (Node::Quantity, Value::String(text)) => out.bytes(1, text.as_bytes()),
        (Node::IntOrString, Value::String(text)) => {
            out.number(1, 1);
            out.number(2, 0);
            out.bytes(3, text.as_bytes());
        }
        (Node::IntOrString, number) => {
            out.number(1, 0);
            out.number(2, number.as_i64().unwrap_or_default() as u64);
            out.bytes(3, b"");
        }
        (Node::Time | Node::MicroTime, Value::String(text)) => {
            if let Ok(time) = text.parse::<Timestamp>() {
                out.number(1, time.as_second() as u64);
                out.number(2, time.subsec_nanosecond() as u64);
            }
        }
        (Node::FieldsV1 | Node::Raw, value) if !value.is_null() => out.bytes(1, value.to_string().as_bytes()),
        (Node::List(item), Value::Array(items)) => items.iter().for_each(|v| single(schema, *item, 1, v, out)),
        _ => {}
    }
}

/// Writes fields in the order of their numbers; those of an embedded message together.
fn fields(schema: &Schema, level: usize, present: Vec<(&Field, &Value)>, out: &mut Writer) {
    let mut by_number: BTreeMap<u32, Vec<(&Field, &Value)>> = BTreeMap::new();
    for (field, value) in present {
        by_number.entry(field.proto[level]).or_default().push((field, value));
    }
    for (number, group) in by_number {
        match group.as_slice() {
            [(field, value)] if field.proto.len() == level + 1 => self::field(schema, field.node, number, value, out),
            _ => out.message(number, |inner| fields(schema, level + 1, group, inner)),
        }
    }
}

/// Writes a field with all its items or entries.
fn field(schema: &Schema, id: NodeId, number: u32, value: &Value, out: &mut Writer) {
    match (schema.node(id), value) {
        (Node::List(item), Value::Array(items)) => items.iter().for_each(|v| single(schema, *item, number, v, out)),
        (Node::Map(inner), Value::Object(entries)) => entry_messages(schema, *inner, number, entries, out),
        _ => single(schema, id, number, value, out),
    }
}

/// Writes a map.
fn entry_messages(schema: &Schema, inner: NodeId, number: u32, entries: &Map<String, Value>, out: &mut Writer) {
    for (key, value) in entries {
        out.message(number, |entry| {
            entry.bytes(1, key.as_bytes());
            single(schema, inner, 2, value, entry);
        });
    }
}

/// Writes one value.
fn single(schema: &Schema, id: NodeId, number: u32, value: &Value, out: &mut Writer) {
    match schema.node(id) {
        Node::String | Node::Enum(_) | Node::Duration => {
            out.bytes(number, value.as_str().unwrap_or_default().as_bytes());
        }
        Node::Bool => out.number(number, u64::from(value.as_bool().unwrap_or_default())),
        Node::Int32 | Node::Int64 => out.number(number, value.as_i64().unwrap_or_default() as u64),
        Node::Bytes => {
            let bytes = STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default();
            out.bytes(number, &bytes);
        }
        _ => out.message(number, |inner| message(schema, id, value, inner)),
    }
}
