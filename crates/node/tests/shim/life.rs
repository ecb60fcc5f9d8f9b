//! Starting, restarting and ending of containers.

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use statefuld_node::shim::client::ClientError;
use statefuld_node::shim::spec::{BackOff, ContainerSpec, Hook, Limits, RestartPolicy, Role};
use statefuld_node::shim::state::{Phase, PodState, Status};
use statefuld_node::shim::{Shim, cleanup, launch};

use crate::harness::*;

const FAST: BackOff = BackOff { initial_ms: 1, max_ms: 2, reset_after_ms: 600_000 };

#[tokio::test]
async fn a_container_runs_to_its_end_and_its_exit_code_is_told() {
    let mut pod = TestPod::new(vec![script("a", "echo hello; echo oops >&2; exit 3")]);
    let state = pod.run_to_end().await;
    let end = ended(&state.containers[0]);
    assert_eq!((end.exit_code, end.signal, end.reason.as_str()), (3, None, "Error"), "{end:?}");
    let mut printed = pod.printed("a", 0);
    printed.sort();
    assert_eq!(printed, ["hello", "oops"]);
    assert_eq!(PodState::read(&pod.pod_dir()).unwrap(), Some(state));
}

#[tokio::test]
async fn nothing_starts_before_start() {
    let mut pod = TestPod::new(vec![script("a", "exit 0")]);
    let shim = pod.launch().await;
    let state = shim.state().await.unwrap();
    assert_eq!(state.phase, Phase::Created);
    assert_eq!(state.shim_pid, pod.shim_pid);
    assert!(matches!(state.containers[0].state, Status::Waiting { .. }));
    // It is nobody's child here, in a session and a cgroup of its own.
    let (parent, session) = parent_and_session(pod.shim_pid);
    assert_ne!(parent, std::process::id().cast_signed());
    // Session 0 is one whose leader lives outside of this pid namespace: ours may be, the shim's own is not.
    assert_ne!(session, 0);
    assert_ne!(session, parent_and_session(std::process::id().cast_signed()).1);
    let group = pod.cgroup().shim().processes().unwrap();
    assert!(group.contains(&pod.shim_pid) && !group.contains(&std::process::id().cast_signed()), "{group:?}");
    assert!(matches!(shim.acknowledge().await, Err(ClientError::Refused(_))));
    shim.start().await.unwrap();
    wait_for(&shim, |s| s.phase == Phase::Finished).await;
}

/// The parent and the session of a process, as the kernel lists them (`proc_pid_stat(5)`, fields 4 and 6).
fn parent_and_session(pid: i32) -> (i32, i32) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let mut fields = stat.rsplit(") ").next().unwrap().split(' ').skip(1).map(|field| field.parse().unwrap());
    let (parent, _group, session) = (fields.next().unwrap(), fields.next(), fields.next().unwrap());
    (parent, session)
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_a_start_error() {
    let argv = vec!["/no/such/program".to_owned()];
    let mut pod = TestPod::new(vec![ContainerSpec { argv, ..script("a", "") }]);
    let state = pod.run_to_end().await;
    let end = ended(&state.containers[0]);
    assert_eq!((end.exit_code, end.reason.as_str()), (128, "StartError"));
    assert!(end.message.contains("/no/such/program"), "{end:?}");
}

#[tokio::test]
async fn a_crashing_container_is_restarted_in_place_with_counts_and_incarnations() {
    let mut pod = TestPod::new(vec![script("a", "echo $STATEFULD_INCARNATION $STATEFULD_EPOCH; exit 1")]);
    pod.spec.restart_policy = RestartPolicy::Always;
    pod.spec.back_off = FAST;
    let shim = pod.run().await;
    let state = wait_for(&shim, |s| s.containers[0].restart_count >= 3).await;
    assert_eq!(state.containers[0].last_termination.as_ref().unwrap().exit_code, 1);
    for restart in 0..3 {
        assert_eq!(pod.printed("a", restart), [format!("{} 7", 40 + restart)]);
    }
    assert!(state.incarnation >= 43);
}

