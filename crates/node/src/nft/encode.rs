//! Rules and sets as the kernel wants them. No I/O.
//!
//! A rule is a list of small instructions on registers. Conditions load something into a register and compare it;
//! a condition that does not hold ends the rule. A key of several parts lies in neighbouring registers of 4 bytes.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::wire::{IPV4, Messages};
use super::{Interface, Protocol, Set, Step, Target};
use crate::config::Cidr;

/// The verdict's own register.
const VERDICT: u32 = 0;
/// The first register of 16 bytes, and the second.
const FIRST: u32 = 1;
const SECOND: u32 = 2;
/// The first register of 4 bytes: the beginning of [`FIRST`].
const PART: u32 = 8;
/// Longest name of an interface, with its zero.
const NAME_BYTES: usize = 16;

/// Where bytes of a packet are counted from.
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
/// Places in an IPv4 header, and of the target port in a transport header.
const SOURCE: (u32, u32, u32) = (NETWORK, 12, 4);
const DESTINATION: (u32, u32, u32) = (NETWORK, 16, 4);
const PORT: (u32, u32, u32) = (TRANSPORT, 2, 2);

/// What `meta` tells.
const IN_NAME: u32 = 6;
const OUT_NAME: u32 = 7;
const L4_PROTOCOL: u32 = 16;
/// What `ct` tells, and bits of it.
const STATE: u32 = 0;
const STATUS: u32 = 2;
const STATE_NEW: u32 = 8;
const STATUS_DNAT: u32 = 0x20;
/// What `fib` tells, of which address, and the kind of an address that the machine has.
const ADDRESS_TYPE: u32 = 3;
const OF_SOURCE: u32 = 1;
const OF_DESTINATION: u32 = 2;
const LOCAL: u32 = 2;

const EQUAL: u32 = 0;
const UNEQUAL: u32 = 1;

const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const JUMP: u32 = (-3i32).cast_unsigned();
const GOTO: u32 = (-4i32).cast_unsigned();
const RETURN: u32 = (-5i32).cast_unsigned();

/// An element of a list, and an instruction's name and content.
const ELEMENT: u16 = 1;
const NAME: u16 = 1;
const CONTENT: u16 = 2;

/// Writes the instructions of a rule into the attribute that is open.
pub(super) fn rule(out: &mut Messages, steps: &[Step]) {
    for step in steps {
        encode(out, step);
    }
}

fn encode(out: &mut Messages, step: &Step) {
    match step {
        Step::In(interface) => name(out, IN_NAME, EQUAL, interface),
        Step::NotIn(interface) => name(out, IN_NAME, UNEQUAL, interface),
        Step::Out(interface) => name(out, OUT_NAME, EQUAL, interface),
        Step::NotOut(interface) => name(out, OUT_NAME, UNEQUAL, interface),
        Step::From(range) => within(out, SOURCE, *range),
        Step::To(range) => within(out, DESTINATION, *range),
        Step::ToMachine => machine(out, OF_DESTINATION),
        Step::FromMachine => machine(out, OF_SOURCE),
        Step::Is(protocol) => {
            load_protocol(out, FIRST);
            compare(out, EQUAL, &[protocol.number()]);
        }
        Step::New => connection(out, STATE, STATE_NEW, UNEQUAL),
        Step::Translated => connection(out, STATUS, STATUS_DNAT, UNEQUAL),
        Step::NotTranslated => connection(out, STATUS, STATUS_DNAT, EQUAL),
        Step::FromOneOf(set) => {
            load(out, SOURCE, FIRST);
            lookup(out, set, false);
        }
        Step::ToOneOf(set) => {
            load(out, DESTINATION, FIRST);
            lookup(out, set, false);
        }
        Step::TargetIn(set) => {
            load_target(out);
            lookup(out, set, false);
        }
        Step::ToItself(set) => {
            load(out, SOURCE, PART);
            load(out, DESTINATION, PART + 1);
            lookup(out, set, false);
        }
        Step::OneIn(count) => {
            instruction(out, "numgen", |m| {
                m.number(1, FIRST);
                m.number(2, *count);
                m.number(3, 1);
            });
            compare(out, EQUAL, &0u32.to_ne_bytes());
        }
        Step::Remember(set) => {
            load(out, SOURCE, FIRST);
            instruction(out, "dynset", |m| {
                m.text(1, set);
                m.number(3, 1);
                m.number(4, FIRST);
            });
        }
        Step::ByTarget(map) => {
            load_target(out);
            lookup(out, map, true);
        }
        Step::ByPort(map) => {
            load_protocol(out, PART);
            load(out, PORT, PART + 1);
            lookup(out, map, true);
        }
        Step::Goto(chain) => verdict(out, GOTO, Some(chain)),
        Step::Jump(chain) => verdict(out, JUMP, Some(chain)),
        Step::Return => verdict(out, RETURN, None),
        Step::Accept => verdict(out, ACCEPT, None),
        Step::Drop => verdict(out, DROP, None),
        Step::Reject => instruction(out, "reject", |m| {
            m.number(1, 0);
            m.bytes(2, &[3]);
        }),
        Step::Reset => instruction(out, "reject", |m| {
            m.number(1, 1);
            m.bytes(2, &[0]);
        }),
        Step::Dnat(to) => dnat(out, *to),
        Step::Masquerade => instruction(out, "masq", |_| {}),
    }
}

