//! Jobs: pods that run to their end, each counted once.

use ambient::Ambient;
use kube::Client;
use kube::core::SelectorExt;
use serde_json::{Value, json};
use workloads::job::{Observed, Plan, Status, TRACKING, plan};

use super::calls::PODS;
use super::project::{COMPLETION_INDEX, JobView, Meta, counter, time_text, written};
use super::replica_set;
use super::{CATCH_UP, Driver, Informers, settled};
use crate::Term;
use crate::informer::Key;
use crate::queue::{Outcome, Queue};
use crate::work::Stop;

/// Variable of a container: its pod's completion index.
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";

/// Runs until the term ends and its requests are settled.
pub async fn run(client: Client, term: Term, ambient: Ambient, informers: Informers) -> kube::Result<()> {
    let driver = Driver::new(Jobs, "job-controller", client, term, ambient, informers);
    let Informers { jobs, pods, .. } = &driver.informers;
    if jobs.synced().await && pods.synced().await {
        driver.run(|queue| driver.listen(queue), |key| driver.sync(key)).await;
    }
    Ok(())
}

/// Looks after jobs.
struct Jobs;

impl Driver<Jobs> {
    fn listen(&self, queue: &Queue<Key>) {
        let own = queue.clone();
        self.informers.jobs.on_change(move |old, new| {
            if let Some(view) = new.or(old) {
                own.add(view.meta.key());
            }
        });
        let (queue, jobs) = (queue.clone(), self.informers.jobs.clone());
        self.informers.pods.on_change(move |old, new| {
            for view in [old, new].into_iter().flatten() {
                match &view.meta.owner {
                    // Also where that job is gone: then the pod is not to be held.
                    Some(owner) if owner.kind == "Job" => queue.add(Key::new(&view.meta.namespace, &owner.name)),
                    Some(_) => {}
                    None => {
                        let jobs = jobs.in_namespace(&view.meta.namespace).into_iter();
                        jobs.filter(|j| j.selector.matches(&view.meta.labels)).for_each(|j| queue.add(j.meta.key()));
                    }
                }
            }
        });
    }

    async fn sync(&self, key: Key) -> Result<Outcome, Stop> {
        let view = self.informers.jobs.get(&key.namespace, &key.name);
        self.let_go_of_strangers(&key, view.as_ref().map(|view| &view.meta)).await?;
        let Some(view) = view else {
            self.ledger.forget(&key);
            return Ok(Outcome::Done);
        };
        let pods = &self.informers.pods;
        let stays = |name: &str, uid: &str| {
            pods.get(&key.namespace, name).is_some_and(|pod| pod.meta.uid == uid && !pod.meta.deleting)
        };
        if !self.ledger.is_caught_up(&key, self.informers.jobs.revision(), pods.revision(), stays) {
            return Ok(Outcome::After(CATCH_UP));
        }
        if !view.ours {
            return Ok(Outcome::Done);
        }
        let pods = self.informers.pods_of(&view.meta, &view.selector);
        let (observed, now) = (Observed { job: view.job.clone(), pods }, self.ambient.now().as_millisecond());
        let plan = plan(&observed, now);
        if !plan.adopt.is_empty() && !self.caller.may_adopt(&view.meta).await? {
            return Ok(Outcome::Retry);
        }
        let all_made = self.carry_out(&view, &key, plan.clone()).await?;
        Ok(if all_made { settled(plan.look_again, now) } else { Outcome::Retry })
    }

    /// Pods whose job is gone, or has made place for another of its name, are not held.
    async fn let_go_of_strangers(&self, key: &Key, job: Option<&Meta>) -> Result<(), Stop> {
        for pod in self.informers.pods.by_index(&format!("job:{}/{}", key.namespace, key.name)) {
            let of_job = pod.meta.owner.as_ref().is_some_and(|owner| job.is_some_and(|job| owner.uid == job.uid));
            if pod.pod.tracked && !of_job {
                self.caller.unhold(&key.namespace, (&pod.meta.name, &pod.meta.uid), TRACKING).await?;
            }
        }
        Ok(())
    }

