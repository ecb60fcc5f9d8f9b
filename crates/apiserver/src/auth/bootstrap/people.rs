//! Roles for people and programs that use the API.

use serde_json::{Value, json};

use super::*;

const AGGREGATE: [(&str, &[&str]); 3] = [
    // An aggregated role's label on a part of it; view is part of edit, edit of admin.
    ("admin", &["admin"]),
    ("edit", &["admin", "edit"]),
    ("view", &["admin", "edit", "view"]),
];

/// The ClusterRoles.
pub(super) fn roles() -> Vec<Value> {
    let mut out = vec![
        cluster_role("cluster-admin", vec![rule(&["*"], &["*"], &["*"]), urls(&["*"], &["*"])]),
        cluster_role(
            "system:discovery",
            vec![urls(
                &["get"],
                &[
                    "/api",
                    "/api/*",
                    "/apis",
                    "/apis/*",
                    "/healthz",
                    "/livez",
                    "/openapi",
                    "/openapi/*",
                    "/readyz",
                    "/version",
                    "/version/",
                ],
            )],
        ),
        cluster_role(
            "system:public-info-viewer",
            vec![urls(&["get"], &["/healthz", "/livez", "/readyz", "/version", "/version/"])],
        ),
        cluster_role(
            "system:basic-user",
            vec![
                rule(&["create"], &[AUTHORIZATION], &["selfsubjectaccessreviews", "selfsubjectrulesreviews"]),
                rule(&["create"], &[AUTHENTICATION], &["selfsubjectreviews"]),
            ],
        ),
        cluster_role(
            "system:monitoring",
            vec![urls(
                &["get"],
                &["/healthz", "/healthz/*", "/livez", "/livez/*", "/metrics", "/metrics/slis", "/readyz", "/readyz/*"],
            )],
        ),
        cluster_role(
            "system:auth-delegator",
            vec![
                rule(&["create"], &[AUTHENTICATION], &["tokenreviews"]),
                rule(&["create"], &[AUTHORIZATION], &["subjectaccessreviews"]),
            ],
        ),
        cluster_role(
            "system:service-account-issuer-discovery",
            vec![urls(&["get"], &["/.well-known/openid-configuration", "/openid/v1/jwks"])],
        ),
        // The page's files hold nothing but the page; whoever has a ticket has shown who they are.
        cluster_role(
            "statefuld:page",
            vec![urls(&["get"], &["/ui", "/ui/*"]), urls(&["post", "delete"], &["/statefuld/v1/sessions"])],
        ),
        // What it shows is read by the right of who looks.
        cluster_role(
            "statefuld:page-user",
            vec![urls(&["post"], &["/statefuld/v1/tickets"]), urls(&["get"], &["/statefuld/v1/overview"])],
        ),
    ];
    let parts = [("admin", admin()), ("edit", edit()), ("view", view())];
    for (name, _) in &AGGREGATE {
        // The rules are computed at each decision; stored are those of the first start, for people to read.
        let shown: Vec<Value> = parts
            .iter()
            .filter(|(part, _)| AGGREGATE.iter().any(|(p, into)| p == part && into.contains(name)))
            .flat_map(|(_, rules)| rules.clone())
            .collect();
        let mut role = cluster_role(name, shown);
        role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label(name): "true"}}]});
        out.push(role);
    }
    for (name, rules) in parts {
        let mut role = cluster_role(&format!("system:aggregate-to-{name}"), rules);
        for (_, into) in AGGREGATE.iter().filter(|(part, _)| *part == name) {
            for whole in *into {
                role["metadata"]["labels"][label(whole)] = json!("true");
            }
        }
        out.push(role);
    }
    out
}

