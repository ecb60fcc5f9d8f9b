//! Changes of a running pod's resources.
//!
//! ```text
//!   desired (spec) ── fits the machine? ── no ──▶ PodResizePending: Infeasible
//!        │            fits beside the others? ── no ──▶ PodResizePending: Deferred; looked at again
//!        ▼
//!   allocated (status.allocatedResources) ──▶ shim ──▶ PodResizeInProgress until the kernel took it
//!        │                                     └─ resizePolicy RestartContainer: that container starts again
//!        ▼
//!   actual (status.resources)
//! ```
//!
//! What is allocated is what a new sandbox is made with. It is found again in the pod's status.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};

use super::ledger::{self, Share};
use super::translate;
use super::worker::Worker;
use crate::shim::Shim;

/// Pause before what could not be done is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// How far a pod's resources are from what it asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resize {
    /// What each container has been given.
    pub allocated: BTreeMap<String, ResourceRequirements>,
    /// What the kernel has been told.
    pub actual: BTreeMap<String, ResourceRequirements>,
    /// Why the pod is not given what it asks for: reason and sentence.
    pub pending: Option<(&'static str, String)>,
    /// What it is given is on its way; with a sentence where the kernel did not take it.
    pub in_progress: Option<String>,
}

/// The containers that can be resized, and what they ask for.
fn desired(spec: &PodSpec) -> BTreeMap<String, ResourceRequirements> {
    translate::containers(spec).map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default())).collect()
}

/// What was given, by a pod's status; what it asks for where that says nothing.
fn reported(pod: &Pod) -> BTreeMap<String, ResourceRequirements> {
    let mut given = pod.spec.as_ref().map(desired).unwrap_or_default();
    let status = pod.status.iter();
    let said = status.flat_map(|s| s.container_statuses.iter().chain(&s.init_container_statuses).flatten());
    for container in said {
        if let (Some(resources), Some(slot)) = (&container.resources, given.get_mut(&container.name)) {
            slot.clone_from(resources);
            if container.allocated_resources.is_some() {
                slot.requests.clone_from(&container.allocated_resources);
            }
        }
    }
    given
}

/// The pod with what it was given in place of what it asks for.
pub fn with_allocated(pod: &Pod, allocated: &BTreeMap<String, ResourceRequirements>) -> Pod {
    let mut pod = pod.clone();
    if let Some(spec) = &mut pod.spec {
        let give = |container: &mut Container| {
            if let Some(given) = allocated.get(&container.name) {
                container.resources = (*given != ResourceRequirements::default()).then(|| given.clone());
            }
        };
        spec.init_containers.iter_mut().flatten().chain(&mut spec.containers).for_each(give);
    }
    pod
}

/// Whether a container has to start again to take such a change.
fn needs_restart(container: &Container, before: &ResourceRequirements) -> bool {
    let now = container.resources.clone().unwrap_or_default();
    container.resize_policy.iter().flatten().filter(|policy| policy.restart_policy == "RestartContainer").any(
        |policy| {
            let of = |r: &ResourceRequirements| {
                let get =
                    |list: &Option<BTreeMap<_, _>>| list.as_ref().and_then(|l| l.get(&policy.resource_name).cloned());
                (get(&r.requests), get(&r.limits))
            };
            of(&now) != of(before)
        },
    )
}

impl Worker {
    /// What a sandbox is to be made of; noted as given.
    pub(super) fn allocate_resources(&mut self, pod: &Pod) -> Pod {
        if self.resize.allocated.is_empty() {
            self.resize.allocated = reported(pod);
        }
        let pod = with_allocated(pod, &self.resize.allocated);
        if let Some(spec) = &pod.spec {
            self.shared.ledger.hold(&self.id.uid, Share::of(spec));
        }
        self.resize.actual.clone_from(&self.resize.allocated);
        self.resize.in_progress = None;
        pod
    }

    /// Ends when the resources are to be looked at again although the pod did not change.
    pub(super) fn until_resize(&self) -> impl Future<Output = ()> + use<> {
        let deferred = self.resize.pending.as_ref().is_some_and(|(reason, _)| *reason == "Deferred");
        let waits = deferred || self.resize.in_progress.is_some();
        async move {
            match waits {
                true => tokio::time::sleep(RETRY).await,
                false => std::future::pending().await,
            }
        }
    }

