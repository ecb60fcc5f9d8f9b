//! Images at the command line: pulled, imported, listed and removed while the daemon runs, and a set that runs from one.

use std::fs;

use imagetest::{Compression, Image, Layer, Options, Registry};
use serde_json::{Value, json};

use crate::harness::{Instance, statefuld};

/// `statefuld image …` for an instance; its document, or what it complained.
fn image(instance: &Instance, arguments: &[&str]) -> Result<Value, String> {
    let output = statefuld()
        .arg("image")
        .args(arguments)
        .arg("--data-dir")
        .arg(instance.data())
        .args(["-o", "json"])
        .output()
        .expect("statefuld runs");
    if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).expect("-o json prints JSON"))
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[test]
fn e2e_a_set_runs_from_an_image_of_a_private_registry_and_commands_manage_images_meanwhile() {
    let mut instance = Instance::new();
    let user = Some(("robot".to_owned(), "secret".to_owned()));
    let registry = Registry::start(Options { user, tokens: true, tls: true, redirect: true });
    let programs = ["/bin/sh", "/bin/sleep", "/bin/cat"].iter().fold(Layer::new(), |layer, name| layer.program(name));
    let own = Layer::new().compressed(Compression::Zstd).file("motd", 0o644, "from the image");
    let app = Image::new([programs, own]).command(["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"]);
    let name = registry.put("team/app", "1", &app.built());
    // What can be done before anything was ever started there.
    let archive = instance.scratch().join("other.tar");
    app.env("OTHER", "1").built().write_docker_archive(&archive, &["other:1"], Compression::None);
    let imported = image(&instance, &["import", archive.to_str().expect("UTF-8")]).expect("imported");
    assert_eq!(imported["images"][0]["names"][0], "docker.io/library/other:1");
    let authority = instance.scratch().join("ca.pem");
    fs::write(&authority, registry.authority()).expect("written");
    let settings = json!({"registries": {registry.host(): {"caFile": authority}}});
    fs::write(instance.data().join("registries.json"), settings.to_string()).expect("written");

    let auths = json!({"auths": {registry.host(): {"username": "robot", "password": "secret"}}}).to_string();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "app"},
        "imagePullSecrets": [{"name": "pull"}]});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pull"},
        "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": auths}});
    instance.up(&[]);
    for object in [account, secret] {
        instance.kubectl_with(&["apply", "-f", "-"], &object.to_string()).expect("applied");
    }
    let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "app"}, "spec": {
        "replicas": 2, "serviceName": "app", "selector": {"matchLabels": {"app": "app"}},
        "template": {"metadata": {"labels": {"app": "app"}}, "spec": {"serviceAccountName": "app",
            "terminationGracePeriodSeconds": 5,
            "containers": [{"name": "app", "image": name, "imagePullPolicy": "Always"}]}}}});
    instance.kubectl_with(&["apply", "-f", "-"], &set.to_string()).expect("applied");
    instance.settled("app", 2);
    let printed = instance.kubectl(&["exec", "app-1", "--", "/bin/cat", "/motd"]);
    assert_eq!(printed, "from the image");

    let credentials = instance.scratch().join("config.json");
    fs::write(&credentials, &auths).expect("written");
    assert!(image(&instance, &["pull", &name]).expect_err("nobody is let in").contains("pull access denied"));
    let file = credentials.to_str().expect("UTF-8");
    let pulled = image(&instance, &["pull", &name, "--auth-file", file]).expect("pulled");
    assert_eq!(pulled["images"][0]["inUse"], true, "{pulled}");
    let refused = image(&instance, &["remove", &name]).expect_err("in use");
    assert!(refused.contains("is in use by a pod"), "{refused}");
    let pruned = image(&instance, &["prune"]).expect("pruned");
    assert_eq!(pruned["removed"], json!(["docker.io/library/other:1"]));
    instance.kubectl(&["delete", "statefulset", "app"]);
    instance.gone("app-0");
    instance.gone("app-1");
    image(&instance, &["remove", &name]).expect("removed");
    assert_eq!(image(&instance, &["list"]).expect("listed")["images"], json!([]));
    assert!(image(&instance, &["remove", &name]).expect_err("gone").contains("there is no image"));
}
