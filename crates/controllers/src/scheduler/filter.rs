//! Which node a pod may go to, and in which words it is told that there is none. No I/O.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, Taint, Toleration,
};

use crate::informers::PodView;
use crate::work::name;

/// What is to be done for a pod that wants a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Bind it to this node.
    Bind { node: String },
    /// Its claims wait for a node: give them this one. `claims` are those that do not have it yet; when
    /// it is empty there is nothing to do but wait for the volumes.
    Provision { node: String, claims: Vec<String> },
    /// There is no place; the reason as people read it.
    Unschedulable { message: String },
}

/// A claim of the pod, as far as scheduling goes.
#[derive(Clone, Debug)]
pub(super) enum ClaimState {
    /// No node will do, for this reason.
    Hopeless(String),
    /// Bound to this volume.
    Bound(Arc<PersistentVolume>),
    /// Its volume is made once a node is chosen; this one was, if any.
    Delayed { claim: String, selected: Option<String> },
}

/// Decides for one pod. `load` is the number of pods on each node.
pub(super) fn decide(
    pod: &PodView,
    claims: &[ClaimState],
    nodes: &[Arc<Node>],
    load: &HashMap<String, usize>,
) -> Decision {
    if let Some(why) = claims.iter().find_map(|c| if let ClaimState::Hopeless(why) = c { Some(why) } else { None }) {
        let message = format!("0/{} nodes are available: {why}.", nodes.len());
        return Decision::Unschedulable { message };
    }
    if nodes.is_empty() {
        return Decision::Unschedulable { message: "no nodes available to schedule pods".into() };
    }
    let load_of = |node: &Node| load.get(name(node)).copied().unwrap_or(0);
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut fitting: Vec<&Node> = Vec::new();
    for node in nodes {
        match obstacle(pod, claims, node, load_of(node)) {
            Some(reason) => *reasons.entry(reason).or_default() += 1,
            None => fitting.push(node),
        }
    }
    // A node that a claim already waits for is kept while it will do: its volume may be on the way.
    let selected = |node: &Node| {
        let chosen = |c: &ClaimState| matches!(c, ClaimState::Delayed { selected: Some(s), .. } if s == name(node));
        claims.iter().any(chosen)
    };
    let Some(best) = fitting.into_iter().min_by_key(|node| (!selected(node), load_of(node), name(*node))) else {
        return Decision::Unschedulable { message: refusal(nodes.len(), &reasons) };
    };
    let node = name(best).to_owned();
    let delayed: Vec<_> = claims
        .iter()
        .filter_map(|c| if let ClaimState::Delayed { claim, selected } = c { Some((claim, selected)) } else { None })
        .collect();
    if delayed.is_empty() {
        return Decision::Bind { node };
    }
    let claims = delayed.into_iter().filter(|(_, s)| s.as_deref() != Some(&node)).map(|(c, _)| c.clone());
    Decision::Provision { claims: claims.collect(), node }
}

/// `0/3 nodes are available: 1 node(s) were unschedulable, 2 Too many pods.`
fn refusal(nodes: usize, reasons: &BTreeMap<String, usize>) -> String {
    let mut parts: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}

