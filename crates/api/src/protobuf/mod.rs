//! Kubernetes' binary form of objects: protocol buffers, driven by the schema.
//!
//! Clients built on client-go prefer it for built-in kinds. A body is four bytes of magic and an
//! envelope that names the kind and holds the object:
//!
//! ```text
//! "k8s\0" │ envelope: 1 type (1 apiVersion, 2 kind) │ 2 object │ 3 encoding │ 4 media type
//! ```
//!
//! Fields are numbered as in the schema. Where upstream embeds one message in another, a field has
//! several numbers, and its siblings with the same first number share a message.
//!
//! | type | message |
//! |---|---|
//! | Quantity | 1 text |
//! | IntOrString | 1 is-text, 2 number, 3 text |
//! | Time, MicroTime | 1 seconds, 2 nanoseconds; empty: none |
//! | FieldsV1, free-form JSON | 1 JSON |
//! | map | one message per entry: 1 key, 2 value |
//! | list inside a map | 1 item, repeated |

mod read;
pub(crate) mod wire;
mod write;

use serde_json::{Map, Value};

use crate::schema::Schema;
use wire::{Reader, Writer};

/// First bytes of every body.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// Deepest nesting of messages.
const MAX_DEPTH: usize = 100;

/// Reads an object of the type named `type_name` out of a body. What its envelope says about
/// version and kind stands in the object.
pub fn decode(type_name: &str, body: &[u8]) -> Result<Value, Error> {
    let envelope = body.strip_prefix(MAGIC).ok_or(Error::Magic)?;
    let mut header = Map::new();
    let mut raw: &[u8] = &[];
    let mut fields = Reader::new(envelope);
    while let Some(field) = fields.next()? {
        match field.number {
            1 => {
                let mut names = Reader::new(field.bytes()?);
                while let Some(name) = names.next()? {
                    let key = match name.number {
                        1 => "apiVersion",
                        2 => "kind",
                        _ => continue,
                    };
                    header.insert(key.to_owned(), Value::from(name.text()?));
                }
            }
            2 => raw = field.bytes()?,
            3 if !field.bytes()?.is_empty() => return Err(Error::Encoding),
            _ => {}
        }
    }
    let schema = Schema::builtin();
    let id = schema.find(type_name).ok_or_else(|| Error::Type(type_name.to_owned()))?;
    let mut object = read::value(schema, id, raw, 0)?;
    if let Some(object) = object.as_object_mut() {
        object.append(&mut header);
    }
    Ok(object)
}

/// Writes an object of the type named `type_name`, with its envelope.
pub fn encode(type_name: &str, object: &Value) -> Result<Vec<u8>, Error> {
    let schema = Schema::builtin();
    let id = schema.find(type_name).ok_or_else(|| Error::Type(type_name.to_owned()))?;
    let mut raw = Writer::default();
    write::message(schema, id, object, &mut raw);
    Ok(enveloped(object, &raw.into_bytes()))
}

/// Writes a list of objects of the type named `type_name`: `list` is the list with its `items`.
pub fn encode_list(type_name: &str, list: &Value) -> Result<Vec<u8>, Error> {
    let schema = Schema::builtin();
    let find = |name: &str| schema.find(name).ok_or_else(|| Error::Type(name.to_owned()));
    let (item, metadata) = (find(type_name)?, find("meta/v1.ListMeta")?);
    let mut raw = Writer::default();
    raw.message(1, |inner| write::message(schema, metadata, &list["metadata"], inner));
    for object in list["items"].as_array().into_iter().flatten() {
        raw.message(2, |inner| write::message(schema, item, object, inner));
    }
    Ok(enveloped(list, &raw.into_bytes()))
}

/// Puts a message into its envelope.
fn enveloped(object: &Value, raw: &[u8]) -> Vec<u8> {
    let mut envelope = Writer::default();
    envelope.message(1, |names| {
        for (number, name) in [(1, "apiVersion"), (2, "kind")] {
            names.bytes(number, object[name].as_str().unwrap_or_default().as_bytes());
        }
    });
    envelope.bytes(2, raw);
    envelope.bytes(3, b"");
    envelope.bytes(4, b"");
    [MAGIC.as_slice(), &envelope.into_bytes()].concat()
}

/// Why a body cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The body is not in this form at all: send JSON, or name the right media type.
    #[error("provided data does not appear to be a protobuf message, expected prefix {MAGIC:?}")]
    Magic,
    /// The envelope's content is compressed or otherwise encoded, which nobody does.
    #[error("the object in the protobuf envelope is encoded in a way that is not supported")]
    Encoding,
    /// The schema has no such type: the kind has no binary form here, use JSON.
    #[error("type {0} has no protobuf form")]
    Type(String),
    /// The bytes end too early or are not what their numbers say: the sender is broken.
    #[error("malformed protobuf message: {0}")]
    Malformed(&'static str),
}

#[cfg(test)]
mod tests;
