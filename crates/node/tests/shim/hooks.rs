//! What is run when a container begins and ends, what waits for it, and what a container leaves to be said.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use statefuld_node::shim::spec::{BackOff, ContainerSpec, ExitCodes, Hook, HttpHook, LastWords, RestartPolicy, Role};
use statefuld_node::shim::state::{Phase, PodState, Status};

use crate::harness::*;

const FAST: BackOff = BackOff { initial_ms: 1, max_ms: 2, reset_after_ms: 600_000 };

/// Ends at once when asked to.
const WAIT: &str = "trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done";

fn sh_hook(text: &str) -> Option<Hook> {
    Some(Hook::Exec { argv: ["/bin/sh", "-c", text].map(String::from).to_vec() })
}

/// A server on the machine that answers everything with this, and tells what it was asked.
fn serving(answer: &'static str) -> (SocketAddr, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut seen = vec![0; 4096];
            let n = stream.read(&mut seen).unwrap_or(0);
            let _ = stream.write_all(answer.as_bytes());
            if tell.send(String::from_utf8_lossy(&seen[..n]).into_owned()).is_err() {
                return;
            }
        }
    });
    (address, told)
}

fn http_hook(address: SocketAddr) -> Option<Hook> {
    Some(Hook::Http(HttpHook { address, tls: false, path: "/bye?x=1".into(), headers: Vec::new() }))
}

#[tokio::test]
async fn a_container_counts_as_running_once_its_post_start_hook_is_over_and_the_next_waits_for_it() {
    let log = tempfile::tempdir().unwrap();
    let mounts = || vec![bind(log.path(), "/log")];
    let one = ContainerSpec {
        post_start: sh_hook("while [ ! -e /log/go ]; do sleep 0.01; done; echo hooked >>/log/x"),
        mounts: mounts(),
        ..script("one", WAIT)
    };
    let two = ContainerSpec { mounts: mounts(), ..script("two", &format!("echo two >>/log/x; {WAIT}")) };
    let mut pod = TestPod::new(vec![one, two]);
    let shim = pod.run().await;
    let state = wait_for(&shim, |s| s.containers[0].hooking).await;
    let waits = |status: &Status, why: &str| matches!(status, Status::Waiting { reason, .. } if reason == why);
    assert!(waits(&state.containers[0].state, "ContainerCreating"), "{state:#?}");
    assert!(waits(&state.containers[1].state, "PodInitializing"), "{state:#?}");
    assert_eq!(prints(&shim, "one", "echo answers").await, "answers");
    fs::write(log.path().join("go"), "").unwrap();
    running(&shim).await;
    eventually("the second runs", || fs::read_to_string(log.path().join("x")).unwrap() == "hooked\ntwo\n").await;
}

#[tokio::test]
async fn a_failed_post_start_hook_ends_the_container_and_its_policy_decides() {
    // The signal that follows comes after the trap is set.
    let fails = sh_hook("while [ ! -e /tmp/up ]; do sleep 0.01; done; exit 3");
    let text = format!("trap 'exit 0' TERM; : >/tmp/up; {WAIT}");
    let one = ContainerSpec { post_start: fails, pre_stop: sh_hook("exit 4"), ..script("one", &text) };
    let mut pod = TestPod::new(vec![one]);
    pod.spec.restart_policy = RestartPolicy::OnFailure;
    let state = pod.run_to_end().await;
    let container = &state.containers[0];
    assert_eq!((container.post_start_failures, container.pre_stop_failures), (1, 1), "{state:#?}");
    // It heeded the signal, so that was no failure of its own.
    assert_eq!((ended(container).exit_code, container.restart_count), (0, 0));
    assert!(state.warnings.iter().any(|w| w.contains("postStart hook of one failed: it ended with 3")), "{state:#?}");
}

