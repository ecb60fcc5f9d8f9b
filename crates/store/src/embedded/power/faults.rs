//! Full disks, failing disks, slow disks.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::disk::{Plan, Step};
use super::*;
use crate::embedded::OnFatal;
use crate::{Store, TxnOutcome};

/// Writes a history on a disk that becomes full as planned, and makes room whenever a write was refused.
/// True if the disk was ever full.
async fn with_room_made(plan: Plan) -> bool {
    let disk = SimDisk::default();
    let store = open(&disk).expect("opens");
    let mut model = Model::new(store.identity());
    disk.plan(plan);
    for txn in short() {
        let mut outcome = store.txn(txn.clone()).await;
        if let Err(error) = &outcome {
            assert!(matches!(error, Error::Full(_)), "the store goes on: {error}");
            let newest = store.current_revision().await.expect("readers go on");
            assert_eq!(newest, model.newest(), "nothing of what was refused is seen");
            disk.plan(Plan::default());
            outcome = store.txn(txn.clone()).await;
        }
        let Ok(TxnOutcome::Committed { revision }) = outcome else { panic!("there is room: {outcome:?}") };
        model.apply(revision, &txn);
    }
    drop(store);
    let was_full = disk.was_full();
    disk.plan(Plan::default());
    assert_eq!(model.check(&disk, model.newest()), Ok(model.newest()));
    was_full
}

#[tokio::test]
async fn a_full_disk_at_any_write_refuses_that_write_and_the_store_goes_on() {
    // Once, or so often that the file cannot be opened again either; then the writer's answer waits for room.
    for refusals in [1, 2, 4] {
        let mut writes = 0;
        while with_room_made(Plan { full_after: Some(writes), refusals, ..Plan::default() }).await {
            writes += 1;
        }
        assert!(writes > 20, "the history has {writes} writes");
    }
    let mut blocks = 0;
    while with_room_made(Plan { blocks_left: Some(blocks), ..Plan::default() }).await {
        blocks += 1;
    }
    assert!(blocks > 0, "the history needs room");
}

#[tokio::test]
async fn a_disk_that_stays_full_loses_nothing() {
    for blocks in 0..6 {
        let disk = SimDisk::default();
        let store = open(&disk).expect("opens");
        let mut model = Model::new(store.identity());
        disk.plan(Plan { blocks_left: Some(blocks), ..Plan::default() });
        for txn in short() {
            match store.txn(txn.clone()).await {
                Ok(TxnOutcome::Committed { revision }) => model.apply(revision, &txn),
                Err(Error::Full(_)) => {}
                other => panic!("{blocks} blocks: {other:?}"),
            }
        }
        drop(store);
        assert_eq!(model.check(&disk, model.newest()), Ok(model.newest()), "{blocks} blocks");
    }
}

