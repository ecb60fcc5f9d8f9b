//! What goes with what: dependents follow their owners, content follows its namespace.
//!
//! [`run`] is the garbage collector. It watches every kind that can be listed, watched and deleted, keeps the
//! graph of owners and dependents (`graph`), and acts on what the graph points at:
//! - all owners gone → the dependent is deleted (background);
//! - an owner with finalizer `foregroundDeletion` → its dependents are deleted, then the finalizer goes;
//! - an owner with finalizer `orphan` → its dependents lose their reference, then the finalizer goes.
//!
//! Before a delete the owner is asked for by name, and counts as there only with the same uid; the delete names the
//! dependent's uid. [`namespaces`] and [`accounts`] see to namespaces.

pub mod accounts;
mod conditions;
mod graph;
pub mod namespaces;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ambient::Ambient;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::DynamicObject;
use kube::discovery::{ApiResource, Discovery, Scope, verbs};
use kube::{Api, Client};
use serde_json::json;
use tracing::{debug, warn};

use self::graph::{FOREGROUND, Fate, Graph, Item, ORPHAN, Owner, OwnerState, fate};
use crate::Term;
use crate::events::{Level, Recorder};
use crate::informer::Informer;
use crate::lean::LeanObject;
use crate::queue::{Outcome, Queue};
use crate::work::{self, Stop, call_opt};

/// Objects worked on at once: as many deletes as one commit of the store takes along gladly.
const WORKERS: usize = 32;
/// Owners of which it is remembered that they are gone.
const GONE_LIMIT: usize = 4096;
/// An owner of a kind that is not served is looked for again this often.
const UNKNOWN_KIND_AGAIN: Duration = Duration::from_secs(30);
/// Wait between two tries to learn what is served.
const DISCOVERY_AGAIN: Duration = Duration::from_millis(500);

/// A kind whose objects can be owned, and deleted.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    /// How it is addressed.
    pub(crate) resource: ApiResource,
    /// Its objects live in namespaces.
    pub(crate) namespaced: bool,
    /// All of a namespace can be deleted at once.
    pub(crate) collections: bool,
}

impl Kind {
    /// The API of all its objects.
    fn everywhere(&self, client: &Client) -> Api<DynamicObject> {
        Api::all_with(client.clone(), &self.resource)
    }

    /// The API of its objects, of one namespace where it has them.
    pub(crate) fn api(&self, client: &Client, namespace: &str) -> Api<DynamicObject> {
        if self.namespaced {
            Api::namespaced_with(client.clone(), namespace, &self.resource)
        } else {
            Api::all_with(client.clone(), &self.resource)
        }
    }
}

/// Learns which kinds there are; `None` if the term ended first.
pub(crate) async fn kinds(client: &Client, term: &Term) -> Option<Vec<Kind>> {
    loop {
        match term.during(Discovery::new(client.clone()).run()).await? {
            Ok(found) => return Some(deletable(&found)),
            Err(error) => warn!(%error, "cannot learn which kinds are served; trying again"),
        }
        term.during(tokio::time::sleep(DISCOVERY_AGAIN)).await?;
    }
}

fn deletable(found: &Discovery) -> Vec<Kind> {
    let resources = found.groups().flat_map(|group| group.recommended_resources());
    let usable = resources.filter(|(_, can)| {
        let needed = [verbs::LIST, verbs::WATCH, verbs::DELETE];
        needed.iter().all(|verb| can.supports_operation(verb))
    });
    usable
        .map(|(resource, can)| Kind {
            resource,
            namespaced: can.scope == Scope::Namespaced,
            collections: can.supports_operation(verbs::DELETE_COLLECTION),
        })
        .collect()
}

