//! From frontends to a table of the packet filter. No I/O.
//!
//! ```text
//!  from a pod ──▶ prerouting ──▶ inside ──┐  targets, ports: maps to one chain per service port,
//!  made here ───▶ output ──────▶ inside ──┼─▶ which picks an endpoint and changes the target
//!  from elsewhere ▶ prerouting ─▶ outside ┘
//!  input, forward, output ──▶ unanswered: what nobody takes is refused
//!  postrouting: a pod that speaks with itself, the loopback, and what leaves the machine get another source
//! ```
//!
//! The kernel keeps what was chosen for each connection, so a change of rules leaves connections alone. Several nodes and
//! several instances may be on one machine: each has a table of its own, and takes pods' traffic from its own bridge only.
//! Where two of them answer at the same place for the machine itself, the one that was there first does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use super::balance::{Choice, Frontend, Otherwise, Place};
use crate::config::{BRIDGE_PREFIX, Cidr};
use crate::nft::{Chain, Hook, Interface, Kind, Protocol, Set, Step, Table, Target};

/// What a node's rules depend on besides its frontends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Tells it from others on the machine.
    pub tag: String,
    /// Its bridge.
    pub bridge: String,
    /// Addresses of its pods.
    pub pod_cidr: Cidr,
    /// Whether pods and services may be reached from other machines at their own addresses.
    pub expose_lan: bool,
    /// What listens on this machine for its pods: the name server, the API. Nothing else may take it.
    pub own: BTreeSet<Target>,
}

/// Orders among what others hook in, as iptables and `nft` number them.
const RAW: i32 = -300;
const TARGETS: i32 = -100;
const FILTER: i32 = 0;
const SOURCES: i32 = 100;

const INSIDE: &str = "inside";
const OUTSIDE: &str = "outside";
const INSIDE_TARGETS: &str = "inside-targets";
const INSIDE_PORTS: &str = "inside-ports";
const OUTSIDE_TARGETS: &str = "outside-targets";
const OUTSIDE_PORTS: &str = "outside-ports";
const CLUSTER_TARGETS: &str = "cluster-targets";
const UNANSWERED: &str = "unanswered";
const UNANSWERED_TARGETS: &str = "unanswered-targets";
const UNANSWERED_PORTS: &str = "unanswered-ports";
const SERVICE_ADDRESSES: &str = "service-addresses";
const SELVES: &str = "selves";
const BEYOND: &str = "beyond";
const OWN: &str = "own";
const REFUSED: &str = "refused";
const DROPPED: &str = "dropped";

/// The name of a node's table.
pub fn table_name(tag: &str) -> String {
    format!("statefuld-{tag}")
}

/// The table of a node with these frontends.
pub fn table(node: &Node, frontends: &BTreeMap<Place, Frontend>) -> Table {
    let mut build = Build { table: Table { name: table_name(&node.tag), ..Table::default() }, ..Build::default() };
    build.hooks(node);
    for (place, frontend) in frontends {
        build.frontend(*place, frontend);
    }
    build.finish(node, frontends)
}

/// A table in the making.
#[derive(Default)]
struct Build {
    table: Table,
    inside: Maps,
    outside: Maps,
    /// Services' own addresses, for those outside that may use them.
    cluster: BTreeMap<Target, String>,
    unanswered: Maps,
    /// Chains that pick an endpoint: their names, by owner and what they pick from.
    picks: BTreeMap<(String, Vec<SocketAddrV4>), String>,
}

/// Chains by place.
#[derive(Default)]
struct Maps {
    targets: BTreeMap<Target, String>,
    ports: BTreeMap<(Protocol, u16), String>,
}

impl Maps {
    fn put(&mut self, place: Place, chain: &str) {
        match place.address {
            Some(address) => {
                let target = Target { address, protocol: place.protocol, port: place.port };
                self.targets.insert(target, chain.to_owned());
            }
            None => _ = self.ports.insert((place.protocol, place.port), chain.to_owned()),
        }
    }
}

