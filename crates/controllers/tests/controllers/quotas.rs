//! What is used of quotas is counted: when they come, when their bounds change, and when something is given back.

use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::support::Cluster;

/// A quota of the namespace `default`.
async fn quota(cluster: &Cluster, hard: Value) {
    let object =
        json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": hard}});
    cluster.create("ResourceQuota", "default", object).await;
}

/// Waits until this is used.
async fn until_used(cluster: &Cluster, used: Value) -> Value {
    cluster.until("ResourceQuota", "default", "q", |quota| quota["status"]["used"] == used).await
}

#[tokio::test]
async fn what_was_there_before_is_counted_and_bounds_follow_the_spec() {
    let cluster = Cluster::start().await;
    cluster.pod("a", &[], |_| {}).await;
    cluster.claim("c").await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    cluster.create("ConfigMap", "default", map).await;
    // Every namespace has one with the server's certificate, too.
    quota(&cluster, json!({"pods": "5", "requests.storage": "10Gi", "count/configmaps": "5"})).await;
    until_used(&cluster, json!({"pods": "1", "requests.storage": "1Gi", "count/configmaps": "2"})).await;
    cluster
        .patch("ResourceQuota", "default", "q", json!({"spec": {"hard": {"pods": "7", "requests.storage": null}}}))
        .await;
    let counted = until_used(&cluster, json!({"pods": "1", "count/configmaps": "2"})).await;
    assert_eq!(counted["status"]["hard"], json!({"pods": "7", "count/configmaps": "5"}));
    cluster.stop().await;
}

#[tokio::test]
async fn pods_that_end_or_go_make_room() {
    let cluster = Cluster::start().await;
    quota(&cluster, json!({"pods": "2"})).await;
    cluster.pod("a", &[], |_| {}).await;
    cluster.pod("b", &[], |_| {}).await;
    until_used(&cluster, json!({"pods": "2"})).await;
    cluster.patch_status("Pod", "default", "a", json!({"phase": "Failed"})).await;
    until_used(&cluster, json!({"pods": "1"})).await;
    cluster.pod("c", &[], |_| {}).await;
    until_used(&cluster, json!({"pods": "2"})).await;
    cluster.delete("Pod", "default", "b", DeleteParams::default()).await;
    until_used(&cluster, json!({"pods": "1"})).await;
    cluster.stop().await;
}
