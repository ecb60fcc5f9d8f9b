//! Preemption: which pods would have to go so that a more important one finds a place.
//!
//! On each node where pods could make room, all less important ones are imagined gone, then taken back one after the
//! other, the most important first, those that a disruption budget protects before all others. What cannot be taken
//! back are the victims. Of several nodes the one that loses least is chosen.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::cluster::{Cluster, Entry};
use super::decide::refusal;
use super::filter::{self, Obstacle, Surroundings};
use super::storage::ClaimState;
use crate::informers::PodView;

/// Nodes that are tried at least, and then a tenth of all.
const CANDIDATES: usize = 100;

/// What preemption can do for a pod.
#[derive(Clone, Debug)]
pub(super) enum Help {
    /// With these gone the pod fits here.
    Room {
        /// The node.
        node: String,
        /// The pods, the most important first.
        victims: Vec<Arc<PodView>>,
    },
    /// Nothing; in words.
    Useless(String),
}

/// Looks for a place for a pod that all nodes refused, each for its obstacle.
pub(super) fn help(
    pod: &Arc<PodView>,
    claims: &[ClaimState],
    refusals: &[(&str, &Entry, Obstacle)],
    around: &Surroundings,
    cluster: &Cluster,
) -> Help {
    if let Some(why) = ineligible(pod, refusals, cluster) {
        return Help::Useless(why.into());
    }
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut found: Vec<Candidate<'_>> = Vec::new();
    let enough = CANDIDATES.max(refusals.len() / 10);
    for (name, entry, obstacle) in refusals {
        if found.len() >= enough {
            break;
        }
        let answer = if obstacle.lasts {
            Err(vec!["Preemption is not helpful for scheduling".to_owned()])
        } else {
            candidate(pod, claims, (name, entry), around, cluster)
        };
        match answer {
            Ok(candidate) => found.push(candidate),
            Err(why) => why.into_iter().for_each(|why| *reasons.entry(why).or_default() += 1),
        }
    }
    match found.into_iter().min_by_key(Candidate::loss) {
        Some(best) => Help::Room { node: best.node.to_owned(), victims: best.victims },
        None => Help::Useless(refusal(refusals.len(), &reasons)),
    }
}

/// Why the pod may not take others' places, if it may not.
fn ineligible(pod: &PodView, refusals: &[(&str, &Entry, Obstacle)], cluster: &Cluster) -> Option<&'static str> {
    if pod.needs.never_preempts {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let nominated = pod.needs.nominated.as_deref()?;
    // Where the node itself will not do any more, another is looked for.
    if refusals.iter().any(|(name, _, obstacle)| *name == nominated && obstacle.lasts) {
        return None;
    }
    let leaves =
        |other: &&Arc<PodView>| other.deleting && other.needs.preempted && other.needs.priority < pod.needs.priority;
    let leaving = cluster.entry(nominated)?.load.pods.values().any(|other| leaves(&other));
    leaving.then_some("not eligible due to a terminating pod on the nominated node.")
}

/// A node where room can be made, and at whose cost.
struct Candidate<'a> {
    node: &'a str,
    victims: Vec<Arc<PodView>>,
    /// Victims that a budget protects.
    violations: usize,
}

impl Candidate<'_> {
    /// What is lost, most weighty first: protected pods, the most important pod, the sum of importance, the number, and
    /// the time for which the most important ones have run.
    fn loss(&self) -> (usize, i32, i64, usize, Reverse<Option<Timestamp>>, String) {
        let priorities = || self.victims.iter().map(|v| v.needs.priority);
        let highest = priorities().max().unwrap_or(i32::MIN);
        // Counted from the lowest priority there is, so that every pod adds something.
        let sum = priorities().map(|p| i64::from(p) - i64::from(i32::MIN)).sum();
        let most_important = self.victims.iter().filter(|v| v.needs.priority == highest);
        let since = most_important.filter_map(|v| v.needs.started).min();
        (self.violations, highest, sum, self.victims.len(), Reverse(since), self.node.to_owned())
    }
}

