//! The node-dns process over real sockets, each test in a folder and on ports of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use statefuld_dns::feed::{Error, Feeder};
use statefuld_dns::records::{Cluster, Endpoint, EndpointSlice, Service};
use statefuld_dns::server::{Config, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Far longer than anything here takes; only a failure waits for it.
const DEADLINE: Duration = Duration::from_secs(30);

fn cluster(address: &str) -> Cluster {
    let service = Service { namespace: "ns".into(), name: "web".into(), headless: true, ..Service::default() };
    let endpoint =
        Endpoint { addresses: vec![address.parse().expect("an address")], ready: true, hostname: Some("web-0".into()) };
    let slice =
        EndpointSlice { namespace: "ns".into(), service: "web".into(), ports: vec![], endpoints: vec![endpoint] };
    Cluster { services: [(service.key(), service)].into(), slices: [("ns/web-1".to_owned(), slice)].into() }
}

fn configure(dir: &Path, upstreams: Vec<SocketAddr>) {
    let listen = vec!["127.0.0.1:0".parse().expect("an address")];
    Config { listen, domain: "cluster.local".into(), upstreams: Some(upstreams) }.write(dir).expect("writes");
}

/// Starts node-dns; gives its address and what ends when it does.
async fn start(dir: &Path) -> (SocketAddr, JoinHandle<()>) {
    let server = Server::start(dir).await.expect("starts").expect("nobody else serves the folder");
    (server.listen()[0], tokio::spawn(server.finished()))
}

fn query(name: &str) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_str_relaxed(name).expect("a name"), RecordType::A));
    message.to_vec().expect("encodes")
}

async fn ask_udp(server: SocketAddr, name: &str) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    socket.send_to(&query(name), server).await.expect("sends");
    let mut buffer = [0; 4096];
    let length = timeout(DEADLINE, socket.recv(&mut buffer)).await.expect("in time").expect("receives");
    Message::from_vec(&buffer[..length]).expect("a reply")
}

async fn ask_tcp(stream: &mut TcpStream, name: &str) -> Message {
    let query = query(name);
    stream.write_u16(query.len() as u16).await.expect("sends");
    stream.write_all(&query).await.expect("sends");
    let length = timeout(DEADLINE, stream.read_u16()).await.expect("in time").expect("receives");
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await.expect("receives");
    Message::from_vec(&reply).expect("a reply")
}

fn addresses(reply: &Message) -> Vec<String> {
    reply.answers.iter().map(|record| record.data.to_string()).collect()
}

