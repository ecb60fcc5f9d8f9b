//! The other way: sockets instead of rules.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use ambient::Ambient;
use statefuld_node::network::Network;
use statefuld_node::nft::Protocol;
use statefuld_node::services::{self, relay::Relay};
use tokio_util::sync::CancellationToken;

use crate::space::{MACHINE, Machine, SERVICE, cluster, cluster_ips, node_name, question};

/// A relay on a machine, in a thread of its own.
struct Running {
    tell: Sender<(services::Cluster, Sender<()>)>,
}

impl Running {
    fn start(machine: &Arc<Machine>) -> Self {
        let (tell, told) = channel::<(services::Cluster, Sender<()>)>();
        let config = machine.nodes[0].config.clone();
        machine.space.spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            let runtime = runtime.expect("a runtime");
            let (mut relay, network) = runtime.block_on(async {
                let network = Network::ensure(&config).await.expect("a bridge");
                let term = CancellationToken::new();
                (Relay::new(&config.bridge, config.pod_cidr, Ambient::system(), term), network)
            });
            while let Ok((cluster, done)) = told.recv() {
                runtime.block_on(async {
                    let frontends = services::frontends(&cluster, &node_name(0));
                    network.own_services(&cluster_ips(&frontends)).await.expect("given");
                    let failed = relay.update(&frontends);
                    assert!(failed.is_empty(), "{failed:?}");
                });
                let _ = done.send(());
            }
        });
        Self { tell }
    }

    fn update(&self, cluster: services::Cluster) {
        let (done, finished) = channel();
        self.tell.send((cluster, done)).expect("it runs");
        finished.recv().expect("it is done");
    }
}

#[test]
fn sockets_serve_pods_the_machine_and_the_outside_and_keep_connections() {
    let machine = Arc::new(Machine::new());
    let ((a, at_a), (b, at_b), (c, _)) = (machine.pod(0, 2), machine.pod(0, 3), machine.pod(0, 4));
    a.serve_tcp("a", 8080);
    b.serve_tcp("b", 8080);
    let relay = Running::start(&machine);
    let open = |service: &mut services::Service| service.ports[0].node_port = Some(30_080);
    relay.update(cluster(Protocol::Tcp, &[(at_a, 8080, true), (at_b, 8080, true)], open));
    let web = (SERVICE, 80);
    for client in [&a, &c, &machine.space] {
        assert_eq!(client.ask_often(web).len(), 2, "both answer");
    }
    assert!(machine.outside.ask((MACHINE, 30_080)).is_ok());
    assert!(machine.space.ask((std::net::Ipv4Addr::LOCALHOST, 30_080)).is_ok());
    relay.update(cluster(Protocol::Tcp, &[(at_a, 8080, true)], open));
    let mut connection = c.connect(web);
    relay.update(cluster(Protocol::Tcp, &[], open));
    c.until_refused(web);
    machine.outside.until_refused((MACHINE, 30_080));
    assert_eq!(connection.again(), "a");
}

#[test]
fn sockets_pass_datagrams_on_and_follow_the_endpoints() {
    let machine = Arc::new(Machine::new());
    let ((a, at_a), (b, at_b), (c, _)) = (machine.pod(0, 2), machine.pod(0, 3), machine.pod(0, 4));
    a.serve_udp("a", 53);
    b.serve_udp("b", 53);
    let relay = Running::start(&machine);
    let socket = c.datagrams((SERVICE, 80));
    for (name, address) in [("a ", at_a), ("b ", at_b)] {
        relay.update(cluster(Protocol::Udp, &[(address, 53, true)], |_| {}));
        let answer = question(&socket);
        assert!(answer.as_ref().is_some_and(|answer| answer.starts_with(name)), "{answer:?}");
    }
}
