//! A local copy of all objects of one kind, kept up to date by list and watch.
//!
//! kube's own `watcher` hides the revision of the list and the bookmarks; both are needed to know how
//! fresh the copy is, so list and watch are driven here over `kube::Api`. One informer per kind and
//! process; it holds what `project` keeps of each object, which should be little.
//!
//! Invariant: [`Informer::revision`] is R only after every change up to R is in the copy. A controller that
//! waits for the revision of its own last write therefore never acts on a view older than its own work.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use ambient::Ambient;
use futures::TryStreamExt;
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Resource;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::Term;

/// Objects asked for per list request.
const PAGE_SIZE: u32 = 500;
/// Wait after the first failure; doubled per further failure in a row.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// The longest wait between two tries.
const BACKOFF_LIMIT: Duration = Duration::from_secs(10);

/// Namespace and name; the namespace is empty for kinds without one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Namespace, or empty.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A key of these two.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// A handle on the local copy of one kind. Cheap to clone.
pub struct Informer<P> {
    shared: Arc<Shared<P>>,
}

impl<P> Clone for Informer<P> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

/// What an informer is made of; see [`Informer::builder`].
pub struct Builder<K, P> {
    api: Api<K>,
    labels: Option<String>,
    fields: Option<String>,
    project: Box<dyn Fn(K) -> Option<P> + Send + Sync>,
    index: Index<P>,
}

type IndexKeys<P> = dyn Fn(&P) -> Vec<String> + Send + Sync;
type Index<P> = Option<Box<IndexKeys<P>>>;
type Handler<P> = Box<dyn Fn(Option<&Arc<P>>, Option<&Arc<P>>) + Send + Sync>;

struct Shared<P> {
    store: RwLock<Store<P>>,
    handlers: Mutex<Vec<Handler<P>>>,
    /// None until the first list is in.
    revision: watch::Sender<Option<u64>>,
    index: Index<P>,
    term: Term,
}

struct Store<P> {
    objects: BTreeMap<Key, Entry<P>>,
    /// Objects by the keys of the index: large sets are looked up often.
    index: HashMap<String, BTreeMap<Key, Arc<P>>>,
}

struct Entry<P> {
    revision: u64,
    index_keys: Vec<String>,
    object: Arc<P>,
}

