//! From messages to JSON.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::wire::{Field as WireField, Reader};
use super::{Error, MAX_DEPTH};
use crate::decode::scalar;
use crate::schema::{Field, Node, NodeId, Schema, StructType};

/// Reads a value whose content is the bytes of one field.
pub(super) fn value(schema: &Schema, id: NodeId, bytes: &[u8], depth: usize) -> Result<Value, Error> {
    if depth > MAX_DEPTH {
        return Err(Error::Malformed("it nests too deep"));
    }
    match schema.node(id) {
        Node::Struct(s) => {
            let mut object = Map::new();
            fields(schema, s, &[], bytes, depth, &mut object)?;
            Ok(Value::Object(object))
        }
        Node::Bytes => Ok(STANDARD.encode(bytes).into()),
        Node::Quantity => quantity(bytes),
        Node::IntOrString => int_or_string(bytes),
        Node::Time | Node::MicroTime => time(bytes),
        Node::Duration => duration(bytes),
        Node::FieldsV1 | Node::Raw => free_form(bytes),
        Node::OrBool(inner) => struct_or_bool(schema, *inner, bytes, depth),
        Node::OrList(inner, item) => struct_or_list(schema, *inner, *item, bytes, depth),
        // A list inside a map is a message of its own.
        Node::List(item) => {
            let mut items = Vec::new();
            let mut reader = Reader::new(bytes);
            while let Some(field) = reader.next()? {
                if field.number == 1 {
                    items.push(content(schema, *item, &field, depth + 1)?);
                }
            }
            Ok(Value::Array(items))
        }
        _ => std::str::from_utf8(bytes).map(Value::from).map_err(|_| Error::Malformed("a text is not UTF-8")),
    }
}

/// Reads the fields of a message into `object`; `prefix` are the numbers of the embedded messages
/// around it.
fn fields(
    schema: &Schema,
    s: &StructType,
    prefix: &[u32],
    bytes: &[u8],
    depth: usize,
    object: &mut Map<String, Value>,
) -> Result<(), Error> {
    let mut reader = Reader::new(bytes);
    while let Some(found) = reader.next()? {
        let mut here = prefix.to_vec();
        here.push(found.number);
        match s.fields.iter().find(|f| f.proto.starts_with(&here)) {
            Some(field) if field.proto.len() == here.len() => add(schema, field, &found, depth, object)?,
            Some(_) => fields(schema, s, &here, found.bytes()?, depth + 1, object)?,
            // Newer clients know more fields.
            None => {}
        }
    }
    Ok(())
}

/// Adds one occurrence of a field.
fn add(
    schema: &Schema,
    field: &Field,
    found: &WireField<'_>,
    depth: usize,
    object: &mut Map<String, Value>,
) -> Result<(), Error> {
    let name = field.name.as_ref();
    match schema.node(field.node) {
        Node::List(item) => {
            let Value::Array(items) = object.entry(name).or_insert_with(|| Value::Array(Vec::new())) else {
                return Ok(());
            };
            // Numbers may be packed into one run of bytes.
            if found.is_bytes() && matches!(schema.node(*item), Node::Int32 | Node::Int64 | Node::Bool) {
                let mut packed = Reader::new(found.bytes()?);
                while !packed.is_empty() {
                    items.push(number(schema.node(*item), packed.varint()?));
                }
            } else {
                items.push(content(schema, *item, found, depth + 1)?);
            }
        }
        Node::Map(inner) => {
            let mut key = "";
            let mut value = None;
            let mut entry = Reader::new(found.bytes()?);
            while let Some(part) = entry.next()? {
                match part.number {
                    1 => key = part.text()?,
                    2 => value = Some(content(schema, *inner, &part, depth + 1)?),
                    _ => {}
                }
            }
            let value = match value {
                Some(value) => value,
                None => self::value(schema, *inner, &[], depth + 1)?,
            };
            let Value::Object(entries) = object.entry(name).or_insert_with(|| Value::Object(Map::new())) else {
                return Ok(());
            };
            entries.insert(key.to_owned(), value);
        }
        _ => {
            let value = content(schema, field.node, found, depth + 1)?;
            object.insert(name.to_owned(), value);
        }
    }
    Ok(())
}

/// Reads the content of one field.
fn content(schema: &Schema, id: NodeId, found: &WireField<'_>, depth: usize) -> Result<Value, Error> {
    match schema.node(id) {
        node @ (Node::Int32 | Node::Int64 | Node::Bool | Node::Number) => Ok(number(node, found.number()?)),
        _ => value(schema, id, found.bytes()?, depth),
    }
}

/// A number as its type says.
fn number(node: &Node, value: u64) -> Value {
    match node {
        Node::Bool => Value::Bool(value != 0),
        Node::Number => scalar::number(f64::from_bits(value)),
        // Negative numbers are written with all 64 bits.
        Node::Int32 => Value::from(value as i32),
        _ => Value::from(value as i64),
    }
}

/// A struct, or true or false.
fn struct_or_bool(schema: &Schema, inner: NodeId, bytes: &[u8], depth: usize) -> Result<Value, Error> {
    let mut allowed = Value::Bool(false);
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.next()? {
        match field.number {
            1 if !allowed.is_object() => allowed = (field.number()? != 0).into(),
            2 => allowed = content(schema, inner, &field, depth + 1)?,
            _ => {}
        }
    }
    Ok(allowed)
}

/// A struct, or a list; none if neither was written.
fn struct_or_list(schema: &Schema, inner: NodeId, item: NodeId, bytes: &[u8], depth: usize) -> Result<Value, Error> {
    let (mut one, mut items) = (Value::Null, Vec::new());
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.next()? {
        match field.number {
            1 => one = content(schema, inner, &field, depth + 1)?,
            2 => items.push(content(schema, item, &field, depth + 1)?),
            _ => {}
        }
    }
    Ok(if items.is_empty() { one } else { items.into() })
}

/// An amount.
fn quantity(bytes: &[u8]) -> Result<Value, Error> {
    let mut reader = Reader::new(bytes);
    let mut text = "0";
    while let Some(field) = reader.next()? {
        if field.number == 1 {
            text = field.text()?;
        }
    }
    Ok(text.into())
}

/// A number or a text.
fn int_or_string(bytes: &[u8]) -> Result<Value, Error> {
    let (mut is_text, mut number, mut text) = (false, 0, "");
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.next()? {
        match field.number {
            1 => is_text = field.number()? != 0,
            2 => number = field.number()? as i32,
            3 => text = field.text()?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

/// A time; none if nothing was written.
fn time(bytes: &[u8]) -> Result<Value, Error> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.next()? {
        match field.number {
            1 => seconds = field.number()? as i64,
            2 => nanos = field.number()? as i32,
            _ => {}
        }
    }
    let time = Timestamp::new(seconds, nanos).map_err(|_| Error::Malformed("a time is out of range"))?;
    Ok(time.to_string().into())
}

/// A length of time.
fn duration(bytes: &[u8]) -> Result<Value, Error> {
    let mut nanos = 0;
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.next()? {
        if field.number == 1 {
            nanos = field.number()? as i64;
        }
    }
    let seconds = nanos as f64 / 1e9;
    Ok(format!("{seconds}s").into())
}

/// JSON inside a message.
fn free_form(bytes: &[u8]) -> Result<Value, Error> {
    let mut json: &[u8] = &[];
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.next()? {
        if field.number == 1 {
            json = field.bytes()?;
        }
    }
    if json.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(json).map_err(|_| Error::Malformed("a free-form field is not JSON"))
}
