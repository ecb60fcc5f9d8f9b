//! Calls that all of these controllers make.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::api::{DeleteParams, GetParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy};
use kube::core::Request;
use serde_json::{Value, json};

use super::project::Meta;
use crate::Term;
use crate::informer::parse;
use crate::work::{self, Stop};

/// Objects of one kind in one namespace.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    /// Beginning of the URL, such as `/apis/apps/v1`.
    root: &'static str,
    plural: &'static str,
    api_version: &'static str,
    kind: &'static str,
}

pub(super) const PODS: Kind = Kind { root: "/api/v1", plural: "pods", api_version: "v1", kind: "Pod" };
pub(super) const SETS: Kind =
    Kind { root: "/apis/apps/v1", plural: "replicasets", api_version: "apps/v1", kind: "ReplicaSet" };
pub(super) const DEPLOYMENTS: Kind =
    Kind { root: "/apis/apps/v1", plural: "deployments", api_version: "apps/v1", kind: "Deployment" };
pub(super) const JOBS: Kind = Kind { root: "/apis/batch/v1", plural: "jobs", api_version: "batch/v1", kind: "Job" };
pub(super) const CRON_JOBS: Kind =
    Kind { root: "/apis/batch/v1", plural: "cronjobs", api_version: "batch/v1", kind: "CronJob" };

/// Makes calls while the term lasts.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) client: Client,
    pub(super) term: Term,
}

/// What an answer tells of an object.
#[derive(Debug)]
pub(super) struct Touched {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) version: u64,
}

impl Meta {
    /// How events name it.
    pub(super) fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some(self.kind.api_version.into()),
            kind: Some(self.kind.kind.into()),
            namespace: Some(self.namespace.clone()),
            name: Some(self.name.clone()),
            uid: Some(self.uid.clone()),
            resource_version: Some(self.version.to_string()),
            field_path: None,
        }
    }

    /// The reference by which it controls what it makes.
    pub(super) fn as_owner(&self) -> Value {
        json!({"apiVersion": self.kind.api_version, "kind": self.kind.kind, "name": self.name, "uid": self.uid,
            "controller": true, "blockOwnerDeletion": true})
    }
}

impl Kind {
    fn at(self, namespace: &str) -> Request {
        Request::new(format!("{}/namespaces/{namespace}/{}", self.root, self.plural))
    }
}

impl Caller {
    /// Creates an object.
    pub(super) async fn create(&self, kind: Kind, namespace: &str, mut body: Value) -> Result<Touched, Stop> {
        body["apiVersion"] = kind.api_version.into();
        body["kind"] = kind.kind.into();
        self.touch(kind.at(namespace).create(&PostParams::default(), body.to_string().into_bytes())).await
    }

