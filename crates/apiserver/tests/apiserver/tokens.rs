//! Service accounts: their tokens, who is told what about them, and what pods are given of them.

use http::Method;
use serde_json::{Value, json};
use statefuld_apiserver::auth::Identity;

use crate::support::{Answer, Server, admin, pod};

const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const PODS: &str = "/api/v1/namespaces/default/pods";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// A token of `default/default`, bound to a pod if one is named.
async fn token(server: &Server, pod: Option<&Value>) -> String {
    let bound = pod.map(
        |p| json!({"kind": "Pod", "apiVersion": "v1", "name": p["metadata"]["name"], "uid": p["metadata"]["uid"]}),
    );
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"boundObjectRef": bound}});
    let answer = server.create(&format!("{ACCOUNTS}/default/token"), request).await;
    answer["status"]["token"].as_str().unwrap().to_owned()
}

async fn review(server: &Server, token: &str) -> Value {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    server.create(REVIEWS, review).await["status"].clone()
}

#[tokio::test]
async fn a_token_is_reviewed_until_its_account_goes() {
    let server = Server::start().await;
    let token = token(&server, None).await;
    let status = review(&server, &token).await;
    assert_eq!(status["authenticated"], true, "{status}");
    assert_eq!(status["user"]["username"], "system:serviceaccount:default:default");
    assert_eq!(status["audiences"], json!(["https://kubernetes.default.svc.cluster.local"]));
    server.ask(Method::DELETE, &format!("{ACCOUNTS}/default"), None).await;
    let status = review(&server, &token).await;
    assert_eq!((&status["authenticated"], &status["error"]), (&Value::Null, &json!("invalid bearer token")));
}

#[tokio::test]
async fn a_bound_token_ends_with_its_pod_and_tells_its_name() {
    let server = Server::start().await;
    let made = server.create(PODS, pod("a")).await;
    let token = token(&server, Some(&made)).await;
    let status = review(&server, &token).await;
    assert_eq!(status["user"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["a"]));
    let gone = server.ask(Method::DELETE, &format!("{PODS}/a?gracePeriodSeconds=0"), None).await;
    assert_eq!(gone.code, 200);
    assert_eq!(review(&server, &token).await["authenticated"], Value::Null);
    // Another pod of that name is another pod.
    server.create(PODS, pod("a")).await;
    assert_eq!(review(&server, &token).await["authenticated"], Value::Null);
}

#[tokio::test]
async fn a_review_without_token_and_a_token_without_account_are_refused() {
    let server = Server::start().await;
    let answer = server.ask(Method::POST, REVIEWS, Some(json!({"spec": {}}))).await;
    assert_eq!(
        (answer.code, &answer.body["message"]),
        (400, &json!("token is required for TokenReview in authentication"))
    );
    let answer = server.ask(Method::POST, &format!("{ACCOUNTS}/nobody/token"), Some(json!({"spec": {}}))).await;
    assert_eq!(answer.code, 404, "{}", answer.body);
    let answer = server.ask(Method::POST, &format!("{ACCOUNTS}/default/token"), Some(json!({"kind": "Pod"}))).await;
    assert_eq!(answer.code, 400, "{}", answer.body);
}

#[tokio::test]
async fn a_node_gets_tokens_for_pods_bound_to_it_only() {
    let server = Server::start().await;
    let made = server.create(PODS, pod("a")).await;
    let ask = async |node: &str| -> Answer {
        let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "a", "uid": made["metadata"]["uid"]});
        let body = json!({"spec": {"boundObjectRef": bound}});
        let path = format!("{ACCOUNTS}/default/token");
        server.ask_as(Identity::node(node), Method::POST, &path, &[], Some(body)).await
    };
    assert_eq!(ask("n1").await.code, 403);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "a"},
        "target": {"kind": "Node", "name": "n1"}});
    server.create(&format!("{PODS}/a/binding"), binding).await;
    // As an agent learns of its pod: by reading.
    server.ask(Method::GET, &format!("{PODS}/a"), None).await;
    let answer = ask("n1").await;
    assert_eq!(answer.code, 201, "{}", answer.body);
    assert_eq!(ask("n2").await.code, 403);
}