/// Runs until the term ends and its requests are settled.
pub async fn run(client: Client, term: Term, ambient: Ambient) -> kube::Result<()> {
    let Some(mut kinds) = kinds(&client, &term).await else { return Ok(()) };
    // Events own nothing, are owned by nothing, and come in masses.
    kinds.retain(|kind| kind.resource.kind != "Event");
    let queue: Queue<String> = Queue::new(&term, &ambient);
    let graph: Arc<Mutex<Graph>> = Arc::default();
    let mut informers = Vec::new();
    for (at, kind) in kinds.iter().enumerate() {
        let api: Api<LeanObject> = Api::all_with(client.clone(), &kind.resource);
        let informer = Informer::builder(api, move |object: LeanObject| Item::of(at, object.metadata));
        let informer = informer.start(&term, &ambient);
        let (graph, queue) = (graph.clone(), queue.clone());
        informer.on_change(move |old, new| {
            let mut graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
            let mut look = Vec::new();
            // A name whose object was replaced between two looks has another uid now.
            if let Some(old) = old.filter(|old| new.is_none_or(|new| new.uid != old.uid)) {
                look.extend(graph.remove(&old.uid));
            }
            if let Some(new) = new {
                look.extend(graph.put((**new).clone()));
            }
            drop(graph);
            look.into_iter().for_each(|uid| queue.add(uid));
        });
        informers.push(informer);
    }
    for informer in &informers {
        if !informer.synced().await {
            return Ok(());
        }
    }
    let events = Recorder::start(client.clone(), "garbage-collector-controller", &term, &ambient);
    let collector = Collector { client, term, kinds, graph, queue: queue.clone(), events, gone: Mutex::default() };
    work::run(&queue, WORKERS, |uid| collector.look(uid)).await;
    Ok(())
}

struct Collector {
    client: Client,
    term: Term,
    kinds: Vec<Kind>,
    graph: Arc<Mutex<Graph>>,
    queue: Queue<String>,
    events: Recorder,
    /// Owners that the API did not have when it was asked: they never come back, as no uid is given twice.
    gone: Mutex<BTreeSet<(String, Owner)>>,
}

impl Collector {
    async fn look(&self, uid: String) -> Result<Outcome, Stop> {
        let Some(item) = self.lock_graph().get(&uid).cloned() else { return Ok(Outcome::Done) };
        if item.deleting && item.orphan {
            return self.orphan(&item).await;
        }
        if item.awaits_dependents() {
            return self.foreground(&item).await;
        }
        if item.deleting || item.owners.is_empty() {
            return Ok(Outcome::Done);
        }
        if self.at_once(&item).await? { Ok(Outcome::Done) } else { self.dependent(&item).await }
    }

    /// Deletes an object as it was seen, where all its owners are known to be gone: the delete names the version that
    /// named them. False if that cannot be said, or the object has changed.
    async fn at_once(&self, item: &Item) -> Result<bool, Stop> {
        let plain = item.version != 0 && !item.orphan && !item.foreground;
        let known = || item.owners.iter().all(|owner| self.lock_gone().contains(&owner.within(&item.namespace)));
        if !plain || !known() || !self.lock_graph().dependents(&item.uid).is_empty() {
            return Ok(false);
        }
        let version = Some(item.version.to_string());
        let preconditions = Preconditions { uid: Some(item.uid.clone()), resource_version: version };
        let params =
            DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
        debug!(name = %item.name, namespace = %item.namespace, "its owners are gone: deleting it");
        match call_opt(&self.term, self.api(item).delete(&item.name, &params.preconditions(preconditions))).await {
            Ok(_) => Ok(true),
            Err(stop) if stop.code() == Some(409) => Ok(false),
            Err(stop) => Err(stop),
        }
    }

    /// Deletes an object whose owners are gone, as the API has it and them now.
    async fn dependent(&self, item: &Item) -> Result<Outcome, Stop> {
        let api = self.api(item);
        let Some(live) = call_opt(&self.term, api.get(&item.name)).await? else { return Ok(Outcome::Done) };
        let version = live.metadata.resource_version.clone();
        let Some(live) = Item::of(item.kind, live.metadata).filter(|live| live.uid == item.uid && !live.deleting)
        else {
            return Ok(Outcome::Done);
        };
        let mut owners = Vec::with_capacity(live.owners.len());
        for owner in &live.owners {
            match self.owner(&live, owner).await? {
                Some(state) => owners.push((owner.uid.clone(), state)),
                None => return Ok(Outcome::After(UNKNOWN_KIND_AGAIN)),
            }
        }
        let has_dependents = !self.lock_graph().dependents(&live.uid).is_empty();
        match fate(&owners, has_dependents) {
            Fate::Keep => {}
            Fate::Release(uids) => self.release(&live, &uids).await?,
            Fate::Delete { foreground } => {
                let waits = |d: &&Item| d.awaits_dependents();
                let circle = foreground && self.lock_graph().dependents(&live.uid).iter().any(waits);
                // Perhaps a circle, in which each would wait for the other.
                if circle && self.unblock(&live).await? {
                    self.queue.add(live.uid);
                    return Ok(Outcome::Done);
                }
                let policy = match (live.orphan, live.foreground || foreground) {
                    (true, _) => PropagationPolicy::Orphan,
                    (false, true) => PropagationPolicy::Foreground,
                    (false, false) => PropagationPolicy::Background,
                };
                debug!(name = %live.name, namespace = %live.namespace, ?policy, "its owners are gone: deleting it");
                let preconditions = Preconditions { uid: Some(live.uid), resource_version: version };
                let params = DeleteParams { propagation_policy: Some(policy), ..DeleteParams::default() };
                call_opt(&self.term, api.delete(&live.name, &params.preconditions(preconditions))).await?;
            }
        }
        Ok(Outcome::Done)
    }

