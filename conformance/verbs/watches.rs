//! Watches: where they begin, bookmarks, how they end.

use serde_json::json;

use super::{assert_fails, secret, text, told, version};
use crate::cluster::{Ask, Case};

/// Marks the end of what was there.
const INITIAL_END: &str = "/object/metadata/annotations/k8s.io~1initial-events-end";

pub(super) async fn a_watch_from_a_version_replays_what_came_after(case: Case) {
    let path = case.core("secrets");
    let first = case.create(&path, secret("a")).await;
    let second = case.create(&path, secret("b")).await;
    case.merge(&format!("{path}/a"), json!({"metadata": {"labels": {"x": "y"}}})).await;
    case.ask(Ask::new("DELETE", &format!("{path}/b"))).await;
    let mut watch = case.watch(Ask::new("GET", &path).query("resourceVersion", version(&first))).await;
    let events = watch.next(3).await;
    assert_eq!(told(&events), [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]);
    let versions: Vec<u64> = events.iter().map(|e| version(&e["object"]).parse().expect("a number")).collect();
    assert!(versions.is_sorted(), "in the order in which they were written: {versions:?}");
    assert!(versions[2] > versions[0], "a deletion has a version of its own: {versions:?}");
    // An object that begins to fit is added, one that ceases to fit is deleted.
    let selected = Ask::new("GET", &path).query("resourceVersion", version(&second)).query("labelSelector", "x=y");
    let mut selected = case.watch(selected).await;
    case.merge(&format!("{path}/a"), json!({"metadata": {"labels": {"x": null}}})).await;
    assert_eq!(told(&selected.next(2).await), [("ADDED", "a"), ("DELETED", "a")]);
    assert_eq!(told(&watch.next(1).await), [("MODIFIED", "a")]);
}

pub(super) async fn a_watch_without_a_version_begins_with_what_is_there(case: Case) {
    let path = case.core("secrets");
    case.create(&path, secret("a")).await;
    case.create(&path, secret("b")).await;
    for from in ["", "0"] {
        let mut watch = case.watch(Ask::new("GET", &path).query("resourceVersion", from)).await;
        let mut events = watch.next(2).await;
        events.sort_by_key(|event| text(event, "/object/metadata/name").to_owned());
        assert_eq!(told(&events), [("ADDED", "a"), ("ADDED", "b")]);
    }
    let one = Ask::new("GET", &path).query("fieldSelector", "metadata.name=b");
    let mut one = case.watch(one).await;
    case.merge(&format!("{path}/a"), json!({"metadata": {"labels": {"x": "y"}}})).await;
    case.merge(&format!("{path}/b"), json!({"metadata": {"labels": {"x": "y"}}})).await;
    assert_eq!(told(&one.next(2).await), [("ADDED", "b"), ("MODIFIED", "b")]);
}

/// A watch that says whether it wants what is there.
fn streaming(path: &str, sends: &str) -> Ask {
    let ask = Ask::new("GET", path).query("sendInitialEvents", sends).query("allowWatchBookmarks", "true");
    ask.query("resourceVersionMatch", "NotOlderThan")
}

pub(super) async fn initial_events_end_with_a_marked_bookmark(case: Case) {
    let path = case.core("secrets");
    case.create(&path, secret("a")).await;
    let newest = case.create(&path, secret("b")).await;
    for from in ["", version(&newest)] {
        let mut watch = case.watch(streaming(&path, "true").query("resourceVersion", from)).await;
        let events = watch.next(3).await;
        assert_eq!(told(&events), [("ADDED", "a"), ("ADDED", "b"), ("BOOKMARK", "")]);
        assert_eq!(text(&events[2], INITIAL_END), "true", "{}", events[2]);
        assert_eq!((text(&events[2], "/object/kind"), text(&events[2], "/object/apiVersion")), ("Secret", "v1"));
        let reached: u64 = version(&events[2]["object"]).parse().expect("a number");
        assert!(reached >= version(&newest).parse().expect("a number"), "{}", events[2]);
        let label = json!({"metadata": {"labels": {"from": if from.is_empty() { "unset" } else { "set" }}}});
        case.merge(&format!("{path}/a"), label).await;
        assert_eq!(told(&watch.next(1).await), [("MODIFIED", "a")]);
    }
}

pub(super) async fn initial_events_can_be_left_out(case: Case) {
    let path = case.core("secrets");
    let made = case.create(&path, secret("a")).await;
    // Version 0 is any that the server has at hand: it is to have this one.
    case.ask(Ask::new("GET", &path).query("resourceVersion", version(&made))).await;
    let mut watch = case.watch(streaming(&path, "false").query("resourceVersion", "0")).await;
    case.create(&path, secret("b")).await;
    assert_eq!(told(&watch.next(1).await), [("ADDED", "b")]);
}

pub(super) async fn options_that_do_not_go_together_are_refused(case: Case) {
    let path = case.core("secrets");
    let watch = |query: &[(&str, &str)]| {
        query.iter().fold(Ask::new("GET", &path).query("watch", "1"), |ask, (name, value)| ask.query(name, value))
    };
    let refused = [
        (
            &[("sendInitialEvents", "true")][..],
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
        (
            &[("resourceVersionMatch", "NotOlderThan")],
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
        (
            &[("sendInitialEvents", "true"), ("resourceVersionMatch", "Exact")],
            "resourceVersionMatch: Unsupported value: \"Exact\": supported values: \"NotOlderThan\"",
        ),
        (
            &[("sendInitialEvents", "true"), ("resourceVersionMatch", "NotOlderThan"), ("continue", "x")],
            "resourceVersionMatch is forbidden when continue is provided",
        ),
    ];
    for (query, says) in refused {
        assert_fails(&case.ask(watch(query)).await, 422, "Invalid", says);
    }
}

pub(super) async fn a_timeout_ends_the_stream_after_a_bookmark(case: Case) {
    let path = case.core("secrets");
    let newest = case.create(&path, secret("a")).await;
    let ask = Ask::new("GET", &path).query("resourceVersion", version(&newest)).query("timeoutSeconds", "1");
    let mut plain = case.watch(ask.clone()).await;
    let mut marked = case.watch(ask.query("allowWatchBookmarks", "true")).await;
    assert!(plain.next(1).await.is_empty());
    assert!(plain.ended());
    let events = marked.next(2).await;
    assert!(marked.ended() && events.len() <= 1, "{events:?}");
    if case.cluster.is_own() {
        // So that the client's next watch begins where this one ended. (Upstream does so from 2 s on.)
        assert_eq!(told(&events), [("BOOKMARK", "")]);
        assert!(events[0].pointer(INITIAL_END).is_none(), "{events:?}");
    }
}
