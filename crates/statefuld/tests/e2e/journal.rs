//! The built-in image: identities, epochs and incarnations, restarts of everything.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use crate::harness::{Instance, eventually, example, statefuld};

/// GET over plain HTTP to a pod's address, from the machine.
pub fn fetch(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect((address, 8080)).expect("the pod's address is reachable from the machine");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: journal\r\nConnection: close\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

pub fn address(instance: &Instance, pod: &str) -> String {
    instance.get("pod", pod)["status"]["podIP"].as_str().expect("an address").to_owned()
}

#[test]
fn e2e_up_gives_every_pod_its_identity_and_a_second_up_finds_them_again() {
    let mut instance = Instance::new();
    let report = instance.up(&[example("journal.yaml")]);
    let pods = report["pods"].as_array().expect("pods");
    assert_eq!(pods.len(), 3, "{report}");
    for (n, pod) in pods.iter().enumerate() {
        assert_eq!(pod["name"], format!("journal-{n}"));
        assert_eq!(pod["ready"], true);
        assert_eq!(pod["dns"], format!("journal-{n}.journal.default.svc.cluster.local"));
        assert!(pod["volumes"][0].as_str().expect("a folder").ends_with(&format!("volumes/default/journal-{n}-data")));
        let journal = fetch(pod["ip"].as_str().expect("an address"), "/");
        assert!(journal.contains(&format!("journal-{n}")), "{journal}");
    }
    let identities = instance.identities("journal", 3);
    instance.down(&[]);
    stopped_from_the_top(&instance);
    let again = instance.up(&[]);
    assert!(again["server"].as_str().expect("a URL").starts_with("https://127.0.0.1:"));
    instance.settled("journal", 3);
    assert_eq!(instance.identities("journal", 3), identities);
    // The same pod objects were restarted in place, and each journal goes on.
    let journal = fetch(&address(&instance, "journal-1"), "/");
    assert!(journal.matches("journal-1").count() >= 2, "{journal}");
}

#[test]
fn e2e_pods_survive_the_daemon_and_are_taken_over() {
    let mut instance = Instance::new();
    instance.up(&[example("journal.yaml")]);
    let before: Vec<_> = (0..3).map(|n| instance.get("pod", &format!("journal-{n}"))).collect();
    let ip = address(&instance, "journal-2");
    instance.kill_daemon();
    assert!(fetch(&ip, "/healthz").contains("200"), "pods run on without the daemon");
    instance.up(&[]);
    instance.settled("journal", 3);
    for (n, before) in before.iter().enumerate() {
        let after = instance.get("pod", &format!("journal-{n}"));
        for field in [
            "/metadata/uid",
            "/status/podIP",
            "/status/containerStatuses/0/containerID",
            "/status/containerStatuses/0/restartCount",
        ] {
            assert_eq!(after.pointer(field), before.pointer(field), "{field}");
        }
    }
    instance.down(&["--keep-pods"]);
    assert!(fetch(&ip, "/healthz").contains("200"), "down --keep-pods leaves them running");
    instance.up(&[]);
    instance.settled("journal", 3);
    assert_eq!(instance.get("pod", "journal-2")["metadata"]["uid"], before[2]["metadata"]["uid"]);
}

#[test]
fn e2e_two_instances_run_side_by_side() {
    let (mut one, mut two) = (Instance::new(), Instance::new());
    one.up(&[example("journal.yaml")]);
    two.up(&[example("journal.yaml")]);
    let (a, b) = (address(&one, "journal-0"), address(&two, "journal-0"));
    assert_ne!(a, b);
    assert!(fetch(&a, "/healthz").contains("200"));
    assert!(fetch(&b, "/healthz").contains("200"));
    one.down(&[]);
    assert!(fetch(&b, "/healthz").contains("200"), "one instance's end is not the other's");
}

/// The last line of each journal says when its pod was stopped.
pub fn stopped_from_the_top(instance: &Instance) {
    let stopped: Vec<String> = (0..3)
        .map(|n| {
            let file = instance.data().join(format!("volumes/default/journal-{n}-data/journal"));
            let journal = std::fs::read_to_string(file).expect("the data stays");
            let last = journal.lines().last().expect("a line").to_owned();
            assert!(last.contains("stopped"), "SIGTERM was seen: {last}");
            last
        })
        .collect();
    assert!(stopped[2] < stopped[1] && stopped[1] < stopped[0], "in reverse order: {stopped:#?}");
}

/// `statefuld up` in the foreground; returns when it has printed its report.
fn foreground(instance: &mut Instance, file: &std::path::Path) -> (Child, String) {
    let mut child = statefuld()
        .args(["up", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(instance.data())
        .arg(file)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("statefuld runs");
    instance.mark_started();
    let mut printed = String::new();
    for line in BufReader::new(child.stdout.as_mut().expect("a pipe")).lines() {
        let line = line.expect("text");
        printed.push_str(&line);
        printed.push('\n');
        if line.starts_with("export KUBECONFIG=") {
            break;
        }
    }
    (child, printed)
}

fn interrupt(child: &Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
}

#[test]
fn e2e_in_the_foreground_an_interrupt_means_down() {
    let mut instance = Instance::new();
    let (mut child, printed) = foreground(&mut instance, &example("journal.yaml"));
    for word in ["POD", "READY", "NODE", "IP", "DNS NAME", "VOLUMES", "journal-2.journal.default.svc.cluster.local"] {
        assert!(printed.contains(word), "{word} is missing: {printed}");
    }
    instance.settled("journal", 3);
    interrupt(&child);
    assert!(child.wait().expect("it ends").success());
    stopped_from_the_top(&instance);
}

#[test]
fn e2e_a_second_interrupt_leaves_pods_running_and_says_how_to_return() {
    let mut instance = Instance::new();
    let manifest = std::fs::read_to_string(example("journal.yaml")).expect("the example");
    // It does not end by itself within the test: preStop holds it for most of a long grace period.
    let stubborn = manifest.replace("terminationGracePeriodSeconds: 10", "terminationGracePeriodSeconds: 600").replace(
        "          readinessProbe:",
        "          lifecycle: {preStop: {exec: {command: [/statefuld, sample, --listen, \"127.0.0.1:9\", --data, /tmp]}}}\n          readinessProbe:",
    );
    let file = instance.scratch().join("stubborn.yaml");
    std::fs::write(&file, stubborn).expect("a file");
    let (mut child, _) = foreground(&mut instance, &file);
    instance.settled("journal", 3);
    let ip = address(&instance, "journal-0");
    let mut said = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    interrupt(&child);
    said.by_ref().map(|l| l.expect("text")).find(|l| l.contains("Ctrl-C again")).expect("it says what it does");
    interrupt(&child);
    let hint = said.map(|l| l.expect("text")).find(|l| l.contains("go on running")).expect("it says so");
    assert!(hint.contains("statefuld up --data-dir"), "{hint}");
    assert!(child.wait().expect("it ends").success());
    assert!(fetch(&ip, "/healthz").contains("200"), "the pods run on");
    instance.up(&[]);
    eventually("the pods are taken over", || {
        instance.try_kubectl(&["get", "pod", "journal-0"]).ok().filter(|text| text.contains("Running"))
    });
    instance.kubectl(&["delete", "statefulset", "journal"]);
    instance.kubectl(&["delete", "pods", "--all", "--grace-period=1", "--timeout=120s"]);
}
