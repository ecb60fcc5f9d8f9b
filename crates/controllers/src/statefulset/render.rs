//! Bodies of the objects that are made for a set.

use std::collections::BTreeMap;

use planner::{Blob, Condition, Owner, Status, claim_name};
use serde_json::{Map, Value, json};

use super::project::{POD_NAME_LABEL, REVISION_LABEL, SetView};

/// Label that holds a pod's ordinal.
const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";
/// Label that holds the hash within a revision's name.
const HASH_LABEL: &str = "controller.kubernetes.io/hash";

/// The pod at an ordinal, of a revision with this name and data. Fails where the ordinal's override does not fit
/// the template of that revision.
pub(super) fn pod(view: &SetView, ordinal: i32, name: &str, revision: &str, data: &Blob) -> Result<Value, String> {
    let set = &view.set;
    let mut template = template(data);
    if let Some(patch) = view.source.overrides.get(&ordinal) {
        let key = api::beyond::OVERRIDES;
        template = api::beyond::patched(&template, patch).map_err(|why| format!("{key}: ordinal {ordinal}: {why}"))?;
        if !template["metadata"].is_object() {
            template["metadata"] = json!({});
        }
        template["metadata"]["annotations"][api::beyond::OVERRIDE_HASH] = json!(set.beyond.overrides.get(&ordinal));
    }
    let mut meta = Map::new();
    meta.insert("name".into(), name.into());
    meta.insert("generateName".into(), format!("{}-", set.name).into());
    meta.insert("namespace".into(), set.namespace.as_str().into());
    for field in ["annotations", "finalizers"] {
        if let Some(value) = template["metadata"].get(field).filter(|v| !v.is_null()) {
            meta.insert(field.into(), value.clone());
        }
    }
    let mut labels = template["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    labels.insert(REVISION_LABEL.into(), revision.into());
    labels.insert(POD_NAME_LABEL.into(), name.into());
    labels.insert(POD_INDEX_LABEL.into(), ordinal.to_string().into());
    meta.insert("labels".into(), labels.into());
    meta.insert("ownerReferences".into(), owners(&[set.as_owner()]));
    let mut spec = template["spec"].as_object().cloned().unwrap_or_default();
    spec.insert("hostname".into(), name.into());
    if !view.source.service_name.is_empty() {
        spec.insert("subdomain".into(), view.source.service_name.as_str().into());
    }
    let volumes = volumes(view, ordinal, spec.get("volumes"));
    if !volumes.is_empty() {
        spec.insert("volumes".into(), volumes.into());
    }
    Ok(json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}))
}

/// What a claim template asks for, as written.
pub(super) fn size(view: &SetView, template: &str) -> Value {
    let found = view.source.claim_templates.iter().find(|t| t["metadata"]["name"].as_str() == Some(template));
    found.map(|t| t["spec"]["resources"]["requests"]["storage"].clone()).unwrap_or_default()
}

/// What puts a pod's identity right; volumes are sent only where they are wrong.
pub(super) fn pod_update(view: &SetView, ordinal: i32, name: &str, volumes_too: bool, data: &Blob) -> Value {
    let labels = json!({POD_NAME_LABEL: name, POD_INDEX_LABEL: ordinal.to_string()});
    let mut patch = json!({"metadata": {"labels": labels}});
    if volumes_too {
        patch["spec"]["volumes"] = volumes(view, ordinal, template(data)["spec"].get("volumes")).into();
    }
    patch
}

/// Volumes of a pod: those of claims, then those of the template that no claim replaces.
fn volumes(view: &SetView, ordinal: i32, of_template: Option<&Value>) -> Vec<Value> {
    let templates = &view.set.claim_templates;
    let claims = templates.iter().map(|template| {
        let claim = claim_name(template, &view.set.name, ordinal);
        json!({"name": template, "persistentVolumeClaim": {"claimName": claim}})
    });
    let others = of_template.and_then(Value::as_array).into_iter().flatten();
    let others = others.filter(|v| !templates.iter().any(|t| v["name"].as_str() == Some(t)));
    claims.chain(others.cloned()).collect()
}

