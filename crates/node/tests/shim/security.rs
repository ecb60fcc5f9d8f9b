//! What containers may do, what they share, and what they may use.

use std::fs;

use statefuld_node::container::seccomp::Profile;
use statefuld_node::shim::spec::{ContainerSpec, Limits, Seccomp, Sharing, User};
use statefuld_node::shim::{Shim, launch};

use crate::harness::*;

async fn idle(container: ContainerSpec) -> (TestPod, Shim) {
    let mut pod = TestPod::new(vec![container]);
    let shim = pod.run().await;
    running(&shim).await;
    (pod, shim)
}

const SLEEP: &str = "exec sleep 100000";

/// The line of a container's first process that begins so.
async fn status(shim: &Shim, key: &str) -> String {
    prints(shim, "a", &format!("sed -n 's/^{key}:\t//p' /proc/self/status")).await
}

#[tokio::test]
async fn system_calls_are_filtered_unless_a_container_is_unconfined() {
    let (_pod, shim) = idle(script("a", SLEEP)).await;
    assert_eq!(prints(&shim, "a", "grep ^Seccomp: /proc/1/status /proc/self/status | cut -f2").await, "2\n2");
    // The kernel would let anybody make a user namespace.
    let refused = sh(&shim, "a", "unshare --user true").await;
    assert!(String::from_utf8_lossy(&refused.output).contains("not permitted"), "{refused:?}");
    let (_pod, shim) = idle(ContainerSpec { seccomp: Seccomp::Unconfined, ..script("a", SLEEP) }).await;
    assert_eq!(status(&shim, "Seccomp").await, "0");
    prints(&shim, "a", "unshare --user true").await;
}

#[tokio::test]
async fn a_profile_of_ones_own_holds_for_everything_that_runs_in_the_container() {
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}"#;
    let seccomp = Seccomp::Profile { profile: Box::new(Profile::parse(text).unwrap()) };
    let mut pod = TestPod::new(vec![ContainerSpec { seccomp, ..script("a", "mkdir /tmp/x; exec sleep 100000") }]);
    let shim = pod.run().await;
    running(&shim).await;
    eventually("it complains", || pod.printed("a", 0).iter().any(|l| l.contains("not supported"))).await;
    let tried = sh(&shim, "a", "mkdir /tmp/x").await;
    assert!(String::from_utf8_lossy(&tried.output).contains("not supported"), "{tried:?}");
    prints(&shim, "a", "touch /tmp/x").await;
}

#[tokio::test]
async fn a_filter_costs_a_user_nothing_and_leaves_it_nothing() {
    for no_new_privileges in [false, true] {
        let user = User { uid: 1234, gid: 2345, groups: vec![] };
        let (_pod, shim) = idle(ContainerSpec { user, no_new_privileges, ..script("a", SLEEP) }).await;
        assert_eq!(status(&shim, "Seccomp").await, "2");
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(status(&shim, set).await, "0000000000000000", "{set}");
        }
        assert_eq!(status(&shim, "NoNewPrivs").await, if no_new_privileges { "1" } else { "0" });
    }
}

#[tokio::test]
async fn a_privileged_container_has_what_the_machine_has() {
    let container = ContainerSpec { privileged: true, seccomp: Seccomp::Unconfined, ..script("a", SLEEP) };
    let (_pod, shim) = idle(container).await;
    let machine = fs::read_to_string("/proc/self/status").unwrap();
    let bounding = machine.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
    assert_eq!(status(&shim, "CapEff").await, bounding);
    // A device of the machine's, with its numbers, that can be opened.
    let kmsg = fs::exists("/dev/kmsg").unwrap();
    if kmsg {
        assert_eq!(prints(&shim, "a", "stat -c %t:%T /dev/kmsg").await, "1:b");
        prints(&shim, "a", "exec 3</dev/kmsg").await;
    }
    prints(&shim, "a", "mkdir /tmp/m && mount -t tmpfs x /tmp/m && test -w /proc/sys/net/ipv4/ip_forward").await;
}

#[tokio::test]
async fn nothing_of_proc_is_hidden_where_that_is_asked_for() {
    let covered = "awk '$5 ~ \"^/proc/\"' /proc/self/mountinfo | wc -l";
    let (_pod, shim) = idle(ContainerSpec { unmasked_proc: true, ..script("a", SLEEP) }).await;
    assert_eq!(prints(&shim, "a", covered).await, "0");
    let (_pod, shim) = idle(script("a", SLEEP)).await;
    assert_ne!(prints(&shim, "a", covered).await, "0");
    assert_ne!(sh(&shim, "a", "head -c 1 /proc/kcore | grep -q .").await.exit.code, 0);
}

