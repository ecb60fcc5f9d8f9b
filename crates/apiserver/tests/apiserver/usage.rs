//! metrics.k8s.io: what nodes and pods use, told by their agents.

use std::sync::Arc;

use http::Method;
use nodeconn::{Error, Frame, NodeConn, Stream, StreamRequest};
use serde_json::{Value, json};
use statefuld_apiserver::auth::Identity;

use crate::support::{Server, admin, pod};

const PODS: &str = "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods";
const NODES: &str = "/apis/metrics.k8s.io/v1beta1/nodes";

/// What an agent counts.
const COUNTED: &str = "kubelet_pod_start_duration_seconds_count 3\n";

/// An agent that answers with these documents: usage, and how full volumes are.
struct Agent(Value, Value);

#[async_trait::async_trait]
impl NodeConn for Agent {
    async fn open(&self, request: StreamRequest) -> Result<Stream, Error> {
        let document = match request {
            StreamRequest::Stats => self.0.clone(),
            StreamRequest::Volumes => self.1.clone(),
            StreamRequest::Metrics => json!(COUNTED),
            other => panic!("{other:?}"),
        };
        let (to_server, rx) = tokio::sync::mpsc::channel(8);
        let (tx, _) = tokio::sync::mpsc::channel(1);
        for part in document.to_string().as_bytes().chunks(100) {
            to_server.try_send(Frame::Stdout(part.to_vec().into())).expect("room");
        }
        Ok(Stream { tx, rx })
    }
}

/// A server with pod `a` on the connected node `n1`, and pod `b` on a node that is not.
async fn server() -> (Server, nodeconn::Registration) {
    let server = Server::start().await;
    let mut uid = Value::Null;
    for (node, name) in [("n1", "a"), ("n2", "b")] {
        server
            .create(
                "/api/v1/nodes",
                json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": {"zone": node}}}),
            )
            .await;
        let mut manifest = pod(name);
        manifest["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data-a"}},
            {"name": "other", "emptyDir": {}}]);
        let created = server.create("/api/v1/namespaces/default/pods", manifest).await;
        let binding = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": node}});
        server.create(&format!("/api/v1/namespaces/default/pods/{name}/binding"), binding).await;
        if name == "a" {
            uid = created["metadata"]["uid"].clone();
        }
    }
    let (claim, volume) = claim();
    server.create("/api/v1/persistentvolumes", volume).await;
    server.create("/api/v1/namespaces/default/persistentvolumeclaims", claim).await;
    let look = json!({"timestamp": "2024-01-01T00:00:00.5Z", "windowNanos": 10_250_000_000_u64,
        "node": {"usage": {"cpuNanocores": 1_500_000_000, "memoryBytes": 1 << 30},
            "total": {"cpuNanos": 90_000_000_000_u64, "memoryBytes": 1 << 30}},
        "pods": [{"podRef": {"uid": uid, "namespace": "default", "name": "a"}, "containers": [
            {"name": "main", "usage": {"cpuNanocores": 250_000_000, "memoryBytes": 10 << 20},
                "total": {"cpuNanos": 2_500_000_000_u64, "memoryBytes": 10 << 20}, "startedAt": "2024-01-01T00:00:00Z"},
            {"name": "side", "total": {"cpuNanos": 500_000_000_u64, "memoryBytes": 1 << 20}}, {"name": "done"}]}]});
    let mut fill = json!({"timestamp": "2024-01-01T00:00:01Z", "pods": {}});
    let folder = json!({"usedBytes": 5, "capacityBytes": 100, "availableBytes": 60});
    fill["pods"][uid.as_str().expect("a uid")] = json!({"/v/data": folder, "/v/unknown": folder});
    let registration = server.api.nodes().register("n1", Arc::new(Agent(look, fill)));
    (server, registration)
}

