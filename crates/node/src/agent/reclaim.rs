//! Removes the data of released volumes: those with reclaim policy Delete whose claim is gone.
//!
//! The volumes controller marks such a volume with the finalizer `statefuld.io/local-data`. The node that holds
//! the data removes the folder and then the finalizer, so that the object goes when the data is gone and not before.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::Shared;

/// What holds a volume until its data is gone.
const FINALIZER: &str = "statefuld.io/local-data";
/// Pause after a removal that failed, before the volumes are looked through again.
const RETRY: Duration = Duration::from_secs(30);

/// Watches volumes until `term`.
pub(super) async fn run(shared: Arc<Shared>) {
    let local = shared.local.clone();
    tokio::task::spawn_blocking(move || local.sweep()).await.expect("sweeping does not panic");
    loop {
        let api: Api<PersistentVolume> = Api::all(shared.client.clone());
        let volumes = watcher(api, watcher::Config::default()).default_backoff().applied_objects();
        let mut volumes = std::pin::pin!(volumes.into_stream());
        let failed = loop {
            let next = tokio::select! {
                next = volumes.next() => next,
                () = shared.term.cancelled() => return,
            };
            match next {
                Some(Ok(volume)) => {
                    if let Err(error) = reclaim(&shared, &volume).await {
                        tracing::warn!(volume = %volume.name_any(), %error, "a released volume was not removed; trying again");
                        break true;
                    }
                }
                Some(Err(error)) => tracing::debug!(%error, "the watch of volumes broke; going on"),
                None => break false,
            }
        };
        let pause = if failed { RETRY } else { Duration::from_secs(1) };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shared.term.cancelled() => return,
        }
    }
}

async fn reclaim(shared: &Shared, volume: &PersistentVolume) -> Result<(), Error> {
    if !is_ours(shared, volume) {
        return Ok(());
    }
    let path = volume.spec.as_ref().and_then(|s| s.local.as_ref()).map(|l| l.path.clone()).unwrap_or_default();
    let (local, nonce) = (shared.local.clone(), shared.ambient.suffix(10));
    let removing = tokio::task::spawn_blocking(move || local.reclaim(Path::new(&path), &nonce));
    removing.await.expect("removing does not panic")?;
    let api: Api<PersistentVolume> = Api::all(shared.client.clone());
    let left: Vec<&String> = volume.finalizers().iter().filter(|f| *f != FINALIZER).collect();
    // With the version, so that a finalizer that somebody added meanwhile is not taken away.
    let metadata = json!({"finalizers": left, "resourceVersion": volume.resource_version(), "uid": volume.uid()});
    match api.patch(&volume.name_any(), &PatchParams::default(), &Patch::Merge(json!({"metadata": metadata}))).await {
        Ok(_) => Ok(()),
        // Changed meanwhile: its next version comes along the watch.
        Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Released, to be deleted, and on this node.
fn is_ours(shared: &Shared, volume: &PersistentVolume) -> bool {
    let Some(spec) = &volume.spec else { return false };
    let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref());
    // Only the controller says so, after a fresh look at the claim. A volume that is being deleted may still be bound,
    // or about to be.
    let over = phase == Some("Released");
    let delete = spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete");
    let marked = volume.finalizers().iter().any(|f| f == FINALIZER);
    over && delete && marked && spec.local.is_some() && names_node(volume, &shared.config.node_name)
}

/// Whether the volume's node affinity names this node.
fn names_node(volume: &PersistentVolume, node: &str) -> bool {
    let required = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()).and_then(|a| a.required.as_ref());
    let terms = required.into_iter().flat_map(|r| &r.node_selector_terms);
    let expressions = terms.flat_map(|t| t.match_expressions.iter().flatten());
    let mut hosts = expressions.filter(|e| e.key == "kubernetes.io/hostname" && e.operator == "In");
    hosts.any(|e| e.values.iter().flatten().any(|v| v == node))
}

/// Why a released volume is still there.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The folder cannot be removed.
    #[error(transparent)]
    Volume(#[from] crate::volume::Error),
    /// The finalizer cannot be removed.
    #[error(transparent)]
    Api(#[from] kube::Error),
}
