//! The built-in image: identities, epochs and incarnations, restarts of everything.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::harness::{Instance, example};

/// GET over plain HTTP to a pod's address, from the machine.
fn fetch(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect((address, 8080)).expect("the pod's address is reachable from the machine");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: journal\r\nConnection: close\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

fn address(instance: &Instance, pod: &str) -> String {
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
        for field in ["/metadata/uid", "/status/podIP", "/status/containerStatuses/0/containerID", "/status/containerStatuses/0/restartCount"] {
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
