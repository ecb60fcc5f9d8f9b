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
//! Interfaces are made straight into the pod's namespace, found through the shim's process. Nothing is
//! deleted by hand when a pod ends: the kernel takes the pair away with the namespace.

pub mod addresses;
pub mod files;
mod link;

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
        Ok(Self {
            netlink,
            bridge: config.bridge.clone(),
            bridge_index: index,
            gateway: config.gateway,
            prefix: config.pod_cidr.prefix,
            tag: config.tag(),
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
        }
        let eth0 = inside.find("eth0").await?.ok_or(Error::NoSuchPod(shim_pid))?.header.index;
        inside.set_up_by_name("lo").await?;
        inside.set_address(eth0, address, self.prefix).await?;
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
}

/// Gives the node's bridge, which is made where it is missing, another address of this machine: that of a service
/// whose server is here. It goes with the bridge.
pub async fn add_service_address(config: &Config, address: Ipv4Addr) -> Result<(), Error> {
    let network = Network::ensure(config).await?;
    network.netlink.set_address(network.bridge_index, address, 32).await
}

/// Takes a bridge away with what hangs on it, if it is there. Call it when every pod has ended.
pub async fn remove_bridge(config: &Config) -> Result<(), Error> {
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
