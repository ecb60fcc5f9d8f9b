//! One client of the shim: bytes in, messages out, and the other way round; never waits.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::protocol::{self, ExecControl, Frame, Hello, Kind, ProtocolError, Reply, Request};

/// What a connection has become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Nothing was said yet.
    Stranger,
    /// The versions were agreed on; one request is expected.
    Greeted,
    /// The request came; nothing more is expected.
    Asked,
    /// Gets every newer state than the one sent.
    Subscriber { sent: u64, answers: bool },
    /// Is the streams of that exec.
    Exec(u64),
    /// Takes part in the streams of that container.
    Attached { container: usize, stdin: bool },
}

/// What a client said.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Message {
    Request(Request),
    Input(Vec<u8>),
    Resize { columns: u16, rows: u16 },
}

/// A client.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) role: Role,
    stream: UnixStream,
    received: Vec<u8>,
    to_send: Vec<u8>,
    closing: bool,
    said_all: bool,
    /// Since when it takes nothing of what waits for it; since boot.
    stalled_since: Option<Duration>,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            role: Role::Stranger,
            stream,
            received: Vec::new(),
            to_send: Vec::new(),
            closing: false,
            said_all: false,
            stalled_since: None,
        }
    }

    /// Whether the client will say nothing more. It may still listen.
    pub(super) fn said_all(&self) -> bool {
        self.said_all
    }

    /// Takes what has come. False when nothing more will.
    pub(super) fn receive(&mut self) -> bool {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.said_all = true;
                    return false;
                }
                Ok(n) => {
                    self.received.extend_from_slice(&buffer[..n]);
                    // The rest comes next turn: others want theirs, too.
                    return true;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(_) => {
                    self.said_all = true;
                    return false;
                }
            }
        }
    }

    /// The next thing the client said; greetings are answered on the way.
    pub(super) fn next(&mut self) -> Result<Option<Message>, ProtocolError> {
        while let Some(frame) = Frame::decode(&mut self.received)? {
            match (self.role, frame.kind) {
                (_, _) if self.closing => {}
                (Role::Stranger, Kind::Json) => {
                    let hello: Hello = frame.parse()?;
                    // Ours goes out in any case, so that the other side can say what is wrong, too.
                    Frame::json(&Hello::ours()).encode(&mut self.to_send);
                    hello.agree()?;
                    self.role = Role::Greeted;
                }
                (Role::Greeted, Kind::Json) => {
                    self.role = Role::Asked;
                    return Ok(Some(Message::Request(frame.parse()?)));
                }
                (Role::Exec(_) | Role::Attached { .. }, Kind::Stdin) => return Ok(Some(Message::Input(frame.payload))),
                (Role::Exec(_) | Role::Attached { .. }, Kind::Json) => {
                    let ExecControl::Resize { columns, rows } = frame.parse()?;
                    return Ok(Some(Message::Resize { columns, rows }));
                }
                (_, kind) => return Err(ProtocolError::Kind(kind as u8)),
            }
        }
        Ok(None)
    }

    /// Says something.
    pub(super) fn send(&mut self, reply: &Reply) {
        Frame::json(reply).encode(&mut self.to_send);
    }

    /// Passes bytes of a program on.
    pub(super) fn send_bytes(&mut self, kind: Kind, bytes: &[u8]) {
        protocol::encode(kind, bytes, &mut self.to_send);
    }

    /// Nothing more will be said.
    pub(super) fn close_when_flushed(&mut self) {
        self.closing = true;
    }

    /// Whether nothing more will be said.
    pub(super) fn closing(&self) -> bool {
        self.closing
    }

    /// Whether everything said has left.
    pub(super) fn flushed(&self) -> bool {
        self.to_send.is_empty()
    }

    /// Bytes that have not left.
    pub(super) fn waiting(&self) -> usize {
        self.to_send.len()
    }

    /// Since when the client takes nothing of what waits for it; since boot.
    pub(super) fn stalled_since(&self) -> Option<Duration> {
        self.stalled_since
    }

    /// Sends what the client takes. True when the connection is over.
    pub(super) fn flush(&mut self, now: Duration) -> bool {
        while !self.to_send.is_empty() {
            match self.stream.write(&self.to_send) {
                Ok(0) => return true,
                Ok(n) => {
                    self.to_send.drain(..n);
                    self.stalled_since = None;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.stalled_since.get_or_insert(now);
                    return false;
                }
                Err(_) => return true,
            }
        }
        self.closing
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
