//! Endpoints follow pods, dependents follow owners, content follows its namespace, nodes fall silent.

use std::time::Duration;

use ambient::Ambient;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use statefuld_controllers::Term;
use statefuld_controllers::informer::{Informer, parse};
use tokio::sync::mpsc;

use crate::support::{Cluster, PATIENCE};

async fn slice(cluster: &Cluster, is: impl Fn(&Value) -> bool) -> Value {
    let wait = async {
        loop {
            if let Some(found) = cluster.list("EndpointSlice", "default").await.into_iter().find(&is) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(found) => found,
        Err(_) => panic!("{:#?}", cluster.list("EndpointSlice", "default").await),
    }
}

fn ready(addresses: &[&str]) -> impl Fn(&Value) -> bool {
    let wanted: Vec<String> = addresses.iter().map(|a| (*a).to_owned()).collect();
    move |slice| {
        let endpoints = slice["endpoints"].as_array().cloned().unwrap_or_default();
        let ready = endpoints.iter().filter(|e| e["conditions"]["ready"] == true);
        ready.map(|e| e["addresses"][0].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>() == wanted
    }
}

#[tokio::test]
async fn endpoints_follow_readiness_and_go_with_their_service() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {
        "clusterIP": "None", "selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "web"}]}});
    cluster.create("Service", "default", service).await;
    slice(&cluster, |slice| slice["endpoints"].as_array().is_none_or(Vec::is_empty)).await;
    for (name, ip) in [("web-0", "10.1.0.1"), ("web-1", "10.1.0.2")] {
        cluster
            .pod(name, &[], |pod| {
                pod["metadata"]["labels"] = json!({"app": "web"});
                pod["spec"]["hostname"] = json!(name);
                pod["spec"]["subdomain"] = json!("web");
            })
            .await;
        cluster.until("Pod", "default", name, |pod| pod["spec"]["nodeName"] == "n1").await;
        let conditions = json!([{"type": "Ready", "status": "True"}]);
        let status = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": conditions});
        cluster.patch_status("Pod", "default", name, status).await;
    }
    let found = slice(&cluster, ready(&["10.1.0.1", "10.1.0.2"])).await;
    assert_eq!(found["endpoints"][1]["hostname"], "web-1");
    assert_eq!(found["ports"][0]["port"], 8080);
    let both = |e: &Value| e["subsets"][0]["addresses"].as_array().is_some_and(|a| a.len() == 2);
    cluster.until("Endpoints", "default", "web", both).await;

    let status = json!({"conditions": [{"type": "Ready", "status": "False"}]});
    cluster.patch_status("Pod", "default", "web-0", status).await;
    slice(&cluster, ready(&["10.1.0.2"])).await;
    let apart = |e: &Value| e["subsets"][0]["notReadyAddresses"][0]["ip"] == "10.1.0.1";
    let endpoints = cluster.until("Endpoints", "default", "web", apart).await;

    // A change of no consequence writes nothing: the next event on the slice is of the one that has some.
    let before = slice(&cluster, ready(&["10.1.0.2"])).await;
    cluster.patch("Pod", "default", "web-1", json!({"metadata": {"annotations": {"touched": "yes"}}})).await;
    cluster.delete("Pod", "default", "web-0", DeleteParams::default().grace_period(0)).await;
    let since = before["metadata"]["resourceVersion"].as_str().expect("a revision");
    let slices = cluster.api("EndpointSlice", "default");
    let mut events = slices.watch(&Default::default(), since).await.expect("a watch").boxed();
    let event = tokio::time::timeout(PATIENCE, events.try_next()).await.expect("an event");
    let Ok(Some(kube::api::WatchEvent::Modified(after))) = event else { panic!("{event:?}") };
    let after = serde_json::to_value(after).expect("JSON");
    assert_eq!(after["endpoints"].as_array().map(Vec::len), Some(1));
    assert_eq!(after["metadata"]["name"], found["metadata"]["name"], "the same slice, updated");

    cluster.delete("Service", "default", "web", DeleteParams::default()).await;
    cluster.until_gone("EndpointSlice", "default", after["metadata"]["name"].as_str().expect("a name")).await;
    cluster.until_gone("Endpoints", "default", endpoints["metadata"]["name"].as_str().expect("a name")).await;
    cluster.stop().await;
}

fn config(name: &str, owners: &[&Value]) -> Value {
    let owner = |owner: &&Value| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"], "blockOwnerDeletion": true})
    };
    let owners: Vec<_> = owners.iter().map(owner).collect();
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "ownerReferences": owners}})
}

