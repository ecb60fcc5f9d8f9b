//! From API objects to what the planner sees. Pure, so that commands can run the planner on objects that
//! they have read themselves.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::core::{DynamicObject, Selector, SelectorExt};
use planner::{
    Blob, Claim, Management, Member, Millis, Observed, Owner, PodPhase, Retention, Revision, Set, Status, Strategy,
    Unavailable,
};
use serde_json::{Value, json};

use super::Error;
use crate::informer::parse;

/// Label that holds the name of a pod's revision.
pub(super) const REVISION_LABEL: &str = "controller-revision-hash";
/// Label that holds a pod's own name.
pub(super) const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
/// Characters of what scheduler or kubelet say that are kept.
const DETAIL_LIMIT: usize = 200;

/// What is kept of a set.
#[derive(Clone, Debug)]
pub struct SetView {
    /// What the planner sees.
    pub set: Set,
    /// metadata.resourceVersion.
    pub version: u64,
    /// Which pods and revisions it takes.
    pub selector: Selector,
    /// What objects made for the set are rendered from.
    pub source: Source,
}

/// The parts of a set that objects are rendered from.
#[derive(Clone, Debug)]
pub struct Source {
    /// Annotations of the set.
    pub annotations: BTreeMap<String, String>,
    /// spec.serviceName.
    pub service_name: String,
    /// spec.selector.matchLabels.
    pub match_labels: BTreeMap<String, String>,
    /// Labels of the template.
    pub template_labels: BTreeMap<String, String>,
    /// spec.volumeClaimTemplates.
    pub claim_templates: Vec<Value>,
}

/// What is kept of a pod.
#[derive(Clone, Debug)]
pub struct PodView {
    /// Namespace.
    pub namespace: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What the planner sees.
    pub pod: Arc<planner::Pod>,
}

/// What is kept of a revision.
#[derive(Clone, Debug)]
pub struct RevisionView {
    /// Namespace.
    pub namespace: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What the planner sees.
    pub revision: Revision,
}

/// What the planner would see of a set, from objects that somebody has read. Pods, claims and revisions of
/// other sets or namespaces may be among them.
pub fn observe(
    set: &DynamicObject,
    pods: &[Pod],
    claims: &[PersistentVolumeClaim],
    revisions: &[ControllerRevision],
) -> Result<Observed, Error> {
    let view = project_set(set.clone())?;
    let pods: Vec<PodView> = pods.iter().cloned().map(project_pod).collect();
    let revisions: Vec<RevisionView> = revisions.iter().cloned().map(project_revision).collect();
    let own = claims.iter().filter(|c| c.metadata.namespace.as_deref() == Some(&view.set.namespace));
    let claims = own.cloned().map(|c| project_claim(c).1).map(|c| (c.name.clone(), c)).collect();
    Ok(view.observe(pods.iter(), claims, revisions.iter()))
}

impl SetView {
    /// Puts the view of a set together. Pods and revisions that belong to others are left out.
    pub fn observe<'a>(
        &self,
        pods: impl Iterator<Item = &'a PodView>,
        claims: BTreeMap<String, Claim>,
        revisions: impl Iterator<Item = &'a RevisionView>,
    ) -> Observed {
        let set = &self.set;
        let concerns = |owner: Option<&Owner>| owner.is_none_or(|o| o.uid == set.uid);
        Observed {
            set: set.clone(),
            pods: pods
                .filter(|p| p.namespace == set.namespace && concerns(p.pod.controller()))
                .map(|p| Member { pod: p.pod.clone(), matches: self.selector.matches(&p.labels) })
                .collect(),
            claims,
            revisions: revisions
                .filter(|r| r.namespace == set.namespace && concerns(r.revision.controller()))
                .filter(|r| self.selector.matches(&r.labels))
                .map(|r| r.revision.clone())
                .collect(),
        }
    }
}

