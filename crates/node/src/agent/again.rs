//! Containers that are not what they were said to be at first: their image may be another when they start again, as their
//! pull policy says, and variables that come from a file are not known before. Their shim asks before it starts them,
//! and waits as long as there is an agent to answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::single::Purpose;
use super::status::Hold;
use super::translate;
use super::worker::Worker;
use crate::shim::Shim;

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
        let spec = self.single_out(pod, container, Purpose::Again).await?;
        shim.respecify(spec).await.map_err(|e| Hold::of(&container.name, "CreateContainerError", e.to_string()))
    }
}
