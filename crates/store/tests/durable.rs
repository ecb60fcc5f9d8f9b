//! What a store keeps over a restart, and what it refuses.

mod common;

use std::time::Duration;

use ambient::Ambient;
use bytes::Bytes;
use common::*;
use statefuld_store::embedded::{Embedded, Options};
use statefuld_store::{Error, Op, RangeQuery, Store, Txn, TxnOutcome};

#[tokio::test]
async fn a_new_store_stands_at_revision_1() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    assert_eq!(store.current_revision().await.expect("open"), 1);
    assert_eq!(store.identity().generation, 1);
    assert_eq!(commit(&*store, ops(vec![put("a", "1")])).await, 2);
}

#[tokio::test]
async fn a_failed_compare_tells_what_is_there_and_changes_nothing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    let first = commit(&*store, when("a", 0, vec![put("a", "1")])).await;
    let outcome = store.txn(when("a", 0, vec![put("a", "2"), put("b", "2")])).await.expect("open");
    let TxnOutcome::Failed { revision, current } = outcome else { panic!("must fail: {outcome:?}") };
    assert_eq!(revision, first);
    assert_eq!(current[0].as_ref().map(|e| e.mod_revision), Some(first));
    assert_eq!(value(&*store, "b").await, None);
    commit(&*store, when("a", first, vec![delete("a")])).await;
    assert_eq!(value(&*store, "a").await, None);
}

#[tokio::test]
async fn a_txn_that_changes_nothing_has_the_current_revision() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    let first = commit(&*store, ops(vec![put("a", "1")])).await;
    assert_eq!(commit(&*store, ops(vec![delete("nothing")])).await, first);
    assert_eq!(store.current_revision().await.expect("open"), first);
}

#[tokio::test]
async fn a_restart_keeps_everything_and_watches_resume() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    let identity = store.identity();
    let start = commit(&*store, ops(vec![put("p/a", "1"), put("q/x", "1")])).await;
    commit(&*store, ops(vec![put("p/a", "2")])).await;
    commit(&*store, ops(vec![delete("p/a"), put("p/b", "3")])).await;
    let last = commit(&*store, ops(vec![put("p/a", "4")])).await;
    let mut watch = store.watch(key("p/"), start).await.expect("in the window");
    let before = until(&mut watch, last).await;
    let entries = store.range(RangeQuery::default()).await.expect("open").entries;
    drop(watch);
    store.close().await;
    assert!(matches!(store.current_revision().await, Err(Error::Closed(_))));
    drop(store);

    let store = open(dir.path());
    assert_eq!(store.identity(), identity);
    assert_eq!(store.current_revision().await.expect("open"), last);
    assert_eq!(store.range(RangeQuery::default()).await.expect("open").entries, entries);
    let mut watch = store.watch(key("p/"), start).await.expect("the history survived");
    assert_eq!(until(&mut watch, last).await, before);
    let next = commit(&*store, ops(vec![put("p/c", "5")])).await;
    assert_eq!(next, last + 1);
    assert_eq!(until(&mut watch, next).await, [(next, "p/c".into(), Some("5".into()))]);
}

#[tokio::test]
async fn events_carry_what_was_there_before_also_after_a_restart() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    let first = commit(&*store, ops(vec![put("a", "1")])).await;
    let second = commit(&*store, ops(vec![put("a", "2")])).await;
    commit(&*store, ops(vec![delete("a")])).await;
    drop(store);
    let store = open(dir.path());
    let mut watch = store.watch(Bytes::new(), first).await.expect("in the window");
    let batch = next(&mut watch).await.expect("goes on").expect("no error");
    let event = &batch.events[0];
    assert_eq!(event.previous.as_ref().map(|e| (&e.value[..], e.mod_revision)), Some((&b"1"[..], first)));
    assert_eq!(event.entry.as_ref().map(|e| (e.create_revision, e.mod_revision)), Some((first, second)));
    let batch = next(&mut watch).await.expect("goes on").expect("no error");
    assert_eq!(batch.events[0].previous.as_ref().map(|e| e.mod_revision), Some(second));
    assert!(batch.events[0].entry.is_none());
}