    /// How an owner is; `None` if its kind is not served and so nobody can tell.
    async fn owner(&self, dependent: &Item, owner: &Owner) -> Result<Option<OwnerState>, Stop> {
        let served = |kind: &&Kind| kind.resource.kind == owner.kind && kind.resource.api_version == owner.api_version;
        let Some(kind) = self.kinds.iter().find(served) else { return Ok(None) };
        if kind.namespaced && dependent.namespace.is_empty() {
            // It cannot be: a reference without a namespace names no object. Nothing is deleted for that.
            self.tell_misplaced(dependent, owner);
            return Ok(None);
        }
        let api = kind.api(&self.client, &dependent.namespace);
        let found = call_opt(&self.term, api.get(&owner.name)).await?;
        let found = found.and_then(|found| Item::of(0, found.metadata)).filter(|found| found.uid == owner.uid);
        if found.is_none() {
            if self.lock_graph().get(&owner.uid).is_some_and(|known| !dependent.may_mean(owner, known)) {
                self.tell_misplaced(dependent, owner);
            } else {
                let mut gone = self.lock_gone();
                while gone.len() >= GONE_LIMIT {
                    gone.pop_first();
                }
                gone.insert(owner.within(&dependent.namespace));
            }
        }
        Ok(Some(match found {
            None => OwnerState::Gone,
            Some(found) if found.awaits_dependents() => OwnerState::Waiting,
            Some(_) => OwnerState::Solid,
        }))
    }

