//! What a node's agent may do: with its own Node, its lease, the pods bound to it, and what those pods use.
//!
//! ```text
//!  Node n ◀─ spec.nodeName ─ Pod ─▶ Secret, ConfigMap, ServiceAccount, PersistentVolumeClaim
//!     ▲
//!     └── node affinity of a local PersistentVolume, whose data that node removes
//! ```
//!
//! A request about one object is allowed where the picture leads from the node to it. So an agent that is taken
//! over reads no secret of another node's pods. <https://kubernetes.io/docs/reference/access-authn-authz/node/>

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde_json::Value;

use super::{Attributes, Authorizer, Decision, Identity};

/// Where nodes' leases live.
pub const LEASES: &str = "kube-node-lease";

/// Namespace and name.
type Key = (String, String);

/// Decides on requests of node identities; has no say in others.
#[derive(Debug, Default)]
pub struct NodeAuthorizer {
    graph: RwLock<Graph>,
}

#[derive(Debug, Default)]
struct Graph {
    pods: HashMap<Key, Pod>,
    by_node: HashMap<String, HashSet<Key>>,
    /// The node that has a local volume's data.
    data_on: HashMap<String, String>,
}

/// What a pod leads to; all in its own namespace.
#[derive(Debug, Default, PartialEq, Eq)]
struct Pod {
    node: String,
    account: String,
    secrets: BTreeSet<String>,
    config_maps: BTreeSet<String>,
    claims: BTreeSet<String>,
}

