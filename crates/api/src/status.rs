//! The API's error object: `Status` of meta/v1, and the field errors that an invalid object is answered with.
//!
//! Reasons, codes and sentences are Kubernetes' own: clients branch on the reason, people know the sentence.
//!
//! ```text
//! FieldError (one finding) ──▶ Status::invalid (422, one cause per finding) ──▶ to_value (the answer's body)
//! ```

use std::collections::HashSet;
use std::fmt;

use serde_json::{Map, Value};

/// The text of a 409 that answers an update made from an older version of the object.
pub const OPTIMISTIC_LOCK: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// A failed (or, for deletes, successful) answer of the API.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason in CamelCase, such as `NotFound`; empty where upstream has none.
    pub reason: String,
    /// The sentence for people.
    pub message: String,
    /// What the answer is about.
    pub details: Option<Details>,
    /// Where a list whose token has expired can go on all the same; empty elsewhere.
    pub continue_token: String,
}

/// What a [`Status`] is about, and why in single points.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Details {
    /// Name of the object.
    pub name: String,
    /// API group; empty for core.
    pub group: String,
    /// Kind for invalid objects, plural resource name otherwise.
    pub kind: String,
    /// uid of the object, where known.
    pub uid: String,
    /// The single findings.
    pub causes: Vec<Cause>,
    /// Seconds to wait before trying again; 0 says nothing.
    pub retry_after_seconds: u32,
}

/// One finding in [`Details`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Cause {
    /// Such as `FieldValueInvalid`.
    pub reason: String,
    /// The sentence without the field.
    pub message: String,
    /// Path of the field, such as `spec.replicas`.
    pub field: String,
}

