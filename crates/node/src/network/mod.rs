//! A node's network: one bridge, and for each pod a pair of interfaces between the bridge and the pod.
//!
//! ```text
//!   machine ── bridge sfd-xxxxxxxx (gateway address, own fixed MAC)
//!                 │            │
//!              v…host       v…host          unique names: an old one lingers a moment after its pod
//!   ───────────── │ ────────── │ ───────────────────────────────
//!               eth0         eth0           in the pods' network namespaces, MAC derived from the address
//! ```
//!
//! Pods speak with each other by way of the gateway, not from port to port: so the machine sees every packet, and what it
//! changed on the way to a service is changed back on the way home, whatever `bridge-nf-call-iptables` says.
//!
//! Interfaces are made straight into the pod's namespace, found through the shim's process. Nothing is
//! deleted by hand when a pod ends: the kernel takes the pair away with the namespace.

pub mod addresses;
pub mod files;
mod link;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use rtnetlink::packet_route::link::LinkAttribute;

use crate::config::Config;
use crate::fault::{self, Point};

pub use addresses::Addresses;

/// The bridge of one node, and what is hung onto it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Network {
    netlink: link::Netlink,
    bridge: String,
    bridge_index: u32,
    gateway: Ipv4Addr,
    prefix: u8,
    tag: String,
    /// Of routes to services: keeps those of several instances apart.
    metric: u32,
}

impl Network {
    /// Makes the bridge, or finds it as an earlier run left it, and gives it its addresses.
    pub async fn ensure(config: &Config) -> Result<Self, Error> {
        let netlink = link::Netlink::here()?;
        let mac = mac_of(config.gateway);
        let index = match netlink.find(&config.bridge).await? {
            Some(found) => found.header.index,
            None => netlink.add_bridge(&config.bridge, mac).await?,
        };
        netlink.set_address(index, config.gateway, config.pod_cidr.prefix).await?;
        netlink.set_up(index).await?;
        enable_forwarding();
        route_loopback(&config.bridge);
        Ok(Self {
            netlink,
            bridge: config.bridge.clone(),
            bridge_index: index,
            gateway: config.gateway,
            prefix: config.pod_cidr.prefix,
            tag: config.tag(),
            metric: metric_of(&config.tag()),
        })
    }

    /// Gives the pod whose shim has this process id its `eth0`, its route and its loopback.
    ///
    /// Calling it again for a pod that has its interface changes nothing. `nonce` makes the machine's end unique.
    pub async fn attach(&self, shim_pid: i32, address: Ipv4Addr, nonce: &str) -> Result<(), Error> {
        let inside = link::Netlink::inside(shim_pid).await?;
        if inside.find("eth0").await?.is_none() {
            let pid = u32::try_from(shim_pid).map_err(|_| Error::NoSuchPod(shim_pid))?;
            self.detach(address).await?;
            let host_name = interface_name(&self.tag, address, nonce);
            self.netlink.add_veth(&host_name, self.bridge_index, mac_of(address), pid).await?;
            fault::point(Point::InterfaceMade);
            if let Some(port) = self.netlink.find(&host_name).await? {
                self.netlink.set_hairpin(port.header.index).await?;
            }
        }
        let eth0 = inside.find("eth0").await?.ok_or(Error::NoSuchPod(shim_pid))?.header.index;
        inside.set_up_by_name("lo").await?;
        inside.set_address_alone(eth0, address, self.prefix).await?;
        inside.set_up(eth0).await?;
        inside.add_default_route(eth0, self.gateway).await?;
        Ok(())
    }

    /// Takes away what still answers for this address. The namespace of a pod that has ended can outlive its
    /// processes by minutes, while the kernel tries to deliver the last bytes of its connections, and would
    /// speak for an address that is its successor's.
    pub async fn detach(&self, address: Ipv4Addr) -> Result<(), Error> {
        let prefix = interface_prefix(&self.tag, address);
        for (index, name) in self.netlink.ports(self.bridge_index).await? {
            if name.starts_with(&prefix) {
                self.netlink.delete(index).await?;
            }
        }
        Ok(())
    }

    /// The bridge's name.
    pub fn bridge(&self) -> &str {
        &self.bridge
    }

    /// Leads what this machine sends to these addresses, and no others, to the bridge. Without a route a connection
    /// would fail before its target is changed to an endpoint: on a machine without any network.
    pub async fn route_services(&self, addresses: &BTreeSet<Ipv4Addr>) -> Result<(), Error> {
        let mut there = BTreeSet::new();
        for (address, route) in self.netlink.host_routes(self.bridge_index, self.metric).await? {
            if addresses.contains(&address) {
                there.insert(address);
            } else {
                self.netlink.delete_route(route).await?;
            }
        }
        for address in addresses.difference(&there) {
            self.netlink.add_host_route(*address, self.bridge_index, self.metric, self.gateway).await?;
        }
        Ok(())
    }

