//! Which template is current, which is the target, and which history may go.

use std::collections::BTreeSet;

use crate::names::{revision_hash, revision_name};
use crate::plan::RevisionAct;
use crate::types::{Observed, Revision};

/// The two revisions that matter, and what must be written before they can be used.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    /// What pods are to become. If `act` is there, this is how it will look once that is done.
    pub(crate) update: Revision,
    /// What pods below the partition are.
    pub(crate) current: Revision,
    /// The write.
    pub(crate) act: Option<RevisionAct>,
}

/// Chooses. A template that was seen before gets its old revision back, by name.
pub(crate) fn choose(observed: &Observed) -> Choice {
    let set = &observed.set;
    let sorted = sorted(&observed.revisions);
    let next = sorted.last().map_or(1, |r| r.number + 1);
    let equal = sorted.iter().rev().find(|r| r.data == set.data);
    let (update, act) = match (equal, sorted.last()) {
        (Some(equal), Some(last)) if equal.name == last.name => ((*last).clone(), None),
        (Some(equal), _) => {
            let mut update = (*equal).clone();
            update.number = next;
            update.held = None;
            let act = RevisionAct::Number {
                name: equal.name.clone(),
                uid: equal.uid.clone(),
                version: equal.version,
                number: next,
            };
            (update, Some(act))
        }
        (None, Some(last)) if last.meaning == set.meaning => ((*last).clone(), None),
        (None, _) => {
            let act = create(observed, next, set.status.collision_count.unwrap_or(0));
            let RevisionAct::Create { name, .. } = &act else { unreachable!("create gives Create") };
            let update = Revision {
                name: name.clone(),
                uid: String::new(),
                version: 0,
                number: next,
                created: 0,
                owners: vec![set.as_owner()],
                data: set.data.clone(),
                meaning: set.meaning.clone(),
                held: None,
            };
            (update, Some(act))
        }
    };
    let current = sorted.iter().find(|r| r.name == set.status.current_revision);
    let current = current.map_or_else(|| update.clone(), |r| (*r).clone());
    Choice { update, current, act }
}

/// The creation of a revision of the set's template, its name taken `collisions` times by others.
pub(crate) fn create(observed: &Observed, number: i64, collisions: i32) -> RevisionAct {
    let set = &observed.set;
    let hash = revision_hash(set.data.bytes(), collisions);
    RevisionAct::Create { name: revision_name(&set.name, &hash), hash, number, data: set.data.clone() }
}

/// Revisions beyond the limit that nothing uses, oldest first.
pub(crate) fn surplus(observed: &Observed, choice: &Choice) -> Vec<Revision> {
    let limit = observed.set.history_limit;
    if limit < 0 {
        return Vec::new();
    }
    let mut live: BTreeSet<&str> =
        observed.pods.iter().filter(|m| m.matches).filter_map(|m| m.pod.revision.as_deref()).collect();
    live.extend([choice.update.name.as_str(), choice.current.name.as_str()]);
    let history: Vec<&Revision> =
        sorted(&observed.revisions).into_iter().filter(|r| !live.contains(r.name.as_str())).collect();
    let keep = usize::try_from(limit).unwrap_or(0);
    let count = history.len().saturating_sub(keep);
    history.into_iter().take(count).cloned().collect()
}

fn sorted(revisions: &[Revision]) -> Vec<&Revision> {
    let mut sorted: Vec<&Revision> = revisions.iter().collect();
    sorted.sort_by(|a, b| (a.number, a.created, &a.name).cmp(&(b.number, b.created, &b.name)));
    sorted
}
