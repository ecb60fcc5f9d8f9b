//! Whether a pod may be on this node by its own word: node selector and required node affinity. The scheduler looks, too,
//! but a pod may name its node, and a node's labels may change while a binding is under way.

use std::cmp::Ordering;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec};

/// Reason and sentence of a refusal, a kubelet's.
pub const REASON: &str = "NodeAffinity";
/// As [`REASON`].
pub const SENTENCE: &str = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";

/// Whether the pod says anything of its node.
pub fn asks(spec: &PodSpec) -> bool {
    spec.node_selector.as_ref().is_some_and(|labels| !labels.is_empty()) || required(spec).is_some()
}

/// Whether the node is one that the pod allows.
pub fn fits(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|labels| labels.get(key));
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| label(key) == Some(value));
    // Terms are alternatives; of none, none holds.
    selected && required(spec).is_none_or(|terms| terms.iter().any(|term| holds(term, node)))
}

fn required(spec: &PodSpec) -> Option<&[NodeSelectorTerm]> {
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    Some(&required.node_selector_terms)
}

/// An empty term matches nothing.
fn holds(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|l| l.get(key)).map(String::as_str);
    let field = |key: &str| node.metadata.name.as_deref().filter(|_| key == "metadata.name");
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|e| is_met(e, label(&e.key)))
        && fields.iter().all(|e| is_met(e, field(&e.key)))
}

fn is_met(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|v| v == value));
    let number = |text: &str| text.parse::<i64>().ok();
    let order = || number(value?).zip(number(values.first()?)).map(|(have, bound)| have.cmp(&bound));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => order() == Some(Ordering::Greater),
        "Lt" => order() == Some(Ordering::Less),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn fits(spec: Value) -> bool {
        let node = json!({"metadata": {"name": "n1", "labels": {"zone": "a", "disks": "4"}}});
        let spec: PodSpec = serde_json::from_value(spec).expect("a specification");
        assert!(asks(&spec), "{spec:?}");
        super::fits(&spec, &serde_json::from_value(node).expect("a node"))
    }

    fn requires(terms: Value) -> Value {
        json!({"containers": [], "affinity": {"nodeAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
    }

    #[test]
    fn every_label_of_a_selector_has_to_be_there() {
        assert!(fits(json!({"containers": [], "nodeSelector": {"zone": "a", "disks": "4"}})));
        assert!(!fits(json!({"containers": [], "nodeSelector": {"zone": "a", "disks": "5"}})));
        assert!(!fits(json!({"containers": [], "nodeSelector": {"none": ""}})));
        assert!(!asks(&PodSpec::default()));
    }

    #[test]
    fn one_term_of_a_required_affinity_has_to_hold_as_a_whole() {
        let expression =
            |key: &str, operator: &str, values: Value| json!({"key": key, "operator": operator, "values": values});
        for (term, expected) in [
            (json!({}), false),
            (json!({"matchExpressions": [expression("zone", "In", json!(["b", "a"]))]}), true),
            (json!({"matchExpressions": [expression("zone", "NotIn", json!(["a"]))]}), false),
            (json!({"matchExpressions": [expression("none", "NotIn", json!(["a"]))]}), true),
            (json!({"matchExpressions": [expression("none", "DoesNotExist", json!([]))]}), true),
            (json!({"matchExpressions": [expression("none", "Exists", json!([]))]}), false),
            (json!({"matchExpressions": [expression("disks", "Gt", json!(["3"]))]}), true),
            (json!({"matchExpressions": [expression("disks", "Lt", json!(["4"]))]}), false),
            (json!({"matchExpressions": [expression("zone", "Gt", json!(["3"]))]}), false),
            (json!({"matchExpressions": [expression("zone", "Like", json!(["a"]))]}), false),
            (json!({"matchFields": [expression("metadata.name", "In", json!(["n1"]))]}), true),
            (
                json!({"matchExpressions": [expression("zone", "Exists", json!([]))],
                    "matchFields": [expression("metadata.name", "In", json!(["n2"]))]}),
                false,
            ),
        ] {
            assert_eq!(fits(requires(json!([term]))), expected, "{term}");
            let other = json!({"matchExpressions": [expression("zone", "In", json!(["a"]))]});
            assert!(fits(requires(json!([term, other]))), "{term}");
        }
    }
}
