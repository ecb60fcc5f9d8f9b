//! Phase E: pods that never worked do not hold up a rollout, where annotations ask for that.
//!
//! - `rollout-recovery: replace-broken`: a pod of an old revision that never worked is replaced, although the
//!   set would wait for it.
//! - `rollback: auto`: while a failed revision is held, its pods that never worked are made again at the current one.
//!
//! One at a time, from the top, and never a pod that was ready once: its data may be newer than its revision.

use crate::beyond::Trouble;
use crate::plan::{Phase, Task};
use crate::types::{Millis, Phase as PodPhase, Pod, Strategy};
use crate::view::{View, delete};

/// Adds the phase that takes one such pod down.
pub(crate) fn take_down(view: &View<'_>, phases: &mut Vec<Phase>) {
    if !matches!(view.set.strategy, Strategy::RollingUpdate { .. }) || view.pods().any(|p| p.terminating) {
        return;
    }
    let Some(pod) = candidate(view) else { return };
    // Another phase takes down a pod already, maybe this one.
    if phases.iter().flat_map(|p| &p.tasks).any(Task::deletes) {
        return;
    }
    let leaves_current = pod.revision.as_deref() == Some(view.choice.current.name.as_str());
    let tasks = vec![Task { pod: pod.name.clone(), acts: vec![delete(pod)], leaves_current }];
    phases.push(Phase { parallel: false, tasks });
}

fn candidate<'a>(view: &View<'a>) -> Option<&'a Pod> {
    let slots = view.slots.range(view.spec_partition()..).rev().map(|(_, pod)| *pod);
    let mut slots = slots.filter(|p| !p.terminating && !p.is_finished() && p.was_never_ready() && !view.is_lost(p));
    let failed = view.choice.update.name.as_str();
    if view.held {
        return slots.find(|p| p.revision.as_deref() == Some(failed));
    }
    if !view.set.beyond.replace_broken {
        return None;
    }
    slots.find(|p| view.is_out_of_date(p) && is_broken(view, p))
}

/// It does not work, and will not by waiting.
fn is_broken(view: &View<'_>, pod: &Pod) -> bool {
    match pod.trouble {
        Trouble::Container | Trouble::Misfit => true,
        Trouble::None => overdue_in(view, pod) == Some(0),
        Trouble::Outside | Trouble::NodeLost => false,
    }
}

/// Milliseconds until a pod that runs and is not ready counts as broken.
fn overdue_in(view: &View<'_>, pod: &Pod) -> Option<Millis> {
    let deadline = i64::from(view.set.beyond.deadline_seconds?) * 1000;
    let runs = pod.phase == PodPhase::Running && pod.was_never_ready();
    runs.then(|| (pod.created.saturating_add(deadline) - view.now).max(0))
}

/// When a pod that is merely slow until now becomes one to replace.
pub(crate) fn look_again(view: &View<'_>) -> Option<Millis> {
    if !view.set.beyond.replace_broken {
        return None;
    }
    let slow = view.slots.values().filter(|p| p.trouble == Trouble::None && view.is_out_of_date(p));
    slow.filter_map(|p| overdue_in(view, p)).filter(|wait| *wait > 0).min()
}
