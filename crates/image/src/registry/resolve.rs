//! From a registry's name to its addresses, without the C library, whose way of asking does not work in a static program.
//!
//! `/etc/hosts` first, then the name servers of `/etc/resolv.conf`, as they are at that moment; its search list for names
//! without a dot.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ambient::Ambient;
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// As many name servers are tried as the C library tries.
const MAX_SERVERS: usize = 3;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Longest answer over UDP.
const MAX_ANSWER: usize = 4096;
/// Most addresses of a name that are tried.
const MAX_ADDRESSES: usize = 8;

/// The addresses of a host; IPv4 first, as more machines reach it.
pub(super) async fn resolve(host: &str, ambient: &Ambient) -> io::Result<Vec<IpAddr>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(vec![address]);
    }
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let known = in_hosts(&hosts, bare);
    if !known.is_empty() {
        return Ok(known);
    }
    if bare.eq_ignore_ascii_case("localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let configuration = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = servers(&configuration);
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("lookup {bare}: no such host"));
    for name in candidates(bare, &configuration) {
        for server in &servers {
            match timeout(PATIENCE, addresses(*server, &name, ambient)).await {
                Ok(Ok(found)) if found.is_empty() => break,
                Ok(Ok(found)) => return Ok(found.into_iter().take(MAX_ADDRESSES).collect()),
                Ok(Err(error)) => last = io::Error::new(error.kind(), format!("lookup {bare} on {server}: {error}")),
                Err(_) => {
                    last = io::Error::new(io::ErrorKind::TimedOut, format!("lookup {bare} on {server}: timed out"))
                }
            }
        }
    }
    Err(last)
}

fn in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let of_line = |line: &str| {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let address: IpAddr = words.next()?.parse().ok()?;
        words.any(|name| name.eq_ignore_ascii_case(host)).then_some(address)
    };
    text.lines().filter_map(of_line).collect()
}

fn servers(text: &str) -> Vec<SocketAddr> {
    let words = text.lines().map(|line| line.split_whitespace());
    let named = words.filter_map(|mut words| words.next().filter(|w| *w == "nameserver").and_then(|_| words.next()));
    let addresses = named.filter_map(|address| address.parse::<IpAddr>().ok());
    addresses.map(|ip| SocketAddr::new(ip, 53)).take(MAX_SERVERS).collect()
}

/// The name as it is, or with each domain of the search list where it has no dot.
fn candidates(host: &str, text: &str) -> Vec<String> {
    let absolute = format!("{}.", host.trim_end_matches('.'));
    if host.contains('.') {
        return vec![absolute];
    }
    let search = text.lines().filter_map(|line| line.trim().strip_prefix("search ")).next_back().unwrap_or_default();
    let searched = search.split_whitespace().map(|domain| format!("{host}.{}.", domain.trim_end_matches('.')));
    searched.chain([absolute]).collect()
}

async fn addresses(server: SocketAddr, name: &str, ambient: &Ambient) -> io::Result<Vec<IpAddr>> {
    let name = Name::from_ascii(name).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e.to_string()))?;
    let (v4, v6) = tokio::join!(
        ask(server, Query::query(name.clone(), RecordType::A), ambient),
        ask(server, Query::query(name, RecordType::AAAA), ambient),
    );
    match (v4, v6) {
        (Err(error), Err(_)) => Err(error),
        (v4, v6) => Ok([v4.unwrap_or_default(), v6.unwrap_or_default()].concat()),
    }
}

async fn ask(server: SocketAddr, query: Query, ambient: &Ambient) -> io::Result<Vec<IpAddr>> {
    let mut id = [0; 2];
    ambient.fill(&mut id);
    let mut message = Message::new(u16::from_ne_bytes(id), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(query);
    let bytes = message.to_vec().map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e.to_string()))?;
    let mut answer = over_udp(server, &bytes).await?;
    if answer.metadata.truncation {
        answer = over_tcp(server, &bytes).await?;
    }
    let address = |data: &RData| match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(a) => Some(IpAddr::V6(a.0)),
        _ => None,
    };
    Ok(answer.answers.iter().filter_map(|record| address(&record.data)).collect())
}

async fn over_udp(server: SocketAddr, query: &[u8]) -> io::Result<Message> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; MAX_ANSWER];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(message) = as_answer(query, &buffer[..length]) {
            return Ok(message);
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Message> {
    let length = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    as_answer(query, &answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The answer to that query, and to no other.
fn as_answer(query: &[u8], answer: &[u8]) -> Option<Message> {
    let asked = Message::from_vec(query).ok()?;
    let message = Message::from_vec(answer).ok()?;
    let fits = message.metadata.id == asked.metadata.id
        && message.metadata.message_type == MessageType::Response
        && message.queries == asked.queries;
    fits.then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_hosts_and_the_search_list_is_for_those_without_a_dot() {
        let hosts = "127.0.0.1 localhost\n10.0.0.9 registry.test mirror # comment registry\n::1 MIRROR\n";
        assert_eq!(in_hosts(hosts, "registry.test"), ["10.0.0.9".parse::<IpAddr>().expect("an address")]);
        assert_eq!(in_hosts(hosts, "mirror").len(), 2);
        assert_eq!(in_hosts(hosts, "comment"), Vec::<IpAddr>::new());
        let conf = "search a.example b.example.\nnameserver 10.0.0.1\n";
        assert_eq!(candidates("x", conf), ["x.a.example.", "x.b.example.", "x."]);
        assert_eq!(candidates("x.y", conf), ["x.y."]);
        assert_eq!(servers(conf), ["10.0.0.1:53".parse().expect("an address")]);
    }

    #[tokio::test]
    async fn addresses_are_asked_of_a_name_server_and_answers_to_others_are_passed_over() {
        let server = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let address = server.local_addr().expect("an address");
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = server.recv_from(&mut buffer).await {
                let mut message = Message::from_vec(&buffer[..length]).expect("a query");
                message.metadata.message_type = MessageType::Response;
                let query = message.queries[0].clone();
                let mut foreign = message.clone();
                foreign.metadata.id = foreign.metadata.id.wrapping_add(1);
                let data = match query.query_type {
                    RecordType::A => RData::A(Ipv4Addr::new(10, 0, 0, 9).into()),
                    _ => RData::AAAA(Ipv6Addr::LOCALHOST.into()),
                };
                message.add_answer(hickory_proto::rr::Record::from_rdata(query.name.clone(), 5, data));
                for answer in [foreign, message] {
                    server.send_to(&answer.to_vec().expect("bytes"), from).await.expect("sent");
                }
            }
        });
        let found = addresses(address, "registry.test.", &Ambient::system()).await.expect("addresses");
        assert_eq!(found, ["10.0.0.9".parse::<IpAddr>().expect("v4"), "::1".parse().expect("v6")]);
    }
}
