//! Rules for network policies.

use std::net::IpAddr;

use serde_json::Value;

use super::cursor::{At, Errors};
use super::metadata;
use crate::names;
use crate::status::FieldError;

/// Most types that a policy can have.
const TYPES_MAX: usize = 2;

/// A new or changed network policy.
pub(super) fn network_policy(policy: &At<'_>, out: &mut Errors) {
    let spec = policy.field("spec");
    metadata::selector(&spec.field("podSelector"), out);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.field(direction).items() {
            rule.field("ports").items().for_each(|p| port(&p, out));
            rule.field(peers).items().for_each(|p| peer(&p, out));
        }
    }
    let types = spec.field("policyTypes");
    if types.len() > TYPES_MAX {
        out.push(types.invalid("may not specify more than two policyTypes"));
        return;
    }
    types.items().for_each(|kind| kind.one_of_if_set(&["Egress", "Ingress"], out));
}

/// A port, or a range of ports.
fn port(port: &At<'_>, out: &mut Errors) {
    port.field("protocol").one_of_if_set(&["TCP", "UDP", "SCTP"], out);
    let (number, end) = (port.field("port"), port.field("endPort"));
    let numbers = |at: &At<'_>, out: &mut Errors| {
        let wrong = names::port_number(at.number()).into_iter();
        out.extend(wrong.map(|sentence| at.invalid(sentence)));
    };
    match number.value {
        Value::Null if end.is_set() => out.push(end.invalid("may not be specified when `port` is not specified")),
        Value::Null => {}
        Value::String(_) => {
            if end.is_set() {
                out.push(end.invalid("may not be specified when `port` is non-numeric"));
            }
            number.check(names::port_name, out);
        }
        _ => {
            numbers(&number, out);
            if end.is_set() {
                if end.number() < number.number() {
                    let detail = "must be greater than or equal to `port`";
                    out.push(FieldError::invalid(&end.path, number.number(), detail));
                }
                numbers(&end, out);
            }
        }
    }
}

/// Somebody that is talked to: pods, namespaces, or addresses.
fn peer(peer: &At<'_>, out: &mut Errors) {
    let mut given = 0;
    for selector in ["podSelector", "namespaceSelector"] {
        let selector = peer.field(selector);
        if selector.is_set() {
            given += 1;
            metadata::selector(&selector, out);
        }
    }
    let block = peer.field("ipBlock");
    if block.is_set() {
        given += 1;
        addresses(&block, out);
    }
    match given {
        0 => out.push(peer.required("must specify a peer")),
        1 => {}
        _ if block.is_set() => out.push(peer.forbidden("may not specify both ipBlock and another peer")),
        _ => {}
    }
}

/// A range of addresses with exceptions inside it.
fn addresses(block: &At<'_>, out: &mut Errors) {
    let range = block.field("cidr");
    if range.text().is_empty() {
        out.push(range.required(""));
        return;
    }
    let Some((network, length)) = cidr(&range, out) else { return };
    for except in block.field("except").items() {
        let Some((inner, inner_length)) = cidr(&except, out) else { return };
        if !contains(network, length, inner) || length >= inner_length {
            out.push(except.invalid("must be a strict subset of `cidr`"));
        }
    }
}

/// An address and the length of its prefix.
fn cidr(at: &At<'_>, out: &mut Errors) -> Option<(IpAddr, u8)> {
    let parsed = at.text().split_once('/').and_then(|(address, length)| {
        let address: IpAddr = address.parse().ok()?;
        let length: u8 = length.parse().ok()?;
        (length <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, length))
    });
    if parsed.is_none() {
        out.push(at.invalid("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"));
    }
    parsed
}

/// Whether an address lies in a network.
fn contains(network: IpAddr, length: u8, address: IpAddr) -> bool {
    let (network, address, bits) = match (network, address) {
        (IpAddr::V4(n), IpAddr::V4(a)) => (u128::from(u32::from(n)), u128::from(u32::from(a)), 32),
        (IpAddr::V6(n), IpAddr::V6(a)) => (u128::from(n), u128::from(a), 128),
        _ => return false,
    };
    let shift = bits - u32::from(length);
    network.checked_shr(shift).unwrap_or(0) == address.checked_shr(shift).unwrap_or(0)
}
