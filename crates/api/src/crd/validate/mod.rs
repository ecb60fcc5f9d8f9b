//! The rules of definitions, with upstream's paths and sentences.
//!
//! What all versions of a definition have in common (a single version always does) is reported at the place where
//! it would stand once for all: `spec.validation`, `spec.subresources`, `spec.additionalPrinterColumns`.

mod schema;
mod version;

use serde_json::Value;

use super::list;
use crate::names;
use crate::status::{FieldError, quote};

/// Annotation that says who approved a definition in a group of Kubernetes' own.
const APPROVED: &str = "api-approved.kubernetes.io";
/// Where to read about it.
const APPROVAL: &str = "https://github.com/kubernetes/enhancements/pull/1111";
/// Versions that a definition may have.
const MAX_VERSIONS: usize = 100;

/// What is wrong with a new definition, apart from its metadata.
pub(crate) fn create(definition: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    named(definition, &mut out);
    spec(definition, None, &mut out);
    approved(definition, &mut out);
    out
}

/// What is wrong with a changed definition.
pub(crate) fn update(definition: &Value, old: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    spec(definition, Some(old), &mut out);
    let (new_spec, old_spec) = (&definition["spec"], &old["spec"]);
    let mut fixed = |path: &str, pointer: &str| {
        let (new, old) = (new_spec.pointer(pointer), old_spec.pointer(pointer));
        if new != old {
            let shown = new.cloned().unwrap_or_default();
            out.push(FieldError::invalid(path, shown, "field is immutable"));
        }
    };
    if super::is_true(&old["status"], "Established") {
        fixed("spec.scope", "/scope");
        fixed("spec.names.kind", "/names/kind");
    }
    fixed("spec.group", "/group");
    fixed("spec.names.plural", "/names/plural");
    stored_versions(definition, &mut out);
    out
}

/// What is wrong with a changed status.
pub(crate) fn status(definition: &Value) -> Vec<FieldError> {
    let mut out = Vec::new();
    names_of(&definition["status"]["acceptedNames"], "status.acceptedNames", &mut out);
    stored_versions(definition, &mut out);
    out
}

/// The name is made of plural and group.
fn named(definition: &Value, out: &mut Vec<FieldError>) {
    let name = text(&definition["metadata"]["name"]);
    let required = format!("{}.{}", text(&definition["spec"]["names"]["plural"]), text(&definition["spec"]["group"]));
    if name != required {
        out.push(FieldError::invalid("metadata.name", name, "must be spec.names.plural+\".\"+spec.group"));
    }
}

/// Groups of Kubernetes' own are used with leave only.
fn approved(definition: &Value, out: &mut Vec<FieldError>) {
    let group = text(&definition["spec"]["group"]);
    let is_own = ["k8s.io", "kubernetes.io"].iter().any(|own| group == *own || group.ends_with(&format!(".{own}")));
    if !is_own {
        return;
    }
    let path = format!("metadata.annotations[{APPROVED}]");
    match definition["metadata"]["annotations"][APPROVED].as_str().unwrap_or_default() {
        "" => out.push(FieldError::required(
            path,
            format!("protected groups must have approval annotation {}, see {APPROVAL}", quote(APPROVED)),
        )),
        value if value.starts_with("unapproved") || value.contains("://") => {}
        value => out.push(FieldError::invalid(
            path,
            value,
            format!("protected groups must have approval annotation {} with either a URL or a reason starting with \"unapproved\", see {APPROVAL}", quote(APPROVED)),
        )),
    }
}

/// Versions in which objects may be stored exist.
fn stored_versions(definition: &Value, out: &mut Vec<FieldError>) {
    for (index, stored) in list(&definition["status"]["storedVersions"]).iter().enumerate() {
        if !list(&definition["spec"]["versions"]).iter().any(|v| v["name"] == *stored) {
            let path = format!("status.storedVersions[{index}]");
            out.push(FieldError::invalid(path, stored.clone(), "missing from spec.versions; v1 was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in v1 and removes v1 from status.storedVersions".replace("v1", text(stored))));
        }
    }
}

