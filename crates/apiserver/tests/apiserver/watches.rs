//! Watches, by kube's own client and by hand.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http::{Method, Request};
use http_body_util::{BodyExt, Empty};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{PATIENCE, Server, admin, config_map, pod};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// An open watch, read line by line.
struct Lines {
    body: statefuld_apiserver::Body,
    rest: Vec<u8>,
}

impl Lines {
    async fn open(server: &Server, path: &str) -> Self {
        let request = Request::get(path).body(Empty::<Bytes>::new()).unwrap();
        let response = server.api.client(admin()).oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        Self { body: response.into_body(), rest: Vec::new() }
    }

    /// The next event, or `None` at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.unwrap()?.unwrap();
            self.rest.extend_from_slice(&frame.into_data().unwrap());
        }
    }

    /// The next event in brief.
    async fn brief(&mut self) -> String {
        let event = self.next().await.unwrap();
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
        format!("{} {name}", event["type"].as_str().unwrap())
    }
}

#[tokio::test]
async fn kubes_client_creates_watches_patches_and_deletes() {
    let server = Server::start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(server.admin());
    let watch = maps.watch(&WatchParams::default(), "0").await.unwrap();
    let mut watch = watch.boxed();
    let map: ConfigMap = serde_json::from_value(config_map("a", "1")).unwrap();
    maps.create(&PostParams::default(), &map).await.unwrap();
    let patch = Patch::Merge(json!({"data": {"k": "w"}}));
    maps.patch("a", &PatchParams::default(), &patch).await.unwrap();
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let event = tokio::time::timeout(PATIENCE, watch.try_next()).await.unwrap().unwrap().unwrap();
        seen.push(match event {
            WatchEvent::Added(_) => "added",
            WatchEvent::Modified(_) => "modified",
            WatchEvent::Deleted(_) => "deleted",
            _ => "other",
        });
    }
    assert_eq!(seen, ["added", "modified", "deleted"]);
}

