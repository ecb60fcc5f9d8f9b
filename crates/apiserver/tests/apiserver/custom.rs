//! Custom kinds through the service: definitions come, their objects are served like any others, and both go.

use std::collections::BTreeSet;

use ambient::Ambient;
use http::Method;
use serde_json::{Value, json};
use statefuld_apiserver::auth::Identity;
use statefuld_apiserver::{ApiServer, Options};

use crate::support::{Answer, PATIENCE, Server, admin};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const TOYS: &str = "/apis/shop.example/v1/namespaces/default/toys";
const MERGE: &[(&str, &str)] = &[("Content-Type", "application/merge-patch+json")];
const APPLY: &[(&str, &str)] = &[("Content-Type", "application/apply-patch+yaml")];

/// The schema of a toy.
fn schema() -> Value {
    json!({"type": "object", "properties": {
        "spec": {"type": "object", "required": ["size"], "properties": {
            "size": {"type": "integer", "minimum": 1, "maximum": 10},
            "color": {"type": "string", "enum": ["red", "blue"], "default": "red"},
            "replicas": {"type": "integer", "default": 1},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "port": {"x-kubernetes-int-or-string": true},
            "maybe": {"type": "string", "nullable": true},
            "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"],
                "items": {"type": "object", "required": ["id"], "properties": {
                    "id": {"type": "string"}, "n": {"type": "integer", "default": 7}}}}}},
        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "phase": {"type": "string"},
            "selector": {"type": "string"}}}}})
}

/// A definition of toys.
fn toys() -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "toys.shop.example"},
        "spec": {"group": "shop.example", "scope": "Namespaced",
            "names": {"plural": "toys", "kind": "Toy", "shortNames": ["ty"], "categories": ["all"]},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema()},
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas",
                    "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}},
                "selectableFields": [{"jsonPath": ".spec.color"}],
                "additionalPrinterColumns": [
                    {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
                    {"name": "Color", "type": "string", "jsonPath": ".spec.color", "priority": 1},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]}]}})
}

/// A toy.
fn toy(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "shop.example/v1", "kind": "Toy", "metadata": {"name": name}, "spec": spec})
}

