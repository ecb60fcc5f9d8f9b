//! The volume that is made for a claim of class `local`: an object that names a folder on a node. No I/O.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    LocalVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, ObjectReference,
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{LOCAL_DATA, PROVISIONED_BY, PROVISIONER, PV_PROTECTION};
use crate::informers::PodView;
use crate::work::{name, namespace, uid};

/// The node's annotation that says where its volumes lie.
pub(super) const VOLUMES_DIR: &str = "statefuld.io/volumes-dir";
/// The label by which a volume is tied to its node.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// The name of the volume of a claim: one per claim, however often it is tried.
pub(super) fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", uid(claim))
}

/// The volume for a claim on a node, in a folder that no other volume has; or why it cannot be made.
/// `user` is a pod that mounts the claim.
pub(super) fn volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &Node,
    user: Option<&PodView>,
    volumes: &[std::sync::Arc<PersistentVolume>],
) -> Result<PersistentVolume, String> {
    let annotations = node.metadata.annotations.as_ref();
    let dir = annotations
        .and_then(|annotations| annotations.get(VOLUMES_DIR))
        .filter(|dir| dir.starts_with('/'))
        .ok_or_else(|| format!("node {} does not say where its volumes lie", name(node)))?;
    let spec = claim.spec.clone().unwrap_or_default();
    let request = spec.resources.and_then(|r| r.requests).and_then(|mut r| r.remove("storage"));
    let request = request.ok_or("the claim asks for no storage")?;
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err("class local has no block volumes".into());
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return Err("class local cannot fill a volume from a data source".into());
    }
    let host = node.metadata.labels.as_ref().and_then(|labels| labels.get(HOSTNAME));
    let host = host.cloned().unwrap_or_else(|| name(node).to_owned());
    let taken = |path: &str| volumes.iter().any(|volume| lies_at(volume, path, &host));
    let path = folders(claim, user)
        .into_iter()
        .map(|folder| format!("{}/{}/{folder}", dir.trim_end_matches('/'), namespace(claim)))
        .find(|path| !taken(path))
        .ok_or("every folder that the volume could have is taken by another volume")?;
    Ok(PersistentVolume {
        metadata: ObjectMeta {
            name: Some(volume_name(claim)),
            annotations: Some(BTreeMap::from([(PROVISIONED_BY.to_owned(), PROVISIONER.to_owned())])),
            finalizers: Some(vec![PV_PROTECTION.to_owned(), LOCAL_DATA.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: Some(BTreeMap::from([("storage".to_owned(), request)])),
            claim_ref: Some(claim_ref(claim)),
            local: Some(LocalVolumeSource { path, fs_type: None }),
            mount_options: class.mount_options.clone(),
            node_affinity: Some(VolumeNodeAffinity { required: Some(only(&host)) }),
            persistent_volume_reclaim_policy: Some(class.reclaim_policy.clone().unwrap_or_else(|| "Delete".into())),
            storage_class_name: Some(name(class).to_owned()),
            volume_mode: Some("Filesystem".into()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    })
}

/// How a volume names its claim.
pub(crate) fn claim_ref(claim: &PersistentVolumeClaim) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("PersistentVolumeClaim".into()),
        namespace: claim.metadata.namespace.clone(),
        name: claim.metadata.name.clone(),
        uid: claim.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// What the folder may be called, best first: names that a person finds, then one that is nobody else's.
/// Two of them can meet (`a-0-b` is a claim's name as well as a set's folder), and the data of a
/// claim that was retained keeps its folder.
fn folders(claim: &PersistentVolumeClaim, user: Option<&PodView>) -> Vec<String> {
    let own = name(claim);
    let set = user.and_then(|pod| {
        let of_set = pod.controller.as_ref().is_some_and(|owner| owner.kind == "StatefulSet");
        let template = own.strip_suffix(&pod.name)?.strip_suffix('-')?;
        (of_set && !template.is_empty()).then(|| format!("{}-{template}", pod.name))
    });
    set.into_iter().chain([own.to_owned(), format!("{own}-{}", uid(claim))]).collect()
}

/// Whether a volume lies in this folder of this node.
fn lies_at(volume: &PersistentVolume, path: &str, host: &str) -> bool {
    let Some(spec) = volume.spec.as_ref() else { return false };
    let same = spec.local.as_ref().is_some_and(|local| local.path.trim_end_matches('/') == path);
    let required = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    let elsewhere = required.is_some_and(|required| *required != only(host));
    same && !elsewhere
}

fn only(host: &str) -> NodeSelector {
    let requirement =
        NodeSelectorRequirement { key: HOSTNAME.into(), operator: "In".into(), values: Some(vec![host.to_owned()]) };
    let term = NodeSelectorTerm { match_expressions: Some(vec![requirement]), match_fields: None };
    NodeSelector { node_selector_terms: vec![term] }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
    use serde_json::json;

    use super::*;

    fn claim(name: &str, uid: &str) -> PersistentVolumeClaim {
        let claim = json!({"metadata": {"name": name, "namespace": "d", "uid": uid},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        serde_json::from_value(claim).expect("a claim")
    }

    fn node() -> Node {
        let node =
            json!({"metadata": {"name": "n", "labels": {HOSTNAME: "host"}, "annotations": {VOLUMES_DIR: "/v/"}}});
        serde_json::from_value(node).expect("a node")
    }

    fn pod(name: &str) -> PodView {
        let controller = OwnerReference { kind: "StatefulSet".into(), ..OwnerReference::default() };
        PodView { name: name.into(), controller: Some(controller), ..PodView::default() }
    }

    fn make(
        claim: &PersistentVolumeClaim,
        user: Option<&PodView>,
        others: &[Arc<PersistentVolume>],
    ) -> PersistentVolume {
        let class = json!({"metadata": {"name": "local"}, "provisioner": PROVISIONER});
        let class = serde_json::from_value(class).expect("a class");
        volume(claim, &class, &node(), user, others).expect("can be made")
    }

    fn path(volume: &PersistentVolume) -> &str {
        &volume.spec.as_ref().and_then(|spec| spec.local.as_ref()).expect("a local volume").path
    }

    #[test]
    fn a_sets_claim_lies_in_the_folder_of_its_identity() {
        let made = make(&claim("data-web-0", "u"), Some(&pod("web-0")), &[]);
        assert_eq!(path(&made), "/v/d/web-0-data");
        assert_eq!(made.metadata.name.as_deref(), Some("pvc-u"));
        let spec = made.spec.expect("a spec");
        assert_eq!(spec.claim_ref.and_then(|claim| claim.uid).as_deref(), Some("u"));
        assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Delete"));
        assert_eq!(spec.capacity.and_then(|c| c.get("storage").cloned()).map(|q| q.0).as_deref(), Some("1Gi"));
        assert_eq!(spec.node_affinity.and_then(|a| a.required), Some(only("host")));
    }

    #[test]
    fn any_other_claim_lies_in_a_folder_of_its_own_name() {
        assert_eq!(path(&make(&claim("plain", "u"), Some(&pod("web-0")), &[])), "/v/d/plain");
        assert_eq!(path(&make(&claim("plain", "u"), None, &[])), "/v/d/plain");
    }

    #[test]
    fn no_two_volumes_share_a_folder() {
        // Set `a`, ordinal 0, template `1-b`, and set `a-0`, ordinal 1, template `b`.
        let first = Arc::new(make(&claim("1-b-a-0", "u1"), Some(&pod("a-0")), &[]));
        let second = claim("b-a-0-1", "u2");
        let second = make(&second, Some(&pod("a-0-1")), std::slice::from_ref(&first));
        assert_eq!((path(&first), path(&second)), ("/v/d/a-0-1-b", "/v/d/b-a-0-1"));
        // A claim of the same name, made again while the volume of the first is retained.
        let old = Arc::new(make(&claim("plain", "u1"), None, &[]));
        let new = make(&claim("plain", "u2"), None, std::slice::from_ref(&old));
        assert_eq!(path(&new), "/v/d/plain-u2");
    }

    #[test]
    fn what_class_local_cannot_do_is_said() {
        let class: StorageClass =
            serde_json::from_value(json!({"metadata": {"name": "local"}, "provisioner": PROVISIONER}))
                .expect("a class");
        let mut block = claim("c", "u");
        block.spec.as_mut().expect("a spec").volume_mode = Some("Block".into());
        assert!(volume(&block, &class, &node(), None, &[]).is_err_and(|why| why.contains("block")));
        let mut bare = node();
        bare.metadata.annotations = None;
        assert!(volume(&claim("c", "u"), &class, &bare, None, &[]).is_err_and(|why| why.contains("node n")));
    }
}
