//! Rules for Jobs and CronJobs.

use serde_json::Value;

use super::cursor::{At, Errors};
use super::{metadata, pod};
use crate::names;
use crate::selector::LabelSelector;
use crate::status::FieldError;
use crate::strategy::{JOB_NAME_LABELS, JOB_UID_LABELS};

/// Most pods at once, and most failed indexes, of an indexed job.
const INDEXED_MAX: i64 = 100_000;
/// Longest name of who manages a job.
const MANAGER_MAX: usize = 63;
/// Longest name of a cron job: its jobs add eleven characters.
const CRON_NAME_MAX: usize = 52;
/// Fields of a job that an update leaves alone.
const FIXED: [&str; 6] =
    ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"];
/// What is not carried out here, with the reason that a client is told.
const REFUSED: [(&str, &str); 4] = [
    ("podFailurePolicy", "pod failure policies are not carried out here; leave it out and use backoffLimit"),
    ("successPolicy", "success policies are not carried out here; leave it out and use completions"),
    ("backoffLimitPerIndex", "limits per index are not carried out here; leave it out and use backoffLimit"),
    ("maxFailedIndexes", "limits per index are not carried out here; leave it out and use backoffLimit"),
];
/// Parts of a template that may change while the job is suspended and has never run.
const SCHEDULING: [&str; 5] =
    ["/spec/affinity", "/spec/nodeSelector", "/spec/tolerations", "/spec/schedulingGates", "/metadata/annotations"];

/// A new job.
pub(super) fn create(job: &At<'_>, out: &mut Errors) {
    let spec = job.field("spec");
    generated_selector(job, &spec, out);
    whole_spec(&spec, out);
    let (name, completions) = (job.field("metadata").field("name"), spec.field("completions"));
    if spec.field("completionMode").text() == "Indexed" && completions.number() > 0 {
        let last = format!("{}-{}", name.text(), completions.number() - 1);
        if !names::dns1123_label(&last).is_empty() {
            out.push(name.invalid(format!("will not able to create pod with invalid DNS label: {last}")));
        }
    }
}

/// A changed job.
pub(super) fn update(job: &At<'_>, old: &Value, out: &mut Errors) {
    let (spec, was) = (job.field("spec"), &old["spec"]);
    whole_spec(&spec, out);
    let completions = spec.field("completions");
    if spec.field("completionMode").text() != "Indexed" {
        completions.immutable(&was["completions"], out);
    } else if completions.value != &was["completions"] && completions.value != spec.field("parallelism").value {
        out.push(completions.invalid("can only be modified in tandem with spec.parallelism"));
    }
    let template = spec.field("template");
    if without_scheduling(template.value, old) != without_scheduling(&was["template"], old) {
        template.immutable(&was["template"], out);
    }
    for field in FIXED {
        spec.field(field).immutable(&was[field], out);
    }
}

/// A template, less what may still change of it.
fn without_scheduling(template: &Value, old: &Value) -> Value {
    let mut template = template.clone();
    if old["spec"]["suspend"] != true || !old["status"]["startTime"].is_null() {
        return template;
    }
    for pointer in SCHEDULING {
        let (parent, field) = pointer.rsplit_once('/').unwrap_or_default();
        if let Some(map) = template.pointer_mut(parent).and_then(Value::as_object_mut) {
            map.remove(field);
        }
    }
    template
}

/// The labels and the selector that the server makes are there.
fn generated_selector(job: &At<'_>, spec: &At<'_>, out: &mut Errors) {
    let selector = spec.field("selector");
    if spec.field("manualSelector").value == true || !selector.is_set() {
        return;
    }
    let (name, uid) = (job.field("metadata").field("name"), job.field("metadata").field("uid"));
    uid.require(out);
    let metadata = spec.field("template").field("metadata");
    for (keys, expected) in [(JOB_UID_LABELS, uid.text()), (JOB_NAME_LABELS, name.text())] {
        for key in keys {
            let label = metadata.field("labels").key(key);
            if !label.is_set() {
                out.push(label.required(&format!("must be '{expected}'")));
            } else if label.text() != expected {
                out.push(metadata.field("labels").named(label.path).invalid(format!("must be '{expected}'")));
            }
        }
    }
    let mut expected = serde_json::Map::new();
    for (keys, value) in [(JOB_UID_LABELS, uid.text()), (JOB_NAME_LABELS, name.text())] {
        expected.extend(keys.map(|key| (key.to_owned(), value.into())));
    }
    if LabelSelector::from_json(selector.value).is_ok_and(|parsed| !parsed.matches(&Value::Object(expected))) {
        out.push(selector.invalid("`selector` not auto-generated"));
    }
}

