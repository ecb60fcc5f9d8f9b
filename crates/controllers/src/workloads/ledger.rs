//! What a controller wrote for each object, until its informers have it: nothing is planned before.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ambient::Ambient;
use tracing::warn;

use crate::informer::Key;

/// After this long an informer is no longer waited for; preconditions still guard what is done then.
const PATIENCE: Duration = Duration::from_secs(60);

/// Own writes per object.
pub(super) struct Ledger {
    writes: Mutex<HashMap<Key, Writes>>,
    ambient: Ambient,
}

/// What was written for one object.
#[derive(Default)]
struct Writes {
    /// When the last one was answered.
    at: Duration,
    /// Newest version of the object itself.
    own: u64,
    /// Newest version of what it controls.
    children: u64,
    /// What was deleted, name and uid, until it is seen as going or gone.
    deleted: Vec<(String, String)>,
}

impl Ledger {
    pub(super) fn new(ambient: &Ambient) -> Self {
        Self { writes: Mutex::new(HashMap::new()), ambient: ambient.clone() }
    }

    /// Notes a version of the object itself.
    pub(super) fn own(&self, key: &Key, version: u64) {
        self.note(key, |writes| writes.own = writes.own.max(version));
    }

    /// Notes a version of what it controls.
    pub(super) fn child(&self, key: &Key, version: u64) {
        self.note(key, |writes| writes.children = writes.children.max(version));
    }

    /// Notes that something was deleted.
    pub(super) fn deleted(&self, key: &Key, name: &str, uid: &str) {
        self.note(key, |writes| writes.deleted.push((name.to_owned(), uid.to_owned())));
    }

    fn note(&self, key: &Key, change: impl FnOnce(&mut Writes)) {
        let mut all = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        let writes = all.entry(key.clone()).or_default();
        writes.at = self.ambient.boottime();
        change(writes);
    }

    /// True if the copies, which have reached these revisions, hold every own write for the object. `stays` tells
    /// whether a child is there and not going.
    pub(super) fn is_caught_up(
        &self,
        key: &Key,
        own: Option<u64>,
        children: Option<u64>,
        stays: impl Fn(&str, &str) -> bool,
    ) -> bool {
        let mut all = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(writes) = all.get_mut(key) else { return true };
        writes.deleted.retain(|(name, uid)| stays(name, uid));
        let reached = |wanted: u64, revision: Option<u64>| wanted == 0 || revision.is_some_and(|r| r >= wanted);
        let caught_up = writes.deleted.is_empty() && reached(writes.own, own) && reached(writes.children, children);
        let patient = self.ambient.boottime().saturating_sub(writes.at) < PATIENCE;
        if !caught_up && !patient {
            let Key { namespace, name } = key;
            warn!(%namespace, %name, "own writes do not come back by watch; going on without");
        }
        if caught_up || !patient {
            all.remove(key);
            return true;
        }
        false
    }

    /// The object is gone.
    pub(super) fn forget(&self, key: &Key) {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_counts_once_it_holds_every_own_write() {
        let (ambient, clock) = Ambient::manual(jiff::Timestamp::UNIX_EPOCH, 1);
        let (ledger, key) = (Ledger::new(&ambient), Key::new("ns", "web"));
        let caught_up = |own, children, stays: bool| ledger.is_caught_up(&key, own, children, |_, _| stays);
        assert!(caught_up(None, None, true), "nothing was written");
        ledger.own(&key, 5);
        ledger.child(&key, 7);
        ledger.child(&key, 6);
        ledger.deleted(&key, "a", "u");
        assert!(!caught_up(Some(4), Some(9), false));
        assert!(!caught_up(Some(5), Some(6), false));
        ledger.deleted(&key, "a", "u");
        assert!(!caught_up(Some(5), Some(7), true));
        assert!(caught_up(Some(5), Some(7), false));
        ledger.own(&key, 5);
        clock.advance(PATIENCE);
        assert!(caught_up(None, None, true), "it is not waited for for ever");
    }
}
