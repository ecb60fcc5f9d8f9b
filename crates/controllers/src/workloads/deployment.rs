//! Deployments: replica sets, and how many pods each shall have.

use ambient::Ambient;
use kube::Client;
use kube::api::PropagationPolicy;
use kube::core::SelectorExt;
use serde_json::{Value, json};
use workloads::HASH_LABEL;
use workloads::deployment::{Act, NewSet, Observed, REVISION, Set, Status, after_collision, after_failed_create, plan};

use super::calls::{DEPLOYMENTS, SETS, why};
use super::project::{DeploymentView, PodView, SetView, comparable, counter, written};
use super::{CATCH_UP, Driver, Informers, controls, settled};
use crate::Term;
use crate::informer::Key;
use crate::queue::{Outcome, Queue};
use crate::work::Stop;

/// Runs until the term ends and its requests are settled.
pub async fn run(client: Client, term: Term, ambient: Ambient, informers: Informers) -> kube::Result<()> {
    let driver = Driver::new(Deployments, "deployment-controller", client, term, ambient, informers);
    let Informers { deployments, sets, pods, .. } = &driver.informers;
    if deployments.synced().await && sets.synced().await && pods.synced().await {
        driver.run(|queue| driver.listen(queue), |key| driver.sync(key)).await;
    }
    Ok(())
}

/// Looks after deployments.
struct Deployments;

/// How one step went.
enum Went {
    /// As planned: the next may follow.
    On,
    /// The plan is of no use any more.
    Anew,
}

impl Driver<Deployments> {
    fn listen(&self, queue: &Queue<Key>) {
        let own = queue.clone();
        self.informers.deployments.on_change(move |old, new| {
            if let Some(view) = new.or(old) {
                own.add(view.meta.key());
            }
        });
        let (of_sets, deployments) = (queue.clone(), self.informers.deployments.clone());
        let for_set = move |set: &SetView| match &set.meta.owner {
            Some(owner) => {
                let found = deployments.get(&set.meta.namespace, &owner.name);
                if found.is_some_and(|deployment| controls(owner, "Deployment", &deployment.meta)) {
                    of_sets.add(Key::new(&set.meta.namespace, &owner.name));
                }
            }
            None => {
                let all = deployments.in_namespace(&set.meta.namespace).into_iter();
                all.filter(|d| d.selector.matches(&set.meta.labels)).for_each(|d| of_sets.add(d.meta.key()));
            }
        };
        let of_pods = for_set.clone();
        self.informers.sets.on_change(move |old, new| {
            [old, new].into_iter().flatten().for_each(|set| for_set(set));
        });
        // Where all old pods go first, the last one's end is what is waited for.
        let sets = self.informers.sets.clone();
        self.informers.pods.on_change(move |old, new| {
            let ended = |pod: &PodView| pod.pod.is_over();
            let (Some(old), true) = (old, new.is_none_or(|new| ended(new))) else { return };
            let owner = old.meta.owner.as_ref().filter(|owner| owner.kind == "ReplicaSet");
            if let Some(set) = owner.and_then(|owner| sets.get(&old.meta.namespace, &owner.name)) {
                of_pods(&set);
            }
        });
    }

    async fn sync(&self, key: Key) -> Result<Outcome, Stop> {
        let Some(view) = self.informers.deployments.get(&key.namespace, &key.name) else {
            self.ledger.forget(&key);
            return Ok(Outcome::Done);
        };
        let Informers { deployments, sets, .. } = &self.informers;
        let stays = |name: &str, uid: &str| {
            sets.get(&key.namespace, name).is_some_and(|set| set.meta.uid == uid && !set.meta.deleting)
        };
        if !self.ledger.is_caught_up(&key, deployments.revision(), sets.revision(), stays) {
            return Ok(Outcome::After(CATCH_UP));
        }
        let (observed, now) = (self.observe(&view), self.ambient.now().as_millisecond());
        let plan = plan(&observed, now);
        let adopts = plan.steps.iter().any(|step| matches!(step.act, Act::Adopt { .. }));
        if adopts && !self.caller.may_adopt(&view.meta).await? {
            return Ok(Outcome::Retry);
        }
        for step in &plan.steps {
            match self.carry_out(&view, &key, &step.act).await? {
                Went::On => step.events.iter().for_each(|event| self.tell(&view.meta, event)),
                Went::Anew => return Ok(Outcome::Retry),
            }
        }
        Ok(settled(plan.look_again, now))
    }

    fn observe(&self, view: &DeploymentView) -> Observed {
        let own = self.informers.sets.by_index(&format!("owner:{}", view.meta.uid));
        let orphans = self.informers.sets.by_index(&format!("orphan:{}", view.meta.namespace));
        let orphans = orphans.into_iter().filter(|set| view.selector.matches(&set.meta.labels));
        let seen = own.into_iter().chain(orphans).map(|set| self.seen(view, &set));
        Observed { deployment: view.deployment.clone(), sets: seen.collect() }
    }