/// The spec of a job itself, which has a selector.
fn whole_spec(spec: &At<'_>, out: &mut Errors) {
    check_spec(spec, out);
    let selector = spec.field("selector");
    if selector.is_set() {
        metadata::selector(&selector, out);
    } else {
        out.push(selector.required(""));
    }
    let labels = spec.field("template").field("metadata").field("labels");
    if LabelSelector::from_json(selector.value).is_ok_and(|parsed| !parsed.matches(labels.value)) {
        out.push(labels.invalid("`selector` does not match template `labels`"));
    }
}

/// The rules that hold for jobs and for templates of jobs.
fn check_spec(spec: &At<'_>, out: &mut Errors) {
    let numbers = [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    numbers.iter().for_each(|field| spec.field(field).not_negative(out));
    let manager = spec.field("managedBy");
    if manager.is_set() {
        manager.check(names::qualified_name, out);
        if manager.text().len() > MANAGER_MAX {
            out.push(FieldError::too_long(&manager.path, MANAGER_MAX));
        }
    }
    indexes(spec, out);
    spec.field("podReplacementPolicy").one_of_if_set(&["Failed", "TerminatingOrFailed"], out);
    for (field, why) in REFUSED {
        if spec.field(field).is_set() {
            out.push(spec.field(field).forbidden(why));
        }
    }
    let template = spec.field("template");
    pod::template(&template, &[], out);
    let restart = template.field("spec").field("restartPolicy");
    match restart.text() {
        "" | "Always" => out.push(restart.required("valid values: \"OnFailure\", \"Never\"")),
        "OnFailure" | "Never" => {}
        other => out.push(FieldError::not_supported(restart.path.clone(), other, &["OnFailure", "Never"])),
    }
}

/// What the way of counting completions asks for.
fn indexes(spec: &At<'_>, out: &mut Errors) {
    let (mode, completions, parallelism) =
        (spec.field("completionMode"), spec.field("completions"), spec.field("parallelism"));
    mode.one_of_if_set(&["Indexed", "NonIndexed"], out);
    if mode.text() != "Indexed" {
        return;
    }
    if !completions.is_set() {
        out.push(completions.required("when completion mode is Indexed"));
    }
    if parallelism.number() > INDEXED_MAX {
        let detail = format!("must be less than or equal to {INDEXED_MAX} when completion mode is Indexed");
        out.push(parallelism.invalid(detail));
    }
}

/// A new or changed cron job.
pub(super) fn cron(cron: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    let spec = cron.field("spec");
    schedule(&spec.field("schedule"), out);
    spec.field("startingDeadlineSeconds").not_negative(out);
    let zone = spec.field("timeZone");
    if zone.is_set()
        && old.is_none_or(|old| &old["spec"]["timeZone"] != zone.value)
        && let Err(why) = cron::zone(zone.text())
    {
        out.push(zone.invalid(why));
    }
    let policy = spec.field("concurrencyPolicy");
    policy.one_of(&["Allow", "Forbid", "Replace"], out);
    let template = spec.field("jobTemplate").field("spec");
    check_spec(&template, out);
    if template.field("selector").is_set() {
        out.push(template.field("selector").invalid("`selector` will be auto-generated"));
    }
    let manual = template.field("manualSelector");
    if manual.value == true {
        out.push(FieldError::not_supported(manual.path.clone(), true, &["nil", "false"]));
    }
    spec.field("successfulJobsHistoryLimit").not_negative(out);
    spec.field("failedJobsHistoryLimit").not_negative(out);
    let name = cron.field("metadata").field("name");
    if old.is_none() && name.text().len() > CRON_NAME_MAX {
        out.push(name.invalid(format!("must be no more than {CRON_NAME_MAX} characters")));
    }
}

/// When a cron job is due. A time zone has a field of its own.
fn schedule(schedule: &At<'_>, out: &mut Errors) {
    if schedule.text().is_empty() {
        out.push(schedule.required(""));
        return;
    }
    if schedule.text().contains("TZ") {
        out.push(schedule.invalid("cannot use TZ or CRON_TZ in schedule, use timeZone field instead"));
    } else if let Err(why) = schedule.text().parse::<cron::Schedule>() {
        out.push(schedule.invalid(why.to_string()));
    }
}

/// A changed status of a job.
pub(super) fn status(job: &At<'_>, out: &mut Errors) {
    let status = job.field("status");
    for field in ["active", "succeeded", "failed", "ready", "terminating"] {
        status.field(field).not_negative(out);
    }
    for list in ["succeeded", "failed"] {
        let uids = status.field("uncountedTerminatedPods").field(list);
        let mut seen = std::collections::BTreeSet::new();
        for uid in uids.items() {
            if uid.text().is_empty() {
                out.push(uid.invalid("must not be empty"));
            } else if !seen.insert(uid.text()) {
                out.push(uid.duplicate());
            }
        }
    }
}
