//! Defaults of all types that are not part of a pod.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::crd;

use super::{Object, Rule, add_missing, default, is_empty, items, object_at, text};

/// Group of roles and bindings.
const RBAC: &str = "rbac.authorization.k8s.io";

/// How long a service remembers a client, in seconds.
const AFFINITY_SECONDS: i64 = 3 * 60 * 60;

/// Rules by type.
pub(super) const RULES: &[(&str, Rule)] = &[
    ("apps/v1.DeploymentSpec", deployment_spec),
    ("apps/v1.ReplicaSetSpec", |spec| default(spec, "replicas", 1)),
    ("apps/v1.StatefulSetSpec", stateful_set_spec),
    ("apps/v1.StatefulSetUpdateStrategy", update_strategy),
    ("apps/v1.StatefulSetPersistentVolumeClaimRetentionPolicy", |policy| {
        default(policy, "whenDeleted", "Retain");
        default(policy, "whenScaled", "Retain");
    }),
    ("batch/v1.Job", job),
    ("batch/v1.CronJobSpec", |spec| {
        default(spec, "concurrencyPolicy", "Allow");
        default(spec, "suspend", false);
        default(spec, "successfulJobsHistoryLimit", 3);
        default(spec, "failedJobsHistoryLimit", 1);
    }),
    ("batch/v1.PodFailurePolicyOnPodConditionsPattern", |pattern| default(pattern, "status", "True")),
    ("core/v1.Service", service),
    ("core/v1.Secret", secret),
    ("core/v1.Namespace", namespace),
    ("core/v1.NamespaceStatus", |status| default(status, "phase", "Active")),
    ("core/v1.NodeStatus", |status| {
        if let (true, Some(capacity)) = (is_empty(status, "allocatable"), status.get("capacity").cloned()) {
            status.insert("allocatable".to_owned(), capacity);
        }
    }),
    ("core/v1.PersistentVolumeSpec", |spec| {
        default(spec, "persistentVolumeReclaimPolicy", "Retain");
        default(spec, "volumeMode", "Filesystem");
    }),
    ("core/v1.PersistentVolumeStatus", |status| default(status, "phase", "Pending")),
    ("core/v1.PersistentVolumeClaimSpec", |spec| default(spec, "volumeMode", "Filesystem")),
    ("core/v1.PersistentVolumeClaimStatus", |status| default(status, "phase", "Pending")),
    ("core/v1.EndpointPort", |port| default(port, "protocol", "TCP")),
    ("core/v1.LimitRangeItem", limit_range_item),
    ("storage/v1.StorageClass", |class| {
        default(class, "reclaimPolicy", "Delete");
        default(class, "volumeBindingMode", "Immediate");
    }),
    ("storage/v1.CSIDriverSpec", csi_driver_spec),
    ("scheduling/v1.PriorityClass", |class| default(class, "preemptionPolicy", "PreemptLowerPriority")),
    ("discovery/v1.EndpointPort", |port| {
        port.entry("name").or_insert(Value::from(""));
        default(port, "protocol", "TCP");
    }),
    ("networking/v1.NetworkPolicySpec", network_policy_spec),
    ("networking/v1.NetworkPolicyPort", |port| default(port, "protocol", "TCP")),
    ("apiextensions/v1.CustomResourceDefinitionSpec", crd::complete_spec),
    ("apiextensions/v1.ServiceReference", |service| default(service, "port", 443)),
    ("rbac/v1.RoleBinding", role_ref),
    ("rbac/v1.ClusterRoleBinding", role_ref),
    ("rbac/v1.Subject", |subject| {
        if matches!(text(subject, "kind"), "User" | "Group") {
            default(subject, "apiGroup", RBAC);
        }
    }),
    ("authentication/v1.TokenRequestSpec", |spec| default(spec, "expirationSeconds", 3600)),
];

/// A set.
fn stateful_set_spec(spec: &mut Object) {
    default(spec, "replicas", 1);
    default(spec, "podManagementPolicy", "OrderedReady");
    default(spec, "revisionHistoryLimit", 10);
    // Both get their own defaults when the walk comes to them.
    object_at(spec, "updateStrategy");
    object_at(spec, "persistentVolumeClaimRetentionPolicy");
    for claim in items(spec, "volumeClaimTemplates") {
        claim.insert("apiVersion".to_owned(), "v1".into());
        claim.insert("kind".to_owned(), "PersistentVolumeClaim".into());
    }
}

/// How a set updates its pods.
fn update_strategy(strategy: &mut Object) {
    default(strategy, "type", "RollingUpdate");
    if text(strategy, "type") == "RollingUpdate"
        && let Some(rolling) = object_at(strategy, "rollingUpdate")
    {
        default(rolling, "partition", 0);
    }
}

/// A deployment.
fn deployment_spec(spec: &mut Object) {
    default(spec, "replicas", 1);
    default(spec, "revisionHistoryLimit", 10);
    default(spec, "progressDeadlineSeconds", 600);
    let Some(strategy) = object_at(spec, "strategy") else { return };
    default(strategy, "type", "RollingUpdate");
    if text(strategy, "type") == "RollingUpdate"
        && let Some(rolling) = object_at(strategy, "rollingUpdate")
    {
        default(rolling, "maxUnavailable", "25%");
        default(rolling, "maxSurge", "25%");
    }
}

