//! Datagrams, passed on; an exchange lasts as long as either side says something.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Picker;

/// Largest datagram.
const DATAGRAM: usize = 65_535;
/// Clients of one place at a time; datagrams of more are dropped.
const MAX_CLIENTS: usize = 1024;
/// An exchange ends after so long without a word; what the kernel grants those with answers.
const IDLE: Duration = Duration::from_secs(120);

/// A client's exchange with an endpoint.
struct Exchange {
    number: u64,
    endpoint: SocketAddrV4,
    socket: Arc<UdpSocket>,
    /// Passes answers back.
    answers: JoinHandle<()>,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.answers.abort();
    }
}

/// Binds to a place; for what comes in on `device` only, if one is named.
pub(super) fn bind(address: SocketAddrV4, device: Option<&str>) -> io::Result<Arc<UdpSocket>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    let socket = UdpSocket::from_std(socket.into())?;
    // Tied to different interfaces, the same address is no conflict.
    if let Some(device) = device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    rustix::net::bind(&socket, &SocketAddr::V4(address))?;
    Ok(Arc::new(socket))
}

/// Passes datagrams on until the task is ended.
pub(super) async fn serve(socket: Arc<UdpSocket>, mut picker: Picker) {
    let mut exchanges: HashMap<SocketAddr, Exchange> = HashMap::new();
    let (ended, mut endings) = mpsc::channel::<(SocketAddr, u64)>(MAX_CLIENTS);
    let mut buffer = vec![0; DATAGRAM];
    let mut numbers = 0..;
    let term = picker.term.clone();
    loop {
        tokio::select! {
            received = socket.recv_from(&mut buffer) => {
                // An error tells of an earlier answer that did not arrive.
                let Ok((length, client)) = received else { continue };
                if !exchanges.contains_key(&client) && exchanges.len() < MAX_CLIENTS
                    && let Some(number) = numbers.next()
                    && let Some(exchange) = begin(&socket, client, number, &picker, ended.clone()).await
                {
                    exchanges.insert(client, exchange);
                }
                if let Some(exchange) = exchanges.get(&client) {
                    let _ = exchange.socket.send(&buffer[..length]).await;
                }
            }
            Some((client, number)) = endings.recv() => {
                exchanges.retain(|known, exchange| *known != client || exchange.number != number);
            }
            changed = picker.frontend.changed() => {
                if changed.is_err() {
                    return;
                }
                exchanges.retain(|client, exchange| picker.allows(*client, exchange.endpoint));
            }
            () = term.cancelled() => return,
        }
    }
}

async fn begin(
    socket: &Arc<UdpSocket>,
    client: SocketAddr,
    number: u64,
    picker: &Picker,
    ended: mpsc::Sender<(SocketAddr, u64)>,
) -> Option<Exchange> {
    let endpoint = picker.pick(client).into_iter().next()?;
    let ours = Arc::new(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?);
    ours.connect(endpoint).await.ok()?;
    let (to_client, from_endpoint) = (socket.clone(), ours.clone());
    let answers = tokio::spawn(async move {
        let mut buffer = vec![0; DATAGRAM];
        // An error tells that the endpoint does not listen: the next datagram begins anew.
        while let Ok(Ok(length)) = timeout(IDLE, from_endpoint.recv(&mut buffer)).await {
            let _ = to_client.send_to(&buffer[..length], client).await;
        }
        let _ = ended.send((client, number)).await;
    });
    Some(Exchange { number, endpoint, socket: ours, answers })
}
