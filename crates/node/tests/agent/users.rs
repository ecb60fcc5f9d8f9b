//! Pods with users of their own (`hostUsers: false`): each its range, from seen to gone.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use statefuld_node::shim::spec::{ShimSpec, UserRange};
use statefuld_node::shim::state::{PodState, Status};

use crate::harness::{Cluster, run_of, until};

/// It runs and is ready when it is what it should be: root by its own count, reading and writing what it is given.
fn spec(host_path: &Path) -> Value {
    let text = "umask 022; echo of-root > /own/root; echo of-root > /memory/root; echo of-root > /machine/root
        trap 'exit 0' TERM; while :; do sleep 0.05; done";
    let ready = "test $(id -u) = 0 && test $(cat /own/root) = of-root && test $(stat -c %u:%g /own/root) = 0:4711 &&
        test $(stat -L -c %u:%g:%a /token/token) = 0:4711:640 && test $(stat -c %u /machine/theirs) = 999";
    let app = "umask 077; echo of-app > /own/app; trap 'exit 0' TERM; while :; do sleep 0.05; done";
    let mounts = json!([{"name": "own", "mountPath": "/own"}, {"name": "memory", "mountPath": "/memory"},
        {"name": "token", "mountPath": "/token"}, {"name": "machine", "mountPath": "/machine"}]);
    let container = |name: &str, text: &str, user: u32| {
        json!({"name": name, "image": "any", "command": ["/bin/sh", "-c", text], "volumeMounts": mounts,
            "securityContext": {"runAsUser": user}})
    };
    let mut first = container("c", text, 0);
    first["readinessProbe"] = json!({"exec": {"command": ["/bin/sh", "-c", ready]}, "periodSeconds": 1});
    let token = json!({"serviceAccountToken": {"path": "token"}});
    json!({"runtimeClassName": "host", "hostUsers": false, "terminationGracePeriodSeconds": 5,
        "securityContext": {"fsGroup": 4711}, "containers": [first, container("app", app, 999)],
        "volumes": [{"name": "own", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}},
            {"name": "token", "projected": {"sources": [token]}},
            {"name": "machine", "hostPath": {"path": host_path}}]})
}

fn uid_of(pod: &Pod) -> String {
    pod.metadata.uid.clone().expect("a uid")
}

fn users_of(cluster: &Cluster, uid: &str) -> UserRange {
    ShimSpec::read(&cluster.config.pod_dir(uid)).expect("a specification").users.expect("users of its own")
}

fn claim_of(range: UserRange) -> PathBuf {
    Path::new("/run/statefuld/users").join(range.first.to_string())
}

/// Who a container's process is on the machine.
fn user_of(cluster: &Cluster, uid: &str, container: &str) -> u32 {
    let state = PodState::read(&cluster.config.pod_dir(uid)).expect("read").expect("a state");
    let Some(Status::Running { pid, .. }) = state.container(container).map(|c| c.state.clone()) else {
        panic!("{container} does not run: {state:?}")
    };
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("read");
    let line = text.lines().find_map(|line| line.strip_prefix("Uid:\t")).expect("a line");
    line.split('\t').next().and_then(|word| word.parse().ok()).expect("a user")
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_pods_have_their_own_users_keep_them_and_give_them_back() {
    let mut cluster = Cluster::start().await;
    let machine = tempfile::tempdir_in("/tmp").expect("a folder");
    fs::write(machine.path().join("theirs"), "").expect("written");
    std::os::unix::fs::chown(machine.path().join("theirs"), Some(999), Some(999)).expect("given");
    let names = ["web-0", "web-1"];
    let mut pods = Vec::new();
    for name in names {
        pods.push(uid_of(&cluster.run(name, spec(machine.path())).await));
    }
    let mut runs = Vec::new();
    for name in names {
        runs.push(run_of(&cluster.ready(name).await));
    }
    let ranges: Vec<UserRange> = pods.iter().map(|uid| users_of(&cluster, uid)).collect();
    assert!(ranges[0].first.abs_diff(ranges[1].first) >= 65_536, "{ranges:?}");
    for (uid, range) in pods.iter().zip(&ranges) {
        assert_eq!(user_of(&cluster, uid, "c"), range.first);
        assert_eq!(user_of(&cluster, uid, "app"), range.first + 999);
        let file = |name: &str| {
            let meta = fs::metadata(cluster.config.pod_dir(uid).join("volumes/own").join(name)).expect("there");
            (meta.uid(), meta.gid())
        };
        assert_eq!(file("root"), (0, 4711), "on disk by the numbers that it has in the pod");
        until("the other has written", || async { (file("app") == (999, 4711)).then_some(()) }).await;
        let owner = fs::read_to_string(claim_of(*range)).expect("claimed");
        assert_eq!(owner, cluster.config.data_dir.display().to_string());
    }
    assert_eq!(fs::metadata(machine.path().join("root")).expect("there").uid(), 0);

    cluster.end_agent().await;
    cluster.start_agent();
    cluster.node_is_ready().await;
    let third = uid_of(&cluster.run("web-2", spec(machine.path())).await);
    cluster.ready("web-2").await;
    let of_third = users_of(&cluster, &third);
    assert!(ranges.iter().all(|range| range.first != of_third.first), "{of_third:?}");
    for ((name, uid), (run, range)) in names.iter().zip(&pods).zip(runs.iter().zip(&ranges)) {
        assert_eq!(run_of(&cluster.ready(name).await), *run, "it runs on");
        assert_eq!(users_of(&cluster, uid), *range);
    }
    for name in ["web-0", "web-1", "web-2"] {
        cluster.delete(name).await;
    }
    let record = fs::read_to_string(cluster.config.node_dir().join("users")).expect("a record");
    assert!(pods.iter().all(|uid| !record.contains(uid)), "{record}");
    assert!(ranges.iter().all(|range| !claim_of(*range).exists()), "nobody claims them");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_volume_that_cannot_be_mapped_keeps_the_pod_waiting_with_the_path() {
    let cluster = Cluster::start().await;
    cluster.run("web-0", spec(Path::new("/proc/sys"))).await;
    let held = cluster.status("web-0", "held", |s| {
        let first = s.container_statuses.iter().flatten().next().and_then(|c| c.state.clone()).and_then(|s| s.waiting);
        let words = first.and_then(|w| w.message).unwrap_or_default();
        words.contains("hostUsers: false: /proc/sys cannot be shown to the pod's users")
    });
    held.await;
    cluster.delete("web-0").await;
    cluster.end().await;
}
