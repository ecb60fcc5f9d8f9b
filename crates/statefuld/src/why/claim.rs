//! Why a claim is not bound, or not gone. Pure.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;

use super::facts::Facts;
use super::{Finding, Link};

/// What a claim says that waits for its first pod: nothing is wrong with it.
const WAITS_FOR_POD: &str = "waits for a pod that uses it (its class binds at first use)";
/// What a claim says whose pod has no node yet: it is the pod that waits.
const WAITS_FOR_NODE: &str = "waits until its pod has a node (its class binds at first use)";
/// The annotation that named the class before there was a field.
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// Marks the class of claims that name none.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

/// Whether a finding says no more than that the claim waits for a pod.
pub fn waits_for_pod(finding: &Finding) -> bool {
    finding.chain.last().is_some_and(|link| link.says == WAITS_FOR_POD || link.says == WAITS_FOR_NODE)
}

/// Why a claim waits. Empty: it is bound and stays.
pub fn explain(facts: &Facts, claim: &PersistentVolumeClaim) -> Vec<Finding> {
    let this = format!("pvc/{}", claim.name_any());
    if let Some(asked) = &claim.metadata.deletion_timestamp {
        return vec![terminating(facts, claim, &this).under(Link::new(&this, "is being deleted").since(Some(asked.0)))];
    }
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    let since = claim.metadata.creation_timestamp.as_ref().map(|time| time.0);
    match phase {
        "Bound" => Vec::new(),
        "Lost" => {
            let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
            let gone = Link::new(format!("pv/{volume}"), "no longer exists");
            let remedy = format!("restore the volume {volume}, or delete the claim: its data cannot be found");
            vec![Finding::of(gone).under(Link::new(&this, "is lost")).helped_by(remedy)]
        }
        _ => vec![pending(facts, claim, &this).under(Link::new(&this, "is not bound").since(since))],
    }
}

fn pending(facts: &Facts, claim: &PersistentVolumeClaim, this: &str) -> Finding {
    let annotated = claim.metadata.annotations.as_ref().and_then(|all| all.get(OLD_CLASS)).cloned();
    let asked = annotated.or_else(|| claim.spec.as_ref().and_then(|spec| spec.storage_class_name.clone()));
    let is_default = |annotations: Option<&std::collections::BTreeMap<String, String>>| {
        annotations.and_then(|all| all.get(DEFAULT_CLASS)).is_some_and(|value| value == "true")
    };
    let class = match &asked {
        Some(name) if name.is_empty() => None,
        Some(name) => facts.classes.iter().find(|class| class.name_any() == *name),
        None => facts.classes.iter().find(|class| is_default(class.metadata.annotations.as_ref())),
    };
    if let (None, Some(name), false) = (class, &asked, facts.classes.is_empty()) {
        if name.is_empty() {
            return Finding::of(Link::new(this, "asks for a volume that a person makes, and none fits"))
                .helped_by("create a PersistentVolume that fits the claim, or name a storage class in it");
        }
        let known: Vec<_> = facts.classes.iter().map(kube::ResourceExt::name_any).collect();
        return Finding::of(Link::new(format!("storageclass/{name}"), "does not exist"))
            .helped_by(format!("create the class {name}, or name one of: {}", known.join(", ")));
    }
    if let Some(event) = facts.event(claim.metadata.uid.as_deref(), "ProvisioningFailed") {
        return Finding::of(Link::new(
            this,
            event.message.clone().unwrap_or_else(|| "cannot be provisioned".to_owned()),
        ));
    }
    let at_first_use = class.and_then(|class| class.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer");
    let used = users(facts, claim).next().is_some();
    if at_first_use && !used {
        return Finding::of(Link::new(this, WAITS_FOR_POD));
    }
    let event = ["ExternalProvisioning", "FailedBinding"]
        .into_iter()
        .find_map(|reason| facts.event(claim.metadata.uid.as_deref(), reason));
    if at_first_use && event.is_none() {
        return Finding::of(Link::new(this, WAITS_FOR_NODE));
    }
    let says = event.and_then(|event| event.message.clone()).unwrap_or_else(|| "waits for its volume".to_owned());
    Finding::of(Link::new(this, says))
}

fn terminating(facts: &Facts, claim: &PersistentVolumeClaim, this: &str) -> Finding {
    let users: Vec<_> = users(facts, claim).map(kube::ResourceExt::name_any).collect();
    if !users.is_empty() {
        return Finding::of(Link::new(this, format!("is in use by {}", users.join(", "))))
            .helped_by(format!("it goes when {} is gone", users.join(" and ")));
    }
    let finalizers = claim.metadata.finalizers.clone().unwrap_or_default();
    Finding::of(Link::new(this, format!("is held by finalizer {}", finalizers.join(", "))))
}

/// The pods that use a claim.
fn users<'a>(facts: &'a Facts, claim: &PersistentVolumeClaim) -> impl Iterator<Item = &'a Pod> {
    let name = claim.name_any();
    facts.pods.iter().filter(move |pod| {
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref()).any(|source| source.claim_name == name)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claim(json: serde_json::Value) -> PersistentVolumeClaim {
        serde_json::from_value(json).expect("a claim")
    }

    #[test]
    fn a_class_that_does_not_exist_is_named_with_those_that_do() {
        let mut facts = Facts::none();
        facts.classes = serde_json::from_value(json!([{"metadata": {"name": "local"}, "provisioner": "p"}])).unwrap();
        let found = explain(&facts, &claim(json!({"metadata": {"name": "d"}, "spec": {"storageClassName": "gp2"}})));
        assert_eq!(found[0].sentence(facts.now), "pvc/d is not bound: storageclass/gp2 does not exist");
        assert_eq!(found[0].unblock, ["create the class gp2, or name one of: local"]);
    }

    #[test]
    fn a_claim_that_goes_names_who_still_uses_it() {
        let mut facts = Facts::none();
        facts.pods = serde_json::from_value(json!([{"metadata": {"name": "web-0"}, "spec": {"containers": [],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "d"}}]}}]))
        .unwrap();
        let going = claim(json!({"metadata": {"name": "d", "deletionTimestamp": "1970-01-01T00:00:00Z"}}));
        assert_eq!(explain(&facts, &going)[0].sentence(facts.now), "pvc/d is being deleted for 0s: is in use by web-0");
    }
}
