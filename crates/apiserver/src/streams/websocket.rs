//! Exec, attach and port-forward over WebSocket.

use std::future::Future;
use std::time::Duration;

use api::status::Status;
use bytes::Bytes;
use futures::{Sink, SinkExt, Stream, StreamExt, sink, stream};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{Method, Response};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use nodeconn::{Frame, StreamRequest};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::channels::{self, Protocol};
use super::remote::{self, FromClient, Remote, ToClient};
use super::{Call, spdy, upgrade};
use crate::body::Body;
use crate::errors::{Fail, Outcome};

/// Largest message taken from a client.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// An idle connection is pinged this often, which also keeps middleboxes from forgetting it.
const PING_EVERY: Duration = Duration::from_secs(20);

/// A client that has sent nothing, not even a pong, for so long is gone. Long, because some clients answer pings
/// only while their program reads.
const DEAD_AFTER: Duration = Duration::from_secs(300);

/// Clients (kubectl among them) make the table of their streams after the handshake and throw away what comes before
/// it is there. Nothing says when it is, but a client's own first message: so much time it gets.
const SETTLE: Duration = Duration::from_millis(50);

/// The same for a terminal, whose client says its size first.
const SETTLE_TERMINAL: Duration = Duration::from_millis(500);

/// The subprotocol whose messages are pieces of a SPDY connection.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// Ports that one connection forwards.
const MAX_PORTS: usize = 64;

/// Exec and attach.
pub(super) async fn remote(call: &Call<'_>, remote: Remote, parts: Parts) -> Outcome<Response<Body>> {
    let hello = Hello::read(parts, by_channels)?;
    let node = call.open(remote.request.clone()).await?;
    Ok(hello.accept(move |socket, protocol| run_remote(socket, protocol, remote, node)))
}

/// Port-forward: kubectl tunnels SPDY; for others each port named in the query has two channels and one connection.
pub(super) async fn forward(call: &Call<'_>, parts: Parts) -> Outcome<Response<Body>> {
    let hello = Hello::read(parts, |offered| {
        if offered.iter().any(|name| name == TUNNEL) {
            return Some((None, TUNNEL));
        }
        by_channels(offered).map(|(protocol, name)| (Some(protocol), name))
    })?;
    let Some(protocol) = hello.protocol else {
        let ports = spdy::ports(call)?;
        return Ok(hello.accept(move |socket, _| run_tunnel(socket, ports)));
    };
    let mut ports = Vec::new();
    for text in call.query.all("ports").flat_map(|list| list.split(',')) {
        let port = text.parse::<u16>().ok().filter(|port| *port > 0);
        ports.push(port.ok_or_else(|| bad(format!("port {text:?} must be a number from 1 to 65535")))?);
    }
    if ports.is_empty() || ports.len() > MAX_PORTS {
        return Err(bad(format!("between 1 and {MAX_PORTS} query parameters \"ports\" are required")));
    }
    let mut nodes = Vec::new();
    for port in &ports {
        let request = StreamRequest::PortForward { target: call.target(String::new()), port: *port };
        // A port where nobody listens is told on its own channel: the others may be fine.
        let node = match call.open(request).await {
            Err(status) if status.code == 400 => {
                Err(format!("error forwarding port {port} to pod {}: {}", call.name(), status.message))
            }
            opened => Ok(opened?),
        };
        nodes.push((*port, node));
    }
    Ok(hello.accept(move |socket, _| run_forward(socket, protocol, nodes)))
}

fn bad(why: impl Into<String>) -> Fail {
    Box::new(Status::bad_request(why))
}

/// A client's wish to speak WebSocket, checked.
struct Hello<P> {
    protocol: P,
    name: &'static str,
    accept: String,
    upgrade: OnUpgrade,
}

