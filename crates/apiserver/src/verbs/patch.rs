//! patch: changes to an object, or to its status, in one of four notations.

use api::decode::{self, Decoded, FieldValidation, MediaType};
use api::managed::{self, Change};
use api::status::{FieldError, Status};
use api::{defaults, schema};
use http::Response;
use serde_json::{Value, json};

use super::create::{self, metadata, seconds, text};
use super::{options, update, write};
use crate::body::Body;
use crate::errors::Outcome;
use crate::handler::{APPLY, Call};
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
    /// What a manager wants (server-side apply).
    Apply,
}

/// A patch, read.
pub(crate) struct Patch {
    notation: Notation,
    document: Value,
}

impl Patch {
    /// What a manager wants, if that is what the patch says.
    pub(crate) fn wanted(&self) -> Option<&Value> {
        (self.notation == Notation::Apply).then_some(&self.document)
    }
}

/// Changes the object.
pub(crate) async fn patch(call: Call) -> Outcome<Response<Body>> {
    let view = call.view()?;
    let dry_run = call.query.dry_run("PatchOptions")?;
    let mode = options::field_validation(&call)?;
    let patch = read(&call)?;
    if patch.notation == Notation::Apply {
        return server_side(&call, patch.document, mode, dry_run).await;
    }
    let mut warnings = Vec::new();
    let written = write::modify(&call, dry_run, |current, extra| {
        let mut new = current.value.clone();
        apply(&call, &patch, &mut new)?;
        let checked = check(&call, new, mode)?;
        warnings = checked.warnings;
        update::precondition(&call, &version_of(&checked.object), &current.value)?;
        update::replace(&call, checked.object, current, extra)
    })
    .await?;
    let answer = respond::warn(view.object(200, &written.raw, written.revision), &warnings);
    Ok(respond::warn(answer, &written.warnings))
}

/// What a patched object says about the version that it builds upon. Its uid is no precondition: it is the patched
/// object's own, and another one is refused like any other field that may not change.
fn version_of(object: &Value) -> Value {
    json!({"metadata": {"resourceVersion": text(object, "resourceVersion")}})
}

/// Reads the body as the notation that its media type names.
pub(crate) fn read(call: &Call) -> Outcome<Patch> {
    let notation = match media::bare(&call.content_type).as_str() {
        "application/json-patch+json" => Notation::Json,
        "application/merge-patch+json" => Notation::Merge,
        "application/strategic-merge-patch+json" => Notation::Strategic,
        APPLY => Notation::Apply,
        _ => {
            let why = "415: Unsupported Media Type";
            return Err(Box::new(Status::new(415, "UnsupportedMediaType", why).with_details(Default::default())));
        }
    };
    if notation == Notation::Strategic && call.resource.custom.is_some() {
        let known = ["application/json-patch+json", "application/merge-patch+json", APPLY];
        return Err(Box::new(Status::unsupported_media_type(&known)));
    }
    if notation != Notation::Apply && call.query.get("force").is_some() {
        let error = FieldError::forbidden("force", "may not be specified for non-apply patch");
        return Err(Box::new(Status::invalid("meta.k8s.io", "PatchOptions", "", vec![error])));
    }
    let (media, what) =
        if notation == Notation::Apply { (MediaType::Yaml, "YAML") } else { (MediaType::Json, "patch") };
    let document = decode::parse(&call.resource.type_name, &call.body, media)
        .map_err(|error| Status::bad_request(format!("error decoding {what}: {error}")))?;
    if notation == Notation::Merge && !document.is_object() {
        return Err(Box::new(no_object(&document)));
    }
    if notation != Notation::Json && !document.is_object() {
        return Err(Box::new(Status::bad_request("error decoding patch: a merge patch of an object is an object")));
    }
    Ok(Patch { notation, document })
}

/// 422: a merge patch that makes the object into something else.
fn no_object(document: &Value) -> Status {
    let kind = match document {
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        _ => "number",
    };
    let detail = format!(
        "couldn't get version/kind; json parse error: json: cannot unmarshal {kind} into Go value of type struct {{ \
         APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
    );
    let error = FieldError::invalid("patch", document.to_string(), detail);
    // Nothing is known about what the patch would make: only its causes are told.
    Status::invalid("", "", "", vec![error])
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
        Notation::Apply => {
            let why = "server-side apply is not offered here: send a JSON or merge patch";
            return Err(Box::new(Status::new(415, "UnsupportedMediaType", why)));
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

/// Who applies says who it is.
pub(crate) fn need_manager(call: &Call) -> Outcome<()> {
    if call.query.text("fieldManager").is_empty() {
        let error = FieldError::required("fieldManager", "is required for apply patch");
        return Err(Box::new(Status::invalid("meta.k8s.io", "PatchOptions", "", vec![error])));
    }
    Ok(())
}

/// Makes the object what a manager wants, creates it if there is none.
async fn server_side(call: &Call, mut config: Value, mode: FieldValidation, dry_run: bool) -> Outcome<Response<Body>> {
    let view = call.view()?;
    need_manager(call)?;
    if text(&config, "name").is_empty() {
        metadata(&mut config).insert("name".to_owned(), call.target.name.clone().into());
    }
    let warnings = check(call, config.clone(), mode)?.warnings;
    let (manager, force) = (call.manager(), call.query.flag("force"));
    let now = seconds(call.shared.ambient.now());
    let change = Change { manager: &manager, subresource: &call.target.subresource, now: &now };
    let result = |live: Option<&Value>| -> Outcome<Value> {
        let new = managed::apply(&call.resource, live, config.clone(), &change, force)?;
        Ok(check(call, new, FieldValidation::Ignore)?.object)
    };
    let changed = write::modify(call, dry_run, |current, extra| {
        if !text(&config, "resourceVersion").is_empty() {
            update::precondition(call, &version_of(&config), &current.value)?;
        }
        update::replace(call, result(Some(&current.value))?, current, extra)
    })
    .await;
    match changed {
        Err(status) if status.code == 404 && call.target.subresource.is_empty() => {
            let (resource, uid) = (&call.resource, text(&config, "uid"));
            if !uid.is_empty() {
                let why =
                    format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
                let name = &call.target.name;
                return Err(Box::new(Status::conflict(&resource.group, &resource.plural, name, why)));
            }
            let written = create::create_object(call, result(None)?, dry_run).await?;
            let answer = respond::warn(view.object(201, &written.raw, written.revision), &warnings);
            Ok(respond::warn(answer, &written.warnings))
        }
        Err(status) => Err(status),
        Ok(written) => {
            let answer = respond::warn(view.object(200, &written.raw, written.revision), &warnings);
            Ok(respond::warn(answer, &written.warnings))
        }
    }
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