impl NodeAuthorizer {
    /// Knows no pods.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Takes the new state of a pod or volume; other kinds are ignored.
    pub fn apply(&self, object: &Value) {
        let key = (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
        match object["kind"].as_str() {
            Some("Pod") => self.write().put_pod(key, Pod::from_value(object)),
            Some("PersistentVolume") => {
                let mut graph = self.write();
                match data_on(object) {
                    Some(node) => graph.data_on.insert(key.1, node),
                    None => graph.data_on.remove(&key.1),
                };
            }
            _ => {}
        }
    }

    /// Forgets an object.
    pub fn remove(&self, kind: &str, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        match kind {
            "Pod" => self.write().take_pod(&key),
            "PersistentVolume" => {
                self.write().data_on.remove(name);
            }
            _ => {}
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Graph> {
        self.graph.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Graph> {
        self.graph.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The node that the identity is the agent of.
pub fn node_of(identity: &Identity) -> Option<&str> {
    let is_node = identity.groups.iter().any(|group| group == "system:nodes");
    identity.user.strip_prefix("system:node:").filter(|name| is_node && !name.is_empty())
}

impl Authorizer for NodeAuthorizer {
    fn authorize(&self, request: &Attributes) -> Decision {
        let Some(node) = node_of(&request.identity) else {
            return Decision::Deny(String::new());
        };
        if request.resource.is_empty() {
            return Decision::Deny(String::new());
        }
        if everywhere(request) || own(request, node) || self.read().leads_to(request, node) {
            return Decision::Allow;
        }
        Decision::Deny(match request.resource.as_str() {
            "pods" | "secrets" | "configmaps" | "persistentvolumeclaims" | "persistentvolumes" | "serviceaccounts" => {
                format!("no relationship found between node '{node}' and this object")
            }
            "nodes" | "leases" => format!("node '{node}' may only access its own"),
            _ => String::new(),
        })
    }
}

/// What every agent may do, whichever node it is for.
fn everywhere(request: &Attributes) -> bool {
    let Attributes { verb, group, resource, subresource, .. } = request;
    let read = matches!(verb.as_str(), "get" | "list" | "watch");
    match (group.as_str(), resource.as_str(), subresource.as_str()) {
        // Volumes hold no secrets, and an agent looks for released ones.
        ("", "nodes" | "services" | "persistentvolumes", "")
        | ("discovery.k8s.io", "endpointslices", "")
        | ("node.k8s.io", "runtimeclasses", "")
        | ("storage.k8s.io", "storageclasses", "") => read,
        ("", "endpoints", "") => verb == "get",
        // Which pods come back is for the field selector to say; agents ask for spec.nodeName.
        ("", "pods", "") => matches!(verb.as_str(), "list" | "watch"),
        ("" | "events.k8s.io", "events", "") => matches!(verb.as_str(), "create" | "update" | "patch"),
        ("authentication.k8s.io", "tokenreviews", "")
        | ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", "") => verb == "create",
        _ => false,
    }
}

/// The Node and Lease of the same name. On create the URL has no name: admission compares the object's.
fn own(request: &Attributes, node: &str) -> bool {
    let Attributes { verb, group, resource, subresource, namespace, name, .. } = request;
    match (group.as_str(), resource.as_str(), subresource.as_str()) {
        ("", "nodes", "") => {
            verb == "create" || (name == node && matches!(verb.as_str(), "update" | "patch" | "delete"))
        }
        ("", "nodes", "status") => name == node && matches!(verb.as_str(), "get" | "update" | "patch"),
        ("coordination.k8s.io", "leases", "") => {
            namespace == LEASES
                && (verb == "create"
                    || (name == node && matches!(verb.as_str(), "get" | "update" | "patch" | "delete")))
        }
        _ => false,
    }
}

impl Graph {
    /// Whether the request is about something that the node's pods lead to, with a verb that running them needs.
    fn leads_to(&self, request: &Attributes, node: &str) -> bool {
        let Attributes { verb, group, resource, subresource, namespace, name, .. } = request;
        if !group.is_empty() || name.is_empty() {
            return false;
        }
        let verb = verb.as_str();
        let change = matches!(verb, "update" | "patch");
        match (resource.as_str(), subresource.as_str()) {
            ("pods", "") => matches!(verb, "get" | "delete") && self.runs(node, namespace, name),
            ("pods", "status") => (change || verb == "get") && self.runs(node, namespace, name),
            ("pods", "eviction") => verb == "create" && self.runs(node, namespace, name),
            ("secrets", "") => follow(verb) && self.any(node, namespace, |pod| pod.secrets.contains(name)),
            ("configmaps", "") => follow(verb) && self.any(node, namespace, |pod| pod.config_maps.contains(name)),
            ("persistentvolumeclaims", "") => {
                follow(verb) && self.any(node, namespace, |pod| pod.claims.contains(name))
            }
            ("persistentvolumeclaims", "status") => {
                (change || verb == "get") && self.any(node, namespace, |pod| pod.claims.contains(name))
            }
            ("persistentvolumes", "") => change && self.data_on.get(name).is_some_and(|has| has == node),
            ("serviceaccounts", "") => verb == "get" && self.any(node, namespace, |pod| pod.account == *name),
            ("serviceaccounts", "token") => verb == "create" && self.any(node, namespace, |pod| pod.account == *name),
            _ => false,
        }
    }

    fn runs(&self, node: &str, namespace: &str, name: &str) -> bool {
        self.pods.get(&(namespace.to_owned(), name.to_owned())).is_some_and(|pod| pod.node == node)
    }

    fn any(&self, node: &str, namespace: &str, holds: impl Fn(&Pod) -> bool) -> bool {
        let keys = self.by_node.get(node).into_iter().flatten();
        keys.filter(|(ns, _)| ns == namespace).filter_map(|key| self.pods.get(key)).any(holds)
    }

    fn put_pod(&mut self, key: Key, pod: Pod) {
        self.take_pod(&key);
        // A pod that no node has leads nowhere.
        if !pod.node.is_empty() {
            self.by_node.entry(pod.node.clone()).or_default().insert(key.clone());
            self.pods.insert(key, pod);
        }
    }

    fn take_pod(&mut self, key: &Key) {
        let Some(old) = self.pods.remove(key) else { return };
        if let Some(keys) = self.by_node.get_mut(&old.node) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_node.remove(&old.node);
            }
        }
    }
}

/// The node that a local volume's affinity names.
fn data_on(volume: &Value) -> Option<String> {
    volume["spec"]["local"].as_object()?;
    let terms = list(&volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]);
    let mut expressions = terms.flat_map(|term| list(&term["matchExpressions"]));
    let host = expressions.find(|e| e["key"] == "kubernetes.io/hostname" && e["operator"] == "In")?;
    match host["values"].as_array()?.as_slice() {
        [Value::String(node)] => Some(node.clone()),
        _ => None,
    }
}

/// Verbs that follow one object by name.
fn follow(verb: &str) -> bool {
    matches!(verb, "get" | "list" | "watch")
}

impl Pod {
    fn from_value(object: &Value) -> Self {
        let spec = &object["spec"];
        let mut pod =
            Self { node: text(&spec["nodeName"]), account: text(&spec["serviceAccountName"]), ..Self::default() };
        for secret in list(&spec["imagePullSecrets"]) {
            put(&mut pod.secrets, &secret["name"]);
        }
        for volume in list(&spec["volumes"]) {
            pod.add_volume(volume, &object["metadata"]["name"]);
        }
        for containers in ["containers", "initContainers", "ephemeralContainers"] {
            for container in list(&spec[containers]) {
                for env in list(&container["env"]) {
                    put(&mut pod.secrets, &env["valueFrom"]["secretKeyRef"]["name"]);
                    put(&mut pod.config_maps, &env["valueFrom"]["configMapKeyRef"]["name"]);
                }
                for env in list(&container["envFrom"]) {
                    put(&mut pod.secrets, &env["secretRef"]["name"]);
                    put(&mut pod.config_maps, &env["configMapRef"]["name"]);
                }
            }
        }
        pod
    }

    fn add_volume(&mut self, volume: &Value, pod_name: &Value) {
        put(&mut self.secrets, &volume["secret"]["secretName"]);
        put(&mut self.config_maps, &volume["configMap"]["name"]);
        put(&mut self.claims, &volume["persistentVolumeClaim"]["claimName"]);
        for source in list(&volume["projected"]["sources"]) {
            put(&mut self.secrets, &source["secret"]["name"]);
            put(&mut self.config_maps, &source["configMap"]["name"]);
        }
        if let (true, Some(pod), Some(name)) =
            (volume["ephemeral"].is_object(), pod_name.as_str(), volume["name"].as_str())
        {
            self.claims.insert(format!("{pod}-{name}"));
        }
    }
}

fn put(set: &mut BTreeSet<String>, name: &Value) {
    if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
        set.insert(name.to_owned());
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Node `n1` runs pod `ns/web-0`; node `n2` runs `ns/web-1`.
    fn authorizer() -> Arc<NodeAuthorizer> {
        let authorizer = NodeAuthorizer::new();
        for (pod, node) in [("web-0", "n1"), ("web-1", "n2")] {
            authorizer.apply(&json!({"kind": "Pod", "metadata": {"namespace": "ns", "name": pod}, "spec": {
                "nodeName": node, "serviceAccountName": "sa",
                "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": format!("env-{pod}")}}}]}],
                "volumes": [
                    {"name": "d", "persistentVolumeClaim": {"claimName": format!("data-{pod}")}},
                    {"name": "p", "projected": {"sources": [{"configMap": {"name": format!("cm-{pod}")}}]}}]}}));
            let host = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [node]});
            authorizer.apply(&json!({"kind": "PersistentVolume", "metadata": {"name": format!("pv-{pod}")}, "spec": {
                "local": {"path": "/x"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [host]}]}}}}));
        }
        authorizer
    }

    fn may(authorizer: &NodeAuthorizer, verb: &str, resource: &str, namespace: &str, name: &str) -> bool {
        let (group, resource) = resource.split_once(':').unwrap_or(("", resource));
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        authorizer.authorize(&Attributes {
            identity: Identity::node("n1"),
            verb: verb.into(),
            group: group.into(),
            version: "v1".into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            path: String::new(),
        }) == Decision::Allow
    }

    #[test]
    fn an_agent_writes_its_own_node_and_lease_only() {
        let a = authorizer();
        assert!(may(&a, "patch", "nodes/status", "", "n1"));
        assert!(!may(&a, "patch", "nodes/status", "", "n2"));
        assert!(may(&a, "update", "coordination.k8s.io:leases", LEASES, "n1"));
        assert!(!may(&a, "update", "coordination.k8s.io:leases", LEASES, "n2"));
        assert!(!may(&a, "update", "coordination.k8s.io:leases", "default", "n1"));
    }

    #[test]
    fn an_agent_touches_its_own_pods_only() {
        let a = authorizer();
        assert!(may(&a, "patch", "pods/status", "ns", "web-0"));
        assert!(may(&a, "delete", "pods", "ns", "web-0"));
        assert!(!may(&a, "patch", "pods/status", "ns", "web-1"));
        assert!(!may(&a, "delete", "pods", "ns", "web-1"));
        assert!(!may(&a, "patch", "pods", "ns", "web-0"));
        assert!(!may(&a, "create", "pods", "ns", ""));
        assert!(!may(&a, "create", "pods/binding", "ns", "web-0"));
    }

    #[test]
    fn an_agent_reads_what_its_pods_use_only() {
        let a = authorizer();
        for (resource, mine, other) in [
            ("secrets", "env-web-0", "env-web-1"),
            ("configmaps", "cm-web-0", "cm-web-1"),
            ("persistentvolumeclaims", "data-web-0", "data-web-1"),
        ] {
            assert!(may(&a, "get", resource, "ns", mine), "{resource}");
            assert!(!may(&a, "get", resource, "ns", other), "{resource}");
            assert!(!may(&a, "get", resource, "elsewhere", mine), "{resource}");
            assert!(!may(&a, "list", resource, "ns", ""), "{resource}");
        }
    }

    #[test]
    fn an_agent_releases_volumes_whose_data_it_has() {
        let a = authorizer();
        assert!(may(&a, "list", "persistentvolumes", "", ""));
        assert!(may(&a, "patch", "persistentvolumes", "", "pv-web-0"));
        assert!(!may(&a, "patch", "persistentvolumes", "", "pv-web-1"));
        assert!(!may(&a, "delete", "persistentvolumes", "", "pv-web-0"));
        a.remove("PersistentVolume", "", "pv-web-0");
        assert!(!may(&a, "patch", "persistentvolumes", "", "pv-web-0"));
    }

    #[test]
    fn what_a_deleted_pod_used_is_out_of_reach() {
        let a = authorizer();
        a.remove("Pod", "ns", "web-0");
        assert!(!may(&a, "get", "secrets", "ns", "env-web-0"));
    }

    #[test]
    fn a_name_without_the_group_is_no_node() {
        assert_eq!(node_of(&Identity::user("system:node:n1", &[])), None);
        assert_eq!(node_of(&Identity::node("n1")), Some("n1"));
    }
}
