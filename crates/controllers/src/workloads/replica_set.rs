//! Replica sets: as many pods as were asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use ambient::Ambient;
use futures::future::join_all;
use kube::Client;
use kube::api::PropagationPolicy;
use kube::core::SelectorExt;
use serde_json::{Value, json};
use workloads::replica_set::{Observed, Plan, Status, plan};
use workloads::{Event, Pod};

use super::calls::{PODS, why};
use super::project::{Meta, SetView, counter, written};
use super::{CATCH_UP, Driver, Informers, controls, settled};
use crate::Term;
use crate::informer::Key;
use crate::queue::{Outcome, Queue};
use crate::work::Stop;

/// Runs until the term ends and its requests are settled.
pub async fn run(client: Client, term: Term, ambient: Ambient, informers: Informers) -> kube::Result<()> {
    let driver = Driver::new(ReplicaSets, "replicaset-controller", client, term, ambient, informers);
    let Informers { sets, pods, .. } = &driver.informers;
    if sets.synced().await && pods.synced().await {
        driver.run(|queue| driver.listen(queue), |key| driver.sync(key)).await;
    }
    Ok(())
}

/// Looks after replica sets.
struct ReplicaSets;

impl Driver<ReplicaSets> {
    fn listen(&self, queue: &Queue<Key>) {
        let own = queue.clone();
        self.informers.sets.on_change(move |old, new| {
            if let Some(view) = new.or(old) {
                own.add(view.meta.key());
            }
        });
        let (queue, sets) = (queue.clone(), self.informers.sets.clone());
        self.informers.pods.on_change(move |old, new| {
            for view in [old, new].into_iter().flatten() {
                match &view.meta.owner {
                    Some(owner) => {
                        let found = sets.get(&view.meta.namespace, &owner.name);
                        if found.is_some_and(|set| controls(owner, "ReplicaSet", &set.meta)) {
                            queue.add(Key::new(&view.meta.namespace, &owner.name));
                        }
                    }
                    None => {
                        let sets = sets.in_namespace(&view.meta.namespace).into_iter();
                        sets.filter(|s| s.selector.matches(&view.meta.labels)).for_each(|s| queue.add(s.meta.key()));
                    }
                }
            }
        });
    }

    async fn sync(&self, key: Key) -> Result<Outcome, Stop> {
        let Some(view) = self.informers.sets.get(&key.namespace, &key.name) else {
            self.ledger.forget(&key);
            return Ok(Outcome::Done);
        };
        let pods = &self.informers.pods;
        let stays = |name: &str, uid: &str| {
            pods.get(&key.namespace, name).is_some_and(|pod| pod.meta.uid == uid && !pod.meta.deleting)
        };
        if !self.ledger.is_caught_up(&key, self.informers.sets.revision(), pods.revision(), stays) {
            return Ok(Outcome::After(CATCH_UP));
        }
        let (observed, now) = (self.observe(&view), self.ambient.now().as_millisecond());
        let plan = plan(&observed, now);
        if !plan.adopt.is_empty() && !self.caller.may_adopt(&view.meta).await? {
            return Ok(Outcome::Retry);
        }
        for (name, uid) in &plan.adopt {
            self.ledger.child(&key, self.caller.adopt(&view.meta, PODS, (name, uid), &[]).await?);
        }
        for (name, uid) in &plan.release {
            self.ledger.child(&key, self.caller.release(&view.meta, PODS, (name, uid), &[]).await?);
        }
        let failure = self.carry_out(&view, &key, &plan).await;
        let status = plan.status_after(failure.as_deref(), now);
        if status != observed.set.status {
            self.ledger.own(&key, self.caller.write_status(&view.meta, 0, render(&status)).await?);
        }
        Ok(if failure.is_some() { Outcome::Retry } else { settled(plan.look_again, now) })
    }

    /// The set with its pods, and how many like them each node has.
    fn observe(&self, view: &SetView) -> Observed {
        let labels = view.template["metadata"]["labels"].as_object();
        let mut pods = self.informers.pods_of(&view.meta, &view.selector);
        for pod in &mut pods {
            let seen = self.informers.pods.get(&view.meta.namespace, &pod.name);
            let has = |key: &String, value: &Value| {
                seen.as_ref().is_some_and(|seen| seen.meta.labels.get(key).map(String::as_str) == value.as_str())
            };
            pod.fully_labeled = labels.into_iter().flatten().all(|(key, value)| has(key, value));
        }
        Observed { neighbours: self.neighbours(view, &pods), set: view.set.clone(), pods }
    }