    /// Makes the calls of a plan in their order; tells whether all pods were made.
    async fn carry_out(&self, view: &JobView, key: &Key, mut plan: Plan) -> Result<bool, Stop> {
        let (caller, ledger, meta) = (&self.caller, &self.ledger, &view.meta);
        for (name, uid) in &plan.adopt {
            ledger.child(key, caller.adopt(meta, PODS, (name, uid), &[TRACKING]).await?);
        }
        for (name, uid) in &plan.release {
            ledger.child(key, caller.release(meta, PODS, (name, uid), &[TRACKING]).await?);
        }
        for (name, uid) in &plan.drop {
            ledger.child(key, caller.unhold(&meta.namespace, (name, uid), TRACKING).await?);
        }
        let mut whole = true;
        for (name, uid) in plan.drop.iter().chain(&plan.delete) {
            whole &= self.delete_pod(meta, key, name, uid).await.is_ok();
        }
        let bodies = plan.create.iter().map(|index| body(view, *index)).collect();
        if let Err((lacking, _)) = self.create_pods(meta, key, bodies).await {
            plan.status.active -= i32::try_from(lacking).unwrap_or(i32::MAX);
            whole = false;
        }
        if plan.status != view.job.status {
            // At the version that was seen: what is counted here was not counted there.
            ledger.own(key, caller.write_status(meta, meta.version, render(&plan.status)).await?);
        }
        plan.events.iter().for_each(|event| self.tell(meta, event));
        for (name, uid) in &plan.untrack {
            ledger.child(key, caller.unhold(&meta.namespace, (name, uid), TRACKING).await?);
        }
        Ok(whole)
    }
}

/// A pod of the job; of an indexed one with its index.
fn body(view: &JobView, index: Option<i32>) -> Value {
    let mut pod = replica_set::body(&view.meta, &view.template);
    let mut finalizers = pod["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    if !finalizers.iter().any(|finalizer| finalizer == TRACKING) {
        finalizers.push(TRACKING.into());
    }
    pod["metadata"]["finalizers"] = finalizers.into();
    let Some(index) = index else { return pod };
    pod["metadata"]["generateName"] = format!("{}-{index}-", view.meta.name).into();
    pod["metadata"]["annotations"][COMPLETION_INDEX] = index.to_string().into();
    pod["metadata"]["labels"][COMPLETION_INDEX] = index.to_string().into();
    pod["spec"]["hostname"] = format!("{}-{index}", view.meta.name).into();
    let source = json!({"fieldRef": {"fieldPath": format!("metadata.labels['{COMPLETION_INDEX}']")}});
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            let mut env = container["env"].as_array().cloned().unwrap_or_default();
            if !env.iter().any(|variable| variable["name"] == INDEX_VARIABLE) {
                env.push(json!({"name": INDEX_VARIABLE, "valueFrom": source}));
                container["env"] = env.into();
            }
        }
    }
    pod
}

/// The status as a patch.
fn render(status: &Status) -> Value {
    let list = |uids: &[String]| if uids.is_empty() { Value::Null } else { json!(uids) };
    let text = |text: &str| if text.is_empty() { Value::Null } else { text.into() };
    let conditions =
        if status.conditions.is_empty() { Value::Null } else { written(&status.conditions, Some("lastProbeTime")) };
    json!({
        "conditions": conditions,
        "startTime": status.start.map(time_text),
        "completionTime": status.completion.map(time_text),
        "active": counter(status.active),
        "ready": status.ready,
        "terminating": status.terminating,
        "succeeded": counter(status.succeeded),
        "failed": counter(status.failed),
        "completedIndexes": text(&status.completed_indexes),
        "uncountedTerminatedPods": {
            "succeeded": list(&status.uncounted_succeeded),
            "failed": list(&status.uncounted_failed),
        },
    })
}
