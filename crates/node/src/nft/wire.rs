//! Netlink messages as bytes: headers, nested attributes, and reading them back. No I/O.

/// Bytes of a message's own header and of the netfilter header after it.
const HEADER: usize = 16;
/// Both headers.
pub(super) const HEADERS: usize = HEADER + 4;
/// Marks an attribute that holds attributes.
const NESTED: u16 = 0x8000;
/// The bits of an attribute's type that are its type.
const TYPE_MASK: u16 = 0x3fff;

/// Asks the kernel for something.
pub(super) const REQUEST: u16 = 1;
/// An answer is wanted.
pub(super) const ACK: u16 = 4;
/// Everything of the kind is wanted.
pub(super) const DUMP: u16 = 0x300;
/// What is missing is made.
pub(super) const CREATE: u16 = 0x400;
/// A rule goes to the end of its chain.
pub(super) const APPEND: u16 = 0x800;

/// Message types below this one are netlink's own.
const DONE: u16 = 3;
const ERROR: u16 = 2;
/// A dump during which something changed.
const INTERRUPTED: u16 = 0x10;

/// The address family IPv4.
pub(super) const IPV4: u8 = 2;

/// Messages one after the other.
#[derive(Debug, Default)]
pub(super) struct Messages {
    bytes: Vec<u8>,
    /// Where the current message begins.
    start: usize,
    /// Where attributes begin that hold the current one.
    open: Vec<usize>,
    /// How many messages there are; also the sequence number of the last.
    count: u32,
}

impl Messages {
    /// Begins a message.
    pub(super) fn begin(&mut self, kind: u16, flags: u16, family: u8, resource: u16) {
        debug_assert!(self.open.is_empty(), "attributes are closed before the next message");
        self.count += 1;
        self.start = self.bytes.len();
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&self.count.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        self.close_message();
    }

    /// The length stands at a message's beginning.
    fn close_message(&mut self) {
        let length = u32::try_from(self.bytes.len() - self.start).expect("a message has less than 4 GB");
        self.bytes[self.start..self.start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// An attribute with these bytes.
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).expect("an attribute has less than 64 kB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self.close_message();
    }

    /// A number, as nf_tables wants it.
    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A text, ended by a zero.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    /// An attribute that holds those that `fill` writes.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let at = self.bytes.len();
        self.open.push(at);
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.bytes.len() - at).expect("nested attributes have less than 64 kB");
        self.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        let opened = self.open.pop();
        debug_assert_eq!(opened, Some(at), "attributes are closed in the order of their opening");
        self.close_message();
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }

    /// Asks for an answer to the message that was written last.
    pub(super) fn want_answer(&mut self) {
        let at = self.start + 6;
        let flags = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]) | ACK;
        self.bytes[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
    }

    /// Sequence number of the last message.
    pub(super) fn last(&self) -> u32 {
        self.count
    }

    /// All bytes.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A message from the kernel.
#[derive(Debug)]
pub(super) enum Received<'a> {
    /// The answer to a message: its sequence number, and the error's number or 0.
    Answer { sequence: u32, error: i32 },
    /// An object: its message's attributes.
    Object { attributes: Attributes<'a>, interrupted: bool },
    /// A dump's end.
    Done { interrupted: bool },
}

/// Splits what was received. What is cut off is left out.
pub(super) fn received(mut bytes: &[u8]) -> Vec<Received<'_>> {
    let mut found = Vec::new();
    while let Some(length) = number_at(bytes, 0).map(|n| n as usize).filter(|n| *n >= HEADER && *n <= bytes.len()) {
        let message = &bytes[..length];
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        let interrupted = u16::from_ne_bytes([message[6], message[7]]) & INTERRUPTED != 0;
        found.push(match kind {
            ERROR => {
                let error = number_at(message, HEADER).map_or(0, |n| -(n.cast_signed()));
                Received::Answer { sequence: number_at(message, 8).unwrap_or(0), error }
            }
            DONE => Received::Done { interrupted },
            _ => Received::Object { attributes: Attributes(message.get(HEADERS..).unwrap_or_default()), interrupted },
        });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn number_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Attributes one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The bytes of the first attribute of that type.
    pub(super) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.find(|found, _| found == kind)
    }

    fn find(self, mut wanted: impl FnMut(u16, &[u8]) -> bool) -> Option<&'a [u8]> {
        let mut rest = self.0;
        while rest.len() >= 4 {
            let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
            let kind = u16::from_ne_bytes([rest[2], rest[3]]) & TYPE_MASK;
            let value = rest.get(4..length)?;
            if wanted(kind, value) {
                return Some(value);
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        None
    }

    /// The attributes in that attribute.
    pub(super) fn nested(self, kind: u16) -> Option<Attributes<'a>> {
        self.get(kind).map(Attributes)
    }

    /// A number, as nf_tables writes it.
    pub(super) fn number(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    /// A long number, as nf_tables writes it.
    pub(super) fn long(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    /// A text.
    pub(super) fn text(self, kind: u16) -> Option<String> {
        let bytes = self.get(kind)?;
        let bytes = bytes.split(|b| *b == 0).next().unwrap_or_default();
        Some(String::from_utf8_lossy(bytes).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut messages = Messages::default();
        messages.begin(0xa03, REQUEST, IPV4, 0);
        messages.text(1, "abc");
        messages.nest(4, |m| {
            m.number(1, 7);
            m.nest(2, |m| m.bytes(9, &[1, 2, 3]));
        });
        messages.number(5, 42);
        messages.begin(0xa04, REQUEST, IPV4, 0);
        messages.want_answer();
        let read = received(messages.as_bytes());
        let [Received::Object { attributes, .. }, Received::Object { .. }] = read[..] else { panic!("{read:?}") };
        assert_eq!(attributes.text(1).as_deref(), Some("abc"));
        let nested = attributes.nested(4).expect("nested");
        assert_eq!(nested.number(1), Some(7));
        assert_eq!(nested.nested(2).and_then(|n| n.get(9)), Some(&[1, 2, 3][..]));
        assert_eq!(attributes.number(5), Some(42));
        assert_eq!(attributes.get(6), None);
    }

    #[test]
    fn what_is_cut_off_is_left_out() {
        let mut messages = Messages::default();
        messages.begin(0xa03, REQUEST, IPV4, 0);
        messages.text(1, "abcdefgh");
        let bytes = messages.as_bytes();
        for length in 0..bytes.len() {
            assert!(received(&bytes[..length]).is_empty(), "{length}");
        }
        for length in 0..bytes.len() - HEADERS {
            let _ = Attributes(&bytes[HEADERS..HEADERS + length]).text(1);
        }
    }
}