impl Build {
    /// Where packets come in, whatever the services are.
    fn hooks(&mut self, node: &Node) {
        let bridge = || Interface::Is(node.bridge.clone());
        let any_bridge = || Interface::Begins(BRIDGE_PREFIX);
        let loopback = Cidr { base: Ipv4Addr::new(127, 0, 0, 0), prefix: 8 };
        let table = &mut self.table;
        // The bridge routes the loopback's addresses, for what is sent from there to pods; pods may not use that.
        table.base("spoofed", Kind::Filter, Hook::Prerouting, RAW).rule([
            Step::In(bridge()),
            Step::To(loopback),
            Step::Drop,
        ]);
        table
            .base("prerouting", Kind::Nat, Hook::Prerouting, TARGETS)
            .rule([Step::In(bridge()), Step::Goto(INSIDE.into())])
            .rule([Step::Goto(OUTSIDE.into())]);
        table.base("output", Kind::Nat, Hook::Output, TARGETS).rule([Step::Goto(INSIDE.into())]);
        table
            .chain(INSIDE)
            .rule([Step::TargetIn(OWN.into()), Step::Return])
            .rule([Step::ByTarget(INSIDE_TARGETS.into())])
            .rule([Step::ToMachine, Step::ByPort(INSIDE_PORTS.into())]);
        let outside = table
            .chain(OUTSIDE)
            .rule([Step::TargetIn(OWN.into()), Step::Return])
            .rule([Step::ByTarget(OUTSIDE_TARGETS.into())])
            .rule([Step::ToMachine, Step::ByPort(OUTSIDE_PORTS.into())]);
        if node.expose_lan {
            // Other nodes' pods have services of their own at these addresses.
            outside.rule([Step::NotIn(any_bridge()), Step::ByTarget(CLUSTER_TARGETS.into())]);
        }
        let judge = || [Step::New, Step::Jump(UNANSWERED.into())];
        // Other nodes on the machine judge what their pods ask for: they may have what this one has not.
        let of_others = || [Step::In(any_bridge()), Step::NotIn(bridge()), Step::Return];
        table.base("filter-output", Kind::Filter, Hook::Output, FILTER).rule(judge());
        table.base("filter-input", Kind::Filter, Hook::Input, FILTER).rule(of_others()).rule(judge());
        let forward = table.base("filter-forward", Kind::Filter, Hook::Forward, FILTER);
        if !node.expose_lan {
            // Who routes pods' addresses to this machine does not reach them by that alone.
            let unasked = [Step::Out(bridge()), Step::NotIn(any_bridge()), Step::New, Step::NotTranslated, Step::Drop];
            forward.rule(unasked);
        }
        forward.rule(of_others()).rule(judge());
        table
            .chain(UNANSWERED)
            .rule([Step::ByTarget(UNANSWERED_TARGETS.into())])
            .rule([Step::ToMachine, Step::ByPort(UNANSWERED_PORTS.into())])
            .rule([Step::ToOneOf(SERVICE_ADDRESSES.into()), Step::NotTranslated, Step::Goto(REFUSED.into())]);
        table.chain(REFUSED).rule([Step::Is(Protocol::Tcp), Step::Reset]).rule([Step::Reject]);
        table.chain(DROPPED).rule([Step::Drop]);
        table
            .base("postrouting", Kind::Nat, Hook::Postrouting, SOURCES)
            .rule([Step::Out(bridge()), Step::ToItself(SELVES.into()), Step::Masquerade])
            .rule([Step::Out(any_bridge()), Step::From(loopback), Step::Masquerade])
            .rule([Step::NotOut(any_bridge()), Step::From(node.pod_cidr), Step::Masquerade])
            .rule([Step::NotOut(any_bridge()), Step::Translated, Step::TargetIn(BEYOND.into()), Step::Masquerade]);
    }

    /// One place: where it leads for whom.
    fn frontend(&mut self, place: Place, frontend: &Frontend) {
        let inside = self.pick(place.protocol, frontend, &frontend.inside);
        if let Some(chain) = &inside {
            self.inside.put(place, chain);
        }
        if let (true, Some(address), Some(chain)) = (frontend.is_cluster_ip, place.address, &inside) {
            self.cluster.insert(Target { address, protocol: place.protocol, port: place.port }, chain.clone());
        }
        let mut nobody = inside.is_none().then_some(frontend.inside.otherwise);
        if let Some(choice) = &frontend.outside {
            match self.pick(place.protocol, frontend, choice) {
                Some(chain) => {
                    let chain = self.gate(place, frontend, chain);
                    self.outside.put(place, &chain);
                }
                None => nobody = Some(choice.otherwise),
            }
        }
        match nobody {
            Some(Otherwise::Reject) => self.unanswered.put(place, REFUSED),
            Some(Otherwise::Drop) => self.unanswered.put(place, DROPPED),
            None => {}
        }
    }