/// A claim, and the folder that it is bound to.
fn claim() -> (Value, Value) {
    let modes = json!(["ReadWriteOnce"]);
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data-a"},
        "spec": {"accessModes": modes, "volumeName": "v", "resources": {"requests": {"storage": "1Gi"}}}});
    let terms = json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}]}]);
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "v"},
        "spec": {"accessModes": modes, "capacity": {"storage": "1Gi"}, "local": {"path": "/v/data"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": terms}}}});
    (claim, volume)
}

#[tokio::test]
async fn a_nodes_summary_tells_usage_and_how_full_each_claim_is() {
    let (server, _agent) = server().await;
    let path = |node: &str| format!("/api/v1/nodes/{node}/proxy/stats/summary");
    let summary = server.ask(Method::GET, &path("n1"), None).await.body;
    assert_eq!(summary["node"]["cpu"]["usageNanoCores"], 1_500_000_000);
    let pod = &summary["pods"][0];
    assert_eq!((&pod["podRef"]["name"], &pod["containers"][0]["name"]), (&json!("a"), &json!("main")), "{summary}");
    assert_eq!(pod["containers"][0]["memory"]["workingSetBytes"], 10 << 20);
    assert_eq!(pod["containers"][2], json!({"name": "done"}));
    let volumes = pod["volume"].as_array().expect("volumes");
    assert_eq!(volumes.len(), 1, "{summary}");
    assert_eq!(volumes[0]["pvcRef"], json!({"name": "data-a", "namespace": "default"}));
    assert_eq!((&volumes[0]["name"], &volumes[0]["usedBytes"]), (&json!("data"), &json!(5)));
    assert_eq!(server.ask(Method::GET, &path("n2"), None).await.code, 503, "n2 is not connected");
    assert_eq!(server.ask(Method::GET, &path("n3"), None).await.code, 404);
    let other = server.ask(Method::GET, "/api/v1/nodes/n1/proxy/pods", None).await;
    assert_eq!(other.code, 404, "nothing else of a node's own server is here");
    let ann = Identity::user("ann", &[]);
    assert_eq!(server.ask_as(ann, Method::GET, &path("n1"), &[], None).await.code, 403);
}

#[tokio::test]
async fn pods_of_connected_nodes_are_listed_with_what_their_containers_use() {
    let (server, _agent) = server().await;
    let list = server.ask(Method::GET, PODS, None).await.body;
    assert_eq!((&list["kind"], list["items"].as_array().unwrap().len()), (&json!("PodMetricsList"), 1), "{list}");
    let item = &list["items"][0];
    assert_eq!(item["containers"], json!([{"name": "main", "usage": {"cpu": "250m", "memory": "10Mi"}}]));
    assert_eq!((&item["metadata"]["name"], &item["window"]), (&json!("a"), &json!("10.25s")));
    assert_eq!((&item["timestamp"], &item["metadata"]["labels"]["app"]), (&json!("2024-01-01T00:00:00Z"), &json!("a")));
    let one = server.ask(Method::GET, &format!("{PODS}/a"), None).await.body;
    assert_eq!((&one["kind"], &one["containers"]), (&json!("PodMetrics"), &item["containers"]));
    let missing = server.ask(Method::GET, &format!("{PODS}/b"), None).await;
    assert_eq!((missing.code, &missing.body["reason"]), (404, &json!("NotFound")));
    let none = server.ask(Method::GET, &format!("{PODS}?labelSelector=app%3Dz"), None).await.body;
    assert_eq!(none["items"], json!([]));
    let everywhere = server.ask(Method::GET, "/apis/metrics.k8s.io/v1beta1/pods", None).await.body;
    assert_eq!(everywhere["items"], list["items"]);
}

#[tokio::test]
async fn nodes_that_answer_are_listed_with_what_they_use() {
    let (server, _agent) = server().await;
    let list = server.ask(Method::GET, NODES, None).await.body;
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
    assert_eq!(list["items"][0]["usage"], json!({"cpu": "1500m", "memory": "1Gi"}));
    assert_eq!(server.ask(Method::GET, &format!("{NODES}/n2"), None).await.code, 404);
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = server.ask_as(admin(), Method::GET, NODES, &table, None).await.body;
    assert_eq!(table["rows"][0]["cells"], json!(["n1", "1500m", "1Gi", "10.25s"]));
}

#[tokio::test]
async fn a_nodes_metrics_are_told_under_a_kubelets_names() {
    let (server, _agent) = server().await;
    let path = |node: &str| format!("/api/v1/nodes/{node}/proxy/metrics/resource");
    let text = String::from_utf8(server.ask(Method::GET, &path("n1"), None).await.bytes.to_vec()).expect("UTF-8");
    for line in [
        "# TYPE container_cpu_usage_seconds_total counter",
        "container_cpu_usage_seconds_total{container=\"main\",namespace=\"default\",pod=\"a\"} 2.5 1704067200500",
        "container_memory_working_set_bytes{container=\"side\",namespace=\"default\",pod=\"a\"} 1048576 1704067200500",
        "container_start_time_seconds{container=\"main\",namespace=\"default\",pod=\"a\"} 1704067200 1704067200500",
        "node_cpu_usage_seconds_total 90 1704067200500",
        "pod_cpu_usage_seconds_total{namespace=\"default\",pod=\"a\"} 3 1704067200500",
        "pod_memory_working_set_bytes{namespace=\"default\",pod=\"a\"} 11534336 1704067200500",
        "resource_scrape_error 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing: {text}");
    }
    assert!(!text.contains("\"done\""), "of what does not run nothing is told: {text}");
    assert_eq!(server.ask(Method::GET, &path("n2"), None).await.code, 503);
    assert_eq!(server.ask(Method::GET, &path("n3"), None).await.code, 404);
    assert_eq!(server.ask(Method::GET, "/api/v1/nodes/n1/proxy/pods", None).await.code, 404);
}

#[tokio::test]
async fn what_an_agent_counts_is_told_as_it_says_it() {
    let (server, _agent) = server().await;
    let path = |node: &str| format!("/api/v1/nodes/{node}/proxy/metrics");
    let answer = server.ask(Method::GET, &path("n1"), None).await;
    assert_eq!((answer.code, &answer.bytes[..]), (200, COUNTED.as_bytes()));
    assert_eq!(server.ask(Method::GET, &path("n2"), None).await.code, 503);
    assert_eq!(server.ask(Method::GET, &path("n3"), None).await.code, 404);
    let ann = Identity::user("ann", &[]);
    assert_eq!(server.ask_as(ann, Method::GET, &path("n1"), &[], None).await.code, 403);
}

#[tokio::test]
async fn usage_is_read_and_nothing_else() {
    let (server, _agent) = server().await;
    assert_eq!(server.ask(Method::POST, PODS, Some(json!({}))).await.code, 405);
    assert_eq!(server.ask(Method::DELETE, PODS, None).await.code, 405);
    assert_eq!(server.ask(Method::GET, &format!("{PODS}?watch=true"), None).await.code, 405);
    let discovered = server.ask(Method::GET, "/apis/metrics.k8s.io/v1beta1", None).await.body;
    assert_eq!(discovered["resources"][0]["verbs"], json!(["get", "list"]));
}