impl Status {
    /// An answer without details.
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), message: message.into(), ..Self::default() }
    }

    /// An answer about one object of a resource (or, with an empty name, about the resource).
    fn about(code: u16, reason: &str, message: String, group: &str, plural: &str, name: &str) -> Self {
        let details = Details { name: name.into(), group: group.into(), kind: plural.into(), ..Details::default() };
        Self { code, reason: reason.into(), message, details: Some(details), ..Self::default() }
    }

    /// 400: the request itself cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401: credentials were given and are not good.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403: understood, and refused; `why` ends the sentence.
    pub fn forbidden(group: &str, plural: &str, name: &str, why: impl fmt::Display) -> Self {
        let what = qualified(group, plural);
        let message = match (what.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{what} is forbidden: {why}"),
            (false, false) => format!("{what} {} is forbidden: {why}", quote(name)),
        };
        Self::about(403, "Forbidden", message, group, plural, name)
    }

    /// 404: no such object.
    pub fn not_found(group: &str, plural: &str, name: &str) -> Self {
        let message = format!("{} {} not found", qualified(group, plural), quote(name));
        Self::about(404, "NotFound", message, group, plural, name)
    }

    /// 404: no such path, group, version or resource.
    pub fn path_not_found() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource").with_details(Details::default())
    }

    /// 409 on create: the name is taken.
    pub fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        let message = format!("{} {} already exists", qualified(group, plural), quote(name));
        Self::about(409, "AlreadyExists", message, group, plural, name)
    }

    /// 409 on create with generateName: no free name was found; trying again is right.
    pub fn generate_name_conflict(group: &str, plural: &str, name: &str) -> Self {
        let message = format!(
            "{} {} already exists, the server was not able to generate a unique name for the object",
            qualified(group, plural),
            quote(name)
        );
        Self::about(409, "AlreadyExists", message, group, plural, name).retry_after(1)
    }

    /// 409: the object changed meanwhile, or its state does not allow the operation; `why` ends the sentence.
    pub fn conflict(group: &str, plural: &str, name: &str, why: impl fmt::Display) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {}: {why}", qualified(group, plural), quote(name));
        Self::about(409, "Conflict", message, group, plural, name)
    }

    /// 409 because the resourceVersion that the client built on is no longer the newest.
    pub fn modified(group: &str, plural: &str, name: &str) -> Self {
        Self::conflict(group, plural, name, OPTIMISTIC_LOCK)
    }

    /// 410: the revision asked for has been compacted away; list anew.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 410 inside a watch: the start revision is too old.
    pub fn gone(message: impl Into<String>) -> Self {
        Self::new(410, "Gone", message)
    }

    /// 422: the object breaks rules; one cause per finding.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: Vec<FieldError>) -> Self {
        let what = qualified(group, kind);
        let message = match aggregate(&errors) {
            Some(all) => format!("{what} {} is invalid: {all}", quote(name)),
            None => format!("{what} {} is invalid", quote(name)),
        };
        let causes = errors.iter().map(FieldError::cause).collect();
        let details =
            Details { name: name.into(), group: group.into(), kind: kind.into(), causes, ..Details::default() };
        Self::new(422, "Invalid", message).with_details(details)
    }

    /// 405: the path exists, the method does not.
    pub fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
            .with_details(Details::default())
    }

    /// 405 for an action that a resource does not offer.
    pub fn method_not_supported(group: &str, plural: &str, action: &str) -> Self {
        let message = format!("{action} is not supported on resources of kind {}", quote(&qualified(group, plural)));
        Self::about(405, "MethodNotAllowed", message, group, plural, "")
    }

    /// 406: none of the client's media types can be produced.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Self::new(406, "NotAcceptable", message)
    }

    /// 415: the body's media type cannot be read.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 413: the body is longer than allowed.
    pub fn too_large(why: impl fmt::Display) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: {why}"))
    }

    /// 429: too much at once, or (for evictions) a budget is used up. With 0 seconds no delay is named.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self::new(429, "TooManyRequests", message).retry_after(retry_after_seconds)
    }

    /// 500: our own fault.
    pub fn internal(why: impl fmt::Display) -> Self {
        let cause = Cause { message: why.to_string(), ..Cause::default() };
        Self::new(500, "InternalError", format!("Internal error occurred: {why}"))
            .with_details(Details { causes: vec![cause], ..Details::default() })
    }

    /// 504: a limit of time was reached; whether the request took effect is not known.
    pub fn timeout(why: impl fmt::Display, retry_after_seconds: u32) -> Self {
        Self::new(504, "Timeout", format!("Timeout: {why}")).retry_after(retry_after_seconds)
    }

    /// 503: not now.
    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// The answer to a delete that is done: 200 with what was deleted.
    pub fn deleted(group: &str, plural: &str, name: &str, uid: &str) -> Self {
        let mut status = Self::about(200, "", String::new(), group, plural, name);
        if let Some(details) = &mut status.details {
            details.uid = uid.into();
        }
        status
    }

    /// Sets the details.
    pub fn with_details(mut self, details: Details) -> Self {
        self.details = Some(details);
        self
    }

    /// Adds one cause.
    pub fn with_cause(mut self, reason: &str, message: impl Into<String>, field: &str) -> Self {
        let cause = Cause { reason: reason.into(), message: message.into(), field: field.into() };
        self.details.get_or_insert_default().causes.push(cause);
        self
    }

    /// Names a delay before the next try; 0 leaves the answer as it is.
    pub fn retry_after(mut self, seconds: u32) -> Self {
        if seconds > 0 {
            self.details.get_or_insert_default().retry_after_seconds = seconds;
        }
        self
    }

    /// Whether this answers a request that was carried out.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.code)
    }

    /// The answer's body: a meta/v1 Status.
    pub fn to_value(&self) -> Value {
        let mut body = Map::new();
        body.insert("kind".into(), "Status".into());
        body.insert("apiVersion".into(), "v1".into());
        let mut metadata = Map::new();
        put_text(&mut metadata, "continue", &self.continue_token);
        body.insert("metadata".into(), metadata.into());
        body.insert("status".into(), if self.is_success() { "Success" } else { "Failure" }.into());
        put_text(&mut body, "message", &self.message);
        put_text(&mut body, "reason", &self.reason);
        if let Some(details) = &self.details {
            body.insert("details".into(), details.to_value());
        }
        // A finished delete carries no code; everything else does.
        if self.code != 200 {
            body.insert("code".into(), self.code.into());
        }
        Value::Object(body)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.message.is_empty() { &self.reason } else { &self.message })
    }
}

