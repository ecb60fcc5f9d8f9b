//! What is known of services, their endpoints and host ports, in small types of our own.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;

use crate::config::Cidr;
use crate::nft::Protocol;

/// How long a client stays with its endpoint where the service does not say; upstream's default, seconds.
const AFFINITY_S: i32 = 10_800;
/// The label by which other programs claim a service for themselves.
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";

/// Everything that is balanced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// By `namespace/name`.
    pub services: BTreeMap<String, Service>,
    /// By `namespace/name` of the slice.
    pub slices: BTreeMap<String, Slice>,
    /// Host ports of this node's pods, by `namespace/name` of the pod.
    pub host_ports: BTreeMap<String, Vec<HostPort>>,
}

/// A service that has an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its uid: distinguishes it from one of the same name before it.
    pub uid: String,
    /// Its own address.
    pub cluster_ip: Option<Ipv4Addr>,
    /// Addresses that lead to it from outside: of balancers, and given by hand.
    pub external: Vec<Ipv4Addr>,
    /// From where its balancers' addresses may be used; everywhere if empty.
    pub sources: Vec<Cidr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// How long a client stays with its endpoint, seconds.
    pub affinity_s: Option<u32>,
    /// Whether clients inside get endpoints of their own node only.
    pub internal_local: bool,
    /// Whether clients outside get endpoints of the node that they asked only.
    pub external_local: bool,
    /// Where it is asked whether this node has endpoints.
    pub health_port: Option<u16>,
    /// Ports of protocols that are not balanced: their names.
    pub unsupported: Vec<String>,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name; empty where it has none.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Number at the service's addresses.
    pub port: u16,
    /// Number at the machine's addresses.
    pub node_port: Option<u16>,
}

/// Endpoints that offer the same ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// `namespace/name` of its service.
    pub service: String,
    /// Name, protocol and number of each port.
    pub ports: Vec<(String, Protocol, u16)>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: Ipv4Addr,
    /// The node that it is on, where it is on one.
    pub node: Option<String>,
    /// Whether it takes new clients.
    pub ready: bool,
    /// Whether it is about to end, and works still.
    pub leaving: bool,
}

/// A port of the machine that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The only address of the machine that it is opened at.
    pub address: Option<Ipv4Addr>,
    /// The machine's port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Address and port of the pod.
    pub pod: SocketAddrV4,
}

impl Service {
    /// What is balanced of it; `None` for headless services, names of other places, and those of other proxies.
    pub fn read(service: &core::Service) -> Option<Self> {
        let labels = service.metadata.labels.as_ref();
        if labels.is_some_and(|labels| labels.contains_key(OTHER_PROXY)) {
            return None;
        }
        let spec = service.spec.as_ref()?;
        if spec.type_.as_deref() == Some("ExternalName") {
            return None;
        }
        let cluster_ip = spec.cluster_ip.as_deref().and_then(|ip| ip.parse().ok())?;
        let parsed = |list: &Option<Vec<String>>| -> Vec<Ipv4Addr> {
            list.iter().flatten().filter_map(|ip| ip.parse().ok()).collect()
        };
        let balancers = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = balancers.and_then(|balancers| balancers.ingress.as_ref()).into_iter().flatten();
        let is_balanced = spec.type_.as_deref() == Some("LoadBalancer");
        let mut external = parsed(&spec.external_ips);
        // An address of mode Proxy belongs to a machine of its own that sends everything here by itself.
        let ours = ingress.filter(|ip| is_balanced && ip.ip_mode.as_deref() != Some("Proxy"));
        external.extend(ours.filter_map(|ingress| ingress.ip.as_deref()?.parse::<Ipv4Addr>().ok()));
        let sources = spec.load_balancer_source_ranges.iter().flatten().filter(|_| is_balanced);
        let ports = spec.ports.as_deref().unwrap_or_default();
        let from_outside = is_balanced || spec.type_.as_deref() == Some("NodePort");
        Some(Self {
            uid: service.metadata.uid.clone().unwrap_or_default(),
            cluster_ip: Some(cluster_ip),
            external,
            sources: sources.filter_map(|range| range.trim().parse().ok()).collect(),
            ports: ports.iter().filter_map(|port| ServicePort::read(port, from_outside)).collect(),
            affinity_s: affinity(spec),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            health_port: spec.health_check_node_port.and_then(number).filter(|_| is_balanced),
            unsupported: ports.iter().filter(|p| protocol(p.protocol.as_deref()).is_none()).map(label).collect(),
        })
    }
}

