//! node-dns's end of the feed.

use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::{Error, Shared, disk};
use crate::feed::SOCKET;
use crate::frame::{self, Reply, Request, VERSION};
use crate::records::Cluster;

/// The agent holds one connection; a second one may come before the first has gone.
const MAX_CONNECTIONS: usize = 4;

/// Opens the socket; one that an earlier process left behind goes. The caller holds the folder's lock.
pub(super) fn listen(dir: &Path) -> Result<UnixListener, Error> {
    let path = dir.join(SOCKET);
    let wrap = |source| Error::Folder { what: path.display().to_string(), source };
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(wrap(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(wrap)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(wrap)?;
    Ok(listener)
}

/// Serves agents until the process stops.
pub(super) async fn serve(listener: UnixListener, shared: Arc<Shared>, addresses: Vec<SocketAddr>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        if let Ok((stream, _)) = listener.accept().await {
            let (shared, addresses) = (shared.clone(), addresses.clone());
            connections.spawn(async move {
                // The connection ends with an error when the agent goes, which is no news.
                let _ = converse(stream, &shared, addresses).await;
            });
        }
        while connections.try_join_next().is_some() {}
    }
}

/// One agent's requests, one after the other.
async fn converse(mut stream: UnixStream, shared: &Arc<Shared>, listen: Vec<SocketAddr>) -> io::Result<()> {
    frame::send_hello(&mut stream).await?;
    if frame::read_hello(&mut stream).await? != VERSION {
        return Ok(());
    }
    frame::send(&mut stream, &Reply::Welcome { pid: std::process::id(), listen }).await?;
    loop {
        let reply = match frame::read(&mut stream).await? {
            Request::Full(cluster) => {
                let serial = shared.state().0.wrapping_add(1);
                let cluster = shared.replace(serial, cluster);
                applied(shared, serial, cluster).await
            }
            Request::Delta(delta) => match shared.change(delta) {
                Some((serial, cluster)) => applied(shared, serial, cluster).await,
                None => Reply::WrongBase,
            },
            Request::Shutdown => {
                frame::send(&mut stream, &Reply::Stopping).await?;
                shared.stop.send_replace(true);
                // The end of the connection, with the end of this task, says that all is stopped.
                std::future::pending::<()>().await;
                return Ok(());
            }
        };
        frame::send(&mut stream, &reply).await?;
    }
}

/// Writes down what is answered from by now.
async fn applied(shared: &Arc<Shared>, serial: u32, cluster: Arc<Cluster>) -> Reply {
    let dir = shared.dir.clone();
    let written = tokio::task::spawn_blocking(move || disk::write_snapshot(&dir, serial, &cluster)).await;
    Reply::Applied { serial, persisted: matches!(written, Ok(Ok(()))) }
}
