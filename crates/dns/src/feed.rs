//! The feed: how the agent tells node-dns what to answer.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::frame::{self, Delta, Reply, Request, VERSION};
use crate::records::Cluster;

/// Name of the socket in node-dns's folder.
pub(crate) const SOCKET: &str = "feed.sock";
/// How long node-dns may take for one answer: it only has to build records and write a file.
const PATIENCE: Duration = Duration::from_secs(10);

/// The agent's end of `<dir>/feed.sock`.
#[derive(Debug)]
pub struct Feeder {
    stream: UnixStream,
    pid: u32,
    listen: Vec<SocketAddr>,
    /// What was last applied, and its serial.
    applied: Option<(u32, Cluster)>,
}

impl Feeder {
    /// Connects and agrees on the protocol's version. Fails if no node-dns serves this folder: start one and try again.
    pub async fn connect(dir: &Path) -> Result<Self, Error> {
        let mut stream = UnixStream::connect(dir.join(SOCKET)).await?;
        let greet = async {
            frame::send_hello(&mut stream).await?;
            let version = frame::read_hello(&mut stream).await?;
            if version != VERSION {
                return Err(Error::Version(version));
            }
            Ok(frame::read::<Reply>(&mut stream).await?)
        };
        match patient(greet).await? {
            Reply::Welcome { pid, listen } => Ok(Self { stream, pid, listen, applied: None }),
            other => Err(unexpected(&other)),
        }
    }

    /// Process id of node-dns.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where node-dns answers queries.
    pub fn listen(&self) -> &[SocketAddr] {
        &self.listen
    }

    /// Pushes the whole state; returns once it is answered from. Only what changed since the last push is sent.
    /// After an error the connection is of no use: connect again.
    pub async fn push(&mut self, cluster: &Cluster) -> Result<(), Error> {
        if let Some((serial, applied)) = &self.applied {
            if applied == cluster {
                return Ok(());
            }
            let delta = Delta::between(*serial, applied, cluster);
            match self.ask(&Request::Delta(delta)).await? {
                Reply::Applied { serial, persisted } => return self.note(serial, persisted, cluster),
                Reply::WrongBase => {}
                other => return Err(unexpected(&other)),
            }
        }
        match self.ask(&Request::Full(cluster.clone())).await? {
            Reply::Applied { serial, persisted } => self.note(serial, persisted, cluster),
            other => Err(unexpected(&other)),
        }
    }

    /// Waits until node-dns is gone, which otherwise only the next push would tell. May be dropped at any time.
    pub async fn closed(&mut self) -> Error {
        match self.stream.read(&mut [0]).await {
            Ok(0) => Error::Io(std::io::ErrorKind::ConnectionReset.into()),
            Ok(_) => Error::Protocol("it speaks without being asked".into()),
            Err(error) => Error::Io(error),
        }
    }

    /// Tells node-dns to exit; returns when its ports and its folder are free for another one.
    pub async fn shutdown(mut self) -> Result<(), Error> {
        match self.ask(&Request::Shutdown).await? {
            Reply::Stopping => {}
            other => return Err(unexpected(&other)),
        }
        let gone = async { Ok(self.stream.read(&mut [0]).await?) };
        patient(gone).await.map(|_| ())
    }

    /// Remembers what was applied.
    fn note(&mut self, serial: u32, persisted: bool, cluster: &Cluster) -> Result<(), Error> {
        if !persisted {
            tracing::warn!("node-dns answers from the newest records but could not write them down; is the disk full?");
        }
        self.applied = Some((serial, cluster.clone()));
        Ok(())
    }

    /// One request and its reply.
    async fn ask(&mut self, request: &Request) -> Result<Reply, Error> {
        let Self { stream, .. } = self;
        patient(async {
            frame::send(stream, request).await?;
            Ok(frame::read(stream).await?)
        })
        .await
    }
}

/// Waits no longer than [`PATIENCE`].
async fn patient<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(Error::Io(std::io::ErrorKind::TimedOut.into())))
}

/// A reply that does not belong to the request.
fn unexpected(reply: &Reply) -> Error {
    Error::Protocol(serde_json::to_string(reply).unwrap_or_default())
}

/// Why the feed failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket is not there or broke: start node-dns if it is not running, connect again and push everything.
    #[error("node-dns cannot be reached: {0}")]
    Io(#[from] std::io::Error),
    /// The process speaks another version: stop it by the id in its pid file and start this version's.
    #[error("node-dns speaks protocol version {0}, not ours; it has to be restarted")]
    Version(u32),
    /// The process garbled a frame: connect again and push everything.
    #[error("node-dns answered with something unexpected: {0}")]
    Protocol(String),
}
