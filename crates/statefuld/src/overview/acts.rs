//! What can be done about a set or pod, as requests to the API.

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use serde_json::json;

/// Where `kubectl rollout restart` notes that it was asked for.
const RESTARTED: &str = "kubectl.kubernetes.io/restartedAt";

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Give a set so many pods.
    Scale {
        /// Its name.
        set: String,
        /// How many.
        replicas: u32,
    },
    /// Replace all pods of a set, one after the other.
    Restart {
        /// Its name.
        set: String,
    },
    /// Return a set to an earlier template.
    Undo {
        /// Its name.
        set: String,
        /// The ControllerRevision that holds it.
        revision: String,
    },
    /// Delete a pod; a set makes it anew.
    DeletePod {
        /// Its name.
        pod: String,
        /// This one, and no other of that name.
        uid: String,
    },
}

impl Act {
    /// Does it; what was done, as a sentence.
    pub async fn carry_out(&self, client: &Client, namespace: &str, now: Timestamp) -> Result<String> {
        let sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
        let params = PatchParams::default();
        match self {
            Self::Scale { set, replicas } => {
                let patch = json!({"spec": {"replicas": replicas}});
                sets.patch_scale(set, &params, &Patch::Merge(patch)).await?;
                Ok(format!("sts/{set} gets {replicas} pods"))
            }
            Self::Restart { set } => {
                let annotations = json!({ RESTARTED: now.to_string() });
                let patch = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
                sets.patch(set, &params, &Patch::Strategic(patch)).await?;
                Ok(format!("the pods of sts/{set} are replaced one after the other"))
            }
            Self::Undo { set, revision } => {
                let revisions: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace);
                let held = revisions.get(revision).await.context("the revision is not there any more")?;
                sets.patch(set, &params, &Patch::Strategic(held.data.0)).await?;
                Ok(format!("sts/{set} returns to revision {revision}"))
            }
            Self::DeletePod { pod, uid } => {
                let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
                let only = Preconditions { uid: Some(uid.clone()), resource_version: None };
                pods.delete(pod, &DeleteParams { preconditions: Some(only), ..DeleteParams::default() }).await?;
                Ok(format!("{pod} is being stopped"))
            }
        }
    }

    /// What it would lead to, as a question.
    pub fn question(&self) -> String {
        match self {
            Self::Scale { set, replicas: 0 } => format!("Stop all pods of {set}?"),
            Self::Scale { set, replicas: 1 } => format!("Give {set} 1 pod?"),
            Self::Scale { set, replicas } => format!("Give {set} {replicas} pods?"),
            Self::Restart { set } => format!("Replace all pods of {set}, one after the other?"),
            Self::Undo { set, .. } => format!("Return {set} to its earlier template?"),
            Self::DeletePod { pod, .. } => format!("Stop {pod}? Where a set wants it, it is made anew with its data."),
        }
    }
}
