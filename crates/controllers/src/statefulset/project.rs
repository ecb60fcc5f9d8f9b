//! From API objects to what the planner sees. Pure, so that commands can run the planner on objects that
//! they have read themselves.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::core::{DynamicObject, Selector, SelectorExt};
use planner::{
    Beyond, Blob, Claim, Condition, ConditionKind, Management, Member, Millis, Observed, Owner, PodPhase, Reserved,
    Retention, Revision, Set, Status, Strategy, Truth, Unavailable,
};
use serde_json::{Value, json};

use super::Error;
use super::meaning::meaning;
use super::trouble::{self, annotation};
use crate::informer::parse;

/// Label that holds the name of a pod's revision.
pub(super) const REVISION_LABEL: &str = "controller-revision-hash";
/// Label that holds a pod's own name.
pub(super) const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";

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
    /// Patches of the pod template, by ordinal.
    pub overrides: BTreeMap<i32, Value>,
    /// Conditions that others wrote.
    pub foreign_conditions: Vec<Value>,
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
    let annotations = meta.annotations.clone().unwrap_or_default();
    let (asked, problems) = api::beyond::read(&json!(annotations));
    let ordered = meta.finalizers.iter().flatten().any(|f| f == api::beyond::ORDERED_DELETION);
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
        service_name: spec["serviceName"].as_str().unwrap_or_default().to_owned(),
        beyond: Beyond {
            ordered_deletion: ordered,
            replace_broken: asked.replace_broken,
            deadline_seconds: asked.deadline_seconds,
            rollback: asked.rollback,
            retry: asked.retry,
            reserved: Reserved::new(asked.reserved),
            overrides: asked.overrides.iter().map(|(n, o)| (*n, o.hash.clone())).collect(),
            claim_sizes: if asked.expansion { sizes(&claim_templates) } else { BTreeMap::new() },
            carry_out: asked.carry_out,
            protect: asked.protect,
            invalid: problems.first().map(ToString::to_string),
        },
    };
    let source = Source {
        annotations,
        service_name: set.service_name.clone(),
        match_labels,
        template_labels: labels(&spec["template"]["metadata"]["labels"]),
        claim_templates,
        overrides: asked.overrides.into_iter().map(|(n, o)| (n, o.patch)).collect(),
        foreign_conditions: conditions(&object.data["status"])
            .filter(|c| ConditionKind::ALL.iter().all(|kind| c["type"] != kind.name()))
            .cloned()
            .collect(),
    };
    Ok(SetView { set, version: parse(meta.resource_version.as_deref().unwrap_or_default()), selector, source })
}

fn strategy(value: &Value) -> Strategy {
    match value["type"].as_str() {
        Some("OnDelete") => return Strategy::OnDelete,
        Some("Recreate") => return Strategy::Recreate,
        _ => {}
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
        conditions: ConditionKind::ALL.iter().filter_map(|kind| condition(value, *kind)).collect(),
    }
}

fn conditions(status: &Value) -> impl Iterator<Item = &Value> {
    status["conditions"].as_array().into_iter().flatten()
}

/// A condition of ours, as it was last written.
fn condition(status: &Value, kind: ConditionKind) -> Option<Condition> {
    let found = conditions(status).find(|c| c["type"] == kind.name())?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    let truth = [Truth::True, Truth::False, Truth::Unknown].into_iter().find(|t| found["status"] == t.name())?;
    let since = text("lastTransitionTime").parse().map_or(0, |at: jiff::Timestamp| at.as_millisecond());
    Some(Condition { kind, truth, reason: text("reason"), message: text("message"), since })
}

/// Bytes that each claim template asks for.
fn sizes(templates: &[Value]) -> BTreeMap<String, i64> {
    let size = |template: &Value| {
        let name = template["metadata"]["name"].as_str()?;
        Some((name.to_owned(), bytes(template["spec"]["resources"]["requests"]["storage"].as_str()?)))
    };
    templates.iter().filter_map(size).collect()
}

/// A quantity in whole units; 0 if it is none.
fn bytes(quantity: &str) -> i64 {
    api::quantity::Quantity::parse(quantity).map_or(0, |q| q.units())
}

/// Projects a pod.
pub fn project_pod(pod: Pod) -> PodView {
    let meta = pod.metadata;
    let labels = meta.labels.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
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
    let (trouble, detail) = trouble::of(pod.spec.as_ref(), &status);
    let was_ready = trouble::was_ready(&meta, pod.spec.as_ref());
    let subdomain = pod.spec.as_ref().and_then(|s| s.subdomain.clone()).unwrap_or_default();
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
        trouble,
        created: meta.creation_timestamp.as_ref().map_or(0, |t| t.0.as_millisecond()),
        was_ready,
        override_hash: annotation(&meta, api::beyond::OVERRIDE_HASH).map(str::to_owned),
        subdomain,
        name: meta.name.unwrap_or_default(),
    };
    PodView { namespace: meta.namespace.unwrap_or_default(), labels, pod: Arc::new(pod) }
}

/// Projects a claim; with its namespace.
pub fn project_claim(claim: PersistentVolumeClaim) -> (String, Claim) {
    let meta = claim.metadata;
    let requests = claim.spec.and_then(|s| s.resources).and_then(|r| r.requests).unwrap_or_default();
    let is_true = |key: &str| annotation(&meta, key) == Some("true");
    let claim = Claim {
        requested: requests.get("storage").map_or(0, |q| bytes(&q.0)),
        reserved: annotation(&meta, api::beyond::RESERVED_SINCE).is_some(),
        reuse: is_true(api::beyond::REUSE),
        protected: is_true(api::beyond::PROTECT),
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
            held: annotation(&meta, api::beyond::HELD).map(str::to_owned),
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
pub(super) fn canonical(data: &Value) -> Vec<u8> {
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
