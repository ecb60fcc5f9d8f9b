//! The feed: how the agent tells node-dns what to answer.

use std::path::Path;

use crate::records::Cluster;

/// The agent's end of `<dir>/feed.sock`.
#[derive(Debug)]
pub struct Feeder {}

impl Feeder {
    /// Connects and agrees on the protocol's version. Fails if no node-dns serves this folder: start one and try again.
    pub async fn connect(_dir: &Path) -> Result<Self, Error> {
        Err(Error::Io(std::io::ErrorKind::NotConnected.into()))
    }

    /// Pushes the whole state; returns once it is answered from. Only what changed since the last push is sent.
    pub async fn push(&mut self, _cluster: &Cluster) -> Result<(), Error> {
        Err(Error::Io(std::io::ErrorKind::NotConnected.into()))
    }

    /// Tells node-dns to exit; returns when it has stopped listening.
    pub async fn shutdown(self) -> Result<(), Error> {
        Ok(())
    }
}

/// Why the feed failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket is not there or broke: start node-dns if it is not running, connect again and push everything.
    #[error("node-dns cannot be reached: {0}")]
    Io(#[from] std::io::Error),
    /// The process speaks another version: shut it down by its pid file and start this version's.
    #[error("node-dns speaks protocol version {0}, not ours; it has to be restarted")]
    Version(u32),
    /// The process refused or garbled a frame: connect again and push everything.
    #[error("node-dns answered with something unexpected: {0}")]
    Protocol(String),
}
