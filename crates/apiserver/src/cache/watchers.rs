//! Who watches a kind, found by what they watch, so that a change wakes only those whom it may concern.
//!
//! A watcher has a bounded queue. The feed never waits for one: a watcher whose queue is full is dropped and
//! told so at the end of what it has queued.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use tokio::sync::mpsc;

use super::filter::{Filter, indexed};
use super::{Change, Kind, Shelf};
use crate::object::{Key, Object};

/// Something to tell a watcher.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    /// What happened.
    pub(crate) change: Arc<Change>,
    /// How it looks through the watcher's filter.
    pub(crate) kind: Kind,
}

/// A registered watcher. Dropping it removes it.
pub(crate) struct Watcher {
    /// Objects that were there at the start.
    pub(crate) initial: Vec<Arc<Object>>,
    /// Changes between the asked revision and the start.
    pub(crate) replay: Vec<Item>,
    /// The revision that `initial` and `replay` lead up to.
    pub(crate) revision: u64,
    /// Changes since.
    pub(crate) queue: mpsc::Receiver<Item>,
    overflowed: Arc<AtomicBool>,
    id: u64,
    scope: Scope,
    shelf: Weak<Shelf>,
}

impl Watcher {
    /// Whether it was dropped because its queue was full.
    pub(crate) fn overflowed(&self) -> bool {
        self.overflowed.load(Ordering::Acquire)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(shelf) = self.shelf.upgrade() {
            shelf.unwatch(&self.scope, self.id);
        }
    }
}

/// What a watcher is registered under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// Every object of the kind.
    All,
    /// One namespace.
    Namespace(Box<str>),
    /// One object.
    Object(Key),
    /// One value of the indexed field.
    Field(Box<str>),
}

/// The feed's end of a watcher.
struct Sink {
    filter: Filter,
    /// Changes up to this revision are known to it already.
    after: u64,
    queue: mpsc::Sender<Item>,
    overflowed: Arc<AtomicBool>,
}

/// All watchers of a kind.
#[derive(Default)]
pub(super) struct Watchers {
    next: u64,
    by_scope: HashMap<Scope, HashMap<u64, Sink>>,
}

impl Watchers {
    /// Registers a watcher that knows everything up to `after`.
    pub(super) fn add(&mut self, filter: Filter, after: u64, capacity: usize, shelf: &Arc<Shelf>) -> Watcher {
        let (sender, queue) = mpsc::channel(capacity);
        let overflowed = Arc::new(AtomicBool::new(false));
        let scope = filter.scope();
        let id = self.next;
        self.next += 1;
        let sink = Sink { filter, after, queue: sender, overflowed: overflowed.clone() };
        self.by_scope.entry(scope.clone()).or_default().insert(id, sink);
        let shelf = Arc::downgrade(shelf);
        Watcher { initial: Vec::new(), replay: Vec::new(), revision: after, queue, overflowed, id, scope, shelf }
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_scope.values().map(HashMap::len).sum()
    }

    /// Forgets a watcher.
    pub(super) fn remove(&mut self, scope: &Scope, id: u64) {
        if let Some(sinks) = self.by_scope.get_mut(scope) {
            sinks.remove(&id);
            if sinks.is_empty() {
                self.by_scope.remove(scope);
            }
        }
    }

    /// Tells a change to all whom it concerns.
    pub(super) fn tell(&mut self, change: &Arc<Change>) {
        if self.by_scope.is_empty() {
            return;
        }
        let key = change.key().clone();
        let mut scopes = vec![Scope::All, Scope::Namespace(key.namespace.clone()), Scope::Object(key)];
        // An object that moves from one value to another concerns those who watch either.
        let mut values: Vec<&str> =
            [&change.current, &change.previous].into_iter().flatten().map(|o| indexed(o)).collect();
        values.dedup();
        scopes.extend(values.into_iter().map(|value| Scope::Field(value.into())));
        for scope in scopes {
            let Some(sinks) = self.by_scope.get_mut(&scope) else { continue };
            sinks.retain(|_, sink| sink.tell(change));
            if sinks.is_empty() {
                self.by_scope.remove(&scope);
            }
        }
    }

    /// Drops everybody, as if they had not kept up: the history broke.
    pub(super) fn drop_all(&mut self) {
        for sink in self.by_scope.drain().flat_map(|(_, sinks)| sinks.into_values()) {
            sink.overflowed.store(true, Ordering::Release);
        }
    }
}

impl Sink {
    /// Queues a change if it concerns the watcher; `false` if the watcher is gone or too slow.
    fn tell(&self, change: &Arc<Change>) -> bool {
        if change.revision <= self.after {
            return true;
        }
        let Some(kind) = self.filter.judge(change) else { return true };
        match self.queue.try_send(Item { change: change.clone(), kind }) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.overflowed.store(true, Ordering::Release);
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }
}
