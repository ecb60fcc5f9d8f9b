//! Traces side by side: what is forgiven, and the first difference in words.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::players::objects::{INDEX_LABEL, name, text};

/// What a run left.
#[derive(Clone, Debug)]
pub(super) struct Trace {
    /// One for each `quiet` step.
    pub(super) segments: Vec<Value>,
    /// The events of each set.
    pub(super) events: BTreeMap<String, Vec<String>>,
}

/// A difference between the recorded server and newer ones, or one that is no business of the controller. A scenario names
/// those that apply to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rule {
    /// Since 1.22 the status has `availableReplicas`; without minReadySeconds it equals the ready count.
    AvailableReplicas,
    /// Since 1.28 pods carry their ordinal as a label.
    PodIndexLabel,
    /// Events RecreatingFailedPod and RecreatingTerminatedPod are gone from newer releases.
    RecreatingEvents,
    /// A pod that is deleted without grace may go with or without a moment of terminating.
    InstantDeletion,
    /// The recorded server writes no status while creations fail; compared at the end only.
    StatusWhileBlocked,
    /// Newer releases complete `currentRevision` with OnDelete too.
    StatusCurrent,
    /// Clients limit the rate of events: some may lack.
    EventLimit,
    /// FailedCreate for a claim that is just going may be reported or not.
    ClaimRaceEvent,
    /// FailedCreate for a taken pod name may be reported or not.
    CreateConflictEvent,
    /// The revisions of a former set go at their own time.
    RevisionOwnerRace,
}

impl Rule {
    fn parse(word: &str) -> Rule {
        match word {
            "available-replicas" => Rule::AvailableReplicas,
            "pod-index-label" => Rule::PodIndexLabel,
            "recreating-events" => Rule::RecreatingEvents,
            "instant-deletion" => Rule::InstantDeletion,
            "status-while-blocked" => Rule::StatusWhileBlocked,
            "status-current" => Rule::StatusCurrent,
            "event-limit" => Rule::EventLimit,
            "claim-race-event" => Rule::ClaimRaceEvent,
            "create-conflict-event" => Rule::CreateConflictEvent,
            "revision-owner-race" => Rule::RevisionOwnerRace,
            other => panic!("a scenario tolerates {other:?}, which is not a rule"),
        }
    }
}

/// The first difference between what a scenario expects and what was seen. None: it is right.
pub(super) fn compare(scenario: &Value, seen: &Trace) -> Option<String> {
    let rules = scenario["tolerates"].as_array().into_iter().flatten().map(|rule| Rule::parse(text(rule))).collect();
    let accepted = scenario["accepts"].as_array().into_iter().flatten().map(|other| &other["expected"]);
    let seen = forgive(seen.clone(), &rules);
    let mut first = None;
    for expected in std::iter::once(&scenario["expected"]).chain(accepted) {
        let expected = forgive(Trace::recorded(expected), &rules);
        let found = difference(&expected.to_value(), &seen.to_value(), "")?;
        first.get_or_insert(found);
    }
    first
}

impl Trace {
    fn recorded(value: &Value) -> Trace {
        let lines = |lines: &Value| lines.as_array().into_iter().flatten().map(|line| text(line).to_owned()).collect();
        Trace {
            segments: value["segments"].as_array().cloned().unwrap_or_default(),
            events: value["events"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(set, all)| (set.clone(), lines(all)))
                .collect(),
        }
    }

    fn to_value(&self) -> Value {
        json!({"segments": self.segments, "events": self.events})
    }
}

/// Takes everything out that the rules forgive.
fn forgive(mut trace: Trace, rules: &BTreeSet<Rule>) -> Trace {
    let last = trace.segments.len().saturating_sub(1);
    for (at, segment) in trace.segments.iter_mut().enumerate() {
        if rules.contains(&Rule::StatusWhileBlocked) && at != last {
            segment["state"]["status"] = json!({});
        }
        if rules.contains(&Rule::RevisionOwnerRace) {
            segment["state"].as_object_mut().expect("every segment has a state").remove("revisions");
        }
        if rules.contains(&Rule::InstantDeletion) {
            forget_short_terminations(&mut segment["trace"]["pods"]);
        }
        for status in segment["state"]["status"].as_object_mut().into_iter().flatten().map(|(_, status)| status) {
            forgive_status(status, rules);
        }
        for object in segment["snapshots"].as_object_mut().into_iter().flatten().map(|(_, object)| object) {
            forgive_labels(object, rules);
        }
    }
    for lines in trace.events.values_mut() {
        lines.retain(|line| {
            let recreating = line.starts_with("Warning Recreating") && rules.contains(&Rule::RecreatingEvents);
            let conflict = line.starts_with("Warning FailedCreate: create Pod")
                && (rules.contains(&Rule::CreateConflictEvent) || rules.contains(&Rule::ClaimRaceEvent));
            !recreating && !conflict
        });
    }
    trace.events.retain(|_, lines| !lines.is_empty() && !rules.contains(&Rule::EventLimit));
    trace
}

