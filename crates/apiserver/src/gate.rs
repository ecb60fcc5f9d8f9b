//! How many requests may be under way, and how many of them may be one client's.
//!
//! ```text
//!  all permits ├────────── one client at most ──────────┤                        ┤
//!              ├──────────────────── everybody ──────────────────────┤── system ─┤
//! ```
//!
//! `system:masters` always come in, as upstream. Nodes and the system's own controllers may take the last tenth,
//! which nobody else gets: so a client that sends all it can neither keeps others out nor the machinery from working.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::auth::Identity;
use crate::auth::rbac::MASTERS;

/// One client gets one part in so many.
const SHARE: usize = 2;
/// The system's own part is one in so many.
const RESERVE: usize = 10;

/// Permits for requests of one sort.
#[derive(Debug)]
pub(crate) struct Gate {
    limit: usize,
    inside: Mutex<Inside>,
}

/// Who is inside.
#[derive(Debug, Default)]
struct Inside {
    all: usize,
    by_user: HashMap<String, usize>,
}

/// The right to be inside, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    gate: Arc<Gate>,
    user: String,
}

impl Gate {
    /// A gate that lets so many in.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, inside: Mutex::default() })
    }

    /// Lets one in; `None` if that would be too many. Never waits.
    pub(crate) fn enter(self: &Arc<Self>, identity: &Identity) -> Option<Permit> {
        let mut inside = self.inside();
        let own = inside.by_user.get(&identity.user).copied().unwrap_or(0);
        let free = match Rank::of(identity) {
            Rank::Master => true,
            Rank::System => inside.all < self.limit,
            Rank::Other => inside.all < self.limit - self.limit / RESERVE && own < (self.limit / SHARE).max(1),
        };
        if !free {
            return None;
        }
        inside.all += 1;
        *inside.by_user.entry(identity.user.clone()).or_default() += 1;
        Some(Permit { gate: self.clone(), user: identity.user.clone() })
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut inside = self.gate.inside();
        inside.all -= 1;
        if let Some(own) = inside.by_user.get_mut(&self.user) {
            *own -= 1;
            if *own == 0 {
                inside.by_user.remove(&self.user);
            }
        }
    }
}

/// Who comes before whom.
enum Rank {
    Master,
    System,
    Other,
}

impl Rank {
    fn of(identity: &Identity) -> Self {
        let is_in = |group: &str| identity.groups.iter().any(|g| g == group);
        if is_in(MASTERS) {
            Self::Master
        } else if is_in("system:nodes")
            || is_in("system:serviceaccounts:kube-system")
            || matches!(identity.user.as_str(), "system:kube-scheduler" | "system:kube-controller-manager")
        {
            Self::System
        } else {
            Self::Other
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(gate: &Arc<Gate>, identity: &Identity) -> Vec<Permit> {
        std::iter::from_fn(|| gate.enter(identity)).take(1000).collect()
    }

    #[test]
    fn one_client_gets_half_all_together_nine_tenths_and_the_system_the_rest() {
        let gate = Gate::new(100);
        let (ann, bob) = (Identity::user("ann", &[]), Identity::user("bob", &[]));
        let anns = fill(&gate, &ann);
        assert_eq!(anns.len(), 50);
        let bobs = fill(&gate, &bob);
        assert_eq!(bobs.len(), 40);
        assert!(gate.enter(&Identity::user("cleo", &[])).is_none());
        let nodes = fill(&gate, &Identity::node("n1"));
        assert_eq!(nodes.len(), 10);
        assert!(gate.enter(&Identity::service_account("kube-system", "statefulset-controller")).is_none());
        assert!(gate.enter(&Identity::user("root", &[MASTERS])).is_some());
        drop((anns, nodes));
        assert!(gate.enter(&ann).is_some());
    }

    #[test]
    fn what_left_is_forgotten() {
        let gate = Gate::new(4);
        drop(fill(&gate, &Identity::user("ann", &[])));
        let inside = gate.inside();
        assert_eq!((inside.all, inside.by_user.len()), (0, 0));
    }
}