#[tokio::test]
async fn a_failed_sync_closes_the_store_for_good() {
    for syncs in 0.. {
        let disk = SimDisk::default();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let on_fatal: OnFatal = Arc::new(move |_: &str| {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let store = open_with(&disk, Options { on_fatal: Some(on_fatal), ..options() }).expect("opens");
        let mut model = Model::new(store.identity());
        let mut watch = store.watch(Bytes::new(), 1).await.expect("in the window");
        disk.begin();
        disk.plan(Plan { sync_fails_after: Some(syncs), ..Plan::default() });
        let mut failed = false;
        for txn in short() {
            match store.txn(txn.clone()).await {
                Ok(TxnOutcome::Committed { revision }) => {
                    assert!(!failed, "nothing is answered after the failure");
                    model.apply(revision, &txn);
                }
                Err(Error::Closed(_)) => failed = true,
                other => panic!("{other:?}"),
            }
        }
        if !failed {
            assert!(syncs > 5, "the history has {syncs} syncs");
            return;
        }
        assert!(matches!(store.get(b"a", 0).await, Err(Error::Closed(_))));
        let mut last = watch.batches.recv().await;
        while let Some(Ok(_)) = last {
            last = watch.batches.recv().await;
        }
        assert!(matches!(last, Some(Err(Error::Closed(_)))), "watchers are told: {last:?}");
        drop(store);
        assert_eq!(calls.load(Ordering::SeqCst), 1, "the process is told to end, once");
        let log = disk.log();
        let after = log.iter().skip_while(|step| **step != Step::FailedSync).skip(1);
        assert_eq!(after.collect::<Vec<_>>(), [] as [&Step; 0], "nothing is written on pages that nobody knows");
        // The next process; what was under way may be there or not.
        disk.plan(Plan::default());
        model_or_one_more(&model, &disk);
    }
}

/// The transaction whose sync failed may have reached the disk all the same: the model does not know it.
fn model_or_one_more(model: &Model, disk: &SimDisk) {
    match model.check(disk, model.newest()) {
        Ok(revision) => assert_eq!(revision, model.newest()),
        Err(why) => assert_eq!(why, format!("it is at {}, which was never written", model.newest() + 1)),
    }
}

#[tokio::test]
async fn a_slow_sync_holds_up_nobody_but_writers() {
    let disk = SimDisk::default();
    let store = open(&disk).expect("opens");
    let before = write(&disk, &store, short()).await.newest();
    let mut watch = store.watch(Bytes::new(), before).await.expect("at the present");
    disk.plan(Plan { hold_syncs: true, ..Plan::default() });
    let writer = tokio::spawn({
        let store = store.clone();
        async move { store.txn(txn(vec![put("slow", 10, 1)])).await }
    });
    let waiting = disk.clone();
    tokio::task::spawn_blocking(move || waiting.await_held_sync()).await.expect("a sync is under way");

    // Readers and new watchers are served, and see nothing that a loss of power could take back.
    assert_eq!(store.current_revision().await.expect("open"), before);
    assert_eq!(store.get(b"slow", 0).await.expect("open"), None);
    assert_eq!(store.range(crate::RangeQuery::default()).await.expect("open").revision, before);
    let mut replay = store.watch(Bytes::new(), before - 1).await.expect("in the window");
    let batch = replay.batches.recv().await.expect("goes on").expect("no error");
    assert_eq!(batch.revision, before);
    assert!(watch.batches.try_recv().is_err(), "watchers do not know of it yet");
    assert!(!writer.is_finished(), "nor is it acknowledged");

    disk.plan(Plan::default());
    let outcome = writer.await.expect("no panic").expect("committed");
    assert_eq!(outcome, TxnOutcome::Committed { revision: before + 1 });
    for watch in [&mut watch, &mut replay] {
        let batch = watch.batches.recv().await.expect("goes on").expect("no error");
        assert_eq!((batch.revision, batch.events.len()), (before + 1, 1));
    }
}

#[tokio::test]
async fn a_file_that_has_become_too_large_is_compacted_while_it_is_in_use() {
    let disk = SimDisk::default();
    let store = open_with(&disk, Options { compact_above: 1 << 20, ..options() }).expect("opens");
    let mut model = Model::new(store.identity());
    let size = || crate::embedded::medium::Medium::len(&disk);
    let mut commit = async |ops: Vec<Op>| {
        let txn = txn(ops);
        let Ok(TxnOutcome::Committed { revision }) = store.txn(txn.clone()).await else { panic!("the disk is well") };
        model.apply(revision, &txn);
    };
    for n in 0..40 {
        commit(vec![put(&format!("k{n}"), 200_000, 1)]).await;
    }
    let large = size();
    assert!(large > 8 << 20, "{large} bytes");
    for n in 1..40 {
        commit(vec![delete(&format!("k{n}"))]).await;
    }
    // The history forgets, too.
    for n in 0..8 {
        commit(vec![put("small", 10, n)]).await;
    }
    let watch = store.watch(Bytes::new(), model.newest()).await.expect("open");
    // The writer looks after its file when it has nothing else to do; another write shows that it has done so.
    for _ in 0..3 {
        let revision = model.newest() + 1;
        let next = txn(vec![put("small", 10, 9)]);
        store.txn(next.clone()).await.expect("open");
        model.apply(revision, &next);
    }
    store.close().await;
    assert!(size() < large / 3, "{large} bytes became {}", size());
    assert!(watch.batches.len() >= 3, "the watch went on");
    assert_eq!(model.check(&disk, model.newest()), Ok(model.newest()));
}
