//! How much may be under way (requests, watches, bytes of answers), and how much of it may be one client's.
//!
//! ```text
//!  all permits ├────────── one client at most ──────────┤                        ┤
//!              ├──────────────────── everybody ──────────────────────┤── system ─┤
//! ```
//!
//! `system:masters` always come in, as upstream, but where the limit guards memory. Nodes and the system's own
//! controllers may take the last tenth, which nobody else gets: so a client that sends all it can neither keeps others out
//! nor the machinery from working.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::auth::Identity;
use crate::auth::rbac::MASTERS;

/// One client gets one part in so many.
const SHARE: usize = 2;
/// The system's own part is one in so many.
const RESERVE: usize = 10;

/// Permits of one sort.
#[derive(Debug)]
pub(crate) struct Gate {
    limit: usize,
    /// Nobody goes beyond the limit.
    hard: bool,
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
    cost: usize,
}

impl Gate {
    /// A gate that lets so many in, and masters besides.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, hard: false, inside: Mutex::default() })
    }

    /// A gate that lets in so much and no more, whoever asks.
    pub(crate) fn hard(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, hard: true, inside: Mutex::default() })
    }

    /// Lets one in; `None` if that would be too many. Never waits.
    pub(crate) fn enter(self: &Arc<Self>, identity: &Identity) -> Option<Permit> {
        self.enter_with(identity, 1)
    }

    /// Lets in what counts as so many; `None` if that would be too much. What is larger than a client's whole share gets
    /// through where the client has nothing else inside. Never waits.
    pub(crate) fn enter_with(self: &Arc<Self>, identity: &Identity, cost: usize) -> Option<Permit> {
        let rank = Rank::of(identity);
        // Room for one client, and for all of its rank.
        let (share, room) = match rank {
            Rank::Master | Rank::System => (self.limit, self.limit),
            Rank::Other => ((self.limit / SHARE).max(1), self.limit - self.limit / RESERVE),
        };
        let cost = cost.min(share);
        let mut inside = self.inside();
        let own = inside.by_user.get(&identity.user).copied().unwrap_or(0);
        let exempt = rank == Rank::Master && !self.hard;
        if !exempt && (own + cost > share || inside.all + cost > room) {
            return None;
        }
        inside.all += cost;
        *inside.by_user.entry(identity.user.clone()).or_default() += cost;
        Some(Permit { gate: self.clone(), user: identity.user.clone(), cost })
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut inside = self.gate.inside();
        inside.all -= self.cost;
        if let Some(own) = inside.by_user.get_mut(&self.user) {
            *own -= self.cost;
            if *own == 0 {
                inside.by_user.remove(&self.user);
            }
        }
    }
}

/// Who comes before whom.
#[derive(Clone, Copy, PartialEq, Eq)]
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
    fn a_hard_limit_holds_for_masters_and_what_is_larger_than_a_share_gets_through_alone() {
        let gate = Gate::hard(100);
        let (ann, root) = (Identity::user("ann", &[]), Identity::user("root", &[MASTERS]));
        let large = gate.enter_with(&ann, 1000).expect("it is alone");
        assert!(gate.enter_with(&ann, 1).is_none());
        let bobs = gate.enter_with(&Identity::user("bob", &[]), 40).expect("he has a share of his own");
        assert!(gate.enter_with(&root, 11).is_none());
        let rest = gate.enter_with(&root, 10).expect("there is room");
        drop((large, bobs, rest));
        assert!(gate.enter_with(&root, 1000).is_some());
    }

    #[test]
    fn what_left_is_forgotten() {
        let gate = Gate::new(4);
        drop(fill(&gate, &Identity::user("ann", &[])));
        let inside = gate.inside();
        assert_eq!((inside.all, inside.by_user.len()), (0, 0));
    }
}
