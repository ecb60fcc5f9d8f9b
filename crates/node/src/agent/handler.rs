//! What the API server may ask of a node: logs, programs in containers, ports, statistics.
//!
//! Needs nothing but the pods' folders and their shims, so a stream goes on whatever a pod's worker does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ambient::Ambient;
use async_trait::async_trait;
use bytes::Bytes;
use nodeconn::{Error, ExitStatus, Frame, NodeHandler, Stream, StreamRequest, Target};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::fill::Fill;
use super::logs::{Reader, Wanted};
use super::metrics::Metrics;
use super::usage::Sampler;
use crate::config::Config;
use crate::network;
use crate::shim::Shim;
use crate::shim::client::{Exec, ExecEvent};
use crate::shim::protocol::{ExecExit, ExecRequest};
use crate::shim::spec::ShimSpec;
use crate::shim::state::{ContainerState, Phase, PodState, Status};

/// First pause of a follower at the end of a log; it doubles while nothing comes.
const FOLLOW_FIRST: Duration = Duration::from_millis(10);
/// Longest pause of a follower.
const FOLLOW_MAX: Duration = Duration::from_millis(250);
/// Bytes of a forwarded port in one frame.
const CHUNK: usize = 32 * 1024;

/// Answers streams from the pods' folders.
#[derive(Debug)]
pub struct Handler {
    config: Config,
    sampler: Sampler,
    fill: Fill,
    metrics: Arc<Metrics>,
}

impl Handler {
    /// For that node, whose agent counts there.
    pub fn new(config: Config, metrics: Arc<Metrics>, ambient: Ambient) -> Self {
        let sampler = Sampler::new(config.clone(), ambient.clone());
        Self { sampler, fill: Fill::new(config.clone(), ambient), metrics, config }
    }

    fn dir(&self, target: &Target) -> Result<PathBuf, Error> {
        let plain = !target.uid.is_empty() && target.uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let dir = self.config.pod_dir(&target.uid);
        let known =
            plain && ShimSpec::read(&dir).is_ok_and(|s| s.namespace == target.namespace && s.name == target.pod);
        if known { Ok(dir) } else { Err(not_found(target)) }
    }

    fn state(&self, target: &Target) -> Result<PodState, Error> {
        let dir = self.dir(target)?;
        let read = PodState::read(&dir).map_err(|e| Error::Failed(e.to_string()))?;
        read.ok_or_else(|| Error::BadRequest(format!("pod {} has not been started yet", target.pod)))
    }

    /// The container that is meant, in its newest state.
    fn container(&self, target: &Target) -> Result<ContainerState, Error> {
        let state = self.state(target)?;
        let found = state.container(&target.container).cloned();
        found.ok_or_else(|| {
            Error::BadRequest(format!("container {} is not valid for pod {}", target.container, target.pod))
        })
    }