/// Why a pod cannot go to a node, if it cannot; in the order of upstream's filters.
fn obstacle(pod: &PodView, claims: &[ClaimState], node: &Node, load: usize) -> Option<String> {
    let spec = node.spec.as_ref();
    let cordon = taint("node.kubernetes.io/unschedulable", "NoSchedule");
    if spec.is_some_and(|s| s.unschedulable == Some(true)) && !tolerated(pod, &cordon) {
        return Some("node(s) were unschedulable".into());
    }
    let taints = spec.and_then(|s| s.taints.as_ref()).into_iter().flatten();
    let hard = |t: &&Taint| t.effect == "NoSchedule" || t.effect == "NoExecute";
    let untolerated =
        |t: &Taint| format!("node(s) had untolerated taint {{{}: {}}}", t.key, t.value.as_deref().unwrap_or_default());
    if let Some(taint) = taints.filter(hard).find(|t| !tolerated(pod, t)) {
        return Some(untolerated(taint));
    }
    // The taint that says so follows a moment after the condition.
    let key = match ready(node) {
        Some("True") => None,
        Some("Unknown") => Some("node.kubernetes.io/unreachable"),
        _ => Some("node.kubernetes.io/not-ready"),
    };
    if let Some(taint) = key.map(|key| taint(key, "NoSchedule")).filter(|t| !tolerated(pod, t)) {
        return Some(untolerated(&taint));
    }
    let labels = node.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|labels| labels.get(key));
    let selected = pod.node_selector.iter().all(|(key, value)| label(key) == Some(value));
    if !selected || pod.node_affinity.as_ref().is_some_and(|terms| !any_term(terms, node)) {
        return Some("node(s) didn't match Pod's node affinity/selector".into());
    }
    let bound = claims.iter().filter_map(|c| if let ClaimState::Bound(v) = c { Some(v) } else { None });
    let reach = |volume: &PersistentVolume| {
        let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref());
        affinity.and_then(|a| a.required.as_ref()).is_none_or(|r| any_term(&r.node_selector_terms, node))
    };
    if !bound.into_iter().all(|volume| reach(volume)) {
        return Some("node(s) didn't match PersistentVolume's node affinity".into());
    }
    (load >= room(node)).then(|| "Too many pods".into())
}

/// How many pods a node takes; as many as come where it does not say.
fn room(node: &Node) -> usize {
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    allocatable.and_then(|all| all.get("pods")).and_then(|q| q.0.parse().ok()).unwrap_or(usize::MAX)
}

/// The status of a node's condition Ready.
pub(crate) fn ready(node: &Node) -> Option<&str> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == "Ready").map(|c| c.status.as_str())
}

fn taint(key: &str, effect: &str) -> Taint {
    Taint { key: key.into(), effect: effect.into(), ..Taint::default() }
}

fn tolerated(pod: &PodView, taint: &Taint) -> bool {
    pod.tolerations.iter().any(|toleration| tolerates(toleration, taint))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let empty = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
    let effect = empty(&toleration.effect) || toleration.effect.as_deref() == Some(&taint.effect);
    let key = empty(&toleration.key) || toleration.key.as_deref() == Some(&taint.key);
    let value = match toleration.operator.as_deref() {
        Some("Exists") => true,
        _ => {
            !empty(&toleration.key)
                && toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
        }
    };
    effect && key && value
}

/// Terms are alternatives; an empty one matches nothing.
fn any_term(terms: &[NodeSelectorTerm], node: &Node) -> bool {
    terms.iter().any(|term| {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        let labels = node.metadata.labels.as_ref();
        (!expressions.is_empty() || !fields.is_empty())
            && expressions.iter().all(|e| matches(e, labels.and_then(|l| l.get(&e.key)).map(String::as_str)))
            && fields.iter().all(|e| matches(e, (e.key == "metadata.name").then(|| name(node))))
    })
}

