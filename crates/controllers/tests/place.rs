//! Pods find nodes, claims find volumes; what is no longer used goes, what is used stays.

mod support;

use kube::api::DeleteParams;
use serde_json::{Value, json};
use support::Cluster;

fn phase(phase: &'static str) -> impl Fn(&Value) -> bool {
    move |object| object["status"]["phase"] == phase
}

fn bound_to(node: &'static str) -> impl Fn(&Value) -> bool {
    move |pod| pod["spec"]["nodeName"] == node
}

#[tokio::test]
async fn a_pod_with_a_new_claim_gets_node_volume_and_folder() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    cluster.claim("data-web-0").await;
    let owner = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "controller": true});
    let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web"}, "spec": {
        "serviceName": "web", "replicas": 0, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let set = cluster.create("StatefulSet", "default", set).await;
    cluster
        .pod("web-0", &["data-web-0"], |pod| {
            let mut owner = owner.clone();
            owner["uid"] = set["metadata"]["uid"].clone();
            pod["metadata"]["ownerReferences"] = json!([owner]);
        })
        .await;
    let pod = cluster.until("Pod", "default", "web-0", bound_to("n1")).await;
    let condition = &pod["status"]["conditions"][0];
    assert_eq!((&condition["type"], &condition["status"]), (&json!("PodScheduled"), &json!("True")));

    let claim = cluster.get("PersistentVolumeClaim", "default", "data-web-0").await.expect("there");
    assert_eq!(claim["status"]["phase"], "Bound");
    assert_eq!(claim["status"]["capacity"]["storage"], "1Gi");
    let name = format!("pvc-{}", claim["metadata"]["uid"].as_str().expect("a uid"));
    assert_eq!(claim["spec"]["volumeName"], name);
    let volume = cluster.until("PersistentVolume", "", &name, phase("Bound")).await;
    assert_eq!(volume["spec"]["local"]["path"], "/data/n1/default/web-0-data");
    assert_eq!(volume["spec"]["claimRef"]["uid"], claim["metadata"]["uid"]);
    assert_eq!(volume["spec"]["persistentVolumeReclaimPolicy"], "Delete");
    cluster.stop().await;
}

#[tokio::test]
async fn a_pod_without_a_place_is_told_why_and_goes_when_there_is_one() {
    let cluster = Cluster::start().await;
    cluster.pod("early", &[], |_| ()).await;
    let told = |words: &'static str| {
        move |pod: &Value| {
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().any(|c| {
                c["type"] == "PodScheduled" && c["reason"] == "Unschedulable" && c["message"].as_str() == Some(words)
            })
        }
    };
    cluster.until("Pod", "default", "early", told("no nodes available to schedule pods")).await;
    cluster.node("n1").await;
    cluster.until("Pod", "default", "early", bound_to("n1")).await;

    cluster.patch("Node", "", "n1", json!({"spec": {"unschedulable": true}})).await;
    cluster
        .until("Node", "", "n1", |node| node["spec"]["taints"][0]["key"] == "node.kubernetes.io/unschedulable")
        .await;
    cluster.pod("late", &["missing"], |_| ()).await;
    let words = "0/1 nodes are available: persistentvolumeclaim \"missing\" not found.";
    cluster.until("Pod", "default", "late", told(words)).await;
    cluster.claim("missing").await;
    cluster.until("Pod", "default", "late", told("0/1 nodes are available: 1 node(s) were unschedulable.")).await;
    cluster.patch("Node", "", "n1", json!({"spec": {"unschedulable": null}})).await;
    cluster.until("Pod", "default", "late", bound_to("n1")).await;
    cluster.stop().await;
}

#[tokio::test]
async fn pods_spread_and_follow_their_bound_volumes() {
    let cluster = Cluster::start().await;
    for node in ["n1", "n2"] {
        cluster.node(node).await;
    }
    cluster.claim("c").await;
    cluster.pod("first", &["c"], |_| ()).await;
    let first = cluster.until("Pod", "default", "first", |pod| pod["spec"]["nodeName"].is_string()).await;
    let home = first["spec"]["nodeName"].clone();
    for i in 0..5 {
        cluster.pod(&format!("p{i}"), &[], |_| ()).await;
        cluster.until("Pod", "default", &format!("p{i}"), |pod| pod["spec"]["nodeName"].is_string()).await;
    }
    let on = |pods: &[Value], node: &str| pods.iter().filter(|pod| pod["spec"]["nodeName"] == node).count();
    let pods = cluster.list("Pod", "default").await;
    assert_eq!((on(&pods, "n1"), on(&pods, "n2")), (3, 3));
    cluster.delete("Pod", "default", "first", DeleteParams::default().grace_period(0)).await;
    for i in 5..9 {
        let node = json!({"nodeName": home});
        cluster.pod(&format!("p{i}"), &[], |pod| pod["spec"]["nodeName"] = node["nodeName"].clone()).await;
    }
    cluster.pod("second", &["c"], |_| ()).await;
    let second = cluster.until("Pod", "default", "second", |pod| pod["spec"]["nodeName"].is_string()).await;
    assert_eq!(second["spec"]["nodeName"], home, "the volume is there, however many pods are");
    cluster.stop().await;
}

