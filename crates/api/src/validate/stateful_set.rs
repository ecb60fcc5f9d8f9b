//! Rules for StatefulSets and ControllerRevisions.

use serde_json::Value;

use super::cursor::{At, Errors, IMMUTABLE, NOT_NEGATIVE};
use super::{beyond, int_or_percent, metadata, pod, storage};
use crate::names;
use crate::selector::LabelSelector;
use crate::status::FieldError;

/// Fields of the spec that an update may change.
const MUTABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

/// What is said when an update changes another field.
const FORBIDDEN_UPDATE: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";

/// A new set.
pub(super) fn create(set: &At<'_>, out: &mut Errors) {
    let spec = set.field("spec");
    check_spec(&spec, true, out);
    spec.field("serviceName").check_if_set(names::dns1123_label, out);
    claim_templates(&spec, out);
    beyond::check(set, None, out);
}

/// The templates of claims.
fn claim_templates(spec: &At<'_>, out: &mut Errors) {
    for claim in spec.field("volumeClaimTemplates").items() {
        claim.field("metadata").field("name").check_required(names::dns1123_label, out);
        storage::claim_spec(&claim.field("spec"), out);
    }
}

/// A changed set. A template that stays is not checked again: it may be older than a rule.
pub(super) fn update(set: &At<'_>, old: &Value, out: &mut Errors) {
    let spec = set.field("spec");
    check_spec(&spec, spec.value["template"] != old["spec"]["template"], out);
    let asked = beyond::check(set, Some(old), out);
    let rest = |spec: &Value| {
        let mut spec = spec.clone();
        if let Some(map) = spec.as_object_mut() {
            MUTABLE.iter().for_each(|field| drop(map.remove(*field)));
            asked.also_mutable().iter().for_each(|field| drop(map.remove(*field)));
        }
        spec
    };
    if rest(spec.value) != rest(&old["spec"]) {
        out.push(spec.forbidden(FORBIDDEN_UPDATE));
        return;
    }
    if spec.value["serviceName"] != old["spec"]["serviceName"] {
        spec.field("serviceName").check_if_set(names::dns1123_label, out);
    }
    if spec.value["volumeClaimTemplates"] != old["spec"]["volumeClaimTemplates"] {
        claim_templates(&spec, out);
        asked.claim_changes(&spec, &old["spec"], out);
    }
}

/// The rules that hold for new and changed sets.
fn check_spec(spec: &At<'_>, with_template: bool, out: &mut Errors) {
    let policy = spec.field("podManagementPolicy");
    match policy.text() {
        "" => out.push(policy.required("")),
        "OrderedReady" | "Parallel" => {}
        _ => out.push(policy.invalid("must be 'OrderedReady' or 'Parallel'")),
    }
    update_strategy(&spec.field("updateStrategy"), out);
    let retention = spec.field("persistentVolumeClaimRetentionPolicy");
    if retention.is_set() {
        retention.field("whenDeleted").one_of_if_set(&["Delete", "Retain"], out);
        retention.field("whenScaled").one_of_if_set(&["Delete", "Retain"], out);
    }
    spec.field("replicas").not_negative(out);
    spec.field("minReadySeconds").not_negative(out);
    spec.field("ordinals").field("start").not_negative(out);
    selector_and_template(spec, with_template, out);
    let template = spec.field("template").field("spec");
    let restart = template.field("restartPolicy");
    if restart.text() != "Always" {
        out.push(FieldError::not_supported(restart.path.clone(), restart.text(), &["Always"]));
    }
    let deadline = template.field("activeDeadlineSeconds");
    if deadline.is_set() {
        out.push(deadline.forbidden("activeDeadlineSeconds in StatefulSet is not Supported"));
    }
}

/// How updates are carried out.
fn update_strategy(strategy: &At<'_>, out: &mut Errors) {
    let rolling = strategy.field("rollingUpdate");
    match strategy.field("type").text() {
        "" => out.push(strategy.required("")),
        "OnDelete" | "Recreate" if rolling.is_set() => {
            out.push(rolling.invalid("only allowed for updateStrategy 'RollingUpdate'"));
        }
        "OnDelete" | "Recreate" => {}
        "RollingUpdate" => {
            rolling.field("partition").not_negative(out);
            let unavailable = rolling.field("maxUnavailable");
            if unavailable.is_set() {
                int_or_percent(&unavailable, out);
                if matches!(unavailable.value, Value::Number(n) if n.as_i64() == Some(0)) || unavailable.text() == "0%"
                {
                    out.push(unavailable.invalid("cannot be 0"));
                }
            }
        }
        _ => out.push(strategy.invalid("must be 'RollingUpdate' or 'OnDelete'")),
    }
}

/// The selector has to select what the template makes.
fn selector_and_template(spec: &At<'_>, with_template: bool, out: &mut Errors) {
    let selector = spec.field("selector");
    if selector.is_set() {
        metadata::selector(&selector, out);
        if selector.field("matchLabels").len() + selector.field("matchExpressions").len() == 0 {
            out.push(selector.invalid("empty selector is invalid for statefulset"));
        }
    } else {
        out.push(selector.required(""));
    }
    let template = spec.field("template");
    let labels = template.field("metadata").field("labels");
    match LabelSelector::from_json(selector.value) {
        Err(_) => out.push(selector.invalid("")),
        Ok(parsed) => {
            if !parsed.is_everything() && !parsed.matches(labels.value) {
                out.push(labels.invalid("`selector` does not match template `labels`"));
            }
            if with_template {
                pod::template(&template, &claim_names(spec), out);
            }
        }
    }
}

/// Names of the claims, which containers mount like volumes.
pub(super) fn claim_names<'a>(spec: &At<'a>) -> Vec<&'a str> {
    spec.field("volumeClaimTemplates").items().map(|claim| claim.field("metadata").field("name").text()).collect()
}

/// A changed status.
pub(super) fn status(set: &At<'_>, old: &Value, out: &mut Errors) {
    let status = set.field("status");
    let counters = ["replicas", "readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"];
    for field in counters.iter().chain(&["observedGeneration", "collisionCount"]) {
        status.field(field).not_negative(out);
    }
    let replicas = status.field("replicas").number();
    for field in &counters[1..] {
        let counter = status.field(field);
        if counter.number() > replicas {
            out.push(counter.invalid("cannot be greater than status.replicas"));
        }
    }
    let available = status.field("availableReplicas");
    if available.number() > status.field("readyReplicas").number() {
        out.push(available.invalid("cannot be greater than status.readyReplicas"));
    }
    let collisions = status.field("collisionCount");
    let before = old["status"]["collisionCount"].as_i64();
    if before.is_some_and(|before| !collisions.is_set() || collisions.number() < before) {
        out.push(FieldError::invalid(&collisions.path, collisions.number(), "cannot be decremented"));
    }
}

/// A new or changed ControllerRevision.
pub(super) fn revision(revision: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    let (data, number) = (revision.field("data"), revision.field("revision"));
    if !data.is_set() {
        out.push(data.required("data is mandatory"));
    }
    if number.number() < 0 {
        out.push(number.invalid(NOT_NEGATIVE));
    }
    if old.is_some_and(|old| &old["data"] != data.value) {
        out.push(data.invalid(IMMUTABLE));
    }
}
