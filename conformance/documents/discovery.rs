//! Discovery, health, version, metrics.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{accepting, group_versions, list, texts};
use crate::cluster::Case;
use crate::verbs::text;

/// What clients expect of one kind: group and version; plural; kind; whether it is namespaced; short names;
/// categories; subresources.
type Row = (&'static str, &'static str, &'static str, bool, &'static [&'static str], &'static [&'static str], Subs);

/// Names of subresources.
type Subs = &'static [&'static str];

const POD: Subs = &[
    "attach",
    "binding",
    "ephemeralcontainers",
    "eviction",
    "exec",
    "log",
    "portforward",
    "proxy",
    "resize",
    "status",
];
const RBAC: &str = "rbac.authorization.k8s.io/v1";
const STORAGE: &str = "storage.k8s.io/v1";
const SNAPSHOT: &str = "snapshot.storage.k8s.io/v1";

/// The kinds, as kube-apiserver and the snapshot controller's definitions name them.
const KINDS: &[Row] = &[
    ("v1", "configmaps", "ConfigMap", true, &["cm"], &[], &[]),
    ("v1", "endpoints", "Endpoints", true, &["ep"], &[], &[]),
    ("v1", "events", "Event", true, &["ev"], &[], &[]),
    ("v1", "limitranges", "LimitRange", true, &["limits"], &[], &[]),
    ("v1", "namespaces", "Namespace", false, &["ns"], &[], &["finalize", "status"]),
    ("v1", "nodes", "Node", false, &["no"], &[], &["proxy", "status"]),
    ("v1", "persistentvolumeclaims", "PersistentVolumeClaim", true, &["pvc"], &[], &["status"]),
    ("v1", "persistentvolumes", "PersistentVolume", false, &["pv"], &[], &["status"]),
    ("v1", "pods", "Pod", true, &["po"], &["all"], POD),
    ("v1", "resourcequotas", "ResourceQuota", true, &["quota"], &[], &["status"]),
    ("v1", "secrets", "Secret", true, &[], &[], &[]),
    ("v1", "serviceaccounts", "ServiceAccount", true, &["sa"], &[], &["token"]),
    ("v1", "services", "Service", true, &["svc"], &["all"], &["proxy", "status"]),
    ("apps/v1", "controllerrevisions", "ControllerRevision", true, &[], &[], &[]),
    ("apps/v1", "deployments", "Deployment", true, &["deploy"], &["all"], &["scale", "status"]),
    ("apps/v1", "replicasets", "ReplicaSet", true, &["rs"], &["all"], &["scale", "status"]),
    ("apps/v1", "statefulsets", "StatefulSet", true, &["sts"], &["all"], &["scale", "status"]),
    ("authentication.k8s.io/v1", "selfsubjectreviews", "SelfSubjectReview", false, &[], &[], &[]),
    ("authentication.k8s.io/v1", "tokenreviews", "TokenReview", false, &[], &[], &[]),
    ("authorization.k8s.io/v1", "localsubjectaccessreviews", "LocalSubjectAccessReview", true, &[], &[], &[]),
    ("authorization.k8s.io/v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", false, &[], &[], &[]),
    ("authorization.k8s.io/v1", "selfsubjectrulesreviews", "SelfSubjectRulesReview", false, &[], &[], &[]),
    ("authorization.k8s.io/v1", "subjectaccessreviews", "SubjectAccessReview", false, &[], &[], &[]),
    ("batch/v1", "cronjobs", "CronJob", true, &["cj"], &["all"], &["status"]),
    ("batch/v1", "jobs", "Job", true, &[], &["all"], &["status"]),
    (
        "apiextensions.k8s.io/v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        false,
        &["crd", "crds"],
        &["api-extensions"],
        &["status"],
    ),
    ("coordination.k8s.io/v1", "leases", "Lease", true, &[], &[], &[]),
    ("discovery.k8s.io/v1", "endpointslices", "EndpointSlice", true, &[], &[], &[]),
    ("events.k8s.io/v1", "events", "Event", true, &["ev"], &[], &[]),
    ("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy", true, &["netpol"], &[], &[]),
    ("node.k8s.io/v1", "runtimeclasses", "RuntimeClass", false, &[], &[], &[]),
    ("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget", true, &["pdb"], &[], &["status"]),
    (RBAC, "clusterrolebindings", "ClusterRoleBinding", false, &[], &[], &[]),
    (RBAC, "clusterroles", "ClusterRole", false, &[], &[], &[]),
    (RBAC, "rolebindings", "RoleBinding", true, &[], &[], &[]),
    (RBAC, "roles", "Role", true, &[], &[], &[]),
    ("scheduling.k8s.io/v1", "priorityclasses", "PriorityClass", false, &["pc"], &[], &[]),
    (STORAGE, "csidrivers", "CSIDriver", false, &[], &[], &[]),
    (STORAGE, "csinodes", "CSINode", false, &[], &[], &[]),
    (STORAGE, "csistoragecapacities", "CSIStorageCapacity", true, &[], &[], &[]),
    (STORAGE, "storageclasses", "StorageClass", false, &["sc"], &[], &[]),
    (STORAGE, "volumeattachments", "VolumeAttachment", false, &[], &[], &["status"]),
    (STORAGE, "volumeattributesclasses", "VolumeAttributesClass", false, &["vac"], &[], &[]),
    (SNAPSHOT, "volumesnapshotclasses", "VolumeSnapshotClass", false, &["vsclass", "vsclasses"], &[], &[]),
    (SNAPSHOT, "volumesnapshotcontents", "VolumeSnapshotContent", false, &["vsc", "vscs"], &[], &["status"]),
    (SNAPSHOT, "volumesnapshots", "VolumeSnapshot", true, &["vs"], &[], &["status"]),
    ("metrics.k8s.io/v1beta1", "nodes", "NodeMetrics", false, &[], &[], &[]),
    ("metrics.k8s.io/v1beta1", "pods", "PodMetrics", true, &[], &[], &[]),
];

/// Groups that others serve by further components.
const ADDED: [&str; 2] = [SNAPSHOT, "metrics.k8s.io/v1beta1"];

/// The path of a group and version.
fn place(group_version: &str) -> String {
    if group_version.contains('/') { format!("/apis/{group_version}") } else { format!("/api/{group_version}") }
}

pub(super) async fn kinds_are_named_as_in_the_newest_kubernetes(case: Case) {
    let mut lists: BTreeMap<&str, Value> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (group_version, plural, kind, namespaced, short, categories, subresources) in KINDS {
        if !lists.contains_key(group_version) {
            lists.insert(group_version, case.get(&place(group_version)).await.body);
        }
        let resources = &lists[group_version]["resources"];
        if resources.is_null() && ADDED.contains(group_version) && !case.cluster.is_own() {
            continue;
        }
        let found = list(resources).find(|r| text(r, "/name") == *plural).cloned().unwrap_or_default();
        let below: Vec<&str> =
            list(resources).filter_map(|r| text(r, "/name").strip_prefix(*plural)?.strip_prefix('/')).collect();
        let singular = kind.to_lowercase();
        let is = json!([
            found["kind"],
            found["singularName"],
            found["namespaced"],
            texts(&found["shortNames"]),
            texts(&found["categories"]),
            below
        ]);
        // Metrics have no names of one.
        let singular = if *group_version == ADDED[1] { "" } else { &singular };
        let wanted = json!([kind, singular, namespaced, short, categories, subresources]);
        if is != wanted {
            wrong.push(format!("{group_version} {plural}: {is}\n  instead of {wanted}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A resource of the aggregated form, as the single lists have it: name, kind, scope, verbs, short names.
fn flat(resource: &Value) -> Vec<(String, Value)> {
    let name = text(resource, "/resource").to_owned();
    let scope = resource["scope"] == "Namespaced";
    let own = json!([resource["responseKind"]["kind"], scope, resource["verbs"], texts(&resource["shortNames"])]);
    let below = list(&resource["subresources"]).map(|sub| {
        let of = json!([sub["responseKind"]["kind"], scope, sub["verbs"], []]);
        (format!("{name}/{}", text(sub, "/subresource")), of)
    });
    let below: Vec<_> = below.collect();
    std::iter::once((name, own)).chain(below).collect()
}

pub(super) async fn the_aggregated_form_agrees_with_the_single_lists(case: Case) {
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let mut seen = BTreeSet::new();
    for path in ["/api", "/apis"] {
        let answer = case.ask(accepting(path, accept)).await;
        assert_eq!((answer.code, text(&answer.body, "/kind")), (200, "APIGroupDiscoveryList"), "{path}");
        for group in list(&answer.body["items"]) {
            for version in list(&group["versions"]) {
                let name = text(group, "/metadata/name");
                let version_name = text(version, "/version");
                // Other cases define kinds meanwhile.
                if name.ends_with(".example") {
                    continue;
                }
                let path = if name.is_empty() {
                    format!("/api/{version_name}")
                } else {
                    format!("/apis/{name}/{version_name}")
                };
                let single = case.get(&path).await.body;
                let single: BTreeMap<String, Value> = list(&single["resources"])
                    .map(|r| {
                        let of = json!([r["kind"], r["namespaced"], r["verbs"], texts(&r["shortNames"])]);
                        (text(r, "/name").to_owned(), of)
                    })
                    .collect();
                let aggregated: BTreeMap<String, Value> = list(&version["resources"]).flat_map(flat).collect();
                assert_eq!(aggregated, single, "{path}");
                seen.insert(path);
            }
        }
    }
    let all: BTreeSet<String> =
        group_versions(&case).await.into_iter().filter(|path| !path.contains(".example/")).collect();
    assert_eq!(seen, all);
}

pub(super) async fn health_version_and_metrics_are_told(case: Case) {
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(case.get(path).await.body, "ok", "{path}");
        let verbose = case.get(&format!("{path}?verbose")).await.body;
        let verbose = verbose.as_str().expect("text");
        let name = path.trim_start_matches('/');
        assert!(verbose.contains("[+]ping ok\n") && verbose.ends_with(&format!("{name} check passed\n")), "{verbose}");
        assert_eq!(case.get(&format!("{path}/ping")).await.body, "ok", "{path}");
    }
    let version = case.get("/version").await.body;
    assert_eq!(text(&version, "/major"), "1", "{version}");
    assert!(text(&version, "/gitVersion").starts_with("v1."), "{version}");
    let metrics = case.ask(accepting("/metrics", "*/*")).await;
    let lines = metrics.body.as_str().expect("text");
    for name in [
        "apiserver_request_total{",
        "apiserver_request_duration_seconds_bucket{",
        "apiserver_current_inflight_requests{",
    ] {
        assert!(lines.lines().any(|line| line.starts_with(name)), "{name} is not told");
    }
}
