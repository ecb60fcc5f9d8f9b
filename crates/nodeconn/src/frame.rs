//! How frames look inside HTTP/2 DATA: one byte of kind, four of length (big endian), then the payload.
//!
//! DATA boundaries mean nothing; a frame may be cut anywhere. Data larger than [`MAX_CHUNK`] is cut by the sender,
//! so a receiver never has to hold more than [`MAX_PAYLOAD`] of one frame.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{Error, ExitStatus, Frame, StreamRequest};

/// Bytes of data in one frame that a sender makes.
pub(crate) const MAX_CHUNK: usize = 32 * 1024;

/// Bytes of payload in one frame that a receiver takes: room for a long exec command.
pub(crate) const MAX_PAYLOAD: usize = 1024 * 1024;

/// Characters of an error's sentence: at most six bytes each in JSON, a quarter of a frame.
const MAX_MESSAGE_CHARS: usize = 32 * 1024;

/// Kind and length.
const HEADER: usize = 5;

/// What is on the wire: the frames that users see, and two that the connection itself uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    /// First from the server: what is asked.
    Request(Box<StreamRequest>),
    /// First or last from the agent: why not.
    Refused(Error),
    /// A frame of the stream.
    Frame(Frame),
}

const REQUEST: u8 = 0;
const STDIN: u8 = 1;
const STDIN_EOF: u8 = 2;
const STDOUT: u8 = 3;
const STDERR: u8 = 4;
const RESIZE: u8 = 5;
const EXIT: u8 = 6;
const REFUSED: u8 = 7;

impl Wire {
    /// The encoded pieces, in order; large data becomes several frames.
    pub(crate) fn encode(&self) -> Vec<Bytes> {
        match self {
            Self::Request(request) => vec![packed(REQUEST, &json(request))],
            Self::Refused(error) => vec![packed(REFUSED, &json(&shortened(error)))],
            Self::Frame(frame) => match frame {
                Frame::Stdin(data) => chunks(STDIN, data),
                Frame::StdinEof => vec![packed(STDIN_EOF, &[])],
                Frame::Stdout(data) => chunks(STDOUT, data),
                Frame::Stderr(data) => chunks(STDERR, data),
                Frame::Resize { width, height } => {
                    let mut payload = [0u8; 4];
                    payload[..2].copy_from_slice(&width.to_be_bytes());
                    payload[2..].copy_from_slice(&height.to_be_bytes());
                    vec![packed(RESIZE, &payload)]
                }
                Frame::Exit(ExitStatus::Error(why)) => vec![packed(EXIT, &json(&ExitStatus::Error(short(why))))],
                Frame::Exit(status) => vec![packed(EXIT, &json(status))],
            },
        }
    }

    fn decode(kind: u8, payload: Bytes) -> Result<Self, Garbled> {
        let frame = match kind {
            REQUEST => return Ok(Self::Request(Box::new(parsed(&payload)?))),
            REFUSED => return Ok(Self::Refused(parsed(&payload)?)),
            STDIN => Frame::Stdin(payload),
            STDIN_EOF => Frame::StdinEof,
            STDOUT => Frame::Stdout(payload),
            STDERR => Frame::Stderr(payload),
            RESIZE => {
                let size: [u8; 4] = payload[..].try_into().map_err(|_| Garbled::Payload)?;
                Frame::Resize {
                    width: u16::from_be_bytes([size[0], size[1]]),
                    height: u16::from_be_bytes([size[2], size[3]]),
                }
            }
            EXIT => Frame::Exit(parsed::<ExitStatus>(&payload)?),
            other => return Err(Garbled::Kind(other)),
        };
        Ok(Self::Frame(frame))
    }
}

fn json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("these types have string keys only")
}

fn parsed<T: serde::de::DeserializeOwned>(payload: &[u8]) -> Result<T, Garbled> {
    serde_json::from_slice(payload).map_err(|_| Garbled::Payload)
}

/// An error whose sentence fits into a frame, however much output somebody put into it.
fn shortened(error: &Error) -> Error {
    match error {
        Error::NotConnected(text) => Error::NotConnected(short(text)),
        Error::NotFound(text) => Error::NotFound(short(text)),
        Error::BadRequest(text) => Error::BadRequest(short(text)),
        Error::Failed(text) => Error::Failed(short(text)),
    }
}

fn short(text: &str) -> String {
    text.chars().take(MAX_MESSAGE_CHARS).collect()
}

