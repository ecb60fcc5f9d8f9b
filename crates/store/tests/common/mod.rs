//! What the store's tests share.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ambient::Ambient;
use bytes::Bytes;
use statefuld_store::embedded::{Embedded, Options};
use statefuld_store::{Batch, Compare, Error, Op, Store, Txn, TxnOutcome, Watch};

/// Far beyond anything that a healthy store takes, even on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub fn open(dir: &Path) -> Arc<Embedded> {
    open_with(dir, Options::default())
}

pub fn open_with(dir: &Path, options: Options) -> Arc<Embedded> {
    Embedded::open(&dir.join("store"), Ambient::system(), options).expect("the store opens")
}

pub fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub fn put(key: &str, value: &str) -> Op {
    Op::Put { key: self::key(key), value: self::key(value), ttl: None }
}

pub fn delete(key: &str) -> Op {
    Op::Delete { key: self::key(key) }
}

pub fn ops(ops: Vec<Op>) -> Txn {
    Txn { compare: Vec::new(), ops }
}

pub fn when(key: &str, mod_revision: u64, ops: Vec<Op>) -> Txn {
    Txn { compare: vec![Compare { key: self::key(key), mod_revision }], ops }
}

/// Commits, and gives the revision.
pub async fn commit(store: &dyn Store, txn: Txn) -> u64 {
    match store.txn(txn).await.expect("the store takes it") {
        TxnOutcome::Committed { revision } => revision,
        TxnOutcome::Failed { .. } => panic!("the comparison should hold"),
    }
}

pub async fn value(store: &dyn Store, key: &str) -> Option<String> {
    let entry = store.get(key.as_bytes(), 0).await.expect("open")?;
    Some(String::from_utf8(entry.value.to_vec()).expect("tests write text"))
}

/// The next thing a watch says.
pub async fn next(watch: &mut Watch) -> Option<Result<Batch, Error>> {
    tokio::time::timeout(DEADLINE, watch.batches.recv()).await.expect("the watch says something")
}

/// Everything a watch says until it is at `revision`: revision, key and new value of each event.
pub async fn until(watch: &mut Watch, revision: u64) -> Vec<(u64, String, Option<String>)> {
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).expect("tests write text");
    let mut seen = Vec::new();
    let mut last = 0;
    while last < revision {
        let batch = next(watch).await.expect("the watch goes on").expect("no error");
        assert!(batch.revision > last || batch.events.is_empty(), "revisions rise");
        last = batch.revision;
        for event in &batch.events {
            seen.push((batch.revision, text(&event.key), event.entry.as_ref().map(|e| text(&e.value))));
        }
    }
    seen
}
