//! The words spoken over a shim's socket (`shim.sock` in the pod's folder).
//!
//! A frame is a 4-byte big-endian length of what follows, one byte that says what the payload is, and the
//! payload: JSON, or raw bytes of a stream. Both sides open with a [`Hello`]. Then the client sends one
//! [`Request`] per connection:
//!
//! - most are answered with one [`Reply`], after which the shim closes;
//! - [`Request::Subscribe`] is answered with a [`Reply::State`] now and after each change (a slow reader
//!   gets the newest state and misses those between);
//! - [`Request::Attach`] does as [`Request::Exec`], for the streams of a container's own program, which lives on when
//!   the client leaves;
//! - [`Request::Exec`] turns the connection into the streams of that program: [`Kind::Stdin`] (empty = end
//!   of input) and [`ExecControl`] from the client, [`Kind::Stdout`], [`Kind::Stderr`] and at last
//!   [`Reply::Exit`] from the shim. A client that closes its own direction ends the input; when it closes both, the
//!   program is killed.
//!
//! A program that does not know the other's version refuses; it never guesses.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::spec::{ContainerSpec, Limits};
use super::state::PodState;

/// File name of the socket in the pod's folder.
pub const SOCKET_FILE: &str = "shim.sock";

/// Version that this program speaks.
pub const VERSION: u32 = 1;
/// Oldest version that this program still speaks.
pub const OLDEST_VERSION: u32 = 1;

const MAGIC: &str = "statefuld-shim";

/// Longest payload of a frame, bytes.
pub const MAX_FRAME: usize = 4 * 1024 * 1024;

/// Most bytes put into one stream frame.
pub const MAX_CHUNK: usize = 32 * 1024;

/// First frame of both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// Says that this is a shim's protocol.
    pub magic: String,
    /// Newest version that the sender speaks.
    pub version: u32,
    /// Oldest version that the sender speaks.
    pub oldest: u32,
}

impl Hello {
    /// What this program says.
    pub fn ours() -> Self {
        Self { magic: MAGIC.into(), version: VERSION, oldest: OLDEST_VERSION }
    }

    /// The version to speak with a peer that said this.
    pub fn agree(&self) -> Result<u32, ProtocolError> {
        if self.magic != MAGIC {
            return Err(ProtocolError::NotAShim);
        }
        let version = self.version.min(VERSION);
        if version < self.oldest || version < OLDEST_VERSION {
            return Err(ProtocolError::Version { theirs: self.version, ours: VERSION });
        }
        Ok(version)
    }
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Request {
    /// The state now.
    State,
    /// The state now and after every change.
    Subscribe {
        /// The client answers containers that ask what they are to be ([`Request::Respecify`]).
        #[serde(default)]
        answers: bool,
    },
    /// Start the containers. Asking again changes nothing.
    Start,
    /// End all containers: preStop, stop signal, SIGKILL after the grace period. A later, shorter grace shortens.
    #[serde(rename_all = "camelCase")]
    Stop {
        /// From now on, milliseconds; 0 kills at once.
        grace_ms: u64,
    },
    /// Stop one container and start it again by the pod's restart policy (a failed liveness probe).
    #[serde(rename_all = "camelCase")]
    Restart {
        /// Its name.
        container: String,
        /// Grace period, milliseconds.
        grace_ms: u64,
        /// Put into the termination's message.
        message: String,
    },
    /// A container's startup probe succeeded: what waits for it may start. Saying it again changes nothing.
    Started {
        /// Its name.
        container: String,
    },
    /// What a container that asks is to be from its next start on. Its limits and counts stay. Saying it to one that does
    /// not ask changes nothing.
    Respecify {
        /// All of it; name and role are those that it has.
        container: Box<ContainerSpec>,
    },
    /// SIGKILL for everything, now.
    Kill,
    /// The final state was recorded elsewhere: the shim may exit. Refused unless the pod is finished.
    Acknowledge,
    /// Run a program in a running container.
    Exec(ExecRequest),
    /// Add an ephemeral container to a running pod. Asking again for one that is there changes nothing.
    Add {
        /// What to run; of role [`super::spec::Role::Ephemeral`].
        container: Box<ContainerSpec>,
    },
    /// Change the limits of a container, and of the pod as a whole.
    Resize {
        /// Its name.
        container: String,
        /// Its new limits.
        limits: Limits,
        /// Those of all containers together.
        pod: Limits,
    },
    /// Take part in the streams of a running container's own program, from now on.
    Attach {
        /// Its name.
        container: String,
        /// Whether stdin frames will follow; they go where the container has a stdin.
        stdin: bool,
    },
}

/// A program to run in a running container, with that container's environment, user and limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecRequest {
    /// Name of the container.
    pub container: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Give it a terminal; everything it prints is then stdout.
    #[serde(default)]
    pub tty: bool,
    /// Whether stdin frames will follow; otherwise `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
    /// First size of the terminal: columns, rows.
    #[serde(default)]
    pub size: Option<(u16, u16)>,
    /// Kill it after this time, milliseconds.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

/// What a client says while its program runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum ExecControl {
    /// The terminal has a new size.
    Resize {
        /// Width in characters.
        columns: u16,
        /// Height in characters.
        rows: u16,
    },
}

/// What the shim answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Reply {
    /// Done, or begun.
    Ok,
    /// The state.
    State {
        /// All of it.
        state: Box<PodState>,
    },
    /// The exec began.
    Started,
    /// The exec ended; nothing follows.
    Exit(ExecExit),
    /// Refused.
    Error {
        /// One sentence.
        message: String,
    },
}

