//! What is seen of a pod, and which pods are given up first.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::Millis;

/// How far a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Phase {
    /// It waits for a node, or for its containers to start.
    #[default]
    Pending,
    /// Its node does not answer.
    Unknown,
    /// Its containers run.
    Running,
    /// All of them ended well.
    Succeeded,
    /// One of them ended badly.
    Failed,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Pod {
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// The object controls it; otherwise nobody does.
    pub owned: bool,
    /// The object's selector takes it.
    pub matches: bool,
    /// It has all labels of the template.
    pub fully_labeled: bool,
    /// How far it is.
    pub phase: Phase,
    /// Since when it is ready.
    pub ready_since: Option<Millis>,
    /// It has a deletion timestamp.
    pub terminating: bool,
    /// When it was created.
    pub created: Millis,
    /// Where it is bound to; empty if it is nowhere.
    pub node: String,
    /// Restarts of the container that was restarted most.
    pub restarts: i32,
    /// Restarts of all its containers together.
    pub all_restarts: i64,
    /// What it is said to cost to delete it.
    pub deletion_cost: i32,
    /// It holds the finalizer of job tracking.
    pub tracked: bool,
    /// Its completion index.
    pub index: Option<i32>,
    /// When it ended, or was deleted.
    pub ended: Millis,
}

impl Pod {
    /// It runs, or may still do so.
    pub fn is_active(&self) -> bool {
        !self.terminating && !self.is_over()
    }

    /// It has ended.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// It has been ready for so long.
    pub fn is_available(&self, min_ready_seconds: i32, now: Millis) -> bool {
        self.available_at(min_ready_seconds).is_some_and(|at| at <= now)
    }

    /// When it will have been ready for so long.
    pub fn available_at(&self, min_ready_seconds: i32) -> Option<Millis> {
        self.ready_since
            .map(|since| if min_ready_seconds == 0 { 0 } else { since + i64::from(min_ready_seconds) * 1000 })
    }
}

/// The pods that are given up first: those that are least worth keeping, `count` of them.
///
/// In this order, as Kubernetes has it: without a node, pending, unknown, not ready; of lower deletion cost; on the
/// node that has more of the same (`neighbours` counts them); ready for a shorter time, in powers of two, and of the
/// same one by uid; restarted more often; younger, counted likewise.
pub fn choose_to_delete<'a>(
    pods: &[&'a Pod],
    neighbours: &BTreeMap<String, i32>,
    count: usize,
    now: Millis,
) -> Vec<&'a Pod> {
    let mut sorted: Vec<&Pod> = pods.to_vec();
    // Where all go there is nothing to choose.
    if count < sorted.len() {
        sorted.sort_by(|a, b| worth(a, b, neighbours, now));
    }
    sorted.truncate(count);
    sorted
}

/// Which of two pods is worth less.
fn worth(a: &Pod, b: &Pod, neighbours: &BTreeMap<String, i32>, now: Millis) -> Ordering {
    let rank = |pod: &Pod| neighbours.get(&pod.node).copied().unwrap_or(0);
    (!a.node.is_empty())
        .cmp(&!b.node.is_empty())
        .then(a.phase.cmp(&b.phase))
        .then(a.ready_since.is_some().cmp(&b.ready_since.is_some()))
        .then(a.deletion_cost.cmp(&b.deletion_cost))
        .then(rank(b).cmp(&rank(a)))
        .then_with(|| match (a.ready_since, b.ready_since) {
            (Some(x), Some(y)) if x != y => age(x, now).cmp(&age(y, now)).then_with(|| a.uid.cmp(&b.uid)),
            _ => Ordering::Equal,
        })
        .then(b.restarts.cmp(&a.restarts))
        .then_with(|| match (a.created, b.created) {
            (x, y) if x != y => age(x, now).cmp(&age(y, now)).then_with(|| a.uid.cmp(&b.uid)),
            _ => Ordering::Equal,
        })
}

/// The power of two of an age; -1 if there is none.
fn age(since: Millis, now: Millis) -> i64 {
    match now - since {
        age if age > 0 => i64::from(age.ilog2()),
        _ => -1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, change: impl FnOnce(&mut Pod)) -> Pod {
        let mut pod = Pod {
            name: name.into(),
            uid: name.into(),
            phase: Phase::Running,
            ready_since: Some(1000),
            created: 500,
            node: "n".into(),
            ..Pod::default()
        };
        change(&mut pod);
        pod
    }

    fn first(pods: &[Pod], neighbours: &[(&str, i32)]) -> String {
        let neighbours = neighbours.iter().map(|(n, c)| ((*n).to_owned(), *c)).collect();
        let refs: Vec<&Pod> = pods.iter().collect();
        choose_to_delete(&refs, &neighbours, 1, 100_000)[0].name.clone()
    }

    #[test]
    fn each_rule_decides_where_those_before_it_do_not() {
        let steps: [fn(&mut Pod); 8] = [
            |p| p.node.clear(),
            |p| p.phase = Phase::Pending,
            |p| p.ready_since = None,
            |p| p.deletion_cost = -1,
            |p| p.node = "full".into(),
            |p| p.ready_since = Some(99_000),
            |p| p.restarts = 3,
            |p| p.created = 99_000,
        ];
        for (n, earlier) in steps.iter().enumerate() {
            assert_eq!(first(&[pod("a", |_| {}), pod("b", earlier)], &[("full", 2)]), "b", "rule {n}");
            for later in &steps[n + 1..] {
                assert_eq!(first(&[pod("a", later), pod("b", earlier)], &[("full", 2)]), "b", "rule {n}");
            }
        }
    }

    #[test]
    fn ages_of_one_power_of_two_are_told_apart_by_uid_alone() {
        let young = pod("z", |p| p.ready_since = Some(30_000));
        let old = pod("a", |p| p.ready_since = Some(1_000));
        assert_eq!(first(&[young, old], &[]), "a", "both have been ready for between 65 and 131 seconds");
    }

    #[test]
    fn a_pod_is_available_once_it_has_been_ready_for_long_enough() {
        let pod = pod("a", |_| {});
        assert!(pod.is_available(0, 0) && pod.is_available(5, 6000) && !pod.is_available(5, 5999));
        assert!(!Pod::default().is_available(0, 1));
    }
}
