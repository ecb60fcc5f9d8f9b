//! Which nodes are alive: a node whose lease is not renewed becomes Ready=Unknown, and taints follow conditions.
//!
//! A lease counts from the moment this process last saw it change, on its own monotonic clock. What the lease
//! says about time is never compared with anything: that clock is another machine's. So after a start, or
//! after leadership is gained, every node has its full time again.
//!
//! Nothing is evicted here, and no pod is moved: see DESIGN's section on at most one.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ambient::Ambient;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use crate::Term;
use crate::events::{Level, Recorder};
use crate::informers::{Informers, NODE_LEASES};
use crate::queue::{Outcome, Queue};
use crate::scheduler::ready;
use crate::work::{self, Stop, call, name, reference};

/// A lease that names no duration, and a node that has no lease yet, count this long.
const LEASE_DEFAULT: Duration = Duration::from_secs(40);
/// Beyond the lease's duration, for what a renewal takes to get here.
const MARGIN: Duration = Duration::from_secs(10);
/// Whether a node is to have a taint.
type Due = fn(&Node) -> bool;

/// The taints that are kept here, all with effect NoSchedule: key, and when a node has it.
const TAINTS: [(&str, Due); 6] = [
    ("node.kubernetes.io/not-ready", |node| ready(node) == Some("False")),
    ("node.kubernetes.io/unreachable", |node| ready(node) == Some("Unknown")),
    ("node.kubernetes.io/unschedulable", |node| node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true))),
    ("node.kubernetes.io/memory-pressure", |node| is_true(node, "MemoryPressure")),
    ("node.kubernetes.io/disk-pressure", |node| is_true(node, "DiskPressure")),
    ("node.kubernetes.io/pid-pressure", |node| is_true(node, "PIDPressure")),
];

/// Whether a condition holds.
fn is_true(node: &Node, condition: &str) -> bool {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.filter(|c| c.type_ == condition).any(|c| c.status == "True")
}

/// Runs until the term ends and its requests are settled.
pub async fn run(client: Client, term: Term, ambient: Ambient, informers: Informers) -> kube::Result<()> {
    let queue: Queue<String> = Queue::new(&term, &ambient);
    let own = queue.clone();
    informers.nodes.on_change(move |old, new| {
        if let Some(node) = new.or(old) {
            own.add(name(&**node).to_owned());
        }
    });
    let own = queue.clone();
    informers.leases.on_change(move |_, new| {
        if let Some(lease) = new {
            own.add(name(&**lease).to_owned());
        }
    });
    if !informers.nodes.synced().await || !informers.leases.synced().await {
        return Ok(());
    }
    let recorder = Recorder::start(client.clone(), "node-controller", &term, &ambient);
    let controller = Controller { client, term, ambient, informers, recorder, heard: Mutex::default() };
    work::run(&queue, 1, |node| controller.node(node)).await;
    Ok(())
}

struct Controller {
    client: Client,
    term: Term,
    ambient: Ambient,
    informers: Informers,
    recorder: Recorder,
    heard: Mutex<Heard>,
}

impl Controller {
    async fn node(&self, key: String) -> Result<Outcome, Stop> {
        let Some(node) = self.informers.nodes.get("", &key) else {
            self.lock_heard().forget(&key);
            return Ok(Outcome::Done);
        };
        let lease = self.informers.leases.get(NODE_LEASES, &key);
        let left = self.lock_heard().left(&node, lease.as_deref(), self.ambient.boottime());
        if left.is_zero() && ready(&node) != Some("Unknown") {
            // The change that this makes brings us back for the taint.
            self.lost(&node).await?;
            return Ok(Outcome::Done);
        }
        if let Some(taints) = taints(&node) {
            let nodes: Api<Node> = Api::all(self.client.clone());
            let patch = json!({
                "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
                "spec": {"taints": taints},
            });
            call(&self.term, nodes.patch(&key, &PatchParams::default(), &Patch::Merge(patch))).await?;
        }
        Ok(if left.is_zero() { Outcome::Done } else { Outcome::After(left) })
    }

    /// Says that nobody knows how the node is.
    async fn lost(&self, node: &Node) -> Result<(), Stop> {
        let now = Time(self.ambient.now());
        let conditions: Vec<_> = node
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
            .filter(|condition| condition.type_ != "Ready" && condition.type_ != "NetworkUnavailable")
            .map(|condition| condition.type_.as_str())
            .chain(["Ready"])
            .map(|kind| {
                json!({"type": kind, "status": "Unknown", "reason": "NodeStatusUnknown",
                    "message": "Kubelet stopped posting node status.", "lastTransitionTime": now})
            })
            .collect();
        let patch = json!({
            "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
            "status": {"conditions": conditions},
        });
        let nodes: Api<Node> = Api::all(self.client.clone());
        call(&self.term, nodes.patch_status(name(node), &PatchParams::default(), &Patch::Strategic(patch))).await?;
        let message = format!("Node {} status is now: NodeNotReady", name(node));
        self.recorder.event(&reference(node), Level::Normal, "NodeNotReady", message);
        Ok(())
    }

