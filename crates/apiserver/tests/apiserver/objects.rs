//! What the server adds to objects and holds them to: managers, limits, quotas, and what of a pod can be changed.

use http::Method;
use serde_json::{Value, json};

use crate::support::{Answer, Server, admin, config_map, pod, set};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";

/// Asks as a program that calls itself so.
async fn ask_by(server: &Server, program: &str, method: Method, path: &str, body: Value) -> Answer {
    let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let headers = [("user-agent", program), ("content-type", kind)];
    let answer = server.ask_as(admin(), method, path, &headers, Some(body)).await;
    assert!(answer.code < 300, "{}", answer.body);
    answer
}

/// Manager, operation, subresource and fields of every entry.
fn managers(object: &Value) -> Vec<(String, String, String, Value)> {
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let list = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let show = |e: &Value| (text(e, "manager"), text(e, "operation"), text(e, "subresource"), e["fieldsV1"].clone());
    list.iter().map(show).collect()
}

/// The entry of a manager.
fn of<'a>(all: &'a [(String, String, String, Value)], manager: &str, subresource: &str) -> &'a Value {
    let found = all.iter().find(|entry| entry.0 == manager && entry.2 == subresource);
    &found.unwrap_or_else(|| panic!("{manager}/{subresource} is among {all:?}")).3
}

#[tokio::test]
async fn every_writer_manages_what_it_changed_and_nothing_that_the_server_added() {
    let server = Server::start().await;
    let sets = "/apis/apps/v1/namespaces/default/statefulsets";
    ask_by(&server, "maker/1.0 (linux)", Method::POST, sets, set("w", 1)).await;
    let path = format!("{sets}/w");
    ask_by(&server, "scaler/2", Method::PATCH, &format!("{path}/scale"), json!({"spec": {"replicas": 3}})).await;
    ask_by(&server, "runner", Method::PATCH, &format!("{path}/status"), json!({"status": {"replicas": 2}})).await;
    let labelled = ask_by(
        &server,
        "x",
        Method::PATCH,
        &format!("{path}?fieldManager=labels"),
        json!({"metadata": {"labels": {"a": "b"}}}),
    )
    .await;
    let all = managers(&labelled.body);
    assert!(all.iter().all(|entry| entry.1 == "Update"), "{all:?}");
    assert_eq!(of(&all, "scaler", "scale"), &json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(of(&all, "runner", "status"), &json!({"f:status": {"f:replicas": {}}}));
    assert_eq!(of(&all, "labels", ""), &json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}}));
    let maker = of(&all, "maker", "");
    assert!(maker["f:spec"]["f:template"]["f:spec"]["f:containers"]["k:{\"name\":\"main\"}"]["f:image"].is_object());
    assert!(maker["f:spec"].get("f:replicas").is_none(), "taken over by the scaler");
    assert!(maker.get("f:status").is_none(), "nobody wrote it at creation");
}

#[tokio::test]
async fn who_applies_a_scale_manages_it_and_others_conflict() {
    let server = Server::start().await;
    let sets = "/apis/apps/v1/namespaces/default/statefulsets";
    server.create(sets, set("w", 1)).await;
    let apply = async |manager: &str, replicas: i64, more: &str| {
        let body = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "w"}, "spec": {"replicas": replicas}});
        let path = format!("{sets}/w/scale?fieldManager={manager}{more}");
        server
            .ask_as(admin(), Method::PATCH, &path, &[("content-type", "application/apply-patch+yaml")], Some(body))
            .await
    };
    let refused = apply("a", 3, "").await;
    assert_eq!((refused.code, &refused.body["details"]["causes"][0]["field"]), (409, &json!(".spec.replicas")));
    let done = apply("a", 3, "&force=true").await;
    assert_eq!((done.code, &done.body["spec"]["replicas"]), (200, &json!(3)), "{}", done.body);
    assert_eq!(apply("b", 5, "").await.code, 409);
    let found = server.ask(Method::GET, &format!("{sets}/w"), None).await.body;
    assert_eq!(of(&managers(&found), "a", "scale"), &json!({"f:spec": {"f:replicas": {}}}));
}

#[tokio::test]
async fn managers_go_when_a_client_takes_them_off_and_stay_away() {
    let server = Server::start().await;
    let made = server.create(MAPS, config_map("a", "1")).await;
    assert_eq!(managers(&made)[0].0, "statefuld");
    let cleared = json!({"metadata": {"managedFields": [{}]}});
    let path = format!("{MAPS}/a");
    let gone = ask_by(&server, "x", Method::PATCH, &path, cleared).await;
    assert_eq!(gone.body["metadata"].get("managedFields"), None);
    let later = ask_by(&server, "x", Method::PATCH, &path, json!({"data": {"n": "1"}})).await;
    assert_eq!(later.body["metadata"].get("managedFields"), None);
}

