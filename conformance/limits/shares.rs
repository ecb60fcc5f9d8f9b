//! One client gets its share of what there is, is asked to come back where it wants more, and keeps nobody out.

use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use super::{Client, large};
use crate::cluster::{Answer, Ask, Case, PATIENCE};
use crate::verbs::{assert_fails, config, text, version};

/// One client's share of requests that write, and of those that read.
const REQUESTS: usize = 30;
/// One client's share of watches.
const WATCHES: usize = 50;
/// More changes than may wait for one watcher.
const CHANGES: u64 = 40;
/// Changes of this size: two of them are more than a client takes without reading.
const CHANGE_BYTES: usize = 40 << 10;

/// The answer asks to come back, in each way that clients look for.
fn assert_comes_back(answer: &Answer) {
    assert_fails(answer, 429, "TooManyRequests", "Too many requests, please try again later.");
    assert_eq!(answer.headers.get("retry-after").map(String::as_str), Some("1"), "{:?}", answer.headers);
    assert_eq!(answer.body["details"]["retryAfterSeconds"], 1, "{}", answer.body);
}

pub(super) async fn a_client_that_writes_too_much_at_once_is_asked_to_come_back(case: Case) {
    let (ann, bob) = (Client::new(&case, "ann").await, Client::new(&case, "bob").await);
    let path = case.core("configmaps");
    // It changes nothing, so that it can be asked again and again.
    let write = |name: &str| Ask::new("POST", &path).query("dryRun", "All").json(&config(name));
    let mut greedy = ann.connection().await;
    (0..REQUESTS).for_each(|_| greedy.begin("POST", &path));
    assert_comes_back(&ann.until(write("a"), 429).await);
    // Reading is another matter, and so is everybody else.
    assert_eq!(ann.ask(Ask::new("GET", &path)).await.code, 200);
    assert_eq!(bob.ask(write("b")).await.code, 201);
    assert_eq!(case.ask(write("c")).await.code, 201);
    drop(greedy);
    ann.until(write("a"), 201).await;
}

pub(super) async fn a_client_that_reads_too_much_at_once_is_asked_to_come_back(case: Case) {
    let (ann, bob) = (Client::new(&case, "ann").await, Client::new(&case, "bob").await);
    let path = case.core("configmaps");
    let read = || Ask::new("GET", &path);
    let mut greedy = ann.connection().await;
    (0..REQUESTS).for_each(|_| greedy.begin("GET", &path));
    assert_comes_back(&ann.until(read(), 429).await);
    assert_eq!(ann.ask(Ask::new("POST", &path).json(&config("a"))).await.code, 201);
    assert_eq!(bob.ask(read()).await.code, 200);
    assert_eq!(case.ask(read()).await.code, 200);
    drop(greedy);
    ann.until(read(), 200).await;
}

pub(super) async fn a_client_gets_its_share_of_watches(case: Case) {
    let (ann, bob) = (Client::new(&case, "ann").await, Client::new(&case, "bob").await);
    let uri = format!("{}?watch=true", case.core("configmaps"));
    let mut greedy = ann.connection().await;
    let mut open = Vec::new();
    for _ in 0..WATCHES {
        let watch = greedy.unread(&uri).await;
        assert_eq!(watch.status(), 200);
        open.push(watch);
    }
    let watch = || Ask::new("GET", &case.core("configmaps")).query("watch", "true").query("timeoutSeconds", "1");
    assert_comes_back(&ann.ask(watch()).await);
    assert_eq!(bob.ask(watch()).await.code, 200);
    open.pop();
    ann.until(watch(), 200).await;
}

pub(super) async fn a_client_that_reads_no_answers_gets_no_more_of_them(case: Case) {
    let (ann, bob) = (Client::new(&case, "ann").await, Client::new(&case, "bob").await);
    let path = case.core("configmaps");
    // A client's share is half a megabyte.
    case.create(&path, large("a", 300 << 10)).await;
    let mut lazy = ann.connection().await;
    let unread = lazy.unread(&path).await;
    assert_eq!(unread.status(), 200);
    assert_comes_back(&ann.ask(Ask::new("GET", &path)).await);
    // What is small is not counted, and others have their own share.
    assert_eq!(ann.ask(Ask::new("GET", &case.core("secrets"))).await.code, 200);
    assert_eq!(bob.ask(Ask::new("GET", &path)).await.code, 200);
    drop(unread);
    ann.until(Ask::new("GET", &path), 200).await;
}

pub(super) async fn a_slow_watcher_is_dropped_and_told_and_slows_nobody(case: Case) {
    let ann = Client::new(&case, "ann").await;
    let path = case.core("configmaps");
    let first = case.create(&path, large("a", CHANGE_BYTES)).await;
    let from = |version: &str| {
        Ask::new("GET", &path).query("fieldSelector", "metadata.name=a").query("resourceVersion", version)
    };
    let mut connection = ann.connection().await;
    let slow = connection.unread(&from(version(&first)).query("watch", "true").uri()).await;
    assert_eq!(slow.status(), 200);
    let mut quick = case.watch(from(version(&first))).await;
    for n in 0..CHANGES {
        case.merge(&format!("{path}/a"), json!({"data": {"n": n.to_string()}})).await;
        assert_eq!(number(&quick.next(1).await[0]), Some(n), "whoever keeps up is told at once");
    }
    // Only now the slow one reads what it was sent.
    let read = tokio::time::timeout(PATIENCE, slow.into_body().collect()).await.expect("the stream ends");
    let bytes = read.expect("it ends well").to_bytes();
    let lines: Vec<Value> = bytes.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let (last, told) = lines.split_last().expect("something was told");
    assert_eq!((text(last, "/type"), text(last, "/object/reason")), ("ERROR", "Expired"), "{last}");
    assert_eq!(last["object"]["code"], 410, "{last}");
    assert!(text(last, "/object/message").contains("did not keep up"), "{last}");
    let heard: Vec<u64> = told.iter().filter_map(number).collect();
    assert!(heard.len() < CHANGES as usize, "it was told everything: {heard:?}");
    assert_eq!(heard, (0..heard.len() as u64).collect::<Vec<_>>(), "without a gap as far as it goes");
    // From there it can go on, and misses nothing.
    let reached = told.last().expect("the beginning came through");
    let rest = case.watch(from(version(&reached["object"]))).await.next(CHANGES as usize - heard.len()).await;
    assert_eq!(rest.iter().filter_map(number).collect::<Vec<_>>(), (heard.len() as u64..CHANGES).collect::<Vec<_>>());
}

/// The number of a change.
fn number(event: &Value) -> Option<u64> {
    text(event, "/object/data/n").parse().ok()
}
