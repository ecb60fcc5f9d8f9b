//! The node-dns process: answers a node's pods from the newest snapshot, with or without the daemon.
//!
//! ```text
//!        start ──▶ lock the folder ──▶ load config and snapshot ──▶ bind ──▶ serve ──▶ exit
//!                     │ taken                                        │        ▲  │ Shutdown frame
//!                     ▼                                              ▼        └──┘ frames of the feed
//!                  exit 0: another one serves                     exit 1
//! ```
//!
//! One thread. Before the first snapshot every name of the zone is answered with SERVFAIL: what is not known yet is
//! never denied.

mod disk;
mod feeding;
mod forward;
mod listen;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::frame::Delta;
use crate::records::Cluster;
use crate::zone::Snapshot;

/// What `<dir>/config.json` holds. The agent writes it before it starts the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Addresses to answer on, UDP and TCP, such as the bridge's with port 53. They need not exist yet.
    pub listen: Vec<SocketAddr>,
    /// Cluster domain, such as `cluster.local`.
    pub domain: String,
    /// Where other names are asked for; `None` takes the machine's `/etc/resolv.conf` as it is at that moment.
    pub upstreams: Option<Vec<SocketAddr>>,
}

impl Config {
    /// Writes `<dir>/config.json` with magic and version, replacing it in one step.
    pub fn write(&self, dir: &Path) -> std::io::Result<()> {
        disk::write_config(dir, self)
    }

    /// The addresses without ports.
    fn addresses(&self) -> Vec<IpAddr> {
        self.listen.iter().map(SocketAddr::ip).collect()
    }
}

/// Runs node-dns on a folder until it is told to stop over `<dir>/feed.sock`.
/// Returns at once with success if another process already serves this folder.
pub fn main(dir: &Path) -> ExitCode {
    // In a session of its own, a terminal's Ctrl-C for the daemon does not reach it. Fails where it already has one.
    let _ = rustix::process::setsid();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&format!("node-dns cannot start: {error}")),
    };
    let outcome = runtime.block_on(async {
        match Server::start(dir).await? {
            Some(server) => server.finished().await,
            None => tracing::debug!("another node-dns serves this folder"),
        }
        Ok::<(), Error>(())
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error.to_string()),
    }
}

/// Says on standard error why there is no node-dns.
fn complain(message: &str) -> ExitCode {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{message}");
    ExitCode::FAILURE
}

/// A node-dns that answers. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    listen: Vec<SocketAddr>,
    /// What answers queries.
    tasks: JoinSet<()>,
    /// What serves agents.
    feed: JoinSet<()>,
    /// Held until the end, so that no other process serves the folder.
    lock: disk::Lock,
}

impl Server {
    /// Reads the folder's configuration and snapshot and begins to answer. `None`: another process already does.
    pub async fn start(dir: &Path) -> Result<Option<Self>, Error> {
        let Some(lock) = disk::Lock::take(dir)? else { return Ok(None) };
        let config = disk::read_config(dir)?;
        let sockets = listen::Sockets::bind(&config.listen)?;
        let listen = sockets.addresses();
        let shared = Arc::new(Shared::new(dir, config));
        if let Some((serial, cluster)) = disk::read_snapshot(dir) {
            // A new serial, since a secondary might have seen the old one with an older build of the records.
            shared.replace(serial.wrapping_add(1), cluster);
        }
        let socket = feeding::listen(dir)?;
        let (mut tasks, mut feed) = (JoinSet::new(), JoinSet::new());
        sockets.serve(&shared, &mut tasks);
        feed.spawn(feeding::serve(socket, shared.clone(), listen.clone()));
        Ok(Some(Self { shared, listen, tasks, feed, lock }))
    }

    /// Where queries are answered; ports that were left open are filled in.
    pub fn listen(&self) -> &[SocketAddr] {
        &self.listen
    }

    /// Waits until the feed says to stop, and stops. The agent's connection ends last: by then ports and folder are free.
    pub async fn finished(mut self) {
        let mut stop = self.shared.stop.subscribe();
        // An error says that the sender is gone, which `shared` rules out.
        let _ = stop.wait_for(|stop| *stop).await;
        self.tasks.shutdown().await;
        disk::remove_traces(&self.shared.dir);
        drop(self.lock);
        self.feed.shutdown().await;
    }
}

/// What all tasks of the process share.
#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    config: Config,
    forwarder: forward::Forwarder,
    /// What queries are answered from.
    zone: watch::Sender<Arc<Snapshot>>,
    /// What the zone was built from, and its serial.
    state: Mutex<(u32, Arc<Cluster>)>,
    /// Turns true once.
    stop: watch::Sender<bool>,
}

impl Shared {
    fn new(dir: &Path, config: Config) -> Self {
        Self {
            dir: dir.to_owned(),
            forwarder: forward::Forwarder::new(&config),
            zone: watch::Sender::new(Arc::new(Snapshot::unknown(&config.domain))),
            state: Mutex::new((0, Arc::default())),
            stop: watch::Sender::new(false),
            config,
        }
    }

    /// The newest records.
    fn zone(&self) -> Arc<Snapshot> {
        self.zone.borrow().clone()
    }

    /// Serial and state of now.
    fn state(&self) -> (u32, Arc<Cluster>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers from this state from now on.
    fn replace(&self, serial: u32, cluster: Cluster) -> Arc<Cluster> {
        let zone = Snapshot::build(&self.config.domain, &self.config.addresses(), serial, &cluster);
        let cluster = Arc::new(cluster);
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = (serial, cluster.clone());
        self.zone.send_replace(Arc::new(zone));
        cluster
    }

    /// Applies a change; `None` if it was made from another state than ours.
    fn change(&self, delta: Delta) -> Option<(u32, Arc<Cluster>)> {
        let (serial, cluster) = self.state();
        if delta.base != serial {
            return None;
        }
        let mut cluster = Arc::unwrap_or_clone(cluster);
        delta.apply(&mut cluster);
        let next = serial.wrapping_add(1);
        Some((next, self.replace(next, cluster)))
    }
}

/// Why node-dns cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder cannot be used: it has to exist and belong to us.
    #[error("node-dns cannot use its folder: {what}: {source}")]
    Folder {
        /// Which file.
        what: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The configuration is missing, not ours, or of another version: the agent has to write it first.
    #[error("node-dns cannot read its configuration {file}: {why}; start it through statefuld")]
    Config {
        /// The file.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// An address cannot be bound: something else uses it.
    #[error("node-dns cannot listen on {address}: {source}; stop what uses that address")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
}
