//! What pods ask of a node while they run: files that follow their sources, hooks, limits, order.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{ConfigMap, Event, PodStatus, Secret, Service};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::harness::{Cluster, end_program, is_ready, run_of, until};

const WAIT: &str = "trap 'exit 0' TERM; while :; do sleep 0.05; done";

/// A container that runs a script.
fn container(name: &str, text: &str) -> Value {
    json!({"name": name, "image": "any", "command": ["/bin/sh", "-c", text]})
}

/// A pod of such containers on the machine's root.
fn pod(containers: &[Value]) -> Value {
    json!({"runtimeClassName": "host", "terminationGracePeriodSeconds": 5, "containers": containers})
}

async fn make<K>(cluster: &Cluster, object: Value)
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Serialize
        + std::fmt::Debug,
    K::DynamicType: Default,
{
    let api: Api<K> = Api::default_namespaced(cluster.admin());
    let object = serde_json::from_value(object).expect("an object");
    api.create(&PostParams::default(), &object).await.expect("made");
}

/// Waits for events of a pod with these reasons.
async fn told(cluster: &Cluster, pod: &str, reasons: &[&str]) {
    let events: Api<Event> = Api::default_namespaced(cluster.admin());
    until(&format!("{pod} has events {reasons:?}"), || async {
        let list = events.list(&ListParams::default().fields(&format!("involvedObject.name={pod}"))).await.ok()?;
        let has = |reason: &&str| list.items.iter().any(|e| e.reason.as_deref() == Some(*reason));
        reasons.iter().all(has).then_some(())
    })
    .await;
}

/// The folder of a pod's own volume.
async fn volume(cluster: &Cluster, pod: &str, name: &str) -> PathBuf {
    let uid = cluster.pods().get(pod).await.expect("there").metadata.uid.expect("a uid");
    cluster.config.pod_dir(&uid).join("volumes").join(name)
}

