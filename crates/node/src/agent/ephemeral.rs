//! Ephemeral containers, as `kubectl debug` adds them to a pod that runs: each is told to the pod's shim once, and never
//! started again, not in a new sandbox either.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod};

use super::single::Purpose;
use super::status::Hold;
use super::worker::Worker;
use crate::shim::Shim;

impl Worker {
    /// Tells the shim of ephemeral containers that it does not know and that never ran.
    pub(super) async fn start_ephemeral(&mut self, shim: &Shim) {
        let Some(pod) = self.object() else { return };
        let all = pod.spec.iter().flat_map(|s| s.ephemeral_containers.iter().flatten());
        let due: Vec<&EphemeralContainer> = all.filter(|c| !self.has_run(&pod, &c.name)).collect();
        for container in due {
            let term = self.shared.term.clone();
            let added = tokio::select! {
                added = self.add_ephemeral(shim, &pod, container) => added,
                () = term.cancelled() => return,
            };
            match added {
                Ok(()) => drop(self.refused.remove(&container.name)),
                Err(hold) => {
                    self.shared.events.warning(
                        &pod,
                        Some(&container.name),
                        "Failed",
                        &format!("Error: {}", hold.message),
                    );
                    self.refused.insert(container.name.clone(), hold);
                    self.publish();
                }
            }
        }
    }

    /// Whether the shim has it, or it ran in an earlier sandbox.
    fn has_run(&self, pod: &Pod, name: &str) -> bool {
        let told = self.state.as_ref().is_some_and(|s| s.container(name).is_some()) || self.carried.contains_key(name);
        let reported = pod.status.iter().flat_map(|s| s.ephemeral_container_statuses.iter().flatten());
        told || reported.filter(|s| s.name == name).filter_map(|s| s.state.as_ref()).any(|s| s.waiting.is_none())
    }

    async fn add_ephemeral(&mut self, shim: &Shim, pod: &Arc<Pod>, container: &EphemeralContainer) -> Result<(), Hold> {
        let target = container.target_container_name.clone().filter(|t| !t.is_empty());
        let spec = self.single_out(pod, &as_container(container), Purpose::Added { target }).await?;
        shim.add(spec).await.map_err(|e| Hold::of(&container.name, "CreateContainerError", e.to_string()))
    }
}

/// An ephemeral container is a container but for its target.
pub(super) fn as_container(ephemeral: &EphemeralContainer) -> Container {
    let e = ephemeral.clone();
    Container {
        args: e.args,
        command: e.command,
        env: e.env,
        env_from: e.env_from,
        image: e.image,
        image_pull_policy: e.image_pull_policy,
        name: e.name,
        resources: e.resources,
        security_context: e.security_context,
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path,
        termination_message_policy: e.termination_message_policy,
        tty: e.tty,
        volume_devices: e.volume_devices,
        volume_mounts: e.volume_mounts,
        working_dir: e.working_dir,
        ..Container::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_field_of_an_ephemeral_container_is_carried_over() {
        let text = json!({
            "name": "debugger", "image": "host", "command": ["a"], "args": ["b"], "workingDir": "/w",
            "env": [{"name": "A", "value": "B"}], "envFrom": [{"configMapRef": {"name": "c"}}],
            "imagePullPolicy": "Never", "resources": {}, "securityContext": {"runAsUser": 7},
            "stdin": true, "stdinOnce": true, "tty": true, "terminationMessagePath": "/t",
            "terminationMessagePolicy": "File", "volumeMounts": [{"name": "data", "mountPath": "/data"}]});
        let ephemeral: EphemeralContainer = serde_json::from_value(text.clone()).expect("a container");
        assert_eq!(serde_json::to_value(as_container(&ephemeral)).expect("JSON"), text);
    }
}
