//! `plan` and `why`, asked about a running instance: what would happen, and what waits for what.

use std::process::Output;

use serde_json::{Value, json};

use crate::harness::{Instance, eventually, example, statefuld};

/// Runs a command against an instance.
fn ask(instance: &Instance, arguments: &[&str]) -> Output {
    let mut command = statefuld();
    command.args(arguments).arg("--data-dir").arg(instance.data());
    command.output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The sentences of `why -o json`.
fn sentences(instance: &Instance, object: &[&str]) -> Vec<String> {
    let output = ask(instance, &[&["why", "-o", "json"], object].concat());
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
    let all = answer["waiting"].as_array().expect("a list").iter();
    all.map(|finding| finding["sentence"].as_str().expect("a sentence").to_owned()).collect()
}

#[test]
fn e2e_plan_says_what_would_happen_and_writes_nothing() {
    let mut instance = Instance::new();
    instance.up(&[example("journal.yaml")]);
    let journal = example("journal.yaml");
    let unchanged = ask(&instance, &["plan", "-f", journal.to_str().expect("a path")]);
    assert_eq!(unchanged.status.code(), Some(0), "{}{}", text(&unchanged.stdout), text(&unchanged.stderr));

    let manifest = std::fs::read_to_string(&journal).expect("the example");
    let changed = instance.scratch().join("changed.yaml");
    let edited = manifest
        .replace("replicas: 3", "replicas: 2")
        .replace("image: statefuld", "tty: true\n          image: statefuld");
    assert_ne!(edited, manifest);
    std::fs::write(&changed, edited).expect("a file");
    let before = instance.get("statefulset", "journal");
    let planned = ask(&instance, &["plan", "-o", "json", "-f", changed.to_str().expect("a path")]);
    assert_eq!(planned.status.code(), Some(2), "{}", text(&planned.stderr));
    let plan: Value = serde_json::from_slice(&planned.stdout).expect("JSON");
    let set = plan["objects"]
        .as_array()
        .expect("objects")
        .iter()
        .find(|o| o["object"] == "statefulset/journal")
        .expect("the set");
    assert_eq!(set["rollout"]["restarts"], json!(["journal-1", "journal-0"]), "{set:#}");
    let steps: Vec<&str> =
        set["rollout"]["steps"].as_array().expect("steps").iter().filter_map(Value::as_str).collect();
    assert!(steps[0].starts_with("stop journal-2: it is no longer wanted"), "{steps:?}");
    assert!(steps[1].starts_with("stop journal-1: it is replaced"), "{steps:?}");
    assert_eq!(steps.last(), Some(&"wait until journal-0 is Ready"), "{steps:?}");
    let fields = set["fields"].to_string();
    assert!(fields.contains("spec.replicas: 3 → 2") && fields.contains("containers[journal].tty"), "{fields}");
    assert_eq!(instance.get("statefulset", "journal"), before, "a plan writes nothing");

    let refused = instance.scratch().join("refused.yaml");
    std::fs::write(&refused, manifest.replace("serviceName: journal", "serviceName: other")).expect("a file");
    let output = ask(&instance, &["plan", "-f", refused.to_str().expect("a path")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("updates to statefulset spec for fields other than"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn e2e_why_names_the_root_of_what_waits_and_a_quorum_that_order_keeps_apart() {
    let mut instance = Instance::new();
    instance.up(&[]);
    let sick = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "sick"}, "spec": {
        "replicas": 3, "serviceName": "sick", "selector": {"matchLabels": {"app": "sick"}},
        "template": {"metadata": {"labels": {"app": "sick"}}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [
            {"name": "app", "image": "statefuld.local/sample", "env": [{"name": "PEERS", "value": "sick-0.sick,sick-1.sick"}],
             "readinessProbe": {"httpGet": {"path": "/nowhere", "port": 8080}, "periodSeconds": 1}}]}}}});
    let crash = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "crash"}, "spec": {"runtimeClassName": "host",
        "containers": [{"name": "c", "image": "host", "command": ["sh", "-c", "echo no config; exit 3"]}]}});
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "lost"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "gp2", "resources": {"requests": {"storage": "1Gi"}}}});
    let user = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "user"}, "spec": {
        "containers": [{"name": "c", "image": "statefuld.local/sample", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "lost"}}]}});
    let template = json!({"metadata": {"labels": {"app": "greedy"}}, "spec": {"containers": [
        {"name": "c", "image": "statefuld.local/sample", "resources": {"requests": {"cpu": "1000"}}}]}});
    let greedy = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "greedy"}, "spec": {
        "selector": {"matchLabels": {"app": "greedy"}}, "template": template}});
    let mut once = template.clone();
    once["spec"]["restartPolicy"] = "Never".into();
    let nightly = json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "nightly"}, "spec": {
        "schedule": "@daily", "jobTemplate": {"spec": {"template": once}}}});
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "held"}, "spec": {
        "suspend": true, "template": once}});
    for object in [&sick, &crash, &claim, &user, &greedy, &nightly, &job] {
        instance.kubectl_with(&["apply", "-f", "-"], &object.to_string()).expect("it is accepted");
    }

    let found = eventually("the chain of a pod that is not created", || {
        let all = sentences(&instance, &["pod/sick-2"]);
        all.into_iter().find(|text| text.contains("answered 404") && text.contains("times"))
    });
    assert!(found.starts_with("sick-2 is not created: sick-0 is not Ready for "), "{found}");
    assert!(found.contains("readiness GET :8080/nowhere answered 404"), "{found}");
    eventually("the deadlock of a quorum", || {
        sentences(&instance, &["sts/sick"])
            .into_iter()
            .find(|text| text.contains("refers to sick-1, which is created only once"))
    });
    eventually("a crash loop with its last words", || {
        let all = sentences(&instance, &["pod/crash"]);
        all.into_iter().find(|text| text.contains("exit code 3") && text.contains("last log line: no config"))
    });
    let claims = eventually("the claim behind the pod", || {
        sentences(&instance, &["pod/user"]).into_iter().find(|text| text.contains("pvc/lost is not bound"))
    });
    assert!(claims.ends_with("storageclass/gp2 does not exist"), "{claims}");
    eventually("a deployment down to its pod", || {
        let all = sentences(&instance, &["deploy/greedy"]);
        all.into_iter().find(|text| {
            text.starts_with("deploy/greedy has 0 of 1 pods available: greedy-") && text.contains("Insufficient cpu")
        })
    });
    eventually("a job that is held", || {
        sentences(&instance, &["job/held"]).into_iter().find(|text| text.starts_with("job/held is suspended for "))
    });
    let next = sentences(&instance, &["cronjob/nightly"]);
    assert!(next.len() == 1 && next[0].starts_with("cronjob/nightly starts its next job in "), "{next:?}");
    let all = sentences(&instance, &[]);
    assert!(all.iter().any(|text| text.starts_with("deploy/greedy")), "{all:?}");
    assert!(!all.iter().any(|text| text.starts_with("cronjob/nightly")), "what has time is not stuck: {all:?}");
    let human = ask(&instance, &["why", "pvc/lost"]);
    assert!(
        text(&human.stdout).contains("to unblock: create the class gp2, or name one of: local"),
        "{}",
        text(&human.stdout)
    );
    for (wrong, says) in [("pod/none", "there is no pod \"none\""), ("web", "write KIND/NAME"), ("svc/x", "why knows")]
    {
        let output = ask(&instance, &["why", wrong]);
        assert_eq!(output.status.code(), Some(1), "{wrong}");
        assert!(text(&output.stderr).contains(says), "{}", text(&output.stderr));
    }
}
