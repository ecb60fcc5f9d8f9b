//! Roles of the system's own parts. Each in-process client is a service account of `kube-system`.
//!
//! They are upstream's, less what no part of ours does, and with `patch` wherever `update` is allowed: our
//! controllers patch.

use serde_json::Value;

use super::*;

/// Rules of each controller, by the name of its service account.
fn controllers() -> Vec<(&'static str, Vec<Value>)> {
    let change = &["update", "patch"];
    let pod_readers = &["get", "list", "watch"];
    vec![
        (
            "statefulset-controller",
            vec![
                rule(&["get", "list", "watch", "create", "update", "patch", "delete"], &[""], &["pods"]),
                rule(change, &[""], &["pods/finalizers"]),
                rule(READ, &[APPS], &["statefulsets"]),
                // The set itself for the finalizer of ordered deletion, which the controller takes off.
                rule(change, &[APPS], &["statefulsets", "statefulsets/status", "statefulsets/finalizers"]),
                rule(
                    &["get", "list", "watch", "create", "update", "patch", "delete"],
                    &[APPS],
                    &["controllerrevisions"],
                ),
                rule(
                    &["get", "list", "watch", "create", "update", "patch", "delete"],
                    &[""],
                    &["persistentvolumeclaims"],
                ),
                events(),
            ],
        ),
        (
            "deployment-controller",
            vec![
                rule(&["get", "list", "watch", "update", "patch"], &[APPS], &["deployments"]),
                rule(change, &[APPS], &["deployments/status", "deployments/finalizers"]),
                rule(&["get", "list", "watch", "create", "update", "patch", "delete"], &[APPS], &["replicasets"]),
                rule(pod_readers, &[""], &["pods"]),
                events(),
            ],
        ),
        (
            "replicaset-controller",
            vec![
                rule(READ, &[APPS], &["replicasets"]),
                rule(change, &[APPS], &["replicasets/status", "replicasets/finalizers"]),
                rule(&["get", "list", "watch", "create", "patch", "delete"], &[""], &["pods"]),
                rule(change, &[""], &["pods/finalizers"]),
                events(),
            ],
        ),
        (
            "job-controller",
            vec![
                rule(READ, &[BATCH], &["jobs"]),
                rule(change, &[BATCH], &["jobs/status", "jobs/finalizers"]),
                rule(&["get", "list", "watch", "create", "patch", "delete"], &[""], &["pods"]),
                rule(change, &[""], &["pods/finalizers"]),
                events(),
            ],
        ),
        (
            "cronjob-controller",
            vec![
                rule(READ, &[BATCH], &["cronjobs"]),
                rule(change, &[BATCH], &["cronjobs/status", "cronjobs/finalizers"]),
                rule(&["get", "list", "watch", "create", "patch", "delete"], &[BATCH], &["jobs"]),
                events(),
            ],
        ),
        (
            "ttl-after-finished-controller",
            vec![rule(&["get", "list", "watch", "delete"], &[BATCH], &["jobs"]), events()],
        ),
        (
            "endpoint-controller",
            vec![
                rule(READ, &[""], &["services", "pods"]),
                rule(&["get", "list", "watch", "create", "update", "patch", "delete"], &[""], &["endpoints"]),
                rule(&["create"], &[""], &["endpoints/restricted"]),
                events(),
            ],
        ),
        (
            "endpointslice-controller",
            vec![
                rule(READ, &[""], &["services", "pods", "nodes"]),
                rule(change, &[""], &["services/finalizers"]),
                rule(
                    &["get", "list", "watch", "create", "update", "patch", "delete"],
                    &[DISCOVERY],
                    &["endpointslices"],
                ),
                events(),
            ],
        ),
        (
            "endpointslicemirroring-controller",
            vec![
                rule(READ, &[""], &["services", "endpoints"]),
                rule(change, &[""], &["services/finalizers", "endpoints/finalizers"]),
                rule(
                    &["get", "list", "watch", "create", "update", "patch", "delete"],
                    &[DISCOVERY],
                    &["endpointslices"],
                ),
                events(),
            ],
        ),
        (
            "service-controller",
            vec![rule(READ, &[""], &["services", "nodes"]), rule(change, &[""], &["services/status"]), events()],
        ),
        (
            "persistent-volume-binder",
            vec![
                rule(&["get", "list", "watch", "create", "update", "patch", "delete"], &[""], &["persistentvolumes"]),
                rule(change, &[""], &["persistentvolumes/status"]),
                rule(&["get", "list", "watch", "update", "patch"], &[""], &["persistentvolumeclaims"]),
                rule(change, &[""], &["persistentvolumeclaims/status"]),
                rule(pod_readers, &[""], &["pods", "nodes"]),
                rule(READ, &[STORAGE], &["storageclasses"]),
                events(),
            ],
        ),
        (
            "pvc-protection-controller",
            vec![
                rule(&["get", "list", "watch", "update", "patch"], &[""], &["persistentvolumeclaims"]),
                rule(pod_readers, &[""], &["pods"]),
                events(),
            ],
        ),
        (
            "ephemeral-volume-controller",
            vec![
                rule(pod_readers, &[""], &["pods"]),
                rule(change, &[""], &["pods/finalizers"]),
                rule(&["get", "list", "watch", "create"], &[""], &["persistentvolumeclaims"]),
                events(),
            ],
        ),
        (
            "pv-protection-controller",
            vec![
                rule(&["get", "list", "watch", "update", "patch"], &[""], &["persistentvolumes"]),
                // Upstream goes by the volume's phase alone.
                rule(&["get"], &[""], &["persistentvolumeclaims"]),
                events(),
            ],
        ),
        (
            "generic-garbage-collector",
            vec![rule(&["get", "list", "watch", "patch", "update", "delete"], &["*"], &["*"]), events()],
        ),
        (
            "namespace-controller",
            vec![
                rule(&["get", "list", "watch", "delete"], &[""], &["namespaces"]),
                rule(change, &[""], &["namespaces/finalize", "namespaces/status"]),
                rule(&["get", "list", "watch", "delete", "deletecollection"], &["*"], &["*"]),
            ],
        ),
        (
            "service-account-controller",
            vec![
                rule(&["get", "list", "watch", "create"], &[""], &["serviceaccounts"]),
                rule(READ, &[""], &["namespaces"]),
                events(),
            ],
        ),
        (
            "root-ca-cert-publisher",
            vec![
                rule(&["get", "list", "watch", "create", "update", "patch"], &[""], &["configmaps"]),
                rule(READ, &[""], &["namespaces"]),
                events(),
            ],
        ),
        (
            "clusterrole-aggregation-controller",
            vec![rule(&["escalate", "get", "list", "patch", "update", "watch"], &[RBAC], &["clusterroles"])],
        ),
        (
            "tokens-controller",
            vec![
                rule(&["get", "list", "watch", "update", "patch", "delete"], &[""], &["secrets"]),
                rule(READ, &[""], &["serviceaccounts"]),
            ],
        ),
        (
            "node-controller",
            vec![
                rule(&["get", "list", "watch", "update", "delete", "patch"], &[""], &["nodes"]),
                rule(change, &[""], &["nodes/status", "pods/status"]),
                rule(&["get", "list", "watch", "delete"], &[""], &["pods"]),
                rule(READ, &[COORDINATION], &["leases"]),
                events(),
            ],
        ),
        (
            "taint-eviction-controller",
            vec![
                rule(READ, &[""], &["nodes"]),
                rule(&["get", "list", "watch", "delete"], &[""], &["pods"]),
                rule(change, &[""], &["pods/status"]),
                events(),
            ],
        ),
        (
            "pod-garbage-collector",
            vec![
                rule(&["get", "list", "watch", "delete"], &[""], &["pods"]),
                rule(READ, &[""], &["nodes"]),
                rule(change, &[""], &["pods/status"]),
            ],
        ),
        (
            "disruption-controller",
            vec![
                rule(READ, &[POLICY], &["poddisruptionbudgets"]),
                rule(change, &[POLICY], &["poddisruptionbudgets/status"]),
                rule(READ, &[APPS], &["deployments", "replicasets", "statefulsets"]),
                rule(READ, &[""], &["pods"]),
                rule(change, &[""], &["pods/status"]),
                rule(&["get"], &["*"], &["*/scale"]),
                events(),
            ],
        ),
        (
            "resourcequota-controller",
            vec![rule(&["list", "watch"], &["*"], &["*"]), rule(change, &[""], &["resourcequotas/status"]), events()],
        ),
    ]
}