    /// Reads an object from the server; `None` if it is not there.
    pub(super) async fn read(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Value>, Stop> {
        let request = kind.at(namespace).get(name, &GetParams::default());
        absent(self.send(request).await)
    }

    /// Whether the object is the one that was seen, and is not being deleted: only then does it take others.
    pub(super) async fn may_adopt(&self, meta: &Meta) -> Result<bool, Stop> {
        let found = self.read(meta.kind, &meta.namespace, &meta.name).await?;
        let same = |found: Value| {
            found["metadata"]["uid"] == meta.uid.as_str() && found["metadata"]["deletionTimestamp"].is_null()
        };
        Ok(found.is_some_and(same))
    }

    /// Makes an object the controller of another, which gets the finalizers too.
    pub(super) async fn adopt(
        &self,
        meta: &Meta,
        kind: Kind,
        (name, uid): (&str, &str),
        finalizers: &[&str],
    ) -> Result<u64, Stop> {
        let mut patch = json!({"metadata": {"uid": uid, "ownerReferences": [meta.as_owner()]}});
        if !finalizers.is_empty() {
            patch["metadata"]["finalizers"] = json!(finalizers);
        }
        self.strategic(kind, &meta.namespace, name, patch).await
    }

    /// Lets an object go, and takes the finalizers along; what is gone is let go.
    pub(super) async fn release(
        &self,
        meta: &Meta,
        kind: Kind,
        (name, uid): (&str, &str),
        finalizers: &[&str],
    ) -> Result<u64, Stop> {
        let owners = json!([{"$patch": "delete", "uid": meta.uid}]);
        let mut patch = json!({"metadata": {"uid": uid, "ownerReferences": owners}});
        if !finalizers.is_empty() {
            patch["metadata"]["$deleteFromPrimitiveList/finalizers"] = json!(finalizers);
        }
        Ok(absent(self.strategic(kind, &meta.namespace, name, patch).await)?.unwrap_or(0))
    }

    /// Takes a finalizer off a pod; one that is gone has none.
    pub(super) async fn unhold(
        &self,
        namespace: &str,
        (name, uid): (&str, &str),
        finalizer: &str,
    ) -> Result<u64, Stop> {
        let patch = json!({"metadata": {"uid": uid, "$deleteFromPrimitiveList/finalizers": [finalizer]}});
        match self.strategic(PODS, namespace, name, patch).await {
            // Another pod has its name: this one is gone.
            Err(stop) if matches!(stop.code(), Some(404 | 409)) => Ok(0),
            other => other,
        }
    }

    /// Changes an object if it is the one that was seen, at the version that was seen unless that is 0.
    pub(super) async fn merge(
        &self,
        kind: Kind,
        namespace: &str,
        (name, uid, version): (&str, &str, u64),
        mut patch: Value,
    ) -> Result<u64, Stop> {
        precise(&mut patch, uid, version);
        let request = kind.at(namespace).patch(name, &PatchParams::default(), &Patch::Merge(patch));
        Ok(self.touch(request).await?.version)
    }

    /// Writes the status of an object, at the version that was seen unless that is 0.
    pub(super) async fn write_status(&self, meta: &Meta, version: u64, status: Value) -> Result<u64, Stop> {
        let mut patch = json!({"status": status});
        precise(&mut patch, &meta.uid, version);
        let at = meta.kind.at(&meta.namespace);
        let request = at.patch_subresource("status", &meta.name, &PatchParams::default(), &Patch::Merge(patch));
        Ok(self.touch(request).await?.version)
    }

    /// Deletes an object if it is the one that was seen; one that is gone is deleted.
    pub(super) async fn delete(
        &self,
        kind: Kind,
        namespace: &str,
        (name, uid, version): (&str, &str, u64),
        policy: PropagationPolicy,
    ) -> Result<(), Stop> {
        let resource_version = (version != 0).then(|| version.to_string());
        let preconditions = Some(Preconditions { uid: Some(uid.to_owned()), resource_version });
        let params = DeleteParams { preconditions, propagation_policy: Some(policy), ..DeleteParams::default() };
        absent(self.send(kind.at(namespace).delete(name, &params)).await).map(drop)
    }

    async fn strategic(&self, kind: Kind, namespace: &str, name: &str, patch: Value) -> Result<u64, Stop> {
        let request = kind.at(namespace).patch(name, &PatchParams::default(), &Patch::Strategic(patch));
        Ok(self.touch(request).await?.version)
    }

    async fn touch(&self, request: Built) -> Result<Touched, Stop> {
        let found = self.send(request).await?;
        let text = |field: &str| found["metadata"][field].as_str().unwrap_or_default().to_owned();
        Ok(Touched { name: text("name"), uid: text("uid"), version: parse(&text("resourceVersion")) })
    }

    async fn send(&self, request: Built) -> Result<Value, Stop> {
        let request = request.map_err(|error| Stop::Api(Box::new(kube::Error::BuildRequest(error))))?;
        work::call(&self.term, self.client.request(request)).await
    }
}

type Built = Result<http::Request<Vec<u8>>, kube::core::request::Error>;

/// Makes a patch one that is refused if the object is another one, or has changed since it was seen.
fn precise(patch: &mut Value, uid: &str, version: u64) {
    patch["metadata"]["uid"] = uid.into();
    if version != 0 {
        patch["metadata"]["resourceVersion"] = version.to_string().into();
    }
}

/// `None` where the object is not there.
fn absent<T>(answer: Result<T, Stop>) -> Result<Option<T>, Stop> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(stop) if stop.code() == Some(404) => Ok(None),
        Err(stop) => Err(stop),
    }
}

/// What a failed call said, for people.
pub(super) fn why(stop: &Stop) -> String {
    match stop {
        Stop::Over => "the controller is stopping".to_owned(),
        Stop::Api(error) => match error.as_ref() {
            kube::Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        },
    }
}
