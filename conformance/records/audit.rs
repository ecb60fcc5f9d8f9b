//! The audit log: lines of JSON as upstream's, without anything secret.

use serde_json::{Value, json};

use crate::cluster::{Ask, Case, PATIENCE, pause};
use crate::verbs::{config, text};

/// The lines about a namespace, once there are so many of them that are `wanted`.
async fn lines(case: &Case, many: usize, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
    let read = async {
        loop {
            let log = tokio::fs::read_to_string(case.cluster.audit_log()).await.expect("the log is there");
            // The last line may be half written.
            let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let lines = whole.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line is JSON"));
            let lines: Vec<Value> = lines.filter(|line| text(line, "/requestURI").contains(&*case.namespace)).collect();
            if lines.iter().filter(|line| wanted(line)).count() >= many {
                return lines;
            }
            pause().await;
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("what was asked is noted")
}

/// The line that an answer names.
async fn line(case: &Case, answer: &crate::cluster::Answer) -> Value {
    let id = answer.headers.get("audit-id").cloned().expect("the answer names its line");
    let is_it = |line: &Value| line["auditID"] == id.as_str();
    lines(case, 1, is_it).await.into_iter().find(is_it).expect("it was found")
}

pub(super) async fn every_request_is_a_line_of_who_what_and_what_came_of_it(case: Case) {
    let path = case.core("configmaps");
    let made = case.ask(Ask::new("POST", &path).json(&config("a"))).await;
    let noted = line(&case, &made).await;
    assert_eq!((&noted["kind"], &noted["apiVersion"]), (&json!("Event"), &json!("audit.k8s.io/v1")));
    assert_eq!((&noted["level"], &noted["stage"]), (&json!("Metadata"), &json!("ResponseComplete")));
    assert_eq!((&noted["verb"], &noted["requestURI"]), (&json!("create"), &json!(path)));
    assert_eq!(noted["responseStatus"]["code"], 201);
    assert_eq!(
        noted["objectRef"],
        json!({"resource": "configmaps", "apiVersion": "v1", "namespace": &*case.namespace, "name": "a"})
    );
    assert_eq!((&noted["sourceIPs"], &noted["userAgent"]), (&json!(["127.0.0.1"]), &json!("golden")));
    assert!(text(&noted, "/requestReceivedTimestamp") <= text(&noted, "/stageTimestamp"), "{noted}");
    let groups = noted["user"]["groups"].as_array().cloned().unwrap_or_default();
    assert!(groups.contains(&json!("system:masters")), "{noted}");

    let as_bob = case.ask(Ask::new("DELETE", &format!("{path}/a")).header("impersonate-user", Some("bob"))).await;
    let noted = line(&case, &as_bob).await;
    assert_eq!((&noted["verb"], &noted["responseStatus"]["code"]), (&json!("delete"), &json!(403)));
    assert_eq!(noted["impersonatedUser"]["username"], "bob");
    assert_eq!(noted["annotations"]["authorization.k8s.io/decision"], "forbid");

    let wrong = case.ask(Ask::new("GET", &path).token("no-token-of-anybody")).await;
    assert_eq!(wrong.code, 401);
    case.ask(Ask::new("GET", &path).query("watch", "true").query("timeoutSeconds", "1")).await;
    let noted = lines(&case, 2, |line| line["responseStatus"]["code"] == 401 || line["verb"] == "watch").await;
    let refused = noted.iter().find(|line| line["responseStatus"]["code"] == 401).expect("it is noted");
    assert_eq!(refused["user"], json!({}), "nobody is named who was not known");
    let watched = noted.iter().find(|line| line["verb"] == "watch").expect("it is noted");
    assert_eq!(watched["stage"], "ResponseStarted", "it is noted when it begins");
}

pub(super) async fn no_secret_is_in_the_log(case: Case) {
    let secrets = case.core("secrets");
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}, "stringData": {"k": "hunter2"}});
    let made = case.create(&secrets, secret).await;
    assert_eq!(made["data"]["k"], "aHVudGVyMg==");
    case.merge(&format!("{secrets}/a"), json!({"stringData": {"l": "swordfish"}})).await;
    let account = format!("{}/default/token", case.core("serviceaccounts"));
    let token = text(&case.create(&account, json!({"spec": {}})).await, "/status/token").to_owned();
    case.ask(Ask::new("GET", &secrets).token(&token)).await;
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    case.create("/apis/authentication.k8s.io/v1/tokenreviews", review).await;
    case.ask(Ask::new("GET", &secrets).token("hunter3-that-is-wrong")).await;
    // The last of them is noted, and so are all before it.
    let last = case.get(&format!("{secrets}/a")).await;
    line(&case, &last).await;
    let log = tokio::fs::read_to_string(case.cluster.audit_log()).await.expect("the log is there");
    let signature = token.rsplit('.').next().unwrap_or_default();
    for hidden in ["hunter2", "hunter3", "aHVudGVyMg==", "swordfish", "c3dvcmRmaXNo", signature] {
        assert!(!log.contains(hidden), "{hidden} is in the log");
    }
}
