//! The order of things: what to do about a set, from one view of it.
//!
//! A plan has a *prologue* (adopt, release, write the revision), then *phases* in order, then the status,
//! then history. A phase begins only when the one before it went well; the status is written anyway.
//!
//! | phase | does | ordered sets stop |
//! |---|---|---|
//! | A | every wanted ordinal, ascending: create, replace finished pods, put identity right | at the first pod that is not available |
//! | B | claims of condemned pods are given the owners that retention asks for | – |
//! | C | condemned pods go, from the top | after one |
//! | D | pods of an old revision go, from the top | by maxUnavailable |

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::call::Act;
use crate::claims;
use crate::names::{claim_name, parent_and_ordinal, pod_name};
use crate::reason::{self, Reason};
use crate::revision::{self, Choice};
use crate::status;
use crate::types::{Blob, Member, Millis, Observed, Pod, Revision, Set, Status, Strategy};
use crate::update;

/// Pods that one plan creates at most; the next plan goes on. Bounds a set with two billion replicas.
const CREATES_LIMIT: usize = 2000;

/// What to do about a set, and why the rest waits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Plan {
    /// What comes first.
    pub prologue: Prologue,
    /// What is done for pods, phase after phase.
    pub phases: Vec<Phase>,
    /// The status that the view amounts to, before anything is done.
    pub status: Status,
    /// Revisions that history no longer needs, oldest first.
    pub surplus: Vec<Revision>,
    /// When to look again even if nothing changes, in milliseconds from now.
    pub look_again: Option<Millis>,
    /// Why a pod is not moving, for each that is not; lowest ordinal first.
    pub reasons: Vec<Reason>,
}

/// What must be done before pods are touched.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prologue {
    /// Revisions without owner that match: the set takes them.
    pub adopt_revisions: Vec<Revision>,
    /// Pods without owner that match: the set takes them.
    pub adopt: Vec<Arc<Pod>>,
    /// Pods of the set that no longer match: it lets them go.
    pub release: Vec<Arc<Pod>>,
    /// The write that makes the update revision.
    pub revision: Option<RevisionAct>,
}

/// A write of a revision.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RevisionAct {
    /// An old one becomes the newest.
    Number {
        /// Name.
        name: String,
        /// Precondition.
        uid: String,
        /// Precondition.
        version: u64,
        /// The new number.
        number: i64,
    },
    /// A new one.
    Create {
        /// Name.
        name: String,
        /// Hash within the name.
        hash: String,
        /// Number.
        number: i64,
        /// Data.
        data: Blob,
    },
}

/// Tasks that belong together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Phase {
    /// Tasks may run side by side (1, then 2, then 4 … so that a refusing server is not flooded).
    pub parallel: bool,
    /// The tasks, in order.
    pub tasks: Vec<Task>,
}

/// What is done for one pod, one act after another. A failure ends the task, except that every claim is
/// tried before the pod is given up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Task {
    /// Name of the pod.
    pub pod: String,
    /// The acts.
    pub acts: Vec<Act>,
    /// The pod is of the current revision and goes to be updated: it no longer counts as current.
    pub leaves_current: bool,
}

impl Plan {
    /// True if nothing is to be done or written: the set is as it should be, or waits.
    pub fn is_idle(&self, set: &Set) -> bool {
        self.prologue.is_empty() && self.phases.is_empty() && self.surplus.is_empty() && !self.writes_status(set)
    }

    /// True if the status is worth a write.
    pub fn writes_status(&self, set: &Set) -> bool {
        let mut status = self.status.clone();
        status::complete(set, &mut status);
        status::is_news(&set.status, &status)
    }
}

impl Prologue {
    /// True if nothing must come first.
    pub fn is_empty(&self) -> bool {
        self.needs_live_set() == (false, false) && self.release.is_empty() && self.revision.is_none()
    }

    /// Whether anything is adopted: (revisions, pods).
    pub(crate) fn needs_live_set(&self) -> (bool, bool) {
        (!self.adopt_revisions.is_empty(), !self.adopt.is_empty())
    }
}

