//! The sockets that queries come in by: UDP and TCP on every address.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Error, Shared};
use crate::answer::{Outcome, Transport, answer, failure};

/// Longest query that is read from UDP; real ones are a tenth of it.
const QUERY_MAX: usize = 4096;
/// TCP clients at a time; more wait in the listener's queue.
const MAX_CLIENTS: usize = 128;
/// Queue of TCP clients.
const BACKLOG: u32 = 128;
/// How long a TCP client may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// How often a free port is looked for that both protocols can have.
const PORT_TRIES: usize = 16;

/// Bound, and not yet answering.
pub(super) struct Sockets {
    pairs: Vec<(UdpSocket, TcpListener)>,
}

impl Sockets {
    /// Binds both protocols on every address, also on addresses that the machine does not have yet.
    pub(super) fn bind(addresses: &[SocketAddr]) -> Result<Self, Error> {
        let bind = |address: &SocketAddr| {
            let address = *address;
            bind_pair(address).map_err(|source| Error::Listen { address, source })
        };
        Ok(Self { pairs: addresses.iter().map(bind).collect::<Result<_, _>>()? })
    }

    /// The addresses with their ports.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.pairs.iter().filter_map(|(udp, _)| udp.local_addr().ok()).collect()
    }

    /// Begins to answer.
    pub(super) fn serve(self, shared: &Arc<Shared>, tasks: &mut JoinSet<()>) {
        for (udp, tcp) in self.pairs {
            tasks.spawn(serve_udp(Arc::new(udp), shared.clone()));
            tasks.spawn(serve_tcp(tcp, shared.clone()));
        }
    }
}

/// Binds UDP and TCP at the same port.
fn bind_pair(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut tries = if address.port() == 0 { PORT_TRIES } else { 1 };
    loop {
        let udp = bind_udp(address)?;
        tries -= 1;
        match bind_tcp(udp.local_addr()?) {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) if tries == 0 => return Err(error),
            Err(_) => {}
        }
    }
}

fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    allow_missing(&socket, address)?;
    rustix::net::bind(&socket, &address)?;
    UdpSocket::from_std(socket.into())
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Connections of an earlier process may still be winding down.
    socket.set_reuseaddr(true)?;
    allow_missing(&socket, address)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Allows an address that comes later: the bridge is made after node-dns, and after it again by the next boot.
fn allow_missing(socket: impl AsFd, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv4() {
        sockopt::set_ip_freebind(socket, true)?;
    } else {
        sockopt::set_ipv6_freebind(socket, true)?;
    }
    Ok(())
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut buffer = vec![0; QUERY_MAX];
    // Only queries that wait for other resolvers are tasks, and the forwarder bounds those.
    let mut waiting = JoinSet::new();
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            // An ICMP error of an earlier reply; the next query is none the worse.
            tokio::task::yield_now().await;
            continue;
        };
        let query = &buffer[..length];
        match answer(&shared.zone(), query, Transport::Udp) {
            Outcome::Drop => {}
            Outcome::Reply(reply) => drop(socket.send_to(&reply, client).await),
            outcome => {
                let (socket, shared, query) = (socket.clone(), shared.clone(), query.to_vec());
                waiting.spawn(async move {
                    if let Some(reply) = finish(&shared, outcome, &query, Transport::Udp).await {
                        let _ = socket.send_to(&reply, client).await;
                    }
                });
            }
        }
        while waiting.try_join_next().is_some() {}
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let seats = Arc::new(Semaphore::new(MAX_CLIENTS));
    let mut clients = JoinSet::new();
    loop {
        let Ok(seat) = seats.clone().acquire_owned().await else { return };
        if let Ok((stream, _)) = listener.accept().await {
            let shared = shared.clone();
            clients.spawn(async move {
                // A client that goes away in the middle is no news.
                let _ = serve_client(stream, &shared).await;
                drop(seat);
            });
        }
        while clients.try_join_next().is_some() {}
    }
}

/// One TCP client's queries, one after the other.
async fn serve_client(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        let length = timeout(IDLE, stream.read_u16()).await??;
        let mut query = vec![0; usize::from(length)];
        timeout(IDLE, stream.read_exact(&mut query)).await??;
        let outcome = answer(&shared.zone(), &query, Transport::Tcp);
        let Some(reply) = finish(shared, outcome, &query, Transport::Tcp).await else { return Ok(()) };
        let Ok(length) = u16::try_from(reply.len()) else { return Ok(()) };
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend(reply);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

/// The reply to a query, with the help of other resolvers where that is needed.
async fn finish(shared: &Shared, outcome: Outcome, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
    match outcome {
        Outcome::Drop => None,
        Outcome::Reply(reply) => Some(reply),
        Outcome::Forward => match shared.forwarder.ask(query, transport).await {
            Ok(reply) => Some(reply),
            Err(code) => failure(query, code),
        },
        Outcome::Resolve(unresolved) => {
            let asked = match unresolved.query() {
                Some(question) => shared.forwarder.ask(&question, transport).await,
                None => Err(ResponseCode::ServFail),
            };
            Some(unresolved.finish(asked.ok().as_deref()))
        }
    }
}
