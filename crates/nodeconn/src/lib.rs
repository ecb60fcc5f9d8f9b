//! Streams between API server and node agent over one multiplexed connection.
//!
//! The API server never dials a node. The agent brings one duplex byte stream (in one process an
//! in-memory pipe, later a mutually authenticated TLS connection that it dialled), and over it the server
//! opens as many streams as it likes: log, exec, attach, port-forward, stats. The border is the trait
//! [`NodeConn`]; what implements it is HTTP/2, with the agent as the HTTP/2 server on the connection that it brought.
//!
//! ```text
//!  API server                                      node agent
//!  Nodes ─▶ Connection (NodeConn) ──one HTTP/2──▶ serve ─▶ NodeHandler::handle
//!              Stream {tx, rx}  ══ DATA: frames ══  Stream {tx, rx}
//! ```
//!
//! What HTTP/2 gives: back-pressure (a window per stream, and one of the connection large enough that a stream
//! whose reader is slow holds up no other), half-close (END_STREAM), cancel (RST_STREAM), liveness (PING).
//! What is ours: the frames inside DATA, a greeting with magic and version, limits.

mod frame;
mod nodes;
mod open;
mod pump;
mod serve;
mod types;

pub use nodes::{Nodes, Registration};
pub use open::{Connection, connect};
pub use serve::serve;
pub use types::*;

/// Header of every request and answer; its value is the protocol's version.
pub(crate) const MAGIC: &str = "statefuld-nodeconn";

/// Raised when an older peer could not follow.
pub(crate) const VERSION: &str = "1";

/// Streams that one connection carries at a time.
pub const MAX_STREAMS: u32 = 512;

/// Bytes on their way on one stream before its reader takes them.
pub(crate) const STREAM_WINDOW: u32 = 64 * 1024;

/// As much as all streams together may have on their way, so that none waits for another's reader.
pub(crate) const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;

/// Frames that wait in memory in each direction of a stream.
pub(crate) const QUEUE_FRAMES: usize = 8;