/// Says what to do about a set as observed at `now`.
pub fn plan(observed: &Observed, now: Millis) -> Plan {
    let set = &observed.set;
    let (members, mut prologue) = claim(observed);
    let choice = revision::choose(observed);
    prologue.revision.clone_from(&choice.act);
    // Of a set that goes no revision is written, so the status speaks of those that were.
    let (current, update) = match (&choice.act, set.deleting) {
        (Some(_), true) => (&set.status.current_revision, &set.status.update_revision),
        _ => (&choice.current.name, &choice.update.name),
    };
    let status = status::count(set, members.iter().copied(), current, update, now);
    let view = View::new(observed, &members, &choice, now);
    if set.deleting {
        // The garbage collector removes the pods. Nothing is made, revisions included.
        prologue.revision = None;
        let reasons = reason::deleting(&view);
        return Plan { prologue, phases: Vec::new(), status, surplus: Vec::new(), look_again: None, reasons };
    }
    let mut phases = Vec::new();
    let halt = view.create(&mut phases);
    let mut stop = halt.clone();
    if halt.is_none() {
        stop = view.condemn(&mut phases);
        if stop.is_none() {
            update::take_down(&view, &mut phases);
        }
    }
    phases.retain(|p| !p.tasks.is_empty());
    let surplus = revision::surplus(observed, &choice);
    let reasons = reason::explain(&view, &phases, stop.as_deref());
    Plan { prologue, phases, status, surplus, look_again: view.look_again(), reasons }
}

/// Which pods are the set's: those it has, plus orphans that fit, minus its own that no longer fit.
fn claim(observed: &Observed) -> (Vec<&Pod>, Prologue) {
    let set = &observed.set;
    let mut prologue = Prologue::default();
    let mut members = Vec::new();
    for Member { pod, matches } in &observed.pods {
        let fits = *matches && parent_and_ordinal(&pod.name).is_some_and(|(parent, _)| parent == set.name);
        match pod.controller() {
            Some(owner) if owner.uid != set.uid => {}
            Some(_) if fits => members.push(&**pod),
            // While the set goes, what it had stays with it and goes too.
            Some(_) if set.deleting => {}
            Some(_) => prologue.release.push(pod.clone()),
            None if fits && !set.deleting && !pod.terminating => {
                members.push(&**pod);
                prologue.adopt.push(pod.clone());
            }
            None => {}
        }
    }
    if !set.deleting {
        let orphans = observed.revisions.iter().filter(|r| r.controller().is_none());
        prologue.adopt_revisions = orphans.cloned().collect();
    }
    (members, prologue)
}

/// The pods of a set laid out by ordinal.
pub(crate) struct View<'a> {
    pub(crate) observed: &'a Observed,
    pub(crate) set: &'a Set,
    pub(crate) now: Millis,
    pub(crate) choice: &'a Choice,
    /// Existing pods that are wanted, by index.
    pub(crate) slots: BTreeMap<i64, &'a Pod>,
    /// Indices that are wanted and have no pod, the lowest ones.
    pub(crate) missing: Vec<i64>,
    /// Existing pods that are not wanted, highest ordinal first.
    pub(crate) condemned: Vec<(i32, &'a Pod)>,
}