/// Projects a set. Fails where the API server would have refused the object.
pub fn project_set(object: DynamicObject) -> Result<SetView, Error> {
    let meta = object.metadata;
    let types = object.types.unwrap_or_default();
    let spec = &object.data["spec"];
    let bad = |field: &str, why: String| Error::Malformed {
        object: format!("{}/{}", meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default()),
        field: field.to_owned(),
        why,
    };
    let label_selector: LabelSelector =
        serde_json::from_value(spec["selector"].clone()).map_err(|e| bad("spec.selector", e.to_string()))?;
    let match_labels = label_selector.match_labels.clone().unwrap_or_default();
    let selector: Selector = label_selector.try_into().map_err(|e| bad("spec.selector", format!("{e}")))?;
    if selector.clone().into_iter().next().is_none() {
        return Err(bad("spec.selector", "is empty".into()));
    }
    let claim_templates = spec["volumeClaimTemplates"].as_array().cloned().unwrap_or_default();
    let retention = |field: &str| match spec["persistentVolumeClaimRetentionPolicy"][field].as_str() {
        Some("Delete") => Retention::Delete,
        _ => Retention::Retain,
    };
    let data = revision_data(&spec["template"]);
    let set = Set {
        api_version: if types.api_version.is_empty() { "apps/v1".into() } else { types.api_version },
        kind: if types.kind.is_empty() { "StatefulSet".into() } else { types.kind },
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        generation: meta.generation.unwrap_or_default(),
        deleting: meta.deletion_timestamp.is_some(),
        replicas: int(&spec["replicas"]).unwrap_or(1),
        start: int(&spec["ordinals"]["start"]).unwrap_or(0),
        management: match spec["podManagementPolicy"].as_str() {
            Some("Parallel") => Management::Parallel,
            _ => Management::OrderedReady,
        },
        strategy: strategy(&spec["updateStrategy"]),
        min_ready_seconds: int(&spec["minReadySeconds"]).unwrap_or(0),
        history_limit: int(&spec["revisionHistoryLimit"]).unwrap_or(10),
        claim_templates: claim_templates
            .iter()
            .filter_map(|t| t["metadata"]["name"].as_str().map(str::to_owned))
            .collect(),
        when_deleted: retention("whenDeleted"),
        when_scaled: retention("whenScaled"),
        meaning: meaning(&data),
        data: Blob::new(canonical(&data)),
        status: status(&object.data["status"]),
    };
    let source = Source {
        annotations: meta.annotations.clone().unwrap_or_default(),
        service_name: spec["serviceName"].as_str().unwrap_or_default().to_owned(),
        match_labels,
        template_labels: labels(&spec["template"]["metadata"]["labels"]),
        claim_templates,
    };
    Ok(SetView { set, version: parse(meta.resource_version.as_deref().unwrap_or_default()), selector, source })
}

fn strategy(value: &Value) -> Strategy {
    if value["type"].as_str() == Some("OnDelete") {
        return Strategy::OnDelete;
    }
    let rolling = &value["rollingUpdate"];
    let max_unavailable = match &rolling["maxUnavailable"] {
        Value::String(percent) => {
            percent.strip_suffix('%').and_then(|p| p.parse().ok()).map_or(Unavailable::Count(1), Unavailable::Percent)
        }
        other => Unavailable::Count(int(other).unwrap_or(1)),
    };
    let partition = rolling.is_object().then(|| int(&rolling["partition"]).unwrap_or(0));
    Strategy::RollingUpdate { partition, max_unavailable }
}

fn status(value: &Value) -> Status {
    let count = |field: &str| int(&value[field]).unwrap_or(0);
    let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
    Status {
        observed_generation: value["observedGeneration"].as_i64().unwrap_or(0),
        replicas: count("replicas"),
        ready: count("readyReplicas"),
        available: count("availableReplicas"),
        current: count("currentReplicas"),
        updated: count("updatedReplicas"),
        current_revision: text("currentRevision"),
        update_revision: text("updateRevision"),
        collision_count: int(&value["collisionCount"]),
    }
}

