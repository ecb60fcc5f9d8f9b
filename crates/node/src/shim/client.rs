//! The agent's side of a shim's socket.
//!
//! [`Shim`] names a pod's folder; every call opens a connection of its own (a Unix socket costs
//! microseconds), so that calls never wait for one another and a shim that was restarted is found again.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{Mode, OFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::protocol::{
    self, ExecControl, ExecExit, ExecRequest, Frame, HEADER, Hello, Kind, MAX_CHUNK, ProtocolError, Reply, Request,
    SOCKET_FILE,
};
use super::spec::{ContainerSpec, Limits};
use super::state::PodState;

/// A shim does what is asked without waiting for anything: one that does not answer for this long is stuck.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A pod's shim, reached through the pod's folder. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shim {
    pod_dir: PathBuf,
}

impl Shim {
    /// Checks that a shim answers in that folder and that both sides understand each other.
    pub async fn connect(pod_dir: &Path) -> Result<Self, ClientError> {
        Connection::open(pod_dir).await?;
        Ok(Self { pod_dir: pod_dir.to_owned() })
    }

    /// The state now.
    pub async fn state(&self) -> Result<PodState, ClientError> {
        match self.ask(&Request::State).await? {
            Reply::State { state } => Ok(*state),
            other => Err(unexpected(other)),
        }
    }

    /// The state now and after every change.
    pub async fn subscribe(&self) -> Result<Changes, ClientError> {
        self.changes(false).await
    }

    /// The same, by one who answers containers that ask ([`Shim::respecify`]): these wait as long as the result lives.
    pub async fn subscribe_and_answer(&self) -> Result<Changes, ClientError> {
        self.changes(true).await
    }

    async fn changes(&self, answers: bool) -> Result<Changes, ClientError> {
        let mut connection = Connection::open(&self.pod_dir).await?;
        connection.send(&Request::Subscribe { answers }).await?;
        Ok(Changes { connection })
    }

    /// Says what a container that asks is to be.
    pub async fn respecify(&self, container: ContainerSpec) -> Result<(), ClientError> {
        self.order(&Request::Respecify { container: Box::new(container) }).await
    }

    /// Starts the containers; call it when the network is in place. Calling again changes nothing.
    pub async fn start(&self) -> Result<(), ClientError> {
        self.order(&Request::Start).await
    }

    /// Begins to end all containers. Returns at once; [`Shim::subscribe`] tells when the pod is finished.
    pub async fn stop(&self, grace: Duration) -> Result<(), ClientError> {
        self.order(&Request::Stop { grace_ms: millis(grace) }).await
    }

    /// Begins to stop one container, which the restart policy then starts again. `message` goes into its termination.
    pub async fn restart_container(&self, container: &str, grace: Duration, message: &str) -> Result<(), ClientError> {
        let (container, message) = (container.to_owned(), message.to_owned());
        self.order(&Request::Restart { container, grace_ms: millis(grace), message }).await
    }

    /// Says that a container's startup probe succeeded. Saying it again changes nothing.
    pub async fn started(&self, container: &str) -> Result<(), ClientError> {
        self.order(&Request::Started { container: container.to_owned() }).await
    }

    /// Changes the limits of a container, and of all of them together. An error tells what the kernel did not take.
    pub async fn resize(&self, container: &str, limits: &Limits, pod: &Limits) -> Result<(), ClientError> {
        let (limits, pod) = (limits.clone(), pod.clone());
        self.order(&Request::Resize { container: container.to_owned(), limits, pod }).await
    }

    /// SIGKILL for every container, now.
    pub async fn kill(&self) -> Result<(), ClientError> {
        self.order(&Request::Kill).await
    }

    /// Says that the final state was recorded: the shim exits. Refused unless the pod is finished.
    pub async fn acknowledge(&self) -> Result<(), ClientError> {
        self.order(&Request::Acknowledge).await
    }

    /// Starts a program in a running container. Dropping the result kills it.
    pub async fn exec(&self, request: ExecRequest) -> Result<Exec, ClientError> {
        self.streams(&Request::Exec(request)).await
    }