impl std::error::Error for Status {}

impl Details {
    /// As JSON, empty parts left out.
    fn to_value(&self) -> Value {
        let mut out = Map::new();
        put_text(&mut out, "name", &self.name);
        put_text(&mut out, "group", &self.group);
        put_text(&mut out, "kind", &self.kind);
        put_text(&mut out, "uid", &self.uid);
        if !self.causes.is_empty() {
            out.insert("causes".into(), self.causes.iter().map(Cause::to_value).collect());
        }
        if self.retry_after_seconds > 0 {
            out.insert("retryAfterSeconds".into(), self.retry_after_seconds.into());
        }
        Value::Object(out)
    }
}

impl Cause {
    /// As JSON, empty parts left out.
    fn to_value(&self) -> Value {
        let mut out = Map::new();
        put_text(&mut out, "reason", &self.reason);
        put_text(&mut out, "message", &self.message);
        put_text(&mut out, "field", &self.field);
        Value::Object(out)
    }
}

/// What kind of rule a field breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A reference to something that is not there.
    NotFound,
    /// A value is missing.
    Required,
    /// A value appears twice where it must be unique.
    Duplicate,
    /// A value is malformed or out of range.
    Invalid,
    /// A value is not one of a known set.
    NotSupported,
    /// A well-formed value that may not be set here or now.
    Forbidden,
    /// A text or document is too long.
    TooLong,
    /// A list has too many items.
    TooMany,
    /// The check itself failed.
    Internal,
    /// A value has the wrong type.
    TypeInvalid,
}

impl ErrorKind {
    /// The beginning of the sentence.
    pub fn title(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }

    /// The reason of the cause.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }
}

/// One broken rule: which field, what it held, what is wrong.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// What kind of rule.
    pub kind: ErrorKind,
    /// Path, such as `spec.template.spec.containers[0].image`.
    pub field: String,
    /// The value found; `None` leaves it out of the sentence.
    pub bad: Option<Value>,
    /// The end of the sentence; may be empty.
    pub detail: String,
}

impl FieldError {
    /// Any kind of finding.
    pub fn new(kind: ErrorKind, field: impl Into<String>, bad: Option<Value>, detail: impl Into<String>) -> Self {
        Self { kind, field: field.into(), bad, detail: detail.into() }
    }

