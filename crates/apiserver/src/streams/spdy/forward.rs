//! Port-forward over SPDY: each TCP connection is a pair of streams with the same `requestid`, one for data and one
//! for what went wrong.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use nodeconn::{ExitStatus, Frame, Nodes, StreamRequest, Target};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{SpdyStream, Writer, session};

/// The subprotocol's name.
pub(in crate::streams) const PROTOCOL: &str = "portforward.k8s.io";

/// Connections at a time.
const MAX_CONNECTIONS: usize = 128;

/// Halves of pairs whose other half has not come yet.
const MAX_WAITING: usize = 64;

/// A pod's ports, reachable through its node.
#[derive(Clone)]
pub(in crate::streams) struct Ports {
    pub(in crate::streams) nodes: Arc<Nodes>,
    pub(in crate::streams) node: String,
    pub(in crate::streams) target: Target,
}

/// Serves a client's connection until it ends; `out` takes the bytes to the client.
pub(in crate::streams) async fn run(ports: Ports, input: impl Stream<Item = Bytes>, out: mpsc::Sender<Bytes>) {
    let (mut streams, work) = session(input, out);
    let pair = async {
        let mut waiting: HashMap<String, SpdyStream> = HashMap::new();
        let mut connections = JoinSet::new();
        loop {
            let stream = tokio::select! {
                stream = streams.recv() => stream,
                Some(_) = connections.join_next() => continue,
            };
            let Some(stream) = stream else { return };
            let id = stream.header("requestid").to_owned();
            let Some(other) = waiting.remove(&id) else {
                if waiting.len() < MAX_WAITING {
                    waiting.insert(id, stream);
                }
                continue;
            };
            let (data, error) = match (stream.header("streamtype"), other.header("streamtype")) {
                ("data", "error") => (stream, other),
                ("error", "data") => (other, stream),
                _ => return,
            };
            if connections.len() < MAX_CONNECTIONS {
                connections.spawn(connection(ports.clone(), data, error));
            } else {
                let _ = error.writer().write(b"too many connections are forwarded at once").await;
                finish(&data.writer(), &error.writer()).await;
            }
        }
    };
    tokio::select! {
        () = pair => {}
        ended = work => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a SPDY connection ended early");
            }
        }
    }
}

/// One connection to a port.
async fn connection(ports: Ports, mut data: SpdyStream, error: SpdyStream) {
    let (to_client, errors) = (data.writer(), error.writer());
    if let Err(why) = carry(&ports, &mut data, &to_client).await {
        let text = format!("error forwarding port {} to pod {}: {why}", data.header("port"), ports.target.pod);
        let _ = errors.write(text.as_bytes()).await;
    }
    finish(&to_client, &errors).await;
}

async fn finish(data: &Writer, error: &Writer) {
    // Both fail only where the client is gone.
    let _ = data.finish().await;
    let _ = error.finish().await;
}

/// Moves bytes both ways until the pod is done; `Err` says what the client should know.
async fn carry(ports: &Ports, data: &mut SpdyStream, to_client: &Writer) -> Result<(), String> {
    let port: u16 = data.header("port").parse().map_err(|_| "the port is no number".to_owned())?;
    let request = StreamRequest::PortForward { target: ports.target.clone(), port };
    let node = ports.nodes.open(&ports.node, request).await.map_err(|error| error.to_string())?;
    let nodeconn::Stream { tx, mut rx } = node;
    let input = async {
        while let Some(bytes) = data.rx.recv().await {
            if tx.send(Frame::Stdin(bytes)).await.is_err() {
                break;
            }
        }
        // The client has sent all; the pod may still answer.
        let _ = tx.send(Frame::StdinEof).await;
        drop(tx);
        std::future::pending::<()>().await;
    };
    let output = async {
        while let Some(frame) = rx.recv().await {
            match frame {
                Frame::Stdout(bytes) => to_client.write(&bytes).await.map_err(|error| error.to_string())?,
                Frame::Exit(ExitStatus::Error(why)) => return Err(why),
                _ => {}
            }
        }
        Ok(())
    };
    tokio::select! {
        () = input => Ok(()),
        result = output => result,
    }
}
