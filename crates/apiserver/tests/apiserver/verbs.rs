//! The verbs through the service, without a socket.

use http::Method;
use serde_json::json;

use crate::support::{Server, admin, config_map, pod, set};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn what_is_created_is_read_listed_and_deleted() {
    let server = Server::start().await;
    let created = server.create(MAPS, config_map("a", "1")).await;
    assert_eq!(created["kind"], "ConfigMap");
    let version = created["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let read = server.ask(Method::GET, &format!("{MAPS}/a"), None).await;
    assert_eq!((read.code, &read.body), (200, &created));
    let list = server.ask(Method::GET, &format!("{MAPS}?labelSelector=x%3D1"), None).await.body;
    assert_eq!(list["kind"], "ConfigMapList");
    assert_eq!(list["items"][0]["metadata"]["resourceVersion"], version);
    assert!(list["items"][0].get("kind").is_none());
    let none = server.ask(Method::GET, &format!("{MAPS}?labelSelector=x%3D2"), None).await.body;
    assert_eq!(none["items"], json!([]));
    let gone = server.ask(Method::DELETE, &format!("{MAPS}/a"), None).await;
    assert_eq!((gone.code, &gone.body["status"]), (200, &json!("Success")));
    assert_eq!(server.ask(Method::GET, &format!("{MAPS}/a"), None).await.code, 404);
}

#[tokio::test]
async fn a_second_object_of_the_name_is_refused() {
    let server = Server::start().await;
    server.create(MAPS, config_map("a", "1")).await;
    let again = server.ask(Method::POST, MAPS, Some(config_map("a", "1"))).await;
    assert_eq!((again.code, &again.body["reason"]), (409, &json!("AlreadyExists")));
}

#[tokio::test]
async fn an_update_from_an_old_version_conflicts() {
    let server = Server::start().await;
    let mut map = server.create(MAPS, config_map("a", "1")).await;
    map["data"]["k"] = "w".into();
    let first = server.ask(Method::PUT, &format!("{MAPS}/a"), Some(map.clone())).await;
    assert_eq!(first.code, 200, "{}", first.body);
    let second = server.ask(Method::PUT, &format!("{MAPS}/a"), Some(map)).await;
    assert_eq!((second.code, &second.body["reason"]), (409, &json!("Conflict")));
}

#[tokio::test]
async fn an_update_without_change_keeps_the_version() {
    let server = Server::start().await;
    let map = server.create(MAPS, config_map("a", "1")).await;
    let same = server.ask(Method::PUT, &format!("{MAPS}/a"), Some(map.clone())).await;
    assert_eq!(same.body["metadata"]["resourceVersion"], map["metadata"]["resourceVersion"]);
}

#[tokio::test]
async fn patches_of_three_notations_are_applied() {
    let server = Server::start().await;
    server.create(MAPS, config_map("a", "1")).await;
    for (media, patch, expected) in [
        ("application/merge-patch+json", json!({"data": {"m": "1"}}), json!({"k": "v", "m": "1"})),
        ("application/json-patch+json", json!([{"op": "remove", "path": "/data/k"}]), json!({"m": "1"})),
        ("application/strategic-merge-patch+json", json!({"data": {"s": "1"}}), json!({"m": "1", "s": "1"})),
    ] {
        let answer =
            server.ask_as(admin(), Method::PATCH, &format!("{MAPS}/a"), &[("content-type", media)], Some(patch)).await;
        assert_eq!((answer.code, &answer.body["data"]), (200, &expected), "{media}: {}", answer.body);
    }
}

#[tokio::test]
async fn what_a_manager_wants_is_applied_and_conflicts_are_told() {
    let server = Server::start().await;
    let media = [("content-type", "application/apply-patch+yaml")];
    let want =
        |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": value}});
    let apply = async |manager: &str, value: &str, force: bool| {
        let path = format!("{MAPS}/a?fieldManager={manager}&force={force}");
        server.ask_as(admin(), Method::PATCH, &path, &media, Some(want(value))).await
    };
    let created = apply("one", "1", false).await;
    assert_eq!(
        (created.code, &created.body["metadata"]["managedFields"][0]["manager"]),
        (201, &json!("one")),
        "{}",
        created.body
    );
    let same = apply("one", "1", false).await;
    assert_eq!(same.body["metadata"]["resourceVersion"], created.body["metadata"]["resourceVersion"]);
    let conflict = apply("two", "2", false).await;
    assert_eq!((conflict.code, &conflict.body["reason"]), (409, &json!("Conflict")), "{}", conflict.body);
    let forced = apply("two", "2", true).await;
    assert_eq!((forced.code, &forced.body["data"]["k"]), (200, &json!("2")), "{}", forced.body);
    let nobody = server.ask_as(admin(), Method::PATCH, &format!("{MAPS}/a"), &media, Some(want("3"))).await;
    assert_eq!(nobody.code, 422);
}

#[tokio::test]
async fn names_are_generated() {
    let server = Server::start().await;
    let mut map = config_map("", "1");
    map["metadata"] = json!({"generateName": "map-"});
    let one = server.create(MAPS, map.clone()).await;
    let two = server.create(MAPS, map).await;
    assert!(one["metadata"]["name"].as_str().unwrap().starts_with("map-"));
    assert_ne!(one["metadata"]["name"], two["metadata"]["name"]);
}

#[tokio::test]
async fn a_dry_run_writes_nothing() {
    let server = Server::start().await;
    let answer = server.ask(Method::POST, &format!("{MAPS}?dryRun=All"), Some(config_map("a", "1"))).await;
    assert_eq!(answer.code, 201);
    assert!(answer.body["metadata"].get("resourceVersion").is_none());
    assert_eq!(server.ask(Method::GET, &format!("{MAPS}/a"), None).await.code, 404);
}

#[tokio::test]
async fn pages_of_a_list_are_from_one_state() {
    let server = Server::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        server.create(MAPS, config_map(name, "1")).await;
    }
    let first = server.ask(Method::GET, &format!("{MAPS}?limit=2"), None).await.body;
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    server.ask(Method::DELETE, &format!("{MAPS}/d"), None).await;
    server.create(MAPS, config_map("bb", "1")).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let rest = server.ask(Method::GET, &format!("{MAPS}?limit=9&continue={token}"), None).await.body;
    let names: Vec<&str> =
        rest["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["c", "d", "e"]);
    assert_eq!(rest["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
}

#[tokio::test]
async fn nothing_is_created_in_a_namespace_that_is_not_there_or_going() {
    let server = Server::start().await;
    let none = server.ask(Method::POST, "/api/v1/namespaces/x/configmaps", Some(config_map("a", "1"))).await;
    assert_eq!((none.code, &none.body["details"]["kind"]), (404, &json!("namespaces")));
    server.create("/api/v1/namespaces", json!({"metadata": {"name": "x"}})).await;
    let deleted = server.ask(Method::DELETE, "/api/v1/namespaces/x", None).await;
    assert_eq!(deleted.body["status"]["phase"], "Terminating", "{}", deleted.body);
    let going = server.ask(Method::POST, "/api/v1/namespaces/x/configmaps", Some(config_map("a", "1"))).await;
    assert_eq!((going.code, &going.body["details"]["causes"][0]["reason"]), (403, &json!("NamespaceTerminating")));
    let mut namespace = deleted.body;
    namespace["spec"]["finalizers"] = json!([]);
    let finalized = server.ask(Method::PUT, "/api/v1/namespaces/x/finalize", Some(namespace)).await;
    assert_eq!(finalized.code, 200, "{}", finalized.body);
    assert_eq!(server.ask(Method::GET, "/api/v1/namespaces/x", None).await.code, 404);
}

#[tokio::test]
async fn a_finalizer_keeps_an_object_until_it_is_taken_off() {
    let server = Server::start().await;
    let mut map = config_map("a", "1");
    map["metadata"]["finalizers"] = json!(["example.com/hold"]);
    server.create(MAPS, map).await;
    let marked = server.ask(Method::DELETE, &format!("{MAPS}/a"), None).await.body;
    assert!(marked["metadata"]["deletionTimestamp"].is_string(), "{marked}");
    let patch = json!({"metadata": {"finalizers": null}});
    let merge = [("content-type", "application/merge-patch+json")];
    server.ask_as(admin(), Method::PATCH, &format!("{MAPS}/a"), &merge, Some(patch)).await;
    assert_eq!(server.ask(Method::GET, &format!("{MAPS}/a"), None).await.code, 404);
}

#[tokio::test]
async fn propagation_policies_are_finalizers() {
    let server = Server::start().await;
    for (policy, finalizer) in [("Orphan", "orphan"), ("Foreground", "foregroundDeletion")] {
        server.create(MAPS, config_map("a", "1")).await;
        let path = format!("{MAPS}/a");
        let marked = server.ask(Method::DELETE, &path, Some(json!({"propagationPolicy": policy}))).await.body;
        assert_eq!(marked["metadata"]["finalizers"], json!([finalizer]), "{marked}");
        let merge = [("content-type", "application/merge-patch+json")];
        let patch = json!({"metadata": {"finalizers": null}});
        server.ask_as(admin(), Method::PATCH, &path, &merge, Some(patch)).await;
    }
    let wrong = server.ask(Method::DELETE, &format!("{MAPS}/a"), Some(json!({"propagationPolicy": "Maybe"}))).await;
    assert_eq!(wrong.code, 422);
}

#[tokio::test]
async fn a_delete_with_another_uid_is_refused() {
    let server = Server::start().await;
    server.create(MAPS, config_map("a", "1")).await;
    let body = json!({"preconditions": {"uid": "00000000-1111-2222-3333-444444444444"}});
    assert_eq!(server.ask(Method::DELETE, &format!("{MAPS}/a"), Some(body)).await.code, 409);
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let server = Server::start().await;
    server.create(MAPS, config_map("a", "1")).await;
    server.create(MAPS, config_map("b", "2")).await;
    let answer = server.ask(Method::DELETE, &format!("{MAPS}?labelSelector=x%3D1"), None).await;
    assert_eq!(answer.code, 200);
    assert_eq!(server.ask(Method::GET, &format!("{MAPS}/a"), None).await.code, 404);
    assert_eq!(server.ask(Method::GET, &format!("{MAPS}/b"), None).await.code, 200);
}

#[tokio::test]
async fn scale_changes_replicas_and_nothing_else() {
    let server = Server::start().await;
    let sets = "/apis/apps/v1/namespaces/default/statefulsets";
    server.create(sets, set("web", 3)).await;
    let scale = server.ask(Method::GET, &format!("{sets}/web/scale"), None).await.body;
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(3)));
    assert_eq!(scale["status"]["selector"], "app=web");
    let merge = [("content-type", "application/merge-patch+json")];
    let patch = json!({"spec": {"replicas": 5}});
    let path = format!("{sets}/web/scale");
    let patched = server.ask_as(admin(), Method::PATCH, &path, &merge, Some(patch)).await;
    assert_eq!((patched.code, &patched.body["spec"]["replicas"]), (200, &json!(5)), "{}", patched.body);
    let set = server.ask(Method::GET, &format!("{sets}/web"), None).await.body;
    assert_eq!((&set["spec"]["replicas"], &set["metadata"]["generation"]), (&json!(5), &json!(2)));
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let server = Server::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    server.create(pods, pod("a")).await;
    let merge = [("content-type", "application/merge-patch+json")];
    let patch = json!({"metadata": {"labels": {"n": "1"}}, "status": {"phase": "Running"}});
    let of = |path: String| server.ask_as(admin(), Method::PATCH, path_of(path), &merge, Some(patch.clone()));
    let plain = of(format!("{pods}/a")).await.body;
    assert_eq!((&plain["metadata"]["labels"]["n"], &plain["status"]["phase"]), (&json!("1"), &json!("Pending")));
    let status = of(format!("{pods}/a/status")).await.body;
    assert_eq!(status["status"]["phase"], "Running");
}

/// Keeps a path for the length of a request.
fn path_of(path: String) -> &'static str {
    Box::leak(path.into_boxed_str())
}