#[tokio::test]
async fn the_second_restart_waits_and_says_so() {
    let mut pod = TestPod::new(vec![script("a", "exit 1")]);
    pod.spec.restart_policy = RestartPolicy::OnFailure;
    let shim = pod.run().await;
    let state = wait_for(
        &shim,
        |s| matches!(&s.containers[0].state, Status::Waiting { reason, .. } if reason == "CrashLoopBackOff"),
    )
    .await;
    // The first restart came at once.
    assert_eq!(state.containers[0].restart_count, 1);
    let Status::Waiting { message, .. } = &state.containers[0].state else { unreachable!() };
    assert_eq!(message, &format!("back-off 10s restarting failed container=a pod=web-0_default({})", pod.spec.uid));
    // A pod that is stopped does not wait for its restart.
    shim.stop(Duration::from_secs(30)).await.unwrap();
    let state = wait_for(&shim, |s| s.phase == Phase::Finished).await;
    assert_eq!(ended(&state.containers[0]).exit_code, 1);
}

#[tokio::test]
async fn on_failure_success_is_the_end() {
    let mut pod = TestPod::new(vec![script("a", "exit 0")]);
    pod.spec.restart_policy = RestartPolicy::OnFailure;
    let state = pod.run_to_end().await;
    assert_eq!(ended(&state.containers[0]).reason, "Completed");
    assert_eq!(state.containers[0].restart_count, 0);
}

#[tokio::test]
async fn init_containers_run_to_completion_one_by_one_before_the_others() {
    let log = tempfile::tempdir().unwrap();
    let step = |name: &str| {
        let text = format!("echo {name} begins >>/log/x; sleep 0.05; echo {name} ends >>/log/x");
        ContainerSpec { mounts: vec![bind(log.path(), "/log")], ..init(name, &text) }
    };
    let main = ContainerSpec { mounts: vec![bind(log.path(), "/log")], ..script("main", "echo main >>/log/x") };
    let mut pod = TestPod::new(vec![step("one"), step("two"), main]);
    pod.run_to_end().await;
    let text = fs::read_to_string(log.path().join("x")).unwrap();
    assert_eq!(text.lines().collect::<Vec<_>>(), ["one begins", "one ends", "two begins", "two ends", "main"]);
}

#[tokio::test]
async fn a_failed_init_container_ends_the_pod_unless_it_may_be_restarted() {
    let mut pod = TestPod::new(vec![init("one", "exit 2"), script("main", "true")]);
    let state = pod.run_to_end().await;
    assert_eq!(ended(&state.containers[0]).exit_code, 2);
    assert!(matches!(&state.containers[1].state, Status::Waiting { reason, .. } if reason == "PodInitializing"));

    let log = tempfile::tempdir().unwrap();
    let text = "test -e /log/x && exit 0; touch /log/x; exit 2";
    let one = ContainerSpec { mounts: vec![bind(log.path(), "/log")], ..init("one", text) };
    let mut pod = TestPod::new(vec![one, script("main", "true")]);
    pod.spec.restart_policy = RestartPolicy::OnFailure;
    let state = pod.run_to_end().await;
    assert_eq!(state.containers[0].restart_count, 1);
    assert_eq!(ended(&state.containers[1]).exit_code, 0);
}

#[tokio::test]
async fn a_sidecar_starts_before_and_ends_after_the_others() {
    let log = tempfile::tempdir().unwrap();
    let text =
        "trap 'echo sidecar ends >>/log/x; exit 0' TERM; echo sidecar begins >>/log/x; while :; do sleep 0.01; done";
    let mounts = || vec![bind(log.path(), "/log")];
    let sidecar = ContainerSpec { role: Role::Sidecar, mounts: mounts(), ..script("sidecar", text) };
    let text = "until test -e /log/x; do sleep 0.01; done; echo main ends >>/log/x";
    let main = ContainerSpec { mounts: mounts(), ..script("main", text) };
    let mut pod = TestPod::new(vec![sidecar, main]);
    pod.run_to_end().await;
    let text = fs::read_to_string(log.path().join("x")).unwrap();
    assert_eq!(text.lines().collect::<Vec<_>>(), ["sidecar begins", "main ends", "sidecar ends"]);
}

