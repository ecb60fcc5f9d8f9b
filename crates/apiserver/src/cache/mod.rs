//! The newest state and the recent changes of every kind, in memory, apart from the store.
//!
//! One watch on the store per server feeds all of it. Reads never touch the store's disk; a read that must not
//! be stale first asks the store for its newest revision and waits until the feed has come so far.
//!
//! ```text
//!  store ──one watch──▶ feed ──▶ Shelf (one per kind): objects by key · recent changes · watchers by index
//!                                  │                                  each change encoded once, shared
//!                                  └──▶ revision: how far all shelves are
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use api::events;
use api::resource::Resource;
use api::status::{Cause, Details, Status};
use bytes::Bytes;
use store::{Entry, RangeQuery, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::auth::Standard;
use crate::errors::{Error, Outcome};
use crate::object::{Key, Object};
use crate::sub::usage;

mod change;
mod feed;
mod filter;
mod shelf;
#[cfg(test)]
mod tests;
mod watchers;

pub(crate) use change::{Change, Kind, binary_event, event_line};
pub(crate) use filter::Filter;
pub(crate) use shelf::{Page, Shelf, Since};
pub(crate) use watchers::{Item, Watcher};

/// Everything the store holds lies below this.
pub(crate) const ROOT: &str = "/";
/// Objects lie below this.
const OBJECTS: &str = "/registry/";
/// How long a read waits for the feed to reach a revision.
const PATIENCE: Duration = Duration::from_secs(3);

/// Group and plural of a kind.
type Place = (String, String);

/// The shelves of all kinds.
#[derive(Default)]
struct Shelves {
    /// Those that are read.
    serving: HashMap<Place, Arc<Shelf>>,
    /// Those that are being filled: they get all changes already.
    filling: HashMap<Place, Arc<Shelf>>,
}

/// The state of all kinds.
pub(crate) struct Cache {
    shelves: RwLock<Shelves>,
    /// What the store holds besides objects: holder records, allocated addresses. By key.
    notes: RwLock<BTreeMap<Bytes, Entry>>,
    revision: watch::Sender<u64>,
    /// Why the store cannot be followed just now.
    trouble: RwLock<Option<String>>,
    store: Arc<dyn Store>,
}

impl Cache {
    /// Reads the store and follows it until `token` is cancelled. `observer` is shown the kinds that it wants
    /// before anybody else sees them.
    pub(crate) async fn start(
        store: Arc<dyn Store>,
        resources: Vec<Arc<Resource>>,
        observer: Option<Arc<Standard>>,
        token: CancellationToken,
    ) -> Result<Arc<Self>, Error> {
        let serving = resources
            .into_iter()
            .filter(|r| !events::is_view(r) && r.group != usage::GROUP)
            .map(|r| {
                // A custom kind may have the name of one that grants rights.
                let observer = observer.clone().filter(|_| r.custom.is_none() && Standard::KINDS.contains(&&*r.kind));
                ((r.group.clone(), r.plural.clone()), Arc::new(Shelf::new(r, observer)))
            })
            .collect();
        let cache = Arc::new(Self {
            shelves: RwLock::new(Shelves { serving, ..Shelves::default() }),
            notes: RwLock::default(),
            revision: watch::Sender::new(0),
            trouble: RwLock::default(),
            store,
        });
        let revision = cache.load().await?;
        feed::recall(&cache, revision).await;
        tokio::spawn(feed::run(cache.clone(), revision, token));
        Ok(cache)
    }

    /// The shelf of a kind.
    pub(crate) fn shelf(&self, resource: &Resource) -> Option<Arc<Shelf>> {
        self.named(&resource.group, &resource.plural)
    }

    /// The shelf of a kind, by group and plural.
    pub(crate) fn named(&self, group: &str, plural: &str) -> Option<Arc<Shelf>> {
        let (group, plural) = events::stored_place(group, plural);
        self.shelves().serving.get(&(group.to_owned(), plural.to_owned())).cloned()
    }

    /// The shelves, to read.
    fn shelves(&self) -> RwLockReadGuard<'_, Shelves> {
        self.shelves.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every shelf that wants the changes of a kind: the one that is read, and the one that is being filled.
    fn following(&self, group: &str, plural: &str) -> Vec<Arc<Shelf>> {
        let place = (group.to_owned(), plural.to_owned());
        let shelves = self.shelves();
        [shelves.serving.get(&place), shelves.filling.get(&place)].into_iter().flatten().cloned().collect()
    }

    /// Every shelf that is read.
    fn all(&self) -> Vec<(Place, Arc<Shelf>)> {
        self.shelves().serving.iter().map(|(place, shelf)| (place.clone(), shelf.clone())).collect()
    }

    /// Serves a kind from now on, or anew where it was served in another form: then its watches end.
    pub(crate) async fn serve(&self, resource: Arc<Resource>) -> Result<(), store::Error> {
        let place = (resource.group.clone(), resource.plural.clone());
        let shelf = Arc::new(Shelf::new(resource.clone(), None));
        self.shelves_mut().filling.insert(place.clone(), shelf.clone());
        let range = match self.store.range(RangeQuery::prefix(store_prefix(&resource))).await {
            Ok(range) => range,
            Err(error) => {
                self.shelves_mut().filling.remove(&place);
                return Err(error);
            }
        };
        let found = range.entries.into_iter().filter_map(|entry| {
            let stored = entry.key.clone();
            let (_, _, key) = split_key(&stored)?;
            shelf.read_object(key, entry, true)
        });
        shelf.fill(found.collect(), range.revision);
        let old = {
            let mut shelves = self.shelves_mut();
            shelves.filling.remove(&place);
            shelves.serving.insert(place, shelf)
        };
        if let Some(old) = old {
            old.close();
        }
        Ok(())
    }

    /// Serves a kind no longer.
    pub(crate) fn forget(&self, resource: &Resource) {
        let removed = self.shelves_mut().serving.remove(&(resource.group.clone(), resource.plural.clone()));
        if let Some(shelf) = removed {
            shelf.close();
        }
    }

    /// The shelves, to change which there are.
    fn shelves_mut(&self) -> RwLockWriteGuard<'_, Shelves> {
        self.shelves.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells how far the cache is, whenever that changes.
    pub(crate) fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// How many objects there are of each kind, by `plural` or `plural.group`.
    pub(crate) fn counts(&self) -> Vec<(String, usize)> {
        self.all().into_iter().map(|(_, shelf)| (shelf.resource().group_resource(), shelf.len())).collect()
    }

    /// One object as far as the cache knows.
    pub(crate) fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.named(group, plural)?.get(&Key::new(namespace, name))
    }

    /// What the store holds under a key outside the objects.
    pub(crate) fn note_at(&self, key: &[u8]) -> Option<Entry> {
        self.notes.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// All of what the store holds below a prefix outside the objects.
    pub(crate) fn notes_below(&self, prefix: &str) -> Vec<Entry> {
        let notes = self.notes.read().unwrap_or_else(PoisonError::into_inner);
        let from = Bytes::copy_from_slice(prefix.as_bytes());
        notes.range(from..).take_while(|(k, _)| k.starts_with(prefix.as_bytes())).map(|(_, e)| e.clone()).collect()
    }

    /// Takes a change outside the objects.
    fn note(&self, key: Bytes, entry: Option<Entry>) {
        let mut notes = self.notes.write().unwrap_or_else(PoisonError::into_inner);
        match entry {
            Some(entry) => notes.insert(key, entry),
            None => notes.remove(&key),
        };
    }

    /// Whether the cache follows the store; if not, why.
    pub(crate) fn health(&self) -> Result<(), String> {
        match &*self.trouble.read().unwrap_or_else(PoisonError::into_inner) {
            Some(why) => Err(why.clone()),
            None => Ok(()),
        }
    }

    /// Notes why the store cannot be followed, or that it can.
    fn set_trouble(&self, why: Option<String>) {
        *self.trouble.write().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// How far the cache is.
    pub(crate) fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// Waits until the cache is at least as new as every write that was answered before this call.
    pub(crate) async fn catch_up(&self) -> Outcome<u64> {
        let newest = self.store.current_revision().await.map_err(crate::errors::from_store)?;
        self.wait(newest).await?;
        Ok(newest)
    }

    /// Waits until the cache is at `revision`; 504 if that takes long (it may belong to another store).
    pub(crate) async fn wait(&self, revision: u64) -> Outcome<()> {
        if self.revision() >= revision {
            return Ok(());
        }
        let mut changes = self.revision.subscribe();
        let reached = tokio::time::timeout(PATIENCE, changes.wait_for(|now| *now >= revision)).await;
        match reached {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Box::new(too_new(revision, self.revision()))),
        }
    }

    /// Reads all of the store into the shelves; gives the revision that was read.
    async fn load(&self) -> Result<u64, store::Error> {
        let range = self.store.range(RangeQuery::prefix(ROOT)).await?;
        let mut notes = BTreeMap::new();
        let shelves: HashMap<Place, Arc<Shelf>> = self.all().into_iter().collect();
        let mut found: HashMap<Place, Vec<Arc<Object>>> = HashMap::new();
        for entry in range.entries {
            let key = entry.key.clone();
            let Some((group, plural, key)) = split_key(&key) else {
                notes.insert(key, entry);
                continue;
            };
            let place = (group.to_owned(), plural.to_owned());
            let Some(shelf) = shelves.get(&place) else { continue };
            found.entry(place).or_default().extend(shelf.read_object(key, entry, true));
        }
        for (place, shelf) in &shelves {
            shelf.replace(found.remove(place).unwrap_or_default(), range.revision);
        }
        *self.notes.write().unwrap_or_else(PoisonError::into_inner) = notes;
        self.revision.send_replace(range.revision);
        Ok(range.revision)
    }
}

/// The store's prefix of all objects of a kind.
fn store_prefix(resource: &Resource) -> String {
    let group = if resource.group.is_empty() { "core" } else { &resource.group };
    format!("{OBJECTS}{group}/{}/", resource.plural)
}

/// The store's key of an object.
pub(crate) fn store_key(resource: &Resource, namespace: &str, name: &str) -> Bytes {
    let (group, plural) = events::stored_place(&resource.group, &resource.plural);
    let group = if group.is_empty() { "core" } else { group };
    if namespace.is_empty() {
        format!("{OBJECTS}{group}/{plural}/{name}").into()
    } else {
        format!("{OBJECTS}{group}/{plural}/{namespace}/{name}").into()
    }
}

/// Group, plural and key of an object from its store key.
fn split_key(key: &[u8]) -> Option<(&str, &str, Key)> {
    let mut parts = std::str::from_utf8(key).ok()?.strip_prefix(OBJECTS)?.splitn(3, '/');
    let group = parts.next()?;
    let plural = parts.next()?;
    let rest = parts.next()?;
    let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
    Some((if group == "core" { "" } else { group }, plural, Key::new(namespace, name)))
}

/// 504: a revision that is not reached yet.
fn too_new(asked: u64, newest: u64) -> Status {
    let mut status = Status::timeout(format!("Too large resource version: {asked}, current: {newest}"), 1);
    let cause = Cause {
        reason: "ResourceVersionTooLarge".to_owned(),
        message: "Too large resource version".to_owned(),
        ..Cause::default()
    };
    status.details.get_or_insert_with(Details::default).causes.push(cause);
    status
}

#[cfg(test)]
mod key_tests {
    use api::resource::Registry;

    use super::*;

    #[test]
    fn store_keys_come_back_apart() {
        let registry = Registry::builtin();
        let sets = registry.find("apps", "v1", "statefulsets").unwrap();
        let nodes = registry.find("", "v1", "nodes").unwrap();
        let key = store_key(&sets, "default", "web");
        assert_eq!(&key[..], b"/registry/apps/statefulsets/default/web");
        assert_eq!(split_key(&key), Some(("apps", "statefulsets", Key::new("default", "web"))));
        let key = store_key(&nodes, "", "n1");
        assert_eq!(&key[..], b"/registry/core/nodes/n1");
        assert_eq!(split_key(&key), Some(("", "nodes", Key::new("", "n1"))));
    }
}
