//! Services without the kernel's packet filter: sockets of our own at the services' addresses, which pass on what comes.
//!
//! For machines whose kernel, or whatever surrounds this process, refuses nf_tables. It is the lesser way: endpoints see
//! this machine as their client, it ends with the agent, and pods do not reach beyond the machine's own network.
//!
//! A service's own address is given to the bridge. The same address may be another instance's too, so one socket is tied
//! to the bridge, for pods, and one to the loopback, for the machine; the latter belongs to who comes first.

mod tcp;
mod udp;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ambient::Ambient;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::balance::{Frontend, Place};
use crate::config::Cidr;
use crate::nft::Protocol;

/// Most clients that are remembered for a place.
const REMEMBERED_MAX: usize = 65_535;
/// The loopback interface.
const LOOPBACK: &str = "lo";

/// Sockets for services, as long as it lives.
#[derive(Debug)]
pub struct Relay {
    bridge: String,
    pod_cidr: Cidr,
    ambient: Ambient,
    /// Ends connections; sockets end by themselves.
    term: CancellationToken,
    running: BTreeMap<Listening, Running>,
}

/// One socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Listening {
    place: Place,
    /// The interface that it is tied to.
    device: Option<String>,
}

#[derive(Debug)]
struct Running {
    frontend: watch::Sender<Arc<Frontend>>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    /// Nothing is open yet.
    pub fn new(bridge: &str, pod_cidr: Cidr, ambient: Ambient, term: CancellationToken) -> Self {
        Self { bridge: bridge.to_owned(), pod_cidr, ambient, term, running: BTreeMap::new() }
    }

    /// Opens, changes and closes what is needed for these. The bridge has to have the services' own addresses.
    /// Answers what could not be opened.
    pub fn update(&mut self, frontends: &BTreeMap<Place, Frontend>) -> Vec<(Place, io::Error)> {
        let mut wanted: BTreeMap<Listening, Arc<Frontend>> = BTreeMap::new();
        for (place, frontend) in frontends {
            let open = |choice: Option<&super::Choice>| choice.is_some_and(|choice| !choice.endpoints.is_empty());
            if !open(Some(&frontend.inside)) && !open(frontend.outside.as_ref()) {
                // Where nobody listens the kernel refuses clients by itself.
                continue;
            }
            let frontend = Arc::new(frontend.clone());
            let devices =
                if frontend.is_cluster_ip { vec![Some(self.bridge.as_str()), Some(LOOPBACK)] } else { vec![None] };
            for device in devices {
                let listening = Listening { place: *place, device: device.map(str::to_owned) };
                wanted.insert(listening, frontend.clone());
            }
        }
        self.running.retain(|listening, running| wanted.contains_key(listening) && !running.task.is_finished());
        let mut failed = Vec::new();
        for (listening, frontend) in wanted {
            if let Some(running) = self.running.get(&listening) {
                running.frontend.send_if_modified(|known| {
                    let changed = **known != *frontend;
                    *known = frontend;
                    changed
                });
                continue;
            }
            match self.open(&listening, frontend) {
                Ok(running) => _ = self.running.insert(listening, running),
                // Another instance was first.
                Err(error) if listening.device.as_deref() == Some(LOOPBACK) => {
                    tracing::debug!(place = ?listening.place, %error, "not reached from the machine itself");
                }
                Err(error) => failed.push((listening.place, error)),
            }
        }
        failed
    }

    fn open(&self, listening: &Listening, frontend: Arc<Frontend>) -> io::Result<Running> {
        let Place { address, protocol, port } = listening.place;
        let address = SocketAddrV4::new(address.unwrap_or(Ipv4Addr::UNSPECIFIED), port);
        let (tell, told) = watch::channel(frontend);
        let picker = Picker {
            frontend: told,
            pod_cidr: self.pod_cidr,
            ambient: self.ambient.clone(),
            seen: Arc::default(),
            term: self.term.clone(),
        };
        let device = listening.device.as_deref();
        let task = match protocol {
            Protocol::Tcp => tokio::spawn(tcp::serve(tcp::listen(address, device)?, picker)),
            Protocol::Udp => tokio::spawn(udp::serve(udp::bind(address, device)?, picker)),
        };
        Ok(Running { frontend: tell, task })
    }
}

/// Picks endpoints for clients of one place.
#[derive(Clone, Debug)]
struct Picker {
    frontend: watch::Receiver<Arc<Frontend>>,
    pod_cidr: Cidr,
    ambient: Ambient,
    /// Where each client was sent, and until when, on the monotonic clock, it is sent there again.
    seen: Arc<Mutex<HashMap<IpAddr, (SocketAddrV4, Duration)>>>,
    term: CancellationToken,
}