/// Projects a pod.
pub fn project_pod(pod: Pod) -> PodView {
    let meta = pod.metadata;
    let labels = meta.labels.clone().unwrap_or_default();
    let status = pod.status.unwrap_or_default();
    let phase = match status.phase.as_deref() {
        Some("Running") => PodPhase::Running,
        Some("Succeeded") => PodPhase::Succeeded,
        Some("Failed") => PodPhase::Failed,
        Some("Unknown") => PodPhase::Unknown,
        _ => PodPhase::Pending,
    };
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let ready = conditions.iter().find(|c| c.type_ == "Ready" && c.status == "True");
    let ready_since = ready.map(|c| c.last_transition_time.as_ref().map_or(0, |t| t.0.as_millisecond()));
    let waiting = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .flatten()
        .filter_map(|c| c.state.as_ref()?.waiting.as_ref())
        .find_map(|w| w.reason.clone().filter(|r| r != "PodInitializing" && r != "ContainerCreating"));
    let unscheduled = conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    let detail = waiting
        .or_else(|| unscheduled.and_then(|c| c.message.clone().or_else(|| c.reason.clone())))
        .map(|d| d.chars().take(DETAIL_LIMIT).collect());
    let volumes = pod.spec.and_then(|s| s.volumes).unwrap_or_default();
    let pod = planner::Pod {
        uid: meta.uid.clone().unwrap_or_default(),
        version: parse(meta.resource_version.as_deref().unwrap_or_default()),
        phase,
        ready_since,
        terminating: meta.deletion_timestamp.is_some(),
        owners: owners(&meta),
        revision: labels.get(REVISION_LABEL).cloned(),
        pod_name_label: labels.get(POD_NAME_LABEL).cloned(),
        volumes: volumes.into_iter().filter_map(|v| Some((v.name, v.persistent_volume_claim?.claim_name))).collect(),
        detail,
        name: meta.name.unwrap_or_default(),
    };
    PodView { namespace: meta.namespace.unwrap_or_default(), labels, pod: Arc::new(pod) }
}

/// Projects a claim; with its namespace.
pub fn project_claim(claim: PersistentVolumeClaim) -> (String, Claim) {
    let meta = claim.metadata;
    let claim = Claim {
        uid: meta.uid.clone().unwrap_or_default(),
        version: parse(meta.resource_version.as_deref().unwrap_or_default()),
        terminating: meta.deletion_timestamp.is_some(),
        owners: owners(&meta),
        name: meta.name.unwrap_or_default(),
    };
    (meta.namespace.unwrap_or_default(), claim)
}

/// Projects a revision.
pub fn project_revision(revision: ControllerRevision) -> RevisionView {
    let meta = revision.metadata;
    let data = revision.data.0;
    let created: Millis = meta.creation_timestamp.as_ref().map_or(0, |t| t.0.as_millisecond());
    RevisionView {
        labels: meta.labels.clone().unwrap_or_default(),
        revision: Revision {
            uid: meta.uid.clone().unwrap_or_default(),
            version: parse(meta.resource_version.as_deref().unwrap_or_default()),
            number: revision.revision.unwrap_or_default(),
            created,
            owners: owners(&meta),
            meaning: meaning(&data),
            data: Blob::new(canonical(&data)),
            name: meta.name.unwrap_or_default(),
        },
        namespace: meta.namespace.unwrap_or_default(),
    }
}

fn owners(meta: &ObjectMeta) -> Vec<Owner> {
    let owner = |o: &OwnerReference| Owner {
        api_version: o.api_version.clone(),
        kind: o.kind.clone(),
        name: o.name.clone(),
        uid: o.uid.clone(),
        controller: o.controller.unwrap_or(false),
        block: o.block_owner_deletion.unwrap_or(false),
    };
    meta.owner_references.iter().flatten().map(owner).collect()
}

/// A template as the data of a revision: a strategic-merge patch of the set, so that a rollback can send
/// it as it is.
fn revision_data(template: &Value) -> Value {
    let mut template = template.clone();
    if let Some(template) = template.as_object_mut() {
        template.insert("$patch".into(), "replace".into());
    }
    json!({"spec": {"template": template}})
}

/// The bytes that revisions are compared and hashed by: sorted keys, no spaces, and `<`, `>`, `&` and the
/// two line separators escaped, as Kubernetes' encoder writes them.
fn canonical(data: &Value) -> Vec<u8> {
    let text = data.to_string();
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            other => out.push(other),
        }
    }
    out.into_bytes()
}