    /// A value is missing.
    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Required, field, None, detail)
    }

    /// A value is malformed.
    pub fn invalid(field: impl Into<String>, bad: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, field, Some(bad.into()), detail)
    }

    /// A value is none of `supported`.
    pub fn not_supported(field: impl Into<String>, bad: impl Into<Value>, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|s| quote(s)).collect();
        let detail = if list.is_empty() { String::new() } else { format!("supported values: {}", list.join(", ")) };
        Self::new(ErrorKind::NotSupported, field, Some(bad.into()), detail)
    }

    /// A value may not be set.
    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Forbidden, field, None, detail)
    }

    /// A value appears twice.
    pub fn duplicate(field: impl Into<String>, bad: impl Into<Value>) -> Self {
        Self::new(ErrorKind::Duplicate, field, Some(bad.into()), "")
    }

    /// A text is longer than `max` bytes.
    pub fn too_long(field: impl Into<String>, max: usize) -> Self {
        let unit = if max == 1 { "byte" } else { "bytes" };
        Self::new(ErrorKind::TooLong, field, None, format!("may not be more than {max} {unit}"))
    }

    /// A list is longer than `max` items.
    pub fn too_many(field: impl Into<String>, actual: usize, max: usize) -> Self {
        let unit = if max == 1 { "item" } else { "items" };
        Self::new(ErrorKind::TooMany, field, Some(actual.into()), format!("must have at most {max} {unit}"))
    }

    /// A named thing does not exist.
    pub fn not_found(field: impl Into<String>, bad: impl Into<Value>) -> Self {
        Self::new(ErrorKind::NotFound, field, Some(bad.into()), "")
    }

    /// The check itself failed.
    pub fn internal(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, field, None, detail)
    }

    /// A value has the wrong type.
    pub fn type_invalid(field: impl Into<String>, bad: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::TypeInvalid, field, Some(bad.into()), detail)
    }

    /// The sentence without the field.
    pub fn body(&self) -> String {
        let title = self.kind.title();
        let hidden =
            matches!(self.kind, ErrorKind::Required | ErrorKind::Forbidden | ErrorKind::TooLong | ErrorKind::Internal);
        let start = match &self.bad {
            Some(bad) if !hidden => format!("{title}: {}", show(bad)),
            _ => title.to_owned(),
        };
        if self.detail.is_empty() { start } else { format!("{start}: {}", self.detail) }
    }

    /// As a cause of a [`Status`].
    pub fn cause(&self) -> Cause {
        Cause { reason: self.kind.reason().into(), message: self.body(), field: self.field.clone() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

impl std::error::Error for FieldError {}

/// `statefulsets.apps`, `pods`: a name and its group, as sentences name it.
pub fn qualified(group: &str, name: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

/// A text in double quotes with the escapes of Go's `%q`, which upstream's sentences use.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if c < ' ' || c == '\u{7f}' => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A value as sentences show it: texts (and, as upstream has it, null) quoted, the rest as JSON.
fn show(value: &Value) -> String {
    match value {
        Value::Null => quote("null"),
        Value::String(text) => quote(text),
        other => other.to_string(),
    }
}

/// All findings in one line; equal ones once. `None` without findings.
fn aggregate(errors: &[FieldError]) -> Option<String> {
    let mut seen = HashSet::new();
    let lines: Vec<String> = errors.iter().map(ToString::to_string).filter(|line| seen.insert(line.clone())).collect();
    match lines.len() {
        0 => None,
        1 => lines.into_iter().next(),
        _ => Some(format!("[{}]", lines.join(", "))),
    }
}

/// Adds a text unless it is empty.
fn put_text(map: &mut Map<String, Value>, key: &str, text: &str) {
    if !text.is_empty() {
        map.insert(key.into(), text.into());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_negative_number_reads_as_upstream() {
        let error = FieldError::invalid("spec.replicas", -1, "must be greater than or equal to 0");
        assert_eq!(error.to_string(), "spec.replicas: Invalid value: -1: must be greater than or equal to 0");
    }

    #[test]
    fn kinds_that_hide_the_value_do() {
        assert_eq!(FieldError::required("metadata.name", "").to_string(), "metadata.name: Required value");
        assert_eq!(
            FieldError::too_long("metadata.annotations", 262144).body(),
            "Too long: may not be more than 262144 bytes"
        );
        assert_eq!(
            FieldError::not_supported("spec.type", "x", &["A", "B"]).body(),
            "Unsupported value: \"x\": supported values: \"A\", \"B\""
        );
        assert_eq!(FieldError::new(ErrorKind::Invalid, "a", Some(Value::Null), "").body(), "Invalid value: \"null\"");
    }

    #[test]
    fn several_findings_are_listed_in_brackets_and_equal_ones_once() {
        let one = FieldError::required("a", "");
        let two = FieldError::forbidden("b", "no");
        let status = Status::invalid("apps", "StatefulSet", "web", vec![one.clone(), one, two]);
        assert_eq!(status.message, "StatefulSet.apps \"web\" is invalid: [a: Required value, b: Forbidden: no]");
        assert_eq!(status.details.expect("invalid has details").causes.len(), 3);
    }

    #[test]
    fn not_found_has_upstreams_body() {
        assert_eq!(
            Status::not_found("apps", "statefulsets", "web").to_value(),
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "statefulsets.apps \"web\" not found", "reason": "NotFound",
                "details": {"name": "web", "group": "apps", "kind": "statefulsets"}, "code": 404
            })
        );
    }

    #[test]
    fn a_finished_delete_has_no_code() {
        let body = Status::deleted("", "configmaps", "c", "u").to_value();
        assert_eq!(body["status"], "Success");
        assert!(body.get("code").is_none());
    }

    #[test]
    fn quoting_escapes_as_go_does() {
        assert_eq!(quote("a\"b\\\n\u{1}é"), "\"a\\\"b\\\\\\n\\x01é\"");
    }
}
