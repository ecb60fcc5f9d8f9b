//! Topology spread: how many pods of a kind each domain has, and what one more would do.
//!
//! Counted once per decision, then kept right pod by pod while preemption tries what would be if some were gone.

use std::collections::BTreeMap;

use super::cluster::{Cluster, Entry};
use super::needs::Spread;
use super::terms;
use crate::informers::PodView;

/// The counts behind the constraints of one pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Spreading {
    /// Those that must hold.
    hard: Vec<Counted>,
    /// Those that should.
    soft: Vec<Counted>,
}

/// One constraint and its counts.
#[derive(Clone, Debug, PartialEq)]
struct Counted {
    constraint: Spread,
    /// Pods of the kind in each domain, of those that take part.
    domains: BTreeMap<String, i64>,
    /// The fewest in any domain.
    least: i64,
    /// The pod itself is of the kind.
    own: bool,
}

/// What a node is for a pod's hard constraints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All hold.
    Fine,
    /// It lacks a label that names a domain.
    NoDomain,
    /// Its domain would have too many.
    Skewed,
}

impl Spreading {
    /// Counts for a pod.
    pub(super) fn of(pod: &PodView, cluster: &Cluster) -> Self {
        let of = |hard: bool| {
            let constraints = pod.needs.spread.iter().filter(|c| c.hard == hard);
            let counted = constraints.map(|constraint| Counted {
                constraint: constraint.clone(),
                domains: BTreeMap::new(),
                least: 0,
                own: constraint.selector.matches(&pod.labels),
            });
            counted.collect::<Vec<_>>()
        };
        let mut spreading = Self { hard: of(true), soft: of(false) };
        if pod.needs.spread.is_empty() {
            return spreading;
        }
        for (_, entry) in cluster.nodes() {
            for list in [&mut spreading.hard, &mut spreading.soft] {
                if !list.iter().all(|c| entry.label(&c.constraint.key).is_some()) {
                    continue;
                }
                for counted in list.iter_mut().filter(|counted| counted.takes_part(pod, entry)) {
                    let pods = entry.load.pods.values().filter(|other| counted.is_of_kind(pod, other)).count();
                    let domain = entry.label(&counted.constraint.key).unwrap_or_default().to_owned();
                    *counted.domains.entry(domain).or_default() += i64::try_from(pods).unwrap_or(i64::MAX);
                }
            }
        }
        for counted in &mut spreading.hard {
            counted.find_least();
        }
        spreading
    }

    /// Another pod comes to a node (1) or goes from it (-1).
    pub(super) fn change(&mut self, pod: &PodView, entry: &Entry, other: &PodView, by: i64) {
        if !self.hard.iter().all(|c| entry.label(&c.constraint.key).is_some()) {
            return;
        }
        for counted in &mut self.hard {
            if counted.is_of_kind(pod, other)
                && counted.takes_part(pod, entry)
                && let Some(domain) = entry.label(&counted.constraint.key)
                && let Some(count) = counted.domains.get_mut(domain)
            {
                *count += by;
                counted.find_least();
            }
        }
    }

    /// Whether the pod may go to the node.
    pub(super) fn judge(&self, entry: &Entry) -> Verdict {
        for counted in &self.hard {
            let Some(domain) = entry.label(&counted.constraint.key) else { return Verdict::NoDomain };
            let there = counted.domains.get(domain).copied().unwrap_or(0);
            if there + i64::from(counted.own) - counted.least > counted.constraint.max_skew {
                return Verdict::Skewed;
            }
        }
        Verdict::Fine
    }

    /// How crowded the node's domains are by the constraints that should hold; none where it is in none.
    pub(super) fn crowd(&self, entry: &Entry) -> Option<f64> {
        let mut sum = 0.0;
        for counted in &self.soft {
            let there = counted.domains.get(entry.label(&counted.constraint.key)?).copied().unwrap_or(0);
            // Few domains differ more than many do: their counts weigh less.
            let weight = (counted.domains.len() as f64 + 2.0).ln();
            sum += there as f64 * weight + (counted.constraint.max_skew - 1) as f64;
        }
        Some(sum)
    }

    /// Whether there are constraints that should hold.
    pub(super) fn has_wishes(&self) -> bool {
        !self.soft.is_empty()
    }
}

impl Counted {
    /// Whether the node counts, by the constraint's policies.
    fn takes_part(&self, pod: &PodView, entry: &Entry) -> bool {
        let allowed = || entry.node.as_ref().is_some_and(|node| terms::allows(&pod.needs, node));
        let borne = || terms::untolerated(&pod.needs.tolerations, entry.taints()).is_none();
        (!self.constraint.honor_affinity || allowed()) && (!self.constraint.honor_taints || borne())
    }

    /// Whether the other pod counts.
    fn is_of_kind(&self, pod: &PodView, other: &PodView) -> bool {
        other.namespace == pod.namespace && !other.deleting && self.constraint.selector.matches(&other.labels)
    }

