//! A database with its exporter and its dump, as a chart renders them: all of it runs.

use std::path::Path;

use crate::harness::{Instance, eventually};

/// How many keys the exporter's page tells, read from inside one of its pods.
fn keys(instance: &Instance) -> Option<String> {
    let page = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9121/metrics').read().decode())";
    let inside = ["exec", "deployment/store-metrics", "--", "/usr/bin/python3", "-c", page];
    let text = instance.try_kubectl(&inside).ok()?;
    text.lines().find_map(|line| line.strip_prefix("store_keys ").map(str::to_owned))
}

/// Of a job that succeeded after now, what its pod said.
fn dump_says(instance: &Instance, what: &str) {
    eventually(what, || {
        let log = ["logs", "-l", "app.kubernetes.io/component=dump", "--tail=5"];
        instance.try_kubectl(&log).ok()?.contains(what).then_some(())
    });
}

#[test]
fn e2e_a_database_with_its_exporter_and_its_dump_runs_whole() {
    let mut instance = Instance::new();
    instance.up(&[]);
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/bundle.yaml");
    instance.kubectl(&["apply", "-f", bundle.to_str().expect("a path")]);
    instance.kubectl(&["rollout", "status", "statefulset/store", "--timeout=120s"]);
    instance.kubectl(&["rollout", "status", "deployment/store-metrics", "--timeout=120s"]);
    let set = ["-a", "hunter2", "--no-auth-warning", "set", "colour", "green"];
    instance.kubectl(&[&["exec", "store-0", "--", "redis-cli"], &set[..]].concat());
    assert_eq!(keys(&instance).as_deref(), Some("1"));

    // By its schedule, by hand, and never more of them than are kept.
    dump_says(&instance, "dumped 1 keys");
    instance.kubectl(&["create", "job", "now", "--from=cronjob/store-dump"]);
    instance.kubectl(&["wait", "--for=condition=complete", "job/now", "--timeout=120s"]);
    assert!(instance.kubectl(&["logs", "job/now"]).contains("dumped 1 keys"));
    instance.kubectl(&["patch", "cronjob", "store-dump", "-p", r#"{"spec":{"suspend":true}}"#]);
    eventually("finished jobs are kept as the limit says", || {
        let cron = instance.get("cronjob", "store-dump");
        let names = instance.kubectl(&["get", "jobs", "-o", "name"]);
        let of_schedule = names.lines().filter(|name| name.starts_with("job.batch/store-dump-")).count();
        (of_schedule <= 2 && cron["status"]["active"].is_null()).then_some(())
    });
    assert!(!instance.get("cronjob", "store-dump")["status"]["lastSuccessfulTime"].is_null());

    // A new exporter replaces the old one, which is up until then; a broken one never does.
    let variable = ["set", "env", "deployment/store-metrics", "VERSION=2"];
    instance.kubectl(&variable);
    instance.kubectl(&["rollout", "status", "deployment/store-metrics", "--timeout=120s"]);
    instance.kubectl(&["set", "env", "deployment/store-metrics", "STORE_HOST=nowhere.invalid"]);
    eventually("the broken one is tried", || {
        let pods = instance.kubectl(&["get", "pods", "-l", "app.kubernetes.io/component=metrics", "-o", "name"]);
        (pods.lines().count() == 2).then_some(())
    });
    assert_eq!(instance.get("deployment", "store-metrics")["status"]["availableReplicas"], 1);
    instance.kubectl(&["rollout", "undo", "deployment/store-metrics"]);
    instance.kubectl(&["rollout", "status", "deployment/store-metrics", "--timeout=120s"]);
    eventually("the exporter tells of the store", || keys(&instance).filter(|keys| keys == "1"));

    instance.kubectl(&["delete", "-f", bundle.to_str().expect("a path"), "--timeout=120s"]);
    eventually("pods go with what made them", || {
        let pods = instance.kubectl(&["get", "pods,jobs,replicasets", "-o", "name"]);
        let left = pods.lines().filter(|name| !name.contains("/now")).count();
        (left == 0).then_some(())
    });
}
