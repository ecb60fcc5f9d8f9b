//! The task that brings registry and shelves in line with the definitions.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use api::crd::{self, FINALIZER, Taken};
use api::resource::{Registry, Resource};
use serde_json::{Value, json};
use store::{Compare, Op, Txn};
use tokio_util::sync::CancellationToken;

use super::cleanup;
use crate::cache::{Cache, store_key};
use crate::object;
use crate::server::Shared;
use crate::verbs::create::{seconds, text};

/// Pause after the store failed, or before objects that do not go are looked at again.
const RETRY: Duration = Duration::from_millis(500);

/// What is served because of one definition.
struct Kind {
    /// What of the definition that depends on.
    content: Value,
    /// One entry for each served version.
    served: Vec<Resource>,
    /// As objects are stored.
    storage: Arc<Resource>,
}

/// The kinds that are served because of definitions, by the name of the definition.
#[derive(Default)]
pub(crate) struct Kinds {
    known: BTreeMap<String, Kind>,
}

impl Kinds {
    /// The kinds of definitions that were established before the server started.
    pub(crate) fn established(definitions: &[Value]) -> Self {
        let mut kinds = Kinds::default();
        for definition in definitions.iter().filter(|d| crd::is_true(&d["status"], "Established")) {
            if let Some(kind) = Kind::read(definition) {
                kinds.known.insert(text(definition, "name").to_owned(), kind);
            }
        }
        kinds
    }

    /// The registry with these kinds beside the built-in ones.
    pub(crate) fn registry(&self, builtin: &Registry) -> Registry {
        let mut registry = builtin.clone();
        for resource in self.known.values().flat_map(|kind| &kind.served) {
            registry.add(resource.clone());
        }
        registry
    }

    /// The kinds as they are stored.
    pub(crate) fn stored(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.known.values().map(|kind| &kind.storage)
    }
}

impl Kind {
    /// What a definition declares; `None` if its schema cannot be read, which validation prevents.
    fn read(definition: &Value) -> Option<Self> {
        let read = || Some((crd::resources(definition).ok()?, crd::storage(definition).ok()??));
        let Some((served, storage)) = read() else {
            tracing::error!(
                definition = text(definition, "name"),
                "a stored definition is unreadable; its kind is not served"
            );
            return None;
        };
        Some(Kind { content: content(definition), served, storage: Arc::new(storage) })
    }
}

/// What of a definition matters for what is served.
fn content(definition: &Value) -> Value {
    let is_terminating = !text(definition, "deletionTimestamp").is_empty();
    json!([definition["metadata"]["uid"], definition["spec"], definition["status"]["acceptedNames"], is_terminating])
}

