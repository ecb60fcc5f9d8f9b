//! The little of gRPC and protobuf that a benchmark needs: messages of a few fields, written and read by hand. Sources: the
//! protocol buffers encoding guide; "gRPC over HTTP2".

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// Wire types.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FIXED_32: u64 = 5;
/// What a message begins with in a stream: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Adds a length-delimited field (text, bytes, a message).
pub(super) fn field(message: &mut BytesMut, number: u8, bytes: &[u8]) {
    message.put_u8(number << 3 | LENGTH_DELIMITED as u8);
    put_varint(message, bytes.len() as u64);
    message.put_slice(bytes);
}

/// Adds a number.
pub(super) fn number(message: &mut BytesMut, field: u8, value: u64) {
    message.put_u8(field << 3 | VARINT as u8);
    put_varint(message, value);
}

fn put_varint(message: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        message.put_u8((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    message.put_u8(value as u8);
}

/// A field's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// A number, a yes or no.
    Number(u64),
    /// Text, bytes, a message.
    Bytes(&'a [u8]),
}

/// The fields of a message with their numbers, up to where it is broken. Those of a fixed width are passed over.
pub(super) fn fields(mut message: &[u8]) -> impl Iterator<Item = (u64, Value<'_>)> {
    std::iter::from_fn(move || {
        while message.has_remaining() {
            let key = get_varint(&mut message)?;
            let length = match key & 7 {
                VARINT => return Some((key >> 3, Value::Number(get_varint(&mut message)?))),
                FIXED_64 => 8,
                FIXED_32 => 4,
                LENGTH_DELIMITED => usize::try_from(get_varint(&mut message)?).ok()?,
                _ => return None,
            };
            let (found, rest) = message.split_at_checked(length)?;
            message = rest;
            if key & 7 == LENGTH_DELIMITED {
                return Some((key >> 3, Value::Bytes(found)));
            }
        }
        None
    })
}

/// The first field of that number that is no number itself.
pub(super) fn find(message: &[u8], wanted: u64) -> Option<&[u8]> {
    fields(message).find_map(|(number, value)| match value {
        Value::Bytes(bytes) if number == wanted => Some(bytes),
        _ => None,
    })
}

fn get_varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = message.try_get_u8().ok()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// A message as gRPC sends it: not compressed, its length, itself.
pub(super) fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(message.len() + PREFIX);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).expect("messages are small"));
    frame.put_slice(message);
    frame.freeze()
}

/// The message of an answer that holds one. None where it is compressed or cut.
pub(super) fn unframed(mut frame: Bytes) -> Option<Bytes> {
    let compressed = frame.try_get_u8().ok()?;
    let length = usize::try_from(frame.try_get_u32().ok()?).ok()?;
    (compressed == 0 && frame.len() >= length).then(|| frame.split_to(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_encoded_as_protobuf_has_it() {
        let mut message = BytesMut::new();
        field(&mut message, 1, b"key");
        field(&mut message, 2, &[7; 300]);
        assert_eq!(message[..5], [0x0a, 3, b'k', b'e', b'y']);
        assert_eq!(message[5..8], [0x12, 0xac, 0x02]);
        assert_eq!(message.len(), 308);
        assert_eq!(framed(b"ab")[..], [0, 0, 0, 0, 2, b'a', b'b']);
    }

    #[test]
    fn fields_are_found_behind_others() {
        let mut message = BytesMut::new();
        number(&mut message, 3, 300);
        field(&mut message, 1, b"one");
        message.put_slice(&[5 << 3 | 5, 1, 2, 3, 4, 6 << 3 | 1, 1, 2, 3, 4, 5, 6, 7, 8]);
        field(&mut message, 2, b"two");
        assert_eq!(find(&message, 1), Some(&b"one"[..]));
        assert_eq!(find(&message, 2), Some(&b"two"[..]));
        assert_eq!(find(&message, 3), None, "a number is no text");
        assert_eq!(find(&message, 9), None);
        assert_eq!(fields(&message).next(), Some((3, Value::Number(300))));
        assert_eq!(fields(&message).count(), 3);
        for cut in 0..message.len() {
            assert!(find(&message[..cut], 2).is_none(), "{cut}");
        }
    }

    #[test]
    fn an_answer_is_taken_out_of_its_frame() {
        assert_eq!(unframed(framed(b"ab")).as_deref(), Some(&b"ab"[..]));
        assert_eq!(unframed(Bytes::from_static(&[0, 0, 0, 0, 9, 1])), None);
        assert_eq!(unframed(Bytes::from_static(&[1, 0, 0, 0, 0])), None);
        assert_eq!(unframed(Bytes::new()), None);
    }
}
