//! Claims and volumes: binding, the volumes of class `local`, and what becomes of them afterwards.
//!
//! ```text
//!   claim ──selected-node──▶ volume made (claimRef) ──▶ claim bound ──▶ both Bound
//!   claim deleted, unused ──▶ volume Released ──Delete──▶ deleted; the node's agent wipes, then lets it go
//!                                             └─Retain──▶ stays
//! ```
//! `claim`, `volume` and `provision` decide without I/O, one step at a time; here the steps are carried out.
//! [`protection`] holds back the deletion of what is used. Before anything that loses data the API is asked, not the
//! local copy: a claim counts as gone only if a fresh read says so.

mod claim;
pub mod ephemeral;
pub mod protection;
mod provision;
mod volume;

pub(crate) use self::claim::{class_of, holds, matching};
pub(crate) use self::provision::claim_ref;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ambient::Ambient;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::Term;
use crate::events::{Level, Recorder};
use crate::informer::Key;
use crate::informers::{Informers, PodView};
use crate::queue::{Outcome, Queue};
use crate::scheduler::ready;
use crate::work::{self, Stop, call, call_opt, name, namespace, reference, revision, uid};

/// The provisioner of class `local`.
pub const PROVISIONER: &str = "statefuld.io/local";
/// The finalizer that the node's agent takes off once the data is gone.
pub const LOCAL_DATA: &str = "statefuld.io/local-data";
pub(crate) const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
const PVC_PROTECTION: &str = "kubernetes.io/pvc-protection";
const PV_PROTECTION: &str = "kubernetes.io/pv-protection";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// Steps for one object at a time; more would mean that two parties undo each other's work.
const STEPS: usize = 12;
/// When to look again at an object that took that many.
const STEPS_AGAIN: Duration = Duration::from_secs(1);

/// What was told is remembered up to this many claims; beyond it some are told twice.
const TOLD_LIMIT: usize = 10_000;

/// Runs until the term ends and its requests are settled.
pub async fn run(client: Client, term: Term, ambient: Ambient, informers: Informers) -> kube::Result<()> {
    let claims: Queue<Key> = Queue::new(&term, &ambient);
    let volumes: Queue<String> = Queue::new(&term, &ambient);
    watch_changes(&claims, &volumes, &informers);
    let synced = [
        informers.pods.synced().await,
        informers.nodes.synced().await,
        informers.claims.synced().await,
        informers.volumes.synced().await,
        informers.classes.synced().await,
    ];
    if synced.contains(&false) {
        return Ok(());
    }
    let recorder = Recorder::start(client.clone(), "persistentvolume-controller", &term, &ambient);
    let controller = Controller { client, term, informers, recorder, told: Mutex::default() };
    // One worker per queue: the choice of a folder counts all volumes made before.
    tokio::join!(
        work::run(&claims, 1, |key| controller.claim(key)),
        work::run(&volumes, 1, |name| controller.volume(name)),
    );
    Ok(())
}

fn watch_changes(claims: &Queue<Key>, volumes: &Queue<String>, informers: &Informers) {
    let (own, both) = (claims.clone(), volumes.clone());
    informers.claims.on_change(move |old, new| {
        let Some(claim) = new.or(old) else { return };
        own.add(Key::new(namespace(&**claim), name(&**claim)));
        let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|name| !name.is_empty());
        both.add(volume.unwrap_or_else(|| provision::volume_name(claim)));
    });
    let (own, unbound) = (volumes.clone(), unbound_claims(claims, informers));
    let both = claims.clone();
    informers.volumes.on_change(move |old, new| {
        let Some(volume) = new.or(old) else { return };
        own.add(name(&**volume).to_owned());
        match volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) {
            Some(claim) => {
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                both.add(Key::new(text(&claim.namespace), text(&claim.name)));
            }
            None => unbound(),
        }
    });
    let unbound = unbound_claims(claims, informers);
    informers.classes.on_change(move |_, _| unbound());
    let unbound = unbound_claims(claims, informers);
    informers.nodes.on_change(move |old, new| {
        let dir = |node: &Arc<Node>| node.metadata.annotations.as_ref()?.get(provision::VOLUMES_DIR).cloned();
        if old.and_then(dir) != new.and_then(dir) {
            unbound();
        }
    });
}

/// Queues every claim that has no volume.
fn unbound_claims(queue: &Queue<Key>, informers: &Informers) -> impl Fn() + Send + Sync + 'static {
    let (queue, claims) = (queue.clone(), informers.claims.clone());
    move || {
        for claim in claims.all() {
            if claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default().is_empty() {
                queue.add(Key::new(namespace(&*claim), name(&*claim)));
            }
        }
    }
}

