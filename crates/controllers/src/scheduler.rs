//! Finds a node for every pod that wants one.
//!
//! A pod whose claims wait for their first consumer goes two ways: its claims are told the node, and when
//! their volumes are bound the pod is. Resources are not counted (one machine, no requests to weigh); the
//! node with the fewest pods is taken. The decision is in `filter`, without I/O.

mod filter;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ambient::Ambient;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

pub(crate) use self::filter::ready;
use self::filter::{ClaimState, Decision, decide};
use crate::Term;
use crate::events::{Level, Recorder};
use crate::informer::Key;
use crate::informers::{Informers, PodView};
use crate::queue::{Outcome, Queue};
use crate::work::{self, Stop, call, call_opt};

/// The annotation by which a claim is told its node.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// A refused binding (another uid still holds the identity) is tried again this often: no watch tells.
const REFUSED_AGAIN: Duration = Duration::from_millis(500);

/// Runs until the term ends and its requests are settled.
pub async fn run(client: Client, term: Term, ambient: Ambient, informers: Informers) -> kube::Result<()> {
    let queue: Queue<Key> = Queue::new(&term, &ambient);
    watch_changes(&queue, &informers);
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
    let recorder = Recorder::start(client.clone(), "default-scheduler", &term, &ambient);
    let scheduler = Scheduler { client, term, ambient, informers, recorder, assumed: Mutex::default() };
    // One at a time: each choice counts the ones before it.
    work::run(&queue, 1, |key| scheduler.schedule(key)).await;
    Ok(())
}

/// Queues a pod when it wants a node, and those that found none when something changed in their favour.
fn watch_changes(queue: &Queue<Key>, informers: &Informers) {
    let again = {
        let (queue, pods) = (queue.clone(), informers.pods.clone());
        move |index: &str| {
            for pod in pods.by_index(index).iter().filter(|pod| pod.wants_node()) {
                queue.add(pod.key());
            }
        }
    };
    let (own, all) = (queue.clone(), again.clone());
    informers.pods.on_change(move |old, new| {
        if let Some(pod) = new.filter(|pod| pod.wants_node()) {
            own.add(pod.key());
        }
        let on_node = |pod: Option<&Arc<PodView>>| pod.is_some_and(|pod| pod.node.is_some() && !pod.is_over());
        if on_node(old) && !on_node(new) {
            all("unscheduled");
        }
    });
    let all = again.clone();
    informers.nodes.on_change(move |old, new| {
        let weighed = |node: &Arc<Node>| {
            let allocatable = node.status.as_ref().and_then(|status| status.allocatable.clone());
            (node.metadata.labels.clone(), node.spec.clone(), ready(node).map(str::to_owned), allocatable)
        };
        if old.map(weighed) != new.map(weighed) {
            all("unscheduled");
        }
    });
    let all = again.clone();
    informers.classes.on_change(move |_, _| all("unscheduled"));
    let users = again.clone();
    informers.claims.on_change(move |old, new| {
        if let Some(claim) = new.or(old) {
            users(&format!("claim:{}/{}", work::namespace(&**claim), work::name(&**claim)));
        }
    });
    informers.volumes.on_change(move |old, new| {
        let spec = new.or(old).and_then(|volume| volume.spec.as_ref());
        if let Some(claim) = spec.and_then(|spec| spec.claim_ref.as_ref()) {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            again(&format!("claim:{}/{}", text(&claim.namespace), text(&claim.name)));
        }
    });
}

struct Scheduler {
    client: Client,
    term: Term,
    ambient: Ambient,
    informers: Informers,
    recorder: Recorder,
    /// Pods that were bound and are not seen so yet: uid → key and node.
    assumed: Mutex<HashMap<String, (Key, String)>>,
}

impl Scheduler {
    async fn schedule(&self, key: Key) -> Result<Outcome, Stop> {
        let Some(pod) = self.informers.pods.get(&key.namespace, &key.name).filter(|pod| pod.wants_node()) else {
            return Ok(Outcome::Done);
        };
        let load = self.load();
        if self.lock_assumed().contains_key(&pod.uid) {
            return Ok(Outcome::Done);
        }
        let claims: Vec<ClaimState> = pod.claims.iter().map(|claim| self.claim(&pod, claim)).collect();
        match decide(&pod, &claims, &self.informers.nodes.all(), &load) {
            Decision::Bind { node } => self.bind(&pod, node).await,
            Decision::Provision { node, claims } => {
                for claim in claims {
                    self.select(&pod, &claim, &node).await?;
                }
                Ok(Outcome::Done)
            }
            Decision::Unschedulable { message } => {
                self.report(&pod, message).await?;
                Ok(Outcome::Done)
            }
        }
    }

    /// Pods per node, counting those that were bound just now.
    fn load(&self) -> HashMap<String, usize> {
        let pods = &self.informers.pods;
        let mut load: HashMap<String, usize> = self
            .informers
            .nodes
            .all()
            .iter()
            .map(|node| work::name(&**node).to_owned())
            .map(|node| (node.clone(), pods.by_index(&format!("node:{node}")).len()))
            .collect();
        let mut assumed = self.lock_assumed();
        assumed.retain(|uid, (key, _)| {
            let seen = pods.get(&key.namespace, &key.name);
            seen.is_some_and(|pod| pod.uid == *uid && pod.node.is_none())
        });
        for (_, node) in assumed.values() {
            *load.entry(node.clone()).or_default() += 1;
        }
        load
    }

