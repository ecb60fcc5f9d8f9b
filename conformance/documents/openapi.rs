//! The OpenAPI documents.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{accepting, group_versions, list};
use crate::cluster::Case;
use crate::verbs::text;

/// Calls `see` with every text under `$ref`.
fn references<'a>(value: &'a Value, see: &mut dyn FnMut(&'a str)) {
    match value {
        Value::Object(object) => object.iter().for_each(|(key, child)| match child.as_str() {
            Some(text) if key == "$ref" => see(text),
            _ => references(child, see),
        }),
        Value::Array(items) => items.iter().for_each(|child| references(child, see)),
        _ => {}
    }
}

/// Every reference leads somewhere in the document.
fn assert_complete(document: &Value, of: &str) {
    references(document, &mut |reference| {
        let found = reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
        assert!(found.is_some(), "{of}: {reference} leads nowhere");
    });
}

/// The kinds that definitions say they describe.
fn described(definitions: &Value) -> BTreeSet<String> {
    let definitions = definitions.as_object().into_iter().flat_map(|d| d.values());
    let kinds = definitions.flat_map(|definition| list(&definition["x-kubernetes-group-version-kind"]));
    kinds.map(|k| format!("{}/{} {}", text(k, "/group"), text(k, "/version"), text(k, "/kind"))).collect()
}

/// The kinds that a group and version serves, as definitions name them.
async fn served(case: &Case, path: &str) -> Vec<String> {
    let resources = case.get(path).await.body;
    let group_version = path.trim_start_matches("/apis/").trim_start_matches("/api/");
    let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
    let stored = list(&resources["resources"]).filter(|r| !text(r, "/name").contains('/'));
    stored.map(|r| format!("{group}/{version} {}", text(r, "/kind"))).collect()
}

pub(super) async fn every_kind_is_described_in_version_three(case: Case) {
    let index = case.get("/openapi/v3").await.body;
    for path in group_versions(&case).await {
        let place = text(&index["paths"][path.trim_start_matches('/')], "/serverRelativeURL");
        // Kinds that other cases define come and go, and who adds groups of his own need not describe them.
        if path.contains(".example/") || (place.is_empty() && !case.cluster.is_own()) {
            continue;
        }
        let document = case.get(place).await.body;
        assert!(text(&document, "/openapi").starts_with("3."), "{path}: {place:?}");
        assert_complete(&document, &path);
        let described = described(&document["components"]["schemas"]);
        for kind in served(&case, &path).await {
            assert!(described.contains(&kind), "{kind} is not in {place}");
        }
    }
    // Where kubectl looks whether the server checks fields.
    let apps = case.get("/openapi/v3/apis/apps/v1").await.body;
    let one = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/statefulsets/{name}"]["patch"];
    let names: Vec<&str> = list(&one["parameters"]).map(|p| text(p, "/name")).collect();
    for name in ["dryRun", "fieldManager", "fieldValidation", "force"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
}

pub(super) async fn an_address_of_version_three_names_its_content(case: Case) {
    let index = case.get("/openapi/v3").await.body;
    let place = text(&index, "/paths/apis~1apps~1v1/serverRelativeURL");
    assert!(place.starts_with("/openapi/v3/apis/apps/v1?hash="), "{place}");
    let document = case.get(place).await;
    assert_eq!(document.headers.get("cache-control").map(String::as_str), Some("public, immutable"));
    let old = case.get("/openapi/v3/apis/apps/v1?hash=OLD").await;
    assert_eq!((old.code, old.headers.get("location").map(String::as_str)), (301, Some(place)));
}

pub(super) async fn version_two_is_one_document_as_text_and_in_binary(case: Case) {
    let document = case.get("/openapi/v2").await.body;
    assert_eq!(document["swagger"], "2.0");
    assert_complete(&document, "/openapi/v2");
    let described = described(&document["definitions"]);
    for path in group_versions(&case).await {
        if path.starts_with("/apis/apps/") || path == "/api/v1" {
            for kind in served(&case, &path).await {
                assert!(described.contains(&kind), "{kind} is not described");
            }
        }
    }
    let set = &document["definitions"]["io.k8s.api.apps.v1.StatefulSet"];
    assert_eq!(
        set["x-kubernetes-group-version-kind"],
        json!([{"group": "apps", "kind": "StatefulSet", "version": "v1"}])
    );
    // What client-go asks for; and how it is answered, in a media type that is one.
    for asked in ["@", "."].map(|sign| format!("application/com.github.proto-openapi.spec.v2{sign}v1.0+protobuf")) {
        let binary = case.ask(accepting("/openapi/v2", &asked)).await;
        let media = binary.headers.get("content-type").map(String::as_str);
        assert_eq!((binary.code, media), (200, Some("application/com.github.proto-openapi.spec.v2.v1.0+protobuf")));
        // The first field is the version of the document; types are named, and their kinds carried as text.
        assert!(binary.bytes.starts_with(b"\x0a\x032.0\x12"), "{:?}", &binary.bytes[..16]);
        let holds = |text: &str| binary.bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(holds("io.k8s.api.apps.v1.StatefulSetSpec") && holds("x-kubernetes-patch-merge-key"));
    }
}

pub(super) async fn what_a_client_keeps_is_not_sent_again(case: Case) {
    // A kind that another case defines may come between two requests.
    for _ in 0..20 {
        let first = case.get("/openapi/v2").await;
        let tag = first.headers.get("etag").expect("a tag").clone();
        let again = case.ask(accepting("/openapi/v2", "application/json").header("if-none-match", Some(&tag))).await;
        if again.code == 304 {
            assert!(again.bytes.is_empty());
            return;
        }
    }
    panic!("it is sent again each time");
}
