//! Claims and volumes are not let go while they are used: the finalizers `pvc-protection` and `pv-protection`.
//!
//! Two controllers of their own, as in Kubernetes: they do their work where nothing binds claims to volumes, too.
//! Before a finalizer is taken off, the API is asked, not the local copy: what is let go here is gone for good.

use ambient::Ambient;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::ListParams;
use kube::{Api, Client};
use serde_json::json;

use super::{PV_PROTECTION, PVC_PROTECTION, patch};
use crate::Term;
use crate::informer::Key;
use crate::informers::{Informers, PodView};
use crate::queue::{Outcome, Queue};
use crate::work::{self, Stop, call, call_opt, name, namespace, uid};

/// Claims looked at at a time.
const WORKERS: usize = 4;

/// What is next for a protected object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing, until something changes.
    Rest,
    /// Put the finalizer on.
    Protect,
    /// Take it off, after a last look.
    Unprotect,
}

/// Decides. The object is told by its metadata, and whether somebody has it.
fn next(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta, finalizer: &str, used: bool) -> Step {
    let protected = meta.finalizers.iter().flatten().any(|f| f == finalizer);
    match (meta.deletion_timestamp.is_some(), protected) {
        (false, false) => Step::Protect,
        (true, true) if !used => Step::Unprotect,
        _ => Step::Rest,
    }
}

/// Keeps claims that pods on nodes use, until the term ends and its requests are settled.
pub async fn run_claims(client: Client, term: Term, ambient: Ambient, informers: Informers) -> kube::Result<()> {
    let queue: Queue<Key> = Queue::new(&term, &ambient);
    let own = queue.clone();
    informers.claims.on_change(move |_, new| {
        if let Some(claim) = new {
            own.add(Key::new(namespace(&**claim), name(&**claim)));
        }
    });
    let own = queue.clone();
    informers.pods.on_change(move |old, new| {
        // A claim is freed by a pod that goes; a pod that comes needs nothing of us.
        for pod in old.filter(|_| new.is_none()).iter() {
            for claim in &pod.claims {
                own.add(Key::new(pod.namespace.clone(), claim.clone()));
            }
        }
    });
    if !informers.pods.synced().await || !informers.claims.synced().await {
        return Ok(());
    }
    work::run(&queue, WORKERS, |key| claim(&client, &term, &informers, key)).await;
    Ok(())
}

async fn claim(client: &Client, term: &Term, informers: &Informers, key: Key) -> Result<Outcome, Stop> {
    let Some(claim) = informers.claims.get(&key.namespace, &key.name) else { return Ok(Outcome::Done) };
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &key.namespace);
    let used = || informers.pods.in_namespace(&key.namespace).iter().any(|pod| uses(pod, &key.name));
    let deleting = claim.metadata.deletion_timestamp.is_some();
    let finalizers = match next(&claim.metadata, PVC_PROTECTION, deleting && used()) {
        Step::Rest => return Ok(Outcome::Done),
        Step::Protect => with(&claim.metadata.finalizers, PVC_PROTECTION),
        Step::Unprotect => {
            let pods: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
            let list = call(term, pods.list(&ListParams::default())).await?;
            if list.items.into_iter().filter_map(PodView::of).any(|pod| uses(&pod, &key.name)) {
                // Its end will tell.
                return Ok(Outcome::Done);
            }
            without(&claim.metadata.finalizers, PVC_PROTECTION)
        }
    };
    settle(patch(term, &claims, &*claim, json!({"metadata": {"finalizers": finalizers}})).await)
}

/// Whether the pod was given a node and mounts the claim; also one that has ended may have it mounted still.
fn uses(pod: &PodView, claim: &str) -> bool {
    pod.node.is_some() && pod.claims.iter().any(|c| c == claim)
}