#[tokio::test]
async fn compacted_and_future_revisions_are_refused_also_after_a_restart() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    for i in 0..10 {
        commit(&*store, ops(vec![put("a", &i.to_string())])).await;
    }
    store.compact(6).await.expect("compacts");
    assert!(matches!(store.compact(100).await, Err(Error::Future { asked: 100, newest: 11 })));
    drop(store);
    let store = open(dir.path());
    assert!(matches!(store.watch(key("a"), 5).await, Err(Error::Compacted { asked: 5, oldest: 6 })));
    assert!(matches!(store.watch(key("a"), 12).await, Err(Error::Future { asked: 12, newest: 11 })));
    let mut watch = store.watch(key("a"), 6).await.expect("the oldest that is left");
    assert_eq!(until(&mut watch, 11).await.len(), 5);
}

#[tokio::test]
async fn history_stays_within_its_bounds() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let options = Options { history_count: 20, ..Options::default() };
    let store = open_with(dir.path(), options.clone());
    for i in 0..100 {
        commit(&*store, ops(vec![put("a", &i.to_string())])).await;
    }
    drop(store);
    let store = open_with(dir.path(), options);
    let newest = store.current_revision().await.expect("open");
    assert!(matches!(store.watch(key("a"), newest - 21).await, Err(Error::Compacted { .. })));
    let mut watch = store.watch(key("a"), newest - 20).await.expect("in the window");
    assert_eq!(until(&mut watch, newest).await.len(), 20);
}

#[tokio::test]
async fn the_file_does_not_grow_with_overwrites() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open_with(dir.path(), Options { history_count: 50, ..Options::default() });
    let size = || std::fs::metadata(dir.path().join("store")).expect("there").len();
    let text = "x".repeat(4096);
    let mut sizes = Vec::new();
    for _ in 0..4 {
        for i in 0..150 {
            commit(&*store, ops(vec![put(&format!("k{}", i % 10), &text)])).await;
        }
        sizes.push(size());
    }
    assert!(sizes[3] <= 2 * sizes[0], "it settles: {sizes:?}");
}

#[tokio::test]
async fn keys_expire_and_their_time_starts_afresh_on_open() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("store");
    let (ambient, clock) = Ambient::manual(jiff_epoch(), 1);
    let store = Embedded::open(&path, ambient.clone(), Options::default()).expect("opens");
    let ttl = |name: &str, seconds| {
        let ttl = Some(Duration::from_secs(seconds));
        ops(vec![Op::Put { key: key(name), value: key("v"), ttl }])
    };
    commit(&*store, ttl("short", 10)).await;
    commit(&*store, ttl("kept", 10)).await;
    commit(&*store, ttl("long", 100)).await;
    let last = commit(&*store, ops(vec![put("kept", "for ever now")])).await;
    let mut watch = store.watch(Bytes::new(), last).await.expect("in the window");
    clock.advance(Duration::from_secs(11));
    let gone = next(&mut watch).await.expect("goes on").expect("no error");
    assert_eq!(gone.events[0].key, "short");
    assert!(gone.events[0].entry.is_none());
    drop(store);

    clock.advance(Duration::from_secs(1000));
    let store = Embedded::open(&path, ambient, Options::default()).expect("opens");
    let last = commit(&*store, ttl("marker", 1)).await;
    let mut watch = store.watch(Bytes::new(), last).await.expect("in the window");
    clock.advance(Duration::from_secs(50));
    assert_eq!(next(&mut watch).await.expect("goes on").expect("no error").events[0].key, "marker");
    assert!(value(&*store, "long").await.is_some(), "100 s begin when the store is opened");
    clock.advance(Duration::from_secs(51));
    assert_eq!(next(&mut watch).await.expect("goes on").expect("no error").events[0].key, "long");
    assert!(value(&*store, "kept").await.is_some());
}

