//! delete and deletecollection.
//!
//! An object goes at once unless something holds it: finalizers, or (for pods) containers that still run and
//! have a grace period. Then it is only marked, and goes with the last thing that held it.

use api::status::Status;
use http::Response;
use serde_json::{Value, json};

use super::create::{metadata, seconds, text};
use super::options::{self, DeleteOptions, Propagation};
use super::read;
use super::write::{self, Current, Extra, Step, Written};
use crate::admission;
use crate::body::Body;
use crate::errors::Outcome;
use crate::handler::Call;
use crate::{object, respond};

/// Kinds whose delete answers with the object instead of a Status.
const RETURNED: [&str; 8] = [
    "persistentvolumeclaims",
    "persistentvolumes",
    "pods",
    "podtemplates",
    "resourcequotas",
    "serviceaccounts",
    "services",
    "storageclasses",
];

/// Finalizer of an object whose dependents are to stay.
const ORPHAN: &str = "orphan";
/// Finalizer of an object whose dependents go first.
const FOREGROUND: &str = "foregroundDeletion";
/// Grace period of a pod that names none.
const DEFAULT_GRACE: i64 = 30;

/// Deletes one object.
pub(crate) async fn delete(call: Call) -> Outcome<Response<Body>> {
    let view = call.view()?;
    let options = options::delete_options(&call)?;
    let mut written = delete_object(&call, &options).await?;
    written.warnings.extend(options.warning.clone());
    let resource = &call.resource;
    if written.deleted && !(resource.custom.is_none() && RETURNED.contains(&&*resource.plural)) {
        let gone = object::value_of(resource, &written.raw, written.revision);
        let status = Status::deleted(&resource.group, &resource.plural, &call.target.name, text(&gone, "uid"));
        return Ok(respond::warn(view.document(200, &status.to_value()), &written.warnings));
    }
    let code = if !written.deleted && options.waits { 202 } else { 200 };
    Ok(respond::warn(view.object(code, &written.raw, written.revision), &written.warnings))
}

/// Deletes the object that the call names.
pub(crate) async fn delete_object(call: &Call, options: &DeleteOptions) -> Outcome<Written> {
    write::modify(call, options.dry_run, |current, extra| decide(call, options, current, extra)).await
}

/// Deletes all objects that the query selects.
pub(crate) async fn collection(call: Call) -> Outcome<Response<Body>> {
    let view = call.view()?;
    let options = options::delete_options(&call)?;
    let filter = options::filter(&call)?;
    // With a limit, one page goes; the token tells whether there is more.
    let page = read::page(&call, &filter).await?;
    // What is protected keeps all: a collection is not deleted in part.
    for found in &page.objects {
        admission::delete(&call, &found.value(&call.resource), options.propagation)?;
    }
    let mut items = Vec::with_capacity(page.objects.len());
    for found in &page.objects {
        let mut one = call.clone();
        one.target.namespace = found.key.namespace.to_string();
        one.target.name = found.key.name.to_string();
        match delete_object(&one, &options).await {
            Ok(written) => items.push(object::value_of(&call.resource, &written.raw, written.revision)),
            Err(status) if status.code == 404 => {}
            Err(status) => return Err(status),
        }
    }
    let list = json!({
        "kind": call.resource.list_kind,
        "apiVersion": call.resource.api_version(),
        "metadata": read::list_metadata(&page),
        "items": items,
    });
    Ok(respond::warn(view.document(200, &list), options.warning.as_slice()))
}

/// Whether something keeps a deleted object from going.
pub(crate) fn is_held(object: &Value) -> bool {
    let some = |path| object.pointer(path).and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    some("/metadata/finalizers")
        || (object.get("kind") == Some(&json!("Namespace"))
            && object.get("apiVersion") == Some(&json!("v1"))
            && some("/spec/finalizers"))
}

