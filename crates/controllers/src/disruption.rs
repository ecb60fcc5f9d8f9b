//! PodDisruptionBudgets: how many pods of each are healthy and how many may be disturbed, kept true; what upstream's
//! disruption controller does.
//!
//! An eviction takes one from the budget and notes the pod there, in the transaction that lets it through. Nothing is
//! written here but upon the version that was counted: what an eviction took in between is never given back by mistake.
//! `count` decides, without I/O.

mod count;

use std::sync::Arc;
use std::time::Duration;

use ambient::Ambient;
use api::selector::LabelSelector;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::{DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use serde_json::json;

use crate::Term;
use crate::events::{Level, Recorder};
use crate::informer::{Informer, Key};
use crate::informers::{Informers, PodView};
use crate::queue::{Outcome, Queue};
use crate::work::{self, Stop, call_opt, name, namespace, reference};
use count::{Count, Expected};

/// Budgets that are counted at a time.
const WORKERS: usize = 2;
/// How long a pod that is to go, and does not, bears the condition that says so. Upstream's.
const STALE: Duration = Duration::from_secs(120);

/// Runs until the term ends and its requests are settled.
pub async fn run(client: Client, term: Term, ambient: Ambient, informers: Informers) -> kube::Result<()> {
    let queue: Queue<Key> = Queue::new(&term, &ambient);
    let own = queue.clone();
    informers.budgets.on_change(move |_, new| {
        if let Some(budget) = new {
            own.add(key_of(budget));
        }
    });
    let (own, budgets) = (queue.clone(), informers.budgets.clone());
    informers.pods.on_change(move |old, new| {
        for pod in [old, new].into_iter().flatten() {
            covering(&budgets, pod).for_each(|budget| own.add(key_of(&budget)));
        }
    });
    let stale: Queue<Key> = Queue::new(&term, &ambient);
    let own = stale.clone();
    informers.pods.on_change(move |_, new| {
        if let Some(pod) = new.filter(|pod| pod.targeted.is_some() && !pod.deleting) {
            own.add(pod.key());
        }
    });
    if !informers.budgets.synced().await || !informers.pods.synced().await {
        return Ok(());
    }
    let recorder = Recorder::start(client.clone(), "controllermanager", &term, &ambient);
    let controller = Controller { client, term, ambient, informers, recorder };
    let counting = work::run(&queue, WORKERS, |key| controller.budget(key));
    let calling_off = work::run(&stale, 1, |key| controller.call_off(key));
    futures::future::join(counting, calling_off).await;
    Ok(())
}

fn key_of(budget: &PodDisruptionBudget) -> Key {
    Key::new(namespace(budget), name(budget))
}

/// The budgets that cover a pod.
fn covering(budgets: &Informer<PodDisruptionBudget>, pod: &PodView) -> impl Iterator<Item = Arc<PodDisruptionBudget>> {
    let own = budgets.in_namespace(&pod.namespace).into_iter();
    own.filter(|budget| selector(budget).is_some_and(|selector| selector.matches(&pod.labels)))
}

/// Whom a budget covers; nobody without a selector, all with an empty one.
fn selector(budget: &PodDisruptionBudget) -> Option<LabelSelector> {
    let selector = budget.spec.as_ref()?.selector.as_ref()?;
    LabelSelector::from_json(&json!(selector)).ok()
}

struct Controller {
    client: Client,
    term: Term,
    ambient: Ambient,
    informers: Informers,
    recorder: Recorder,
}

impl Controller {
    /// Counts one budget, and writes its status where that differs.
    async fn budget(&self, key: Key) -> Result<Outcome, Stop> {
        let Some(budget) = self.informers.budgets.get(&key.namespace, &key.name) else { return Ok(Outcome::Done) };
        let selector = selector(&budget);
        let mut pods = self.informers.pods.in_namespace(&key.namespace);
        pods.retain(|pod| selector.as_ref().is_some_and(|selector| selector.matches(&pod.labels)));
        let about = reference(&*budget);
        if pods.is_empty() {
            self.recorder.event(&about, Level::Normal, "NoPods", "No matching pods found");
        }
        let now = self.ambient.now();
        let count = match self.expected(&budget, &pods).await? {
            Ok(expected) => {
                if expected.unmanaged {
                    self.recorder.event(&about, Level::Warning, "UnmanagedPods", UNMANAGED);
                }
                count::count(&budget, &pods, &expected, now)
            }
            Err(why) => {
                let message = format!("Failed to calculate the number of expected pods: {why}");
                self.recorder.event(&about, Level::Warning, "CalculateExpectedPodCountFailed", message);
                count::failed(&budget, &why, now)
            }
        };
        for pod in &count.stayed {
            let message = format!("Pod was expected by PDB {}/{} to be deleted but it wasn't", key.namespace, key.name);
            if let Some(pod) = pods.iter().find(|p| p.name == *pod) {
                self.recorder.event(&pod.reference(), Level::Warning, "NotDeleted", message);
            }
        }
        self.write(&budget, count).await
    }

    async fn write(&self, budget: &PodDisruptionBudget, count: Count) -> Result<Outcome, Stop> {
        let after = count.again.map_or(Outcome::Done, Outcome::After);
        if budget.status.as_ref() == Some(&count.status) {
            return Ok(after);
        }
        let api: Api<PodDisruptionBudget> = Api::namespaced(self.client.clone(), namespace(budget));
        let new = PodDisruptionBudget { status: Some(count.status), ..budget.clone() };
        match call_opt(&self.term, api.replace_status(name(budget), &PostParams::default(), &new)).await {
            // An eviction, or another spec, was quicker.
            Err(stop) if stop.code() == Some(409) => Ok(Outcome::Retry),
            other => other.map(|_| after),
        }
    }

    /// How many pods there should be, by what controls them; or why that cannot be said.
    async fn expected(
        &self,
        budget: &PodDisruptionBudget,
        pods: &[Arc<PodView>],
    ) -> Result<Result<Expected, String>, Stop> {
        if !count::needs_scale(budget) {
            return Ok(Ok(Expected { pods: i32::try_from(pods.len()).unwrap_or(i32::MAX), unmanaged: false }));
        }
        let mut scales = std::collections::BTreeMap::new();
        let mut unmanaged = false;
        for pod in pods {
            let Some(owner) = &pod.controller else {
                unmanaged = true;
                continue;
            };
            if scales.contains_key(&owner.uid) {
                continue;
            }
            match self.scale(&pod.namespace, owner).await? {
                Ok((uid, replicas)) => {
                    // By the pods' own controller, too: it is not asked for again.
                    scales.insert(owner.uid.clone(), 0);
                    scales.insert(uid, replicas);
                }
                Err(why) => return Ok(Err(format!("{why} for pod {:?}", pod.name))),
            }
        }
        Ok(Ok(Expected { pods: scales.values().sum(), unmanaged }))
    }

    /// Uid and replicas of what decides how many pods there are: a ReplicaSet's Deployment, else the controller itself.
    async fn scale(&self, space: &str, owner: &OwnerReference) -> Result<Result<(String, i32), String>, Stop> {
        let is_replica_set = owner.kind == "ReplicaSet" && owner.api_version.starts_with("apps/");
        let above = if is_replica_set {
            let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), space);
            let found = call_opt(&self.term, api.get(&owner.name)).await?;
            let owners = found.and_then(|set| set.metadata.owner_references).unwrap_or_default();
            owners.into_iter().find(|above| above.controller == Some(true) && above.kind == "Deployment")
        } else {
            None
        };
        let owner = above.as_ref().unwrap_or(owner);
        let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
        let kind = GroupVersionKind::gvk(group, version, &owner.kind);
        let none = || format!("found no controllers of kind {} and name {:?}", owner.kind, owner.name);
        let Some((resource, _)) = call_opt(&self.term, kube::discovery::pinned_kind(&self.client, &kind)).await? else {
            return Ok(Err(none()));
        };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), space, &resource);
        let Some(scale) = call_opt(&self.term, api.get_scale(&owner.name)).await? else {
            return Ok(Err(format!("{} (a kind without the subresource scale, or one that is gone)", none())));
        };
        if scale.metadata.uid.as_deref().is_some_and(|uid| uid != owner.uid) {
            return Ok(Err(none()));
        }
        Ok(Ok((owner.uid.clone(), scale.spec.and_then(|spec| spec.replicas).unwrap_or(0))))
    }

    /// A pod that was to be disturbed and is still there is not any more, after a while.
    async fn call_off(&self, key: Key) -> Result<Outcome, Stop> {
        let Some(pod) = self.informers.pods.get(&key.namespace, &key.name) else { return Ok(Outcome::Done) };
        let Some(since) = pod.targeted.filter(|_| !pod.deleting && !pod.is_over()) else { return Ok(Outcome::Done) };
        let now = self.ambient.now();
        let age = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        if age < STALE {
            return Ok(Outcome::After(STALE - age));
        }
        let condition = json!({"type": "DisruptionTarget", "status": "False", "lastTransitionTime": Time(now)});
        let patch = Patch::Strategic(json!({"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}}));
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        call_opt(&self.term, pods.patch_status(&pod.name, &PatchParams::default(), &patch)).await?;
        Ok(Outcome::Done)
    }
}

/// Upstream's words.
const UNMANAGED: &str = "Pods selected by this PodDisruptionBudget were found to be unmanaged. As a result, the status of \
     the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \
     \".spec.minAvailable\" field of the PDB to an integer value.";