/// How a port is called in messages.
fn label(port: &core::ServicePort) -> String {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    format!("{}/{protocol}", port.port)
}

fn affinity(spec: &core::ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds).unwrap_or(AFFINITY_S);
    u32::try_from(seconds).ok().filter(|seconds| *seconds > 0)
}

/// A port's number.
fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

fn protocol(name: Option<&str>) -> Option<Protocol> {
    Protocol::named(name.unwrap_or("TCP"))
}

impl ServicePort {
    fn read(port: &core::ServicePort, from_outside: bool) -> Option<Self> {
        Some(Self {
            name: port.name.clone().unwrap_or_default(),
            protocol: protocol(port.protocol.as_deref())?,
            port: number(port.port)?,
            node_port: port.node_port.and_then(number).filter(|_| from_outside),
        })
    }
}

impl Slice {
    /// Reads a slice; `None` for one that belongs to no service or has other than IPv4 addresses.
    pub fn read(slice: &discovery::EndpointSlice) -> Option<Self> {
        if slice.address_type != "IPv4" {
            return None;
        }
        let namespace = slice.metadata.namespace.as_deref()?;
        let service = slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name")?;
        let port = |port: &discovery::EndpointPort| {
            let protocol = protocol(port.protocol.as_deref())?;
            Some((port.name.clone().unwrap_or_default(), protocol, number(port.port?)?))
        };
        Some(Self {
            service: format!("{namespace}/{service}"),
            ports: slice.ports.iter().flatten().filter_map(port).collect(),
            endpoints: slice.endpoints.iter().flatten().filter_map(Endpoint::read).collect(),
        })
    }
}

impl Endpoint {
    fn read(endpoint: &discovery::Endpoint) -> Option<Self> {
        // Of several, which upstream no longer writes, the first counts.
        let address: Ipv4Addr = endpoint.addresses.first()?.parse().ok()?;
        let is_own = address.is_loopback() || address.is_unspecified() || address.is_multicast();
        let conditions = endpoint.conditions.as_ref();
        // What is not said counts as good.
        let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
        let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
        let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
        let node = endpoint.node_name.clone();
        (!is_own).then_some(Self { address, node, ready, leaving: serving && terminating })
    }
}

impl HostPort {
    /// The host ports of a pod; none where it runs in the machine's own network, has ended, or has no address yet.
    pub fn of(pod: &core::Pod) -> Vec<Self> {
        let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else { return Vec::new() };
        let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let address = status.pod_ip.as_deref().and_then(|ip| ip.parse::<Ipv4Addr>().ok());
        let Some(address) = address.filter(|_| !over && spec.host_network != Some(true)) else { return Vec::new() };
        let restartable = |c: &&core::Container| c.restart_policy.as_deref() == Some("Always");
        let sidecars = spec.init_containers.iter().flatten().filter(restartable);
        let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
        ports.filter_map(|port| Self::read(port, address)).collect()
    }

