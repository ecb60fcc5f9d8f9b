//! Whether a pod can go to a node, and in which words it is told that it cannot. In the order of upstream's filters:
//! the first that objects is heard.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};

use super::cluster::{Cluster, Entry, Load};
use super::company::{self, Neighbours};
use super::spread::{self, Spreading};
use super::storage::{self, ClaimState};
use super::terms;
use crate::informers::PodView;

/// Why a pod cannot go to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Obstacle {
    /// In upstream's words; several where several resources are short.
    pub(super) reasons: Vec<String>,
    /// Nothing changes it that pods could do by going.
    pub(super) lasts: bool,
}

impl Obstacle {
    /// One that stays whatever pods go.
    pub(super) fn lasting(reason: impl Into<String>) -> Self {
        Self { reasons: vec![reason.into()], lasts: true }
    }

    /// One that can go with pods.
    pub(super) fn passing(reason: impl Into<String>) -> Self {
        Self { reasons: vec![reason.into()], lasts: false }
    }
}

/// What all nodes' filters share for one pod: counted once.
#[derive(Clone, Debug)]
pub(super) struct Surroundings {
    pub(super) spreading: Spreading,
    pub(super) neighbours: Neighbours,
    /// Pods that are imagined gone.
    pub(super) gone: BTreeSet<String>,
}

impl Surroundings {
    /// Counts for a pod.
    pub(super) fn of(pod: &PodView, cluster: &Cluster) -> Self {
        Self { spreading: Spreading::of(pod, cluster), neighbours: Neighbours::of(pod, cluster), gone: BTreeSet::new() }
    }

    /// Imagines another pod on a node.
    pub(super) fn add(&mut self, pod: &PodView, entry: &Entry, other: &PodView, cluster: &Cluster) {
        self.gone.remove(&other.uid);
        self.spreading.change(pod, entry, other, 1);
        self.neighbours.change(pod, entry, other, cluster, 1);
    }

    /// Imagines another pod gone from a node.
    pub(super) fn remove(&mut self, pod: &PodView, entry: &Entry, other: &PodView, cluster: &Cluster) {
        self.gone.insert(other.uid.clone());
        self.spreading.change(pod, entry, other, -1);
        self.neighbours.change(pod, entry, other, cluster, -1);
    }
}

/// Why the pod cannot go to the node with this load, if it cannot. Room that was made for pods at least as important
/// counts as taken; but nothing is asked of a pod that only is to come.
pub(super) fn obstacle(
    pod: &Arc<PodView>,
    claims: &[ClaimState],
    (name, entry): (&str, &Entry),
    load: &Load,
    around: &Surroundings,
    cluster: &Cluster,
) -> Option<Obstacle> {
    let to_come = cluster.nominated_to(name).filter(|other| {
        other.uid != pod.uid
            && other.needs.priority >= pod.needs.priority
            && !load.pods.contains_key(&other.uid)
            && cluster.word(&other.uid).is_none()
    });
    let to_come: Vec<_> = to_come.collect();
    if !to_come.is_empty() {
        let (mut load, mut around) = (load.clone(), around.clone());
        for other in to_come {
            load.add(other);
            around.add(pod, entry, other, cluster);
        }
        if let Some(found) = plain_obstacle(pod, claims, entry, &load, &around) {
            return Some(found);
        }
    }
    plain_obstacle(pod, claims, entry, load, around)
}

/// The same, by what is on the node alone.
fn plain_obstacle(
    pod: &PodView,
    claims: &[ClaimState],
    entry: &Entry,
    load: &Load,
    around: &Surroundings,
) -> Option<Obstacle> {
    let node = entry.node.as_deref()?;
    barred(pod, node)
        .or_else(|| {
            let allowed = terms::allows(&pod.needs, node);
            (!allowed).then(|| Obstacle::lasting("node(s) didn't match Pod's node affinity/selector"))
        })
        .or_else(|| ports(pod, load))
        .or_else(|| resources(pod, entry, load))
        .or_else(|| storage::obstacle(claims, node, &around.gone))
        .or_else(|| match around.spreading.judge(entry) {
            spread::Verdict::Fine => None,
            spread::Verdict::NoDomain => {
                Some(Obstacle::lasting("node(s) didn't match pod topology spread constraints (missing required label)"))
            }
            spread::Verdict::Skewed => Some(Obstacle::passing("node(s) didn't match pod topology spread constraints")),
        })
        .or_else(|| match around.neighbours.judge(pod, entry) {
            company::Verdict::Fine => None,
            company::Verdict::Lonely => Some(Obstacle::lasting("node(s) didn't match pod affinity rules")),
            company::Verdict::Crowded => Some(Obstacle::passing("node(s) didn't match pod anti-affinity rules")),
            company::Verdict::Unwelcome => {
                Some(Obstacle::passing("node(s) didn't satisfy existing pods anti-affinity rules"))
            }
        })
}

/// Cordons, taints, and nodes that are not ready.
fn barred(pod: &PodView, node: &Node) -> Option<Obstacle> {
    let tolerations = &pod.needs.tolerations;
    let spec = node.spec.as_ref();
    let cordon = taint("node.kubernetes.io/unschedulable");
    if spec.is_some_and(|s| s.unschedulable == Some(true)) && !terms::tolerated(tolerations, &cordon) {
        return Some(Obstacle::lasting("node(s) were unschedulable"));
    }
    let untolerated = |t: &Taint| {
        let value = t.value.as_deref().unwrap_or_default();
        Obstacle::lasting(format!("node(s) had untolerated taint {{{}: {value}}}", t.key))
    };
    let taints = spec.and_then(|s| s.taints.as_deref()).unwrap_or_default();
    if let Some(taint) = terms::untolerated(tolerations, taints) {
        return Some(untolerated(taint));
    }
    // The taint that says so follows a moment after the condition.
    let key = match ready(node) {
        Some("True") => return None,
        Some("Unknown") => "node.kubernetes.io/unreachable",
        _ => "node.kubernetes.io/not-ready",
    };
    let taint = taint(key);
    (!terms::tolerated(tolerations, &taint)).then(|| untolerated(&taint))
}

/// Ports of the machine that another pod has.
fn ports(pod: &PodView, load: &Load) -> Option<Obstacle> {
    let taken = || load.pods.values().flat_map(|other| &other.needs.ports);
    let conflict = pod.needs.ports.iter().any(|port| taken().any(|other| port.conflicts(other)));
    conflict.then(|| Obstacle::passing("node(s) didn't have free ports for the requested pod ports"))
}

/// Room for one pod more, and for what it asks for.
fn resources(pod: &PodView, entry: &Entry, load: &Load) -> Option<Obstacle> {
    let mut found = Obstacle { reasons: Vec::new(), lasts: false };
    if load.pods.len() >= entry.room {
        found.reasons.push("Too many pods".into());
    }
    for (name, wanted) in pod.needs.requests.each().filter(|(_, wanted)| *wanted > 0) {
        let all = entry.allocatable.get(name);
        if wanted > all.saturating_sub(load.requested.get(name)) {
            found.reasons.push(format!("Insufficient {name}"));
            found.lasts |= wanted > all;
        }
    }
    (!found.reasons.is_empty()).then_some(found)
}

/// The status of a node's condition Ready.
pub(crate) fn ready(node: &Node) -> Option<&str> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == "Ready").map(|c| c.status.as_str())
}

fn taint(key: &str) -> Taint {
    Taint { key: key.into(), effect: "NoSchedule".into(), ..Taint::default() }
}
