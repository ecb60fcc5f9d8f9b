//! Claims and volumes: the default class, and protection while they are used.

use api::quantity::Quantity;
use api::status::Status;
use serde_json::Value;

use crate::errors::Outcome;
use crate::handler::Call;
use crate::verbs::create::{metadata, text};

/// Keeps a volume while a claim is bound to it.
pub(super) const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
/// Keeps a claim while a pod uses it.
const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Annotation of the class that claims without one get.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// Annotation that named the class before there was a field.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// A claim that names no class gets the default one; every claim is protected.
pub(super) fn complete_claim(call: &Call, object: &mut Value) {
    protect(object, CLAIM_PROTECTION);
    let named = object.pointer("/spec/storageClassName").is_some_and(|v| !v.is_null())
        || object.pointer("/metadata/annotations").and_then(|a| a.get(CLASS_ANNOTATION)).is_some();
    if named {
        return;
    }
    if let (Some(class), Some(spec)) = (default_class(call), object.get_mut("spec").and_then(Value::as_object_mut)) {
        spec.insert("storageClassName".to_owned(), class.into());
    }
}

/// A claim grows only if its class allows it.
pub(super) fn may_grow(call: &Call, new: &Value, old: &Value) -> Outcome<()> {
    let size = |claim: &Value| {
        let size = claim.pointer("/spec/resources/requests/storage").and_then(Value::as_str);
        size.and_then(|text| Quantity::parse(text).ok())
    };
    let (Some(now), Some(before)) = (size(new), size(old)) else { return Ok(()) };
    let class = class_of(new);
    if now <= before
        || (class == class_of(old)
            && call.shared.cache.named("storage.k8s.io", "storageclasses").is_some_and(|shelf| {
                let found =
                    class.and_then(|class| call.shared.cache.get("storage.k8s.io", "storageclasses", "", class));
                found.is_some_and(|found| found.value(shelf.resource())["allowVolumeExpansion"] == true)
            }))
    {
        return Ok(());
    }
    let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must \
               support resize";
    Err(Box::new(Status::forbidden("", "persistentvolumeclaims", text(new, "name"), why)))
}

/// The class that a claim names, by field or by annotation.
fn class_of(claim: &Value) -> Option<&str> {
    let old = claim.pointer("/metadata/annotations").and_then(|a| a.get(CLASS_ANNOTATION)).and_then(Value::as_str);
    old.or_else(|| claim.pointer("/spec/storageClassName").and_then(Value::as_str)).filter(|c| !c.is_empty())
}

/// Adds a finalizer.
pub(super) fn protect(object: &mut Value, finalizer: &str) {
    let list = metadata(object).entry("finalizers").or_insert_with(|| Value::Array(Vec::new()));
    if let Some(list) = list.as_array_mut()
        && !list.iter().any(|f| f == finalizer)
    {
        list.push(finalizer.into());
    }
}

/// The default class; of several the newest.
pub(super) fn default_class(call: &Call) -> Option<String> {
    let shelf = call.shared.cache.named("storage.k8s.io", "storageclasses")?;
    shelf
        .all("")
        .into_iter()
        .filter(|object| {
            let value = object.value(shelf.resource());
            value.pointer("/metadata/annotations").and_then(|a| a.get(DEFAULT_CLASS)).is_some_and(|v| v == "true")
        })
        .max_by_key(|object| object.revision)
        .map(|object| object.key.name.to_string())
}
