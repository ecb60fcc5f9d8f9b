//! Pods: graceful deletion, binding, and who holds a name.

use http::Method;
use serde_json::{Value, json};
use statefuld_apiserver::auth::Identity;

use crate::support::{Server, admin, pod};

const PODS: &str = "/api/v1/namespaces/default/pods";
const HOLDERS: &str = "/apis/statefuld.io/v1/namespaces/default/holders";

async fn bind(server: &Server, name: &str, node: &str) -> (u16, Value) {
    let body = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"kind": "Node", "name": node}});
    let answer = server.ask(Method::POST, &format!("{PODS}/{name}/binding"), Some(body)).await;
    (answer.code, answer.body)
}

async fn get(server: &Server, name: &str) -> Value {
    server.ask(Method::GET, &format!("{PODS}/{name}"), None).await.body
}

fn epoch(pod: &Value) -> u64 {
    pod["metadata"]["annotations"]["statefuld.io/epoch"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_pod_on_no_node_goes_at_once() {
    let server = Server::start().await;
    server.create(PODS, pod("a")).await;
    let gone = server.ask(Method::DELETE, &format!("{PODS}/a"), None).await;
    assert_eq!((gone.code, &gone.body["kind"]), (200, &json!("Pod")));
    assert_eq!(server.ask(Method::GET, &format!("{PODS}/a"), None).await.code, 404);
}

#[tokio::test]
async fn a_bound_pod_goes_when_its_node_says_so() {
    let server = Server::start().await;
    server.create(PODS, pod("a")).await;
    assert_eq!(bind(&server, "a", "n1").await.0, 201);
    let marked = server.ask(Method::DELETE, &format!("{PODS}/a"), None).await.body;
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    assert!(get(&server, "a").await["metadata"]["deletionTimestamp"].is_string());
    let last = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": marked["metadata"]["uid"]}});
    let node = Identity::node("n1");
    let done = server.ask_as(node, Method::DELETE, &format!("{PODS}/a"), &[], Some(last)).await;
    assert_eq!(done.code, 200, "{}", done.body);
    assert_eq!(server.ask(Method::GET, &format!("{PODS}/a"), None).await.code, 404);
    assert_eq!(server.ask(Method::GET, &format!("{HOLDERS}/a"), None).await.code, 404);
}

#[tokio::test]
async fn binding_tells_the_epoch_and_who_holds() {
    let server = Server::start().await;
    server.create(PODS, pod("a")).await;
    bind(&server, "a", "n1").await;
    let bound = get(&server, "a").await;
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    let holder = server.ask(Method::GET, &format!("{HOLDERS}/a"), None).await.body;
    assert_eq!((&holder["uid"], &holder["node"]), (&bound["metadata"]["uid"], &json!("n1")));
    assert_eq!(holder["epoch"], epoch(&bound));
    assert_eq!(bind(&server, "a", "n2").await.0, 409);
}

#[tokio::test]
async fn force_frees_the_name_but_binds_no_second_writer() {
    let server = Server::start().await;
    server.create(PODS, pod("a")).await;
    bind(&server, "a", "n1").await;
    let first = get(&server, "a").await;
    let force = json!({"gracePeriodSeconds": 0});
    assert_eq!(server.ask(Method::DELETE, &format!("{PODS}/a"), Some(force)).await.code, 200);
    server.create(PODS, pod("a")).await;
    let (code, body) = bind(&server, "a", "n2").await;
    assert_eq!(code, 409, "{body}");
    let release = format!("{HOLDERS}/a?uid={}", first["metadata"]["uid"].as_str().unwrap());
    let other = server.ask_as(Identity::node("n2"), Method::DELETE, &release, &[], None).await;
    assert_eq!(other.code, 403);
    let own = server.ask_as(Identity::node("n1"), Method::DELETE, &release, &[], None).await;
    assert_eq!(own.code, 200, "{}", own.body);
    let none = server.ask_as(Identity::node("n1"), Method::DELETE, &release, &[], None).await;
    assert_eq!(none.code, 404);
    assert_eq!(bind(&server, "a", "n2").await.0, 201);
    let late = server.ask_as(Identity::node("n1"), Method::DELETE, &release, &[], None).await;
    assert_eq!(late.code, 409);
    assert!(epoch(&get(&server, "a").await) > epoch(&first));
}

#[tokio::test]
async fn a_release_with_another_uid_is_refused() {
    let server = Server::start().await;
    server.create(PODS, pod("a")).await;
    bind(&server, "a", "n1").await;
    let wrong = server.ask_as(Identity::node("n1"), Method::DELETE, &format!("{HOLDERS}/a?uid=x"), &[], None).await;
    assert_eq!(wrong.code, 409);
    assert_eq!(server.ask(Method::GET, &format!("{HOLDERS}/a"), None).await.code, 200);
}

#[tokio::test]
async fn a_pod_created_on_a_node_holds_its_name() {
    let server = Server::start().await;
    let mut direct = pod("a");
    direct["spec"]["nodeName"] = "n1".into();
    let created = server.create(PODS, direct).await;
    let holder = server.ask(Method::GET, &format!("{HOLDERS}/a"), None).await.body;
    assert_eq!(holder["epoch"], epoch(&created));
}

#[tokio::test]
async fn new_pods_get_account_priority_and_tolerations() {
    let server = Server::start().await;
    let created = server.create(PODS, pod("a")).await;
    let spec = &created["spec"];
    assert_eq!((&spec["serviceAccountName"], &spec["priority"]), (&json!("default"), &json!(0)));
    assert_eq!(spec["tolerations"][0]["tolerationSeconds"], 300);
    assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn the_host_runtime_class_needs_the_right_to_use_it() {
    let server = Server::start().await;
    server.create("/api/v1/namespaces", json!({"metadata": {"name": "x"}})).await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/x/rolebindings";
    server
        .create(
            rbac,
            json!({"metadata": {"name": "jane"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]}),
        )
        .await;
    let mut host = pod("a");
    host["spec"]["runtimeClassName"] = "host".into();
    let jane = Identity::user("jane", &[]);
    let refused = server.ask_as(jane, Method::POST, "/api/v1/namespaces/x/pods", &[], Some(host.clone())).await;
    assert_eq!(refused.code, 403, "{}", refused.body);
    server.create("/api/v1/namespaces/x/pods", host).await;
}

#[tokio::test]
async fn services_get_addresses_that_are_given_once() {
    let server = Server::start().await;
    let services = "/api/v1/namespaces/default/services";
    let of = |name: &str, spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    let ports = json!([{"port": 80}]);
    let one = server.create(services, of("a", json!({"ports": ports}))).await;
    let address = one["spec"]["clusterIP"].as_str().unwrap().to_owned();
    assert!(address.starts_with("10.96."), "{address}");
    let taken = server.ask(Method::POST, services, Some(of("b", json!({"ports": ports, "clusterIP": address})))).await;
    assert_eq!(taken.code, 422, "{}", taken.body);
    server.ask(Method::DELETE, &format!("{services}/a"), None).await;
    let again = server.create(services, of("b", json!({"ports": ports, "clusterIP": address}))).await;
    assert_eq!(again["spec"]["clusterIP"], address.as_str());
    let headless = server.create(services, of("c", json!({"ports": ports, "clusterIP": "None"}))).await;
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    let node = server.create(services, of("d", json!({"ports": ports, "type": "NodePort"}))).await;
    assert!((30000..=32767).contains(&node["spec"]["ports"][0]["nodePort"].as_i64().unwrap()));
}

#[tokio::test]
async fn claims_get_the_default_class_and_protection() {
    let server = Server::start().await;
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "a"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let created = server.create("/api/v1/namespaces/default/persistentvolumeclaims", claim).await;
    assert_eq!(created["spec"]["storageClassName"], "local");
    assert_eq!(created["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
}

#[tokio::test]
async fn the_nodes_word_counts_although_a_finalizer_keeps_the_pod() {
    let server = Server::start().await;
    let mut held = pod("a");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    server.create(PODS, held).await;
    bind(&server, "a", "n1").await;
    server.ask(Method::DELETE, &format!("{PODS}/a"), None).await;
    let last = json!({"gracePeriodSeconds": 0});
    let word = server.ask_as(Identity::node("n1"), Method::DELETE, &format!("{PODS}/a"), &[], Some(last)).await;
    assert_eq!(word.code, 200, "{}", word.body);
    assert_eq!(server.ask(Method::GET, &format!("{PODS}/a"), None).await.code, 200);
    assert_eq!(server.ask(Method::GET, &format!("{HOLDERS}/a"), None).await.code, 404);
}

#[tokio::test]
async fn nobody_but_binding_writes_the_epoch() {
    let server = Server::start().await;
    let mut forged = pod("a");
    forged["metadata"]["annotations"] = json!({"statefuld.io/epoch": "9", "other": "x"});
    let created = server.create(PODS, forged).await;
    assert_eq!(created["metadata"]["annotations"], json!({"other": "x"}));
    bind(&server, "a", "n1").await;
    let bound = get(&server, "a").await;
    let merge = [("content-type", "application/merge-patch+json")];
    for forged in [json!("9"), json!(null)] {
        let patch = json!({"metadata": {"annotations": {"statefuld.io/epoch": forged}}});
        let path = format!("{PODS}/a");
        let answer = server.ask_as(admin(), Method::PATCH, &path, &merge, Some(patch)).await;
        assert_eq!(epoch(&answer.body), epoch(&bound));
    }
}
