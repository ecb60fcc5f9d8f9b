//! From API objects to what the planners see.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::core::{DynamicObject, Selector};
use serde_json::{Value, json};
use tracing::warn;
use workloads::{Condition, Millis, Phase, Truth, cron_job, deployment, job, replica_set};

use super::calls::{CRON_JOBS, DEPLOYMENTS, JOBS, Kind, PODS, SETS};
use crate::informer::{Key, parse};

/// Annotation of a pod: what it is said to cost to delete it.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// Annotation and label of a pod: its completion index.
pub(super) const COMPLETION_INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Who manages a job that names nobody.
const JOB_CONTROLLER: &str = "kubernetes.io/job-controller";

/// What all objects have.
#[derive(Clone)]
pub(super) struct Meta {
    pub(super) kind: Kind,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) version: u64,
    pub(super) generation: i64,
    pub(super) created: Millis,
    pub(super) deleting: bool,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) owner: Option<Owner>,
}

/// Who controls an object.
#[derive(Clone)]
pub(super) struct Owner {
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) uid: String,
}

/// What is kept of a pod.
pub(super) struct PodView {
    pub(super) meta: Meta,
    pub(super) pod: workloads::Pod,
}

/// What is kept of a replica set.
pub(super) struct SetView {
    pub(super) meta: Meta,
    pub(super) selector: Selector,
    pub(super) set: replica_set::ReplicaSet,
    pub(super) template: Value,
}

/// What is kept of a deployment.
pub(super) struct DeploymentView {
    pub(super) meta: Meta,
    pub(super) selector: Selector,
    pub(super) deployment: deployment::Deployment,
    /// spec.selector, as it is written.
    pub(super) raw_selector: Value,
    pub(super) template: Value,
}

/// What is kept of a job.
pub(super) struct JobView {
    pub(super) meta: Meta,
    pub(super) selector: Selector,
    pub(super) job: job::Job,
    pub(super) template: Value,
    /// It is not another's to manage.
    pub(super) ours: bool,
    pub(super) ttl_seconds: Option<i64>,
}

/// What is kept of a cron job.
pub(super) struct CronView {
    pub(super) meta: Meta,
    /// Its zone is missing where the spec names none.
    pub(super) cron: cron_job::CronJob,
    pub(super) has_zone: bool,
    /// spec.jobTemplate.
    pub(super) template: Value,
}

impl Meta {
    /// Namespace and name.
    pub(super) fn key(&self) -> Key {
        Key::new(self.namespace.clone(), self.name.clone())
    }

    fn of(kind: Kind, meta: ObjectMeta) -> Self {
        let owner = meta.owner_references.into_iter().flatten().find(|owner| owner.controller == Some(true));
        Self {
            kind,
            namespace: meta.namespace.unwrap_or_default(),
            name: meta.name.unwrap_or_default(),
            uid: meta.uid.unwrap_or_default(),
            version: parse(meta.resource_version.as_deref().unwrap_or_default()),
            generation: meta.generation.unwrap_or_default(),
            created: meta.creation_timestamp.map_or(0, |at| at.0.as_millisecond()),
            deleting: meta.deletion_timestamp.is_some(),
            labels: meta.labels.unwrap_or_default().into_iter().collect(),
            annotations: meta.annotations.unwrap_or_default().into_iter().collect(),
            owner: owner.map(|owner| Owner { kind: owner.kind, name: owner.name, uid: owner.uid }),
        }
    }
}

/// Projects a pod.
pub(super) fn pod(pod: Pod) -> PodView {
    let tracked = pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == job::TRACKING);
    let deleted = pod.metadata.deletion_timestamp.as_ref().map(|at| at.0.as_millisecond());
    let meta = Meta::of(PODS, pod.metadata);
    let (spec, status) = (pod.spec.unwrap_or_default(), pod.status.unwrap_or_default());
    let conditions = status.conditions.unwrap_or_default();
    let ready = conditions.iter().find(|c| c.type_ == "Ready" && c.status == "True");
    let containers: Vec<&ContainerStatus> =
        status.init_container_statuses.iter().chain(&status.container_statuses).flatten().collect();
    let ended =
        |c: &&ContainerStatus| Some(c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0.as_millisecond());
    let last = containers.iter().filter_map(ended).max();
    let number = |map: &BTreeMap<String, String>, key: &str| map.get(key).and_then(|text| text.parse::<i32>().ok());
    let pod = workloads::Pod {
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        phase: match status.phase.as_deref() {
            Some("Running") => Phase::Running,
            Some("Succeeded") => Phase::Succeeded,
            Some("Failed") => Phase::Failed,
            Some("Unknown") => Phase::Unknown,
            _ => Phase::Pending,
        },
        ready_since: ready.map(|c| c.last_transition_time.as_ref().map_or(0, |at| at.0.as_millisecond())),
        terminating: meta.deleting,
        created: meta.created,
        node: spec.node_name.unwrap_or_default(),
        restarts: containers.iter().map(|c| c.restart_count).max().unwrap_or(0),
        all_restarts: containers.iter().map(|c| i64::from(c.restart_count)).sum(),
        deletion_cost: number(&meta.annotations, DELETION_COST).unwrap_or(0),
        tracked,
        index: number(&meta.annotations, COMPLETION_INDEX),
        ended: last.or(deleted).unwrap_or(meta.created),
        ..workloads::Pod::default()
    };
    PodView { meta, pod }
}

