//! Role based access control, as kube-apiserver evaluates it.
//!
//! ```text
//!  watch cache ── apply, remove ──▶ Rbac { roles, bindings }
//!  request's Attributes ──▶ bindings whose subject is the identity ──▶ rules of the role ──▶ Decision
//! ```
//!
//! Roles and bindings are parsed once per write. An aggregated role's rules are taken from the roles that its
//! selectors match at the time of the question, so they are never behind.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde_json::Value;

use super::rules::Rule;
use super::{Attributes, Authorizer, Decision, Identity};

/// The group whose members may do everything; no role can take that away.
pub const MASTERS: &str = "system:masters";

/// Roles and bindings, and the decisions that follow from them.
#[derive(Debug, Default)]
pub struct Rbac {
    policy: RwLock<Policy>,
}

#[derive(Debug, Default)]
struct Policy {
    cluster_roles: BTreeMap<String, ClusterRole>,
    /// By namespace and name.
    roles: HashMap<(String, String), Vec<Rule>>,
    cluster_bindings: BTreeMap<String, Binding>,
    /// By namespace, then name.
    bindings: HashMap<String, BTreeMap<String, Binding>>,
}

#[derive(Debug)]
struct ClusterRole {
    labels: BTreeMap<String, String>,
    rules: Vec<Rule>,
    /// `aggregationRule.clusterRoleSelectors`; `None` where the role is not aggregated.
    aggregates: Option<Vec<Selector>>,
}

#[derive(Debug)]
struct Binding {
    role: RoleRef,
    subjects: Vec<Subject>,
}

/// The role that a binding names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleRef {
    /// `Role` or `ClusterRole`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

impl RoleRef {
    /// Reads a binding's `roleRef`.
    pub fn from_binding(binding: &Value) -> Self {
        Self { kind: text(&binding["roleRef"], "kind"), name: text(&binding["roleRef"], "name") }
    }
}

#[derive(Debug)]
enum Subject {
    User(String),
    Group(String),
    ServiceAccount { namespace: String, name: String },
}

impl Rbac {
    /// No roles, no bindings: only `system:masters` may do anything.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Takes an object's new state; objects of other kinds are ignored.
    pub fn apply(&self, object: &Value) {
        let (namespace, name) = (text(&object["metadata"], "namespace"), text(&object["metadata"], "name"));
        let mut policy = self.write();
        match object["kind"].as_str() {
            Some("ClusterRole") => {
                policy.cluster_roles.insert(name, ClusterRole::from_value(object));
            }
            Some("Role") => {
                policy.roles.insert((namespace, name), Rule::list(object));
            }
            Some("ClusterRoleBinding") => {
                policy.cluster_bindings.insert(name, Binding::from_value(object));
            }
            Some("RoleBinding") => {
                policy.bindings.entry(namespace).or_default().insert(name, Binding::from_value(object));
            }
            _ => {}
        }
    }

    /// Forgets an object.
    pub fn remove(&self, kind: &str, namespace: &str, name: &str) {
        let mut policy = self.write();
        match kind {
            "ClusterRole" => {
                policy.cluster_roles.remove(name);
            }
            "Role" => {
                policy.roles.remove(&(namespace.to_owned(), name.to_owned()));
            }
            "ClusterRoleBinding" => {
                policy.cluster_bindings.remove(name);
            }
            "RoleBinding" => {
                if let Some(in_namespace) = policy.bindings.get_mut(namespace) {
                    in_namespace.remove(name);
                    if in_namespace.is_empty() {
                        policy.bindings.remove(namespace);
                    }
                }
            }
            _ => {}
        }
    }

