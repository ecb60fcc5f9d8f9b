//! A replica set: as many pods as were asked for.

use std::collections::BTreeMap;

use crate::condition::{self, Condition, Truth};
use crate::{Millis, Pod, choose_to_delete};

/// Most pods made or deleted at one go.
const BURST: usize = 500;
/// The condition of a set whose pods could not be made or deleted.
pub const REPLICA_FAILURE: &str = "ReplicaFailure";

/// A replica set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct ReplicaSet {
    /// metadata.generation.
    pub generation: i64,
    /// It has a deletion timestamp.
    pub deleting: bool,
    /// spec.replicas.
    pub replicas: i32,
    /// spec.minReadySeconds.
    pub min_ready_seconds: i32,
    /// Its status.
    pub status: Status,
}

/// The status of a set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Status {
    /// Generation that this is about.
    pub observed_generation: i64,
    /// Pods.
    pub replicas: i32,
    /// Pods with all labels of the template.
    pub fully_labeled: i32,
    /// Pods that are ready.
    pub ready: i32,
    /// Pods that have been ready for long enough.
    pub available: i32,
    /// Pods that are on their way out.
    pub terminating: Option<i32>,
    /// Conditions.
    pub conditions: Vec<Condition>,
}

/// A set with its pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Observed {
    /// The set.
    pub set: ReplicaSet,
    /// Its pods, and those of nobody that its selector takes.
    pub pods: Vec<Pod>,
    /// Active pods on each node, of the set and of its siblings of one deployment.
    pub neighbours: BTreeMap<String, i32>,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Plan {
    /// Pods, name and uid, that the set takes; the set is read again before the first of them.
    pub adopt: Vec<(String, String)>,
    /// Pods, name and uid, that it lets go.
    pub release: Vec<(String, String)>,
    /// How many pods are made.
    pub create: usize,
    /// Pods, name and uid, that are deleted.
    pub delete: Vec<(String, String)>,
    /// The status, unless making or deleting fails; see [`Plan::status_after`].
    pub status: Status,
    /// When to look again although nothing changed.
    pub look_again: Option<Millis>,
}

/// Decides.
pub fn plan(observed: &Observed, now: Millis) -> Plan {
    let set = &observed.set;
    let name = |pod: &Pod| (pod.name.clone(), pod.uid.clone());
    let adopts = |pod: &Pod| !pod.owned && pod.matches && pod.is_active() && !set.deleting;
    let releases = |pod: &Pod| pod.owned && !pod.matches && pod.is_active();
    let (pods, mut plan) = (&observed.pods, Plan::default());
    plan.adopt = pods.iter().filter(|p| adopts(p)).map(name).collect();
    plan.release = pods.iter().filter(|p| releases(p)).map(name).collect();
    let held: Vec<&Pod> = pods.iter().filter(|p| p.is_active() && (p.owned && p.matches || adopts(p))).collect();
    let (have, want) = (held.len(), usize::try_from(set.replicas).unwrap_or(0));
    if !set.deleting {
        plan.create = want.saturating_sub(have).min(BURST);
        let surplus = have.saturating_sub(want).min(BURST);
        let chosen = choose_to_delete(&held, &observed.neighbours, surplus, now);
        plan.delete = chosen.into_iter().map(name).collect();
    }
    let count = |is: &dyn Fn(&Pod) -> bool| count(held.iter().filter(|p| is(p)).count());
    plan.status = Status {
        observed_generation: set.generation,
        replicas: count(&|_| true),
        fully_labeled: count(&|p| p.fully_labeled),
        ready: count(&|p| p.ready_since.is_some()),
        available: count(&|p| p.is_available(set.min_ready_seconds, now)),
        terminating: Some(self::count(pods.iter().filter(|p| p.owned && p.terminating && !p.is_over()).count())),
        conditions: set.status.conditions.clone(),
    };
    let soon = held.iter().filter_map(|p| p.available_at(set.min_ready_seconds)).filter(|at| *at > now);
    plan.look_again = soon.min();
    plan
}

impl Plan {
    /// The status after pods were made or deleted; `failure` is what the first failing call said.
    pub fn status_after(&self, failure: Option<&str>, now: Millis) -> Status {
        let mut status = self.status.clone();
        match failure {
            Some(message) => {
                let reason = if self.delete.is_empty() { "FailedCreate" } else { "FailedDelete" };
                if condition::find(&status.conditions, REPLICA_FAILURE).is_none() {
                    let failed = Condition::new(REPLICA_FAILURE, Truth::True, reason, message, now);
                    condition::set(&mut status.conditions, failed);
                }
            }
            None => condition::remove(&mut status.conditions, REPLICA_FAILURE),
        }
        status
    }
}

