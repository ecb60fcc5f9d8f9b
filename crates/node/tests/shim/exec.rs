//! Programs run in containers that run already.

use std::time::Duration;

use statefuld_node::shim::Shim;
use statefuld_node::shim::client::{ClientError, Exec, ExecEvent, ExecOutput};
use statefuld_node::shim::protocol::{ExecExit, ExecRequest};

use crate::harness::*;

async fn idle() -> (TestPod, Shim) {
    let mut pod = TestPod::new(vec![script("a", "exec sleep 100000")]);
    let shim = pod.run().await;
    running(&shim).await;
    (pod, shim)
}

fn request(text: &str) -> ExecRequest {
    let argv = ["/bin/sh", "-c", text].map(String::from).to_vec();
    ExecRequest { container: "a".into(), argv, ..ExecRequest::default() }
}

/// Everything printed on stdout and stderr until the end.
async fn to_end(exec: &mut Exec) -> (String, String, ExecExit) {
    rest(&mut exec.output).await
}

async fn rest(output: &mut ExecOutput) -> (String, String, ExecExit) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match within(output.next()).await.unwrap() {
            ExecEvent::Stdout(bytes) => out.extend_from_slice(&bytes),
            ExecEvent::Stderr(bytes) => err.extend_from_slice(&bytes),
            ExecEvent::Exit(exit) => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                return (text(&out), text(&err), exit);
            }
        }
    }
}

/// Reads until the program has printed this.
async fn until_printed(exec: &mut Exec, wanted: &str) -> String {
    let mut text = String::new();
    while !text.contains(wanted) {
        match within(exec.output.next()).await.unwrap() {
            ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => text.push_str(&String::from_utf8_lossy(&bytes)),
            ExecEvent::Exit(exit) => panic!("it ended ({exit:?}) after {text:?}"),
        }
    }
    text
}

#[tokio::test]
async fn exit_codes_signals_and_both_outputs_come_back() {
    let (_pod, shim) = idle().await;
    let mut exec = shim.exec(request("echo out; echo err >&2; exit 42")).await.unwrap();
    let (out, err, exit) = to_end(&mut exec).await;
    assert_eq!((out.as_str(), err.as_str(), exit.code), ("out\n", "err\n", 42));
    let mut exec = shim.exec(request("kill -9 $$")).await.unwrap();
    assert_eq!(
        to_end(&mut exec).await.2,
        ExecExit { code: 137, signal: Some(9), timed_out: false, message: String::new() }
    );
}

#[tokio::test]
async fn a_program_that_is_not_there_is_told_from_one_that_cannot_run() {
    let (_pod, shim) = idle().await;
    for (program, code) in [("no-such-program", 127), ("/etc/passwd", 126)] {
        let ran = within(shim.run(ExecRequest { argv: vec![program.into()], ..request("") }, 100)).await.unwrap();
        assert_eq!(ran.exit.code, code, "{:?}", ran.exit);
        assert!(ran.exit.message.contains(program), "{:?}", ran.exit);
    }
}

#[tokio::test]
async fn input_arrives_and_its_end_too() {
    let (_pod, shim) = idle().await;
    let mut exec = shim.exec(ExecRequest { stdin: true, ..request("wc -c") }).await.unwrap();
    // More than pipe and buffers hold, so that the way is blocked in between.
    let piece = vec![b'x'; 100_000];
    for _ in 0..30 {
        within(exec.input.write(&piece)).await.unwrap();
    }
    within(exec.input.close()).await.unwrap();
    let (out, _, exit) = to_end(&mut exec).await;
    assert_eq!((out.trim(), exit.code), ("3000000", 0));
}

#[tokio::test]
async fn a_client_that_only_listens_further_has_ended_the_input() {
    let (_pod, shim) = idle().await;
    let mut exec = shim.exec(ExecRequest { stdin: true, ..request("cat; sleep 0.1; echo end") }).await.unwrap();
    within(exec.input.write(b"begin\n")).await.unwrap();
    let Exec { mut output, input } = exec;
    drop(input);
    let (out, _, exit) = rest(&mut output).await;
    assert_eq!((out.as_str(), exit.code), ("begin\nend\n", 0));
}

#[tokio::test]
async fn a_slow_reader_gets_all_of_a_long_output() {
    let (_pod, shim) = idle().await;
    let mut exec = shim.exec(request("seq 1 200000")).await.unwrap();
    // Others are served meanwhile.
    assert_eq!(prints(&shim, "a", "echo x").await, "x");
    let (out, _, exit) = to_end(&mut exec).await;
    assert_eq!((out.lines().count(), exit.code), (200_000, 0));
}

