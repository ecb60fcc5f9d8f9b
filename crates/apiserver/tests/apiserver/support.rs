//! A server of its own for each test, and ways to talk to it.

use std::sync::Arc;
use std::time::Duration;

use ambient::Ambient;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use statefuld_apiserver::auth::Identity;
use statefuld_apiserver::{ApiServer, Options};
use store::embedded::Embedded;
use tower::ServiceExt;

/// How long anything may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A server over a store in a folder of its own.
pub(crate) struct Server {
    pub(crate) api: Arc<ApiServer>,
    pub(crate) store: Arc<Embedded>,
    pub(crate) folder: tempfile::TempDir,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Value,
    pub(crate) bytes: Bytes,
}

impl Server {
    /// Starts one with the usual options.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Starts one with other options.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Options)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store =
            Embedded::open(&folder.path().join("store"), Ambient::system(), store::embedded::Options::default())
                .unwrap();
        let mut options = Options::new(store.clone(), Ambient::system());
        change(&mut options);
        let api = ApiServer::start(options).await.unwrap();
        Self { api, store, folder }
    }

    /// The administrator's client.
    pub(crate) fn admin(&self) -> kube::Client {
        kube::Client::new(self.api.client(admin()), "default")
    }

    /// Asks as the administrator.
    pub(crate) async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.ask_as(admin(), method, path, &[], body).await
    }

    /// Asks as anybody, with headers.
    pub(crate) async fn ask_as(
        &self,
        identity: Identity,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = body.map(|b| b.to_string()).unwrap_or_default();
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        let response =
            tokio::time::timeout(PATIENCE, self.api.client(identity).oneshot(request)).await.unwrap().unwrap();
        let (parts, body) = response.into_parts();
        let bytes = tokio::time::timeout(PATIENCE, body.collect()).await.unwrap().unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Answer { code: parts.status.as_u16(), headers: parts.headers, body, bytes }
    }

    /// Creates an object, which must succeed; gives it as created.
    pub(crate) async fn create(&self, path: &str, object: Value) -> Value {
        let answer = self.ask(Method::POST, path, Some(object)).await;
        assert_eq!(answer.code, 201, "{}", answer.body);
        answer.body
    }
}

/// Who may do everything.
pub(crate) fn admin() -> Identity {
    Identity::user("admin", &["system:masters"])
}

/// A pod that is valid.
pub(crate) fn pod(name: &str) -> Value {
    serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "main", "image": "sample:1"}]}
    })
}

/// A config map.
pub(crate) fn config_map(name: &str, label: &str) -> Value {
    serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"x": label}}, "data": {"k": "v"}
    })
}

/// A StatefulSet.
pub(crate) fn set(name: &str, replicas: i64) -> Value {
    serde_json::json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "serviceName": name, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "main", "image": "sample:1"}]}
            }
        }
    })
}
