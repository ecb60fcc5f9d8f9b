//! A set that is being deleted. Without its finalizer the garbage collector removes its pods, in no order; with
//! it the pods go from the highest ordinal, each waiting only until the one above is gone.

use crate::call::Act;
use crate::names::parent_and_ordinal;
use crate::plan::{Phase, Plan, Prologue, Task};
use crate::reason::{Cause, REASONS_LIMIT, Reason, Why};
use crate::types::{Pod, Status};
use crate::view::{View, delete};

/// The plan for a set that goes. It never creates, and waits for nobody's readiness.
pub(crate) fn plan(view: &View<'_>, prologue: Prologue, status: Status) -> Plan {
    let ordered = view.set.beyond.ordered_deletion;
    let mut plan = Plan {
        prologue,
        phases: Vec::new(),
        status,
        surplus: Vec::new(),
        look_again: None,
        reasons: reasons(view, ordered),
        events: Vec::new(),
    };
    if !ordered {
        return plan;
    }
    match pods(view).first() {
        Some(first) => {
            plan.phases.push(Phase { parallel: true, tasks: claims(view) });
            if !first.terminating {
                let tasks = vec![Task { pod: first.name.clone(), acts: vec![delete(first)], leaves_current: false }];
                plan.phases.push(Phase { parallel: false, tasks });
            }
        }
        None => {
            let acts = vec![Act::LetGo { uid: view.set.uid.clone() }];
            let task = Task { pod: String::new(), acts, leaves_current: false };
            plan.phases.push(Phase { parallel: false, tasks: vec![task] });
            // It is gone before a status could be read.
            plan.status.clone_from(&view.set.status);
        }
    }
    plan.phases.retain(|p| !p.tasks.is_empty());
    plan
}

/// Everything that the set controls, from the top; what has no ordinal of its own first.
fn pods<'a>(view: &View<'a>) -> Vec<&'a Pod> {
    let own = view.observed.pods.iter().map(|m| &*m.pod);
    let mut own: Vec<&Pod> = own.filter(|p| p.controller().is_some_and(|o| o.uid == view.set.uid)).collect();
    let ordinal = |pod: &Pod| {
        let own = parent_and_ordinal(&pod.name).filter(|(parent, _)| *parent == view.set.name);
        own.map_or(i64::MAX, |(_, n)| i64::from(n))
    };
    own.sort_by(|a, b| (ordinal(b), &b.name).cmp(&(ordinal(a), &a.name)));
    own
}

/// Claims follow whenDeleted alone: none may go with its pod because the pod was condemned.
fn claims(view: &View<'_>) -> Vec<Task> {
    let task = |pod: &Pod| {
        let ordinal = parent_and_ordinal(&pod.name).filter(|(parent, _)| *parent == view.set.name)?.1;
        let acts = view.claim_owners(ordinal, &pod.name, Some(&pod.uid), false);
        (!acts.is_empty()).then(|| Task { pod: pod.name.clone(), acts, leaves_current: false })
    };
    pods(view).into_iter().filter_map(task).collect()
}

/// Why pods of a set that goes are still there.
fn reasons(view: &View<'_>, ordered: bool) -> Vec<Reason> {
    let mut pods = pods(view);
    let first = pods.first().map(|p| p.name.clone());
    pods.reverse();
    let reason = |pod: &Pod| {
        let cause = match &first {
            _ if pod.terminating && view.is_lost(pod) => Cause::NodeLost { pod: pod.name.clone() },
            _ if pod.terminating => Cause::Terminating { pod: pod.name.clone() },
            Some(first) if ordered && *first != pod.name => Cause::Turn { pod: first.clone() },
            _ if ordered => return None,
            _ => Cause::SetDeleted,
        };
        Some(Reason { pod: pod.name.clone(), why: Why::NotDeleted, cause })
    };
    pods.into_iter().filter_map(reason).take(REASONS_LIMIT).collect()
}