#[tokio::test]
async fn a_stop_asks_first_and_a_container_that_heeds_it_ends_by_itself() {
    let mut pod =
        TestPod::new(vec![script("a", "trap 'echo asked; exit 5' TERM; echo up; while :; do sleep 0.01; done")]);
    let shim = pod.run().await;
    eventually("the trap is set", || pod.printed("a", 0) == ["up"]).await;
    shim.stop(Duration::from_secs(3600)).await.unwrap();
    let state = wait_for(&shim, |s| s.phase == Phase::Finished).await;
    let end = ended(&state.containers[0]);
    assert_eq!((end.exit_code, end.signal), (5, None));
    assert_eq!(pod.printed("a", 0), ["up", "asked"]);
}

#[tokio::test]
async fn a_container_that_ignores_the_stop_is_killed_at_the_deadline() {
    let mut pod = TestPod::new(vec![script("a", "trap 'echo asked' TERM; echo up; while :; do sleep 0.01; done")]);
    let shim = pod.run().await;
    eventually("the trap is set", || pod.printed("a", 0) == ["up"]).await;
    shim.stop(Duration::from_millis(300)).await.unwrap();
    let state = wait_for(&shim, |s| s.phase == Phase::Finished).await;
    let end = ended(&state.containers[0]);
    assert_eq!((end.exit_code, end.signal, end.reason.as_str()), (137, Some(9), "Error"));
    assert_eq!(pod.printed("a", 0), ["up", "asked"]);
}

#[tokio::test]
async fn the_hook_runs_before_the_stop_signal() {
    let argv = ["/bin/sh", "-c", "echo hook >>/tmp/order"].map(String::from).to_vec();
    let text = "trap 'cat /tmp/order; echo signal; exit 0' TERM; echo up; while :; do sleep 0.01; done";
    let mut pod = TestPod::new(vec![ContainerSpec { pre_stop: Some(Hook::Exec { argv }), ..script("a", text) }]);
    let shim = pod.run().await;
    eventually("the trap is set", || pod.printed("a", 0) == ["up"]).await;
    shim.stop(Duration::from_secs(3600)).await.unwrap();
    wait_for(&shim, |s| s.phase == Phase::Finished).await;
    assert_eq!(pod.printed("a", 0), ["up", "hook", "signal"]);
}

#[tokio::test]
async fn a_hook_that_hangs_uses_up_the_grace_period_and_the_signal_still_comes() {
    let argv = ["sleep", "100000"].map(String::from).to_vec();
    let text = "trap 'echo signal; exit 0' TERM; echo up; while :; do sleep 0.01; done";
    let mut pod = TestPod::new(vec![ContainerSpec { pre_stop: Some(Hook::Exec { argv }), ..script("a", text) }]);
    let shim = pod.run().await;
    eventually("the trap is set", || pod.printed("a", 0) == ["up"]).await;
    shim.stop(Duration::from_millis(300)).await.unwrap();
    let state = wait_for(&shim, |s| s.phase == Phase::Finished).await;
    assert_eq!(ended(&state.containers[0]).exit_code, 0);
    assert_eq!(pod.printed("a", 0), ["up", "signal"]);
}

#[tokio::test]
async fn a_kill_does_not_wait_for_a_hook() {
    let argv = ["/bin/sh", "-c", "echo > /tmp/hook; sleep 100000"].map(String::from).to_vec();
    let text = "trap 'echo signal' TERM; while :; do test -e /tmp/hook && echo hook && rm /tmp/hook; sleep 0.01; done";
    let mut pod = TestPod::new(vec![ContainerSpec { pre_stop: Some(Hook::Exec { argv }), ..script("a", text) }]);
    let shim = pod.run().await;
    running(&shim).await;
    shim.stop(Duration::from_secs(100_000)).await.unwrap();
    eventually("the hook runs", || pod.printed("a", 0) == ["hook"]).await;
    shim.kill().await.unwrap();
    let state = wait_for(&shim, |s| s.phase == Phase::Finished).await;
    assert_eq!(ended(&state.containers[0]).signal, Some(9));
    assert_eq!(pod.printed("a", 0), ["hook"]);
}

