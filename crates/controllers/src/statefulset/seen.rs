//! What this controller wrote for each set, until the informers have it: a set is not planned before.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ambient::Ambient;
use planner::{Act, Answer, Call};
use tracing::warn;

use super::Controller;
use crate::informer::Key;

/// After this long an informer is no longer waited for; preconditions still guard what is done then.
const PATIENCE: Duration = Duration::from_secs(60);

/// Own writes per set.
pub(super) struct Seen {
    writes: Mutex<HashMap<Key, Writes>>,
    ambient: Ambient,
}

#[derive(Default)]
struct Writes {
    /// When the last one was answered.
    at: Duration,
    set: u64,
    pods: u64,
    claims: u64,
    revisions: u64,
    /// Deleted pods, name and uid, until they are seen as terminating or gone.
    deleted: Vec<(String, String)>,
}

impl Seen {
    pub(super) fn new(ambient: &Ambient) -> Self {
        Self { writes: Mutex::new(HashMap::new()), ambient: ambient.clone() }
    }

    /// Notes the answer to a call.
    pub(super) fn note(&self, key: &Key, call: &Call, answer: &Answer) {
        let version = match answer {
            Answer::Done { version } => *version,
            Answer::Revision(revision) => revision.version,
            Answer::Set(_) | Answer::Failed(_) => return,
        };
        let mut writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        let writes = writes.entry(key.clone()).or_default();
        let slot = match call {
            Call::WriteStatus { .. } | Call::Act(Act::LetGo { .. }) => &mut writes.set,
            Call::SetPodOwners { .. } | Call::Act(Act::CreatePod { .. } | Act::UpdatePod { .. }) => &mut writes.pods,
            Call::Act(
                Act::CreateClaim { .. } | Act::SetClaimOwners { .. } | Act::MarkClaim { .. } | Act::GrowClaim { .. },
            ) => &mut writes.claims,
            Call::CreateRevision { .. }
            | Call::NumberRevision { .. }
            | Call::HoldRevision { .. }
            | Call::SetRevisionOwners { .. } => &mut writes.revisions,
            Call::Act(Act::DeletePod { name, uid, .. }) => {
                writes.at = self.ambient.boottime();
                writes.deleted.push((name.clone(), uid.clone()));
                return;
            }
            // A deleted revision that is still seen is deleted again, and not found.
            Call::GetSet | Call::GetRevision { .. } | Call::DeleteRevision { .. } | Call::Act(Act::Refuse { .. }) => {
                return;
            }
        };
        *slot = (*slot).max(version);
        writes.at = self.ambient.boottime();
    }

    /// True if the informers hold every own write for this set.
    pub(super) fn is_caught_up(&self, key: &Key, controller: &Controller) -> bool {
        let mut all = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(writes) = all.get_mut(key) else { return true };
        writes.deleted.retain(|(name, uid)| {
            let pod = controller.pods.get(&key.namespace, name);
            pod.is_some_and(|p| p.pod.uid == *uid && !p.pod.terminating)
        });
        let reached = |wanted: u64, revision: Option<u64>| wanted == 0 || revision.is_some_and(|r| r >= wanted);
        let caught_up = writes.deleted.is_empty()
            && reached(writes.set, controller.sets.revision())
            && reached(writes.pods, controller.pods.revision())
            && reached(writes.claims, controller.claims.revision())
            && reached(writes.revisions, controller.revisions.revision());
        let patient = self.ambient.boottime().saturating_sub(writes.at) < PATIENCE;
        if !caught_up && !patient {
            warn!(set = %key.name, namespace = %key.namespace, "own writes do not come back by watch; going on without");
        }
        if caught_up || !patient {
            all.remove(key);
            return true;
        }
        false
    }

    /// The set is gone.
    pub(super) fn forget(&self, key: &Key) {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}