/// Revision data without what means nothing: nulls, and the empty objects that defaulting adds. Two
/// templates that differ only there need no rollout.
fn meaning(data: &Value) -> Blob {
    let mut data = data.clone();
    drop_nulls(&mut data);
    let template = &mut data["spec"]["template"];
    if let Some(meta) = template["metadata"].as_object_mut() {
        meta.remove("creationTimestamp");
    }
    let is_empty = |v: Option<&Value>| v.and_then(Value::as_object).is_some_and(serde_json::Map::is_empty);
    if let Some(spec) = template["spec"].as_object_mut() {
        if is_empty(spec.get("securityContext")) {
            spec.remove("securityContext");
        }
        for list in ["containers", "initContainers"] {
            let containers = spec.get_mut(list).and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
                for field in ["resources", "securityContext"] {
                    if is_empty(container.get(field)) {
                        container.remove(field);
                    }
                }
            }
        }
    }
    Blob::new(canonical(&data))
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn int(value: &Value) -> Option<i32> {
    value.as_i64().map(|n| i32::try_from(n).unwrap_or(if n < 0 { i32::MIN } else { i32::MAX }))
}

fn labels(value: &Value) -> BTreeMap<String, String> {
    let pairs = value.as_object().into_iter().flatten();
    pairs.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(spec: Value) -> SetView {
        let object = json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "web", "namespace": "default", "uid": "u", "resourceVersion": "7"}, "spec": spec,
        });
        project_set(serde_json::from_value(object).expect("an object")).expect("a valid set")
    }

    fn spec(template: Value) -> Value {
        json!({"selector": {"matchLabels": {"app": "web"}}, "template": template})
    }

    #[test]
    fn revision_bytes_are_those_of_a_patch_with_sorted_keys_and_escaped_signs() {
        let view = view(spec(json!({"spec": {"containers": []}, "metadata": {"annotations": {"a": "<&>\u{2028}"}}})));
        let expected = "{\"spec\":{\"template\":{\"$patch\":\"replace\",\"metadata\":{\"annotations\":\
                        {\"a\":\"\\u003c\\u0026\\u003e\\u2028\"}},\"spec\":{\"containers\":[]}}}}";
        assert_eq!(std::str::from_utf8(view.set.data.bytes()), Ok(expected));
    }

    #[test]
    fn templates_that_differ_in_nothing_but_empty_defaults_mean_the_same() {
        let one = json!({"metadata": {"creationTimestamp": null}, "spec": {
            "securityContext": {}, "volumes": null, "containers": [{"name": "a", "resources": {}}],
        }});
        let two = json!({"metadata": {}, "spec": {"containers": [{"name": "a"}]}});
        let three = json!({"metadata": {}, "spec": {"containers": [{"name": "b"}]}});
        let (one, two, three) = (view(spec(one)).set, view(spec(two)).set, view(spec(three)).set);
        assert_ne!(one.data, two.data);
        assert_eq!(one.meaning, two.meaning);
        assert_ne!(two.meaning, three.meaning);
    }

    #[test]
    fn what_is_absent_has_its_default() {
        let set = view(spec(json!({}))).set;
        assert_eq!((set.replicas, set.start, set.history_limit, set.min_ready_seconds), (1, 0, 10, 0));
        assert_eq!(set.management, Management::OrderedReady);
        let strategy = Strategy::RollingUpdate { partition: None, max_unavailable: Unavailable::Count(1) };
        assert_eq!(set.strategy, strategy);
        assert_eq!((set.when_deleted, set.when_scaled), (Retention::Retain, Retention::Retain));
    }

    #[test]
    fn a_set_without_selector_is_left_alone() {
        let object = json!({"metadata": {"name": "web"}, "spec": {"selector": {}, "template": {}}});
        let refused = project_set(serde_json::from_value(object).expect("an object"));
        assert!(matches!(refused, Err(Error::Malformed { field, .. }) if field == "spec.selector"));
    }
}
