//! Which of several nodes suits a pod best: upstream's scores with upstream's weights, each from 0 to 100.
//!
//! Where upstream draws lots among equals, the node with the fewest pods is taken, then the first by name.

use std::cmp::Reverse;

use super::cluster::{Cluster, Entry};
use super::company::Liking;
use super::spread::Spreading;
use super::terms;
use crate::informers::PodView;

/// The best a score can be.
const BEST: i64 = 100;
/// Taints that are to be avoided.
const TAINTS: i64 = 3;
/// Preferred node affinity.
const NODES: i64 = 2;
/// Spread over domains, as far as it should be.
const SPREAD: i64 = 2;
/// Preferred company.
const COMPANY: i64 = 2;

/// The name of the node that suits best; none if there is none.
pub(super) fn best<'a>(
    pod: &PodView,
    fitting: &[(&'a str, &'a Entry)],
    spreading: &Spreading,
    cluster: &Cluster,
) -> Option<&'a str> {
    if let [(only, _)] = fitting {
        return Some(only);
    }
    let scores = scores(pod, fitting, spreading, cluster);
    let order = |(at, (name, entry)): (usize, &(&'a str, &Entry))| (Reverse(scores[at]), entry.load.pods.len(), *name);
    fitting.iter().enumerate().map(order).min().map(|(_, _, name)| name)
}

fn scores(pod: &PodView, fitting: &[(&str, &Entry)], spreading: &Spreading, cluster: &Cluster) -> Vec<i64> {
    let needs = &pod.needs;
    let mut total: Vec<i64> = fitting.iter().map(|(_, entry)| room(pod, entry)).collect();
    let avoided = |(_, entry): &(&str, &Entry)| {
        let soft = entry.taints().iter().filter(|t| t.effect == "PreferNoSchedule");
        count(soft.filter(|t| !terms::tolerated(&needs.tolerations, t)).count())
    };
    add(&mut total, TAINTS, fewest_best(&fitting.iter().map(avoided).collect::<Vec<_>>()));
    if !needs.preferred_nodes.is_empty() {
        let liked = |(_, entry): &(&str, &Entry)| {
            let node = entry.node.as_deref();
            let matching =
                needs.preferred_nodes.iter().filter(|(_, term)| node.is_some_and(|n| terms::matches(term, n)));
            matching.map(|(weight, _)| i64::from(*weight)).sum::<i64>()
        };
        add(&mut total, NODES, most_best(&fitting.iter().map(liked).collect::<Vec<_>>()));
    }
    if spreading.has_wishes() {
        let crowd: Vec<Option<f64>> = fitting.iter().map(|(_, entry)| spreading.crowd(entry)).collect();
        add(&mut total, SPREAD, least_crowded(&crowd));
    } else if let Some(owner) = &pod.controller {
        // What upstream's default constraints do for the pods of one controller.
        let siblings = |(_, entry): &(&str, &Entry)| {
            let same = |other: &&std::sync::Arc<PodView>| other.controller.as_ref().is_some_and(|o| o.uid == owner.uid);
            count(entry.load.pods.values().filter(same).count())
        };
        add(&mut total, SPREAD, fewest_best(&fitting.iter().map(siblings).collect::<Vec<_>>()));
    }
    let liking = Liking::of(pod, cluster);
    if !liking.is_indifferent() {
        let sums: Vec<i64> = fitting.iter().map(|(_, entry)| liking.on(entry)).collect();
        add(&mut total, COMPANY, between(&sums));
    }
    total
}

/// How much room would be left, and how evenly processor and memory would be used.
fn room(pod: &PodView, entry: &Entry) -> i64 {
    let used = |all: i64, taken: i64, more: i64| (all > 0).then(|| (all, taken.saturating_add(more)));
    let (cpu, memory) = (entry.allocatable.cpu, entry.allocatable.memory);
    let weighed =
        [used(cpu, entry.load.weight.0, pod.needs.weight.0), used(memory, entry.load.weight.1, pod.needs.weight.1)];
    let left: Vec<i64> = weighed
        .into_iter()
        .flatten()
        .map(
            |(all, used)| {
                if used > all { 0 } else { (i128::from(all - used) * i128::from(BEST) / i128::from(all)) as i64 }
            },
        )
        .collect();
    let free = if left.is_empty() { 0 } else { left.iter().sum::<i64>() / count(left.len()) };
    let requests = (&entry.load.requested, &pod.needs.requests);
    let asked = [used(cpu, requests.0.cpu, requests.1.cpu), used(memory, requests.0.memory, requests.1.memory)];
    let shares: Vec<f64> = asked.into_iter().flatten().map(|(all, used)| (used as f64 / all as f64).min(1.0)).collect();
    // Two shares deviate from their mean by half their difference.
    let deviation = if let [a, b] = shares[..] { (a - b).abs() / 2.0 } else { 0.0 };
    free + ((1.0 - deviation) * BEST as f64) as i64
}

/// The least is worth 100, the most 0.
fn fewest_best(values: &[i64]) -> Vec<i64> {
    let most = values.iter().copied().max().unwrap_or(0);
    values.iter().map(|v| if most == 0 { BEST } else { BEST - v * BEST / most }).collect()
}

/// The most is worth 100, nothing is worth nothing.
fn most_best(values: &[i64]) -> Vec<i64> {
    let most = values.iter().copied().max().unwrap_or(0);
    values.iter().map(|v| if most == 0 { 0 } else { v * BEST / most }).collect()
}

/// The lowest is worth 0, the highest 100.
fn between(values: &[i64]) -> Vec<i64> {
    let (low, high) = (values.iter().min().copied().unwrap_or(0), values.iter().max().copied().unwrap_or(0));
    values.iter().map(|v| if high == low { 0 } else { (v - low) * BEST / (high - low) }).collect()
}

/// The emptiest is worth 100; a node in no domain nothing.
fn least_crowded(crowd: &[Option<f64>]) -> Vec<i64> {
    let known = || crowd.iter().flatten().copied();
    let (least, most) = (known().fold(f64::INFINITY, f64::min), known().fold(0.0, f64::max));
    let score = |crowd: &Option<f64>| match crowd {
        None => 0,
        Some(_) if most == 0.0 => BEST,
        Some(crowd) => (BEST as f64 * (most + least - crowd) / most) as i64,
    };
    crowd.iter().map(score).collect()
}

fn add(total: &mut [i64], weight: i64, scores: Vec<i64>) {
    for (sum, score) in total.iter_mut().zip(scores) {
        *sum += weight * score;
    }
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::Node;
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::testing::{cluster, node, node_with, pod};
    use super::*;

    fn best_of(pod: &PodView, nodes: &[Arc<Node>], pods: &[Arc<PodView>]) -> String {
        let there = cluster(nodes, pods);
        let fitting: Vec<_> = there.nodes().collect();
        best(pod, &fitting, &Spreading::of(pod, &there), &there).expect("there are nodes").to_owned()
    }

    #[test]
    fn the_emptier_node_is_taken_then_the_first_by_name() {
        let on = |name: &str, node: &str| pod(name, |p| p["spec"]["nodeName"] = node.into());
        let nodes = [node("a"), node("b"), node("c")];
        let new = pod("new", |_| ());
        assert_eq!(best_of(&new, &nodes, &[on("x", "a")]), "b");
        assert_eq!(best_of(&new, &nodes, &[]), "a");
        let large = pod("x", |p| {
            p["spec"]["nodeName"] = "a".into();
            p["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "3", "memory": "6Gi"}});
        });
        let small = [large, on("y", "b"), on("z", "b")];
        assert_eq!(best_of(&new, &nodes[..2], &small), "b", "two small pods take less than a large one");
    }

    #[test]
    fn soft_taints_and_preferences_outweigh_room() {
        let avoided = node_with("a", |n| n["spec"]["taints"] = json!([{"key": "k", "effect": "PreferNoSchedule"}]));
        let busy = [pod("x", |p| p["spec"]["nodeName"] = "b".into())];
        assert_eq!(best_of(&pod("new", |_| ()), &[avoided, node("b")], &busy), "b");
        let drawn = pod("new", |p| {
            let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]});
            let preferred = json!([{"weight": 1, "preference": term}]);
            p["spec"]["affinity"] =
                json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}});
        });
        assert_eq!(best_of(&drawn, &[node("a"), node("b")], &busy), "b");
    }

    #[test]
    fn wishes_for_spread_and_company_are_heard() {
        let web = |name: &str, node: &str| pod(name, |p| p["spec"]["nodeName"] = node.into());
        let other = |name: &str, node: &str| {
            pod(name, |p| {
                p["metadata"]["labels"] = json!({});
                p["spec"]["nodeName"] = node.into();
            })
        };
        let there = [web("x", "a"), other("y", "b"), other("z", "b")];
        let nodes = [node("a"), node("b")];
        assert_eq!(best_of(&pod("new", |_| ()), &nodes, &there), "a");
        let spread = pod("new", |p| {
            p["spec"]["topologySpreadConstraints"] = json!([{"topologyKey": "kubernetes.io/hostname", "maxSkew": 1,
                "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": {"app": "web"}}}]);
        });
        assert_eq!(best_of(&spread, &nodes, &there), "b");
        let term = json!({"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}});
        let apart = pod("new", |p| {
            let preferred = json!([{"weight": 100, "podAffinityTerm": term}]);
            p["spec"]["affinity"] =
                json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}});
        });
        assert_eq!(best_of(&apart, &nodes, &there), "b");
    }

    #[test]
    fn pods_of_one_controller_are_spread() {
        let of_set = |name: &str, node: &str| {
            pod(name, |p| {
                p["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "s",
                    "uid": "s", "controller": true}]);
                p["spec"]["nodeName"] = node.into();
            })
        };
        let alone = |name: &str, node: &str| pod(name, |p| p["spec"]["nodeName"] = node.into());
        let there = [of_set("s-0", "a"), alone("y", "b"), alone("z", "b")];
        assert_eq!(best_of(&of_set("s-1", ""), &[node("a"), node("b")], &there), "b");
    }

    proptest! {
        #[test]
        fn every_score_is_within_its_bounds(values in proptest::collection::vec(0..1_000_000i64, 1..20)) {
            for scores in [fewest_best(&values), most_best(&values), between(&values)] {
                prop_assert!(scores.iter().all(|s| (0..=BEST).contains(s)), "{:?}", scores);
            }
            let crowd: Vec<_> = values.iter().map(|v| (v % 7 != 0).then_some(*v as f64)).collect();
            prop_assert!(least_crowded(&crowd).iter().all(|s| (0..=BEST).contains(s)));
        }
    }
}
