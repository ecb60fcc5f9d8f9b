//! Annotations of sets through the API: admission, controller and a stand-in kubelet together.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use serde_json::{Value, json};

use super::cluster::{self, Cluster, eventually, web};

fn annotated(replicas: i32, annotations: Value) -> Value {
    let mut set = web(replicas);
    set["metadata"]["annotations"] = annotations;
    set
}

async fn gone(cluster: &Cluster) {
    eventually("the set is gone", async || {
        let sets = cluster.sets();
        sets.get_opt("web").await.expect("the API answers").is_none()
    })
    .await;
}

async fn delete(cluster: &Cluster, propagation: PropagationPolicy) {
    let sets = cluster.sets();
    let params = DeleteParams { propagation_policy: Some(propagation), ..DeleteParams::default() };
    sets.delete("web", &params).await.expect("it is there");
}

#[tokio::test]
async fn an_ordered_deletion_stops_pods_from_the_top_although_none_is_ready() {
    let cluster = Cluster::start().await;
    cluster.create(annotated(3, json!({"statefuld.io/deletion": "ordered"}))).await;
    let set = cluster.settled("web").await;
    assert_eq!(set.metadata.finalizers.unwrap_or_default(), ["statefuld.io/ordered-deletion"]);
    cluster.kubelet.hold(&cluster, "web-0").await;
    cluster.kubelet.hold(&cluster, "web-2").await;
    delete(&cluster, PropagationPolicy::Background).await;
    gone(&cluster).await;
    assert_eq!(cluster.kubelet.history()[3..], ["-web-2", "-web-1", "-web-0"]);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client.clone(), cluster::NAMESPACE);
    assert_eq!(claims.list(&ListParams::default()).await.expect("the API answers").items.len(), 3, "retained");
    // The same again under the same name finds its claims.
    cluster.create(annotated(3, json!({"statefuld.io/deletion": "ordered"}))).await;
    cluster.kubelet.release(&cluster, "web-0").await;
    cluster.kubelet.release(&cluster, "web-2").await;
    cluster.settled("web").await;
}

#[tokio::test]
async fn the_finalizer_goes_with_the_annotation_and_with_orphaning() {
    let cluster = Cluster::start().await;
    cluster.create(annotated(1, json!({"statefuld.io/deletion": "ordered"}))).await;
    cluster.settled("web").await;
    cluster.patch("web", json!({"metadata": {"annotations": {"statefuld.io/deletion": "parallel"}}})).await;
    assert_eq!(cluster.set("web").await.metadata.finalizers.unwrap_or_default(), Vec::<String>::new());
    cluster.patch("web", json!({"metadata": {"annotations": {"statefuld.io/deletion": "ordered"}}})).await;
    delete(&cluster, PropagationPolicy::Orphan).await;
    let left = cluster.set("web").await.metadata.finalizers.unwrap_or_default();
    assert_eq!(left, ["orphan"], "nothing is left to order");
}

#[tokio::test]
async fn a_reserved_ordinal_moves_its_pod_and_does_not_come_back_by_accident() {
    let cluster = Cluster::start().await;
    cluster.create(web(2)).await;
    cluster.settled("web").await;
    cluster.patch("web", json!({"metadata": {"annotations": {"statefuld.io/reserve-ordinals": "0"}}})).await;
    eventually("web-2 stands in for web-0", async || {
        let history = cluster.kubelet.history();
        history.len() >= 4 && history[2..4] == ["-web-0".to_owned(), "+web-2".to_owned()]
    })
    .await;
    cluster.settled("web").await;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client.clone(), cluster::NAMESPACE);
    let kept = claims.get("data-web-0").await.expect("it is kept");
    assert!(kept.metadata.annotations.unwrap_or_default().contains_key("statefuld.io/reserved-since"));
    let sets = cluster.sets();
    let release = Patch::Merge(json!({"metadata": {"annotations": {"statefuld.io/reserve-ordinals": null}}}));
    let refused = sets.patch("web", &PatchParams::default(), &release).await.expect_err("the claim was kept");
    assert!(refused.to_string().contains("statefuld.io/reuse=true"), "{refused}");
    let reuse = Patch::Merge(json!({"metadata": {"annotations": {"statefuld.io/reuse": "true"}}}));
    claims.patch("data-web-0", &PatchParams::default(), &reuse).await.expect("anybody may allow it");
    sets.patch("web", &PatchParams::default(), &release).await.expect("now it may be released");
    eventually("web-0 is back with its claim", async || {
        let pod = cluster.pods().get_opt("web-0").await.expect("the API answers");
        let claim = claims.get("data-web-0").await.expect("it is kept");
        pod.is_some() && !claim.metadata.annotations.unwrap_or_default().contains_key("statefuld.io/reserved-since")
    })
    .await;
}

