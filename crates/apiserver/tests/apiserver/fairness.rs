//! One client's requests do no harm to another's: their number, time and memory are limited.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use serde_json::{Value, json};
use statefuld_apiserver::Body;
use statefuld_apiserver::auth::Identity;
use tower::ServiceExt as _;

use crate::support::{PATIENCE, Server, admin, config_map};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A request whose body never ends, as somebody's.
async fn stuck(server: &Server, who: Identity) -> Response<Body> {
    let body = StreamBody::new(futures::stream::pending::<Result<http_body::Frame<Bytes>, std::io::Error>>());
    let request = Request::post(MAPS).body(body).unwrap();
    server.api.client(who).oneshot(request).await.unwrap()
}

#[tokio::test]
async fn a_client_that_takes_too_many_is_asked_to_come_back_and_keeps_nobody_out() {
    let server = Server::start_with(|options| options.limits.writes = 10).await;
    let ann = || Identity::user("ann", &[]);
    let mut open: Vec<_> = (0..5).map(|_| Box::pin(stuck(&server, ann()))).collect();
    for request in &mut open {
        assert!(futures::poll!(request).is_pending());
    }
    let answer = server.ask_as(ann(), Method::POST, MAPS, &[], Some(json!({}))).await;
    assert_eq!((answer.code, &answer.body["reason"]), (429, &json!("TooManyRequests")));
    assert_eq!(answer.headers["retry-after"], "1");
    // Reading is another matter, and so is everybody else.
    assert_ne!(server.ask_as(ann(), Method::GET, MAPS, &[], None).await.code, 429);
    for who in [Identity::user("bob", &[]), Identity::node("n1"), admin()] {
        let answer = server.ask_as(who, Method::POST, MAPS, &[], Some(config_map("a", "x"))).await;
        assert_ne!(answer.code, 429, "{}", answer.body);
    }
    drop(open);
    assert_ne!(server.ask_as(ann(), Method::POST, MAPS, &[], Some(json!({}))).await.code, 429);
}

#[tokio::test]
async fn what_takes_too_long_is_answered_with_504() {
    let server = Server::start_with(|options| options.limits.request_timeout = Duration::from_millis(50)).await;
    let response = tokio::time::timeout(PATIENCE, stuck(&server, admin())).await.expect("it is answered");
    assert_eq!(response.status(), 504);
    let body: Value = serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(body["reason"], "Timeout");
}

#[tokio::test]
async fn one_client_gets_its_share_of_watches() {
    let server = Server::start_with(|options| options.limits.watches = 4).await;
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "all"}, "subjects": [{"kind": "Group", "name": "crew",
        "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "view", "apiGroup": "rbac.authorization.k8s.io"}});
    server.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", role).await;
    let watch = async |name: &str| {
        let request = Request::get(format!("{MAPS}?watch=true")).body(Empty::<Bytes>::new()).unwrap();
        server.api.client(Identity::user(name, &["crew"])).oneshot(request).await.unwrap()
    };
    let anns = [watch("ann").await, watch("ann").await];
    assert!(anns.iter().all(|answer| answer.status() == 200));
    assert_eq!(watch("ann").await.status(), 429);
    assert_eq!(watch("bob").await.status(), 200);
    drop(anns);
    assert_eq!(watch("ann").await.status(), 200);
}

#[tokio::test]
async fn large_answers_that_nobody_reads_do_not_fill_the_memory() {
    let server = Server::start_with(|options| options.limits.answers_kib = 1024).await;
    let mut large = config_map("large", "x");
    large["data"]["k"] = "x".repeat(600 << 10).into();
    server.create(MAPS, large).await;
    let list = async || {
        let request = Request::get(MAPS).body(Full::<Bytes>::default()).unwrap();
        server.api.client(admin()).oneshot(request).await.unwrap()
    };
    let unread = list().await;
    assert_eq!(unread.status(), 200);
    // Memory is bounded for everybody, masters too.
    assert_eq!(list().await.status(), 429);
    // Sent and let go by the connection, as read here.
    let bytes = unread.into_body().collect().await.unwrap().to_bytes();
    assert!(bytes.len() > 600 << 10);
    drop(bytes);
    assert_eq!(list().await.status(), 200);
}
