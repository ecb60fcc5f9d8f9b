//! What the tests of this folder share: nodes and pods, written briefly.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use super::cluster::Cluster;
use crate::informers::PodView;

/// A ready node with a label for its name and room for much.
pub(super) fn node(name: &str) -> Arc<Node> {
    node_with(name, |_| ())
}

/// The same, changed.
pub(super) fn node_with(name: &str, change: impl FnOnce(&mut Value)) -> Arc<Node> {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"conditions": [{"type": "Ready", "status": "True"}],
            "allocatable": {"pods": "110", "cpu": "4", "memory": "8Gi", "ephemeral-storage": "100Gi"}},
    });
    change(&mut node);
    Arc::new(serde_json::from_value(node).expect("a node"))
}

/// A pod in namespace `d` whose uid is its name.
pub(super) fn pod(name: &str, change: impl FnOnce(&mut Value)) -> Arc<PodView> {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "d", "uid": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c"}]},
        "status": {"phase": "Pending"},
    });
    change(&mut pod);
    Arc::new(PodView::of(serde_json::from_value(pod).expect("a pod")).expect("a view"))
}

/// These nodes with these pods.
pub(super) fn cluster(nodes: &[Arc<Node>], pods: &[Arc<PodView>]) -> Cluster {
    let mut cluster = Cluster::default();
    for node in nodes {
        cluster.node(crate::work::name(&**node), Some(node));
    }
    for pod in pods {
        cluster.pod(None, Some(pod));
    }
    cluster
}