    fn read(port: &core::ContainerPort, pod: Ipv4Addr) -> Option<Self> {
        let given = port.host_ip.as_deref().unwrap_or_default();
        let address = if given.is_empty() { None } else { Some(given.parse::<Ipv4Addr>().ok()?) };
        Some(Self {
            address: address.filter(|address| !address.is_unspecified()),
            port: port.host_port.and_then(number)?,
            protocol: protocol(port.protocol.as_deref())?,
            pod: SocketAddrV4::new(pod, number(port.container_port)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value, ingress: Value) -> Option<Service> {
        let object = json!({"metadata": {"name": "web", "namespace": "n", "uid": "u"}, "spec": spec,
            "status": {"loadBalancer": {"ingress": ingress}}});
        Service::read(&serde_json::from_value(object).expect("a service"))
    }

    #[test]
    fn what_has_no_address_is_not_balanced() {
        let ports = json!([{"port": 80}]);
        assert_eq!(service(json!({"clusterIP": "None", "ports": ports}), json!([])), None);
        assert_eq!(service(json!({"type": "ExternalName", "externalName": "x.example"}), json!([])), None);
        let other = json!({"metadata": {"name": "a", "namespace": "n", "labels": {OTHER_PROXY: "x"}},
            "spec": {"clusterIP": "10.96.0.9", "ports": ports}});
        assert_eq!(Service::read(&serde_json::from_value(other).expect("a service")), None);
    }

    #[test]
    fn every_field_that_balances_is_read() {
        let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.9", "externalIPs": ["192.0.2.9"],
            "loadBalancerSourceRanges": ["198.51.100.0/24"], "sessionAffinity": "ClientIP",
            "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30900,
            "ports": [{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 53, "protocol": "UDP"},
                {"name": "c", "port": 99, "protocol": "SCTP"}]});
        let read =
            service(spec, json!([{"ip": "192.0.2.2"}, {"ip": "192.0.2.3", "ipMode": "Proxy"}, {"hostname": "x"}]))
                .expect("a service");
        assert_eq!(read.external, ["192.0.2.9", "192.0.2.2"].map(|ip| ip.parse::<Ipv4Addr>().expect("an address")));
        assert_eq!(read.affinity_s, Some(10_800));
        assert!(read.internal_local && read.external_local);
        assert_eq!(read.health_port, Some(30_900));
        assert_eq!(read.sources.len(), 1);
        assert_eq!(read.unsupported, ["99/SCTP"]);
        let ports: Vec<_> = read.ports.iter().map(|p| (p.name.as_str(), p.protocol, p.port, p.node_port)).collect();
        assert_eq!(ports, [("a", Protocol::Tcp, 80, Some(30_080)), ("b", Protocol::Udp, 53, None)]);
        let plain = json!({"type": "ClusterIP", "clusterIP": "10.96.0.9", "ports": [{"port": 80, "nodePort": 30080}]});
        let plain = service(plain, json!([{"ip": "192.0.2.2"}])).expect("a service");
        assert_eq!((plain.external, plain.ports[0].node_port), (Vec::new(), None));
    }

    #[test]
    fn conditions_that_are_not_said_count_as_good() {
        let slice = json!({"addressType": "IPv4", "metadata": {"name": "s", "namespace": "n",
                "labels": {"kubernetes.io/service-name": "web"}}, "ports": [{"name": "a", "port": 80}],
            "endpoints": [{"addresses": ["10.0.0.1"]},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["10.0.0.3"], "conditions": {"ready": false}},
                {"addresses": ["127.0.0.1"]}, {"addresses": ["x"]}]});
        let read = Slice::read(&serde_json::from_value(slice).expect("a slice")).expect("of a service");
        let states: Vec<_> = read.endpoints.iter().map(|e| (e.ready, e.leaving)).collect();
        assert_eq!(states, [(true, false), (false, true), (false, false)]);
        assert_eq!(read.ports, [("a".to_owned(), Protocol::Tcp, 80)]);
    }

    #[test]
    fn host_ports_are_those_of_pods_that_run_on_the_bridge() {
        let pod = |phase: &str, host_network: bool| {
            let pod = json!({"metadata": {"name": "p"}, "status": {"phase": phase, "podIP": "10.0.0.7"}, "spec": {
                "hostNetwork": host_network, "containers": [{"name": "c", "ports": [
                    {"containerPort": 80, "hostPort": 8080}, {"containerPort": 81},
                    {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "192.0.2.2"}]}]}});
            HostPort::of(&serde_json::from_value(pod).expect("a pod"))
        };
        let found = pod("Running", false);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].address, found[0].port), (None, 8080));
        assert_eq!(found[0].pod, "10.0.0.7:80".parse().expect("an address"));
        assert_eq!(found[1].address, Some(Ipv4Addr::new(192, 0, 2, 2)));
        assert!(pod("Succeeded", false).is_empty() && pod("Running", true).is_empty());
    }
}