fn packed(kind: u8, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER + payload.len());
    out.put_u8(kind);
    out.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    out.put_slice(payload);
    out.freeze()
}

/// Header and data stay separate pieces, so that data is not copied.
fn chunks(kind: u8, data: &Bytes) -> Vec<Bytes> {
    if data.is_empty() {
        return vec![packed(kind, &[])];
    }
    let mut out = Vec::with_capacity(2 * data.len().div_ceil(MAX_CHUNK));
    let mut rest = data.clone();
    while !rest.is_empty() {
        let chunk = rest.split_to(rest.len().min(MAX_CHUNK));
        let mut header = BytesMut::with_capacity(HEADER);
        header.put_u8(kind);
        header.put_u32(u32::try_from(chunk.len()).unwrap_or(u32::MAX));
        out.push(header.freeze());
        out.push(chunk);
    }
    out
}

/// Puts frames together again from pieces that were cut anywhere.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Takes what arrived.
    pub(crate) fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The next whole frame, if there is one.
    pub(crate) fn next(&mut self) -> Result<Option<Wire>, Garbled> {
        if self.buffer.len() < HEADER {
            return Ok(None);
        }
        let length = u32::from_be_bytes([self.buffer[1], self.buffer[2], self.buffer[3], self.buffer[4]]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MAX_PAYLOAD {
            return Err(Garbled::Long(length));
        }
        if self.buffer.len() < HEADER + length {
            return Ok(None);
        }
        let kind = self.buffer[0];
        self.buffer.advance(HEADER);
        let payload = self.buffer.split_to(length).freeze();
        Wire::decode(kind, payload).map(Some)
    }

    /// Whether part of a frame is waiting for the rest.
    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

/// What makes a peer's bytes no frames of ours. The stream is given up.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Garbled {
    /// An unknown kind: a newer peer, or none of ours. Run the same minor version on both sides.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// Longer than any sender of ours makes.
    #[error("frame of {0} bytes is too long")]
    Long(usize),
    /// The payload does not fit its kind.
    #[error("malformed frame payload")]
    Payload,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        let data = proptest::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        prop_oneof![
            data.clone().prop_map(Frame::Stdin),
            Just(Frame::StdinEof),
            data.clone().prop_map(Frame::Stdout),
            data.prop_map(Frame::Stderr),
            (any::<u16>(), any::<u16>()).prop_map(|(width, height)| Frame::Resize { width, height }),
            any::<i32>().prop_map(|code| Frame::Exit(ExitStatus::Code(code))),
            ".*".prop_map(|why| Frame::Exit(ExitStatus::Error(why))),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(frames in proptest::collection::vec(any_frame(), 0..10), step in 1usize..50) {
            let bytes: Vec<u8> =
                frames.iter().flat_map(|f| Wire::Frame(f.clone()).encode()).flat_map(|b| b.to_vec()).collect();
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in bytes.chunks(step) {
                decoder.push(piece);
                while let Some(wire) = decoder.next().unwrap() {
                    seen.push(wire);
                }
            }
            prop_assert!(decoder.is_empty());
            prop_assert_eq!(seen, frames.into_iter().map(Wire::Frame).collect::<Vec<_>>());
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next() {}
        }
    }

    #[test]
    fn large_data_is_cut_and_keeps_its_order() {
        let data: Bytes = (0..=255u8).cycle().take(3 * MAX_CHUNK + 17).collect();
        let mut decoder = Decoder::default();
        for piece in Wire::Frame(Frame::Stdout(data.clone())).encode() {
            decoder.push(&piece);
        }
        let mut back = Vec::new();
        while let Some(Wire::Frame(Frame::Stdout(piece))) = decoder.next().unwrap() {
            assert!(piece.len() <= MAX_CHUNK);
            back.extend_from_slice(&piece);
        }
        assert_eq!(back, data);
    }

    #[test]
    fn an_endless_error_is_cut_to_fit() {
        let mut decoder = Decoder::default();
        let error = Error::Failed("\u{1}".repeat(2 * MAX_PAYLOAD));
        for piece in Wire::Refused(error).encode() {
            decoder.push(&piece);
        }
        assert!(matches!(decoder.next(), Ok(Some(Wire::Refused(Error::Failed(_))))));
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_it_is_buffered() {
        let mut decoder = Decoder::default();
        decoder.push(&[STDOUT, 0x7f, 0xff, 0xff, 0xff]);
        assert_eq!(decoder.next(), Err(Garbled::Long(0x7fff_ffff)));
    }
}
