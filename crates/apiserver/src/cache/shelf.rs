//! One kind: its objects, its recent changes, its watchers.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use api::resource::Resource;
use api::status::Status;

use super::change::Change;
use super::feed::Changes;
use super::filter::Filter;
use super::watchers::{Item, Scope, Watcher, Watchers};
use crate::auth::Standard;
use crate::errors::Outcome;
use crate::object::{self, Key, Object};

/// So many changes of a kind are remembered at most.
const HISTORY_CHANGES: usize = 4096;
/// So many bytes of them are kept alive at most.
const HISTORY_BYTES: usize = 8 << 20;

/// One kind's state.
pub(crate) struct Shelf {
    resource: Arc<Resource>,
    head: Arc<str>,
    observer: Option<Arc<Standard>>,
    inner: RwLock<Inner>,
}

/// What the lock guards.
#[derive(Default)]
struct Inner {
    objects: BTreeMap<Key, Arc<Object>>,
    /// Changes in revision order: all of them after `oldest`.
    history: VecDeque<Arc<Change>>,
    history_bytes: usize,
    oldest: u64,
    /// The newest change of this kind.
    newest: u64,
    /// The revision of the state that it was filled with after it was put up.
    filled: u64,
    watchers: Watchers,
}

/// Part of a list.
#[derive(Debug)]
pub(crate) struct Page {
    /// The objects that pass, in key order.
    pub(crate) objects: Vec<Arc<Object>>,
    /// The revision of the state they are from.
    pub(crate) revision: u64,
    /// The last key of the page, if there is more after it.
    pub(crate) next: Option<Key>,
    /// How many more there are, where no selector makes counting them dear.
    pub(crate) remaining: Option<usize>,
}

/// From where a watch starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// With the objects that are there now.
    Now,
    /// After this revision.
    Revision(u64),
}

impl Shelf {
    /// An empty shelf for a kind, whose changes `observer` is shown.
    pub(super) fn new(resource: Arc<Resource>, observer: Option<Arc<Standard>>) -> Self {
        Self { head: object::head(&resource), resource, observer, inner: RwLock::default() }
    }

    /// The kind.
    pub(crate) fn resource(&self) -> &Arc<Resource> {
        &self.resource
    }

    /// Reads a stored value of this kind. A new state is shown to the authorizer, if it wants this kind.
    pub(super) fn read_object(&self, key: Key, entry: store::Entry, new: bool) -> Option<Arc<Object>> {
        let Some(object) = Object::new(&self.resource, &self.head, key, entry.value, entry.mod_revision) else {
            tracing::error!(key = %String::from_utf8_lossy(&entry.key), "a stored object is unreadable");
            return None;
        };
        if let Some(observer) = self.observer.as_ref().filter(|_| new) {
            observer.apply(&object.value(&self.resource));
        }
        Some(Arc::new(object))
    }

    /// Tells the authorizer that an object is gone.
    pub(super) fn forget(&self, key: &Key) {
        if let Some(observer) = &self.observer {
            observer.remove(&self.resource.kind, &key.namespace, &key.name);
        }
    }

    /// One object.
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Object>> {
        self.read().objects.get(key).cloned()
    }

    /// How many objects there are.
    pub(crate) fn len(&self) -> usize {
        self.read().objects.len()
    }

    /// All objects of a namespace (empty: of all).
    pub(crate) fn all(&self, namespace: &str) -> Vec<Arc<Object>> {
        self.read().range(namespace, None).map(|(_, o)| o.clone()).collect()
    }

