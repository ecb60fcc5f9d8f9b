//! The status of one budget, from the pods that it covers. No I/O.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::informers::PodView;

/// How long a pod whose eviction was let through is expected to be deleted. Upstream's DeletionTimeout.
const DELETION: Duration = Duration::from_secs(120);
/// The condition of a budget.
const ALLOWED: &str = "DisruptionAllowed";

/// How many pods there should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    /// By their controllers.
    pub(super) pods: i32,
    /// Some have none.
    pub(super) unmanaged: bool,
}

/// What is counted.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Count {
    /// To be written.
    pub(super) status: PodDisruptionBudgetStatus,
    /// When to count again without any change.
    pub(super) again: Option<Duration>,
    /// Pods that were to be deleted and were not.
    pub(super) stayed: Vec<String>,
}

/// Whether the controllers' scales decide; otherwise it is the pods that are there.
pub(super) fn needs_scale(budget: &PodDisruptionBudget) -> bool {
    let spec = budget.spec.clone().unwrap_or_default();
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
}

/// Counts.
pub(super) fn count(budget: &PodDisruptionBudget, pods: &[Arc<PodView>], expected: &Expected, now: Timestamp) -> Count {
    let spec = budget.spec.clone().unwrap_or_default();
    let (expected, desired) = match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => (expected.pods, (expected.pods - scaled(most, expected.pods)).max(0)),
        (None, Some(least)) => (expected.pods, scaled(least, expected.pods)),
        (None, None) => (0, 0),
    };
    let noted = budget.status.as_ref().and_then(|status| status.disrupted_pods.clone()).unwrap_or_default();
    let mut disrupted = BTreeMap::new();
    let mut stayed = Vec::new();
    let mut again: Option<Duration> = None;
    for pod in pods.iter().filter(|pod| !pod.deleting) {
        let Some(since) = noted.get(&pod.name) else { continue };
        let age = Duration::try_from(now.duration_since(since.0)).unwrap_or_default();
        match DELETION.checked_sub(age).filter(|left| !left.is_zero()) {
            Some(left) => {
                again = Some(again.map_or(left, |again| again.min(left)));
                disrupted.insert(pod.name.clone(), since.clone());
            }
            None => stayed.push(pod.name.clone()),
        }
    }
    let is_healthy = |pod: &&Arc<PodView>| pod.ready && !pod.deleting && !disrupted.contains_key(&pod.name);
    let healthy = i32::try_from(pods.iter().filter(is_healthy).count()).unwrap_or(i32::MAX);
    let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
    let (status, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let status = PodDisruptionBudgetStatus {
        conditions: Some(conditions(budget, status, reason, "", budget.metadata.generation, now)),
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        disrupted_pods: Some(disrupted).filter(|pods| !pods.is_empty()),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(expected),
        observed_generation: budget.metadata.generation,
    };
    Count { status, again, stayed }
}

/// Where it cannot be counted nothing may be disturbed.
pub(super) fn failed(budget: &PodDisruptionBudget, why: &str, now: Timestamp) -> Count {
    let mut status = budget.status.clone().unwrap_or_default();
    status.disruptions_allowed = Some(0);
    for number in [&mut status.current_healthy, &mut status.desired_healthy, &mut status.expected_pods] {
        number.get_or_insert(0);
    }
    status.conditions = Some(conditions(budget, "False", "SyncFailed", why, status.observed_generation, now));
    Count { status, again: None, stayed: Vec::new() }
}

/// A number as it is, or so many per cent of all, rounded up.
fn scaled(value: &IntOrString, of: i32) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            i32::try_from((i64::from(of) * percent + 99) / 100).unwrap_or(i32::MAX)
        }
    }
}