    /// Gives the pod what it asks for, as far as the machine can.
    pub(super) async fn resize(&mut self, shim: &Shim) {
        let Some(pod) = self.object() else { return };
        let Some(spec) = &pod.spec else { return };
        if self.resize.allocated.is_empty() {
            // The pod outlived an earlier agent.
            self.allocate_resources(&pod);
        }
        let before = (self.resize.pending.clone(), self.resize.in_progress.clone());
        let desired = desired(spec);
        if desired == self.resize.allocated {
            self.resize.pending = None;
        } else {
            self.decide(spec, desired);
        }
        if self.resize.pending.is_none() && self.resize.actual != self.resize.allocated {
            if self.resize.in_progress.is_none() {
                self.resize.in_progress = Some(String::new());
                self.publish();
            }
            self.resize.in_progress = self.carry_over(shim, spec).await.err();
            self.publish();
        } else if before != (self.resize.pending.clone(), self.resize.in_progress.clone()) {
            self.publish();
        }
    }

    /// Allocates, or says why not.
    fn decide(&mut self, spec: &PodSpec, desired: BTreeMap<String, ResourceRequirements>) {
        let (wanted, capacity) = (Share::of(spec), ledger::capacity(&self.shared.config));
        self.resize.pending = match ledger::infeasible(wanted.amounts, capacity) {
            Some(why) => Some(("Infeasible", why)),
            None => self.shared.ledger.fit(&self.id.uid, wanted, capacity).err().map(|s| ("Deferred", s.sentence)),
        };
        if self.resize.pending.is_none() {
            self.resize.allocated = desired;
        }
    }

    /// Tells the shim what changed, container by container.
    async fn carry_over(&mut self, shim: &Shim, spec: &PodSpec) -> Result<(), String> {
        let cap = |limits| self.shared.config.rules.cap(limits);
        let whole = cap(translate::limits_of_pod(spec));
        let grace = self.grace();
        for container in translate::containers(spec) {
            let given = self.resize.allocated.get(&container.name).cloned().unwrap_or_default();
            let before = self.resize.actual.get(&container.name).cloned().unwrap_or_default();
            if given == before {
                continue;
            }
            let limits = translate::limits_of_container(container);
            shim.resize(&container.name, &limits, &whole).await.map_err(|e| e.to_string())?;
            self.resize.actual.insert(container.name.clone(), given);
            let runs =
                self.state.as_ref().and_then(|s| s.container(&container.name)).is_some_and(|c| c.state.is_running());
            if runs && needs_restart(container, &before) {
                let message = format!("Container {} resize requires restart", container.name);
                shim.restart_container(&container.name, grace, &message).await.map_err(|e| e.to_string())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_given_is_found_in_the_status() {
        let container =
            |name: &str| json!({"name": name, "resources": {"limits": {"cpu": "2"}, "requests": {"cpu": "2"}}});
        let pod: Pod = serde_json::from_value(json!({
            "spec": {"containers": [container("a"), container("b")]},
            "status": {"containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "resources": {"limits": {"cpu": "1"}}, "allocatedResources": {"cpu": "1"}}]}}))
        .expect("a pod");
        let given = with_allocated(&pod, &reported(&pod)).spec.expect("a spec");
        assert_eq!(translate::requests(&given).cpu_millis, 3000);
        assert_eq!(translate::limits_of_container(&given.containers[0]).cpu_quota_us, Some(100_000));
    }

    #[test]
    fn only_a_change_of_what_the_policy_names_restarts() {
        let container: Container = serde_json::from_value(json!({"name": "a",
            "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"},
                {"resourceName": "cpu", "restartPolicy": "NotRequired"}],
            "resources": {"limits": {"cpu": "1", "memory": "2Mi"}}}))
        .expect("a container");
        let before = |cpu: &str, memory: &str| {
            serde_json::from_value(json!({"limits": {"cpu": cpu, "memory": memory}})).expect("resources")
        };
        assert!(!needs_restart(&container, &before("2", "2Mi")));
        assert!(needs_restart(&container, &before("1", "1Mi")));
    }
}