#[tokio::test]
async fn what_is_pushed_is_answered_over_both_protocols() {
    let dir = tempfile::tempdir().expect("a folder");
    configure(dir.path(), vec![]);
    let (server, _running) = start(dir.path()).await;
    let name = "web-0.web.ns.svc.cluster.local.";
    assert_eq!(ask_udp(server, name).await.metadata.response_code, ResponseCode::ServFail);

    let mut feeder = Feeder::connect(dir.path()).await.expect("connects");
    assert_eq!(feeder.pid(), std::process::id());
    assert_eq!(feeder.listen(), [server]);
    feeder.push(&cluster("10.1.0.1")).await.expect("is applied");
    assert_eq!(addresses(&ask_udp(server, name).await), ["10.1.0.1"]);
    feeder.push(&cluster("10.1.0.2")).await.expect("is applied");
    assert_eq!(addresses(&ask_udp(server, name).await), ["10.1.0.2"]);

    let mut stream = TcpStream::connect(server).await.expect("connects");
    assert_eq!(addresses(&ask_tcp(&mut stream, name).await), ["10.1.0.2"]);
    assert_eq!(ask_tcp(&mut stream, "x.cluster.local.").await.metadata.response_code, ResponseCode::NXDomain);
    feeder.push(&Cluster::default()).await.expect("is applied");
    assert_eq!(ask_tcp(&mut stream, name).await.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn a_second_feeder_does_not_build_on_the_firsts_state() {
    let dir = tempfile::tempdir().expect("a folder");
    configure(dir.path(), vec![]);
    let (server, _running) = start(dir.path()).await;
    let mut first = Feeder::connect(dir.path()).await.expect("connects");
    first.push(&cluster("10.1.0.1")).await.expect("is applied");
    let mut second = Feeder::connect(dir.path()).await.expect("connects");
    second.push(&Cluster::default()).await.expect("is applied");
    first.push(&cluster("10.1.0.3")).await.expect("is applied as a whole");
    assert_eq!(addresses(&ask_udp(server, "web.ns.svc.cluster.local.").await), ["10.1.0.3"]);
}

#[tokio::test]
async fn a_restart_answers_from_the_persisted_snapshot() {
    let dir = tempfile::tempdir().expect("a folder");
    configure(dir.path(), vec![]);
    let (_, running) = start(dir.path()).await;
    let mut feeder = Feeder::connect(dir.path()).await.expect("connects");
    feeder.push(&cluster("10.1.0.1")).await.expect("is applied");
    // Stops without being told to, as a kill does.
    running.abort();
    let _ = running.await;
    assert!(matches!(timeout(DEADLINE, feeder.closed()).await, Ok(Error::Io(_))));

    let (server, running) = start(dir.path()).await;
    assert_eq!(addresses(&ask_udp(server, "web.ns.svc.cluster.local.").await), ["10.1.0.1"]);
    let feeder = Feeder::connect(dir.path()).await.expect("connects");
    feeder.shutdown().await.expect("stops");
    timeout(DEADLINE, running).await.expect("in time").expect("ends");
    assert!(matches!(Feeder::connect(dir.path()).await, Err(Error::Io(_))));
}

#[tokio::test]
async fn after_a_shutdown_the_folder_is_free_at_once() {
    let dir = tempfile::tempdir().expect("a folder");
    configure(dir.path(), vec![]);
    let (_, _running) = start(dir.path()).await;
    assert!(Server::start(dir.path()).await.expect("looks").is_none(), "one process serves a folder");
    Feeder::connect(dir.path()).await.expect("connects").shutdown().await.expect("stops");
    assert!(Server::start(dir.path()).await.expect("starts").is_some());
}

#[tokio::test]
async fn other_names_are_asked_elsewhere_and_refused_without_an_elsewhere() {
    // Another node-dns, authoritative for another zone, is the resolver.
    let other = tempfile::tempdir().expect("a folder");
    let listen = vec!["127.0.0.1:0".parse().expect("an address")];
    let config = Config { listen, domain: "other.example".into(), upstreams: Some(vec![]) };
    config.write(other.path()).expect("writes");
    let (resolver, _resolving) = start(other.path()).await;
    let mut feeder = Feeder::connect(other.path()).await.expect("connects");
    feeder.push(&cluster("10.2.0.1")).await.expect("is applied");

    let dir = tempfile::tempdir().expect("a folder");
    configure(dir.path(), vec![resolver]);
    let (server, _running) = start(dir.path()).await;
    let name = "web.ns.svc.other.example.";
    assert_eq!(addresses(&ask_udp(server, name).await), ["10.2.0.1"]);
    let mut stream = TcpStream::connect(server).await.expect("connects");
    assert_eq!(addresses(&ask_tcp(&mut stream, name).await), ["10.2.0.1"]);
    assert_eq!(ask_udp(resolver, "example.com.").await.metadata.response_code, ResponseCode::Refused);

    // An alias for a name elsewhere comes with its addresses.
    let alias = Service {
        namespace: "ns".into(),
        name: "db".into(),
        external_name: Some("web.ns.svc.other.example".into()),
        ..Service::default()
    };
    let mut feeder = Feeder::connect(dir.path()).await.expect("connects");
    let state = Cluster { services: [(alias.key(), alias)].into(), ..Cluster::default() };
    feeder.push(&state).await.expect("is applied");
    let reply = ask_udp(server, "db.ns.svc.cluster.local.").await;
    assert_eq!(addresses(&reply), ["web.ns.svc.other.example.", "10.2.0.1"]);
}

#[tokio::test]
async fn an_address_that_is_not_there_yet_can_be_listened_on() {
    let dir = tempfile::tempdir().expect("a folder");
    // From the range for documentation: no machine has it.
    let listen = vec!["192.0.2.1:0".parse().expect("an address")];
    Config { listen, domain: "cluster.local".into(), upstreams: None }.write(dir.path()).expect("writes");
    let server = Server::start(dir.path()).await.expect("starts").expect("serves");
    assert_ne!(server.listen()[0].port(), 0);
}
