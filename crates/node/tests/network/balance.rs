//! The kernel's rules: who answers, whom they see, and what happens when endpoints come and go.

use std::io::ErrorKind;

use statefuld_node::nft::{self, Protocol};
use statefuld_node::services::{self, HostPort, Service};

use crate::space::{MACHINE, Machine, SERVICE, at, cluster, question};

const TCP: Protocol = Protocol::Tcp;
const WEB: (std::net::Ipv4Addr, u16) = (SERVICE, 80);

#[test]
fn endpoints_share_clients_and_see_them_and_a_pod_reaches_itself() {
    for filtered in [false, true] {
        let machine = Machine::new();
        machine.filter_bridges(filtered);
        let ((a, at_a), (b, at_b), (c, at_c)) = (machine.pod(0, 2), machine.pod(0, 3), machine.pod(0, 4));
        a.serve_tcp("a", 8080);
        b.serve_tcp("b", 9090);
        machine.apply(0, &cluster(TCP, &[(at_a, 8080, true), (at_b, 9090, true), (at_c, 1, false)], |_| {}), false);
        let heard: Vec<String> = c.ask_often(WEB).into_keys().collect();
        assert_eq!(heard, [format!("a {at_c}"), format!("b {at_c}")], "filtered: {filtered}");
        let heard: Vec<String> = a.ask_often(WEB).into_keys().collect();
        let gateway = machine.nodes[0].config.gateway;
        assert_eq!(heard, [format!("a {gateway}"), format!("b {at_a}")], "filtered: {filtered}");
        assert_eq!(machine.space.ask_often(WEB).len(), 2);
        assert_eq!(c.ask((at_b, 9090)).expect("pods reach each other"), format!("b {at_c}"));
    }
}

#[test]
fn a_connection_outlives_its_endpoints_removal_and_new_ones_go_elsewhere() {
    let machine = Machine::new();
    let ((a, at_a), (b, at_b), (c, _)) = (machine.pod(0, 2), machine.pod(0, 3), machine.pod(0, 4));
    a.serve_tcp("a", 8080);
    b.serve_tcp("b", 8080);
    machine.apply(0, &cluster(TCP, &[(at_a, 8080, true)], |_| {}), false);
    let mut connection = c.connect(WEB);
    machine.apply(0, &cluster(TCP, &[(at_b, 8080, true)], |_| {}), false);
    assert!(c.ask_often(WEB).into_keys().all(|answer| answer.starts_with("b ")));
    assert_eq!(connection.again(), "a");
    machine.apply(0, &services::Cluster::default(), false);
    assert_eq!(connection.again(), "a");
}

#[test]
fn a_client_stays_with_its_endpoint_also_over_changes_until_that_endpoint_goes() {
    let machine = Machine::new();
    let ((a, at_a), (b, at_b), (c, _)) = (machine.pod(0, 2), machine.pod(0, 3), machine.pod(0, 4));
    a.serve_tcp("a", 8080);
    b.serve_tcp("b", 8080);
    let sticky = |service: &mut Service| service.affinity_s = Some(600);
    let both = cluster(TCP, &[(at_a, 8080, true), (at_b, 8080, true)], sticky);
    machine.apply(0, &both, false);
    let first = c.ask_often(WEB);
    assert_eq!(first.len(), 1, "{first:?}");
    let mut changed = both.clone();
    changed.services.insert("n/other".into(), Service::default());
    changed.slices.insert("n/more".into(), changed.slices["n/web-0"].clone());
    machine.apply(0, &changed, false);
    machine.apply(0, &both, false);
    assert_eq!(c.ask_often(WEB), first);
    let (only, other) = if first.keys().any(|k| k.starts_with("a ")) { (at_b, "b ") } else { (at_a, "a ") };
    machine.apply(0, &cluster(TCP, &[(only, 8080, true)], sticky), false);
    assert!(c.ask_often(WEB).into_keys().all(|answer| answer.starts_with(other)));
}

