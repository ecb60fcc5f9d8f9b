//! Rules for Deployments and ReplicaSets.

use serde_json::Value;

use super::cursor::{At, Errors};
use super::{metadata, pod};
use crate::names;
use crate::selector::LabelSelector;
use crate::status::FieldError;

/// A new or changed deployment.
pub(super) fn deployment(deployment: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    let spec = deployment.field("spec");
    spec.field("replicas").not_negative(out);
    selector_and_template(&spec, old, out);
    strategy(&spec.field("strategy"), out);
    let least = spec.field("minReadySeconds");
    least.not_negative(out);
    spec.field("revisionHistoryLimit").not_negative(out);
    let deadline = spec.field("progressDeadlineSeconds");
    if deadline.is_set() {
        deadline.not_negative(out);
        if deadline.number() <= least.number() {
            out.push(deadline.invalid("must be greater than minReadySeconds"));
        }
    }
    keep_selector(&spec, old, out);
}

/// A new or changed replica set.
pub(super) fn replica_set(set: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    let spec = set.field("spec");
    spec.field("replicas").not_negative(out);
    spec.field("minReadySeconds").not_negative(out);
    selector_and_template(&spec, old, out);
    keep_selector(&spec, old, out);
}

/// The selector is what ties pods to the object: it stays.
fn keep_selector(spec: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    if let Some(old) = old {
        spec.field("selector").immutable(&old["spec"]["selector"], out);
    }
}

/// The selector has to select what the template makes. A template that stays is not checked again.
fn selector_and_template(spec: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    let selector = spec.field("selector");
    if selector.is_set() {
        metadata::selector(&selector, out);
        if selector.field("matchLabels").len() + selector.field("matchExpressions").len() == 0 {
            // Upstream says so of replica sets, too.
            out.push(selector.invalid("empty selector is invalid for deployment"));
        }
    } else {
        out.push(selector.required(""));
    }
    let Ok(parsed) = LabelSelector::from_json(selector.value) else {
        out.push(selector.invalid("invalid label selector"));
        return;
    };
    let template = spec.field("template");
    let labels = template.field("metadata").field("labels");
    if !parsed.is_everything() && !parsed.matches(labels.value) {
        out.push(labels.invalid("`selector` does not match template `labels`"));
    }
    if old.is_none_or(|old| &old["spec"]["template"] != template.value) {
        pod::template(&template, &[], out);
    }
    let restart = template.field("spec").field("restartPolicy");
    if restart.text() != "Always" {
        out.push(FieldError::not_supported(restart.path.clone(), restart.text(), &["Always"]));
    }
    let deadline = template.field("spec").field("activeDeadlineSeconds");
    if deadline.is_set() {
        out.push(deadline.forbidden("activeDeadlineSeconds in ReplicaSet is not Supported"));
    }
}

/// How a deployment replaces its pods.
fn strategy(strategy: &At<'_>, out: &mut Errors) {
    let (kind, rolling) = (strategy.field("type"), strategy.field("rollingUpdate"));
    match kind.text() {
        "Recreate" if rolling.is_set() => {
            out.push(rolling.forbidden("may not be specified when strategy `type` is 'Recreate'"));
        }
        "Recreate" => {}
        "RollingUpdate" if !rolling.is_set() => {
            out.push(rolling.required("this should be defaulted and never be nil"));
        }
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.field("maxUnavailable"), rolling.field("maxSurge"));
            count_or_share(&unavailable, out);
            count_or_share(&surge, out);
            if share(&unavailable) == 0 && share(&surge) == 0 {
                out.push(unavailable.invalid("may not be 0 when `maxSurge` is 0"));
            }
            if unavailable.value.is_string() && share(&unavailable) > 100 {
                out.push(unavailable.invalid("must not be greater than 100%"));
            }
        }
        _ => out.push(FieldError::not_supported(kind.path.clone(), kind.text(), &["Recreate", "RollingUpdate"])),
    }
}

/// A count that is not negative, or a share of any size.
fn count_or_share(at: &At<'_>, out: &mut Errors) {
    match at.value {
        Value::String(text) => out.extend(names::percent(text).into_iter().map(|sentence| at.invalid(sentence))),
        _ => at.not_negative(out),
    }
}

/// The number in a count or share; 0 if there is none.
fn share(at: &At<'_>) -> i64 {
    match at.value {
        Value::String(text) => text.strip_suffix('%').and_then(|digits| digits.parse().ok()).unwrap_or(0),
        _ => at.number(),
    }
}

/// A changed status of a deployment.
pub(super) fn deployment_status(deployment: &At<'_>, old: &Value, out: &mut Errors) {
    let status = deployment.field("status");
    for field in ["observedGeneration", "replicas", "updatedReplicas", "readyReplicas", "availableReplicas"] {
        status.field(field).not_negative(out);
    }
    for field in ["unavailableReplicas", "terminatingReplicas", "collisionCount"] {
        status.field(field).not_negative(out);
    }
    adds_up(&status, &["updatedReplicas", "readyReplicas", "availableReplicas"], out);
    let collisions = status.field("collisionCount");
    let before = old["status"]["collisionCount"].as_i64();
    if before.is_some_and(|before| !collisions.is_set() || collisions.number() < before) {
        out.push(FieldError::invalid(&collisions.path, collisions.number(), "cannot be decremented"));
    }
}

/// A changed status of a replica set.
pub(super) fn replica_set_status(set: &At<'_>, out: &mut Errors) {
    let status = set.field("status");
    for field in ["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"] {
        status.field(field).not_negative(out);
    }
    status.field("terminatingReplicas").not_negative(out);
    adds_up(&status, &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"], out);
}

/// No counter is above the number of pods, nor more available than ready.
fn adds_up(status: &At<'_>, counters: &[&str], out: &mut Errors) {
    let replicas = status.field("replicas").number();
    for counter in counters.iter().map(|field| status.field(field)) {
        if counter.number() > replicas {
            out.push(counter.invalid("cannot be greater than status.replicas"));
        }
    }
    let available = status.field("availableReplicas");
    if available.number() > status.field("readyReplicas").number() {
        out.push(available.invalid("cannot be greater than readyReplicas"));
    }
}
