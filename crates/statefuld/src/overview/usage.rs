//! What pods use and how full their volumes are: each node's summary, as kubelets serve it.
//!
//! Reading it needs the verb `get` on `nodes/proxy`. Whoever may not, or a node that does not answer, is no reason to fail:
//! the numbers are absent.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt as _;
use futures::stream;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use serde_json::Value;

/// Nodes that are asked, at most.
const NODES: usize = 64;
/// Of these, at once.
const AT_ONCE: usize = 8;

/// What the nodes told.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// By uid.
    pub pods: BTreeMap<String, PodUsage>,
    /// By claim.
    pub claims: BTreeMap<String, ClaimUsage>,
}

/// What a pod uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodUsage {
    /// Thousandths of a processor.
    pub cpu_millis: Option<u64>,
    /// Bytes.
    pub memory_bytes: Option<u64>,
}

/// What a claim holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimUsage {
    /// Bytes.
    pub used: u64,
    /// Bytes that its disk has left.
    pub available: Option<u64>,
}

impl Usage {
    /// Asks the nodes that these pods are on.
    pub async fn read(client: &Client, pods: &[Pod]) -> Self {
        let names = pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone());
        let nodes: BTreeSet<String> = names.take(NODES).collect();
        let namespace = pods.first().and_then(|pod| pod.metadata.namespace.clone()).unwrap_or_default();
        let asked = stream::iter(nodes).map(|node| async move {
            let request =
                http::Request::get(format!("/api/v1/nodes/{node}/proxy/stats/summary")).body(Vec::new()).ok()?;
            client.request::<Value>(request).await.ok()
        });
        let told: Vec<Option<Value>> = asked.buffer_unordered(AT_ONCE).collect().await;
        let mut usage = Self::default();
        for summary in told.into_iter().flatten() {
            usage.take(&summary, &namespace);
        }
        usage
    }

    /// Takes from a summary what concerns one namespace.
    pub fn take(&mut self, summary: &Value, namespace: &str) {
        let of_namespace = |pod: &&Value| pod["podRef"]["namespace"].as_str() == Some(namespace);
        for pod in summary["pods"].as_array().into_iter().flatten().filter(of_namespace) {
            let sum = |path: &str| {
                let containers = pod["containers"].as_array().into_iter().flatten();
                containers.filter_map(|container| container.pointer(path)?.as_u64()).reduce(u64::saturating_add)
            };
            let used = PodUsage {
                cpu_millis: sum("/cpu/usageNanoCores").map(|nanos| nanos / 1_000_000),
                memory_bytes: sum("/memory/workingSetBytes"),
            };
            self.pods.insert(pod["podRef"]["uid"].as_str().unwrap_or_default().to_owned(), used);
            for volume in pod["volume"].as_array().into_iter().flatten() {
                if let (Some(claim), Some(used)) = (volume["pvcRef"]["name"].as_str(), volume["usedBytes"].as_u64()) {
                    let available = volume["availableBytes"].as_u64();
                    self.claims.insert(claim.to_owned(), ClaimUsage { used, available });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_kubelets_summary_is_read_for_one_namespace() {
        let container = json!({"name": "a", "cpu": {"usageNanoCores": 1_500_000}, "memory": {"workingSetBytes": 7}});
        let pod = |namespace: &str, uid: &str| {
            json!({"podRef": {"name": "web-0", "namespace": namespace, "uid": uid}, "containers": [container, container],
                "volume": [{"name": "kube-api-access", "usedBytes": 9},
                    {"name": "data", "usedBytes": 5, "availableBytes": 6, "pvcRef": {"name": "data-web-0"}}]})
        };
        let mut usage = Usage::default();
        usage.take(&json!({"pods": [pod("default", "u"), pod("other", "v")]}), "default");
        assert_eq!(usage.pods.len(), 1);
        assert_eq!(usage.pods["u"], PodUsage { cpu_millis: Some(3), memory_bytes: Some(14) });
        assert_eq!(usage.claims["data-web-0"], ClaimUsage { used: 5, available: Some(6) });
        assert_eq!(usage.claims.len(), 1);
    }
}