#[tokio::test]
async fn a_quota_is_never_overdrawn_by_requests_at_once() {
    let server = Server::start().await;
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"configmaps": "3", "count/configmaps": "9"}}});
    server.create(QUOTAS, quota).await;
    let names: Vec<String> = (0..12).map(|n| format!("m{n}")).collect();
    let answers =
        futures::future::join_all(names.iter().map(|n| server.ask(Method::POST, MAPS, Some(config_map(n, "1"))))).await;
    let made = answers.iter().filter(|answer| answer.code == 201).count();
    assert_eq!(made, 3);
    let refused = answers.iter().find(|answer| answer.code != 201).unwrap();
    assert_eq!(refused.code, 403);
    let sentence =
        "is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=3, limited: configmaps=3";
    assert!(refused.body["message"].as_str().unwrap().ends_with(sentence), "{}", refused.body);
    let quota = server.ask(Method::GET, &format!("{QUOTAS}/q"), None).await.body;
    assert_eq!(quota["status"]["used"], json!({"configmaps": "3", "count/configmaps": "3"}));
    let dry = server.ask(Method::POST, &format!("{MAPS}?dryRun=All"), Some(config_map("dry", "1"))).await;
    assert_eq!(dry.code, 403);
}

#[tokio::test]
async fn pods_say_what_a_quota_bounds_and_are_counted_for_it() {
    let server = Server::start().await;
    server.create(PODS, pod("before")).await;
    let hard = json!({"requests.cpu": "1", "pods": "5"});
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": hard}});
    server.create(QUOTAS, quota).await;
    let silent = server.ask(Method::POST, PODS, Some(pod("silent"))).await;
    let message = "pods \"silent\" is forbidden: failed quota: q: must specify requests.cpu for: main";
    assert_eq!((silent.code, &silent.body["message"]), (403, &json!(message)));
    let mut asking = pod("asking");
    asking["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "600m"}});
    server.create(PODS, asking.clone()).await;
    let quota = server.ask(Method::GET, &format!("{QUOTAS}/q"), None).await.body;
    assert_eq!(quota["status"]["used"], json!({"pods": "2", "requests.cpu": "600m"}), "those from before are counted");
    asking["metadata"]["name"] = "more".into();
    let refused = server.ask(Method::POST, PODS, Some(asking)).await;
    let message = "pods \"more\" is forbidden: exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=600m, limited: requests.cpu=1";
    assert_eq!((refused.code, &refused.body["message"]), (403, &json!(message)));
}

#[tokio::test]
async fn limit_ranges_fill_in_and_refuse() {
    let server = Server::start().await;
    let limits = json!([{"type": "Container", "default": {"memory": "1Gi"}, "max": {"memory": "2Gi"}},
        {"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}}]);
    let range =
        json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": limits}});
    server.create("/api/v1/namespaces/default/limitranges", range).await;
    let made = server.create(PODS, pod("a")).await;
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({"limits": {"memory": "1Gi"}, "requests": {"memory": "1Gi"}})
    );
    let mut large = pod("b");
    large["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "3Gi"}});
    let refused = server.ask(Method::POST, PODS, Some(large)).await;
    let message = "pods \"b\" is forbidden: maximum memory usage per Container is 2Gi, but limit is 3Gi";
    assert_eq!((refused.code, &refused.body["message"]), (403, &json!(message)));
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}});
    let refused = server.ask(Method::POST, "/api/v1/namespaces/default/persistentvolumeclaims", Some(claim)).await;
    assert_eq!(refused.code, 403, "{}", refused.body);
}

#[tokio::test]
async fn a_claim_grows_only_where_its_class_allows_it() {
    let server = Server::start().await;
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    for (class, allows, code) in [("fixed", false, 403), ("growing", true, 200)] {
        let object = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": class},
            "provisioner": "a.b/c", "allowVolumeExpansion": allows});
        server.create("/apis/storage.k8s.io/v1/storageclasses", object).await;
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": class}, "spec": {
            "storageClassName": class, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        server.create(claims, claim).await;
        let path = format!("{claims}/{class}");
        ask_by(&server, "x", Method::PATCH, &format!("{path}/status"), json!({"status": {"phase": "Bound"}})).await;
        let headers = [("content-type", "application/merge-patch+json")];
        let larger = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
        let answer = server.ask_as(admin(), Method::PATCH, &path, &headers, Some(larger)).await;
        assert_eq!(answer.code, code, "{}", answer.body);
    }
}

