//! The kernel's packet filter, nf_tables: tables of ours as plain values, their text, and the way into the kernel.
//!
//! ```text
//!   Table (a value) ──▶ text      what a person, and a test, reads
//!         │
//!         └──▶ encode ──▶ apply ──▶ one netlink transaction: all of it or nothing
//! ```
//!
//! Only what this project needs is here: IPv4, one table per node, maps from a packet's target to a chain. No
//! program and no C library is involved. Message layouts: `linux/netfilter/nf_tables.h`, `nfnetlink.h`,
//! `nfnetlink_conntrack.h`.

mod apply;
mod encode;
mod flows;
mod foreign;
mod socket;
mod text;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::config::Cidr;

pub use apply::{apply, is_there, remove};
pub use flows::{Flow, delete_flow, udp_flows};
pub use foreign::{BaseChain, append_accept, base_chains, remove_mentions};
pub use socket::{Error, Socket};

/// A table of family `ip`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
    /// Sets and maps by name.
    pub sets: BTreeMap<String, Set>,
}

/// A chain of rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Where packets enter it by themselves; none for a chain that others lead to.
    pub base: Option<Base>,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}

/// Steps that a packet goes through until one does not hold.
pub type Rule = Vec<Step>;

/// Where a base chain hooks in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// What it may do.
    pub kind: Kind,
    /// Where.
    pub hook: Hook,
    /// In which order among others there; lower comes first.
    pub priority: i32,
    /// Whether what no rule decides is dropped instead of accepted. Never so in tables of ours, only in those that tests
    /// play others with.
    pub drops: bool,
}

/// What a base chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Let pass or not.
    Filter,
    /// Change addresses of new connections.
    Nat,
}

/// A place on a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// It has come in.
    Prerouting,
    /// It is for this machine.
    Input,
    /// It is to be passed on.
    Forward,
    /// It was made on this machine.
    Output,
    /// It is about to leave.
    Postrouting,
}

/// A transport protocol that services are balanced for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Where a packet is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The address.
    pub address: Ipv4Addr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// A set or a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Set {
    /// Chains by target.
    Targets(BTreeMap<Target, String>),
    /// Chains by protocol and port.
    Ports(BTreeMap<(Protocol, u16), String>),
    /// Targets.
    TargetSet(BTreeSet<Target>),
    /// Addresses.
    Addresses(BTreeSet<Ipv4Addr>),
    /// Addresses that may speak to themselves: pairs of source and target that are the same.
    Selves(BTreeSet<Ipv4Addr>),
    /// Sources that packets add themselves to, each for so many seconds. Survives changes of the table.
    Remembered {
        /// How long.
        seconds: u32,
    },
}

/// The name of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interface {
    /// This one.
    Is(String),
    /// One that begins so.
    Begins(&'static str),
}

/// One step of a rule: a condition, or what is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It came in by it.
    In(Interface),
    /// It did not come in by it.
    NotIn(Interface),
    /// It leaves by it.
    Out(Interface),
    /// It leaves by another.
    NotOut(Interface),
    /// It comes from there.
    From(Cidr),
    /// It goes there.
    To(Cidr),
    /// It goes to an address that this machine has.
    ToMachine,
    /// It comes from an address that this machine has.
    FromMachine,
    /// It is of that protocol.
    Is(Protocol),
    /// It begins a connection.
    New,
    /// Its connection's target was changed.
    Translated,
    /// Its connection's target was not changed.
    NotTranslated,
    /// Its source is in that set of sources or addresses.
    FromOneOf(String),
    /// Its target address is in that set.
    ToOneOf(String),
    /// Its target is in that set of targets.
    TargetIn(String),
    /// Source and target address are the same one, of that set.
    ToItself(String),
    /// One in so many, by chance.
    OneIn(u32),
    /// Puts the source into a set.
    Remember(String),
    /// Goes on in the chain that the map has for the target.
    ByTarget(String),
    /// Goes on in the chain that the map has for protocol and port.
    ByPort(String),
    /// Goes on in that chain, and not back.
    Goto(String),
    /// Goes on in that chain, and comes back.
    Jump(String),
    /// Back to where it came from.
    Return,
    /// Lets it pass this table.
    Accept,
    /// Lets it vanish.
    Drop,
    /// Answers that nobody is there.
    Reject,
    /// The same for TCP, in its own words: a program of this machine that is about to connect does not hear the other
    /// ones before its second try.
    Reset,
    /// Changes its target.
    Dnat(SocketAddrV4),
    /// Changes its source to an address of the interface that it leaves by.
    Masquerade,
}

impl Table {
    /// The chain of that name, made where it is missing.
    pub fn chain(&mut self, name: &str) -> &mut Chain {
        self.chains.entry(name.to_owned()).or_default()
    }

    /// Adds a base chain.
    pub fn base(&mut self, name: &str, kind: Kind, hook: Hook, priority: i32) -> &mut Chain {
        let chain = self.chain(name);
        chain.base = Some(Base { kind, hook, priority, drops: false });
        chain
    }
}

impl Chain {
    /// Adds a rule at the end.
    pub fn rule(&mut self, steps: impl IntoIterator<Item = Step>) -> &mut Self {
        self.rules.push(steps.into_iter().collect());
        self
    }
}

impl Protocol {
    /// Its number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Its name as manifests write it; `None` for what is not balanced.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            _ => None,
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}
