//! Images go when the disk fills up: the least recently used first, never one that a pod uses.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use image::store::gc::{Disk, Thresholds};
use image::store::{Removed, StoreError};
use image::{Digest, Image, Store};
use jiff::Timestamp;

use super::in_use;
use crate::agent::Shared;

/// How often the disk is looked at. The kubelet's.
const PERIOD: Duration = Duration::from_secs(300);

/// Looks at the disk now and then, and at once when an image did not fit, until the agent ends.
pub(in crate::agent) async fn run(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = shared.disk_full.notified() => {}
            () = shared.term.cancelled() => return,
        }
        let marks = match shared.puller.settings() {
            Ok(settings) => settings.garbage_collection,
            Err(error) => {
                tracing::warn!(%error, "no images are removed");
                continue;
            }
        };
        let (store, pods, now) = (shared.images.clone(), shared.config.pods_dir(), shared.ambient.now());
        let job = move || {
            let disk = disk(store.dir())?;
            collect(&store, &pods, marks, disk, now)
        };
        match tokio::task::spawn_blocking(job).await.expect("removing images does not panic") {
            Ok(None) => {}
            Ok(Some(removed)) => {
                tracing::info!(images = ?removed.images, bytes = removed.bytes, "images were removed: the disk is full");
            }
            Err(error) => tracing::warn!(%error, "images could not be removed"),
        }
    }
}

/// Removes images where the disk is too full; None where it is not.
pub fn collect(
    store: &Store,
    pods: &Path,
    marks: Thresholds,
    disk: Disk,
    now: Timestamp,
) -> Result<Option<Removed>, StoreError> {
    let excess = marks.excess(disk);
    if excess == 0 {
        return Ok(None);
    }
    let choose = |images: &[Image], used: &BTreeSet<Digest>| {
        let freed = |image: &Image| {
            let shared = |chain: &&Digest| images.iter().any(|i| i.id != image.id && i.layers.contains(chain));
            image.layers.iter().filter(|chain| !shared(chain)).map(|chain| store.layer_bytes(chain)).sum()
        };
        marks.choose(images, used, now, excess, freed)
    };
    store.prune(|| in_use(pods), choose).map(Some)
}

fn disk(dir: &Path) -> Result<Disk, StoreError> {
    let stat = rustix::fs::statvfs(dir).map_err(|e| StoreError::Io {
        doing: "look at the disk of",
        path: dir.to_owned(),
        source: e.into(),
    })?;
    let capacity = stat.f_blocks.saturating_mul(stat.f_frsize);
    // What only root could still use is not free.
    Ok(Disk { capacity, used: capacity.saturating_sub(stat.f_bavail.saturating_mul(stat.f_frsize)) })
}
