//! The main path through kubectl: a set's whole life, and what a person does with its pods.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::{Instance, PATIENCE, eventually};

/// A headless service and a set of shells on the machine's own root.
fn shells(replicas: u32, extra: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: shell}}
spec:
  clusterIP: None
  selector: {{app: shell}}
  ports: [{{name: talk, port: 7000}}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: shell}}
spec:
  serviceName: shell
  replicas: {replicas}
  {extra}
  selector: {{matchLabels: {{app: shell}}}}
  template:
    metadata: {{labels: {{app: shell}}}}
    spec:
      runtimeClassName: host
      terminationGracePeriodSeconds: 5
      containers:
        - name: shell
          image: host
          command: [/bin/bash, -c]
          args:
            - |
              trap 'echo stopped; exit 0' TERM
              echo "started $HOSTNAME incarnation $STATEFULD_INCARNATION"
              touch /tmp/ready
              while :; do sleep 0.1; done
          readinessProbe: {{exec: {{command: [/bin/test, -e, /tmp/ready]}}, periodSeconds: 1}}
          resources: {{limits: {{memory: 128Mi, cpu: 500m}}}}
          volumeMounts: [{{name: data, mountPath: /data}}]
  volumeClaimTemplates:
    - metadata: {{name: data}}
      spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 10Mi}}}}}}
"#
    )
}

fn apply(instance: &Instance, manifest: &str) -> String {
    instance.kubectl_with(&["apply", "-f", "-"], manifest).expect("kubectl apply")
}