/// Follows the definitions until `token` is cancelled or the server is gone.
pub(crate) async fn run(shared: Weak<Shared>, builtin: Arc<Registry>, kinds: Kinds, token: CancellationToken) {
    let follow = async {
        let Some(cache) = shared.upgrade().map(|s| s.cache.clone()) else { return };
        let mut task = Task { builtin, kinds };
        let mut revisions = cache.revisions();
        let mut seen = None;
        loop {
            let newest = newest(&cache);
            let mut waits = false;
            if newest != seen {
                let Some(shared) = shared.upgrade() else { return };
                waits = task.reconcile(&shared).await;
                seen = if waits { None } else { newest };
            }
            if waits {
                tokio::time::sleep(RETRY).await;
            } else if revisions.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = token.cancelled() => {}
        () = follow => {}
    }
}

/// When a definition changed last.
fn newest(cache: &Cache) -> Option<u64> {
    Some(cache.named(crd::GROUP, crd::PLURAL)?.newest())
}

/// What the task remembers.
struct Task {
    builtin: Arc<Registry>,
    kinds: Kinds,
}

impl Task {
    /// Brings all in line with the definitions of the moment. `true`: to be called again soon.
    async fn reconcile(&mut self, shared: &Arc<Shared>) -> bool {
        let Some(resource) = self.builtin.find(crd::GROUP, "v1", crd::PLURAL) else { return false };
        let Some(shelf) = shared.cache.shelf(&resource) else { return false };
        let mut objects = shelf.all("");
        // Who came first gets the name.
        objects.sort_by_key(|object| object.revision);
        let mut definitions: Vec<Value> = objects.iter().map(|object| object.value(&resource)).collect();
        let now = seconds(shared.ambient.now());
        let mut again = false;
        for index in 0..definitions.len() {
            let status = crd::naming_status(&definitions[index], &Taken::by(&definitions), &now);
            let changed = status != definitions[index]["status"];
            definitions[index]["status"] = status;
            again |= self.serve(shared, &definitions[index]).await.is_err();
            // Told only now: who reads that a kind is established can use it.
            if changed {
                again |= !write(shared, &resource, &definitions[index]).await;
            }
        }
        self.forget(shared, &definitions);
        for definition in &definitions {
            if !text(definition, "deletionTimestamp").is_empty() {
                again |= self.terminate(shared, &resource, definition.clone()).await;
            }
        }
        again
    }

    /// Serves the kind of an established definition as it is now.
    async fn serve(&mut self, shared: &Arc<Shared>, definition: &Value) -> Result<(), store::Error> {
        let name = text(definition, "name");
        if !crd::is_true(&definition["status"], "Established")
            || self.kinds.known.get(name).is_some_and(|kind| kind.content == content(definition))
        {
            return Ok(());
        }
        let Some(kind) = Kind::read(definition) else { return Ok(()) };
        shared.cache.serve(kind.storage.clone()).await?;
        if let Some(old) = self.kinds.known.insert(name.to_owned(), kind) {
            debug_assert_eq!(old.storage.plural, self.kinds.known[name].storage.plural);
        }
        shared.registry.replace(self.kinds.registry(&self.builtin));
        Ok(())
    }

    /// Serves no longer what no definition declares.
    fn forget(&mut self, shared: &Shared, definitions: &[Value]) {
        let is_declared = |name: &str| definitions.iter().any(|d| text(d, "name") == name);
        let gone: Vec<String> = self.kinds.known.keys().filter(|name| !is_declared(name)).cloned().collect();
        for name in &gone {
            let Some(kind) = self.kinds.known.remove(name) else { continue };
            shared.registry.replace(self.kinds.registry(&self.builtin));
            shared.cache.forget(&kind.storage);
        }
    }

    /// Deletes the objects of a definition that goes; lets it go when there are none. `true`: not done yet.
    async fn terminate(&self, shared: &Arc<Shared>, resource: &Arc<Resource>, mut definition: Value) -> bool {
        let held = definition["metadata"]["finalizers"].as_array().is_some_and(|f| f.iter().any(|f| f == FINALIZER));
        if !held {
            return false;
        }
        if let Some(kind) = self.kinds.known.get(text(&definition, "name"))
            && cleanup::remaining(shared, &kind.storage).await > 0
        {
            return true;
        }
        if let Some(list) = definition["metadata"]["finalizers"].as_array_mut() {
            list.retain(|f| f != FINALIZER);
        }
        !write(shared, resource, &definition).await
    }
}

/// Writes a definition, or deletes one that is marked and that nothing holds; `false` if it has changed meanwhile.
async fn write(shared: &Shared, resource: &Resource, definition: &Value) -> bool {
    let key = store_key(resource, "", text(definition, "name"));
    let was = text(definition, "resourceVersion").parse().unwrap_or(0);
    let is_held = definition["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
    let op = if !text(definition, "deletionTimestamp").is_empty() && !is_held {
        Op::Delete { key: key.clone() }
    } else {
        let mut value = definition.clone();
        api::decode::normalize(resource, &mut value);
        Op::Put { key: key.clone(), value: object::stored_bytes(value), ttl: None }
    };
    let txn = Txn { compare: vec![Compare { key, mod_revision: was }], ops: vec![op] };
    match shared.store.txn(txn).await {
        Ok(outcome) => {
            let (done, revision) = match outcome {
                store::TxnOutcome::Committed { revision } => (true, revision),
                store::TxnOutcome::Failed { revision, .. } => (false, revision),
            };
            drop(shared.cache.wait(revision).await);
            done
        }
        Err(error) => {
            tracing::warn!(%error, definition = text(definition, "name"), "the status of a definition was not written; trying again");
            false
        }
    }
}