fn instruction(out: &mut Messages, name: &str, content: impl FnOnce(&mut Messages)) {
    out.nest(ELEMENT, |m| {
        m.text(NAME, name);
        m.nest(CONTENT, content);
    });
}

fn load(out: &mut Messages, (base, offset, length): (u32, u32, u32), register: u32) {
    instruction(out, "payload", |m| {
        m.number(1, register);
        m.number(2, base);
        m.number(3, offset);
        m.number(4, length);
    });
}

fn load_protocol(out: &mut Messages, register: u32) {
    instruction(out, "meta", |m| {
        m.number(1, register);
        m.number(2, L4_PROTOCOL);
    });
}

/// The three parts of a [`Target`].
fn load_target(out: &mut Messages) {
    load(out, DESTINATION, PART);
    load_protocol(out, PART + 1);
    load(out, PORT, PART + 2);
}

fn compare(out: &mut Messages, how: u32, value: &[u8]) {
    instruction(out, "cmp", |m| {
        m.number(1, FIRST);
        m.number(2, how);
        m.nest(3, |m| m.bytes(1, value));
    });
}

fn mask(out: &mut Messages, mask: [u8; 4]) {
    instruction(out, "bitwise", |m| {
        m.number(1, FIRST);
        m.number(2, FIRST);
        m.number(3, 4);
        m.nest(4, |m| m.bytes(1, &mask));
        m.nest(5, |m| m.bytes(1, &[0; 4]));
    });
}

fn name(out: &mut Messages, which: u32, how: u32, interface: &Interface) {
    instruction(out, "meta", |m| {
        m.number(1, FIRST);
        m.number(2, which);
    });
    // A whole name is compared with all the zeros after it, the beginning of one without any.
    match interface {
        Interface::Begins(begin) => compare(out, how, begin.as_bytes()),
        Interface::Is(name) => {
            let mut bytes = [0; NAME_BYTES];
            let length = name.len().min(NAME_BYTES - 1);
            bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
            compare(out, how, &bytes);
        }
    }
}

fn within(out: &mut Messages, place: (u32, u32, u32), range: Cidr) {
    load(out, place, FIRST);
    let bits = u32::MAX.checked_shl(32 - u32::from(range.prefix.min(32))).unwrap_or(0);
    mask(out, bits.to_be_bytes());
    compare(out, EQUAL, &(u32::from(range.base) & bits).to_be_bytes());
}

fn machine(out: &mut Messages, whose: u32) {
    instruction(out, "fib", |m| {
        m.number(1, FIRST);
        m.number(2, ADDRESS_TYPE);
        m.number(3, whose);
    });
    compare(out, EQUAL, &LOCAL.to_ne_bytes());
}

/// `how` compares the one bit with zero.
fn connection(out: &mut Messages, key: u32, bit: u32, how: u32) {
    instruction(out, "ct", |m| {
        m.number(1, FIRST);
        m.number(2, key);
    });
    mask(out, bit.to_ne_bytes());
    compare(out, how, &[0; 4]);
}

fn lookup(out: &mut Messages, set: &str, is_map: bool) {
    instruction(out, "lookup", |m| {
        m.text(1, set);
        m.number(2, FIRST);
        if is_map {
            m.number(3, VERDICT);
        }
    });
}

fn verdict(out: &mut Messages, code: u32, chain: Option<&str>) {
    instruction(out, "immediate", |m| {
        m.number(1, VERDICT);
        m.nest(2, |m| verdict_data(m, code, chain));
    });
}

fn verdict_data(out: &mut Messages, code: u32, chain: Option<&str>) {
    out.nest(2, |m| {
        m.number(1, code);
        if let Some(chain) = chain {
            m.text(2, chain);
        }
    });
}

fn dnat(out: &mut Messages, to: SocketAddrV4) {
    let mut immediate = |register, value: &[u8]| {
        instruction(out, "immediate", |m| {
            m.number(1, register);
            m.nest(2, |m| m.bytes(1, value));
        });
    };
    immediate(FIRST, &to.ip().octets());
    immediate(SECOND, &to.port().to_be_bytes());
    instruction(out, "nat", |m| {
        m.number(1, 1);
        m.number(2, u32::from(IPV4));
        m.number(3, FIRST);
        m.number(5, SECOND);
    });
}

