//! The end of a pod: stopped, cleared away, reported gone. In this order, each step until it is done.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Preconditions};

use super::follow::Patience;
use super::translate::DEFAULT_GRACE_S;
use super::worker::Worker;
use crate::cgroup::{Layout, PodCgroup};
use crate::fault::{self, Point};
use crate::shim::client::Changes;
use crate::shim::launch::CleanupError;
use crate::shim::spec::SPEC_FILE;
use crate::shim::state::{Phase, PodState, Status};
use crate::shim::{self, Shim};
use crate::volume;

/// Beyond the grace period, how long a shim may take to say that everything ended.
const KILL_MARGIN: Duration = Duration::from_secs(15);
/// Grace period of a pod whose object was removed by force.
const FORCED_GRACE: Duration = Duration::from_secs(2);
/// First pause after a step that failed; it doubles.
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// Longest pause after a step that failed.
const RETRY_MAX: Duration = Duration::from_secs(10);

impl Worker {
    /// Stops the pod, removes everything of it, and reports it gone. Returns early only where the agent ends.
    pub(super) async fn leave(mut self, shim: Option<Shim>) {
        self.before = None;
        self.leaving = true;
        if let Some(shim) = shim {
            self.tell_killing();
            if !self.stop(&shim).await {
                return;
            }
            fault::point(Point::Stopped);
            self.publish();
            if !self.flush().await && self.shared.term.is_cancelled() {
                return;
            }
            fault::point(Point::LastStatusWritten);
            let _ = shim.acknowledge().await;
            fault::point(Point::Acknowledged);
        }
        self.hold = None;
        self.clear_sandbox().await;
        fault::point(Point::SandboxCleared);
        if self.shared.term.is_cancelled() {
            return;
        }
        self.clear_folders().await;
        self.shared.ledger.release(&self.id.uid);
        if self.shared.term.is_cancelled() {
            return;
        }
        self.report_gone().await;
    }

    /// Waits until everything in the pod has ended. False where the agent ends first.
    pub(super) async fn stop(&mut self, shim: &Shim) -> bool {
        let mut end = self.shared.ambient.boottime() + self.grace();
        let mut patience = Patience::default();
        loop {
            let left = end.saturating_sub(self.shared.ambient.boottime());
            // Said again on every connection: a stop that has begun is only ever shortened.
            let asked = match shim.stop(left).await {
                Ok(()) => shim.subscribe().await,
                Err(error) => Err(error),
            };
            match asked {
                Ok(mut changes) => {
                    fault::point(Point::StopAsked);
                    if let Some(stopped) = self.watch_end(shim, &mut changes, &mut end).await {
                        return stopped;
                    }
                }
                // What a dead shim left is killed with its cgroup.
                Err(error) if patience.is_dead(&error) => return true,
                Err(error) => tracing::warn!(pod = %self.id.name, %error, "the shim cannot be asked; trying again"),
            }
            if self.shared.ambient.boottime() > end + KILL_MARGIN {
                return true;
            }
            if self.nap(patience.pause()).await {
                return false;
            }
        }
    }

    /// Watches a pod stop. Whether it has; none where the connection broke.
    async fn watch_end(&mut self, shim: &Shim, changes: &mut Changes, end: &mut Duration) -> Option<bool> {
        let term = self.shared.term.clone();
        loop {
            let left = (*end + KILL_MARGIN).saturating_sub(self.shared.ambient.boottime());
            tokio::select! {
                state = changes.next() => {
                    let Ok(Some(state)) = state else { return None };
                    let finished = state.phase == Phase::Finished;
                    self.tell_hooks_of_the_end(&state);
                    self.state = Some(state);
                    if finished {
                        return Some(true);
                    }
                    self.publish();
                }
                Ok(()) = self.pod.changed() => {
                    let grace = self.grace();
                    let at = self.shared.ambient.boottime() + grace;
                    if at < *end {
                        *end = at;
                        let _ = shim.stop(grace).await;
                    }
                }
                () = tokio::time::sleep(left) => {
                    tracing::warn!(pod = %self.id.name, "its containers did not end in time; killing what is left");
                    let _ = shim.kill().await;
                    return Some(true);
                }
                () = term.cancelled() => return Some(false),
            }
        }
    }

    /// How long the pod may take to end.
    pub(super) fn grace(&self) -> Duration {
        let Some(pod) = self.object() else { return FORCED_GRACE };
        let asked = pod.metadata.deletion_grace_period_seconds;
        let own = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
        let seconds = asked.or(own).unwrap_or(DEFAULT_GRACE_S);
        let grace = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let shorter = self.verdict.as_ref().and_then(|verdict| verdict.grace);
        shorter.map_or(grace, |shorter| shorter.min(grace))
    }

    fn tell_hooks_of_the_end(&self, state: &PodState) {
        let (Some(pod), Some(before)) = (self.object(), &self.state) else { return };
        for now in &state.containers {
            if let Some(before) = before.container(&now.name) {
                self.tell_failed_hooks(&pod, before, now);
            }
        }
    }

