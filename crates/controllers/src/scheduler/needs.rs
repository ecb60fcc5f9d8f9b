//! What a pod asks of the node that it is to run on, read from its manifest once.

use std::collections::{BTreeMap, BTreeSet};

use api::selector::LabelSelector;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Affinity, NodeSelectorTerm, PodAffinityTerm, PodSpec, PodStatus, Toleration, TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use serde_json::{Value, json};

use super::amounts::Amounts;

/// Everything that placing a pod looks at, beside its name, labels and claims.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Needs {
    /// What it takes of a node.
    pub requests: Amounts,
    /// Processor and memory as they weigh when nodes are compared.
    pub weight: (i64, i64),
    /// The ports of the machine that it wants for itself.
    pub ports: Vec<HostPort>,
    /// Labels that its node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Required node affinity; one of the terms must match.
    pub node_affinity: Option<Vec<NodeSelectorTerm>>,
    /// Preferred node affinity: weight and term.
    pub preferred_nodes: Vec<(i32, NodeSelectorTerm)>,
    /// Taints that it bears.
    pub tolerations: Vec<Toleration>,
    /// Where other pods draw it, or keep it away.
    pub company: Option<Box<Company>>,
    /// How its kind is to be spread.
    pub spread: Vec<Spread>,
    /// Higher goes first, and may take the place of lower ones.
    pub priority: i32,
    /// It never takes another pod's place.
    pub never_preempts: bool,
    /// The node whose pods made room for it.
    pub nominated: Option<String>,
    /// Since when it runs.
    pub started: Option<Timestamp>,
    /// It goes because a pod of higher priority needed its place.
    pub preempted: bool,
}

/// A port of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The machine's address; empty for all.
    pub ip: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The number.
    pub port: i32,
}

/// Affinity to other pods, and anti-affinity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Company {
    /// A pod of each of these must be near.
    pub near: Vec<PodTerm>,
    /// The more of these are near the better.
    pub rather_near: Vec<(i32, PodTerm)>,
    /// No pod of these may be near, and this pod not near them.
    pub apart: Vec<PodTerm>,
    /// The fewer of these are near the better.
    pub rather_apart: Vec<(i32, PodTerm)>,
}

/// Which pods, and what near means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodTerm {
    /// Nodes with the same value of this label are near each other.
    pub key: String,
    /// The pods' labels.
    pub selector: LabelSelector,
    /// The pods' namespaces, by name.
    pub namespaces: BTreeSet<String>,
    /// The pods' namespaces, by label.
    pub namespace_selector: LabelSelector,
}

/// How evenly pods of a kind are spread over domains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    /// Nodes with the same value of this label are one domain.
    pub key: String,
    /// The most that a domain may have beyond the emptiest one.
    pub max_skew: i64,
    /// Rather no node than a worse one.
    pub hard: bool,
    /// With fewer domains than this the emptiest counts as empty.
    pub min_domains: i64,
    /// Only nodes that the pod's selector and affinity allow are counted.
    pub honor_affinity: bool,
    /// Only nodes whose taints the pod bears are counted.
    pub honor_taints: bool,
    /// The kind.
    pub selector: LabelSelector,
}

impl Needs {
    /// Reads them.
    pub fn of(namespace: &str, labels: &BTreeMap<String, String>, spec: &PodSpec, status: &PodStatus) -> Self {
        let nodes = spec.affinity.as_ref().and_then(|a| a.node_affinity.clone()).unwrap_or_default();
        let conditions = status.conditions.as_deref().unwrap_or_default();
        let preempted = |c: &k8s_openapi::api::core::v1::PodCondition| {
            c.type_ == "DisruptionTarget" && c.status == "True" && c.reason.as_deref() == Some("PreemptionByScheduler")
        };
        Self {
            requests: Amounts::of_pod(spec, status),
            weight: Amounts::weight_of_pod(spec),
            ports: host_ports(spec),
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            node_affinity: nodes.required_during_scheduling_ignored_during_execution.map(|r| r.node_selector_terms),
            preferred_nodes: nodes
                .preferred_during_scheduling_ignored_during_execution
                .into_iter()
                .flatten()
                .map(|p| (p.weight, p.preference))
                .collect(),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            company: spec.affinity.as_ref().and_then(|affinity| Company::of(namespace, labels, affinity)),
            spread: spec.topology_spread_constraints.iter().flatten().map(|c| Spread::of(labels, c)).collect(),
            priority: spec.priority.unwrap_or(0),
            never_preempts: spec.preemption_policy.as_deref() == Some("Never"),
            nominated: status.nominated_node_name.clone().filter(|node| !node.is_empty()),
            started: status.start_time.as_ref().map(|time| time.0),
            preempted: conditions.iter().any(preempted),
        }
    }

