//! Why a deployment, a replica set, a job or a cron job is not where its spec wants it. Pure.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetCondition};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::ResourceExt as _;

use super::facts::Facts;
use super::{Finding, Link, pod, span};

/// Why a deployment is not rolled out. Empty: it is.
pub fn deployment(facts: &Facts, deployment: &Deployment) -> Vec<Finding> {
    let this = format!("deploy/{}", deployment.name_any());
    if let Some(finding) =
        not_begun(&this, &deployment.metadata, observed(&deployment.status, |s| s.observed_generation))
    {
        return vec![finding];
    }
    let spec = deployment.spec.clone();
    let status = deployment.status.clone().unwrap_or_default();
    let conditions = status.conditions.clone().unwrap_or_default();
    let condition = |kind: &str, holds: &str| {
        conditions.iter().find(|c| c.type_.as_deref() == Some(kind) && c.status.as_deref() == Some(holds))
    };
    let count = |number: Option<i32>| number.unwrap_or(0);
    let wanted = spec.replicas.unwrap_or(1);
    let (all, updated, available) =
        (count(status.replicas), count(status.updated_replicas), count(status.available_replicas));
    if (all, updated) == (wanted, wanted) && available >= wanted {
        return Vec::new();
    }
    let late = condition("Progressing", "False").filter(|c| c.reason.as_deref() == Some("ProgressDeadlineExceeded"));
    let head = if let Some(late) = late {
        let says = format!(
            "does not get on within its {}s, with {updated} of {wanted} pods of its newest template",
            spec.progress_deadline_seconds.unwrap_or(600)
        );
        Link::new(&this, says).since(at(late.last_transition_time.as_ref()))
    } else if available < wanted {
        Link::new(&this, format!("has {available} of {wanted} pods available"))
    } else {
        Link::new(&this, format!("replaces its pods, {updated} of {wanted} so far"))
    };
    let mut found = Vec::new();
    if spec.paused == Some(true) && updated < wanted {
        let paused = Finding::of(Link::new(&this, "is paused, so its newest template is not rolled out"));
        found.push(paused.helped_by(format!("kubectl rollout resume {this}")));
    }
    if let Some(refused) = condition("ReplicaFailure", "True") {
        found.push(refusal(&this, refused.message.as_deref()).under(head.clone()));
    }
    let recreates = spec.strategy.and_then(|strategy| strategy.type_).as_deref() == Some("Recreate");
    let sets = facts.replica_sets.iter().filter(|set| is_controlled_by(&set.metadata, &deployment.metadata));
    let pods = sets.flat_map(|set| members(facts, &set.metadata, recreates));
    found.extend(pods.map(|finding| finding.under(head.clone())));
    if found.is_empty() {
        let stay = spec.min_ready_seconds.filter(|seconds| *seconds > 0 && available < wanted);
        let stay =
            stay.map(|seconds| Finding::of(Link::new(&this, format!("its pods have to stay Ready for {seconds}s"))));
        found.push(stay.map_or_else(|| Finding::of(head.clone()), |stay| stay.under(head.clone())));
    }
    found
}

/// Why a replica set has not as many pods as it wants. Empty: it has.
pub fn replica_set(facts: &Facts, set: &ReplicaSet) -> Vec<Finding> {
    let this = format!("rs/{}", set.name_any());
    if let Some(finding) = not_begun(&this, &set.metadata, observed(&set.status, |s| s.observed_generation)) {
        return vec![finding];
    }
    let wanted = set.spec.replicas.unwrap_or(1);
    let status = set.status.clone().unwrap_or_default();
    let available = status.available_replicas.unwrap_or(0);
    if status.replicas == wanted && available >= wanted {
        return Vec::new();
    }
    let head = Link::new(&this, format!("has {available} of {wanted} pods available"));
    let failure =
        |c: &&ReplicaSetCondition| c.type_.as_deref() == Some("ReplicaFailure") && c.status.as_deref() == Some("True");
    let refused = status.conditions.iter().flatten().find(failure);
    let mut found: Vec<Finding> = refused.map(|c| refusal(&this, c.message.as_deref())).into_iter().collect();
    found.extend(members(facts, &set.metadata, false));
    if found.is_empty() {
        return vec![Finding::of(head)];
    }
    found.into_iter().map(|finding| finding.under(head.clone())).collect()
}

