//! Affinity and anti-affinity between pods.
//!
//! For a pod that looks for a node: where the pods are that it wants near, those that it wants apart, and those that
//! want it apart. "Where" is a pair of a label and its value, shared by all nodes that are near each other.

use std::collections::HashMap;

use super::cluster::{Cluster, Entry};
use super::needs::{Company, PodTerm};
use crate::informers::PodView;

/// A label and its value: all nodes that have it are near each other.
type Pair = (String, String);

/// What the pods that are there mean for one that comes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Neighbours {
    /// Pods that every one of its required terms takes, by where they are.
    wanted: HashMap<Pair, i64>,
    /// Pods that it must be apart from.
    unwanted: HashMap<Pair, i64>,
    /// Pods that must be apart from it.
    unwilling: HashMap<Pair, i64>,
    /// Its own required terms take itself, too.
    alike: bool,
}

/// What a node is for a pod by its company.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Everything required holds.
    Fine,
    /// A pod that it wants near is not.
    Lonely,
    /// A pod that it wants apart is near.
    Crowded,
    /// A pod that wants it apart is near.
    Unwelcome,
}

impl PodTerm {
    /// Whether the term takes the pod.
    pub(super) fn takes(&self, pod: &PodView, cluster: &Cluster) -> bool {
        let named = self.namespaces.contains(&pod.namespace);
        let space = named || self.namespace_selector.matches(cluster.namespace_labels(&pod.namespace));
        space && self.selector.matches(&pod.labels)
    }
}

impl Neighbours {
    /// Looks round for a pod.
    pub(super) fn of(pod: &PodView, cluster: &Cluster) -> Self {
        let mut found = Self::default();
        let company = pod.needs.company.as_deref();
        found.alike = company.is_some_and(|c| !c.near.is_empty() && c.near.iter().all(|t| t.takes(pod, cluster)));
        let looks = company.is_some_and(|c| !c.near.is_empty() || !c.apart.is_empty());
        for (_, entry) in cluster.nodes() {
            if looks {
                for other in entry.load.pods.values() {
                    found.count(pod, entry, other, cluster, 1);
                }
            } else {
                for other in entry.load.sociable() {
                    found.count(pod, entry, other, cluster, 1);
                }
            }
        }
        found
    }

    /// Another pod comes to a node (1) or goes from it (-1).
    pub(super) fn change(&mut self, pod: &PodView, entry: &Entry, other: &PodView, cluster: &Cluster, by: i64) {
        self.count(pod, entry, other, cluster, by);
    }

    fn count(&mut self, pod: &PodView, entry: &Entry, other: &PodView, cluster: &Cluster, by: i64) {
        if let Some(company) = &pod.needs.company {
            if !company.near.is_empty() && company.near.iter().all(|term| term.takes(other, cluster)) {
                for term in &company.near {
                    add(&mut self.wanted, entry, term, by);
                }
            }
            for term in company.apart.iter().filter(|term| term.takes(other, cluster)) {
                add(&mut self.unwanted, entry, term, by);
            }
        }
        if let Some(company) = &other.needs.company {
            for term in company.apart.iter().filter(|term| term.takes(pod, cluster)) {
                add(&mut self.unwilling, entry, term, by);
            }
        }
    }

    /// Whether the pod may go to the node.
    pub(super) fn judge(&self, pod: &PodView, entry: &Entry) -> Verdict {
        if let Some(company) = &pod.needs.company {
            if !self.has_near(company, entry) {
                return Verdict::Lonely;
            }
            let unwanted = |term: &PodTerm| pair(entry, term).is_some_and(|pair| self.unwanted.contains_key(&pair));
            if company.apart.iter().any(unwanted) {
                return Verdict::Crowded;
            }
        }
        let unwilling = |(key, value): &Pair| entry.label(key) == Some(value);
        if self.unwilling.keys().any(unwilling) { Verdict::Unwelcome } else { Verdict::Fine }
    }

