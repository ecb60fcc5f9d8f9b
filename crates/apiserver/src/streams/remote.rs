//! Exec and attach, whatever carries them: their options, the bridge to the node, and how they end.

use api::status::Status;
use bytes::Bytes;
use futures::{Sink, SinkExt, Stream, StreamExt};
use nodeconn::{ExitStatus, Frame, StreamRequest};
use serde_json::{Value, json};

use super::Call;
use crate::errors::Outcome;

/// What is asked of the node, and which outputs the client wants.
pub(super) struct Remote {
    /// For the node.
    pub(super) request: StreamRequest,
    /// The client wants stdout.
    pub(super) stdout: bool,
    /// The client wants stderr, and there is one apart from stdout.
    pub(super) stderr: bool,
}

impl Remote {
    /// Whether the client will send input.
    pub(super) fn stdin(&self) -> bool {
        matches!(self.request, StreamRequest::Exec { stdin: true, .. } | StreamRequest::Attach { stdin: true, .. })
    }

    /// Whether there is a terminal.
    pub(super) fn tty(&self) -> bool {
        matches!(self.request, StreamRequest::Exec { tty: true, .. } | StreamRequest::Attach { tty: true, .. })
    }
}

/// From the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FromClient {
    /// Bytes to the process.
    Stdin(Bytes),
    /// No more of them.
    StdinEof,
    /// The terminal's new size.
    Resize {
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
}

/// To the client.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ToClient {
    /// From the process.
    Stdout(Bytes),
    /// From its standard error.
    Stderr(Bytes),
    /// How it ended; the last item.
    Done(Ended),
}

/// How an exec or attach ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ended(ExitStatus);

/// `pods/exec`.
pub(super) fn exec(call: &Call<'_>) -> Outcome<Remote> {
    let wanted = Wanted::read(call)?;
    let command: Vec<String> = call.query.all("command").map(str::to_owned).collect();
    if command.is_empty() {
        return Err(Box::new(Status::bad_request("you must specify at least one command for the container")));
    }
    let target = call.target(wanted.container.clone());
    let request = StreamRequest::Exec { target, command, stdin: wanted.stdin, tty: wanted.tty };
    Ok(wanted.remote(request))
}

/// `pods/attach`.
pub(super) fn attach(call: &Call<'_>) -> Outcome<Remote> {
    let wanted = Wanted::read(call)?;
    let target = call.target(wanted.container.clone());
    let request = StreamRequest::Attach { target, stdin: wanted.stdin, tty: wanted.tty };
    Ok(wanted.remote(request))
}

/// What `PodExecOptions` and `PodAttachOptions` have in common.
struct Wanted {
    container: String,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    fn read(call: &Call<'_>) -> Outcome<Self> {
        let container = call.container()?;
        call.node()?;
        let phase = call.pod["status"]["phase"].as_str().unwrap_or_default();
        if matches!(phase, "Succeeded" | "Failed") {
            let why = format!("cannot exec into a container in a completed pod; current phase is {phase}");
            return Err(Box::new(Status::bad_request(why)));
        }
        let flag = |name: &str| call.query.flag(name);
        let tty = flag("tty");
        // A terminal has one output.
        let wanted =
            Self { container, stdin: flag("stdin"), stdout: flag("stdout"), stderr: flag("stderr") && !tty, tty };
        if !wanted.stdin && !wanted.stdout && !wanted.stderr {
            return Err(Box::new(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr")));
        }
        Ok(wanted)
    }

    fn remote(self, request: StreamRequest) -> Remote {
        Remote { request, stdout: self.stdout, stderr: self.stderr }
    }
}

/// Moves bytes both ways until the process has ended or the client is gone (`from` ends, or `to` fails). In the
/// second case the node's stream is dropped, which ends the command.
pub(super) async fn bridge<E>(
    remote: &Remote,
    node: nodeconn::Stream,
    from: impl Stream<Item = FromClient>,
    to: impl Sink<ToClient, Error = E>,
) {
    let nodeconn::Stream { tx, mut rx } = node;
    let input = async {
        let mut from = std::pin::pin!(from);
        while let Some(event) = from.next().await {
            let frame = match event {
                FromClient::Stdin(data) => Frame::Stdin(data),
                FromClient::StdinEof => Frame::StdinEof,
                FromClient::Resize { width, height } => Frame::Resize { width, height },
            };
            // A process that takes no input any more may still write: its input is thrown away.
            let _ = tx.send(frame).await;
        }
    };
    let output = async {
        let mut to = std::pin::pin!(to);
        let ended = loop {
            let item = match rx.recv().await {
                Some(Frame::Stdout(data)) if remote.stdout => ToClient::Stdout(data),
                Some(Frame::Stderr(data)) if remote.stderr => ToClient::Stderr(data),
                Some(Frame::Exit(status)) => break status,
                Some(_) => continue,
                None => break ExitStatus::Error("the node ended the stream without saying how".to_owned()),
            };
            if to.send(item).await.is_err() {
                return;
            }
        };
        // Fails where the client is gone, and then nobody is there to tell.
        let _ = to.send(ToClient::Done(Ended(ended))).await;
    };
    tokio::select! {
        () = input => {}
        () = output => {}
    }
}

impl Ended {
    /// As the error channel of version 4 and later says it.
    pub(super) fn to_status(&self) -> Value {
        match &self.0 {
            ExitStatus::Code(0) => json!({"metadata": {}, "status": "Success"}),
            ExitStatus::Code(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.message(),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            ExitStatus::Error(_) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.message(),
                "reason": "InternalError",
                "code": 500,
            }),
        }
    }

    /// For people; empty where all went well. All that older versions say.
    pub(super) fn message(&self) -> String {
        match &self.0 {
            ExitStatus::Code(0) => String::new(),
            ExitStatus::Code(code) => format!("command terminated with non-zero exit code: exit code {code}"),
            ExitStatus::Error(why) => why.clone(),
        }
    }
}
