//! Network namespaces that play a machine, its pods and the world outside.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use statefuld_node::network::Network;
use statefuld_node::nft::{self, Protocol, Socket, Target};
use statefuld_node::services::{self, Endpoint, Frontend, Place, Service, ServicePort, Slice, stale};
use statefuld_node::{Config, Wishes};

/// Longer than any answer takes; reached by failures.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long is waited for what must not come.
pub(crate) const SILENCE: Duration = Duration::from_millis(400);

/// The service of most tests.
pub(crate) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 77);
/// The machine's own address, that of its neighbour, and one beyond it.
pub(crate) const MACHINE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(crate) const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const WORLD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

/// A network namespace, kept by a process that sleeps in it.
pub(crate) struct Space {
    keeper: Child,
}

impl Space {
    pub(crate) fn new() -> Self {
        let own = std::fs::read_link("/proc/thread-self/ns/net").expect("a namespace");
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "infinity"]).stdin(Stdio::null()).stdout(Stdio::null());
        let keeper = command.spawn().expect("unshare runs");
        let space = Self { keeper };
        // It is ready when it sleeps in a namespace of its own.
        let link = format!("/proc/{}/ns/net", space.pid());
        let name = format!("/proc/{}/comm", space.pid());
        wait(|| {
            let there = std::fs::read_link(&link).is_ok_and(|theirs| theirs != own);
            (there && std::fs::read_to_string(&name).is_ok_and(|comm| comm.trim() == "sleep")).then_some(())
        });
        space.ip("link set lo up");
        space
    }

    pub(crate) fn pid(&self) -> i32 {
        self.keeper.id().cast_signed()
    }

    /// Runs something on a thread in it.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = std::fs::File::open(format!("/proc/{}/ns/net", self.pid())).expect("a namespace");
        std::thread::scope(|scope| {
            let inside = move || {
                enter(&file);
                work()
            };
            scope.spawn(inside).join().expect("it does not panic")
        })
    }

    /// A thread in it that goes on.
    pub(crate) fn spawn(&self, work: impl FnOnce() + Send + 'static) {
        let file = std::fs::File::open(format!("/proc/{}/ns/net", self.pid())).expect("a namespace");
        std::thread::spawn(move || {
            enter(&file);
            drop(file);
            work();
        });
    }

    /// Runs `ip` in it.
    pub(crate) fn ip(&self, line: &str) {
        let output = self.run(|| Command::new("ip").args(line.split_whitespace()).output().expect("ip runs"));
        assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Serves at a port: says its name, whose client it has, and from then on repeats its name after every line.
    pub(crate) fn serve_tcp(&self, name: &'static str, port: u16) {
        let listener = self.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("it listens"));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let client = stream.peer_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip());
                    let mut out = stream.try_clone().expect("a second handle");
                    let _ = out.write_all(format!("{name} {client}\n").as_bytes());
                    for _ in BufReader::new(stream).lines().map_while(Result::ok) {
                        let _ = out.write_all(format!("{name}\n").as_bytes());
                    }
                });
            }
        });
    }

    /// Answers datagrams at a port with its name and their sender.
    pub(crate) fn serve_udp(&self, name: &'static str, port: u16) {
        let socket = self.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).expect("it listens"));
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, client)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(format!("{name} {}", client.ip()).as_bytes(), client);
            }
        });
    }

    /// Who answers there, and whom they take for their client.
    pub(crate) fn ask(&self, to: (Ipv4Addr, u16)) -> Result<String, std::io::Error> {
        self.ask_within(to, PATIENCE)
    }

    /// As [`Space::ask`], where nobody is to answer: the error.
    pub(crate) fn refused(&self, to: (Ipv4Addr, u16)) -> std::io::ErrorKind {
        match self.ask_within(to, SILENCE) {
            Ok(answer) => panic!("answered: {answer}"),
            Err(error) => error.kind(),
        }
    }

    /// Waits until clients are told that nobody is there.
    pub(crate) fn until_refused(&self, to: (Ipv4Addr, u16)) {
        wait(|| {
            let asked = self.ask_within(to, SILENCE);
            asked.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused).then_some(())
        });
    }

    fn ask_within(&self, to: (Ipv4Addr, u16), limit: Duration) -> Result<String, std::io::Error> {
        self.run(move || {
            let stream = TcpStream::connect_timeout(&SocketAddr::from(to), limit)?;
            stream.set_read_timeout(Some(limit))?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line)?;
            if line.is_empty() { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(line.trim().to_owned()) }
        })
    }

    /// The names that answer, of many tries, and whom they take for their client.
    pub(crate) fn ask_often(&self, to: (Ipv4Addr, u16)) -> BTreeMap<String, usize> {
        let mut heard = BTreeMap::new();
        for _ in 0..40 {
            *heard.entry(self.ask(to).expect("an answer")).or_default() += 1;
        }
        heard
    }

    /// A connection that stays.
    pub(crate) fn connect(&self, to: (Ipv4Addr, u16)) -> Connection {
        let stream = self.run(move || TcpStream::connect_timeout(&SocketAddr::from(to), PATIENCE).expect("connected"));
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
        let mut connection = Connection { lines: BufReader::new(stream) };
        connection.line();
        connection
    }

    /// A datagram socket that stays.
    pub(crate) fn datagrams(&self, to: (Ipv4Addr, u16)) -> UdpSocket {
        self.run(move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
            socket.connect(SocketAddr::from(to)).expect("a target");
            socket.set_read_timeout(Some(SILENCE)).expect("a limit");
            socket
        })
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// One question over a datagram socket; asked again, since datagrams may be lost.
pub(crate) fn question(socket: &UdpSocket) -> Option<String> {
    let mut buffer = [0; 64];
    for _ in 0..10 {
        // An error tells that the one before was refused.
        let _ = socket.send(b"who");
        if let Ok(length) = socket.recv(&mut buffer) {
            return Some(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
    }
    None
}

/// An open connection to a server of [`Space::serve_tcp`].
pub(crate) struct Connection {
    lines: BufReader<TcpStream>,
}

impl Connection {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("an answer");
        line.trim().to_owned()
    }

    /// Who is at the other end still.
    pub(crate) fn again(&mut self) -> String {
        self.lines.get_mut().write_all(b"who\n").expect("it is open");
        self.line()
    }
}

/// Moves this thread there.
fn enter(namespace: &std::fs::File) {
    let kind = Some(rustix::thread::LinkNameSpaceType::Network);
    rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).expect("it may be entered");
}