#[tokio::test]
async fn a_terminal_is_one_and_has_the_size_asked_for() {
    let (_pod, shim) = idle().await;
    let asked = ExecRequest {
        tty: true,
        stdin: true,
        size: Some((100, 30)),
        ..request("tty; stty size; read x; stty size; exit 4")
    };
    let mut exec = shim.exec(asked).await.unwrap();
    let text = until_printed(&mut exec, "30 100").await;
    assert!(text.contains("/dev/pts/"), "{text}");
    within(exec.input.resize(120, 40)).await.unwrap();
    within(exec.input.write(b"go\n")).await.unwrap();
    let (out, _, exit) = to_end(&mut exec).await;
    assert!(out.contains("40 120"), "{out}");
    assert_eq!(exit.code, 4);
}

#[tokio::test]
async fn control_c_interrupts_the_program_in_the_terminal() {
    let (_pod, shim) = idle().await;
    let asked = ExecRequest {
        tty: true,
        stdin: true,
        ..request("trap 'echo interrupted; exit 9' INT; echo up; while :; do sleep 0.01; done")
    };
    let mut exec = shim.exec(asked).await.unwrap();
    until_printed(&mut exec, "up").await;
    within(exec.input.write(&[3])).await.unwrap();
    let (out, _, exit) = to_end(&mut exec).await;
    assert!(out.contains("interrupted"), "{out}");
    assert_eq!(exit.code, 9);
}

#[tokio::test]
async fn a_program_ends_with_its_clients_connection() {
    let (pod, shim) = idle().await;
    let before = pod.cgroup().container("a").processes().unwrap();
    let mut exec = shim.exec(request("echo up; sleep 100000")).await.unwrap();
    until_printed(&mut exec, "up").await;
    assert!(pod.cgroup().container("a").processes().unwrap().len() > before.len());
    drop(exec);
    let group = pod.cgroup().container("a");
    eventually("the program is killed", || group.processes().unwrap() == before).await;
}

#[tokio::test]
async fn a_program_that_takes_too_long_is_killed_and_said_so() {
    let (pod, shim) = idle().await;
    let before = pod.cgroup().container("a").processes().unwrap();
    let ran = within(shim.run(ExecRequest { timeout_ms: Some(50), ..request("echo begun; sleep 100000") }, 100))
        .await
        .unwrap();
    assert!(ran.exit.timed_out && ran.exit.code == 137, "{:?}", ran.exit);
    let group = pod.cgroup().container("a");
    eventually("its children are killed, too", || group.processes().unwrap() == before).await;
}

#[tokio::test]
async fn a_background_child_does_not_keep_the_client_waiting() {
    let (_pod, shim) = idle().await;
    let ran = sh(&shim, "a", "sleep 100000 & echo done").await;
    assert_eq!((ran.exit.code, ran.output.as_slice()), (0, &b"done\n"[..]));
}

#[tokio::test]
async fn execs_share_the_containers_environment_and_end_with_it() {
    let (_pod, shim) = idle().await;
    let text = "echo $STATEFULD_EPOCH $STATEFULD_INCARNATION $HOSTNAME $HOME; pwd";
    assert_eq!(prints(&shim, "a", text).await, "7 40 web-0 /root\n/");
    let mut exec = shim.exec(request("echo up; sleep 100000")).await.unwrap();
    until_printed(&mut exec, "up").await;
    shim.stop(Duration::ZERO).await.unwrap();
    assert_eq!(to_end(&mut exec).await.2.signal, Some(9));
    wait_for(&shim, |s| s.phase == statefuld_node::shim::state::Phase::Finished).await;
    assert!(matches!(shim.exec(request("true")).await, Err(ClientError::Refused(_))));
}

#[tokio::test]
async fn many_at_once_are_told_apart() {
    let (_pod, shim) = idle().await;
    let all = (0..20).map(|n| {
        let shim = shim.clone();
        tokio::spawn(async move { (n, sh(&shim, "a", &format!("echo {n}; exit {n}")).await) })
    });
    for task in all.collect::<Vec<_>>() {
        let (n, ran) = task.await.unwrap();
        assert_eq!((ran.exit.code, String::from_utf8(ran.output).unwrap()), (n, format!("{n}\n")));
    }
}

#[tokio::test]
async fn an_unknown_container_is_refused_by_name() {
    let (_pod, shim) = idle().await;
    let error = shim.exec(ExecRequest { container: "b".into(), ..request("true") }).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no container b");
}
