//! Protocol buffers on the wire: tagged fields of four shapes.

use super::Error;

/// Reads the fields of one message.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

/// One field.
pub(crate) struct Field<'a> {
    /// Its number.
    pub(crate) number: u32,
    content: Content<'a>,
}

/// What a field holds.
enum Content<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Reader<'a> {
    /// Reads a message.
    pub(crate) fn new(message: &'a [u8]) -> Self {
        Reader { rest: message }
    }

    /// The next field; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Field<'a>>, Error> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|n| *n > 0).ok_or(Error::Malformed("bad field number"))?;
        let content = match tag & 7 {
            0 => Content::Number(self.varint()?),
            1 => Content::Number(u64::from_le_bytes(self.array()?)),
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| Error::Malformed("bad length"))?;
                Content::Bytes(self.take(len)?)
            }
            5 => Content::Number(u64::from(u32::from_le_bytes(self.array()?))),
            _ => return Err(Error::Malformed("unknown wire type")),
        };
        Ok(Some(Field { number, content }))
    }

    /// A number of variable length.
    pub(super) fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Error::Malformed("a number is too long"))
    }

    /// Whether everything was read.
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next bytes.
    fn take(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Error::Malformed("it ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    /// As many bytes as fit.
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        self.take(N)?.try_into().map_err(|_| Error::Malformed("it ends too early"))
    }
}

impl<'a> Field<'a> {
    /// The content as bytes.
    pub(crate) fn bytes(&self) -> Result<&'a [u8], Error> {
        match self.content {
            Content::Bytes(bytes) => Ok(bytes),
            Content::Number(_) => Err(Error::Malformed("a number stands where bytes belong")),
        }
    }

    /// The content as text.
    pub(super) fn text(&self) -> Result<&'a str, Error> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Error::Malformed("a text is not UTF-8"))
    }

    /// The content as a number.
    pub(super) fn number(&self) -> Result<u64, Error> {
        match self.content {
            Content::Number(number) => Ok(number),
            Content::Bytes(_) => Err(Error::Malformed("bytes stand where a number belongs")),
        }
    }

    /// Whether the content is bytes.
    pub(super) fn is_bytes(&self) -> bool {
        matches!(self.content, Content::Bytes(_))
    }
}

/// Writes the fields of one message.
#[derive(Default)]
pub(crate) struct Writer {
    out: Vec<u8>,
}

impl Writer {
    /// What was written.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.out
    }

    /// A field with a number.
    pub(crate) fn number(&mut self, number: u32, value: u64) {
        self.varint(u64::from(number) << 3);
        self.varint(value);
    }

    /// A field with a number that need not be whole.
    pub(crate) fn double(&mut self, number: u32, value: f64) {
        self.varint(u64::from(number) << 3 | 1);
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    /// A field with bytes.
    pub(crate) fn bytes(&mut self, number: u32, value: &[u8]) {
        self.varint(u64::from(number) << 3 | 2);
        self.varint(value.len() as u64);
        self.out.extend_from_slice(value);
    }

    /// A field with a message.
    pub(crate) fn message(&mut self, number: u32, write: impl FnOnce(&mut Writer)) {
        let mut inner = Writer::default();
        write(&mut inner);
        self.bytes(number, &inner.out);
    }

    /// A number of variable length.
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.out.push(value as u8);
    }
}
