//! Ephemeral containers, as `kubectl debug` adds them to a pod that runs: each is told to the pod's shim once, and never
//! started again, not in a new sandbox either.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};

use super::Shared;
use super::env_file;
use super::images;
use super::prepare::{epoch_of, place, with_addresses};
use super::sources::Needs;
use super::status::Hold;
use super::translate::{self, Inputs, Refusal};
use super::worker::Worker;
use crate::shim::Shim;
use crate::shim::spec::ContainerSpec;

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

    async fn add_ephemeral(&mut self, shim: &Shim, pod: &Pod, container: &EphemeralContainer) -> Result<(), Hold> {
        let refused = |reason: &str, message: String| Hold {
            container: container.name.clone(),
            reason: reason.to_owned(),
            message,
        };
        let plain = as_container(container);
        let alone = alone(pod, &plain);
        let fetched = Needs::of(&alone).fetch(&self.shared.client, &self.shared.ambient, &self.id.namespace).await;
        let fetched =
            fetched.map_err(|e| refused("CreateContainerConfigError", format!("cannot read what it names: {e}")))?;
        let images = self.ready_images(&alone).await?;
        self.images.extend(images.iter().map(|(name, ready)| (name.clone(), ready.noted.clone())));
        let job = Preparation {
            shared: self.shared.clone(),
            dir: self.dir(),
            whole: pod.clone(),
            pod: with_addresses(&alone, self.address.unwrap_or(self.shared.host), self.shared.host),
            fetched,
            images,
            plain,
            target: container.target_container_name.clone().filter(|t| !t.is_empty()),
        };
        let spec = tokio::task::spawn_blocking(move || job.run()).await.expect("preparing does not panic")?;
        shim.add(spec).await.map_err(|e| refused("CreateContainerError", e.to_string()))
    }
}

/// The part that blocks: volumes.
struct Preparation {
    shared: Arc<Shared>,
    dir: PathBuf,
    whole: Pod,
    /// With this container alone.
    pod: Pod,
    fetched: super::sources::Fetched,
    images: BTreeMap<String, images::Ready>,
    plain: Container,
    target: Option<String>,
}

impl Preparation {
    fn run(mut self) -> Result<ContainerSpec, Hold> {
        self.fetched.files = env_file::read(&self.dir, &self.whole, &self.plain);
        let epoch = epoch_of(&self.pod);
        let place = place(&self.shared, &self.dir, &self.pod, &self.images);
        let volumes = place.prepare(&self.pod, &self.fetched).map_err(|e| Hold {
            container: self.plain.name.clone(),
            reason: "CreateContainerConfigError".to_owned(),
            message: e.to_string(),
        })?;
        let inputs = Inputs {
            pod: &self.pod,
            config: &self.shared.config,
            fetched: &self.fetched,
            volumes: &volumes,
            shared_memory: None,
            users: None,
            images: &self.images,
            epoch,
            incarnation: 0,
            restarts: &BTreeMap::new(),
        };
        let refused =
            |message: String| Hold { container: self.plain.name.clone(), reason: "ErrImagePull".to_owned(), message };
        images::note(&self.dir, &self.images).map_err(|e| refused(e.to_string()))?;
        images::are_there(&self.shared.images, &self.images).map_err(refused)?;
        let spec = translate::ephemeral(&inputs, &self.plain, self.target.clone());
        spec.map_err(|Refusal { container, reason, message }| Hold { container, reason: reason.to_owned(), message })
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

/// The pod as if it had this container alone, and only the volumes that it mounts.
pub(super) fn alone(pod: &Pod, container: &Container) -> Pod {
    let mut alone = pod.clone();
    let spec = alone.spec.get_or_insert_default();
    let mounted = |name: &str| container.volume_mounts.iter().flatten().any(|m| m.name == name);
    let volumes = spec.volumes.take().unwrap_or_default().into_iter().filter(|v| mounted(&v.name)).collect();
    *spec = PodSpec {
        containers: vec![container.clone()],
        init_containers: None,
        ephemeral_containers: None,
        volumes: Some(volumes),
        ..std::mem::take(spec)
    };
    alone
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

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

    #[test]
    fn only_what_it_mounts_is_prepared() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "containers": [{"name": "main"}],
            "volumes": [{"name": "data", "emptyDir": {}}, {"name": "other", "secret": {"secretName": "s"}}]}}))
        .expect("a pod");
        let container: Container =
            serde_json::from_value(json!({"name": "d", "volumeMounts": [{"name": "data", "mountPath": "/d"}]}))
                .expect("a container");
        let spec: Value = serde_json::to_value(alone(&pod, &container).spec).expect("JSON");
        assert_eq!(spec["volumes"], json!([{"name": "data", "emptyDir": {}}]));
        assert_eq!(spec["containers"][0]["name"], "d");
    }
}