/// Asks again until the answer is as wanted.
async fn until(server: &Server, path: &str, wanted: impl Fn(&Answer) -> bool) -> Answer {
    let ask = async {
        loop {
            let answer = server.ask(Method::GET, path, None).await;
            if wanted(&answer) {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, ask).await.expect("in time")
}

/// Whether a condition of a definition is so.
fn is(answer: &Answer, kind: &str, status: &str) -> bool {
    let conditions = answer.body["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == kind && c["status"] == status)
}

/// Creates a definition and waits until it is established.
async fn establish(server: &Server, definition: Value) {
    let path = format!("{DEFINITIONS}/{}", definition["metadata"]["name"].as_str().unwrap());
    server.create(DEFINITIONS, definition).await;
    until(server, &path, |answer| is(answer, "Established", "True")).await;
}

/// Sends a body with a content type.
async fn send(server: &Server, method: Method, path: &str, headers: &[(&str, &str)], body: Value) -> Answer {
    server.ask_as(admin(), method, path, headers, Some(body)).await
}

#[tokio::test]
async fn who_reads_established_can_use_the_kind_at_once() {
    let server = Server::start().await;
    establish(&server, toys()).await;
    let definition = server.ask(Method::GET, &format!("{DEFINITIONS}/toys.shop.example"), None).await.body;
    assert_eq!(definition["spec"]["names"]["listKind"], "ToyList");
    assert_eq!(definition["spec"]["conversion"], json!({"strategy": "None"}));
    assert_eq!(definition["status"]["acceptedNames"]["singular"], "toy");
    assert_eq!(definition["status"]["storedVersions"], json!(["v1"]));
    let created = server
        .create(
            TOYS,
            toy(
                "t",
                json!({"size": 3, "maybe": null, "color": null, "bogus": 1,
        "free": {"any": [1]}, "parts": [{"id": "a", "junk": 1}]}),
            ),
        )
        .await;
    assert_eq!(
        created["spec"],
        json!({"size": 3, "maybe": null, "color": "red", "replicas": 1, "free": {"any": [1]},
        "parts": [{"id": "a", "n": 7}]})
    );
    assert_eq!(created["metadata"]["generation"], 1);
    let list = server.ask(Method::GET, &format!("{TOYS}?fieldSelector=spec.color%3Dred"), None).await.body;
    assert_eq!((&list["kind"], &list["items"][0]), (&json!("ToyList"), &created));
    let none = server.ask(Method::GET, &format!("{TOYS}?fieldSelector=spec.color%3Dblue"), None).await.body;
    assert_eq!(none["items"], json!([]));
}

#[tokio::test]
async fn objects_that_break_the_schema_are_refused_with_path_and_rule() {
    let server = Server::start().await;
    establish(&server, toys()).await;
    for (spec, message) in [
        (json!({"size": 0}), "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"),
        (
            json!({"size": "3"}),
            "spec.size: Invalid value: \"string\": spec.size in body must be of type integer: \"string\"",
        ),
        (
            json!({"size": 3, "color": "green"}),
            "spec.color: Unsupported value: \"green\": supported values: \"red\", \"blue\"",
        ),
        (json!({"size": null}), "spec.size: Required value"),
        (json!({"size": 3, "tags": ["a", "a"]}), "spec.tags[1]: Duplicate value: \"a\""),
        (json!({"size": 3, "parts": [{"id": "a"}, {"id": "a"}]}), "spec.parts[1]: Duplicate value: {\"id\":\"a\"}"),
        (
            json!({"size": 3, "port": true}),
            "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
        ),
        (json!({"size": 3, "replicas": -1}), ".spec.replicas: Invalid value: -1: should be a non-negative integer"),
    ] {
        let answer = server.ask(Method::POST, TOYS, Some(toy("t", spec))).await;
        let expected = format!("Toy.shop.example \"t\" is invalid: {message}");
        assert_eq!((answer.code, &answer.body["message"]), (422, &json!(expected)));
    }
    let strict = format!("{TOYS}?fieldValidation=Strict");
    let answer = server.ask(Method::POST, &strict, Some(toy("t", json!({"size": 3, "bogus": 1})))).await;
    let expected =
        "Toy in version \"v1\" cannot be handled as a Toy: strict decoding error: unknown field \"spec.bogus\"";
    assert_eq!((answer.code, &answer.body["message"]), (400, &json!(expected)));
}

#[tokio::test]
async fn status_and_scale_are_written_apart() {
    let server = Server::start().await;
    establish(&server, toys()).await;
    server.create(TOYS, toy("t", json!({"size": 3, "replicas": 2}))).await;
    let one = format!("{TOYS}/t");
    let body = json!({"spec": {"size": 9}, "metadata": {"labels": {"l": "1"}}, "status": {"phase": "on", "replicas": 1, "selector": "a=b"}});
    let status = send(&server, Method::PATCH, &format!("{one}/status"), MERGE, body).await.body;
    assert_eq!((&status["spec"]["size"], &status["status"]["phase"]), (&json!(3), &json!("on")));
    assert_eq!((&status["metadata"]["generation"], &status["metadata"]["labels"]), (&json!(1), &Value::Null));
    let scale = send(&server, Method::PATCH, &format!("{one}/scale"), MERGE, json!({"spec": {"replicas": 5}})).await;
    assert_eq!(
        (&scale.body["spec"], &scale.body["status"]),
        (&json!({"replicas": 5}), &json!({"replicas": 1, "selector": "a=b"}))
    );
    let read = server.ask(Method::GET, &one, None).await.body;
    assert_eq!((&read["spec"]["replicas"], &read["metadata"]["generation"]), (&json!(5), &json!(2)));
    let wrong =
        send(&server, Method::PATCH, &format!("{one}/status"), MERGE, json!({"status": {"replicas": "x"}})).await;
    let expected = "Toy.shop.example \"t\" is invalid: [status.replicas: Invalid value: \"string\": status.replicas in body must be of type integer: \"string\", .status.replicas: Invalid value: 0: .status.replicas accessor error: x is of the type string, expected int64]";
    assert_eq!((wrong.code, &wrong.body["message"]), (422, &json!(expected)));
}

#[tokio::test]
async fn tables_show_the_columns_of_the_definition() {
    let server = Server::start().await;
    establish(&server, toys()).await;
    server.create(TOYS, toy("t", json!({"size": 3}))).await;
    let accept = [("Accept", "application/json;as=Table;g=meta.k8s.io;v=v1")];
    let table = server.ask_as(admin(), Method::GET, TOYS, &accept, None).await.body;
    let names: Vec<&str> =
        table["columnDefinitions"].as_array().unwrap().iter().filter_map(|c| c["name"].as_str()).collect();
    assert_eq!(names, ["Name", "Size", "Color", "Age"]);
    assert_eq!(table["columnDefinitions"][2]["priority"], 1);
    assert_eq!(table["rows"][0]["cells"].as_array().unwrap()[..3], [json!("t"), json!(3), json!("red")]);
}

#[tokio::test]
async fn appliers_share_a_keyed_list_and_strategic_patches_are_refused() {
    let server = Server::start().await;
    establish(&server, toys()).await;
    let path = |manager: &str| format!("{TOYS}/t?fieldManager={manager}");
    let first = send(
        &server,
        Method::PATCH,
        &path("alice"),
        APPLY,
        toy("t", json!({"size": 3, "parts": [{"id": "a"}], "free": {"x": {"y": 1}}})),
    )
    .await;
    assert_eq!(first.code, 201, "{}", first.body);
    let mut second = toy("t", json!({"parts": [{"id": "b"}], "free": {"x": {"z": 2}}}));
    let answer = send(&server, Method::PATCH, &path("bob"), APPLY, second.clone()).await;
    assert_eq!(answer.code, 200, "{}", answer.body);
    assert_eq!(answer.body["spec"]["parts"], json!([{"id": "a", "n": 7}, {"id": "b", "n": 7}]));
    assert_eq!(answer.body["spec"]["free"], json!({"x": {"y": 1, "z": 2}}));
    second["spec"] = json!({"size": 4});
    let conflict = send(&server, Method::PATCH, &path("bob"), APPLY, second.clone()).await;
    assert_eq!((conflict.code, &conflict.body["details"]["causes"][0]["field"]), (409, &json!(".spec.size")));
    second["spec"] = json!({"bogus": 4});
    let unknown = send(&server, Method::PATCH, &path("bob"), APPLY, second).await;
    assert!(
        unknown.body["message"].as_str().unwrap().ends_with(".spec.bogus: field not declared in schema"),
        "{}",
        unknown.body
    );
    let strategic = [("Content-Type", "application/strategic-merge-patch+json")];
    assert_eq!(send(&server, Method::PATCH, &format!("{TOYS}/t"), &strategic, json!({})).await.code, 415);
}

#[tokio::test]
async fn versions_differ_in_their_apiversion_and_each_has_its_schema() {
    let server = Server::start().await;
    let mut definition = toys();
    definition["spec"]["scope"] = "Cluster".into();
    let mut old = definition["spec"]["versions"][0].clone();
    old["name"] = "v1alpha1".into();
    old["storage"] = false.into();
    old["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["speed"] =
        json!({"type": "integer", "default": 5});
    definition["spec"]["versions"].as_array_mut().unwrap().push(old);
    establish(&server, definition).await;
    let group = server.ask(Method::GET, "/apis/shop.example", None).await.body;
    assert_eq!(
        (&group["preferredVersion"]["version"], &group["versions"][1]["version"]),
        (&json!("v1"), &json!("v1alpha1"))
    );
    let base = "/apis/shop.example";
    server.create(&format!("{base}/v1/toys"), toy("t", json!({"size": 3}))).await;
    let other = server.ask(Method::GET, &format!("{base}/v1alpha1/toys/t"), None).await.body;
    assert_eq!((&other["apiVersion"], &other["spec"]["speed"]), (&json!("shop.example/v1alpha1"), &json!(5)));
    let list = server.ask(Method::GET, &format!("{base}/v1alpha1/toys"), None).await.body;
    assert_eq!(list["items"][0], other);
    let stored = server.ask(Method::GET, &format!("{base}/v1/toys/t"), None).await.body;
    assert_eq!(stored["spec"].get("speed"), None);
    let nowhere = server.ask(Method::GET, &format!("{base}/v1/namespaces/default/toys"), None).await;
    assert_eq!((nowhere.code, &nowhere.body), (404, &json!("404 page not found\n")));
}

#[tokio::test]
async fn a_definition_goes_after_its_objects_and_leaves_nothing_served() {
    let server = Server::start().await;
    establish(&server, toys()).await;
    let mut held = toy("held", json!({"size": 3}));
    held["metadata"]["finalizers"] = json!(["shop.example/hold"]);
    server.create(TOYS, held).await;
    server.create(TOYS, toy("loose", json!({"size": 3}))).await;
    let path = format!("{DEFINITIONS}/toys.shop.example");
    let answer = server.ask(Method::DELETE, &path, None).await;
    assert_eq!(answer.code, 200, "{}", answer.body);
    assert!(is(&server.ask(Method::GET, &path, None).await, "Terminating", "True"));
    until(&server, &format!("{TOYS}/loose"), |answer| answer.code == 404).await;
    let refused = until(&server, &path, |a| a.code == 200).await;
    assert_eq!(refused.body["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    let create = server.ask(Method::POST, TOYS, Some(toy("late", json!({"size": 3})))).await;
    let expected = "create not allowed while custom resource definition is terminating";
    assert_eq!((create.code, &create.body["message"]), (405, &json!(expected)));
    send(&server, Method::PATCH, &format!("{TOYS}/held"), MERGE, json!({"metadata": {"finalizers": null}})).await;
    until(&server, &path, |answer| answer.code == 404).await;
    until(&server, TOYS, |answer| answer.code == 404).await;
    // A definition of the same name begins with nothing.
    establish(&server, toys()).await;
    assert_eq!(server.ask(Method::GET, TOYS, None).await.body["items"], json!([]));
}

#[tokio::test]
async fn a_changed_schema_is_seen_in_objects_and_documents() {
    let server = Server::start().await;
    establish(&server, toys()).await;
    server.create(TOYS, toy("t", json!({"size": 3}))).await;
    let change = json!({"spec": {"versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
        "type": "object", "properties": {"spec": {"type": "object", "properties": {
            "size": {"type": "integer"}, "shape": {"type": "string", "default": "round"}}}}}}}]}});
    let path = format!("{DEFINITIONS}/toys.shop.example");
    let answer = send(&server, Method::PATCH, &path, MERGE, change).await;
    assert_eq!((answer.code, &answer.body["metadata"]["generation"]), (200, &json!(2)), "{}", answer.body);
    let seen = until(&server, &format!("{TOYS}/t"), |a| a.body["spec"]["shape"] == "round").await;
    assert_eq!(seen.body["spec"], json!({"size": 3, "shape": "round"}));
    let document = server.ask(Method::GET, "/openapi/v3/apis/shop.example/v1", None).await.body;
    let properties = &document["components"]["schemas"]["example.shop.v1.Toy"]["properties"];
    let names: BTreeSet<&str> = properties.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, BTreeSet::from(["apiVersion", "kind", "metadata", "spec"]));
    assert_eq!(properties["spec"]["properties"]["shape"]["type"], "string");
    let resources = server.ask(Method::GET, "/apis/shop.example/v1", None).await.body;
    assert_eq!(resources["resources"].as_array().unwrap().len(), 1, "the subresources are gone: {resources}");
}

#[tokio::test]
async fn kinds_and_objects_are_there_at_once_after_a_restart() {
    let server = Server::start().await;
    establish(&server, toys()).await;
    let created = server.create(TOYS, toy("t", json!({"size": 3}))).await;
    let Server { api, store, folder } = server;
    drop(api);
    let api = ApiServer::start(Options::new(store.clone(), Ambient::system())).await.unwrap();
    let server = Server { api, store, folder };
    let read = server.ask(Method::GET, &format!("{TOYS}/t"), None).await;
    assert_eq!((read.code, &read.body), (200, &created));
}

#[tokio::test]
async fn a_name_that_is_taken_is_given_when_it_is_free() {
    let server = Server::start().await;
    establish(&server, toys()).await;
    let mut other = toys();
    other["metadata"]["name"] = "tools.shop.example".into();
    other["spec"]["names"] = json!({"plural": "tools", "kind": "Tool", "shortNames": ["ty"]});
    server.create(DEFINITIONS, other).await;
    let path = format!("{DEFINITIONS}/tools.shop.example");
    let waiting = until(&server, &path, |answer| is(answer, "NamesAccepted", "False")).await;
    assert!(is(&waiting, "Established", "False"));
    assert_eq!(waiting.body["status"]["conditions"][0]["message"], "\"ty\" is already in use");
    server.ask(Method::DELETE, &format!("{DEFINITIONS}/toys.shop.example"), None).await;
    until(&server, &path, |answer| is(answer, "Established", "True")).await;
}

#[tokio::test]
async fn bad_definitions_are_refused_with_path_and_remedy() {
    let server = Server::start().await;
    let refused = |change: fn(&mut Value)| {
        let mut definition = toys();
        change(&mut definition);
        definition
    };
    for (definition, message) in [
        (
            refused(|d| d["metadata"]["name"] = "x.shop.example".into()),
            "metadata.name: Invalid value: \"x.shop.example\": must be spec.names.plural+\".\"+spec.group",
        ),
        (
            refused(|d| d["spec"]["versions"][0]["storage"] = false.into()),
            "must have exactly one version marked as storage version",
        ),
        (
            refused(|d| d["spec"]["preserveUnknownFields"] = true.into()),
            "spec.preserveUnknownFields: Invalid value: true: cannot set to true",
        ),
        (
            refused(|d| d["spec"]["conversion"] = json!({"strategy": "Webhook"})),
            "conversion webhooks are not called by this server",
        ),
        (
            refused(|d| d["spec"]["versions"][0]["schema"] = Value::Null),
            "spec.validation.openAPIV3Schema: Required value: schemas are required",
        ),
        (
            refused(|d| {
                d["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["type"] = Value::Null
            }),
            "spec.validation.openAPIV3Schema.properties[spec].type: Required value: must not be empty for specified object fields",
        ),
        (
            refused(|d| {
                d["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["size"]["default"] =
                    "x".into()
            }),
            "default: Invalid value: \"string\"",
        ),
        (
            refused(|d| d["spec"]["scope"] = "World".into()),
            "spec.scope: Unsupported value: \"World\": supported values: \"Cluster\", \"Namespaced\"",
        ),
    ] {
        let answer = server.ask(Method::POST, DEFINITIONS, Some(definition)).await;
        assert_eq!(answer.code, 422, "{}", answer.body);
        assert!(answer.body["message"].as_str().unwrap().contains(message), "{}", answer.body["message"]);
    }
    establish(&server, toys()).await;
    let path = format!("{DEFINITIONS}/toys.shop.example");
    let scope = send(&server, Method::PATCH, &path, MERGE, json!({"spec": {"scope": "Cluster"}})).await;
    assert!(
        scope.body["message"].as_str().unwrap().contains("spec.scope: Invalid value: \"Cluster\": field is immutable"),
        "{}",
        scope.body
    );
}

#[tokio::test]
async fn a_custom_kind_with_a_built_in_name_grants_nothing_and_roles_on_it_count() {
    let server = Server::start().await;
    let mut roles = toys();
    roles["metadata"]["name"] = "clusterroles.shop.example".into();
    roles["spec"]["names"] = json!({"plural": "clusterroles", "kind": "ClusterRole"});
    roles["spec"]["scope"] = "Cluster".into();
    roles["spec"]["versions"][0]["schema"]["openAPIV3Schema"] =
        json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    roles["spec"]["versions"][0]
        .as_object_mut()
        .unwrap()
        .retain(|k, _| !["subresources", "selectableFields"].contains(&k.as_str()));
    establish(&server, roles).await;
    let fake = json!({"apiVersion": "shop.example/v1", "kind": "ClusterRole", "metadata": {"name": "mine"},
        "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]});
    server.create("/apis/shop.example/v1/clusterroles", fake).await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    server
        .create(
            &format!("{rbac}/clusterrolebindings"),
            json!({"apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding", "metadata": {"name": "mine"}, "subjects": [{"kind": "User", "name": "eve"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "mine"}}),
        )
        .await;
    let eve = || Identity::user("eve", &[]);
    let path = "/apis/shop.example/v1/clusterroles";
    assert_eq!(server.ask_as(eve(), Method::GET, path, &[], None).await.code, 403);
    server
        .create(
            &format!("{rbac}/clusterroles"),
            json!({"apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole", "metadata": {"name": "mine"},
        "rules": [{"apiGroups": ["shop.example"], "resources": ["clusterroles"], "verbs": ["list"]}]}),
        )
        .await;
    assert_eq!(server.ask_as(eve(), Method::GET, path, &[], None).await.code, 200);
    assert_eq!(server.ask_as(eve(), Method::GET, "/api/v1/secrets", &[], None).await.code, 403);
}
