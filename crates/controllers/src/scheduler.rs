//! Finds a node for every pod that wants one.
//!
//! ```text
//!   changes ──▶ cluster (nodes, what is on them) ─┐
//!   queue ──pod──▶ claims, looked up ─────────────┴─▶ decide ─▶ Bind │ Provision │ Preempt │ Unschedulable
//!                                                     (pure)
//! ```
//! The decision is made without I/O: `filter` says where a pod can go, `score` where it suits best, `preempt` who would
//! have to make room. Here it is carried out, one pod after the other, so that each choice counts those before it.
//!
//! A pod whose claims wait for their first consumer goes two ways: its claims are told the node, and when
//! their volumes are bound the pod is. In between it counts on that node already.

pub mod amounts;
mod claims;
mod cluster;
mod company;
mod decide;
mod filter;
pub mod needs;
mod preempt;
mod score;
mod spread;
mod storage;
pub(crate) mod terms;
#[cfg(test)]
mod testing;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ambient::Ambient;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, Time};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::json;

use self::cluster::{Cluster, Word};
use self::decide::{Decision, decide};
pub(crate) use self::filter::ready;
use self::storage::Source;
use crate::Term;
use crate::events::{Level, Recorder};
use crate::informer::Key;
use crate::informers::{Informers, PodView};
use crate::queue::{Outcome, Queue};
use crate::volumes;
use crate::work::{self, Stop, call, call_opt, name};

/// The annotation by which a claim is told its node.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// A refused binding (another uid still holds the identity) is tried again this often: no watch tells.
const REFUSED_AGAIN: Duration = Duration::from_millis(500);
/// A pod without a place is looked at again after this time, in case that a change was not seen to matter.
const UNPLACED_AGAIN: Duration = Duration::from_secs(300);

/// Runs until the term ends and its requests are settled.
pub async fn run(client: Client, term: Term, ambient: Ambient, informers: Informers) -> kube::Result<()> {
    let queue: Queue<Key> = Queue::new(&term, &ambient);
    let cluster = Arc::new(Mutex::new(Cluster::default()));
    follow(&cluster, &informers);
    watch_changes(&queue, &informers);
    let synced = [
        informers.pods.synced().await,
        informers.nodes.synced().await,
        informers.claims.synced().await,
        informers.volumes.synced().await,
        informers.classes.synced().await,
        informers.namespaces.synced().await,
        informers.budgets.synced().await,
    ];
    if synced.contains(&false) {
        return Ok(());
    }
    let recorder = Recorder::start(client.clone(), "default-scheduler", &term, &ambient);
    let scheduler = Scheduler { client, term, ambient, informers, recorder, cluster };
    scheduler.resume();
    // One at a time: each choice counts the ones before it.
    work::run(&queue, 1, |key| scheduler.schedule(key)).await;
    Ok(())
}

/// Keeps the cluster as the local copies are. Comes before [`watch_changes`]: who is queued finds the change there.
fn follow(cluster: &Arc<Mutex<Cluster>>, informers: &Informers) {
    let own = cluster.clone();
    informers.pods.on_change(move |old, new| lock(&own).pod(old, new));
    let own = cluster.clone();
    informers.nodes.on_change(move |old, new| {
        if let Some(node) = new.or(old) {
            lock(&own).node(name(&**node), new);
        }
    });
    let own = cluster.clone();
    informers.namespaces.on_change(move |old, new| {
        if let Some(namespace) = new.or(old) {
            lock(&own).namespace(name(&**namespace), new);
        }
    });
    let own = cluster.clone();
    informers.budgets.on_change(move |old, new| {
        if let Some(budget) = new.or(old) {
            lock(&own).budget(budget, new.is_some());
        }
    });
}

