//! Taking part in the streams of a container's own program.

use statefuld_node::shim::client::{Exec, ExecEvent};
use statefuld_node::shim::protocol::ExecExit;
use statefuld_node::shim::spec::ContainerSpec;

use crate::harness::*;

/// What came until this was printed, or everything until the end.
async fn until(exec: &mut Exec, wanted: &str) -> (String, Option<ExecExit>) {
    let mut text = String::new();
    while wanted.is_empty() || !text.contains(wanted) {
        match within(exec.output.next()).await.unwrap() {
            ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => text.push_str(&String::from_utf8_lossy(&bytes)),
            ExecEvent::Exit(exit) => return (text, Some(exit)),
        }
    }
    (text, None)
}

fn reader(text: &str, stdin_once: bool) -> ContainerSpec {
    ContainerSpec { stdin: true, stdin_once, ..script("a", text) }
}

#[tokio::test]
async fn input_reaches_the_program_and_its_output_client_and_log() {
    let mut pod =
        TestPod::new(vec![reader("while read line; do echo got $line; [ $line = end ] && exit 5; done", false)]);
    let shim = pod.run().await;
    running(&shim).await;
    let mut first = shim.attach("a", true).await.unwrap();
    first.input.write(b"one\n").await.unwrap();
    assert_eq!(until(&mut first, "got one\n").await.1, None);
    // Its input outlives a client that leaves, and a client that only looks on may leave, too.
    drop(shim.attach("a", false).await.unwrap());
    first.input.close().await.unwrap();
    drop(first);
    let mut second = shim.attach("a", true).await.unwrap();
    let mut watcher = shim.attach("a", false).await.unwrap();
    second.input.write(b"two\nend\n").await.unwrap();
    for exec in [&mut second, &mut watcher] {
        let (text, exit) = until(exec, "").await;
        assert_eq!(text, "got two\ngot end\n");
        assert_eq!(exit.map(|e| e.code), Some(5));
    }
    wait_for(&shim, |s| s.containers.iter().all(|c| !c.state.is_running())).await;
    assert_eq!(pod.printed("a", 0), ["got one", "got two", "got end"]);
}

#[tokio::test]
async fn an_input_for_one_client_ends_with_it() {
    let mut pod = TestPod::new(vec![reader("wc -c", true)]);
    let shim = pod.run().await;
    running(&shim).await;
    let mut watcher = shim.attach("a", false).await.unwrap();
    let mut exec = shim.attach("a", true).await.unwrap();
    exec.input.write(b"12345").await.unwrap();
    exec.input.close().await.unwrap();
    assert_eq!(until(&mut exec, "").await.0.trim(), "5");
    assert_eq!(until(&mut watcher, "").await.0.trim(), "5");
}

#[tokio::test]
async fn a_terminal_is_shared_and_resized() {
    let container = ContainerSpec { tty: true, ..reader("while read line; do stty size; done", false) };
    let mut pod = TestPod::new(vec![container]);
    let shim = pod.run().await;
    running(&shim).await;
    let mut exec = shim.attach("a", true).await.unwrap();
    exec.input.resize(123, 45).await.unwrap();
    exec.input.write(b"x\n").await.unwrap();
    until(&mut exec, "45 123").await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_let_go_and_the_program_goes_on() {
    let mut pod = TestPod::new(vec![reader("read line; seq 1 400000; echo done; exec sleep 100000", false)]);
    let shim = pod.run().await;
    running(&shim).await;
    let mut stuck = shim.attach("a", true).await.unwrap();
    stuck.input.write(b"go\n").await.unwrap();
    eventually("the program has printed all", || pod.printed("a", 0).last().is_some_and(|line| line == "done")).await;
    drop(stuck);
}

#[tokio::test]
async fn nobody_attaches_to_what_does_not_run() {
    let mut pod = TestPod::new(vec![script("a", "exec sleep 100000")]);
    let shim = pod.launch().await;
    assert!(shim.attach("a", false).await.is_err());
    assert!(shim.attach("b", false).await.is_err());
}