/// How an exec ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecExit {
    /// Exit code; 128 + signal where a signal ended it; 126/127 where the program could not be run or found.
    pub code: i32,
    /// The signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// True where the time-out ended it.
    #[serde(default)]
    pub timed_out: bool,
    /// Why it could not be run.
    #[serde(default)]
    pub message: String,
}

/// What a frame's payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A message of this module.
    Json = 0,
    /// Bytes for the program; none of them means end of input.
    Stdin = 1,
    /// Bytes of the program.
    Stdout = 2,
    /// Bytes of the program.
    Stderr = 3,
}

impl Kind {
    fn from_byte(byte: u8) -> Result<Self, ProtocolError> {
        Ok(match byte {
            0 => Kind::Json,
            1 => Kind::Stdin,
            2 => Kind::Stdout,
            3 => Kind::Stderr,
            other => return Err(ProtocolError::Kind(other)),
        })
    }
}

/// A frame taken from or put onto the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the payload is.
    pub kind: Kind,
    /// The payload.
    pub payload: Vec<u8>,
}

/// Bytes before the payload: length and kind.
pub const HEADER: usize = 5;

impl Frame {
    /// A message as a frame.
    pub fn json<T: Serialize>(message: &T) -> Self {
        let payload = serde_json::to_vec(message).expect("messages have string keys and no failing serializers");
        Self { kind: Kind::Json, payload }
    }

    /// The message in this frame.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ProtocolError> {
        if self.kind != Kind::Json {
            return Err(ProtocolError::Kind(self.kind as u8));
        }
        Ok(serde_json::from_slice(&self.payload)?)
    }

    /// Appends the frame to a buffer.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode(self.kind, &self.payload, out);
    }

    /// Takes the first whole frame off a buffer; None where more bytes are needed.
    pub fn decode(buffer: &mut Vec<u8>) -> Result<Option<Self>, ProtocolError> {
        let Some((length, kind)) = header(buffer)? else { return Ok(None) };
        if buffer.len() < HEADER + length {
            return Ok(None);
        }
        let payload = buffer[HEADER..HEADER + length].to_vec();
        buffer.drain(..HEADER + length);
        Ok(Some(Self { kind, payload }))
    }
}

/// Appends a frame to a buffer.
pub fn encode(kind: Kind, payload: &[u8], out: &mut Vec<u8>) {
    debug_assert!(payload.len() <= MAX_FRAME, "callers split what may be long");
    let length = u32::try_from(payload.len() + 1).expect("payloads are shorter than MAX_FRAME");
    out.extend_from_slice(&length.to_be_bytes());
    out.push(kind as u8);
    out.extend_from_slice(payload);
}

/// Payload length and kind of the frame that a buffer starts with; None where the header is incomplete.
pub fn header(buffer: &[u8]) -> Result<Option<(usize, Kind)>, ProtocolError> {
    let Some(head) = buffer.first_chunk::<HEADER>() else { return Ok(None) };
    let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    if length == 0 || length - 1 > MAX_FRAME {
        return Err(ProtocolError::Length(length));
    }
    Ok(Some((length - 1, Kind::from_byte(head[4])?)))
}

/// The other side does not speak as it should. Close the connection.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// Another program listens there.
    #[error("the peer is not a statefuld shim")]
    NotAShim,
    /// The programs are too far apart; stop the pod with the version that started it.
    #[error("the peer speaks version {theirs} of the shim protocol, this program {ours}")]
    Version {
        /// Theirs.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// A frame of impossible length.
    #[error("a frame of {0} bytes: longer than the protocol allows, or empty")]
    Length(usize),
    /// A frame of a kind that does not exist or does not belong here.
    #[error("a frame of unexpected kind {0}")]
    Kind(u8),
    /// A message that does not parse.
    #[error("a message that cannot be read: {0}")]
    Json(#[from] serde_json::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_survive_any_cutting(payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..5), cut in 1usize..40) {
            let mut wire = Vec::new();
            for payload in &payloads {
                encode(Kind::Stdout, payload, &mut wire);
            }
            let (mut buffer, mut got) = (Vec::new(), Vec::new());
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = Frame::decode(&mut buffer).unwrap() {
                    got.push(frame.payload);
                }
            }
            prop_assert_eq!(got, payloads);
        }

        #[test]
        fn garbage_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Frame::decode(&mut bytes);
        }
    }

    #[test]
    fn a_newer_peer_that_still_speaks_ours_is_understood() {
        let peer = Hello { version: VERSION + 1, oldest: VERSION, ..Hello::ours() };
        assert_eq!(peer.agree().unwrap(), VERSION);
    }

    #[test]
    fn strangers_and_peers_too_new_are_refused() {
        assert!(matches!(Hello { magic: "ssh".into(), ..Hello::ours() }.agree(), Err(ProtocolError::NotAShim)));
        let peer = Hello { version: VERSION + 2, oldest: VERSION + 1, ..Hello::ours() };
        assert!(matches!(peer.agree(), Err(ProtocolError::Version { .. })));
    }

    #[test]
    fn requests_read_back_as_written() {
        let request =
            Request::Exec(ExecRequest { container: "db".into(), argv: vec!["true".into()], ..Default::default() });
        assert_eq!(Frame::json(&request).parse::<Request>().unwrap(), request);
    }
}
