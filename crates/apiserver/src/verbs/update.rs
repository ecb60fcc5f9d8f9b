//! update: an object, or its status, as a whole.

use api::decode::{self, Decoded};
use api::managed::{self, Change};
use api::status::{FieldError, Status};
use api::{defaults, strategy, validate};
use http::Response;
use serde_json::Value;

use super::create::{self, metadata, text};
use super::options;
use super::write::{self, Current, Extra, Step};
use crate::admission;
use crate::body::Body;
use crate::errors::Outcome;
use crate::handler::Call;
use crate::{media, respond};

/// Kinds that an update creates where there is none.
const CREATED_BY_UPDATE: [&str; 10] = [
    "endpoints",
    "events",
    "leases",
    "limitranges",
    "resourcequotas",
    "services",
    "roles",
    "rolebindings",
    "clusterroles",
    "clusterrolebindings",
];

/// Kinds whose updates must say which version they build upon.
const CONDITIONAL: [&str; 5] =
    ["customresourcedefinitions", "leases", "poddisruptionbudgets", "runtimeclasses", "endpointslices"];

/// Puts the body in the object's place.
pub(crate) async fn update(call: Call) -> Outcome<Response<Body>> {
    let view = call.view()?;
    let dry_run = call.query.dry_run("UpdateOptions")?;
    let mode = options::field_validation(&call)?;
    let media = media::written(&call.content_type)?;
    let Decoded { object: mut new, warnings } = decode::decode(&call.resource, &call.body, media, mode)?;
    fit(&call, &mut new)?;
    defaults::apply(&call.resource, &mut new);
    let name = &*call.resource.plural;
    let creates =
        call.target.subresource.is_empty() && call.resource.custom.is_none() && CREATED_BY_UPDATE.contains(&name);
    let outcome = write::modify(&call, dry_run, |current, extra| {
        precondition(&call, &new, &current.value)?;
        replace(&call, new.clone(), current, extra)
    })
    .await;
    match outcome {
        Err(status) if status.code == 404 && creates && text(&new, "resourceVersion").is_empty() => {
            let written = create::create_object(&call, new, dry_run).await?;
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

/// Name and namespace are those of the path.
fn fit(call: &Call, new: &mut Value) -> Outcome<()> {
    let name = text(new, "name").to_owned();
    if name.is_empty() {
        // Upstream takes the path's name for a body without one.
        metadata(new).insert("name".to_owned(), call.target.name.clone().into());
    } else if name != call.target.name {
        let why = format!("the name of the object ({name}) does not match the name on the URL ({})", call.target.name);
        return Err(Box::new(Status::bad_request(why)));
    }
    create::fit_namespace(call, new)
}

/// The version and uid that the new object names are those of the current one.
pub(crate) fn precondition(call: &Call, new: &Value, current: &Value) -> Outcome<()> {
    let resource = &call.resource;
    let (version, uid) = (text(new, "resourceVersion"), text(new, "uid"));
    if version.is_empty() || version == "0" {
        // The number of replicas is written whatever else has changed.
        let unconditional = call.target.subresource == "scale";
        if !unconditional && (resource.custom.is_some() || CONDITIONAL.contains(&&*resource.plural)) {
            let error = FieldError::invalid("metadata.resourceVersion", 0, "must be specified for an update");
            return respond::invalid(resource, &call.target.name, vec![error]);
        }
    } else if version != text(current, "resourceVersion") {
        return Err(Box::new(Status::modified(&resource.group, &resource.plural, &call.target.name)));
    }
    let is = text(current, "uid");
    if !uid.is_empty() && uid != is {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {is}");
        return Err(Box::new(Status::conflict(&resource.group, &resource.plural, &call.target.name, why)));
    }
    Ok(())
}

/// What becomes of an object when `new` is put in its place.
pub(crate) fn replace(call: &Call, mut new: Value, current: &Current, extra: &mut Extra) -> Outcome<Step> {
    let resource = &call.resource;
    let old = &current.value;
    if !call.applies() {
        track(call, &mut new, Some(old));
    }
    keep(&mut new, old);
    let errors = match call.target.subresource.as_str() {
        "status" => {
            strategy::prepare_status_update(resource, &mut new, old);
            admission::update(call, &mut new, old, extra)?;
            validate::status_update(resource, &new, old)
        }
        "ephemeralcontainers" => {
            strategy::prepare_ephemeral_update(&mut new, old);
            validate::ephemeral_update(&new, old)
        }
        "resize" => {
            strategy::prepare_resize(&mut new, old);
            validate::resize_update(&new, old)
        }
        _ => {
            admission::update(call, &mut new, old, extra)?;
            strategy::prepare_update(resource, &mut new, old);
            admission::allocate(call, &mut new, Some(old), extra)?;
            validate::update(resource, &new, old)
        }
    };
    respond::invalid(resource, &call.target.name, errors)?;
    admission::judge(call, &new, Some(old), extra)?;
    decode::normalize(resource, &mut new);
    managed::keep_if_unchanged(&mut new, old);
    Ok(finish(call, new, extra))
}

/// A deleted object that nothing holds any longer goes; anything else is written.
pub(crate) fn finish(call: &Call, new: Value, extra: &mut Extra) -> Step {
    let deleting = !text(&new, "deletionTimestamp").is_empty();
    let grace = new.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
    if deleting && grace == 0 && !super::delete::is_held(&new) {
        admission::removed(call, &new, extra);
        return Step::Delete(new);
    }
    Step::Write(new)
}

/// Notes who changed what.
pub(crate) fn track(call: &Call, new: &mut Value, old: Option<&Value>) {
    let (manager, now) = (call.manager(), create::seconds(call.shared.ambient.now()));
    let change = Change { manager: &manager, subresource: &call.target.subresource, now: &now };
    managed::track(&call.resource, old, new, &change);
}

/// What no update changes.
fn keep(new: &mut Value, old: &Value) {
    let kept = metadata(new);
    // Another uid is for validation to refuse.
    if kept.get("uid").and_then(Value::as_str).is_none_or(str::is_empty)
        && let Some(uid) = old.get("metadata").and_then(|m| m.get("uid"))
    {
        kept.insert("uid".to_owned(), uid.clone());
    }
    for field in ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        match old.get("metadata").and_then(|m| m.get(field)) {
            Some(value) => kept.insert(field.to_owned(), value.clone()),
            None => kept.remove(field),
        };
    }
}