    /// Takes part in a running container's streams, from now on. Dropping the result leaves the container alone. The
    /// end of a container is told as the end of a program.
    pub async fn attach(&self, container: &str, stdin: bool) -> Result<Exec, ClientError> {
        self.streams(&Request::Attach { container: container.to_owned(), stdin }).await
    }

    /// Adds an ephemeral container. Calling again for one that is there changes nothing.
    pub async fn add(&self, container: ContainerSpec) -> Result<(), ClientError> {
        self.order(&Request::Add { container: Box::new(container) }).await
    }

    async fn streams(&self, request: &Request) -> Result<Exec, ClientError> {
        let mut connection = Connection::open(&self.pod_dir).await?;
        connection.send(request).await?;
        match connection.reply().await? {
            Reply::Started => {}
            other => return Err(unexpected(other)),
        }
        let Connection { stream, buffer } = connection;
        let (read, write) = stream.into_split();
        Ok(Exec { output: ExecOutput { read, buffer, ended: false }, input: ExecInput { write } })
    }

    /// Runs a program without input to its end; keeps at most `limit` bytes of what it printed. For probes and hooks:
    /// give the request a time-out.
    pub async fn run(&self, request: ExecRequest, limit: usize) -> Result<Ran, ClientError> {
        let mut exec = self.exec(ExecRequest { stdin: false, ..request }).await?;
        let mut output = VecDeque::new();
        loop {
            match exec.output.next().await? {
                ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => {
                    let room = limit.saturating_sub(output.len());
                    output.extend(&bytes[..bytes.len().min(room)]);
                }
                ExecEvent::Exit(exit) => return Ok(Ran { exit, output: output.into() }),
            }
        }
    }

    async fn order(&self, request: &Request) -> Result<(), ClientError> {
        match self.ask(request).await? {
            Reply::Ok => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    async fn ask(&self, request: &Request) -> Result<Reply, ClientError> {
        let mut connection = Connection::open(&self.pod_dir).await?;
        connection.send(request).await?;
        connection.reply().await
    }
}

/// What a program printed and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// How it ended.
    pub exit: ExecExit,
    /// The first bytes of stdout and stderr, as they came.
    pub output: Vec<u8>,
}

/// The states of a pod, as they change.
#[derive(Debug)]
pub struct Changes {
    connection: Connection,
}

impl Changes {
    /// The next state; the first is the one at the time of subscribing. None when the shim is gone
    /// (then [`PodState::read`] has the last word). May be dropped while waiting.
    pub async fn next(&mut self) -> Result<Option<PodState>, ClientError> {
        match self.connection.frame().await {
            Ok(frame) => match frame.parse()? {
                Reply::State { state } => Ok(Some(*state)),
                other => Err(unexpected(other)),
            },
            Err(ClientError::Closed) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A running exec: both directions, to be driven by different tasks where wanted.
#[derive(Debug)]
pub struct Exec {
    /// From the program.
    pub output: ExecOutput,
    /// To the program.
    pub input: ExecInput,
}

/// What a program prints, and its end.
#[derive(Debug)]
pub struct ExecOutput {
    read: OwnedReadHalf,
    buffer: Vec<u8>,
    ended: bool,
}

/// One thing that an exec did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEvent {
    /// It printed.
    Stdout(Bytes),
    /// It printed on stderr.
    Stderr(Bytes),
    /// It ended; nothing follows.
    Exit(ExecExit),
}

impl ExecOutput {
    /// The next thing; [`ClientError::Closed`] where the shim died or the end was told already.
    /// May be dropped while waiting.
    pub async fn next(&mut self) -> Result<ExecEvent, ClientError> {
        if self.ended {
            return Err(ClientError::Closed);
        }
        loop {
            if let Some(frame) = Frame::decode(&mut self.buffer)? {
                return Ok(match frame.kind {
                    Kind::Stdout => ExecEvent::Stdout(frame.payload.into()),
                    Kind::Stderr => ExecEvent::Stderr(frame.payload.into()),
                    Kind::Json => match frame.parse()? {
                        Reply::Exit(exit) => {
                            self.ended = true;
                            ExecEvent::Exit(exit)
                        }
                        other => return Err(unexpected(other)),
                    },
                    Kind::Stdin => return Err(ProtocolError::Kind(Kind::Stdin as u8).into()),
                });
            }
            if self.read.read_buf(&mut self.buffer).await? == 0 {
                return Err(ClientError::Closed);
            }
        }
    }
}

/// A program's input and terminal.
#[derive(Debug)]
pub struct ExecInput {
    write: OwnedWriteHalf,
}

impl ExecInput {
    /// Gives it bytes; waits while it does not read. After the program's end the bytes are lost in silence.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        for chunk in bytes.chunks(MAX_CHUNK) {
            self.frame(Kind::Stdin, chunk).await?;
        }
        Ok(())
    }

