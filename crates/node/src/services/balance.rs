//! Who answers where: from services, their endpoints and host ports to a list of frontends. No I/O.
//!
//! | traffic | endpoints |
//! |---|---|
//! | from pods and the machine | of all nodes; of this node with `internalTrafficPolicy: Local` at the service's own address |
//! | from elsewhere | of all nodes; of this node with `externalTrafficPolicy: Local` |
//!
//! Of those, the ready ones; if none is ready, those that are leaving and work still. If there are none at all, clients
//! are refused, or, where only this node has none, left without an answer, as upstream does both.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use super::facts::{Cluster, Endpoint, Service, ServicePort, Slice};
use crate::config::Cidr;
use crate::nft::Protocol;

/// A place where something is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The address; none for every address of the machine.
    pub address: Option<Ipv4Addr>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// What answers at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// What it belongs to, for people: `namespace/name:port`.
    pub owner: String,
    /// Whether its address is one of the cluster's own, which nobody outside knows.
    pub is_cluster_ip: bool,
    /// For pods and the machine itself.
    pub inside: Choice,
    /// For everybody else; none where they are not let in.
    pub outside: Option<Choice>,
    /// From where others may come; everywhere if empty.
    pub sources: Vec<Cidr>,
    /// How long a client stays with its endpoint, seconds.
    pub affinity_s: Option<u32>,
}

/// Endpoints to choose among.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// They, sorted.
    pub endpoints: Vec<SocketAddrV4>,
    /// What is done where there are none.
    pub otherwise: Otherwise,
}

/// What becomes of a packet that nobody takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otherwise {
    /// Its sender is told.
    Reject,
    /// It vanishes: another node may have what this one has not.
    Drop,
}

/// Everything that is reached through this node. A place that several claim belongs to the first, in this order:
/// addresses of services, ports of nodes, addresses from outside, host ports; and in each by name.
pub fn frontends(cluster: &Cluster, node: &str) -> BTreeMap<Place, Frontend> {
    let mut slices: BTreeMap<&str, Vec<&Slice>> = BTreeMap::new();
    for slice in cluster.slices.values() {
        slices.entry(&slice.service).or_default().push(slice);
    }
    let mut found = BTreeMap::new();
    let mut claim = |place, frontend| {
        found.entry(place).or_insert(frontend);
    };
    for step in [Step::ClusterIps, Step::NodePorts, Step::External] {
        for (name, service) in &cluster.services {
            let slices = slices.get(name.as_str()).map_or(&[][..], Vec::as_slice);
            for port in &service.ports {
                add_port(step, name, service, port, &Candidates::of(slices, port, node), &mut claim);
            }
        }
    }
    for (name, ports) in &cluster.host_ports {
        for port in ports {
            let choice = Choice { endpoints: vec![port.pod], otherwise: Otherwise::Reject };
            let frontend = Frontend {
                owner: format!("{name}:{}", port.pod.port()),
                is_cluster_ip: false,
                inside: choice.clone(),
                outside: Some(choice),
                sources: Vec::new(),
                affinity_s: None,
            };
            claim(Place { address: port.address, protocol: port.protocol, port: port.port }, frontend);
        }
    }
    found
}

/// Ready endpoints of a service that are on this node; what is told at its health port.
pub fn local_endpoints(cluster: &Cluster, service: &str, node: &str) -> usize {
    let slices = cluster.slices.values().filter(|slice| slice.service == service);
    let local = |e: &&Endpoint| e.ready && e.node.as_deref() == Some(node);
    let addresses: BTreeSet<Ipv4Addr> =
        slices.flat_map(|slice| slice.endpoints.iter().filter(local).map(|e| e.address)).collect();
    addresses.len()
}

#[derive(Clone, Copy)]
enum Step {
    ClusterIps,
    NodePorts,
    External,
}

fn add_port(
    step: Step,
    name: &str,
    service: &Service,
    port: &ServicePort,
    candidates: &Candidates,
    claim: &mut impl FnMut(Place, Frontend),
) {
    let place = |address, port_number| Place { address, protocol: port.protocol, port: port_number };
    let frontend = |is_cluster_ip: bool| Frontend {
        owner: format!("{name}:{}", port.port),
        is_cluster_ip,
        inside: candidates.choose(is_cluster_ip && service.internal_local),
        outside: (!is_cluster_ip).then(|| candidates.choose(service.external_local)),
        sources: Vec::new(),
        affinity_s: service.affinity_s,
    };
    match step {
        Step::ClusterIps => {
            if let Some(address) = service.cluster_ip {
                claim(place(Some(address), port.port), frontend(true));
            }
        }
        Step::NodePorts => {
            if let Some(number) = port.node_port {
                claim(place(None, number), frontend(false));
            }
        }
        Step::External => {
            for address in &service.external {
                claim(
                    place(Some(*address), port.port),
                    Frontend { sources: service.sources.clone(), ..frontend(false) },
                );
            }
        }
    }
}

