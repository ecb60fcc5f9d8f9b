//! From a request's body to an object.

use serde_json::Value;

use crate::resource::Resource;
use crate::status::Status;

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaType {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
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
    /// The object, in normal form: only known fields, canonical values, no nulls.
    pub object: Value,
    /// Sentences for the client, such as `unknown field "spec.foo"`.
    pub warnings: Vec<String>,
}

/// Reads an object of this resource's kind. `apiVersion` and `kind` are filled in if absent.
pub fn decode(resource: &Resource, body: &[u8], media: MediaType, mode: FieldValidation) -> Result<Decoded, Status> {
    let _ = media;
    let value = serde_json::from_slice(body).map_err(|e| Status::bad_request(e.to_string()))?;
    check_value(resource, value, mode)
}

/// Checks and normalises a document that is already parsed, such as the result of a patch.
pub fn check_value(resource: &Resource, value: Value, mode: FieldValidation) -> Result<Decoded, Status> {
    let _ = (resource, mode);
    Ok(Decoded { object: value, warnings: Vec::new() })
}

/// Brings an object into the form in which it is stored and served: what an upstream encoder
/// writes always is present, what it omits is absent, quantities are canonical.
///
/// Call it after everything that changes an object, right before it is stored.
pub fn normalize(resource: &Resource, object: &mut Value) {
    let _ = (resource, object);
}