/// A number of pods as statuses hold it.
fn count(pods: usize) -> i32 {
    i32::try_from(pods).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Phase;

    fn pod(n: usize) -> Pod {
        Pod {
            name: format!("p-{n}"),
            uid: format!("u-{n}"),
            owned: true,
            matches: true,
            fully_labeled: true,
            phase: Phase::Running,
            ready_since: Some(1000),
            node: "n".into(),
            ..Pod::default()
        }
    }

    fn observed(replicas: i32, pods: Vec<Pod>) -> Observed {
        Observed { set: ReplicaSet { replicas, generation: 3, ..ReplicaSet::default() }, pods, ..Observed::default() }
    }

    #[test]
    fn what_is_missing_is_made_and_what_is_too_much_goes() {
        assert_eq!(plan(&observed(3, vec![pod(1)]), 5000).create, 2);
        let fewer = plan(&observed(1, (0..3).map(pod).collect()), 5000);
        assert_eq!((fewer.create, fewer.delete.len()), (0, 2));
        assert_eq!(plan(&observed(2000, vec![]), 0).create, BURST);
    }

    #[test]
    fn pods_that_ended_or_are_on_their_way_out_do_not_count() {
        let ended = Pod { phase: Phase::Failed, ..pod(1) };
        let leaving = Pod { terminating: true, ..pod(2) };
        let plan = plan(&observed(2, vec![ended, leaving, pod(3)]), 5000);
        assert_eq!((plan.create, plan.status.replicas, plan.status.terminating), (1, 1, Some(1)));
    }

    #[test]
    fn pods_of_nobody_are_taken_and_those_that_no_longer_match_let_go() {
        let orphan = Pod { owned: false, ..pod(1) };
        let stranger = Pod { matches: false, ..pod(2) };
        let first = plan(&observed(1, vec![orphan.clone(), stranger.clone()]), 5000);
        assert_eq!((first.adopt.len(), first.release.len(), first.create), (1, 1, 0));
        let mut gone = observed(1, vec![orphan, stranger]);
        gone.set.deleting = true;
        let leaving = plan(&gone, 5000);
        assert_eq!((leaving.adopt.len(), leaving.create, leaving.delete.len()), (0, 0, 0));
    }

    #[test]
    fn availability_comes_with_time() {
        let mut set = observed(1, vec![pod(1)]);
        set.set.min_ready_seconds = 10;
        let early = plan(&set, 5000);
        assert_eq!((early.status.ready, early.status.available, early.look_again), (1, 0, Some(11_000)));
        let late = plan(&set, 11_000);
        assert_eq!((late.status.available, late.look_again), (1, None));
    }

    #[test]
    fn a_failure_is_told_until_it_is_over() {
        let mut set = observed(1, vec![]);
        let failed = plan(&set, 5000).status_after(Some("exceeded quota"), 5000);
        assert_eq!(failed.conditions[0].reason, "FailedCreate");
        set.set.status = failed.clone();
        assert_eq!(plan(&set, 9000).status_after(Some("exceeded quota: again"), 9000), failed);
        assert_eq!(plan(&set, 9000).status_after(None, 9000).conditions, []);
    }

    proptest! {
        #[test]
        fn following_a_plan_leads_to_as_many_pods_as_asked_for_and_then_to_nothing(
            replicas in 0..8i32, pods in proptest::collection::vec((0..5u8, any::<bool>(), any::<bool>()), 0..10),
        ) {
            let made = |(n, (phase, owned, terminating)): (usize, (u8, bool, bool))| {
                let phase = [Phase::Pending, Phase::Unknown, Phase::Running, Phase::Succeeded, Phase::Failed]
                    [usize::from(phase)];
                Pod { phase, owned, terminating, ..pod(n) }
            };
            let mut view = observed(replicas, pods.into_iter().enumerate().map(made).collect());
            let plan = plan(&view, 5000);
            prop_assert!(plan.create == 0 || plan.delete.is_empty());
            view.pods.retain(|p| !plan.delete.contains(&(p.name.clone(), p.uid.clone())));
            for pod in &mut view.pods {
                pod.owned |= plan.adopt.iter().any(|(_, uid)| *uid == pod.uid);
            }
            view.pods.extend((100..100 + plan.create).map(pod));
            let next = super::plan(&view, 5000);
            prop_assert_eq!(next.status.replicas, replicas);
            prop_assert!(next.adopt.is_empty() && next.release.is_empty());
            prop_assert!(next.create == 0 && next.delete.is_empty());
        }
    }
}
