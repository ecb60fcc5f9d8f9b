//! Pods find nodes, claims find volumes; what is no longer used goes, what is used stays.

use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::support::{Cluster, PATIENCE};

fn phase(phase: &'static str) -> impl Fn(&Value) -> bool {
    move |object| object["status"]["phase"] == phase
}

fn bound_to(node: &'static str) -> impl Fn(&Value) -> bool {
    move |pod| pod["spec"]["nodeName"] == node
}

/// Its condition PodScheduled says so, at least to begin with.
fn told(words: &'static str) -> impl Fn(&Value) -> bool {
    move |pod| {
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let says = |c: &Value| c["message"].as_str().is_some_and(|message| message.starts_with(words));
        conditions.iter().any(|c| c["type"] == "PodScheduled" && c["reason"] == "Unschedulable" && says(c))
    }
}

/// Requires to be apart from pods of the same label on the same machine.
fn apart(pod: &mut Value) {
    pod["metadata"]["labels"] = json!({"app": "web"});
    pod["spec"]["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}});
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
    tokio::time::timeout(PATIENCE, told).await.expect("an event tells");
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "later"},
        "provisioner": "statefuld.io/local", "volumeBindingMode": "Immediate"});
    cluster.create("StorageClass", "", class).await;
    cluster.until("PersistentVolumeClaim", "default", "c", phase("Bound")).await;
    cluster.stop().await;
}

#[tokio::test]
async fn pods_that_must_be_apart_wait_for_a_node_of_their_own_also_while_volumes_are_made() {
    let cluster = Cluster::start().await;
    for node in ["n1", "n2"] {
        cluster.node(node).await;
    }
    // All at once, each with a volume that ties it to the node that was chosen first.
    for i in 0..3 {
        cluster.claim(&format!("c{i}")).await;
    }
    for i in 0..3 {
        cluster.pod(&format!("web-{i}"), &[&format!("c{i}")], apart).await;
    }
    let waits = "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules. preemption: 0/2 nodes are \
                 available: 2 No preemption victims found for incoming pod.";
    let placed = |pods: &[Value]| pods.iter().filter(|pod| pod["spec"]["nodeName"].is_string()).count();
    let settled = async {
        loop {
            let pods = cluster.list("Pod", "default").await;
            if placed(&pods) == 2 && pods.iter().any(told(waits)) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.expect("two are placed, and one waits");
    cluster.node("n3").await;
    for i in 0..3 {
        cluster.until("Pod", "default", &format!("web-{i}"), |pod| pod["spec"]["nodeName"].is_string()).await;
    }
    let homes: std::collections::BTreeSet<String> =
        cluster.list("Pod", "default").await.iter().map(|pod| pod["spec"]["nodeName"].to_string()).collect();
    assert_eq!(homes.len(), 3);
    cluster.stop().await;
}

#[tokio::test]
async fn a_gated_pod_says_so_and_goes_when_its_gates_do() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    cluster.pod("gated", &[], |pod| pod["spec"]["schedulingGates"] = json!([{"name": "example.com/wait"}])).await;
    let gated = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated")
    };
    cluster.until("Pod", "default", "gated", gated).await;
    cluster.patch("Pod", "default", "gated", json!({"spec": {"schedulingGates": []}})).await;
    cluster.until("Pod", "default", "gated", bound_to("n1")).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_more_important_pod_takes_the_place_of_a_less_important_one() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    let room = json!({"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {"pods": "9", "cpu": "2"}});
    cluster.patch_status("Node", "", "n1", room).await;
    let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "high"},
        "value": 1000});
    cluster.create("PriorityClass", "", class).await;
    let asks = |pod: &mut Value| pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "2"}});
    cluster
        .pod("low", &[], |pod| {
            asks(pod);
            pod["metadata"]["finalizers"] = json!(["example.com/look"]);
        })
        .await;
    cluster.until("Pod", "default", "low", bound_to("n1")).await;
    cluster
        .pod("high", &[], |pod| {
            asks(pod);
            pod["spec"]["priorityClassName"] = json!("high");
        })
        .await;
    let leaving = |pod: &Value| pod["metadata"]["deletionTimestamp"].is_string();
    let victim = cluster.until("Pod", "default", "low", leaving).await;
    let conditions = victim["status"]["conditions"].as_array().expect("conditions");
    let target = conditions.iter().find(|c| c["type"] == "DisruptionTarget").expect("it was told");
    assert_eq!((&target["status"], &target["reason"]), (&json!("True"), &json!("PreemptionByScheduler")));
    cluster.until("Pod", "default", "high", |pod| pod["status"]["nominatedNodeName"] == "n1").await;
    cluster.patch("Pod", "default", "low", json!({"metadata": {"finalizers": []}})).await;
    cluster.until("Pod", "default", "high", bound_to("n1")).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_claim_that_waits_is_given_a_volume_made_by_hand_where_its_pod_fits() {
    let cluster = Cluster::start().await;
    for node in ["n1", "n2"] {
        cluster.node(node).await;
    }
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "by-hand"},
        "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"});
    cluster.create("StorageClass", "", class).await;
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"}, "spec": {
        "storageClassName": "by-hand", "accessModes": ["ReadWriteOnce"], "selector": {"matchLabels": {"disk": "ssd"}},
        "resources": {"requests": {"storage": "1Gi"}}}});
    cluster.create("PersistentVolumeClaim", "default", claim).await;
    cluster.pod("user", &["c"], |_| ()).await;
    let waits = "0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind.";
    cluster.until("Pod", "default", "user", told(waits)).await;
    let volume = |name: &str, disk: &str, host: &str| {
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name, "labels": {"disk": disk}},
            "spec": {"capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "by-hand",
                "local": {"path": "/disks/1"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}]}}}})
    };
    cluster.create("PersistentVolume", "", volume("slow", "hdd", "n1")).await;
    cluster.create("PersistentVolume", "", volume("fast", "ssd", "n2")).await;
    cluster.until("Pod", "default", "user", bound_to("n2")).await;
    let claim = cluster.get("PersistentVolumeClaim", "default", "c").await.expect("there");
    assert_eq!((&claim["spec"]["volumeName"], &claim["status"]["phase"]), (&json!("fast"), &json!("Bound")));
    cluster.stop().await;
}