    async fn log(&self, request: LogRequest, stream: &Stream) -> Result<(), Error> {
        let target = &request.target;
        let container = self.container(target)?;
        let restart = which_run(target, &container, request.previous)?;
        let folder = self.config.pod_logs(&target.namespace, &target.pod, &target.uid);
        let mut reader = Reader::open(&folder, &target.container, restart, request.wanted.clone()).map_err(failed)?;
        let mut left = request.limit.unwrap_or(u64::MAX);
        let mut pause = FOLLOW_FIRST;
        loop {
            // Asked before reading: what was written before the end is read after it.
            let over = !request.follow || request.previous || self.run_is_over(target, restart);
            let mut text = reader.read().map_err(failed)?;
            if !text.is_empty() {
                text.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                left -= text.len() as u64;
                if stream.tx.send(Frame::Stdout(text.into())).await.is_err() || left == 0 {
                    return Ok(());
                }
                pause = FOLLOW_FIRST;
                continue;
            }
            if over || stream.tx.is_closed() {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(FOLLOW_MAX);
        }
    }

    /// Whether nothing more will be written to that run's log.
    fn run_is_over(&self, target: &Target, restart: u32) -> bool {
        let Ok(state) = self.state(target) else { return true };
        let Some(container) = state.container(&target.container) else { return true };
        state.phase == Phase::Finished || container.restart_count > restart || !container.state.is_running()
    }

    async fn exec(&self, request: ExecRequest, target: &Target, stream: Stream) -> Result<(), Error> {
        let dir = self.dir(target)?;
        let container = self.container(target)?;
        if !container.state.is_running() {
            return Err(Error::BadRequest(format!("container {} is not running", target.container)));
        }
        let shim = Shim::connect(&dir).await.map_err(|e| Error::Failed(e.to_string()))?;
        let exec = shim.exec(request).await.map_err(|e| Error::Failed(e.to_string()))?;
        bridge(exec, stream, ending).await;
        Ok(())
    }

    /// The streams of the container's own program, from now on. Its end is told without its exit code, which is the
    /// pod's to tell.
    async fn attach(&self, target: &Target, stdin: bool, stream: Stream) -> Result<(), Error> {
        let dir = self.dir(target)?;
        let container = self.container(target)?;
        if !container.state.is_running() {
            return Err(Error::BadRequest(format!("container {} is not running", target.container)));
        }
        let shim = Shim::connect(&dir).await.map_err(|e| Error::Failed(e.to_string()))?;
        let streams = shim.attach(&target.container, stdin).await.map_err(|e| Error::Failed(e.to_string()))?;
        // Nothing may come for long: the caller is told that it is attached.
        let _ = stream.tx.send(Frame::Stdout(Bytes::new())).await;
        bridge(streams, stream, |_| ExitStatus::Code(0)).await;
        Ok(())
    }

    async fn port_forward(&self, target: &Target, port: u16, stream: Stream) -> Result<(), Error> {
        let state = self.state(target)?;
        if state.phase != Phase::Running {
            return Err(Error::BadRequest(format!("pod {} is not running", target.pod)));
        }
        let refused =
            |e| Error::BadRequest(format!("failed to connect to localhost:{port} inside pod {}: {e}", target.pod));
        let socket = network::connect_inside(state.shim_pid, port).await.map_err(refused)?;
        let (mut read, mut write) = socket.into_split();
        let Stream { tx, mut rx } = stream;
        let there = async {
            while let Some(frame) = rx.recv().await {
                match frame {
                    Frame::Stdin(bytes) => write.write_all(&bytes).await?,
                    Frame::StdinEof => break,
                    _ => {}
                }
            }
            write.shutdown().await
        };
        let back = async {
            let mut buffer = vec![0; CHUNK];
            loop {
                let n = read.read(&mut buffer).await?;
                if n == 0 || tx.send(Frame::Stdout(Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
                    return Ok(());
                }
            }
        };
        let both: Result<((), ()), std::io::Error> = tokio::select! {
            // The pod's side decides when it is over: it may answer after the caller has half-closed.
            ended = back => ended.map(|()| ((), ())),
            broken = async { there.await?; std::future::pending().await } => broken,
            () = tx.closed() => Ok(((), ())),
        };
        both.map(drop).map_err(failed)
    }
}

#[async_trait]
impl NodeHandler for Handler {
    async fn handle(&self, request: StreamRequest, stream: Stream) -> Result<(), Error> {
        match request {
            StreamRequest::Log { target, follow, previous, timestamps, since_time, tail_lines, limit_bytes } => {
                let since = since_time.map(|t| t.parse()).transpose();
                let since = since.map_err(|e| Error::BadRequest(format!("sinceTime is not a time: {e}")))?;
                let wanted = Wanted { timestamps, since, tail: tail_lines };
                self.log(LogRequest { target, follow, previous, limit: limit_bytes, wanted }, &stream).await
            }
            StreamRequest::Exec { target, command, stdin, tty } => {
                let container = target.container.clone();
                let request = ExecRequest { container, argv: command, stdin, tty, ..ExecRequest::default() };
                self.exec(request, &target, stream).await
            }
            StreamRequest::Attach { target, stdin, tty: _ } => self.attach(&target, stdin, stream).await,
            StreamRequest::PortForward { target, port } => self.port_forward(&target, port, stream).await,
            StreamRequest::Stats => tell(&stream, &self.sampler.document().await).await,
            StreamRequest::Volumes => tell(&stream, &self.fill.document().await).await,
            StreamRequest::Metrics => tell(&stream, &self.metrics.text().into()).await,
        }
    }
}

/// Sends one document. Where nobody reads it any more, that is all right.
async fn tell(stream: &Stream, document: &serde_json::Value) -> Result<(), Error> {
    let _ = stream.tx.send(Frame::Stdout(document.to_string().into())).await;
    Ok(())
}

/// How a program ended.
fn ending(exit: ExecExit) -> ExitStatus {
    if exit.message.is_empty() { ExitStatus::Code(exit.code) } else { ExitStatus::Error(exit.message) }
}

/// Moves bytes both ways until the program has ended or the caller is gone.
async fn bridge(exec: Exec, stream: Stream, ending: impl Fn(ExecExit) -> ExitStatus) {
    let (mut output, mut input) = (exec.output, exec.input);
    let Stream { tx, mut rx } = stream;
    let forward = async {
        while let Some(frame) = rx.recv().await {
            let sent = match frame {
                Frame::Stdin(bytes) => input.write(&bytes).await,
                Frame::StdinEof => input.close().await,
                Frame::Resize { width, height } => input.resize(width, height).await,
                _ => Ok(()),
            };
            if sent.is_err() {
                break;
            }
        }
        // The caller half-closed: the program's input ends, its output does not.
        let _ = input.close().await;
        std::future::pending::<()>().await;
    };
    let back = async {
        loop {
            let frame = match output.next().await {
                Ok(ExecEvent::Stdout(bytes)) => Frame::Stdout(bytes),
                Ok(ExecEvent::Stderr(bytes)) => Frame::Stderr(bytes),
                Ok(ExecEvent::Exit(exit)) => Frame::Exit(ending(exit)),
                Err(error) => Frame::Exit(ExitStatus::Error(error.to_string())),
            };
            let last = matches!(frame, Frame::Exit(_));
            if tx.send(frame).await.is_err() || last {
                return;
            }
        }
    };
    tokio::select! {
        () = forward => {}
        () = back => {}
        () = tx.closed() => {}
    }
}

/// What of which log.
struct LogRequest {
    target: Target,
    follow: bool,
    previous: bool,
    limit: Option<u64>,
    wanted: Wanted,
}

/// The run whose log is meant.
fn which_run(target: &Target, container: &ContainerState, previous: bool) -> Result<u32, Error> {
    let (name, pod) = (&target.container, &target.pod);
    // A container that waits after a run shows that run; its restart count is raised when the next one starts.
    if !previous {
        if let Status::Waiting { reason, .. } = &container.state
            && container.id.is_empty()
            && container.restart_count == 0
        {
            let message = format!("container \"{name}\" in pod \"{pod}\" is waiting to start: {reason}");
            return Err(Error::BadRequest(message));
        }
        return Ok(container.restart_count);
    }
    let earlier = container.restart_count.checked_sub(1);
    earlier.ok_or_else(|| {
        Error::BadRequest(format!("previous terminated container \"{name}\" in pod \"{pod}\" not found"))
    })
}

fn not_found(target: &Target) -> Error {
    Error::NotFound(format!("pod {} (uid {}) does not run on this node", target.pod, target.uid))
}

fn failed(error: std::io::Error) -> Error {
    Error::Failed(error.to_string())
}
