//! Requests made to break a server: each is refused with a Status, and whoever else is there notices nothing.

use serde_json::{Value, json};

use crate::cluster::{Ask, Case};
use crate::verbs::{config, text, told};

const MERGE: &str = "application/merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
const BINARY: &str = "application/vnd.kubernetes.protobuf";

/// What it is, and the request.
type Attack = (&'static str, Ask);

pub(super) async fn what_is_made_to_break_a_server_is_refused_and_others_work_on(case: Case) {
    let path = case.core("configmaps");
    let steady = case.create(&path, config("steady")).await;
    case.create(&path, config("target")).await;
    let watch = Ask::new("GET", &path).query("fieldSelector", "metadata.name=steady");
    let from = text(&steady, "/metadata/resourceVersion");
    let mut watch = case.watch(watch.query("resourceVersion", from)).await;
    for (n, (what, attack)) in attacks(&path).into_iter().enumerate() {
        // Somebody else's request is under way at the same time, and its change is told to those who watch.
        let n = n.to_string();
        let steady = format!("{path}/steady");
        let works = case.merge(&steady, json!({"data": {"n": n}}));
        let (answer, _) = tokio::join!(case.ask(attack), works);
        assert!((400..500).contains(&answer.code), "{what}: {} {}", answer.code, answer.body);
        assert_eq!((text(&answer.body, "/kind"), text(&answer.body, "/status")), ("Status", "Failure"), "{what}");
        let events = watch.next(1).await;
        assert_eq!(told(&events), [("MODIFIED", "steady")], "{what}");
        assert_eq!(text(&events[0], "/object/data/n"), n, "{what}");
    }
    let target = case.get(&format!("{path}/target")).await;
    assert_eq!(target.body["data"], config("target")["data"], "nothing was changed half");
}

fn attacks(path: &str) -> Vec<Attack> {
    [bodies(path), patches(&format!("{path}/target")), questions(path)].concat()
}

/// Bodies of a create.
fn bodies(path: &str) -> Vec<Attack> {
    let create = |media: &str, body: Vec<u8>| Ask::new("POST", path).header("content-type", Some(media)).raw(body);
    let json = |text: &str| create("application/json", text.as_bytes().to_vec());
    let head = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"}"#;
    let deep = |open: &str, close: &str| {
        json(&format!(r#"{head},"data":{}1{}}}"#, open.repeat(200_000), close.repeat(200_000)))
    };
    let bomb = (1..12).fold("a0: &a0 [x, x, x, x, x, x, x, x]\n".to_owned(), |text, n| {
        let last = format!("*a{}, ", n - 1).repeat(8);
        text + &format!("a{n}: &a{n} [{last}]\n")
    });
    // A length that no body has, and a frame whose inside is cut off.
    let binary = |inside: &[u8]| create(BINARY, [b"k8s\0", inside].concat());
    vec![
        ("nothing", json("")),
        ("half an object", json(head)),
        ("lists in lists", deep("[", "]")),
        ("objects in objects", deep(r#"{"a":"#, "}")),
        ("a number beyond all numbers", json(&format!(r#"{head},"data":1e999999}}"#))),
        ("a list where a text belongs", json(r#"{"apiVersion":["v1"],"kind":{"a":1},"metadata":[]}"#)),
        ("a text where an object belongs", json(r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":"x"}"#)),
        ("YAML that grows", create("application/yaml", bomb.into_bytes())),
        ("YAML that names itself", create("application/yaml", b"a: &a [*a]".to_vec())),
        ("a binary form of nothing", binary(b"")),
        ("a binary form that never ends", binary(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f])),
        ("a binary form of noughts", binary(&[0; 1000])),
        ("a media type of nobody", create("application/x-nobody", b"{}".to_vec())),
    ]
}

/// Patches of an object.
fn patches(object: &str) -> Vec<Attack> {
    let patch = |media: &str, body: &Value| Ask::new("PATCH", object).header("content-type", Some(media)).json(body);
    // Doubles the object with each step.
    let double: Vec<Value> = (0..60)
        .map(|n| json!({"op": "copy", "from": "/metadata", "path": format!("/metadata/annotations{n}")}))
        .collect();
    vec![
        ("a patch that doubles again and again", patch(JSON_PATCH, &double.into())),
        ("a patch of no operations", patch(JSON_PATCH, &json!({"op": "add"}))),
        (
            "a place that is none",
            patch(JSON_PATCH, &json!([{"op": "add", "path": "/data/~2/-1/99999999999999999999", "value": 1}])),
        ),
        ("a move into itself", patch(JSON_PATCH, &json!([{"op": "move", "from": "/metadata", "path": "/metadata/a"}]))),
        ("the whole away", patch(JSON_PATCH, &json!([{"op": "remove", "path": ""}]))),
        ("a list for an object", patch(MERGE, &json!([1, 2]))),
        ("kinds that do not fit", patch(MERGE, &json!({"metadata": 1, "data": [[]]}))),
        ("directives that are none", patch(STRATEGIC, &json!({"$patch": {"a": 1}, "data": {"$patch": "explode"}}))),
        ("an order of nothing", patch(STRATEGIC, &json!({"metadata": {"$setElementOrder/finalizers": {"a": 1}}}))),
        (
            "managers that are none",
            patch(
                APPLY,
                &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "target",
                "managedFields": [{"fieldsV1": {"f:": [], "k:{": {}}}]}}),
            )
            .query("fieldManager", "x"),
        ),
        ("nobody who applies", patch(APPLY, &json!({"apiVersion": "v1", "kind": "ConfigMap"}))),
    ]
}

/// Questions that make no sense.
fn questions(path: &str) -> Vec<Attack> {
    let list = |name: &str, value: &str| Ask::new("GET", path).query(name, value);
    let brackets = format!("a in ({}", "(".repeat(10_000));
    vec![
        ("a selector of brackets", list("labelSelector", &brackets)),
        ("a selector that compares with nothing", list("labelSelector", "a>>1,,=,!")),
        ("a field that is none", list("fieldSelector", "a.b.c=1")),
        ("a page that was never begun", list("continue", "AAAA/////w==")),
        ("a version that is no number", list("resourceVersion", "99999999999999999999999999")),
        ("a version below all", list("resourceVersion", "-1")),
        ("a limit beyond all numbers", list("limit", "99999999999999999999999999")),
        ("a name with a way out", Ask::new("GET", &format!("{path}/..%2f..%2fsecrets"))),
        ("a name with an end", Ask::new("GET", &format!("{path}/a%00b"))),
        ("a manager of a kilobyte", Ask::new("POST", path).query("fieldManager", &"m".repeat(1024)).json(&config("y"))),
        (
            "preconditions that are none",
            Ask::new("DELETE", &format!("{path}/target")).raw(b"{\"preconditions\":[]}".to_vec()),
        ),
    ]
}