/// Why a job does not end, or why it failed. Empty: it is complete, or its pods do their work.
pub fn job(facts: &Facts, job: &Job) -> Vec<Finding> {
    let name = job.name_any();
    let this = format!("job/{name}");
    let status = job.status.clone().unwrap_or_default();
    let condition = |kind: &str| {
        let holds = |c: &&k8s_openapi::api::batch::v1::JobCondition| c.type_ == kind && c.status == "True";
        status.conditions.iter().flatten().find(holds).cloned()
    };
    if condition("Complete").is_some() {
        return Vec::new();
    }
    if let Some(failed) = condition("Failed") {
        let since = at(failed.last_transition_time.as_ref());
        let says = format!("has failed: {}", told(failed.message.as_deref()));
        let remedy = format!("kubectl logs {this}; then correct it, delete it and create it again");
        return vec![last_failure(facts, job, Link::new(&this, says).since(since)).helped_by(remedy)];
    }
    if let Some(suspended) = condition("Suspended") {
        let link = Link::new(&this, "is suspended").since(at(suspended.last_transition_time.as_ref()));
        return vec![Finding::of(link).helped_by(format!("kubectl patch {this} --type=merge -p '{}'", resumed()))];
    }
    if let Some(finding) = deleted(&this, &job.metadata) {
        return vec![finding];
    }
    let waiting = members(facts, &job.metadata, false);
    if !waiting.is_empty() {
        let left = job.spec.as_ref().and_then(|spec| spec.completions).unwrap_or(1) - status.succeeded.unwrap_or(0);
        let head = Link::new(&this, format!("lacks {left} of its completions"));
        return waiting.into_iter().map(|finding| finding.under(head.clone())).collect();
    }
    let (active, failures) = (status.active.unwrap_or(0), status.failed.unwrap_or(0));
    if active == 0 && failures > 0 {
        let limit = job.spec.as_ref().and_then(|spec| spec.backoff_limit).unwrap_or(6);
        let says = format!("waits a while before it tries again, after {failures} of {limit} failures that it bears");
        return vec![last_failure(facts, job, Link::new(&this, says))];
    }
    if active == 0 {
        let refused = facts.event(job.metadata.uid.as_deref(), "FailedCreate");
        let refused = refused.map(|event| refusal(&this, event.message.as_deref()));
        return vec![refused.unwrap_or_else(|| unseen(&this))];
    }
    Vec::new()
}

/// Why a cron job starts nothing although it is time. Empty: its time has not come, or its job runs.
pub fn cron_job(facts: &Facts, cron: &CronJob) -> Vec<Finding> {
    let this = format!("cronjob/{}", cron.name_any());
    if let Some(finding) = deleted(&this, &cron.metadata) {
        return vec![finding];
    }
    if cron.spec.suspend == Some(true) {
        let remedy = format!("kubectl patch {this} --type=merge -p '{}'", resumed());
        return vec![Finding::of(Link::new(&this, "is suspended")).helped_by(remedy)];
    }
    let status = cron.status.clone().unwrap_or_default();
    let since = status.last_schedule_time.as_ref().or(cron.metadata.creation_timestamp.as_ref()).map(|time| time.0);
    // What was told before the last start is no longer so.
    let event = |reason: &str| {
        let found = facts.event(cron.metadata.uid.as_deref(), reason)?;
        let happened = found.last_timestamp.as_ref().map(|time| time.0);
        (happened >= since).then(|| told(found.message.as_deref()))
    };
    for reason in ["UnparseableSchedule", "InvalidSchedule", "UnknownTimeZone"] {
        if let Some(says) = event(reason) {
            return vec![Finding::of(Link::new(&this, says)).helped_by(format!("correct the schedule of {this}"))];
        }
    }
    if let Some(says) = event("MissSchedule") {
        let remedy = format!("raise spec.startingDeadlineSeconds of {this}");
        return vec![Finding::of(Link::new(&this, format!("started nothing: {says}"))).helped_by(remedy)];
    }
    if event("JobAlreadyActive").is_none() {
        return Vec::new();
    }
    let head = Link::new(&this, "does not start what is due while its last job runs");
    let running = status.active.iter().flatten().filter_map(|reference| reference.name.as_deref());
    let jobs = running.filter_map(|name| facts.job(name));
    let found: Vec<Finding> = jobs.flat_map(|running| job(facts, running)).map(|f| f.under(head.clone())).collect();
    let remedy = "wait for it, delete it, or set spec.concurrencyPolicy: Replace";
    if found.is_empty() { vec![Finding::of(head).helped_by(remedy)] } else { found }
}

