//! `kill -9` at random moments: every acknowledged write is there afterwards, no revision comes twice.
//!
//! The test starts its own binary again as a writer that reports each acknowledged write on a pipe.

mod common;

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use ambient::Ambient;
use common::*;
use statefuld_store::{RangeQuery, Store};

const FOLDER: &str = "STATEFULD_STORE_CRASH_FOLDER";
const ROUNDS: usize = 25;
const WRITERS: usize = 8;

/// Not a test of its own: the writer that is killed. Does nothing unless the test below starts it.
#[test]
fn child_writes_until_it_is_killed() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let store = open(Path::new(&folder));
        let start = store.current_revision().await.expect("open");
        let writers = (0..WRITERS).map(|writer| tokio::spawn(write_for_ever(store.clone(), writer, start)));
        futures::future::join_all(writers.collect::<Vec<_>>()).await;
    });
}

/// Each writer overwrites, and now and then deletes, keys of its own.
async fn write_for_ever(store: Arc<statefuld_store::embedded::Embedded>, writer: usize, start: u64) {
    for n in 0u64.. {
        let key = format!("w{writer}/{}", n % 17);
        let value = format!("{start}-{n}-{}", "x".repeat((n % 900) as usize));
        let revision = if n % 7 == 6 {
            commit(&*store, ops(vec![delete(&key)])).await
        } else {
            commit(&*store, ops(vec![put(&key, &value)])).await
        };
        let mut out = std::io::stdout().lock();
        let what = if n % 7 == 6 { "-".to_owned() } else { value };
        // One line, one write: a kill leaves at most the last line cut.
        if out.write_all(format!("ack {revision} {key} {what}\n").as_bytes()).and_then(|()| out.flush()).is_err() {
            return;
        }
    }
}

#[test]
fn every_acknowledged_write_survives_kill_9() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let ambient = Ambient::system();
    // Key → revision and value (`-`: deleted) of the newest acknowledged write.
    let mut acknowledged: HashMap<String, (u64, String)> = HashMap::new();
    let mut revisions = HashSet::new();
    let mut newest = 1;
    let mut total = 0;
    for round in 0..ROUNDS {
        let mut byte = [0u8; 2];
        ambient.fill(&mut byte);
        let kill_after = usize::from(u16::from_le_bytes(byte)) % 400;
        let lines = write_and_kill(dir.path(), kill_after);
        for line in &lines {
            let mut words = line.splitn(4, ' ').skip(1);
            let revision: u64 = words.next().and_then(|w| w.parse().ok()).expect("a revision");
            let (key, value) = (words.next().expect("a key"), words.next().expect("a value"));
            total += 1;
            let entry = acknowledged.entry(key.to_owned()).or_default();
            if revision > entry.0 {
                *entry = (revision, value.to_owned());
            }
        }
        for (revision, deletes) in lines.iter().filter_map(|line| revision_of(line)) {
            // A delete of what is not there has the revision of another's write.
            assert!(deletes || revisions.insert(revision), "round {round}: revision {revision} came twice");
            assert!(deletes || revision > newest, "round {round}: revision {revision} was served before");
        }
        let at_least = lines.iter().filter_map(|line| revision_of(line)).map(|(at, _)| at).max();
        newest = check(dir.path(), &acknowledged, newest.max(at_least.unwrap_or(0)), round);
    }
    assert!(total > ROUNDS, "the writers wrote: {total}");
}

/// Runs the writer until it has acknowledged so many writes, kills it, and gives all whole lines.
fn write_and_kill(folder: &Path, kill_after: usize) -> Vec<String> {
    let binary = std::env::current_exe().expect("this test's binary");
    let mut child: Child = Command::new(binary)
        .args(["--exact", "child_writes_until_it_is_killed", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the writer starts");
    let mut reader = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut lines = Vec::new();
    let mut line = Vec::new();
    let mut killed = false;
    while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        if let Some(at) = find(&line, b"ack ")
            && line.ends_with(b"\n")
        {
            lines.push(String::from_utf8_lossy(&line[at..line.len() - 1]).into_owned());
        }
        line.clear();
        if lines.len() > kill_after && !killed {
            child.kill().expect("killed");
            killed = true;
        }
    }
    child.wait().expect("reaped");
    assert!(killed, "the writer ended by itself after {} writes", lines.len());
    lines
}

/// The revision of a report, and whether it reports a delete.
fn revision_of(line: &str) -> Option<(u64, bool)> {
    Some((line.split(' ').nth(1)?.parse().ok()?, line.ends_with(" -")))
}

fn find(line: &[u8], word: &[u8]) -> Option<usize> {
    line.windows(word.len()).position(|window| window == word)
}

/// Opens the store and compares; gives its revision.
fn check(folder: &Path, acknowledged: &HashMap<String, (u64, String)>, at_least: u64, round: usize) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let store = open(folder);
        let revision = store.current_revision().await.expect("open");
        assert!(revision >= at_least, "round {round}: at {revision}, acknowledged {at_least}");
        for (key, (acked, value)) in acknowledged {
            match store.get(key.as_bytes(), 0).await.expect("open") {
                // Written again without an answer: allowed, and newer.
                Some(entry) if entry.mod_revision > *acked => {}
                Some(entry) => {
                    assert_eq!(entry.mod_revision, *acked, "round {round}: {key} went back");
                    assert_eq!(entry.value, value.as_bytes(), "round {round}: {key}");
                }
                // Deleted, or about to be reported so: a writer has one write under way at most.
                None => assert!(value == "-" || revision > *acked, "round {round}: {key} is lost"),
            }
        }
        check_history(&*store, revision).await;
        revision
    })
}

/// The history that survived leads to the present: its last word on each key is what the key holds.
async fn check_history(store: &dyn Store, revision: u64) {
    let oldest = match store.watch(key(""), 0).await {
        Ok(_) => 0,
        Err(statefuld_store::Error::Compacted { oldest, .. }) => oldest,
        Err(other) => panic!("{other}"),
    };
    let mut watch = store.watch(key(""), oldest).await.expect("in the window");
    let mut last = HashMap::new();
    let mut at = oldest;
    while at < revision {
        let batch = next(&mut watch).await.expect("goes on").expect("no error");
        assert!(batch.events.is_empty() || batch.revision > at, "revisions rise");
        at = batch.revision;
        for event in batch.events {
            last.insert(event.key, event.entry);
        }
    }
    let range = store.range(RangeQuery::default()).await.expect("open");
    let present: HashMap<_, _> = range.entries.into_iter().map(|e| (e.key.clone(), e)).collect();
    for (key, entry) in last {
        assert_eq!(present.get(&key), entry.as_ref());
    }
}
