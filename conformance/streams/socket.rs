//! Connections that leave HTTP: the upgrade, and Kubernetes' channels in a WebSocket.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Empty};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::cluster::{Ask, Case, PATIENCE};
use crate::wire;

/// Bytes to and from the server.
pub(super) type Connection = TokioIo<Upgraded>;

/// What came, by channel or stream.
#[derive(Debug, Default)]
pub(super) struct Said(BTreeMap<u32, Vec<u8>>);

impl Said {
    /// Adds to what came.
    pub(super) fn add(&mut self, channel: u32, data: &[u8]) {
        self.0.entry(channel).or_default().extend_from_slice(data);
    }

    /// What came on one.
    pub(super) fn of(&self, channel: u32) -> Vec<u8> {
        self.0.get(&channel).cloned().unwrap_or_default()
    }

    /// What came on one, as text.
    pub(super) fn text(&self, channel: u32) -> String {
        String::from_utf8_lossy(&self.of(channel)).into_owned()
    }

    /// How a program ended, as channel 3 tells.
    pub(super) fn status(&self) -> Value {
        serde_json::from_str(&self.text(3)).unwrap_or_else(|why| panic!("{why}: {self:?}"))
    }
}

/// An answer's code and headers, and the connection or what was said instead.
type Answer = (u16, HeaderMap, Result<Connection, String>);

/// Asks for a subresource of a pod on a connection of its own.
async fn ask(case: &Case, method: &str, uri: &str, protocol: &str, version: &str) -> Answer {
    // Only HTTP/1.1 can be left.
    let stream = wire::connect(case.cluster.config(), "http/1.1").await;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
    tokio::spawn(connection.with_upgrades());
    let host = wire::host(case.cluster.config());
    let mut request = Request::builder().method(method).uri(uri).header("host", host);
    request = request.header("connection", "Upgrade").header("upgrade", protocol);
    request = match protocol {
        "websocket" => request
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA==")
            .header("sec-websocket-protocol", version),
        _ => request.header("x-stream-protocol-version", version),
    };
    if let Some(token) = token(case).await {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(Empty::<Bytes>::new()).expect("a request");
    let answer = sender.send_request(request).await.expect("an answer");
    let (code, headers) = (answer.status().as_u16(), answer.headers().clone());
    if code == 101 {
        let upgraded = hyper::upgrade::on(answer).await.expect("an upgraded connection");
        return (code, headers, Ok(TokioIo::new(upgraded)));
    }
    let text = answer.into_body().collect().await.expect("a body").to_bytes();
    (code, headers, Err(String::from_utf8_lossy(&text).into_owned()))
}

/// The token that the kubeconfig holds, where it is one.
async fn token(case: &Case) -> Option<String> {
    let info = &case.cluster.config().auth_info;
    if let Some(file) = &info.token_file {
        return tokio::fs::read_to_string(file).await.ok().map(|text| text.trim().to_owned());
    }
    let written = serde_json::to_value(info).expect("it is written as it was read");
    written["token"].as_str().map(str::to_owned)
}

/// The path of a subresource with a query.
fn uri(path: &str, sub: &str, query: &[(&str, &str)]) -> String {
    query.iter().fold(Ask::new("GET", &format!("{path}/{sub}")), |ask, (n, v)| ask.query(n, v)).uri()
}

/// A connection that has left HTTP for `protocol`, with `version` spoken inside; and the answer's headers.
pub(super) async fn upgrade(
    case: &Case,
    method: &str,
    path: &str,
    sub: &str,
    query: &[(&str, &str)],
    protocol: &str,
    version: &str,
) -> (Connection, HeaderMap) {
    let (code, headers, connection) = ask(case, method, &uri(path, sub, query), protocol, version).await;
    let connection = connection.unwrap_or_else(|said| panic!("{sub}: {code}: {said}"));
    let chosen = headers.get("sec-websocket-protocol").or_else(|| headers.get("x-stream-protocol-version"));
    assert_eq!(chosen.and_then(|v| v.to_str().ok()), Some(version), "{headers:?}");
    (connection, headers)
}

/// Code and text of what is answered instead of an upgrade.
pub(super) async fn refused(case: &Case, path: &str, sub: &str, query: &[(&str, &str)]) -> (u16, String) {
    let (code, _, said) = ask(case, "GET", &uri(path, sub, query), "websocket", "v5.channel.k8s.io").await;
    (code, said.expect_err("it is refused"))
}

/// Messages whose first byte is a channel.
pub(super) struct Channels {
    socket: WebSocketStream<Connection>,
    said: Said,
}

impl Channels {
    /// Opens a subresource of a pod.
    pub(super) async fn open(case: &Case, path: &str, sub: &str, query: &[(&str, &str)], version: &str) -> Self {
        let (connection, _) = upgrade(case, "GET", path, sub, query, "websocket", version).await;
        let socket = WebSocketStream::from_raw_socket(connection, Role::Client, None).await;
        Self { socket, said: Said::default() }
    }

    /// Sends on a channel.
    pub(super) async fn send(&mut self, channel: u8, data: &[u8]) {
        let message = [&[channel], data].concat();
        self.socket.send(Message::binary(message)).await.expect("the server reads");
    }

    /// Reads until the server closes.
    pub(super) async fn end(self) -> Said {
        self.until(|_| false).await
    }

    /// Reads until this holds, or the server closes.
    pub(super) async fn until(mut self, enough: impl Fn(&Said) -> bool) -> Said {
        let read = async {
            while let Some(Ok(message)) = self.socket.next().await {
                if let Message::Binary(data) = message
                    && let Some((channel, data)) = data.split_first()
                {
                    self.said.add(u32::from(*channel), data);
                }
                if enough(&self.said) {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("the stream ends");
        self.said
    }
}
