//! Which of the documents are served, in the order in which they are applied. Pure: what is served is given.
//!
//! What is not served is skipped, with a sentence; what is only misspelt, or of a version that has had its day, is refused
//! or rewritten.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use api::resource::{Registry, Resource};
use serde_json::Value;

use super::old;
use super::{Document, Object, Place};

/// How documents are sorted.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Namespace of objects that name none.
    pub namespace: &'a str,
    /// What is not served is an error.
    pub strict: bool,
}

/// What came of the documents.
#[derive(Debug, Default)]
pub struct Sorted {
    /// What is applied: namespaces and definitions of kinds first, the rest as it stood.
    pub objects: Vec<Object>,
    /// What is not, one sentence each.
    pub skipped: Vec<String>,
    /// What was changed on the way, or will not work as it may seem.
    pub warnings: Vec<String>,
}

/// The kinds of `served` and those that the documents themselves define.
pub fn with_definitions(served: &Registry, documents: &[Document]) -> Registry {
    let mut registry = served.clone();
    for document in documents.iter().filter(|d| is_definition(&d.api_version, &d.kind)) {
        let mut definition = document.value.clone();
        let mut names = definition["spec"]["names"].clone();
        if names["singular"].is_null() {
            names["singular"] = names["kind"].as_str().unwrap_or_default().to_lowercase().into();
        }
        // As if the server had accepted the names. What is wrong with a definition is the server's to say.
        definition["status"] = serde_json::json!({"acceptedNames": names});
        for resource in api::crd::resources(&definition).unwrap_or_default() {
            if registry.find_kind(&resource.group, &resource.version, &resource.kind).is_none() {
                registry.add(resource);
            }
        }
    }
    registry
}

fn is_definition(api_version: &str, kind: &str) -> bool {
    kind == "CustomResourceDefinition" && api_version.starts_with("apiextensions.k8s.io/")
}

/// Sorts the documents.
pub fn sort(registry: &Registry, documents: Vec<Document>, rules: Rules<'_>) -> Result<Sorted> {
    let mut sorted = Sorted::default();
    for mut document in documents {
        if let Some(words) = old::modernise(registry, &mut document) {
            sorted.warnings.push(format!("{}: {}: {words}", document.place, document.title()));
        }
        let (group, version) = split(&document.api_version);
        match registry.find_kind(group, version, &document.kind) {
            Some(resource) => sorted.objects.push(object(document, resource, rules.namespace)?),
            None => sorted.skipped.push(unserved(registry, &document, rules.strict)?),
        }
    }
    drop_duplicates(&mut sorted)?;
    sorted.objects.sort_by_key(|object| match object.resource.kind.as_str() {
        "Namespace" => 0,
        "CustomResourceDefinition" => 1,
        _ => 2,
    });
    Ok(sorted)
}

