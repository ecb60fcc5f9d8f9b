//! Rules for metadata: names, labels, annotations, owners, finalizers.

use serde_json::Value;

use super::cursor::{At, Errors, IMMUTABLE};
use crate::names;
use crate::resource::Resource;
use crate::status::{FieldError, quote};

/// All annotations of an object together, keys and values, in bytes.
const ANNOTATIONS_MAX: usize = 256 * 1024;
/// Finalizers without a prefix that have a meaning.
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

/// The rule for names of a kind.
fn name_check(resource: &Resource) -> fn(&str) -> Vec<String> {
    match (resource.group.as_str(), resource.kind.as_str()) {
        ("apps", "StatefulSet") | ("", "Namespace") => names::dns1123_label,
        ("", "Service") => names::dns1035_label,
        // Events of the core group were never held to the rules for names; clients make them from any prefix.
        ("rbac.authorization.k8s.io", _) | ("", "Event") => names::path_segment,
        _ => names::dns1123_subdomain,
    }
}

/// Rules for a new object's metadata.
pub(super) fn create(resource: &Resource, metadata: &At<'_>, out: &mut Errors) {
    let check = name_check(resource);
    metadata.field("generateName").check_if_set(|text| names::as_prefix(check, text), out);
    let name = metadata.field("name");
    if name.text().is_empty() {
        out.push(name.required("name or generateName is required"));
    } else {
        name.check(check, out);
    }
    let namespace = metadata.field("namespace");
    match (resource.namespaced, namespace.text().is_empty()) {
        (true, true) => out.push(namespace.required("")),
        (true, false) => namespace.check(names::dns1123_label, out),
        (false, false) => out.push(namespace.forbidden("not allowed on this type")),
        (false, true) => {}
    }
    metadata.field("generation").not_negative(out);
    common(metadata, out);
}

/// Rules for what every object carries, its name aside.
fn common(metadata: &At<'_>, out: &mut Errors) {
    labels(&metadata.field("labels"), out);
    annotations(&metadata.field("annotations"), out);
    owners(&metadata.field("ownerReferences"), out);
    finalizers(&metadata.field("finalizers"), out);
}

/// Rules for a changed object's metadata: the identity stays. The name is not checked again.
pub(super) fn update(new: &At<'_>, old: &Value, out: &mut Errors) {
    if !old["deletionTimestamp"].is_null() {
        let known = old["finalizers"].as_array().map_or(&[][..], Vec::as_slice);
        let mut added: Vec<String> =
            new.field("finalizers").items().filter(|f| !known.contains(f.value)).map(|f| quote(f.text())).collect();
        added.sort();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            );
            out.push(new.field("finalizers").forbidden(detail));
        }
    }
    identity(new, old, out);
    common(new, out);
}

/// The identity stays.
pub(super) fn identity(new: &At<'_>, old: &Value, out: &mut Errors) {
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let now = new.field(field);
        if now.value != &old[field] {
            let shown = if now.is_set() { now.value.clone() } else { "".into() };
            out.push(FieldError::invalid(&now.path, shown, IMMUTABLE));
        }
    }
}

/// Keys and values of labels.
pub(super) fn labels(labels: &At<'_>, out: &mut Errors) {
    for (key, value) in labels.members() {
        out.extend(names::qualified_name(key).into_iter().map(|e| FieldError::invalid(&labels.path, key.as_str(), e)));
        let wrong = names::label_value(value.text()).into_iter();
        out.extend(wrong.map(|e| FieldError::invalid(&labels.path, value.text(), e)));
    }
}

/// Keys of annotations, and how much there is of them.
pub(super) fn annotations(annotations: &At<'_>, out: &mut Errors) {
    let mut total = 0;
    for (key, value) in annotations.members() {
        let wrong = names::qualified_name(&key.to_lowercase()).into_iter();
        out.extend(wrong.map(|e| FieldError::invalid(&annotations.path, key.as_str(), e)));
        total += key.len() + value.text().len();
    }
    if total > ANNOTATIONS_MAX {
        out.push(FieldError::too_long(&annotations.path, ANNOTATIONS_MAX));
    }
}

/// Owners are named in full, and one at most controls.
fn owners(owners: &At<'_>, out: &mut Errors) {
    let mut controller = "";
    for owner in owners.items() {
        // Upstream leaves the index out of these paths.
        let part = |name: &str| owner.field(name).named(format!("{}.{name}", owners.path));
        let version = part("apiVersion").text().rsplit('/').next().unwrap_or("");
        if version.is_empty() {
            out.push(FieldError::invalid(
                part("apiVersion").path,
                part("apiVersion").text(),
                "version must not be empty",
            ));
        }
        for field in ["kind", "name", "uid"] {
            if part(field).text().is_empty() {
                out.push(FieldError::invalid(part(field).path, "", format!("{field} must not be empty")));
            }
        }
        if owner.field("controller").value == true {
            let name = part("name").text();
            if !controller.is_empty() {
                out.push(owners.invalid(format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {controller} and {name}"
                )));
            }
            controller = name;
        }
    }
}

/// Finalizers are qualified names or have a meaning.
fn finalizers(finalizers: &At<'_>, out: &mut Errors) {
    let has = |name: &str| finalizers.items().any(|f| f.text() == name);
    if has("orphan") && has("foregroundDeletion") {
        out.push(finalizers.invalid("finalizer orphan and foregroundDeletion cannot be both set"));
    }
    for finalizer in finalizers.items() {
        finalizer.named(finalizers.path.clone()).check(names::qualified_name, out);
    }
    for finalizer in finalizers.items() {
        if !finalizer.text().contains('/') && !STANDARD_FINALIZERS.contains(&finalizer.text()) {
            out.push(finalizer.invalid("name is neither a standard finalizer name nor is it fully qualified"));
        }
    }
}

/// A LabelSelector of an object.
pub(super) fn selector(selector: &At<'_>, out: &mut Errors) {
    labels(&selector.field("matchLabels"), out);
    for requirement in selector.field("matchExpressions").items() {
        let values = requirement.field("values");
        let operator = requirement.field("operator");
        match operator.text() {
            "In" | "NotIn" if values.len() == 0 => {
                out.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if values.len() > 0 => {
                out.push(values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => out.push(FieldError::invalid(operator.path, other, "not a valid selector operator")),
        }
        requirement.field("key").check(names::qualified_name, out);
        values.items().for_each(|value| value.check(names::label_value, out));
    }
}