struct Controller {
    client: Client,
    term: Term,
    informers: Informers,
    recorder: Recorder,
    /// What claims were told while they wait, by uid and reason: once is enough.
    told: Mutex<HashSet<(String, String)>>,
}

impl Controller {
    /// Takes one claim as far as it goes.
    async fn claim(&self, key: Key) -> Result<Outcome, Stop> {
        let Some(found) = self.informers.claims.get(&key.namespace, &key.name) else { return Ok(Outcome::Done) };
        let mut claim = (*found).clone();
        // What was written here, ahead of the local copy.
        let mut fresh: Option<Arc<PersistentVolume>> = None;
        for _ in 0..STEPS {
            let mut volumes = self.informers.volumes.all();
            if let Some(fresh) = &fresh {
                volumes.retain(|volume| name(&**volume) != name(&**fresh));
                volumes.push(fresh.clone());
            }
            let classes = self.informers.classes.all();
            let facts = claim::Facts { claim: &claim, volumes: &volumes, classes: &classes };
            let step = claim::next(&facts);
            let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &key.namespace);
            match step {
                claim::Step::Rest => return Ok(Outcome::Done),
                claim::Step::Wait { warning, reason, message } => {
                    self.tell(&claim, warning, reason, message);
                    return Ok(Outcome::Done);
                }
                claim::Step::SetClass(class) => {
                    claim = self.patch(&claims, &claim, json!({"spec": {"storageClassName": class}})).await?;
                }
                claim::Step::Lost { reason, message } => {
                    if !self.is_lost_live(&claim).await? {
                        return Ok(Outcome::Retry);
                    }
                    self.recorder.event(&reference(&claim), Level::Warning, reason, message);
                    claim = self.patch_status(&claims, &claim, json!({"status": {"phase": "Lost"}})).await?;
                }
                claim::Step::Reserve(volume) => {
                    let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
                    let patch = json!({"spec": {"claimRef": provision::claim_ref(&claim)}});
                    fresh = Some(Arc::new(self.patch(&volumes, &volume, patch).await?));
                }
                claim::Step::Bind(volume) => {
                    claim = self.patch(&claims, &claim, bind_patch(&volume)).await?;
                }
                claim::Step::MarkBound(volume) => {
                    let spec = volume.spec.unwrap_or_default();
                    let status = json!({"phase": "Bound", "accessModes": spec.access_modes, "capacity": spec.capacity});
                    claim = self.patch_status(&claims, &claim, json!({"status": status})).await?;
                    self.forget(&claim);
                }
                claim::Step::Grow(volume, more) => {
                    let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
                    let patch = json!({"spec": {"capacity": {"storage": more}}});
                    fresh = Some(Arc::new(self.patch(&volumes, &volume, patch).await?));
                }
                claim::Step::Provision { class, node } => {
                    match self.provision(&claim, &class, &node, &volumes).await? {
                        Some(made) => fresh = Some(made),
                        None => return Ok(Outcome::Done),
                    }
                }
            }
        }
        Ok(Outcome::After(STEPS_AGAIN))
    }

    /// Makes the claim's volume; `None` if that has to wait for a change, which the claim was told.
    async fn provision(
        &self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
        node: &str,
        volumes: &[Arc<PersistentVolume>],
    ) -> Result<Option<Arc<PersistentVolume>>, Stop> {
        let node = match node {
            "" => self.informers.nodes.all().into_iter().find(|node| ready(node) == Some("True")),
            chosen => self.informers.nodes.get("", chosen),
        };
        let user = self.user(claim);
        let made = match &node {
            Some(node) => provision::volume(claim, class, node, user.as_deref(), volumes),
            None => Err("there is no node to make the volume on".into()),
        };
        let wanted = match made {
            Ok(wanted) => wanted,
            Err(why) => {
                let message = format!("failed to provision volume with StorageClass \"{}\": {why}", name(class));
                self.tell(claim, true, "ProvisioningFailed", message);
                return Ok(None);
            }
        };
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let made = match call(&self.term, api.create(&PostParams::default(), &wanted)).await {
            Ok(made) => made,
            // From an earlier try whose answer was lost.
            Err(stop) if stop.code() == Some(409) => call(&self.term, api.get(name(&wanted))).await?,
            Err(stop) => return Err(stop),
        };
        let message = format!("Successfully provisioned volume {}", name(&made));
        self.recorder.event(&reference(claim), Level::Normal, "ProvisioningSucceeded", message);
        if let Some(revision) = revision(&made) {
            self.informers.volumes.wait_until(revision).await;
        }
        Ok(Some(Arc::new(made)))
    }

    /// Takes one volume as far as it goes.
    async fn volume(&self, volume: String) -> Result<Outcome, Stop> {
        let Some(found) = self.informers.volumes.get("", &volume) else { return Ok(Outcome::Done) };
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let mut volume = (*found).clone();
        for _ in 0..STEPS {
            let claim = self.claim_of(&volume).await?;
            match volume::next(&volume, claim.as_ref()) {
                volume::Step::Rest => return Ok(Outcome::Done),
                volume::Step::Phase(phase) => {
                    volume = self.patch_status(&volumes, &volume, json!({"status": {"phase": phase}})).await?;
                }
                volume::Step::Delete => {
                    let preconditions = Preconditions {
                        uid: volume.metadata.uid.clone(),
                        resource_version: volume.metadata.resource_version.clone(),
                    };
                    let params = DeleteParams::default().preconditions(preconditions);
                    call_opt(&self.term, volumes.delete(name(&volume), &params)).await?;
                    // What follows is asked for by the change that this makes.
                    return Ok(Outcome::Done);
                }
            }
        }
        Ok(Outcome::After(STEPS_AGAIN))
    }

    /// The claim that a volume names. If the local copy has it not, the API is asked: much hangs on it.
    async fn claim_of(&self, volume: &PersistentVolume) -> Result<Option<PersistentVolumeClaim>, Stop> {
        let Some(holder) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone()) else { return Ok(None) };
        let (space, claim) = (holder.namespace.unwrap_or_default(), holder.name.unwrap_or_default());
        if space.is_empty() || claim.is_empty() {
            return Ok(None);
        }
        if let Some(found) = self.informers.claims.get(&space, &claim)
            && Some(uid(&*found)) == holder.uid.as_deref()
        {
            return Ok(Some((*found).clone()));
        }
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &space);
        call_opt(&self.term, claims.get(&claim)).await
    }

    /// A pod that mounts the claim.
    fn user(&self, claim: &PersistentVolumeClaim) -> Option<Arc<PodView>> {
        let index = format!("claim:{}/{}", namespace(claim), name(claim));
        self.informers.pods.by_index(&index).into_iter().next()
    }

    /// Whether the volume of a bound claim is really not there, or not its own.
    async fn is_lost_live(&self, claim: &PersistentVolumeClaim) -> Result<bool, Stop> {
        let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let found = call_opt(&self.term, volumes.get(&volume)).await?;
        let holder = found.map(|volume| volume.spec.and_then(|spec| spec.claim_ref).and_then(|claim| claim.uid));
        Ok(match holder {
            None => true,
            Some(holder) => holder.is_some_and(|holder| holder != uid(claim)),
        })
    }

    /// As [`patch`], for the term.
    async fn patch<K>(&self, api: &Api<K>, object: &K, wanted: Value) -> Result<K, Stop>
    where
        K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        patch(&self.term, api, object, wanted).await
    }

    /// As [`Self::patch`], of the status.
    async fn patch_status<K>(&self, api: &Api<K>, object: &K, mut patch: Value) -> Result<K, Stop>
    where
        K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        conditions(object, &mut patch);
        call(&self.term, api.patch_status(name(object), &PatchParams::default(), &Patch::Merge(patch))).await
    }

    /// Tells a claim why it waits, once.
    fn tell(&self, claim: &PersistentVolumeClaim, warning: bool, reason: &str, message: String) {
        let level = if warning { Level::Warning } else { Level::Normal };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= TOLD_LIMIT {
            told.clear();
        }
        if told.insert((uid(claim).to_owned(), format!("{reason}: {message}"))) {
            self.recorder.event(&reference(claim), level, reason, message);
        }
    }

    /// A claim that is bound waits no more.
    fn forget(&self, claim: &PersistentVolumeClaim) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|(told, _)| told != uid(claim));
    }
}

fn bind_patch(volume: &PersistentVolume) -> Value {
    let mut annotations = json!({claim::BIND_COMPLETED: "yes", "pv.kubernetes.io/bound-by-controller": "yes"});
    let by = volume.metadata.annotations.as_ref().and_then(|annotations| annotations.get(PROVISIONED_BY));
    if let Some(by) = by {
        annotations["volume.kubernetes.io/storage-provisioner"] = json!(by);
    }
    json!({"metadata": {"annotations": annotations}, "spec": {"volumeName": name(volume)}})
}

/// Changes an object, on the condition that it is still as it was when that was decided.
async fn patch<K>(term: &Term, api: &Api<K>, object: &K, mut patch: Value) -> Result<K, Stop>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    conditions(object, &mut patch);
    call(term, api.patch(name(object), &PatchParams::default(), &Patch::Merge(patch))).await
}

fn conditions<K: kube::Resource>(object: &K, patch: &mut Value) {
    let meta = object.meta();
    patch["metadata"]["uid"] = json!(meta.uid);
    patch["metadata"]["resourceVersion"] = json!(meta.resource_version);
}