#[tokio::test]
async fn an_override_reaches_one_pod_and_its_change_replaces_that_pod_only() {
    let cluster = Cluster::start().await;
    let with = |role: &str| {
        let patch = format!("1: {{spec: {{containers: [{{name: main, env: [{{name: ROLE, value: {role}}}]}}]}}}}");
        json!({"statefuld.io/overrides": patch})
    };
    cluster.create(annotated(2, with("one"))).await;
    cluster.settled("web").await;
    let env = async |name: &str| {
        let pod = cluster.pods().get_opt(name).await.expect("the API answers").unwrap_or_default();
        let env = pod.spec.unwrap_or_default().containers.pop().and_then(|container| container.env).unwrap_or_default();
        env.into_iter().find(|e| e.name == "ROLE").and_then(|e| e.value)
    };
    assert_eq!((env("web-0").await, env("web-1").await), (None, Some("one".to_owned())));
    cluster.patch("web", json!({"metadata": {"annotations": with("two")}})).await;
    eventually("web-1 is made again", async || env("web-1").await == Some("two".to_owned())).await;
    cluster.settled("web").await;
    assert_eq!(cluster.kubelet.history()[2..], ["-web-1", "+web-1"]);
}

#[tokio::test]
async fn what_is_protected_is_not_deleted_and_its_claims_are_marked() {
    let cluster = Cluster::start().await;
    cluster.create(annotated(1, json!({"statefuld.io/protect": "true"}))).await;
    cluster.settled("web").await;
    let sets = cluster.sets();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client.clone(), cluster::NAMESPACE);
    let code = |error: kube::Error| match error {
        kube::Error::Api(status) => status.code,
        other => panic!("{other}"),
    };
    for params in [DeleteParams::default(), DeleteParams { dry_run: true, ..DeleteParams::default() }] {
        assert_eq!(code(sets.delete("web", &params).await.expect_err("it is protected")), 403);
        assert_eq!(code(claims.delete("data-web-0", &params).await.expect_err("so is its claim")), 403);
    }
    let all = sets.delete_collection(&DeleteParams::default(), &ListParams::default()).await;
    assert_eq!(code(all.expect_err("one is protected")), 403);
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(cluster.client.clone());
    let refused = namespaces.delete(cluster::NAMESPACE, &DeleteParams::default()).await.expect_err("it holds them");
    assert!(refused.to_string().contains("is protected"), "{refused}");
    let policy = json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete"}}});
    let refused = sets.patch("web", &PatchParams::default(), &Patch::Merge(policy)).await;
    assert_eq!(code(refused.expect_err("claims would go")), 403);
    cluster.patch("web", json!({"metadata": {"annotations": {"statefuld.io/protect": "false"}}})).await;
    eventually("the claim is free", async || {
        let claim = claims.get("data-web-0").await.expect("it is there");
        !claim.metadata.annotations.unwrap_or_default().contains_key("statefuld.io/protect")
    })
    .await;
    let uid = cluster.set("web").await.metadata.uid;
    let params = DeleteParams::default().preconditions(Preconditions { uid, resource_version: None });
    sets.delete("web", &params).await.expect("it is not protected any more");
}

