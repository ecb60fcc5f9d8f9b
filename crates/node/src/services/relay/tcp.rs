//! Connections, passed on byte by byte.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Picker;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// Connections of one place at a time; more wait.
const MAX_CONNECTIONS: usize = 4096;
/// How long an endpoint may take to accept.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How many endpoints a client is tried to be connected with.
const TRIES: usize = 3;
/// Pause after a failure to accept, such as no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Listens at a place; for what comes in on `device` only, if one is named.
pub(super) fn listen(address: SocketAddrV4, device: Option<&str>) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    if let Some(device) = device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    socket.bind(address.into())?;
    socket.listen(BACKLOG)
}

/// Accepts until the task is ended. Connections go on after that.
pub(super) async fn serve(listener: TcpListener, picker: Picker) {
    let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(seat) = seats.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, client)) => {
                let picker = picker.clone();
                tokio::spawn(async move {
                    let term = picker.term.clone();
                    tokio::select! {
                        () = pass(stream, client, &picker) => {}
                        () = term.cancelled() => {}
                    }
                    drop(seat);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a connection to a service was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn pass(mut client: TcpStream, from: SocketAddr, picker: &Picker) {
    for endpoint in picker.pick(from).into_iter().take(TRIES) {
        if let Ok(Ok(mut server)) = timeout(CONNECT_LIMIT, TcpStream::connect(endpoint)).await {
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            // How it ends is between the two.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            return;
        }
    }
    // Nobody took it: it is told so, instead of being served an end.
    let _ = client.set_zero_linger();
}