fn lock(cluster: &Mutex<Cluster>) -> MutexGuard<'_, Cluster> {
    cluster.lock().unwrap_or_else(PoisonError::into_inner)
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
        if let Some(pod) = new.filter(|pod| pod.wants_node() || pod.is_gated()) {
            own.add(pod.key());
        }
        let there = |pod: Option<&Arc<PodView>>| pod.filter(|pod| pod.node.is_some() && !pod.is_over()).cloned();
        match (there(old), there(new)) {
            (Some(_), None) => all("unscheduled"),
            // It takes up room: nobody gains but who wants to be near, or looks at how pods are spread.
            (None, Some(_)) => all("unscheduled:looking"),
            (Some(old), Some(new))
                if old.needs != new.needs || old.labels != new.labels || old.deleting != new.deleting =>
            {
                all("unscheduled");
            }
            _ => {}
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
    let all = again.clone();
    informers.namespaces.on_change(move |old, new| {
        if old.map(|n| &n.metadata.labels) != new.map(|n| &n.metadata.labels) {
            all("unscheduled:looking");
        }
    });
    let users = again.clone();
    informers.claims.on_change(move |old, new| {
        if let Some(claim) = new.or(old) {
            users(&format!("claim:{}/{}", work::namespace(&**claim), work::name(&**claim)));
        }
    });
    informers.volumes.on_change(move |old, new| {
        let spec = new.or(old).and_then(|volume| volume.spec.as_ref());
        match spec.and_then(|spec| spec.claim_ref.as_ref()) {
            Some(claim) => {
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                again(&format!("claim:{}/{}", text(&claim.namespace), text(&claim.name)));
            }
            // A free one may be what somebody waits for.
            None => again("unscheduled"),
        }
    });
}

struct Scheduler {
    client: Client,
    term: Term,
    ambient: Ambient,
    informers: Informers,
    recorder: Recorder,
    cluster: Arc<Mutex<Cluster>>,
}

impl Scheduler {
    /// Pods whose volumes were being made when the scheduler stopped count where their claims say.
    fn resume(&self) {
        for pod in self.informers.pods.by_index("unscheduled") {
            let told = |claim: &String| {
                let claim = self.informers.claims.get(&pod.namespace, claim)?;
                claim.metadata.annotations.as_ref()?.get(SELECTED_NODE).cloned()
            };
            if let Some(node) = pod.claims.iter().find_map(told) {
                lock(&self.cluster).assume(&pod, &node, Word::Intended);
            }
        }
    }

    async fn schedule(&self, key: Key) -> Result<Outcome, Stop> {
        let Some(pod) = self.informers.pods.get(&key.namespace, &key.name) else { return Ok(Outcome::Done) };
        if pod.is_gated() {
            let message = "Scheduling is blocked due to non-empty scheduling gates";
            self.condition(&pod, "SchedulingGated", message, pod.needs.nominated.as_deref()).await?;
            return Ok(Outcome::Done);
        }
        if !pod.wants_node() {
            return Ok(Outcome::Done);
        }
        let claims = self.claims(&pod);
        let decision = {
            let mut cluster = lock(&self.cluster);
            if cluster.word(&pod.uid) == Some(Word::Bound) {
                return Ok(Outcome::Done);
            }
            cluster.forget(&pod.uid);
            let decision = decide(&pod, &claims, &cluster);
            if let Decision::Provision { node, .. } = &decision {
                cluster.assume(&pod, node, Word::Intended);
            }
            decision
        };
        match decision {
            Decision::Bind { node } => self.bind(&pod, node).await,
            Decision::Provision { node, claims, volumes } => {
                for claim in claims {
                    self.select(&pod, &claim, &node).await?;
                }
                for source in volumes {
                    self.reserve(&pod, source).await?;
                }
                Ok(Outcome::Done)
            }
            Decision::Preempt { node, victims, message } => {
                self.report(&pod, message, Some(&node)).await?;
                self.make_room(&pod, &node, &victims).await?;
                Ok(Outcome::After(UNPLACED_AGAIN))
            }
            Decision::Unschedulable { message } => {
                // A node that does not do any more is not kept free.
                let kept = message.contains("not eligible due to a terminating pod");
                self.report(&pod, message, pod.needs.nominated.as_deref().filter(|_| kept)).await?;
                Ok(Outcome::After(UNPLACED_AGAIN))
            }
        }
    }

