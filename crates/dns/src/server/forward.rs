//! Names outside the zone: asked of the machine's own resolvers, without a cache of ours.
//!
//! The client's query goes on as it is, from a fresh port each time, and the answer comes back as it is: nothing is
//! remembered, so nothing can be poisoned for others.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Config;
use crate::answer::Transport;

/// Where the machine's resolvers are named.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// As many resolvers are tried as the C library tries.
const MAX_SERVERS: usize = 3;
/// Queries at a time; more are answered with SERVFAIL at once.
const MAX_QUERIES: usize = 256;
/// How long one resolver may take. Three of them fit into what clients wait for two tries.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest answer over UDP.
const ANSWER_MAX: usize = 4096;

/// Asks other resolvers.
#[derive(Debug)]
pub(super) struct Forwarder {
    /// Resolvers from the configuration, in place of the machine's.
    fixed: Option<Vec<SocketAddr>>,
    /// Our own addresses: asking ourselves would never end.
    own: Vec<SocketAddr>,
    seats: Semaphore,
}

impl Forwarder {
    pub(super) fn new(config: &Config) -> Self {
        Self { fixed: config.upstreams.clone(), own: config.listen.clone(), seats: Semaphore::new(MAX_QUERIES) }
    }

    /// The first resolver's answer. Fails with REFUSED where there is no resolver, and SERVFAIL where none answers.
    pub(super) async fn ask(&self, query: &[u8], transport: Transport) -> Result<Vec<u8>, ResponseCode> {
        let servers = self.servers();
        if servers.is_empty() {
            return Err(ResponseCode::Refused);
        }
        let _seat = self.seats.try_acquire().map_err(|_| ResponseCode::ServFail)?;
        for server in servers {
            let asked = match transport {
                Transport::Udp => timeout(PATIENCE, ask_udp(server, query)).await,
                Transport::Tcp => timeout(PATIENCE, ask_tcp(server, query)).await,
            };
            if let Ok(Ok(answer)) = asked {
                return Ok(answer);
            }
        }
        Err(ResponseCode::ServFail)
    }

    /// The resolvers as they are now: a laptop changes networks.
    fn servers(&self) -> Vec<SocketAddr> {
        let named = self
            .fixed
            .clone()
            .unwrap_or_else(|| parse_resolv_conf(&fs::read_to_string(RESOLV_CONF).unwrap_or_default()));
        named.into_iter().filter(|server| !self.own.contains(server)).take(MAX_SERVERS).collect()
    }
}

/// The resolvers that a resolv.conf names.
fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let words = text.lines().map(|line| line.split_whitespace());
    let named = words.filter_map(|mut words| words.next().filter(|w| *w == "nameserver").and_then(|_| words.next()));
    named.filter_map(|address| address.parse::<IpAddr>().ok()).map(|ip| SocketAddr::new(ip, 53)).collect()
}

async fn ask_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; ANSWER_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if is_answer(query, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend(query);
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    if is_answer(query, &answer) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Whether this is a response with the query's id.
fn is_answer(query: &[u8], answer: &[u8]) -> bool {
    answer.len() >= 12 && answer[..2] == query[..2] && answer[2] & 0x80 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read() {
        let text =
            "# comment\nsearch a.example\nnameserver 10.0.0.1\n nameserver\t::1 \noptions ndots:5\nnameserver x\n";
        let servers: Vec<String> = parse_resolv_conf(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.1:53", "[::1]:53"]);
    }
}
