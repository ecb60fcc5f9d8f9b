//! How soon a set is looked at again. Pods of a large set report one by one; a status for each report, and a plan over
//! all pods for each, would be most of the work that the set causes, and say nothing that the next does not say too.
//!
//! - A status that says no more than how far things have come is not written sooner than [`STATUS_EVERY`] after the one
//!   before. It would also stand in the way of what comes next: a set is planned once its own writes have come back.
//! - Planning that finds nothing to do takes half of the time at most, where it takes long.
//!
//! Neither delays a creation or a deletion of a set that is planned quickly.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ambient::Ambient;
use planner::Call;

use crate::informer::Key;

/// The least time between a set's status and one that says how far things have come since.
const STATUS_EVERY: Duration = Duration::from_millis(100);
/// Planning that takes less is not worth a pause.
const QUICK: Duration = Duration::from_millis(2);

/// When sets were last looked at.
pub(super) struct Paces {
    sets: Mutex<HashMap<Key, Pace>>,
    ambient: Ambient,
}

#[derive(Clone, Copy, Default)]
struct Pace {
    /// No plan before.
    plan_at: Duration,
    /// No status that can wait before.
    status_at: Duration,
}

impl Paces {
    pub(super) fn new(ambient: &Ambient) -> Self {
        Self { sets: Mutex::default(), ambient: ambient.clone() }
    }

    /// How long a set waits before it is planned.
    pub(super) fn before_plan(&self, key: &Key) -> Option<Duration> {
        self.left(key, |pace| pace.plan_at)
    }

    /// How long a status waits that can.
    pub(super) fn before_status(&self, key: &Key) -> Option<Duration> {
        self.left(key, |pace| pace.status_at)
    }

    /// A plan was made that has nothing to do, and took from then until now.
    pub(super) fn planned(&self, key: &Key, from: Duration) {
        let now = self.ambient.boottime();
        let spent = now.saturating_sub(from);
        if spent > QUICK {
            self.lock().entry(key.clone()).or_default().plan_at = now + spent;
        }
    }

    /// A call was made.
    pub(super) fn called(&self, key: &Key, call: &Call) {
        if matches!(call, Call::WriteStatus { .. }) {
            let at = self.ambient.boottime() + STATUS_EVERY;
            self.lock().entry(key.clone()).or_default().status_at = at;
        }
    }

    /// The set is gone.
    pub(super) fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }

    fn left(&self, key: &Key, until: impl Fn(&Pace) -> Duration) -> Option<Duration> {
        let until = self.lock().get(key).map(until)?;
        Some(until.saturating_sub(self.ambient.boottime())).filter(|left| !left.is_zero())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Pace>> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use planner::Status;

    use super::*;

    #[test]
    fn a_status_waits_after_a_status_and_a_long_plan_gives_others_as_much_time() {
        let (ambient, clock) = Ambient::manual(jiff::Timestamp::UNIX_EPOCH, 1);
        let (paces, key) = (Paces::new(&ambient), Key::new("default", "web"));
        assert_eq!(paces.before_status(&key), None);
        paces.called(&key, &Call::WriteStatus { uid: "u".into(), status: Status::default() });
        assert_eq!(paces.before_status(&key), Some(STATUS_EVERY));
        assert_eq!(paces.before_plan(&key), None, "what else there is to do is found out at once");
        clock.advance(STATUS_EVERY);
        assert_eq!(paces.before_status(&key), None);
        let begun = ambient.boottime();
        clock.advance(QUICK);
        paces.planned(&key, begun);
        assert_eq!(paces.before_plan(&key), None);
        let begun = ambient.boottime();
        clock.advance(Duration::from_millis(30));
        paces.planned(&key, begun);
        assert_eq!(paces.before_plan(&key), Some(Duration::from_millis(30)));
        paces.forget(&key);
        assert_eq!(paces.before_plan(&key), None);
    }
}