    async fn bind(&self, pod: &Arc<PodView>, node: String) -> Result<Outcome, Stop> {
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
                lock(&self.cluster).assume(pod, &node, Word::Bound);
                let message = format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
                self.recorder.event(&pod.reference(), Level::Normal, "Scheduled", message);
                Ok(Outcome::Done)
            }
            Err(Stop::Api(error)) => match *error {
                // Gone, or bound by another: the change that says so is on its way.
                kube::Error::Api(status) if status.code == 404 => Ok(Outcome::Done),
                kube::Error::Api(status) if status.code == 409 => {
                    self.report(pod, status.message.clone(), pod.needs.nominated.as_deref()).await?;
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

    /// Gives a volume that is there to a claim; the volumes' own controller does the rest.
    async fn reserve(&self, pod: &PodView, source: Source) -> Result<(), Stop> {
        let Source::Found { claim, volume } = source else { return Ok(()) };
        let Some(claim) = self.informers.claims.get(&pod.namespace, &claim) else { return Ok(()) };
        let Some(found) = self.informers.volumes.get("", &volume) else { return Ok(()) };
        if volumes::holds(&found, &claim) {
            return Ok(());
        }
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let patch = json!({
            "metadata": {"uid": found.metadata.uid, "resourceVersion": found.metadata.resource_version},
            "spec": {"claimRef": volumes::claim_ref(&claim)},
        });
        call(&self.term, volumes.patch(&volume, &PatchParams::default(), &Patch::Merge(patch))).await?;
        Ok(())
    }

    /// Has pods go so that another finds a place. Each is told before; one that is going already is left alone.
    async fn make_room(&self, pod: &PodView, node: &str, victims: &[Arc<PodView>]) -> Result<(), Stop> {
        for victim in victims.iter().filter(|victim| !victim.deleting) {
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), &victim.namespace);
            let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
                "message": "default-scheduler: preempting to accommodate a higher priority pod",
                "lastTransitionTime": Time(self.ambient.now())});
            let patch = json!({"metadata": {"uid": victim.uid}, "status": {"conditions": [condition]}});
            let patch = Patch::Strategic(patch);
            call_opt(&self.term, pods.patch_status(&victim.name, &PatchParams::default(), &patch)).await?;
            let preconditions = Preconditions { uid: Some(victim.uid.clone()), resource_version: None };
            let params = DeleteParams::default().preconditions(preconditions);
            call_opt(&self.term, pods.delete(&victim.name, &params)).await?;
            let message = format!("Preempted by pod {} on node {node}", pod.uid);
            self.recorder.event(&victim.reference(), Level::Normal, "Preempted", message);
        }
        // Whoever waited for the same room, and is less important, has to look again.
        let lower: Vec<Arc<PodView>> = {
            let cluster = lock(&self.cluster);
            let less = |other: &&Arc<PodView>| other.uid != pod.uid && other.needs.priority < pod.needs.priority;
            cluster.nominated_to(node).filter(less).cloned().collect()
        };
        for other in lower {
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), &other.namespace);
            let patch = Patch::Merge(json!({"metadata": {"uid": other.uid}, "status": {"nominatedNodeName": null}}));
            call_opt(&self.term, pods.patch_status(&other.name, &PatchParams::default(), &patch)).await?;
        }
        Ok(())
    }

    /// Says on the pod why it has no node, once per reason, and which one is kept free for it.
    async fn report(&self, pod: &PodView, message: String, nominated: Option<&str>) -> Result<(), Stop> {
        if self.condition(pod, "Unschedulable", &message, nominated).await? {
            self.recorder.event(&pod.reference(), Level::Warning, "FailedScheduling", message);
        }
        Ok(())
    }

    /// Writes the condition PodScheduled; whether it says something new.
    async fn condition(
        &self,
        pod: &PodView,
        reason: &str,
        message: &str,
        nominated: Option<&str>,
    ) -> Result<bool, Stop> {
        let wanted = ("False".to_owned(), reason.to_owned(), message.to_owned());
        let known = pod.scheduled.as_ref() == Some(&wanted);
        if known && pod.needs.nominated.as_deref() == nominated {
            return Ok(false);
        }
        let mut condition = json!({"type": "PodScheduled", "status": "False", "reason": reason, "message": message});
        if pod.scheduled.as_ref().is_none_or(|(was, ..)| was != "False") {
            condition["lastTransitionTime"] = json!(Time(self.ambient.now()));
        }
        let mut status = json!({"conditions": [condition]});
        if pod.needs.nominated.as_deref() != nominated {
            status["nominatedNodeName"] = json!(nominated);
        }
        let patch = json!({"metadata": {"uid": pod.uid}, "status": status});
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        call_opt(&self.term, pods.patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch))).await?;
        Ok(!known)
    }
}
