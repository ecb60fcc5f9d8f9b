//! The rules that objects have to follow, with upstream's paths and sentences.
//!
//! ```text
//!  create ─▶ metadata::create ─┐
//!  update ─▶ metadata::update ─┼─▶ rules of the kind ─▶ findings, in upstream's order
//!  status ─▶ metadata::update ─┘
//! ```
//!
//! Works on objects that are decoded (types are right) and defaulted. Where upstream's rules changed over time, the
//! newest ones hold. Rules that need to look at other objects (quotas, free addresses) are the server's.

mod beyond;
mod bounds;
mod config;
mod container;
mod cursor;
mod drivers;
mod event;
mod job;
mod metadata;
mod network;
mod pod;
mod pod_status;
mod policy;
mod rbac;
mod resources;
mod scheduling;
mod stateful_set;
mod storage;
mod volume;
mod workload;

use serde_json::Value;

use crate::crd;
use crate::names;
use crate::resource::Resource;
use crate::status::FieldError;
use cursor::{At, Errors};

/// What is wrong with a new object.
pub fn create(resource: &Resource, new: &Value) -> Vec<FieldError> {
    let mut out = Errors::new();
    let object = At::root(new);
    metadata::create(resource, &object.field("metadata"), &mut out);
    rules(resource, &object, None, &mut out);
    out.extend(custom(resource, new, None));
    out
}

/// What is wrong with a changed object.
pub fn update(resource: &Resource, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut out = Errors::new();
    let object = At::root(new);
    // Upstream checks the identity twice, in general and by kind, and lists what it finds twice.
    metadata::identity(&object.field("metadata"), &old["metadata"], &mut out);
    metadata::update(&object.field("metadata"), &old["metadata"], &mut out);
    rules(resource, &object, Some(old), &mut out);
    out.extend(custom(resource, new, Some(old)));
    out
}

/// What is wrong with a changed status.
pub fn status_update(resource: &Resource, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut out = Errors::new();
    let object = At::root(new);
    if (resource.group.as_str(), resource.kind.as_str()) == ("", "Pod") {
        pod_status::transitions(&object, old, &mut out);
    }
    metadata::update(&object.field("metadata"), &old["metadata"], &mut out);
    if let Some(custom) = &resource.custom {
        out.extend(crd::validate_status(resource, custom, &mut new.clone(), old));
    }
    match (resource.group.as_str(), resource.kind.as_str()) {
        (crd::GROUP, crd::KIND) => out.extend(crd::status(new)),
        ("apps", "StatefulSet") => stateful_set::status(&object, old, &mut out),
        ("apps", "Deployment") => workload::deployment_status(&object, old, &mut out),
        ("apps", "ReplicaSet") => workload::replica_set_status(&object, &mut out),
        ("batch", "Job") => job::status(&object, &mut out),
        ("", "Pod") => pod::status(&object, &mut out),
        ("", "Namespace") => config::namespace_status(&object, &mut out),
        ("", "ResourceQuota") => bounds::quota_status(&object, &mut out),
        _ => {}
    }
    out
}

/// The rules of custom kinds and of their definitions.
fn custom(resource: &Resource, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    match (&resource.custom, old) {
        (Some(custom), old) => crd::validate_object(custom, &mut new.clone(), old),
        (None, None) if is_definition(resource) => crd::create(new),
        (None, Some(old)) if is_definition(resource) => crd::update(new, old),
        _ => Vec::new(),
    }
}

/// Whether objects of the kind declare other kinds.
fn is_definition(resource: &Resource) -> bool {
    resource.group == crd::GROUP && resource.kind == crd::KIND
}

/// What is wrong with a pod whose ephemeral containers were written.
pub fn ephemeral_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut out = Errors::new();
    let object = At::root(new);
    metadata::update(&object.field("metadata"), &old["metadata"], &mut out);
    pod::ephemeral_update(&object, old, &mut out);
    out
}

/// What is wrong with a pod that was resized.
pub fn resize_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut out = Errors::new();
    let object = At::root(new);
    metadata::update(&object.field("metadata"), &old["metadata"], &mut out);
    pod::resize_update(&object, old, &mut out);
    out
}

