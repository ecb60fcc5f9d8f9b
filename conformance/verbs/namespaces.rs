//! The life of namespaces.

use serde_json::{Value, json};

use super::{assert_fails, config, pod, text};
use crate::cluster::{Answer, Ask, Case};

/// Where the case's namespace is.
fn place(case: &Case) -> String {
    format!("/api/v1/namespaces/{}", case.namespace)
}

/// A condition of a namespace.
fn condition<'a>(namespace: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = namespace.pointer("/status/conditions")?.as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind)
}

/// Whether a condition holds.
fn holds(answer: &Answer, kind: &str) -> bool {
    condition(&answer.body, kind).is_some_and(|condition| condition["status"] == "True")
}

pub(super) async fn a_namespace_that_is_stuck_says_why(case: Case) {
    let maps = case.core("configmaps");
    let mut map = config("held");
    map["metadata"]["finalizers"] = json!(["example.com/x"]);
    case.create(&maps, map).await;
    let path = place(&case);
    let marked = case.ask(Ask::new("DELETE", &path)).await;
    assert_eq!((marked.code, text(&marked.body, "/status/phase")), (200, "Terminating"), "{}", marked.body);
    let stuck = |answer: &Answer| {
        condition(&answer.body, "NamespaceFinalizersRemaining").is_some_and(|condition| {
            text(condition, "/message")
                == "Some content in the namespace has finalizers remaining: example.com/x in 1 resource instances"
        })
    };
    let namespace = case.until(Ask::new("GET", &path), "it says what it waits for", stuck).await.body;
    let expected = [
        ("NamespaceDeletionDiscoveryFailure", "False", "ResourcesDiscovered", "All resources successfully discovered"),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            "False",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            "False",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining",
            "True",
            "SomeResourcesRemain",
            "Some resources are remaining: configmaps. has 1 resource instances",
        ),
    ];
    for (kind, status, reason, message) in expected {
        let found = condition(&namespace, kind).unwrap_or_else(|| panic!("{kind} is not in {namespace}"));
        let said = (text(found, "/status"), text(found, "/reason"), text(found, "/message"));
        assert_eq!(said, (status, reason, message), "{found}");
    }
    case.merge(&format!("{maps}/held"), json!({"metadata": {"finalizers": null}})).await;
    case.gone(&path).await;
}

pub(super) async fn pods_go_before_everything_else(case: Case) {
    let (pods, maps, path) = (case.core("pods"), case.core("configmaps"), place(&case));
    let mut held = pod("held");
    held["metadata"]["finalizers"] = json!(["example.com/x"]);
    case.create(&pods, held).await;
    case.create(&maps, config("used")).await;
    case.ask(Ask::new("DELETE", &path)).await;
    let waits = |answer: &Answer| holds(answer, "NamespaceContentRemaining");
    case.until(Ask::new("GET", &path), "it waits", waits).await;
    let map = case.get(&format!("{maps}/used")).await;
    assert_eq!((map.code, map.body["metadata"].get("deletionTimestamp")), (200, None), "{}", map.body);
    case.merge(&format!("{pods}/held"), json!({"metadata": {"finalizers": null}})).await;
    case.gone(&path).await;
    assert_eq!(case.get(&format!("{maps}/used")).await.code, 404);
}

pub(super) async fn nothing_is_created_in_a_namespace_that_goes(case: Case) {
    let (maps, path) = (case.core("configmaps"), place(&case));
    let mut map = config("held");
    map["metadata"]["finalizers"] = json!(["example.com/x"]);
    case.create(&maps, map).await;
    case.ask(Ask::new("DELETE", &path)).await;
    let late = case.ask(Ask::new("POST", &maps).json(&config("late"))).await;
    let says = format!("unable to create new content in namespace {} because it is being terminated", case.namespace);
    assert_fails(&late, 403, "Forbidden", &says);
    assert_eq!(text(&late.body, "/details/causes/0/reason"), "NamespaceTerminating", "{}", late.body);
    // What is there can be changed still.
    case.merge(&format!("{maps}/held"), json!({"metadata": {"finalizers": null}})).await;
    case.gone(&path).await;
}

pub(super) async fn a_finalizer_of_its_own_keeps_a_namespace(case: Case) {
    let path = place(&case);
    let mut namespace = case.get(&path).await.body;
    namespace["spec"]["finalizers"] = json!(["kubernetes", "example.com/x"]);
    let kept = case.ask(Ask::new("PUT", &format!("{path}/finalize")).json(&namespace)).await;
    assert_eq!(kept.body["spec"]["finalizers"], json!(["kubernetes", "example.com/x"]), "{}", kept.body);
    case.ask(Ask::new("DELETE", &path)).await;
    let own = |answer: &Answer| answer.body["spec"]["finalizers"] == json!(["example.com/x"]);
    let mut namespace = case.until(Ask::new("GET", &path), "the controller has done its part", own).await.body;
    namespace["spec"]["finalizers"] = json!([]);
    let last = case.ask(Ask::new("PUT", &format!("{path}/finalize")).json(&namespace)).await;
    assert_eq!(last.code, 200, "{}", last.body);
    case.gone(&path).await;
}