impl Picker {
    /// The endpoints that this client may have, best first; none where it may not come in.
    fn pick(&self, client: SocketAddr) -> Vec<SocketAddrV4> {
        let frontend = self.frontend.borrow().clone();
        let mut endpoints = self.allowed(&frontend, client).to_vec();
        self.shuffle(&mut endpoints);
        let Some(seconds) = frontend.affinity_s else { return endpoints };
        let now = self.ambient.boottime();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((before, until)) = seen.get(&client.ip())
            && *until > now
            && let Some(at) = endpoints.iter().position(|endpoint| endpoint == before)
        {
            endpoints.swap(0, at);
        }
        if seen.len() >= REMEMBERED_MAX {
            seen.retain(|_, (_, until)| *until > now);
        }
        if let Some(first) = endpoints.first().filter(|_| seen.len() < REMEMBERED_MAX) {
            seen.insert(client.ip(), (*first, now + Duration::from_secs(seconds.into())));
        }
        endpoints
    }

    /// Whether this client may still speak with that endpoint.
    fn allows(&self, client: SocketAddr, endpoint: SocketAddrV4) -> bool {
        self.allowed(&self.frontend.borrow(), client).contains(&endpoint)
    }

    fn allowed<'a>(&self, frontend: &'a Frontend, client: SocketAddr) -> &'a [SocketAddrV4] {
        let IpAddr::V4(address) = client.ip() else { return &[] };
        if address.is_loopback() || self.pod_cidr.contains(address) || is_own(address) {
            return &frontend.inside.endpoints;
        }
        let welcome = frontend.sources.is_empty() || frontend.sources.iter().any(|range| range.contains(address));
        frontend.outside.as_ref().filter(|_| welcome).map_or(&[], |choice| &choice.endpoints)
    }

    fn shuffle(&self, endpoints: &mut [SocketAddrV4]) {
        let mut random = [0; 4];
        for n in (1..endpoints.len()).rev() {
            self.ambient.fill(&mut random);
            endpoints.swap(n, u32::from_ne_bytes(random) as usize % (n + 1));
        }
    }
}

/// Whether the machine has that address: only then a socket can be bound to it.
fn is_own(address: Ipv4Addr) -> bool {
    std::net::UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::balance::{Choice, Otherwise};
    use super::*;

    fn picker(affinity_s: Option<u32>) -> (Picker, watch::Sender<Arc<Frontend>>, Arc<ambient::ManualClock>) {
        let (ambient, clock) = Ambient::manual("2026-01-02T03:04:05Z".parse().expect("a time"), 1);
        let endpoints = |list: &[&str]| Choice {
            endpoints: list.iter().map(|e| e.parse().expect("an endpoint")).collect(),
            otherwise: Otherwise::Reject,
        };
        let frontend = Frontend {
            owner: "n/web:80".into(),
            is_cluster_ip: false,
            inside: endpoints(&["10.201.7.2:1", "10.201.7.3:1", "10.201.7.4:1"]),
            outside: Some(endpoints(&["10.201.7.2:1"])),
            sources: vec!["198.51.100.0/24".parse().expect("a range")],
            affinity_s,
        };
        let (tell, told) = watch::channel(Arc::new(frontend));
        let pod_cidr = "10.201.7.0/24".parse().expect("a range");
        let term = CancellationToken::new();
        (Picker { frontend: told, pod_cidr, ambient, seen: Arc::default(), term }, tell, clock)
    }

    #[test]
    fn clients_get_what_their_place_allows() {
        let (picker, ..) = picker(None);
        let inside = picker.pick("10.201.7.9:5".parse().expect("a client"));
        assert_eq!(inside.len(), 3);
        let outside = picker.pick("198.51.100.7:5".parse().expect("a client"));
        assert_eq!(outside, ["10.201.7.2:1".parse().expect("an endpoint")]);
        assert!(picker.pick("203.0.113.7:5".parse().expect("a client")).is_empty());
    }

    #[test]
    fn a_client_stays_with_its_endpoint_until_its_time_is_over_or_the_endpoint_gone() {
        let (picker, tell, clock) = picker(Some(60));
        let client = "10.201.7.9:5".parse().expect("a client");
        let first = picker.pick(client)[0];
        for _ in 0..20 {
            clock.advance(Duration::from_secs(59));
            assert_eq!(picker.pick(client)[0], first);
        }
        tell.send_modify(|frontend| Arc::make_mut(frontend).inside.endpoints.retain(|e| *e != first));
        assert!(!picker.allows(client, first));
        let second = picker.pick(client)[0];
        assert_ne!(second, first);
        let spread = (0..200).any(|_| {
            clock.advance(Duration::from_secs(61));
            picker.pick(client)[0] != second
        });
        assert!(spread, "with its time over it is sent anywhere");
    }
}