/// What a delete does to the object as it is.
fn decide(call: &Call, options: &DeleteOptions, current: &Current, extra: &mut Extra) -> Outcome<Step> {
    let old = &current.value;
    preconditions(call, options, old)?;
    admission::delete(call, old, options.propagation)?;
    let mut new = old.clone();
    crate::crd::hold(call, &mut new);
    let mut changed = set_finalizers(&mut new, options.propagation);
    changed |= admission::leaves(call, &mut new, options.propagation, extra);
    let marked = !text(old, "deletionTimestamp").is_empty();
    let was = old.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    let grace = grace(call, options, old);
    if grace > 0 && marked && was.is_some_and(|was| options.grace_seconds.is_none() || grace >= was) {
        // It is on its way already; a period can only be shortened.
        return Ok(Step::Write(if changed { new } else { old.clone() }));
    }
    if grace > 0 || is_held(&new) || marked || (call.resource.kind == "Pod" && call.resource.custom.is_none()) {
        changed |= mark(call, &mut new, grace);
    }
    if grace > 0 {
        return Ok(Step::Write(new));
    }
    if is_held(&new) {
        // The node's word counts, whatever else keeps the object.
        admission::holders::released_with_pod(call, &new, extra);
        return Ok(Step::Write(if changed { new } else { old.clone() }));
    }
    admission::removed(call, &new, extra);
    Ok(Step::Delete(new))
}

/// Sets the marks of a delete; tells whether anything changed.
fn mark(call: &Call, object: &mut Value, grace: i64) -> bool {
    let now = call.shared.ambient.now();
    let was_marked = !text(object, "deletionTimestamp").is_empty();
    let metadata = metadata(object);
    let same = metadata.get("deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0) == grace;
    if was_marked && same {
        return false;
    }
    if !was_marked || grace > 0 {
        let due = now.checked_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(now);
        metadata.insert("deletionTimestamp".to_owned(), seconds(due).into());
    }
    // A namespace has no period of its own: it takes as long as its content.
    let namespace = call.resource.kind == "Namespace" && call.resource.group.is_empty();
    if !namespace {
        metadata.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
    }
    if let Some(generation) = metadata.get("generation").and_then(Value::as_i64).filter(|_| !was_marked) {
        metadata.insert("generation".to_owned(), (generation + 1).into());
    }
    if namespace {
        object["status"]["phase"] = "Terminating".into();
    }
    true
}

/// uid and resourceVersion are those that the client has seen.
fn preconditions(call: &Call, options: &DeleteOptions, old: &Value) -> Outcome<()> {
    let conflict = |what: &str, asked: &str, is: &str, end: &str| {
        let why = format!("the {what} in the precondition ({asked}) does not match the {what} in record ({is}). {end}");
        Err(Box::new(Status::conflict("", &call.resource.kind, &call.target.name, why)))
    };
    let (uid, version) = (text(old, "uid"), text(old, "resourceVersion"));
    if let Some(asked) = options.uid.as_deref().filter(|asked| *asked != uid) {
        return conflict("UID", asked, uid, "The object might have been deleted and then recreated");
    }
    if let Some(asked) = options.resource_version.as_deref().filter(|asked| *asked != version) {
        return conflict("ResourceVersion", asked, version, "The object might have been modified");
    }
    Ok(())
}

/// Adds or takes the finalizers that stand for a propagation policy; tells whether anything changed.
fn set_finalizers(object: &mut Value, propagation: Option<Propagation>) -> bool {
    let Some(policy) = propagation else { return false };
    let wanted = match policy {
        Propagation::Orphan => Some(ORPHAN),
        Propagation::Foreground => Some(FOREGROUND),
        Propagation::Background => None,
    };
    let metadata = metadata(object);
    let before: Vec<Value> = metadata.get("finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut after: Vec<Value> = before
        .iter()
        .filter(|f| !matches!(f.as_str(), Some(ORPHAN | FOREGROUND)) || f.as_str() == wanted)
        .cloned()
        .collect();
    if let Some(wanted) = wanted.filter(|w| !after.iter().any(|f| f == w)) {
        after.push(wanted.into());
    }
    let changed = before != after;
    if after.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".to_owned(), after.into());
    }
    changed
}

/// Seconds until the object may go. Only pods that run somewhere have any.
fn grace(call: &Call, options: &DeleteOptions, old: &Value) -> i64 {
    if call.resource.kind != "Pod" || !call.resource.group.is_empty() {
        return 0;
    }
    let text = |path| old.pointer(path).and_then(Value::as_str).unwrap_or_default();
    if text("/spec/nodeName").is_empty() || matches!(text("/status/phase"), "Succeeded" | "Failed") {
        return 0;
    }
    let own = old.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64);
    let asked = options.grace_seconds.or(own).unwrap_or(DEFAULT_GRACE);
    // A negative period means the shortest there is.
    if asked < 0 { 1 } else { asked }
}
