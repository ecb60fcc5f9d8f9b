//! The border: what can be asked of a node, and the frames that flow.

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// The API server's end of a connection to one node.
#[async_trait]
pub trait NodeConn: Send + Sync + 'static {
    /// Opens a stream. Returns at the node's first word (see [`NodeHandler::handle`]).
    ///
    /// Dropping the stream (or its `rx`) cancels it at the node; dropping `Stream::tx` alone half-closes.
    /// A stream that breaks, or that the node refuses late, ends with [`Frame::Exit`] and an error.
    async fn open(&self, request: StreamRequest) -> Result<Stream, Error>;
}

/// The agent's end: answers one stream.
#[async_trait]
pub trait NodeHandler: Send + Sync + 'static {
    /// Serves the stream until it is done. Returning ends it; it is dropped when the server cancels.
    /// An `Err` before the first frame is the answer to `NodeConn::open`; so a handler that has opened what was
    /// asked and has nothing to say yet (a shell, a forwarded port) sends an empty `Stdout` frame at once. It is not
    /// passed on. A handler silent for a quarter of a second counts as having opened the stream.
    async fn handle(&self, request: StreamRequest, stream: Stream) -> Result<(), Error>;
}

/// One bidirectional stream of frames; bounded in both directions.
#[derive(Debug)]
pub struct Stream {
    /// Frames to the other side.
    pub tx: mpsc::Sender<Frame>,
    /// Frames from the other side; `None` when it has finished.
    pub rx: mpsc::Receiver<Frame>,
}

/// The pod and container that a stream is about. The uid keeps a namesake from being meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Uid of the pod.
    pub uid: String,
    /// The container; empty where the request is about the whole pod.
    pub container: String,
}

/// What is asked of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum StreamRequest {
    /// The container's log, as `kubectl logs` shows it: stdout frames of plain log text.
    Log {
        /// Whose log.
        target: Target,
        /// Go on as lines are written.
        follow: bool,
        /// The log of the container's previous run.
        previous: bool,
        /// Each line begins with its RFC 3339 time.
        timestamps: bool,
        /// Only lines at or after this time (RFC 3339).
        since_time: Option<String>,
        /// Only the last lines.
        tail_lines: Option<u64>,
        /// Stop after so many bytes.
        limit_bytes: Option<u64>,
    },
    /// Runs a command in a running container.
    Exec {
        /// Where.
        target: Target,
        /// The command and its arguments.
        command: Vec<String>,
        /// Whether stdin frames will come.
        stdin: bool,
        /// Whether to give it a terminal (stderr then flows into stdout).
        tty: bool,
    },
    /// The container's own stdin, stdout and stderr from now on.
    Attach {
        /// Where.
        target: Target,
        /// Whether stdin frames will come.
        stdin: bool,
        /// Whether the container has a terminal.
        tty: bool,
    },
    /// One TCP connection to a port inside the pod: stdin frames go there, stdout frames come back.
    PortForward {
        /// Which pod.
        target: Target,
        /// The port.
        port: u16,
    },
    /// One stdout frame of JSON: what the node and its pods use.
    Stats,
    /// One stdout frame of JSON: how full the volumes of its pods are.
    Volumes,
    /// One stdout frame with a JSON string: what the agent counts, in Prometheus' text format.
    Metrics,
}

/// A piece of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Bytes to the process.
    Stdin(Bytes),
    /// The process's stdin ends here.
    StdinEof,
    /// Bytes from the process.
    Stdout(Bytes),
    /// Bytes from the process's standard error.
    Stderr(Bytes),
    /// The terminal's new size.
    Resize {
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// The process ended. The last frame of an exec or attach stream.
    Exit(ExitStatus),
}

/// How an exec ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ExitStatus {
    /// It exited with this code (128 + n for signal n, as shells count).
    Code(i32),
    /// It could not be run, or was lost; why.
    Error(String),
}

/// What opening or serving a stream can answer instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "kind", content = "message", rename_all = "camelCase")]
pub enum Error {
    /// No connection to that node now. Try again when its agent is back.
    #[error("node {0} is not connected")]
    NotConnected(String),
    /// The node does not run that pod or container.
    #[error("{0}")]
    NotFound(String),
    /// The request makes no sense for the pod as it is (container waiting, no such port).
    #[error("{0}")]
    BadRequest(String),
    /// The node could not do it.
    #[error("{0}")]
    Failed(String),
}

/// Why a connection could not be made, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The transport or HTTP/2 failed: the other side went away or does not speak it. Connect again.
    #[error("the connection failed: {0}")]
    Http2(#[from] h2::Error),
    /// The other side speaks HTTP/2 but not this protocol. Check the address.
    #[error("the other side is no statefuld")]
    NotOurs,
    /// The other side speaks another version. Run the same minor version on both sides.
    #[error("the other side speaks version {0} of the node protocol")]
    Version(String),
    /// The other side said nothing for too long. Connect again.
    #[error("the other side does not answer")]
    Silent,
}
