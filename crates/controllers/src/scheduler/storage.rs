//! A pod's claims: which nodes their volumes can be reached from, and which volumes a node would bring.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, TopologySelectorTerm,
};

use super::filter::Obstacle;
use super::terms;
use crate::work::name;

/// A claim of the pod, as far as placing it goes.
#[derive(Clone, Debug)]
pub(super) enum ClaimState {
    /// No node will do, for this reason.
    Hopeless(String),
    /// Bound to this volume.
    Bound(Arc<PersistentVolume>),
    /// Its volume is chosen or made once a node is.
    Delayed(Delayed),
    /// It lets one pod use it at a time, and these use it (by uid).
    InUse(BTreeSet<String>),
}

/// A claim that waits for its first consumer.
#[derive(Clone, Debug, Default)]
pub(super) struct Delayed {
    /// Its name.
    pub(super) claim: String,
    /// The node that it was told, if any.
    pub(super) selected: Option<String>,
    /// Volumes that would do, the best one first.
    pub(super) volumes: Vec<Arc<PersistentVolume>>,
    /// A volume can be made where none will do.
    pub(super) made: bool,
    /// Where volumes of its class can be made; nothing: everywhere.
    pub(super) topologies: Vec<TopologySelectorTerm>,
}

/// Which volume a claim gets on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// This one, which is there.
    Found {
        /// The claim's name.
        claim: String,
        /// The volume's name.
        volume: String,
    },
    /// One that is made.
    Made {
        /// The claim's name.
        claim: String,
    },
}

/// Why the claims keep the pod from a node. `gone`: pods that are not there any more.
pub(super) fn obstacle(claims: &[ClaimState], node: &Node, gone: &BTreeSet<String>) -> Option<Obstacle> {
    let in_use =
        |claim: &ClaimState| matches!(claim, ClaimState::InUse(by) if by.iter().any(|uid| !gone.contains(uid)));
    if claims.iter().any(in_use) {
        let why = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
        return Some(Obstacle::passing(why));
    }
    let reached = |claim: &ClaimState| !matches!(claim, ClaimState::Bound(volume) if !reaches(volume, node));
    if !claims.iter().all(reached) {
        return Some(Obstacle::lasting("node(s) didn't match PersistentVolume's node affinity"));
    }
    if sources(claims, node).is_none() {
        return Some(Obstacle::lasting("node(s) didn't find available persistent volumes to bind"));
    }
    None
}

/// Where the volumes of all waiting claims would come from on this node; none if one would have none.
pub(super) fn sources(claims: &[ClaimState], node: &Node) -> Option<Vec<Source>> {
    let mut taken: BTreeSet<&str> = BTreeSet::new();
    let mut sources = Vec::new();
    for delayed in delayed(claims) {
        let free = |v: &&Arc<PersistentVolume>| !taken.contains(name(&***v)) && reaches(v, node);
        let claim = delayed.claim.clone();
        match delayed.volumes.iter().find(free) {
            Some(volume) => {
                taken.insert(name(&**volume));
                sources.push(Source::Found { claim, volume: name(&**volume).to_owned() });
            }
            None if delayed.made && has_topology(&delayed.topologies, node) => sources.push(Source::Made { claim }),
            None => return None,
        }
    }
    Some(sources)
}

/// The claims that wait for a node.
pub(super) fn delayed(claims: &[ClaimState]) -> impl Iterator<Item = &Delayed> {
    claims.iter().filter_map(|c| if let ClaimState::Delayed(delayed) = c { Some(delayed) } else { None })
}

/// Whether the volume can be used on the node.
fn reaches(volume: &PersistentVolume, node: &Node) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    affinity.and_then(|a| a.required.as_ref()).is_none_or(|r| terms::any(&r.node_selector_terms, node))
}

/// Whether volumes of a class can be made for the node.
fn has_topology(topologies: &[TopologySelectorTerm], node: &Node) -> bool {
    let requirement =
        |expression: &k8s_openapi::api::core::v1::TopologySelectorLabelRequirement| NodeSelectorRequirement {
            key: expression.key.clone(),
            operator: "In".into(),
            values: Some(expression.values.clone()),
        };
    let term = |topology: &TopologySelectorTerm| NodeSelectorTerm {
        match_expressions: Some(topology.match_label_expressions.iter().flatten().map(requirement).collect()),
        match_fields: None,
    };
    topologies.is_empty() || topologies.iter().any(|topology| terms::matches(&term(topology), node))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::testing::node;
    use super::*;

    fn volume(name: &str, host: &str) -> Arc<PersistentVolume> {
        let volume = json!({"metadata": {"name": name}, "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}]}}}});
        Arc::new(serde_json::from_value(volume).expect("a volume"))
    }

    fn waits(claim: &str, volumes: &[Arc<PersistentVolume>], made: bool, topologies: Value) -> ClaimState {
        let topologies = serde_json::from_value(topologies).expect("topologies");
        ClaimState::Delayed(Delayed { claim: claim.into(), selected: None, volumes: volumes.into(), made, topologies })
    }

    #[test]
    fn two_claims_do_not_get_the_same_volume() {
        let volumes = [volume("v1", "a"), volume("v2", "b")];
        let claims = [waits("x", &volumes, false, json!([])), waits("y", &volumes, false, json!([]))];
        assert_eq!(sources(&claims[..1], &node("a")).map(|s| s.len()), Some(1));
        assert_eq!(sources(&claims, &node("a")), None, "one volume there, two claims");
        let words = obstacle(&claims, &node("a"), &BTreeSet::new()).expect("an obstacle");
        assert_eq!(words, Obstacle::lasting("node(s) didn't find available persistent volumes to bind"));
        let claims = [waits("x", &volumes, false, json!([])), waits("y", &volumes, true, json!([]))];
        let expected =
            vec![Source::Found { claim: "x".into(), volume: "v1".into() }, Source::Made { claim: "y".into() }];
        assert_eq!(sources(&claims, &node("a")), Some(expected));
    }

    #[test]
    fn volumes_are_made_only_where_their_class_allows() {
        let topology = json!([{"matchLabelExpressions": [{"key": "kubernetes.io/hostname", "values": ["b"]}]}]);
        let claims = [waits("x", &[], true, topology)];
        assert_eq!(sources(&claims, &node("a")), None);
        assert_eq!(sources(&claims, &node("b")), Some(vec![Source::Made { claim: "x".into() }]));
    }

    #[test]
    fn a_claim_of_one_pod_is_free_when_that_pod_is_gone() {
        let claims = [ClaimState::InUse(BTreeSet::from(["u".to_owned()]))];
        assert!(obstacle(&claims, &node("a"), &BTreeSet::new()).is_some_and(|o| !o.lasts));
        assert_eq!(obstacle(&claims, &node("a"), &BTreeSet::from(["u".to_owned()])), None);
    }
}