#[tokio::test]
async fn no_grace_kills_at_once_and_a_later_stop_shortens_an_earlier_one() {
    let mut pod = TestPod::new(vec![script("a", "trap '' TERM; echo up; while :; do sleep 0.01; done")]);
    let shim = pod.run().await;
    eventually("the trap is set", || pod.printed("a", 0) == ["up"]).await;
    shim.stop(Duration::from_secs(100_000)).await.unwrap();
    assert_eq!(shim.state().await.unwrap().phase, Phase::Stopping);
    shim.stop(Duration::ZERO).await.unwrap();
    let state = wait_for(&shim, |s| s.phase == Phase::Finished).await;
    assert_eq!(ended(&state.containers[0]).signal, Some(9));
}

#[tokio::test]
async fn one_container_is_restarted_on_demand_and_says_why() {
    let mut pod = TestPod::new(vec![script("a", "sleep 100000"), script("b", "sleep 100000")]);
    pod.spec.restart_policy = RestartPolicy::Always;
    let shim = pod.run().await;
    let before = running(&shim).await;
    shim.restart_container("a", Duration::ZERO, "failed its liveness probe").await.unwrap();
    let state = wait_for(&shim, |s| s.containers[0].restart_count == 1 && s.containers[0].state.is_running()).await;
    let last = state.containers[0].last_termination.as_ref().unwrap();
    assert_eq!(last.message, "failed its liveness probe");
    assert_eq!(state.containers[1], before.containers[1]);
    assert!(shim.restart_container("c", Duration::ZERO, "").await.is_err());
}

#[tokio::test]
async fn an_oom_kill_is_told_as_such() {
    let limits = Limits { memory_bytes: Some(24 << 20), ..Limits::default() };
    // The first process itself, and a child whose end it does not mind.
    for (text, code) in [("exec tail /dev/zero", 137), ("tail /dev/zero; exit 0", 0)] {
        let mut pod = TestPod::new(vec![ContainerSpec { limits: limits.clone(), ..script("a", text) }]);
        let state = pod.run_to_end().await;
        let end = ended(&state.containers[0]);
        assert_eq!((end.exit_code, end.reason.as_str()), (code, "OOMKilled"), "{end:?}");
    }
}

#[tokio::test]
async fn the_number_of_processes_is_limited() {
    let limits = Limits { pids: Some(3), ..Limits::default() };
    let text = "sleep 1000 & sleep 1000 & (true) || echo refused; (true) & (true) & (true) & wait";
    let mut pod = TestPod::new(vec![ContainerSpec { limits, ..script("a", text) }]);
    let state = pod.run_to_end().await;
    assert_ne!(ended(&state.containers[0]).exit_code, 0);
    assert!(pod.printed("a", 0).iter().any(|line| line.to_lowercase().contains("fork")), "{:?}", pod.printed("a", 0));
}

#[tokio::test]
async fn a_killed_shim_takes_its_containers_along() {
    // The second changes its user, whereby the kernel forgets a parent-death signal.
    let other = "exec setpriv --reuid=1234 --regid=1234 --clear-groups sleep 100000";
    let mut pod = TestPod::new(vec![script("a", "sleep 100000"), script("b", other)]);
    let shim = pod.run().await;
    let state = running(&shim).await;
    let uid = |pid: i32| fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|s| s.contains("Uid:\t1234"));
    let Status::Running { pid, .. } = state.containers[1].state else { unreachable!() };
    eventually("the user is changed", || uid(pid)).await;
    kill_process(Pid::from_raw(pod.shim_pid).unwrap(), Signal::KILL).unwrap();
    let cgroup = pod.cgroup();
    eventually("the pod's processes end", || cgroup.all().processes().unwrap().is_empty()).await;
    // What it last recorded is still there, and says in which boot.
    assert_eq!(PodState::read(&pod.pod_dir()).unwrap(), Some(state));
    assert!(matches!(Shim::connect(&pod.pod_dir()).await, Err(ClientError::Unreachable { .. })));
    // A new sandbox can take its place.
    let again = pod.run().await;
    running(&again).await;
}