    /// Forgets everything and takes these objects instead.
    pub fn replace<'a>(&self, objects: impl IntoIterator<Item = &'a Value>) {
        *self.write() = Policy::default();
        for object in objects {
            self.apply(object);
        }
    }

    /// Why the request is allowed, as access reviews say it; `Err` holds what went wrong on the way, mostly nothing.
    pub fn allowed_by(&self, request: &Attributes) -> Result<String, String> {
        if request.identity.groups.iter().any(|group| group == MASTERS) {
            return Ok(String::new());
        }
        let policy = self.read();
        let mut missing = Vec::new();
        for bound in policy.bound(&request.identity, &request.namespace) {
            match policy.rules(&bound.binding.role, bound.namespace) {
                Ok(rules) if rules.iter().any(|rule| rule.allows(request)) => return Ok(bound.describe()),
                Ok(_) => {}
                Err(why) => missing.push(why),
            }
        }
        missing.dedup();
        Err(match missing.as_slice() {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            many => format!("RBAC: [{}]", many.join(", ")),
        })
    }

    /// All rules that bindings give to the identity in the namespace (in none: cluster-wide only).
    pub fn rules_for(&self, identity: &Identity, namespace: &str) -> Vec<Rule> {
        let policy = self.read();
        let mut out = Vec::new();
        for bound in policy.bound(identity, namespace) {
            out.extend(policy.rules(&bound.binding.role, bound.namespace).into_iter().flatten().cloned());
        }
        out
    }

    /// The rules of a role; `None` where there is no such role.
    pub fn rules_of(&self, role: &RoleRef, namespace: &str) -> Option<Vec<Rule>> {
        let policy = self.read();
        policy.rules(role, namespace).ok().map(|rules| rules.into_iter().cloned().collect())
    }

    /// The rules that an aggregated role has now, for showing them in the object. `None` where it is not aggregated.
    pub fn aggregated_rules(&self, name: &str) -> Option<Vec<Rule>> {
        let policy = self.read();
        let role = policy.cluster_roles.get(name)?;
        role.aggregates.as_ref()?;
        Some(policy.expand(role).into_iter().cloned().collect())
    }

    fn read(&self) -> RwLockReadGuard<'_, Policy> {
        self.policy.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Policy> {
        self.policy.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Authorizer for Rbac {
    fn authorize(&self, request: &Attributes) -> Decision {
        match self.allowed_by(request) {
            Ok(_) => Decision::Allow,
            Err(why) => Decision::Deny(why),
        }
    }
}

/// A binding that names the asker, and by which subject.
struct Bound<'a> {
    /// Empty for cluster-wide bindings.
    namespace: &'a str,
    name: &'a str,
    binding: &'a Binding,
    subject: &'a Subject,
}

impl Bound<'_> {
    fn describe(&self) -> String {
        let RoleRef { kind, name } = &self.binding.role;
        let subject = match self.subject {
            Subject::User(name) => format!("User {name:?}"),
            Subject::Group(name) => format!("Group {name:?}"),
            Subject::ServiceAccount { namespace, name } => {
                format!("ServiceAccount {:?}", format!("{name}/{namespace}"))
            }
        };
        let binding = match self.namespace {
            "" => format!("ClusterRoleBinding {:?}", self.name),
            namespace => format!("RoleBinding {:?}", format!("{}/{namespace}", self.name)),
        };
        format!("RBAC: allowed by {binding} of {kind} {name:?} to {subject}")
    }
}

impl Policy {
    /// The bindings that apply: cluster-wide ones first.
    fn bound<'a>(&'a self, identity: &'a Identity, namespace: &'a str) -> impl Iterator<Item = Bound<'a>> {
        let wide = self.cluster_bindings.iter().map(|(name, binding)| ("", name, binding));
        let narrow =
            self.bindings.get(namespace).into_iter().flatten().map(move |(name, binding)| (namespace, name, binding));
        wide.chain(narrow).filter_map(move |(namespace, name, binding)| {
            let subject = binding.subjects.iter().find(|subject| subject.is(identity, namespace))?;
            Some(Bound { namespace, name, binding, subject })
        })
    }

    /// The rules of a role, or the sentence that says that there is none.
    fn rules(&self, role: &RoleRef, namespace: &str) -> Result<Vec<&Rule>, String> {
        if role.kind == "ClusterRole" {
            return self
                .cluster_roles
                .get(&role.name)
                .map(|found| self.expand(found))
                .ok_or_else(|| format!("clusterrole.rbac.authorization.k8s.io {:?} not found", role.name));
        }
        let key = (namespace.to_owned(), role.name.clone());
        self.roles
            .get(&key)
            .map(|rules| rules.iter().collect())
            .ok_or_else(|| format!("role.rbac.authorization.k8s.io {:?} not found", role.name))
    }

    /// A cluster role's rules, with those that it aggregates, also through other aggregated roles.
    fn expand<'a>(&'a self, role: &'a ClusterRole) -> Vec<&'a Rule> {
        if role.aggregates.is_none() {
            return role.rules.iter().collect();
        }
        let mut out = Vec::new();
        let mut seen: Vec<&str> = Vec::new();
        let mut todo = vec![role];
        while let Some(role) = todo.pop() {
            let Some(selectors) = &role.aggregates else {
                out.extend(role.rules.iter());
                continue;
            };
            for (name, other) in &self.cluster_roles {
                if !seen.contains(&name.as_str()) && selectors.iter().any(|s| s.matches(&other.labels)) {
                    seen.push(name);
                    todo.push(other);
                }
            }
        }
        out
    }
}

