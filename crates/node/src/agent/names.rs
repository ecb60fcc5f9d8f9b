//! The node's name server: started where it is missing, told of every change.
//!
//! node-dns outlives the agent and answers from what it was told last. What names depend on is pushed here, as soon as
//! Services and EndpointSlices are completely known.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use dns::feed::Feeder;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::watch;

use super::Shared;
use super::known::Known;
use super::stop::ends_within;
use crate::config::Config;

/// Where name servers listen.
const PORT: u16 = 53;
/// How long a fresh node-dns may take until it can be told something.
const START_LIMIT: Duration = Duration::from_secs(5);
/// Pause between looks whether a fresh node-dns is there.
const START_POLL: Duration = Duration::from_millis(5);
/// Pause after a failure.
const RETRY: Duration = Duration::from_millis(500);

/// Keeps the name server running and right until the agent ends.
pub(super) async fn run(shared: Arc<Shared>, known: watch::Receiver<Known>) {
    tokio::select! {
        () = feed(&shared, known) => {}
        () = shared.term.cancelled() => {}
    }
}

/// Ends a node's name server, if there is one.
pub(super) async fn stop(config: &Config) {
    let Ok(feeder) = Feeder::connect(&config.dns_dir()).await else { return };
    // While it answers, the number is its own.
    let process = i32::try_from(feeder.pid()).ok().and_then(Pid::from_raw);
    let process = process.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    if let Err(error) = feeder.shutdown().await {
        tracing::warn!(%error, "the name server did not end");
        return;
    }
    // It let go of its ports and its folder, and is about to be gone.
    if let Some(process) = process
        && !matches!(ends_within(process, START_LIMIT).await, Ok(true))
    {
        tracing::warn!("the name server lets go of all that it had and does not end");
    }
}

/// Pushes what is known, whenever it changes.
async fn feed(shared: &Shared, mut known: watch::Receiver<Known>) {
    loop {
        let mut feeder = match connect(shared).await {
            Ok(feeder) => feeder,
            Err(error) => {
                if !super::stop::is_stopping(&shared.config) {
                    tracing::warn!(%error, "the name server is not there; trying again");
                }
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let lost = loop {
            let ready = known.wait_for(Known::knows_names).await;
            let Ok(cluster) = ready.map(|k| k.named.clone()) else { return };
            known.mark_unchanged();
            if let Err(error) = feeder.push(&cluster).await {
                break error;
            }
            tokio::select! {
                changed = known.changed() => if changed.is_err() {
                    return;
                },
                error = feeder.closed() => break error,
            }
        };
        if !super::stop::is_stopping(&shared.config) {
            tracing::warn!(error = %lost, "the name server was lost; finding it again");
        }
        tokio::time::sleep(START_POLL).await;
    }
}

/// The running name server, or a fresh one.
async fn connect(shared: &Shared) -> Result<Feeder, String> {
    let dir = shared.config.dns_dir();
    match Feeder::connect(&dir).await {
        Ok(feeder) => return Ok(feeder),
        Err(dns::feed::Error::Io(_)) => {}
        Err(error) => return Err(error.to_string()),
    }
    if super::stop::is_stopping(&shared.config) {
        return Err("the node is being stopped".to_owned());
    }
    std::fs::create_dir_all(&dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
    let config = dns::server::Config {
        listen: vec![SocketAddr::new(shared.config.gateway.into(), PORT)],
        domain: shared.config.cluster_domain.clone(),
        upstreams: None,
    };
    config.write(&dir).map_err(|e| format!("cannot write below {}: {e}", dir.display()))?;
    let exe = shared.exe().await.map_err(|e| format!("cannot copy the program: {e}"))?;
    let mut child = tokio::process::Command::new(exe.path())
        .arg0("statefuld-node-dns")
        .arg("node-dns")
        .arg(&dir)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot start the name server: {e}"))?;
    let deadline = shared.ambient.boottime() + START_LIMIT;
    loop {
        match Feeder::connect(&dir).await {
            Ok(feeder) => {
                // Reaped when it ends; it goes on when we end.
                tokio::spawn(async move { child.wait().await });
                return Ok(feeder);
            }
            Err(error) if shared.ambient.boottime() > deadline => return Err(error.to_string()),
            Err(_) => {}
        }
        if let Ok(Some(status)) = child.try_wait() {
            let mut why = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                let _ = tokio::io::AsyncReadExt::read_to_string(&mut stderr, &mut why).await;
            }
            return Err(format!("the name server ended ({status}): {}", why.trim()));
        }
        tokio::time::sleep(START_POLL).await;
    }
}
