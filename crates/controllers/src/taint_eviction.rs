//! Pods leave nodes whose taints of effect NoExecute they do not bear, at once or when the time for which they bear them
//! is over: what upstream's taint manager does.
//!
//! Time counts from the moment this process first saw the pod under the taints, on its own monotonic clock, as it does
//! upstream. An evicted pod is deleted with its grace period; at most one is not touched by it, since the name stays
//! held until the node reports the pod gone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ambient::Ambient;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use serde_json::json;

use crate::Term;
use crate::events::{Level, Recorder};
use crate::informer::Key;
use crate::informers::{Informers, PodView};
use crate::queue::{Outcome, Queue};
use crate::scheduler::terms::tolerates;
use crate::work::{self, Stop, call_opt, name};

/// Pods that are worked on at a time.
const WORKERS: usize = 4;

/// Runs until the term ends and its requests are settled.
pub async fn run(client: Client, term: Term, ambient: Ambient, informers: Informers) -> kube::Result<()> {
    let queue: Queue<Key> = Queue::new(&term, &ambient);
    let own = queue.clone();
    informers.pods.on_change(move |old, new| {
        if let Some(pod) = new.or(old).filter(|pod| pod.node.is_some()) {
            own.add(pod.key());
        }
    });
    let (own, pods) = (queue.clone(), informers.pods.clone());
    informers.nodes.on_change(move |old, new| {
        let taints = |node: Option<&Arc<Node>>| node.map(|node| driving(node)).unwrap_or_default();
        if let Some(node) = new.or(old)
            && taints(old) != taints(new)
        {
            pods.by_index(&format!("node:{}", name(&**node))).iter().for_each(|pod| own.add(pod.key()));
        }
    });
    if !informers.pods.synced().await || !informers.nodes.synced().await {
        return Ok(());
    }
    let recorder = Recorder::start(client.clone(), "taint-eviction-controller", &term, &ambient);
    let controller = Controller { client, term, ambient, informers, recorder, since: Mutex::default() };
    work::run(&queue, WORKERS, |key| controller.pod(key)).await;
    Ok(())
}

struct Controller {
    client: Client,
    term: Term,
    ambient: Ambient,
    informers: Informers,
    recorder: Recorder,
    /// Since when pods bear taints for a time only, by their keys: uid and moment.
    since: Mutex<HashMap<Key, (String, Duration)>>,
}

impl Controller {
    async fn pod(&self, key: Key) -> Result<Outcome, Stop> {
        let pod = self.informers.pods.get(&key.namespace, &key.name).filter(|pod| !pod.deleting && !pod.is_over());
        let taints = pod.as_ref().and_then(|pod| self.informers.nodes.get("", pod.node.as_deref()?));
        let taints = taints.map(|node| driving(&node)).unwrap_or_default();
        let bears = pod.as_ref().map_or(Stay::Forever, |pod| stay(&pod.needs.tolerations, &taints));
        let (Some(pod), Stay::For(time)) = (&pod, bears) else {
            let waited = self.lock().remove(&key).is_some();
            if let Some(pod) = pod.filter(|_| waited) {
                let message = format!("Cancelling deletion of Pod {}/{}", key.namespace, key.name);
                self.recorder.event(&pod.reference(), Level::Normal, "TaintManagerEviction", message);
            }
            return Ok(Outcome::Done);
        };
        let now = self.ambient.boottime();
        let since = {
            let mut since = self.lock();
            let entry = since.entry(key.clone()).or_insert_with(|| (pod.uid.clone(), now));
            if entry.0 != pod.uid {
                *entry = (pod.uid.clone(), now);
            }
            entry.1
        };
        let left = (since + time).saturating_sub(now);
        if !left.is_zero() {
            return Ok(Outcome::After(left));
        }
        self.evict(pod).await?;
        self.lock().remove(&key);
        Ok(Outcome::Done)
    }

    /// Says why, then deletes.
    async fn evict(&self, pod: &PodView) -> Result<(), Stop> {
        let message = format!("Marking for deletion Pod {}/{}", pod.namespace, pod.name);
        self.recorder.event(&pod.reference(), Level::Normal, "TaintManagerEviction", message);
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
            "lastTransitionTime": Time(self.ambient.now())});
        let patch = Patch::Strategic(json!({"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}}));
        call_opt(&self.term, pods.patch_status(&pod.name, &PatchParams::default(), &patch)).await?;
        let preconditions = Preconditions { uid: Some(pod.uid.clone()), resource_version: None };
        let params = DeleteParams::default().preconditions(preconditions);
        call_opt(&self.term, pods.delete(&pod.name, &params)).await?;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, (String, Duration)>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a pod may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stay {
    /// It bears everything.
    Forever,
    /// It bears something for so long only, or not at all.
    For(Duration),
}

/// How long a pod bears these taints.
fn stay(tolerations: &[Toleration], taints: &[Taint]) -> Stay {
    let mut shortest: Option<Duration> = None;
    for taint in taints {
        let Some(used) = tolerations.iter().find(|toleration| tolerates(toleration, taint)) else {
            return Stay::For(Duration::ZERO);
        };
        if let Some(seconds) = used.toleration_seconds {
            let time = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            shortest = Some(shortest.map_or(time, |shortest| shortest.min(time)));
        }
    }
    shortest.map_or(Stay::Forever, Stay::For)
}

/// The taints that drive pods away.
fn driving(node: &Node) -> Vec<Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    taints.iter().filter(|taint| taint.effect == "NoExecute").cloned().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn stays(tolerations: Value, taints: &[&str]) -> Stay {
        let tolerations: Vec<Toleration> = serde_json::from_value(tolerations).expect("tolerations");
        let taint = |key: &&str| Taint { key: (*key).into(), effect: "NoExecute".into(), ..Taint::default() };
        stay(&tolerations, &taints.iter().map(taint).collect::<Vec<_>>())
    }

    #[test]
    fn the_shortest_time_counts_and_what_is_not_borne_drives_away_at_once() {
        let at_once = Stay::For(Duration::ZERO);
        assert_eq!(stays(json!([]), &[]), Stay::Forever);
        assert_eq!(stays(json!([]), &["a"]), at_once);
        let exists =
            |key: &str, seconds: Value| json!({"key": key, "operator": "Exists", "tolerationSeconds": seconds});
        assert_eq!(stays(json!([exists("a", Value::Null)]), &["a"]), Stay::Forever);
        assert_eq!(stays(json!([exists("a", Value::Null)]), &["a", "b"]), at_once);
        let both = json!([exists("a", json!(60)), exists("b", json!(30))]);
        assert_eq!(stays(both.clone(), &["a", "b"]), Stay::For(Duration::from_secs(30)));
        assert_eq!(stays(both, &["a"]), Stay::For(Duration::from_secs(60)));
        assert_eq!(stays(json!([exists("a", json!(-5))]), &["a"]), at_once);
    }
}
