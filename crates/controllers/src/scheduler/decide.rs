//! What is to be done for a pod that wants a node. No I/O: everything it looks at is given.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::cluster::{Cluster, Entry};
use super::filter::{self, Obstacle, Surroundings};
use super::preempt::{self, Help};
use super::score;
use super::storage::{self, ClaimState, Source};
use crate::informers::PodView;

/// What is to be done for a pod that wants a node.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Decision {
    /// Bind it to this node.
    Bind {
        /// The node's name.
        node: String,
    },
    /// Its claims wait for a node: this one. When nothing is left to tell them there is nothing to do but wait.
    Provision {
        /// The node's name.
        node: String,
        /// Claims that are to be told the node.
        claims: Vec<String>,
        /// Volumes that are there and are to be given to claims.
        volumes: Vec<Source>,
    },
    /// There is a place once others are gone.
    Preempt {
        /// The node's name.
        node: String,
        /// Who has to go.
        victims: Vec<Arc<PodView>>,
        /// Why there is no place yet.
        message: String,
    },
    /// There is no place; the reason as people read it.
    Unschedulable {
        /// The reason.
        message: String,
    },
}

/// Decides for one pod, which is not itself counted in the cluster.
pub(super) fn decide(pod: &Arc<PodView>, claims: &[ClaimState], cluster: &Cluster) -> Decision {
    let all = cluster.nodes().count();
    if all == 0 {
        return Decision::Unschedulable { message: "no nodes available to schedule pods".into() };
    }
    if let Some(why) = claims.iter().find_map(|c| if let ClaimState::Hopeless(why) = c { Some(why) } else { None }) {
        let message = format!(
            "0/{all} nodes are available: {why}. preemption: 0/{all} nodes are available: {all} Preemption is not \
             helpful for scheduling."
        );
        return Decision::Unschedulable { message };
    }
    let around = Surroundings::of(pod, cluster);
    let mut fitting: Vec<(&str, &Entry)> = Vec::new();
    let mut refusals: Vec<(&str, &Entry, Obstacle)> = Vec::new();
    for (name, entry) in cluster.nodes() {
        match filter::obstacle(pod, claims, (name, entry), &entry.load, &around, cluster) {
            Some(obstacle) => refusals.push((name, entry, obstacle)),
            None => fitting.push((name, entry)),
        }
    }
    let fits = |name: &str| fitting.iter().find(|(fitting, _)| *fitting == name).map(|(name, _)| *name);
    // A node that a claim already waits for is kept while it will do: its volume may be on the way. So is the one where
    // room was made.
    let kept = storage::delayed(claims).find_map(|delayed| fits(delayed.selected.as_deref()?));
    let kept = kept.or_else(|| fits(pod.needs.nominated.as_deref()?));
    match kept.or_else(|| score::best(pod, &fitting, &around.spreading, cluster)) {
        Some(node) => place(node, claims, cluster),
        None => refuse(pod, claims, &refusals, &around, cluster),
    }
}

/// The pod fits here.
fn place(node: &str, claims: &[ClaimState], cluster: &Cluster) -> Decision {
    let object = cluster.entry(node).and_then(|entry| entry.node.as_deref());
    let sources = object.and_then(|node| storage::sources(claims, node)).unwrap_or_default();
    if sources.is_empty() {
        return Decision::Bind { node: node.to_owned() };
    }
    let told = |claim: &str| storage::delayed(claims).any(|d| d.claim == claim && d.selected.as_deref() == Some(node));
    let (mut claims, mut volumes) = (Vec::new(), Vec::new());
    for source in sources {
        match source {
            Source::Made { claim } if told(&claim) => {}
            Source::Made { claim } => claims.push(claim),
            found @ Source::Found { .. } => volumes.push(found),
        }
    }
    Decision::Provision { node: node.to_owned(), claims, volumes }
}

/// The pod fits nowhere: others go, or it is told why.
fn refuse(
    pod: &Arc<PodView>,
    claims: &[ClaimState],
    refusals: &[(&str, &Entry, Obstacle)],
    around: &Surroundings,
    cluster: &Cluster,
) -> Decision {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for reason in refusals.iter().flat_map(|(_, _, obstacle)| &obstacle.reasons) {
        *reasons.entry(reason.clone()).or_default() += 1;
    }
    let message = refusal(refusals.len(), &reasons);
    match preempt::help(pod, claims, refusals, around, cluster) {
        Help::Room { node, victims } => Decision::Preempt { node, victims, message },
        Help::Useless(why) => Decision::Unschedulable { message: format!("{message} preemption: {why}") },
    }
}

