//! Which UDP exchanges lead to endpoints that no longer answer for their place. No I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;

use super::balance::{Frontend, Place};
use crate::nft::{Flow, Protocol};

/// For each place of UDP, who may answer there.
pub type Answering = BTreeMap<(Option<std::net::Ipv4Addr>, u16), BTreeSet<SocketAddrV4>>;

/// Who may answer at the places of these frontends.
pub fn answering(frontends: &BTreeMap<Place, Frontend>) -> Answering {
    let udp = frontends.iter().filter(|(place, _)| place.protocol == Protocol::Udp);
    udp.map(|(place, frontend)| {
        let choices = [Some(&frontend.inside), frontend.outside.as_ref()];
        let endpoints = choices.into_iter().flatten().flat_map(|choice| choice.endpoints.iter().copied());
        ((place.address, place.port), endpoints.collect())
    })
    .collect()
}

/// The exchanges that have to be forgotten after a change: whoever goes on with them would be answered by the wrong
/// endpoint, or by none although there is one.
pub fn stale(flows: &[Flow], before: &Answering, now: &Answering) -> Vec<Flow> {
    let wrong = |flow: &&Flow| {
        let translated = flow.to != flow.answered_by;
        let exact = (Some(*flow.to.ip()), flow.to.port());
        let of_node = (None, flow.to.port());
        if let Some(answering) = now.get(&exact) {
            // One that began before there was an endpoint asks nobody.
            return !answering.contains(&flow.answered_by) && (translated || !answering.is_empty());
        }
        if let Some(answering) = now.get(&of_node) {
            // At a node's port, what was not translated may be somebody else's on another machine.
            return translated && !answering.contains(&flow.answered_by);
        }
        let had = |place| before.get(place).is_some_and(|answering| answering.contains(&flow.answered_by));
        translated && (had(&exact) || had(&of_node))
    };
    flows.iter().filter(wrong).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(to: &str, answered_by: &str) -> Flow {
        let at = |text: &str| text.parse().expect("an address");
        Flow { from: at("10.201.7.9:999"), to: at(to), answered_by: at(answered_by) }
    }

    fn answering(place: &str, endpoints: &[&str]) -> Answering {
        let (address, port) = place.split_once(':').expect("a place");
        let endpoints = endpoints.iter().map(|e| e.parse().expect("an endpoint")).collect();
        [((address.parse().ok(), port.parse().expect("a port")), endpoints)].into()
    }

    #[test]
    fn exchanges_with_endpoints_that_went_are_forgotten_and_others_are_not() {
        let flows = [
            flow("10.96.0.9:53", "10.201.7.2:53"),
            flow("10.96.0.9:53", "10.201.7.3:53"),
            flow("10.96.0.9:53", "10.96.0.9:53"),
            flow("8.8.8.8:53", "8.8.8.8:53"),
        ];
        let now = answering("10.96.0.9:53", &["10.201.7.3:53"]);
        assert_eq!(stale(&flows, &Answering::new(), &now), [flows[0], flows[2]]);
        let nobody = answering("10.96.0.9:53", &[]);
        assert_eq!(stale(&flows, &now, &nobody), [flows[0], flows[1]]);
    }

    #[test]
    fn at_a_nodes_port_only_what_was_translated_counts() {
        let flows = [flow("192.0.2.2:30053", "10.201.7.2:53"), flow("203.0.113.5:30053", "203.0.113.5:30053")];
        let now = answering("any:30053", &["10.201.7.3:53"]);
        assert_eq!(stale(&flows, &Answering::new(), &now), [flows[0]]);
    }

    #[test]
    fn the_exchanges_of_a_service_that_is_gone_are_forgotten() {
        let flows = [flow("10.96.0.9:53", "10.201.7.2:53"), flow("10.96.0.8:53", "10.201.7.2:53")];
        let before = answering("10.96.0.9:53", &["10.201.7.2:53"]);
        assert_eq!(stale(&flows, &before, &Answering::new()), [flows[0]]);
    }
}