fn wait<T>(mut look: impl FnMut() -> Option<T>) -> T {
    #[allow(clippy::disallowed_methods, reason = "a test's deadline is real time")]
    let now = std::time::Instant::now;
    let deadline = now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(now() < deadline, "not within {PATIENCE:?}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// A machine with one or more nodes, its neighbour, and pods.
pub(crate) struct Machine {
    pub(crate) space: Space,
    pub(crate) outside: Space,
    pub(crate) nodes: Vec<Node>,
}

/// A node of that machine.
pub(crate) struct Node {
    pub(crate) config: Config,
    _folder: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        let claim = self.config.pod_cidr.to_string().replace('/', "-");
        let _ = std::fs::remove_file(std::path::Path::new("/run/statefuld/ranges").join(claim));
    }
}

impl Machine {
    /// A machine that is wired to its neighbour, with one node.
    pub(crate) fn new() -> Self {
        let (space, outside) = (Space::new(), Space::new());
        space.ip(&format!("link add eth0 type veth peer name eth0 netns {}", outside.pid()));
        space.ip(&format!("address add {MACHINE}/24 dev eth0"));
        space.ip("link set eth0 up");
        outside.ip(&format!("address add {NEIGHBOUR}/24 dev eth0"));
        outside.ip(&format!("address add {WORLD}/32 dev lo"));
        outside.ip("link set eth0 up");
        space.ip(&format!("route add default via {NEIGHBOUR}"));
        let mut machine = Self { space, outside, nodes: Vec::new() };
        machine.add_node();
        machine
    }

    /// One more node on this machine.
    pub(crate) fn add_node(&mut self) {
        let folder = tempfile::Builder::new().prefix("statefuld-network-test-").tempdir().expect("a folder");
        let config = Config::choose(folder.path(), &Wishes::default()).expect("a configuration");
        let own = config.clone();
        self.block_on(async move { drop(Network::ensure(&own).await.expect("a bridge")) });
        self.nodes.push(Node { config, _folder: folder });
    }

    /// Says to the kernel whether frames between ports of a bridge pass its filter.
    pub(crate) fn filter_bridges(&self, yes: bool) {
        let value = if yes { "1" } else { "0" };
        self.space.run(|| {
            // Missing where the kernel cannot do it at all.
            let _ = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", value);
        });
    }

    /// Runs something asynchronous on this machine.
    pub(crate) fn block_on<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        self.space.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(work)
        })
    }

    /// A pod on a node, with the n-th address of its range.
    pub(crate) fn pod(&self, node: usize, n: u32) -> (Space, Ipv4Addr) {
        let pod = Space::new();
        let config = self.nodes[node].config.clone();
        let (pid, address) = (pod.pid(), config.pod_cidr.host(n));
        self.block_on(async move {
            let network = Network::ensure(&config).await.expect("a bridge");
            network.attach(pid, address, "xy").await.expect("attached");
        });
        (pod, address)
    }

    /// Brings a node's rules to these services; what is answered is what [`Machine::forget`] wants.
    pub(crate) fn apply(&self, node: usize, cluster: &services::Cluster, expose_lan: bool) -> stale::Answering {
        let frontends = services::frontends(cluster, &node_name(node));
        let config = self.nodes[node].config.clone();
        let own = Target { address: config.gateway, protocol: Protocol::Udp, port: 53 };
        let facts = services::Node {
            tag: config.tag(),
            bridge: config.bridge.clone(),
            pod_cidr: config.pod_cidr,
            expose_lan,
            own: [own].into(),
        };
        let table = services::table(&facts, &frontends);
        self.filter(move |socket| nft::apply(socket, &table).expect("applied"));
        let addresses = cluster_ips(&frontends);
        self.block_on(async move {
            let network = Network::ensure(&config).await.expect("a bridge");
            network.route_services(&addresses).await.expect("routed");
        });
        stale::answering(&frontends)
    }

    /// Has the kernel forget exchanges that a change made void.
    pub(crate) fn forget(&self, before: &stale::Answering, now: &stale::Answering) {
        self.filter(|socket| {
            for flow in stale::stale(&nft::udp_flows(socket).expect("listed"), before, now) {
                nft::delete_flow(socket, &flow).expect("forgotten");
            }
        });
    }

    /// Speaks with the machine's packet filter.
    pub(crate) fn filter<T: Send>(&self, work: impl FnOnce(&Socket) -> T + Send) -> T {
        self.space.run(|| work(&Socket::open().expect("a socket")))
    }
}