/// The ClusterRoles.
pub(super) fn roles() -> Vec<Value> {
    let mut out = vec![
        // Held by nobody: the node authorizer gives agents what they need, each for its own node. Upstream's name,
        // for tools that look for it.
        cluster_role(
            "system:node",
            vec![
                rule(&["create"], &[AUTHENTICATION], &["tokenreviews"]),
                rule(&["create"], &[AUTHORIZATION], &["localsubjectaccessreviews", "subjectaccessreviews"]),
                rule(READ, &[""], &["services"]),
                rule(&["create", "get", "list", "watch", "update", "patch"], &[""], &["nodes"]),
                rule(&["update", "patch"], &[""], &["nodes/status"]),
                rule(&["get", "list", "watch", "delete"], &[""], &["pods"]),
                rule(&["update", "patch"], &[""], &["pods/status"]),
                rule(&["create"], &[""], &["pods/eviction"]),
                rule(READ, &[""], &["configmaps", "secrets"]),
                rule(&["get"], &[""], &["persistentvolumeclaims", "persistentvolumes"]),
                rule(&["get"], &[""], &["endpoints"]),
                rule(READ, &[DISCOVERY], &["endpointslices"]),
                rule(READ, &[NODE], &["runtimeclasses"]),
                rule(&["create"], &[""], &["serviceaccounts/token"]),
                rule(&["create", "get", "update", "patch", "delete"], &[COORDINATION], &["leases"]),
                events(),
            ],
        ),
        cluster_role(
            "system:kube-scheduler",
            vec![
                events(),
                rule(&["create"], &[COORDINATION], &["leases"]),
                named(&["get", "update"], &[COORDINATION], &["leases"], &["kube-scheduler"]),
                rule(READ, &[""], &["nodes", "namespaces"]),
                rule(&["get", "list", "watch", "delete"], &[""], &["pods"]),
                rule(&["create"], &[""], &["bindings", "pods/binding"]),
                rule(&["patch", "update"], &[""], &["pods/status"]),
                rule(READ, &[""], &["services", "persistentvolumeclaims", "persistentvolumes"]),
                rule(READ, &[APPS], &["replicasets", "statefulsets"]),
                rule(READ, &[POLICY], &["poddisruptionbudgets"]),
                rule(READ, &[STORAGE], &["storageclasses"]),
                rule(READ, &[NODE], &["runtimeclasses"]),
                rule(READ, &[SCHEDULING], &["priorityclasses"]),
            ],
        ),
        // What the controllers of one process watch, they watch together; each writes under its own account.
        cluster_role("system:kube-controller-manager", vec![rule(&["list", "watch"], &["*"], &["*"])]),
        cluster_role(
            "system:volume-scheduler",
            vec![
                rule(
                    &["get", "list", "patch", "update", "watch"],
                    &[""],
                    &["persistentvolumes", "persistentvolumeclaims"],
                ),
                rule(READ, &[STORAGE], &["storageclasses"]),
            ],
        ),
    ];
    out.extend(controllers().into_iter().map(|(name, rules)| cluster_role(&controller_role(name), rules)));
    out
}

/// The ClusterRoleBindings.
pub(super) fn bindings() -> Vec<Value> {
    let scheduler = || vec![user("system:kube-scheduler"), account("kube-scheduler")];
    let to = |role: &str, subjects: Vec<Value>| binding("ClusterRoleBinding", role, role, subjects);
    let mut out = vec![
        to("system:node", Vec::new()),
        to("system:kube-scheduler", scheduler()),
        to("system:volume-scheduler", scheduler()),
        to("system:kube-controller-manager", vec![user("system:kube-controller-manager")]),
    ];
    out.extend(controllers().into_iter().map(|(name, _)| to(&controller_role(name), vec![account(name)])));
    out
}

fn controller_role(name: &str) -> String {
    format!("system:controller:{name}")
}
