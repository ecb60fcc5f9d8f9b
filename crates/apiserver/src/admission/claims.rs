//! Claims and volumes: the default class, and protection while they are used.

use serde_json::Value;

use crate::handler::Call;
use crate::verbs::create::metadata;

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
fn default_class(call: &Call) -> Option<String> {
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