    /// A chain that picks an endpoint; none where there is nothing to pick.
    fn pick(&mut self, protocol: Protocol, frontend: &Frontend, choice: &Choice) -> Option<String> {
        if choice.endpoints.is_empty() {
            return None;
        }
        let owner = format!("{}.{protocol}", frontend.owner.replace(['/', ':'], "."));
        let known = (owner.clone(), choice.endpoints.clone());
        if let Some(name) = self.picks.get(&known) {
            return Some(name.clone());
        }
        let others = self.picks.keys().filter(|(name, _)| *name == owner).count();
        let name = if others == 0 { format!("to.{owner}") } else { format!("to.{owner}.{}", others + 1) };
        let mut chain = Chain::default();
        let remembered = |endpoint: &SocketAddrV4, seconds: u32| {
            format!("seen.{owner}.{}.{}.{seconds}", endpoint.ip(), endpoint.port())
        };
        if let Some(seconds) = frontend.affinity_s {
            for endpoint in &choice.endpoints {
                let set = remembered(endpoint, seconds);
                self.table.sets.insert(set.clone(), Set::Remembered { seconds });
                chain.rule([Step::FromOneOf(set.clone()), Step::Remember(set), Step::Dnat(*endpoint)]);
            }
        }
        for (endpoint, left) in choice.endpoints.iter().zip((1..=choice.endpoints.len()).rev()) {
            let chance = (left > 1).then(|| Step::OneIn(u32::try_from(left).unwrap_or(u32::MAX)));
            let remember = frontend.affinity_s.map(|seconds| Step::Remember(remembered(endpoint, seconds)));
            chain.rule(chance.into_iter().chain(remember).chain([Step::Dnat(*endpoint)]));
        }
        self.table.chains.insert(name.clone(), chain);
        self.picks.insert(known, name.clone());
        Some(name)
    }

    /// In front of a chain where not everybody may come in.
    fn gate(&mut self, place: Place, frontend: &Frontend, chain: String) -> String {
        if frontend.sources.is_empty() {
            return chain;
        }
        let address = place.address.map_or_else(|| "any".to_owned(), |address| address.to_string());
        let name = format!("gate.{address}.{}.{}", place.protocol, place.port);
        let gate = self.table.chain(&name);
        for range in &frontend.sources {
            gate.rule([Step::From(*range), Step::Goto(chain.clone())]);
        }
        gate.rule([Step::Drop]);
        name
    }

    fn finish(mut self, node: &Node, frontends: &BTreeMap<Place, Frontend>) -> Table {
        let endpoints = || frontends.iter().flat_map(|(place, frontend)| endpoints(place.protocol, frontend));
        let selves = endpoints().map(|target| target.address).filter(|address| node.pod_cidr.contains(*address));
        let beyond = endpoints().filter(|target| !node.pod_cidr.contains(target.address));
        let addresses = frontends.iter().filter(|(_, f)| f.is_cluster_ip).filter_map(|(place, _)| place.address);
        let sets = [
            (INSIDE_TARGETS, Set::Targets(self.inside.targets)),
            (INSIDE_PORTS, Set::Ports(self.inside.ports)),
            (OUTSIDE_TARGETS, Set::Targets(self.outside.targets)),
            (OUTSIDE_PORTS, Set::Ports(self.outside.ports)),
            (UNANSWERED_TARGETS, Set::Targets(self.unanswered.targets)),
            (UNANSWERED_PORTS, Set::Ports(self.unanswered.ports)),
            (SERVICE_ADDRESSES, Set::Addresses(addresses.collect())),
            (SELVES, Set::Selves(selves.collect())),
            (BEYOND, Set::TargetSet(beyond.collect())),
            (OWN, Set::TargetSet(node.own.clone())),
        ];
        self.table.sets.extend(sets.map(|(name, set)| (name.to_owned(), set)));
        if node.expose_lan {
            self.table.sets.insert(CLUSTER_TARGETS.to_owned(), Set::Targets(self.cluster));
        }
        self.table
    }
}

