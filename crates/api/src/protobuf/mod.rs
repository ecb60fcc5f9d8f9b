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
//! | Duration | 1 nanoseconds |
//! | FieldsV1, free-form JSON | 1 JSON |
//! | map | one message per entry: 1 key, 2 value |
//! | list inside a map | 1 item, repeated |
//! | struct or bool | 1 whether anything is allowed, 2 struct |
//! | struct or list | 1 struct, 2 item, repeated |

mod read;
pub(crate) mod wire;
mod write;

use serde_json::{Map, Value};

use crate::schema::{NodeId, Schema};
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
    let mut object = read::value(Schema::builtin(), find(type_name)?, raw, 0)?;
    if let Some(object) = object.as_object_mut() {
        object.append(&mut header);
    }
    Ok(object)
}

/// Writes an object of the type named `type_name`, with its envelope.
pub fn encode(type_name: &str, object: &Value) -> Result<Vec<u8>, Error> {
    let mut raw = Writer::default();
    write::message(Schema::builtin(), find(type_name)?, object, &mut raw);
    Ok(enveloped(object, &raw.into_bytes()))
}

/// Writes a list of objects of the type named `type_name`: `list` is the list without its items.
pub fn encode_list<'a>(
    type_name: &str,
    list: &Value,
    items: impl IntoIterator<Item = &'a Value>,
) -> Result<Vec<u8>, Error> {
    let schema = Schema::builtin();
    let (item, metadata) = (find(type_name)?, find("meta/v1.ListMeta")?);
    let mut raw = Writer::default();
    raw.message(1, |inner| write::message(schema, metadata, &list["metadata"], inner));
    for object in items {
        raw.message(2, |inner| write::message(schema, item, object, inner));
    }
    Ok(enveloped(list, &raw.into_bytes()))
}

/// Writes any document by its `apiVersion` and `kind`: an object, a list of objects, a Status.
pub fn encode_document(document: &Value) -> Result<Vec<u8>, Error> {
    let text = |name: &str| document[name].as_str().unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if let Some(name) = type_name(version, kind) {
        return encode(name, document);
    }
    let item = kind.strip_suffix("List").and_then(|kind| type_name(version, kind));
    let item = item.ok_or_else(|| Error::Type(format!("{version} {kind}")))?;
    encode_list(item, document, document["items"].as_array().into_iter().flatten())
}

/// Writes one event of a watch, as a frame of the stream: its length in four bytes, and a message that holds
/// the word and the encoded object.
pub fn watch_frame(word: &str, object: &[u8]) -> Vec<u8> {
    let mut event = Writer::default();
    event.bytes(1, word.as_bytes());
    event.message(2, |raw| raw.bytes(1, object));
    let event = event.into_bytes();
    let length = u32::try_from(event.len()).unwrap_or(u32::MAX);
    [length.to_be_bytes().as_slice(), &event].concat()
}

/// Whether objects of the type named so have a binary form.
pub fn has_form(type_name: &str) -> bool {
    let schema = Schema::builtin();
    let found = schema.find(type_name).and_then(|id| schema.as_struct(id));
    // What is a custom resource elsewhere has fields without numbers.
    found.is_some_and(|s| s.field("metadata").is_none_or(|metadata| !metadata.proto.is_empty()))
}

/// The name of the type of a version and kind; types are named after the group's first word.
fn type_name(api_version: &str, kind: &str) -> Option<&'static str> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let package = group.split('.').next().filter(|p| !p.is_empty()).unwrap_or("core");
    let schema = Schema::builtin();
    // A Status belongs to the core group, and its type to none.
    let id = schema
        .find(&format!("{package}/{version}.{kind}"))
        .or_else(|| schema.find(&format!("meta/{version}.{kind}")).filter(|_| group.is_empty()))?;
    schema.as_struct(id).map(|s| s.name.as_ref())
}

/// The type of this name.
fn find(type_name: &str) -> Result<NodeId, Error> {
    Schema::builtin().find(type_name).ok_or_else(|| Error::Type(type_name.to_owned()))
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
