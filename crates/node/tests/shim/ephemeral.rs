//! Containers that are added to a pod that runs.

use std::time::Duration;

use statefuld_node::shim::spec::{ContainerSpec, Role};
use statefuld_node::shim::state::Phase;

use crate::harness::*;

fn added(name: &str, text: &str, target: Option<&str>) -> ContainerSpec {
    ContainerSpec { role: Role::Ephemeral, target: target.map(str::to_owned), ..script(name, text) }
}

#[tokio::test]
async fn it_sees_the_processes_of_its_target_and_its_own_root() {
    let mut pod = TestPod::new(vec![script("a", "touch /tmp/of-a; exec sleep 54321")]);
    let shim = pod.run().await;
    running(&shim).await;
    shim.add(added("d", "exec sleep 100000", Some("a"))).await.unwrap();
    wait_for(&shim, |s| s.container("d").is_some_and(|c| c.state.is_running())).await;
    assert_eq!(prints(&shim, "d", "tr '\\0' ' ' < /proc/1/cmdline").await, "sleep 54321");
    assert_eq!(prints(&shim, "d", "ls /proc/1/root/tmp; ls /tmp").await, "of-a");
    assert!(shim.add(added("a", "true", None)).await.is_err(), "the name is taken");
    shim.add(added("d", "something else", None)).await.unwrap();
}

#[tokio::test]
async fn it_runs_once_and_ends_nothing() {
    let mut pod = TestPod::new(vec![script("a", "exec sleep 100000")]);
    let shim = pod.run().await;
    running(&shim).await;
    shim.add(added("alone", "ls -d /proc/[0-9]* | head -1; exit 3", None)).await.unwrap();
    // What it leaves in its target's pid namespace is ended with it.
    shim.add(added("beside", "setsid sleep 65432 & exit 4", Some("a"))).await.unwrap();
    let state =
        wait_for(&shim, |s| s.containers.len() == 3 && s.containers[1..].iter().all(|c| c.last_termination.is_some()))
            .await;
    assert_eq!((ended(&state.containers[1]).exit_code, ended(&state.containers[2]).exit_code), (3, 4));
    assert_eq!((state.phase, state.containers[1].restart_count), (Phase::Running, 0));
    assert_eq!(pod.printed("alone", 0), ["/proc/1"]);
    let left = "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f; echo; done | grep -c 'sleep 6543[2]' || true";
    let gone = async { while prints(&shim, "a", left).await != "0" {} };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("it is ended, too");
}

#[tokio::test]
async fn the_pod_ends_without_waiting_for_it() {
    // Restart policy Never: the end of a is the pod's.
    let mut pod = TestPod::new(vec![script("a", "until [ -e /tmp/end ]; do sleep 0.05; done")]);
    pod.spec.grace_ms = 100;
    let shim = pod.run().await;
    running(&shim).await;
    shim.add(added("d", "trap '' TERM; exec sleep 100000", None)).await.unwrap();
    wait_for(&shim, |s| s.container("d").is_some_and(|c| c.state.is_running())).await;
    prints(&shim, "a", "touch /tmp/end").await;
    let state = wait_for(&shim, |s| s.phase == Phase::Finished).await;
    assert_eq!(ended(state.container("d").unwrap()).exit_code, 137);
    assert!(shim.add(added("e", "true", None)).await.is_err());
}
