//! Keeps what leads to services as it should be: rules in the kernel, or sockets of our own where it takes none.
//!
//! Rules are compared with those that were applied last, and looked after every few seconds: another firewall that is
//! started later takes its place without asking.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Shared;
use super::health::Health;
use super::known::Known;
use crate::config::ServiceMode;
use crate::nft::{self, Protocol, Target};
use crate::services::{self, Frontend, Place, neighbours, ports, relay, stale};

/// How often is looked whether others changed something.
const LOOK: Duration = Duration::from_secs(10);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// The API's own service, whose endpoints are this machine's.
const API: &str = "default/kubernetes";
/// The name server's port.
const DNS: u16 = 53;

/// Keeps services reachable until the agent ends.
pub(super) async fn run(shared: Arc<Shared>, mut known: watch::Receiver<Known>) {
    let mut keeper = Keeper::new(shared.clone());
    let keep = async {
        if known.wait_for(Known::knows_all).await.is_err() {
            return;
        }
        keeper.clear_other_way().await;
        loop {
            let cluster = known.borrow_and_update().balanced.clone();
            let done = super::stop::is_stopping(&shared.config) || keeper.update(cluster).await;
            shared.balanced.send_replace(true);
            tokio::select! {
                changed = known.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep(if done { LOOK } else { RETRY }) => {}
            }
        }
    };
    tokio::select! {
        () = keep => {}
        () = shared.term.cancelled() => {}
    }
}

struct Keeper {
    shared: Arc<Shared>,
    /// What is in the kernel, and who answered for UDP then.
    applied: Option<(nft::Table, stale::Answering)>,
    relay: Option<relay::Relay>,
    health: Health,
    /// Places that this node has taken although any program of the machine might have had them.
    granted: BTreeSet<Place>,
    /// What was said already.
    said: BTreeSet<String>,
}

impl Keeper {
    fn new(shared: Arc<Shared>) -> Self {
        let (config, ambient, term) = (&shared.config, shared.ambient.clone(), shared.term.clone());
        let sockets = || relay::Relay::new(&config.bridge, config.pod_cidr, ambient, term);
        let relay = (config.service_mode == ServiceMode::Sockets).then(sockets);
        Self {
            health: Health::new(&config.node_name),
            shared,
            applied: None,
            relay,
            granted: BTreeSet::new(),
            said: BTreeSet::new(),
        }
    }

    /// Takes away what an earlier run left that served the other way.
    async fn clear_other_way(&self) {
        let none = BTreeSet::new();
        let cleared = if self.relay.is_some() {
            services::withdraw(&self.shared.config).await;
            self.shared.network.route_services(&none).await
        } else {
            self.shared.network.own_services(&none).await
        };
        if let Err(error) = cleared {
            tracing::warn!(%error, "what an earlier run left for services was not taken away");
        }
    }

    /// Brings everything to what follows from the cluster. False where something failed and is to be tried again.
    async fn update(&mut self, cluster: services::Cluster) -> bool {
        self.health.update(&cluster);
        self.tell_unsupported(&cluster);
        let mut node = node(&self.shared, &cluster);
        let mut frontends = services::frontends(&cluster, &self.shared.config.node_name);
        self.spare_others(&mut frontends, &mut node.own);
        let addresses: BTreeSet<Ipv4Addr> =
            frontends.iter().filter(|(_, f)| f.is_cluster_ip).filter_map(|(place, _)| place.address).collect();
        if self.relay.is_none() {
            match self.update_rules(&node, &frontends).await {
                Ok(()) => {
                    let routed = self.shared.network.route_services(&addresses).await;
                    return routed
                        .inspect_err(|e| self.say(&format!("the machine may not reach services: {e}")))
                        .is_ok();
                }
                Err(error) if self.may_fall_back(&error) => {
                    self.say(&format!(
                        "{error}; services are served by sockets instead: endpoints do not see their clients' addresses, \
                         and pods do not reach beyond this machine's own network"
                    ));
                    let (config, term) = (&self.shared.config, self.shared.term.clone());
                    let relay = relay::Relay::new(&config.bridge, config.pod_cidr, self.shared.ambient.clone(), term);
                    self.relay = Some(relay);
                }
                Err(error) => {
                    self.say(&format!("services are not brought up to date: {error}"));
                    return false;
                }
            }
        }
        let owned = self.shared.network.own_services(&addresses).await;
        let failed = self.relay.as_mut().map(|relay| relay.update(&frontends)).unwrap_or_default();
        for (place, error) in &failed {
            let owner = frontends.get(place).map_or("", |frontend| frontend.owner.as_str());
            self.say(&format!("{owner} is not served at port {}: {error}", place.port));
        }
        owned.is_ok() && failed.is_empty()
    }

