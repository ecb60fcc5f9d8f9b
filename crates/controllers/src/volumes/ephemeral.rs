//! Claims of generic ephemeral volumes: made from the template in the pod, owned by it, and gone with it.
//!
//! A claim of the right name that is not the pod's own is left alone; the node refuses to give it to the pod. Source:
//! <https://kubernetes.io/docs/concepts/storage/ephemeral-volumes/#generic-ephemeral-volumes>.

use ambient::Ambient;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::PostParams;
use kube::{Api, Client};

use crate::Term;
use crate::informer::Key;
use crate::informers::{Informers, PodView};
use crate::queue::{Outcome, Queue};
use crate::work::{self, Stop, call, call_opt};

/// Pods looked at at a time.
const WORKERS: usize = 4;

/// Makes the claims, until the term ends and its requests are settled.
pub async fn run(client: Client, term: Term, ambient: Ambient, informers: Informers) -> kube::Result<()> {
    let queue: Queue<Key> = Queue::new(&term, &ambient);
    let own = queue.clone();
    informers.pods.on_change(move |_, new| {
        if let Some(pod) = new.filter(|pod| pod.ephemeral && wants(pod)) {
            own.add(Key::new(pod.namespace.clone(), pod.name.clone()));
        }
    });
    let (own, all) = (queue.clone(), informers.clone());
    informers.claims.on_change(move |old, new| {
        // One that was in the way may be gone.
        if let (Some(claim), None) = (old, new) {
            let (namespace, name) = (work::namespace(&**claim), work::name(&**claim));
            let waiting = all.pods.in_namespace(namespace);
            for pod in waiting.iter().filter(|p| p.ephemeral && wants(p) && p.claims.iter().any(|c| c == name)) {
                own.add(Key::new(pod.namespace.clone(), pod.name.clone()));
            }
        }
    });
    if !informers.pods.synced().await || !informers.claims.synced().await {
        return Ok(());
    }
    work::run(&queue, WORKERS, |key| make_all(&client, &term, key)).await;
    Ok(())
}

/// Whether the pod may still need its claims.
fn wants(pod: &PodView) -> bool {
    !pod.deleting && !pod.is_over()
}

async fn make_all(client: &Client, term: &Term, key: Key) -> Result<Outcome, Stop> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
    let Some(pod) = call_opt(term, pods.get(&key.name)).await? else { return Ok(Outcome::Done) };
    if pod.metadata.deletion_timestamp.is_some() {
        return Ok(Outcome::Done);
    }
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &key.namespace);
    for claim in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).filter_map(|v| claim_of(&pod, v)) {
        match call(term, claims.create(&PostParams::default(), &claim)).await {
            Ok(_) => {}
            // It is there, its own or another's; or the namespace is going.
            Err(stop) if matches!(stop.code(), Some(409 | 403 | 404)) => {}
            Err(stop) => return Err(stop),
        }
    }
    Ok(Outcome::Done)
}

/// The claim of one of a pod's volumes, where that is of this kind.
fn claim_of(pod: &Pod, volume: &Volume) -> Option<PersistentVolumeClaim> {
    let template = volume.ephemeral.as_ref()?.volume_claim_template.clone()?;
    let meta = template.metadata.unwrap_or_default();
    let (name, uid) = (pod.metadata.name.clone()?, pod.metadata.uid.clone()?);
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: name.clone(),
        uid,
        controller: Some(true),
        block_owner_deletion: Some(true),
    };
    Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{}", volume.name)),
            namespace: pod.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(template.spec),
        status: None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_is_the_templates_and_the_pods_own() {
        let spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        let template = json!({"metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}, "spec": spec});
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "n", "uid": "u"},
            "spec": {"containers": [], "volumes": [
                {"name": "scratch", "ephemeral": {"volumeClaimTemplate": template}}, {"name": "x", "emptyDir": {}}]}}))
        .expect("a pod");
        let volumes = pod.spec.clone().and_then(|s| s.volumes).expect("volumes");
        let made = serde_json::to_value(claim_of(&pod, &volumes[0]).expect("a claim")).expect("JSON");
        let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "web-0", "uid": "u", "controller": true,
            "blockOwnerDeletion": true}]);
        assert_eq!(
            made["metadata"],
            json!({"name": "web-0-scratch", "namespace": "n", "labels": {"a": "b"},
            "annotations": {"c": "d"}, "ownerReferences": owner})
        );
        assert_eq!(made["spec"], spec);
        assert!(claim_of(&pod, &volumes[1]).is_none());
    }
}
