//! Events in both groups: the same objects, each as its group shows them.

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{PATIENCE, Server, admin};

const CORE: &str = "/api/v1/namespaces/default/events";
const NEW: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

fn old_event(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name}, "reason": "R", "message": "m", "count": 4,
        "involvedObject": {"kind": "Pod", "name": name, "namespace": "default"}, "type": "Normal",
        "firstTimestamp": "2021-01-01T00:00:00Z", "lastTimestamp": "2021-01-01T00:05:00Z", "source": {"component": "c"}})
}

fn new_event(name: &str) -> Value {
    json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": name}, "reason": "R", "note": "m",
        "regarding": {"kind": "Pod", "name": name, "namespace": "default"}, "type": "Normal", "action": "A",
        "eventTime": "2021-01-01T00:00:00.000001Z", "reportingController": "x/y", "reportingInstance": "i"})
}

#[tokio::test]
async fn an_event_is_read_and_changed_through_either_group() {
    let server = Server::start().await;
    server.create(CORE, old_event("a")).await;
    let new = server.ask(Method::GET, &format!("{NEW}/a"), None).await.body;
    assert_eq!(
        (&new["apiVersion"], &new["note"], &new["deprecatedCount"]),
        (&json!("events.k8s.io/v1"), &json!("m"), &json!(4))
    );
    let created = server.create(NEW, new_event("b")).await;
    assert_eq!(created["note"], "m");
    let series = json!({"series": {"count": 2, "lastObservedTime": "2021-01-01T00:01:00.000000Z"}});
    let merge = [("content-type", "application/merge-patch+json")];
    let patched = server.ask_as(admin(), Method::PATCH, &format!("{NEW}/b"), &merge, Some(series)).await;
    assert_eq!((patched.code, &patched.body["series"]["count"]), (200, &json!(2)), "{}", patched.body);
    let core = server.ask(Method::GET, &format!("{CORE}/b"), None).await.body;
    assert_eq!((&core["message"], &core["involvedObject"]["name"]), (&json!("m"), &json!("b")));
    assert_eq!((&core["series"]["count"], &core["reportingComponent"]), (&json!(2), &json!("x/y")));
    let mut core = core;
    core["count"] = json!(9);
    assert_eq!(server.ask(Method::PUT, &format!("{CORE}/b"), Some(core)).await.code, 200);
    assert_eq!(server.ask(Method::GET, &format!("{NEW}/b"), None).await.body["deprecatedCount"], 9);
    let deleted = server.ask(Method::DELETE, &format!("{NEW}/b"), None).await;
    assert_eq!((deleted.code, &deleted.body["details"]["group"]), (200, &json!("events.k8s.io")));
    assert_eq!(server.ask(Method::GET, &format!("{CORE}/b"), None).await.code, 404);
}

#[tokio::test]
async fn lists_select_by_the_fields_of_their_group_and_print_the_same_columns() {
    let server = Server::start().await;
    server.create(CORE, old_event("a")).await;
    server.create(NEW, new_event("b")).await;
    let list = server.ask(Method::GET, &format!("{NEW}?fieldSelector=regarding.name%3Da"), None).await.body;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(list["items"][0]["note"], "m");
    assert!(list["items"][0].get("kind").is_none());
    let none = server.ask(Method::GET, &format!("{NEW}?fieldSelector=involvedObject.name%3Da"), None).await;
    assert_eq!(none.code, 400);
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let old = server.ask_as(admin(), Method::GET, CORE, &table, None).await.body;
    let new = server.ask_as(admin(), Method::GET, NEW, &table, None).await.body;
    assert_eq!(old["columnDefinitions"], new["columnDefinitions"]);
    assert_eq!(old["rows"][0]["cells"], new["rows"][0]["cells"]);
}

#[tokio::test]
async fn new_events_of_the_newer_group_are_held_to_its_rules() {
    let server = Server::start().await;
    let mut event = new_event("a");
    event["reportingInstance"] = json!("");
    event["deprecatedCount"] = json!(3);
    let refused = server.ask(Method::POST, NEW, Some(event)).await;
    assert_eq!(refused.code, 422);
    let message = refused.body["message"].as_str().unwrap();
    assert!(
        message.contains("reportingInstance: Required value") && message.contains("count: Invalid value"),
        "{message}"
    );
    server.create(NEW, new_event("a")).await;
    let note = json!({"note": "other"});
    let merge = [("content-type", "application/merge-patch+json")];
    let refused = server.ask_as(admin(), Method::PATCH, &format!("{NEW}/a"), &merge, Some(note)).await;
    assert_eq!(refused.code, 422);
}

#[tokio::test]
async fn a_watch_shows_events_as_its_group_does() {
    let server = Server::start().await;
    let open = async |path: &str, accept: &str| {
        let request = Request::get(format!("{path}?watch=true")).header("accept", accept);
        let request = request.body(Full::new(Bytes::new())).unwrap();
        server.api.client(admin()).oneshot(request).await.unwrap().into_body().into_data_stream()
    };
    let mut new = open(NEW, "application/json").await;
    let mut old = open(CORE, "application/json").await;
    let mut binary = open(NEW, "application/vnd.kubernetes.protobuf").await;
    server.create(CORE, old_event("a")).await;
    for (stream, field) in [(&mut new, "note"), (&mut old, "message")] {
        let line = tokio::time::timeout(PATIENCE, stream.next()).await.expect("in time").unwrap().unwrap();
        let event: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!((&event["type"], &event["object"][field]), (&json!("ADDED"), &json!("m")));
    }
    let frame = tokio::time::timeout(PATIENCE, binary.next()).await.expect("in time").unwrap().unwrap();
    let at = frame.windows(4).position(|w| w == b"k8s\0").unwrap();
    let event = api::protobuf::decode("events/v1.Event", &frame[at..]).unwrap();
    assert_eq!((&event["apiVersion"], &event["note"]), (&json!("events.k8s.io/v1"), &json!("m")));
}
