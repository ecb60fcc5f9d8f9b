//! Answers: Status objects, documents, and stored objects in the shape that was asked for.

use std::sync::Arc;

use api::protobuf;
use api::resource::Resource;
use api::status::Status;
use api::table::{self, IncludeObject};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use http::{HeaderMap, Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::body::Body;
use crate::errors::{Fail, Outcome};
use crate::media::{Notation, Shape, Wanted};
use crate::object;

/// Turns an outcome into an answer; a failure into a Status in the notation that the client wants.
pub(crate) fn outcome(outcome: Outcome<Response<Body>>, notation: Notation) -> Response<Body> {
    match outcome {
        Ok(response) => response,
        Err(fail) => status_in(&fail, notation),
    }
}

/// A Status as an answer.
pub(crate) fn status(status: &Status) -> Response<Body> {
    status_in(status, Notation::Json)
}

/// A Status as an answer, in some notation.
fn status_in(status: &Status, notation: Notation) -> Response<Body> {
    let mut response = document(status.code, &status.to_value(), notation);
    let retry = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
    if retry > 0 {
        response.headers_mut().insert("Retry-After", HeaderValue::from(retry));
    }
    response
}

/// 429: too many requests are under way.
pub(crate) fn too_busy() -> Response<Body> {
    status(&Status::too_many_requests("Too many requests, please try again later.", 1))
}

/// A document with `apiVersion` and `kind`, in some notation; in JSON if it has no such form.
pub(crate) fn document(code: u16, value: &Value, notation: Notation) -> Response<Body> {
    let written = match notation {
        Notation::Json => None,
        Notation::Yaml => serde_saphyr::to_string(value).ok().map(|text| ("application/yaml", text.into_bytes())),
        Notation::Protobuf => protobuf::encode_document(value).ok().map(|bytes| (protobuf::MEDIA_TYPE, bytes)),
    };
    match written {
        Some((media, bytes)) => raw(code, media, bytes),
        None => json(code, value),
    }
}

/// A document in JSON.
pub(crate) fn json(code: u16, value: &Value) -> Response<Body> {
    raw(code, "application/json", value.to_string())
}

/// Bytes of some media type.
pub(crate) fn raw(code: u16, media: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::full(bytes));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
    headers.insert("Cache-Control", HeaderValue::from_static("no-cache, private"));
    response
}

/// Plain text.
pub(crate) fn text(code: u16, text: impl Into<String>) -> Response<Body> {
    raw(code, "text/plain; charset=utf-8", text.into())
}

/// Leads elsewhere.
pub(crate) fn see_other(place: &'static str) -> Response<Body> {
    let mut response = text(303, "");
    response.headers_mut().insert(LOCATION, HeaderValue::from_static(place));
    response
}

/// How a client wants to see objects.
#[derive(Clone)]
pub(crate) struct View {
    /// Their kind.
    pub(crate) resource: Arc<Resource>,
    /// The shape and the notation.
    pub(crate) wanted: Wanted,
    /// What comes along with each row of a table.
    pub(crate) include: IncludeObject,
    /// For ages.
    pub(crate) now: Timestamp,
}

impl View {
    /// One stored object at one revision.
    pub(crate) fn object(&self, code: u16, stored: &[u8], revision: u64) -> Response<Body> {
        if self.wanted.shape == Shape::Object && self.wanted.notation == Notation::Json {
            return raw(code, "application/json", object::served_bytes(&self.resource, stored, revision));
        }
        self.value(code, &object::value_of(&self.resource, stored, revision))
    }

    /// One document.
    pub(crate) fn value(&self, code: u16, value: &Value) -> Response<Body> {
        match self.wanted.shape {
            Shape::Object => self.document(code, value),
            _ => self.document(code, &self.shaped(value)),
        }
    }

    /// A document as it is, in the notation asked for.
    pub(crate) fn document(&self, code: u16, value: &Value) -> Response<Body> {
        if self.wanted.beta {
            return document(code, &as_beta(value.clone()), self.wanted.notation);
        }
        document(code, value, self.wanted.notation)
    }

    /// One document in the shape asked for.
    pub(crate) fn shaped(&self, value: &Value) -> Value {
        match self.wanted.shape {
            Shape::Object => value.clone(),
            Shape::Metadata => partial(value),
            Shape::Table => {
                let mut table = table::render(&self.resource, &[value], self.now, self.include);
                if let Some(version) = value.pointer("/metadata/resourceVersion") {
                    table["metadata"]["resourceVersion"] = version.clone();
                }
                table
            }
        }
    }
}

/// A table, or metadata alone, under the older name of their API version.
pub(crate) fn as_beta(mut value: Value) -> Value {
    fn rename(value: &mut Value) {
        if value.get("apiVersion").is_some_and(|version| version == "meta.k8s.io/v1") {
            value["apiVersion"] = "meta.k8s.io/v1beta1".into();
        }
    }
    rename(&mut value);
    for part in ["rows", "items"] {
        for entry in value.get_mut(part).and_then(Value::as_array_mut).into_iter().flatten() {
            rename(if part == "rows" { &mut entry["object"] } else { entry });
        }
    }
    value
}

/// An object's metadata alone.
pub(crate) fn partial(value: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": value.get("metadata").cloned().unwrap_or_default(),
    })
}

/// Adds Warning headers.
pub(crate) fn warn(mut response: Response<Body>, warnings: &[String]) -> Response<Body> {
    for warning in warnings {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append("Warning", value);
        }
    }
    response
}

/// A field error list as a 422.
pub(crate) fn invalid(resource: &Resource, name: &str, errors: Vec<api::status::FieldError>) -> Outcome<()> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(Fail::new(Status::invalid(&resource.group, &resource.kind, name, errors)))
}