/// Group and version.
pub(super) fn split(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

fn object(document: Document, resource: std::sync::Arc<Resource>, default: &str) -> Result<Object> {
    let Document { place, kind, value, .. } = document;
    let name = match value.pointer("/metadata/name") {
        Some(Value::String(name)) if !name.is_empty() => name.clone(),
        Some(Value::String(_)) | None => {
            bail!("{place}: {kind}: metadata.name: is required; give the object a name")
        }
        Some(other) => bail!("{place}: {kind}: metadata.name: must be a string, not {other}"),
    };
    let namespace = match value.pointer("/metadata/namespace") {
        _ if !resource.namespaced => String::new(),
        Some(Value::String(namespace)) if !namespace.is_empty() => namespace.clone(),
        Some(Value::String(_) | Value::Null) | None => default.to_owned(),
        Some(other) => bail!("{place}: {kind} {name:?}: metadata.namespace: must be a string, not {other}"),
    };
    Ok(Object { place, resource, namespace, name, value })
}

/// The sentence for a kind that is not served; an error where it is a slip of the pen, or nothing may be left out.
fn unserved(registry: &Registry, document: &Document, strict: bool) -> Result<String> {
    let Document { place, api_version, kind, .. } = document;
    let (group, _) = split(api_version);
    let all = registry.all();
    let known_group = all.iter().any(|r| r.group == group);
    let near = |r: &&std::sync::Arc<Resource>| {
        r.group == group && r.kind != *kind && distance(&r.kind.to_lowercase(), &kind.to_lowercase()) <= 2
    };
    if let Some(near) = all.iter().filter(|_| known_group).find(near) {
        if near.kind.eq_ignore_ascii_case(kind) {
            bail!("{place}: {api_version} {kind}: not served; write it as {} {}", near.api_version(), near.kind);
        }
        bail!("{place}: kind {kind:?} ({api_version}) is unknown; did you mean {}?", near.kind);
    }
    let elsewhere: Vec<String> =
        all.iter().filter(|r| r.kind == *kind).map(|r| format!("{} {}", r.api_version(), r.kind)).collect();
    if !elsewhere.is_empty() && (known_group || group == "extensions") {
        bail!("{place}: {api_version} {kind}: not served; write it as {}", elsewhere.join(" or "));
    }
    let sentence = format!("{place}: {}: {api_version} {kind} is not served here", document.title());
    if strict {
        bail!(
            "{sentence}; take it out of the file, or leave out --strict (`kubectl api-resources` lists what is served)"
        );
    }
    Ok(sentence)
}

/// Edits that turn one word into the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

/// The same object twice is one of the two too many: dropped where both say the same, refused where they differ.
fn drop_duplicates(sorted: &mut Sorted) -> Result<()> {
    let mut seen: BTreeMap<(String, String, String, String), (Place, Value)> = BTreeMap::new();
    let mut kept = Vec::with_capacity(sorted.objects.len());
    for object in sorted.objects.drain(..) {
        let resource = &object.resource;
        let key = (resource.group.clone(), resource.kind.clone(), object.namespace.clone(), object.name.clone());
        match seen.get(&key) {
            Some((first, value)) if without_namespace(&object.value) == *value => {
                let words = format!("{} occurs a second time, word for word (first at {first})", object.title());
                sorted.warnings.push(format!("{}: {words}", object.place));
            }
            Some((first, _)) => bail!(
                "{}: {} occurs a second time (first at {first}); remove one of the two, or give it another name",
                object.place,
                object.title()
            ),
            None => {
                seen.insert(key, (object.place.clone(), without_namespace(&object.value)));
                kept.push(object);
            }
        }
    }
    sorted.objects = kept;
    Ok(())
}

/// The object without its namespace, which one of two may name and the other have by default.
fn without_namespace(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("namespace");
    }
    value
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::parse;
    use super::*;

    fn sorted(text: &str, strict: bool) -> Result<Sorted> {
        let documents = parse(Path::new("m.yaml"), text).expect("YAML");
        let registry = with_definitions(&Registry::builtin(), &documents);
        sort(&registry, documents, Rules { namespace: "default", strict })
    }

    fn error_of(text: &str) -> String {
        sorted(text, false).expect_err("must be refused").to_string()
    }

    #[test]
    fn what_is_not_served_is_skipped_with_its_place_and_refused_when_strict() {
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\napiVersion: example.com/v1\nkind: Widget\nmetadata: {name: w}\n";
        let found = sorted(text, false).expect("goes on");
        assert_eq!(found.objects.len(), 1);
        assert_eq!(found.objects[0].namespace, "default");
        assert_eq!(found.skipped, ["m.yaml:5: Widget \"w\": example.com/v1 Widget is not served here"]);
        let error = sorted(text, true).expect_err("refused").to_string();
        assert!(error.starts_with(&found.skipped[0]) && error.contains("--strict"), "{error}");
    }

    #[test]
    fn a_slip_of_the_pen_is_refused_with_the_right_word() {
        let error = error_of("apiVersion: apps/v1\nkind: StatefulSets\nmetadata: {name: a}\n");
        assert_eq!(error, "m.yaml:1: kind \"StatefulSets\" (apps/v1) is unknown; did you mean StatefulSet?");
        let error = error_of("apiVersion: apps/v1\nkind: Statefulset\nmetadata: {name: a}\n");
        assert!(error.contains("write it as apps/v1 StatefulSet"), "{error}");
        let error = error_of("apiVersion: v1\nkind: StatefulSet\nmetadata: {name: a}\n");
        assert!(error.contains("write it as apps/v1 StatefulSet"), "{error}");
    }

    #[test]
    fn namespaces_and_definitions_go_first_and_what_a_file_defines_is_served() {
        let text = "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: w, namespace: shop}\n---\n\
            apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: widgets.example.com}\n\
            spec: {group: example.com, scope: Namespaced, names: {plural: widgets, kind: Widget}, versions: [{name: v1, \
            served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}]}\n---\n\
            apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
        let found = sorted(text, true).expect("all is served");
        let order: Vec<_> = found.objects.iter().map(|o| o.resource.kind.as_str()).collect();
        assert_eq!(order, ["Namespace", "CustomResourceDefinition", "Widget"]);
    }

    #[test]
    fn the_same_object_twice_is_refused_unless_it_says_the_same() {
        let one = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";
        let error = error_of(&format!("{one}---\n{one}data: {{a: b}}\n"));
        assert!(error.contains("occurs a second time (first at m.yaml:1)"), "{error}");
        let found = sorted(&format!("{one}---\n{one}"), true).expect("goes on");
        assert_eq!((found.objects.len(), found.warnings.len()), (1, 1));
        assert!(
            found.warnings[0].starts_with("m.yaml:5: ConfigMap \"a\" occurs a second time"),
            "{:?}",
            found.warnings
        );
    }

    #[test]
    fn a_missing_name_is_named() {
        let error = error_of("apiVersion: v1\nkind: ConfigMap\n");
        assert!(error.contains("metadata.name: is required"), "{error}");
    }
}