#[test]
fn datagrams_follow_the_endpoints() {
    let machine = Machine::new();
    let ((a, at_a), (b, at_b), (c, at_c)) = (machine.pod(0, 2), machine.pod(0, 3), machine.pod(0, 4));
    a.serve_udp("a", 53);
    b.serve_udp("b", 53);
    let socket = c.datagrams(WEB);
    let nobody = machine.apply(0, &cluster(Protocol::Udp, &[], |_| {}), false);
    assert_eq!(question(&socket), None);
    let mut before = nobody;
    for (name, address) in [("a", at_a), ("b", at_b)] {
        let now = machine.apply(0, &cluster(Protocol::Udp, &[(address, 53, true)], |_| {}), false);
        machine.forget(&before, &now);
        assert_eq!(question(&socket), Some(format!("{name} {at_c}")), "the same socket goes on");
        before = now;
    }
    let from_machine = machine.space.datagrams(WEB);
    assert!(question(&from_machine).is_some_and(|answer| answer.starts_with("b ")));
    let itself = b.datagrams(WEB);
    assert!(question(&itself).is_some_and(|answer| answer.starts_with("b ")));
}

#[test]
fn where_nobody_answers_clients_are_told_at_once() {
    let machine = Machine::new();
    let (c, _) = machine.pod(0, 4);
    machine.apply(0, &cluster(TCP, &[], |service| service.ports[0].node_port = Some(30_080)), false);
    for client in [&c, &machine.space] {
        assert_eq!(client.refused(WEB), ErrorKind::ConnectionRefused);
        assert_eq!(client.refused((SERVICE, 81)), ErrorKind::ConnectionRefused);
        assert_eq!(client.refused((MACHINE, 30_080)), ErrorKind::ConnectionRefused);
    }
    assert_eq!(machine.outside.refused((MACHINE, 30_080)), ErrorKind::ConnectionRefused);
}

#[test]
fn node_ports_are_reached_from_outside_from_the_machine_and_from_pods() {
    let machine = Machine::new();
    let ((a, at_a), (c, at_c)) = (machine.pod(0, 2), machine.pod(0, 4));
    a.serve_tcp("a", 8080);
    let port = 30_080;
    let open = |service: &mut Service| service.ports[0].node_port = Some(30_080);
    machine.apply(0, &cluster(TCP, &[(at_a, 8080, true)], open), false);
    let outside = crate::space::NEIGHBOUR;
    assert_eq!(machine.outside.ask((MACHINE, port)).expect("reached"), format!("a {outside}"));
    assert_eq!(c.ask((MACHINE, port)).expect("reached"), format!("a {at_c}"));
    for address in [MACHINE, std::net::Ipv4Addr::LOCALHOST, machine.nodes[0].config.gateway] {
        assert!(machine.space.ask((address, port)).expect("reached").starts_with("a "));
    }
    // Endpoints of other nodes do not count from outside.
    let mut local = cluster(TCP, &[(at_a, 8080, true)], |service| {
        open(service);
        service.external_local = true;
    });
    local.slices.get_mut("n/web-0").expect("a slice").endpoints[0].node = Some("elsewhere".into());
    machine.apply(0, &local, false);
    assert_eq!(machine.outside.refused((MACHINE, port)), ErrorKind::TimedOut);
    assert!(c.ask((MACHINE, port)).is_ok());
}

#[test]
fn balancers_let_in_whom_they_are_told_to() {
    let machine = Machine::new();
    let (a, at_a) = machine.pod(0, 2);
    a.serve_tcp("a", 8080);
    let balanced = |sources: &'static str| {
        cluster(TCP, &[(at_a, 8080, true)], |service| {
            service.external = vec![MACHINE];
            service.sources = vec![sources.parse().expect("a range")];
        })
    };
    machine.apply(0, &balanced("192.0.2.0/28"), false);
    assert!(machine.outside.ask((MACHINE, 80)).is_ok());
    machine.apply(0, &balanced("198.51.100.0/24"), false);
    assert_eq!(machine.outside.refused((MACHINE, 80)), ErrorKind::TimedOut);
    assert!(machine.space.ask((MACHINE, 80)).is_ok());
}

