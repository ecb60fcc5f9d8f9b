//! What is next for a volume. No I/O.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::{PROVISIONED_BY, PROVISIONER};
use crate::work::{name, uid};

/// The next thing to do for a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing, until something changes.
    Rest,
    /// Write this phase.
    Phase(&'static str),
    /// Delete the object; the agent of its node deletes the data, then the last finalizer.
    Delete,
}

/// Decides. `claim` is the claim that the volume names, as the API has it now.
pub(super) fn next(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> Step {
    let spec = volume.spec.clone().unwrap_or_default();
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let deleting = volume.metadata.deletion_timestamp.is_some();
    let to_phase = |wanted: &'static str| if phase == wanted { None } else { Some(Step::Phase(wanted)) };
    let holder = spec.claim_ref.as_ref().and_then(|holder| holder.uid.as_deref()).filter(|uid| !uid.is_empty());
    let Some(holder) = holder else { return to_phase("Available").unwrap_or(Step::Rest) };
    let alive = claim.filter(|claim| uid(*claim) == holder);
    if let Some(claim) = alive {
        let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).filter(|n| !n.is_empty());
        return match named {
            Some(named) if named == name(volume) => to_phase("Bound").unwrap_or(Step::Rest),
            // It has chosen another volume since: this one holds nothing of it.
            Some(_) => release(volume, phase, deleting),
            // It is about to choose this one.
            None => Step::Rest,
        };
    }
    release(volume, phase, deleting)
}

/// A volume whose claim is gone for good.
fn release(volume: &PersistentVolume, phase: &str, deleting: bool) -> Step {
    if phase != "Released" && phase != "Failed" {
        return Step::Phase("Released");
    }
    let annotations = volume.metadata.annotations.as_ref();
    let ours = annotations.and_then(|a| a.get(PROVISIONED_BY)).is_some_and(|by| by == PROVISIONER);
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    if !deleting && ours && policy == Some("Delete") { Step::Delete } else { Step::Rest }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn volume(change: impl FnOnce(&mut Value)) -> PersistentVolume {
        let mut volume = json!({
            "metadata": {"name": "v", "annotations": {PROVISIONED_BY: PROVISIONER}},
            "spec": {"claimRef": {"namespace": "d", "name": "c", "uid": "u1"}, "persistentVolumeReclaimPolicy": "Delete"},
            "status": {"phase": "Bound"},
        });
        change(&mut volume);
        serde_json::from_value(volume).expect("a volume")
    }

    fn claim(uid: &str, volume: &str) -> PersistentVolumeClaim {
        let claim = json!({"metadata": {"name": "c", "namespace": "d", "uid": uid}, "spec": {"volumeName": volume}});
        serde_json::from_value(claim).expect("a claim")
    }

    #[test]
    fn a_volume_with_a_living_claim_is_bound_and_never_deleted() {
        assert_eq!(next(&volume(|_| ()), Some(&claim("u1", "v"))), Step::Rest);
        assert_eq!(next(&volume(|v| v["status"] = json!({})), Some(&claim("u1", "v"))), Step::Phase("Bound"));
        let deleting = volume(|v| v["metadata"]["deletionTimestamp"] = json!("2030-01-01T00:00:00Z"));
        assert_eq!(next(&deleting, Some(&claim("u1", "v"))), Step::Rest);
        assert_eq!(next(&volume(|v| v["status"] = json!({})), Some(&claim("u1", ""))), Step::Rest);
    }

    #[test]
    fn a_volume_whose_claim_is_gone_is_released_and_then_deleted() {
        let again = claim("u2", "");
        for claim in [None, Some(&again)] {
            assert_eq!(next(&volume(|_| ()), claim), Step::Phase("Released"));
            let released = volume(|v| v["status"]["phase"] = json!("Released"));
            assert_eq!(next(&released, claim), Step::Delete);
            let deleting = volume(|v| {
                v["status"]["phase"] = json!("Released");
                v["metadata"]["deletionTimestamp"] = json!("2030-01-01T00:00:00Z");
            });
            assert_eq!(next(&deleting, claim), Step::Rest);
        }
    }

    #[test]
    fn what_is_to_be_retained_or_not_ours_stays() {
        let retained = volume(|v| {
            v["status"]["phase"] = json!("Released");
            v["spec"]["persistentVolumeReclaimPolicy"] = json!("Retain");
        });
        assert_eq!(next(&retained, None), Step::Rest);
        let foreign = volume(|v| {
            v["status"]["phase"] = json!("Released");
            v["metadata"]["annotations"] = json!({});
        });
        assert_eq!(next(&foreign, None), Step::Rest);
    }

    #[test]
    fn a_volume_made_by_hand_is_available() {
        let free = volume(|v| {
            v["spec"]["claimRef"] = Value::Null;
            v["status"] = Value::Null;
        });
        assert_eq!(next(&free, None), Step::Phase("Available"));
        let freed = volume(|v| v["spec"]["claimRef"] = Value::Null);
        assert_eq!(next(&freed, None), Step::Phase("Available"), "so that its protection lets it go");
    }
}