#[tokio::test]
async fn keys_are_published_for_others_to_check_tokens() {
    let server = Server::start().await;
    let account = Identity::service_account("default", "default");
    let get = async |path: &str| server.ask_as(account.clone(), Method::GET, path, &[], None).await;
    let found = get("/.well-known/openid-configuration").await;
    assert_eq!(found.body["issuer"], "https://kubernetes.default.svc.cluster.local");
    let keys = get("/openid/v1/jwks").await;
    assert_eq!(keys.headers["content-type"], "application/jwk-set+json");
    assert_eq!(keys.body["keys"][0]["kty"], "EC");
    let stranger = server.ask_as(Identity::user("ann", &[]), Method::GET, "/openid/v1/jwks", &[], None).await;
    assert_eq!(stranger.code, 403);
}

#[tokio::test]
async fn whoami_tells_the_caller() {
    let server = Server::start().await;
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let answer = server.ask_as(Identity::user("ann", &["crew"]), Method::POST, path, &[], Some(body)).await;
    assert_eq!(answer.code, 201, "{}", answer.body);
    assert_eq!(
        answer.body["status"]["userInfo"],
        json!({"username": "ann", "groups": ["crew", "system:authenticated"]})
    );
}

#[tokio::test]
async fn a_pod_is_given_a_token_volume_in_every_container() {
    let server = Server::start().await;
    let mut wanted = pod("a");
    wanted["spec"]["initContainers"] = json!([{"name": "init", "image": "sample:1"}]);
    let made = server.create(PODS, wanted).await;
    let volume = &made["spec"]["volumes"][0];
    let name = volume["name"].as_str().unwrap();
    assert!(name.starts_with("kube-api-access-") && name.len() == 21, "{name}");
    let namespace = json!({"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}});
    let sources = json!([
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [namespace]}},
    ]);
    assert_eq!(volume["projected"], json!({"defaultMode": 420, "sources": sources}));
    let mount = json!([{"name": name, "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]);
    assert_eq!(made["spec"]["containers"][0]["volumeMounts"], mount);
    assert_eq!(made["spec"]["initContainers"][0]["volumeMounts"], mount);
    assert_eq!(made["spec"]["serviceAccountName"], "default");
}

#[tokio::test]
async fn no_token_where_pod_or_account_do_not_want_one() {
    let server = Server::start().await;
    let quiet = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "quiet"},
        "automountServiceAccountToken": false, "imagePullSecrets": [{"name": "pull"}]});
    server.create(ACCOUNTS, quiet).await;
    let volumes = async |name: &str, spec: Value| {
        let mut wanted = pod(name);
        for (field, value) in spec.as_object().unwrap() {
            wanted["spec"][field] = value.clone();
        }
        server.create(PODS, wanted).await["spec"].clone()
    };
    assert_eq!(volumes("a", json!({"automountServiceAccountToken": false})).await.get("volumes"), None);
    let spec = volumes("b", json!({"serviceAccountName": "quiet"})).await;
    assert_eq!((spec.get("volumes"), &spec["imagePullSecrets"]), (None, &json!([{"name": "pull"}])));
    let spec = volumes("c", json!({"serviceAccountName": "quiet", "automountServiceAccountToken": true})).await;
    assert!(spec["volumes"][0]["projected"].is_object(), "{spec}");
    let own = json!([{"name": "main", "image": "sample:1",
        "volumeMounts": [{"name": "mine", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]}]);
    let spec = volumes("d", json!({"containers": own, "volumes": [{"name": "mine", "emptyDir": {}}]})).await;
    assert_eq!(spec["volumes"].as_array().unwrap().len(), 1);
    let mut wanted = pod("e");
    wanted["spec"]["serviceAccountName"] = json!("nobody");
    let answer = server.ask_as(admin(), Method::POST, PODS, &[], Some(wanted)).await;
    assert_eq!(
        (answer.code, &answer.body["message"]),
        (
            403,
            &json!(
                "pods \"e\" is forbidden: error looking up service account default/nobody: serviceaccount \"nobody\" not found"
            )
        )
    );
}
