//! Writes one pod's status to the API: the newest, as soon as possible, until it is taken.
//!
//! A worker never waits for the API to go on with its pod: it leaves the newest status here. What was
//! overtaken before it was sent is never sent.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::timeline::{Step, Stopwatch};
use super::worker::Identity;
use crate::fault::{self, Point};

/// First wait after a failed write; it doubles.
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// Longest wait after a failed write.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Annotation that records, once, when a pod was first ready: the StatefulSet controller never gives up such a pod.
pub const FIRST_READY: &str = "statefuld.io/first-ready";

/// The status of one pod on its way to the API. Dropping it gives up what was not sent.
#[derive(Debug)]
pub struct Reporter {
    newest: watch::Sender<Option<Arc<PodStatus>>>,
    written: watch::Receiver<Option<Arc<PodStatus>>>,
    /// When the pod was first ready, as it is to be recorded. A status that was overtaken counts too.
    first_ready: Arc<OnceLock<String>>,
    stopwatch: Stopwatch,
    task: JoinHandle<()>,
}

impl Reporter {
    /// For that pod; `recorded` says that it carries [`FIRST_READY`] already. The last steps of its start are reached here.
    pub fn start(client: Client, pod: &Identity, recorded: bool, stopwatch: Stopwatch) -> Self {
        let (newest, incoming) = watch::channel(None);
        let (outgoing, written) = watch::channel(None);
        let api: Api<Pod> = Api::namespaced(client, &pod.namespace);
        let first_ready = Arc::new(OnceLock::new());
        let first = (!recorded).then(|| first_ready.clone());
        let task = tokio::spawn(write_all(api, pod.clone(), first, stopwatch.clone(), incoming, outgoing));
        Self { newest, written, first_ready, stopwatch, task }
    }

    /// Leaves a status to be written. The same again is not written again.
    pub fn publish(&self, status: PodStatus) {
        let ready = ready(&status);
        if ready.is_some() {
            self.stopwatch.reach(Step::Probes);
        }
        if let Some(since) = ready.and_then(|c| c.last_transition_time.as_ref()) {
            self.first_ready.get_or_init(|| since.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        }
        self.newest.send_if_modified(|newest| {
            if newest.as_deref() == Some(&status) {
                return false;
            }
            *newest = Some(Arc::new(status));
            true
        });
    }

    /// The newest status that was left here.
    pub fn newest(&self) -> Option<Arc<PodStatus>> {
        self.newest.borrow().clone()
    }

    /// Waits until the newest status is written, or the pod is gone.
    pub async fn flush(&mut self) {
        let Some(newest) = self.newest() else { return };
        let same = |written: &Option<Arc<PodStatus>>| written.as_ref().is_some_and(|w| Arc::ptr_eq(w, &newest));
        // An error means that the writer ended, because the pod is gone.
        let _ = self.written.wait_for(same).await;
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The condition that says that a pod is ready, where it is.
fn ready(status: &PodStatus) -> Option<&PodCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == "Ready" && c.status == "True")
}

async fn write_all(
    api: Api<Pod>,
    pod: Identity,
    mut first_ready: Option<Arc<OnceLock<String>>>,
    stopwatch: Stopwatch,
    mut incoming: watch::Receiver<Option<Arc<PodStatus>>>,
    written: watch::Sender<Option<Arc<PodStatus>>>,
) {
    let mut wait = RETRY_FIRST;
    while incoming.changed().await.is_ok() {
        loop {
            let Some(status) = incoming.borrow_and_update().clone() else { break };
            // The uid makes the server refuse the write where the name belongs to another pod by now.
            let mut patch = json!({"metadata": {"uid": pod.uid}, "status": &*status});
            let first = first_ready.as_ref().and_then(|at| at.get());
            if let Some(at) = first {
                patch["metadata"]["annotations"] = json!({FIRST_READY: at});
            }
            let records = first.is_some();
            match api.patch_status(&pod.name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => {
                    if records {
                        first_ready = None;
                    }
                    if ready(&status).is_some() {
                        stopwatch.reach(Step::Status);
                    }
                    fault::point(Point::StatusWritten);
                    written.send_replace(Some(status));
                    wait = RETRY_FIRST;
                    break;
                }
                Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409 => return,
                Err(kube::Error::Api(answer)) if answer.code == 422 => {
                    // The same again would be refused again; the next change may be taken.
                    tracing::error!(pod = %pod.name, message = %answer.message, "the API refused a status");
                    written.send_replace(Some(status));
                    break;
                }
                Err(error) => {
                    tracing::warn!(pod = %pod.name, %error, "a status was not written; trying again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
            }
        }
    }
}
