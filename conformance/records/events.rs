//! Events: one object in two versions, counted when it happens again, forgotten after a while.

use serde_json::{Value, json};

use crate::cluster::{Ask, Case};
use crate::players::objects;
use crate::verbs::{assert_fails, names, text, told, version};

/// Where events are in the newer version.
fn newer(case: &Case) -> String {
    format!("/apis/events.k8s.io/v1/namespaces/{}/events", case.namespace)
}

/// An event as the older version writes it.
fn old_event(case: &Case, name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name}, "reason": "Tested", "message": "it was",
        "type": "Normal", "count": 4, "source": {"component": "suite", "host": "n1"},
        "involvedObject": {"kind": "Pod", "apiVersion": "v1", "name": name, "namespace": &*case.namespace},
        "firstTimestamp": "2021-01-01T00:00:00Z", "lastTimestamp": "2021-01-01T00:05:00Z"})
}

/// An event as the newer version writes it.
fn new_event(case: &Case, name: &str) -> Value {
    json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": name}, "reason": "Tested",
        "note": "it was", "type": "Warning", "action": "Testing", "eventTime": "2021-01-01T00:00:00.000001Z",
        "regarding": {"kind": "Pod", "apiVersion": "v1", "name": name, "namespace": &*case.namespace},
        "reportingController": "example.com/suite", "reportingInstance": "suite-1"})
}

pub(super) async fn an_event_is_one_in_both_versions(case: Case) {
    let (older, newer) = (case.core("events"), newer(&case));
    let from = case.get(&older).await;
    let from = version(&from.body);
    let mut watch = case.watch(Ask::new("GET", &newer).query("resourceVersion", from)).await;
    let old = case.create(&older, old_event(&case, "a")).await;
    let seen = case.get(&format!("{newer}/a")).await.body;
    assert_eq!(seen["apiVersion"], "events.k8s.io/v1");
    assert_eq!((&seen["metadata"]["uid"], version(&seen)), (&old["metadata"]["uid"], version(&old)));
    let shown = [
        "note",
        "regarding",
        "deprecatedCount",
        "deprecatedSource",
        "deprecatedFirstTimestamp",
        "deprecatedLastTimestamp",
    ];
    let written = ["message", "involvedObject", "count", "source", "firstTimestamp", "lastTimestamp"];
    for (new, old_name) in shown.iter().zip(written) {
        assert_eq!(seen[*new], old[old_name], "{new}: {seen}");
    }
    case.create(&newer, new_event(&case, "b")).await;
    let series = json!({"series": {"count": 2, "lastObservedTime": "2021-01-01T00:01:00.000000Z"}});
    case.merge(&format!("{newer}/b"), series.clone()).await;
    let core = case.get(&format!("{older}/b")).await.body;
    assert_eq!((&core["message"], &core["involvedObject"]["name"]), (&json!("it was"), &json!("b")), "{core}");
    assert_eq!(
        (&core["series"], &core["reportingComponent"]),
        (&series["series"], &json!("example.com/suite")),
        "{core}"
    );
    let gone = case.ask(Ask::new("DELETE", &format!("{newer}/b"))).await;
    assert_eq!(gone.code, 200, "{}", gone.body);
    assert_eq!(case.get(&format!("{older}/b")).await.code, 404);
    let events = watch.next(4).await;
    assert_eq!(told(&events), [("ADDED", "a"), ("ADDED", "b"), ("MODIFIED", "b"), ("DELETED", "b")]);
    assert!(events.iter().all(|event| event["object"]["apiVersion"] == "events.k8s.io/v1"), "{events:?}");
}

pub(super) async fn new_events_of_the_newer_version_are_held_to_its_rules(case: Case) {
    let newer = newer(&case);
    for (field, value, says) in [
        ("reportingController", json!(""), "reportingController: Required value"),
        ("reportingInstance", json!(""), "reportingInstance: Required value"),
        ("action", json!(""), "action: Required value"),
        ("reason", json!(""), "reason: Required value"),
        ("eventTime", Value::Null, "eventTime: Required value"),
        ("type", json!("Odd"), "type: Invalid value: \"\": has invalid value: Odd"),
        ("note", json!("x".repeat(1025)), "message: Invalid value: \"\": can have at most 1024 characters"),
        ("deprecatedCount", json!(3), "count: Invalid value: \"\": needs to be unset"),
        (
            "series",
            json!({"count": 1, "lastObservedTime": "2021-01-01T00:01:00.000000Z"}),
            "series.count: Invalid value",
        ),
    ] {
        let mut event = new_event(&case, "a");
        event[field] = value;
        assert_fails(&case.ask(Ask::new("POST", &newer).json(&event)).await, 422, "Invalid", says);
    }
    case.create(&newer, new_event(&case, "a")).await;
    let note = json!({"note": "other"});
    let ask = Ask::new("PATCH", &format!("{newer}/a")).header("content-type", Some("application/merge-patch+json"));
    assert_fails(
        &case.ask(ask.json(&note)).await,
        422,
        "Invalid",
        "message: Invalid value: \"other\": field is immutable",
    );
}