/// Projects a replica set; one that the server should have refused is left alone.
pub(super) fn set(object: DynamicObject) -> Option<SetView> {
    let meta = Meta::of(SETS, object.metadata);
    let (spec, status) = (&object.data["spec"], &object.data["status"]);
    let set = replica_set::ReplicaSet {
        generation: meta.generation,
        deleting: meta.deleting,
        replicas: int(&spec["replicas"]).unwrap_or(1),
        min_ready_seconds: int(&spec["minReadySeconds"]).unwrap_or(0),
        status: replica_set::Status {
            observed_generation: status["observedGeneration"].as_i64().unwrap_or(0),
            replicas: int(&status["replicas"]).unwrap_or(0),
            fully_labeled: int(&status["fullyLabeledReplicas"]).unwrap_or(0),
            ready: int(&status["readyReplicas"]).unwrap_or(0),
            available: int(&status["availableReplicas"]).unwrap_or(0),
            terminating: int(&status["terminatingReplicas"]),
            conditions: conditions(status),
        },
    };
    let selector = selector(&meta, &spec["selector"])?;
    Some(SetView { selector, set, template: spec["template"].clone(), meta })
}

/// Projects a deployment; one that the server should have refused is left alone.
pub(super) fn deployment(object: DynamicObject) -> Option<DeploymentView> {
    let meta = Meta::of(DEPLOYMENTS, object.metadata);
    let (spec, status) = (&object.data["spec"], &object.data["status"]);
    let count = |field: &str| int(&status[field]).unwrap_or(0);
    let deployment = deployment::Deployment {
        name: meta.name.clone(),
        generation: meta.generation,
        deleting: meta.deleting,
        annotations: meta.annotations.clone(),
        replicas: int(&spec["replicas"]).unwrap_or(1),
        paused: spec["paused"] == true,
        strategy: strategy(&spec["strategy"]),
        min_ready_seconds: int(&spec["minReadySeconds"]).unwrap_or(0),
        history_limit: int(&spec["revisionHistoryLimit"]).unwrap_or(i32::MAX),
        deadline_seconds: int(&spec["progressDeadlineSeconds"]).unwrap_or(i32::MAX),
        template: comparable(&spec["template"]),
        status: deployment::Status {
            observed_generation: status["observedGeneration"].as_i64().unwrap_or(0),
            replicas: count("replicas"),
            updated: count("updatedReplicas"),
            ready: count("readyReplicas"),
            available: count("availableReplicas"),
            unavailable: count("unavailableReplicas"),
            terminating: int(&status["terminatingReplicas"]),
            collision_count: int(&status["collisionCount"]),
            conditions: conditions(status),
        },
    };
    let selector = selector(&meta, &spec["selector"])?;
    let (raw_selector, template) = (spec["selector"].clone(), spec["template"].clone());
    Some(DeploymentView { selector, deployment, raw_selector, template, meta })
}

/// How a deployment replaces its pods.
fn strategy(value: &Value) -> deployment::Strategy {
    if value["type"] == "Recreate" {
        return deployment::Strategy::Recreate;
    }
    let amount = |field: &str| match &value["rollingUpdate"][field] {
        Value::String(text) => {
            let percent = text.strip_suffix('%').and_then(|digits| digits.parse().ok());
            deployment::Amount::Percent(percent.unwrap_or(25))
        }
        other => int(other).map_or(deployment::Amount::Percent(25), deployment::Amount::Count),
    };
    deployment::Strategy::Rolling { surge: amount("maxSurge"), unavailable: amount("maxUnavailable") }
}

/// A template as a text that is equal for equal ones; the label that tells templates apart is none of it.
pub(super) fn comparable(template: &Value) -> String {
    let mut template = template.clone();
    drop_nulls(&mut template);
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(workloads::HASH_LABEL);
    }
    template.to_string()
}

