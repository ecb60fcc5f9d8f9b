//! StatefulSets through the API: server, controller and a stand-in kubelet in this process.

mod beyond;
mod cluster;
mod deletion;
mod examples;
mod recovery;

use cluster::{Cluster, eventually, web};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::json;

#[tokio::test]
async fn ordered_pods_come_one_after_another_with_their_claims() {
    let cluster = Cluster::start().await;
    cluster.create(web(3)).await;
    let set = cluster.settled("web").await;
    assert_eq!(cluster.kubelet.history(), ["+web-0", "+web-1", "+web-2"]);
    let pod = cluster.pods().get("web-1").await.expect("it is there");
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let revision = set.status.unwrap_or_default().current_revision.unwrap_or_default();
    assert_eq!(labels["statefulset.kubernetes.io/pod-name"], "web-1");
    assert_eq!(labels["apps.kubernetes.io/pod-index"], "1");
    assert_eq!(labels["controller-revision-hash"], revision);
    let spec = pod.spec.unwrap_or_default();
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("web-1"), Some("web")));
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client.clone(), cluster::NAMESPACE);
    for ordinal in 0..3 {
        claims.get(&format!("data-web-{ordinal}")).await.expect("each pod has its claim");
    }
}

#[tokio::test]
async fn a_pod_that_is_not_ready_keeps_the_next_from_being_created() {
    let cluster = Cluster::start().await;
    cluster.kubelet.hold(&cluster, "web-1").await;
    cluster.create(web(3)).await;
    eventually("web-1 exists", async || cluster.pods().get("web-1").await.is_ok()).await;
    eventually("the status tells of two pods", async || {
        cluster.set("web").await.status.is_some_and(|s| (s.replicas, s.ready_replicas) == (2, Some(1)))
    })
    .await;
    assert!(cluster.pods().get_opt("web-2").await.expect("the API answers").is_none());
    cluster.kubelet.release(&cluster, "web-1").await;
    cluster.settled("web").await;
}

#[tokio::test]
async fn scaling_down_goes_from_the_top_and_keeps_the_claims() {
    let cluster = Cluster::start().await;
    cluster.create(web(3)).await;
    cluster.settled("web").await;
    cluster.patch("web", json!({"spec": {"replicas": 1}})).await;
    cluster.settled("web").await;
    assert_eq!(cluster.kubelet.history()[3..], ["-web-2", "-web-1"]);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client.clone(), cluster::NAMESPACE);
    assert_eq!(claims.list(&ListParams::default()).await.expect("the API answers").items.len(), 3);
}

#[tokio::test]
async fn an_update_goes_from_the_top_and_a_rollback_finds_the_old_revision() {
    let cluster = Cluster::start().await;
    cluster.create(web(2)).await;
    let first = cluster.settled("web").await.status.unwrap_or_default().current_revision;
    let image = |tag: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": format!("sample:{tag}")}]}}}});
    cluster.patch("web", image("2")).await;
    let second = cluster.settled("web").await.status.unwrap_or_default().current_revision;
    assert_ne!(first, second);
    assert_eq!(cluster.kubelet.history()[2..], ["-web-1", "+web-1", "-web-0", "+web-0"]);
    cluster.patch("web", image("1")).await;
    eventually("the first revision is current again", async || {
        cluster.settled("web").await.status.unwrap_or_default().current_revision == first
    })
    .await;
    let revisions: Api<ControllerRevision> = Api::namespaced(cluster.client.clone(), cluster::NAMESPACE);
    let revisions = revisions.list(&ListParams::default()).await.expect("the API answers").items;
    assert_eq!(revisions.len(), 2, "the old one was found again by its content");
    let found = revisions.iter().find(|r| r.metadata.name == first).expect("it is kept");
    assert_eq!(found.revision, Some(3), "and became the newest");
    assert_eq!(found.data.0["spec"]["template"]["$patch"], "replace");
}

#[tokio::test]
async fn a_deleted_and_a_failed_pod_are_replaced_under_their_name() {
    let cluster = Cluster::start().await;
    cluster.create(web(2)).await;
    cluster.settled("web").await;
    let before = cluster.pods().get("web-0").await.expect("it is there").metadata.uid;
    cluster.delete_pod("web-0").await;
    let replaced = async |name: &str, before: &Option<String>| {
        eventually("another pod has the name and is ready", async || {
            let pod = cluster.pods().get_opt(name).await.expect("the API answers");
            pod.is_some_and(|p| p.metadata.uid != *before && p.metadata.deletion_timestamp.is_none())
        })
        .await;
        cluster.settled("web").await;
    };
    replaced("web-0", &before).await;
    let before = cluster.pods().get("web-1").await.expect("it is there").metadata.uid;
    cluster.kubelet.fail(&cluster, "web-1").await;
    replaced("web-1", &before).await;
}

