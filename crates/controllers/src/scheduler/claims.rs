//! How a pod's claims stand, looked up in the local copies.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use super::storage::{ClaimState, Delayed};
use super::{SELECTED_NODE, Scheduler};
use crate::informers::PodView;
use crate::volumes;

/// What is said of a claim that nobody but its class's provisioner can serve.
const UNBOUND: &str = "pod has unbound immediate PersistentVolumeClaims";

impl Scheduler {
    /// All claims of a pod; a claim that is in use stands twice.
    pub(super) fn claims(&self, pod: &PodView) -> Vec<ClaimState> {
        pod.claims.iter().flat_map(|claim| self.claim(pod, claim)).collect()
    }

    fn claim(&self, pod: &PodView, claim: &str) -> Vec<ClaimState> {
        let hopeless = |why: String| vec![ClaimState::Hopeless(why)];
        let Some(found) = self.informers.claims.get(&pod.namespace, claim) else {
            return hopeless(format!("persistentvolumeclaim \"{claim}\" not found"));
        };
        if found.metadata.deletion_timestamp.is_some() {
            return hopeless(format!("persistentvolumeclaim \"{claim}\" is being deleted"));
        }
        let mut states = vec![self.source(claim, &found)];
        let modes = found.spec.iter().flat_map(|spec| spec.access_modes.iter().flatten());
        if modes.into_iter().any(|mode| mode == "ReadWriteOncePod") {
            let users = self.informers.pods.by_index(&format!("claim:{}/{claim}", pod.namespace));
            let others = users.iter().filter(|user| user.uid != pod.uid && user.node.is_some());
            let others: BTreeSet<String> = others.map(|user| user.uid.clone()).collect();
            if !others.is_empty() {
                states.push(ClaimState::InUse(others));
            }
        }
        states
    }

    /// Where a claim's volume is, or comes from.
    fn source(&self, claim: &str, found: &PersistentVolumeClaim) -> ClaimState {
        let hopeless = |why: String| ClaimState::Hopeless(why);
        let spec = found.spec.as_ref();
        let volume = spec.and_then(|spec| spec.volume_name.as_deref()).filter(|name| !name.is_empty());
        let annotations = found.metadata.annotations.as_ref();
        let selected = annotations.and_then(|annotations| annotations.get(SELECTED_NODE)).cloned();
        if let Some(volume) = volume {
            let phase = found.status.as_ref().and_then(|status| status.phase.as_deref());
            if selected.is_some() && phase == Some("Pending") {
                // Being bound where it was asked for: nothing to tell anybody, the change comes.
                return ClaimState::Delayed(Delayed {
                    claim: claim.to_owned(),
                    selected,
                    made: true,
                    ..Delayed::default()
                });
            }
            return match self.informers.volumes.get("", volume) {
                Some(volume) if phase == Some("Bound") => ClaimState::Bound(volume),
                Some(_) => hopeless(UNBOUND.into()),
                None => hopeless(format!("persistentvolume \"{volume}\" not found")),
            };
        }
        let all = self.informers.volumes.all();
        if let Some(held) = all.iter().find(|volume| volumes::holds(volume, found)) {
            // Given to it already, and not yet bound.
            let volumes = vec![held.clone()];
            return ClaimState::Delayed(Delayed { claim: claim.to_owned(), selected, volumes, ..Delayed::default() });
        }
        let Some(class_name) = volumes::class_of(found) else { return hopeless(UNBOUND.into()) };
        let Some(class) = self.informers.classes.get("", class_name) else {
            return hopeless(match class_name {
                "" => UNBOUND.into(),
                class => format!("storageclass.storage.k8s.io \"{class}\" not found"),
            });
        };
        if class.volume_binding_mode.as_deref() != Some("WaitForFirstConsumer") {
            return hopeless(UNBOUND.into());
        }
        ClaimState::Delayed(Delayed {
            claim: claim.to_owned(),
            selected,
            volumes: volumes::matching(found, class_name, &all),
            made: class.provisioner != volumes::NO_PROVISIONER,
            topologies: class.allowed_topologies.clone().unwrap_or_default(),
        })
    }
}
