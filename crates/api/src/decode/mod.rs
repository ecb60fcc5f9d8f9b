//! From a request's body to an object.
//!
//! One pass over the body, along the schema, checks types, drops unknown fields and notes them,
//! notes duplicate fields, and brings values into canonical form ([`reader`]). A second, over the
//! object, gives it the shape in which upstream's typed encoder would write it ([`normal`]): that
//! is how it is stored and compared.
//!
//! ```text
//! body ──JSON or YAML──▶ reader ──▶ object, problems ──▶ header ──▶ normal form ──▶ Decoded
//!                          └── wrong type, bad syntax ──▶ Status 400 with the field's path
//! ```

mod custom;
mod header;
mod normal;
mod reader;
pub(crate) mod scalar;

use serde::de::DeserializeSeed;
use serde_json::{Map, Value};

use crate::crd::Custom;
use crate::protobuf;
use crate::resource::Resource;
use crate::schema;
use crate::status::{FieldError, Status};
pub use custom::ObjectMeta;
use reader::{Context, Seed};

/// Longest body that is read, in bytes; upstream's limit.
pub const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaType {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`
    Protobuf,
}

/// What is done about unknown and duplicate fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    /// They are refused with 400.
    Strict,
    /// They are dropped and named in warnings.
    #[default]
    Warn,
    /// They are dropped.
    Ignore,
}

/// An object as it came out of a body.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The object, in normal form: only known fields, canonical values.
    pub object: Value,
    /// Sentences for the client, such as `unknown field "spec.foo"`.
    pub warnings: Vec<String>,
}

/// Reads an object of this resource's kind. `apiVersion` and `kind` are filled in if absent.
pub fn decode(resource: &Resource, body: &[u8], media: MediaType, mode: FieldValidation) -> Result<Decoded, Status> {
    decode_as(&Expected::of(resource), body, media, mode)
}

/// Reads an object of a kind that is not a resource of its own, such as `autoscaling/v1` `Scale`
/// or `meta/v1.DeleteOptions`: `type_name` is its name in the schema.
pub fn decode_kind(
    api_version: &str,
    kind: &str,
    type_name: &str,
    body: &[u8],
    media: MediaType,
    mode: FieldValidation,
) -> Result<Decoded, Status> {
    decode_as(
        &Expected { api_version: api_version.into(), kind: kind.into(), type_name: type_name.into(), custom: None },
        body,
        media,
        mode,
    )
}

/// Checks and normalises a document that is already parsed, such as the result of a patch.
/// What is wrong with it is a 422 about the patch.
pub fn check_value(resource: &Resource, value: Value, mode: FieldValidation) -> Result<Decoded, Status> {
    let expected = Expected::of(resource);
    if let Some(custom) = &resource.custom {
        return custom::check(custom, &expected, value, mode);
    }
    let invalid = |why: String, value: &Value| {
        let shown: String = value.to_string().chars().take(MAX_SHOWN_CHARS).collect();
        Status::invalid("", "", "", vec![FieldError::invalid("patch", shown, why)])
    };
    if !value.is_object() {
        return Err(invalid(format!("json: cannot unmarshal {} into an object", reader::json_kind(&value)), &value));
    }
    header::check(&expected, &header::of_value(&value)).map_err(|status| invalid(status.message, &value))?;
    let mut context = Context::new(&expected.type_name);
    let read = Seed::root(&mut context).deserialize(&value);
    match read {
        Ok(object) => context
            .finish(mode)
            .map(|warnings| Decoded { object: finish(&expected, object), warnings })
            .map_err(|why| invalid(why, &value)),
        Err(error) => Err(invalid(context.fatal.take().unwrap_or_else(|| error.to_string()), &value)),
    }
}

/// Brings an object into the form in which it is stored and served: what an upstream encoder
/// always writes is present, what it omits is absent.
///
/// Call it after everything that changes an object, right before it is stored.
pub fn normalize(resource: &Resource, object: &mut Value) {
    if resource.custom.is_some() {
        if let Some(metadata) = object.get_mut("metadata") {
            ObjectMeta::normalize(metadata);
        }
    } else if let Some((schema, id)) = schema::of(resource) {
        normal::normalize(schema, id, object);
    }
}

/// Brings an object of the type of this name into normal form.
pub(crate) fn normalize_type(type_name: &str, object: &mut Value) {
    let schema = schema::Schema::builtin();
    if let Some(id) = schema.find(type_name) {
        normal::normalize(schema, id, object);
    }
}

/// Longest excerpt of a document in a message.
const MAX_SHOWN_CHARS: usize = 256;

/// What a body should hold.
#[derive(Clone)]
struct Expected {
    api_version: String,
    kind: String,
    type_name: String,
    custom: Option<Custom>,
}

impl Expected {
    /// An object of this resource.
    fn of(resource: &Resource) -> Self {
        Expected {
            api_version: resource.api_version(),
            kind: resource.kind.clone(),
            type_name: resource.type_name.clone(),
            custom: resource.custom.clone(),
        }
    }

    /// The version without its group.
    fn version(&self) -> &str {
        self.api_version.rsplit('/').next().unwrap_or(&self.api_version)
    }
}

/// [`decode`] for any kind.
fn decode_as(expected: &Expected, body: &[u8], media: MediaType, mode: FieldValidation) -> Result<Decoded, Status> {
    if body.len() > MAX_BODY_BYTES {
        return Err(Status::too_large(format!("limit is {MAX_BODY_BYTES}")));
    }
    if let Some(custom) = &expected.custom {
        return custom::decode(custom, expected, body, media, mode);
    }
    if media == MediaType::Protobuf && !protobuf::has_form(&expected.type_name) {
        return Err(Status::unsupported_media_type(&["application/json", "application/yaml"]));
    }
    let mut context = Context::new(&expected.type_name);
    let read = match media {
        MediaType::Json => read_json(body, &mut context),
        MediaType::Yaml => read_yaml(body, &mut context),
        MediaType::Protobuf => read_protobuf(&expected.type_name, body, &mut context),
    };
    let object = match read {
        Ok(object) => object,
        Err(syntax) => return Err(refuse(expected, body, media, syntax, context.fatal.take())),
    };
    header::check(expected, &header::of_value(&object))?;
    let warnings = context.finish(mode).map_err(|why| cannot_be_handled(expected, &why))?;
    Ok(Decoded { object: finish(expected, object), warnings })
}

/// Reads JSON; nothing may follow the object.
fn read_json(body: &[u8], context: &mut Context) -> Result<Value, String> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = Seed::root(context).deserialize(&mut deserializer).map_err(syntax_text)?;
    deserializer.end().map_err(syntax_text)?;
    Ok(value)
}

/// Reads one YAML document.
fn read_yaml(body: &[u8], context: &mut Context) -> Result<Value, String> {
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        // File modes are written as `0644`.
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    serde_saphyr::with_deserializer_from_slice_with_options(body, options, |deserializer| {
        Seed::root(context).deserialize(deserializer)
    })
    .map_err(|error| error.to_string())
}

/// How YAML is read everywhere: as clients written in Go read it, where `0644` is octal, with
/// duplicate keys left to the caller.
pub fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        legacy_octal_numbers: true,
        with_snippet: false,
    }
}

/// Reads the binary form. Its types are right by construction; its texts are checked like any.
fn read_protobuf(type_name: &str, body: &[u8], context: &mut Context) -> Result<Value, String> {
    let value = protobuf::decode(type_name, body).map_err(|error| error.to_string())?;
    Seed::root(context).deserialize(&value).map_err(|error| error.to_string())
}

/// Reads a body of any form into JSON as it is, without a look at what it holds. Only the binary
/// form needs to know the type.
pub fn parse(type_name: &str, body: &[u8], media: MediaType) -> Result<Value, String> {
    match media {
        MediaType::Json => serde_json::from_slice(body).map_err(syntax_text),
        MediaType::Yaml => {
            serde_saphyr::from_slice_with_options(body, yaml_options()).map_err(|error| error.to_string())
        }
        MediaType::Protobuf => protobuf::decode(type_name, body).map_err(|error| error.to_string()),
    }
}

/// Reads a body as a value of the type named so that is not stored as it is: options, reviews, bindings. What is of another
/// type than its field is refused, so that nothing is taken for absent that was asked for; unknown fields are left out.
pub fn typed(type_name: &str, body: &[u8], media: MediaType) -> Result<Value, String> {
    let value = parse(type_name, body, media)?;
    let mut context = Context::new(type_name);
    match Seed::root(&mut context).deserialize(&value) {
        Ok(value) => Ok(value),
        Err(error) => Err(context.fatal.take().unwrap_or_else(|| error.to_string())),
    }
}

/// What is wrong with the syntax, in a sentence.
fn syntax_text(error: serde_json::Error) -> String {
    if error.is_eof() { "unexpected end of JSON input".to_owned() } else { error.to_string() }
}

/// The answer to a body that cannot be read: about its kind if that is wrong, else about the field
/// of a wrong type, else about the syntax.
fn refuse(expected: &Expected, body: &[u8], media: MediaType, syntax: String, fatal: Option<String>) -> Status {
    match fatal {
        Some(why) => {
            let found = parse(&expected.type_name, body, media).ok();
            match found.map(|value| header::check(expected, &header::of_value(&value))) {
                Some(Err(status)) => status,
                _ => cannot_be_handled(expected, &why),
            }
        }
        None => {
            let format = match media {
                MediaType::Json => "json",
                MediaType::Yaml => "yaml",
                MediaType::Protobuf => "protobuf",
            };
            Status::bad_request(format!(
                "the object provided is unrecognized (must be of type {}): couldn't get version/kind; {format} parse error: {syntax} ({})",
                expected.kind,
                excerpt(body)
            ))
        }
    }
}

/// The beginning of a body: as text if it looks like an object, else in hexadecimal.
fn excerpt(body: &[u8]) -> String {
    const MAX_BYTES: usize = 30;
    let (start, dots) = if body.len() > MAX_BYTES { (&body[..MAX_BYTES], " ...") } else { (body, "") };
    match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{dots}", String::from_utf8_lossy(start)),
        Some(_) => start.iter().map(|byte| format!("{byte:02x}")).chain([dots.to_owned()]).collect(),
    }
}

/// A well-formed body of the right kind has content that does not fit.
fn cannot_be_handled(expected: &Expected, why: &str) -> Status {
    let kind = &expected.kind;
    Status::bad_request(format!("{kind} in version {:?} cannot be handled as a {kind}: {why}", expected.version()))
}

/// Completes an object whose content is in order.
fn finish(expected: &Expected, object: Value) -> Value {
    let mut object = match object {
        Value::Object(object) => object,
        _ => Map::new(),
    };
    for (name, text) in [("apiVersion", &expected.api_version), ("kind", &expected.kind)] {
        object.insert(name.to_owned(), Value::String(text.clone()));
    }
    let mut object = Value::Object(object);
    let schema = schema::Schema::builtin();
    if let Some(id) = schema.find(&expected.type_name) {
        normal::normalize(schema, id, &mut object);
    }
    object
}

#[cfg(test)]
mod tests;
