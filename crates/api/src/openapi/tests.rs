//! Tests of the documents.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{v2, v3, v3_index};
use crate::resource::Registry;

/// Every text under a key, anywhere in a document.
fn texts<'a>(value: &'a Value, key: &str, out: &mut Vec<&'a str>) {
    match value {
        Value::Object(object) => {
            for (name, child) in object {
                if let (true, Some(text)) = (name == key, child.as_str()) {
                    out.push(text);
                }
                texts(child, key, out);
            }
        }
        Value::Array(items) => items.iter().for_each(|child| texts(child, key, out)),
        _ => {}
    }
}

/// Checks that every reference in a document leads to a definition.
#[track_caller]
fn references_are_complete(document: &Value) {
    let mut references = Vec::new();
    texts(document, "$ref", &mut references);
    assert!(!references.is_empty());
    for reference in references {
        let pointer = reference.strip_prefix('#').expect("a local reference");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

#[test]
fn every_document_of_the_index_exists_and_is_complete() {
    let registry = Registry::builtin();
    let index = v3_index(&registry, |group, version| v3(&registry, group, version).map(|_| "7".to_owned()));
    let paths = index["paths"].as_object().unwrap();
    assert_eq!(paths.len(), registry.group_versions().len());
    assert!(
        paths["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap().starts_with("/openapi/v3/apis/apps/v1?hash=7")
    );
    for (group, version) in registry.group_versions() {
        references_are_complete(&v3(&registry, &group, &version).unwrap());
    }
    assert!(v3(&registry, "nosuch", "v1").is_none());
}

#[test]
fn version_two_is_complete() {
    let document = v2(&Registry::builtin());
    references_are_complete(&document);
    assert!(document["definitions"].get("io.k8s.api.core.v1.Pod").is_some());
}

#[test]
fn operation_ids_are_unique() {
    let document = v2(&Registry::builtin());
    let mut ids = Vec::new();
    texts(&document, "operationId", &mut ids);
    let unique: BTreeSet<&str> = ids.iter().copied().collect();
    assert_eq!(unique.len(), ids.len());
    assert!(unique.contains("replaceAppsV1NamespacedStatefulSetStatus"));
    assert!(unique.contains("listCoreV1PodForAllNamespaces"));
}

#[test]
fn patches_declare_field_validation_and_dry_run() {
    let document = v3(&Registry::builtin(), "apps", "v1").unwrap();
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/statefulsets/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "StatefulSet");
    let names: Vec<&str> = patch["parameters"].as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
    for name in ["fieldValidation", "dryRun", "fieldManager", "force"] {
        assert!(names.contains(&name), "{name}");
    }
}

#[test]
fn schemas_carry_kinds_merge_keys_and_requirements() {
    let document = v3(&Registry::builtin(), "apps", "v1").unwrap();
    let schemas = &document["components"]["schemas"];
    let set = &schemas["io.k8s.api.apps.v1.StatefulSet"];
    assert_eq!(set["x-kubernetes-group-version-kind"][0]["kind"], "StatefulSet");
    assert_eq!(
        set["properties"]["spec"]["allOf"][0]["$ref"],
        "#/components/schemas/io.k8s.api.apps.v1.StatefulSetSpec"
    );
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
    assert_eq!(containers["x-kubernetes-list-map-keys"][0], "name");
    assert!(schemas["io.k8s.api.core.v1.PodSpec"]["required"].as_array().unwrap().contains(&"containers".into()));
    assert!(schemas.get("io.k8s.api.apps.v1.StatefulSetList").is_some());
}

#[test]
fn cluster_wide_kinds_have_no_namespace_in_their_path() {
    let document = v3(&Registry::builtin(), "", "v1").unwrap();
    assert!(document["paths"].get("/api/v1/nodes/{name}").is_some());
    assert!(document["paths"].get("/api/v1/namespaces/{namespace}/pods/{name}/binding").is_some());
    assert!(document["paths"]["/api/v1/namespaces"].get("delete").is_none());
}

/// Calls `check` for each operation of a document, with its path and the parameters of both.
fn for_each_operation(document: &Value, check: &mut dyn FnMut(&str, &Value, Vec<&Value>)) {
    for (path, item) in document["paths"].as_object().expect("paths") {
        let shared = item["parameters"].as_array().into_iter().flatten();
        for (method, operation) in item.as_object().expect("an object").iter().filter(|(m, _)| *m != "parameters") {
            assert!(["get", "post", "put", "patch", "delete"].contains(&method.as_str()), "{path} {method}");
            let own = operation["parameters"].as_array().into_iter().flatten();
            check(path, operation, shared.clone().chain(own).collect());
        }
    }
}

#[test]
fn operations_are_what_validators_and_generators_demand() {
    let registry = Registry::builtin();
    let mut documents: Vec<Value> =
        registry.group_versions().iter().map(|(group, version)| v3(&registry, group, version).unwrap()).collect();
    documents.push(v2(&registry));
    for document in &documents {
        let mut ids = BTreeSet::new();
        for_each_operation(document, &mut |path, operation, parameters| {
            let id = operation["operationId"].as_str().expect("an id");
            assert!(ids.insert(id.to_owned()), "{id} twice");
            let named = |p: &&Value| (p["in"].to_string(), p["name"].to_string());
            let unique: BTreeSet<_> = parameters.iter().map(named).collect();
            assert_eq!(unique.len(), parameters.len(), "{path} {id}: a parameter twice");
            let in_path = parameters.iter().filter(|p| p["in"] == "path").count();
            assert_eq!(in_path, path.matches('{').count(), "{path}");
            for parameter in parameters.iter().filter(|p| p["in"] == "path") {
                assert_eq!(parameter["required"], true, "{path}");
                assert!(path.contains(&format!("{{{}}}", parameter["name"].as_str().unwrap())), "{path}");
            }
            let answers = operation["responses"].as_object().expect("answers");
            assert!(!answers.is_empty() && answers.values().all(|a| a["description"].is_string()), "{path} {id}");
        });
        assert!(!ids.is_empty());
    }
}

#[test]
fn required_fields_are_declared_and_every_kind_can_be_explained() {
    let registry = Registry::builtin();
    let document = v2(&registry);
    let definitions = document["definitions"].as_object().unwrap();
    for (name, definition) in definitions {
        for field in definition["required"].as_array().into_iter().flatten() {
            assert!(definition["properties"].get(field.as_str().unwrap()).is_some(), "{name}.{field}");
        }
    }
    for resource in registry.all() {
        let kind = serde_json::json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
        let found = definitions
            .values()
            .filter(|d| d["x-kubernetes-group-version-kind"].as_array().is_some_and(|kinds| kinds.contains(&kind)));
        assert_eq!(found.count(), 1, "{kind}");
    }
}
