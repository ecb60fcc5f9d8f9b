//! Nobody grants what he does not hold: checks on writes of roles and bindings.
//!
//! A role may be written by who holds all its rules already, or has the verb `escalate` on it. A binding may be
//! written by who holds all rules of the role that it names, or has the verb `bind` on that role.
//! <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#privilege-escalation-prevention-and-bootstrapping>

use api::status::Status;
use serde_json::Value;

use super::rbac::{MASTERS, Rbac, RoleRef};
use super::rules::{Rule, quoted};
use super::{Attributes, Authorizer, Decision, Identity};

/// The group of roles and bindings.
const GROUP: &str = "rbac.authorization.k8s.io";

/// Checks a write of any object of the group; kinds without rules or role pass.
///
/// `namespace` and `name` are the object's (the name empty where one will be generated), `old` its stored state on
/// updates. Call it after decoding and before storing, on dry runs too.
pub fn check_write(
    rbac: &Rbac,
    authorizer: &dyn Authorizer,
    identity: &Identity,
    namespace: &str,
    name: &str,
    new: &Value,
    old: Option<&Value>,
) -> Result<(), Box<Status>> {
    if identity.groups.iter().any(|group| group == MASTERS) {
        return Ok(());
    }
    match new["kind"].as_str() {
        Some("Role" | "ClusterRole") => {
            let plural = if namespace.is_empty() { "clusterroles" } else { "roles" };
            let aggregation = &new["aggregationRule"];
            let unchanged =
                old.is_some_and(|old| old["rules"] == new["rules"] && old["aggregationRule"] == *aggregation);
            if unchanged || allowed(authorizer, identity, "escalate", plural, namespace, name) {
                return Ok(());
            }
            let mut rules = Rule::list(new);
            if !aggregation.is_null() {
                // What will be aggregated is not known beforehand: it may be everything.
                rules.push(everything());
                rules.push(every_path());
            }
            confirm(rbac, identity, namespace, plural, name, &rules)
        }
        Some("RoleBinding" | "ClusterRoleBinding") => {
            let plural = if namespace.is_empty() { "clusterrolebindings" } else { "rolebindings" };
            let unchanged =
                old.is_some_and(|old| old["roleRef"] == new["roleRef"] && old["subjects"] == new["subjects"]);
            let role = RoleRef::from_binding(new);
            let (roles, role_namespace) =
                if role.kind == "ClusterRole" { ("clusterroles", "") } else { ("roles", namespace) };
            if unchanged || allowed(authorizer, identity, "bind", roles, role_namespace, &role.name) {
                return Ok(());
            }
            let rules =
                rbac.rules_of(&role, namespace).ok_or_else(|| Box::new(Status::not_found(GROUP, roles, &role.name)))?;
            confirm(rbac, identity, namespace, plural, name, &rules)
        }
        _ => Ok(()),
    }
}

fn allowed(
    authorizer: &dyn Authorizer,
    identity: &Identity,
    verb: &str,
    plural: &str,
    namespace: &str,
    name: &str,
) -> bool {
    authorizer.authorize(&Attributes {
        identity: identity.clone(),
        verb: verb.to_owned(),
        group: GROUP.to_owned(),
        version: "v1".to_owned(),
        resource: plural.to_owned(),
        subresource: String::new(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        path: String::new(),
    }) == Decision::Allow
}

fn confirm(
    rbac: &Rbac,
    identity: &Identity,
    namespace: &str,
    plural: &str,
    name: &str,
    wanted: &[Rule],
) -> Result<(), Box<Status>> {
    let held = rbac.rules_for(identity, namespace);
    let missing: Vec<Rule> =
        wanted.iter().flat_map(Rule::atoms).filter(|atom| !held.iter().any(|own| own.covers(atom))).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut lines: Vec<String> = Rule::compact(missing).iter().map(Rule::to_string).collect();
    lines.sort();
    lines.dedup();
    let why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        identity.user,
        quoted(&identity.groups),
        lines.join("\n")
    );
    Err(Box::new(Status::forbidden(GROUP, plural, name, why)))
}

fn everything() -> Rule {
    let all = || vec!["*".to_owned()];
    Rule { groups: all(), resources: all(), verbs: all(), ..Rule::default() }
}

fn every_path() -> Rule {
    let all = || vec!["*".to_owned()];
    Rule { urls: all(), verbs: all(), ..Rule::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn keeper() -> std::sync::Arc<Rbac> {
        let rbac = Rbac::new();
        rbac.apply(&json!({"kind": "Role", "metadata": {"namespace": "ns", "name": "keeper"}, "rules": [
            {"apiGroups": [GROUP], "resources": ["roles", "rolebindings"], "verbs": ["create", "update"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}));
        rbac.apply(&json!({"kind": "RoleBinding", "metadata": {"namespace": "ns", "name": "b"},
            "roleRef": {"kind": "Role", "name": "keeper"}, "subjects": [{"kind": "User", "name": "ann"}]}));
        rbac.apply(&json!({"kind": "ClusterRole", "metadata": {"name": "cluster-admin"}, "rules": [
            {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}, {"nonResourceURLs": ["*"], "verbs": ["*"]}]}));
        rbac
    }

    fn write(rbac: &Rbac, name: &str, object: Value) -> Result<(), String> {
        check_write(rbac, rbac, &Identity::user("ann", &[]), "ns", name, &object, None).map_err(|s| s.message)
    }

    #[test]
    fn own_rights_may_be_granted() {
        let small = json!({"kind": "Role", "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]});
        assert_eq!(write(&keeper(), "small", small), Ok(()));
    }

    #[test]
    fn more_than_own_rights_are_refused_in_upstreams_words() {
        let big = json!({"kind": "Role", "rules": [
            {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list"]},
            {"apiGroups": ["apps"], "resources": ["*"], "verbs": ["*"]}]});
        assert_eq!(
            write(&keeper(), "big", big),
            Err("roles.rbac.authorization.k8s.io \"big\" is forbidden: user \"ann\" (groups=[\"system:authenticated\"]) \
                 is attempting to grant RBAC permissions not currently held:\n\
                 {APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"list\"]}\n\
                 {APIGroups:[\"apps\"], Resources:[\"*\"], Verbs:[\"*\"]}"
                .into())
        );
    }

    #[test]
    fn binding_a_stronger_role_is_refused_and_a_missing_one_not_found() {
        let bind = |kind: &str, name: &str| json!({"kind": "RoleBinding", "roleRef": {"kind": kind, "name": name}, "subjects": []});
        let refused = write(&keeper(), "b3", bind("ClusterRole", "cluster-admin")).unwrap_err();
        assert!(refused.ends_with(
            "{APIGroups:[\"*\"], Resources:[\"*\"], Verbs:[\"*\"]}\n{NonResourceURLs:[\"*\"], Verbs:[\"*\"]}"
        ));
        assert_eq!(
            write(&keeper(), "b4", bind("Role", "nosuch")),
            Err("roles.rbac.authorization.k8s.io \"nosuch\" not found".into())
        );
        assert_eq!(write(&keeper(), "b5", bind("Role", "keeper")), Ok(()));
    }

    #[test]
    fn an_aggregation_rule_needs_everything() {
        let role = json!({"kind": "Role", "rules": [], "aggregationRule": {"clusterRoleSelectors": [{}]}});
        assert!(write(&keeper(), "agg", role).is_err());
    }
}
