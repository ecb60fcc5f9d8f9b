//! Undoing a layer's compression, told by its first bytes, with limits on what comes out.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

use super::Limits;

/// Window that a zstd stream may ask memory for, as a power of two: what `zstd --ultra` uses at most without `--long`.
const ZSTD_WINDOW_LOG: u32 = 27;
/// Bytes that are looked at to tell formats apart.
const MAGIC: usize = 6;

/// What was looked at, then the rest.
type Sniffed<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

/// The uncompressed bytes of a layer.
pub enum Plain<R: Read> {
    /// As they are.
    Stored(Sniffed<R>),
    /// Of gzip.
    Gzip(Box<MultiGzDecoder<Sniffed<R>>>),
    /// Of zstd.
    Zstd(Box<zstd::Decoder<'static, Sniffed<R>>>),
}

impl<R: Read> Plain<R> {
    /// Looks at the first bytes.
    pub fn new(mut reader: R) -> io::Result<Self> {
        let mut start = Vec::new();
        (&mut reader).take(MAGIC as u64).read_to_end(&mut start)?;
        let refused = |what: &str| Err(io::Error::new(io::ErrorKind::Unsupported, format!("{what} is not supported")));
        let kind = start.clone();
        let whole = BufReader::with_capacity(128 << 10, Cursor::new(start).chain(reader));
        match kind.as_slice() {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip(Box::new(MultiGzDecoder::new(whole)))),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                let mut decoder = zstd::Decoder::with_buffer(whole)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Ok(Self::Zstd(Box::new(decoder)))
            }
            [b'B', b'Z', b'h', ..] => refused("compression by bzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => refused("compression by xz"),
            _ => Ok(Self::Stored(whole)),
        }
    }
}

impl<R: Read> Read for Plain<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Stored(reader) => {
                let available = reader.fill_buf()?;
                let n = available.len().min(buffer.len());
                buffer[..n].copy_from_slice(&available[..n]);
                reader.consume(n);
                Ok(n)
            }
            Self::Gzip(reader) => reader.read(buffer),
            Self::Zstd(reader) => reader.read(buffer),
        }
    }
}

/// Stops where more comes out than any real layer has.
#[derive(Debug)]
pub struct Guarded<R> {
    inner: R,
    limits: Limits,
    compressed: u64,
    out: u64,
}

impl<R> Guarded<R> {
    /// Of a layer that is `compressed` bytes long.
    pub fn new(inner: R, limits: Limits, compressed: u64) -> Self {
        Self { inner, limits, compressed, out: 0 }
    }
}

impl<R: Read> Read for Guarded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.out += n as u64;
        let Limits { bytes, ratio, ratio_from, .. } = self.limits;
        let refuse = |message: String| Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        if self.out > bytes {
            return refuse(format!("the layer unpacks to more than {bytes} bytes"));
        }
        if self.out > ratio_from && self.out / self.compressed.max(1) >= ratio {
            return refuse(format!("the layer unpacks to more than {ratio} times its length"));
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    fn plain(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Plain::new(bytes)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn all_three_forms_give_the_same_bytes() {
        let text = b"layer".repeat(1000);
        let zstd = zstd::encode_all(&text[..], 3).expect("memory");
        for form in [text.clone(), gzip(&text), zstd, [gzip(&text[..100]), gzip(&text[100..])].concat()] {
            assert_eq!(plain(&form).expect("readable"), text);
        }
        assert_eq!(plain(b"").expect("readable"), b"");
        assert!(plain(b"\xfd7zXZ\0").expect_err("refused").to_string().contains("xz"));
    }

    #[test]
    fn a_bomb_is_stopped_by_its_size_and_by_its_ratio() {
        let limits = Limits { bytes: 1 << 20, entries: 10, ratio: 50, ratio_from: 64 << 10 };
        let read = |bytes: usize, compressed: u64| {
            let zeros = io::repeat(0).take(bytes as u64);
            io::copy(&mut Guarded::new(zeros, limits, compressed), &mut io::sink())
        };
        assert!(read(1 << 20, 1 << 20).is_ok());
        assert!(read((1 << 20) + 1, 1 << 20).is_err());
        assert!(read(60 << 10, 10).is_ok());
        assert!(read(70 << 10, 1000).is_err());
    }
}