    fn find_least(&mut self) {
        let domains = i64::try_from(self.domains.len()).unwrap_or(i64::MAX);
        let too_few = domains < self.constraint.min_domains;
        self.least = if too_few { 0 } else { self.domains.values().copied().min().unwrap_or(0) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::Node;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::testing::{cluster, node_with, pod};
    use super::*;

    fn zoned(name: &str, zone: &str) -> Arc<Node> {
        node_with(name, |n| n["metadata"]["labels"]["zone"] = zone.into())
    }

    fn spread(change: impl FnOnce(&mut Value)) -> Arc<PodView> {
        let mut constraint = json!({"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}}});
        change(&mut constraint);
        pod("new", |p| p["spec"]["topologySpreadConstraints"] = json!([constraint]))
    }

    fn on(name: &str, node: &str) -> Arc<PodView> {
        pod(name, |p| p["spec"]["nodeName"] = node.into())
    }

    /// The verdicts on all nodes, in order.
    fn judge(pod: &PodView, cluster: &Cluster) -> Vec<Verdict> {
        let spreading = Spreading::of(pod, cluster);
        cluster.nodes().map(|(_, entry)| spreading.judge(entry)).collect()
    }

    #[test]
    fn the_skew_is_kept_and_a_node_without_domain_refused() {
        use Verdict::{Fine, NoDomain, Skewed};
        let nodes = [zoned("a", "1"), zoned("b", "2"), super::super::testing::node("c")];
        let there = cluster(&nodes, &[on("x", "a")]);
        assert_eq!(judge(&spread(|_| ()), &there), [Skewed, Fine, NoDomain]);
        assert_eq!(judge(&spread(|c| c["maxSkew"] = 2.into()), &there), [Fine, Fine, NoDomain]);
        let strange = spread(|c| c["labelSelector"] = json!({"matchLabels": {"app": "other"}}));
        assert_eq!(judge(&strange, &there), [Fine, Fine, NoDomain]);
        let going = pod("x", |p| {
            p["spec"]["nodeName"] = "a".into();
            p["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z".into();
        });
        assert_eq!(judge(&spread(|_| ()), &cluster(&nodes, &[going])), [Fine, Fine, NoDomain], "it is going");
    }

    #[test]
    fn too_few_domains_count_as_an_empty_one_more() {
        let nodes = [zoned("a", "1"), zoned("b", "2")];
        let there = cluster(&nodes, &[on("x", "a"), on("y", "b")]);
        assert_eq!(judge(&spread(|_| ()), &there), [Verdict::Fine, Verdict::Fine]);
        assert_eq!(judge(&spread(|c| c["minDomains"] = 3.into()), &there), [Verdict::Skewed, Verdict::Skewed]);
    }

    #[test]
    fn nodes_that_the_pod_cannot_use_count_only_where_the_policies_say_so() {
        let barred = node_with("b", |n| {
            n["metadata"]["labels"]["zone"] = "2".into();
            n["spec"]["taints"] = json!([{"key": "k", "effect": "NoSchedule"}]);
        });
        let there = cluster(&[zoned("a", "1"), barred], &[on("x", "a")]);
        assert_eq!(judge(&spread(|_| ()), &there)[0], Verdict::Skewed, "taints are ignored unless said");
        assert_eq!(judge(&spread(|c| c["nodeTaintsPolicy"] = "Honor".into()), &there)[0], Verdict::Fine);
        let choosy = |policy: &str| {
            let policy = policy.to_owned();
            let constraint = spread(move |c| c["nodeAffinityPolicy"] = policy.into());
            let mut chosen = (*constraint).clone();
            let mut needs = (*chosen.needs).clone();
            needs.node_selector.insert("zone".into(), "1".into());
            chosen.needs = Arc::new(needs);
            chosen
        };
        assert_eq!(judge(&choosy("Honor"), &there)[0], Verdict::Fine);
        assert_eq!(judge(&choosy("Ignore"), &there)[0], Verdict::Skewed);
    }

    proptest! {
        /// Taking a pod away and counting again are the same.
        #[test]
        fn counts_kept_right_are_those_counted_anew(
            places in proptest::collection::vec((0..4usize, any::<bool>()), 1..10), gone in any::<prop::sample::Index>()
        ) {
            let nodes: Vec<_> = [("a", "1"), ("b", "1"), ("c", "2"), ("d", "3")].map(|(n, z)| zoned(n, z)).into();
            let pods: Vec<_> = places.iter().enumerate().map(|(i, (at, ours))| pod(&format!("p{i}"), |p| {
                p["spec"]["nodeName"] = ["a", "b", "c", "d"][*at].into();
                if !ours {
                    p["metadata"]["labels"] = json!({});
                }
            })).collect();
            let before = cluster(&nodes, &pods);
            let new = spread(|_| ());
            let mut kept = Spreading::of(&new, &before);
            let gone = &pods[gone.index(pods.len())];
            let entry = before.entry(gone.node.as_deref().unwrap()).unwrap();
            kept.change(&new, entry, gone, -1);
            let mut after = before.clone();
            after.pod(Some(gone), None);
            prop_assert_eq!(&kept, &Spreading::of(&new, &after));
            kept.change(&new, entry, gone, 1);
            prop_assert_eq!(&kept, &Spreading::of(&new, &before));
        }

        /// However pods come, one after the other, no domain ever has more than the skew beyond another.
        #[test]
        fn anytime_the_skew_is_kept(skew in 1..4i64, zones in 1..5usize, pods in 0..20usize, pick in any::<u64>()) {
            let nodes: Vec<_> = (0..zones).map(|z| zoned(&format!("n{z}"), &format!("z{z}"))).collect();
            let mut there = cluster(&nodes, &[]);
            let mut counts = vec![0i64; zones];
            for i in 0..pods {
                let new = spread(|c| c["maxSkew"] = skew.into());
                let allowed: Vec<usize> =
                    judge(&new, &there).iter().enumerate().filter(|(_, v)| **v == Verdict::Fine).map(|(i, _)| i).collect();
                prop_assert!(!allowed.is_empty(), "the emptiest domain always takes one");
                let chosen = allowed[(pick >> (i % 60)) as usize % allowed.len()];
                there.pod(None, Some(&on(&format!("p{i}"), &format!("n{chosen}"))));
                counts[chosen] += 1;
                let (most, least) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
                prop_assert!(most - least <= skew);
            }
        }
    }
}