impl ClusterRole {
    fn from_value(object: &Value) -> Self {
        let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
        let selectors = object["aggregationRule"]["clusterRoleSelectors"].as_array();
        Self {
            labels: labels.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect(),
            rules: Rule::list(object),
            aggregates: selectors.map(|list| list.iter().map(Selector::from_value).collect()),
        }
    }
}

impl Binding {
    fn from_value(object: &Value) -> Self {
        let subjects = object["subjects"].as_array().into_iter().flatten().filter_map(Subject::from_value);
        Self { role: RoleRef::from_binding(object), subjects: subjects.collect() }
    }
}

impl Subject {
    fn from_value(value: &Value) -> Option<Self> {
        let name = text(value, "name");
        match value["kind"].as_str()? {
            "User" => Some(Self::User(name)),
            "Group" => Some(Self::Group(name)),
            "ServiceAccount" => Some(Self::ServiceAccount { namespace: text(value, "namespace"), name }),
            _ => None,
        }
    }

    /// A service account without a namespace is one of the binding's.
    fn is(&self, identity: &Identity, binding_namespace: &str) -> bool {
        match self {
            Self::User(name) => identity.user == *name,
            Self::Group(name) => identity.groups.contains(name),
            Self::ServiceAccount { namespace, name } => {
                let namespace = if namespace.is_empty() { binding_namespace } else { namespace };
                !namespace.is_empty()
                    && identity
                        .user
                        .strip_prefix("system:serviceaccount:")
                        .and_then(|rest| rest.split_once(':'))
                        .is_some_and(|(ns, account)| ns == namespace && account == name)
            }
        }
    }
}

/// A label selector of an aggregation rule.
#[derive(Debug)]
struct Selector {
    labels: Vec<(String, String)>,
    expressions: Vec<(String, String, Vec<String>)>,
}

impl Selector {
    fn from_value(value: &Value) -> Self {
        let labels = value["matchLabels"].as_object().into_iter().flatten();
        let expressions = value["matchExpressions"].as_array().into_iter().flatten();
        Self {
            labels: labels.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect(),
            expressions: expressions
                .map(|e| {
                    let values = e["values"].as_array().into_iter().flatten();
                    let values = values.filter_map(|v| v.as_str().map(str::to_owned)).collect();
                    (text(e, "key"), text(e, "operator"), values)
                })
                .collect(),
        }
    }

    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.labels.iter().all(|(k, v)| labels.get(k) == Some(v))
            && self.expressions.iter().all(|(key, operator, values)| {
                let value = labels.get(key);
                match operator.as_str() {
                    "In" => value.is_some_and(|v| values.contains(v)),
                    "NotIn" => value.is_none_or(|v| !values.contains(v)),
                    "Exists" => value.is_some(),
                    "DoesNotExist" => value.is_none(),
                    _ => false,
                }
            })
    }
}