fn jiff_epoch() -> jiff::Timestamp {
    jiff::Timestamp::UNIX_EPOCH
}

#[tokio::test]
async fn a_second_opener_is_told_that_it_is_in_use() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("store");
    let store = open(dir.path());
    let second = Embedded::open(&path, Ambient::system(), Options::default());
    assert!(matches!(second, Err(Error::InUse(_))), "{second:?}");
    store.close().await;
    Embedded::open(&path, Ambient::system(), Options::default()).expect("free after close");
}

#[tokio::test]
async fn foreign_files_and_unknown_versions_are_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let text = dir.path().join("text");
    std::fs::write(&text, "not a store".repeat(1000)).expect("written");
    let foreign = dir.path().join("foreign");
    drop(redb::Database::create(&foreign).expect("a database"));
    let newer = dir.path().join("newer");
    drop(Embedded::open(&newer, Ambient::system(), Options::default()).expect("opens"));
    let database = redb::Database::create(&newer).expect("a database");
    let write = database.begin_write().expect("begins");
    let mut format = b"statefuld-store\0".to_vec();
    format.extend_from_slice(&99u32.to_le_bytes());
    let table: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("meta");
    write.open_table(table).expect("opens").insert("format", format.as_slice()).expect("writes");
    write.commit().expect("commits");
    drop(database);
    for (path, word) in [(text, ""), (foreign, "not a store"), (newer, "99")] {
        let refused = Embedded::open(&path, Ambient::system(), Options::default());
        let Err(Error::Unreadable { why, .. }) = refused else { panic!("{path:?}: {refused:?}") };
        assert!(why.contains(word), "{why}");
    }
}

#[tokio::test]
async fn what_a_crash_left_of_making_a_store_is_no_hindrance() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(dir.path().join("store.new"), vec![7; 100_000]).expect("written");
    let store = open(dir.path());
    commit(&*store, ops(vec![put("a", "1")])).await;
    assert!(!dir.path().join("store.new").exists());
}

#[tokio::test]
async fn limits_on_sizes_are_kept() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let options = Options { max_key: 8, max_value: 16, max_txn: 40, max_bytes: 100, ..Options::default() };
    let store = open_with(dir.path(), options);
    let too_large = async |txn: Txn| match store.txn(txn).await {
        Err(Error::TooLarge { what, .. }) => what,
        other => panic!("must be refused: {other:?}"),
    };
    assert_eq!(too_large(ops(vec![put("123456789", "")])).await, "key");
    assert_eq!(too_large(ops(vec![put("k", &"v".repeat(17))])).await, "value");
    assert_eq!(too_large(ops((0..4).map(|i| put(&i.to_string(), &"v".repeat(16))).collect())).await, "transaction");
    let mut full = false;
    for i in 0..10 {
        match store.txn(ops(vec![put(&i.to_string(), &"v".repeat(16))])).await {
            Ok(_) => assert!(!full, "full stays full"),
            Err(Error::Full(_)) => full = true,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(full);
    for i in 0..10 {
        commit(&*store, ops(vec![delete(&i.to_string())])).await;
    }
    commit(&*store, ops(vec![put("k", "room again")])).await;
}

#[tokio::test]
async fn closing_ends_watches_and_refuses_writes() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    let mut watch = store.watch(Bytes::new(), 1).await.expect("in the window");
    store.close().await;
    assert!(matches!(next(&mut watch).await, Some(Err(Error::Closed(_)))));
    assert!(next(&mut watch).await.is_none());
    assert!(matches!(store.txn(ops(vec![put("a", "1")])).await, Err(Error::Closed(_))));
    assert!(matches!(store.watch(Bytes::new(), 1).await, Err(Error::Closed(_))));
    store.close().await;
}
