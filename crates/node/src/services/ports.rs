//! At which ports programs of this machine listen.

use std::net::Ipv4Addr;

use super::balance::Place;
use crate::nft::{Protocol, Target};

/// A listening socket's state, and an open datagram socket's, as the kernel numbers them.
const LISTENS: &str = "0A";
const OPEN: &str = "07";

/// Where something listens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken(Vec<Place>);

/// Looks, in this thread's network namespace.
pub fn taken() -> Taken {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
    let mut found = Vec::new();
    for (file, protocol, state) in [
        ("tcp", Protocol::Tcp, LISTENS),
        ("tcp6", Protocol::Tcp, LISTENS),
        ("udp", Protocol::Udp, OPEN),
        ("udp6", Protocol::Udp, OPEN),
    ] {
        found.extend(listening(&read(file), protocol, state));
    }
    Taken(found)
}

impl Taken {
    /// Whether somebody listens at that place, or at one that takes it too. At every address of the machine, a program
    /// that listens at a single one is not counted: see [`Taken::singles`].
    pub fn is_taken(&self, place: Place) -> bool {
        self.0.iter().any(|other| {
            let same = other.protocol == place.protocol && other.port == place.port;
            same && (other.address.is_none() || other.address == place.address)
        })
    }
}

impl Taken {
    /// The single addresses at which somebody listens at the port of a place that means every address: they stay theirs.
    pub fn singles(&self, place: Place) -> impl Iterator<Item = Target> {
        let same = move |other: &&Place| {
            place.address.is_none() && other.protocol == place.protocol && other.port == place.port
        };
        self.0
            .iter()
            .filter(same)
            .filter_map(|other| Some(Target { address: other.address?, protocol: other.protocol, port: other.port }))
    }
}

/// Sockets of one of the kernel's lists; IPv6 sockets that take IPv4 clients count as such for every address.
fn listening(text: &str, protocol: Protocol, state: &str) -> Vec<Place> {
    let line = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (local, remote, in_state) = (words.next()?, words.next()?, words.next()?);
        // A datagram socket that is connected is a client.
        if in_state != state || !remote.ends_with(":0000") {
            return None;
        }
        let (address, port) = local.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let address = match address.len() {
            8 => Some(Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?.to_ne_bytes())),
            _ if address.bytes().all(|digit| digit == b'0') => Some(Ipv4Addr::UNSPECIFIED),
            _ => None,
        }?;
        Some(Place { address: Some(address).filter(|address| !address.is_unspecified()), protocol, port })
    };
    text.lines().skip(1).filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_that_wait_for_clients_take_their_port() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue\n\
               0: 00000000:0016 00000000:0000 0A 00000000:00000000\n\
               1: 0100007F:192B 00000000:0000 0A 00000000:00000000\n\
               2: 0100007F:D431 0100007F:192B 01 00000000:00000000\n";
        let taken = Taken(listening(text, Protocol::Tcp, LISTENS));
        let at = |address: Option<[u8; 4]>, port| Place {
            address: address.map(Ipv4Addr::from),
            protocol: Protocol::Tcp,
            port,
        };
        assert!(taken.is_taken(at(None, 22)) && taken.is_taken(at(Some([192, 0, 2, 2]), 22)));
        assert!(taken.is_taken(at(Some([127, 0, 0, 1]), 6443)));
        assert!(!taken.is_taken(at(Some([192, 0, 2, 2]), 6443)) && !taken.is_taken(at(None, 6443)));
        assert!(!taken.is_taken(at(Some([127, 0, 0, 1]), 54321)));
        let singles = |place| taken.singles(place).map(|target| target.address).collect::<Vec<_>>();
        assert_eq!(singles(at(None, 6443)), [Ipv4Addr::LOCALHOST]);
        assert!(singles(at(None, 22)).is_empty() && singles(at(Some([192, 0, 2, 2]), 6443)).is_empty());
        let six = "head\n 0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A x\n\
             1: 00000000000000000000000001000000:0051 00000000000000000000000000000000:0000 0A x\n";
        let taken = Taken(listening(six, Protocol::Tcp, LISTENS));
        assert!(taken.is_taken(at(None, 80)) && !taken.is_taken(at(None, 81)));
    }
}