/// The endpoints of one port of a service.
#[derive(Default)]
struct Candidates {
    /// Ready, leaving; of all nodes.
    all: (BTreeSet<SocketAddrV4>, BTreeSet<SocketAddrV4>),
    /// The same, of this node.
    local: (BTreeSet<SocketAddrV4>, BTreeSet<SocketAddrV4>),
}

impl Candidates {
    fn of(slices: &[&Slice], port: &ServicePort, node: &str) -> Self {
        let mut found = Self::default();
        for slice in slices {
            // Pods may offer a named port under different numbers: each slice says its own.
            let same =
                |(name, protocol, _): &&(String, Protocol, u16)| *name == port.name && *protocol == port.protocol;
            for (_, _, number) in slice.ports.iter().filter(same) {
                for endpoint in &slice.endpoints {
                    let at = SocketAddrV4::new(endpoint.address, *number);
                    found.add(at, endpoint, endpoint.node.as_deref() == Some(node));
                }
            }
        }
        found
    }

    fn add(&mut self, at: SocketAddrV4, endpoint: &Endpoint, is_local: bool) {
        let put = |(ready, leaving): &mut (BTreeSet<SocketAddrV4>, BTreeSet<SocketAddrV4>)| {
            if endpoint.ready {
                ready.insert(at);
            } else if endpoint.leaving {
                leaving.insert(at);
            }
        };
        put(&mut self.all);
        if is_local {
            put(&mut self.local);
        }
    }

    fn choose(&self, only_local: bool) -> Choice {
        let usable = |(ready, leaving): &(BTreeSet<SocketAddrV4>, BTreeSet<SocketAddrV4>)| -> Vec<SocketAddrV4> {
            let chosen = if ready.is_empty() { leaving } else { ready };
            chosen.iter().copied().collect()
        };
        let all = usable(&self.all);
        // Where nobody has any, the client is told; where only this node has none, another may answer.
        let elsewhere = only_local && !all.is_empty();
        let endpoints = if only_local { usable(&self.local) } else { all };
        Choice { endpoints, otherwise: if elsewhere { Otherwise::Drop } else { Otherwise::Reject } }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::facts::HostPort;
    use super::*;

    const HERE: &str = "node-a";

    fn endpoint(last: u8, node: &str, ready: bool, leaving: bool) -> Endpoint {
        Endpoint { address: Ipv4Addr::new(10, 201, 0, last), node: Some(node.to_owned()), ready, leaving }
    }

    fn cluster(service: Service, slices: Vec<Slice>) -> Cluster {
        let slices = slices.into_iter().enumerate().map(|(n, slice)| (format!("n/web-{n}"), slice)).collect();
        Cluster { services: [("n/web".to_owned(), service)].into(), slices, host_ports: BTreeMap::new() }
    }

    fn service() -> Service {
        Service {
            cluster_ip: Some(Ipv4Addr::new(10, 96, 0, 9)),
            external: vec![Ipv4Addr::new(192, 0, 2, 2)],
            ports: vec![ServicePort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: Some(30_080),
            }],
            ..Service::default()
        }
    }

    fn slice(port: u16, endpoints: Vec<Endpoint>) -> Slice {
        Slice { service: "n/web".into(), ports: vec![("http".into(), Protocol::Tcp, port)], endpoints }
    }

    fn at(cluster: &Cluster, address: Option<[u8; 4]>, port: u16) -> Frontend {
        let place = Place { address: address.map(Ipv4Addr::from), protocol: Protocol::Tcp, port };
        frontends(cluster, HERE).remove(&place).expect("something answers there")
    }

    fn shown(choice: &Choice) -> Vec<String> {
        choice.endpoints.iter().map(ToString::to_string).collect()
    }

    const CLUSTER_IP: Option<[u8; 4]> = Some([10, 96, 0, 9]);
    const BALANCER: Option<[u8; 4]> = Some([192, 0, 2, 2]);

    #[test]
    fn a_named_port_may_have_another_number_in_every_pod() {
        let slices =
            vec![slice(8080, vec![endpoint(2, HERE, true, false)]), slice(9090, vec![endpoint(3, HERE, true, false)])];
        let found = at(&cluster(service(), slices), CLUSTER_IP, 80);
        assert_eq!(shown(&found.inside), ["10.201.0.2:8080", "10.201.0.3:9090"]);
    }