    /// Ends its input.
    pub async fn close(&mut self) -> Result<(), ClientError> {
        self.frame(Kind::Stdin, &[]).await
    }

    /// Tells the terminal's new size.
    pub async fn resize(&mut self, columns: u16, rows: u16) -> Result<(), ClientError> {
        let frame = Frame::json(&ExecControl::Resize { columns, rows });
        self.frame(frame.kind, &frame.payload).await
    }

    async fn frame(&mut self, kind: Kind, payload: &[u8]) -> Result<(), ClientError> {
        let mut out = Vec::with_capacity(HEADER + payload.len());
        protocol::encode(kind, payload, &mut out);
        match self.write.write_all(&out).await {
            // The program ended first: its exit is on its way through the other half.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => Ok(result?),
        }
    }
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(pod_dir: &Path) -> Result<Self, ClientError> {
        let unreachable = |source: io::Error| ClientError::Unreachable { pod_dir: pod_dir.to_owned(), source };
        // Through a descriptor, because a socket's path may not be longer than 107 bytes and a pod's folder may.
        let dir = rustix::fs::open(pod_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| unreachable(errno.into()))?;
        let path = format!("/proc/self/fd/{}/{SOCKET_FILE}", dir.as_raw_fd());
        let stream = UnixStream::connect(path).await.map_err(unreachable)?;
        let mut connection = Self { stream, buffer: Vec::new() };
        connection.send(&Hello::ours()).await?;
        connection.answer().await?.parse::<Hello>()?.agree()?;
        Ok(connection)
    }

    async fn send<T: serde::Serialize>(&mut self, message: &T) -> Result<(), ClientError> {
        let mut out = Vec::new();
        Frame::json(message).encode(&mut out);
        Ok(self.stream.write_all(&out).await?)
    }

    async fn reply(&mut self) -> Result<Reply, ClientError> {
        Ok(self.answer().await?.parse()?)
    }

    async fn answer(&mut self) -> Result<Frame, ClientError> {
        tokio::time::timeout(ANSWER_WITHIN, self.frame()).await.map_err(|_| ClientError::Silent)?
    }

    async fn frame(&mut self) -> Result<Frame, ClientError> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.buffer)? {
                return Ok(frame);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(ClientError::Closed);
            }
        }
    }
}

fn unexpected(reply: Reply) -> ClientError {
    match reply {
        Reply::Error { message } => ClientError::Refused(message),
        other => ClientError::Refused(format!("the shim gave an answer that does not fit: {other:?}")),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A call to a shim failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens in the pod's folder: the shim is dead or was never started. Read `state.json`.
    #[error("no shim answers in {}: {source}", pod_dir.display())]
    Unreachable {
        /// The folder.
        pod_dir: PathBuf,
        /// What connecting said.
        source: io::Error,
    },
    /// The connection broke; the shim may have died. Connect again.
    #[error("the connection to the shim broke: {0}")]
    Io(#[from] io::Error),
    /// The shim closed the connection, because it died or exited.
    #[error("the shim closed the connection")]
    Closed,
    /// The shim is alive and does not answer; kill its cgroup.
    #[error("the shim did not answer within {} s", ANSWER_WITHIN.as_secs())]
    Silent,
    /// The shim answered, and said no.
    #[error("{0}")]
    Refused(String),
    /// The two programs do not understand each other.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}
