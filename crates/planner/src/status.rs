//! A set's counters, and whether they are worth a write.

use crate::beyond::{Condition, ConditionKind};
use crate::types::{Pod, Set, Status};
use crate::view::View;

/// The status that these pods amount to.
pub(crate) fn count<'a>(
    view: &View<'_>,
    pods: impl Iterator<Item = &'a Pod>,
    current_revision: &str,
    update_revision: &str,
) -> Status {
    let set = view.set;
    let mut status = Status {
        observed_generation: set.generation,
        current_revision: current_revision.to_owned(),
        update_revision: update_revision.to_owned(),
        collision_count: set.status.collision_count,
        conditions: set.status.conditions.clone(),
        ..Status::default()
    };
    for pod in pods {
        status.replicas += 1;
        if pod.is_ready() {
            status.ready += 1;
            if view.is_available(pod) {
                status.available += 1;
            }
        }
        if !pod.terminating {
            let is_target = pod.revision.as_deref() == Some(update_revision);
            status.current += i32::from(pod.revision.as_deref() == Some(current_revision));
            // A pod whose override is another one is not updated, whatever its revision.
            status.updated += i32::from(is_target && (set.deleting || !view.is_out_of_date(pod)));
        }
    }
    status
}

/// The update revision becomes the current one once every pod has it and is ready.
pub(crate) fn complete(set: &Set, status: &mut Status) {
    let wanted = set.replicas.max(0);
    if status.updated == wanted && status.ready == wanted && status.replicas == wanted {
        status.current = status.updated;
        status.current_revision.clone_from(&status.update_revision);
    }
}

/// True if the status differs from the last written one in a way that is told. The collision count
/// alone is not: it changes together with the update revision.
pub(crate) fn is_news(old: &Status, new: &Status) -> bool {
    let told = |s: &Status| {
        (s.replicas, s.ready, s.available, s.current, s.updated, s.current_revision.clone(), s.update_revision.clone())
    };
    // When a condition changed is told together with the change.
    let said = |s: &Status| -> Vec<_> {
        let said = |c: &Condition| (c.kind, c.truth, c.reason.clone(), c.message.clone());
        s.conditions.iter().map(said).collect()
    };
    new.observed_generation > old.observed_generation || told(old) != told(new) || said(old) != said(new)
}

/// True if the status says no more than how far things have come since the last written one. What is on its way (`acts`)
/// may make pods unavailable that are available now, which is for the status after it to say.
pub(crate) fn can_wait(old: &Status, new: &Status, acts: bool) -> bool {
    let stands = |s: &Status| (s.observed_generation, s.current_revision.clone(), s.update_revision.clone());
    let said = |s: &Status| -> Vec<_> {
        let told = s.conditions.iter().filter(|c| !(acts && c.kind == ConditionKind::Available));
        told.map(|c| (c.kind, c.truth, c.reason.clone())).collect()
    };
    stands(old) == stands(new) && said(old) == said(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beyond::Truth;

    fn condition(kind: ConditionKind, truth: Truth, reason: &str, message: &str) -> Condition {
        Condition { kind, truth, reason: reason.into(), message: message.into(), since: 0 }
    }

    fn status(ready: i32, available: Truth, progress: &str) -> Status {
        let conditions = vec![
            condition(ConditionKind::Available, available, available.name(), &format!("{ready} are available")),
            condition(ConditionKind::Progressing, Truth::True, progress, &format!("{ready} are new")),
        ];
        Status { observed_generation: 1, ready, conditions, ..Status::default() }
    }

    #[test]
    fn how_far_things_have_come_can_wait_and_what_has_changed_in_kind_cannot() {
        let old = status(1, Truth::False, "Going");
        assert!(can_wait(&old, &status(2, Truth::False, "Going"), false), "counts and their messages");
        assert!(!can_wait(&old, &status(2, Truth::False, "Over"), true), "a reason");
        assert!(!can_wait(&old, &Status { observed_generation: 2, ..old.clone() }, true), "another spec was seen");
        assert!(!can_wait(&old, &Status { update_revision: "new".into(), ..old.clone() }, true), "a revision");
        assert!(!can_wait(&old, &status(2, Truth::True, "Going"), false), "all are available");
        assert!(can_wait(&old, &status(2, Truth::True, "Going"), true), "all are available, until one is taken down");
    }
}
