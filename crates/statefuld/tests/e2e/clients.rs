//! Programs with other clients than kubectl: Python's and JavaScript's, installed by `cargo xtask install`, and kube-rs.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Instance, PATIENCE};

/// A file or folder of what xtask installs for the tests.
fn installed(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools").join(path);
    assert!(path.exists(), "{} is missing: run `cargo xtask install`", path.display());
    path
}

/// A script of `tests/clients/`.
fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

/// Runs a client's script against an instance of its own, to the end.
fn passes(change: impl FnOnce(&mut Command)) {
    let mut instance = Instance::new();
    instance.up(&[]);
    let mut command = instance.with_kubeconfig(Command::new("timeout"));
    command.arg(PATIENCE.as_secs().to_string());
    change(&mut command);
    let output = command.output().expect("timeout runs");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success() && text.contains("all is well"), "{}: {text}", output.status);
}

#[test]
fn e2e_the_python_client_works_unchanged() {
    passes(|command| {
        command.arg(installed("python/bin/python")).arg(script("client.py"));
    });
}

#[test]
fn e2e_the_javascript_client_works_unchanged() {
    passes(|command| {
        let modules = installed("javascript/node_modules");
        command.arg(modules.join(".bin/node")).arg(script("client.mjs")).env("NODE_MODULES", modules);
    });
}