    /// Only at the first try, and where nobody said otherwise: rules that are in the kernel stay there.
    fn may_fall_back(&self, error: &nft::Error) -> bool {
        self.applied.is_none() && self.shared.config.service_mode == ServiceMode::Auto && error.is_unsupported()
    }

    async fn update_rules(
        &mut self,
        node: &services::Node,
        frontends: &BTreeMap<Place, Frontend>,
    ) -> Result<(), nft::Error> {
        let table = services::table(node, frontends);
        let answering = stale::answering(frontends);
        let (before, now) = (self.applied.clone(), (table, answering));
        let (bridge, range, own) = {
            let config = &self.shared.config;
            (config.bridge.clone(), config.pod_cidr.to_string(), config.gateway)
        };
        let job = move || {
            let socket = nft::Socket::open()?;
            let (table, answering) = &now;
            if before.as_ref().is_none_or(|(before, _)| before != table) || !nft::is_there(&socket, &table.name)? {
                nft::apply(&socket, table)?;
            }
            let nobody = stale::Answering::new();
            let was = before.as_ref().map_or(&nobody, |(_, answering)| answering);
            if was != answering {
                forget(&socket, was, answering);
            }
            let told = neighbours::tend(&socket, &bridge, &range, own);
            Ok::<_, nft::Error>((now, told))
        };
        let (now, told) = tokio::task::spawn_blocking(job).await.expect("applying does not panic")?;
        self.applied = Some(now);
        match told {
            Ok(told) => told.iter().for_each(|text| self.say(text)),
            Err(error) => tracing::debug!(%error, "other firewalls were not looked at"),
        }
        Ok(())
    }

    /// Leaves out places at which another program of this machine listens: it would be cut off.
    /// What listens at a single address keeps that, where a place means every address.
    fn spare_others(&mut self, frontends: &mut BTreeMap<Place, Frontend>, own: &mut BTreeSet<Target>) {
        self.granted.retain(|place| frontends.contains_key(place));
        let asked = |place: &Place, frontend: &Frontend| !frontend.is_cluster_ip && !self.granted.contains(place);
        if frontends.values().all(|frontend| frontend.is_cluster_ip) {
            return;
        }
        let taken = ports::taken();
        own.extend(frontends.keys().flat_map(|place| taken.singles(*place)));
        let mut spared = Vec::new();
        for (place, frontend) in frontends.iter().filter(|(place, frontend)| asked(place, frontend)) {
            if taken.is_taken(*place) {
                let at = place.address.map_or_else(String::new, |address| format!("{address} "));
                let Place { protocol, port, .. } = place;
                let text = format!(
                    "{} does not get {at}port {port}/{protocol} of this machine: another program listens there; stop \
                     it, or choose another port",
                    frontend.owner
                );
                spared.push((*place, text));
            }
        }
        for (place, text) in spared {
            frontends.remove(&place);
            self.say(&text);
        }
        self.granted.extend(frontends.iter().filter(|(_, f)| !f.is_cluster_ip).map(|(place, _)| *place));
    }

    fn tell_unsupported(&mut self, cluster: &services::Cluster) {
        for (name, service) in &cluster.services {
            for port in &service.unsupported {
                self.say(&format!("port {port} of service {name} is not balanced: TCP and UDP are"));
            }
        }
    }

    /// Says something once.
    fn say(&mut self, text: &str) {
        /// Beyond so many different things all may be said anew.
        const MANY: usize = 256;
        if self.said.len() >= MANY {
            self.said.clear();
        }
        if self.said.insert(text.to_owned()) {
            tracing::warn!("{text}");
        }
    }
}

/// What the node's rules depend on besides services.
fn node(shared: &Shared, cluster: &services::Cluster) -> services::Node {
    let config = &shared.config;
    let at = |address, protocol, port| Target { address, protocol, port };
    let mut own: BTreeSet<Target> = [Protocol::Tcp, Protocol::Udp].map(|p| at(config.gateway, p, DNS)).into();
    for slice in cluster.slices.values().filter(|slice| slice.service == API) {
        let ports = slice.ports.iter().flat_map(|(_, protocol, port)| {
            slice.endpoints.iter().map(|endpoint| at(endpoint.address, *protocol, *port))
        });
        own.extend(ports);
    }
    services::Node {
        tag: config.tag(),
        bridge: config.bridge.clone(),
        pod_cidr: config.pod_cidr,
        expose_lan: config.expose_lan,
        own,
    }
}

/// Has the kernel forget exchanges that lead astray. Blocks.
fn forget(socket: &nft::Socket, before: &stale::Answering, now: &stale::Answering) {
    let forgotten = nft::udp_flows(socket)
        .and_then(|flows| stale::stale(&flows, before, now).iter().try_for_each(|flow| nft::delete_flow(socket, flow)));
    if let Err(error) = forgotten {
        tracing::warn!(%error, "clients of UDP services may be answered late after a change");
    }
}
