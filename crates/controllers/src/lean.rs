//! Objects as busy informers read them: what is looked at, and nothing else. Half of a served pod is `managedFields`;
//! here they are skipped as text, where the whole type would build a tree of them for each change.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use kube::core::{ApiResource, DynamicResourceScope};
use serde::{Deserialize, Deserializer};

/// An object of any kind: its metadata.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct LeanObject {
    /// Without managedFields.
    #[serde(deserialize_with = "metadata")]
    pub(crate) metadata: ObjectMeta,
}

/// A pod: its metadata, where it is, what it mounts, and its status.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct LeanPod {
    /// Without managedFields.
    #[serde(deserialize_with = "metadata")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: LeanSpec,
    #[serde(default)]
    status: Option<PodStatus>,
}

/// The part of a pod's spec that matters to its set.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanSpec {
    node_name: Option<String>,
    subdomain: Option<String>,
    volumes: Option<Vec<Volume>>,
}

impl From<LeanPod> for Pod {
    fn from(lean: LeanPod) -> Self {
        let LeanSpec { node_name, subdomain, volumes } = lean.spec;
        let spec = PodSpec { node_name, subdomain, volumes, ..PodSpec::default() };
        Self { metadata: lean.metadata, spec: Some(spec), status: lean.status }
    }
}

/// Everything in metadata that controllers look at.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    finalizers: Option<Vec<String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

fn metadata<'de, D: Deserializer<'de>>(from: D) -> Result<ObjectMeta, D::Error> {
    let read = Metadata::deserialize(from)?;
    Ok(ObjectMeta {
        name: read.name,
        namespace: read.namespace,
        uid: read.uid,
        resource_version: read.resource_version,
        generation: read.generation,
        creation_timestamp: read.creation_timestamp,
        deletion_timestamp: read.deletion_timestamp,
        labels: read.labels,
        annotations: read.annotations,
        finalizers: read.finalizers,
        owner_references: read.owner_references,
        ..ObjectMeta::default()
    })
}

impl Resource for LeanObject {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        of.kind.as_str().into()
    }

    fn group(of: &ApiResource) -> Cow<'_, str> {
        of.group.as_str().into()
    }

    fn version(of: &ApiResource) -> Cow<'_, str> {
        of.version.as_str().into()
    }

    fn api_version(of: &ApiResource) -> Cow<'_, str> {
        of.api_version.as_str().into()
    }

    fn plural(of: &ApiResource) -> Cow<'_, str> {
        of.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Resource for LeanPod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind(of: &()) -> Cow<'_, str> {
        Pod::kind(of)
    }

    fn group(of: &()) -> Cow<'_, str> {
        <Pod as Resource>::group(of)
    }

    fn version(of: &()) -> Cow<'_, str> {
        <Pod as Resource>::version(of)
    }

    fn plural(of: &()) -> Cow<'_, str> {
        Pod::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::statefulset::project_pod;

    #[test]
    fn a_lean_pod_is_the_same_to_a_set_as_the_whole_one() {
        let served = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {
                "name": "web-1", "namespace": "default", "uid": "u", "resourceVersion": "7", "generation": 2,
                "creationTimestamp": "2026-01-01T00:00:00Z", "deletionTimestamp": "2026-01-01T00:01:00Z",
                "deletionGracePeriodSeconds": 30, "generateName": "web-", "finalizers": ["a"],
                "labels": {"app": "web", "controller-revision-hash": "web-a", "statefulset.kubernetes.io/pod-name": "web-1"},
                "annotations": {"statefuld.io/epoch": "1", "statefuld.io/override-hash": "h"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "s",
                    "controller": true, "blockOwnerDeletion": true}],
                "managedFields": [{"manager": "m", "operation": "Update", "apiVersion": "v1",
                    "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:labels": {".": {}}}}}]},
            "spec": {"nodeName": "n", "subdomain": "web", "restartPolicy": "Always", "containers": [{"name": "c"}],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data-web-1"}},
                    {"name": "tmp", "emptyDir": {}}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "False", "reason": "NodeNotReady"}],
                "containerStatuses": [{"name": "c", "ready": false, "restartCount": 1, "image": "", "imageID": "",
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}});
        let whole: Pod = serde_json::from_value(served.clone()).expect("a pod");
        let lean: LeanPod = serde_json::from_value(served.clone()).expect("a pod");
        let (whole, lean) = (project_pod(whole), project_pod(lean.into()));
        assert_eq!(lean.pod, whole.pod);
        assert_eq!((lean.namespace, lean.labels), (whole.namespace, whole.labels));
        let object: LeanObject = serde_json::from_value(served).expect("an object");
        assert!(object.metadata.managed_fields.is_none());
        assert_eq!(object.metadata.owner_references.map(|owners| owners.len()), Some(1));
    }

    #[test]
    fn what_is_barely_there_is_read_too() {
        let pod: LeanPod = serde_json::from_value(json!({"metadata": {}})).expect("a pod");
        assert_eq!(Pod::from(pod).spec, Some(PodSpec::default()));
    }
}
