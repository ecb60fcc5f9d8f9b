//! Manifests of API versions that have had their day: rewritten to the version that is served, with the defaults that they
//! had then.
//!
//! Only where the new version has the same shape. The API itself refuses old versions, as Kubernetes does since 1.16
//! (apps), 1.22 (rbac, storage …) and 1.25 (batch, policy).

use api::resource::Registry;
use serde_json::{Value, json};

use super::Document;
use super::sort::split;

/// Old group and versions, the kinds in them, and where they have gone.
const MOVED: &[(&str, &[&str], &[&str], &str)] = &[
    (
        "apps",
        &["v1beta1", "v1beta2"],
        &["StatefulSet", "Deployment", "ReplicaSet", "DaemonSet", "ControllerRevision"],
        "apps/v1",
    ),
    ("extensions", &["v1beta1"], &["Deployment", "ReplicaSet", "DaemonSet"], "apps/v1"),
    ("extensions", &["v1beta1"], &["NetworkPolicy"], "networking.k8s.io/v1"),
    ("batch", &["v1beta1", "v2alpha1"], &["CronJob"], "batch/v1"),
    ("policy", &["v1beta1"], &["PodDisruptionBudget"], "policy/v1"),
    (
        "rbac.authorization.k8s.io",
        &["v1alpha1", "v1beta1"],
        &["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"],
        "rbac.authorization.k8s.io/v1",
    ),
    ("storage.k8s.io", &["v1beta1"], &["StorageClass", "CSIDriver", "CSINode"], "storage.k8s.io/v1"),
    ("scheduling.k8s.io", &["v1alpha1", "v1beta1"], &["PriorityClass"], "scheduling.k8s.io/v1"),
    ("node.k8s.io", &["v1beta1"], &["RuntimeClass"], "node.k8s.io/v1"),
    ("coordination.k8s.io", &["v1beta1"], &["Lease"], "coordination.k8s.io/v1"),
];

/// Rewrites a document of an old version whose new one is served. What was changed, in words; none if nothing was.
pub(super) fn modernise(registry: &Registry, document: &mut Document) -> Option<String> {
    let (group, version) = split(&document.api_version);
    let kind = document.kind.as_str();
    if registry.find_kind(group, version, kind).is_some() {
        return None;
    }
    let moved = |(old, versions, kinds, _): &&(&str, &[&str], &[&str], &str)| {
        *old == group && versions.contains(&version) && kinds.contains(&kind)
    };
    let (_, _, _, new) = MOVED.iter().find(moved)?;
    let (new_group, new_version) = split(new);
    registry.find_kind(new_group, new_version, kind)?;
    let old = std::mem::replace(&mut document.api_version, (*new).to_owned());
    document.value["apiVersion"] = json!(new);
    let mut words = vec![format!("{old} is no longer served; taken as {new}")];
    match kind {
        "StatefulSet" | "Deployment" | "ReplicaSet" | "DaemonSet" => {
            workload(&old, kind, &mut document.value, &mut words)
        }
        "PodDisruptionBudget" if selects_all(&document.value) => {
            words.push("its empty selector, which selected no pod, selects all of the namespace now".into());
        }
        _ => {}
    }
    Some(words.join("; "))
}

fn selects_all(budget: &Value) -> bool {
    budget.pointer("/spec/selector").is_some_and(|selector| selector == &json!({}))
}

/// What the old versions of workloads left out and had a default for.
fn workload(old: &str, kind: &str, value: &mut Value, words: &mut Vec<String>) {
    let labels = value.pointer("/spec/template/metadata/labels").cloned().unwrap_or(Value::Null);
    let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) else { return };
    // apps/v1beta2 wanted it already.
    let selected = spec.get("selector").is_some_and(|selector| !selector.is_null());
    if !selected && old != "apps/v1beta2" && labels.is_object() {
        spec.insert("selector".into(), json!({"matchLabels": labels}));
        words.push("selector is the template's labels, as it was by default".into());
    }
    let field = if kind == "Deployment" { "strategy" } else { "updateStrategy" };
    let typed = spec.get(field).and_then(|s| s.get("type")).is_some_and(|kind| !kind.is_null());
    let default = match (old, kind) {
        ("apps/v1beta1", "StatefulSet") | ("extensions/v1beta1", "DaemonSet") => Some(json!({"type": "OnDelete"})),
        ("extensions/v1beta1", "Deployment") => {
            Some(json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}))
        }
        _ => None,
    };
    if let Some(default) = default.filter(|_| !typed && kind != "ReplicaSet") {
        let name = default["type"].as_str().unwrap_or_default().to_owned();
        spec.insert(field.into(), default);
        words.push(format!("{field} is {name}, as it was by default"));
    }
    if spec.remove("rollbackTo").is_some() {
        words.push("rollbackTo is gone".into());
    }
}

#[cfg(test)]
mod tests {
    use super::super::Place;
    use super::*;

    fn modern(api_version: &str, kind: &str, spec: Value) -> (Option<String>, Value) {
        let value = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}, "spec": spec});
        let place = Place { file: "m.yaml".into(), line: 1 };
        let mut document = Document { place, api_version: api_version.into(), kind: kind.into(), value };
        let words = modernise(&Registry::builtin(), &mut document);
        assert_eq!(document.value["apiVersion"], document.api_version.as_str());
        (words, document.value)
    }

    #[test]
    fn a_set_of_v1beta1_gets_the_defaults_that_it_had() {
        let template = json!({"metadata": {"labels": {"app": "web"}}});
        let (words, value) = modern("apps/v1beta1", "StatefulSet", json!({"template": template}));
        assert_eq!(value["apiVersion"], "apps/v1");
        assert_eq!(value["spec"]["selector"], json!({"matchLabels": {"app": "web"}}));
        assert_eq!(value["spec"]["updateStrategy"], json!({"type": "OnDelete"}));
        let words = words.expect("a warning");
        for part in ["apps/v1beta1 is no longer served", "selector is the template's labels", "OnDelete"] {
            assert!(words.contains(part), "{words}");
        }
        let said = json!({"selector": {"matchLabels": {"a": "b"}}, "updateStrategy": {"type": "RollingUpdate"}, "template": template});
        let (words, value) = modern("apps/v1beta1", "StatefulSet", said.clone());
        assert_eq!(value["spec"], said);
        assert_eq!(words.as_deref(), Some("apps/v1beta1 is no longer served; taken as apps/v1"));
    }

    #[test]
    fn a_set_of_v1beta2_rolls_and_must_say_what_it_selects() {
        let (words, value) =
            modern("apps/v1beta2", "StatefulSet", json!({"template": {"metadata": {"labels": {"a": "b"}}}}));
        assert_eq!(value["spec"], json!({"template": {"metadata": {"labels": {"a": "b"}}}}));
        assert!(words.is_some());
    }

    #[test]
    fn what_is_served_and_what_has_another_shape_stays_as_it_is() {
        assert_eq!(modern("apps/v1", "StatefulSet", json!({})).0, None);
        assert_eq!(modern("extensions/v1beta1", "Ingress", json!({})).0, None);
        let (words, _) = modern("policy/v1beta1", "PodDisruptionBudget", json!({"selector": {}}));
        assert!(words.is_some_and(|words| words.contains("selects all of the namespace")));
    }
}
