//! The audit log, as requests fill it.

use http::Method;
use serde_json::{Value, json};
use statefuld_apiserver::audit::{Log, Options};
use statefuld_apiserver::auth::Identity;

use crate::support::{Server, admin};

#[tokio::test]
async fn every_request_is_noted_with_who_and_what_and_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let options = Options { path: path.clone(), max_bytes: 1 << 20, max_backups: 1 };
    let log = Log::open(options, ambient::Ambient::system()).unwrap();
    let own = log.clone();
    let server = Server::start_with(|options| options.audit = Some(own)).await;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"generateName": "pass-"},
        "stringData": {"password": "hunter2"}});
    let secrets = "/api/v1/namespaces/default/secrets";
    let made = server.ask(Method::POST, secrets, Some(secret)).await;
    let as_bob = [("impersonate-user", "bob"), ("user-agent", "test/1")];
    let refused = server.ask_as(admin(), Method::GET, secrets, &as_bob, None).await;
    assert_eq!(refused.code, 403);
    let token = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let token = server.ask(Method::POST, token, Some(json!({"spec": {}}))).await.body["status"]["token"].clone();
    server.ask_as(Identity::anonymous(), Method::GET, "/version", &[], None).await;
    log.close();
    let text = std::fs::read_to_string(&path).unwrap();
    for hidden in ["hunter2", "aHVudGVyMg==", token.as_str().unwrap()] {
        assert!(!text.contains(hidden), "{hidden} is in the log");
    }
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert_eq!(lines[0]["auditID"], made.headers["audit-id"].to_str().unwrap());
    assert_eq!(lines[0]["objectRef"]["name"], made.body["metadata"]["name"]);
    assert_eq!((&lines[0]["verb"], &lines[0]["responseStatus"]["code"]), (&json!("create"), &json!(201)));
    assert_eq!(lines[1]["user"]["username"], "admin");
    assert_eq!(lines[1]["impersonatedUser"]["username"], "bob");
    assert_eq!(lines[1]["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(lines[1]["userAgent"], "test/1");
    assert_eq!(lines[2]["objectRef"]["subresource"], "token");
    assert_eq!((&lines[3]["verb"], &lines[3]["requestURI"]), (&json!("get"), &json!("/version")));
}