    /// All that it wants near is; or it is the first of its kind, and nothing can be.
    fn has_near(&self, company: &Company, entry: &Entry) -> bool {
        let mut all = true;
        for term in &company.near {
            let Some(pair) = pair(entry, term) else { return false };
            all &= self.wanted.contains_key(&pair);
        }
        all || (self.wanted.is_empty() && self.alike)
    }
}

/// How much a node's company pleases: what the pod prefers, what pods there prefer of it, and that those which
/// require its kind are near.
pub(super) struct Liking(HashMap<Pair, i64>);

/// What a required term of a pod that is there weighs for one that comes.
const REQUIRED_WEIGHT: i64 = 1;

impl Liking {
    /// Looks round for a pod.
    pub(super) fn of(pod: &PodView, cluster: &Cluster) -> Self {
        let mut liking = HashMap::new();
        let company = pod.needs.company.as_deref();
        let choosy = company.is_some_and(|c| !c.rather_near.is_empty() || !c.rather_apart.is_empty());
        for (_, entry) in cluster.nodes() {
            let mut weigh = |other: &PodView| {
                if let Some(company) = company {
                    prefer(&mut liking, entry, &company.rather_near, other, cluster, 1);
                    prefer(&mut liking, entry, &company.rather_apart, other, cluster, -1);
                }
                if let Some(theirs) = other.needs.company.as_deref() {
                    prefer(&mut liking, entry, &theirs.rather_near, pod, cluster, 1);
                    prefer(&mut liking, entry, &theirs.rather_apart, pod, cluster, -1);
                    for term in theirs.near.iter().filter(|term| term.takes(pod, cluster)) {
                        add(&mut liking, entry, term, REQUIRED_WEIGHT);
                    }
                }
            };
            if choosy {
                entry.load.pods.values().for_each(|other| weigh(other));
            } else {
                entry.load.sociable().for_each(|other| weigh(other));
            }
        }
        Self(liking)
    }

    /// The sum for a node.
    pub(super) fn on(&self, entry: &Entry) -> i64 {
        let here = self.0.iter().filter(|((key, value), _)| entry.label(key) == Some(value));
        here.map(|(_, weight)| weight).sum()
    }

    /// Nothing is preferred.
    pub(super) fn is_indifferent(&self) -> bool {
        self.0.is_empty()
    }
}

fn prefer(
    liking: &mut HashMap<Pair, i64>,
    entry: &Entry,
    terms: &[(i32, PodTerm)],
    other: &PodView,
    cluster: &Cluster,
    sign: i64,
) {
    for (weight, term) in terms.iter().filter(|(_, term)| term.takes(other, cluster)) {
        add(liking, entry, term, sign * i64::from(*weight));
    }
}

fn pair(entry: &Entry, term: &PodTerm) -> Option<Pair> {
    Some((term.key.clone(), entry.label(&term.key)?.to_owned()))
}