#[tokio::test]
async fn only_the_ephemeral_containers_of_a_pod_are_written_through_their_subresource() {
    let server = Server::start().await;
    let mut changed = server.create(PODS, pod("a")).await;
    changed["spec"]["ephemeralContainers"] =
        json!([{"name": "debug", "image": "tool:1", "targetContainerName": "main"}]);
    changed["spec"]["containers"][0]["image"] = "other:1".into();
    changed["metadata"]["labels"] = json!({"no": "change"});
    let path = format!("{PODS}/a/ephemeralcontainers");
    let put = server.ask(Method::PUT, &path, Some(changed.clone())).await;
    assert_eq!(put.code, 200, "{}", put.body);
    assert_eq!(put.body["spec"]["ephemeralContainers"][0]["terminationMessagePolicy"], "File");
    assert_eq!(put.body["spec"]["containers"][0]["image"], "sample:1");
    assert_eq!((&put.body["metadata"]["labels"]["app"], &put.body["metadata"]["generation"]), (&json!("a"), &json!(2)));
    let mut without = put.body.clone();
    without["spec"]["ephemeralContainers"] = json!([]);
    let refused = server.ask(Method::PUT, &path, Some(without)).await;
    assert_eq!(refused.code, 422);
    assert!(refused.body["message"].as_str().unwrap().contains("may not be removed"), "{}", refused.body);
    let mut probing = put.body.clone();
    let more = json!({"name": "b", "image": "i", "ports": [{"containerPort": 1}], "targetContainerName": "none"});
    probing["spec"]["ephemeralContainers"] = json!([put.body["spec"]["ephemeralContainers"][0], more]);
    let refused = server.ask(Method::PUT, &path, Some(probing)).await.body;
    assert_eq!(
        refused["details"]["causes"].as_array().unwrap().iter().map(|c| c["field"].clone()).collect::<Vec<_>>(),
        ["spec.ephemeralContainers[1].targetContainerName", "spec.ephemeralContainers[1].ports"]
    );
}

#[tokio::test]
async fn a_pod_is_resized_in_cpu_and_memory_and_keeps_its_class() {
    let server = Server::start().await;
    let mut object = pod("a");
    object["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "1"}});
    server.create(PODS, object).await;
    let headers = [("content-type", "application/strategic-merge-patch+json")];
    let path = format!("{PODS}/a/resize");
    let patch = |resources: Value| json!({"spec": {"containers": [{"name": "main", "image": "other", "resources": resources}]}});
    let larger = patch(json!({"requests": {"cpu": "200m"}}));
    let done = server.ask_as(admin(), Method::PATCH, &path, &headers, Some(larger)).await;
    assert_eq!(done.code, 200, "{}", done.body);
    assert_eq!(done.body["spec"]["containers"][0]["resources"]["requests"]["cpu"], "200m");
    assert_eq!(done.body["spec"]["containers"][0]["image"], "sample:1");
    assert_eq!(done.body["metadata"]["generation"], 2);
    let guaranteed = patch(json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}));
    let refused = server.ask_as(admin(), Method::PATCH, &path, &headers, Some(guaranteed)).await;
    assert_eq!(refused.code, 422);
    assert!(refused.body["message"].as_str().unwrap().contains("Pod QOS Class may not change"), "{}", refused.body);
    let removed = patch(json!({"limits": null}));
    let refused = server.ask_as(admin(), Method::PATCH, &path, &headers, Some(removed)).await;
    assert!(
        refused.body["message"].as_str().unwrap().contains("resource limits cannot be removed"),
        "{}",
        refused.body
    );
}

#[tokio::test]
async fn options_of_writes_are_checked() {
    let server = Server::start().await;
    server.create(MAPS, config_map("a", "1")).await;
    let long = "m".repeat(129);
    let refused = server.ask(Method::POST, &format!("{MAPS}?fieldManager={long}"), Some(config_map("b", "1"))).await;
    assert_eq!((refused.code, &refused.body["details"]["causes"][0]["field"]), (422, &json!("fieldManager")));
    let headers = [("content-type", "application/merge-patch+json")];
    let path = format!("{MAPS}/a?force=true");
    let refused = server.ask_as(admin(), Method::PATCH, &path, &headers, Some(json!({}))).await;
    assert_eq!((refused.code, &refused.body["details"]["causes"][0]["field"]), (422, &json!("force")));
    let other = json!({"metadata": {"uid": "00000000-1111-2222-3333-444444444444"}});
    let refused = server.ask_as(admin(), Method::PATCH, &format!("{MAPS}/a"), &headers, Some(other)).await;
    assert_eq!((refused.code, &refused.body["details"]["causes"][0]["field"]), (422, &json!("metadata.uid")));
}
