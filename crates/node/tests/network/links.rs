//! Interfaces, addresses and routes of a node.

use std::collections::BTreeSet;

use statefuld_node::network::Network;

use crate::space::{Machine, SERVICE};

#[test]
fn pods_come_and_go_while_services_are_routed() {
    let machine = Machine::new();
    let config = machine.nodes[0].config.clone();
    machine.block_on(async move {
        let network = Network::ensure(&config).await.expect("a bridge");
        let services = BTreeSet::from([SERVICE]);
        // The kernel gives one list at a time to a socket, and these have one in common.
        for n in 2..40 {
            let (routed, owned, left) = tokio::join!(
                network.route_services(&services),
                network.own_services(&services),
                network.detach(config.pod_cidr.host(n)),
            );
            routed.expect("routed");
            owned.expect("given");
            left.expect("detached");
        }
    });
}