    /// The objects that pass `filter`, from the state at `at` (`None`: now) as far as the cache is (`reached`).
    pub(crate) fn list(
        &self,
        filter: &Filter,
        at: Option<u64>,
        reached: u64,
        after: Option<&Key>,
        limit: usize,
    ) -> Outcome<Page> {
        let inner = self.read();
        let now = reached.max(inner.newest);
        let at = at.unwrap_or(now);
        if at < inner.oldest {
            return Err(Box::new(Status::expired("The resourceVersion for the provided list is too old.")));
        }
        let undone = inner.undo(at);
        let mut found = Vec::new();
        let mut next = None;
        let mut more = 0;
        for (key, object) in merge(inner.range(&filter.namespace, after), &undone, &filter.namespace, after) {
            if !filter.matches(object) {
                continue;
            }
            if limit > 0 && found.len() == limit {
                next = found.last().map(|o: &Arc<Object>| o.key.clone());
                more += 1;
                if filter.labels.is_some() || filter.fields.is_some() {
                    break;
                }
                continue;
            }
            debug_assert_eq!(*key, object.key);
            found.push(object.clone());
        }
        let remaining = (more > 0 && filter.labels.is_none() && filter.fields.is_none()).then_some(more);
        Ok(Page { objects: found, revision: at, next, remaining })
    }

    /// Registers a watcher; `reached` is how far the cache is.
    pub(crate) fn watch(
        self: &Arc<Self>,
        filter: Filter,
        since: Since,
        reached: u64,
        capacity: usize,
    ) -> Outcome<Watcher> {
        let mut inner = self.write();
        let now = reached.max(inner.newest);
        match since {
            Since::Now => {
                let initial = inner
                    .range(&filter.namespace, None)
                    .map(|(_, object)| object)
                    .filter(|object| filter.matches(object))
                    .cloned()
                    .collect();
                let mut watcher = inner.watchers.add(filter, now, capacity, self);
                watcher.initial = initial;
                Ok(watcher)
            }
            Since::Revision(revision) => {
                if revision < inner.oldest {
                    return Err(Box::new(too_old(revision, inner.oldest)));
                }
                let first = inner.history.partition_point(|change| change.revision <= revision);
                let replay = inner
                    .history
                    .range(first..)
                    .filter_map(|change| Some(Item { change: change.clone(), kind: filter.judge(change)? }))
                    .collect();
                let mut watcher = inner.watchers.add(filter, now.max(revision), capacity, self);
                watcher.replay = replay;
                Ok(watcher)
            }
        }
    }

    /// Takes one transaction's changes of this kind: key and new object (`None`: deleted).
    pub(super) fn apply(&self, revision: u64, changes: Changes) {
        let mut inner = self.write();
        if revision <= inner.filled {
            // It was filled with a state that has this already.
            return;
        }
        debug_assert!(revision >= inner.newest);
        inner.newest = revision;
        for (key, current) in changes {
            let previous = match &current {
                Some(object) => inner.objects.insert(key, object.clone()),
                None => inner.objects.remove(&key),
            };
            if current.is_some() || previous.is_some() {
                inner.record(Arc::new(Change::new(revision, current, previous)));
            }
        }
    }

    /// Takes a whole new state, without knowing how it came about. Watchers have to start again.
    pub(super) fn replace(&self, objects: Vec<Arc<Object>>, revision: u64) {
        let mut inner = self.write();
        inner.objects = objects.into_iter().map(|o| (o.key.clone(), o)).collect();
        inner.history.clear();
        inner.history_bytes = 0;
        inner.oldest = revision;
        inner.newest = revision;
        inner.watchers.drop_all();
    }

    /// Takes the state at `revision` under the changes that came since the shelf was put up.
    pub(super) fn fill(&self, objects: Vec<Arc<Object>>, revision: u64) {
        let mut inner = self.write();
        let mut present: BTreeMap<Key, Arc<Object>> = objects.into_iter().map(|o| (o.key.clone(), o)).collect();
        let mut kept = VecDeque::new();
        let mut weight = 0;
        for change in std::mem::take(&mut inner.history).into_iter().filter(|c| c.revision > revision) {
            let key = change.key().clone();
            let previous = match &change.current {
                Some(object) => present.insert(key, object.clone()),
                None => present.remove(&key),
            };
            if change.current.is_some() || previous.is_some() {
                let change = Arc::new(Change::new(change.revision, change.current.clone(), previous));
                weight += change.weight();
                kept.push_back(change);
            }
        }
        inner.objects = present;
        inner.history = kept;
        inner.history_bytes = weight;
        inner.oldest = revision;
        inner.newest = inner.newest.max(revision);
        inner.filled = revision;
    }