#[tokio::test]
async fn foreign_conditions_stay_beside_our_own() {
    let cluster = Cluster::start().await;
    cluster.create(web(1)).await;
    cluster.settled("web").await;
    let sets = cluster.sets();
    let foreign = json!({"status": {"conditions": [{"type": "example.com/Backup", "status": "True"}]}});
    sets.patch_status("web", &PatchParams::default(), &Patch::Strategic(foreign)).await.expect("it is valid");
    cluster.patch("web", json!({"spec": {"replicas": 2}})).await;
    let set = cluster.settled("web").await;
    let mut kinds: Vec<String> =
        set.status.unwrap_or_default().conditions.unwrap_or_default().into_iter().flat_map(|c| c.type_).collect();
    kinds.sort();
    assert_eq!(kinds, ["Available", "Progressing", "example.com/Backup"]);
}

#[tokio::test]
async fn a_rollback_patch_as_kubectl_sends_it_brings_back_the_old_revision() {
    let cluster = Cluster::start().await;
    cluster.create(web(1)).await;
    let first = cluster.settled("web").await.status.unwrap_or_default().current_revision;
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "sample:2"}]}}}});
    cluster.patch("web", image).await;
    cluster.settled("web").await;
    let revisions: Api<k8s_openapi::api::apps::v1::ControllerRevision> =
        Api::namespaced(cluster.client.clone(), cluster::NAMESPACE);
    let data = revisions.get(first.as_deref().unwrap_or_default()).await.expect("history is kept").data.0;
    let sets = cluster.sets();
    sets.patch("web", &PatchParams::default(), &Patch::Strategic(data)).await.expect("a revision is a patch");
    eventually("the first revision is current again", async || {
        cluster.settled("web").await.status.unwrap_or_default().current_revision == first
    })
    .await;
}

#[tokio::test]
async fn recreate_never_runs_two_revisions_at_once() {
    let cluster = Cluster::start().await;
    let mut set = web(2);
    set["spec"]["updateStrategy"] = json!({"type": "Recreate"});
    cluster.create(set).await;
    cluster.settled("web").await;
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "sample:2"}]}}}});
    cluster.patch("web", image).await;
    eventually("both are made again", async || cluster.kubelet.history().len() == 6).await;
    let history = cluster.kubelet.history();
    assert!(history[2..4].iter().all(|h| h.starts_with('-')), "{history:?}");
    assert_eq!(history[4..], ["+web-0", "+web-1"]);
}

/// What the answer to a request warns of.
async fn warnings(cluster: &Cluster, request: http::Request<Vec<u8>>) -> Vec<String> {
    let answer = cluster.client.send(request.map(kube::client::Body::from)).await.expect("the API answers");
    let values = answer.headers().get_all("warning").iter();
    values.map(|value| value.to_str().expect("text").to_owned()).collect()
}

#[tokio::test]
async fn deleting_in_no_order_and_claims_without_a_grace_period_are_warned_of() {
    let cluster = Cluster::start().await;
    let path = format!("/apis/apps/v1/namespaces/{}/statefulsets", cluster::NAMESPACE);
    let mut hasty = web(1);
    hasty["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 0.into();
    let create = |set: &Value| {
        let request = http::Request::post(&path).header("content-type", "application/json");
        request.body(set.to_string().into_bytes()).expect("a valid request")
    };
    let said = warnings(&cluster, create(&hasty)).await;
    assert!(said.iter().any(|text| text.contains("terminationGracePeriodSeconds: 0")), "{said:?}");
    cluster.settled("web").await;
    let delete =
        |name: &str| http::Request::delete(format!("{path}/{name}")).body(Vec::new()).expect("a valid request");
    let said = warnings(&cluster, delete("web")).await;
    assert!(said.iter().any(|text| text.contains("statefuld.io/deletion")), "{said:?}");
    let mut calm = annotated(1, json!({"statefuld.io/deletion": "ordered"}));
    calm["metadata"]["name"] = "calm".into();
    calm["spec"]["selector"]["matchLabels"]["app"] = "calm".into();
    calm["spec"]["template"]["metadata"]["labels"]["app"] = "calm".into();
    assert_eq!(warnings(&cluster, create(&calm)).await, Vec::<String>::new());
    cluster.settled("calm").await;
    assert_eq!(warnings(&cluster, delete("calm")).await, Vec::<String>::new());
}
