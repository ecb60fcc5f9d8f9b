//! Beyond the machine: what pods reach there, who reaches them from there, and other firewalls in between.

use std::io::ErrorKind;

use statefuld_node::nft::{self, Hook, Kind, Protocol, Step, Table};
use statefuld_node::services::{self, neighbours};

use crate::space::{MACHINE, Machine, SERVICE, SILENCE, WORLD, cluster};

/// What another firewall has in its table `filter`, in the form of iptables: a chain that drops what no rule accepts.
fn firewall(hook: Hook, name: &str, rules: &[&[Step]]) -> Table {
    let mut table = Table { name: "filter".into(), ..Table::default() };
    let chain = table.base(name, Kind::Filter, hook, 0);
    for rule in rules {
        chain.rule(rule.iter().cloned());
    }
    chain.base.as_mut().expect("a base chain").drops = true;
    table
}

fn tend(machine: &Machine) -> Vec<String> {
    let config = machine.nodes[0].config.clone();
    machine.filter(move |socket| {
        let range = config.pod_cidr.to_string();
        neighbours::tend(socket, &config.bridge, &range, config.gateway).expect("looked after")
    })
}

#[test]
fn pods_reach_the_world_as_their_machine() {
    let machine = Machine::new();
    let (a, _) = machine.pod(0, 2);
    machine.outside.serve_tcp("world", 80);
    assert_eq!(a.refused((WORLD, 80)), ErrorKind::TimedOut);
    machine.apply(0, &services::Cluster::default(), false);
    assert_eq!(a.ask((WORLD, 80)).expect("reached"), format!("world {MACHINE}"));
    // A service whose endpoint is out there, for those inside and outside.
    let beyond = cluster(Protocol::Tcp, &[(WORLD, 80, true)], |service| service.ports[0].node_port = Some(30_080));
    machine.apply(0, &beyond, false);
    assert_eq!(a.ask((SERVICE, 80)).expect("reached"), format!("world {MACHINE}"));
    assert_eq!(machine.space.ask((SERVICE, 80)).expect("reached"), format!("world {MACHINE}"));
    assert_eq!(machine.outside.ask((MACHINE, 30_080)).expect("reached"), format!("world {MACHINE}"));
}

#[test]
fn a_firewall_that_drops_what_it_does_not_know_is_passed_and_its_own_rules_hold() {
    let machine = Machine::new();
    let ((a, at_a), (b, at_b)) = (machine.pod(0, 2), machine.pod(0, 3));
    machine.outside.serve_tcp("world", 80);
    machine.outside.serve_tcp("forbidden", 81);
    b.serve_tcp("b", 8080);
    machine.space.serve_tcp("machine", 7000);
    machine.apply(0, &cluster(Protocol::Tcp, &[(at_b, 8080, true)], |s| s.ports[0].node_port = Some(30_080)), false);
    let gateway = machine.nodes[0].config.gateway;
    let forbidden = [Step::ByPort("forbidden".into())];
    let mut docker = firewall(Hook::Forward, "FORWARD", &[&forbidden]);
    docker.chain("no").rule([Step::Drop]);
    let map = nft::Set::Ports([((Protocol::Tcp, 81), "no".to_owned())].into());
    docker.sets.insert("forbidden".into(), map);
    machine.filter(|socket| nft::apply(socket, &docker).expect("applied"));
    assert_eq!(a.refused((WORLD, 80)), ErrorKind::TimedOut);
    assert_eq!(tend(&machine), [""; 0]);
    assert_eq!(tend(&machine), [""; 0]);
    assert!(a.ask((WORLD, 80)).is_ok());
    assert_eq!(a.refused((WORLD, 81)), ErrorKind::TimedOut);
    assert_eq!(a.ask((SERVICE, 80)).expect("reached"), format!("b {at_a}"));
    assert!(machine.outside.ask((MACHINE, 30_080)).is_ok());
    // One that lets nothing in to the machine itself: pods reach their node at its own address among them, only there.
    let mut both = docker.clone();
    both.chains.extend(firewall(Hook::Input, "INPUT", &[]).chains);
    machine.filter(|socket| nft::apply(socket, &both).expect("applied"));
    assert_eq!(a.refused((gateway, 7000)), ErrorKind::TimedOut);
    tend(&machine);
    assert!(a.ask((gateway, 7000)).is_ok());
    assert_eq!(a.refused((MACHINE, 7000)), ErrorKind::TimedOut);
    assert!(a.ask((WORLD, 80)).is_ok());
    let bridge = machine.nodes[0].config.bridge.clone();
    machine.filter(move |socket| nft::remove_mentions(socket, &bridge).expect("taken away"));
    assert_eq!(a.refused((WORLD, 80)), ErrorKind::TimedOut);
}

#[test]
fn a_firewall_in_a_table_of_its_own_is_left_alone_and_told_of() {
    let machine = Machine::new();
    let mut own = firewall(Hook::Forward, "fwd", &[]);
    own.name = "mine".into();
    machine.filter(|socket| nft::apply(socket, &own).expect("applied"));
    let told = tend(&machine);
    let bridge = &machine.nodes[0].config.bridge;
    assert_eq!(told.len(), 1);
    assert!(told[0].contains(&format!("nft insert rule ip mine fwd iifname {bridge} accept")), "{told:?}");
}

#[test]
fn who_routes_pods_here_reaches_them_only_where_that_was_asked_for() {
    let machine = Machine::new();
    let (a, at_a) = machine.pod(0, 2);
    a.serve_tcp("a", 8080);
    let range = machine.nodes[0].config.pod_cidr;
    machine.outside.ip(&format!("route add {range} via {MACHINE}"));
    machine.outside.ip(&format!("route add {SERVICE}/32 via {MACHINE}"));
    let known = cluster(Protocol::Tcp, &[(at_a, 8080, true)], |_| {});
    machine.apply(0, &known, false);
    assert_eq!(machine.outside.refused((at_a, 8080)), ErrorKind::TimedOut);
    assert_eq!(machine.outside.refused((SERVICE, 80)), ErrorKind::TimedOut);
    machine.apply(0, &known, true);
    assert!(machine.outside.ask((at_a, 8080)).is_ok());
    assert!(machine.outside.ask((SERVICE, 80)).is_ok());
}

#[test]
fn pods_do_not_reach_the_machines_loopback() {
    let machine = Machine::new();
    let (a, _) = machine.pod(0, 2);
    // A datagram shows it: an answer would be dropped by the pod's own kernel.
    let private = (std::net::Ipv4Addr::LOCALHOST, 7000);
    let listening = machine.space.run(|| std::net::UdpSocket::bind(private).expect("a socket"));
    listening.set_read_timeout(Some(SILENCE)).expect("a limit");
    machine.apply(0, &services::Cluster::default(), false);
    // As a hostile pod does it: the loopback's addresses by way of the gateway.
    a.run(|| {
        for which in ["all", "eth0"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{which}/route_localnet"), "1").expect("its own switch");
        }
    });
    a.ip("route delete local 127.0.0.0/8 dev lo table local");
    a.ip("route delete local 127.0.0.1 dev lo table local");
    a.ip(&format!("route add 127.0.0.0/8 via {} dev eth0", machine.nodes[0].config.gateway));
    a.datagrams(private).send(b"here").expect("sent");
    assert!(listening.recv(&mut [0; 8]).is_err(), "nothing arrives");
}