/// `0/3 nodes are available: 1 node(s) were unschedulable, 2 Too many pods.`
pub(super) fn refusal(nodes: usize, reasons: &BTreeMap<String, usize>) -> String {
    let mut parts: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use k8s_openapi::api::core::v1::Node;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::storage::Delayed;
    use super::super::testing::{cluster, node, node_with, pod};
    use super::*;

    fn bound_to(host: &str) -> ClaimState {
        let volume = json!({"metadata": {"name": "v"}, "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}]}}}});
        ClaimState::Bound(Arc::new(serde_json::from_value(volume).expect("a volume")))
    }

    fn waits(claim: &str, selected: Option<&str>) -> ClaimState {
        let selected = selected.map(str::to_owned);
        ClaimState::Delayed(Delayed { claim: claim.into(), selected, made: true, ..Delayed::default() })
    }

    fn message(decision: Decision) -> String {
        match decision {
            Decision::Unschedulable { message } => message,
            other => panic!("{other:?}"),
        }
    }

    fn bind(node: &str) -> Decision {
        Decision::Bind { node: node.into() }
    }

    #[test]
    fn every_obstacle_is_counted_in_upstreams_words() {
        let anti = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}});
        let new = pod("new", |p| {
            p["spec"]["affinity"] = anti.clone();
            p["spec"]["nodeSelector"] = json!({"disk": "fast"});
            p["spec"]["containers"][0] = json!({"name": "c", "resources": {"requests": {"cpu": "2", "memory": "1Gi"}},
                "ports": [{"containerPort": 1, "hostPort": 80}]});
        });
        let fast = |name: &str, change: fn(&mut Value)| {
            node_with(name, |n| {
                n["metadata"]["labels"]["disk"] = "fast".into();
                change(n);
            })
        };
        let nodes = [
            fast("a", |n| n["spec"]["unschedulable"] = true.into()),
            fast("b", |n| n["spec"]["taints"] = json!([{"key": "k", "value": "v", "effect": "NoExecute"}])),
            fast("c", |n| n["status"]["conditions"][0]["status"] = "Unknown".into()),
            node("d"),
            fast("e", |_| ()),
            fast("f", |n| n["status"]["allocatable"] = json!({"pods": "0", "cpu": "1", "memory": "1Mi"})),
            fast("g", |_| ()),
        ];
        let taker = pod("x", |p| {
            p["spec"]["nodeName"] = "e".into();
            p["spec"]["containers"][0]["ports"] = json!([{"containerPort": 9, "hostPort": 80}]);
        });
        let there = cluster(&nodes, &[taker, pod("y", |p| p["spec"]["nodeName"] = "g".into())]);
        assert_eq!(
            message(decide(&new, &[], &there)),
            "0/7 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 1 Too many pods, \
             1 node(s) didn't have free ports for the requested pod ports, \
             1 node(s) didn't match Pod's node affinity/selector, 1 node(s) didn't match pod anti-affinity rules, \
             1 node(s) had untolerated taint {k: v}, 1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }, \
             1 node(s) were unschedulable. preemption: 0/7 nodes are available: \
             2 No preemption victims found for incoming pod, 5 Preemption is not helpful for scheduling."
        );
        assert_eq!(message(decide(&new, &[], &Cluster::default())), "no nodes available to schedule pods");
    }

    #[test]
    fn a_bound_volume_draws_its_pod_to_its_node() {
        let busy: Vec<_> = (0..20).map(|i| pod(&format!("p{i}"), |p| p["spec"]["nodeName"] = "b".into())).collect();
        let there = cluster(&[node("a"), node("b")], &busy);
        let new = pod("new", |_| ());
        assert_eq!(decide(&new, &[bound_to("b")], &there), bind("b"));
        assert!(message(decide(&new, &[bound_to("b"), bound_to("a")], &there)).starts_with(
            "0/2 nodes are available: 2 node(s) didn't match PersistentVolume's node affinity. preemption:"
        ));
    }

    #[test]
    fn waiting_claims_get_one_node_and_keep_it() {
        let busy = pod("x", |p| p["spec"]["nodeName"] = "b".into());
        let there = cluster(&[node("a"), node("b")], &[busy]);
        let new = pod("new", |_| ());
        let provision = |node: &str, claims: &[&str]| Decision::Provision {
            node: node.into(),
            claims: claims.iter().map(|c| (*c).to_owned()).collect(),
            volumes: Vec::new(),
        };
        let claims = [waits("x", Some("b")), waits("y", None)];
        assert_eq!(decide(&new, &claims, &there), provision("b", &["y"]));
        assert_eq!(decide(&new, &[waits("x", Some("gone"))], &there), provision("a", &["x"]));
        assert_eq!(decide(&new, &[waits("x", Some("b"))], &there), provision("b", &[]), "nothing but to wait");
        let claims = [waits("x", Some("b")), ClaimState::Hopeless("persistentvolumeclaim \"z\" not found".into())];
        assert_eq!(
            message(decide(&new, &claims, &there)),
            "0/2 nodes are available: persistentvolumeclaim \"z\" not found. preemption: 0/2 nodes are available: \
             2 Preemption is not helpful for scheduling."
        );
    }

    #[test]
    fn a_claim_that_one_pod_may_use_waits_for_that_pod() {
        let there = cluster(&[node("a")], &[pod("user", |p| p["spec"]["nodeName"] = "a".into())]);
        let claims = [ClaimState::InUse(BTreeSet::from(["user".to_owned()]))];
        let told = message(decide(&pod("new", |_| ()), &claims, &there));
        assert!(
            told.starts_with(
                "0/1 nodes are available: 1 node has pod using PersistentVolumeClaim with the same name and \
                 ReadWriteOncePod access mode."
            ),
            "{told}"
        );
        let higher = pod("new", |p| p["spec"]["priority"] = 7.into());
        assert!(
            matches!(decide(&higher, &claims, &there), Decision::Preempt { victims, .. } if victims[0].name == "user")
        );
    }

    /// A node as chance makes it: cordoned, tainted, in a zone, with room.
    fn some_node(at: usize, (cordon, taint, zone, cpu): (bool, bool, u8, u8)) -> Arc<Node> {
        node_with(&format!("n{at}"), |n| {
            n["metadata"]["labels"]["zone"] = format!("z{zone}").into();
            n["spec"]["unschedulable"] = cordon.into();
            if taint {
                n["spec"]["taints"] = json!([{"key": "k", "effect": "NoSchedule"}]);
            }
            n["status"]["allocatable"] = json!({"pods": "4", "cpu": cpu.to_string()});
        })
    }

    fn some_pod(name: &str, (tolerates, zone, cpu, port, apart): (bool, Option<u8>, u8, bool, bool)) -> Arc<PodView> {
        pod(name, |p| {
            if tolerates {
                p["spec"]["tolerations"] = json!([{"key": "k", "operator": "Exists"}]);
            }
            if let Some(zone) = zone {
                p["spec"]["nodeSelector"] = json!({"zone": format!("z{zone}")});
            }
            p["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": cpu.to_string()}});
            if port {
                p["spec"]["containers"][0]["ports"] = json!([{"containerPort": 1, "hostPort": 80}]);
            }
            if apart {
                p["spec"]["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                    {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}});
            }
        })
    }

    proptest! {
        /// Whatever pods come in whatever order: no node is ever given more than it has, no rule of any pod is broken,
        /// and a pod is refused only where every node has a reason.
        #[test]
        fn anytime_every_pod_is_where_it_may_be(
            nodes in proptest::collection::vec((any::<bool>(), any::<bool>(), 0..3u8, 0..5u8), 1..5),
            pods in proptest::collection::vec(
                (any::<bool>(), proptest::option::of(0..3u8), 0..4u8, any::<bool>(), any::<bool>()), 0..12),
        ) {
            let made: Vec<_> = nodes.iter().enumerate().map(|(at, n)| some_node(at, *n)).collect();
            let mut there = cluster(&made, &[]);
            for (i, wants) in pods.iter().enumerate() {
                let new = some_pod(&format!("p{i}"), *wants);
                match decide(&new, &[], &there) {
                    Decision::Bind { node } => there.assume(&new, &node, super::super::cluster::Word::Bound),
                    Decision::Unschedulable { message } => {
                        let head = message.split(". preemption").next().unwrap();
                        let counts: usize = head.split(": ").nth(1).unwrap().split(", ")
                            .filter(|part| !part.contains("Insufficient"))
                            .map(|part| part.split(' ').next().unwrap().parse::<usize>().unwrap()).sum();
                        prop_assert!(counts <= nodes.len() && head.starts_with(&format!("0/{} nodes", nodes.len())), "{}", message);
                    }
                    other => prop_assert!(false, "no pod is more important than another: {:?}", other),
                }
                for (name, entry) in there.nodes() {
                    let at: usize = name[1..].parse().unwrap();
                    let (cordon, taint, zone, cpu) = nodes[at];
                    let on: Vec<_> = entry.load.pods.values().map(|p| pods[p.name[1..].parse::<usize>().unwrap()]).collect();
                    prop_assert!(on.len() <= 4 && (on.is_empty() || !cordon));
                    prop_assert!(on.iter().map(|p| u32::from(p.2)).sum::<u32>() <= u32::from(cpu));
                    prop_assert!(on.iter().filter(|p| p.3).count() <= 1, "one port, two pods");
                    prop_assert!(on.len() <= 1 || !on.iter().any(|p| p.4), "apart");
                    prop_assert!(on.iter().all(|p| (p.0 || !taint) && p.1.is_none_or(|z| z == zone)));
                }
            }
        }
    }
}
