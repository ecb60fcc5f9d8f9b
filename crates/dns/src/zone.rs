//! The records that follow from Services and EndpointSlices: an immutable snapshot, looked up by name.
//!
//! | of | records |
//! |---|---|
//! | service with addresses | A/AAAA, PTR, SRV per named port |
//! | headless service | A/AAAA and SRV per ready endpoint × named port; no ready endpoint: no such name |
//! | endpoint of either | A/AAAA at its hostname (or its address with dashes), PTR of headless ones |
//! | ExternalName | CNAME |
//! | zone | SOA, NS, `dns-version` TXT |
//!
//! Source: the Kubernetes DNS-based service discovery specification 1.1.0. What it leaves open is decided here:
//! names of pods and of headless services are never to be cached (TTL 0), nor is their absence (SOA minimum 0), so
//! that a pod that has just become ready is found at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::{Name, RecordType};

use crate::records::{Cluster, Endpoint, Port, Service};

/// Version of the specification that the records follow.
const SPEC_VERSION: &str = "1.1.0";
/// TTL of the version record, as the specification shows it.
const VERSION_TTL: u32 = 28_800;
/// TTL of what changes only when a service does.
const SERVICE_TTL: u32 = 5;
/// TTL of what changes with every pod.
const POD_TTL: u32 = 0;

/// All records at one moment. Names are keyed in lower case without the last dot.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    domain: String,
    /// Whether anything is known yet; before that nothing may be denied.
    known: bool,
    serial: u32,
    names: HashMap<String, Entry>,
    /// Headless services by name, whose missing names must not be remembered as missing.
    volatile: BTreeSet<String>,
}

/// What is known at one name. All empty: the name exists without data.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Entry {
    /// TTL of the data.
    pub ttl: u32,
    /// IPv4 addresses, sorted, each once.
    pub v4: BTreeSet<Ipv4Addr>,
    /// IPv6 addresses, sorted, each once.
    pub v6: BTreeSet<Ipv6Addr>,
    /// Port and target (a key into the snapshot), sorted, each once.
    pub services: BTreeSet<(u16, String)>,
    /// Names of an address.
    pub pointers: BTreeSet<String>,
    /// The name that this is another name of.
    pub alias: Option<String>,
    /// Text.
    pub text: Option<&'static str>,
    /// Whether this is the apex, which has SOA and NS.
    pub apex: bool,
}

impl Entry {
    /// Adds an address of either family.
    fn add(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => drop(self.v4.insert(v4)),
            IpAddr::V6(v6) => drop(self.v6.insert(v6)),
        }
    }

    /// Whether there is data of this type.
    pub fn has(&self, kind: RecordType) -> bool {
        match kind {
            RecordType::A => !self.v4.is_empty(),
            RecordType::AAAA => !self.v6.is_empty(),
            RecordType::SRV => !self.services.is_empty(),
            RecordType::PTR => !self.pointers.is_empty(),
            RecordType::TXT => self.text.is_some(),
            RecordType::CNAME => self.alias.is_some(),
            RecordType::SOA | RecordType::NS => self.apex,
            _ => false,
        }
    }
}

impl Snapshot {
    /// Before anything is known: every name of the zone is answered with SERVFAIL.
    pub fn unknown(domain: &str) -> Self {
        Self { domain: domain.trim_matches('.').to_lowercase(), ..Self::default() }
    }

    /// All records of a cluster. `servers` are the addresses that the zone's name server is reached at.
    pub fn build(domain: &str, servers: &[IpAddr], serial: u32, cluster: &Cluster) -> Self {
        let mut zone = Self::unknown(domain);
        zone.known = true;
        zone.serial = serial;
        zone.add_own(servers);
        let mut endpoints: BTreeMap<String, Vec<(&[Port], &Endpoint)>> = BTreeMap::new();
        for slice in cluster.slices.values() {
            let of_service = endpoints.entry(format!("{}/{}", slice.namespace, slice.service)).or_default();
            of_service.extend(slice.endpoints.iter().map(|endpoint| (slice.ports.as_slice(), endpoint)));
        }
        for service in cluster.services.values() {
            zone.add_service(service, endpoints.get(&service.key()).map_or(&[][..], Vec::as_slice));
        }
        zone
    }