    /// Tells that an object names an owner that is not where owners are: in its own namespace, or in none.
    fn tell_misplaced(&self, dependent: &Item, owner: &Owner) {
        let kind = &self.kinds[dependent.kind].resource;
        let about = ObjectReference {
            api_version: Some(kind.api_version.clone()),
            kind: Some(kind.kind.clone()),
            name: Some(dependent.name.clone()),
            namespace: Some(dependent.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            uid: Some(dependent.uid.clone()),
            ..ObjectReference::default()
        };
        let Owner { api_version, kind, name, uid, .. } = owner;
        let namespace = &dependent.namespace;
        let what = format!("[{api_version}/{kind}, namespace: {namespace}, name: {name}, uid: {uid}]");
        let message = format!("ownerRef {what} does not exist in namespace {namespace:?}");
        self.events.event(&about, Level::Warning, "OwnerRefInvalidNamespace", message);
    }

    /// Makes an object hold up none of its owners; `false` if it holds up none already.
    async fn unblock(&self, item: &Item) -> Result<bool, Stop> {
        let api = self.api(item);
        let Some(live) = call_opt(&self.term, api.get(&item.name)).await? else { return Ok(false) };
        let mut owners = live.metadata.owner_references.unwrap_or_default();
        if live.metadata.uid.as_ref() != Some(&item.uid) || owners.iter().all(|o| o.block_owner_deletion != Some(true))
        {
            return Ok(false);
        }
        owners.iter_mut().for_each(|owner| owner.block_owner_deletion = Some(false));
        let meta =
            json!({"uid": item.uid, "resourceVersion": live.metadata.resource_version, "ownerReferences": owners});
        let patch = Patch::Merge(json!({"metadata": meta}));
        call_opt(&self.term, api.patch(&item.name, &PatchParams::default(), &patch)).await?;
        Ok(true)
    }

    /// An owner that goes after its dependents: they go now, and it once none is left that blocks it.
    async fn foreground(&self, item: &Item) -> Result<Outcome, Stop> {
        let dependents: Vec<(String, bool)> = self
            .lock_graph()
            .dependents(&item.uid)
            .into_iter()
            .map(|d| (d.uid.clone(), d.owners.iter().any(|owner| owner.uid == item.uid && owner.blocks)))
            .collect();
        if !dependents.iter().any(|(_, blocks)| *blocks) {
            self.drop_finalizer(item, FOREGROUND).await?;
            return Ok(Outcome::Done);
        }
        // The change of each brings this owner back here.
        dependents.into_iter().for_each(|(uid, _)| self.queue.add(uid));
        Ok(Outcome::Done)
    }

    /// An owner whose dependents are to stay: they forget it, then it goes.
    async fn orphan(&self, item: &Item) -> Result<Outcome, Stop> {
        for dependent in self.dependents_now(item).await? {
            self.release(&dependent, std::slice::from_ref(&item.uid)).await?;
        }
        self.drop_finalizer(item, ORPHAN).await?;
        Ok(Outcome::Done)
    }

    /// The dependents of an object, as the API has them now: one that was made just before is not in the graph yet,
    /// and would be collected with its owner gone.
    async fn dependents_now(&self, owner: &Item) -> Result<Vec<Item>, Stop> {
        let mut found = Vec::new();
        for (at, kind) in self.kinds.iter().enumerate() {
            // Owners are in their dependents' namespace, or in none.
            if !owner.namespace.is_empty() && !kind.namespaced {
                continue;
            }
            let all = owner.namespace.is_empty();
            let api = if all { kind.everywhere(&self.client) } else { kind.api(&self.client, &owner.namespace) };
            let Some(list) = call_opt(&self.term, api.list_metadata(&ListParams::default())).await? else { continue };
            let items = list.items.into_iter().filter_map(|object| Item::of(at, object.metadata));
            found.extend(items.filter(|item| item.owners.iter().any(|o| o.uid == owner.uid)));
        }
        Ok(found)
    }

    /// Takes references to these owners off an object, if it is still the same one.
    async fn release(&self, item: &Item, owners: &[String]) -> Result<(), Stop> {
        let api = self.api(item);
        let Some(live) = call_opt(&self.term, api.get(&item.name)).await? else { return Ok(()) };
        if live.metadata.uid.as_ref() != Some(&item.uid) {
            return Ok(());
        }
        let all = live.metadata.owner_references.unwrap_or_default();
        let kept: Vec<_> = all.iter().filter(|owner| !owners.contains(&owner.uid)).cloned().collect();
        if kept.len() == all.len() {
            return Ok(());
        }
        let meta = json!({"uid": item.uid, "resourceVersion": live.metadata.resource_version, "ownerReferences": kept});
        let patch = Patch::Merge(json!({"metadata": meta}));
        call_opt(&self.term, api.patch(&item.name, &PatchParams::default(), &patch)).await?;
        Ok(())
    }

    async fn drop_finalizer(&self, item: &Item, finalizer: &str) -> Result<(), Stop> {
        let api = self.api(item);
        let Some(live) = call_opt(&self.term, api.get(&item.name)).await? else { return Ok(()) };
        if live.metadata.uid.as_ref() != Some(&item.uid) {
            return Ok(());
        }
        let all = live.metadata.finalizers.unwrap_or_default();
        let kept: Vec<_> = all.iter().filter(|f| *f != finalizer).cloned().collect();
        if kept.len() == all.len() {
            return Ok(());
        }
        let meta = json!({"uid": item.uid, "resourceVersion": live.metadata.resource_version, "finalizers": kept});
        let patch = Patch::Merge(json!({"metadata": meta}));
        call_opt(&self.term, api.patch(&item.name, &PatchParams::default(), &patch)).await?;
        Ok(())
    }

    fn api(&self, item: &Item) -> Api<DynamicObject> {
        self.kinds[item.kind].api(&self.client, &item.namespace)
    }

    fn lock_gone(&self) -> MutexGuard<'_, BTreeSet<(String, Owner)>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
