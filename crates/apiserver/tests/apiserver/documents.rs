//! Discovery, health, media types, shapes, limits, and a panic that stays inside its request.

use std::sync::Arc;

use http::Method;
use serde_json::{Value, json};
use statefuld_apiserver::AuthorizerChoice;
use statefuld_apiserver::auth::{Attributes, Authorizer, Decision, Identity};

use crate::support::{Server, admin, config_map, pod};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn old_discovery_lists_groups_and_resources() {
    let server = Server::start().await;
    let groups = server.ask(Method::GET, "/apis", None).await.body;
    let names: Vec<&str> = groups["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"apps") && names.contains(&"authorization.k8s.io"), "{names:?}");
    let apps = server.ask(Method::GET, "/apis/apps/v1", None).await.body;
    let sets = apps["resources"].as_array().unwrap().iter().find(|r| r["name"] == "statefulsets").unwrap();
    assert_eq!(sets["shortNames"], json!(["sts"]));
    assert!(apps["resources"].as_array().unwrap().iter().any(|r| r["name"] == "statefulsets/scale"));
}

#[tokio::test]
async fn aggregated_discovery_is_one_document() {
    let server = Server::start().await;
    let accept = [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json")];
    let answer = server.ask_as(admin(), Method::GET, "/apis", &accept, None).await;
    assert_eq!(answer.body["kind"], "APIGroupDiscoveryList");
    assert!(answer.headers["content-type"].to_str().unwrap().contains("apidiscovery.k8s.io"));
    let apps = answer.body["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == "apps").unwrap();
    let resources: Vec<_> =
        apps["versions"][0]["resources"].as_array().unwrap().iter().map(|r| r["resource"].as_str().unwrap()).collect();
    assert_eq!(resources.len(), 4, "{resources:?}");
    for resource in ["controllerrevisions", "deployments", "replicasets", "statefulsets"] {
        assert!(resources.contains(&resource), "{resources:?}");
    }
}

#[tokio::test]
async fn health_and_version_are_told_to_anybody_and_objects_are_not() {
    let server = Server::start().await;
    let ask = |path: &'static str| server.ask_as(Identity::anonymous(), Method::GET, path, &[], None);
    assert_eq!(ask("/readyz").await.body, "ok");
    let verbose = ask("/livez?verbose").await.body;
    assert!(verbose.as_str().unwrap().ends_with("livez check passed\n"), "{verbose}");
    assert!(ask("/version").await.body["gitVersion"].as_str().unwrap().starts_with("v1.37."));
    assert_eq!(ask(MAPS).await.code, 403);
}

#[tokio::test]
async fn a_list_is_a_table_for_who_wants_one() {
    let server = Server::start().await;
    server.create("/api/v1/namespaces/default/pods", pod("a")).await;
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let table = server.ask_as(admin(), Method::GET, "/api/v1/namespaces/default/pods", &accept, None).await.body;
    assert_eq!((&table["kind"], &table["rows"][0]["cells"][0]), (&json!("Table"), &json!("a")));
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
}

#[tokio::test]
async fn metadata_alone_is_given_to_who_wants_it() {
    let server = Server::start().await;
    server.create(MAPS, config_map("a", "1")).await;
    let accept = [("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")];
    let list = server.ask_as(admin(), Method::GET, MAPS, &accept, None).await.body;
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert!(list["items"][0].get("data").is_none());
    let one = server.ask_as(admin(), Method::GET, &format!("{MAPS}/a"), &accept, None).await;
    assert_eq!(one.code, 406);
}

#[tokio::test]
async fn what_cannot_be_read_or_written_is_refused_as_such() {
    let server = Server::start().await;
    let xml = server.ask_as(admin(), Method::GET, MAPS, &[("accept", "application/xml")], None).await;
    assert_eq!(xml.code, 406);
    let text = [("content-type", "text/plain")];
    let text = server.ask_as(admin(), Method::POST, MAPS, &text, Some(config_map("a", "1"))).await;
    assert_eq!(text.code, 415);
}

#[tokio::test]
async fn unknown_fields_warn_or_are_refused() {
    let server = Server::start().await;
    let mut map = config_map("a", "1");
    map["nope"] = json!(1);
    let strict = server.ask(Method::POST, &format!("{MAPS}?fieldValidation=Strict"), Some(map.clone())).await;
    assert_eq!(strict.code, 400);
    assert!(strict.body["message"].as_str().unwrap().contains("unknown field \"nope\""));
    let warned = server.ask(Method::POST, MAPS, Some(map)).await;
    assert_eq!(warned.code, 201);
    assert!(warned.headers["warning"].to_str().unwrap().contains("unknown field"));
    assert!(warned.body.get("nope").is_none());
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let server = Server::start_with(|options| options.limits.body_bytes = 1000).await;
    let mut map = config_map("a", "1");
    map["data"]["k"] = "x".repeat(2000).into();
    assert_eq!(server.ask(Method::POST, MAPS, Some(map)).await.code, 413);
}

#[tokio::test]
async fn requests_beyond_the_limit_are_asked_to_come_back() {
    let server = Server::start_with(|options| options.limits.reads = 0).await;
    let answer = server.ask_as(Identity::user("ann", &[]), Method::GET, MAPS, &[], None).await;
    assert_eq!((answer.code, answer.headers["retry-after"].to_str().unwrap()), (429, "1"));
    server.create(MAPS, config_map("a", "1")).await;
}

/// Panics about one name.
struct Trap;

impl Authorizer for Trap {
    fn authorize(&self, attributes: &Attributes) -> Decision {
        assert_ne!(attributes.name, "trap");
        Decision::Allow
    }
}

#[tokio::test]
async fn a_panic_answers_its_own_request_with_500() {
    let server = Server::start_with(|options| options.authorizer = AuthorizerChoice::Custom(Arc::new(Trap))).await;
    let trapped = server.ask(Method::GET, &format!("{MAPS}/trap"), None).await;
    assert_eq!((trapped.code, &trapped.body["reason"]), (500, &json!("InternalError")));
    assert_eq!(server.ask(Method::GET, MAPS, None).await.code, 200);
}

#[tokio::test]
async fn reviews_say_who_and_what() {
    let server = Server::start().await;
    let jane = || Identity::user("jane", &["devs"]);
    let who = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let who = server.ask_as(jane(), Method::POST, who, &[], Some(json!({}))).await;
    assert_eq!(who.body["status"]["userInfo"]["username"], "jane", "{}", who.body);
    let may = |resource: &str| json!({"spec": {"resourceAttributes": {"verb": "list", "resource": resource}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let answer = server.ask_as(jane(), Method::POST, path, &[], Some(may("pods"))).await;
    assert_eq!((answer.code, &answer.body["status"]["allowed"]), (201, &Value::Bool(false)), "{}", answer.body);
    let answer = server.ask(Method::POST, path, Some(may("pods"))).await;
    assert_eq!(answer.body["status"]["allowed"], true);
}

#[tokio::test]
async fn documents_that_a_client_keeps_are_not_sent_again() {
    let server = Server::start().await;
    let aggregated = ("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    for (path, accept) in
        [("/openapi/v2", ("accept", "*/*")), ("/openapi/v3", ("accept", "*/*")), ("/apis", aggregated)]
    {
        let first = server.ask_as(admin(), Method::GET, path, &[accept], None).await;
        assert_eq!(first.code, 200, "{path}");
        let tag = first.headers["etag"].to_str().unwrap().to_owned();
        let again = server.ask_as(admin(), Method::GET, path, &[accept, ("if-none-match", &tag)], None).await;
        assert_eq!((again.code, again.bytes.len()), (304, 0), "{path}");
        let other = server.ask_as(admin(), Method::GET, path, &[accept, ("if-none-match", "\"x\"")], None).await;
        assert_eq!(other.code, 200, "{path}");
    }
}

#[tokio::test]
async fn the_address_of_a_document_names_its_content_and_lasts() {
    let server = Server::start().await;
    let index = server.ask(Method::GET, "/openapi/v3", None).await.body;
    let place = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    let document = server.ask(Method::GET, place, None).await;
    assert_eq!(document.headers["cache-control"], "public, immutable");
    assert!(document.headers.contains_key("expires"));
    assert_eq!(document.body["openapi"], "3.0.0");
    let stale = server.ask(Method::GET, "/openapi/v3/apis/apps/v1?hash=OLD", None).await;
    assert_eq!((stale.code, stale.headers["location"].to_str().unwrap()), (301, place));
    assert_eq!(server.ask(Method::GET, "/openapi/v3/apis/nosuch/v1", None).await.code, 404);
}

#[tokio::test]
async fn a_large_list_is_compressed_and_a_watch_is_not() {
    let server = Server::start().await;
    let mut map = config_map("a", "1");
    map["data"]["k"] = "x".repeat(200_000).into();
    server.create(MAPS, map).await;
    let gzip = [("accept-encoding", "gzip")];
    let packed = server.ask_as(admin(), Method::GET, MAPS, &gzip, None).await;
    assert_eq!((packed.code, &packed.headers["content-encoding"]), (200, &http::HeaderValue::from_static("gzip")));
    assert!(packed.bytes.len() < 10_000);
    let watch = format!("{MAPS}?watch=true&timeoutSeconds=1");
    let watch = server.ask_as(admin(), Method::GET, &watch, &gzip, None).await;
    assert!(!watch.headers.contains_key("content-encoding") && watch.bytes.len() > 200_000);
}

#[tokio::test]
async fn requests_and_commits_are_counted() {
    let server = Server::start().await;
    server.create(MAPS, config_map("a", "1")).await;
    server.ask(Method::GET, MAPS, None).await;
    server.ask(Method::GET, "/apis/no/v1/suches", None).await;
    let answer = server.ask(Method::GET, "/metrics", None).await;
    let text = String::from_utf8(answer.bytes.to_vec()).unwrap();
    let counted = |labels: &[&str]| {
        text.lines().any(|l| l.starts_with("apiserver_request_total{") && labels.iter().all(|label| l.contains(label)))
    };
    assert!(counted(&["verb=\"POST\"", "resource=\"configmaps\"", "code=\"201\""]), "{text}");
    assert!(counted(&["verb=\"LIST\"", "resource=\"configmaps\"", "scope=\"namespace\"", "code=\"200\""]), "{text}");
    assert!(counted(&["resource=\"\"", "code=\"404\""]), "{text}");
    assert!(text.contains("apiserver_storage_objects{resource=\"configmaps\"}"));
    assert!(text.contains("apiserver_current_inflight_requests{request_kind=\"readOnly\"} 1\n"), "{text}");
}

#[tokio::test]
async fn single_checks_can_be_asked_and_left_out() {
    let server = Server::start().await;
    assert_eq!(server.ask(Method::GET, "/readyz/etcd", None).await.body, "ok");
    assert_eq!(server.ask(Method::GET, "/readyz/nosuch", None).await.code, 404);
    let answer = server.ask(Method::GET, "/readyz?verbose&exclude=etcd&exclude=nosuch", None).await.body;
    let text = answer.as_str().unwrap();
    assert!(text.contains("[+]etcd excluded: ok\n") && text.contains("no matches for \"nosuch\"\n"), "{text}");
}