    /// Where it may go depends on where other pods are.
    pub fn looks_at_others(&self) -> bool {
        self.company.is_some() || !self.spread.is_empty() || !self.ports.is_empty()
    }
}

impl Company {
    fn of(namespace: &str, labels: &BTreeMap<String, String>, affinity: &Affinity) -> Option<Box<Self>> {
        let term = |term: PodAffinityTerm| PodTerm::of(namespace, labels, &term);
        let near = affinity.pod_affinity.clone().unwrap_or_default();
        let apart = affinity.pod_anti_affinity.clone().unwrap_or_default();
        let required = |list: Option<Vec<PodAffinityTerm>>| list.into_iter().flatten().map(term).collect();
        let company = Self {
            near: required(near.required_during_scheduling_ignored_during_execution),
            rather_near: near
                .preferred_during_scheduling_ignored_during_execution
                .into_iter()
                .flatten()
                .map(|w| (w.weight, term(w.pod_affinity_term)))
                .collect(),
            apart: required(apart.required_during_scheduling_ignored_during_execution),
            rather_apart: apart
                .preferred_during_scheduling_ignored_during_execution
                .into_iter()
                .flatten()
                .map(|w| (w.weight, term(w.pod_affinity_term)))
                .collect(),
        };
        (company != Self::default()).then(|| Box::new(company))
    }
}

impl PodTerm {
    fn of(namespace: &str, labels: &BTreeMap<String, String>, term: &PodAffinityTerm) -> Self {
        let mut more = keyed(labels, term.match_label_keys.as_deref(), "In");
        more.extend(keyed(labels, term.mismatch_label_keys.as_deref(), "NotIn"));
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(namespace.to_owned());
        }
        Self {
            key: term.topology_key.clone(),
            selector: selector(term.label_selector.as_ref(), more),
            namespaces,
            namespace_selector: selector(term.namespace_selector.as_ref(), Vec::new()),
        }
    }
}

impl Spread {
    fn of(labels: &BTreeMap<String, String>, constraint: &TopologySpreadConstraint) -> Self {
        let more = keyed(labels, constraint.match_label_keys.as_deref(), "In");
        Self {
            key: constraint.topology_key.clone(),
            max_skew: i64::from(constraint.max_skew),
            hard: constraint.when_unsatisfiable == "DoNotSchedule",
            min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
            honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
            selector: selector(constraint.label_selector.as_ref(), more),
        }
    }
}

/// Requirements that a label is as the pod's own, or not; keys that the pod lacks are left out.
fn keyed(labels: &BTreeMap<String, String>, keys: Option<&[String]>, operator: &str) -> Vec<Value> {
    let own = |key: &String| Some((key.clone(), labels.get(key)?.clone()));
    let own = keys.into_iter().flatten().filter_map(own);
    own.map(|(key, value)| json!({"key": key, "operator": operator, "values": [value]})).collect()
}

/// The selector with further requirements. Absent selects nothing, and so does what cannot be read.
fn selector(selector: Option<&meta::LabelSelector>, more: Vec<Value>) -> LabelSelector {
    let Some(selector) = selector else { return LabelSelector::nothing() };
    let mut value = serde_json::to_value(selector).unwrap_or_default();
    if !more.is_empty() {
        let mut all = value["matchExpressions"].as_array().cloned().unwrap_or_default();
        all.extend(more);
        value["matchExpressions"] = all.into();
    }
    LabelSelector::from_json(&value).unwrap_or_else(|_| LabelSelector::nothing())
}