/// The claim of a template, under its full name.
pub(super) fn claim(view: &SetView, template: &str, name: &str, owned_by: &[Owner]) -> Value {
    let set = &view.set;
    let found = view.source.claim_templates.iter().find(|t| t["metadata"]["name"].as_str() == Some(template));
    let mut claim = found.cloned().unwrap_or_else(|| json!({}));
    let mut labels = claim["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    labels.extend(view.source.match_labels.iter().map(|(k, v)| (k.clone(), v.as_str().into())));
    claim["apiVersion"] = "v1".into();
    claim["kind"] = "PersistentVolumeClaim".into();
    claim["metadata"]["name"] = name.into();
    claim["metadata"]["namespace"] = set.namespace.as_str().into();
    claim["metadata"]["labels"] = labels.into();
    if !owned_by.is_empty() {
        claim["metadata"]["ownerReferences"] = owners(owned_by);
    }
    if set.beyond.protect == Some(true) {
        claim["metadata"]["annotations"][api::beyond::PROTECT] = "true".into();
    }
    if let Some(claim) = claim.as_object_mut() {
        claim.remove("status");
    }
    claim
}

/// A revision of the set.
pub(super) fn revision(view: &SetView, name: &str, hash: &str, number: i64, data: &Blob) -> Value {
    let set = &view.set;
    let mut labels: BTreeMap<&str, &str> =
        view.source.template_labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    labels.insert(HASH_LABEL, hash);
    json!({
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "name": name,
            "namespace": set.namespace,
            "labels": labels,
            "annotations": view.source.annotations,
            "ownerReferences": owners(&[set.as_owner()]),
        },
        "data": parse(data),
        "revision": number,
    })
}

/// The status as a patch: whatever else others wrote stays as it is.
pub(super) fn status(status: &Status, foreign_conditions: &[Value]) -> Value {
    let conditions: Vec<Value> =
        foreign_conditions.iter().cloned().chain(status.conditions.iter().map(condition)).collect();
    let mut fields = json!({
        "observedGeneration": status.observed_generation,
        "replicas": status.replicas,
        "readyReplicas": status.ready,
        "availableReplicas": status.available,
        "currentReplicas": status.current,
        "updatedReplicas": status.updated,
        "currentRevision": status.current_revision,
        "updateRevision": status.update_revision,
        "collisionCount": status.collision_count.unwrap_or(0),
        "conditions": conditions,
    });
    // Upstream leaves these out when they are empty, and readers look for their absence.
    for field in ["readyReplicas", "currentReplicas", "updatedReplicas"] {
        if fields[field] == 0 {
            fields[field] = Value::Null;
        }
    }
    json!({"status": fields})
}

/// A condition as the API writes it.
fn condition(condition: &Condition) -> Value {
    let since = jiff::Timestamp::from_millisecond(condition.since).unwrap_or_default();
    json!({
        "type": condition.kind.name(),
        "status": condition.truth.name(),
        "reason": condition.reason,
        "message": condition.message,
        "lastTransitionTime": since.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    })
}

/// Owner references as the API writes them.
pub(super) fn owners(owners: &[Owner]) -> Value {
    owners
        .iter()
        .map(|o| {
            let mut owner = json!({
                "apiVersion": o.api_version, "kind": o.kind, "name": o.name, "uid": o.uid,
            });
            if o.controller {
                owner["controller"] = true.into();
            }
            if o.block {
                owner["blockOwnerDeletion"] = true.into();
            }
            owner
        })
        .collect()
}

fn template(data: &Blob) -> Value {
    let mut template = parse(data)["spec"]["template"].take();
    if let Some(template) = template.as_object_mut() {
        template.remove("$patch");
    }
    template
}

fn parse(data: &Blob) -> Value {
    // Only what was JSON becomes a blob; a revision written by somebody else may still lack a template.
    serde_json::from_slice(data.bytes()).unwrap_or_default()
}