/// The rules of a kind; `old` is what the object was, if it is not new.
fn rules(resource: &Resource, object: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    match (resource.group.as_str(), resource.kind.as_str(), old) {
        ("apps", "StatefulSet", None) => stateful_set::create(object, out),
        ("apps", "StatefulSet", Some(old)) => stateful_set::update(object, old, out),
        ("apps", "ControllerRevision", old) => stateful_set::revision(object, old, out),
        ("apps", "Deployment", old) => workload::deployment(object, old, out),
        ("apps", "ReplicaSet", old) => workload::replica_set(object, old, out),
        ("batch", "Job", None) => job::create(object, out),
        ("batch", "Job", Some(old)) => job::update(object, old, out),
        ("batch", "CronJob", old) => job::cron(object, old, out),
        ("", "Pod", None) => pod::create(object, out),
        ("", "Pod", Some(old)) => pod::update(object, old, out),
        ("", "Service", old) => network::service(object, old, out),
        ("", "Endpoints", _) => network::endpoints(object, out),
        ("discovery.k8s.io", "EndpointSlice", old) => network::endpoint_slice(object, old, out),
        ("", "PersistentVolumeClaim", old) => storage::claim(object, old, out),
        ("", "PersistentVolume", old) => storage::volume(object, old, out),
        ("storage.k8s.io", "StorageClass", old) => storage::class(object, old, out),
        ("storage.k8s.io", "CSIDriver", old) => drivers::driver(object, old, out),
        ("storage.k8s.io", "CSINode", _) => drivers::node(object, out),
        ("storage.k8s.io", "CSIStorageCapacity", old) => drivers::capacity(object, old, out),
        ("storage.k8s.io", "VolumeAttachment", old) => drivers::attachment(object, old, out),
        ("storage.k8s.io", "VolumeAttributesClass", old) => drivers::attributes_class(object, old, out),
        ("snapshot.storage.k8s.io", "VolumeSnapshot", old) => drivers::snapshot(object, old, out),
        ("snapshot.storage.k8s.io", "VolumeSnapshotClass", old) => drivers::snapshot_class(object, old, out),
        ("snapshot.storage.k8s.io", "VolumeSnapshotContent", old) => drivers::snapshot_content(object, old, out),
        ("networking.k8s.io", "NetworkPolicy", _) => policy::network_policy(object, out),
        ("", "ConfigMap", old) => config::config_map(object, old, out),
        ("", "ResourceQuota", old) => bounds::quota(object, old, out),
        ("", "LimitRange", _) => bounds::limit_range(object, out),
        ("", "Node", _) => bounds::node(object, out),
        ("", "Secret", old) => config::secret(object, old, out),
        ("", "Event", _) => event::core(object, out),
        ("events.k8s.io", "Event", old) => event::strict(object, old, out),
        ("coordination.k8s.io", "Lease", _) => config::lease(object, out),
        ("policy", "PodDisruptionBudget", _) => config::budget(object, out),
        ("node.k8s.io", "RuntimeClass", old) => config::runtime_class(object, old, out),
        ("scheduling.k8s.io", "PriorityClass", old) => config::priority_class(object, old, out),
        ("rbac.authorization.k8s.io", "Role", _) => rbac::rules(object, true, out),
        ("rbac.authorization.k8s.io", "ClusterRole", _) => rbac::rules(object, false, out),
        ("rbac.authorization.k8s.io", "RoleBinding", old) => rbac::binding(object, true, old, out),
        ("rbac.authorization.k8s.io", "ClusterRoleBinding", old) => rbac::binding(object, false, old, out),
        _ => {}
    }
}

