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
//! | E | one pod that never worked goes, if the annotations ask for that | never: that is its point |
//!
//! With strategy Recreate, old pods of every ordinal go first, all at once, and nothing else happens until they
//! are gone. A set that is being deleted is left to the garbage collector, or to `leave`.

use std::sync::Arc;

use crate::call::{Act, Event};
use crate::leave;
use crate::names::parent_and_ordinal;
use crate::progress;
use crate::reason::{self, Reason};
use crate::recover;
use crate::revision;
use crate::status;
use crate::types::{Blob, Member, Millis, Observed, Pod, Revision, Set, Status};
use crate::update;
use crate::view::View;

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
    /// What to tell people once the status is written.
    pub events: Vec<Event>,
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
    /// The rollout to this revision failed: it is to be held back.
    pub hold: Option<Hold>,
}

/// A revision that is to be held back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hold {
    /// Its name.
    pub name: String,
    /// Precondition.
    pub uid: String,
    /// The set's `retry`, another value of which lifts it.
    pub retry: String,
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

impl Task {
    /// It deletes a pod.
    pub(crate) fn deletes(&self) -> bool {
        self.acts.iter().any(|a| matches!(a, Act::DeletePod { .. }))
    }
}

impl Plan {
    /// True if nothing is to be done or written: the set is as it should be, or waits.
    pub fn is_idle(&self, set: &Set) -> bool {
        self.is_status_alone() && !self.writes_status(set)
    }

    /// True if there is nothing to do but to write the status, if that.
    pub fn is_status_alone(&self) -> bool {
        self.prologue.is_empty() && self.phases.is_empty() && self.surplus.is_empty()
    }

    /// True if the status is worth a write.
    fn writes_status(&self, set: &Set) -> bool {
        let mut status = self.status.clone();
        status::complete(set, &mut status);
        status::is_news(&set.status, &status)
    }
}

impl Prologue {
    /// True if nothing must come first.
    pub fn is_empty(&self) -> bool {
        self.needs_live_set() == (false, false)
            && self.release.is_empty()
            && self.revision.is_none()
            && self.hold.is_none()
    }

    /// Whether anything is adopted: (revisions, pods).
    pub(crate) fn needs_live_set(&self) -> (bool, bool) {
        (!self.adopt_revisions.is_empty(), !self.adopt.is_empty())
    }
}

/// Says what to do about a set as observed at `now`.
///
/// The view may be an imagined one: with another spec in it, the plan says what that spec would lead to.
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
    let view = View::new(observed, &members, &choice, now);
    let mut status = status::count(&view, members.iter().copied(), current, update);
    if set.deleting {
        // Nothing is made, revisions included.
        prologue.revision = None;
        return leave::plan(&view, prologue, status);
    }
    let progress = progress::assess(&view);
    status.conditions = progress.conditions;
    prologue.hold = progress.hold;
    let mut phases = Vec::new();
    let stop = lay_out(&view, &mut phases);
    if set.is_invalid() {
        phases.iter_mut().for_each(|p| p.tasks.retain(|t| !t.deletes()));
    }
    phases.retain(|p| !p.tasks.is_empty());
    let look_again = [view.look_again(), progress.look_again, recover::look_again(&view)].into_iter().flatten().min();
    Plan {
        prologue,
        status,
        surplus: revision::surplus(observed, &choice),
        look_again,
        reasons: reason::explain(&view, &phases, stop.as_deref()),
        phases,
        events: progress.events,
    }
}

/// The phases, in order. Gives the pod at which the set stops, if it does.
fn lay_out(view: &View<'_>, phases: &mut Vec<Phase>) -> Option<String> {
    if let Some(stop) = update::recreate(view, phases) {
        return Some(stop);
    }
    let mut stop = view.create(phases);
    if stop.is_none() {
        stop = view.condemn(phases);
        if stop.is_none() {
            stop = view.remove_reserved(phases);
        }
        if stop.is_none() {
            update::take_down(view, phases);
        }
    }
    recover::take_down(view, phases);
    stop
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
