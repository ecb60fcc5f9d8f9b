//! Bringing a pod up: the steps of the picture in [`super::worker`], each of which may be the last that the agent does.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::prepare::{Preparation, with_addresses};
use super::renew;
use super::sources::Needs;
use super::status::Hold;
use super::timeline::Step;
use super::translate;
use super::worker::{Worker, hold};
use crate::fault::{self, Point};
use crate::shim::spec::{ShimSpec, UserRange};
use crate::shim::{self, Shim};

/// How long a pod's start waits for an agent that has just started to lead to services.
const SERVICES_LIMIT: Duration = Duration::from_secs(3);

/// How an attempt to bring a pod up ended.
pub(super) enum Raised {
    Up(Shim),
    Held(Hold),
    /// Deletion or the agent's end came first.
    Interrupted,
    /// The node's pods are being stopped.
    Forbidden,
}

impl Worker {
    /// The steps of bringing up; see the module's picture.
    pub(super) async fn bring_up(&mut self, remains: bool) -> Raised {
        if let Some(after) = self.after.take() {
            // Order among pods that start together; readiness does not matter here. An error means "had its try".
            let _ = after.await;
        }
        if self.interrupted() {
            return Raised::Interrupted;
        }
        if super::stop::is_stopping(&self.shared.config) {
            return Raised::Forbidden;
        }
        match self.not_admitted(!remains).await {
            Ok(None) => {}
            Ok(Some(verdict)) => {
                self.verdict = Some(verdict);
                self.state = None;
                self.publish();
                return Raised::Interrupted;
            }
            Err(_) if self.interrupted() => return Raised::Interrupted,
            Err(hold) => return Raised::Held(hold),
        }
        self.stopwatch.begin();
        let incarnation = if remains { self.next_incarnation() } else { 1 };
        if remains && let Err(error) = shim::cleanup(&self.dir()).await {
            return Raised::Held(hold("FailedCreatePodSandBox", error.to_string()));
        }
        if remains {
            fault::point(Point::RemainsCleared);
        }
        match self.prepare(incarnation).await {
            Ok(()) => {}
            // Whatever was cut short says nothing of the pod.
            Err(_) if self.interrupted() => return Raised::Interrupted,
            Err(hold) => return Raised::Held(hold),
        }
        if self.interrupted() {
            return Raised::Interrupted;
        }
        let Some(permit) = super::stop::launch_permit(&self.shared.config) else { return Raised::Forbidden };
        let launched = self.launch().await;
        drop(permit);
        match launched {
            Ok(shim) => Raised::Up(shim),
            Err(hold) => {
                if let Err(error) = shim::cleanup(&self.dir()).await {
                    tracing::warn!(pod = %self.id.name, %error, "a sandbox that failed cannot be cleaned up yet");
                }
                Raised::Held(hold)
            }
        }
    }

    /// Steps 1 to 3: everything that the shim needs, on disk.
    async fn prepare(&mut self, incarnation: u64) -> Result<(), Hold> {
        let pod = self.object().ok_or_else(|| hold("PodDeleted", "the pod is gone".to_owned()))?;
        fault::point(Point::Seen);
        let needs = Needs::of(&pod);
        let fetched = tokio::select! {
            fetched = needs.fetch(&self.shared.client, &self.shared.ambient, &self.id.namespace) => fetched,
            () = self.shared.term.cancelled() => return Err(hold("ContainerCreating", "the agent ends".to_owned())),
        };
        let fetched =
            fetched.map_err(|e| hold("CreateContainerConfigError", format!("cannot read what the pod names: {e}")))?;
        fault::point(Point::Fetched);
        self.stopwatch.reach(Step::Config);
        self.renew_at = renew::due(&fetched);
        let host_network = pod.spec.as_ref().is_some_and(|s| s.host_network == Some(true));
        let address = if host_network { self.shared.host } else { self.allocate().await? };
        fault::point(Point::AddressRecorded);
        let own_users = pod.spec.as_ref().is_some_and(translate::own_users);
        let users = if own_users { Some(self.allocate_users().await?) } else { None };
        fault::point(Point::UsersRecorded);
        self.stopwatch.reach(Step::Address);
        self.address = Some(address);
        self.publish();
        let given = self.allocate_resources(&pod);
        let images = self.ready_images(&pod).await?;
        self.stopwatch.reach(Step::Image);
        self.images = images.iter().map(|(name, ready)| (name.clone(), ready.noted.clone())).collect();
        let pod = with_addresses(&given, address, self.shared.host);
        let job = Preparation {
            shared: self.shared.clone(),
            id: self.id.clone(),
            dir: self.dir(),
            pod,
            address,
            users,
            fetched,
            images,
            incarnation,
            restarts: self.carried.iter().map(|(name, c)| (name.clone(), c.restarts)).collect(),
        };
        let prepared = tokio::task::spawn_blocking(move || job.run()).await.expect("preparing does not panic");
        prepared.inspect(|()| self.stopwatch.reach(Step::Volumes))
    }

    /// Steps 4 to 6: sandbox, network, start.
    async fn launch(&mut self) -> Result<Shim, Hold> {
        let failed = |message: String| hold("FailedCreatePodSandBox", message);
        let dir = self.dir();
        let exe = self.shared.exe().await.map_err(|e| failed(format!("cannot copy the program: {e}")))?;
        let launched = shim::launch(&dir, exe).await.map_err(|e| failed(e.to_string()))?;
        fault::point(Point::SandboxMade);
        self.stopwatch.reach(Step::Sandbox);
        let host_network = ShimSpec::read(&dir).is_ok_and(|s| s.host_network);
        if let (false, Some(address)) = (host_network, self.address) {
            let nonce = self.shared.ambient.suffix(10);
            let attached = self.shared.network.attach(launched.pid, address, &nonce).await;
            attached.map_err(|e| failed(e.to_string()))?;
        }
        fault::point(Point::InterfaceReady);
        self.stopwatch.reach(Step::Network);
        let shim = Shim::connect(&dir).await.map_err(|e| failed(e.to_string()))?;
        self.wait_for_services().await;
        shim.start().await.map_err(|e| failed(e.to_string()))?;
        fault::point(Point::StartAsked);
        Ok(shim)
    }

    /// The first thing that many programs do is to ask the API at its service: an agent that has just started leads
    /// there in a moment. What goes wrong with services does not keep pods from starting.
    async fn wait_for_services(&self) {
        let mut balanced = self.shared.balanced.subscribe();
        let _ = tokio::time::timeout(SERVICES_LIMIT, balanced.wait_for(|balanced| *balanced)).await;
    }

    async fn allocate(&self) -> Result<Ipv4Addr, Hold> {
        let shared = self.shared.clone();
        let (identity, uid) = (format!("{}/{}", self.id.namespace, self.id.name), self.id.uid.clone());
        let mut addresses = shared.addresses.clone().lock_owned().await;
        let job = tokio::task::spawn_blocking(move || addresses.allocate(&identity, &uid));
        let address = job.await.expect("the address record does not panic");
        address.map_err(|e| hold("FailedCreatePodSandBox", e.to_string()))
    }

    async fn allocate_users(&self) -> Result<UserRange, Hold> {
        let uid = self.id.uid.clone();
        let mut users = self.shared.users.clone().lock_owned().await;
        let users = tokio::task::spawn_blocking(move || users.allocate(&uid)).await;
        let users = users.expect("the record of users does not panic");
        users.map_err(|e| hold("FailedCreatePodSandBox", e.to_string()))
    }
}
