//! Containers that are not what they were said to be at first: their image may be another when they start again, as their
//! pull policy says, and variables that come from a file are not known before. Their shim asks before it starts them,
//! and waits as long as there is an agent to answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::Shared;
use super::env_file;
use super::ephemeral::alone;
use super::images;
use super::prepare::{epoch_of, place, with_addresses};
use super::sources::{Fetched, Needs};
use super::status::Hold;
use super::translate::{self, Inputs, Refusal};
use super::worker::Worker;
use crate::shim::Shim;
use crate::shim::spec::ContainerSpec;

/// Pause after a failure that does not say itself how long to wait.
const RETRY: Duration = Duration::from_secs(2);

/// When containers that could not be answered are tried again, on the monotonic clock.
pub(super) type Due = BTreeMap<String, Duration>;

impl Worker {
    /// Answers the containers that ask what they are to be.
    pub(super) async fn answer_containers(&mut self, shim: &Shim) {
        let Some(pod) = self.object() else { return };
        let asking: Vec<String> =
            self.state.iter().flat_map(|s| &s.containers).filter(|c| c.asks).map(|c| c.name.clone()).collect();
        let spec = pod.spec.clone().unwrap_or_default();
        for container in translate::containers(&spec) {
            if !asking.contains(&container.name) {
                if self.again.remove(&container.name).is_some() {
                    self.refused.remove(&container.name);
                }
                continue;
            }
            let now = self.shared.ambient.boottime();
            if self.again.get(&container.name).is_some_and(|due| *due > now) {
                continue;
            }
            self.again.insert(container.name.clone(), now);
            let answered = self.answer(shim, &pod, container).await;
            if self.must_leave() || self.shared.term.is_cancelled() {
                return;
            }
            match answered {
                Ok(()) => drop(self.refused.remove(&container.name)),
                Err(hold) => {
                    if !hold.reason.contains("Image") {
                        let message = format!("Error: {}", hold.message);
                        self.shared.events.warning(&pod, Some(&container.name), "Failed", &message);
                    }
                    let pause = self.pause.take().unwrap_or(RETRY);
                    self.again.insert(container.name.clone(), self.shared.ambient.boottime() + pause);
                    self.refused.insert(container.name.clone(), hold);
                    self.publish();
                }
            }
        }
    }

    /// Ends when a container that could not be answered is to be tried again.
    pub(super) fn until_again(&self) -> impl Future<Output = ()> + use<> {
        let now = self.shared.ambient.boottime();
        let pause = self.again.values().filter(|due| **due > now).min().map(|due| *due - now);
        async move {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        }
    }

    async fn answer(&mut self, shim: &Shim, pod: &Arc<Pod>, container: &Container) -> Result<(), Hold> {
        let refused = |reason: &str, message: String| Hold {
            container: container.name.clone(),
            reason: reason.to_owned(),
            message,
        };
        let only = alone(pod, container);
        let fetched = Needs::of(&only).fetch(&self.shared.client, &self.shared.ambient, &self.id.namespace).await;
        let fetched =
            fetched.map_err(|e| refused("CreateContainerConfigError", format!("cannot read what it names: {e}")))?;
        let images = self.ready_images(&only).await?;
        self.images.extend(images.iter().map(|(name, ready)| (name.clone(), ready.noted.clone())));
        let address = self.address.unwrap_or(self.shared.host);
        let job = Preparation {
            shared: self.shared.clone(),
            dir: self.dir(),
            pod: with_addresses(pod, address, self.shared.host),
            only,
            container: container.clone(),
            fetched,
            images,
        };
        let spec = tokio::task::spawn_blocking(move || job.run()).await.expect("preparing does not panic")?;
        shim.respecify(spec).await.map_err(|e| refused("CreateContainerError", e.to_string()))
    }
}

/// The part that blocks: volumes, and the note of what it runs from.
struct Preparation {
    shared: Arc<Shared>,
    dir: std::path::PathBuf,
    pod: Pod,
    /// The pod with this container alone.
    only: Pod,
    container: Container,
    fetched: Fetched,
    images: BTreeMap<String, images::Ready>,
}

impl Preparation {
    fn run(mut self) -> Result<ContainerSpec, Hold> {
        self.fetched.files = env_file::read(&self.dir, &self.pod, &self.container);
        let refused = |reason: &str, message: String| Hold {
            container: self.container.name.clone(),
            reason: reason.to_owned(),
            message,
        };
        images::note(&self.dir, &self.images).map_err(|e| refused("ErrImagePull", e.to_string()))?;
        images::are_there(&self.shared.images, &self.images).map_err(|e| refused("ErrImagePull", e))?;
        let place = place(&self.shared, &self.dir, &self.only, &self.images);
        let volumes = place
            .prepare(&self.only, &self.fetched)
            .map_err(|e| refused("CreateContainerConfigError", e.to_string()))?;
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
        let spec = translate::again(&inputs, &self.container);
        spec.map_err(|Refusal { container, reason, message }| Hold { container, reason: reason.to_owned(), message })
    }
}
