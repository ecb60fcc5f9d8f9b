//! The API as pods reach it: at the first address of the service range, which the node's bridge has as an address of
//! its own, and behind it at the bridge's address.
//!
//! The service's address is the same in every instance, so its listener is tied to the instance's own bridge: two
//! instances on one machine do not meet. The bridge's address belongs to one instance alone, and leads to the API from
//! the machine's own network too.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use apiserver::Published;
use tokio::net::{TcpListener, TcpSocket};

/// Where clients in pods expect the API.
const HTTPS: u16 = 443;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// Where the API can be reached from pods, and what has to be served for that.
pub struct Inside {
    /// What pods are told.
    pub published: Published,
    /// To be served like the listener outside.
    pub listeners: Vec<TcpListener>,
}

impl Inside {
    /// Opens the API to pods of the node. `listen` is where it listens anyway, `service` the service's address.
    pub async fn open(node: &node::Config, listen: SocketAddr, service: Ipv4Addr) -> io::Result<Self> {
        node::network::add_service_address(node, service).await.map_err(io::Error::other)?;
        let mut listeners = Vec::new();
        let everywhere = listen.ip().is_unspecified();
        let endpoint = match listen {
            SocketAddr::V4(own) if !everywhere && !own.ip().is_loopback() => own,
            _ => SocketAddrV4::new(node.gateway, listen.port()),
        };
        if !everywhere && SocketAddr::V4(endpoint) != listen {
            listeners.push(bind(endpoint, None)?);
        }
        // Where something else on this machine has the usual port on all addresses, the API's own port serves.
        let port = if everywhere && listen.port() == HTTPS {
            HTTPS
        } else {
            match bind(SocketAddrV4::new(service, HTTPS), Some(&node.bridge)) {
                Ok(listener) => {
                    listeners.push(listener);
                    HTTPS
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    if !everywhere {
                        listeners.push(bind(SocketAddrV4::new(service, listen.port()), Some(&node.bridge))?);
                    }
                    listen.port()
                }
                Err(error) => return Err(error),
            }
        };
        Ok(Self { published: Published { port, endpoint: Some(endpoint) }, listeners })
    }
}

/// What a server without a node of its own tells: its service, and itself behind it where others can reach it.
pub fn without_node(listen: SocketAddr) -> Published {
    let endpoint = match listen {
        SocketAddr::V4(own) if !own.ip().is_loopback() && !own.ip().is_unspecified() => Some(own),
        _ => None,
    };
    Published { port: HTTPS, endpoint }
}

/// Listens at an address; for what comes in on `device` only, if one is named.
fn bind(address: SocketAddrV4, device: Option<&str>) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind_device(device.map(str::as_bytes))?;
    socket.bind(address.into())?;
    socket.listen(BACKLOG)
}