/// All conditions, with this one as it is now; its time is that of its last change.
fn conditions(
    budget: &PodDisruptionBudget,
    status: &str,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let old = budget.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let since = old.iter().find(|c| c.type_ == ALLOWED && c.status == status).map(|c| c.last_transition_time.clone());
    let mut all: Vec<Condition> = old.into_iter().filter(|c| c.type_ != ALLOWED).collect();
    all.push(Condition {
        type_: ALLOWED.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: generation,
        last_transition_time: since.unwrap_or(Time(now)),
    });
    all
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).expect("a time")
    }

    fn budget(spec: Value, disrupted: Value) -> PodDisruptionBudget {
        let value = json!({"metadata": {"name": "b", "generation": 3}, "spec": spec, "status": {
            "currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0, "disruptedPods": disrupted}});
        serde_json::from_value(value).expect("a budget")
    }

    fn pods(ready: &[bool]) -> Vec<Arc<PodView>> {
        let pod = |(n, ready): (usize, &bool)| PodView { name: format!("p-{n}"), ready: *ready, ..PodView::default() };
        ready.iter().enumerate().map(pod).map(Arc::new).collect()
    }

    /// Healthy, desired, expected, allowed.
    fn numbers(spec: Value, ready: &[bool], expected: i32) -> [i32; 4] {
        let expected = Expected { pods: expected, unmanaged: false };
        let status = count(&budget(spec, json!({})), &pods(ready), &expected, at(0)).status;
        [status.current_healthy, status.desired_healthy, status.expected_pods, status.disruptions_allowed]
            .map(|number| number.expect("all numbers are said"))
    }

    #[test]
    fn numbers_and_shares_of_pods_are_counted_as_upstream_does() {
        let three = [true, true, true];
        assert_eq!(numbers(json!({"maxUnavailable": 1}), &three, 3), [3, 2, 3, 1]);
        assert_eq!(numbers(json!({"maxUnavailable": 1}), &[true, false, true], 3), [2, 2, 3, 0]);
        assert_eq!(numbers(json!({"maxUnavailable": 1}), &three[..2], 3), [2, 2, 3, 0], "one is not created yet");
        assert_eq!(numbers(json!({"maxUnavailable": "50%"}), &three, 3), [3, 1, 3, 2], "rounded up");
        assert_eq!(numbers(json!({"maxUnavailable": 5}), &three, 3), [3, 0, 3, 3]);
        assert_eq!(numbers(json!({"minAvailable": 2}), &three, 3), [3, 2, 3, 1]);
        assert_eq!(numbers(json!({"minAvailable": "50%"}), &three, 3), [3, 2, 3, 1], "rounded up");
        assert_eq!(numbers(json!({"minAvailable": 0}), &[], 0), [0, 0, 0, 0], "of nothing, nothing may go");
        assert_eq!(numbers(json!({}), &three, 3), [3, 0, 0, 0]);
    }

    #[test]
    fn a_pod_whose_eviction_was_let_through_counts_as_gone_for_two_minutes() {
        let budget = budget(json!({"maxUnavailable": 1}), json!({"p-0": at(0).to_string(), "gone": at(0).to_string()}));
        let expected = Expected { pods: 3, unmanaged: false };
        let early = count(&budget, &pods(&[true; 3]), &expected, at(30));
        assert_eq!((early.status.disruptions_allowed, early.again), (Some(0), Some(Duration::from_secs(90))));
        let noted = early.status.disrupted_pods.expect("one is noted");
        assert_eq!(noted.keys().collect::<Vec<_>>(), ["p-0"], "what is gone is noted no more");
        let late = count(&budget, &pods(&[true; 3]), &expected, at(120));
        assert_eq!((late.status.disruptions_allowed, late.again, late.stayed), (Some(1), None, vec!["p-0".to_owned()]));
    }

    #[test]
    fn a_condition_keeps_its_time_while_it_is_the_same() {
        let mut budget = budget(json!({"minAvailable": 1}), json!({}));
        let expected = Expected { pods: 2, unmanaged: false };
        budget.status = Some(count(&budget, &pods(&[true, true]), &expected, at(0)).status);
        let same = count(&budget, &pods(&[true, true]), &expected, at(9)).status;
        assert_eq!(Some(&same), budget.status.as_ref(), "nothing is to be written");
        let other = count(&budget, &pods(&[true, false]), &expected, at(9)).status.conditions.expect("one");
        assert_eq!((other[0].reason.as_str(), other[0].last_transition_time.0), ("InsufficientPods", at(9)));
        let broken = failed(&budget, "no scale", at(10)).status;
        assert_eq!((broken.disruptions_allowed, broken.current_healthy), (Some(0), Some(2)));
        assert_eq!(broken.conditions.expect("one")[0].message, "no scale");
    }
}
