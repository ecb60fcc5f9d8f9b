//! `statefuld bench pods`, small: what it tells of, and that it leaves nothing. No figure is looked at but counts.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::{eventually, leftovers, statefuld};

/// The command, with a folder for temporary files that is the test's own.
fn bench(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = statefuld();
    command.args(["bench", "pods", "--pods", "1,2", "--rounds", "1", "--reference", "none", "-o", "json"]);
    command.args(arguments).env("TMPDIR", folder).stdin(Stdio::null());
    command
}

/// What it may not leave: files, processes, mounts.
fn left_in(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder).expect("the folder is there").flatten().map(|e| format!("{:?}", e.path()));
    files.chain(leftovers(folder)).collect()
}

#[test]
fn e2e_a_benchmark_of_pods_tells_of_every_step_and_leaves_nothing() {
    let folder = tempfile::Builder::new().prefix("statefuld-e2e-").tempdir().expect("a folder");
    let small = ["--execs", "3", "--log-lines", "2000", "--idle", "2", "--idle-window", "1s"];
    let output = bench(folder.path(), &small).output().expect("statefuld runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");

    let starts = report["starts"].as_array().expect("a list");
    let kinds: Vec<String> = starts.iter().map(|start| format!("{} {}", start["order"], start["pods"])).collect();
    let wanted = ["\"OrderedReady\" 1", "\"Parallel\" 1", "\"OrderedReady\" 2", "\"Parallel\" 2"];
    assert_eq!(kinds, wanted);
    for start in starts {
        assert_eq!((&start["by"], &start["rounds"]), (&"statefuld".into(), &1.into()), "{start}");
        let steps = start["steps"].as_array().expect("a list");
        let names: Vec<&str> = steps.iter().filter_map(|step| step["step"].as_str()).collect();
        let order =
            ["created", "scheduled", "handed", "what it names", "address", "image", "volumes", "sandbox", "network"];
        let order = order.iter().chain(&["container", "first probe", "Ready written"]);
        assert!(names.iter().zip(order.clone()).all(|(name, begin)| name.starts_with(begin)), "{names:?}");
        assert_eq!(names.len(), order.count());
        // Each pod goes through each step: none takes no time at all.
        let node = steps.iter().skip(3);
        assert!(node.clone().all(|step| step["meanMs"].as_f64().is_some_and(|ms| ms > 0.0)), "{start}");
        assert!(start["allReadyMs"].as_f64().is_some_and(|ms| ms > 0.0), "{start}");
    }
    assert_eq!(report["exec"]["count"], 3);
    assert_eq!((&report["log"]["lines"], &report["log"]["lost"]), (&2000.into(), &0.into()), "{}", report["log"]);
    assert_eq!(report["log"]["bytes"], 200_000);
    let idle = &report["idle"][0];
    assert_eq!(idle["pods"], 2);
    for field in ["daemonMegabytes", "daemonResidentMegabytes", "guardMegabytes", "guardMegabytesMax"] {
        assert!(idle[field].as_f64().is_some_and(|megabytes| megabytes > 0.0), "{field}: {idle}");
    }
    assert_eq!(report["notMeasured"], Value::Array(Vec::new()));
    let left = left_in(folder.path());
    assert!(left.is_empty(), "left behind: {left:#?}");
}

#[test]
fn e2e_a_benchmark_of_pods_that_is_interrupted_cleans_up() {
    let folder = tempfile::Builder::new().prefix("statefuld-e2e-").tempdir().expect("a folder");
    let long = ["--execs", "100000", "--log-lines", "0", "--idle", "0"];
    let mut child =
        bench(folder.path(), &long).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("statefuld runs");
    // Pods were there, and another one runs.
    let mut said = BufReader::new(child.stderr.take().expect("a pipe")).lines().map_while(Result::ok);
    assert!(said.any(|line| line.starts_with("`true` run")), "it comes so far");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    let rest: Vec<String> = said.collect();
    let status = eventually("it ends", || child.try_wait().expect("a child"));
    assert!(!status.success() && rest.iter().any(|line| line.contains("interrupted")), "{status}: {rest:?}");
    let left = left_in(folder.path());
    assert!(left.is_empty(), "left behind: {left:#?}");
}