/// The ClusterRoleBindings.
pub(super) fn bindings() -> Vec<Value> {
    let everybody = || vec![group("system:authenticated"), group("system:unauthenticated")];
    let to = |role: &str, subjects: Vec<Value>| binding("ClusterRoleBinding", role, role, subjects);
    vec![
        to("cluster-admin", vec![group("system:masters")]),
        to("system:discovery", vec![group("system:authenticated")]),
        to("system:basic-user", vec![group("system:authenticated")]),
        to("system:public-info-viewer", everybody()),
        to("system:monitoring", vec![group("system:monitoring")]),
        to("system:service-account-issuer-discovery", vec![group("system:serviceaccounts")]),
        to("statefuld:page", everybody()),
        to("statefuld:page-user", vec![group("system:authenticated")]),
    ]
}

fn label(role: &str) -> String {
    format!("rbac.authorization.k8s.io/aggregate-to-{role}")
}

/// Granting rights within a namespace.
fn admin() -> Vec<Value> {
    vec![
        rule(&["create"], &[AUTHORIZATION], &["localsubjectaccessreviews"]),
        rule(ALL, &[RBAC], &["roles", "rolebindings"]),
    ]
}

/// Changing what lives in a namespace.
fn edit() -> Vec<Value> {
    let into_pods = ["pods/attach", "pods/exec", "pods/portforward", "pods/proxy"];
    let pods = ["pods", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy"];
    vec![
        rule(READ, &[""], &[&into_pods[..], &["secrets", "services/proxy"]].concat()),
        rule(&["impersonate"], &[""], &["serviceaccounts"]),
        rule(WRITE, &[""], &pods),
        rule(&["create"], &[""], &["pods/eviction"]),
        rule(
            WRITE,
            &[""],
            &[
                "configmaps",
                "events",
                "persistentvolumeclaims",
                "secrets",
                "serviceaccounts",
                "services",
                "services/proxy",
            ],
        ),
        rule(&["create"], &[""], &["serviceaccounts/token"]),
        rule(
            WRITE,
            &[APPS],
            &[
                "deployments",
                "deployments/rollback",
                "deployments/scale",
                "replicasets",
                "replicasets/scale",
                "statefulsets",
                "statefulsets/scale",
            ],
        ),
        rule(WRITE, &[BATCH], &["cronjobs", "jobs"]),
        rule(WRITE, &[POLICY], &["poddisruptionbudgets"]),
        rule(WRITE, &["networking.k8s.io"], &["networkpolicies"]),
        rule(WRITE, &["snapshot.storage.k8s.io"], &["volumesnapshots"]),
        rule(ALL, &[COORDINATION], &["leases"]),
    ]
}

/// Looking at what lives in a namespace; not at secrets, which would let the reader act as others.
fn view() -> Vec<Value> {
    vec![
        rule(
            READ,
            &[""],
            &[
                "configmaps",
                "endpoints",
                "persistentvolumeclaims",
                "persistentvolumeclaims/status",
                "pods",
                "serviceaccounts",
                "services",
                "services/status",
            ],
        ),
        rule(
            READ,
            &[""],
            &[
                "bindings",
                "events",
                "limitranges",
                "namespaces/status",
                "pods/log",
                "pods/status",
                "resourcequotas",
                "resourcequotas/status",
            ],
        ),
        rule(READ, &[""], &["namespaces"]),
        rule(READ, &[DISCOVERY], &["endpointslices"]),
        rule(
            READ,
            &[APPS],
            &[
                "controllerrevisions",
                "deployments",
                "deployments/scale",
                "deployments/status",
                "replicasets",
                "replicasets/scale",
                "replicasets/status",
                "statefulsets",
                "statefulsets/scale",
                "statefulsets/status",
            ],
        ),
        rule(READ, &[BATCH], &["cronjobs", "cronjobs/status", "jobs", "jobs/status"]),
        rule(READ, &[POLICY], &["poddisruptionbudgets", "poddisruptionbudgets/status"]),
        rule(READ, &["networking.k8s.io"], &["networkpolicies"]),
        rule(READ, &["snapshot.storage.k8s.io"], &["volumesnapshots"]),
        rule(READ, &["metrics.k8s.io"], &["pods"]),
    ]
}
