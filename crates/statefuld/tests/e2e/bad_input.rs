//! What is wrong is said in one clear sentence, and nothing is half applied.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;

use crate::harness::{Instance, statefuld};

fn file(instance: &Instance, text: &str) -> PathBuf {
    let path = instance.scratch().join("bad.yaml");
    fs::write(&path, text).expect("a file");
    path
}

/// Applies the text and gives the error; asserts that it is one.
fn refusal(instance: &Instance, text: &str) -> String {
    let output = instance.up_command(&[file(instance, text)]).output().expect("statefuld runs");
    assert!(!output.status.success(), "it must be refused: {text}");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!error.contains("panicked"), "{error}");
    error
}

const GOOD: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: good}\n";

#[test]
fn e2e_a_bad_manifest_is_refused_whole_with_file_object_field_and_remedy() {
    let mut instance = Instance::new();
    instance.up(&[]);
    let set = |name: &str, spec: &str| {
        format!(
            "{GOOD}---\napiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: {name}}}\nspec:\n  selector: {{matchLabels: {{a: b}}}}\n  \
             template: {{metadata: {{labels: {{a: b}}}}, spec: {{containers: [{{name: c, image: statefuld.local/sample}}]}}}}\n  {spec}\n"
        )
    };
    let long = "x".repeat(64);
    for (text, words) in [
        (format!("{GOOD}---\nkind: [ConfigMap\n"), vec!["bad.yaml:5", "not valid YAML"]),
        (
            format!("{GOOD}---\napiVersion: apps/v1\nkind: Statefulset\nmetadata: {{name: a}}\n"),
            vec!["bad.yaml:5", "write it as apps/v1 StatefulSet"],
        ),
        (
            format!("{GOOD}---\napiVersion: v1\nkind: Secret\nmetadata: {{name: a, namespace: nowhere}}\n"),
            vec!["bad.yaml:5", "Secret \"a\"", "namespace \"nowhere\" does not exist", "--create-namespaces"],
        ),
        (set("web", "replicas: three"), vec!["bad.yaml:5", "StatefulSet \"web\"", "replicas"]),
        (
            set("web", "replicas: -1"),
            vec!["bad.yaml:5", "StatefulSet \"web\"", "spec.replicas", "greater than or equal to 0"],
        ),
        (set("web", "replica: 1"), vec!["bad.yaml:5", "StatefulSet \"web\"", "unknown field \"spec.replica\""]),
        (set(&long, "replicas: 1"), vec!["bad.yaml:5", "metadata.name", "63"]),
        (format!("{GOOD}---\n{GOOD}data: {{a: b}}\n"), vec!["bad.yaml:5", "ConfigMap \"good\"", "a second time"]),
        (format!("{GOOD}data: {{a: x}}\ndata: {{b: y}}\n"), vec!["bad.yaml:", "duplicate"]),
    ] {
        let error = refusal(&instance, &text);
        for word in words {
            assert!(error.contains(word), "{word:?} is missing in: {error}");
        }
        assert!(instance.try_kubectl(&["get", "configmap", "good"]).is_err(), "half applied: {error}");
    }
    // kubectl gets the same answers in its own form.
    let error = instance.kubectl_with(&["apply", "-f", "-"], &set("web", "replica: 1")).expect_err("refused");
    assert!(error.contains("unknown field \"spec.replica\""), "{error}");
}

#[test]
fn e2e_a_machine_that_cannot_is_told_what_to_do() {
    let mut instance = Instance::new();
    // The port is taken.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let start = |instance: &Instance, listen: &str| {
        let output = statefuld()
            .args(["up", "--detach", "--listen", listen, "--data-dir"])
            .arg(instance.data())
            .output()
            .expect("statefuld runs");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (worked, error) = start(&instance, &address);
    assert!(!worked && error.contains(&address) && error.contains("--listen"), "{error}");
    // The data directory is taken.
    instance.up(&[]);
    let (worked, error) = start(&instance, "127.0.0.1:0");
    assert!(!worked && error.contains("in use by another statefuld") && error.contains("--data-dir"), "{error}");
    // No root.
    let readable = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir()
        .expect("a temporary directory");
    let program = readable.path().join("statefuld");
    fs::copy(env!("CARGO_BIN_EXE_statefuld"), &program).expect("a copy that everybody may run");
    let output = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args(["up", "--listen", "127.0.0.1:0", "--data-dir", "/tmp/statefuld-not-root"])
        .output()
        .expect("setpriv runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("root"), "{error}");
    // No control groups.
    let line = "umount -R -l /sys/fs/cgroup; exec \"$0\" up --listen 127.0.0.1:0 --data-dir \"$1\"";
    let output = std::process::Command::new("unshare")
        .args(["--mount", "/bin/sh", "-c", line, env!("CARGO_BIN_EXE_statefuld")])
        .arg(readable.path().join("data"))
        .output()
        .expect("unshare runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("no control groups") && error.contains("mount"), "{error}");
}

#[test]
fn e2e_a_full_disk_is_said_and_nothing_acknowledged_is_lost() {
    let mut instance = Instance::new();
    let data = instance.data();
    fs::create_dir(&data).expect("a folder");
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=96m", "tmpfs"])
        .arg(&data)
        .status()
        .expect("mount runs");
    assert!(mounted.success());
    // Unmounted whatever happens below, after the instance is down.
    struct Unmount(PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let unmount = Unmount(data.clone());
    instance.up(&[]);
    instance.kubectl(&["create", "configmap", "kept", "--from-literal=a=b"]);
    fs::write(data.join("ballast"), vec![0u8; 256 << 20]).expect_err("the disk is full now");
    let large = "x".repeat(400_000);
    let mut refused = None;
    for n in 0..40 {
        let manifest =
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: large-{n}}}\ndata: {{a: {large}}}\n");
        if let Err(error) = instance.kubectl_with(&["create", "-f", "-"], &manifest) {
            refused = Some(error);
            break;
        }
    }
    let refused = refused.expect("a full disk refuses writes");
    assert!(refused.contains("full"), "{refused}");
    fs::remove_file(data.join("ballast")).expect("the ballast");
    assert!(instance.kubectl(&["get", "configmap", "kept"]).contains("kept"));
    instance.kubectl(&["create", "configmap", "after", "--from-literal=a=b"]);
    instance.down(&[]);
    drop(unmount);
}