    /// Ends all watches: the shelf is read no longer.
    pub(super) fn close(&self) {
        self.write().watchers.drop_all();
    }

    /// The newest change of the kind.
    pub(crate) fn newest(&self) -> u64 {
        self.read().newest
    }

    /// Puts changes from before the state that was loaded into the history, oldest first, so that a watch
    /// that began before a restart goes on. They must be all there were after `oldest`.
    pub(super) fn remember(&self, oldest: u64, changes: Vec<Change>) {
        let mut inner = self.write();
        debug_assert!(inner.history.is_empty());
        inner.oldest = oldest;
        for change in changes {
            inner.keep(Arc::new(change));
        }
    }

    /// Forgets a watcher.
    pub(super) fn unwatch(&self, scope: &Scope, id: u64) {
        self.write().watchers.remove(scope, id);
    }

    /// How many watchers are registered.
    #[cfg(test)]
    pub(super) fn watching(&self) -> usize {
        self.read().watchers.len()
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Objects of a namespace (empty: of all) after a key.
    fn range<'a>(
        &'a self,
        namespace: &'a str,
        after: Option<&Key>,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Object>)> + 'a {
        let from = match after {
            Some(key) => Bound::Excluded(key.clone()),
            None => Bound::Included(Key::new(namespace, "")),
        };
        self.objects
            .range((from, Bound::Unbounded))
            .take_while(move |(key, _)| namespace.is_empty() || *key.namespace == *namespace)
    }

    /// For every object that changed after `at`, what it was then.
    fn undo(&self, at: u64) -> HashMap<Key, Option<Arc<Object>>> {
        let mut then = HashMap::new();
        for change in self.history.iter().rev().take_while(|c| c.revision > at) {
            then.insert(change.key().clone(), change.previous.clone());
        }
        then
    }

    /// Keeps a change and tells it to watchers.
    fn record(&mut self, change: Arc<Change>) {
        self.keep(change.clone());
        self.watchers.tell(&change);
    }

    /// Keeps a change, forgets the oldest ones beyond the limits.
    fn keep(&mut self, change: Arc<Change>) {
        self.history_bytes += change.weight();
        self.history.push_back(change);
        while self.history.len() > HISTORY_CHANGES || self.history_bytes > HISTORY_BYTES {
            let Some(first) = self.history.pop_front() else { break };
            self.history_bytes -= first.weight();
            self.oldest = self.oldest.max(first.revision);
        }
    }
}

/// Present objects and undone changes, merged in key order.
fn merge<'a>(
    present: impl Iterator<Item = (&'a Key, &'a Arc<Object>)> + 'a,
    undone: &'a HashMap<Key, Option<Arc<Object>>>,
    namespace: &str,
    after: Option<&Key>,
) -> Box<dyn Iterator<Item = (&'a Key, &'a Arc<Object>)> + 'a> {
    if undone.is_empty() {
        return Box::new(present);
    }
    let mut all: BTreeMap<&Key, &Arc<Object>> = present.filter(|(key, _)| !undone.contains_key(*key)).collect();
    for (key, object) in undone {
        let inside = namespace.is_empty() || *key.namespace == *namespace;
        if let (Some(object), true, true) = (object, inside, after.is_none_or(|a| key > a)) {
            all.insert(key, object);
        }
    }
    Box::new(all.into_iter())
}

/// 410 for a watch from before the history.
fn too_old(asked: u64, oldest: u64) -> Status {
    Status::expired(format!("too old resource version: {asked} ({oldest})"))
}
