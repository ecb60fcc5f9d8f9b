//! What the server adds to objects, or refuses about them, beyond their own schema and rules.
//!
//! All of it reads the cache and waits for nothing; what has to stay true until the commit becomes a condition
//! of the transaction ([`Extra`]).

use api::status::Status;
use serde_json::{Value, json};

use crate::auth::escalation;
use crate::cache::store_key;
use crate::errors::Outcome;
use crate::handler::Call;
use crate::verbs::create::{metadata, text};
use crate::verbs::options::Propagation;
use crate::verbs::write::Extra;

mod accounts;
mod claims;
pub(crate) mod holders;
mod nodes;
mod pods;
pub(crate) mod quota;
pub(crate) mod services;
mod sets;

/// Label that every namespace has, with its own name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// Namespaces that cannot be deleted.
const FIXED_NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Before a new object is completed and validated.
pub(crate) fn create(call: &Call, object: &mut Value, extra: &mut Extra) -> Outcome<()> {
    if call.resource.custom.as_ref().is_some_and(|custom| custom.is_terminating) {
        let mut status = Status::method_not_supported(&call.resource.group, &call.resource.plural, "create");
        status.message = "create not allowed while custom resource definition is terminating".to_owned();
        return Err(Box::new(status));
    }
    if call.resource.namespaced {
        namespace_is_open(call, text(object, "name"), extra)?;
    }
    nodes::create(call, object)?;
    may_grant(call, object, None)?;
    match (&*call.resource.group, &*call.resource.kind) {
        ("", "Namespace") => complete_namespace(call, object, extra),
        ("", "Pod") => {
            quota::fill_in(call, object);
            pods::create(call, object, extra)?;
        }
        ("", "PersistentVolumeClaim") => claims::complete_claim(call, object),
        ("", "PersistentVolume") => claims::protect(object, claims::VOLUME_PROTECTION),
        ("apps", "StatefulSet") => sets::create(object, extra),
        _ => {}
    }
    own_keys(call, object, &Value::Null)
}

/// Before a changed object is validated.
pub(crate) fn update(call: &Call, new: &mut Value, old: &Value, extra: &mut Extra) -> Outcome<()> {
    match (&*call.resource.group, &*call.resource.kind) {
        ("", "Pod") => holders::keep_epoch(new, Some(old)),
        ("", "Node") => nodes::update(call, new, old)?,
        ("apps", "StatefulSet") if call.target.subresource != "status" => sets::update(call, new, old, extra)?,
        _ => {}
    }
    own_keys(call, new, old)?;
    may_grant(call, new, Some(old))
}

/// Refuses a valid object for what others say: classes, limits, quotas. Quotas come last: what they are charged for
/// is written.
pub(crate) fn judge(call: &Call, new: &Value, old: Option<&Value>, extra: &mut Extra) -> Outcome<()> {
    let subresource = call.target.subresource.as_str();
    if !matches!(subresource, "" | "resize") {
        return Ok(());
    }
    let name = text(new, "name");
    match (&*call.resource.group, &*call.resource.kind, old) {
        ("", "PersistentVolumeClaim", old) => {
            if let Some(old) = old {
                claims::may_grow(call, new, old)?;
            }
            quota::within_limits(call, new, name)?;
        }
        ("scheduling.k8s.io", "PriorityClass", _) => one_default_priority(call, new)?,
        ("", "Pod", old) if old.is_none() || subresource == "resize" => quota::within_limits(call, new, name)?,
        _ => {}
    }
    quota::charge(call, new, old, extra)
}

/// One priority class at most is the default.
fn one_default_priority(call: &Call, new: &Value) -> Outcome<()> {
    let Some(shelf) = call.shared.cache.named("scheduling.k8s.io", "priorityclasses") else { return Ok(()) };
    if new["globalDefault"] != true {
        return Ok(());
    }
    let name = text(new, "name");
    let others = shelf.all("").into_iter().filter(|object| &*object.key.name != name);
    let taken = others.map(|o| o.value(shelf.resource())).find(|class| class["globalDefault"] == true);
    let Some(taken) = taken else { return Ok(()) };
    let why =
        format!("PriorityClass {} is already marked as default. Only one default can exist", text(&taken, "name"));
    Err(Box::new(Status::forbidden("scheduling.k8s.io", "priorityclasses", name, why)))
}

