//! What would happen to a set: the shipped planner, carried out on an imagined world in which everything that
//! is started becomes ready and everything that is stopped goes. What is broken now stays as it is.

use std::collections::BTreeSet;

use planner::{Act, Call, ExecState, Millis, Observed, Reason, Request, Response, Verdict, Why, plan, step};

use crate::World;

/// Steps after which an imagination ends: a set of thousands does the same over and over.
const STEPS_LIMIT: usize = 10_000;
/// Plans that are carried out at most. Each changes something, or the imagination has come to rest.
const PLANS_LIMIT: usize = 50_000;

/// Something that would happen, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A claim is created.
    CreateClaim {
        /// Its name.
        claim: String,
    },
    /// The owners of a claim change: it goes with the set, or with its pod, or no longer does.
    OwnClaim {
        /// Its name.
        claim: String,
        /// The kinds of its owners from then on.
        owners: Vec<String>,
    },
    /// A claim is deleted, because its owner went.
    DeleteClaim {
        /// Its name.
        claim: String,
    },
    /// A pod is stopped.
    StopPod {
        /// Its name.
        pod: String,
        /// Why.
        why: Stop,
    },
    /// A pod is started.
    StartPod {
        /// Its name.
        pod: String,
        /// Name of the revision that it is made from.
        revision: String,
    },
    /// The controller waits until a pod is Ready (and available).
    AwaitReady {
        /// Its name.
        pod: String,
    },
    /// A pod joins the set.
    AdoptPod {
        /// Its name.
        pod: String,
    },
    /// A pod leaves the set and goes on.
    ReleasePod {
        /// Its name.
        pod: String,
    },
}

/// Why a pod is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stop {
    /// It is no longer wanted.
    ScaledAway,
    /// It is replaced by one of another revision.
    Replaced,
    /// It has ended and is made anew.
    Ended,
    /// The set goes.
    SetDeleted,
}

/// What would happen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imagined {
    /// Everything, in order.
    pub steps: Vec<Step>,
    /// What would stand still at the end, and why.
    pub blocked: Vec<Reason>,
    /// Calls that the server would refuse, in its words.
    pub refused: Vec<String>,
    /// False if the imagination was cut off.
    pub complete: bool,
}

/// Imagines what carrying out a set's spec leads to.
pub fn imagine(observed: &Observed, now: Millis) -> Imagined {
    let mut life = Life { world: World::of(observed, now), started: BTreeSet::new(), imagined: Imagined::default() };
    for _ in 0..PLANS_LIMIT {
        if life.imagined.steps.len() >= STEPS_LIMIT {
            return life.imagined;
        }
        if !life.sync() {
            // Nothing more is refused only: the world moves, or everything rests.
            break;
        }
        if life.surroundings() {
            continue;
        }
        let plan = plan(&life.world.observe(), life.world.now);
        if plan.is_idle(&life.world.set) {
            match plan.look_again {
                Some(wait) => life.world.now += wait.max(1),
                None => {
                    // A partition or OnDelete is a wish, and not a blockade.
                    life.imagined.blocked = plan.reasons;
                    life.imagined.complete = true;
                    return life.imagined;
                }
            }
        }
    }
    life.imagined
}

impl Imagined {
    /// True if nothing at all would happen.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.refused.is_empty()
    }
}

struct Life {
    world: World,
    /// Pods that were started here and are not ready yet.
    started: BTreeSet<String>,
    imagined: Imagined,
}

impl Life {
    /// One execution of the planner. False if it failed, which here nothing but a refusal brings about.
    fn sync(&mut self) -> bool {
        let view = self.world.observe();
        let (mut state, first) = step(ExecState::new(view, self.world.now), None);
        let mut waiting: std::collections::VecDeque<Request> = first.into();
        while let Some(request) = waiting.pop_front() {
            self.tell(&request.call);
            let answer = self.world.apply(&request.call);
            let (next, more) = step(state, Some(Response { id: request.id, answer }));
            state = next;
            waiting.extend(more);
        }
        match state.outcome().map(|outcome| outcome.verdict.clone()) {
            Some(Verdict::Failed(error)) => {
                self.imagined.refused.push(error.to_string());
                false
            }
            _ => true,
        }
    }

    /// What everything around the controller does, at once and well. False if there is nothing to do.
    fn surroundings(&mut self) -> bool {
        let gone: Vec<String> =
            self.world.pods.values().filter(|p| p.pod.terminating).map(|p| p.pod.name.clone()).collect();
        for name in &gone {
            self.world.remove_pod(name);
            self.started.remove(name);
        }
        let mut moved = !gone.is_empty();
        let before: Vec<String> = self.world.claims.keys().cloned().collect();
        while self.world.collect() {
            moved = true;
        }
        for claim in before.into_iter().filter(|claim| !self.world.claims.contains_key(claim)) {
            self.imagined.steps.push(Step::DeleteClaim { claim });
        }
        for pod in std::mem::take(&mut self.started) {
            if self.world.make_ready(&pod) {
                self.imagined.steps.push(Step::AwaitReady { pod });
                moved = true;
            }
        }
        moved
    }

