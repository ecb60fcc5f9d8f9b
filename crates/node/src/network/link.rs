//! The few rtnetlink requests that a node makes, in the machine's namespace or inside a pod's.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use futures::TryStreamExt as _;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope};
use rtnetlink::{LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::sync::Mutex;

use super::Error;

const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const ESRCH: i32 = 3;

/// A connection to the kernel in one network namespace. The connection ends with its last handle.
#[derive(Clone)]
pub(super) struct Netlink {
    handle: rtnetlink::Handle,
    /// Held while a list is read: the kernel gives one at a time to a socket, and refuses a second one.
    listing: Arc<Mutex<()>>,
}

impl Netlink {
    /// In this process's own namespace.
    pub(super) fn here() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
        tokio::spawn(connection);
        Ok(Self { handle, listing: Arc::default() })
    }

    /// In the namespace of that process. A socket belongs to the namespace it was made in, so a thread of
    /// its own enters it, makes the socket, and ends: no thread of the runtime ever changes namespace.
    pub(super) async fn inside(pid: i32) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::current();
        let (tell, told) = tokio::sync::oneshot::channel();
        std::thread::Builder::new()
            .name("netns".into())
            .spawn(move || {
                let _ = tell.send(connect_inside(pid, &runtime));
            })
            .map_err(Error::Socket)?;
        let handle = told.await.map_err(|_| Error::NoSuchPod(pid))??;
        Ok(Self { handle, listing: Arc::default() })
    }

    /// The interface of that name.
    pub(super) async fn find(&self, name: &str) -> Result<Option<LinkMessage>, Error> {
        match self.handle.link().get().match_name(name).execute().try_next().await {
            Ok(found) => Ok(found),
            Err(error) if is_errno(&error, ENODEV) => Ok(None),
            Err(source) => Err(refused(format!("look for interface {name}"), source)),
        }
    }

    /// Makes a bridge with a MAC of its own choice: one that follows its ports would break ARP for all of them.
    pub(super) async fn add_bridge(&self, name: &str, mac: [u8; 6]) -> Result<u32, Error> {
        let message = LinkBridge::new(name).address(mac.to_vec()).up().build();
        match self.handle.link().add(message).execute().await {
            Ok(()) => {}
            Err(error) if is_errno(&error, EEXIST) => {}
            Err(source) => return Err(refused(format!("make bridge {name}"), source)),
        }
        let found = self.find(name).await?;
        found.map(|link| link.header.index).ok_or_else(|| refused_missing(name))
    }

    /// Makes a pair: one end on the bridge here, the other as `eth0` in that process's namespace.
    pub(super) async fn add_veth(&self, name: &str, bridge: u32, mac: [u8; 6], pid: u32) -> Result<(), Error> {
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new().name("eth0").address(mac.to_vec()).build();
        peer.attributes.push(LinkAttribute::NetNsPid(pid));
        let message = LinkVeth::new(name, "eth0")
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .controller(bridge)
            .up()
            .build();
        let made = self.handle.link().add(message).execute().await;
        made.map_err(|source| refused(format!("make interface {name} for process {pid}"), source))
    }

    /// Adds an address, or keeps it.
    pub(super) async fn set_address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> Result<(), Error> {
        match self.handle.address().add(index, address.into(), prefix).execute().await {
            Ok(()) => Ok(()),
            Err(error) if is_errno(&error, EEXIST) => Ok(()),
            Err(source) => Err(refused(format!("give address {address}"), source)),
        }
    }

    /// Adds an address, or keeps it, without the route to its neighbours that would come with it.
    pub(super) async fn set_address_alone(&self, index: u32, address: Ipv4Addr, prefix: u8) -> Result<(), Error> {
        let mut request = self.handle.address().add(index, address.into(), prefix);
        let flags = AddressAttribute::Flags(AddressFlags::Noprefixroute | AddressFlags::Permanent);
        request.message_mut().attributes.push(flags);
        match request.execute().await {
            Ok(()) => Ok(()),
            Err(error) if is_errno(&error, EEXIST) => Ok(()),
            Err(source) => Err(refused(format!("give address {address}"), source)),
        }
    }

    /// Addresses of an interface that have no neighbours.
    pub(super) async fn single_addresses(&self, index: u32) -> Result<BTreeMap<Ipv4Addr, AddressMessage>, Error> {
        let _one = self.listing.lock().await;
        let mut all = std::pin::pin!(self.handle.address().get().set_link_index_filter(index).execute());
        let list = |source| refused("list addresses".to_owned(), source);
        let mut found = BTreeMap::new();
        while let Some(message) = all.try_next().await.map_err(list)? {
            let address = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Address(std::net::IpAddr::V4(address)) => Some(*address),
                _ => None,
            });
            if let Some(address) = address.filter(|_| message.header.prefix_len == 32) {
                found.insert(address, message);
            }
        }
        Ok(found)
    }

    /// Takes an address away.
    pub(super) async fn delete_address(&self, address: Ipv4Addr, message: AddressMessage) -> Result<(), Error> {
        let deleted = self.handle.address().del(message).execute().await;
        deleted.map_err(|source| refused(format!("take address {address} away"), source))
    }

    /// Lets what comes in by a port of a bridge leave by it again.
    pub(super) async fn set_hairpin(&self, port: u32) -> Result<(), Error> {
        let set = self.handle.link().set_port(LinkBridgePort::new(port).hairpin(true).build()).execute().await;
        set.map_err(|source| refused(format!("let port {port} of the bridge speak with itself"), source))
    }

    /// Switches an interface on.
    pub(super) async fn set_up(&self, index: u32) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(index).up().build();
        let set = self.handle.link().set(message).execute().await;
        set.map_err(|source| refused(format!("switch on interface {index}"), source))
    }

    /// Switches an interface on.
    pub(super) async fn set_up_by_name(&self, name: &str) -> Result<(), Error> {
        let message = LinkUnspec::new_with_name(name).up().build();
        let set = self.handle.link().set(message).execute().await;
        set.map_err(|source| refused(format!("switch on interface {name}"), source))
    }

    /// Sends everything to the gateway, neighbours' packets too.
    pub(super) async fn add_default_route(&self, index: u32, gateway: Ipv4Addr) -> Result<(), Error> {
        self.add_route(to_host(gateway, index, RouteScope::Link).build(), gateway).await?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(index).build();
        self.add_route(route, gateway).await
    }

    /// Leads packets for one address to an interface, whose own address is their source then. `metric` keeps it apart
    /// from what others say of that address.
    pub(super) async fn add_host_route(
        &self,
        address: Ipv4Addr,
        index: u32,
        metric: u32,
        source: Ipv4Addr,
    ) -> Result<(), Error> {
        let route = to_host(address, index, RouteScope::Link).priority(metric).pref_source(source);
        self.add_route(route.build(), address).await
    }

    /// Takes such a route away.
    pub(super) async fn delete_route(&self, route: RouteMessage) -> Result<(), Error> {
        match self.handle.route().del(route).execute().await {
            Ok(()) => Ok(()),
            Err(error) if is_errno(&error, ESRCH) => Ok(()),
            Err(source) => Err(refused("delete the route of a service".to_owned(), source)),
        }
    }

    /// Routes to single addresses with that metric: each with its address.
    pub(super) async fn host_routes(&self, index: u32, metric: u32) -> Result<Vec<(Ipv4Addr, RouteMessage)>, Error> {
        let _one = self.listing.lock().await;
        let mut routes =
            std::pin::pin!(self.handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute());
        let list = |source| refused("list routes".to_owned(), source);
        let mut found = Vec::new();
        while let Some(route) = routes.try_next().await.map_err(list)? {
            let has = |wanted: RouteAttribute| route.attributes.contains(&wanted);
            if !has(RouteAttribute::Oif(index)) || !has(RouteAttribute::Priority(metric)) {
                continue;
            }
            let address = route.attributes.iter().find_map(|a| match a {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
                _ => None,
            });
            if let Some(address) = address.filter(|_| route.header.destination_prefix_length == 32) {
                found.push((address, route));
            }
        }
        Ok(found)
    }

    async fn add_route(&self, route: RouteMessage, to: Ipv4Addr) -> Result<(), Error> {
        match self.handle.route().add(route).execute().await {
            Ok(()) => Ok(()),
            Err(error) if is_errno(&error, EEXIST) => Ok(()),
            Err(source) => Err(refused(format!("add the route by way of {to}"), source)),
        }
    }

    /// The interfaces that hang on that bridge: index and name.
    pub(super) async fn ports(&self, bridge: u32) -> Result<Vec<(u32, String)>, Error> {
        let _one = self.listing.lock().await;
        let mut links = std::pin::pin!(self.handle.link().get().execute());
        let list = |source| refused("list interfaces".to_owned(), source);
        let mut ports = Vec::new();
        while let Some(link) = links.try_next().await.map_err(list)? {
            if super::controller_of(&link.attributes) == Some(bridge) {
                let name = link.attributes.iter().find_map(|a| match a {
                    LinkAttribute::IfName(name) => Some(name.clone()),
                    _ => None,
                });
                ports.push((link.header.index, name.unwrap_or_default()));
            }
        }
        Ok(ports)
    }

    /// Deletes an interface, if it is there.
    pub(super) async fn delete(&self, index: u32) -> Result<(), Error> {
        match self.handle.link().del(index).execute().await {
            Ok(()) => Ok(()),
            Err(error) if is_errno(&error, ENODEV) || is_errno(&error, ESRCH) => Ok(()),
            Err(source) => Err(refused(format!("delete interface {index}"), source)),
        }
    }
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Netlink")
    }
}