    /// Gives the bridge these addresses besides its own, and no others: where no packet filter changes what is sent to
    /// them.
    pub async fn own_services(&self, addresses: &BTreeSet<Ipv4Addr>) -> Result<(), Error> {
        let there = self.netlink.single_addresses(self.bridge_index).await?;
        for (address, message) in there.iter().filter(|(address, _)| !addresses.contains(address)) {
            self.netlink.delete_address(*address, message.clone()).await?;
        }
        for address in addresses.iter().filter(|address| !there.contains_key(address)) {
            self.netlink.set_address(self.bridge_index, *address, 32).await?;
        }
        Ok(())
    }
}

/// Takes a bridge away with what hangs on it, and the rules for its pods, if they are there. Call it when every pod has
/// ended.
pub async fn remove_bridge(config: &Config) -> Result<(), Error> {
    crate::services::withdraw(config).await;
    let netlink = link::Netlink::here()?;
    let Some(found) = netlink.find(&config.bridge).await? else { return Ok(()) };
    for (index, _) in netlink.ports(found.header.index).await? {
        netlink.delete(index).await?;
    }
    netlink.delete(found.header.index).await
}

/// A connection to a port of a pod's own loopback, found through its shim's process.
pub async fn connect_inside(shim_pid: i32, port: u16) -> Result<tokio::net::TcpStream, std::io::Error> {
    link::connect_loopback(shim_pid, port).await
}

/// A locally administered MAC that carries the address, so that neighbours' caches stay right when a pod
/// comes back with its old address.
pub fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// At most 15 characters: `v`, four of the instance, the address, two of the nonce.
fn interface_name(tag: &str, address: Ipv4Addr, nonce: &str) -> String {
    let mut name = interface_prefix(tag, address);
    name.extend(nonce.chars().filter(char::is_ascii_alphanumeric).take(2));
    name
}

/// What the names of all interfaces of an address begin with.
fn interface_prefix(tag: &str, address: Ipv4Addr) -> String {
    let tag: String = tag.chars().take(4).collect();
    format!("v{tag}{:08x}", u32::from(address))
}

/// Pods reach each other over the bridge without it; beyond the machine they need it. Not fatal where /proc/sys is read-only.
fn enable_forwarding() {
    const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";
    if std::fs::read_to_string(SWITCH).is_ok_and(|v| v.trim() == "1") {
        return;
    }
    if let Err(error) = std::fs::write(SWITCH, "1") {
        tracing::warn!(%error, "cannot switch on IP forwarding; pods will not reach beyond this machine");
    }
}

/// Lets the machine speak from its loopback address with ports of its own that lead to pods. The rules of [`crate::services`]
/// keep pods from using it.
fn route_loopback(bridge: &str) {
    if let Err(error) = std::fs::write(format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet"), "1") {
        tracing::debug!(%error, "node ports and host ports are not reached at 127.0.0.1");
    }
}

/// A metric from an instance's tag, above those that people give.
fn metric_of(tag: &str) -> u32 {
    u32::from_str_radix(tag, 16).unwrap_or(0) | 1 << 30
}

/// The controller that a link hangs on.
fn controller_of(attributes: &[LinkAttribute]) -> Option<u32> {
    attributes.iter().find_map(|a| match a {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    })
}

/// Why an interface could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection to the kernel's network configuration. Needs root (CAP_NET_ADMIN).
    #[error("cannot talk to the kernel about interfaces: {0}")]
    Socket(#[source] std::io::Error),
    /// The kernel refused a change.
    #[error("cannot {doing}: {source}")]
    Refused {
        /// What was tried.
        doing: String,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// The shim's process or its namespace is not there any more.
    #[error("process {0} has no network namespace to enter; its pod has ended")]
    NoSuchPod(i32),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_is_local_unicast_and_carries_the_address() {
        let mac = mac_of(Ipv4Addr::new(10, 201, 7, 5));
        assert_eq!(mac[0] & 0b11, 0b10);
        assert_eq!(mac[2..], [10, 201, 7, 5]);
    }

    #[test]
    fn interface_names_fit_the_kernel() {
        assert_eq!(interface_name("deadbeef", Ipv4Addr::new(10, 201, 7, 255), "0123-4567"), "vdead0ac907ff01");
    }
}
