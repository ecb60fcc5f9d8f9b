//! Disruption budgets are counted, and evictions ask them.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{EvictParams, Patch, PatchParams};
use kube::{Api, Error};
use serde_json::{Value, json};

use crate::support::Cluster;

/// A set of so many, and its pods, all of them Ready. Nobody else makes pods for it here.
async fn set(cluster: &Cluster, replicas: usize) {
    let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web"}, "spec": {
        "serviceName": "web", "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let set = cluster.create("StatefulSet", "default", set).await;
    let owner = json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": set["metadata"]["uid"],
        "controller": true, "blockOwnerDeletion": true}]);
    for n in 0..replicas {
        let change = |pod: &mut Value| {
            pod["metadata"]["labels"] = json!({"app": "web"});
            pod["metadata"]["ownerReferences"] = owner.clone();
            pod["spec"]["terminationGracePeriodSeconds"] = json!(30);
        };
        cluster.pod(&format!("web-{n}"), &[], change).await;
        ready(cluster, n, "True").await;
    }
}

async fn ready(cluster: &Cluster, ordinal: usize, ready: &str) {
    let status = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]});
    let pods: Api<Pod> = Api::default_namespaced(cluster.client.clone());
    let patch = Patch::Strategic(json!({"status": status}));
    pods.patch_status(&format!("web-{ordinal}"), &PatchParams::default(), &patch).await.expect("patched");
}

async fn budget(cluster: &Cluster, spec: Value) {
    let mut budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web"}});
    budget["spec"] = spec;
    budget["spec"]["selector"] = json!({"matchLabels": {"app": "web"}});
    cluster.create("PodDisruptionBudget", "default", budget).await;
}

/// Waits until healthy, desired, expected and allowed are these, of the newest spec.
async fn until(cluster: &Cluster, numbers: [i64; 4]) -> Value {
    let fields = ["currentHealthy", "desiredHealthy", "expectedPods", "disruptionsAllowed"];
    let is = |budget: &Value| {
        let status = &budget["status"];
        status["observedGeneration"] == budget["metadata"]["generation"]
            && fields.iter().zip(numbers).all(|(field, number)| status[field] == number)
    };
    cluster.until("PodDisruptionBudget", "default", "web", is).await["status"].clone()
}

/// Evicts, or says why not.
async fn evict(cluster: &Cluster, ordinal: usize) -> Result<(), (u16, String)> {
    let pods: Api<Pod> = Api::default_namespaced(cluster.client.clone());
    match pods.evict(&format!("web-{ordinal}"), &EvictParams::default()).await {
        Ok(_) => Ok(()),
        Err(Error::Api(status)) => {
            let cause = status.details.and_then(|details| details.causes.into_iter().next());
            Err((status.code, cause.map_or(status.message, |cause| cause.message)))
        }
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_budget_is_counted_and_lets_one_pod_go_after_the_other() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    set(&cluster, 3).await;
    budget(&cluster, json!({"maxUnavailable": 1})).await;
    let status = until(&cluster, [3, 2, 3, 1]).await;
    assert_eq!(status["conditions"][0]["reason"], "SufficientPods", "{status}");
    evict(&cluster, 1).await.expect("one may go");
    let pod = cluster.get("Pod", "default", "web-1").await.expect("it has its grace period");
    let target = pod["status"]["conditions"].as_array().expect("some").iter().find(|c| c["type"] == "DisruptionTarget");
    assert_eq!(target.expect("it says why")["reason"], "EvictionByEvictionAPI");
    // The eviction notes the pod there, until it is seen to be deleted.
    let seen = |budget: &Value| budget["status"]["disruptedPods"].is_null();
    cluster.until("PodDisruptionBudget", "default", "web", seen).await;
    let status = until(&cluster, [2, 2, 3, 0]).await;
    assert_eq!(status["conditions"][0]["reason"], "InsufficientPods", "{status}");
    let refused = evict(&cluster, 0).await.expect_err("no other may go meanwhile");
    assert_eq!(refused, (429, "The disruption budget web needs 2 healthy pods and has 2 currently".to_owned()));
    // A budget follows its spec.
    cluster.patch("PodDisruptionBudget", "default", "web", json!({"spec": {"maxUnavailable": "60%"}})).await;
    until(&cluster, [2, 1, 3, 1]).await;
    evict(&cluster, 0).await.expect("another may go");
    until(&cluster, [1, 1, 3, 0]).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_pod_that_is_not_ready_goes_where_enough_others_are_or_the_budget_says_always() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    set(&cluster, 3).await;
    budget(&cluster, json!({"minAvailable": 2})).await;
    until(&cluster, [3, 2, 3, 1]).await;
    ready(&cluster, 0, "False").await;
    until(&cluster, [2, 2, 3, 0]).await;
    assert_eq!(evict(&cluster, 1).await.expect_err("it is ready").0, 429);
    evict(&cluster, 0).await.expect("it does not count");
    ready(&cluster, 1, "False").await;
    until(&cluster, [1, 2, 3, 0]).await;
    assert_eq!(evict(&cluster, 1).await.expect_err("too few are healthy").0, 429);
    let always = json!({"spec": {"unhealthyPodEvictionPolicy": "AlwaysAllow"}});
    cluster.patch("PodDisruptionBudget", "default", "web", always).await;
    until(&cluster, [1, 2, 3, 0]).await;
    evict(&cluster, 1).await.expect("the budget says so");
    cluster.stop().await;
}

#[tokio::test]
async fn where_it_cannot_be_counted_nothing_may_go() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    set(&cluster, 1).await;
    budget(&cluster, json!({"minAvailable": "0%"})).await;
    until(&cluster, [1, 0, 1, 1]).await;
    let owner = json!([{"apiVersion": "example.com/v1", "kind": "Thing", "name": "t", "uid": "u", "controller": true}]);
    cluster.patch("Pod", "default", "web-0", json!({"metadata": {"ownerReferences": owner}})).await;
    let failed = |budget: &Value| budget["status"]["conditions"][0]["reason"] == "SyncFailed";
    let budget = cluster.until("PodDisruptionBudget", "default", "web", failed).await;
    assert_eq!(budget["status"]["disruptionsAllowed"], 0, "{budget}");
    cluster.stop().await;
}