    pub(super) fn tell_killing(&self) {
        let (Some(pod), Some(state)) = (self.object(), &self.state) else { return };
        for container in state.containers.iter().filter(|c| matches!(c.state, Status::Running { .. })) {
            let message = format!("Stopping container {}", container.name);
            self.shared.events.normal(&pod, Some(&container.name), "Killing", &message);
        }
    }

    /// Kills and removes processes and cgroups, until none is left.
    pub(super) async fn clear_sandbox(&mut self) {
        let dir = self.dir();
        // As the specification names it; for where that is lost.
        let group = format!("{}/pod-{}", self.shared.config.cgroup_root, self.id.uid);
        let mut wait = RETRY_FIRST;
        while let Err(error) = clear(&dir, &group).await {
            tracing::warn!(pod = %self.id.name, %error, "a sandbox cannot be removed; trying again");
            if self.pause(&mut wait).await {
                return;
            }
        }
        volume::sole::give_back(&dir);
    }

    /// Removes mounts, folder, logs, address and users, until they are gone.
    async fn clear_folders(&mut self) {
        let mut wait = RETRY_FIRST;
        loop {
            let (dir, config) = (self.dir(), self.shared.config.clone());
            let logs = config.pod_logs(&self.id.namespace, &self.id.name, &self.id.uid);
            let removing = tokio::task::spawn_blocking(move || {
                volume::remove_pod_dir(&dir)?;
                volume::remove_pod_dir(&logs)
            });
            match removing.await.expect("removing does not panic") {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(pod = %self.id.name, %error, "a pod's folder cannot be removed; trying again")
                }
            }
            if self.pause(&mut wait).await {
                return;
            }
        }
        fault::point(Point::FolderGone);
        let mut addresses = self.shared.addresses.clone().lock_owned().await;
        let uid = self.id.uid.clone();
        if let Some(address) = addresses.of(&uid)
            && let Err(error) = self.shared.network.detach(address).await
        {
            // The next pod of this address does it again.
            tracing::warn!(pod = %self.id.name, %error, "an interface was not taken away");
        }
        fault::point(Point::InterfaceGone);
        let released = tokio::task::spawn_blocking(move || addresses.release(&uid)).await;
        if let Err(error) = released.expect("the address record does not panic") {
            tracing::warn!(pod = %self.id.name, %error, "an address was not freed; it stays unused until the agent restarts");
        }
        fault::point(Point::AddressFree);
        let mut users = self.shared.users.clone().lock_owned().await;
        let uid = self.id.uid.clone();
        let released = tokio::task::spawn_blocking(move || users.release(&uid)).await;
        if let Err(error) = released.expect("the record of users does not panic") {
            tracing::warn!(pod = %self.id.name, %error, "a pod's users were not freed; they stay unused");
        }
        fault::point(Point::UsersFree);
    }

    /// The node's word that nothing of the pod is left. The server drops the object, where it is still there, and the
    /// holder record.
    async fn report_gone(&mut self) {
        if self.id.name.is_empty() {
            // A folder of a pod that never ran: nobody waits for word of it.
            return;
        }
        let api: Api<Pod> = Api::namespaced(self.shared.client.clone(), &self.id.namespace);
        let preconditions = Preconditions { uid: Some(self.id.uid.clone()), resource_version: None };
        let params = DeleteParams::default().grace_period(0).preconditions(preconditions);
        let mut wait = RETRY_FIRST;
        loop {
            match api.delete(&self.id.name, &params).await {
                Ok(_) => return fault::point(Point::GoneReported),
                // Gone already, or the name is another pod's by now (403: one that is not on this node): the name
                // itself may still be held for this one.
                Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 409) => {
                    match self.release_name().await {
                        Ok(()) => return,
                        Err(error) => {
                            tracing::warn!(pod = %self.id.name, %error, "cannot release its name; trying again")
                        }
                    }
                }
                Err(error) => tracing::warn!(pod = %self.id.name, %error, "cannot report the pod gone; trying again"),
            }
            if self.pause(&mut wait).await {
                return;
            }
        }
    }

    /// The node's word that a pod is gone whose object was removed by force.
    async fn release_name(&self) -> Result<(), kube::Error> {
        let (namespace, name, uid) = (&self.id.namespace, &self.id.name, &self.id.uid);
        let path = format!("/apis/statefuld.io/v1/namespaces/{namespace}/holders/{name}?uid={uid}");
        let request = http::Request::delete(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        match self.shared.client.request::<serde_json::Value>(request).await {
            Ok(_) => Ok(()),
            // Not held, or held for another, or by another node.
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 409) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits a little longer each time. True where the agent ends.
    async fn pause(&self, wait: &mut Duration) -> bool {
        let ends = self.nap(*wait).await;
        *wait = (*wait * 2).min(RETRY_MAX);
        ends
    }
}

/// Kills and removes what is left of a pod, whether or not its folder still tells of it.
async fn clear(dir: &Path, group: &str) -> Result<(), CleanupError> {
    if dir.join(SPEC_FILE).exists() {
        return shim::cleanup(dir).await;
    }
    let group = group.to_owned();
    let destroying = tokio::task::spawn_blocking(move || PodCgroup::new(&Layout::detect()?, &group)?.destroy());
    Ok(destroying.await.expect("cleaning does not panic")?)
}