#[tokio::test]
async fn unknown_places_and_methods_have_their_own_answers() {
    let server = Server::start().await;
    for (method, path, code) in [
        (Method::GET, "/api/v1/gadgets", 404),
        (Method::GET, "/apis/nope/v1/things", 404),
        (Method::GET, "/apis/apps/v1/namespaces/default/daemonsets", 404),
        (Method::PUT, "/api/v1/namespaces/default/pods", 405),
        (Method::POST, "/api/v1/pods", 405),
        (Method::GET, "/api/v1/namespaces/default/nodes", 404),
        (Method::DELETE, "/version", 405),
    ] {
        assert_eq!(server.ask(method.clone(), path, None).await.code, code, "{method} {path}");
    }
}

#[tokio::test]
async fn who_has_no_role_is_refused_and_told() {
    let server = Server::start().await;
    let nobody = statefuld_apiserver::auth::Identity::user("jane", &[]);
    let answer = server.ask_as(nobody, Method::GET, MAPS, &[], None).await;
    assert_eq!(answer.code, 403);
    let expected = "configmaps is forbidden: User \"jane\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\"";
    assert_eq!(answer.body["message"], expected);
}

#[tokio::test]
async fn a_role_counts_as_soon_as_it_is_answered() {
    let server = Server::start().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    server
        .create(
            &format!("{rbac}/rolebindings"),
            json!({"metadata": {"name": "jane"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]}),
        )
        .await;
    let jane = statefuld_apiserver::auth::Identity::user("jane", &[]);
    assert_eq!(server.ask_as(jane, Method::GET, MAPS, &[], None).await.code, 200);
}
