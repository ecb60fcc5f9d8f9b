//! A store that takes the place of another.

mod common;

use ambient::Ambient;
use common::*;
use statefuld_store::embedded::{Embedded, Options, Seed};
use statefuld_store::{Error, Identity, RangeQuery, Store};

#[tokio::test]
async fn a_restored_store_goes_on_above_the_old_one_and_forgets_its_history() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let old = open(dir.path());
    commit(&*old, ops(vec![put("a", "1")])).await;
    commit(&*old, ops(vec![put("b", "2")])).await;
    let entries = old.range(RangeQuery::default()).await.expect("open").entries;
    let identity = Identity { generation: 7, ..old.identity() };
    let path = dir.path().join("restored");
    Embedded::restore(&path, &Seed { identity, revision: 1000, entries: entries.clone() }).expect("restored");
    let store = Embedded::open(&path, Ambient::system(), Options::default()).expect("it opens");
    assert_eq!(store.identity(), identity);
    let range = store.range(RangeQuery::default()).await.expect("open");
    assert_eq!((range.revision, range.entries), (1000, entries));
    assert!(matches!(store.watch(key(""), 999).await, Err(Error::Compacted { oldest: 1000, .. })));
    let mut watch = store.watch(key(""), 1000).await.expect("from now on");
    assert_eq!(commit(&*store, ops(vec![put("c", "3")])).await, 1001);
    assert_eq!(until(&mut watch, 1001).await.len(), 1);
    store.close().await;
    let again = Embedded::open(&path, Ambient::system(), Options::default()).expect("it opens again");
    assert_eq!(value(&*again, "c").await.as_deref(), Some("3"));
}

#[tokio::test]
async fn a_store_that_is_there_is_never_replaced() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    commit(&*store, ops(vec![put("a", "1")])).await;
    let seed = Seed { identity: store.identity(), revision: 5, entries: Vec::new() };
    assert!(matches!(Embedded::restore(&dir.path().join("store"), &seed), Err(Error::Unreadable { .. })));
    assert_eq!(value(&*store, "a").await.as_deref(), Some("1"));
}