/// A count, or a share of at most all.
fn int_or_percent(at: &At<'_>, out: &mut Errors) {
    match at.value {
        Value::String(text) => {
            out.extend(names::percent(text).into_iter().map(|sentence| at.invalid(sentence)));
            let share = text.strip_suffix('%').and_then(|digits| digits.parse::<u64>().ok());
            if share.is_some_and(|share| share > 100) {
                out.push(at.invalid("must not be greater than 100%"));
            }
        }
        _ => at.not_negative(out),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::Registry;
    use crate::{defaults, strategy};

    fn resource(group: &str, plural: &str) -> std::sync::Arc<Resource> {
        Registry::builtin().find(group, "v1", plural).expect("is served")
    }

    /// An object as it would be stored.
    fn stored(resource: &Resource, mut object: Value) -> Value {
        defaults::apply(resource, &mut object);
        object["metadata"]["namespace"] = "ns".into();
        strategy::prepare_create(resource, &mut object);
        assert_eq!(create(resource, &object), [], "the object begins well");
        object
    }

    /// What is found wrong when the value at a pointer is changed.
    fn changed(resource: &Resource, old: &Value, pointer: &str, value: Value) -> Vec<String> {
        let mut new = old.clone();
        let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
        new.pointer_mut(parent).expect("is there")[field] = value;
        update(resource, &new, old).iter().map(ToString::to_string).collect()
    }

    fn set() -> (std::sync::Arc<Resource>, Value) {
        let sets = resource("apps", "statefulsets");
        let object = json!({"metadata": {"name": "web"}, "spec": {"serviceName": "web", "replicas": 3,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [
                {"name": "main", "image": "i:1", "volumeMounts": [{"name": "data", "mountPath": "/d"}]}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}}}}]}});
        let object = stored(&sets, object);
        (sets, object)
    }

    fn pod() -> (std::sync::Arc<Resource>, Value) {
        let pods = resource("", "pods");
        let object = json!({"metadata": {"name": "im"}, "spec": {"activeDeadlineSeconds": 50, "nodeSelector": {"a": "b"},
            "containers": [{"name": "main", "image": "i:1"}], "tolerations": [{"key": "k", "operator": "Exists"}]}});
        let object = stored(&pods, object);
        (pods, object)
    }

    #[test]
    fn a_set_can_be_scaled_rolled_and_shifted_but_not_reshaped() {
        let (sets, old) = set();
        assert_eq!(changed(&sets, &old, "/spec/replicas", json!(5)), [""; 0]);
        assert_eq!(changed(&sets, &old, "/spec/ordinals", json!({"start": 2})), [""; 0]);
        assert_eq!(changed(&sets, &old, "/spec/revisionHistoryLimit", json!(3)), [""; 0]);
        let frozen = "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        for (pointer, value) in [
            ("/spec/serviceName", json!("other")),
            ("/spec/podManagementPolicy", json!("Parallel")),
            ("/spec/volumeClaimTemplates", json!([])),
        ] {
            assert_eq!(changed(&sets, &old, pointer, value), [frozen], "{pointer}");
        }
        assert_eq!(
            changed(&sets, &old, "/spec/ordinals", json!({"start": -1})),
            ["spec.ordinals.start: Invalid value: -1: must be greater than or equal to 0"]
        );
    }

    #[test]
    fn a_template_older_than_a_rule_does_not_block_other_changes() {
        let (sets, mut old) = set();
        old["spec"]["template"]["spec"]["containers"][0]["image"] = "".into();
        assert_eq!(changed(&sets, &old, "/spec/replicas", json!(1)), [""; 0]);
        let mut template = old["spec"]["template"].clone();
        template["metadata"]["annotations"] = json!({"a": "b"});
        assert_eq!(
            changed(&sets, &old, "/spec/template", template),
            ["spec.template.spec.containers[0].image: Required value"]
        );
    }

    #[test]
    fn update_strategies_are_checked() {
        let (sets, old) = set();
        let with = |rolling: Value| {
            changed(&sets, &old, "/spec/updateStrategy", json!({"type": "RollingUpdate", "rollingUpdate": rolling}))
        };
        assert_eq!(with(json!({"maxUnavailable": "50%"})), [""; 0]);
        let path = "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value:";
        assert_eq!(with(json!({"maxUnavailable": 0})), [format!("{path} 0: cannot be 0")]);
        assert_eq!(
            with(json!({"maxUnavailable": "101%"})),
            [format!("{path} \"101%\": must not be greater than 100%")]
        );
        assert_eq!(with(json!({"maxUnavailable": "x"})).len(), 1);
    }

    #[test]
    fn a_sets_status_adds_up() {
        let (sets, old) = set();
        let judge = |status: Value| {
            let mut new = old.clone();
            new["status"] = status;
            status_update(&sets, &new, &old).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(judge(json!({"replicas": 2, "readyReplicas": 2, "availableReplicas": 1})), [""; 0]);
        assert_eq!(
            judge(json!({"replicas": 1, "readyReplicas": 2, "availableReplicas": 3})),
            [
                "status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas",
                "status.availableReplicas: Invalid value: 3: cannot be greater than status.replicas",
                "status.availableReplicas: Invalid value: 3: cannot be greater than status.readyReplicas",
            ]
        );
    }

    #[test]
    fn a_pod_changes_only_in_images_deadline_and_tolerations() {
        let (pods, old) = pod();
        assert_eq!(changed(&pods, &old, "/spec/containers/0/image", json!("i:2")), [""; 0]);
        assert_eq!(changed(&pods, &old, "/spec/activeDeadlineSeconds", json!(40)), [""; 0]);
        let more = json!([{"key": "k", "operator": "Exists"}, {"key": "z", "operator": "Exists"}]);
        assert_eq!(changed(&pods, &old, "/spec/tolerations", more), [""; 0]);
        let env = changed(&pods, &old, "/spec/containers/0/env", json!([{"name": "A", "value": "1"}]));
        assert_eq!(env.len(), 1);
        assert!(env[0].starts_with("spec: Forbidden: pod updates may not change fields other than"), "{env:?}");
        assert!(env[0].ends_with("changed: `spec.containers`"), "{env:?}");
        let node = changed(&pods, &old, "/spec/nodeName", json!("n1"));
        assert!(node[0].ends_with("changed: `spec.nodeName`"), "{node:?}");
        assert_eq!(
            changed(&pods, &old, "/spec/activeDeadlineSeconds", json!(60)),
            ["spec.activeDeadlineSeconds: Invalid value: 60: must be less than or equal to previous value"]
        );
        assert_eq!(
            changed(&pods, &old, "/spec/activeDeadlineSeconds", Value::Null)[0],
            "spec.activeDeadlineSeconds: Invalid value: \"null\": must not update from a positive integer to nil value"
        );
        assert_eq!(
            changed(&pods, &old, "/spec/tolerations", json!([])),
            ["spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"]
        );
    }

    #[test]
    fn identity_is_immutable_and_said_twice_as_upstream_does() {
        let maps = resource("", "configmaps");
        let old = json!({"metadata": {"name": "c", "namespace": "ns", "uid": "u"}});
        let uid = "metadata.uid: Invalid value: \"v\": field is immutable";
        assert_eq!(changed(&maps, &old, "/metadata/uid", json!("v")), [uid, uid]);
    }

    #[test]
    fn a_claim_is_bound_once_and_grows_when_bound() {
        let claims = resource("", "persistentvolumeclaims");
        let object = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}});
        let mut old = stored(&claims, object);
        assert_eq!(changed(&claims, &old, "/spec/volumeName", json!("v")), [""; 0]);
        let larger = json!({"requests": {"storage": "2Gi"}});
        assert_eq!(changed(&claims, &old, "/spec/resources", larger.clone()).len(), 1);
        old["status"]["phase"] = "Bound".into();
        assert_eq!(changed(&claims, &old, "/spec/resources", larger), [""; 0]);
        let smaller = json!({"requests": {"storage": "1Mi"}});
        assert_eq!(
            changed(&claims, &old, "/spec/resources", smaller),
            ["spec.resources.requests.storage: Forbidden: field can not be less than previous value"]
        );
    }

    #[test]
    fn what_is_immutable_in_other_kinds_stays() {
        let revisions = resource("apps", "controllerrevisions");
        let old = stored(&revisions, json!({"metadata": {"name": "r"}, "data": {"a": 1}, "revision": 1}));
        assert_eq!(
            changed(&revisions, &old, "/data", json!({"a": 2})),
            ["data: Invalid value: {\"a\":2}: field is immutable"]
        );
        assert_eq!(changed(&revisions, &old, "/revision", json!(2)), [""; 0]);
        let maps = resource("", "configmaps");
        let old = stored(&maps, json!({"metadata": {"name": "c"}, "data": {"a": "1"}, "immutable": true}));
        assert_eq!(
            changed(&maps, &old, "/data", json!({"a": "2"})),
            ["data: Forbidden: field is immutable when `immutable` is set"]
        );
        let services = resource("", "services");
        let object = json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}});
        let old = stored(&services, object);
        let mut new = old.clone();
        new["spec"]["clusterIP"] = "10.0.0.2".into();
        new["spec"]["clusterIPs"] = json!(["10.0.0.2"]);
        let errors = update(&services, &new, &old);
        assert_eq!(errors.len(), 1);
        assert!(errors[0].to_string().ends_with("may not change once set"));
    }

    #[test]
    fn owners_and_finalizers_are_checked() {
        let maps = resource("", "configmaps");
        let judge = |metadata: Value| {
            let mut metadata = metadata;
            metadata["name"] = "c".into();
            metadata["namespace"] = "ns".into();
            create(&maps, &json!({"metadata": metadata})).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let owner =
            |name: &str| json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": "u", "controller": true});
        assert_eq!(judge(json!({"ownerReferences": [owner("a")]})), [""; 0]);
        assert!(judge(json!({"ownerReferences": [owner("a"), owner("b")]}))[0].contains("Only one reference"));
        assert_eq!(
            judge(json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "a"}]})),
            ["metadata.ownerReferences.uid: Invalid value: \"\": uid must not be empty"]
        );
        assert_eq!(judge(json!({"finalizers": ["orphan", "a.b/c"]})), [""; 0]);
        assert!(judge(json!({"finalizers": ["orphan", "foregroundDeletion"]}))[0].contains("cannot be both set"));
        let long = "x".repeat(256 * 1024);
        assert_eq!(
            judge(json!({"annotations": {"a": long}})),
            ["metadata.annotations: Too long: may not be more than 262144 bytes"]
        );
    }
}
