//! Interfaces, addresses and routes of a node.

use std::collections::BTreeSet;

use statefuld_node::network::Network;

use crate::space::{Machine, SERVICE};

/// Enough for two lists to meet on a machine that does nothing else.
const TIMES: u32 = 200;

#[test]
fn pods_come_and_go_while_services_are_routed() {
    let machine = Machine::new();
    let config = machine.nodes[0].config.clone();
    machine.space.run(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
        runtime.expect("a runtime").block_on(async move {
            let network = Network::ensure(&config).await.expect("a bridge");
            let services = BTreeSet::from([SERVICE]);
            // The kernel gives one list at a time to a socket, and these have one in common.
            let (routing, leaving) = (network.clone(), network);
            let routed = tokio::spawn(async move {
                for _ in 0..TIMES {
                    routing.route_services(&services).await.expect("routed");
                }
            });
            let left = tokio::spawn(async move {
                for n in 0..TIMES {
                    leaving.detach(config.pod_cidr.host(2 + n % 200)).await.expect("detached");
                }
            });
            routed.await.expect("it does not panic");
            left.await.expect("it does not panic");
        });
    });
}
