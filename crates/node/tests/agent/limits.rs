//! Pods that may not run here, use more than they may, or are given another share.

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::harness::{Cluster, run_of};

const SLEEP: &str = "trap 'exit 0' TERM; while :; do sleep 0.05; done";

/// A pod on the machine's root that runs a script, with more said of it.
fn script(text: &str, more: &Value) -> Value {
    let mut spec = json!({"runtimeClassName": "host", "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": "any", "command": ["/bin/sh", "-c", text]}]});
    spec.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
    spec
}

async fn fails(cluster: &Cluster, name: &str, reason: &str, message: &str) {
    let over = cluster.status(name, "over", |s| s.phase.as_deref() == Some("Failed")).await;
    assert_eq!((over.reason.as_deref(), over.message.as_deref()), (Some(reason), Some(message)));
    cluster.delete(name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_what_may_not_run_or_uses_too_much_has_failed_with_the_reason() {
    let cluster = Cluster::start().await;
    let sysctls = json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}});
    cluster.run("forbidden", script(SLEEP, &sysctls)).await;
    let scratch = json!({"volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}}]});
    let mut writes = script(&format!("head -c 3000000 /dev/zero > /scratch/x; {SLEEP}"), &scratch);
    writes["containers"][0]["volumeMounts"] = json!([{"name": "scratch", "mountPath": "/scratch"}]);
    cluster.run("writes", writes).await;
    cluster.run("late", script(SLEEP, &json!({"activeDeadlineSeconds": 1}))).await;
    cluster.run("elsewhere", script(SLEEP, &json!({"nodeSelector": {"kubernetes.io/hostname": "node-b"}}))).await;
    let mut large = script(SLEEP, &json!({}));
    large["containers"][0]["resources"] = json!({"requests": {"cpu": "10k"}});
    cluster.run("large", large).await;
    let machine = std::thread::available_parallelism().expect("processors").get() * 1000;
    let sentence = format!(
        "Pod was rejected: Node didn't have enough resource: cpu, requested: 10000000, used: 0, capacity: {machine}"
    );
    fails(&cluster, "large", "OutOfcpu", &sentence).await;
    let sentence = "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
    fails(&cluster, "elsewhere", "NodeAffinity", sentence).await;
    let sentence = "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted";
    fails(&cluster, "forbidden", "SysctlForbidden", sentence).await;
    let sentence = "Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Mi\". ";
    fails(&cluster, "writes", "Evicted", sentence).await;
    let sentence = "Pod was active on the node longer than the specified deadline";
    fails(&cluster, "late", "DeadlineExceeded", sentence).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_resources_change_in_place_or_by_a_restart_and_what_cannot_be_says_why() {
    let cluster = Cluster::start().await;
    let mut spec = script(SLEEP, &json!({}));
    spec["containers"][0]["resources"] = json!({"limits": {"cpu": "200m", "memory": "64Mi"}});
    spec["containers"][0]["resizePolicy"] = json!([
        {"resourceName": "cpu", "restartPolicy": "NotRequired"},
        {"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    cluster.run("grows", spec).await;
    let before = cluster.ready("grows").await;
    let resize = async |resources: Value| {
        let patch = json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
        let params = PatchParams::default();
        let done = cluster.pods().patch_subresource("resize", "grows", &params, &Patch::Strategic(patch)).await;
        done.expect("accepted");
    };
    let given = |s: &k8s_openapi::api::core::v1::PodStatus| {
        let status = serde_json::to_value(s).expect("a status");
        status["containerStatuses"][0]["resources"]["limits"].clone()
    };
    let condition = |s: &k8s_openapi::api::core::v1::PodStatus, kind: &str| {
        s.conditions.iter().flatten().find(|c| c.type_ == kind).and_then(|c| c.reason.clone())
    };

    resize(json!({"limits": {"cpu": "300m"}, "requests": {"cpu": "300m"}})).await;
    let changed = cluster.status("grows", "resized", |s| given(s)["cpu"] == "300m").await;
    assert_eq!(run_of(&changed), run_of(&before), "nothing started again");

    resize(json!({"limits": {"memory": "96Mi"}, "requests": {"memory": "96Mi"}})).await;
    let restarted = |s: &k8s_openapi::api::core::v1::PodStatus| {
        let first = &s.container_statuses.as_ref().expect("statuses")[0];
        given(s)["memory"] == "96Mi" && first.restart_count == 1 && first.ready
    };
    cluster.status("grows", "restarted with more memory", restarted).await;

    resize(json!({"limits": {"cpu": "10k"}, "requests": {"cpu": "10k"}})).await;
    let pending = |s: &k8s_openapi::api::core::v1::PodStatus| condition(s, "PodResizePending").is_some();
    let waits = cluster.status("grows", "refused", pending).await;
    assert_eq!(condition(&waits, "PodResizePending").as_deref(), Some("Infeasible"));
    assert_eq!(given(&waits)["cpu"], "300m");
    resize(json!({"limits": {"cpu": "300m"}, "requests": {"cpu": "300m"}})).await;
    cluster.status("grows", "as it was", |s| !pending(s)).await;
    cluster.delete("grows").await;
    cluster.end().await;
}