/// When a cron job starts its next job, where nothing is in its way.
pub fn next_start(facts: &Facts, cron: &CronJob) -> Option<Finding> {
    let spec = &cron.spec;
    let schedule: cron::Schedule = spec.schedule.parse().ok()?;
    let zone = spec.time_zone.as_deref().map_or_else(|| Ok(jiff::tz::TimeZone::system()), cron::zone).ok()?;
    let last = cron.status.as_ref().and_then(|status| status.last_schedule_time.as_ref());
    let from = match schedule {
        cron::Schedule::Calendar { .. } => facts.now,
        cron::Schedule::Every(_) => at(last.or(cron.metadata.creation_timestamp.as_ref()))?,
    };
    let next = schedule.next(from, &zone)?;
    let wait = span(next.duration_since(facts.now));
    Some(Finding::of(Link::new(format!("cronjob/{}", cron.name_any()), format!("starts its next job in {wait}"))))
}

/// A change that turns suspension off.
fn resumed() -> &'static str {
    r#"{"spec":{"suspend":false}}"#
}

/// What nobody looks after, or what is going.
fn not_begun(this: &str, meta: &ObjectMeta, observed: i64) -> Option<Finding> {
    deleted(this, meta).or_else(|| (observed < meta.generation.unwrap_or(0)).then(|| unseen(this)))
}

/// The generation that a status is about.
fn observed<S>(status: &Option<S>, generation: impl Fn(&S) -> Option<i64>) -> i64 {
    status.as_ref().and_then(generation).unwrap_or(0)
}

fn unseen(this: &str) -> Finding {
    Finding::of(Link::new(this, "is not looked after: its controller has not seen it yet")).helped_by(
        "wait a moment; if nothing changes, look whether its controller runs (--controllers of `statefuld server`)",
    )
}

fn deleted(this: &str, meta: &ObjectMeta) -> Option<Finding> {
    let asked = meta.deletion_timestamp.as_ref()?;
    let held = meta.finalizers.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(", ");
    let says =
        if held.is_empty() { "is being deleted".to_owned() } else { format!("is being deleted, held by {held}") };
    Some(Finding::of(Link::new(this, says).since(Some(asked.0))))
}

/// The server refuses pods.
fn refusal(this: &str, message: Option<&str>) -> Finding {
    Finding::of(Link::new(
        this,
        format!("cannot create pods: {}", told(message).trim_start_matches("Error creating: ")),
    ))
    .helped_by(format!("correct what the server refuses in {this}"))
}

/// The pods of an object that neither work nor have ended, and why; those that are going only where they are `waited` for.
fn members(facts: &Facts, owner: &ObjectMeta, waited: bool) -> Vec<Finding> {
    let own = facts.pods.iter().filter(|pod| is_controlled_by(&pod.metadata, owner));
    let present = own.filter(|pod| !has_ended(pod) && (waited || pod.metadata.deletion_timestamp.is_none()));
    present.flat_map(|pod| pod::explain(facts, pod)).collect()
}

/// A consequence with the last pod of a job that failed as its cause, where that pod is still there.
fn last_failure(facts: &Facts, job: &Job, consequence: Link) -> Finding {
    let failed = |pod: &&Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        is_controlled_by(&pod.metadata, &job.metadata) && phase == Some("Failed")
    };
    let last = facts.pods.iter().filter(failed).max_by_key(|pod| at(pod.metadata.creation_timestamp.as_ref()));
    match last.and_then(|pod| pod::explain(facts, pod).into_iter().next()) {
        // To delete that pod helps nobody.
        Some(found) => Finding { unblock: Vec::new(), ..found }.under(consequence),
        None => Finding::of(consequence),
    }
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn is_controlled_by(meta: &ObjectMeta, owner: &ObjectMeta) -> bool {
    let mut owners = meta.owner_references.iter().flatten();
    owners.any(|reference| reference.controller == Some(true) && Some(&reference.uid) == owner.uid.as_ref())
}

fn at(time: Option<&Time>) -> Option<Timestamp> {
    time.map(|time| time.0)
}