/// The addresses of services.
pub(crate) fn cluster_ips(frontends: &BTreeMap<Place, Frontend>) -> std::collections::BTreeSet<Ipv4Addr> {
    frontends.iter().filter(|(_, f)| f.is_cluster_ip).filter_map(|(place, _)| place.address).collect()
}

pub(crate) fn node_name(node: usize) -> String {
    format!("node-{node}")
}

/// A service `n/web` with one port 80 of that protocol, that leads to these endpoints: address, port, ready.
pub(crate) fn cluster(
    protocol: Protocol,
    endpoints: &[(Ipv4Addr, u16, bool)],
    change: impl FnOnce(&mut Service),
) -> services::Cluster {
    let port = ServicePort { name: "p".into(), protocol, port: 80, node_port: None };
    let mut service = Service { cluster_ip: Some(SERVICE), ports: vec![port], ..Service::default() };
    change(&mut service);
    let slice = |(n, (address, port, ready)): (usize, &(Ipv4Addr, u16, bool))| {
        let endpoint = Endpoint { address: *address, node: Some(node_name(0)), ready: *ready, leaving: false };
        let ports = vec![("p".to_owned(), protocol, *port)];
        (format!("n/web-{n}"), Slice { service: "n/web".into(), ports, endpoints: vec![endpoint] })
    };
    services::Cluster {
        services: [("n/web".to_owned(), service)].into(),
        slices: endpoints.iter().enumerate().map(slice).collect(),
        host_ports: BTreeMap::new(),
    }
}

/// The place of an endpoint.
pub(crate) fn at(address: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address, port)
}