impl<P> Hello<P> {
    /// `choose` picks one of the subprotocols that the client offers, and gives its name.
    fn read(mut parts: Parts, choose: impl FnOnce(&[String]) -> Option<(P, &'static str)>) -> Outcome<Self> {
        let text = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if parts.method != Method::GET {
            return Err(bad("a WebSocket begins with GET"));
        }
        if text(SEC_WEBSOCKET_VERSION) != "13" || text(SEC_WEBSOCKET_KEY).is_empty() {
            return Err(bad("Sec-WebSocket-Version must be 13, and Sec-WebSocket-Key be given"));
        }
        let offered = parts.headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
        let offered = offered.filter_map(|value| value.to_str().ok()).flat_map(|list| list.split(','));
        let offered: Vec<String> = offered.map(|name| name.trim().to_owned()).collect();
        let Some((protocol, name)) = choose(&offered) else {
            return Err(bad(format!("unable to negotiate protocol: none of {offered:?} is spoken here")));
        };
        let accept = derive_accept_key(text(SEC_WEBSOCKET_KEY).as_bytes());
        let upgrade = upgrade::take(&mut parts)?;
        Ok(Self { protocol, name, accept, upgrade })
    }

    /// The answer; `then` gets the socket once the client has it.
    fn accept<F>(self, then: impl FnOnce(WebSocketStream<TokioIo<Upgraded>>, P) -> F + Send + 'static) -> Response<Body>
    where
        F: Future<Output = ()> + Send,
        P: Send + 'static,
    {
        let protocol = self.protocol;
        upgrade::spawn(self.upgrade, async move |io| then(socket(io).await, protocol).await);
        let mut answer = Response::builder()
            .status(101)
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_ACCEPT, self.accept);
        if !self.name.is_empty() {
            answer = answer.header(SEC_WEBSOCKET_PROTOCOL, self.name);
        }
        answer.body(Body::empty()).expect("a key derived is a header value")
    }
}

/// For exec and attach, and for port-forward by channels.
fn by_channels(offered: &[String]) -> Option<(Protocol, &'static str)> {
    Protocol::choose(offered).map(|protocol| (protocol, protocol.name))
}

/// The server's end of a WebSocket.
pub(super) async fn socket<T>(io: T) -> WebSocketStream<T>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Messages from a client until it is gone; pongs and the like are taken out.
fn incoming<T>(socket: stream::SplitStream<WebSocketStream<T>>) -> impl Stream<Item = Message>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    stream::unfold(socket, |mut socket| async move {
        loop {
            match tokio::time::timeout(DEAD_AFTER, socket.next()).await {
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)))) => {}
                Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) | Err(_) => return None,
                Ok(Some(Ok(message))) => return Some((message, socket)),
            }
        }
    })
}

/// Messages to a client, with pings in between: what is sent to the queue goes out; the queue's end closes.
async fn outgoing<T, M>(
    mut socket: stream::SplitSink<WebSocketStream<T>, Message>,
    mut queue: mpsc::Receiver<M>,
    message: impl Fn(M) -> Message,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let message = match tokio::time::timeout(PING_EVERY, queue.recv()).await {
            Ok(Some(item)) => message(item),
            Ok(None) => break,
            Err(_) => Message::Ping(Bytes::new()),
        };
        if socket.send(message).await.is_err() {
            return;
        }
    }
    let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    // Fails where the client is gone already.
    let _ = socket.send(Message::Close(Some(normal))).await;
}

/// A sink into the queue of messages.
fn queued(queue: mpsc::Sender<Message>) -> impl Sink<Message, Error = Gone> {
    sink::unfold(queue, |queue, message| async move {
        queue.send(message).await.map_err(|_| Gone)?;
        Ok(queue)
    })
}

/// The client is gone.
struct Gone;