/// Every endpoint that a frontend may lead to.
fn endpoints(protocol: Protocol, frontend: &Frontend) -> impl Iterator<Item = Target> {
    let choices = [Some(&frontend.inside), frontend.outside.as_ref()];
    choices.into_iter().flatten().flat_map(|choice| &choice.endpoints).map(move |endpoint| Target {
        address: *endpoint.ip(),
        protocol,
        port: endpoint.port(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(expose_lan: bool) -> Node {
        let own = Target { address: Ipv4Addr::new(10, 201, 7, 1), protocol: Protocol::Udp, port: 53 };
        Node {
            tag: "0badcafe".into(),
            bridge: "sfd-0badcafe".into(),
            pod_cidr: "10.201.7.0/24".parse().expect("a range"),
            expose_lan,
            own: [own].into(),
        }
    }

    fn choice(endpoints: &[&str], otherwise: Otherwise) -> Choice {
        let endpoints = endpoints.iter().map(|e| e.parse().expect("an endpoint")).collect();
        Choice { endpoints, otherwise }
    }

    fn frontend(owner: &str, inside: &[&str], outside: Option<Choice>) -> Frontend {
        Frontend {
            owner: owner.into(),
            is_cluster_ip: outside.is_none(),
            inside: choice(inside, Otherwise::Reject),
            outside,
            sources: Vec::new(),
            affinity_s: None,
        }
    }

    fn place(address: Option<&str>, protocol: Protocol, port: u16) -> Place {
        Place { address: address.map(|a| a.parse().expect("an address")), protocol, port }
    }

    /// The lines of a table that say something of its services.
    fn shown(table: &Table, begins: &[&str]) -> String {
        let text = table.to_string();
        let mut lines = Vec::new();
        let mut inside = false;
        for line in text.lines() {
            let words = line.trim_start();
            inside = begins.iter().any(|b| words.starts_with(b)) || (inside && line.starts_with("    "));
            if inside {
                lines.push(words);
            }
        }
        lines.join("\n")
    }

    #[test]
    fn the_hooks_of_a_node() {
        let table = table(&node(false), &BTreeMap::new());
        let expected = r#"chain filter-forward {
type filter hook forward priority 0; policy accept;
oifname "sfd-0badcafe" iifname != "sfd-*" ct state new ct status ! dnat drop
iifname "sfd-*" iifname != "sfd-0badcafe" return
ct state new jump unanswered
chain filter-input {
type filter hook input priority 0; policy accept;
iifname "sfd-*" iifname != "sfd-0badcafe" return
ct state new jump unanswered
chain filter-output {
type filter hook output priority 0; policy accept;
ct state new jump unanswered
chain inside {
ip daddr . meta l4proto . th dport @own return
ip daddr . meta l4proto . th dport vmap @inside-targets
fib daddr type local meta l4proto . th dport vmap @inside-ports
chain output {
type nat hook output priority -100; policy accept;
goto inside
chain outside {
ip daddr . meta l4proto . th dport @own return
ip daddr . meta l4proto . th dport vmap @outside-targets
fib daddr type local meta l4proto . th dport vmap @outside-ports
chain postrouting {
type nat hook postrouting priority 100; policy accept;
oifname "sfd-0badcafe" ip saddr . ip daddr @selves masquerade
oifname "sfd-*" ip saddr 127.0.0.0/8 masquerade
oifname != "sfd-*" ip saddr 10.201.7.0/24 masquerade
oifname != "sfd-*" ct status dnat ip daddr . meta l4proto . th dport @beyond masquerade
chain prerouting {
type nat hook prerouting priority -100; policy accept;
iifname "sfd-0badcafe" goto inside
goto outside
chain refused {
meta l4proto tcp reject with tcp reset
reject
chain spoofed {
type filter hook prerouting priority -300; policy accept;
iifname "sfd-0badcafe" ip daddr 127.0.0.0/8 drop
chain unanswered {
ip daddr . meta l4proto . th dport vmap @unanswered-targets
fib daddr type local meta l4proto . th dport vmap @unanswered-ports
ip daddr @service-addresses ct status ! dnat goto refused"#;
        let chains = ["chain f", "chain i", "chain o", "chain p", "chain r", "chain s", "chain u"];
        assert_eq!(shown(&table, &chains), expected);
        let exposed = super::table(&node(true), &BTreeMap::new()).to_string();
        assert!(exposed.contains("iifname != \"sfd-*\" ip daddr . meta l4proto . th dport vmap @cluster-targets"));
        assert!(!exposed.contains("ct state new ct status ! dnat drop"));
    }

    #[test]
    fn a_service_with_everything() {
        let both = ["10.201.7.2:8080", "192.168.5.5:8080"];
        let mut known = BTreeMap::new();
        let mut at = |place, frontend| _ = known.insert(place, Frontend { affinity_s: Some(60), ..frontend });
        at(place(Some("10.96.0.9"), Protocol::Tcp, 80), frontend("n/web:80", &both, None));
        let local = || Some(choice(&["10.201.7.2:8080"], Otherwise::Drop));
        at(place(None, Protocol::Tcp, 30_080), frontend("n/web:80", &both, local()));
        let sources = vec!["198.51.100.0/24".parse().expect("a range")];
        let balancer = Frontend { sources, ..frontend("n/web:80", &both, local()) };
        at(place(Some("192.0.2.2"), Protocol::Tcp, 80), balancer);
        let table = table(&node(true), &known);
        let expected = "\
set beyond { 192.168.5.5 . tcp . 8080 }
map cluster-targets { 10.96.0.9 . tcp . 80 : goto to.n.web.80.tcp }
map inside-ports { tcp . 30080 : goto to.n.web.80.tcp }
map inside-targets { 10.96.0.9 . tcp . 80 : goto to.n.web.80.tcp, 192.0.2.2 . tcp . 80 : goto to.n.web.80.tcp }
map outside-ports { tcp . 30080 : goto to.n.web.80.tcp.2 }
map outside-targets { 192.0.2.2 . tcp . 80 : goto gate.192.0.2.2.tcp.80 }
set own { 10.201.7.1 . udp . 53 }
set seen.n.web.80.tcp.10.201.7.2.8080.60 { flags dynamic,timeout; timeout 60s; }
set seen.n.web.80.tcp.192.168.5.5.8080.60 { flags dynamic,timeout; timeout 60s; }
set selves { 10.201.7.2 . 10.201.7.2 }
set service-addresses { 10.96.0.9 }
map unanswered-ports {  }
map unanswered-targets {  }
chain gate.192.0.2.2.tcp.80 {
ip saddr 198.51.100.0/24 goto to.n.web.80.tcp.2
drop
chain to.n.web.80.tcp {
ip saddr @seen.n.web.80.tcp.10.201.7.2.8080.60 update @seen.n.web.80.tcp.10.201.7.2.8080.60 { ip saddr } dnat to 10.201.7.2:8080
ip saddr @seen.n.web.80.tcp.192.168.5.5.8080.60 update @seen.n.web.80.tcp.192.168.5.5.8080.60 { ip saddr } dnat to 192.168.5.5:8080
numgen random mod 2 0 update @seen.n.web.80.tcp.10.201.7.2.8080.60 { ip saddr } dnat to 10.201.7.2:8080
update @seen.n.web.80.tcp.192.168.5.5.8080.60 { ip saddr } dnat to 192.168.5.5:8080
chain to.n.web.80.tcp.2 {
ip saddr @seen.n.web.80.tcp.10.201.7.2.8080.60 update @seen.n.web.80.tcp.10.201.7.2.8080.60 { ip saddr } dnat to 10.201.7.2:8080
update @seen.n.web.80.tcp.10.201.7.2.8080.60 { ip saddr } dnat to 10.201.7.2:8080";
        assert_eq!(shown(&table, &["map", "set", "chain to", "chain gate"]), expected);
    }

    #[test]
    fn nobody_to_ask_is_said_in_the_filter_and_not_translated() {
        let mut known = BTreeMap::new();
        known.insert(place(Some("10.96.0.9"), Protocol::Udp, 53), frontend("n/dns:53", &[], None));
        let elsewhere = frontend("n/web:80", &["10.202.0.2:80"], Some(choice(&[], Otherwise::Drop)));
        known.insert(place(None, Protocol::Tcp, 30_080), elsewhere);
        let table = table(&node(false), &known);
        let sets = shown(&table, &["map unanswered", "map inside-t", "map outside-p"]);
        let expected = "map inside-targets {  }\nmap outside-ports {  }\nmap unanswered-ports { tcp . 30080 : goto dropped }\n\
             map unanswered-targets { 10.96.0.9 . udp . 53 : goto refused }";
        assert_eq!(sets, expected);
    }

    fn names(steps: &[Step]) -> (Vec<&str>, Vec<&str>) {
        let (mut chains, mut sets) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Goto(name) | Step::Jump(name) => chains.push(name.as_str()),
                Step::FromOneOf(name)
                | Step::ToOneOf(name)
                | Step::TargetIn(name)
                | Step::ToItself(name)
                | Step::Remember(name)
                | Step::ByTarget(name)
                | Step::ByPort(name) => sets.push(name.as_str()),
                _ => {}
            }
        }
        (chains, sets)
    }

    proptest! {
        #[test]
        fn anytime_all_that_is_named_is_there_and_every_place_is_decided_once(
            places in proptest::collection::btree_map(
                (proptest::option::of(0u8..4), any::<bool>(), 1u16..6), (0u8..3, 0usize..4, 0usize..4, any::<bool>()), 0..12),
            expose_lan: bool,
        ) {
            let known: BTreeMap<Place, Frontend> = places
                .into_iter()
                .map(|((address, tcp, port), (owner, inside, outside, affinity))| {
                    let all = ["10.201.7.2:1", "10.201.7.3:1", "192.168.5.5:1"];
                    let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
                    let place = Place { address: address.map(|a| Ipv4Addr::new(10, 96, 0, a)), protocol, port };
                    let outside = all.get(..outside).map(|list| choice(list, Otherwise::Drop));
                    let inside = &all[..inside.min(3)];
                    let affinity_s = affinity.then_some(9);
                    (place, Frontend { affinity_s, ..frontend(&format!("n/s{owner}:1"), inside, outside) })
                })
                .collect();
            let table = table(&node(expose_lan), &known);
            for chain in table.chains.values() {
                for rule in &chain.rules {
                    let (chains, sets) = names(rule);
                    prop_assert!(chains.iter().all(|name| table.chains.contains_key(*name)), "{:?}", rule);
                    prop_assert!(sets.iter().all(|name| table.sets.contains_key(*name)), "{:?}", rule);
                }
            }
            let mut decided: BTreeMap<&str, BTreeSet<Place>> = BTreeMap::new();
            for (name, set) in &table.sets {
                prop_assert!(name.len() < 128);
                let (places, chains): (Vec<Place>, Vec<&String>) = match set {
                    Set::Targets(map) => map.iter()
                        .map(|(t, c)| (Place { address: Some(t.address), protocol: t.protocol, port: t.port }, c))
                        .unzip(),
                    Set::Ports(map) => map.iter()
                        .map(|((protocol, port), c)| (Place { address: None, protocol: *protocol, port: *port }, c))
                        .unzip(),
                    _ => continue,
                };
                prop_assert!(chains.iter().all(|chain| table.chains.contains_key(*chain)));
                decided.entry(name.split('-').next().unwrap_or_default()).or_default().extend(places);
            }
            for (place, frontend) in &known {
                let has = |map: &str| decided.get(map).is_some_and(|places| places.contains(place));
                prop_assert_eq!(has("inside"), !frontend.inside.endpoints.is_empty());
                let open = frontend.outside.as_ref().is_some_and(|choice| !choice.endpoints.is_empty());
                prop_assert_eq!(has("outside"), open);
                let nobody = frontend.inside.endpoints.is_empty()
                    || frontend.outside.as_ref().is_some_and(|choice| choice.endpoints.is_empty());
                prop_assert_eq!(has("unanswered"), nobody);
            }
        }
    }
}
