//! A node's credentials: for its own objects, and those that its pods lead to.

use serde_json::{Value, json};

use super::{create, same};
use crate::cluster::{Ask, Case};
use crate::runner::{Named, Verdict};
use crate::target::Running;

const NODES: &str = "/api/v1/nodes";

/// The case.
pub(super) fn case() -> Named {
    Named {
        name: "auth::a_node_reaches_its_own_and_what_its_pods_name".to_owned(),
        running: Running::Housekeeping,
        body: Box::new(|case| Box::pin(run(case))),
    }
}

/// A request as a node's agent.
fn of_node(ask: Ask, node: &str) -> Ask {
    ask.header("impersonate-user", Some(&format!("system:node:{node}")))
        .header("impersonate-group", Some("system:nodes"))
}

/// A pod on a node that uses a secret.
fn pod(name: &str, node: &str, secret: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"nodeName": node,
        "automountServiceAccountToken": false, "containers": [{"name": "c", "image": "x"}],
        "volumes": [{"name": "s", "secret": {"secretName": secret}}]}})
}

async fn run(case: Case) -> Verdict {
    let nodes = ["a", "b"].map(|name| format!("{name}-{}", case.namespace));
    let verdict = limits_hold(&case, &nodes).await;
    for path in nodes.iter().map(|node| format!("{NODES}/{node}")) {
        case.cluster.send(&Ask::new("DELETE", &path)).await?;
    }
    verdict
}

async fn limits_hold(case: &Case, nodes: &[String; 2]) -> Verdict {
    let [a, b] = nodes;
    let (pods, secrets) = (case.core("pods"), case.core("secrets"));
    for (node, pod_name, secret) in [(a, "on-a", "of-a"), (b, "on-b", "of-b")] {
        create(case, NODES, &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})).await?;
        create(case, &secrets, &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret}})).await?;
        create(case, &pods, &pod(pod_name, node, secret)).await?;
    }
    let merge = Some("application/merge-patch+json");
    let patch = |path: String, body: Value| Ask::new("PATCH", &path).header("content-type", merge).json(&body);
    let get = |path: String| Ask::new("GET", &path);
    let running = json!({"status": {"phase": "Running"}});
    let labelled = |key: &str| json!({"metadata": {"labels": {key: "x"}}});
    let list = |node: &str| get(pods.clone()).query("fieldSelector", &format!("spec.nodeName={node}"));
    let asks = [
        ("its own pod", 200, get(format!("{pods}/on-a"))),
        ("another's pod", 403, get(format!("{pods}/on-b"))),
        ("its own pods", 200, list(a)),
        ("all pods", 403, get(pods.clone())),
        ("a secret that its pod uses", 200, get(format!("{secrets}/of-a"))),
        ("a secret that another's pod uses", 403, get(format!("{secrets}/of-b"))),
        ("all secrets", 403, get(secrets.clone())),
        ("the status of its own pod", 200, patch(format!("{pods}/on-a/status"), running.clone())),
        ("the status of another's pod", 403, patch(format!("{pods}/on-b/status"), running)),
        ("its own labels", 200, patch(format!("{NODES}/{a}"), labelled("example.com/x"))),
        ("another's labels", 403, patch(format!("{NODES}/{b}"), labelled("example.com/x"))),
        (
            "labels that keep pods apart",
            403,
            patch(format!("{NODES}/{a}"), labelled("node-restriction.kubernetes.io/x")),
        ),
        ("a pod that comes from no file of its own", 403, Ask::new("POST", &pods).json(&pod("new", a, "of-a"))),
        ("roles", 403, get("/apis/rbac.authorization.k8s.io/v1/clusterroles".to_owned())),
        ("deleting another's pod", 403, Ask::new("DELETE", &format!("{pods}/on-b"))),
    ];
    for (what, code, ask) in asks {
        let answer = case.cluster.send(&of_node(ask, a)).await?;
        same(&format!("{what} ({})", answer.body), answer.code, code)?;
    }
    Ok(())
}