/// A rule as iptables writes it, so that it can show it: packets of that interface pass.
pub(super) fn iptables_accept(out: &mut Messages, coming: bool, interface: &str, to: Option<Ipv4Addr>) {
    instruction(out, "meta", |m| {
        m.number(1, FIRST);
        m.number(2, if coming { IN_NAME } else { OUT_NAME });
    });
    let mut bytes = interface.as_bytes().to_vec();
    bytes.push(0);
    compare(out, EQUAL, &bytes);
    if let Some(to) = to {
        load(out, DESTINATION, FIRST);
        compare(out, EQUAL, &to.octets());
    }
    instruction(out, "counter", |m| {
        m.bytes(1, &[0; 8]);
        m.bytes(2, &[0; 8]);
    });
    verdict(out, ACCEPT, None);
}

/// How the kernel is told the kind of a set: flags, number and length of its key, whether it holds verdicts.
pub(super) struct Shape {
    pub(super) flags: u32,
    /// As the `nft` program numbers kinds, so that it shows keys well.
    pub(super) key_kind: u32,
    pub(super) key_bytes: u32,
    pub(super) verdicts: bool,
    /// The time-out of its elements, milliseconds.
    pub(super) timeout_ms: Option<u64>,
}

/// Numbers of the `nft` program: an address, a protocol, a port; six bits each in a key of several.
const KIND_ADDRESS: u32 = 7;
const KIND_PROTOCOL: u32 = 12;
const KIND_PORT: u32 = 13;
const KIND_BITS: u32 = 6;
/// Flags of a set.
const IS_MAP: u32 = 8;
const HAS_TIMEOUT: u32 = 0x10;
const IS_DYNAMIC: u32 = 0x20;

/// The shape of a set.
pub(super) fn shape(set: &Set) -> Shape {
    let kinds: &[u32] = match set {
        Set::Targets(_) | Set::TargetSet(_) => &[KIND_ADDRESS, KIND_PROTOCOL, KIND_PORT],
        Set::Ports(_) => &[KIND_PROTOCOL, KIND_PORT],
        Set::Selves(_) => &[KIND_ADDRESS, KIND_ADDRESS],
        Set::Addresses(_) | Set::Remembered { .. } => &[KIND_ADDRESS],
    };
    let verdicts = matches!(set, Set::Targets(_) | Set::Ports(_));
    let timeout_ms = match set {
        Set::Remembered { seconds } => Some(u64::from(*seconds) * 1000),
        _ => None,
    };
    let map = if verdicts { IS_MAP } else { 0 };
    let dynamic = if timeout_ms.is_some() { HAS_TIMEOUT | IS_DYNAMIC } else { 0 };
    Shape {
        flags: map | dynamic,
        key_kind: kinds.iter().fold(0, |all, kind| (all << KIND_BITS) | kind),
        key_bytes: 4 * u32::try_from(kinds.len()).expect("three parts at most"),
        verdicts,
        timeout_ms,
    }
}

/// The elements of a set: key, and the chain that it leads to.
pub(super) fn elements(set: &Set) -> Vec<(Vec<u8>, Option<&str>)> {
    match set {
        Set::Targets(map) => map.iter().map(|(target, chain)| (target_key(target), Some(chain.as_str()))).collect(),
        Set::Ports(map) => map.iter().map(|((p, port), chain)| (port_key(*p, *port), Some(chain.as_str()))).collect(),
        Set::TargetSet(set) => set.iter().map(|target| (target_key(target), None)).collect(),
        Set::Addresses(set) => set.iter().map(|address| (address.octets().to_vec(), None)).collect(),
        Set::Selves(set) => set.iter().map(|address| ([address.octets(); 2].concat(), None)).collect(),
        Set::Remembered { .. } => Vec::new(),
    }
}

/// One element, into the list that is open.
pub(super) fn element(out: &mut Messages, key: &[u8], chain: Option<&str>) {
    out.nest(ELEMENT, |m| {
        m.nest(1, |m| m.bytes(1, key));
        if let Some(chain) = chain {
            m.nest(2, |m| verdict_data(m, GOTO, Some(chain)));
        }
    });
}

fn target_key(target: &Target) -> Vec<u8> {
    let mut key = target.address.octets().to_vec();
    key.extend(port_key(target.protocol, target.port));
    key
}

/// Every part of a key fills 4 bytes.
fn port_key(protocol: Protocol, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    vec![protocol.number(), 0, 0, 0, high, low, 0, 0]
}
