//! Streams between API server and node agent over one multiplexed connection.
//!
//! The API server never dials a node. The agent brings one duplex byte stream (in one process an
//! in-memory pipe, later a mutually authenticated TLS connection that it dialled), and over it the server
//! opens as many streams as it likes: log, exec, attach, port-forward, stats. The border is the trait
//! [`NodeConn`]; what implements it is HTTP/2, with the agent as the HTTP/2 server on the connection that it brought.

mod types;

pub use types::*;
