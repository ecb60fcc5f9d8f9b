//! Many writers and watchers at once.

mod common;

use std::collections::BTreeSet;

use common::*;
use statefuld_store::{Store, TxnOutcome};

const WRITERS: usize = 64;
const ROUNDS: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_increment_is_lost_among_64_writers() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    commit(&*store, ops(vec![put("counter", "0")])).await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut done = 0;
                while done < 5 {
                    let entry = store.get(b"counter", 0).await.expect("open").expect("there");
                    let n: u64 = std::str::from_utf8(&entry.value).expect("text").parse().expect("a number");
                    let txn = when("counter", entry.mod_revision, vec![put("counter", &(n + 1).to_string())]);
                    if let TxnOutcome::Committed { .. } = store.txn(txn).await.expect("open") {
                        done += 1;
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("no panic");
    }
    assert_eq!(value(&*store, "counter").await, Some((WRITERS * 5).to_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_watcher_sees_every_write_once_in_order_and_writers_see_their_own() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = open(dir.path());
    let end = 1 + (WRITERS * ROUNDS) as u64;
    let watchers: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut after = 1;
                let mut seen = Vec::new();
                // Starts over from where it was, again and again, while the writers write.
                while after < end {
                    let mut watch = store.watch(key("w"), after).await.expect("in the window");
                    for _ in 0..50 {
                        if after == end {
                            break;
                        }
                        let batch = next(&mut watch).await.expect("goes on").expect("fast enough");
                        after = batch.revision;
                        seen.extend(batch.events.iter().map(|_| batch.revision));
                    }
                }
                seen
            })
        })
        .collect();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut revisions = Vec::new();
                for round in 0..ROUNDS {
                    let name = format!("w{writer}");
                    let revision = commit(&*store, ops(vec![put(&name, &round.to_string())])).await;
                    let own = store.get(name.as_bytes(), revision).await.expect("visible").expect("there");
                    assert_eq!(own.mod_revision, revision);
                    revisions.push(revision);
                }
                revisions
            })
        })
        .collect();
    let mut all = BTreeSet::new();
    for writer in writers {
        for revision in writer.await.expect("no panic") {
            assert!(all.insert(revision), "revision {revision} came twice");
        }
    }
    assert_eq!(all, (2..=end).collect());
    for watcher in watchers {
        assert_eq!(watcher.await.expect("no panic"), (2..=end).collect::<Vec<_>>());
    }
}
