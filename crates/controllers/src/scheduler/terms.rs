//! Node selector terms, taints and tolerations.

use std::cmp::Ordering;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration};

use super::needs::Needs;
use crate::work::name;

/// Whether the pod's selector and required affinity allow the node.
pub(super) fn allows(needs: &Needs, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|labels| labels.get(key));
    needs.node_selector.iter().all(|(key, value)| label(key) == Some(value))
        && needs.node_affinity.as_ref().is_none_or(|terms| any(terms, node))
}

/// Terms are alternatives; an empty one matches nothing.
pub(super) fn any(terms: &[NodeSelectorTerm], node: &Node) -> bool {
    terms.iter().any(|term| matches(term, node))
}

/// Whether one term matches; an empty one does not.
pub(super) fn matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let labels = node.metadata.labels.as_ref();
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|e| holds(e, labels.and_then(|l| l.get(&e.key)).map(String::as_str)))
        && fields.iter().all(|e| holds(e, (e.key == "metadata.name").then(|| name(node))))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = || value.is_some_and(|value| values.iter().any(|v| v == value));
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let compared = || Some(number(value)?.cmp(&number(values.first().map(String::as_str))?));
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared() == Some(Ordering::Greater),
        "Lt" => compared() == Some(Ordering::Less),
        _ => false,
    }
}

/// The first of the taints that keeps the pod away and that it does not bear.
pub(super) fn untolerated<'a>(tolerations: &[Toleration], taints: &'a [Taint]) -> Option<&'a Taint> {
    let hard = |t: &&Taint| t.effect == "NoSchedule" || t.effect == "NoExecute";
    taints.iter().filter(hard).find(|taint| !tolerated(tolerations, taint))
}

/// Whether one of the tolerations bears the taint.
pub(crate) fn tolerated(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| tolerates(toleration, taint))
}

/// Whether the toleration bears the taint.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let empty = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
    let effect = empty(&toleration.effect) || toleration.effect.as_deref() == Some(&taint.effect);
    let key = empty(&toleration.key) || toleration.key.as_deref() == Some(&taint.key);
    let own = taint.value.as_deref().unwrap_or_default();
    let given = toleration.value.as_deref().unwrap_or_default();
    let compared = || Some(own.parse::<i64>().ok()?.cmp(&given.parse::<i64>().ok()?));
    let value = match toleration.operator.as_deref() {
        Some("Exists") => true,
        Some("Gt") => compared() == Some(Ordering::Greater),
        Some("Lt") => compared() == Some(Ordering::Less),
        _ => !empty(&toleration.key) && given == own,
    };
    effect && key && value
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn taint(key: &str, value: &str, effect: &str) -> Taint {
        serde_json::from_value(json!({"key": key, "value": value, "effect": effect})).expect("a taint")
    }

    fn toleration(value: Value) -> Toleration {
        serde_json::from_value(value).expect("a toleration")
    }

    #[test]
    fn tolerations_are_compared_by_key_value_and_effect() {
        let hard = taint("k", "v", "NoSchedule");
        for (value, expected) in [
            (json!({"key": "k", "value": "v", "effect": "NoSchedule"}), true),
            (json!({"key": "k", "operator": "Exists"}), true),
            (json!({"operator": "Exists"}), true),
            (json!({"key": "k", "value": "other"}), false),
            (json!({"key": "k", "value": "v", "effect": "NoExecute"}), false),
            (json!({"operator": "Equal", "value": "v"}), false),
        ] {
            assert_eq!(tolerates(&toleration(value.clone()), &hard), expected, "{value}");
        }
        let soft = [taint("k", "v", "PreferNoSchedule")];
        assert_eq!(untolerated(&[], &soft), None, "it is only to be avoided");
    }

    #[test]
    fn terms_look_at_labels_and_at_the_name() {
        let node = json!({"metadata": {"name": "n1", "labels": {"zone": "a", "disks": "4"}}});
        let node: Node = serde_json::from_value(node).expect("a node");
        for (term, expected) in [
            (json!({}), false),
            (json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b", "a"]}]}), true),
            (json!({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}), false),
            (json!({"matchExpressions": [{"key": "none", "operator": "NotIn", "values": ["a"]}]}), true),
            (json!({"matchExpressions": [{"key": "none", "operator": "DoesNotExist"}]}), true),
            (json!({"matchExpressions": [{"key": "disks", "operator": "Gt", "values": ["3"]}]}), true),
            (json!({"matchExpressions": [{"key": "disks", "operator": "Lt", "values": ["4"]}]}), false),
            (json!({"matchExpressions": [{"key": "zone", "operator": "Gt", "values": ["3"]}]}), false),
            (json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}), true),
            (json!({"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]}), false),
            (
                json!({"matchExpressions": [{"key": "zone", "operator": "Exists"}],
                "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}),
                false,
            ),
        ] {
            let read: NodeSelectorTerm = serde_json::from_value(term.clone()).expect("a term");
            assert_eq!(matches(&read, &node), expected, "{term}");
        }
    }

    proptest! {
        /// Of a taint that all is tolerated of, nothing keeps a pod away.
        #[test]
        fn who_tolerates_everything_is_kept_away_by_nothing(
            taints in proptest::collection::vec(("[a-c]", "[x-z]?", "(NoSchedule|NoExecute|PreferNoSchedule)"), 0..5)
        ) {
            let taints: Vec<Taint> = taints.iter().map(|(k, v, e)| taint(k, v, e)).collect();
            let all = [toleration(json!({"operator": "Exists"}))];
            prop_assert_eq!(untolerated(&all, &taints), None);
            let hard = taints.iter().any(|t| t.effect != "PreferNoSchedule");
            prop_assert_eq!(untolerated(&[], &taints).is_some(), hard);
        }
    }
}