fn candidate<'a>(
    pod: &Arc<PodView>,
    claims: &[ClaimState],
    (name, entry): (&'a str, &Entry),
    around: &Surroundings,
    cluster: &Cluster,
) -> Result<Candidate<'a>, Vec<String>> {
    let less = entry.load.pods.values().filter(|other| other.needs.priority < pod.needs.priority);
    let mut less: Vec<Arc<PodView>> = less.cloned().collect();
    if less.is_empty() {
        return Err(vec!["No preemption victims found for incoming pod".to_owned()]);
    }
    let (mut load, mut around) = (entry.load.clone(), around.clone());
    for other in &less {
        load.remove(&other.uid);
        around.remove(pod, entry, other, cluster);
    }
    if let Some(obstacle) = filter::obstacle(pod, claims, (name, entry), &load, &around, cluster) {
        return Err(obstacle.reasons);
    }
    // The more important first; of equals the one that has run longer. What does not run yet has run shortest.
    less.sort_by_key(|p| (Reverse(p.needs.priority), p.needs.started.is_none(), p.needs.started, p.name.clone()));
    let (protected, free) = by_budgets(less, cluster);
    let mut victims = Vec::new();
    let mut violations = 0;
    for (other, protected) in protected.into_iter().map(|p| (p, true)).chain(free.into_iter().map(|p| (p, false))) {
        load.add(&other);
        around.add(pod, entry, &other, cluster);
        if filter::obstacle(pod, claims, (name, entry), &load, &around, cluster).is_some() {
            load.remove(&other.uid);
            around.remove(pod, entry, &other, cluster);
            violations += usize::from(protected);
            victims.push(other);
        }
    }
    victims.sort_by_key(|p| (Reverse(p.needs.priority), p.needs.started.is_none(), p.needs.started, p.name.clone()));
    Ok(Candidate { node: name, victims, violations })
}

