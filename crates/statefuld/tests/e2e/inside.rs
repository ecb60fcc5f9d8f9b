//! A program in a pod talks to the API as any program in a Kubernetes pod does: with what it finds there.

use std::fs;

use serde_json::Value;

use crate::harness::{Instance, eventually};

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  runtimeClassName: host
  terminationGracePeriodSeconds: 1
  containers:
    - name: c
      image: host
      command: [/bin/bash, -c, "trap 'exit 0' TERM; while :; do sleep 0.1; done"]
---
apiVersion: v1
kind: Pod
metadata: {name: on-the-machine}
spec:
  hostNetwork: true
  runtimeClassName: host
  terminationGracePeriodSeconds: 1
  containers:
    - name: c
      image: host
      command: [/bin/bash, -c, "trap 'exit 0' TERM; while :; do sleep 0.1; done"]
"#;

const FILES: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What a pod is told of itself by the API, asked with its own token.
fn whoami(instance: &Instance, pod: &str) -> Value {
    let said = instance.exec(pod, "HOME=/tmp kubectl auth whoami -o json").expect("the API is reached from the pod");
    serde_json::from_str::<Value>(&said).expect("JSON")["status"]["userInfo"].clone()
}

#[test]
fn e2e_a_program_in_a_pod_talks_to_the_api_with_what_it_finds_there() {
    let mut instance = Instance::new();
    instance.up(&[]);
    instance.kubectl_with(&["apply", "-f", "-"], PODS).expect("applied");
    for pod in ["client", "on-the-machine"] {
        let uid = instance.ready(pod, None)["metadata"]["uid"].clone();
        let user = whoami(&instance, pod);
        assert_eq!(user["username"], "system:serviceaccount:default:default");
        assert_eq!(user["extra"]["authentication.kubernetes.io/pod-uid"][0], uid);
    }
    // By name, and with what is there at the name.
    let service = instance.get("service", "kubernetes")["spec"]["clusterIP"].as_str().expect("an address").to_owned();
    let found = instance.exec("client", "getent hosts kubernetes.default.svc").expect("the name is known");
    assert!(found.starts_with(&service), "{found}");
    let flags = "--server=https://kubernetes.default.svc --certificate-authority=$D/ca.crt --token=$(cat $D/token)";
    let line = format!("export D={FILES} HOME=/tmp; kubectl {flags} -n $(cat $D/namespace) get pod client -o name");
    let refused = instance.exec("client", &line).expect_err("the account has no role");
    assert!(refused.contains("User \"system:serviceaccount:default:default\" cannot get resource"), "{refused}");
    instance.kubectl(&["create", "rolebinding", "look", "--clusterrole=view", "--serviceaccount=default:default"]);
    assert_eq!(instance.exec("client", &line), Ok("pod/client\n".to_owned()));
    // Tokens are replaced by an agent that does not know their age.
    let token = instance.exec("client", &format!("cat {FILES}/token")).expect("a token");
    instance.down(&["--keep-pods"]);
    instance.up(&[]);
    eventually("the token is replaced", || {
        instance.exec("client", &format!("cat {FILES}/token")).ok().filter(|now| *now != token)
    });
    assert_eq!(whoami(&instance, "client")["username"], "system:serviceaccount:default:default");
}

#[test]
fn e2e_tokens_from_a_file_are_good_and_others_are_not() {
    let mut instance = Instance::new();
    let file = instance.scratch().join("tokens.csv");
    fs::write(&file, "good,ann,u1,\"crew,system:masters\"\n").expect("written");
    instance.mark_started();
    let output = instance.up_command(&[]).arg("--token-auth-file").arg(&file).output().expect("statefuld runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let server = format!("--server={}", report["server"].as_str().expect("a URL"));
    let ask = |token: &str| {
        let token = format!("--token={token}");
        let arguments = ["--kubeconfig=/dev/null", &server, "--insecure-skip-tls-verify", &token, "auth", "whoami"];
        instance.try_kubectl(&[&arguments[..], &["-o", "jsonpath={.status.userInfo.username}"]].concat())
    };
    assert_eq!(ask("good"), Ok("ann".to_owned()));
    let refused = ask("bad").expect_err("a wrong token is refused");
    assert!(refused.contains("You must be logged in to the server"), "{refused}");
}