/// A route to a single address.
fn to_host(address: Ipv4Addr, index: u32, scope: RouteScope) -> RouteMessageBuilder<Ipv4Addr> {
    RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).output_interface(index).scope(scope)
}

/// Runs on a thread that ends right after, because it changes that thread's namespace.
fn connect_inside(pid: i32, runtime: &tokio::runtime::Handle) -> Result<rtnetlink::Handle, Error> {
    enter(pid).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::NoSuchPod(pid),
        _ => Error::Socket(error),
    })?;
    // The gateway would tell pods of a shorter way to each other, which leads around the rules for services.
    for which in ["all", "default", "eth0"] {
        let _ = std::fs::write(format!("/proc/sys/net/ipv4/conf/{which}/accept_redirects"), "0");
    }
    let _guard = runtime.enter();
    let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
    runtime.spawn(connection);
    Ok(handle)
}

/// A connection to the loopback of that process's namespace, IPv4 first. Made on a thread of its own, as [`Netlink::inside`] is.
pub(super) async fn connect_loopback(pid: i32, port: u16) -> std::io::Result<tokio::net::TcpStream> {
    const LIMIT: std::time::Duration = std::time::Duration::from_secs(5);
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("netns".into()).spawn(move || {
        let connect = || {
            enter(pid)?;
            let try_one = |ip: std::net::IpAddr| std::net::TcpStream::connect_timeout(&(ip, port).into(), LIMIT);
            try_one(Ipv4Addr::LOCALHOST.into())
                .or_else(|e| try_one(std::net::Ipv6Addr::LOCALHOST.into()).map_err(|_| e))
        };
        let _ = tell.send(connect());
    })?;
    let stream = told.await.map_err(|_| std::io::Error::other("the connecting thread ended"))??;
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}

/// Moves this thread into that process's network namespace.
fn enter(pid: i32) -> std::io::Result<()> {
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
    let kind = Some(rustix::thread::LinkNameSpaceType::Network);
    Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)?)
}

fn is_errno(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno)
}

fn refused(doing: String, source: rtnetlink::Error) -> Error {
    Error::Refused { doing, source }
}

fn refused_missing(name: &str) -> Error {
    refused(format!("find bridge {name} right after making it"), rtnetlink::Error::RequestFailed)
}
