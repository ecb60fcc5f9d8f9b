//! Phase D: which pods of an old revision a rolling update takes down now.

use crate::plan::{Phase, Task};
use crate::types::{Pod, Strategy, Unavailable};
use crate::view::{View, delete};

/// Adds the phase that deletes old pods, from the top down to the partition.
///
/// Ordered sets come here only with every wanted pod available, so the budget is all of maxUnavailable.
/// In parallel sets an old pod that is not available costs nothing and goes first, so that a broken
/// revision cannot use up the budget for ever.
pub(crate) fn take_down(view: &View<'_>, phases: &mut Vec<Phase>) {
    let Strategy::RollingUpdate { max_unavailable, .. } = view.set.strategy else { return };
    let budget = max_unavailable_pods(max_unavailable, view.set.wanted());
    // New pods of this very plan are not available yet.
    let mut budget = budget - view.unavailable();
    let old: Vec<&Pod> = view
        .slots
        .range(view.partition()..)
        .rev()
        .map(|(_, pod)| *pod)
        // A finished pod goes in phase A.
        .filter(|pod| !pod.terminating && !pod.is_finished())
        .filter(|pod| view.is_out_of_date(pod))
        .collect();
    let mut tasks = Vec::new();
    if !view.set.is_ordered() {
        let broken = old.iter().filter(|pod| !view.is_available(pod));
        tasks.extend(broken.map(|pod| task(view, pod)));
    }
    for pod in old.iter().filter(|pod| view.is_available(pod)) {
        if budget <= 0 {
            break;
        }
        budget -= 1;
        tasks.push(task(view, pod));
    }
    phases.push(Phase { parallel: false, tasks });
}

/// Strategy Recreate: all pods of an old revision go, at once and whatever their ordinal, and until they are gone
/// nothing else happens. Gives the pod that is waited for.
pub(crate) fn recreate(view: &View<'_>, phases: &mut Vec<Phase>) -> Option<String> {
    if view.set.strategy != Strategy::Recreate {
        return None;
    }
    let old: Vec<&Pod> = view.pods().filter(|pod| view.is_out_of_date(pod)).collect();
    let first = old.first()?.name.clone();
    let tasks = old.iter().filter(|pod| !pod.terminating).map(|pod| task(view, pod)).collect();
    phases.push(Phase { parallel: true, tasks });
    Some(first)
}

/// maxUnavailable in pods: a percentage is rounded down, and at least one pod may always go.
pub(crate) fn max_unavailable_pods(max: Unavailable, wanted: i64) -> i64 {
    let pods = match max {
        Unavailable::Count(count) => i64::from(count),
        Unavailable::Percent(percent) => i64::from(percent) * wanted / 100,
    };
    pods.max(1)
}

fn task(view: &View<'_>, pod: &Pod) -> Task {
    let leaves_current = pod.revision.as_deref() == Some(view.choice.current.name.as_str());
    Task { pod: pod.name.clone(), acts: vec![delete(pod)], leaves_current }
}