    #[test]
    fn those_that_leave_serve_only_where_none_is_ready() {
        let leaving = endpoint(2, HERE, false, true);
        let both = cluster(service(), vec![slice(80, vec![leaving.clone(), endpoint(3, HERE, true, false)])]);
        assert_eq!(shown(&at(&both, CLUSTER_IP, 80).inside), ["10.201.0.3:80"]);
        let alone = cluster(service(), vec![slice(80, vec![leaving, endpoint(3, HERE, false, false)])]);
        assert_eq!(shown(&at(&alone, CLUSTER_IP, 80).inside), ["10.201.0.2:80"]);
    }

    #[test]
    fn local_policies_count_for_their_own_traffic_alone() {
        let endpoints = || vec![slice(80, vec![endpoint(2, HERE, true, false), endpoint(3, "node-b", true, false)])];
        let external = cluster(Service { external_local: true, ..service() }, endpoints());
        for place in [(None, 30_080), (BALANCER, 80)] {
            let found = at(&external, place.0, place.1);
            assert_eq!(found.inside.endpoints.len(), 2);
            assert_eq!(shown(&found.outside.expect("open")), ["10.201.0.2:80"]);
        }
        assert_eq!(at(&external, CLUSTER_IP, 80).inside.endpoints.len(), 2);
        let internal = cluster(Service { internal_local: true, ..service() }, endpoints());
        assert_eq!(shown(&at(&internal, CLUSTER_IP, 80).inside), ["10.201.0.2:80"]);
        assert_eq!(at(&internal, None, 30_080).inside.endpoints.len(), 2);
    }

    #[test]
    fn nobody_anywhere_is_refused_and_nobody_here_is_dropped() {
        let nobody = at(&cluster(service(), Vec::new()), CLUSTER_IP, 80);
        assert_eq!(nobody.inside, Choice { endpoints: Vec::new(), otherwise: Otherwise::Reject });
        let elsewhere = vec![slice(80, vec![endpoint(3, "node-b", true, false)])];
        let local = cluster(Service { external_local: true, internal_local: true, ..service() }, elsewhere);
        assert_eq!(at(&local, CLUSTER_IP, 80).inside.otherwise, Otherwise::Drop);
        assert_eq!(at(&local, BALANCER, 80).outside.expect("open").otherwise, Otherwise::Drop);
    }

    #[test]
    fn nobody_outside_reaches_a_cluster_ip() {
        let found = at(&cluster(service(), Vec::new()), CLUSTER_IP, 80);
        assert!(found.is_cluster_ip && found.outside.is_none());
    }

    #[test]
    fn a_place_that_two_claim_belongs_to_the_first() {
        let mut both = cluster(service(), vec![slice(80, vec![endpoint(2, HERE, true, false)])]);
        let pod = "10.201.0.9:1".parse().expect("an address");
        let port = |port| HostPort { address: None, port, protocol: Protocol::Tcp, pod };
        both.host_ports.insert("n/pod".into(), vec![port(30_080), port(8080)]);
        assert_eq!(at(&both, None, 30_080).owner, "n/web:80");
        assert_eq!(at(&both, None, 8080).owner, "n/pod:1");
    }

    proptest! {
        #[test]
        fn anytime_only_usable_endpoints_of_the_service_are_chosen(
            states in proptest::collection::vec((2u8..12, any::<bool>(), any::<bool>(), any::<bool>()), 0..12),
            internal_local: bool,
            external_local: bool,
        ) {
            let endpoints: Vec<Endpoint> = states
                .iter()
                .map(|(last, here, ready, leaving)| endpoint(*last, if *here { HERE } else { "b" }, *ready, *leaving))
                .collect();
            let known = cluster(Service { internal_local, external_local, ..service() }, vec![slice(80, endpoints.clone())]);
            for (place, frontend) in frontends(&known, HERE) {
                for (choice, only_local) in [
                    (Some(&frontend.inside), place.address == CLUSTER_IP.map(Ipv4Addr::from) && internal_local),
                    (frontend.outside.as_ref(), external_local),
                ] {
                    let Some(choice) = choice else { continue };
                    let fits = |e: &&Endpoint| !only_local || e.node.as_deref() == Some(HERE);
                    let ready = endpoints.iter().filter(fits).any(|e| e.ready);
                    let leaving = endpoints.iter().filter(fits).any(|e| !e.ready && e.leaving);
                    prop_assert_eq!(choice.endpoints.is_empty(), !ready && !leaving);
                    prop_assert!(choice.endpoints.is_sorted());
                    for chosen in &choice.endpoints {
                        let known = endpoints.iter().filter(fits).any(|e| {
                            e.address == *chosen.ip() && if ready { e.ready } else { e.leaving }
                        });
                        prop_assert!(known);
                    }
                }
            }
        }
    }
}
