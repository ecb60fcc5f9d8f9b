//! The planner's calls on `kube::Client`.

use ambient::Ambient;
use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::Client;
use kube::api::{DeleteParams, GetParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Request;
use planner::{Act, Answer, Call, ClaimMark, Failure, FailureKind, LiveSet, Status};
use serde::Deserialize;
use serde_json::{Value, json};

use super::project::{SetView, project_revision};
use super::{Options, render};
use crate::informer::parse;

/// Makes calls for sets of one kind.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) client: Client,
    pub(super) options: Options,
    pub(super) ambient: Ambient,
}

/// What is read of an answer.
#[derive(Deserialize)]
struct Touched {
    #[serde(default)]
    metadata: TouchedMeta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TouchedMeta {
    #[serde(default)]
    uid: String,
    #[serde(default)]
    resource_version: String,
    deletion_timestamp: Option<Value>,
    #[serde(default)]
    finalizers: Vec<String>,
}

impl Caller {
    /// Makes one call and waits for its answer.
    pub(super) async fn call(&self, view: &SetView, call: Call) -> Answer {
        match self.attempt(view, call).await {
            Ok(answer) => answer,
            Err(error) => Answer::Failed(failure(error)),
        }
    }

    async fn attempt(&self, view: &SetView, call: Call) -> Result<Answer, kube::Error> {
        let set = &view.set;
        match call {
            Call::GetSet => {
                let request = self.sets(view).get(&set.name, &GetParams::default());
                let found: Touched = self.send(request).await?;
                let deleting = found.metadata.deletion_timestamp.is_some_and(|t| !t.is_null());
                Ok(Answer::Set(LiveSet { uid: found.metadata.uid, deleting }))
            }
            Call::SetPodOwners { name, uid, version, owners } => {
                let patch = json!({"metadata": {"ownerReferences": render::owners(&owners)}});
                self.patch(&core(view, "pods"), &name, &uid, version, patch).await
            }
            Call::SetRevisionOwners { name, uid, version, owners } => {
                let patch = json!({"metadata": {"ownerReferences": render::owners(&owners)}});
                self.patch(&revisions(view), &name, &uid, version, patch).await
            }
            Call::CreateRevision { name, hash, number, data } => {
                let body = render::revision(view, &name, &hash, number, &data);
                let request = revisions(view).create(&PostParams::default(), body.to_string().into_bytes());
                self.revision(request).await
            }
            Call::GetRevision { name } => self.revision(revisions(view).get(&name, &GetParams::default())).await,
            Call::NumberRevision { name, uid, version, number } => {
                let lifted = json!({"revision": number, "metadata": {"annotations": {api::beyond::HELD: null}}});
                let patch = with_preconditions(lifted, &uid, version);
                let request = revisions(view).patch(&name, &PatchParams::default(), &Patch::Merge(patch));
                self.revision(request).await
            }
            Call::HoldRevision { name, uid, retry } => {
                let mark = json!({"metadata": {"annotations": {api::beyond::HELD: retry}}});
                let patch = Patch::Merge(with_preconditions(mark, &uid, 0));
                self.revision(revisions(view).patch(&name, &PatchParams::default(), &patch)).await
            }
            Call::DeleteRevision { name, uid, version } => self.delete(&revisions(view), &name, uid, version).await,
            Call::Act(act) => self.act(view, act).await,
            Call::WriteStatus { uid, status } => self.write_status(view, &uid, &status).await,
        }
    }

    /// Conditions of others stay: merged by type where the server can, else written along, unless somebody has
    /// changed the set meanwhile.
    async fn write_status(&self, view: &SetView, uid: &str, status: &Status) -> Result<Answer, kube::Error> {
        let merges = self.options.group == "apps";
        let foreign = if merges { &[][..] } else { &view.source.foreign_conditions };
        let patch = render::status(status, foreign);
        let version = if merges || foreign.is_empty() { 0 } else { view.version };
        let patch = with_preconditions(patch, uid, version);
        let patch = if merges { Patch::Strategic(patch) } else { Patch::Merge(patch) };
        let params = PatchParams::default();
        let request = self.sets(view).patch_subresource("status", &view.set.name, &params, &patch);
        self.touch(request).await
    }