/// The ports of the machine that containers and sidecars want.
fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            let ip = port.host_ip.clone().filter(|ip| ip != "0.0.0.0").unwrap_or_default();
            Some(HostPort { ip, protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()), port: number })
        })
        .collect()
}

impl HostPort {
    /// Whether both cannot be had.
    pub fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip.is_empty() || other.ip.is_empty() || self.ip == other.ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(spec: Value) -> Needs {
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned()), ("rev".to_owned(), "7".to_owned())]);
        let mut spec = spec;
        spec["containers"] = spec.get("containers").cloned().unwrap_or_else(|| json!([]));
        Needs::of("home", &labels, &serde_json::from_value(spec).expect("a spec"), &PodStatus::default())
    }

    #[test]
    fn label_keys_become_requirements_of_the_pods_own_values() {
        let term = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}},
            "matchLabelKeys": ["rev", "absent"], "mismatchLabelKeys": ["app"]});
        let found = needs(json!({"affinity": {"podAntiAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}));
        let company = found.company.expect("company");
        let expected = json!({"matchLabels": {"app": "web"}, "matchExpressions": [
            {"key": "rev", "operator": "In", "values": ["7"]}, {"key": "app", "operator": "NotIn", "values": ["web"]}]});
        assert_eq!(company.apart[0].selector, LabelSelector::from_json(&expected).expect("a selector"));
        assert_eq!(company.apart[0].namespaces, BTreeSet::from(["home".to_owned()]));
        let spread = json!({"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {}, "matchLabelKeys": ["rev"]});
        let spread = &needs(json!({"topologySpreadConstraints": [spread]})).spread[0];
        let expected = json!({"matchExpressions": [{"key": "rev", "operator": "In", "values": ["7"]}]});
        assert_eq!(spread.selector, LabelSelector::from_json(&expected).expect("a selector"));
        assert!(spread.hard && spread.honor_affinity && !spread.honor_taints);
        assert_eq!((spread.max_skew, spread.min_domains), (1, 1));
    }

    #[test]
    fn namespaces_are_the_pods_own_unless_others_are_named() {
        let with = |extra: Value| {
            let mut term = json!({"topologyKey": "zone", "labelSelector": {}});
            term.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
            let affinity = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}});
            needs(json!({"affinity": affinity})).company.expect("company").near[0].clone()
        };
        let named = with(json!({"namespaces": ["a"]}));
        assert_eq!(named.namespaces, BTreeSet::from(["a".to_owned()]));
        let all = with(json!({"namespaceSelector": {}}));
        assert!(all.namespaces.is_empty() && all.namespace_selector.is_everything());
        assert_eq!(with(json!({})).namespace_selector, LabelSelector::nothing());
    }

    #[test]
    fn host_ports_conflict_where_address_protocol_and_number_meet() {
        let ports = json!([{"containerPort": 1, "hostPort": 80}, {"containerPort": 2},
            {"containerPort": 3, "hostPort": 80, "protocol": "UDP"},
            {"containerPort": 4, "hostPort": 80, "hostIP": "192.0.2.1"},
            {"containerPort": 5, "hostPort": 80, "hostIP": "192.0.2.2"}]);
        let found = needs(json!({"containers": [{"name": "c", "ports": ports}],
            "initContainers": [{"name": "i", "ports": [{"containerPort": 9, "hostPort": 9}]}]}))
        .ports;
        assert_eq!(found.len(), 4, "an init container that ends keeps no port: {found:?}");
        let [any, udp, one, two] = &found[..] else { panic!("{found:?}") };
        assert!(any.conflicts(any) && any.conflicts(one) && two.conflicts(any));
        assert!(!any.conflicts(udp) && !one.conflicts(two));
    }
}
