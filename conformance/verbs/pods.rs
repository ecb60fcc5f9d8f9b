//! Subresources of pods that are written: containers to debug with, resources of those that run. (Bindings, evictions and
//! logs are recorded; streams have a group of their own.)

use serde_json::{Value, json};

use super::{assert_fails, pod, text};
use crate::cluster::{Answer, Ask, Case};

const STRATEGIC: Option<&str> = Some("application/strategic-merge-patch+json");

/// Changes a subresource of pod `a` by a strategic merge patch.
async fn patch(case: &Case, sub: &str, spec: Value) -> Answer {
    let path = format!("{}/a/{sub}", case.core("pods"));
    case.ask(Ask::new("PATCH", &path).header("content-type", STRATEGIC).json(&json!({"spec": spec}))).await
}

pub(super) async fn a_container_to_debug_with_is_added_and_stays(case: Case) {
    let pods = case.core("pods");
    case.create(&pods, pod("a")).await;
    // What `kubectl debug` sends; whatever else is in it is no business of the subresource.
    let debugger = json!({"name": "debugger", "image": "tool:1", "stdin": true, "targetContainerName": "main"});
    let more = json!({"ephemeralContainers": [debugger], "containers": [{"name": "main", "image": "other:1"}]});
    let answer = patch(&case, "ephemeralcontainers", more).await;
    assert_eq!(answer.code, 200, "{}", answer.body);
    let added = &answer.body["spec"]["ephemeralContainers"][0];
    assert_eq!((&added["name"], &added["terminationMessagePolicy"]), (&json!("debugger"), &json!("File")));
    assert_eq!(answer.body["spec"]["containers"][0]["image"], "sample:1");
    let none = json!({"ephemeralContainers": [{"name": "debugger", "$patch": "delete"}]});
    let removed = patch(&case, "ephemeralcontainers", none).await;
    assert_fails(&removed, 422, "Invalid", "existing ephemeral containers");
    let ports = json!({"name": "b", "image": "tool:1", "ports": [{"containerPort": 1}]});
    let refused = patch(&case, "ephemeralcontainers", json!({"ephemeralContainers": [ports]})).await;
    assert_fails(&refused, 422, "Invalid", "ports: Forbidden: cannot be set for an Ephemeral Container");
    // They come by this way alone.
    let mut whole = case.get(&format!("{pods}/a")).await.body;
    whole["spec"]["ephemeralContainers"][0]["image"] = "tool:2".into();
    let put = case.ask(Ask::new("PUT", &format!("{pods}/a")).json(&whole)).await;
    assert_fails(&put, 422, "Invalid", "pod updates may not change fields other than");
}

pub(super) async fn a_pod_is_resized_and_keeps_its_class(case: Case) {
    let pods = case.core("pods");
    let mut object = pod("a");
    object["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "1"}});
    case.create(&pods, object).await;
    let resized = |resources: Value| json!({"containers": [{"name": "main", "resources": resources}]});
    let larger = patch(&case, "resize", resized(json!({"requests": {"cpu": "200m"}}))).await;
    assert_eq!(larger.code, 200, "{}", larger.body);
    assert_eq!(text(&larger.body, "/spec/containers/0/resources/requests/cpu"), "200m");
    assert_eq!(text(&larger.body, "/status/qosClass"), "Burstable");
    let guaranteed = json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "1Gi"}});
    let refused = patch(&case, "resize", resized(guaranteed)).await;
    assert_fails(&refused, 422, "Invalid", "Pod QOS Class may not change");
    // Not by the pod itself.
    let path = format!("{pods}/a");
    let direct = json!({"spec": resized(json!({"requests": {"cpu": "300m"}}))});
    let direct = case.ask(Ask::new("PATCH", &path).header("content-type", STRATEGIC).json(&direct)).await;
    assert_fails(&direct, 422, "Invalid", "pod updates may not change fields other than");
}