#[tokio::test]
async fn dependents_go_when_the_last_owner_has_gone() {
    let cluster = Cluster::start().await;
    let one = cluster.create("ConfigMap", "default", config("one", &[])).await;
    let two = cluster.create("ConfigMap", "default", config("two", &[])).await;
    let both = cluster.create("ConfigMap", "default", config("both", &[&one, &two])).await;
    cluster.create("ConfigMap", "default", config("grandchild", &[&both])).await;
    cluster.create("ConfigMap", "default", config("only", &[&one])).await;
    cluster.delete("ConfigMap", "default", "one", DeleteParams::background()).await;
    cluster.until_gone("ConfigMap", "default", "only").await;
    let kept = cluster
        .until("ConfigMap", "default", "both", |c| {
            c["metadata"]["ownerReferences"].as_array().is_some_and(|o| o.len() == 1)
        })
        .await;
    assert_eq!(kept["metadata"]["ownerReferences"][0]["name"], "two");
    cluster.delete("ConfigMap", "default", "two", DeleteParams::background()).await;
    cluster.until_gone("ConfigMap", "default", "both").await;
    cluster.until_gone("ConfigMap", "default", "grandchild").await;
    cluster.stop().await;
}

#[tokio::test]
async fn an_owner_of_the_same_name_and_another_uid_is_no_owner() {
    let cluster = Cluster::start().await;
    let mut old = cluster.create("ConfigMap", "default", config("owner", &[])).await;
    old["metadata"]["uid"] = json!("00000000-0000-4000-8000-000000000000");
    cluster.create("ConfigMap", "default", config("stray", &[&old])).await;
    cluster.until_gone("ConfigMap", "default", "stray").await;
    assert!(cluster.get("ConfigMap", "default", "owner").await.is_some());
    cluster.stop().await;
}

#[tokio::test]
async fn in_the_foreground_the_owner_goes_last() {
    let cluster = Cluster::start().await;
    let owner = cluster.create("ConfigMap", "default", config("owner", &[])).await;
    let mut held = config("held", &[&owner]);
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.create("ConfigMap", "default", held).await;
    cluster.delete("ConfigMap", "default", "owner", DeleteParams::foreground()).await;
    cluster.until("ConfigMap", "default", "held", |c| c["metadata"]["deletionTimestamp"].is_string()).await;
    let waiting = cluster.get("ConfigMap", "default", "owner").await.expect("its dependent is held");
    assert_eq!(waiting["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    cluster.patch("ConfigMap", "default", "held", json!({"metadata": {"finalizers": null}})).await;
    cluster.until_gone("ConfigMap", "default", "held").await;
    cluster.until_gone("ConfigMap", "default", "owner").await;
    cluster.stop().await;
}

#[tokio::test]
async fn orphans_stay_and_forget_their_owner() {
    let cluster = Cluster::start().await;
    let owner = cluster.create("ConfigMap", "default", config("owner", &[])).await;
    cluster.create("ConfigMap", "default", config("orphan", &[&owner])).await;
    cluster.create("ConfigMap", "default", config("witness", &[&owner])).await;
    cluster.delete("ConfigMap", "default", "owner", DeleteParams::orphan()).await;
    cluster.until_gone("ConfigMap", "default", "owner").await;
    for name in ["orphan", "witness"] {
        let free = cluster.get("ConfigMap", "default", name).await.expect("it stays");
        assert!(free["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty));
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_namespace_goes_with_all_its_content() {
    let cluster = Cluster::start().await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "doomed"}});
    cluster.create("Namespace", "", namespace.clone()).await;
    let mut held = config("held", &[]);
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.create("ConfigMap", "doomed", held).await;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}});
    cluster.create("Secret", "doomed", secret).await;
    cluster.delete("Namespace", "", "doomed", DeleteParams::default()).await;
    cluster.until_gone("Secret", "doomed", "s").await;
    let going = cluster.get("Namespace", "", "doomed").await.expect("its content is held");
    assert_eq!(going["status"]["phase"], "Terminating");
    cluster.patch("ConfigMap", "doomed", "held", json!({"metadata": {"finalizers": null}})).await;
    cluster.until_gone("Namespace", "", "doomed").await;

    cluster.create("Namespace", "", namespace).await;
    cluster.until("ServiceAccount", "doomed", "default", |_| true).await;
    // The namespace is a new one: what the former held does not come back with its name.
    let maps = cluster.list("ConfigMap", "doomed").await;
    assert!(maps.iter().all(|map| map["metadata"]["name"] == "kube-root-ca.crt"), "{maps:?}");
    cluster.stop().await;
}