    /// The cluster domain in lower case, without dots at its ends.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Whether anything is known yet.
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// Serial number of the zone: rises with every change.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// What is known at a name (lower case, no last dot).
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.names.get(name)
    }

    /// Whether a name (lower case, no last dot) belongs to the zone.
    pub fn holds(&self, name: &str) -> bool {
        name.strip_suffix(&self.domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }

    /// How many seconds the absence of a name, or of data at it, may be remembered.
    pub fn negative_ttl(&self, name: &str) -> u32 {
        let mut rest = name;
        loop {
            if self.volatile.contains(rest) {
                return 0;
            }
            match rest.split_once('.') {
                Some((_, parent)) => rest = parent,
                None => return SERVICE_TTL,
            }
        }
    }

    /// TTL of SOA and NS.
    pub fn apex_ttl(&self) -> u32 {
        SERVICE_TTL
    }

    /// Name of the zone's name server.
    pub fn server_name(&self) -> String {
        format!("ns.dns.{}", self.domain)
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are no names.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The entry at a name; the names above it, up to the apex, exist as well then.
    fn entry(&mut self, name: &str, ttl: u32) -> &mut Entry {
        let mut parent = name;
        while let Some((_, next)) = parent.split_once('.') {
            parent = next;
            if !self.holds(parent) || self.names.contains_key(parent) {
                break;
            }
            self.names.insert(parent.to_owned(), Entry::default());
        }
        let entry = self.names.entry(name.to_owned()).or_default();
        entry.ttl = ttl;
        entry
    }

    /// What a zone has of its own.
    fn add_own(&mut self, servers: &[IpAddr]) {
        let domain = self.domain.clone();
        self.entry(&domain, SERVICE_TTL).apex = true;
        self.entry(&format!("svc.{domain}"), SERVICE_TTL);
        self.entry(&format!("dns-version.{domain}"), VERSION_TTL).text = Some(SPEC_VERSION);
        let name = self.server_name();
        for address in servers.iter().filter(|a| !a.is_unspecified()) {
            self.entry(&name, SERVICE_TTL).add(*address);
        }
    }

    /// The records of one service and its endpoints.
    fn add_service(&mut self, service: &Service, endpoints: &[(&[Port], &Endpoint)]) {
        let namespace = format!("{}.svc.{}", service.namespace.to_lowercase(), self.domain);
        let name = format!("{}.{namespace}", service.name.to_lowercase());
        // A long name cannot be asked for; nothing is lost by leaving it out.
        if !is_askable(&name) {
            return;
        }
        self.entry(&namespace, SERVICE_TTL);
        if let Some(target) = &service.external_name {
            self.entry(&name, SERVICE_TTL).alias = Some(target.trim_end_matches('.').to_lowercase());
            return;
        }
        if service.headless {
            self.volatile.insert(name.clone());
        }
        for (ports, endpoint) in endpoints {
            if endpoint.ready || service.publish_not_ready {
                self.add_endpoint(service, &name, ports, endpoint);
            }
        }
        if service.headless {
            self.add_expected(service, &name);
            return;
        }
        for address in &service.cluster_ips {
            self.entry(&name, SERVICE_TTL).add(*address);
            self.point(*address, &name, SERVICE_TTL);
        }
        if !service.cluster_ips.is_empty() {
            for port in &service.ports {
                self.serve(port, &name, &name, SERVICE_TTL);
            }
        }
    }

    /// The records of one endpoint: its own name, its share of the service's, its ports.
    fn add_endpoint(&mut self, service: &Service, service_name: &str, ports: &[Port], endpoint: &Endpoint) {
        for address in &endpoint.addresses {
            let host = endpoint.hostname.as_ref().map_or_else(|| dashed(*address), |name| name.to_lowercase());
            let name = format!("{host}.{service_name}");
            if !is_askable(&name) {
                continue;
            }
            self.entry(&name, POD_TTL).add(*address);
            if service.headless {
                self.entry(service_name, POD_TTL).add(*address);
                self.point(*address, &name, POD_TTL);
                for port in ports {
                    self.serve(port, service_name, &name, POD_TTL);
                }
            }
        }
    }

    /// Names that will come: they exist, without data. Only below a service that is there by then.
    fn add_expected(&mut self, service: &Service, service_name: &str) {
        for host in &service.expected {
            let name = format!("{}.{service_name}", host.to_lowercase());
            if is_askable(&name) {
                // Not by way of `entry`: without a ready endpoint the service's own name stays absent.
                self.names.entry(name).or_default();
            }
        }
    }

    /// SRV of a named port.
    fn serve(&mut self, port: &Port, service_name: &str, target: &str, ttl: u32) {
        if port.name.is_empty() {
            return;
        }
        let name = format!("_{}._{}.{service_name}", port.name.to_lowercase(), port.protocol.to_lowercase());
        if is_askable(&name) {
            self.entry(&name, ttl).services.insert((port.port, target.to_owned()));
        }
    }

    /// PTR of an address.
    fn point(&mut self, address: IpAddr, name: &str, ttl: u32) {
        let entry = self.names.entry(reverse_name(address)).or_default();
        entry.ttl = ttl;
        entry.pointers.insert(name.to_owned());
    }
}

/// `10-1-2-3`: the name of an endpoint that has none.
fn dashed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string().replace('.', "-"),
        // Written out, since `::` would make an empty or dangling label part.
        IpAddr::V6(v6) => v6.segments().map(|s| format!("{s:x}")).join("-"),
    }
}

/// The name under which an address is looked up.
fn reverse_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(v6) => {
            let nibbles = v6.octets().into_iter().rev().flat_map(|byte| [byte & 15, byte >> 4]);
            let text: Vec<String> = nibbles.map(|nibble| format!("{nibble:x}")).collect();
            format!("{}.ip6.arpa", text.join("."))
        }
    }
}

/// Whether a name fits the limits of DNS.
fn is_askable(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(|label| !label.is_empty() && label.len() <= 63)
}

/// A key of the snapshot as a DNS name.
pub(crate) fn to_name(key: &str) -> Option<Name> {
    Name::from_labels(key.split('.').filter(|label| !label.is_empty()).map(str::as_bytes)).ok()
}
