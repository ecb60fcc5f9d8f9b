//! What is next for a claim. No I/O.

use api::selector::LabelSelector;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{NO_PROVISIONER, PROVISIONED_BY, PROVISIONER};
use crate::scheduler::SELECTED_NODE;
use crate::work::{name, namespace, uid};

/// The annotation that named a claim's class before there was a field for it. It still counts, and counts first.
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// The annotation that makes a class the default.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// Marks a claim whose binding is whole.
pub(super) const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";

/// All that the decision looks at.
pub(super) struct Facts<'a> {
    pub(super) claim: &'a PersistentVolumeClaim,
    /// Every volume there is.
    pub(super) volumes: &'a [std::sync::Arc<PersistentVolume>],
    pub(super) classes: &'a [std::sync::Arc<StorageClass>],
}

/// The next thing to do for a claim.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Nothing, until something changes.
    Rest,
    /// Give it the default class.
    SetClass(String),
    /// Its volume is gone: phase Lost, after a last look.
    Lost { reason: &'static str, message: String },
    /// Write this claim into the volume's claimRef.
    Reserve(Box<PersistentVolume>),
    /// Write the volume's name into the claim.
    Bind(Box<PersistentVolume>),
    /// Both sides agree: write the claim's status.
    MarkBound(Box<PersistentVolume>),
    /// It asks for more than its volume has, which is ours and grows by saying so.
    Grow(Box<PersistentVolume>, Quantity),
    /// It waits, for this reason.
    Wait { warning: bool, reason: &'static str, message: String },
    /// Make a volume on this node (empty: any).
    Provision { class: Box<StorageClass>, node: String },
}

/// Decides. Executing a step and asking again leads to [`Step::Rest`].
pub(super) fn next(facts: &Facts<'_>) -> Step {
    let claim = facts.claim;
    if claim.metadata.deletion_timestamp.is_some() {
        return Step::Rest;
    }
    let spec = claim.spec.clone().unwrap_or_default();
    match spec.volume_name.as_deref().filter(|name| !name.is_empty()) {
        Some(volume) => bound(facts, volume),
        None => unbound(facts, class_of(claim)),
    }
}

/// A claim that names its volume.
fn bound(facts: &Facts<'_>, volume: &str) -> Step {
    let claim = facts.claim;
    let status = claim.status.clone().unwrap_or_default();
    let lost = |reason, message: &str| match status.phase.as_deref() {
        Some("Lost") => Step::Rest,
        _ => Step::Lost { reason, message: message.to_owned() },
    };
    let Some(volume) = facts.volumes.iter().find(|v| name(&***v) == volume) else {
        return lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!");
    };
    match relation(claim, volume) {
        Relation::Free | Relation::Reserved => Step::Reserve(Box::new((**volume).clone())),
        Relation::Other => {
            lost("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
        }
        Relation::Held => {
            let marked = claim.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(BIND_COMPLETED));
            let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
            let whole = status.phase.as_deref() == Some("Bound") && status.capacity.as_ref() == capacity;
            match (marked, whole) {
                (false, _) => Step::Bind(Box::new((**volume).clone())),
                (true, _) if let Some(more) = growth(facts, volume) => Step::Grow(Box::new((**volume).clone()), more),
                (true, false) => Step::MarkBound(Box::new((**volume).clone())),
                (true, true) => Step::Rest,
            }
        }
    }
}

/// What a bound claim asks for beyond what its volume has. A `local` volume is a folder: it grows by its capacity
/// being told.
fn growth(facts: &Facts<'_>, volume: &PersistentVolume) -> Option<Quantity> {
    let ours = volume.metadata.annotations.as_ref()?.get(PROVISIONED_BY)? == PROVISIONER;
    let spec = facts.claim.spec.as_ref()?;
    let class = facts.classes.iter().find(|c| Some(name(&***c)) == class_of(facts.claim))?;
    let wanted = spec.resources.as_ref()?.requests.as_ref()?.get("storage")?;
    let has = bytes(volume.spec.as_ref()?.capacity.as_ref()?.get("storage")?)?;
    let grows = ours && class.allow_volume_expansion == Some(true) && bytes(wanted)? > has;
    grows.then(|| wanted.clone())
}

/// A claim that has no volume yet.
fn unbound(facts: &Facts<'_>, class: Option<&str>) -> Step {
    let claim = facts.claim;
    let related = |wanted: Relation| {
        let fits = |v: &&std::sync::Arc<PersistentVolume>| {
            v.metadata.deletion_timestamp.is_none() && relation(claim, v) == wanted
        };
        facts.volumes.iter().find(fits).map(|v| Box::new((**v).clone()))
    };
    if let Some(volume) = related(Relation::Held) {
        return Step::Bind(volume);
    }
    if let Some(volume) = related(Relation::Reserved) {
        return Step::Reserve(volume);
    }
    let wait = |warning, reason, message: String| Step::Wait { warning, reason, message };
    let none = || {
        let message = "no persistent volumes available for this claim and no storage class is set";
        wait(false, "FailedBinding", message.into())
    };
    let Some(class) = class else {
        return default_class(facts.classes).map_or_else(none, Step::SetClass);
    };
    let found = facts.classes.iter().find(|c| name(&***c) == class);
    let delayed = found.is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
    // Matching a delayed claim with volumes made by hand is the scheduler's choice.
    if !delayed && let Some(volume) = matching(claim, class, facts.volumes).first() {
        return Step::Reserve(Box::new((**volume).clone()));
    }
    if class.is_empty() {
        return none();
    }
    let Some(found) = found else {
        let message = format!("storageclass.storage.k8s.io \"{class}\" not found");
        return wait(true, "ProvisioningFailed", message);
    };
    let annotations = claim.metadata.annotations.as_ref();
    let node = annotations.and_then(|a| a.get(SELECTED_NODE)).cloned().unwrap_or_default();
    if delayed && node.is_empty() {
        let message = "waiting for first consumer to be created before binding";
        return wait(false, "WaitForFirstConsumer", message.into());
    }
    match found.provisioner.as_str() {
        PROVISIONER => Step::Provision { class: Box::new((**found).clone()), node },
        NO_PROVISIONER => none(),
        other => {
            let message = format!(
                "Waiting for a volume to be created either by the external provisioner '{other}' or manually by \
                 the system administrator. If volume creation is delayed, please verify that the provisioner is \
                 running and correctly registered."
            );
            wait(false, "ExternalProvisioning", message)
        }
    }
}

/// How a volume stands to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    /// It names no claim.
    Free,
    /// It names this claim, by name only.
    Reserved,
    /// It names this claim, by uid.
    Held,
    /// It names another.
    Other,
}