fn told(message: Option<&str>) -> &str {
    message.map_or("it is not said why", str::trim)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Metadata of an object, and of what it controls.
    fn meta(name: &str, owner: Option<(&str, &str)>) -> Value {
        let owners = owner.map(
            |(kind, uid)| json!([{"apiVersion": "v1", "kind": kind, "name": uid, "uid": uid, "controller": true}]),
        );
        json!({"name": name, "namespace": "default", "uid": name, "generation": 1, "ownerReferences": owners})
    }

    fn pod(name: &str, owner: (&str, &str), phase: &str) -> Value {
        let said = json!({"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: 1 Insufficient cpu."});
        json!({"metadata": meta(name, Some(owner)), "spec": {"containers": [{"name": "main"}]},
            "status": {"phase": phase, "conditions": [said]}})
    }

    /// A minute after the beginning of time, with these pods.
    fn facts(pods: Vec<Value>) -> Facts {
        let set = json!({"metadata": meta("web-1", Some(("Deployment", "web")))});
        let replica_sets = serde_json::from_value(json!([set])).unwrap();
        let pods = serde_json::from_value(pods.into()).unwrap();
        let now = Timestamp::from_second(60).unwrap();
        Facts { namespace: "default".to_owned(), now, replica_sets, pods, ..Facts::none() }
    }

    fn of<K: serde::de::DeserializeOwned>(name: &str, spec: Value, status: Value) -> K {
        serde_json::from_value(json!({"metadata": meta(name, None), "spec": spec, "status": status})).unwrap()
    }

    /// The sentences of findings, each with what would help.
    fn said(facts: &Facts, found: &[Finding]) -> Vec<String> {
        found.iter().map(|f| format!("{} | {}", f.sentence(facts.now), f.unblock.join("; "))).collect()
    }

    #[test]
    fn a_deployment_leads_to_the_pod_that_keeps_it() {
        let facts = facts(vec![pod("web-1-x", ("ReplicaSet", "web-1"), "Pending")]);
        let status = json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 1});
        let spec = json!({"replicas": 2, "selector": {}, "template": {}});
        let found = deployment(&facts, &of("web", spec.clone(), status.clone()));
        let said = said(&facts, &found);
        assert_eq!(said.len(), 1);
        let wanted =
            "deploy/web has 1 of 2 pods available: web-1-x is not Ready: 0/1 nodes are available: 1 Insufficient cpu";
        assert!(said[0].starts_with(wanted) && said[0].contains("lower the pod's requests"), "{said:?}");
        let mut late = status.clone();
        late["conditions"] = json!([{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded",
            "lastTransitionTime": "1970-01-01T00:00:00Z"}]);
        let sentence = deployment(&facts, &of("web", spec.clone(), late))[0].sentence(facts.now);
        let wanted =
            "deploy/web does not get on within its 600s, with 2 of 2 pods of its newest template for 1m0s: web-1-x ";
        assert!(sentence.starts_with(wanted), "{sentence}");
        let done = json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2});
        assert_eq!(deployment(&facts, &of("web", spec, done)), []);
    }

    #[test]
    fn a_deployment_that_is_paused_refused_or_unseen_says_so() {
        let facts = facts(Vec::new());
        let spec = json!({"replicas": 1, "paused": true, "selector": {}, "template": {}});
        let old = json!({"observedGeneration": 1, "replicas": 1, "availableReplicas": 1});
        assert_eq!(
            said(&facts, &deployment(&facts, &of("web", spec, old))),
            ["deploy/web is paused, so its newest template is not rolled out | kubectl rollout resume deploy/web"]
        );
        let spec = json!({"replicas": 1, "selector": {}, "template": {}});
        let refused = json!({"observedGeneration": 1,
            "conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: q"}]});
        assert_eq!(
            said(&facts, &deployment(&facts, &of("web", spec.clone(), refused))),
            [
                "deploy/web has 0 of 1 pods available: cannot create pods: exceeded quota: q | correct what the server refuses in deploy/web"
            ]
        );
        let unseen = deployment(&facts, &of("web", spec, json!({})));
        assert!(unseen[0].sentence(facts.now).contains("has not seen it yet"), "{unseen:?}");
    }

    #[test]
    fn a_replica_set_of_nobody_is_told_as_well() {
        let facts = facts(vec![pod("web-x", ("ReplicaSet", "web"), "Pending")]);
        let spec = json!({"replicas": 1, "selector": {}});
        let waiting = of("web", spec.clone(), json!({"observedGeneration": 1, "replicas": 1}));
        let found = replica_set(&facts, &waiting);
        assert!(
            found[0].sentence(facts.now).starts_with("rs/web has 0 of 1 pods available: web-x is not Ready"),
            "{found:?}"
        );
        let there = of("web", spec, json!({"observedGeneration": 1, "replicas": 1, "availableReplicas": 1}));
        assert_eq!(replica_set(&facts, &there), []);
    }

    #[test]
    fn a_job_says_why_it_failed_waits_or_is_held() {
        let facts = facts(vec![pod("dump-x", ("Job", "dump"), "Failed")]);
        let spec = json!({"completions": 1, "backoffLimit": 3, "template": {}});
        let of = |status: Value| job(&facts, &of("dump", spec.clone(), status));
        let condition = |kind: &str, message: &str| {
            json!({"conditions": [{"type": kind, "status": "True", "message": message,
                "lastTransitionTime": "1970-01-01T00:00:18Z"}]})
        };
        let failed = said(&facts, &of(condition("Failed", "Job has reached the specified backoff limit")));
        let wanted = "job/dump has failed: Job has reached the specified backoff limit for 42s: dump-x has failed";
        assert!(failed[0].starts_with(wanted) && failed[0].contains("| kubectl logs job/dump;"), "{failed:?}");
        let waits = said(&facts, &of(json!({"failed": 1})));
        assert!(
            waits[0].starts_with("job/dump waits a while before it tries again, after 1 of 3 failures"),
            "{waits:?}"
        );
        let suspended = said(&facts, &of(condition("Suspended", "Job suspended")));
        assert!(suspended[0].starts_with("job/dump is suspended for 42s | kubectl patch job/dump"), "{suspended:?}");
        assert_eq!(of(condition("Complete", "")), []);
        assert_eq!(of(json!({"active": 1})), [], "it works");
    }

    #[test]
    fn a_job_leads_to_the_pod_that_keeps_it() {
        let facts = facts(vec![pod("dump-x", ("Job", "dump"), "Pending")]);
        let spec = json!({"completions": 2, "template": {}});
        let found = job(&facts, &of("dump", spec, json!({"active": 1, "succeeded": 1})));
        assert!(
            found[0].sentence(facts.now).starts_with("job/dump lacks 1 of its completions: dump-x is not Ready"),
            "{found:?}"
        );
    }

    #[test]
    fn a_cron_job_says_what_is_in_its_way_and_when_it_is_next() {
        let mut facts = facts(Vec::new());
        let event = |reason: &str, message: &str, at: &str| {
            json!({"metadata": {}, "reason": reason, "message": message, "lastTimestamp": at,
                "involvedObject": {"uid": "dump"}})
        };
        let spec = json!({"schedule": "0 3 * * *", "timeZone": "Etc/UTC", "jobTemplate": {}});
        let plain: CronJob = of("dump", spec.clone(), json!({"lastScheduleTime": "1970-01-01T00:00:30Z"}));
        assert_eq!(cron_job(&facts, &plain), []);
        let next = next_start(&facts, &plain).unwrap();
        assert_eq!(next.sentence(facts.now), "cronjob/dump starts its next job in 2h59m");
        // What was told before its last start is over.
        let old = event("MissSchedule", "Missed scheduled time to start a job", "1970-01-01T00:00:10Z");
        facts.events = serde_json::from_value(json!([old])).unwrap();
        assert_eq!(cron_job(&facts, &plain), []);
        let new = event("MissSchedule", "Missed scheduled time to start a job", "1970-01-01T00:00:40Z");
        facts.events = serde_json::from_value(json!([new])).unwrap();
        let missed = said(&facts, &cron_job(&facts, &plain));
        assert!(missed[0].starts_with("cronjob/dump started nothing: Missed scheduled time"), "{missed:?}");
        let active = event("JobAlreadyActive", "Not starting job", "1970-01-01T00:00:40Z");
        facts.events = serde_json::from_value(json!([active])).unwrap();
        let held = said(&facts, &cron_job(&facts, &plain));
        assert!(
            held[0].starts_with("cronjob/dump does not start what is due while its last job runs | wait"),
            "{held:?}"
        );
        let mut suspended = spec;
        suspended["suspend"] = true.into();
        let suspended = cron_job(&facts, &of("dump", suspended, json!({})));
        assert_eq!(suspended[0].sentence(facts.now), "cronjob/dump is suspended");
    }
}