    fn lock_heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When each node was last heard of, on our own clock: its uid, its lease's version then, the time.
#[derive(Debug, Default)]
struct Heard(HashMap<String, (String, String, Duration)>);

impl Heard {
    /// How long the node's lease still lasts; zero once it has run out.
    fn left(&mut self, node: &Node, lease: Option<&Lease>, now: Duration) -> Duration {
        let node_uid = work::uid(node).to_owned();
        let version = lease.and_then(|lease| lease.metadata.resource_version.clone()).unwrap_or_default();
        let entry = self.0.entry(name(node).to_owned()).or_default();
        if (&entry.0, &entry.1) != (&node_uid, &version) {
            *entry = (node_uid, version, now);
        }
        let seconds = lease.and_then(|lease| lease.spec.as_ref()?.lease_duration_seconds);
        let lasts = seconds.and_then(|s| u64::try_from(s).ok()).map_or(LEASE_DEFAULT, Duration::from_secs);
        (entry.2 + lasts + MARGIN).saturating_sub(now)
    }

    fn forget(&mut self, node: &str) {
        self.0.remove(node);
    }
}

/// The node's taints as they should be, or `None` if they are so.
fn taints(node: &Node) -> Option<Vec<Taint>> {
    let have = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let ours = |taint: &Taint| taint.effect == "NoSchedule" && TAINTS.iter().any(|(key, _)| *key == taint.key);
    let is_due = |key: &str| TAINTS.iter().any(|(k, due)| *k == key && due(node));
    let mut wanted: Vec<Taint> = have.iter().filter(|t| !ours(t) || is_due(&t.key)).cloned().collect();
    for (key, due) in TAINTS {
        if due(node) && !wanted.iter().any(|t| t.key == key && t.effect == "NoSchedule") {
            wanted.push(Taint { key: key.into(), effect: "NoSchedule".into(), ..Taint::default() });
        }
    }
    (wanted != have).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str, taints: &[(&str, &str)]) -> Node {
        let taints: Vec<_> = taints.iter().map(|(key, effect)| json!({"key": key, "effect": effect})).collect();
        let node = json!({"metadata": {"name": "n", "uid": "u"}, "spec": {"taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        serde_json::from_value(node).expect("a node")
    }

    fn lease(version: &str, seconds: i32) -> Lease {
        // The wall time in it is far away, and must not matter.
        let lease = json!({"metadata": {"name": "n", "resourceVersion": version},
            "spec": {"leaseDurationSeconds": seconds, "renewTime": "1999-01-01T00:00:00.000000Z"}});
        serde_json::from_value(lease).expect("a lease")
    }

    #[test]
    fn a_lease_counts_from_when_it_was_last_seen_to_change() {
        let (node, mut heard) = (node("True", &[]), Heard::default());
        let at = Duration::from_secs;
        assert_eq!(heard.left(&node, Some(&lease("1", 40)), at(100)), at(50), "the full time after a start");
        assert_eq!(heard.left(&node, Some(&lease("1", 40)), at(140)), at(10));
        assert_eq!(heard.left(&node, Some(&lease("2", 40)), at(145)), at(50));
        assert_eq!(heard.left(&node, Some(&lease("2", 40)), at(195)), at(0));
        assert_eq!(heard.left(&node, None, at(200)), LEASE_DEFAULT + MARGIN, "a lease that is made anew has its time");
    }

    #[test]
    fn taints_follow_the_conditions_and_leave_others_alone() {
        let own = ("example.com/mine", "NoSchedule");
        let keys = |taints: Option<Vec<Taint>>| taints.map(|t| t.into_iter().map(|t| t.key).collect::<Vec<_>>());
        assert_eq!(keys(taints(&node("True", &[own]))), None);
        let lost = taints(&node("Unknown", &[own]));
        assert_eq!(keys(lost), Some(vec!["example.com/mine".into(), "node.kubernetes.io/unreachable".into()]));
        let back = taints(&node("True", &[("node.kubernetes.io/unreachable", "NoSchedule"), own]));
        assert_eq!(keys(back), Some(vec!["example.com/mine".into()]));
        let foreign = taints(&node("True", &[("node.kubernetes.io/unreachable", "NoExecute")]));
        assert_eq!(keys(foreign), None, "another effect is somebody else's");
        let mut short = node("True", &[("node.kubernetes.io/memory-pressure", "NoSchedule")]);
        for (kind, status) in [("DiskPressure", "True"), ("PIDPressure", "True"), ("MemoryPressure", "False")] {
            let condition = json!({"type": kind, "status": status});
            let condition = serde_json::from_value(condition).expect("a condition");
            short.status.get_or_insert_default().conditions.get_or_insert_default().push(condition);
        }
        let expected = ["node.kubernetes.io/disk-pressure", "node.kubernetes.io/pid-pressure"].map(str::to_owned);
        assert_eq!(keys(taints(&short)), Some(expected.to_vec()));
        let mut cordoned = node("True", &[]);
        cordoned.spec.as_mut().expect("a spec").unschedulable = Some(true);
        assert_eq!(keys(taints(&cordoned)), Some(vec!["node.kubernetes.io/unschedulable".into()]));
    }
}