    async fn act(&self, view: &SetView, act: Act) -> Result<Answer, kube::Error> {
        match act {
            Act::CreateClaim { name, template, owners, .. } => {
                let body = render::claim(view, &template, &name, &owners);
                let request = core(view, "persistentvolumeclaims");
                self.touch(request.create(&PostParams::default(), body.to_string().into_bytes())).await
            }
            Act::CreatePod { name, ordinal, revision, data } => {
                let body = match render::pod(view, ordinal, &name, &revision, &data) {
                    Ok(body) => body,
                    Err(message) => return Ok(Answer::Failed(Failure { kind: FailureKind::Invalid, message })),
                };
                let request = core(view, "pods").create(&PostParams::default(), body.to_string().into_bytes());
                self.touch(request).await
            }
            Act::DeletePod { name, uid, version } => self.delete(&core(view, "pods"), &name, uid, version).await,
            Act::UpdatePod { name, ordinal, uid, version, volumes } => {
                let patch = render::pod_update(view, ordinal, &name, volumes, &view.set.data);
                self.patch(&core(view, "pods"), &name, &uid, version, patch).await
            }
            Act::SetClaimOwners { name, uid, version, owners, .. } => {
                let patch = json!({"metadata": {"ownerReferences": render::owners(&owners)}});
                self.patch(&core(view, "persistentvolumeclaims"), &name, &uid, version, patch).await
            }
            Act::MarkClaim { name, uid, mark } => {
                let now = self.ambient.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                let annotations = match mark {
                    ClaimMark::Reserved => json!({api::beyond::RESERVED_SINCE: now}),
                    ClaimMark::Reused => json!({api::beyond::RESERVED_SINCE: null, api::beyond::REUSE: null}),
                    ClaimMark::Protected => json!({api::beyond::PROTECT: "true"}),
                    ClaimMark::Unprotected => json!({api::beyond::PROTECT: null}),
                };
                let patch = json!({"metadata": {"annotations": annotations}});
                self.patch(&core(view, "persistentvolumeclaims"), &name, &uid, 0, patch).await
            }
            Act::GrowClaim { name, uid, template } => {
                let patch = json!({"spec": {"resources": {"requests": {"storage": render::size(view, &template)}}}});
                self.patch(&core(view, "persistentvolumeclaims"), &name, &uid, 0, patch).await
            }
            Act::LetGo { uid } => {
                let finalizers =
                    json!({"metadata": {"$deleteFromPrimitiveList/finalizers": [api::beyond::ORDERED_DELETION]}});
                self.let_go(view, &uid, finalizers).await
            }
            // Never sent; the planner answers it itself.
            Act::Refuse { message } => Ok(Answer::Failed(Failure { kind: FailureKind::Other, message })),
        }
    }

    /// Takes the finalizer of ordered deletion off, and leaves those of others.
    async fn let_go(&self, view: &SetView, uid: &str, strategic: Value) -> Result<Answer, kube::Error> {
        if self.options.group == "apps" {
            let patch = Patch::Strategic(with_preconditions(strategic, uid, 0));
            return self.touch(self.sets(view).patch(&view.set.name, &PatchParams::default(), &patch)).await;
        }
        let found: Touched = self.send(self.sets(view).get(&view.set.name, &GetParams::default())).await?;
        let mut kept = found.metadata.finalizers;
        kept.retain(|f| f != api::beyond::ORDERED_DELETION);
        let patch = json!({"metadata": {"finalizers": kept}});
        self.patch(&self.sets(view), &view.set.name, uid, parse(&found.metadata.resource_version), patch).await
    }

    fn sets(&self, view: &SetView) -> Request {
        let Options { group, version, plural, .. } = &self.options;
        let root = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        Request::new(format!("{root}/namespaces/{}/{plural}", view.set.namespace))
    }

    async fn patch(
        &self,
        at: &Request,
        name: &str,
        uid: &str,
        version: u64,
        patch: Value,
    ) -> Result<Answer, kube::Error> {
        let patch = Patch::Merge(with_preconditions(patch, uid, version));
        self.touch(at.patch(name, &PatchParams::default(), &patch)).await
    }

    async fn delete(&self, at: &Request, name: &str, uid: String, version: u64) -> Result<Answer, kube::Error> {
        let resource_version = (version != 0).then(|| version.to_string());
        let preconditions = Some(Preconditions { uid: Some(uid), resource_version });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        self.touch(at.delete(name, &params)).await
    }

    async fn touch(&self, request: Built) -> Result<Answer, kube::Error> {
        let touched: Touched = self.send(request).await?;
        Ok(Answer::Done { version: parse(&touched.metadata.resource_version) })
    }

    async fn revision(&self, request: Built) -> Result<Answer, kube::Error> {
        let found: ControllerRevision = self.send(request).await?;
        Ok(Answer::Revision(project_revision(found).revision))
    }

    async fn send<T: serde::de::DeserializeOwned>(&self, request: Built) -> Result<T, kube::Error> {
        self.client.request(request.map_err(kube::Error::BuildRequest)?).await
    }
}

type Built = Result<http::Request<Vec<u8>>, kube::core::request::Error>;

fn core(view: &SetView, plural: &str) -> Request {
    Request::new(format!("/api/v1/namespaces/{}/{plural}", view.set.namespace))
}

fn revisions(view: &SetView) -> Request {
    Request::new(format!("/apis/apps/v1/namespaces/{}/controllerrevisions", view.set.namespace))
}

/// A patch that is refused if the object is another one, or has changed since it was seen.
fn with_preconditions(mut patch: Value, uid: &str, version: u64) -> Value {
    patch["metadata"]["uid"] = uid.into();
    if version != 0 {
        patch["metadata"]["resourceVersion"] = version.to_string().into();
    }
    patch
}

fn failure(error: kube::Error) -> Failure {
    let kind = match &error {
        kube::Error::Api(status) => match (status.code, status.reason.as_str()) {
            (404, _) => FailureKind::NotFound,
            (409, "AlreadyExists") => FailureKind::AlreadyExists,
            (409, _) => FailureKind::Conflict,
            (422, _) => FailureKind::Invalid,
            _ => FailureKind::Other,
        },
        _ => FailureKind::Other,
    };
    let message = match error {
        kube::Error::Api(status) => status.message,
        other => other.to_string(),
    };
    Failure { kind, message }
}