/// Members that are null are absent.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Projects a job; one that the server should have refused is left alone.
pub(super) fn job(object: DynamicObject) -> Option<JobView> {
    let meta = Meta::of(JOBS, object.metadata);
    let (spec, status) = (&object.data["spec"], &object.data["status"]);
    let uids = |list: &str| -> Vec<String> {
        let uids = status["uncountedTerminatedPods"][list].as_array().into_iter().flatten();
        uids.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let count = |field: &str| int(&status[field]).unwrap_or(0);
    let job = job::Job {
        deleting: meta.deleting,
        parallelism: int(&spec["parallelism"]).unwrap_or(1),
        completions: int(&spec["completions"]),
        indexed: spec["completionMode"] == "Indexed",
        backoff_limit: int(&spec["backoffLimit"]).unwrap_or(6),
        deadline_seconds: spec["activeDeadlineSeconds"].as_i64(),
        suspend: spec["suspend"] == true,
        replaces_failed_only: spec["podReplacementPolicy"] == "Failed",
        restarts_in_place: spec["template"]["spec"]["restartPolicy"] == "OnFailure",
        status: job::Status {
            conditions: conditions(status),
            start: time(&status["startTime"]),
            completion: time(&status["completionTime"]),
            active: count("active"),
            ready: int(&status["ready"]),
            terminating: int(&status["terminating"]),
            succeeded: count("succeeded"),
            failed: count("failed"),
            completed_indexes: text(&status["completedIndexes"]),
            uncounted_succeeded: uids("succeeded"),
            uncounted_failed: uids("failed"),
        },
    };
    let selector = selector(&meta, &spec["selector"])?;
    let ours = spec["managedBy"].as_str().is_none_or(|manager| manager == JOB_CONTROLLER);
    let ttl_seconds = spec["ttlSecondsAfterFinished"].as_i64();
    Some(JobView { selector, job, template: spec["template"].clone(), ours, ttl_seconds, meta })
}

/// Projects a cron job.
pub(super) fn cron_job(object: DynamicObject) -> Option<CronView> {
    let meta = Meta::of(CRON_JOBS, object.metadata);
    let (spec, status) = (&object.data["spec"], &object.data["status"]);
    let active = status["active"].as_array().into_iter().flatten();
    let written = text(&spec["schedule"]);
    let cron = cron_job::CronJob {
        name: meta.name.clone(),
        deleting: meta.deleting,
        created: meta.created,
        schedule: written.parse().map_err(|why: cron::ScheduleError| (written.clone(), why.to_string())),
        zone: cron::zone(spec["timeZone"].as_str().unwrap_or("UTC")),
        deadline_seconds: spec["startingDeadlineSeconds"].as_i64(),
        concurrency: match spec["concurrencyPolicy"].as_str() {
            Some("Forbid") => cron_job::Concurrency::Forbid,
            Some("Replace") => cron_job::Concurrency::Replace,
            _ => cron_job::Concurrency::Allow,
        },
        suspend: spec["suspend"] == true,
        keep_succeeded: int(&spec["successfulJobsHistoryLimit"]),
        keep_failed: int(&spec["failedJobsHistoryLimit"]),
        status: cron_job::Status {
            active: active.map(|job| (text(&job["name"]), text(&job["uid"]))).collect(),
            last_schedule: time(&status["lastScheduleTime"]),
            last_success: time(&status["lastSuccessfulTime"]),
        },
    };
    let has_zone = spec["timeZone"].is_string();
    Some(CronView { cron, has_zone, template: spec["jobTemplate"].clone(), meta })
}

/// A selector; `None`, with a word, where there is none or it takes everything.
fn selector(meta: &Meta, value: &Value) -> Option<Selector> {
    let parsed: Option<LabelSelector> = serde_json::from_value(value.clone()).ok();
    let parsed: Option<Selector> = parsed.and_then(|parsed| parsed.try_into().ok());
    let parsed = parsed.filter(|selector| selector.clone().into_iter().next().is_some());
    if parsed.is_none() {
        let Meta { namespace, name, .. } = meta;
        warn!(%namespace, %name, "spec.selector cannot be used; the object is left alone until it is corrected");
    }
    parsed
}

/// Conditions as they were last written.
fn conditions(status: &Value) -> Vec<Condition> {
    let read = |c: &Value| Condition {
        kind: text(&c["type"]),
        truth: Truth::read(c["status"].as_str().unwrap_or_default()),
        reason: text(&c["reason"]),
        message: text(&c["message"]),
        updated: time(&c["lastUpdateTime"]).or(time(&c["lastProbeTime"])).unwrap_or(0),
        since: time(&c["lastTransitionTime"]).unwrap_or(0),
    };
    status["conditions"].as_array().into_iter().flatten().map(read).collect()
}

/// Conditions as the API writes them; `updated` names the field for the time of the last word, where there is one.
pub(super) fn written(conditions: &[Condition], updated: Option<&str>) -> Value {
    let write = |c: &Condition| {
        let mut written = json!({"type": c.kind, "status": c.truth.name(), "reason": c.reason, "message": c.message,
            "lastTransitionTime": time_text(c.since)});
        if let Some(field) = updated {
            written[field] = time_text(c.updated).into();
        }
        written
    };
    conditions.iter().map(write).collect()
}

/// A number as statuses write it: nothing in place of zero.
pub(super) fn counter(number: i32) -> Value {
    if number == 0 { Value::Null } else { number.into() }
}

/// A moment as the API writes it.
pub(super) fn time_text(at: Millis) -> String {
    Timestamp::from_millisecond(at).unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn time(value: &Value) -> Option<Millis> {
    value.as_str()?.parse::<Timestamp>().ok().map(Timestamp::as_millisecond)
}

fn int(value: &Value) -> Option<i32> {
    value.as_i64().and_then(|number| i32::try_from(number).ok())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
