//! SPDY/3.1 frames, as far as Kubernetes' clients use them.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Broken;

/// Largest frame taken; clients send data in far smaller ones.
const MAX_FRAME: usize = 1024 * 1024;

/// Bytes before the payload of every frame.
const HEAD: usize = 8;

/// Bit that tells control frames from data.
const CONTROL: u32 = 0x8000_0000;

const VERSION: u32 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// The sender is done with the stream.
const FIN: u8 = 1;

/// A frame that was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// Opens a stream.
    Syn {
        /// Odd, from a client.
        id: u32,
        /// Nothing more will come on it.
        fin: bool,
        /// Compressed headers.
        block: Bytes,
    },
    /// Headers that come later, or in answer; only their compression matters.
    Headers(Bytes),
    /// Bytes of a stream.
    Data {
        /// Which.
        id: u32,
        /// The last of them.
        fin: bool,
        /// The bytes.
        data: Bytes,
    },
    /// A stream is given up.
    Reset(u32),
    /// To be answered with the same number.
    Ping(u32),
    /// No more streams will come.
    GoAway,
    /// Settings, windows, and what is not known.
    Other,
}

/// Puts frames together from bytes that were cut anywhere.
#[derive(Default)]
pub(super) struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    pub(super) fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The next whole frame.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, Broken> {
        let Some(head) = self.buffer.first_chunk::<HEAD>() else { return Ok(None) };
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let flags = head[4];
        let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
        if length > MAX_FRAME {
            return Err(Broken("a frame is too long"));
        }
        if self.buffer.len() < HEAD + length {
            return Ok(None);
        }
        self.buffer.advance(HEAD);
        let mut data = self.buffer.split_to(length).freeze();
        let fin = flags & FIN != 0;
        if first & CONTROL == 0 {
            return Ok(Some(Frame::Data { id: first, fin, data }));
        }
        if (first & !CONTROL) >> 16 != VERSION {
            return Err(Broken("another version of SPDY"));
        }
        let mut number = || {
            let bytes = data.first_chunk::<4>().copied().ok_or(Broken("a frame is cut"))?;
            data.advance(4);
            Ok(u32::from_be_bytes(bytes) & !CONTROL)
        };
        Ok(Some(match first as u16 {
            SYN_STREAM => {
                let (id, _associated) = (number()?, number()?);
                // Priority and slot.
                if data.len() < 2 {
                    return Err(Broken("a frame is cut"));
                }
                data.advance(2);
                Frame::Syn { id, fin, block: data }
            }
            SYN_REPLY | HEADERS => {
                number()?;
                Frame::Headers(data)
            }
            RST_STREAM => Frame::Reset(number()?),
            PING => Frame::Ping(number()?),
            GOAWAY => Frame::GoAway,
            _ => Frame::Other,
        }))
    }
}

/// Accepts a stream; the block is of no headers.
pub(super) fn reply(id: u32, block: &[u8]) -> Bytes {
    let mut payload = BytesMut::with_capacity(4 + block.len());
    payload.put_u32(id);
    payload.put_slice(block);
    control(SYN_REPLY, &payload)
}

/// Gives a stream up.
pub(super) fn reset(id: u32, status: u32) -> Bytes {
    let mut payload = BytesMut::with_capacity(8);
    payload.put_u32(id);
    payload.put_u32(status);
    control(RST_STREAM, &payload)
}

/// Answers a ping.
pub(super) fn ping(number: u32) -> Bytes {
    control(PING, &number.to_be_bytes())
}

fn control(kind: u16, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEAD + payload.len());
    out.put_u32(CONTROL | VERSION << 16 | u32::from(kind));
    out.put_u32(u32::try_from(payload.len()).expect("our own frames are short"));
    out.put_slice(payload);
    out.freeze()
}

/// Bytes on a stream.
pub(super) fn data(id: u32, fin: bool, data: &[u8]) -> Bytes {
    debug_assert!(data.len() <= MAX_FRAME, "a node's frames are smaller");
    let mut out = BytesMut::with_capacity(HEAD + data.len());
    out.put_u32(id);
    out.put_u32(u32::from(if fin { FIN } else { 0 }) << 24 | u32::try_from(data.len()).expect("checked above"));
    out.put_slice(data);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_are_read_wherever_they_are_cut() {
        let bytes = [data(5, true, b"hello"), ping(7), reset(9, 5), reply(11, b"block")].concat();
        let expected = [
            Frame::Data { id: 5, fin: true, data: "hello".into() },
            Frame::Ping(7),
            Frame::Reset(9),
            Frame::Headers("block".into()),
        ];
        for step in 1..bytes.len() {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in bytes.chunks(step) {
                decoder.push(piece);
                while let Some(frame) = decoder.next().unwrap() {
                    seen.push(frame);
                }
            }
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn another_version_and_endless_frames_are_refused() {
        let mut decoder = Decoder::default();
        decoder.push(&[0x80, 2, 0, 1, 0, 0, 0, 0]);
        assert!(decoder.next().is_err());
        let mut decoder = Decoder::default();
        decoder.push(&[0, 0, 0, 1, 0, 0xff, 0xff, 0xff]);
        assert!(decoder.next().is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next() {}
        }
    }
}
