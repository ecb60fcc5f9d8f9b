//! Lists: versions and their match, limits and tokens.

use serde_json::json;

use super::{assert_fails, names, secret, text, version};
use crate::cluster::{Ask, Case};

/// Objects of about a megabyte that make an older state forgotten, at most.
const FLOOD: usize = 40;

pub(super) async fn versions_that_do_not_go_together_are_refused(case: Case) {
    let path = case.core("secrets");
    let list = |query: &[(&str, &str)]| query.iter().fold(Ask::new("GET", &path), |ask, (n, v)| ask.query(n, v));
    let refused = [
        (
            &[("resourceVersionMatch", "Exact")][..],
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        ),
        (
            &[("resourceVersionMatch", "Exact"), ("resourceVersion", "0")],
            "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        ),
        (
            &[("resourceVersionMatch", "NotOlderThan"), ("resourceVersion", "1"), ("continue", "x")],
            "resourceVersionMatch is forbidden when continue is provided",
        ),
        (
            &[("resourceVersionMatch", "Newest"), ("resourceVersion", "1")],
            "resourceVersionMatch: Unsupported value: \"Newest\": supported values: \"Exact\", \"NotOlderThan\", \"\"",
        ),
        (&[("sendInitialEvents", "true")], "sendInitialEvents is forbidden for list"),
    ];
    for (query, says) in refused {
        assert_fails(&case.ask(list(query)).await, 422, "Invalid", says);
    }
    assert_fails(&case.ask(list(&[("resourceVersion", "x")])).await, 400, "BadRequest", "\"x\"");
    assert_fails(&case.ask(list(&[("continue", "x")])).await, 400, "BadRequest", "continue key is not valid");
}

pub(super) async fn a_version_is_matched_exactly_or_not_older(case: Case) {
    let path = case.core("secrets");
    case.create(&path, secret("a")).await;
    let then = case.create(&path, secret("b")).await;
    let now = case.create(&path, secret("c")).await;
    let list = |version: &str, matching: &str| {
        let ask = Ask::new("GET", &path).query("resourceVersion", version);
        if matching.is_empty() { ask } else { ask.query("resourceVersionMatch", matching) }
    };
    let exact = case.ask(list(version(&then), "Exact")).await;
    assert_eq!((names(&exact), version(&exact.body)), (vec!["a", "b"], version(&then)));
    // A limit without a rule has always meant the very version.
    let exact = case.ask(list(version(&then), "").query("limit", "10")).await;
    assert_eq!((names(&exact), version(&exact.body)), (vec!["a", "b"], version(&then)));
    for matching in ["NotOlderThan", ""] {
        let newer = case.ask(list(version(&now), matching)).await;
        assert_eq!(names(&newer), ["a", "b", "c"]);
    }
    // Any state will do, and a limit means nothing.
    let any = case.ask(list("0", "").query("limit", "1")).await;
    assert_eq!((names(&any).len() > 1, text(&any.body, "/metadata/continue")), (true, ""));
    assert_eq!(names(&case.get(&path).await), ["a", "b", "c"]);
}

pub(super) async fn pages_are_of_one_state_and_count_what_remains(case: Case) {
    let path = case.core("secrets");
    for name in ["a", "b", "c", "d", "e"] {
        case.create(&path, secret(name)).await;
    }
    let page = |token: &str| {
        let ask = Ask::new("GET", &path).query("limit", "2");
        if token.is_empty() { ask } else { ask.query("continue", token) }
    };
    let first = case.ask(page("")).await;
    assert_eq!((names(&first), &first.body["metadata"]["remainingItemCount"]), (vec!["a", "b"], &json!(3)));
    case.ask(Ask::new("DELETE", &format!("{path}/c"))).await;
    case.create(&path, secret("dd")).await;
    let second = case.ask(page(text(&first.body, "/metadata/continue"))).await;
    assert_eq!((names(&second), &second.body["metadata"]["remainingItemCount"]), (vec!["c", "d"], &json!(1)));
    assert_eq!(version(&second.body), version(&first.body));
    let last = case.ask(page(text(&second.body, "/metadata/continue"))).await;
    assert_eq!((names(&last), text(&last.body, "/metadata/continue")), (vec!["e"], ""));
    assert!(last.body["metadata"].get("remainingItemCount").is_none(), "{}", last.body);
    // With a selector nobody counts.
    let selected = case.ask(page("").query("labelSelector", "is")).await;
    assert_eq!(names(&selected), ["a", "b"]);
    assert!(selected.body["metadata"].get("remainingItemCount").is_none(), "{}", selected.body);
    assert_ne!(text(&selected.body, "/metadata/continue"), "");
}

pub(super) async fn a_version_from_the_future_is_a_timeout(case: Case) {
    let ask = Ask::new("GET", &case.core("secrets")).query("resourceVersion", "9000000000000000");
    let answer = case.ask(ask).await;
    assert_fails(&answer, 504, "Timeout", "Too large resource version: 9000000000000000, current: ");
    assert_eq!(text(&answer.body, "/details/causes/0/reason"), "ResourceVersionTooLarge");
}

pub(super) async fn what_is_forgotten_is_expired_and_a_token_goes_on(case: Case) {
    if !case.cluster.is_own() {
        // How long others remember is theirs to say.
        return;
    }
    // A kind that no other case watches or pages through.
    let path = case.apps("controllerrevisions");
    let revision = |name: &str, size: usize| {
        json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": name}, "revision": 1,
            "data": {"x": "x".repeat(size)}})
    };
    let first = case.create(&path, revision("a", 1)).await;
    case.create(&path, revision("b", 1)).await;
    case.create(&path, revision("c", 1)).await;
    let page = case.ask(Ask::new("GET", &path).query("limit", "1")).await;
    let next = |token: &str| Ask::new("GET", &path).query("limit", "1").query("continue", token);
    let mut expired = None;
    for n in 0..FLOOD {
        case.create(&path, revision(&format!("z-{n}"), 1 << 20)).await;
        let answer = case.ask(next(text(&page.body, "/metadata/continue"))).await;
        if answer.code != 200 {
            expired = Some(answer);
            break;
        }
    }
    let expired = expired.expect("the older state is forgotten at some time");
    let says = "The provided continue parameter is too old to display a consistent list result.";
    assert_fails(&expired, 410, "Expired", says);
    let rest = case.ask(next(text(&expired.body, "/metadata/continue"))).await;
    assert_eq!(names(&rest), ["b"], "it goes on from the newest state");
    let rest = case.ask(next(text(&rest.body, "/metadata/continue"))).await;
    assert_eq!(names(&rest), ["c"]);

    let old = Ask::new("GET", &path).query("resourceVersion", version(&first));
    let exact = case.ask(old.clone().query("resourceVersionMatch", "Exact")).await;
    assert_fails(&exact, 410, "Expired", "The resourceVersion for the provided list is too old.");
    let events = case.watch(old).await.next(1).await;
    assert_eq!((text(&events[0], "/type"), &events[0]["object"]["code"]), ("ERROR", &json!(410)), "{events:?}");
    assert!(text(&events[0], "/object/message").starts_with("too old resource version: "), "{events:?}");
}
