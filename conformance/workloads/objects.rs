//! Workloads as objects: what is completed, and what is refused, in upstream's words.

use serde_json::{Value, json};

use super::{Act, CRON_JOB, DEPLOYMENT, JOB, Kind, Play, REPLICA_SET, ensure, template};
use crate::players::objects::text;
use crate::runner::Verdict;

pub(super) const CASES: &[(&str, Act)] = &[
    ("what_is_left_out_is_completed", |p| Box::pin(defaults(p))),
    ("what_cannot_be_is_refused_with_field_and_reason", |p| Box::pin(refused(p))),
    ("what_must_stay_is_refused_to_change", |p| Box::pin(immutable(p))),
];

/// A spec of no pods that nothing is wrong with.
fn spec(kind: Kind) -> Value {
    let selector = json!({"matchLabels": {"app": "web"}});
    match kind.kind {
        "Job" => json!({"suspend": true, "template": template("v1", "Never")}),
        "CronJob" => json!({"schedule": "@yearly", "suspend": true,
            "jobTemplate": {"spec": {"template": template("v1", "Never")}}}),
        _ => json!({"replicas": 0, "selector": selector, "template": template("v1", "Always")}),
    }
}

async fn defaults(play: &Play) -> Verdict {
    let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}});
    for (kind, completed) in [
        (DEPLOYMENT, json!({"strategy": rolling, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600})),
        (REPLICA_SET, json!({})),
        (
            JOB,
            json!({"completions": 1, "parallelism": 1, "backoffLimit": 6, "completionMode": "NonIndexed",
                "podReplacementPolicy": "TerminatingOrFailed", "manualSelector": false}),
        ),
        (CRON_JOB, json!({"concurrencyPolicy": "Allow", "successfulJobsHistoryLimit": 3, "failedJobsHistoryLimit": 1})),
    ] {
        let made = play.create(kind, "web", spec(kind)).await?;
        for (field, value) in completed.as_object().into_iter().flatten() {
            let is_so = made["spec"][field] == *value || (*value == false && made["spec"][field].is_null());
            ensure(is_so, || format!("{} {field} is {}, not {value}", kind.kind, made["spec"][field]))?;
        }
        let first = kind.kind == "Job" || made["metadata"]["generation"] == 1;
        ensure(first, || format!("{:#}", made["metadata"]))?;
    }
    let job = play.stage.client.expect("GET", &play.path(JOB, "web"), None).await?;
    let uid = &job["metadata"]["uid"];
    ensure(job["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"] == *uid, || {
        format!("{job:#}")
    })?;
    let labels = &job["spec"]["template"]["metadata"]["labels"];
    ensure(labels["batch.kubernetes.io/job-name"] == "web" && labels["job-name"] == "web", || format!("{labels:#}"))
}

/// The spec with another value at a place.
fn with(kind: Kind, pointer: &str, value: Value) -> Value {
    let mut spec = spec(kind);
    let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
    spec.pointer_mut(parent).expect("it is there")[field] = value;
    spec
}

async fn refused(play: &Play) -> Verdict {
    let labels = json!({"app": "other"});
    for (kind, pointer, value, says) in [
        (DEPLOYMENT, "/template/metadata/labels", labels.clone(), "`selector` does not match template `labels`"),
        (REPLICA_SET, "/template/metadata/labels", labels, "`selector` does not match template `labels`"),
        (DEPLOYMENT, "/replicas", json!(-1), "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
        (
            DEPLOYMENT,
            "/template/spec/restartPolicy",
            json!("Never"),
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
        ),
        (
            DEPLOYMENT,
            "/strategy",
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}),
            "may not be 0 when `maxSurge` is 0",
        ),
        (
            DEPLOYMENT,
            "/strategy",
            json!({"type": "Recreate", "rollingUpdate": {}}),
            "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
        ),
        (DEPLOYMENT, "/minReadySeconds", json!(600), "must be greater than minReadySeconds"),
        (
            JOB,
            "/template/spec/restartPolicy",
            json!("Always"),
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
        ),
        (JOB, "/completionMode", json!("Indexed"), "spec.completions: Required value: when completion mode is Indexed"),
        (JOB, "/backoffLimit", json!(-1), "spec.backoffLimit: Invalid value: -1: must be greater than or equal to 0"),
        (
            CRON_JOB,
            "/schedule",
            json!("x"),
            "spec.schedule: Invalid value: \"x\": expected exactly 5 fields, found 1: [x]",
        ),
        (CRON_JOB, "/schedule", json!(""), "spec.schedule: Required value"),
        (
            CRON_JOB,
            "/schedule",
            json!("TZ=UTC 0 0 * * *"),
            "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        ),
        (
            CRON_JOB,
            "/timeZone",
            json!("Nowhere/City"),
            "spec.timeZone: Invalid value: \"Nowhere/City\": unknown time zone Nowhere/City",
        ),
        (CRON_JOB, "/concurrencyPolicy", json!("Maybe"), "spec.concurrencyPolicy: Unsupported value: \"Maybe\""),
    ] {
        let mut spec = with(kind, pointer, value);
        if pointer == "/completionMode" {
            spec["parallelism"] = json!(2);
        }
        let (code, answer) = play.try_create(kind, "web", spec).await;
        let told = code == 422 && text(&answer["message"]).contains(says);
        ensure(told, || format!("{} {pointer}: {code} {} instead of {says}", kind.kind, answer["message"]))?;
    }
    Ok(())
}

async fn immutable(play: &Play) -> Verdict {
    let selector = || {
        let expression = json!({"key": "app", "operator": "Exists"});
        json!({"matchLabels": {"app": "web"}, "matchExpressions": [expression]})
    };
    for kind in [DEPLOYMENT, REPLICA_SET, JOB] {
        play.create(kind, "web", spec(kind)).await?;
    }
    for (kind, field, value) in [
        (DEPLOYMENT, "selector", selector()),
        (REPLICA_SET, "selector", selector()),
        (JOB, "completions", json!(5)),
        (JOB, "template", template("v2", "Never")),
    ] {
        let mut object = play.stage.client.expect("GET", &play.path(kind, "web"), None).await?;
        object["spec"][field] = value;
        let (code, answer) = play.stage.client.call("PUT", &play.path(kind, "web"), Some(&object)).await;
        let told = code == 422 && text(&answer["message"]).contains("field is immutable");
        ensure(told, || format!("{} {field}: {code} {}", kind.kind, answer["message"]))?;
    }
    Ok(())
}