#[test]
fn host_ports_lead_to_their_pod_at_the_addresses_that_they_name() {
    let machine = Machine::new();
    let ((a, at_a), (c, _)) = (machine.pod(0, 2), machine.pod(0, 4));
    a.serve_tcp("a", 8080);
    a.serve_udp("a", 5353);
    let port = |address, port, protocol, target| HostPort { address, port, protocol, pod: at(at_a, target) };
    let local = std::net::Ipv4Addr::LOCALHOST;
    let ports = vec![
        port(None, 9000, TCP, 8080),
        port(Some(MACHINE), 9001, TCP, 8080),
        port(Some(local), 9002, TCP, 8080),
        port(None, 9003, Protocol::Udp, 5353),
    ];
    let cluster = services::Cluster { host_ports: [("n/a".to_owned(), ports)].into(), ..services::Cluster::default() };
    machine.apply(0, &cluster, false);
    for client in [&machine.outside, &machine.space, &c] {
        assert!(client.ask((MACHINE, 9000)).is_ok());
        assert!(client.ask((MACHINE, 9001)).is_ok());
        assert_eq!(client.refused((MACHINE, 9002)), ErrorKind::ConnectionRefused);
        assert!(question(&client.datagrams((MACHINE, 9003))).is_some());
    }
    assert!(machine.space.ask((local, 9000)).is_ok() && machine.space.ask((local, 9002)).is_ok());
    assert_eq!(machine.space.refused((local, 9001)), ErrorKind::ConnectionRefused);
    machine.filter(|socket| {
        let table = services::table_name(&machine.nodes[0].config.tag());
        nft::remove(socket, &table).expect("removed");
        nft::remove(socket, &table).expect("removed already");
        assert!(!nft::is_there(socket, &table).expect("listed"));
    });
    assert_eq!(machine.outside.refused((MACHINE, 9000)), ErrorKind::ConnectionRefused);
}

#[test]
fn nodes_of_one_cluster_share_endpoints_and_instances_side_by_side_share_nothing() {
    let mut machine = Machine::new();
    machine.add_node();
    let ((a, at_a), (b, at_b)) = (machine.pod(0, 2), machine.pod(1, 2));
    a.serve_tcp("a", 8080);
    b.serve_tcp("b", 8080);
    let both = cluster(TCP, &[(at_a, 8080, true), (at_b, 8080, true)], |_| {});
    machine.apply(0, &both, false);
    machine.apply(1, &both, false);
    let heard: Vec<String> = b.ask_often(WEB).into_keys().collect();
    assert_eq!(heard, [format!("a {at_b}"), format!("b {}", machine.nodes[1].config.gateway)]);
    // The same address in two clusters: each one's pods get their own.
    machine.apply(0, &cluster(TCP, &[(at_a, 8080, true)], |_| {}), true);
    machine.apply(1, &cluster(TCP, &[(at_b, 8080, true)], |_| {}), true);
    assert!(a.ask_often(WEB).into_keys().all(|answer| answer.starts_with("a ")));
    assert!(b.ask_often(WEB).into_keys().all(|answer| answer.starts_with("b ")));
    // One that has nobody there refuses its own pods, and not those of another that serves with sockets.
    machine.apply(0, &cluster(TCP, &[], |_| {}), false);
    machine.apply(1, &services::Cluster::default(), false);
    machine.space.ip(&format!("address add {SERVICE}/32 dev {}", machine.nodes[1].config.bridge));
    machine.space.serve_tcp("sockets", 80);
    assert_eq!(a.refused(WEB), ErrorKind::ConnectionRefused);
    assert!(b.ask(WEB).is_ok());
}
