//! patch: changes to an object, or to its status, in one of four notations.

use api::decode::{self, Decoded, FieldValidation};
use api::status::Status;
use api::{defaults, schema};
use http::Response;
use serde_json::Value;

use super::create::text;
use super::update;
use super::{options, write};
use crate::body::Body;
use crate::errors::Outcome;
use crate::handler::Call;
use crate::{media, respond};

/// The notations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notation {
    /// RFC 6902.
    Json,
    /// RFC 7396.
    Merge,
    /// Kubernetes' own.
    Strategic,
}

/// A patch, read.
pub(crate) struct Patch {
    notation: Notation,
    document: Value,
}

/// Changes the object.
pub(crate) async fn patch(call: Call) -> Outcome<Response<Body>> {
    let view = call.view()?;
    let dry_run = call.query.dry_run("PatchOptions")?;
    let mode = options::field_validation(&call)?;
    let patch = read(&call)?;
    let mut warnings = Vec::new();
    let written = write::modify(&call, dry_run, |current, extra| {
        let mut new = current.value.clone();
        apply(&call, &patch, &mut new)?;
        let checked = check(&call, new, mode)?;
        warnings = checked.warnings;
        update::precondition(&call, &checked.object, &current.value)?;
        update::replace(&call, checked.object, current, extra)
    })
    .await?;
    Ok(respond::warn(view.object(200, &written.raw, written.revision), &warnings))
}

/// Reads the body as the notation that its media type names.
pub(crate) fn read(call: &Call) -> Outcome<Patch> {
    let notation = match media::bare(&call.content_type).as_str() {
        "application/json-patch+json" => Notation::Json,
        "application/merge-patch+json" => Notation::Merge,
        "application/strategic-merge-patch+json" => Notation::Strategic,
        "application/apply-patch+yaml" | "application/apply-patch+cbor" => {
            let why = "server-side apply is not available in this version of statefuld: use client-side apply \
                       (kubectl apply without --server-side), or a JSON, merge or strategic merge patch";
            return Err(Box::new(Status::new(415, "UnsupportedMediaType", why)));
        }
        _ => {
            let why = "415: Unsupported Media Type";
            return Err(Box::new(Status::new(415, "UnsupportedMediaType", why).with_details(Default::default())));
        }
    };
    let document: Value = serde_json::from_slice(&call.body)
        .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
    if notation != Notation::Json && !document.is_object() {
        return Err(Box::new(Status::bad_request("error decoding patch: a merge patch of an object is an object")));
    }
    Ok(Patch { notation, document })
}

/// Applies a patch to a document.
pub(crate) fn apply(call: &Call, patch: &Patch, target: &mut Value) -> Outcome<()> {
    let outcome = match patch.notation {
        Notation::Json => patch::json::apply(target, &patch.document),
        Notation::Merge => {
            patch::merge::apply(target, &patch.document);
            Ok(())
        }
        Notation::Strategic => {
            let schema = schema::merge_schema(&call.resource);
            patch::strategic::apply(target, &patch.document, &schema)
        }
    };
    outcome.map_err(|error| {
        let code = match error {
            patch::Error::Malformed(_) => return Box::new(Status::bad_request(error.to_string())),
            patch::Error::Mismatch(_) => 422,
            patch::Error::TooLarge(_) => 413,
        };
        let resource = &call.resource;
        let status = if code == 422 {
            let mut status = Status::invalid(&resource.group, &resource.kind, &call.target.name, Vec::new());
            status.message = format!("the server rejected our request due to an error in our request: {error}");
            status
        } else {
            Status::too_large(error)
        };
        Box::new(status)
    })
}

/// Checks what a patch made.
fn check(call: &Call, new: Value, mode: FieldValidation) -> Outcome<Decoded> {
    let mut checked = decode::check_value(&call.resource, new, mode)?;
    let name = text(&checked.object, "name");
    if name != call.target.name {
        let why = format!("the name of the object ({name}) does not match the name on the URL ({})", call.target.name);
        return Err(Box::new(Status::bad_request(why)));
    }
    super::create::fit_namespace(call, &mut checked.object)?;
    defaults::apply(&call.resource, &mut checked.object);
    Ok(checked)
}