    fn claim(&self, pod: &PodView, claim: &str) -> ClaimState {
        let hopeless = |why: String| ClaimState::Hopeless(why);
        let Some(found) = self.informers.claims.get(&pod.namespace, claim) else {
            return hopeless(format!("persistentvolumeclaim \"{claim}\" not found"));
        };
        if found.metadata.deletion_timestamp.is_some() {
            return hopeless(format!("persistentvolumeclaim \"{claim}\" is being deleted"));
        }
        let spec = found.spec.as_ref();
        let alone =
            spec.and_then(|s| s.access_modes.as_ref()).is_some_and(|m| m.iter().any(|m| m == "ReadWriteOncePod"));
        let users = self.informers.pods.by_index(&format!("claim:{}/{claim}", pod.namespace));
        if alone && users.iter().any(|user| user.uid != pod.uid && user.node.is_some()) {
            return hopeless(
                "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode".into(),
            );
        }
        let volume = spec.and_then(|spec| spec.volume_name.as_deref()).filter(|name| !name.is_empty());
        if let Some(volume) = volume {
            let phase = found.status.as_ref().and_then(|status| status.phase.as_deref());
            let annotations = found.metadata.annotations.as_ref();
            if let Some(selected) = annotations.and_then(|a| a.get(SELECTED_NODE)).filter(|_| phase == Some("Pending"))
            {
                // Being bound where it was asked for: nothing to tell anybody, the change comes.
                return ClaimState::Delayed { claim: claim.to_owned(), selected: Some(selected.clone()) };
            }
            return match self.informers.volumes.get("", volume) {
                Some(volume) if phase == Some("Bound") => ClaimState::Bound(volume),
                Some(_) => hopeless("pod has unbound immediate PersistentVolumeClaims".into()),
                None => hopeless(format!("persistentvolume \"{volume}\" not found")),
            };
        }
        let class_name = spec.and_then(|spec| spec.storage_class_name.as_deref()).unwrap_or_default();
        match self.informers.classes.get("", class_name) {
            Some(class) if class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer") => {
                let annotations = found.metadata.annotations.as_ref();
                let selected = annotations.and_then(|annotations| annotations.get(SELECTED_NODE)).cloned();
                ClaimState::Delayed { claim: claim.to_owned(), selected }
            }
            None if !class_name.is_empty() => {
                hopeless(format!("storageclass.storage.k8s.io \"{class_name}\" not found"))
            }
            _ => hopeless("pod has unbound immediate PersistentVolumeClaims".into()),
        }
    }

    async fn bind(&self, pod: &PodView, node: String) -> Result<Outcome, Stop> {
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let params = PostParams::default();
        let request = pods.create_subresource::<_, Status>("binding", &pod.name, &params, &binding);
        match call(&self.term, request).await {
            Ok(_) => {
                self.lock_assumed().insert(pod.uid.clone(), (pod.key(), node.clone()));
                let message = format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
                self.recorder.event(&pod.reference(), Level::Normal, "Scheduled", message);
                Ok(Outcome::Done)
            }
            Err(Stop::Api(error)) => match *error {
                // Gone, or bound by another: the change that says so is on its way.
                kube::Error::Api(status) if status.code == 404 => Ok(Outcome::Done),
                kube::Error::Api(status) if status.code == 409 => {
                    self.report(pod, status.message.clone()).await?;
                    Ok(Outcome::After(REFUSED_AGAIN))
                }
                other => Err(Stop::Api(Box::new(other))),
            },
            Err(over) => Err(over),
        }
    }

    /// Tells a claim which node its volume is to be on.
    async fn select(&self, pod: &PodView, claim: &str, node: &str) -> Result<(), Stop> {
        let Some(found) = self.informers.claims.get(&pod.namespace, claim) else { return Ok(()) };
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &pod.namespace);
        let patch = json!({"metadata": {
            "uid": found.metadata.uid,
            "resourceVersion": found.metadata.resource_version,
            "annotations": {SELECTED_NODE: node},
        }});
        call(&self.term, claims.patch(claim, &PatchParams::default(), &Patch::Merge(patch))).await?;
        Ok(())
    }

    /// Says on the pod why it has no node, once per reason.
    async fn report(&self, pod: &PodView, message: String) -> Result<(), Stop> {
        let condition = ("False".to_owned(), "Unschedulable".to_owned(), message);
        if pod.scheduled.as_ref() == Some(&condition) {
            return Ok(());
        }
        let (status, reason, message) = condition;
        self.recorder.event(&pod.reference(), Level::Warning, "FailedScheduling", message.clone());
        let mut condition = json!({"type": "PodScheduled", "status": status, "reason": reason, "message": message});
        if pod.scheduled.as_ref().is_none_or(|(was, ..)| was != "False") {
            condition["lastTransitionTime"] = json!(Time(self.ambient.now()));
        }
        let patch = json!({"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}});
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        call_opt(&self.term, pods.patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch))).await?;
        Ok(())
    }

    fn lock_assumed(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Key, String)>> {
        self.assumed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