#[tokio::test]
async fn parallel_pods_do_not_wait_for_each_other() {
    let cluster = Cluster::start().await;
    let mut set = web(5);
    set["spec"]["podManagementPolicy"] = "Parallel".into();
    for pod in ["web-0", "web-1", "web-2", "web-3", "web-4"] {
        cluster.kubelet.hold(&cluster, pod).await;
    }
    cluster.create(set).await;
    eventually("all five are there, none ready", async || {
        cluster.set("web").await.status.is_some_and(|s| s.replicas == 5 && s.ready_replicas.unwrap_or(0) == 0)
    })
    .await;
}

#[tokio::test]
async fn a_matching_orphan_is_adopted_and_one_that_no_longer_matches_released() {
    let cluster = Cluster::start().await;
    cluster.create(web(1)).await;
    let set = cluster.settled("web").await;
    let owned = async || {
        let pod = cluster.pods().get("web-0").await.expect("it is there");
        pod.metadata.owner_references.unwrap_or_default().iter().any(|o| Some(&o.uid) == set.metadata.uid.as_ref())
    };
    let patch = async |patch: serde_json::Value| {
        let params = kube::api::PatchParams::default();
        cluster.pods().patch("web-0", &params, &kube::api::Patch::Merge(patch)).await.expect("the patch is valid");
    };
    patch(json!({"metadata": {"ownerReferences": []}})).await;
    eventually("the orphan is adopted", owned).await;
    patch(json!({"metadata": {"labels": {"app": "other"}}})).await;
    eventually("it is released", async || !owned().await).await;
    patch(json!({"metadata": {"labels": {"app": "web"}}})).await;
    eventually("it is adopted again", owned).await;
}

#[tokio::test]
async fn a_controller_that_starts_again_goes_on_and_writes_nothing_when_all_is_done() {
    let cluster = Cluster::start().await;
    cluster.kubelet.hold(&cluster, "web-1").await;
    cluster.create(web(3)).await;
    eventually("web-1 exists", async || cluster.pods().get("web-1").await.is_ok()).await;
    cluster.stop_controller().await;
    cluster.kubelet.release(&cluster, "web-1").await;
    cluster.start_controller();
    let done = cluster.settled("web").await;
    assert_eq!(cluster.kubelet.history(), ["+web-0", "+web-1", "+web-2"]);
    cluster.stop_controller().await;
    cluster.start_controller();
    // A second set proves that the new controller has looked at the first one too.
    let mut other = web(1);
    other["metadata"]["name"] = "other".into();
    other["spec"]["selector"]["matchLabels"]["app"] = "other".into();
    other["spec"]["template"]["metadata"]["labels"]["app"] = "other".into();
    cluster.create(other).await;
    cluster.settled("other").await;
    let after = cluster.set("web").await;
    assert_eq!(done.metadata.resource_version, after.metadata.resource_version, "nothing to say, nothing written");
}

#[tokio::test]
async fn what_is_done_is_told_in_events() {
    let cluster = Cluster::start().await;
    cluster.create(web(1)).await;
    cluster.settled("web").await;
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), cluster::NAMESPACE);
    for expected in [
        "create Claim data-web-0 Pod web-0 in StatefulSet web success",
        "create Pod web-0 in StatefulSet web successful",
    ] {
        eventually(expected, async || {
            let found = events.list(&ListParams::default()).await.expect("the API answers").items;
            found.iter().any(|e| {
                e.message.as_deref() == Some(expected)
                    && e.reason.as_deref() == Some("SuccessfulCreate")
                    && e.involved_object.name.as_deref() == Some("web")
            })
        })
        .await;
    }
}

#[tokio::test]
async fn a_claim_that_is_being_deleted_blocks_its_pod_and_is_told() {
    let cluster = Cluster::start().await;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client.clone(), cluster::NAMESPACE);
    let claim = serde_json::from_value(json!({
        "metadata": {"name": "data-web-0", "finalizers": ["example.com/hold"]},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    }));
    claims.create(&PostParams::default(), &claim.expect("a claim")).await.expect("it is valid");
    claims.delete("data-web-0", &DeleteParams::default()).await.expect("it is there");
    cluster.create(web(1)).await;
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), cluster::NAMESPACE);
    let expected = "create Pod web-0 in StatefulSet web failed error: pvc data-web-0 is being deleted";
    eventually("the refusal is told", async || {
        let found = events.list(&ListParams::default()).await.expect("the API answers").items;
        found.iter().any(|e| e.message.as_deref() == Some(expected) && e.reason.as_deref() == Some("FailedCreate"))
    })
    .await;
    let free = kube::api::Patch::Merge(json!({"metadata": {"finalizers": null}}));
    claims.patch("data-web-0", &kube::api::PatchParams::default(), &free).await.expect("the claim is there");
    cluster.settled("web").await;
}
