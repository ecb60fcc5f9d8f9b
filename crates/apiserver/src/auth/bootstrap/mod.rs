//! The roles and bindings that every server begins with: upstream's, as far as their kinds are served here.
//!
//! | file | holds |
//! |---|---|
//! | `people` | cluster-admin, admin, edit, view and what they aggregate; discovery, health, reviews |
//! | `system` | nodes, scheduler, controllers: each in-process client's least privilege |
//!
//! Who may use the machine's own root file system: pods of the runtime class `host` see the host's files, so
//! creating one needs the verb `use` on that RuntimeClass, held by the creator or by the pod's service account.
//! The StatefulSet controller creates pods for users whom it no longer knows; it does not hold the verb itself, so
//! there the pod's service account decides. Service accounts may not use the class, with one exception that makes
//! the examples work as they are: those of the namespace `default`, by a RoleBinding in it ([`HOST_BINDING`]).
//! Delete that binding's subjects to take it back (the annotation `autoupdate: "false"` keeps them away), or bind the
//! ClusterRole [`HOST_ROLE`] in other namespaces to allow more. Members of `system:masters` always may.

mod people;
mod system;

use serde_json::{Value, json};

use super::rules::Rule;
use super::{Attributes, Authorizer, Decision, Identity};

/// The ClusterRole that allows the runtime class `host`.
pub const HOST_ROLE: &str = "statefuld:runtimeclass-host";

/// The RoleBinding in the namespace `default` that gives it to that namespace's service accounts.
pub const HOST_BINDING: &str = "statefuld:runtimeclass-host";

/// The annotation that, set to `"false"`, keeps an object from being repaired at start.
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

const APPS: &str = "apps";
const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";
const BATCH: &str = "batch";
const COORDINATION: &str = "coordination.k8s.io";
const DISCOVERY: &str = "discovery.k8s.io";
const EVENTS: &str = "events.k8s.io";
const NODE: &str = "node.k8s.io";
const POLICY: &str = "policy";
const RBAC: &str = "rbac.authorization.k8s.io";
const SCHEDULING: &str = "scheduling.k8s.io";
const STORAGE: &str = "storage.k8s.io";

/// Every bootstrap object, in an order in which they can be created. The namespace `default` exists before.
pub fn objects() -> Vec<Value> {
    let mut out = people::roles();
    out.extend(system::roles());
    out.push(cluster_role(HOST_ROLE, vec![named(&["use"], &[NODE], &["runtimeclasses"], &["host"])]));
    out.extend(people::bindings());
    out.extend(system::bindings());
    let mut host = binding("RoleBinding", HOST_BINDING, HOST_ROLE, vec![group("system:serviceaccounts:default")]);
    host["metadata"]["namespace"] = json!("default");
    out.push(host);
    out
}

/// What a stored bootstrap object must become at start: rules and subjects that it lacks are added, what was added
/// by people stays. `None` where nothing is to be done, or where it is annotated `autoupdate: "false"`.
pub fn reconcile(stored: &Value, wanted: &Value) -> Option<Value> {
    if stored["metadata"]["annotations"][AUTOUPDATE] == "false" {
        return None;
    }
    let mut out = stored.clone();
    if stored["aggregationRule"].is_null() {
        let held = Rule::list(stored);
        let lacking =
            wanted["rules"].as_array().into_iter().flatten().filter(|rule| {
                !Rule::from_value(rule).atoms().iter().all(|atom| held.iter().any(|own| own.covers(atom)))
            });
        extend(&mut out, "rules", lacking);
    }
    let subjects = stored["subjects"].as_array().cloned().unwrap_or_default();
    let lacking = wanted["subjects"].as_array().into_iter().flatten();
    extend(&mut out, "subjects", lacking.filter(|subject| !subjects.contains(subject)));
    (out != *stored).then_some(out)
}

fn extend<'a>(object: &mut Value, list: &str, items: impl Iterator<Item = &'a Value>) {
    let items: Vec<Value> = items.cloned().collect();
    if items.is_empty() {
        return;
    }
    match object[list].as_array_mut() {
        Some(old) => old.extend(items),
        None => object[list] = Value::Array(items),
    }
}

/// Whether pods of the namespace may have this runtime class when the identity creates them or they run as it.
/// Ask for the creator and for the pod's service account; one is enough. Classes other than `host` need nothing.
pub fn may_use_runtime_class(authorizer: &dyn Authorizer, identity: &Identity, namespace: &str, class: &str) -> bool {
    class != "host"
        || authorizer.authorize(&Attributes {
            identity: identity.clone(),
            verb: "use".to_owned(),
            group: NODE.to_owned(),
            version: "v1".to_owned(),
            resource: "runtimeclasses".to_owned(),
            subresource: String::new(),
            namespace: namespace.to_owned(),
            name: class.to_owned(),
            path: String::new(),
        }) == Decision::Allow
}

fn metadata(name: &str) -> Value {
    json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {AUTOUPDATE: "true"},
    })
}

fn cluster_role(name: &str, rules: Vec<Value>) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": metadata(name), "rules": rules})
}

/// A binding to a ClusterRole.
fn binding(kind: &str, name: &str, role: &str, subjects: Vec<Value>) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": metadata(name),
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
        "subjects": subjects,
    })
}

fn rule(verbs: &[&str], groups: &[&str], resources: &[&str]) -> Value {
    json!({"verbs": verbs, "apiGroups": groups, "resources": resources})
}

fn named(verbs: &[&str], groups: &[&str], resources: &[&str], names: &[&str]) -> Value {
    json!({"verbs": verbs, "apiGroups": groups, "resources": resources, "resourceNames": names})
}

fn urls(verbs: &[&str], urls: &[&str]) -> Value {
    json!({"verbs": verbs, "nonResourceURLs": urls})
}

