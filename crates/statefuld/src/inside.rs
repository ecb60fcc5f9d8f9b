//! The API as pods reach it: at the first address of the service range, like any service, and behind it at the bridge's
//! address.
//!
//! The bridge's address belongs to one instance alone, and leads to the API from the machine's own network too. What leads
//! from the service to it are the node's rules for services.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};

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
    /// To be served like the listener outside; none where that one is reached from pods already.
    pub listener: Option<TcpListener>,
}

impl Inside {
    /// Opens the API to pods of the node. `listen` is where it listens anyway.
    pub async fn open(node: &node::Config, listen: SocketAddr) -> io::Result<Self> {
        // The address comes with the bridge.
        node::network::Network::ensure(node).await.map_err(io::Error::other)?;
        let everywhere = listen.ip().is_unspecified();
        let endpoint = match listen {
            SocketAddr::V4(own) if !everywhere && !own.ip().is_loopback() => own,
            _ => SocketAddrV4::new(node.gateway, listen.port()),
        };
        let reached = everywhere || SocketAddr::V4(endpoint) == listen;
        let listener = if reached { None } else { Some(bind(endpoint)?) };
        Ok(Self { published: Published { port: HTTPS, endpoint: Some(endpoint) }, listener })
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

fn bind(address: SocketAddrV4) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address.into())?;
    socket.listen(BACKLOG)
}