#[tokio::test]
async fn containers_that_share_processes_see_each_other_and_none_ends_the_others() {
    let mut pod = TestPod::new(vec![
        script("a", SLEEP),
        script("b", "setsid sleep 4321 & until test -e /tmp/end; do sleep 0.01; done"),
    ]);
    pod.spec.sharing = Sharing { pod_pid: true, ..Sharing::default() };
    let shim = pod.run().await;
    running(&shim).await;
    let seen = "for p in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$p; echo; done 2>/dev/null";
    eventually_prints(&shim, seen, "sleep 4321").await;
    // Nobody's process is first, and leads nowhere.
    let first = "grep -E '^(Uid|CapBnd)' /proc/1/status | cut -f2";
    assert_eq!(prints(&shim, "a", first).await, "65535\n0000000000000000");
    assert_ne!(sh(&shim, "a", "ls /proc/1/root/").await.exit.code, 0);
    prints(&shim, "b", "touch /tmp/end").await;
    wait_for(&shim, |s| matches!(s.containers[1].state, statefuld_node::shim::state::Status::Terminated(_))).await;
    let left = pod.cgroup().container("b");
    eventually("what it left is gone", || left.processes().unwrap().is_empty()).await;
    assert!(shim.state().await.unwrap().containers[0].state.is_running());
}

async fn eventually_prints(shim: &Shim, script: &str, part: &str) {
    let polling = async {
        while !prints(shim, "a", script).await.contains(part) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    within(polling).await;
}

#[tokio::test]
async fn the_machines_processes_and_queues_are_shared_where_asked_for() {
    let mut pod = TestPod::new(vec![script("a", "setsid sleep 100000 & exec sleep 100000")]);
    pod.spec.sharing = Sharing { host_pid: true, host_ipc: true, pod_pid: false };
    let shim = pod.run().await;
    running(&shim).await;
    let shim_of = format!("cat /proc/{}/comm", pod.shim_pid);
    assert_eq!(prints(&shim, "a", &shim_of).await, "shim:web-0");
    let ours = fs::read_link("/proc/self/ns/ipc").unwrap();
    assert_eq!(prints(&shim, "a", "readlink /proc/self/ns/ipc").await, ours.to_str().unwrap());
    shim.stop(std::time::Duration::ZERO).await.unwrap();
    wait_for(&shim, |s| s.phase == statefuld_node::shim::state::Phase::Finished).await;
    let left = pod.cgroup().containers();
    eventually("all of it is gone", || left.processes().unwrap().is_empty()).await;
}

#[tokio::test]
async fn kernel_settings_are_the_pods_own() {
    let mut pod = TestPod::new(vec![script("a", SLEEP)]);
    let wanted = [("net.ipv4.ip_local_port_range", "20000 30000"), ("kernel.msgmax", "4321")];
    pod.spec.sysctls = wanted.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let shim = pod.run().await;
    running(&shim).await;
    let read = "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/msgmax | tr '\\t' ' '";
    assert_eq!(prints(&shim, "a", read).await, "20000 30000\n4321");
    assert_ne!(fs::read_to_string("/proc/sys/kernel/msgmax").unwrap().trim(), "4321");
}

#[tokio::test]
async fn a_setting_of_the_whole_machine_is_never_touched() {
    let before = fs::read_to_string("/proc/sys/vm/swappiness").unwrap();
    let mut pod = TestPod::new(vec![script("a", SLEEP)]);
    pod.spec.sysctls = vec![("vm.swappiness".to_owned(), "1".to_owned())];
    pod.spec.write(&pod.pod_dir()).unwrap();
    let error = launch(&pod.pod_dir(), exe()).await.unwrap_err().to_string();
    assert!(error.contains("setting sysctl vm.swappiness"), "{error}");
    assert_eq!(fs::read_to_string("/proc/sys/vm/swappiness").unwrap(), before);
}

const LIMIT: &str = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";

#[tokio::test]
async fn limits_can_be_seen_and_changed_while_the_container_runs() {
    let of = |mib: u64| Limits { memory_bytes: Some(mib << 20), ..Limits::default() };
    let mut pod = TestPod::new(vec![ContainerSpec { limits: of(64), ..script("a", SLEEP) }]);
    pod.spec.limits = of(64);
    let shim = pod.run().await;
    let before = running(&shim).await;
    let seen = async || prints(&shim, "a", LIMIT).await.parse::<u64>().unwrap() >> 20;
    assert_eq!(seen().await, 64);
    let write = "echo 1 > /sys/fs/cgroup/memory/cgroup.procs || echo 1 > /sys/fs/cgroup/cgroup.procs";
    assert_ne!(sh(&shim, "a", write).await.exit.code, 0);
    for mib in [128, 32] {
        shim.resize("a", &of(mib), &of(mib)).await.unwrap();
        assert_eq!(seen().await, mib);
    }
    prints(&shim, "a", "head -c 20000000 /dev/zero > /dev/shm/x").await;
    let refused = shim.resize("a", &of(4), &of(4)).await.unwrap_err().to_string();
    assert!(refused.contains("is not enforced"), "{refused}");
    assert_eq!(seen().await, 32);
    assert_eq!(shim.state().await.unwrap().containers[0].state, before.containers[0].state);
}