fn events() -> Value {
    rule(&["create", "update", "patch"], &["", EVENTS], &["events"])
}

fn user(name: &str) -> Value {
    json!({"apiGroup": RBAC, "kind": "User", "name": name})
}

fn group(name: &str) -> Value {
    json!({"apiGroup": RBAC, "kind": "Group", "name": name})
}

fn account(name: &str) -> Value {
    json!({"kind": "ServiceAccount", "namespace": "kube-system", "name": name})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::rbac::Rbac;
    use std::collections::HashSet;

    fn loaded() -> std::sync::Arc<Rbac> {
        let rbac = Rbac::new();
        rbac.replace(&objects());
        rbac
    }

    fn may(identity: Identity, verb: &str, what: &str, namespace: &str) -> bool {
        let (group, resource) = what.split_once(':').unwrap_or(("", what));
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        loaded().authorize(&Attributes {
            identity,
            verb: verb.into(),
            group: group.into(),
            version: "v1".into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: "x".into(),
            path: String::new(),
        }) == Decision::Allow
    }

    fn may_get(identity: Identity, path: &str) -> bool {
        loaded().authorize(&Attributes {
            identity,
            verb: "get".into(),
            group: String::new(),
            version: String::new(),
            resource: String::new(),
            subresource: String::new(),
            namespace: String::new(),
            name: String::new(),
            path: path.into(),
        }) == Decision::Allow
    }

    #[test]
    fn every_object_has_its_own_name_and_every_binding_a_role() {
        let objects = objects();
        let mut names = HashSet::new();
        for object in &objects {
            assert!(names.insert((object["kind"].clone(), object["metadata"]["name"].clone())), "{object}");
            let role = &object["roleRef"]["name"];
            assert!(
                role.is_null() || objects.iter().any(|o| o["kind"] == "ClusterRole" && o["metadata"]["name"] == *role),
                "{object}"
            );
        }
    }

    #[test]
    fn anonymous_gets_health_and_version_only() {
        assert!(may_get(Identity::anonymous(), "/readyz"));
        assert!(may_get(Identity::anonymous(), "/version"));
        assert!(!may_get(Identity::anonymous(), "/api"));
        assert!(!may_get(Identity::anonymous(), "/metrics"));
        assert!(may_get(Identity::user("ann", &[]), "/apis/apps/v1"));
        assert!(may_get(Identity::user("ann", &[]), "/openapi/v3"));
        assert!(!may_get(Identity::user("ann", &[]), "/metrics"));
    }

    #[test]
    fn the_statefulset_controller_makes_pods_and_reads_no_secrets() {
        let it = || Identity::service_account("kube-system", "statefulset-controller");
        assert!(may(it(), "create", "pods", "a"));
        assert!(may(it(), "update", "apps:statefulsets/status", "a"));
        assert!(may(it(), "create", "persistentvolumeclaims", "a"));
        assert!(!may(it(), "get", "secrets", "a"));
        assert!(!may(it(), "create", "pods/binding", "a"));
        assert!(!may(it(), "use", "node.k8s.io:runtimeclasses", "a"));
    }

    #[test]
    fn binding_is_the_schedulers_alone() {
        for name in
            ["statefulset-controller", "persistent-volume-binder", "node-controller", "generic-garbage-collector"]
        {
            assert!(!may(Identity::service_account("kube-system", name), "create", "pods/binding", "a"), "{name}");
        }
        assert!(may(Identity::service_account("kube-system", "kube-scheduler"), "create", "pods/binding", "a"));
    }

    #[test]
    fn view_edit_and_admin_widen_step_by_step() {
        let rbac = loaded();
        let rules = |name: &str| rbac.aggregated_rules(name).expect("aggregated");
        let covers = |big: &str, small: &str| {
            rules(small).iter().flat_map(Rule::atoms).all(|atom| rules(big).iter().any(|own| own.covers(&atom)))
        };
        assert!(covers("edit", "view"));
        assert!(covers("admin", "edit"));
        assert!(!covers("view", "edit"));
        assert!(!covers("edit", "admin"));
        assert!(!rules("view").iter().any(|rule| rule.covers(&Rule::from_value(&super::rule(
            &["get"],
            &[""],
            &["secrets"]
        )))));
    }

    #[test]
    fn only_default_service_accounts_may_use_the_host_root() {
        let rbac = loaded();
        let may = |identity: &Identity, namespace: &str| may_use_runtime_class(&*rbac, identity, namespace, "host");
        assert!(may(&Identity::service_account("default", "default"), "default"));
        assert!(!may(&Identity::service_account("other", "default"), "other"));
        assert!(!may(&Identity::service_account("default", "default"), "other"));
        assert!(may(&Identity::user("root", &["system:masters"]), "other"));
        assert!(may_use_runtime_class(&*rbac, &Identity::anonymous(), "other", "another-class"));
    }

    #[test]
    fn reconcile_adds_what_is_lacking_and_keeps_what_people_added() {
        let wanted = cluster_role("r", vec![rule(&["get", "list"], &[""], &["pods"])]);
        let mut stored = wanted.clone();
        assert_eq!(reconcile(&stored, &wanted), None);
        stored["rules"] = json!([rule(&["get"], &[""], &["pods"]), rule(&["use"], &["x"], &["y"])]);
        let repaired = reconcile(&stored, &wanted).expect("list is lacking");
        assert!(Rule::list(&repaired).iter().any(|r| r.resources == ["y"]));
        assert_eq!(reconcile(&repaired, &wanted), None);
        stored["metadata"]["annotations"][AUTOUPDATE] = json!("false");
        assert_eq!(reconcile(&stored, &wanted), None);
    }
}