/// Annotations of pods and claims that the system writes are nobody else's to set; they may be left as they are.
fn own_keys(call: &Call, new: &Value, old: &Value) -> Outcome<()> {
    let kind = (&*call.resource.group, &*call.resource.kind);
    let user = &call.identity.user;
    let is_system = user.starts_with("system:serviceaccount:kube-system:") || user.starts_with("system:node:");
    if is_system || !matches!(kind, ("", "Pod" | "PersistentVolumeClaim")) {
        return Ok(());
    }
    let value = |object: &Value, key: &str| object["metadata"]["annotations"][key].clone();
    let set = api::beyond::OWN_KEYS.iter().find(|key| {
        let now = value(new, key);
        !now.is_null() && now != value(old, key)
    });
    let Some(key) = set else { return Ok(()) };
    let why = format!("annotation {key} is written by the system; remove it");
    Err(Box::new(Status::forbidden("", &call.resource.plural, text(new, "name"), why)))
}

/// Takes what a valid object needs from what there is only once: addresses, ports, the right to run somewhere.
pub(crate) fn allocate(call: &Call, new: &mut Value, old: Option<&Value>, extra: &mut Extra) -> Outcome<()> {
    match (&*call.resource.group, &*call.resource.kind, old) {
        ("", "Service", _) => services::allocate(call, new, old, extra),
        ("", "Pod", None) => pods::allocate(call, new, extra),
        _ => Ok(()),
    }
}

/// Before an object is deleted or marked.
pub(crate) fn delete(call: &Call, old: &Value, propagation: Option<Propagation>) -> Outcome<()> {
    sets::delete(call, old, propagation)?;
    let name = text(old, "name");
    if call.resource.group.is_empty() && call.resource.kind == "Namespace" && FIXED_NAMESPACES.contains(&name) {
        return Err(Box::new(Status::forbidden("", "namespaces", name, "this namespace may not be deleted")));
    }
    Ok(())
}

/// When an object is deleted or marked; tells whether that changed it.
pub(crate) fn leaves(call: &Call, object: &mut Value, propagation: Option<Propagation>, extra: &mut Extra) -> bool {
    sets::leaves(call, object, propagation, extra)
}

/// Gives back what a deleted object had.
pub(crate) fn removed(call: &Call, object: &Value, extra: &mut Extra) {
    match (&*call.resource.group, &*call.resource.kind) {
        ("", "Service") => services::release(call, object, extra),
        ("", "Pod") => holders::released_with_pod(call, object, extra),
        _ => {}
    }
}

/// Nothing is created where there is no namespace, or in one that is going; holds until the commit.
fn namespace_is_open(call: &Call, name: &str, extra: &mut Extra) -> Outcome<()> {
    let namespace = &call.target.namespace;
    let not_found = || Box::new(Status::not_found("", "namespaces", namespace));
    let object = call.shared.cache.get("", "namespaces", "", namespace).ok_or_else(not_found)?;
    let resource = call.shared.registry.find("", "v1", "namespaces").ok_or_else(not_found)?;
    extra.unchanged(store_key(&resource, "", namespace), object.revision);
    if object.terminating {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut status = Status::forbidden(&call.resource.group, &call.resource.plural, name, why);
        let message = format!("namespace {namespace} is being terminated");
        status = status.with_cause("NamespaceTerminating", message, "metadata.namespace");
        return Err(Box::new(status));
    }
    Ok(())
}

/// Nobody grants what he does not hold.
fn may_grant(call: &Call, new: &Value, old: Option<&Value>) -> Outcome<()> {
    if call.resource.group != "rbac.authorization.k8s.io" {
        return Ok(());
    }
    let Some(standard) = &call.shared.standard else { return Ok(()) };
    let authorizer = &*call.shared.authorizer;
    let (namespace, name) = (text(new, "namespace"), text(new, "name"));
    escalation::check_write(standard.rbac(), authorizer, &call.identity, namespace, name, new, old)
}

/// A namespace has its name as a label, and a default service account from the first moment.
fn complete_namespace(call: &Call, object: &mut Value, extra: &mut Extra) {
    let name = text(object, "name").to_owned();
    let labels = metadata(object).entry("labels").or_insert_with(|| json!({}));
    if let Some(labels) = labels.as_object_mut() {
        labels.insert(NAME_LABEL.to_owned(), name.clone().into());
    }
    let Some(accounts) = call.shared.registry.find("", "v1", "serviceaccounts") else { return };
    if name.is_empty() || call.shared.cache.get("", "serviceaccounts", &name, "default").is_some() {
        return;
    }
    let now = crate::verbs::create::seconds(call.shared.ambient.now());
    let account = json!({"metadata": {
        "name": "default", "namespace": name, "uid": call.shared.ambient.uid(), "creationTimestamp": now,
    }});
    let key = store_key(&accounts, &name, "default");
    extra.unchanged(key.clone(), 0);
    extra.put(key, crate::object::stored_bytes(account));
}
