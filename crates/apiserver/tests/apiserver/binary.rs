//! The binary form of objects over HTTP: answers, errors, watches.

use api::protobuf::{MEDIA_TYPE, decode};
use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{PATIENCE, Server, admin, config_map};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// What client-go sends for built-in kinds.
const BOTH: &str = "application/vnd.kubernetes.protobuf,application/json";

/// Asks for the binary form; gives code, media type and body.
async fn ask(server: &Server, method: Method, path: &str, accept: &str, body: Option<Value>) -> (u16, String, Bytes) {
    let answer = server.ask_as(admin(), method, path, &[("accept", accept)], body).await;
    (answer.code, answer.headers["content-type"].to_str().unwrap().to_owned(), answer.bytes)
}

#[tokio::test]
async fn objects_are_answered_in_the_binary_form() {
    let server = Server::start().await;
    let (code, media, created) = ask(&server, Method::POST, MAPS, BOTH, Some(config_map("a", "1"))).await;
    assert_eq!((code, media.as_str()), (201, MEDIA_TYPE));
    let (code, media, got) = ask(&server, Method::GET, &format!("{MAPS}/a"), BOTH, None).await;
    assert_eq!((code, media.as_str()), (200, MEDIA_TYPE));
    assert_eq!(got, created);
    let read = decode("core/v1.ConfigMap", &got).unwrap();
    let json = server.ask(Method::GET, &format!("{MAPS}/a"), None).await.body;
    assert_eq!(
        (&read["data"], &read["kind"], &read["apiVersion"]),
        (&json["data"], &json["kind"], &json["apiVersion"])
    );
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp", "labels"] {
        assert_eq!(read["metadata"][field], json["metadata"][field], "{field}");
    }
}

#[tokio::test]
async fn what_was_read_in_the_binary_form_can_be_written_back() {
    let server = Server::start().await;
    let (_, _, created) = ask(&server, Method::POST, MAPS, BOTH, Some(config_map("a", "1"))).await;
    let request = Request::builder()
        .method(Method::PUT)
        .uri(format!("{MAPS}/a"))
        .header("content-type", MEDIA_TYPE)
        .header("accept", MEDIA_TYPE)
        .body(Full::new(created.clone()))
        .unwrap();
    let response = server.api.client(admin()).oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), created);
}

#[tokio::test]
async fn lists_are_answered_in_the_binary_form() {
    let server = Server::start().await;
    for name in ["a", "b"] {
        server.create(MAPS, config_map(name, "1")).await;
    }
    let (code, media, list) = ask(&server, Method::GET, &format!("{MAPS}?limit=1"), BOTH, None).await;
    assert_eq!((code, media.as_str()), (200, MEDIA_TYPE));
    assert!(list.starts_with(b"k8s\0\x0a\x13\x0a\x02v1\x12\x0dConfigMapList"), "{list:?}");
    let metadata = [("accept", "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")];
    let partial = server.ask_as(admin(), Method::GET, MAPS, &metadata, None).await;
    assert_eq!((partial.code, partial.headers["content-type"].to_str().unwrap()), (200, MEDIA_TYPE));
    assert!(partial.bytes.windows(25).any(|w| w == b"PartialObjectMetadataList"));
}

#[tokio::test]
async fn failures_are_a_status_in_the_notation_that_is_wanted() {
    let server = Server::start().await;
    let (code, media, body) = ask(&server, Method::GET, &format!("{MAPS}/none"), BOTH, None).await;
    assert_eq!((code, media.as_str()), (404, MEDIA_TYPE));
    let status = decode("meta/v1.Status", &body).unwrap();
    assert_eq!(
        (&status["kind"], &status["reason"], &status["code"]),
        (&json!("Status"), &json!("NotFound"), &json!(404))
    );
    let (code, media, _) = ask(&server, Method::GET, &format!("{MAPS}/none"), "application/yaml", None).await;
    assert_eq!((code, media.as_str()), (404, "application/yaml"));
}

#[tokio::test]
async fn tables_have_no_binary_form() {
    let server = Server::start().await;
    let table = "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io";
    let (code, ..) = ask(&server, Method::GET, MAPS, table, None).await;
    assert_eq!(code, 406);
    let both = format!("{table},application/json;as=Table;v=v1;g=meta.k8s.io");
    let (code, media, _) = ask(&server, Method::GET, MAPS, &both, None).await;
    assert_eq!((code, media.as_str()), (200, "application/json"));
}

