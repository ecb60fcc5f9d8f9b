//! A running pod's tokens are replaced before they end.
//!
//! The volumes that hold them are written anew, all files in one step: what else such a volume holds is as new as its
//! tokens then.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Volume};

use super::sources::{Fetched, Needs};
use super::worker::{self, Worker};

/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(10);

/// When the first of these tokens is to be replaced.
pub(super) fn due(fetched: &Fetched) -> Option<Duration> {
    fetched.tokens.values().flatten().map(|token| token.renew_at).min()
}

impl Worker {
    /// Ends when it is time to replace the pod's tokens.
    pub(super) fn until_renewal(&self) -> impl Future<Output = ()> + use<> {
        let pause = self.renew_at.map(|at| at.saturating_sub(self.shared.ambient.boottime()));
        async move {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Replaces the pod's tokens; where that fails, again after a pause.
    pub(super) async fn renew(&mut self) {
        self.renew_at = None;
        let Some(pod) = self.object() else { return };
        let only = with_token_volumes(&pod);
        let names: BTreeSet<String> =
            only.spec.iter().flat_map(|s| s.volumes.iter().flatten()).map(|v| v.name.clone()).collect();
        if names.is_empty() {
            return;
        }
        match self.write_anew(&pod, &only, names).await {
            Ok(due) => self.renew_at = due,
            Err(why) => {
                tracing::warn!(pod = %self.id.name, why, "the pod's tokens were not replaced; trying again");
                self.shared.events.warning(&pod, None, "FailedMount", &why);
                self.renew_at = Some(self.shared.ambient.boottime() + self.shared.ambient.jitter(RETRY, 0.5));
            }
        }
    }

    async fn write_anew(&self, pod: &Pod, only: &Pod, names: BTreeSet<String>) -> Result<Option<Duration>, String> {
        let needs = Needs::of(only);
        let fetching = needs.fetch(&self.shared.client, &self.shared.ambient, &self.id.namespace);
        let fetched = tokio::select! {
            fetched = fetching => fetched.map_err(|error| error.to_string())?,
            () = self.shared.term.cancelled() => return Ok(None),
        };
        let due = due(&fetched);
        let pod = match self.address {
            Some(address) => worker::with_addresses(pod, address, self.shared.host),
            None => pod.clone(),
        };
        let place = worker::place(&self.shared, &self.dir(), &pod);
        let writing = tokio::task::spawn_blocking(move || place.renew(&pod, &names, &fetched));
        writing.await.expect("writing files does not panic").map_err(|error| error.to_string())?;
        Ok(due)
    }
}

/// The pod, reduced to its volumes that hold tokens.
fn with_token_volumes(pod: &Pod) -> Pod {
    let mut only = pod.clone();
    if let Some(spec) = &mut only.spec {
        spec.containers.clear();
        spec.init_containers = None;
        spec.volumes.get_or_insert_default().retain(holds_token);
    }
    only
}

fn holds_token(volume: &Volume) -> bool {
    let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    sources.into_iter().any(|source| source.service_account_token.is_some())
}