/// A job itself, not a template of one.
fn job(job: &mut Object) {
    let Some(spec) = job.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if is_empty(spec, "completions") && is_empty(spec, "parallelism") {
        default(spec, "completions", 1);
    }
    default(spec, "parallelism", 1);
    let limit = if is_empty(spec, "backoffLimitPerIndex") { 6 } else { i64::from(i32::MAX) };
    default(spec, "backoffLimit", limit);
    default(spec, "completionMode", "NonIndexed");
    default(spec, "suspend", false);
    default(spec, "manualSelector", false);
    let replacement = if is_empty(spec, "podFailurePolicy") { "TerminatingOrFailed" } else { "Failed" };
    default(spec, "podReplacementPolicy", replacement);
    let labels = spec.get("template").and_then(|t| t.get("metadata")).and_then(|m| m.get("labels")).cloned();
    let Some(labels) = labels.filter(|labels| labels.as_object().is_some_and(|labels| !labels.is_empty())) else {
        return;
    };
    if let Some(metadata) = object_at(job, "metadata")
        && metadata.get("labels").and_then(Value::as_object).is_none_or(serde_json::Map::is_empty)
    {
        metadata.insert("labels".to_owned(), labels);
    }
}

/// A service, whose status depends on its spec.
fn service(service: &mut Object) {
    let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else { return };
    service_spec(spec);
    if text(spec, "type") == "LoadBalancer" {
        let balancer = service.get_mut("status").and_then(|s| s.get_mut("loadBalancer")).and_then(Value::as_object_mut);
        for ingress in balancer.into_iter().flat_map(|b| items(b, "ingress")) {
            if !is_empty(ingress, "ip") {
                default(ingress, "ipMode", "VIP");
            }
        }
    }
}

/// What a service is; its addresses are allocated elsewhere.
fn service_spec(spec: &mut Object) {
    default(spec, "sessionAffinity", "None");
    match text(spec, "sessionAffinity") {
        "None" => {
            spec.remove("sessionAffinityConfig");
        }
        "ClientIP" => default(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": AFFINITY_SECONDS}})),
        _ => {}
    }
    default(spec, "type", "ClusterIP");
    for port in items(spec, "ports") {
        default(port, "protocol", "TCP");
        if is_empty(port, "targetPort") || port.get("targetPort") == Some(&Value::from(0)) {
            let number = port.get("port").cloned().unwrap_or_default();
            port.insert("targetPort".to_owned(), number);
        }
    }
    let has_external_addresses = spec.get("externalIPs").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    let kind = text(spec, "type").to_owned();
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && has_external_addresses) {
        default(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
        default(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
}

/// A secret; its plain texts become bytes, which win over bytes given under the same key.
fn secret(secret: &mut Object) {
    default(secret, "type", "Opaque");
    let Some(Value::Object(texts)) = secret.remove("stringData") else { return };
    if texts.is_empty() {
        return;
    }
    if let Some(data) = object_at(secret, "data") {
        for (key, value) in texts {
            data.insert(key, STANDARD.encode(value.as_str().unwrap_or_default()).into());
        }
    }
}

/// A namespace, which can be selected by its name.
fn namespace(namespace: &mut Object) {
    let Some(metadata) = object_at(namespace, "metadata") else { return };
    let name = text(metadata, "name").to_owned();
    if name.is_empty() {
        return;
    }
    if let Some(labels) = object_at(metadata, "labels") {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
    }
}

/// Limits for containers fill each other in.
fn limit_range_item(item: &mut Object) {
    if text(item, "type") != "Container" {
        return;
    }
    let fill = |item: &mut Object, to: &str, from: &str| {
        let from = item.get(from).cloned();
        if from.as_ref().and_then(Value::as_object).is_some_and(|from| !from.is_empty())
            && let Some(to) = object_at(item, to)
        {
            add_missing(to, from.as_ref());
        }
    };
    fill(item, "default", "max");
    fill(item, "defaultRequest", "default");
    fill(item, "defaultRequest", "min");
}

/// A policy governs what comes in, and what goes out if it says something about that.
fn network_policy_spec(spec: &mut Object) {
    if spec.get("policyTypes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let has_egress = spec.get("egress").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty());
        spec.insert(
            "policyTypes".to_owned(),
            if has_egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) },
        );
    }
}

/// A driver of volumes.
fn csi_driver_spec(spec: &mut Object) {
    default(spec, "attachRequired", true);
    for flag in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
        default(spec, flag, false);
    }
    default(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    if spec.get("volumeLifecycleModes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        spec.insert("volumeLifecycleModes".to_owned(), json!(["Persistent"]));
    }
}

/// Roles are all in one group.
fn role_ref(binding: &mut Object) {
    if let Some(role) = object_at(binding, "roleRef") {
        default(role, "apiGroup", RBAC);
    }
}