#[tokio::test]
async fn definitions_of_kinds_have_a_binary_form() {
    const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    const TYPE: &str = "apiextensions/v1.CustomResourceDefinition";
    let server = Server::start().await;
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "size": {"type": "integer", "maximum": 5, "default": 3}, "any": {"type": "object", "additionalProperties": true}}}}});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "toys.shop.example"}, "spec": {"group": "shop.example", "scope": "Namespaced",
        "names": {"plural": "toys", "singular": "toy", "kind": "Toy", "listKind": "ToyList"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
    let body = Bytes::from(api::protobuf::encode(TYPE, &definition).unwrap());
    let request = Request::post(DEFINITIONS).header("content-type", MEDIA_TYPE).header("accept", BOTH);
    let response = server.api.client(admin()).oneshot(request.body(Full::new(body)).unwrap()).await.unwrap();
    assert_eq!(response.status(), 201);
    let created = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(decode(TYPE, &created).unwrap()["spec"]["names"]["kind"], "Toy");
    // It is the same as what JSON shows, and its kind is served with its defaults and bounds.
    let json = server.ask(Method::GET, &format!("{DEFINITIONS}/toys.shop.example"), None).await.body;
    assert_eq!(json["spec"]["versions"][0]["schema"]["openAPIV3Schema"], schema);
    let (code, media, list) = ask(&server, Method::GET, DEFINITIONS, BOTH, None).await;
    assert_eq!((code, media.as_str()), (200, MEDIA_TYPE));
    assert!(list.windows(28).any(|w| w == b"CustomResourceDefinitionList"), "{list:?}");
    let toys = "/apis/shop.example/v1/namespaces/default/toys";
    let served = async { while server.ask(Method::GET, toys, None).await.code != 200 {} };
    tokio::time::timeout(PATIENCE, served).await.expect("the kind is served");
    let toy =
        |size: Value| json!({"apiVersion": "shop.example/v1", "kind": "Toy", "metadata": {"name": "a"}, "spec": size});
    assert_eq!(server.ask(Method::POST, toys, Some(toy(json!({"size": 6})))).await.code, 422);
    assert_eq!(server.create(toys, toy(json!({}))).await["spec"]["size"], 3);
    // Objects of the kind itself have none, as upstream.
    let (code, media, _) = ask(&server, Method::GET, toys, BOTH, None).await;
    assert_eq!((code, media.as_str()), (200, "application/json"));
}

/// The word and the object of the first frame, and what comes after it.
fn frame(bytes: &[u8]) -> (String, Value, &[u8]) {
    let length = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
    let (event, rest) = bytes[4..].split_at(length);
    let word = String::from_utf8(event[2..2 + usize::from(event[1])].to_vec()).unwrap();
    let at = event.windows(4).position(|w| w == b"k8s\0").unwrap();
    let type_name = if word == "ERROR" { "meta/v1.Status" } else { "core/v1.ConfigMap" };
    (word, decode(type_name, &event[at..]).unwrap(), rest)
}

#[tokio::test]
async fn a_watch_is_a_stream_of_frames() {
    let server = Server::start().await;
    server.create(MAPS, config_map("a", "1")).await;
    let request = Request::get(format!(
        "{MAPS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    ))
    .header("accept", "application/vnd.kubernetes.protobuf;stream=watch,application/json;stream=watch")
    .body(Full::new(Bytes::new()))
    .unwrap();
    let response = server.api.client(admin()).oneshot(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/vnd.kubernetes.protobuf;stream=watch");
    let mut stream = response.into_body().into_data_stream();
    let mut seen = Vec::new();
    let mut words = Vec::new();
    while words.len() < 3 {
        let chunk = tokio::time::timeout(PATIENCE, stream.next()).await.expect("in time").unwrap().unwrap();
        seen.extend_from_slice(&chunk);
        let (word, object, rest) = frame(&seen);
        words.push((word, object["metadata"]["name"].clone(), object["metadata"]["annotations"].clone()));
        seen = rest.to_vec();
        if words.len() == 2 {
            server.create(MAPS, config_map("b", "1")).await;
        }
    }
    assert_eq!(words[0], ("ADDED".to_owned(), json!("a"), Value::Null));
    assert_eq!(words[1], ("BOOKMARK".to_owned(), json!(""), json!({"k8s.io/initial-events-end": "true"})));
    assert_eq!(words[2], ("ADDED".to_owned(), json!("b"), Value::Null));
}

#[tokio::test]
async fn a_watch_in_yaml_is_refused() {
    let server = Server::start().await;
    let (code, ..) = ask(&server, Method::GET, &format!("{MAPS}?watch=true"), "application/yaml", None).await;
    assert_eq!(code, 406);
}