#[tokio::test]
async fn a_stopped_and_acknowledged_pod_leaves_no_process_cgroup_or_mount() {
    let mut pod = TestPod::new(vec![script("a", "sleep 100000 & setsid sleep 100000 & wait")]);
    let shim = pod.run().await;
    running(&shim).await;
    let shim_process = pidfd_open(Pid::from_raw(pod.shim_pid).unwrap(), PidfdFlags::empty()).unwrap();
    assert!(pod.cgroup().all().processes().unwrap().len() >= 2);
    shim.stop(Duration::from_millis(10)).await.unwrap();
    wait_for(&shim, |s| s.phase == Phase::Finished).await;
    shim.acknowledge().await.unwrap();
    eventually("the shim exits", || pidfd_send_signal(&shim_process, Signal::CONT).is_err() || exited(&shim_process))
        .await;
    within(cleanup(&pod.pod_dir())).await.unwrap();
    // Twice is fine.
    within(cleanup(&pod.pod_dir())).await.unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(pod.folder.path().to_str().unwrap()), "{mounts}");
    let name = pod.spec.cgroup.split('/').next().unwrap().to_owned();
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap() {
        assert!(!hierarchy.unwrap().path().join(&name).exists());
    }
}

fn exited(process: &std::os::fd::OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
}

#[tokio::test]
async fn one_folder_has_one_shim() {
    let mut pod = TestPod::new(vec![script("a", "sleep 100000")]);
    let shim = pod.run().await;
    running(&shim).await;
    let error = launch(&pod.pod_dir(), exe()).await.unwrap_err();
    assert!(error.to_string().contains("a shim runs already"), "{error}");
    assert!(shim.state().await.unwrap().containers[0].state.is_running());
}

#[tokio::test]
async fn a_shim_is_told_to_stop_by_sigterm_and_exits_without_being_acknowledged() {
    let mut pod = TestPod::new(vec![script("a", "trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done")]);
    let shim = pod.run().await;
    eventually("the trap is set", || pod.printed("a", 0) == ["up"]).await;
    let pid = Pid::from_raw(pod.shim_pid).unwrap();
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    eventually("the shim exits", || exited(&process)).await;
    let state = PodState::read(&pod.pod_dir()).unwrap().unwrap();
    assert_eq!(state.phase, Phase::Finished);
    assert_eq!(ended(&state.containers[0]).exit_code, 0);
    assert!(shim.state().await.is_err());
}

#[tokio::test]
async fn a_long_path_to_the_pod_does_no_harm() {
    let base = tempfile::tempdir().unwrap();
    let deep = base.path().join("x".repeat(200));
    fs::create_dir(&deep).unwrap();
    let mut pod = TestPod::below(&deep, vec![script("a", "exit 0")]);
    pod.run_to_end().await;
}

#[tokio::test]
async fn output_of_a_chatty_container_is_complete() {
    let mut pod = TestPod::new(vec![script("a", "seq 1 50000")]);
    pod.run_to_end().await;
    let printed = pod.printed("a", 0);
    assert_eq!(printed.len(), 50_000);
    assert_eq!(printed.last().unwrap(), "50000");
}

#[tokio::test]
async fn a_folder_that_cannot_be_run_is_told_with_the_reason() {
    let pod = TestPod::new(vec![]);
    let error = launch(&pod.pod_dir(), exe()).await.unwrap_err();
    assert!(error.to_string().contains("spec.json"), "{error}");
}
