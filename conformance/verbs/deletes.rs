//! Deletes: preconditions, finalizers, periods, collections.

use serde_json::{Value, json};

use super::{assert_fails, config, names, pod, secret, text, version};
use crate::cluster::{Ask, Case};

/// A delete with options in its body.
fn delete(path: &str, options: Value) -> Ask {
    Ask::new("DELETE", path).json(&options)
}

pub(super) async fn a_delete_holds_to_its_preconditions(case: Case) {
    let maps = case.core("configmaps");
    let map = case.create(&maps, config("a")).await;
    let path = format!("{maps}/a");
    let uid = json!({"preconditions": {"uid": "00000000-1111-2222-3333-444444444444"}});
    let answer = case.ask(delete(&path, uid)).await;
    assert_fails(
        &answer,
        409,
        "Conflict",
        "the UID in the precondition (00000000-1111-2222-3333-444444444444) does not match",
    );
    let old = json!({"preconditions": {"resourceVersion": "1"}});
    let answer = case.ask(delete(&path, old)).await;
    assert_fails(&answer, 409, "Conflict", "the ResourceVersion in the precondition (1) does not match");
    // What cannot be understood is never taken for nothing.
    for unclear in [json!({"preconditions": {"uid": 5}}), json!({"preconditions": []}), json!({"dryRun": "All"})] {
        let answer = case.ask(delete(&path, unclear)).await;
        assert_fails(&answer, 400, "BadRequest", "cannot unmarshal");
    }
    let right = json!({"preconditions": {"uid": map["metadata"]["uid"], "resourceVersion": version(&map)}});
    let answer = case.ask(delete(&path, right)).await;
    assert_eq!((answer.code, text(&answer.body, "/status")), (200, "Success"), "{}", answer.body);
    assert_eq!(answer.body["details"]["uid"], map["metadata"]["uid"]);
    assert_eq!(case.get(&path).await.code, 404);
}

pub(super) async fn finalizers_hold_a_deleted_object(case: Case) {
    let maps = case.core("configmaps");
    let mut map = config("a");
    map["metadata"]["finalizers"] = json!(["example.com/one", "example.com/two"]);
    case.create(&maps, map).await;
    let path = format!("{maps}/a");
    let marked = case.ask(Ask::new("DELETE", &path)).await;
    assert_eq!((marked.code, text(&marked.body, "/kind")), (200, "ConfigMap"), "{}", marked.body);
    assert_ne!(text(&marked.body, "/metadata/deletionTimestamp"), "");
    assert_eq!(marked.body["metadata"]["deletionGracePeriodSeconds"], 0);
    // Deleting it again changes nothing.
    let again = case.ask(Ask::new("DELETE", &path)).await;
    assert_eq!((again.code, version(&again.body)), (200, version(&marked.body)));
    let more = json!({"metadata": {"finalizers": ["example.com/one", "example.com/three"]}});
    let more = Ask::new("PATCH", &path).header("content-type", Some("application/merge-patch+json")).json(&more);
    let says = "no new finalizers can be added if the object is being deleted, found new finalizers []string{\"example.com/three\"}";
    assert_fails(&case.ask(more).await, 422, "Invalid", says);
    let one = case.merge(&path, json!({"metadata": {"finalizers": ["example.com/two"]}})).await;
    let mut watch = case
        .watch(Ask::new("GET", &maps).query("resourceVersion", version(&one)).query("fieldSelector", "metadata.name=a"))
        .await;
    let last = case.merge(&path, json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(version(&last), version(&one), "the answer is what was sent, as the object is no more");
    let events = watch.next(1).await;
    assert_eq!(text(&events[0], "/type"), "DELETED", "{events:?}");
    assert_eq!(case.get(&path).await.code, 404);
}

pub(super) async fn a_period_can_only_be_shortened(case: Case) {
    let pods = case.core("pods");
    let path = format!("{pods}/p");
    case.create(&pods, pod("p")).await;
    let target = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let bound = case.ask(Ask::new("POST", &format!("{path}/binding")).json(&target)).await;
    assert_eq!(bound.code, 201, "{}", bound.body);
    let running = json!({"status": {"phase": "Running"}});
    case.merge(&format!("{path}/status"), running).await;
    let mut generation = None;
    for (asked, is) in [(60, 60), (100, 60), (60, 60), (20, 20), (-5, 1)] {
        let answer = case.ask(delete(&path, json!({"gracePeriodSeconds": asked}))).await;
        let metadata = &answer.body["metadata"];
        assert_eq!(
            (answer.code, &metadata["deletionGracePeriodSeconds"]),
            (200, &json!(is)),
            "{asked}: {}",
            answer.body
        );
        let first = generation.get_or_insert_with(|| metadata["generation"].clone());
        assert_eq!(&metadata["generation"], first, "only the first delete changes what is wanted");
    }
    let answer = case.ask(delete(&path, json!({"gracePeriodSeconds": 0}))).await;
    assert_eq!((answer.code, text(&answer.body, "/kind")), (200, "Pod"), "{}", answer.body);
    assert_eq!(case.get(&path).await.code, 404);
}

pub(super) async fn policies_that_do_not_go_together_are_refused(case: Case) {
    let maps = case.core("configmaps");
    case.create(&maps, config("a")).await;
    let path = format!("{maps}/a");
    let both = case.ask(delete(&path, json!({"propagationPolicy": "Orphan", "orphanDependents": true}))).await;
    assert_fails(&both, 422, "Invalid", "orphanDependents and deletionPropagation cannot be both set");
    let unknown = case.ask(delete(&path, json!({"propagationPolicy": "Sideways"}))).await;
    let says = "propagationPolicy: Unsupported value: \"Sideways\": supported values: ";
    assert_fails(&unknown, 422, "Invalid", says);
    assert_eq!(case.get(&path).await.code, 200);
}

pub(super) async fn a_collection_is_deleted_by_selector_and_page_by_page(case: Case) {
    let path = case.core("secrets");
    for name in ["a", "b", "c", "d", "e"] {
        case.create(&path, secret(name)).await;
    }
    let dry = case.ask(Ask::new("DELETE", &path).query("dryRun", "All")).await;
    assert_eq!(names(&dry).len(), 5);
    assert_eq!(names(&case.get(&path).await).len(), 5);
    let selected = case.ask(Ask::new("DELETE", &path).query("labelSelector", "is=c")).await;
    assert_eq!((text(&selected.body, "/kind"), names(&selected)), ("SecretList", vec!["c"]));
    let field = case.ask(Ask::new("DELETE", &path).query("fieldSelector", "metadata.name=d")).await;
    assert_eq!(names(&field), ["d"]);
    let page = case.ask(Ask::new("DELETE", &path).query("limit", "1")).await;
    assert_eq!(names(&page), ["a"]);
    assert_ne!(text(&page.body, "/metadata/continue"), "", "there is more");
    assert_eq!(names(&case.get(&path).await), ["b", "e"]);
    // What is held is marked and stays.
    case.merge(&format!("{path}/b"), json!({"metadata": {"finalizers": ["example.com/x"]}})).await;
    let rest = case.ask(delete(&path, json!({"propagationPolicy": "Background"}))).await;
    assert_eq!(names(&rest), ["b", "e"]);
    let left = case.get(&path).await;
    assert_eq!(names(&left), ["b"]);
    assert_ne!(text(&left.body, "/items/0/metadata/deletionTimestamp"), "");
    case.merge(&format!("{path}/b"), json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(case.ask(Ask::new("DELETE", &format!("{path}/b"))).await.code, 404);
}
