//! What a node's agent may not write, although the objects are its own: upstream's NodeRestriction.
//!
//! Who places pods by labels or keeps them away by taints relies on these being said by somebody else: an agent that
//! was taken over must not draw pods with their secrets to its machine.

use std::collections::BTreeSet;

use api::status::Status;
use serde_json::Value;

use crate::auth::node::node_of;
use crate::errors::Outcome;
use crate::handler::Call;
use crate::verbs::create::text;

/// Labels of Kubernetes' own domains that an agent tells about its machine.
const TOLD: [&str; 12] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.kubernetes.io/region",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// Domains below Kubernetes' own that are for agents.
const OPEN: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
/// The domain that is for everybody but agents.
const CLOSED: &str = "node-restriction.kubernetes.io";

/// A node's agent makes its own Node and Lease, nobody else's, and says nothing about them that others rely on.
pub(super) fn create(call: &Call, object: &Value) -> Outcome<()> {
    let Some(own) = agent(call, &["Node", "Lease"]) else { return Ok(()) };
    if text(object, "name") != own {
        return refuse(call, object, format!("node '{own}' may only create its own"));
    }
    let labels = restricted(object, &Value::Null);
    if call.resource.kind == "Node" && !labels.is_empty() {
        return refuse(call, object, format!("node {own:?} is not allowed to set the following labels: {labels}"));
    }
    Ok(())
}

/// The same for changes.
pub(super) fn update(call: &Call, new: &Value, old: &Value) -> Outcome<()> {
    let Some(own) = agent(call, &["Node"]) else { return Ok(()) };
    if new["spec"]["taints"] != old["spec"]["taints"] {
        return refuse(call, new, format!("node {own:?} is not allowed to modify taints"));
    }
    let labels = restricted(new, old);
    if labels.is_empty() {
        return Ok(());
    }
    refuse(call, new, format!("node {own:?} is not allowed to modify labels: {labels}"))
}

/// The node for whose agent the call is, if it is about one of these kinds.
fn agent<'a>(call: &'a Call, kinds: &[&str]) -> Option<&'a str> {
    let built_in = call.resource.custom.is_none() && kinds.contains(&&*call.resource.kind);
    node_of(&call.identity).filter(|_| built_in)
}

fn refuse(call: &Call, object: &Value, why: String) -> Outcome<()> {
    Err(Box::new(Status::forbidden(&call.resource.group, &call.resource.plural, text(object, "name"), why)))
}

/// The labels that differ and are not an agent's to say.
fn restricted(new: &Value, old: &Value) -> String {
    let labels = |object: &Value| object["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let (new, old) = (labels(new), labels(old));
    let changed: BTreeSet<&String> =
        new.keys().chain(old.keys()).filter(|key| new.get(*key) != old.get(*key)).collect();
    let names: Vec<&str> = changed.into_iter().map(String::as_str).filter(|key| is_restricted(key)).collect();
    names.join(", ")
}

/// Whether a label is not an agent's to say.
fn is_restricted(label: &str) -> bool {
    let Some((domain, _)) = label.split_once('/') else { return false };
    let within = |parent: &str| domain == parent || domain.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'));
    if within(CLOSED) {
        return true;
    }
    let is_kubernetes = within("kubernetes.io") || within("k8s.io");
    is_kubernetes && !TOLD.contains(&label) && !OPEN.iter().any(|domain| within(domain))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_agent_tells_of_its_machine_and_sets_no_label_that_others_rely_on() {
        for free in
            ["x", "example.com/x", "kubernetes.io/hostname", "sub.kubelet.kubernetes.io/x", "notkubernetes.io/x"]
        {
            assert!(!is_restricted(free), "{free}");
        }
        for closed in [
            "node-restriction.kubernetes.io/x",
            "a.node-restriction.kubernetes.io/x",
            "node-role.kubernetes.io/control-plane",
            "kubernetes.io/x",
            "x.k8s.io/y",
        ] {
            assert!(is_restricted(closed), "{closed}");
        }
    }

    #[test]
    fn only_what_changes_counts() {
        let node = |value: &str| json!({"metadata": {"labels": {"node-role.kubernetes.io/a": value, "x": value}}});
        assert_eq!(restricted(&node("1"), &node("1")), "");
        assert_eq!(restricted(&node("1"), &node("2")), "node-role.kubernetes.io/a");
        assert_eq!(restricted(&json!({}), &node("2")), "node-role.kubernetes.io/a");
    }
}