fn forget_short_terminations(pods: &mut Value) {
    let Some(lines) = pods.as_array_mut() else { return };
    let gone: BTreeSet<String> =
        lines.iter().filter_map(|line| Some(text(line).strip_prefix('-')?.to_owned())).collect();
    lines.retain(|line| text(line).strip_prefix("terminating ").is_none_or(|name| !gone.contains(name)));
}

fn forgive_status(status: &mut Value, rules: &BTreeSet<Rule>) {
    let same = status.get("available").is_some_and(|available| *available == status["ready"]);
    let Some(fields) = status.as_object_mut() else { return };
    if same && rules.contains(&Rule::AvailableReplicas) {
        fields.remove("available");
    }
    if rules.contains(&Rule::StatusCurrent) {
        fields.remove("current");
        fields.remove("currentRevision");
    }
}

fn forgive_labels(object: &mut Value, rules: &BTreeSet<Rule>) {
    let ordinal = name(object).rsplit('-').next().unwrap_or_default().to_owned();
    let Some(labels) = object["metadata"]["labels"].as_object_mut() else { return };
    if rules.contains(&Rule::PodIndexLabel) && labels.get(INDEX_LABEL).is_some_and(|index| *index == ordinal.as_str()) {
        labels.remove(INDEX_LABEL);
    }
}

fn difference(expected: &Value, seen: &Value, path: &str) -> Option<String> {
    match (expected, seen) {
        (Value::Object(left), Value::Object(right)) => {
            let keys: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
            keys.into_iter().find_map(|key| match (left.get(key), right.get(key)) {
                (Some(value), None) => Some(format!("{path}.{key}: missing, expected {value}")),
                (None, Some(value)) => Some(format!("{path}.{key}: not expected: {value}")),
                (Some(left), Some(right)) => difference(left, right, &format!("{path}.{key}")),
                (None, None) => None,
            })
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => left
            .iter()
            .zip(right)
            .enumerate()
            .find_map(|(at, (one, other))| difference(one, other, &format!("{path}[{at}]")))
            .map(|found| {
                if left.iter().all(Value::is_string) {
                    format!("{found}\n  expected {expected}\n  seen     {seen}")
                } else {
                    found
                }
            }),
        _ if expected == seen => None,
        _ => Some(format!("{path}:\n  expected {expected}\n  seen     {seen}")),
    }
}

/// What the comparison must find and must forgive. A suite that cannot fail shows nothing.
pub(super) mod check {
    use super::*;

    fn scenario(tolerates: Value) -> Value {
        json!({"tolerates": tolerates, "expected": {"events": {"web": ["Normal A: a"]}, "segments": [
            {"trace": {"pods": ["+web-0 rev#1", "terminating web-0", "-web-0"]}, "answers": [], "snapshots": {},
             "state": {"pods": [], "status": {"web": {"ready": 1}}}}]}})
    }

    fn seen(pods: Value, status: Value) -> Trace {
        let segment = json!({"trace": {"pods": pods}, "answers": [], "snapshots": {},
            "state": {"pods": [], "status": {"web": status}}});
        Trace { segments: vec![segment], events: [("web".to_owned(), vec!["Normal A: a".to_owned()])].into() }
    }

    /// Another order is a difference, and is named.
    pub(in super::super) fn order_counts() {
        let right = seen(json!(["+web-0 rev#1", "terminating web-0", "-web-0"]), json!({"ready": 1}));
        assert_eq!(compare(&scenario(json!([])), &right), None);
        let wrong = seen(json!(["terminating web-0", "+web-0 rev#1", "-web-0"]), json!({"ready": 1}));
        let found = compare(&scenario(json!([])), &wrong).unwrap();
        assert!(found.contains(".segments[0].trace.pods[0]"), "{found}");
    }

    /// Only what a rule names is forgiven.
    pub(in super::super) fn rules_forgive_no_more_than_they_name() {
        let newer = seen(json!(["+web-0 rev#1", "-web-0"]), json!({"ready": 1, "available": 1}));
        assert!(compare(&scenario(json!([])), &newer).is_some());
        assert!(compare(&scenario(json!(["instant-deletion"])), &newer).is_some());
        assert_eq!(compare(&scenario(json!(["instant-deletion", "available-replicas"])), &newer), None);
        let wrong = seen(json!(["+web-0 rev#1", "-web-0"]), json!({"ready": 1, "available": 0}));
        assert!(compare(&scenario(json!(["instant-deletion", "available-replicas"])), &wrong).is_some());
    }
}