/// The rules of the spec; what has not changed since `old` is not judged again.
fn spec(definition: &Value, old: Option<&Value>, out: &mut Vec<FieldError>) {
    let spec = &definition["spec"];
    let group = text(&spec["group"]);
    let problems = names::dns1123_subdomain(group);
    if group.is_empty() {
        out.push(FieldError::required("spec.group", ""));
    } else if !problems.is_empty() {
        out.push(FieldError::invalid("spec.group", group, problems.join(",")));
    } else if !group.contains('.') {
        out.push(FieldError::invalid("spec.group", group, "should be a domain with at least one dot"));
    }
    match text(&spec["scope"]) {
        "" => out.push(FieldError::required("spec.scope", "")),
        "Cluster" | "Namespaced" => {}
        other => out.push(FieldError::not_supported("spec.scope", other, &["Cluster", "Namespaced"])),
    }
    if spec["preserveUnknownFields"] == true {
        out.push(FieldError::invalid(
            "spec.preserveUnknownFields",
            true,
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        ));
    }
    versions(spec, out);
    for field in ["plural", "singular", "kind", "listKind"] {
        if text(&spec["names"][field]).is_empty() {
            out.push(FieldError::required(format!("spec.names.{field}"), ""));
        }
    }
    names_of(&spec["names"], "spec.names", out);
    conversion(spec, out);
    version::check_all(spec, old.map(|old| &old["spec"]), out);
}

/// Versions have names of their own, and one is stored.
fn versions(spec: &Value, out: &mut Vec<FieldError>) {
    let versions = list(&spec["versions"]);
    if versions.len() > MAX_VERSIONS {
        return out.push(FieldError::too_many("spec.versions", versions.len(), MAX_VERSIONS));
    }
    let mut seen = std::collections::BTreeSet::new();
    let mut unique = true;
    for (index, version) in versions.iter().enumerate() {
        let name = text(&version["name"]);
        unique &= seen.insert(name);
        let problems = names::dns1035_label(name);
        if !problems.is_empty() {
            out.push(FieldError::invalid(format!("spec.versions[{index}].name"), name, problems.join(",")));
        }
        if version["deprecationWarning"].is_string() && version["deprecated"] != true {
            let path = format!("spec.versions[{index}].deprecationWarning");
            out.push(FieldError::invalid(
                path,
                version["deprecationWarning"].clone(),
                "can only be set for deprecated versions",
            ));
        }
    }
    if !unique {
        out.push(FieldError::invalid("spec.versions", shown(versions), "must contain unique version names"));
    }
    if versions.iter().filter(|v| v["storage"] == true).count() != 1 {
        let why = "must have exactly one version marked as storage version";
        out.push(FieldError::invalid("spec.versions", shown(versions), why));
    }
}

/// Versions in a sentence: their names and flags, not their schemas.
fn shown(versions: &[Value]) -> Value {
    let brief = |v: &Value| serde_json::json!({"name": v["name"], "served": v["served"], "storage": v["storage"]});
    versions.iter().map(brief).collect()
}

/// Names are names.
fn names_of(names: &Value, path: &str, out: &mut Vec<FieldError>) {
    for field in ["plural", "singular"] {
        let name = text(&names[field]);
        let problems = names::dns1035_label(name);
        if !name.is_empty() && !problems.is_empty() {
            out.push(FieldError::invalid(format!("{path}.{field}"), name, problems.join(",")));
        }
    }
    for field in ["kind", "listKind"] {
        let name = text(&names[field]);
        let problems = names::dns1035_label(&name.to_lowercase());
        if !name.is_empty() && !problems.is_empty() {
            let why = format!("may have mixed case, but should otherwise match: {}", problems.join(","));
            out.push(FieldError::invalid(format!("{path}.{field}"), name, why));
        }
    }
    for field in ["shortNames", "categories"] {
        for (index, name) in list(&names[field]).iter().enumerate() {
            let problems = names::dns1035_label(text(name));
            if !problems.is_empty() {
                out.push(FieldError::invalid(format!("{path}.{field}[{index}]"), name.clone(), problems.join(",")));
            }
        }
    }
    let kind = text(&names["kind"]);
    if !kind.is_empty() && names["kind"] == names["listKind"] {
        out.push(FieldError::invalid(format!("{path}.listKind"), kind, "kind and listKind may not be the same"));
    }
}

/// Only the apiVersion changes between versions.
fn conversion(spec: &Value, out: &mut Vec<FieldError>) {
    let conversion = &spec["conversion"];
    match text(&conversion["strategy"]) {
        "" => out.push(FieldError::required("spec.conversion.strategy", "")),
        "None" => {
            if conversion["webhook"].is_object() {
                let why = "should not be set when strategy is not set to Webhook";
                out.push(FieldError::forbidden("spec.conversion.webhookClientConfig", why));
            }
        }
        "Webhook" => out.push(FieldError::invalid(
            "spec.conversion.strategy",
            "Webhook",
            "conversion webhooks are not called by this server: use \"None\", with which versions differ in their apiVersion only",
        )),
        other => out.push(FieldError::not_supported("spec.conversion.strategy", other, &["None", "Webhook"])),
    }
}

/// A text; empty if absent.
fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