#[tokio::test]
async fn a_used_claim_stays_and_its_volume_goes_after_the_data() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    let claim = cluster.claim("c").await;
    cluster.pod("user", &["c"], |_| ()).await;
    cluster.until("Pod", "default", "user", bound_to("n1")).await;
    let volume = format!("pvc-{}", claim["metadata"]["uid"].as_str().expect("a uid"));
    cluster.until("PersistentVolume", "", &volume, phase("Bound")).await;

    cluster.delete("PersistentVolumeClaim", "default", "c", DeleteParams::default()).await;
    cluster.delete("PersistentVolume", "", &volume, DeleteParams::default()).await;
    // Another claim that goes all the way shows that the controller has been past this one.
    cluster.claim("passer").await;
    cluster.delete("PersistentVolumeClaim", "default", "passer", DeleteParams::default()).await;
    cluster.until_gone("PersistentVolumeClaim", "default", "passer").await;
    let claim = cluster.get("PersistentVolumeClaim", "default", "c").await.expect("it is used");
    assert!(claim["metadata"]["deletionTimestamp"].is_string());
    let held = cluster.get("PersistentVolume", "", &volume).await.expect("it is bound");
    assert_eq!(held["status"]["phase"], "Bound");

    cluster.delete("Pod", "default", "user", DeleteParams::default().grace_period(0)).await;
    cluster.until_gone("PersistentVolumeClaim", "default", "c").await;
    let only_data = |volume: &Value| volume["metadata"]["finalizers"] == json!(["statefuld.io/local-data"]);
    let released = cluster.until("PersistentVolume", "", &volume, only_data).await;
    assert_eq!(released["status"]["phase"], "Released");
    assert!(released["metadata"]["deletionTimestamp"].is_string());
    cluster.patch("PersistentVolume", "", &volume, json!({"metadata": {"finalizers": []}})).await;
    cluster.until_gone("PersistentVolume", "", &volume).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_retained_volume_keeps_its_folder_from_the_next_claim_of_that_name() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    let volume_of = |claim: &Value| format!("pvc-{}", claim["metadata"]["uid"].as_str().expect("a uid"));
    let first = volume_of(&cluster.claim("c").await);
    cluster.pod("one", &["c"], |_| ()).await;
    cluster.until("PersistentVolume", "", &first, phase("Bound")).await;
    cluster.patch("PersistentVolume", "", &first, json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}})).await;
    cluster.delete("Pod", "default", "one", DeleteParams::default().grace_period(0)).await;
    cluster.delete("PersistentVolumeClaim", "default", "c", DeleteParams::default()).await;
    let released = cluster.until("PersistentVolume", "", &first, phase("Released")).await;
    assert!(released["metadata"]["deletionTimestamp"].is_null());
    cluster.until_gone("PersistentVolumeClaim", "default", "c").await;

    let second = volume_of(&cluster.claim("c").await);
    cluster.pod("two", &["c"], |_| ()).await;
    let second = cluster.until("PersistentVolume", "", &second, phase("Bound")).await;
    assert_ne!(second["spec"]["local"]["path"], released["spec"]["local"]["path"]);
    cluster.stop().await;
}

#[tokio::test]
async fn a_claim_of_a_class_that_is_not_there_waits_for_it() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    let spec = json!({"storageClassName": "later", "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}});
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"}, "spec": spec});
    cluster.create("PersistentVolumeClaim", "default", claim).await;
    let told = async {
        loop {
            let events = cluster.list("Event", "default").await;
            if events.iter().any(|e| e["message"] == "storageclass.storage.k8s.io \"later\" not found") {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(support::PATIENCE, told).await.expect("an event tells");
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "later"},
        "provisioner": "statefuld.io/local", "volumeBindingMode": "Immediate"});
    cluster.create("StorageClass", "", class).await;
    cluster.until("PersistentVolumeClaim", "default", "c", phase("Bound")).await;
    cluster.stop().await;
}
