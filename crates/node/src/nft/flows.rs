//! The kernel's memory of UDP exchanges: which of them there are, and how one is forgotten.
//!
//! UDP has no connections, so a client that goes on sending keeps its old endpoint for as long as the kernel remembers
//! the exchange, alive or not. TCP connections end by themselves and are left alone.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::Protocol;
use super::socket::{Error, Socket};
use super::wire::{Attributes, IPV4, Messages, REQUEST};

const TRACKING: u16 = 1;
const LIST_FLOWS: u16 = (TRACKING << 8) | 1;
const DELETE_FLOW: u16 = (TRACKING << 8) | 2;

/// An exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// Who began it.
    pub from: SocketAddrV4,
    /// Whom they asked.
    pub to: SocketAddrV4,
    /// Who answers.
    pub answered_by: SocketAddrV4,
}

/// The UDP exchanges that the kernel remembers. Blocks.
pub fn udp_flows(socket: &Socket) -> Result<Vec<Flow>, Error> {
    let mut flows = Vec::new();
    socket.list("list exchanges", LIST_FLOWS, IPV4, |found| flows.extend(flow(found)))?;
    flows.sort_unstable();
    flows.dedup();
    Ok(flows)
}

/// Forgets an exchange, if it is remembered. Blocks.
pub fn delete_flow(socket: &Socket, flow: &Flow) -> Result<(), Error> {
    let deleted = socket.ask("forget an exchange", |out| {
        out.begin(DELETE_FLOW, REQUEST, IPV4, 0);
        out.nest(1, |m| write(m, flow.from, flow.to));
    });
    match deleted {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    }
}

fn write(out: &mut Messages, from: SocketAddrV4, to: SocketAddrV4) {
    out.nest(1, |m| {
        m.bytes(1, &from.ip().octets());
        m.bytes(2, &to.ip().octets());
    });
    out.nest(2, |m| {
        m.bytes(1, &[Protocol::Udp.number()]);
        m.bytes(2, &from.port().to_be_bytes());
        m.bytes(3, &to.port().to_be_bytes());
    });
}

fn flow(found: Attributes<'_>) -> Option<Flow> {
    let (from, to) = ends(found.nested(1)?)?;
    let (answered_by, _) = ends(found.nested(2)?)?;
    Some(Flow { from, to, answered_by })
}

/// Source and target; `None` for what is not UDP.
fn ends(tuple: Attributes<'_>) -> Option<(SocketAddrV4, SocketAddrV4)> {
    let (addresses, transport) = (tuple.nested(1)?, tuple.nested(2)?);
    if transport.get(1) != Some(&[Protocol::Udp.number()]) {
        return None;
    }
    let address = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(addresses.get(kind)?).ok()?));
    let port = |kind| Some(u16::from_be_bytes(transport.get(kind)?.try_into().ok()?));
    Some((SocketAddrV4::new(address(1)?, port(2)?), SocketAddrV4::new(address(2)?, port(3)?)))
}