/// Those whose going a disruption budget does not allow, and those that may go; each in the order given.
fn by_budgets(pods: Vec<Arc<PodView>>, cluster: &Cluster) -> (Vec<Arc<PodView>>, Vec<Arc<PodView>>) {
    let mut left: BTreeMap<&(String, String), i64> = BTreeMap::new();
    let (mut protected, mut free) = (Vec::new(), Vec::new());
    for pod in pods {
        let mut violates = false;
        for (key, budget) in cluster.budgets_of(&pod) {
            let left = left.entry(key).or_insert(budget.allowed);
            *left -= 1;
            violates |= *left < 0;
        }
        if violates { protected.push(pod) } else { free.push(pod) }
    }
    (protected, free)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::policy::v1::PodDisruptionBudget;
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::decide::{Decision, decide};
    use super::super::testing::{cluster, node, node_with, pod};
    use super::*;

    /// A pod on a node (none: waiting) with this priority that takes so many processors.
    fn ranked(name: &str, node: &str, priority: i32, cpu: u32) -> Arc<PodView> {
        pod(name, |p| {
            p["spec"]["nodeName"] = node.into();
            p["spec"]["priority"] = priority.into();
            p["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": cpu.to_string()}});
        })
    }

    fn victims(decision: Decision) -> (String, Vec<String>) {
        match decision {
            Decision::Preempt { node, victims, .. } => (node, victims.iter().map(|v| v.name.clone()).collect()),
            other => panic!("{other:?}"),
        }
    }

    fn words(decision: Decision) -> String {
        match decision {
            Decision::Unschedulable { message } => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_fewest_and_least_important_go() {
        let there = cluster(
            &[node("a"), node("b")],
            &[ranked("a1", "a", 5, 3), ranked("a2", "a", 1, 1), ranked("b1", "b", 1, 2), ranked("b2", "b", 2, 2)],
        );
        let decision = decide(&ranked("new", "", 10, 2), &[], &there);
        assert_eq!(victims(decision), ("b".to_owned(), vec!["b1".to_owned()]), "b2 can stay, and a would lose a1");
        let refused = words(decide(&ranked("new", "", 1, 2), &[], &there));
        assert_eq!(
            refused,
            "0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: \
             2 No preemption victims found for incoming pod."
        );
    }

    #[test]
    fn where_it_would_not_help_nobody_goes() {
        let barred =
            node_with("b", |n| n["spec"]["taints"] = json!([{"key": "k", "value": "v", "effect": "NoSchedule"}]));
        let there = cluster(&[node("a"), barred], &[ranked("a1", "a", 1, 3), ranked("a2", "a", 50, 1)]);
        assert_eq!(
            words(decide(&ranked("new", "", 10, 4), &[], &there)),
            "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {k: v}. preemption: \
             0/2 nodes are available: 1 Insufficient cpu, 1 Preemption is not helpful for scheduling."
        );
        let never = {
            let mut never = (*ranked("new", "", 10, 2)).clone();
            let mut needs = (*never.needs).clone();
            needs.never_preempts = true;
            never.needs = Arc::new(needs);
            Arc::new(never)
        };
        assert!(
            words(decide(&never, &[], &there)).ends_with("preemption: not eligible due to preemptionPolicy=Never.")
        );
        let huge = words(decide(&ranked("new", "", 10, 5), &[], &there));
        assert!(huge.contains("2 Preemption is not helpful"), "no node is that large: {huge}");
    }

    #[test]
    fn budgets_are_respected_where_another_node_would_do() {
        let mut there = cluster(&[node("a"), node("b")], &[ranked("a1", "a", 1, 4), ranked("b1", "b", 2, 4)]);
        let new = ranked("new", "", 10, 4);
        assert_eq!(victims(decide(&new, &[], &there)).1, ["a1"]);
        let budget = json!({"metadata": {"name": "b", "namespace": "d"}, "spec": {"selector": {"matchLabels": {"app": "web"}}},
            "status": {"disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}});
        let budget: PodDisruptionBudget = serde_json::from_value(budget).expect("a budget");
        there.budget(&budget, true);
        // Both are protected now: the less important goes all the same.
        assert_eq!(victims(decide(&new, &[], &there)).1, ["a1"]);
        let unprotected = pod("b1", |p| {
            p["metadata"]["labels"] = json!({"app": "other"});
            p["spec"]["nodeName"] = "b".into();
            p["spec"]["priority"] = 2.into();
            p["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "4"}});
        });
        there.pod(None, Some(&unprotected));
        assert_eq!(victims(decide(&new, &[], &there)).1, ["b1"]);
    }

    #[test]
    fn room_that_was_made_is_kept_for_whom_it_was_made() {
        let nominated = |priority: i32| {
            pod("first", |p| {
                p["spec"]["priority"] = priority.into();
                p["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "3"}});
                p["status"]["nominatedNodeName"] = "a".into();
            })
        };
        let there = cluster(&[node("a")], &[nominated(10)]);
        assert!(words(decide(&ranked("late", "", 5, 2), &[], &there)).contains("Insufficient cpu"));
        assert_eq!(decide(&nominated(10), &[], &there), Decision::Bind { node: "a".into() });
        assert_eq!(decide(&ranked("small", "", 5, 1), &[], &there), Decision::Bind { node: "a".into() });
        assert_eq!(decide(&ranked("higher", "", 11, 4), &[], &there), Decision::Bind { node: "a".into() });
    }

    #[test]
    fn while_victims_leave_nobody_else_is_made_to_go() {
        let leaving = pod("a1", |p| {
            p["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z".into();
            p["spec"]["nodeName"] = "a".into();
            p["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "4"}});
            p["status"]["conditions"] =
                json!([{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]);
        });
        let waits = pod("new", |p| {
            p["spec"]["priority"] = 10.into();
            p["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "4"}});
            p["status"]["nominatedNodeName"] = "a".into();
        });
        let there = cluster(&[node("a"), node("b")], &[leaving, ranked("b1", "b", 1, 4), waits.clone()]);
        let words = words(decide(&waits, &[], &there));
        assert!(words.ends_with("preemption: not eligible due to a terminating pod on the nominated node."), "{words}");
    }

    proptest! {
        /// Whoever is made to go is less important, and with all of them gone, and not with one fewer, the pod fits.
        #[test]
        fn victims_are_less_important_enough_and_no_more_than_that(
            pods in proptest::collection::vec((0..3usize, 0..20i32, 0..4u32), 0..12), priority in 0..20i32, cpu in 1..5u32
        ) {
            let nodes = [node("a"), node("b"), node("c")];
            let pods: Vec<_> = pods.iter().enumerate()
                .map(|(i, (at, rank, cpu))| ranked(&format!("p{i}"), ["a", "b", "c"][*at], *rank, *cpu)).collect();
            let there = cluster(&nodes, &pods);
            let new = ranked("new", "", priority, cpu);
            let Decision::Preempt { node, victims, .. } = decide(&new, &[], &there) else { return Ok(()) };
            prop_assert!(!victims.is_empty());
            let without = |kept: Option<usize>| {
                let mut there = there.clone();
                for (_, victim) in victims.iter().enumerate().filter(|(i, _)| Some(*i) != kept) {
                    there.pod(Some(victim), None);
                }
                let around = Surroundings::of(&new, &there);
                let entry = there.entry(&node).unwrap();
                filter::obstacle(&new, &[], (&node, entry), &entry.load, &around, &there).is_none()
            };
            prop_assert!(without(None));
            for (i, victim) in victims.iter().enumerate() {
                prop_assert!(victim.needs.priority < priority);
                prop_assert!(!without(Some(i)), "{} could have stayed", victim.name);
            }
        }
    }
}
