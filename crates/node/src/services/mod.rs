//! Services: what is sent to a service's address, to a port of the node, or to a pod's host port reaches a pod.
//!
//! ```text
//!   Services, EndpointSlices, pods ──▶ [`facts`] ──▶ [`balance`] ──▶ frontends: who answers where, and for whom
//!                                                                      │
//!                              [`compile`]: a table of the packet filter ◀──┴──▶ [`relay`]: sockets of our own
//!                                  │ (in the kernel; holds without us)                  │ (where there is no filter)
//!                              [`crate::nft`]                                      this process
//! ```
//!
//! Facts, balance and compile are pure. Semantics are kube-proxy's; where they differ, because all pods of a node hang on
//! one bridge of this machine, the source address of a client is kept where kube-proxy would replace it.

pub mod balance;
pub mod compile;
pub mod facts;
pub mod neighbours;
pub mod ports;
pub mod relay;
pub mod stale;

pub use balance::{Choice, Frontend, Otherwise, Place, frontends};
pub use compile::{Node, table, table_name};
pub use facts::{Cluster, Endpoint, HostPort, Service, ServicePort, Slice};

use crate::config::Config;
use crate::nft;

/// Takes a node's rules away, its own and those in other firewalls.
pub async fn withdraw(config: &Config) {
    let (table, bridge) = (table_name(&config.tag()), config.bridge.clone());
    let job = move || {
        let socket = nft::Socket::open()?;
        nft::remove(&socket, &table)?;
        nft::remove_mentions(&socket, &bridge)
    };
    let done = tokio::task::spawn_blocking(job).await.expect("removing does not panic");
    if let Err(error) = done {
        // Where there is no packet filter there are no rules.
        tracing::debug!(%error, "the rules of services were not taken away");
    }
}
