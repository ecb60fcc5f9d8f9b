//! Follows the store and brings every change to its shelf, then moves the cache's revision.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use store::{Batch, Watch};
use tokio_util::sync::CancellationToken;

use super::{Cache, Change, ROOT, Shelf, split_key};
use crate::object::{Key, Object};

/// Keys with their new objects (`None`: deleted).
pub(super) type Changes = Vec<(Key, Option<Arc<Object>>)>;

/// So many revisions before the start are read again into the history.
const LOOK_BACK: u64 = 1000;
/// How long the store may take for the next one of them.
const RECALL_PATIENCE: Duration = Duration::from_millis(100);
/// Pause before the store is asked again after it failed.
const RETRY: Duration = Duration::from_millis(200);

/// Follows the store from `revision` until `token` is cancelled.
pub(super) async fn run(cache: Arc<Cache>, mut revision: u64, token: CancellationToken) {
    let follow = async {
        loop {
            match cache.store.watch(ROOT.into(), revision).await {
                Ok(watch) => {
                    cache.set_trouble(None);
                    revision = follow(&cache, watch, revision).await;
                }
                Err(store::Error::Compacted { .. } | store::Error::Future { .. }) => match cache.load().await {
                    Ok(loaded) => revision = loaded,
                    Err(error) => pause(&cache, &error).await,
                },
                Err(error) => pause(&cache, &error).await,
            }
        }
    };
    tokio::select! {
        // First, so that a store that closes after its server is not mourned.
        biased;
        () = token.cancelled() => {}
        () = follow => {}
    }
}

/// Applies batches until the watch ends; gives the last revision.
async fn follow(cache: &Cache, mut watch: Watch, mut revision: u64) -> u64 {
    while let Some(batch) = watch.batches.recv().await {
        match batch {
            Ok(batch) => {
                revision = batch.revision;
                apply(cache, batch);
            }
            Err(error) => {
                tracing::warn!(%error, "the watch on the store ended; watching again");
                break;
            }
        }
    }
    revision
}

/// One transaction: shelf by shelf, then the revision.
fn apply(cache: &Cache, batch: Batch) {
    // One transaction touches few kinds: a list is searched faster than a map is built.
    let mut by_shelf: Vec<(Arc<Shelf>, Changes)> = Vec::new();
    for event in batch.events {
        let Some((group, plural, key)) = split_key(&event.key) else {
            cache.note(event.key, event.entry);
            continue;
        };
        for shelf in cache.following(group, plural) {
            let object = match event.entry.clone() {
                None => {
                    shelf.forget(&key);
                    None
                }
                Some(entry) => match shelf.read_object(key.clone(), entry, true) {
                    Some(object) => Some(object),
                    None => continue,
                },
            };
            match by_shelf.iter_mut().find(|(other, _)| Arc::ptr_eq(other, &shelf)) {
                Some((_, changes)) => changes.push((key.clone(), object)),
                None => by_shelf.push((shelf, vec![(key.clone(), object)])),
            }
        }
    }
    for (shelf, changes) in by_shelf {
        shelf.apply(batch.revision, changes);
    }
    cache.revision.send_replace(batch.revision);
}

/// Reads the changes before `revision` again, so that watches from before a restart go on where they were.
/// Where the store no longer has them, watches from then are told to start anew.
pub(super) async fn recall(cache: &Cache, revision: u64) {
    let mut from = revision.saturating_sub(LOOK_BACK);
    let mut watch = match cache.store.watch(ROOT.into(), from).await {
        Ok(watch) => watch,
        Err(store::Error::Compacted { oldest, .. }) => {
            from = oldest;
            let Ok(watch) = cache.store.watch(ROOT.into(), from).await else { return };
            watch
        }
        Err(_) => return,
    };
    let mut changes: HashMap<(String, String), Vec<Change>> = HashMap::new();
    let mut reached = from;
    while reached < revision {
        let batch = match tokio::time::timeout(RECALL_PATIENCE, watch.batches.recv()).await {
            Ok(Some(Ok(batch))) => batch,
            // A store that is quiet has said all there is.
            Err(_) => break,
            Ok(_) => return,
        };
        reached = batch.revision;
        if reached > revision {
            break;
        }
        for event in batch.events {
            let Some((group, plural, key)) = split_key(&event.key) else { continue };
            let Some(shelf) = cache.named(group, plural) else { continue };
            let read = |entry: store::Entry| shelf.read_object(key.clone(), entry, false);
            let (current, previous) = (event.entry.and_then(read), event.previous.and_then(read));
            if current.is_some() || previous.is_some() {
                let change = Change::new(batch.revision, current, previous);
                changes.entry((group.to_owned(), plural.to_owned())).or_default().push(change);
            }
        }
    }
    for (place, shelf) in cache.all() {
        shelf.remember(from, changes.remove(&place).unwrap_or_default());
    }
}

/// Waits a little after the store failed.
async fn pause(cache: &Cache, error: &store::Error) {
    cache.set_trouble(Some(error.to_string()));
    tracing::warn!(%error, "the store cannot be watched; trying again");
    tokio::time::sleep(RETRY).await;
}