#[test]
fn e2e_kubectl_drives_a_set_through_its_life() {
    let mut instance = Instance::new();
    instance.up(&[]);
    // Watched from the start, as a person would in a second terminal.
    let mut watch = instance
        .kubectl_command(&["get", "pods", "-w", "--no-headers", "-o", "custom-columns=N:.metadata.name"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl runs");

    let said = apply(&instance, &shells(3, ""));
    assert!(said.contains("service/shell created") && said.contains("statefulset.apps/shell created"), "{said}");
    let timeout = format!("--timeout={}s", PATIENCE.as_secs());
    instance.kubectl(&["rollout", "status", "statefulset/shell", &timeout]);
    instance.settled("shell", 3);
    // Applied again it says what it said: nothing is written. (kubectl itself says "configured" of any set with claim
    // templates, since it compares them without their defaults.)
    let version = || instance.get("statefulset", "shell")["metadata"]["resourceVersion"].clone();
    let before = version();
    apply(&instance, &shells(3, ""));
    assert_eq!(version(), before);

    // In order: each pod was created when its predecessor was Ready.
    let times: Vec<(String, String)> = (0..3)
        .map(|n| {
            let pod = instance.get("pod", &format!("shell-{n}"));
            let conditions = pod["status"]["conditions"].as_array().expect("conditions");
            let ready = conditions.iter().find(|c| c["type"] == "Ready").expect("Ready");
            let text = |v: &Value| v.as_str().expect("a time").to_owned();
            (text(&pod["metadata"]["creationTimestamp"]), text(&ready["lastTransitionTime"]))
        })
        .collect();
    assert!(times[0].1 <= times[1].0 && times[1].1 <= times[2].0, "{times:?}");
    let mut seen = Vec::new();
    for line in BufReader::new(watch.stdout.take().expect("a pipe")).lines() {
        let name = line.expect("a line").trim().to_owned();
        if seen.last() != Some(&name) {
            seen.push(name);
        }
        if seen.last().is_some_and(|name| name == "shell-2") {
            break;
        }
    }
    watch.kill().expect("it runs");
    watch.wait().expect("it ends");
    assert_eq!(seen, ["shell-0", "shell-1", "shell-2"]);

    let wide = instance.kubectl(&["get", "pods,statefulsets,services,pvc,pv,nodes", "-o", "wide"]);
    for word in ["shell-0", "3/3", "ClusterIP", "None", "Bound", "local", "Ready"] {
        assert!(wide.contains(word), "{word} is missing: {wide}");
    }
    assert!(
        instance
            .kubectl(&["describe", "statefulset", "shell"])
            .contains("create Pod shell-0 in StatefulSet shell successful")
    );
    assert!(instance.kubectl(&["describe", "pod", "shell-0"]).contains("Started"));
    assert!(instance.kubectl(&["get", "sts", "shell", "-o", "yaml"]).contains("serviceName: shell"));

    // Every kind that is served can be listed, in every form.
    for kind in instance.kubectl(&["api-resources", "--verbs=list", "-o", "name"]).lines() {
        for form in ["wide", "yaml", "json"] {
            instance.kubectl(&["get", kind, "-A", "-o", form]);
        }
    }

    // An update goes from the top down, and is a new revision.
    instance.kubectl(&["rollout", "restart", "statefulset/shell"]);
    instance.kubectl(&["rollout", "status", "statefulset/shell", &timeout]);
    eventually("the restart is complete", || {
        let status = instance.get("statefulset", "shell")["status"].clone();
        (status["currentRevision"] == status["updateRevision"] && status["readyReplicas"] == 3).then_some(())
    });
    assert_eq!(instance.kubectl(&["get", "controllerrevisions", "-o", "name"]).lines().count(), 2);

    // Scaling, both ways and by patch; labels.
    instance.kubectl(&["scale", "statefulset", "shell", "--replicas=1"]);
    instance.gone("shell-2");
    instance.gone("shell-1");
    instance.kubectl(&["patch", "statefulset", "shell", "-p", r#"{"spec":{"replicas":2}}"#]);
    instance.ready("shell-1", None);
    instance.kubectl(&["label", "pod", "shell-0", "colour=blue"]);
    assert!(instance.kubectl(&["get", "pods", "-l", "colour=blue", "-o", "name"]).contains("pod/shell-0"));

    // The set goes, the claims stay, a new set of that name gets them back.
    instance.exec("shell-1", "echo kept > /data/file").expect("exec");
    instance.kubectl(&["delete", "statefulset", "shell"]);
    instance.gone("shell-0");
    instance.gone("shell-1");
    assert_eq!(instance.kubectl(&["get", "pvc", "-o", "name"]).lines().count(), 3);
    apply(&instance, &shells(2, "podManagementPolicy: Parallel"));
    instance.settled("shell", 2);
    assert_eq!(instance.exec("shell-1", "cat /data/file").expect("exec"), "kept\n");
}

#[test]
fn e2e_exec_logs_and_restarts_are_as_on_any_cluster() {
    let mut instance = Instance::new();
    instance.up(&[]);
    apply(&instance, &shells(1, ""));
    instance.settled("shell", 1);

    assert_eq!(instance.exec("shell-0", "hostname").expect("exec"), "shell-0\n");
    let fqdn = instance.exec("shell-0", "hostname -f").expect("exec");
    assert_eq!(fqdn, "shell-0.shell.default.svc.cluster.local\n");
    let refused = instance.exec("shell-0", "exit 7").expect_err("the exit code comes through");
    assert!(refused.contains("exit code 7"), "{refused}");
    let piped = instance.kubectl_with(&["exec", "-i", "shell-0", "--", "cat"], "through stdin\n").expect("exec -i");
    assert_eq!(piped, "through stdin\n");
    // A terminal, as a person has one.
    let line = format!(
        "kubectl --kubeconfig {} exec -it shell-0 -- /bin/bash -c 'test -t 0 && tty && stty size'",
        instance.data().join("kubeconfig").display()
    );
    let typed = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env("HOME", instance.scratch())
        .stdin(Stdio::null())
        .output()
        .expect("script runs");
    let typed = String::from_utf8_lossy(&typed.stdout).into_owned();
    assert!(typed.contains("/dev/pts/"), "{typed}");

    // The pod sees neither the data directory nor the machine's secrets, and cannot change its programs.
    let data = instance.data();
    let inside =
        instance.exec("shell-0", &format!("ls {} 2>/dev/null; ls -A /root", data.display())).unwrap_or_default();
    assert_eq!(inside.trim(), "", "hidden from pods");
    instance.exec("shell-0", "touch /usr/bin/x").expect_err("/usr is read-only");
    instance.exec("shell-0", "touch /etc/only-in-the-pod").expect("/etc is the pod's own");
    assert!(!std::path::Path::new("/etc/only-in-the-pod").exists());

    // Logs, followed; and of the run before.
    let first = "started shell-0 incarnation 1";
    assert!(instance.kubectl(&["logs", "shell-0"]).contains(first));
    let mut follow =
        instance.kubectl_command(&["logs", "-f", "shell-0"]).stdout(Stdio::piped()).spawn().expect("kubectl runs");
    let mut lines = BufReader::new(follow.stdout.take().expect("a pipe")).lines();
    assert_eq!(lines.next().expect("a line").expect("text"), first);
    instance.kill_container("shell-0");
    follow.kill().expect("it may have ended");
    follow.wait().expect("it ends");
    assert!(instance.kubectl(&["logs", "shell-0"]).contains("started shell-0 incarnation 2"));
    assert!(instance.kubectl(&["logs", "--previous", "shell-0"]).contains(first));

    // SIGTERM comes first: the trap ran.
    let uid = instance.get("pod", "shell-0")["metadata"]["uid"].as_str().expect("a uid").to_owned();
    instance.kubectl(&["delete", "pod", "shell-0"]);
    instance.ready("shell-0", Some(&uid));
}

/// Answers of the node's DNS server, one a line.
fn dig(server: &str, name: &str, kind: &str) -> Vec<String> {
    let server = format!("@{server}");
    let output =
        Command::new("dig").args([&server, "+short", "+time=1", "+tries=2", name, kind]).output().expect("dig runs");
    let mut lines: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn e2e_dns_answers_for_pods_sets_and_named_ports_also_without_the_daemon() {
    let mut instance = Instance::new();
    instance.up(&[]);
    apply(&instance, &shells(2, ""));
    // A pod of no set that the service selects as well.
    let single = r#"
apiVersion: v1
kind: Pod
metadata: {name: alone, labels: {app: shell}}
spec:
  runtimeClassName: host
  hostname: hermit
  subdomain: shell
  containers: [{name: c, image: host, command: [/bin/sleep, infinity]}]
"#;
    apply(&instance, single);
    // And a pod of another set that the service selects as well.
    let second = shells(1, "")
        .split_once("---")
        .expect("two documents")
        .1
        .replace("metadata: {name: shell}", "metadata: {name: other}");
    apply(&instance, &second);
    instance.settled("shell", 4);
    let address = |pod: &str| instance.get("pod", pod)["status"]["podIP"].as_str().expect("an address").to_owned();
    let (zero, one, alone, other) = (address("shell-0"), address("shell-1"), address("alone"), address("other-0"));
    let resolv = instance.exec("shell-0", "cat /etc/resolv.conf").expect("exec");
    let server = resolv.lines().find_map(|l| l.strip_prefix("nameserver ")).expect("a name server").to_owned();

    let zone = "shell.default.svc.cluster.local";
    let check = || {
        let mut all = vec![zero.clone(), one.clone(), alone.clone(), other.clone()];
        all.sort();
        assert_eq!(dig(&server, zone, "A"), all);
        assert_eq!(dig(&server, &format!("shell-1.{zone}"), "A"), std::slice::from_ref(&one));
        assert_eq!(dig(&server, &format!("hermit.{zone}"), "A"), std::slice::from_ref(&alone));
        let srv = dig(&server, &format!("_talk._tcp.{zone}"), "SRV");
        assert_eq!(srv.len(), 4, "{srv:?}");
        assert_eq!(dig(&server, &format!("other-0.{zone}"), "A"), std::slice::from_ref(&other));
        assert!(srv.iter().any(|l| l.ends_with(&format!("7000 shell-0.{zone}."))), "{srv:?}");
        assert!(dig(&server, &format!("shell-9.{zone}"), "A").is_empty());
    };
    check();
    assert!(instance.exec("shell-0", "getent hosts shell-1.shell").expect("exec").starts_with(&one));
    instance.kill_daemon();
    check();
    instance.up(&[]);
    check();
}