    fn tell(&mut self, call: &Call) {
        let ours = |owners: &[planner::Owner], uid: &str| owners.iter().any(|owner| owner.uid == uid);
        let step = match call {
            Call::Act(Act::CreateClaim { name, .. }) => Step::CreateClaim { claim: name.clone() },
            Call::Act(Act::SetClaimOwners { name, owners, .. }) => {
                Step::OwnClaim { claim: name.clone(), owners: owners.iter().map(|owner| owner.kind.clone()).collect() }
            }
            Call::Act(Act::CreatePod { name, revision, .. }) => {
                self.started.insert(name.clone());
                Step::StartPod { pod: name.clone(), revision: revision.clone() }
            }
            Call::Act(Act::DeletePod { name, .. }) => Step::StopPod { pod: name.clone(), why: self.why(name) },
            Call::SetPodOwners { name, owners, .. } if ours(owners, &self.world.set.uid) => {
                Step::AdoptPod { pod: name.clone() }
            }
            Call::SetPodOwners { name, .. } => Step::ReleasePod { pod: name.clone() },
            _ => return,
        };
        self.imagined.steps.push(step);
    }

    fn why(&self, name: &str) -> Stop {
        let set = &self.world.set;
        let first = i64::from(set.start);
        let wanted = first..first + i64::from(set.replicas.max(0));
        let ordinal = planner::parent_and_ordinal(name).map(|(_, ordinal)| i64::from(ordinal));
        let ended = self
            .world
            .pods
            .get(name)
            .is_some_and(|pod| matches!(pod.pod.phase, planner::PodPhase::Failed | planner::PodPhase::Succeeded));
        match () {
            () if set.deleting => Stop::SetDeleted,
            () if !ordinal.is_some_and(|ordinal| wanted.contains(&ordinal)) => Stop::ScaledAway,
            () if ended => Stop::Ended,
            () => Stop::Replaced,
        }
    }
}

/// Whether a reason at rest is what somebody asked for, and not something that has to be mended.
pub fn is_wish(reason: &Reason) -> bool {
    reason.why == Why::NotUpdated && matches!(reason.cause, planner::Cause::Partition { .. } | planner::Cause::OnDelete)
}

#[cfg(test)]
mod tests {
    use planner::Management;

    use super::*;
    use crate::plain_set;

    fn settled(replicas: i32) -> World {
        let mut world = World::new(plain_set(Management::OrderedReady, replicas));
        let mut life = Life { world: world.clone(), started: BTreeSet::new(), imagined: Imagined::default() };
        while life.sync() && life.surroundings() {}
        world = life.world;
        world
    }

    fn short(step: &Step) -> String {
        match step {
            Step::CreateClaim { claim } => format!("+{claim}"),
            Step::DeleteClaim { claim } => format!("-{claim}"),
            Step::OwnClaim { claim, .. } => format!("own {claim}"),
            Step::StopPod { pod, .. } => format!("-{pod}"),
            Step::StartPod { pod, .. } => format!("+{pod}"),
            Step::AwaitReady { pod } => format!("ready {pod}"),
            Step::AdoptPod { pod } => format!("adopt {pod}"),
            Step::ReleasePod { pod } => format!("release {pod}"),
        }
    }

    fn told(imagined: &Imagined) -> Vec<String> {
        imagined.steps.iter().map(short).collect()
    }

    #[test]
    fn a_new_ordered_set_starts_one_after_the_other() {
        let world = World::new(plain_set(Management::OrderedReady, 2));
        let imagined = imagine(&world.observe(), 0);
        assert_eq!(told(&imagined), ["+data-web-0", "+web-0", "ready web-0", "+data-web-1", "+web-1", "ready web-1"]);
        assert!(imagined.complete && imagined.blocked.is_empty(), "{imagined:?}");
    }

    #[test]
    fn what_is_as_it_should_be_leads_to_nothing() {
        assert!(imagine(&settled(3).observe(), 0).is_empty());
    }

    #[test]
    fn a_new_template_replaces_from_the_top_and_each_waits_for_the_one_before() {
        let mut world = settled(2);
        world.edit_template("b");
        let imagined = imagine(&world.observe(), 0);
        assert_eq!(told(&imagined), ["-web-1", "+web-1", "ready web-1", "-web-0", "+web-0", "ready web-0"]);
        assert!(imagined.steps.contains(&Step::StopPod { pod: "web-1".into(), why: Stop::Replaced }));
    }

    #[test]
    fn a_broken_pod_blocks_an_ordered_update_and_is_named() {
        let mut world = settled(3);
        world.change_pod("web-0", |p| p.pod.ready_since = None);
        world.edit_template("b");
        let imagined = imagine(&world.observe(), 0);
        assert_eq!(told(&imagined), Vec::<String>::new());
        assert!(imagined.blocked.iter().any(|reason| reason.pod == "web-0"), "{:?}", imagined.blocked);
    }

    #[test]
    fn a_partition_is_a_wish() {
        let mut world = settled(2);
        world.edit_template("b");
        world.edit(|set| {
            set.strategy = planner::Strategy::RollingUpdate {
                partition: Some(1),
                max_unavailable: planner::Unavailable::Count(1),
            };
        });
        let imagined = imagine(&world.observe(), 0);
        assert_eq!(told(&imagined), ["-web-1", "+web-1", "ready web-1"]);
        assert!(imagined.blocked.iter().all(is_wish) && !imagined.blocked.is_empty(), "{:?}", imagined.blocked);
    }

    #[test]
    fn scaling_down_names_the_claims_that_go() {
        let mut world = settled(2);
        world.edit(|set| {
            set.replicas = 1;
            set.when_scaled = planner::Retention::Delete;
        });
        let imagined = imagine(&world.observe(), 0);
        assert_eq!(told(&imagined).last().map(String::as_str), Some("-data-web-1"), "{imagined:?}");
        assert!(imagined.steps.contains(&Step::StopPod { pod: "web-1".into(), why: Stop::ScaledAway }));
    }
}
