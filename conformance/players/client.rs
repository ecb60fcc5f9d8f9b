//! What the players of a scenario ask of the server, and the node that they pretend to have.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ambient::Ambient;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::objects::text;
use crate::cluster::{Ask, Cluster, Watch, letters};

/// How often the node says that it is alive, so that no node controller takes its pods.
const RENEW_EVERY: Duration = Duration::from_secs(8);

/// Calls the server under test.
#[derive(Clone)]
pub(crate) struct Client {
    cluster: Cluster,
    /// The longest that a request has taken.
    slowest: Arc<Mutex<Duration>>,
}

impl Client {
    /// Calls that server.
    pub(crate) fn new(cluster: Cluster) -> Self {
        Self { cluster, slowest: Arc::default() }
    }

    /// The longest that a request has taken: how busy the server is.
    pub(crate) fn slowest(&self) -> Duration {
        *self.slowest.lock().expect("held for a line only")
    }

    /// One request. A patch is a JSON merge patch.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let media = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        self.send(method, path, media, body).await
    }

    /// A strategic merge patch.
    pub(crate) async fn strategic(&self, path: &str, change: &Value) -> (u16, Value) {
        self.send("PATCH", path, "application/strategic-merge-patch+json", Some(change)).await
    }

    /// One request that has to succeed.
    pub(crate) async fn expect(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let (code, answer) = self.call(method, path, body).await;
        if code < 300 {
            Ok(answer)
        } else {
            Err(format!("{method} {path} was answered with {code}: {}", answer["message"]))
        }
    }

    async fn send(&self, method: &str, path: &str, media: &str, body: Option<&Value>) -> (u16, Value) {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let mut ask = Ask::new(method, path).header("content-type", Some(media));
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            ask = ask.query(name, value);
        }
        if let Some(body) = body {
            ask = ask.json(body);
        }
        let clock = Ambient::system();
        let begun = clock.boottime();
        let answer = self.cluster.send(&ask).await.unwrap_or_else(|lost| panic!("{lost}"));
        let took = clock.boottime().saturating_sub(begun);
        let mut slowest = self.slowest.lock().expect("held for a line only");
        *slowest = took.max(*slowest);
        (answer.code, answer.body)
    }

    /// Watches a collection from a version on.
    pub(crate) async fn watch(&self, path: &str, version: &str) -> Watch {
        let ask =
            Ask::new("GET", path).query("watch", "1").query("timeoutSeconds", "500").query("resourceVersion", version);
        match self.cluster.watch(&ask).await {
            Ok(Ok(watch)) => watch,
            Ok(Err(answer)) => panic!("the watch of {path} was answered with {}: {}", answer.code, answer.body),
            Err(lost) => panic!("{lost}"),
        }
    }

    /// Registers a node and keeps its lease fresh. Gives its name.
    pub(crate) async fn keep_node(&self, tasks: &mut JoinSet<()>) -> Result<String, String> {
        let name = format!("behaviour-{}", letters(8));
        let condition = |(kind, status): (&str, &str)| {
            json!({"type": kind, "status": status, "reason": "Suite", "message": "played by the behaviour suite",
                "lastHeartbeatTime": stamp(), "lastTransitionTime": stamp()})
        };
        let all = [("MemoryPressure", "False"), ("DiskPressure", "False"), ("PIDPressure", "False"), ("Ready", "True")];
        let room = json!({"cpu": "1000", "memory": "1000Gi", "pods": "5000"});
        let node = json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "spec": {"taints": [{"key": "behaviour-suite", "value": "only", "effect": "NoSchedule"}]},
            "status": {"capacity": room, "allocatable": room, "conditions": all.map(condition)}});
        self.expect("POST", "/api/v1/nodes", Some(&node)).await?;
        tasks.spawn(self.clone().renew(name.clone()));
        Ok(name)
    }

    async fn renew(self, node: String) {
        let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            let spec = json!({"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": micro_stamp()});
            let change = json!({"spec": spec});
            if self.call("PATCH", &format!("{leases}/{node}"), Some(&change)).await.0 == 404 {
                let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"name": node, "namespace": "kube-node-lease"}, "spec": spec});
                self.call("POST", leases, Some(&lease)).await;
            }
        }
    }

    /// Takes the node away again.
    pub(crate) async fn forget_node(&self, node: &str) {
        self.call("DELETE", &format!("/api/v1/nodes/{node}"), None).await;
        let lease = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{node}");
        self.call("DELETE", &lease, None).await;
    }
}

/// The time of now as the API writes it.
pub(crate) fn stamp() -> String {
    Ambient::system().now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn micro_stamp() -> String {
    Ambient::system().now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// The version that a list or an object has.
pub(crate) fn version(of: &Value) -> String {
    text(&of["metadata"]["resourceVersion"]).to_owned()
}