#[tokio::test]
async fn pods_leave_a_node_whose_taints_they_do_not_bear() {
    let (ambient, clock) = ambient::Ambient::manual("2026-01-02T03:04:05Z".parse().expect("a time"), 1);
    let cluster = Cluster::start_with(ambient).await;
    cluster.node("n1").await;
    let bears = |seconds: Value| {
        move |pod: &mut Value| {
            pod["metadata"]["finalizers"] = json!(["example.com/look"]);
            pod["spec"]["tolerations"] = json!([{"key": "gone", "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": seconds}]);
        }
    };
    cluster.pod("at-once", &[], |pod| pod["metadata"]["finalizers"] = json!(["example.com/look"])).await;
    cluster.pod("later", &[], bears(json!(3600))).await;
    cluster.pod("never", &[], bears(Value::Null)).await;
    for pod in ["at-once", "later", "never"] {
        cluster.until("Pod", "default", pod, bound_to("n1")).await;
    }
    let taint = json!([{"key": "gone", "effect": "NoExecute"}]);
    cluster.patch("Node", "", "n1", json!({"spec": {"taints": taint}})).await;
    let leaving = |pod: &Value| pod["metadata"]["deletionTimestamp"].is_string();
    let gone = cluster.until("Pod", "default", "at-once", leaving).await;
    let conditions = gone["status"]["conditions"].as_array().expect("conditions");
    assert!(conditions.iter().any(|c| c["reason"] == "DeletionByTaintManager"), "{conditions:?}");
    assert!(!leaving(&cluster.get("Pod", "default", "later").await.expect("there")));
    clock.advance(std::time::Duration::from_secs(3601));
    // The clock stands still otherwise: a change wakes the controller.
    cluster.patch("Pod", "default", "later", json!({"metadata": {"labels": {"wake": "up"}}})).await;
    cluster.until("Pod", "default", "later", leaving).await;
    assert!(!leaving(&cluster.get("Pod", "default", "never").await.expect("there")));
    cluster.stop().await;
}