impl<'a> View<'a> {
    fn new(observed: &'a Observed, members: &[&'a Pod], choice: &'a Choice, now: Millis) -> Self {
        let set = &observed.set;
        let mut slots = BTreeMap::new();
        let mut condemned = Vec::new();
        for pod in members {
            let Some((_, ordinal)) = parent_and_ordinal(&pod.name) else { continue };
            match set.index_of(ordinal) {
                Some(index) => drop(slots.insert(index, *pod)),
                None => condemned.push((ordinal, *pod)),
            }
        }
        condemned.sort_by_key(|(ordinal, _)| std::cmp::Reverse(*ordinal));
        let missing = (0..set.wanted())
            .filter(|i| !slots.contains_key(i) && set.ordinal_at(*i).is_some())
            .take(if set.is_ordered() { reason::REASONS_LIMIT } else { CREATES_LIMIT })
            .collect();
        Self { observed, set, now, choice, slots, missing, condemned }
    }

    pub(crate) fn is_available(&self, pod: &Pod) -> bool {
        pod.is_available(self.set.min_ready_seconds, self.now)
    }

    pub(crate) fn is_unavailable(&self, pod: &Pod) -> bool {
        pod.is_unavailable(self.set.min_ready_seconds, self.now)
    }

    pub(crate) fn partition(&self) -> i64 {
        match self.set.strategy {
            Strategy::RollingUpdate { partition: Some(partition), .. } => i64::from(partition.max(0)),
            _ => 0,
        }
    }

    /// The revision that a new pod at an index gets.
    pub(crate) fn revision_at(&self, index: i64) -> &Revision {
        let below = match self.set.strategy {
            Strategy::RollingUpdate { partition: Some(partition), .. } => i64::from(partition),
            // Only a server that does not default gets here. In a parallel set such a pod would be taken down
            // as an old one that is not available, and made again, for ever.
            Strategy::RollingUpdate { partition: None, .. } if self.set.is_ordered() => {
                i64::from(self.set.status.current)
            }
            Strategy::RollingUpdate { partition: None, .. } | Strategy::OnDelete => 0,
        };
        if index < below { &self.choice.current } else { &self.choice.update }
    }

    /// Phase A. Gives the pod at which an ordered set stops.
    fn create(&self, phases: &mut Vec<Phase>) -> Option<String> {
        let ordered = self.set.is_ordered();
        let mut indices: Vec<i64> = self.slots.keys().copied().chain(self.missing.iter().copied()).collect();
        indices.sort_unstable();
        let mut tasks = Vec::new();
        let mut stop = None;
        for index in indices {
            let Some(ordinal) = self.set.ordinal_at(index) else { break };
            let name = pod_name(&self.set.name, ordinal);
            let (acts, wait) = match self.slots.get(&index) {
                Some(pod) => self.keep(ordinal, pod),
                None => (self.make(index, ordinal, &name), true),
            };
            if !acts.is_empty() {
                tasks.push(Task { pod: name.clone(), acts, leaves_current: false });
            }
            if wait && ordered {
                stop = Some(name);
                break;
            }
        }
        phases.push(Phase { parallel: !ordered, tasks });
        stop
    }

    /// Acts that make a pod, its claims first.
    fn make(&self, index: i64, ordinal: i32, name: &str) -> Vec<Act> {
        if self.claims(ordinal).any(|(_, _, c)| c.is_some_and(|c| claims::is_stale(self.set, c, name, None))) {
            return Vec::new();
        }
        let mut acts = self.missing_claims(ordinal);
        let revision = self.revision_at(index);
        acts.push(Act::CreatePod {
            name: name.to_owned(),
            ordinal,
            revision: revision.name.clone(),
            data: revision.data.clone(),
        });
        acts.extend(self.claim_owners(ordinal, name, None, false));
        acts
    }

    /// Acts for a wanted pod that exists, and whether an ordered set waits for it.
    fn keep(&self, ordinal: i32, pod: &Pod) -> (Vec<Act>, bool) {
        if pod.is_finished() {
            let acts = if pod.terminating { Vec::new() } else { vec![delete(pod)] };
            return (acts, true);
        }
        let mut acts = Vec::new();
        if pod.phase == crate::types::Phase::Pending {
            acts = self.missing_claims(ordinal);
            acts.extend(self.claim_owners(ordinal, &pod.name, Some(&pod.uid), false));
        }
        if self.set.is_ordered() && (pod.terminating || !self.is_available(pod)) {
            return (acts, true);
        }
        let identity = pod.pod_name_label.as_deref() == Some(pod.name.as_str());
        let storage = self.claims(ordinal).all(|(template, claim, _)| pod.volumes.get(template) == Some(&claim));
        if !storage {
            let more: Vec<Act> = self.missing_claims(ordinal).into_iter().filter(|a| !acts.contains(a)).collect();
            acts.extend(more);
        }
        for act in self.claim_owners(ordinal, &pod.name, Some(&pod.uid), false) {
            if !acts.contains(&act) {
                acts.push(act);
            }
        }
        if !(identity && storage) {
            acts.push(Act::UpdatePod {
                name: pod.name.clone(),
                ordinal,
                uid: pod.uid.clone(),
                version: pod.version,
                volumes: !storage,
            });
        }
        (acts, false)
    }

    /// Phases B and C. Gives the pod at which an ordered set stops.
    fn condemn(&self, phases: &mut Vec<Phase>) -> Option<String> {
        let ordered = self.set.is_ordered();
        let mut fixes = Vec::new();
        for (ordinal, pod) in &self.condemned {
            let acts = self.claim_owners(*ordinal, &pod.name, Some(&pod.uid), true);
            if !acts.is_empty() {
                fixes.push(Task { pod: pod.name.clone(), acts, leaves_current: false });
            }
        }
        phases.push(Phase { parallel: !ordered, tasks: fixes });
        let first_unavailable = self.first_unavailable();
        let mut tasks = Vec::new();
        let mut stop = None;
        for (_, pod) in &self.condemned {
            let held = !self.is_available(pod) && first_unavailable != Some(pod.name.as_str());
            if !(pod.terminating || ordered && held) {
                tasks.push(Task { pod: pod.name.clone(), acts: vec![delete(pod)], leaves_current: false });
            }
            if ordered {
                stop = Some(pod.name.clone());
                break;
            }
        }
        phases.push(Phase { parallel: !ordered, tasks });
        stop
    }

    /// The lowest wanted pod that is not available, else the lowest condemned one. A missing pod counts
    /// and has no name.
    fn first_unavailable(&self) -> Option<&str> {
        let slot = self.slots.iter().find(|(_, p)| self.is_unavailable(p));
        match (slot, self.missing.first()) {
            (Some((index, _)), Some(missing)) if missing < index => None,
            (Some((_, pod)), _) => Some(&pod.name),
            (None, Some(_)) => None,
            (None, None) => {
                let lowest = self.condemned.iter().rev().find(|(_, p)| self.is_unavailable(p));
                lowest.map(|(_, p)| p.name.as_str())
            }
        }
    }

    /// Template, claim name and claim, for each template.
    pub(crate) fn claims(
        &self,
        ordinal: i32,
    ) -> impl Iterator<Item = (&String, String, Option<&crate::types::Claim>)> + use<'_, 'a> {
        self.set.claim_templates.iter().map(move |template| {
            let name = claim_name(template, &self.set.name, ordinal);
            let claim = self.observed.claims.get(&name);
            (template, name, claim)
        })
    }

    fn missing_claims(&self, ordinal: i32) -> Vec<Act> {
        self.claims(ordinal)
            .filter_map(|(template, name, claim)| match claim {
                None => Some(Act::CreateClaim {
                    name,
                    template: template.clone(),
                    ordinal,
                    owners: claims::of_new(self.set),
                }),
                Some(claim) if claim.terminating => {
                    Some(Act::Refuse { message: format!("pvc {name} is being deleted") })
                }
                Some(_) => None,
            })
            .collect()
    }

    fn claim_owners(&self, ordinal: i32, pod: &str, uid: Option<&str>, condemned: bool) -> Vec<Act> {
        self.claims(ordinal)
            .filter_map(|(_, name, claim)| {
                let claim = claim.filter(|c| !c.terminating)?;
                let change = claims::change(self.set, claim, pod, uid, condemned)?;
                Some(Act::SetClaimOwners {
                    name,
                    uid: claim.uid.clone(),
                    version: claim.version,
                    owners: change.owners,
                    conflict: change.conflict,
                })
            })
            .collect()
    }

    /// The next moment at which a ready pod becomes available.
    fn look_again(&self) -> Option<Millis> {
        let pods = self.slots.values().chain(self.condemned.iter().map(|(_, p)| p));
        pods.filter_map(|p| p.available_in(self.set.min_ready_seconds, self.now)).filter(|wait| *wait > 0).min()
    }
}

pub(crate) fn delete(pod: &Pod) -> Act {
    Act::DeletePod { name: pod.name.clone(), uid: pod.uid.clone(), version: pod.version }
}
