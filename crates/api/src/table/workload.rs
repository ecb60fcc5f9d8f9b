//! Rows of deployments, replica sets, jobs and cron jobs.

use jiff::Timestamp;
use serde_json::Value;

use super::cells::label_selector;
use super::text::{NONE, UNSET, age, at, human_duration, list, number, or, since};

/// The cells of one object; its name where the kind has no columns of its own.
pub(super) fn cells(kind: &str, item: &Value, now: Timestamp) -> Vec<Value> {
    let (mut row, containers, selector) = match kind {
        "Deployment" => (deployment(item), "/spec/template/spec/containers", &item["spec"]["selector"]),
        "ReplicaSet" => (replica_set(item), "/spec/template/spec/containers", &item["spec"]["selector"]),
        "Job" => (job(item, now), "/spec/template/spec/containers", &item["spec"]["selector"]),
        "CronJob" => {
            let containers = "/spec/jobTemplate/spec/template/spec/containers";
            (cron_job(item, now), containers, &item["spec"]["jobTemplate"]["spec"]["selector"])
        }
        _ => return vec![at(item, "/metadata/name").into(), at(item, "/metadata/creationTimestamp").into()],
    };
    row.push(age(item, now));
    row.extend(self::containers(list(item, containers)));
    row.push(label_selector(selector).into());
    row
}

/// Names and images of containers.
pub(super) fn containers(containers: &[Value]) -> [Value; 2] {
    ["name", "image"]
        .map(|field| containers.iter().map(|c| c[field].as_str().unwrap_or("")).collect::<Vec<_>>().join(",").into())
}

fn deployment(item: &Value) -> Vec<Value> {
    vec![
        at(item, "/metadata/name").into(),
        format!("{}/{}", number(item, "/status/readyReplicas"), number(item, "/spec/replicas")).into(),
        number(item, "/status/updatedReplicas").into(),
        number(item, "/status/availableReplicas").into(),
    ]
}

fn replica_set(item: &Value) -> Vec<Value> {
    let counts = ["/spec/replicas", "/status/replicas", "/status/readyReplicas"].map(|path| number(item, path).into());
    std::iter::once(at(item, "/metadata/name").into()).chain(counts).collect()
}

fn job(item: &Value, now: Timestamp) -> Vec<Value> {
    let succeeded = number(item, "/status/succeeded");
    let completions = match (item["spec"]["completions"].as_i64(), number(item, "/spec/parallelism")) {
        (Some(completions), _) => format!("{succeeded}/{completions}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let time = |pointer: &str| at(item, pointer).parse::<Timestamp>().ok();
    let duration = time("/status/startTime").map_or(String::new(), |start| {
        let end = time("/status/completionTime").unwrap_or(now);
        human_duration(end.as_second() - start.as_second())
    });
    vec![at(item, "/metadata/name").into(), job_status(item).into(), completions.into(), duration.into()]
}

/// How far a job is, in one word.
fn job_status(item: &Value) -> &'static str {
    let is = |kind: &str| list(item, "/status/conditions").iter().any(|c| c["type"] == kind && c["status"] == "True");
    match () {
        () if is("Complete") => "Complete",
        () if is("Failed") => "Failed",
        () if !item["metadata"]["deletionTimestamp"].is_null() => "Terminating",
        () if is("Suspended") => "Suspended",
        () if is("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () if is("FailureTarget") => "FailureTarget",
        () => "Running",
    }
}

fn cron_job(item: &Value, now: Timestamp) -> Vec<Value> {
    let last = match at(item, "/status/lastScheduleTime") {
        "" => NONE.to_owned(),
        _ => since(item, "/status/lastScheduleTime", now),
    };
    let suspend = match item["spec"]["suspend"].as_bool() {
        Some(true) => "True",
        Some(false) => "False",
        None => UNSET,
    };
    vec![
        at(item, "/metadata/name").into(),
        at(item, "/spec/schedule").into(),
        or(at(item, "/spec/timeZone"), NONE).into(),
        suspend.into(),
        list(item, "/status/active").len().into(),
        last.into(),
    ]
}