#[tokio::test]
async fn a_watch_from_a_version_replays_what_came_after() {
    let server = Server::start().await;
    let first = server.create(MAPS, config_map("a", "1")).await;
    server.create(MAPS, config_map("b", "1")).await;
    let version = first["metadata"]["resourceVersion"].as_str().unwrap();
    let mut lines = Lines::open(&server, &format!("{MAPS}?watch=1&resourceVersion={version}")).await;
    assert_eq!(lines.brief().await, "ADDED b");
    server.ask(Method::DELETE, &format!("{MAPS}/a"), None).await;
    let deleted = lines.next().await.unwrap();
    assert_eq!(deleted["type"], "DELETED");
    let at = |v: &Value| v["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(at(&deleted["object"]) > at(&first));
}

#[tokio::test]
async fn a_watch_survives_a_restart_of_the_server() {
    let server = Server::start().await;
    let first = server.create(MAPS, config_map("a", "1")).await;
    server.create(MAPS, config_map("b", "1")).await;
    let version = first["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let Server { api, store, folder } = server;
    drop(api);
    let options = statefuld_apiserver::Options::new(store.clone(), ambient::Ambient::system());
    let api = statefuld_apiserver::ApiServer::start(options).await.unwrap();
    let server = Server { api, store, folder };
    let mut lines = Lines::open(&server, &format!("{MAPS}?watch=1&resourceVersion={version}")).await;
    assert_eq!(lines.brief().await, "ADDED b");
}

#[tokio::test]
async fn leaving_and_entering_a_selector_is_deletion_and_addition() {
    let server = Server::start().await;
    let mut lines = Lines::open(&server, &format!("{MAPS}?watch=1&labelSelector=x%3D1")).await;
    server.create(MAPS, config_map("a", "1")).await;
    assert_eq!(lines.brief().await, "ADDED a");
    let merge = [("content-type", "application/merge-patch+json")];
    for (label, expected) in [("2", "DELETED a"), ("1", "ADDED a")] {
        let patch = json!({"metadata": {"labels": {"x": label}}});
        server.ask_as(admin(), Method::PATCH, &format!("{MAPS}/a"), &merge, Some(patch)).await;
        assert_eq!(lines.brief().await, expected);
    }
}

#[tokio::test]
async fn a_node_sees_its_own_pods_only() {
    let server = Server::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    let mut lines = Lines::open(&server, "/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn1").await;
    for (name, node) in [("a", "n2"), ("b", "n1")] {
        let mut object = pod(name);
        object["spec"]["nodeName"] = node.into();
        server.create(pods, object).await;
    }
    assert_eq!(lines.brief().await, "ADDED b");
}

#[tokio::test]
async fn a_pod_leaves_the_unbound_when_it_is_bound() {
    let server = Server::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    let mut unbound = Lines::open(&server, "/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3D").await;
    let mut bound = Lines::open(&server, "/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn1").await;
    server.create(pods, pod("a")).await;
    assert_eq!(unbound.brief().await, "ADDED a");
    server.create(&format!("{pods}/a/binding"), json!({"target": {"kind": "Node", "name": "n1"}})).await;
    assert_eq!(unbound.brief().await, "DELETED a");
    assert_eq!(bound.brief().await, "ADDED a");
}

#[tokio::test]
async fn initial_events_end_with_a_marked_bookmark() {
    let server = Server::start().await;
    server.create(MAPS, config_map("a", "1")).await;
    let path =
        format!("{MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true");
    let mut lines = Lines::open(&server, &path).await;
    // The server's own first config maps, if there are any, come as well.
    let mut seen = Vec::new();
    let end = loop {
        let event = lines.next().await.unwrap();
        if event["type"] == "BOOKMARK" {
            break event;
        }
        seen.push(event["object"]["metadata"]["name"].as_str().unwrap().to_owned());
    };
    assert!(seen.contains(&"a".to_owned()));
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
}

#[tokio::test]
async fn a_watch_ends_at_its_time_with_a_bookmark() {
    let server = Server::start().await;
    let path = format!("{MAPS}?watch=1&resourceVersion=0&timeoutSeconds=1&allowWatchBookmarks=true");
    let mut lines = Lines::open(&server, &path).await;
    assert_eq!(lines.next().await.unwrap()["type"], "BOOKMARK");
    assert!(lines.next().await.is_none());
}

#[tokio::test]
async fn a_watch_from_before_all_memory_is_told_so() {
    let server = Server::start().await;
    for n in 0..20 {
        server.create(MAPS, config_map(&format!("m{n}"), "1")).await;
    }
    // The memory of one kind is bounded; a version of another store is older than all of it.
    let newest = server.ask(Method::GET, MAPS, None).await.body["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse::<u64>()
        .unwrap();
    store::Store::compact(&*server.store, newest).await.unwrap();
    let Server { api, store, folder } = server;
    drop(api);
    let options = statefuld_apiserver::Options::new(store.clone(), ambient::Ambient::system());
    let server = Server { api: statefuld_apiserver::ApiServer::start(options).await.unwrap(), store, folder };
    let mut lines = Lines::open(&server, &format!("{MAPS}?watch=1&resourceVersion=1")).await;
    let event = lines.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
}

#[tokio::test]
async fn a_slow_watcher_is_dropped_and_told_and_slows_nobody() {
    let server = Server::start_with(|options| options.limits.watch_buffer = 4).await;
    let mut slow = Lines::open(&server, &format!("{MAPS}?watch=1&labelSelector=x%3D1")).await;
    for n in 0..20 {
        server.create(MAPS, config_map(&format!("m{n}"), "1")).await;
    }
    let mut added = 0;
    loop {
        let event = slow.next().await.unwrap();
        if event["type"] == "ERROR" {
            assert_eq!(event["object"]["code"], 410);
            break;
        }
        added += 1;
    }
    assert!(added < 20);
    assert!(slow.next().await.is_none());
}

#[tokio::test]
async fn a_reflector_follows_pods() {
    let server = Server::start().await;
    let pods: Api<Pod> = Api::all(server.admin());
    let config = kube::runtime::watcher::Config::default().streaming_lists();
    let mut events = kube::runtime::watcher(pods, config).boxed();
    server.create("/api/v1/namespaces/default/pods", pod("a")).await;
    loop {
        let event = tokio::time::timeout(PATIENCE, events.try_next()).await.unwrap().unwrap().unwrap();
        let found = match event {
            kube::runtime::watcher::Event::Apply(p) | kube::runtime::watcher::Event::InitApply(p) => p.metadata.name,
            _ => None,
        };
        if found.as_deref() == Some("a") {
            break;
        }
    }
}