fn relation(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Relation {
    let Some(holder) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else {
        return Relation::Free;
    };
    let named = holder.namespace.as_deref() == Some(namespace(claim)) && holder.name.as_deref() == Some(name(claim));
    match holder.uid.as_deref().filter(|uid| !uid.is_empty()) {
        _ if !named => Relation::Other,
        None => Relation::Reserved,
        Some(holder) if holder == uid(claim) => Relation::Held,
        Some(_) => Relation::Other,
    }
}

/// The default class; among several the newest, then the first by name.
fn default_class(classes: &[std::sync::Arc<StorageClass>]) -> Option<String> {
    let marked = |class: &&std::sync::Arc<StorageClass>| {
        let annotations = class.metadata.annotations.as_ref();
        annotations.and_then(|a| a.get(DEFAULT_CLASS)).is_some_and(|value| value == "true")
    };
    let newest = |class: &&std::sync::Arc<StorageClass>| {
        let made = class.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (std::cmp::Reverse(made), name(&***class).to_owned())
    };
    classes.iter().filter(marked).min_by_key(newest).map(|class| name(&**class).to_owned())
}

/// The free volumes made by hand that satisfy the claim, the smallest first.
pub(crate) fn matching(
    claim: &PersistentVolumeClaim,
    class: &str,
    volumes: &[std::sync::Arc<PersistentVolume>],
) -> Vec<std::sync::Arc<PersistentVolume>> {
    let none = PersistentVolumeClaimSpec::default();
    let spec = claim.spec.as_ref().unwrap_or(&none);
    let wanted = spec.resources.as_ref().and_then(|r| bytes(r.requests.as_ref()?.get("storage")?));
    let Some(wanted) = wanted else { return Vec::new() };
    let selector = match &spec.selector {
        None => LabelSelector::everything(),
        Some(selector) => {
            let value = serde_json::to_value(selector).unwrap_or_default();
            LabelSelector::from_json(&value).unwrap_or_else(|_| LabelSelector::nothing())
        }
    };
    let bare = std::collections::BTreeMap::new();
    let fits = |volume: &&std::sync::Arc<PersistentVolume>| {
        let Some(offer) = volume.spec.as_ref() else { return false };
        let modes = offer.access_modes.as_deref().unwrap_or_default();
        let wants = spec.access_modes.as_deref().unwrap_or_default();
        let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".into());
        volume.metadata.deletion_timestamp.is_none()
            && relation(claim, volume) == Relation::Free
            && offer.storage_class_name.as_deref().unwrap_or_default() == class
            && wants.iter().all(|wanted| modes.contains(wanted))
            && mode(&spec.volume_mode) == mode(&offer.volume_mode)
            && selector.matches(volume.metadata.labels.as_ref().unwrap_or(&bare))
            && size(volume) >= Some(wanted)
    };
    let mut fitting: Vec<_> = volumes.iter().filter(fits).cloned().collect();
    fitting.sort_by_key(|v| (size(v), name(&**v).to_owned()));
    fitting
}

/// Whether the volume was given to this very claim.
pub(crate) fn holds(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    relation(claim, volume) == Relation::Held
}

/// The class that a claim names, in its field or, as was done before there was one, by annotation; the field may be
/// empty, which is no class.
pub(crate) fn class_of(claim: &PersistentVolumeClaim) -> Option<&str> {
    let annotated = claim.metadata.annotations.as_ref().and_then(|a| a.get(OLD_CLASS));
    annotated.or_else(|| claim.spec.as_ref()?.storage_class_name.as_ref()).map(String::as_str)
}

fn size(volume: &PersistentVolume) -> Option<u128> {
    bytes(volume.spec.as_ref()?.capacity.as_ref()?.get("storage")?)
}

/// A quantity of storage in whole bytes, rounded up; `None` if it is none.
fn bytes(quantity: &Quantity) -> Option<u128> {
    let text = quantity.0.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u128 = match unit {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction = fraction.get(..fraction.len().min(18))?;
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    whole.checked_mul(factor)?.checked_add(part.checked_mul(factor)?.div_ceil(scale))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn claim(change: impl FnOnce(&mut Value)) -> PersistentVolumeClaim {
        let mut claim = json!({
            "metadata": {"name": "data-web-0", "namespace": "d", "uid": "u1"},
            "spec": {"storageClassName": "local", "accessModes": ["ReadWriteOnce"],
                     "resources": {"requests": {"storage": "1Gi"}}},
            "status": {"phase": "Pending"},
        });
        change(&mut claim);
        serde_json::from_value(claim).expect("a claim")
    }

    fn volume(claim_ref: Value) -> Arc<PersistentVolume> {
        let volume = json!({"metadata": {"name": "v"}, "spec": {
            "capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "local",
            "claimRef": claim_ref}});
        Arc::new(serde_json::from_value(volume).expect("a volume"))
    }

    fn class(name: &str, provisioner: &str, mode: &str, default: &str) -> Arc<StorageClass> {
        let class = json!({"metadata": {"name": name, "annotations": {DEFAULT_CLASS: default}},
            "provisioner": provisioner, "volumeBindingMode": mode});
        Arc::new(serde_json::from_value(class).expect("a class"))
    }

    fn step(claim: &PersistentVolumeClaim, volumes: &[Arc<PersistentVolume>]) -> Step {
        let classes = [
            class("local", PROVISIONER, "WaitForFirstConsumer", "true"),
            class("now", PROVISIONER, "Immediate", "false"),
            class("foreign", "example.com/x", "Immediate", "false"),
        ];
        next(&Facts { claim, volumes, classes: &classes })
    }

    fn reason(step: &Step) -> &str {
        match step {
            Step::Wait { reason, .. } | Step::Lost { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_claim_that_goes_is_left_alone() {
        let deleting = claim(|c| c["metadata"]["deletionTimestamp"] = json!("2030-01-01T00:00:00Z"));
        assert_eq!(step(&deleting, &[]), Step::Rest);
    }

    #[test]
    fn a_delayed_claim_waits_for_its_node_and_is_provisioned_there() {
        assert_eq!(reason(&step(&claim(|_| ()), &[])), "WaitForFirstConsumer");
        let selected = claim(|c| c["metadata"]["annotations"] = json!({SELECTED_NODE: "n1"}));
        assert!(matches!(step(&selected, &[]), Step::Provision { node, .. } if node == "n1"));
        let now = claim(|c| c["spec"]["storageClassName"] = json!("now"));
        assert!(matches!(step(&now, &[]), Step::Provision { node, .. } if node.is_empty()));
    }

    #[test]
    fn classes_that_cannot_be_served_are_told_in_upstreams_words() {
        let with = |class: Value| claim(|c| c["spec"]["storageClassName"] = class);
        assert_eq!(
            step(&with(json!("nope")), &[]),
            Step::Wait {
                warning: true,
                reason: "ProvisioningFailed",
                message: "storageclass.storage.k8s.io \"nope\" not found".into(),
            }
        );
        assert_eq!(reason(&step(&with(json!("foreign")), &[])), "ExternalProvisioning");
        assert_eq!(reason(&step(&with(json!("")), &[])), "FailedBinding");
        assert_eq!(step(&with(Value::Null), &[]), Step::SetClass("local".into()));
    }

    #[test]
    fn a_volume_that_holds_the_claim_is_bound_then_marked_then_left_alone() {
        let held = [volume(json!({"namespace": "d", "name": "data-web-0", "uid": "u1"}))];
        assert_eq!(step(&claim(|_| ()), &held), Step::Bind(Box::new((*held[0]).clone())));
        let named = claim(|c| {
            c["spec"]["volumeName"] = json!("v");
            c["metadata"]["annotations"] = json!({BIND_COMPLETED: "yes"});
        });
        assert!(matches!(step(&named, &held), Step::MarkBound(_)));
        let done = claim(|c| {
            c["spec"]["volumeName"] = json!("v");
            c["metadata"]["annotations"] = json!({BIND_COMPLETED: "yes"});
            c["status"] = json!({"phase": "Bound", "capacity": {"storage": "2Gi"}});
        });
        assert_eq!(step(&done, &held), Step::Rest);
    }

    #[test]
    fn a_volume_of_ours_grows_with_its_claim_where_its_class_allows_that() {
        let mut held = (*volume(json!({"namespace": "d", "name": "data-web-0", "uid": "u1"}))).clone();
        let asking = claim(|c| {
            c["spec"]["volumeName"] = json!("v");
            c["spec"]["resources"]["requests"]["storage"] = json!("3Gi");
            c["metadata"]["annotations"] = json!({BIND_COMPLETED: "yes"});
            c["status"] = json!({"phase": "Bound", "capacity": {"storage": "2Gi"}});
        });
        let next_with = |volume: &PersistentVolume, allowed: bool| {
            let mut class = (*class("local", PROVISIONER, "WaitForFirstConsumer", "true")).clone();
            class.allow_volume_expansion = Some(allowed);
            let (volumes, classes) = ([Arc::new(volume.clone())], [Arc::new(class)]);
            next(&Facts { claim: &asking, volumes: &volumes, classes: &classes })
        };
        assert_eq!(next_with(&held, true), Step::Rest, "somebody else's volume");
        held.metadata.annotations = Some([(PROVISIONED_BY.to_owned(), PROVISIONER.to_owned())].into());
        assert!(matches!(next_with(&held, true), Step::Grow(_, more) if more.0 == "3Gi"));
        assert_eq!(next_with(&held, false), Step::Rest);
    }

    #[test]
    fn a_lost_or_foreign_volume_is_never_taken() {
        let named = claim(|c| c["spec"]["volumeName"] = json!("v"));
        assert_eq!(reason(&step(&named, &[])), "ClaimLost");
        let other = [volume(json!({"namespace": "d", "name": "data-web-0", "uid": "an older claim"}))];
        assert_eq!(reason(&step(&named, &other)), "ClaimMisbound");
        assert_eq!(reason(&step(&claim(|_| ()), &other)), "WaitForFirstConsumer");
    }

    #[test]
    fn volumes_made_by_hand_are_matched() {
        let now = claim(|c| c["spec"]["storageClassName"] = json!(""));
        let mut free = (*volume(Value::Null)).clone();
        assert_eq!(reason(&step(&now, &[Arc::new(free.clone())])), "FailedBinding", "another class");
        free.spec.as_mut().expect("a spec").storage_class_name = None;
        assert!(matches!(step(&now, &[Arc::new(free)]), Step::Reserve(_)));
        let reserved = [volume(json!({"namespace": "d", "name": "data-web-0"}))];
        assert!(matches!(step(&claim(|_| ()), &reserved), Step::Reserve(_)));
    }

    #[test]
    fn quantities_of_storage_are_compared_in_bytes() {
        let quantity = |text: &str| bytes(&k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.into()));
        assert_eq!(quantity("1Gi"), Some(1 << 30));
        assert_eq!(quantity("1.5Ki"), Some(1536));
        assert_eq!(quantity("0.5"), Some(1));
        assert_eq!(quantity("10G"), Some(10_000_000_000));
        assert_eq!(quantity("x"), None);
    }
}