pub(super) async fn events_are_selected_and_printed_in_both_versions(case: Case) {
    let (older, newer) = (case.core("events"), newer(&case));
    case.create(&older, old_event(&case, "a")).await;
    case.create(&newer, new_event(&case, "b")).await;
    let select = async |path: &str, field: &str| case.ask(Ask::new("GET", path).query("fieldSelector", field)).await;
    assert_eq!(names(&select(&older, "involvedObject.name=b").await), ["b"]);
    assert_eq!(names(&select(&newer, "regarding.name=b").await), ["b"]);
    assert_eq!(names(&select(&older, "type=Warning").await), ["b"]);
    assert_eq!(names(&select(&newer, "reportingController=example.com/suite").await), ["b"]);
    let wrong = select(&newer, "involvedObject.name=a").await;
    assert_fails(&wrong, 400, "BadRequest", "field label not supported: involvedObject.name");
    let table = async |path: &str| {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        case.ask(Ask::new("GET", path).header("accept", Some(table))).await.body
    };
    let (old, new) = (table(&older).await, table(&newer).await);
    let cells = |table: &Value, row: usize| table["rows"][row]["cells"].as_array().cloned().unwrap_or_default();
    assert_eq!(old["columnDefinitions"], new["columnDefinitions"]);
    for row in 0..2 {
        // The first cell is an age.
        assert_eq!(cells(&old, row)[1..], cells(&new, row)[1..]);
    }
    assert_eq!((&cells(&old, 0)[1], &cells(&old, 1)[1]), (&json!("Normal"), &json!("Warning")), "{old}");
}

pub(super) async fn what_happens_again_is_counted_and_not_told_again(case: Case) {
    // Pods that name an account which is not there are refused, again and again.
    let set = objects::set(
        "web",
        &json!({"replicas": 1, "merge": {"spec": {"template": {"spec": {
        "serviceAccountName": "nobody"}}}}}),
    );
    case.create(&case.apps("statefulsets"), set).await;
    let mine = |path: &str, field: &str| {
        Ask::new("GET", path).query("fieldSelector", &format!("{field}=web,reason=FailedCreate"))
    };
    let found = |answer: &crate::cluster::Answer| answer.body["items"].as_array().cloned().unwrap_or_default();
    let counted =
        |answer: &crate::cluster::Answer| found(answer).iter().any(|event| event["count"].as_u64() >= Some(3));
    let older = mine(&case.core("events"), "involvedObject.name");
    let told = case.until(older, "the same was told three times", counted).await;
    let all = found(&told);
    assert_eq!(all.len(), 1, "one event tells all of it: {all:?}");
    assert_eq!(text(&all[0], "/type"), "Warning");
    assert!(text(&all[0], "/message").contains("nobody"), "{}", all[0]);
    assert!(text(&all[0], "/firstTimestamp") <= text(&all[0], "/lastTimestamp"), "{}", all[0]);
    let new = found(&case.ask(mine(&newer(&case), "regarding.name")).await);
    assert_eq!(new.len(), 1, "{new:?}");
    assert_eq!(new[0]["metadata"]["uid"], all[0]["metadata"]["uid"]);
    assert!(new[0]["deprecatedCount"].as_u64() >= all[0]["count"].as_u64(), "{}", new[0]);
}

pub(super) async fn events_are_forgotten_after_their_time_and_watchers_are_told(case: Case) {
    let older = case.core("events");
    let from = case.get(&older).await;
    let from = version(&from.body);
    let mut watch = case.watch(Ask::new("GET", &older).query("resourceVersion", from)).await;
    case.create(&older, old_event(&case, "a")).await;
    case.create(&newer(&case), new_event(&case, "b")).await;
    // Other kinds stay.
    case.create(&case.core("configmaps"), crate::verbs::config("a")).await;
    let mut events = watch.next(4).await;
    events.sort_by_key(|event| (text(event, "/type").to_owned(), text(event, "/object/metadata/name").to_owned()));
    assert_eq!(told(&events), [("ADDED", "a"), ("ADDED", "b"), ("DELETED", "a"), ("DELETED", "b")]);
    assert_eq!(case.get(&format!("{older}/a")).await.code, 404);
    assert_eq!(names(&case.get(&newer(&case)).await), Vec::<&str>::new());
    assert_eq!(case.get(&format!("{}/a", case.core("configmaps"))).await.code, 200);
}