#[tokio::test]
async fn a_post_start_hook_that_sleeps_is_over_in_time_and_a_stop_does_not_wait_for_it() {
    let one = ContainerSpec { post_start: Some(Hook::Sleep { ms: 20 }), ..script("one", WAIT) };
    let two = ContainerSpec { post_start: Some(Hook::Sleep { ms: 3_600_000 }), ..script("two", WAIT) };
    let mut pod = TestPod::new(vec![one, two]);
    let shim = pod.run().await;
    wait_for(&shim, |s| s.containers[0].state.is_running() && s.containers[1].hooking).await;
    eventually("the trap is set", || pod.printed("two", 0) == ["up"]).await;
    shim.stop(Duration::from_secs(30)).await.unwrap();
    let state = wait_for(&shim, |s| s.phase == Phase::Finished).await;
    assert_eq!(ended(&state.containers[1]).exit_code, 0);
}

#[tokio::test]
async fn hooks_ask_servers_from_the_machines_network_and_any_answer_will_do() {
    let (address, asked) = serving("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
    let (garbled, _kept) = serving("SSH-2.0-x\r\n");
    let one = ContainerSpec { post_start: http_hook(address), pre_stop: http_hook(garbled), ..script("one", WAIT) };
    let mut pod = TestPod::new(vec![one]);
    let shim = pod.run().await;
    running(&shim).await;
    let request = asked.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(request.starts_with("GET /bye?x=1 HTTP/1.1\r\n") && request.contains("kube-lifecycle/"), "{request}");
    shim.stop(Duration::from_secs(30)).await.unwrap();
    let state = wait_for(&shim, |s| s.phase == Phase::Finished).await;
    assert_eq!((state.containers[0].post_start_failures, state.containers[0].pre_stop_failures), (0, 1));
    assert!(state.warnings.iter().any(|w| w.contains("malformed HTTP response")), "{:?}", state.warnings);
}

#[tokio::test]
async fn what_comes_after_a_sidecar_waits_for_its_startup_probe() {
    let sidecar = ContainerSpec { role: Role::Sidecar, awaits_startup: true, ..script("sidecar", WAIT) };
    let mut pod = TestPod::new(vec![sidecar, script("main", "exit 0")]);
    let shim = pod.run().await;
    let state = wait_for(&shim, |s| s.containers[0].awaited).await;
    // Not even begun.
    let main = &state.containers[1].state;
    assert!(matches!(main, Status::Waiting { reason, .. } if reason == "PodInitializing"), "{state:#?}");
    shim.started("sidecar").await.unwrap();
    shim.started("sidecar").await.unwrap();
    let state = wait_for(&shim, |s| s.phase == Phase::Finished).await;
    assert_eq!(ended(&state.containers[1]).exit_code, 0);
    assert!(shim.started("nobody").await.is_err());
}

/// Runs a program that leaves last words; answers the message of its end.
async fn message_of(text: &str, or_log: bool) -> String {
    let words = LastWords { path: "/dev/termination-log".into(), or_log };
    let user = statefuld_node::shim::spec::User { uid: 65534, gid: 65534, groups: Vec::new() };
    let one = ContainerSpec { last_words: Some(words), user, ..script("one", text) };
    let state: PodState = TestPod::new(vec![one]).run_to_end().await;
    ended(&state.containers[0]).message.clone()
}

#[tokio::test]
async fn last_words_are_what_the_program_wrote_or_the_end_of_its_log() {
    assert_eq!(message_of("echo logged; printf gone >/dev/termination-log; exit 3", true).await, "gone");
    assert_eq!(message_of("echo logged; exit 3", true).await, "logged\n");
    assert_eq!(message_of("echo logged; exit 3", false).await, "");
    assert_eq!(message_of("echo logged", true).await, "");
    let long = message_of("head -c 9000 /dev/zero | tr '\\0' x >/dev/termination-log", false).await;
    assert_eq!(long.len(), 4096);
}

#[tokio::test]
async fn own_rules_restart_what_the_pods_policy_would_not() {
    let text = "test $STATEFULD_INCARNATION = 41 && exit 5; exit 42";
    let rules = vec![ExitCodes { not: false, codes: vec![42] }];
    let one = ContainerSpec { restart_policy: Some(RestartPolicy::Never), restart_on: rules, ..script("one", text) };
    let mut pod = TestPod::new(vec![one]);
    pod.spec.restart_policy = RestartPolicy::Always;
    pod.spec.back_off = FAST;
    let state = pod.run_to_end().await;
    assert_eq!((ended(&state.containers[0]).exit_code, state.containers[0].restart_count), (5, 1));
}