/// A string member; empty where there is none.
fn text(value: &Value, member: &str) -> String {
    value[member].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ask(rbac: &Rbac, identity: Identity, verb: &str, resource: &str, namespace: &str) -> Decision {
        rbac.authorize(&Attributes {
            identity,
            verb: verb.into(),
            group: String::new(),
            version: "v1".into(),
            resource: resource.into(),
            subresource: String::new(),
            namespace: namespace.into(),
            name: String::new(),
            path: String::new(),
        })
    }

    fn role(kind: &str, namespace: &str, name: &str, verbs: &[&str]) -> Value {
        json!({"kind": kind, "metadata": {"namespace": namespace, "name": name},
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": verbs}]})
    }

    fn binding(kind: &str, namespace: &str, role_kind: &str, role: &str, subject: Value) -> Value {
        json!({"kind": kind, "metadata": {"namespace": namespace, "name": "b"},
            "roleRef": {"kind": role_kind, "name": role}, "subjects": [subject]})
    }

    #[test]
    fn nobody_may_do_anything_without_a_binding_but_masters() {
        let rbac = Rbac::new();
        assert_eq!(ask(&rbac, Identity::user("ann", &[]), "get", "pods", "a"), Decision::Deny(String::new()));
        assert_eq!(ask(&rbac, Identity::user("root", &[MASTERS]), "get", "pods", "a"), Decision::Allow);
    }

    #[test]
    fn a_role_binding_gives_its_namespace_only() {
        let rbac = Rbac::new();
        rbac.apply(&role("ClusterRole", "", "r", &["list"]));
        rbac.apply(&binding("RoleBinding", "a", "ClusterRole", "r", json!({"kind": "User", "name": "ann"})));
        let ann = || Identity::user("ann", &[]);
        assert_eq!(ask(&rbac, ann(), "list", "pods", "a"), Decision::Allow);
        assert_ne!(ask(&rbac, ann(), "list", "pods", "b"), Decision::Allow);
        assert_ne!(ask(&rbac, ann(), "list", "pods", ""), Decision::Allow);
        rbac.remove("RoleBinding", "a", "b");
        assert_ne!(ask(&rbac, ann(), "list", "pods", "a"), Decision::Allow);
    }

    #[test]
    fn a_service_account_is_known_by_namespace_and_name() {
        let rbac = Rbac::new();
        rbac.apply(&role("Role", "a", "r", &["get"]));
        rbac.apply(&binding("RoleBinding", "a", "Role", "r", json!({"kind": "ServiceAccount", "name": "bot"})));
        assert_eq!(ask(&rbac, Identity::service_account("a", "bot"), "get", "pods", "a"), Decision::Allow);
        assert_ne!(ask(&rbac, Identity::service_account("b", "bot"), "get", "pods", "a"), Decision::Allow);
    }

    #[test]
    fn aggregation_follows_labels_through_two_levels() {
        let rbac = Rbac::new();
        let aggregated = |name: &str, label: &str, own: Value| {
            json!({"kind": "ClusterRole", "metadata": {"name": name, "labels": own},
                "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]}, "rules": []})
        };
        rbac.apply(&aggregated("admin", "to-admin", json!({})));
        rbac.apply(&aggregated("edit", "to-edit", json!({"to-admin": "true"})));
        let mut leaf = role("ClusterRole", "", "leaf", &["watch"]);
        leaf["metadata"]["labels"] = json!({"to-edit": "true"});
        rbac.apply(&leaf);
        rbac.apply(&binding("ClusterRoleBinding", "", "ClusterRole", "admin", json!({"kind": "Group", "name": "g"})));
        assert_eq!(ask(&rbac, Identity::user("x", &["g"]), "watch", "pods", "any"), Decision::Allow);
        rbac.remove("ClusterRole", "", "leaf");
        assert_ne!(ask(&rbac, Identity::user("x", &["g"]), "watch", "pods", "any"), Decision::Allow);
    }

    #[test]
    fn a_binding_to_a_missing_role_is_named_in_the_refusal() {
        let rbac = Rbac::new();
        rbac.apply(&binding("ClusterRoleBinding", "", "ClusterRole", "gone", json!({"kind": "User", "name": "ann"})));
        assert_eq!(
            ask(&rbac, Identity::user("ann", &[]), "get", "pods", "a"),
            Decision::Deny("RBAC: clusterrole.rbac.authorization.k8s.io \"gone\" not found".into())
        );
    }

    #[test]
    fn the_reason_names_binding_role_and_subject() {
        let rbac = Rbac::new();
        rbac.apply(&role("Role", "a", "r", &["get"]));
        rbac.apply(&binding("RoleBinding", "a", "Role", "r", json!({"kind": "User", "name": "ann"})));
        let why = rbac.allowed_by(&Attributes {
            identity: Identity::user("ann", &[]),
            verb: "get".into(),
            group: String::new(),
            version: "v1".into(),
            resource: "pods".into(),
            subresource: String::new(),
            namespace: "a".into(),
            name: "p".into(),
            path: String::new(),
        });
        assert_eq!(why, Ok("RBAC: allowed by RoleBinding \"b/a\" of Role \"r\" to User \"ann\"".into()));
    }
}