/// Bridges a client's socket and a node's stream until one of them is done.
pub(super) async fn run_remote<T>(
    socket: WebSocketStream<T>,
    protocol: Protocol,
    remote: Remote,
    node: nodeconn::Stream,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (to_socket, from_socket) = socket.split();
    let (queue, messages) = mpsc::channel(4);
    let mut incoming = Box::pin(incoming(from_socket).fuse().peekable());
    let bridging = async {
        let settle = if remote.tty() { SETTLE_TERMINAL } else { SETTLE };
        // Whether it spoke or not: from here on it listens.
        let _ = tokio::time::timeout(settle, incoming.as_mut().peek()).await;
        // Tells the client that the connection stands, on the first channel that it reads.
        let first = match (remote.stdout, remote.stderr) {
            (true, _) => channels::STDOUT,
            (false, true) => channels::STDERR,
            (false, false) => channels::ERROR,
        };
        let _ = queue.send(protocol.message(first, &[])).await;
        let from = incoming.by_ref().filter_map(|message| {
            let event: Option<FromClient> = protocol.to_process(message);
            std::future::ready(event)
        });
        let to =
            queued(queue).with_flat_map(|item: ToClient| stream::iter(protocol.to_client(&item).map(Ok::<_, Gone>)));
        remote::bridge(&remote, node, from, to).await;
    };
    upgrade::finish(bridging, outgoing(to_socket, messages, |message| message)).await;
    upgrade::drain(incoming).await;
}

/// A port, and the node's stream to it or why there is none.
type Forwarded = (u16, Result<nodeconn::Stream, String>);

/// Bridges the channels of a client's socket and one node stream per port.
pub(super) async fn run_forward<T>(socket: WebSocketStream<T>, protocol: Protocol, ports: Vec<Forwarded>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (to_socket, from_socket) = socket.split();
    let (queue, messages) = mpsc::channel(4);
    let mut incoming = Box::pin(incoming(from_socket).fuse());
    let bridging = async {
        let mut inputs = Vec::new();
        let mut outputs = Vec::new();
        for (index, (port, node)) in ports.into_iter().enumerate() {
            let channel = u8::try_from(2 * index).expect("no more than MAX_PORTS");
            // Both channels begin with the port, little endian.
            for channel in [channel, channel + 1] {
                let _ = queue.send(protocol.message(channel, &port.to_le_bytes())).await;
            }
            match node {
                Ok(node) => {
                    inputs.push(Some(node.tx));
                    outputs.push(forward_output(protocol, channel, node.rx, queue.clone()));
                }
                Err(why) => {
                    inputs.push(None);
                    let _ = queue.send(protocol.message(channel + 1, why.as_bytes())).await;
                }
            }
        }
        drop(queue);
        let input = async {
            while let Some(message) = incoming.next().await {
                let Some((channel, data)) = protocol.split(message) else { continue };
                if channel % 2 == 0
                    && let Some(Some(to_node)) = inputs.get(usize::from(channel / 2))
                {
                    // A pod that reads no more may still write.
                    let _ = to_node.send(Frame::Stdin(data)).await;
                }
            }
        };
        tokio::select! {
            () = input => {}
            _ = futures::future::join_all(outputs) => {}
        }
    };
    upgrade::finish(bridging, outgoing(to_socket, messages, |message| message)).await;
    upgrade::drain(incoming).await;
}

/// Serves a SPDY connection inside a socket's messages.
async fn run_tunnel<T>(socket: WebSocketStream<T>, ports: spdy::Ports)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (to_socket, from_socket) = socket.split();
    let (out, frames) = mpsc::channel(4);
    let mut incoming = Box::pin(incoming(from_socket).fuse());
    let bytes = incoming.by_ref().filter_map(|message| {
        std::future::ready(match message {
            Message::Binary(data) => Some(data),
            _ => None,
        })
    });
    let serving = spdy::run_forward(ports, bytes, out);
    upgrade::finish(serving, outgoing(to_socket, frames, Message::Binary)).await;
    upgrade::drain(incoming).await;
}

/// One port's bytes to the client.
async fn forward_output(
    protocol: Protocol,
    channel: u8,
    mut from_node: mpsc::Receiver<Frame>,
    queue: mpsc::Sender<Message>,
) {
    while let Some(frame) = from_node.recv().await {
        let message = match frame {
            Frame::Stdout(data) => protocol.message(channel, &data),
            Frame::Exit(nodeconn::ExitStatus::Error(why)) => protocol.message(channel + 1, why.as_bytes()),
            _ => continue,
        };
        if queue.send(message).await.is_err() {
            return;
        }
    }
}
