//! The files of a running pod are kept new: its tokens are replaced before they end, and what its volumes hold of config
//! maps, secrets and the pod itself follows its sources.
//!
//! Each volume is written anew as a whole, all files in one step, and only where something in it differs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ambient::Ambient;
use k8s_openapi::api::core::v1::{Pod, Volume};

use super::prepare;
use super::sources::{Fetched, Needs};
use super::tokens::Due;
use super::worker::Worker;

/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(10);
/// Longest time between two looks at the clocks.
const CLOCK_EVERY: Duration = Duration::from_secs(10);

/// When the first of these tokens is to be replaced.
pub(super) fn due(fetched: &Fetched) -> Option<Due> {
    fetched.tokens.values().flatten().map(|token| token.renew_at).reduce(Due::first)
}

/// Ends when it is due. It looks again and again: a machine that slept, or whose clock was set, has less time left than a
/// timer thinks.
async fn until(due: Due, ambient: Ambient) {
    loop {
        let left = due.left(&ambient);
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(CLOCK_EVERY)).await;
    }
}

impl Worker {
    /// Ends when it is time to replace the pod's tokens.
    pub(super) fn until_renewal(&self) -> impl Future<Output = ()> + use<> {
        let (due, ambient) = (self.renew_at, self.shared.ambient.clone());
        async move {
            match due {
                Some(due) => until(due, ambient).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Whether labels or annotations differ from those that its files were last made of.
    pub(super) fn describes_itself_anew(&mut self) -> bool {
        let Some(pod) = self.object() else { return false };
        if !pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).any(tells_of_the_pod) {
            return false;
        }
        let now = Some((pod.metadata.labels.clone(), pod.metadata.annotations.clone()));
        let before = std::mem::replace(&mut self.described, now.clone());
        before.is_some() && before != now
    }

    /// Writes the pod's files anew; where that fails, again after a pause.
    pub(super) async fn renew(&mut self) {
        self.renew_at = None;
        let Some(pod) = self.object() else { return };
        let only = with_file_volumes(&pod);
        let names: BTreeSet<String> =
            only.spec.iter().flat_map(|s| s.volumes.iter().flatten()).map(|v| v.name.clone()).collect();
        if names.is_empty() {
            return;
        }
        match self.write_anew(&pod, &only, names).await {
            Ok(due) => self.renew_at = due,
            Err(why) => {
                tracing::warn!(pod = %self.id.name, why, "the pod's files were not written anew; trying again");
                self.shared.events.warning(&pod, None, "FailedMount", &why);
                let pause = self.shared.ambient.jitter(RETRY, 0.5);
                self.renew_at = Some(Due::after(&self.shared.ambient, pause));
            }
        }
    }

    async fn write_anew(&self, pod: &Pod, only: &Pod, names: BTreeSet<String>) -> Result<Option<Due>, String> {
        let needs = Needs::of(only);
        let fetching = needs.fetch(&self.shared.client, &self.shared.ambient, &self.id.namespace);
        let fetched = tokio::select! {
            fetched = fetching => fetched.map_err(|error| error.to_string())?,
            () = self.shared.term.cancelled() => return Ok(None),
        };
        let due = due(&fetched);
        let pod = match self.address {
            Some(address) => prepare::with_addresses(pod, address, self.shared.host),
            None => pod.clone(),
        };
        let place = prepare::place(&self.shared, &self.dir(), &pod, &BTreeMap::new());
        let writing = tokio::task::spawn_blocking(move || place.renew(&pod, &names, &fetched));
        writing.await.expect("writing files does not panic").map_err(|error| error.to_string())?;
        Ok(due)
    }
}

/// The pod, reduced to its volumes of files.
pub(super) fn with_file_volumes(pod: &Pod) -> Pod {
    let mut only = pod.clone();
    if let Some(spec) = &mut only.spec {
        spec.containers.clear();
        spec.init_containers = None;
        spec.volumes.get_or_insert_default().retain(holds_files);
    }
    only
}

fn holds_files(volume: &Volume) -> bool {
    volume.projected.is_some()
        || volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
}

fn tells_of_the_pod(volume: &Volume) -> bool {
    let projected = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    volume.downward_api.is_some() || projected.into_iter().any(|source| source.downward_api.is_some())
}
