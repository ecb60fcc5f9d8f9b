//! `statefuld server`: the API alone, one controller alone, and its flags. No root needed, no node, no container.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use serde_json::Value;

use crate::harness::{Instance, eventually, statefuld};

/// A `statefuld server` in a child process; killed when dropped.
struct Server {
    child: Child,
    output: BufReader<ChildStdout>,
    /// The line that it printed when it was ready.
    ready: Value,
}

impl Server {
    fn start(data: &Path, arguments: &[&str]) -> Self {
        let mut child = command(data, arguments).stdout(Stdio::piped()).spawn().expect("statefuld runs");
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        output.read_line(&mut line).expect("it prints");
        let ready = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        Self { child, output, ready }
    }

    fn controllers(&self) -> Vec<&str> {
        self.ready["controllers"].as_array().expect("a list").iter().filter_map(Value::as_str).collect()
    }

    /// SIGTERM, and how it ended.
    fn terminate(mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
        let status = self.child.wait().expect("it ends");
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).expect("text");
        assert_eq!(rest, "", "one line of JSON, and nothing else on standard output");
        status
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ended already in the good case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(data: &Path, arguments: &[&str]) -> Command {
    let mut command = statefuld();
    command.arg("server").arg("--data-dir").arg(data).args(["--listen", "127.0.0.1:0", "-o", "json"]).args(arguments);
    command
}

fn refusal(data: &Path, arguments: &[&str]) -> String {
    let output = command(data, arguments).output().expect("statefuld runs");
    assert!(!output.status.success(), "{arguments:?} must be refused");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn set(name: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: {name}}}\nspec:\n  serviceName: {name}\n  \
         selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    \
         spec: {{containers: [{{name: c, image: statefuld.local/sample}}]}}\n"
    )
}

#[test]
fn e2e_the_api_serves_alone_and_one_controller_works_alone() {
    let instance = Instance::new();
    let data = instance.data();
    let server = Server::start(&data, &["--controllers", "none"]);
    assert_eq!(server.ready["pid"], server.child.id());
    assert_eq!(instance.pid(), i32::try_from(server.child.id()).expect("pids are small"));
    assert_eq!(server.ready["kubeconfig"].as_str(), data.join("kubeconfig").to_str());
    assert!(server.controllers().is_empty());
    assert!(instance.kubectl(&["get", "--raw", "/readyz"]).contains("ok"));
    instance.kubectl_with(&["apply", "-f", "-"], &set("web")).expect("applied");
    assert_eq!(instance.get("statefulset", "web")["status"]["observedGeneration"], Value::Null);
    assert!(server.terminate().success());
    assert!(!data.join("statefuld.pid").exists(), "the pid file goes with the process");

    let server = Server::start(&data, &["--controllers", "statefulset-controller"]);
    assert_eq!(server.controllers(), ["statefulset"]);
    let created = |pod: &str| {
        eventually(&format!("{pod} is created"), || {
            serde_json::from_str::<Value>(&instance.try_kubectl(&["get", "pod", pod, "-o", "json"]).ok()?).ok()
        })
    };
    let pod = created("web-0");
    assert_eq!(pod["metadata"]["ownerReferences"][0]["name"], "web");
    // Nobody collects garbage: by the time that the controller has done something later, the pod is there still.
    instance.kubectl(&["delete", "statefulset", "web", "--wait=false"]);
    instance.kubectl_with(&["apply", "-f", "-"], &set("later")).expect("applied");
    created("later-0");
    assert_eq!(created("web-0")["metadata"]["uid"], pod["metadata"]["uid"]);
    assert!(server.terminate().success());

    // Now somebody does.
    let server = Server::start(&data, &["--controllers", "*,-scheduler"]);
    assert!(server.controllers().contains(&"garbagecollector") && !server.controllers().contains(&"scheduler"));
    instance.gone("web-0");
    // `down` ends it as well.
    instance.down(&[]);
    let mut server = server;
    assert!(server.child.wait().expect("it ends").success());
}

#[test]
fn e2e_server_flags_are_checked_and_their_ranges_hold() {
    let instance = Instance::new();
    let data = instance.data();
    let said = refusal(&data, &["--controllers", "*,-statefulsets"]);
    for word in ["--controllers", "did you mean \"statefulset\"?", "garbagecollector", "pvc-protection"] {
        assert!(said.contains(word), "{word:?} is missing in: {said}");
    }
    let said = refusal(&data, &["--service-cidr", "10.0.0.0/8"]);
    assert!(said.contains("--service-cidr") && said.contains("the mask must be >= 12"), "{said}");
    let said = refusal(&data, &["--service-node-port-range", "40000", "--service-node-port-range=9-1"]);
    assert!(said.contains("--service-node-port-range"), "{said}");
    let help = statefuld().args(["server", "--help"]).output().expect("statefuld runs");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for word in ["statefulset ", "(also garbage-collector-controller)", "scheduler "] {
        assert!(help.contains(word), "{word:?} is missing in: {help}");
    }

    let ranges = ["--controllers=none", "--service-cidr=10.43.8.0/28", "--service-node-port-range=40000-40001"];
    let server = Server::start(&data, &ranges);
    instance.kubectl(&["create", "service", "nodeport", "web", "--tcp=80"]);
    let service = instance.get("service", "web");
    let ip = service["spec"]["clusterIP"].as_str().expect("an address");
    assert!(ip.starts_with("10.43.8."), "{ip}");
    assert!([40000, 40001].contains(&service["spec"]["ports"][0]["nodePort"].as_i64().expect("a port")));
    let outside = instance.try_kubectl(&["create", "service", "clusterip", "x", "--clusterip=10.96.0.9", "--tcp=80"]);
    let outside = outside.expect_err("outside of the range");
    assert!(outside.contains("10.43.8.0/28"), "{outside}");
    let outside = instance.try_kubectl(&["create", "service", "nodeport", "x", "--node-port=30000", "--tcp=80"]);
    let outside = outside.expect_err("outside of the range");
    assert!(outside.contains("40000-40001"), "{outside}");
    assert!(server.terminate().success());
}
