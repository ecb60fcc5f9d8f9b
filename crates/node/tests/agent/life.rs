//! Pods from seen to gone, and through the ends of agent and shim.

use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Event, PersistentVolume, PersistentVolumeClaim, PodStatus};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use nodeconn::{Frame, NodeHandler, Stream, StreamRequest, Target};
use serde_json::{Value, json};
use statefuld_node::agent;
use statefuld_node::agent::handler::Handler;

use crate::harness::{Cluster, is_ready, run_of, shim_pids, until};

/// A pod on the machine's root that runs a script.
fn script(text: &str) -> Value {
    json!({"runtimeClassName": "host", "terminationGracePeriodSeconds": 5,
        "containers": [{"name": "c", "image": "any", "command": ["/bin/sh", "-c", text]}]})
}

const SLEEP: &str = "trap 'exit 0' TERM; while :; do sleep 0.05; done";

fn sample() -> Value {
    json!({"terminationGracePeriodSeconds": 5, "containers": [{
        "name": "c", "image": "statefuld.local/sample",
        "args": ["--listen", "0.0.0.0:8080", "--data", "/data"],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        "volumes": [{"name": "data", "emptyDir": {}}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_pod_becomes_ready_answers_on_its_address_and_leaves_nothing() {
    let cluster = Cluster::start().await;
    let pod = cluster.run("web-0", sample()).await;
    let uid = pod.metadata.uid.expect("a uid");
    let status = cluster.ready("web-0").await;
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let ip = status.pod_ip.expect("an address");
    tokio::net::TcpStream::connect(format!("{ip}:8080")).await.expect("reachable from the machine");
    let told = |s: &PodStatus| s.container_statuses.iter().flatten().any(|c| c.image_id.contains("@sha256:"));
    cluster.status("web-0", "the image's digest is told", told).await;
    cluster.delete("web-0").await;
    assert!(!cluster.config.pod_dir(&uid).exists());
    assert!(shim_pids(&cluster.config, &uid).is_empty());
    let again = cluster.run("web-0", sample()).await;
    assert_ne!(again.metadata.uid.as_deref(), Some(uid.as_str()));
    assert_eq!(cluster.ready("web-0").await.pod_ip, Some(ip), "the address belongs to the name");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_new_agent_finds_the_pod_as_it_is() {
    let mut cluster = Cluster::start().await;
    cluster.run("web-0", script(SLEEP)).await;
    let before = cluster.ready("web-0").await;
    cluster.end_agent().await;
    cluster.start_agent();
    let logs = "the log of the second agent's work";
    cluster.run("web-1", script(SLEEP)).await;
    cluster.ready("web-1").await;
    let after = cluster.ready("web-0").await;
    assert_eq!(run_of(&after), run_of(&before), "{logs}");
    assert_eq!(after.conditions, before.conditions, "readiness did not flicker");
    cluster.delete("web-0").await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_what_ended_while_the_agent_was_away_is_reported() {
    let mut cluster = Cluster::start().await;
    let mut spec = script("while [ ! -e /stop/now ]; do sleep 0.05; done; exit 7");
    spec["restartPolicy"] = json!("Never");
    let flag = tempfile::tempdir_in("/tmp").expect("a folder");
    spec["volumes"] = json!([{"name": "stop", "hostPath": {"path": flag.path()}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "stop", "mountPath": "/stop"}]);
    cluster.run("job", spec).await;
    cluster.ready("job").await;
    cluster.end_agent().await;
    std::fs::write(flag.path().join("now"), "").expect("written");
    cluster.start_agent();
    let over = cluster.status("job", "over", |s| s.phase.as_deref() == Some("Failed")).await;
    let state = over.container_statuses.expect("statuses")[0].state.clone();
    assert_eq!(state.and_then(|s| s.terminated).map(|t| t.exit_code), Some(7));
    cluster.delete("job").await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_lost_shim_means_a_new_sandbox_in_place() {
    let cluster = Cluster::start().await;
    let text = format!("echo incarnation=$STATEFULD_INCARNATION; {SLEEP}");
    let pod = cluster.run("web-0", script(&text)).await;
    let uid = pod.metadata.uid.expect("a uid");
    let before = cluster.ready("web-0").await;
    for pid in shim_pids(&cluster.config, &uid) {
        let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    }
    let changed = |s: &_| is_ready(s) && run_of(s) != run_of(&before);
    let after = cluster.status("web-0", "restarted", changed).await;
    assert_eq!(after.pod_ip, before.pod_ip);
    let first = &after.container_statuses.as_ref().expect("statuses")[0];
    assert_eq!(first.restart_count, 1);
    // Ready says that the container runs, not that it has said something yet.
    until("the second run speaks", async || {
        (log(&cluster, "web-0", &uid, false).await == "incarnation=2\n").then_some(())
    })
    .await;
    assert_eq!(log(&cluster, "web-0", &uid, true).await, "incarnation=1\n");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_stopped_node_restarts_its_pods_in_place() {
    let mut cluster = Cluster::start().await;
    let first = cluster.run("web-0", script(SLEEP)).await;
    cluster.run("web-1", script(SLEEP)).await;
    let before = cluster.ready("web-0").await;
    cluster.ready("web-1").await;
    agent::stop_pods(&cluster.config, None, &ambient::Ambient::system()).await.expect("stopped");
    cluster.status("web-0", "unready", |s| !is_ready(s)).await;
    cluster.end_agent().await;
    assert!(shim_pids(&cluster.config, first.metadata.uid.as_deref().expect("a uid")).is_empty());
    cluster.start_agent();
    let after = cluster.ready("web-0").await;
    cluster.ready("web-1").await;
    let now = cluster.pods().get("web-0").await.expect("there");
    assert_eq!(now.metadata.uid, first.metadata.uid, "the object stayed");
    assert_eq!(after.pod_ip, before.pod_ip);
    assert_ne!(run_of(&after), run_of(&before));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_pod_removed_by_force_is_cleared_away_and_its_name_released() {
    let mut cluster = Cluster::start().await;
    let pod = cluster.run("web-0", script(SLEEP)).await;
    let uid = pod.metadata.uid.expect("a uid");
    cluster.ready("web-0").await;
    cluster.end_agent().await;
    let force = DeleteParams::default().grace_period(0);
    cluster.pods().delete("web-0", &force).await.expect("removed");
    cluster.gone("web-0").await;
    assert!(!shim_pids(&cluster.config, &uid).is_empty(), "nobody stopped it yet");
    cluster.start_agent();
    until("the old pod is cleared away", || async { cluster.uids().is_empty().then_some(()) }).await;
    assert!(shim_pids(&cluster.config, &uid).is_empty());
    // Binding is refused for as long as the old uid holds the name.
    until("the name is free", || async { (!is_held(&cluster, "web-0").await).then_some(()) }).await;
    cluster.run("web-0", script(SLEEP)).await;
    cluster.ready("web-0").await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_pod_leaves_although_its_last_status_cannot_be_written() {
    let cluster = Cluster::start().await;
    cluster.run("web-0", script(SLEEP)).await;
    cluster.ready("web-0").await;
    cluster.mute.store(true, std::sync::atomic::Ordering::SeqCst);
    cluster.delete("web-0").await;
    assert!(cluster.uids().is_empty());
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_names_that_nobody_would_report_are_given_back() {
    let mut cluster = Cluster::start().await;
    cluster.end_agent().await;
    // One that this node never saw, and one whose folder was made and nothing more.
    cluster.run("web-0", script(SLEEP)).await;
    let seen = cluster.run("web-1", script(SLEEP)).await.metadata.uid.expect("a uid");
    std::fs::create_dir_all(cluster.config.pod_dir(&seen)).expect("a folder");
    let force = DeleteParams::default().grace_period(0);
    for name in ["web-0", "web-1"] {
        cluster.pods().delete(name, &force).await.expect("removed");
        cluster.gone(name).await;
    }
    cluster.run("web-2", script(SLEEP)).await;
    cluster.start_agent();
    for name in ["web-0", "web-1"] {
        until("the name is free", || async { (!is_held(&cluster, name).await).then_some(()) }).await;
    }
    until("its folder is gone", || async { (!cluster.config.pod_dir(&seen).exists()).then_some(()) }).await;
    cluster.ready("web-2").await;
    assert!(is_held(&cluster, "web-2").await, "a living pod keeps its name");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_failed_liveness_probe_restarts_the_container() {
    let cluster = Cluster::start().await;
    let mut spec = script(&format!("touch /tmp/alive; {SLEEP}"));
    spec["terminationGracePeriodSeconds"] = json!(1);
    spec["containers"][0]["livenessProbe"] = json!({
        "exec": {"command": ["/bin/sh", "-c", "test $STATEFULD_INCARNATION -gt 1"]},
        "periodSeconds": 1, "failureThreshold": 1});
    cluster.run("web-0", spec).await;
    let restarted = |s: &k8s_openapi::api::core::v1::PodStatus| {
        s.container_statuses.as_ref().is_some_and(|c| c[0].restart_count == 1 && c[0].ready)
    };
    cluster.status("web-0", "restarted", restarted).await;
    let events: Api<Event> = Api::default_namespaced(cluster.admin());
    until("the events are there", || async {
        let list = events.list(&ListParams::default()).await.expect("a list of events");
        let has = |reason: &str| list.items.iter().any(|e| e.reason.as_deref() == Some(reason));
        (has("Unhealthy") && has("Killing") && has("Started")).then_some(())
    })
    .await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_claim_keeps_its_data_from_pod_to_pod_and_is_reclaimed() {
    let cluster = Cluster::start().await;
    let folder = cluster.config.volumes_dir().join("default/web-0-data");
    bind_claim(&cluster, &folder).await;
    let mut spec = script(&format!("hostname >> /data/log; {SLEEP}"));
    spec["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data-web-0"}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    spec["containers"][0]["readinessProbe"] = json!({"exec": {"command": ["test", "-s", "/data/log"]}});
    cluster.run("web-0", spec.clone()).await;
    cluster.ready("web-0").await;
    cluster.delete("web-0").await;
    cluster.run("web-0", spec).await;
    cluster.ready("web-0").await;
    let log = until("both wrote", || async {
        let text = std::fs::read_to_string(folder.join("log")).ok()?;
        (text.lines().count() == 2).then_some(text)
    });
    assert_eq!(log.await, "web-0\nweb-0\n");
    cluster.delete("web-0").await;
    let volumes: Api<PersistentVolume> = Api::all(cluster.admin());
    let released = json!({"status": {"phase": "Released"}});
    volumes.patch_status("pv-0", &PatchParams::default(), &Patch::Merge(released)).await.expect("released");
    until("the data is gone", || async { (!folder.exists()).then_some(()) }).await;
    until("the finalizer is gone", || async {
        let volume = volumes.get("pv-0").await.ok()?;
        let finalizers = volume.metadata.finalizers.unwrap_or_default();
        (!finalizers.iter().any(|f| f == "statefuld.io/local-data")).then_some(())
    })
    .await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_pod_that_cannot_start_says_why_and_starts_when_it_can() {
    let cluster = Cluster::start().await;
    let mut spec = script(SLEEP);
    spec["containers"][0]["env"] =
        json!([{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "a"}}}]);
    cluster.run("web-0", spec).await;
    let waiting = |s: &k8s_openapi::api::core::v1::PodStatus| {
        let first = s.container_statuses.as_ref().and_then(|c| c.first()).and_then(|c| c.state.clone());
        let waiting = first.and_then(|s| s.waiting);
        waiting.is_some_and(|w| {
            w.reason.as_deref() == Some("CreateContainerConfigError")
                && w.message.as_deref() == Some("configmap \"late\" not found")
        })
    };
    cluster.status("web-0", "waiting", waiting).await;
    let maps: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::default_namespaced(cluster.admin());
    let map = serde_json::from_value(json!({"metadata": {"name": "late"}, "data": {"a": "1"}})).expect("a map");
    maps.create(&PostParams::default(), &map).await.expect("made");
    cluster.ready("web-0").await;
    cluster.end().await;
}

/// Whether a pod of that name is said to be on some node.
async fn is_held(cluster: &Cluster, name: &str) -> bool {
    let path = format!("/apis/statefuld.io/v1/namespaces/default/holders/{name}");
    let request = http::Request::get(path).body(Vec::new()).expect("a request");
    let held: Result<Value, kube::Error> = cluster.admin().request(request).await;
    !matches!(held, Err(kube::Error::Api(status)) if status.code == 404)
}

/// A claim and its volume, bound to each other as the volumes controller does it.
async fn bind_claim(cluster: &Cluster, folder: &Path) {
    let claims: Api<PersistentVolumeClaim> = Api::default_namespaced(cluster.admin());
    let size = json!({"requests": {"storage": "1Mi"}});
    let claim = json!({"metadata": {"name": "data-web-0"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": size, "volumeName": "pv-0", "storageClassName": "local"}});
    let claim = serde_json::from_value(claim).expect("a claim");
    let claim = claims.create(&PostParams::default(), &claim).await.expect("made");
    let term = json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-a"]}]});
    let volume = json!({"metadata": {"name": "pv-0", "finalizers": ["statefuld.io/local-data"]}, "spec": {
        "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Mi"}, "local": {"path": folder},
        "persistentVolumeReclaimPolicy": "Delete", "storageClassName": "local",
        "claimRef": {"namespace": "default", "name": "data-web-0", "uid": claim.metadata.uid},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}}}});
    let volumes: Api<PersistentVolume> = Api::all(cluster.admin());
    let volume = serde_json::from_value(volume).expect("a volume");
    volumes.create(&PostParams::default(), &volume).await.expect("made");
    let bound = Patch::Merge(json!({"status": {"phase": "Bound"}}));
    volumes.patch_status("pv-0", &PatchParams::default(), &bound).await.expect("bound");
    claims.patch_status("data-web-0", &PatchParams::default(), &bound).await.expect("bound");
}

/// The log of a container, as the API server asks for it.
async fn log(cluster: &Cluster, pod: &str, uid: &str, previous: bool) -> String {
    let target = Target { namespace: "default".into(), pod: pod.into(), uid: uid.into(), container: "c".into() };
    let request = StreamRequest::Log {
        target,
        follow: false,
        previous,
        timestamps: false,
        since_time: None,
        tail_lines: None,
        limit_bytes: None,
    };
    let (tx, mut out) = tokio::sync::mpsc::channel(8);
    let (_close, rx) = tokio::sync::mpsc::channel(1);
    let handler = Handler::new(cluster.config.clone(), Arc::default(), ambient::Ambient::system());
    let serving = tokio::spawn(async move { handler.handle(request, Stream { tx, rx }).await });
    let mut text = Vec::new();
    while let Some(frame) = out.recv().await {
        if let Frame::Stdout(bytes) = frame {
            text.extend_from_slice(&bytes);
        }
    }
    serving.await.expect("no panic").expect("a log");
    String::from_utf8(text).expect("text")
}