    /// Active pods by node, of the set and its siblings; only where pods are to be chosen.
    fn neighbours(&self, view: &SetView, pods: &[Pod]) -> BTreeMap<String, i32> {
        let mut found = BTreeMap::new();
        let active = pods.iter().filter(|pod| pod.is_active()).count();
        if usize::try_from(view.set.replicas).is_ok_and(|wanted| active <= wanted) {
            return found;
        }
        let siblings: Vec<Arc<SetView>> = match &view.meta.owner {
            Some(owner) => self.informers.sets.by_index(&format!("owner:{}", owner.uid)),
            None => self.informers.sets.get(&view.meta.namespace, &view.meta.name).into_iter().collect(),
        };
        for set in siblings {
            for pod in self.informers.pods.by_index(&format!("owner:{}", set.meta.uid)) {
                if pod.pod.is_active() {
                    *found.entry(pod.pod.node.clone()).or_insert(0) += 1;
                }
            }
        }
        found
    }

    /// Makes and deletes pods; what the first failing call said, if one failed.
    async fn carry_out(&self, view: &SetView, key: &Key, plan: &Plan) -> Option<String> {
        let bodies = (0..plan.create).map(|_| body(&view.meta, &view.template)).collect();
        let made = self.create_pods(&view.meta, key, bodies).await;
        if let Err((_, why)) = made {
            return Some(why);
        }
        let gone = plan.delete.iter().map(|(name, uid)| self.delete_pod(&view.meta, key, name, uid));
        join_all(gone).await.into_iter().find_map(Result::err)
    }
}

impl<K> Driver<K> {
    /// Makes pods, a few at first and twice as many each time, until a round fails: then the others would fail, too.
    /// Fails with how many were not made, and what the first failing call said.
    pub(super) async fn create_pods(&self, meta: &Meta, key: &Key, bodies: Vec<Value>) -> Result<(), (usize, String)> {
        let (mut left, mut round) = (bodies, 1);
        while !left.is_empty() {
            let rest = left.split_off(round.min(left.len()));
            let made = join_all(left.into_iter().map(|body| self.caller.create(PODS, &meta.namespace, body))).await;
            let (mut failed, mut first) = (0, None);
            for answer in made {
                match answer {
                    Ok(pod) => {
                        self.ledger.child(key, pod.version);
                        self.tell(meta, &Event::normal("SuccessfulCreate", format!("Created pod: {}", pod.name)));
                    }
                    Err(stop) => {
                        let why = why(&stop);
                        self.tell(meta, &Event::warning("FailedCreate", format!("Error creating: {why}")));
                        failed += 1;
                        first.get_or_insert(why);
                    }
                }
            }
            if let Some(why) = first {
                return Err((failed + rest.len(), why));
            }
            (left, round) = (rest, round * 2);
        }
        Ok(())
    }

    /// Deletes a pod, with its time to end; fails with what the server said.
    pub(super) async fn delete_pod(&self, meta: &Meta, key: &Key, name: &str, uid: &str) -> Result<(), String> {
        match self.caller.delete(PODS, &meta.namespace, (name, uid, 0), PropagationPolicy::Background).await {
            Ok(()) => {
                self.ledger.deleted(key, name, uid);
                self.tell(meta, &Event::normal("SuccessfulDelete", format!("Deleted pod: {name}")));
                Ok(())
            }
            Err(stop) => {
                let why = why(&stop);
                self.tell(meta, &Event::warning("FailedDelete", format!("Error deleting: {why}")));
                Err(why)
            }
        }
    }
}

/// A pod of a template, controlled by an object; the server completes its name.
pub(super) fn body(meta: &Meta, template: &Value) -> Value {
    let mut pod = json!({"metadata": {"generateName": format!("{}-", meta.name), "namespace": meta.namespace,
        "ownerReferences": [meta.as_owner()]}, "spec": template["spec"]});
    for field in ["labels", "annotations", "finalizers"] {
        if !template["metadata"][field].is_null() {
            pod["metadata"][field] = template["metadata"][field].clone();
        }
    }
    pod
}

/// The status as a patch.
fn render(status: &Status) -> Value {
    json!({
        "observedGeneration": status.observed_generation,
        "replicas": status.replicas,
        "fullyLabeledReplicas": counter(status.fully_labeled),
        "readyReplicas": counter(status.ready),
        "availableReplicas": counter(status.available),
        "terminatingReplicas": status.terminating,
        "conditions": if status.conditions.is_empty() { Value::Null } else { written(&status.conditions, None) },
    })
}