async fn holds(what: &str, path: PathBuf, text: &str) {
    let same = || async { (std::fs::read_to_string(&path).ok()? == text).then_some(()) };
    until(&format!("{what} is {text:?}"), same).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_files_of_a_running_pod_follow_their_sources_also_after_its_agent_was_away() {
    let mut cluster = Cluster::start().await;
    make::<ConfigMap>(&cluster, json!({"metadata": {"name": "conf"}, "data": {"a": "1", "b": "1"}})).await;
    make::<Secret>(&cluster, json!({"metadata": {"name": "pass"}, "stringData": {"word": "old"}})).await;
    let mut spec = pod(&[container("c", WAIT)]);
    spec["volumes"] = json!([{"name": "map", "configMap": {"name": "conf"}},
        {"name": "all", "projected": {"sources": [{"secret": {"name": "pass"}},
            {"downwardAPI": {"items": [{"path": "tier", "fieldRef": {"fieldPath": "metadata.labels['tier']"}}]}}]}},
        {"name": "maybe", "secret": {"secretName": "late", "optional": true}}]);
    cluster.run("web-0", spec).await;
    cluster.ready("web-0").await;
    let (map, all) = (volume(&cluster, "web-0", "map").await, volume(&cluster, "web-0", "all").await);
    let shown = std::fs::read_link(map.join("..data")).expect("a link");
    let maps: Api<ConfigMap> = Api::default_namespaced(cluster.admin());
    let change = |data: Value| Patch::Merge(json!({"data": data}));
    maps.patch("conf", &PatchParams::default(), &change(json!({"a": "2", "b": null}))).await.expect("changed");
    holds("the map's file", map.join("a"), "2").await;
    assert!(!map.join("b").exists(), "all files change in one step");
    assert_ne!(std::fs::read_link(map.join("..data")).expect("a link"), shown);
    let label = Patch::Merge(json!({"metadata": {"labels": {"tier": "db"}}}));
    cluster.pods().patch("web-0", &PatchParams::default(), &label).await.expect("labelled");
    holds("the pod's own file", all.join("tier"), "db").await;
    make::<Secret>(&cluster, json!({"metadata": {"name": "late"}, "stringData": {"k": "v"}})).await;
    holds("a secret that came late", volume(&cluster, "web-0", "maybe").await.join("k"), "v").await;
    cluster.end_agent().await;
    let secrets: Api<Secret> = Api::default_namespaced(cluster.admin());
    let fresh = Patch::Merge(json!({"stringData": {"word": "new"}}));
    secrets.patch("pass", &PatchParams::default(), &fresh).await.expect("changed");
    cluster.start_agent();
    holds("the secret's file", all.join("word"), "new").await;
    cluster.end().await;
}

fn failed_with(reason: &'static str) -> impl Fn(&PodStatus) -> bool {
    move |status| status.phase.as_deref() == Some("Failed") && status.reason.as_deref() == Some(reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_pod_that_breaks_its_limits_is_ended_for_good_and_says_why() {
    let cluster = Cluster::start().await;
    let text = format!("head -c 3000000 /dev/zero >/scratch/big; {WAIT}");
    let mut greedy = container("c", &text);
    greedy["volumeMounts"] = json!([{"name": "scratch", "mountPath": "/scratch"}]);
    let mut greedy = pod(&[greedy]);
    greedy["volumes"] = json!([{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}}]);
    cluster.run("greedy", greedy).await;
    let mut late = pod(&[container("c", WAIT)]);
    late["activeDeadlineSeconds"] = json!(1);
    cluster.run("late", late).await;
    let over = cluster.status("greedy", "evicted", failed_with("Evicted")).await;
    assert_eq!(over.message.as_deref(), Some("Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Mi\". "));
    told(&cluster, "greedy", &["Evicted", "Killing"]).await;
    cluster.status("late", "over", failed_with("DeadlineExceeded")).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_hooks_that_fail_are_told_of_and_last_words_and_services_are_there() {
    let cluster = Cluster::start().await;
    make::<Service>(&cluster, json!({"metadata": {"name": "data-base"}, "spec": {"ports": [{"port": 5432}]}})).await;
    let mut begins = container("c", WAIT);
    begins["lifecycle"] = json!({"postStart": {"exec": {"command": ["false"]}}});
    cluster.run("begins", pod(&[begins])).await;
    let mut ends = container("c", WAIT);
    ends["lifecycle"] = json!({"preStop": {"exec": {"command": ["/no/such/program"]}}});
    cluster.run("ends", pod(&[ends])).await;
    // Both containers of a pod have the same shared memory.
    let words = "until test -e /dev/shm/there; do sleep 0.05; done; test -n \"$DATA_BASE_SERVICE_HOST\" && \
                 echo $DATA_BASE_PORT_5432_TCP_PORT $(df -k --output=size /dev/shm | tail -n 1) >/dev/termination-log";
    let mut says = pod(&[container("c", words), container("other", "touch /dev/shm/there")]);
    says["restartPolicy"] = json!("Never");
    cluster.run("says", says).await;
    cluster.ready("ends").await;
    cluster.delete("ends").await;
    told(&cluster, "ends", &["FailedPreStopHook", "Killing"]).await;
    told(&cluster, "begins", &["FailedPostStartHook", "Killing", "BackOff"]).await;
    let over = cluster.status("says", "over", |s| s.phase.as_deref() == Some("Succeeded")).await;
    let end = over.container_statuses.expect("statuses")[0].state.clone().and_then(|s| s.terminated);
    assert_eq!(end.and_then(|t| t.message).as_deref(), Some("5432 65536\n"));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_containers_wait_for_a_sidecars_startup_probe_also_if_the_agent_changes_meanwhile() {
    let mut cluster = Cluster::start().await;
    let flag = tempfile::tempdir_in("/tmp").expect("a folder");
    let mut sidecar = container("sidecar", WAIT);
    sidecar["restartPolicy"] = json!("Always");
    sidecar["startupProbe"] =
        json!({"exec": {"command": ["test", "-e", "/flag/go"]}, "periodSeconds": 1, "failureThreshold": 600});
    sidecar["volumeMounts"] = json!([{"name": "flag", "mountPath": "/flag"}]);
    let mut spec = pod(&[container("c", WAIT)]);
    spec["initContainers"] = json!([sidecar]);
    spec["volumes"] = json!([{"name": "flag", "hostPath": {"path": flag.path(), "type": "Directory"}}]);
    cluster.run("web-0", spec).await;
    let sidecar_runs = |s: &PodStatus| {
        let init = s.init_container_statuses.as_ref().and_then(|s| s.first());
        init.and_then(|s| s.state.as_ref()).is_some_and(|s| s.running.is_some())
    };
    let waiting = cluster.status("web-0", "waiting for its sidecar", sidecar_runs).await;
    assert!(!is_ready(&waiting));
    let main = waiting.container_statuses.expect("statuses")[0].state.clone().and_then(|s| s.waiting);
    assert_eq!(main.and_then(|w| w.reason).as_deref(), Some("PodInitializing"));
    cluster.end_agent().await;
    std::fs::write(flag.path().join("go"), "").expect("written");
    cluster.start_agent();
    cluster.ready("web-0").await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_variables_come_from_a_file_that_another_container_wrote_and_are_read_anew_at_each_start() {
    let cluster = Cluster::start().await;
    let write = "printf \"# for the others\\nWORD='two words'\\n\" > /shared/env";
    let check = "test \"$WORD\" = 'two words' && test \"$1\" = 'got two words' && test -z \"${NONE+x}\" && exec sleep 100000; \
                 test \"$WORD\" = again && exec sleep 100000; while :; do sleep 1; done";
    let mut spec = pod(&[container("c", check)]);
    let file = |key: &str, optional: bool| json!({"fileKeyRef": {"volumeName": "shared", "path": "env", "key": key, "optional": optional}});
    spec["containers"][0]["env"] = json!([{"name": "WORD", "valueFrom": file("WORD", false)},
        {"name": "NONE", "valueFrom": file("NONE", true)}]);
    spec["containers"][0]["args"] = json!(["c", "got $(WORD)"]);
    spec["containers"][0]["readinessProbe"] = json!({"exec": {"command": ["/bin/sh", "-c",
        "test $(cat /proc/1/comm) = sleep"]}, "periodSeconds": 1});
    let mut init = container("init", write);
    init["volumeMounts"] = json!([{"name": "shared", "mountPath": "/shared"}]);
    spec["initContainers"] = json!([init]);
    spec["volumes"] = json!([{"name": "shared", "emptyDir": {}}]);
    cluster.run("web-0", spec.clone()).await;
    let status = cluster.ready("web-0").await;
    let run = run_of(&status);
    std::fs::write(volume(&cluster, "web-0", "shared").await.join("env"), "WORD='again'\n").expect("written");
    end_program(&cluster, "web-0").await;
    cluster.status("web-0", "ready with the new value", |s| is_ready(s) && run_of(s) != run).await;

    spec["containers"][0]["env"] = json!([{"name": "WORD", "valueFrom": file("MISSING", false)}]);
    cluster.run("web-1", spec).await;
    let why = "couldn't find key MISSING in file env of volume shared";
    let held = |s: &PodStatus| {
        let first = s.container_statuses.iter().flatten().next().and_then(|c| c.state.clone()?.waiting);
        first.is_some_and(|w| {
            w.reason.as_deref() == Some("CreateContainerConfigError") && w.message.as_deref() == Some(why)
        })
    };
    cluster.status("web-1", "held", held).await;
    std::fs::write(volume(&cluster, "web-1", "shared").await.join("env"), "MISSING='again'\n").expect("written");
    cluster.ready("web-1").await;
    for name in ["web-0", "web-1"] {
        cluster.delete(name).await;
    }
    cluster.end().await;
}