/// Keeps volumes that claims have, until the term ends and its requests are settled.
pub async fn run_volumes(client: Client, term: Term, ambient: Ambient, informers: Informers) -> kube::Result<()> {
    let queue: Queue<String> = Queue::new(&term, &ambient);
    let own = queue.clone();
    informers.volumes.on_change(move |_, new| {
        if let Some(volume) = new {
            own.add(name(&**volume).to_owned());
        }
    });
    let own = queue.clone();
    informers.claims.on_change(move |old, new| {
        // A volume is freed by the end of its claim.
        if let Some(claim) = old.filter(|_| new.is_none())
            && let Some(volume) = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone())
        {
            own.add(volume);
        }
    });
    if !informers.volumes.synced().await || !informers.claims.synced().await {
        return Ok(());
    }
    work::run(&queue, WORKERS, |name| volume(&client, &term, &informers, name)).await;
    Ok(())
}

async fn volume(client: &Client, term: &Term, informers: &Informers, name: String) -> Result<Outcome, Stop> {
    let Some(volume) = informers.volumes.get("", &name) else { return Ok(Outcome::Done) };
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let deleting = volume.metadata.deletion_timestamp.is_some();
    let used = deleting && (is_bound(&volume) || claim_lives(client, term, &volume).await?);
    let finalizers = match next(&volume.metadata, PV_PROTECTION, used) {
        Step::Rest => return Ok(Outcome::Done),
        Step::Protect => with(&volume.metadata.finalizers, PV_PROTECTION),
        Step::Unprotect => without(&volume.metadata.finalizers, PV_PROTECTION),
    };
    settle(patch(term, &volumes, &*volume, json!({"metadata": {"finalizers": finalizers}})).await)
}

fn is_bound(volume: &PersistentVolume) -> bool {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
}

/// Whether the claim that the volume names exists and has chosen no other. Kubernetes looks at the phase alone; here
/// the end of a volume of class `local` is the end of its data, and the phase is written after the binding.
async fn claim_lives(client: &Client, term: &Term, volume: &PersistentVolume) -> Result<bool, Stop> {
    let Some(holder) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else { return Ok(false) };
    let (Some(space), Some(claim), Some(holder)) = (&holder.namespace, &holder.name, &holder.uid) else {
        return Ok(false);
    };
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), space);
    let Some(found) = call_opt(term, claims.get(claim)).await? else { return Ok(false) };
    let chosen = found.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
    Ok(uid(&found) == holder && (chosen.is_empty() || chosen == name(volume)))
}

/// What changed or went meanwhile comes back as a change.
fn settle<K>(patched: Result<K, Stop>) -> Result<Outcome, Stop> {
    match patched {
        Err(stop) if stop.code() == Some(404) => Ok(Outcome::Done),
        other => other.map(|_| Outcome::Done),
    }
}

fn with(finalizers: &Option<Vec<String>>, finalizer: &str) -> Vec<String> {
    let mut all = finalizers.clone().unwrap_or_default();
    all.push(finalizer.to_owned());
    all
}

fn without(finalizers: &Option<Vec<String>>, finalizer: &str) -> Vec<String> {
    finalizers.iter().flatten().filter(|f| *f != finalizer).cloned().collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use serde_json::json;

    use super::*;

    #[test]
    fn protection_is_put_on_and_goes_when_unused() {
        let meta = |meta: serde_json::Value| serde_json::from_value::<ObjectMeta>(meta).expect("metadata");
        let bare = meta(json!({}));
        let protected = meta(json!({"finalizers": ["x/y", "z"]}));
        let going = meta(json!({"finalizers": ["x/y", "z"], "deletionTimestamp": "2030-01-01T00:00:00Z"}));
        let gone = meta(json!({"finalizers": ["z"], "deletionTimestamp": "2030-01-01T00:00:00Z"}));
        assert_eq!(next(&bare, "x/y", false), Step::Protect);
        assert_eq!(next(&protected, "x/y", false), Step::Rest);
        assert_eq!(next(&going, "x/y", true), Step::Rest);
        assert_eq!(next(&going, "x/y", false), Step::Unprotect);
        assert_eq!(next(&gone, "x/y", false), Step::Rest, "never put on an object that goes");
        assert_eq!(without(&going.finalizers, "x/y"), ["z"]);
        assert_eq!(with(&gone.finalizers, "x/y"), ["z", "x/y"]);
    }
}
