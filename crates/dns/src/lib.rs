//! DNS of Services and EndpointSlices: records, answers, and the node-dns process that outlives the daemon.
//!
//! ```text
//!  Services ─────────┐  agent: feed::Feeder                     node-dns: server::main
//!                    ├─▶ records::Cluster ──unix socket──▶ records::Cluster ──▶ records::Snapshot ──▶ answer
//!  EndpointSlices ───┘                                        │  ▲                     ▲
//!                                                             ▼  │ at start            │ UDP, TCP on the bridge
//!                                                         snapshot file              pods
//! ```
//!
//! [`records`], [`zone`] and [`answer()`] are pure; [`server`] and [`feed`] do the I/O.

mod answer;
pub mod feed;
mod frame;
pub mod records;
pub mod server;
pub mod zone;

pub use answer::{Outcome, Transport, Unresolved, answer};
pub use zone::Snapshot;
