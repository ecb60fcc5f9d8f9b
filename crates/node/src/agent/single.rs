//! One container of a pod that runs already, made ready by itself: what it names is fetched, its image pulled where its
//! policy says so, its volumes put in place.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::Shared;
use super::env_file;
use super::images;
use super::prepare::{epoch_of, place, with_addresses};
use super::sources::{Fetched, Needs};
use super::status::Hold;
use super::translate::{self, Inputs, Refusal};
use super::worker::Worker;
use crate::shim::spec::ContainerSpec;

/// What a container is made ready for.
pub(super) enum Purpose {
    /// To start again.
    Again,
    /// To be added to the pod: an ephemeral one.
    Added {
        /// The container whose processes it sees.
        target: Option<String>,
    },
}

impl Worker {
    /// What the shim is to be told of the container.
    pub(super) async fn single_out(
        &mut self,
        pod: &Arc<Pod>,
        container: &Container,
        purpose: Purpose,
    ) -> Result<ContainerSpec, Hold> {
        let only = alone(pod, container);
        let fetched = Needs::of(&only).fetch(&self.shared.client, &self.shared.ambient, &self.id.namespace).await;
        let fetched = fetched.map_err(|e| {
            Hold::of(&container.name, "CreateContainerConfigError", format!("cannot read what it names: {e}"))
        })?;
        let images = self.ready_images(&only).await?;
        self.images.extend(images.iter().map(|(name, ready)| (name.clone(), ready.noted.clone())));
        let address = self.address.unwrap_or(self.shared.host);
        let job = Job {
            shared: self.shared.clone(),
            dir: self.dir(),
            pod: with_addresses(pod, address, self.shared.host),
            only,
            container: container.clone(),
            purpose,
            fetched,
            images,
        };
        tokio::task::spawn_blocking(move || job.run()).await.expect("preparing does not panic")
    }
}

/// The part that blocks: volumes, and the note of what it runs from.
struct Job {
    shared: Arc<Shared>,
    dir: PathBuf,
    pod: Pod,
    /// The pod with this container alone.
    only: Pod,
    container: Container,
    purpose: Purpose,
    fetched: Fetched,
    images: BTreeMap<String, images::Ready>,
}

impl Job {
    fn run(mut self) -> Result<ContainerSpec, Hold> {
        self.fetched.files = env_file::read(&self.dir, &self.pod, &self.container);
        let held = |reason: &str, message: String| Hold::of(&self.container.name, reason, message);
        images::note(&self.dir, &self.images).map_err(|e| held("ErrImagePull", e.to_string()))?;
        images::are_there(&self.shared.images, &self.images).map_err(|e| held("ErrImagePull", e))?;
        let place = place(&self.shared, &self.dir, &self.only, &self.images);
        let volumes =
            place.prepare(&self.only, &self.fetched).map_err(|e| held("CreateContainerConfigError", e.to_string()))?;
        let inputs = Inputs {
            pod: &self.pod,
            config: &self.shared.config,
            fetched: &self.fetched,
            volumes: &volumes,
            shared_memory: None,
            users: None,
            images: &self.images,
            epoch: epoch_of(&self.pod),
            incarnation: 0,
            restarts: &BTreeMap::new(),
        };
        let spec = match self.purpose {
            Purpose::Again => translate::again(&inputs, &self.container),
            Purpose::Added { target } => translate::ephemeral(&inputs, &self.container, target),
        };
        spec.map_err(|Refusal { container, reason, message }| Hold::of(&container, reason, message))
    }
}

/// The pod as if it had this container alone, and only the volumes that it mounts.
fn alone(pod: &Pod, container: &Container) -> Pod {
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