fn matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = || value.is_some_and(|value| values.iter().any(|v| v == value));
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let compared = || Some(number(value)?.cmp(&number(values.first().map(String::as_str))?));
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared() == Some(std::cmp::Ordering::Greater),
        "Lt" => compared() == Some(std::cmp::Ordering::Less),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, rest: serde_json::Value) -> Arc<Node> {
        let mut node = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {"pods": "110"}},
        });
        for (key, value) in rest.as_object().expect("an object") {
            node[key] = value.clone();
        }
        Arc::new(serde_json::from_value(node).expect("a node"))
    }

    fn bound_to(host: &str) -> ClaimState {
        let volume = json!({"metadata": {"name": "v"}, "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}]}}}});
        ClaimState::Bound(Arc::new(serde_json::from_value(volume).expect("a volume")))
    }

    fn message(decision: Decision) -> String {
        match decision {
            Decision::Unschedulable { message } => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_node_with_the_fewest_pods_is_taken() {
        let nodes = [node("a", json!({})), node("b", json!({})), node("c", json!({}))];
        let load = HashMap::from([("a".to_owned(), 3), ("b".to_owned(), 1), ("c".to_owned(), 1)]);
        assert_eq!(decide(&PodView::default(), &[], &nodes, &load), Decision::Bind { node: "b".into() });
    }

    #[test]
    fn every_obstacle_is_counted_in_upstreams_words() {
        let nodes = [
            node("a", json!({"spec": {"unschedulable": true}})),
            node("b", json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}})),
            node("c", json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}})),
            node(
                "d",
                json!({"status": {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {"pods": "2"}}}),
            ),
            node("e", json!({"spec": {"unschedulable": true}})),
        ];
        let load = HashMap::from([("d".to_owned(), 2)]);
        assert_eq!(
            message(decide(&PodView::default(), &[], &nodes, &load)),
            "0/5 nodes are available: 1 Too many pods, 1 node(s) had untolerated taint {k: v}, \
             1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }, 2 node(s) were unschedulable."
        );
        let none = decide(&PodView::default(), &[], &[], &load);
        assert_eq!(message(none), "no nodes available to schedule pods");
    }

    #[test]
    fn tolerations_selectors_and_affinity_decide() {
        let tainted = json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}});
        let nodes = [node("a", tainted)];
        let bind = Decision::Bind { node: "a".into() };
        for (toleration, expected) in [
            (json!({"key": "k", "value": "v", "effect": "NoSchedule"}), true),
            (json!({"key": "k", "operator": "Exists"}), true),
            (json!({"operator": "Exists"}), true),
            (json!({"key": "k", "value": "other"}), false),
            (json!({"key": "k", "value": "v", "effect": "NoExecute"}), false),
        ] {
            let toleration = serde_json::from_value(toleration).expect("a toleration");
            let pod = PodView { tolerations: vec![toleration], ..PodView::default() };
            assert_eq!(decide(&pod, &[], &nodes, &HashMap::new()) == bind, expected, "{pod:?}");
        }
        let nodes = [node("a", json!({}))];
        let select = |value: &str| PodView {
            node_selector: BTreeMap::from([("kubernetes.io/hostname".to_owned(), value.to_owned())]),
            ..PodView::default()
        };
        assert_eq!(decide(&select("a"), &[], &nodes, &HashMap::new()), bind);
        assert!(message(decide(&select("b"), &[], &nodes, &HashMap::new())).contains("affinity/selector"));
        let empty = PodView { node_affinity: Some(vec![NodeSelectorTerm::default()]), ..PodView::default() };
        assert!(message(decide(&empty, &[], &nodes, &HashMap::new())).contains("affinity/selector"));
    }

    #[test]
    fn a_bound_volume_draws_its_pod_to_its_node() {
        let nodes = [node("a", json!({})), node("b", json!({}))];
        let load = HashMap::from([("b".to_owned(), 100)]);
        let claims = [bound_to("b")];
        assert_eq!(decide(&PodView::default(), &claims, &nodes, &load), Decision::Bind { node: "b".into() });
        let claims = [bound_to("b"), bound_to("a")];
        assert_eq!(
            message(decide(&PodView::default(), &claims, &nodes, &load)),
            "0/2 nodes are available: 2 node(s) didn't match PersistentVolume's node affinity."
        );
    }

    #[test]
    fn waiting_claims_get_one_node_and_keep_it() {
        let nodes = [node("a", json!({})), node("b", json!({}))];
        let load = HashMap::from([("b".to_owned(), 5)]);
        let delayed = |claim: &str, selected: Option<&str>| ClaimState::Delayed {
            claim: claim.into(),
            selected: selected.map(str::to_owned),
        };
        let claims = [delayed("x", Some("b")), delayed("y", None)];
        let expected = Decision::Provision { node: "b".into(), claims: vec!["y".into()] };
        assert_eq!(decide(&PodView::default(), &claims, &nodes, &load), expected);
        let claims = [delayed("x", Some("gone"))];
        let expected = Decision::Provision { node: "a".into(), claims: vec!["x".into()] };
        assert_eq!(decide(&PodView::default(), &claims, &nodes, &load), expected);
        let claims = [delayed("x", Some("b")), ClaimState::Hopeless("persistentvolumeclaim \"z\" not found".into())];
        assert_eq!(
            message(decide(&PodView::default(), &claims, &nodes, &load)),
            "0/2 nodes are available: persistentvolumeclaim \"z\" not found."
        );
    }
}