    /// A set as the planner sees it.
    fn seen(&self, view: &DeploymentView, set: &SetView) -> Set {
        let (meta, status) = (&set.meta, &set.set.status);
        let pods = self.informers.pods.by_index(&format!("owner:{}", meta.uid));
        let failure = status.conditions.iter().find(|c| c.kind == workloads::replica_set::REPLICA_FAILURE);
        Set {
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            version: meta.version,
            owned: meta.owner.is_some(),
            matches: view.selector.matches(&meta.labels),
            deleting: meta.deleting,
            created: meta.created,
            generation: meta.generation,
            annotations: meta.annotations.clone(),
            replicas: set.set.replicas,
            min_ready_seconds: set.set.min_ready_seconds,
            template: comparable(&set.template),
            observed_generation: status.observed_generation,
            present: status.replicas,
            ready: status.ready,
            available: status.available,
            terminating: status.terminating,
            failure: failure.map(|c| (c.reason.clone(), c.message.clone())),
            alive: i32::try_from(pods.iter().filter(|pod| !pod.pod.is_over()).count()).unwrap_or(i32::MAX),
        }
    }

    async fn carry_out(&self, view: &DeploymentView, key: &Key, act: &Act) -> Result<Went, Stop> {
        let (caller, ledger, space) = (&self.caller, &self.ledger, view.meta.namespace.as_str());
        match act {
            Act::Adopt { name, uid } => {
                ledger.child(key, caller.adopt(&view.meta, SETS, (name, uid), &[]).await?);
            }
            Act::Release { name, uid } => {
                ledger.child(key, caller.release(&view.meta, SETS, (name, uid), &[]).await?);
            }
            Act::Create(new) => return self.create(view, key, new).await,
            Act::Update { name, uid, version, replicas, min_ready_seconds, annotations } => {
                let spec = json!({"replicas": replicas, "minReadySeconds": counter(*min_ready_seconds)});
                let patch = json!({"metadata": {"annotations": annotations}, "spec": spec});
                match caller.merge(SETS, space, (name, uid, *version), patch).await {
                    Ok(version) => ledger.child(key, version),
                    // Somebody was faster; the next look sees it.
                    Err(stop) if matches!(stop.code(), Some(404 | 409)) => return Ok(Went::Anew),
                    Err(stop) => return Err(stop),
                }
            }
            Act::Delete { name, uid, version } => {
                let gone = caller.delete(SETS, space, (name, uid, *version), PropagationPolicy::Background).await;
                match gone {
                    Ok(()) => ledger.deleted(key, name, uid),
                    Err(stop) if stop.code() == Some(409) => return Ok(Went::Anew),
                    Err(stop) => return Err(stop),
                }
            }
            Act::NoteRevision(number) => {
                let patch = json!({"metadata": {"annotations": {REVISION: number}}});
                let at = (view.meta.name.as_str(), view.meta.uid.as_str(), 0);
                ledger.own(key, caller.merge(DEPLOYMENTS, space, at, patch).await?);
            }
            Act::WriteStatus(status) => self.write_status(view, key, status).await?,
        }
        Ok(Went::On)
    }

    /// Makes the set of the present template. Where one of its name is there already it is that set, seen late, or
    /// another template's: then the next name will differ.
    async fn create(&self, view: &DeploymentView, key: &Key, new: &NewSet) -> Result<Went, Stop> {
        let stop = match self.caller.create(SETS, &view.meta.namespace, body(view, new)).await {
            Ok(set) => {
                self.ledger.child(key, set.version);
                return Ok(Went::On);
            }
            Err(Stop::Over) => return Err(Stop::Over),
            Err(stop) => stop,
        };
        if stop.code() == Some(409) {
            let found = self.caller.read(SETS, &view.meta.namespace, &new.name).await?.unwrap_or_default();
            let owners = found["metadata"]["ownerReferences"].as_array().into_iter().flatten();
            let own = owners.into_iter().any(|o| o["controller"] == true && o["uid"] == view.meta.uid.as_str());
            if !own || comparable(&found["spec"]["template"]) != view.deployment.template {
                self.write_status(view, key, &after_collision(&view.deployment)).await?;
            }
            return Ok(Went::Anew);
        }
        let now = self.ambient.now().as_millisecond();
        let (status, event) = after_failed_create(&view.deployment, &new.name, &why(&stop), now);
        self.tell(&view.meta, &event);
        if status != view.deployment.status {
            self.write_status(view, key, &status).await?;
        }
        Err(stop)
    }

    async fn write_status(&self, view: &DeploymentView, key: &Key, status: &Status) -> Result<(), Stop> {
        self.ledger.own(key, self.caller.write_status(&view.meta, 0, render(status)).await?);
        Ok(())
    }
}

/// The set of the present template.
fn body(view: &DeploymentView, new: &NewSet) -> Value {
    let (mut template, mut selector) = (view.template.clone(), view.raw_selector.clone());
    template["metadata"]["labels"][HASH_LABEL] = new.hash.as_str().into();
    selector["matchLabels"][HASH_LABEL] = new.hash.as_str().into();
    json!({
        "metadata": {"name": new.name, "namespace": view.meta.namespace, "labels": template["metadata"]["labels"],
            "annotations": new.annotations, "ownerReferences": [view.meta.as_owner()]},
        "spec": {"replicas": new.replicas, "minReadySeconds": view.deployment.min_ready_seconds,
            "selector": selector, "template": template},
    })
}

/// The status as a patch.
fn render(status: &Status) -> Value {
    json!({
        "observedGeneration": status.observed_generation,
        "replicas": counter(status.replicas),
        "updatedReplicas": counter(status.updated),
        "readyReplicas": counter(status.ready),
        "availableReplicas": counter(status.available),
        "unavailableReplicas": counter(status.unavailable),
        "terminatingReplicas": status.terminating,
        "collisionCount": status.collision_count,
        "conditions": written(&status.conditions, Some("lastUpdateTime")),
    })
}