/// Counts at the node's value of the term's label; what comes to nothing is not kept.
fn add(counts: &mut HashMap<Pair, i64>, entry: &Entry, term: &PodTerm, by: i64) {
    let Some(pair) = pair(entry, term) else { return };
    let sum = counts.get(&pair).copied().unwrap_or(0) + by;
    if sum == 0 {
        counts.remove(&pair);
    } else {
        counts.insert(pair, sum);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::{Namespace, Node};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::testing::{cluster, node_with, pod};
    use super::*;

    fn zoned(name: &str, zone: &str) -> Arc<Node> {
        node_with(name, |n| n["metadata"]["labels"]["zone"] = zone.into())
    }

    fn term(key: &str, app: &str) -> Value {
        json!({"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}})
    }

    /// A pod with label `app`, on a node if one is given, and with required terms of this kind of affinity.
    fn member(name: &str, app: &str, node: &str, kind: &str, terms: &[Value]) -> Arc<PodView> {
        pod(name, |p| {
            p["metadata"]["labels"] = json!({"app": app});
            p["spec"]["nodeName"] = node.into();
            if !terms.is_empty() {
                p["spec"]["affinity"] = json!({kind: {"requiredDuringSchedulingIgnoredDuringExecution": terms}});
            }
        })
    }

    fn judge(pod: &PodView, cluster: &Cluster) -> Vec<Verdict> {
        let neighbours = Neighbours::of(pod, cluster);
        cluster.nodes().map(|(_, entry)| neighbours.judge(pod, entry)).collect()
    }

    #[test]
    fn affinity_draws_near_and_lets_the_first_of_its_kind_in_anywhere() {
        use Verdict::{Fine, Lonely};
        let nodes = [zoned("a", "1"), zoned("b", "1"), zoned("c", "2"), super::super::testing::node("d")];
        let follower = member("f", "front", "", "podAffinity", &[term("zone", "back")]);
        assert_eq!(judge(&follower, &cluster(&nodes, &[])), [Lonely; 4]);
        let back = member("b", "back", "a", "", &[]);
        assert_eq!(judge(&follower, &cluster(&nodes, &[back])), [Fine, Fine, Lonely, Lonely]);
        let group = member("g", "web", "", "podAffinity", &[term("zone", "web")]);
        assert_eq!(judge(&group, &cluster(&nodes, &[])), [Fine, Fine, Fine, Lonely], "it needs a zone all the same");
        let first = member("g0", "web", "c", "podAffinity", &[term("zone", "web")]);
        assert_eq!(judge(&group, &cluster(&nodes, &[first])), [Lonely, Lonely, Fine, Lonely]);
    }

    #[test]
    fn anti_affinity_works_both_ways() {
        use Verdict::{Crowded, Fine, Unwelcome};
        let nodes = [zoned("a", "1"), zoned("b", "1"), zoned("c", "2")];
        let apart = [term("zone", "web")];
        let plain = member("p", "web", "a", "", &[]);
        let shy = member("s", "web", "", "podAntiAffinity", &apart);
        assert_eq!(judge(&shy, &cluster(&nodes, std::slice::from_ref(&plain))), [Crowded, Crowded, Fine]);
        let settled = member("s", "web", "a", "podAntiAffinity", &apart);
        let comes = member("p", "web", "", "", &[]);
        assert_eq!(judge(&comes, &cluster(&nodes, &[settled])), [Unwelcome, Unwelcome, Fine]);
        let other = member("o", "other", "", "", &[]);
        let settled = member("s", "web", "a", "podAntiAffinity", &apart);
        assert_eq!(judge(&other, &cluster(&nodes, &[settled])), [Fine; 3]);
    }

    #[test]
    fn namespaces_are_chosen_by_name_or_label() {
        let nodes = [zoned("a", "1")];
        let foreign = pod("x", |p| {
            p["metadata"]["namespace"] = "other".into();
            p["spec"]["nodeName"] = "a".into();
        });
        let mut there = cluster(&nodes, &[foreign]);
        let labels = json!({"metadata": {"name": "other", "labels": {"team": "t"}}});
        let space: Namespace = serde_json::from_value(labels).expect("a namespace");
        there.namespace("other", Some(&Arc::new(space)));
        let with = |extra: Value| {
            let mut term = term("zone", "web");
            term.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
            judge(&member("s", "web", "", "podAntiAffinity", &[term]), &there)[0]
        };
        assert_eq!(with(json!({})), Verdict::Fine);
        assert_eq!(with(json!({"namespaces": ["other"]})), Verdict::Crowded);
        assert_eq!(with(json!({"namespaceSelector": {}})), Verdict::Crowded);
        assert_eq!(with(json!({"namespaceSelector": {"matchLabels": {"team": "t"}}})), Verdict::Crowded);
        assert_eq!(with(json!({"namespaceSelector": {"matchLabels": {"team": "u"}}})), Verdict::Fine);
    }

    #[test]
    fn preferences_add_up_from_both_sides() {
        let weighted = |weight: i32, app: &str| json!({"weight": weight, "podAffinityTerm": term("zone", app)});
        let prefers = |name: &str, node: &str, kind: &str, list: Value| {
            pod(name, |p| {
                p["spec"]["nodeName"] = node.into();
                p["spec"]["affinity"] = json!({kind: {"preferredDuringSchedulingIgnoredDuringExecution": list}});
            })
        };
        let there = cluster(
            &[zoned("a", "1"), zoned("b", "2")],
            &[
                prefers("x", "a", "podAffinity", json!([weighted(7, "web")])),
                prefers("y", "b", "podAntiAffinity", json!([weighted(5, "web")])),
                member("z", "web", "b", "podAffinity", &[term("zone", "web")]),
            ],
        );
        let comes = prefers("new", "", "podAntiAffinity", json!([weighted(10, "web")]));
        let liking = Liking::of(&comes, &there);
        let sums: Vec<i64> = there.nodes().map(|(_, entry)| liking.on(entry)).collect();
        assert_eq!(sums, [7 - 10, -5 - 20 + 1]);
        assert!(Liking::of(&comes, &cluster(&[zoned("a", "1")], &[])).is_indifferent());
    }

    proptest! {
        /// Taking a pod away and looking round again are the same.
        #[test]
        fn what_is_kept_right_is_what_is_seen_anew(
            places in proptest::collection::vec((0..3usize, 0..4u8), 1..10), gone in any::<prop::sample::Index>()
        ) {
            let nodes = [zoned("a", "1"), zoned("b", "1"), zoned("c", "2")];
            let pods: Vec<_> = places.iter().enumerate().map(|(i, (at, kind))| {
                let (app, terms) = (["web", "back"][usize::from(kind % 2)], [term("zone", "web")]);
                let kind = if *kind < 2 { ("", &terms[..0]) } else { ("podAntiAffinity", &terms[..]) };
                member(&format!("p{i}"), app, ["a", "b", "c"][*at], kind.0, kind.1)
            }).collect();
            let before = cluster(&nodes, &pods);
            let comes = pod("new", |p| p["spec"]["affinity"] = json!({
                "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term("zone", "back")]},
                "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term("kubernetes.io/hostname", "web")]},
            }));
            let mut kept = Neighbours::of(&comes, &before);
            let gone = &pods[gone.index(pods.len())];
            let entry = before.entry(gone.node.as_deref().unwrap()).unwrap();
            kept.change(&comes, entry, gone, &before, -1);
            let mut after = before.clone();
            after.pod(Some(gone), None);
            prop_assert_eq!(&kept, &Neighbours::of(&comes, &after));
        }

        /// Pods that must be apart never share a domain, in whatever order they come and go.
        #[test]
        fn anytime_pods_that_must_be_apart_are(steps in proptest::collection::vec((0..6u8, any::<bool>(), any::<u8>()), 0..40)) {
            let nodes = [zoned("a", "1"), zoned("b", "1"), zoned("c", "2"), zoned("d", "3")];
            let mut there = cluster(&nodes, &[]);
            let mut placed: HashMap<u8, Arc<PodView>> = HashMap::new();
            for (id, comes, pick) in steps {
                if !comes {
                    there.pod(placed.remove(&id).as_ref(), None);
                    continue;
                }
                // Even ones keep apart from all, odd ones do not care.
                let terms = [term("zone", "web")];
                let terms = if id % 2 == 0 { &terms[..] } else { &terms[..0] };
                let of = |node: &str| member(&format!("p{id}"), "web", node, "podAntiAffinity", terms);
                if placed.contains_key(&id) {
                    continue;
                }
                let verdicts = judge(&of(""), &there);
                let fine: Vec<_> = verdicts.iter().zip(["a", "b", "c", "d"]).filter(|(v, _)| **v == Verdict::Fine).collect();
                if fine.is_empty() {
                    continue;
                }
                let new = of(fine[usize::from(pick) % fine.len()].1);
                there.pod(None, Some(&new));
                placed.insert(id, new);
                for (zone, names) in [("1", &["a", "b"][..]), ("2", &["c"][..]), ("3", &["d"][..])] {
                    let in_zone: Vec<_> = placed.iter().filter(|(_, p)| names.contains(&p.node.as_deref().unwrap())).collect();
                    let shy = in_zone.iter().any(|(id, _)| *id % 2 == 0);
                    prop_assert!(!shy || in_zone.len() == 1, "zone {}: {:?}", zone, in_zone);
                }
            }
        }
    }
}
