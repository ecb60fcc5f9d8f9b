//! From JSON to messages, byte for byte as upstream's generated encoders write them:
//!
//! - fields in the order of their numbers, entries of maps in the order of their keys;
//! - what is no pointer is always written: empty texts, zeros, messages without content;
//! - pointers, lists, maps and bytes only if they are there.
//!
//! Values that are not of their type count as absent: objects come from the store, where they were
//! checked.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::wire::Writer;
use crate::schema::{Field, Node, NodeId, Schema, StructType};

/// What stands for an absent value.
const ABSENT: Value = Value::Null;

/// Writes the content of a struct, or of a value that has a message of its own; for an absent value, what its
/// zero value is written as.
pub(super) fn message(schema: &Schema, id: NodeId, value: &Value, out: &mut Writer) {
    match (schema.node(id), value) {
        (Node::Struct(s), value) => fields(schema, &ordered(schema, id, s), 0, value.as_object(), out),
        (Node::Quantity, value) => out.bytes(1, value.as_str().unwrap_or("0").as_bytes()),
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
        (node @ (Node::Time | Node::MicroTime), Value::String(text)) => {
            if let Ok(time) = text.parse::<Timestamp>() {
                let nanos = if *node == Node::Time { 0 } else { time.subsec_nanosecond() / 1000 * 1000 };
                // Nanoseconds count upwards from the second, before 1970 too.
                let (seconds, nanos) =
                    if nanos < 0 { (time.as_second() - 1, nanos + 1_000_000_000) } else { (time.as_second(), nanos) };
                out.number(1, seconds as u64);
                out.number(2, nanos as u64);
            }
        }
        (Node::Duration, value) => {
            let nanos = value.as_str().and_then(duration).unwrap_or_default();
            out.number(1, nanos as u64);
        }
        (Node::FieldsV1 | Node::Raw, value) if !value.is_null() => out.bytes(1, value.to_string().as_bytes()),
        (Node::List(item), Value::Array(items)) => items.iter().for_each(|v| single(schema, *item, 1, v, out)),
        (Node::OrBool(_), Value::Bool(allowed)) => out.number(1, u64::from(*allowed)),
        (Node::OrBool(inner), value) => {
            out.number(1, 1);
            single(schema, *inner, 2, value, out);
        }
        (Node::OrList(_, item), Value::Array(items)) => items.iter().for_each(|v| single(schema, *item, 2, v, out)),
        (Node::OrList(inner, _), value) => single(schema, *inner, 1, value, out),
        _ => {}
    }
}

/// The fields of a struct that are encoded, in the order of their numbers. For the built-in types it is found once.
fn ordered<'a>(schema: &'a Schema, id: NodeId, s: &'a StructType) -> Vec<&'a Field> {
    static BUILTIN: LazyLock<Vec<Vec<u16>>> = LazyLock::new(|| {
        let schema = Schema::builtin();
        let all = (0..schema.len()).map(|n| NodeId(u32::try_from(n).expect("ids are 32 bits wide")));
        all.map(|id| schema.as_struct(id).map_or(Vec::new(), order)).collect()
    });
    if std::ptr::eq(schema, Schema::builtin()) {
        return BUILTIN[id.0 as usize].iter().map(|n| &s.fields[usize::from(*n)]).collect();
    }
    order(s).into_iter().map(|n| &s.fields[usize::from(n)]).collect()
}

/// Positions of the encoded fields of a struct, in the order of their numbers.
fn order(s: &StructType) -> Vec<u16> {
    let mut encoded: Vec<u16> =
        (0..s.fields.len()).filter(|n| !s.fields[*n].proto.is_empty()).map(|n| n as u16).collect();
    encoded.sort_by(|a, b| s.fields[usize::from(*a)].proto.cmp(&s.fields[usize::from(*b)].proto));
    encoded
}

/// Writes fields, which are in order; those of an embedded message stand together.
fn fields(schema: &Schema, ordered: &[&Field], level: usize, object: Option<&Map<String, Value>>, out: &mut Writer) {
    for group in ordered.chunk_by(|a, b| a.proto[level] == b.proto[level]) {
        let number = group[0].proto[level];
        match group {
            [field] if field.proto.len() == level + 1 => {
                let value = object.and_then(|o| o.get(field.name.as_ref())).unwrap_or(&ABSENT);
                self::field(schema, field, number, value, out);
            }
            _ => out.message(number, |inner| fields(schema, group, level + 1, object, inner)),
        }
    }
}

/// Writes a field with all its items or entries.
fn field(schema: &Schema, field: &Field, number: u32, value: &Value, out: &mut Writer) {
    match (schema.node(field.node), value) {
        (Node::List(item), Value::Array(items)) => items.iter().for_each(|v| single(schema, *item, number, v, out)),
        (Node::Map(inner), Value::Object(entries)) => entry_messages(schema, *inner, number, entries, out),
        (Node::List(_) | Node::Map(_), _) | (Node::Bytes, Value::Null) => {}
        (_, Value::Null) if field.pointer => {}
        _ => single(schema, field.node, number, value, out),
    }
}

/// Nanoseconds of a text such as `1m30.5s`.
fn duration(text: &str) -> Option<i64> {
    let span: jiff::SignedDuration = text.parse().ok()?;
    i64::try_from(span.as_nanos()).ok()
}

/// Writes a map.
fn entry_messages(schema: &Schema, inner: NodeId, number: u32, entries: &Map<String, Value>, out: &mut Writer) {
    for (key, value) in entries {
        out.message(number, |entry| {
            entry.bytes(1, key.as_bytes());
            if !(value.is_null() && *schema.node(inner) == Node::Bytes) {
                single(schema, inner, 2, value, entry);
            }
        });
    }
}

/// Writes one value; an absent one as its zero.
fn single(schema: &Schema, id: NodeId, number: u32, value: &Value, out: &mut Writer) {
    match schema.node(id) {
        Node::String | Node::Enum(_) => out.bytes(number, value.as_str().unwrap_or_default().as_bytes()),
        Node::Bool => out.number(number, u64::from(value.as_bool().unwrap_or_default())),
        Node::Int32 | Node::Int64 => out.number(number, value.as_i64().unwrap_or_default() as u64),
        Node::Number => out.double(number, value.as_f64().unwrap_or_default()),
        Node::Bytes => {
            let bytes = STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default();
            out.bytes(number, &bytes);
        }
        _ => out.message(number, |inner| message(schema, id, value, inner)),
    }
}