#[tokio::test]
async fn the_default_account_is_made_again() {
    let cluster = Cluster::start().await;
    let first = cluster.until("ServiceAccount", "default", "default", |_| true).await;
    cluster.delete("ServiceAccount", "default", "default", DeleteParams::default()).await;
    cluster.until("ServiceAccount", "default", "default", |a| a["metadata"]["uid"] != first["metadata"]["uid"]).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_node_that_falls_silent_is_unknown_and_tainted_until_it_speaks() {
    let (ambient, clock) = Ambient::manual(jiff::Timestamp::UNIX_EPOCH, 1);
    let cluster = Cluster::start_with(ambient).await;
    cluster.node("n1").await;
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "n1"},
        "spec": {"holderIdentity": "n1", "leaseDurationSeconds": 40}});
    cluster.create("Lease", "kube-node-lease", lease).await;
    // A taint that the controller keeps shows that it has seen the node.
    cluster.patch("Node", "", "n1", json!({"spec": {"unschedulable": true}})).await;
    let tainted = |key: &'static str| {
        move |node: &Value| node["spec"]["taints"].as_array().is_some_and(|t| t.iter().any(|t| t["key"] == key))
    };
    cluster.until("Node", "", "n1", tainted("node.kubernetes.io/unschedulable")).await;
    // Each round is longer than the lease; the first may begin before the controller has seen the lease at all.
    let unreachable = tainted("node.kubernetes.io/unreachable");
    let silent = async {
        for round in 0.. {
            clock.advance(Duration::from_secs(60));
            cluster.patch("Node", "", "n1", json!({"metadata": {"labels": {"round": round.to_string()}}})).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            if let Some(node) = cluster.get("Node", "", "n1").await.filter(&unreachable) {
                return node;
            }
        }
        unreachable!("the rounds do not end")
    };
    let silent = tokio::time::timeout(PATIENCE, silent).await.expect("it becomes unknown");
    cluster.patch("Node", "", "n1", json!({"spec": {"unschedulable": null}})).await;
    assert_eq!(silent["status"]["conditions"][0]["status"], "Unknown");
    assert_eq!(silent["status"]["conditions"][0]["reason"], "NodeStatusUnknown");

    cluster
        .patch("Lease", "kube-node-lease", "n1", json!({"spec": {"renewTime": "2030-01-01T00:00:00.000000Z"}}))
        .await;
    cluster.patch_status("Node", "", "n1", json!({"conditions": [{"type": "Ready", "status": "True"}]})).await;
    cluster.until("Node", "", "n1", |node| node["spec"]["taints"].as_array().is_none_or(Vec::is_empty)).await;
    cluster.stop().await;
}

#[tokio::test]
async fn who_hears_of_a_change_finds_that_the_copy_has_reached_it() {
    let cluster = Cluster::start().await;
    let (term, ambient) = (Term::new(), Ambient::system());
    let maps = Api::<ConfigMap>::namespaced(cluster.client.clone(), "default");
    let copy = Informer::builder(maps.clone(), Some).start(&term, &ambient);
    assert!(copy.synced().await);
    let (behind, mut heard) = mpsc::unbounded_channel();
    let told = copy.clone();
    copy.on_change(move |_, new| {
        let Some(new) = new.filter(|map| map.name_any().starts_with("told-")) else { return };
        let _ = behind.send(told.revision() < Some(parse(&new.resource_version().unwrap_or_default())));
    });
    for n in 0..5 {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("told-{n}")}});
        cluster.create("ConfigMap", "default", map).await;
        assert!(!heard.recv().await.expect("it is told"), "change {n} is told before the copy says that it has it");
    }
    term.end();
}