impl<P: Send + Sync + 'static> Informer<P> {
    /// An informer of what `api` serves (all namespaces or one) that keeps `project(object)` of each
    /// object; `None` leaves an object out. managedFields are dropped before.
    pub fn builder<K>(api: Api<K>, project: impl Fn(K) -> Option<P> + Send + Sync + 'static) -> Builder<K, P>
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        Builder { api, labels: None, fields: None, project: Box::new(project), index: None }
    }

    /// The object, if it exists in the copy.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<P>> {
        let key = Key::new(namespace, name);
        self.read().objects.get(&key).map(|e| e.object.clone())
    }

    /// All objects, in the order of their keys.
    pub fn all(&self) -> Vec<Arc<P>> {
        self.read().objects.values().map(|e| e.object.clone()).collect()
    }

    /// All objects of a namespace, in the order of their names.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<P>> {
        let store = self.read();
        let from = Key::new(namespace, "");
        let range = store.objects.range(from..);
        range.take_while(|(k, _)| k.namespace == namespace).map(|(_, e)| e.object.clone()).collect()
    }

    /// The objects for which the builder's index function gave this key.
    pub fn by_index(&self, index_key: &str) -> Vec<Arc<P>> {
        self.read().index.get(index_key).map_or_else(Vec::new, |found| found.values().cloned().collect())
    }

    /// How many objects the copy holds.
    pub fn len(&self) -> usize {
        self.read().objects.len()
    }

    /// True if the copy holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The revision up to which every change is in the copy; none before the first list.
    pub fn revision(&self) -> Option<u64> {
        *self.shared.revision.borrow()
    }

    /// True once the first list is in.
    pub fn is_synced(&self) -> bool {
        self.revision().is_some()
    }

    /// Waits for the first list. False if the term ended first.
    pub async fn synced(&self) -> bool {
        self.wait(|r| r.is_some()).await
    }

    /// Waits until every change up to `revision` is in the copy. False if the term ended first.
    pub async fn wait_until(&self, revision: u64) -> bool {
        self.wait(|r| r.is_some_and(|r| r >= revision)).await
    }

    /// Calls `handler(old, new)` for each change from now on, and at once with `(None, Some(object))` for
    /// what is there already. A change that arrives during this call may be told twice. The handler runs
    /// on the informer's task: it must be quick and never block (put a key on a queue).
    pub fn on_change(&self, handler: impl Fn(Option<&Arc<P>>, Option<&Arc<P>>) + Send + Sync + 'static) {
        let mut handlers = self.shared.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        for object in self.all() {
            handler(None, Some(&object));
        }
        handlers.push(Box::new(handler));
    }

    async fn wait(&self, reached: impl FnMut(&Option<u64>) -> bool) -> bool {
        let mut revision = self.shared.revision.subscribe();
        // An error means that the sender is gone, which needs the last handle (this one) to be gone.
        matches!(self.shared.term.during(revision.wait_for(reached)).await, Some(Ok(_)))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Store<P>> {
        self.shared.store.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, P> Builder<K, P>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    P: Send + Sync + 'static,
{
    /// Only objects that this label selector takes.
    pub fn labels(mut self, selector: impl Into<String>) -> Self {
        self.labels = Some(selector.into());
        self
    }

    /// Only objects that this field selector takes.
    pub fn fields(mut self, selector: impl Into<String>) -> Self {
        self.fields = Some(selector.into());
        self
    }

    /// Keeps a secondary index; an object can be found under each key that `keys` gives. To look up by
    /// several properties, prefix the keys (`"owner:…"`, `"node:…"`).
    pub fn index(mut self, keys: impl Fn(&P) -> Vec<String> + Send + Sync + 'static) -> Self {
        self.index = Some(Box::new(keys));
        self
    }

    /// Starts the task that lists and watches until the term ends.
    pub fn start(self, term: &Term, ambient: &Ambient) -> Informer<P> {
        let Builder { api, labels, fields, project, index } = self;
        let shared = Arc::new(Shared {
            store: RwLock::new(Store { objects: BTreeMap::new(), index: HashMap::new() }),
            handlers: Mutex::new(Vec::new()),
            revision: watch::Sender::new(None),
            index,
            term: term.clone(),
        });
        let source = Source { api, labels, fields, project, shared: shared.clone(), ambient: ambient.clone() };
        tokio::spawn(source.run());
        Informer { shared }
    }
}

/// An object before and after.
type Change<P> = (Option<Arc<P>>, Option<Arc<P>>);

/// The task behind an informer.
struct Source<K, P> {
    api: Api<K>,
    labels: Option<String>,
    fields: Option<String>,
    project: Box<dyn Fn(K) -> Option<P> + Send + Sync>,
    shared: Arc<Shared<P>>,
    ambient: Ambient,
}

/// Why a watch ended.
enum Ended {
    /// The server closed it, as it does every few minutes: go on from here.
    Closed(String),
    /// The server no longer has the revision, or something failed: list again.
    Relist,
}

impl<K, P> Source<K, P>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    P: Send + Sync + 'static,
{
    async fn run(self) {
        let term = self.shared.term.clone();
        let mut failures = 0u32;
        while !term.is_over() {
            match term.during(self.list()).await {
                None => return,
                Some(Ok(revision)) => {
                    failures = 0;
                    if term.during(self.watch_on(revision)).await.is_none() {
                        return;
                    }
                }
                Some(Err(error)) => {
                    failures += 1;
                    debug!(%error, failures, kind = std::any::type_name::<K>(), "list failed; trying again");
                    if failures == 5 {
                        warn!(%error, kind = std::any::type_name::<K>(), "cannot list; still trying");
                    }
                }
            }
            let base = BACKOFF_FIRST * 2u32.saturating_pow(failures.saturating_sub(1).min(10));
            let wait = self.ambient.jitter(base.min(BACKOFF_LIMIT), 0.5);
            if term.during(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
        }
    }

    /// Lists everything, makes the copy equal to it, and returns the list's revision.
    async fn list(&self) -> Result<String, kube::Error> {
        let mut params = ListParams::default().limit(PAGE_SIZE);
        params.label_selector.clone_from(&self.labels);
        params.field_selector.clone_from(&self.fields);
        let mut items = Vec::new();
        let revision = loop {
            let page = self.api.list(&params).await?;
            items.extend(page.items);
            match page.metadata.continue_ {
                Some(token) if !token.is_empty() => params.continue_token = Some(token),
                _ => break page.metadata.resource_version.unwrap_or_default(),
            }
        };
        let mut gone: BTreeSet<Key> = {
            let store = self.shared.store.read().unwrap_or_else(PoisonError::into_inner);
            store.objects.keys().cloned().collect()
        };
        for item in items {
            gone.remove(&key_of(&item));
            self.tell(self.apply(item));
        }
        for key in gone {
            self.tell(self.set(key, 0, None));
        }
        self.reached(&revision);
        Ok(revision)
    }

    /// Watches from `revision` until the server wants a new list.
    async fn watch_on(&self, mut revision: String) {
        loop {
            match self.watch_once(revision).await {
                Ended::Closed(reached) => revision = reached,
                Ended::Relist => return,
            }
        }
    }

    async fn watch_once(&self, mut revision: String) -> Ended {
        let mut params = WatchParams::default();
        params.label_selector.clone_from(&self.labels);
        params.field_selector.clone_from(&self.fields);
        let stream = match self.api.watch(&params, &revision).await {
            Ok(stream) => stream,
            Err(error) => {
                debug!(%error, kind = std::any::type_name::<K>(), "watch refused");
                return Ended::Relist;
            }
        };
        let mut stream = std::pin::pin!(stream);
        let mut heard = false;
        loop {
            let change = match stream.try_next().await {
                Ok(Some(WatchEvent::Added(object) | WatchEvent::Modified(object))) => {
                    revision = object.meta().resource_version.clone().unwrap_or_default();
                    self.apply(object)
                }
                Ok(Some(WatchEvent::Deleted(object))) => {
                    revision = object.meta().resource_version.clone().unwrap_or_default();
                    self.set(key_of(&object), parse(&revision), None)
                }
                Ok(Some(WatchEvent::Bookmark(bookmark))) => {
                    revision = bookmark.metadata.resource_version;
                    None
                }
                Ok(Some(WatchEvent::Error(status))) => {
                    debug!(message = %status.message, "the server ended the watch");
                    return Ended::Relist;
                }
                // A server that closes at once, again and again, is asked for a list, which backs off.
                Ok(None) if heard => return Ended::Closed(revision),
                Ok(None) => return Ended::Relist,
                Err(error) => {
                    debug!(%error, "the watch broke");
                    return if heard { Ended::Closed(revision) } else { Ended::Relist };
                }
            };
            heard = true;
            // Before it is told: who hears of a change may ask at once whether the copy has it.
            self.reached(&revision);
            self.tell(change);
        }
    }

    fn apply(&self, mut object: K) -> Option<Change<P>> {
        object.meta_mut().managed_fields = None;
        let key = key_of(&object);
        let revision = parse(object.meta().resource_version.as_deref().unwrap_or_default());
        self.set(key, revision, (self.project)(object))
    }

    /// Puts one object into the copy (`None`: takes it out). Gives what there is to tell.
    fn set(&self, key: Key, revision: u64, object: Option<P>) -> Option<Change<P>> {
        let new = object.map(Arc::new);
        let mut store = self.shared.store.write().unwrap_or_else(PoisonError::into_inner);
        // A list after a broken watch brings back mostly what is known: no news.
        if new.is_some() && store.objects.get(&key).is_some_and(|e| e.revision == revision && revision != 0) {
            return None;
        }
        let old = store.set(key, revision, new.clone(), self.shared.index.as_deref());
        (old.is_some() || new.is_some()).then_some((old, new))
    }

    fn tell(&self, change: Option<Change<P>>) {
        let Some((old, new)) = change else { return };
        let handlers = self.shared.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        for handler in handlers.iter() {
            handler(old.as_ref(), new.as_ref());
        }
    }

    fn reached(&self, revision: &str) {
        let revision = parse(revision);
        self.shared.revision.send_if_modified(|current| {
            let rises = current.is_none_or(|c| revision > c);
            if rises {
                *current = Some(revision);
            }
            rises
        });
    }
}

impl<P> Store<P> {
    fn set(&mut self, key: Key, revision: u64, object: Option<Arc<P>>, index: Option<&IndexKeys<P>>) -> Option<Arc<P>> {
        let old = self.objects.remove(&key);
        for index_key in old.iter().flat_map(|e| &e.index_keys) {
            if let Some(found) = self.index.get_mut(index_key) {
                found.remove(&key);
                if found.is_empty() {
                    self.index.remove(index_key);
                }
            }
        }
        if let Some(object) = object {
            let index_keys = index.map(|f| f(&object)).unwrap_or_default();
            for index_key in &index_keys {
                self.index.entry(index_key.clone()).or_default().insert(key.clone(), object.clone());
            }
            self.objects.insert(key, Entry { revision, index_keys, object });
        }
        old.map(|e| e.object)
    }
}

fn key_of<K: Resource>(object: &K) -> Key {
    let meta = object.meta();
    Key { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
}

/// Revisions are numbers on every server that this project meets (and comparable by contract since
/// Kubernetes 1.35); anything else counts as the beginning of time, which only makes waits longer.
pub fn parse(revision: &str) -> u64 {
    revision.parse().unwrap_or(0)
}
