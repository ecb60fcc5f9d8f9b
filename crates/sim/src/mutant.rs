//! Seeded bugs: wrappers around the shipped planner that spoil what it sees or what it asks for. Each is a classic
//! mistake of such controllers, and each has to be caught by the rule that is about it; a checker that lets one
//! pass proves nothing. None of this exists outside of this crate.

use planner::{
    Act, Call, Member, Observed, Owner, Pod, PodPhase, Strategy, Trouble, Unavailable, parent_and_ordinal, pod_name,
};

/// A seeded bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Every pod counts as ready: no waiting for predecessors.
    NoPredecessorCheck,
    /// Deletes say nothing of which pod they mean.
    DeleteWithoutUid,
    /// Pods that are going count as working: a view from before the own last write.
    StaleViewActedOn,
    /// The partition lets one pod too many through.
    PartitionOffByOne,
    /// The update revision becomes current as soon as it exists.
    CurrentRevisionMovedEarly,
    /// Scaling down begins at the bottom.
    ScaleDownFromTheBottom,
    /// maxUnavailable is not looked at.
    NoBudget,
    /// Claims are given to the set although they are retained.
    ClaimsNotRetained,
    /// A rollback makes a new revision.
    RollbackForgets,
    /// A set that goes is tended like any other.
    DeletionIgnored,
    /// The status is written whether it changed or not.
    StatusAlwaysWritten,
    /// The pod is made before its claims.
    ClaimsForgotten,
    /// Broken pods are replaced although they were ready once.
    ReplacesWhatWorked,
    /// Pods get names that look like the ordinal's, and are not.
    WrongIdentity,
    /// Failed pods are left where they are.
    FailedPodsStay,
    /// An ordered deletion begins at the bottom.
    LeavesFromTheBottom,
    /// A reserved ordinal is filled.
    ReservedFilled,
    /// With strategy Recreate, new pods do not wait for old ones to be gone.
    RecreateOverlaps,
    /// Pods of a revision that is held back count as never ready.
    RollsBackWhatWorked,
    /// The label of the revision is not read: every pod looks old.
    RevisionsForgotten,
    /// More pods are told to be available than are ready.
    CountsTooMany,
}

impl Mutant {
    /// What the planner sees instead of the truth.
    pub fn view(self, view: &mut Observed) {
        match self {
            Self::NoPredecessorCheck => each_pod(view, |p| {
                p.phase = PodPhase::Running;
                p.ready_since = Some(0);
            }),
            Self::StaleViewActedOn => {
                let target = Some(view.set.status.update_revision.clone());
                each_pod(view, |p| {
                    if p.terminating && p.revision != target {
                        p.terminating = false;
                        p.ready_since = Some(0);
                        p.phase = PodPhase::Running;
                        p.revision = target.clone();
                    }
                });
            }
            Self::PartitionOffByOne => {
                if let Strategy::RollingUpdate { partition: Some(partition), .. } = &mut view.set.strategy {
                    *partition -= 1;
                }
            }
            Self::NoBudget => {
                if let Strategy::RollingUpdate { max_unavailable, .. } = &mut view.set.strategy {
                    *max_unavailable = Unavailable::Percent(100);
                }
            }
            Self::RollbackForgets => {
                let newest = view.revisions.iter().map(|r| r.number).max();
                let current = view.set.status.current_revision.clone();
                view.revisions.retain(|r| Some(r.number) == newest || r.name == current);
            }
            Self::DeletionIgnored => view.set.deleting = false,
            Self::StatusAlwaysWritten => view.set.status.observed_generation = 0,
            Self::ReplacesWhatWorked => each_pod(view, |p| {
                if p.ready_since.is_none() {
                    p.was_ready = Some(false);
                    p.trouble = Trouble::Container;
                }
            }),
            Self::RollsBackWhatWorked => {
                let held = view.revisions.iter().find(|r| r.held.is_some()).map(|r| r.name.clone());
                each_pod(view, |p| {
                    if held.is_some() && p.revision == held {
                        p.ready_since = None;
                        p.was_ready = Some(false);
                    }
                });
            }
            Self::RevisionsForgotten => each_pod(view, |p| p.revision = None),
            Self::FailedPodsStay => each_pod(view, |p| {
                if p.phase == PodPhase::Failed {
                    p.phase = PodPhase::Running;
                }
            }),
            Self::ReservedFilled => view.set.beyond.reserved = planner::Reserved::default(),
            Self::RecreateOverlaps if view.set.strategy == Strategy::Recreate => {
                let name = pod_name(&view.set.name, view.set.start);
                let target = Some(view.set.status.update_revision.clone());
                view.pods.retain(|m| !m.pod.terminating || m.pod.name == name || m.pod.revision == target);
            }
            _ => {}
        }
    }

    /// What is asked for instead. None: the call is not made, and counts as done.
    pub fn call(self, view: &Observed, call: Call) -> Option<Call> {
        match (self, call) {
            (Self::DeleteWithoutUid, Call::Act(Act::DeletePod { name, .. })) => {
                Some(Call::Act(Act::DeletePod { name, uid: String::new(), version: 0 }))
            }
            (Self::CurrentRevisionMovedEarly, Call::WriteStatus { uid, mut status }) => {
                status.current_revision.clone_from(&status.update_revision);
                Some(Call::WriteStatus { uid, status })
            }
            (Self::CountsTooMany, Call::WriteStatus { uid, mut status }) => {
                status.available = status.ready + 1;
                Some(Call::WriteStatus { uid, status })
            }
            (Self::ScaleDownFromTheBottom, call @ Call::Act(Act::DeletePod { .. })) => {
                Some(aimed(view, call, |n| view.set.index_of(n).is_none()))
            }
            (Self::LeavesFromTheBottom, call @ Call::Act(Act::DeletePod { .. })) if view.set.deleting => {
                Some(aimed(view, call, |_| true))
            }
            (Self::ClaimsNotRetained, Call::Act(Act::CreateClaim { name, template, ordinal, .. })) => {
                let owners: Vec<Owner> = vec![view.set.as_owner()];
                Some(Call::Act(Act::CreateClaim { name, template, ordinal, owners }))
            }
            (Self::ClaimsForgotten, Call::Act(Act::CreateClaim { .. })) => None,
            (Self::WrongIdentity, Call::Act(Act::CreatePod { ordinal, revision, data, .. })) => {
                let name = format!("{}-0{ordinal}", view.set.name);
                Some(Call::Act(Act::CreatePod { name, ordinal, revision, data }))
            }
            (_, call) => Some(call),
        }
    }
}

/// The same delete, of the lowest pod that will do.
fn aimed(view: &Observed, call: Call, fits: impl Fn(i32) -> bool) -> Call {
    let ordinals = view.pods.iter().filter_map(|m| parent_and_ordinal(&m.pod.name)).map(|(_, n)| n);
    let Some(lowest) = ordinals.filter(|n| fits(*n)).min() else { return call };
    let name = pod_name(&view.set.name, lowest);
    match view.pods.iter().find(|m| m.pod.name == name && !m.pod.terminating) {
        Some(Member { pod, .. }) => Call::Act(Act::DeletePod { name, uid: pod.uid.clone(), version: pod.version }),
        None => call,
    }
}

fn each_pod(view: &mut Observed, change: impl Fn(&mut Pod)) {
    for member in &mut view.pods {
        change(std::sync::Arc::make_mut(&mut member.pod));
    }
}
