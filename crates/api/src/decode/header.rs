//! What an object says that it is: `apiVersion` and `kind`.

use serde_json::Value;

use super::Expected;
use crate::status::Status;

/// `apiVersion` and `kind` as found; empty if absent.
#[derive(Debug, Default)]
pub(super) struct Header {
    api_version: String,
    kind: String,
}

/// The header of a document; empty if it has none.
pub(super) fn of_value(value: &Value) -> Header {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    Header { api_version: text("apiVersion"), kind: text("kind") }
}

/// Checks that the header names what is expected; what it leaves out is taken to be right.
pub(super) fn check(expected: &Expected, found: &Header) -> Result<(), Status> {
    let group_version = if found.api_version.is_empty() { &expected.api_version } else { &found.api_version };
    if !found.kind.is_empty() && found.kind != expected.kind {
        let version = group_version.rsplit('/').next().unwrap_or_default();
        return Err(Status::bad_request(format!(
            "{} in version {version:?} cannot be handled as a {}: it must be sent to the URL of its own kind",
            found.kind, expected.kind
        )));
    }
    if *group_version != expected.api_version {
        return Err(Status::bad_request(format!(
            "the API version in the data ({group_version}) does not match the expected API version ({})",
            expected.api_version
        )));
    }
    Ok(())
}
