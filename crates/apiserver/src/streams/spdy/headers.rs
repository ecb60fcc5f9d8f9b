//! SPDY's header blocks: name and value pairs, compressed by zlib with a dictionary that both sides know.
//!
//! One compressor and one decompressor live as long as the connection, so every block must go through them in order.
//! Source: draft-mbelshe-httpbis-spdy-00, section 2.6.10.

use std::sync::OnceLock;

use bytes::{BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::Broken;

/// Bytes of a block once decompressed.
const MAX_BLOCK: usize = 64 * 1024;

/// Names and values; names are lower case.
pub(super) type Headers = Vec<(String, String)>;

/// Both directions' state.
pub(super) struct Codec {
    compress: Compress,
    decompress: Decompress,
}

impl Codec {
    pub(super) fn new() -> Self {
        let mut compress = Compress::new(Compression::fast(), true);
        compress.set_dictionary(dictionary()).expect("set before the first byte");
        Self { compress, decompress: Decompress::new(true) }
    }

    /// A block for these headers.
    pub(super) fn encode(&mut self, headers: &[(&str, &str)]) -> Bytes {
        let mut plain = BytesMut::new();
        let length = |n: usize| u32::try_from(n).expect("our own headers are few and short");
        plain.put_u32(length(headers.len()));
        for (name, value) in headers {
            for text in [name, value] {
                plain.put_u32(length(text.len()));
                plain.put_slice(text.as_bytes());
            }
        }
        let mut out = Vec::with_capacity(plain.len() + 64);
        let mut rest = &plain[..];
        loop {
            let before = self.compress.total_in();
            let status = self.compress.compress_vec(rest, &mut out, FlushCompress::Sync);
            let taken = usize::try_from(self.compress.total_in() - before).expect("at most what was given");
            rest = &rest[taken..];
            // A flush is complete when it leaves room.
            if rest.is_empty() && out.len() < out.capacity() {
                debug_assert!(status.is_ok(), "a compressor only fails when it is misused");
                return out.into();
            }
            out.reserve(256);
        }
    }

    /// The headers of a block.
    pub(super) fn decode(&mut self, block: &[u8]) -> Result<Headers, Broken> {
        let plain = self.inflate(block)?;
        let mut rest = &plain[..];
        let count = number(&mut rest)?;
        let mut headers = Vec::new();
        for _ in 0..count {
            let (name, value) = (text(&mut rest)?, text(&mut rest)?);
            headers.push((name.to_ascii_lowercase(), value));
        }
        Ok(headers)
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, Broken> {
        let mut out = Vec::with_capacity(1024);
        let mut rest = block;
        loop {
            let (input, output) = (self.decompress.total_in(), self.decompress.total_out());
            let result = self.decompress.decompress_vec(rest, &mut out, FlushDecompress::Sync);
            let taken = usize::try_from(self.decompress.total_in() - input).expect("at most what was given");
            rest = &rest[taken..];
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.decompress.set_dictionary(dictionary()).map_err(|_| Broken("another dictionary"))?;
                    continue;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(Broken("a header block is not zlib")),
                Ok(Status::Ok | Status::BufError) => {}
            }
            if out.len() < out.capacity() {
                // Room is left, so all that the block holds is out.
                if rest.is_empty() {
                    return Ok(out);
                }
                if taken == 0 && self.decompress.total_out() == output {
                    return Err(Broken("a header block does not decompress"));
                }
            }
            if out.len() >= MAX_BLOCK {
                return Err(Broken("a header block is too long"));
            }
            out.reserve(1024);
        }
    }
}

fn number(rest: &mut &[u8]) -> Result<usize, Broken> {
    let (first, tail) = rest.split_first_chunk::<4>().ok_or(Broken("a header block is cut"))?;
    *rest = tail;
    usize::try_from(u32::from_be_bytes(*first)).map_err(|_| Broken("a header block is cut"))
}

fn text(rest: &mut &[u8]) -> Result<String, Broken> {
    let length = number(rest)?;
    let (first, tail) = rest.split_at_checked(length).ok_or(Broken("a header block is cut"))?;
    *rest = tail;
    Ok(String::from_utf8_lossy(first).into_owned())
}

/// The words of the dictionary that stand with their lengths before them.
const WORDS: [&str; 65] = [
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

/// The rest of it.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
    403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
    text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> &'static [u8] {
    static DICTIONARY: OnceLock<Vec<u8>> = OnceLock::new();
    DICTIONARY.get_or_init(|| {
        let mut out = Vec::with_capacity(1423);
        for word in WORDS {
            out.extend_from_slice(&u32::try_from(word.len()).expect("short").to_be_bytes());
            out.extend_from_slice(word.as_bytes());
        }
        out.extend_from_slice(TAIL.as_bytes());
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_dictionary_is_the_drafts() {
        let (mut a, mut b) = (1u32, 0u32);
        for byte in dictionary() {
            a = (a + u32::from(*byte)) % 65_521;
            b = (b + a) % 65_521;
        }
        assert_eq!((dictionary().len(), b << 16 | a), (1423, 0xe3c6_a7c2));
        // Every compressed connection names it after zlib's two bytes.
        assert_eq!(Codec::new().encode(&[])[2..6], [0xe3, 0xc6, 0xa7, 0xc2]);
    }

    proptest! {
        #[test]
        fn blocks_survive_one_after_the_other(
            blocks in proptest::collection::vec(proptest::collection::vec(("[a-z]{1,8}", ".{0,300}"), 0..6), 1..5)
        ) {
            let (mut ours, mut theirs) = (Codec::new(), Codec::new());
            for block in blocks {
                let headers: Vec<(&str, &str)> = block.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
                prop_assert_eq!(theirs.decode(&ours.encode(&headers)).unwrap(), block);
            }
        }

        #[test]
        fn no_block_makes_it_panic(block in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Codec::new().decode(&block);
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut theirs = Codec::new();
        let long = "x".repeat(10 * MAX_BLOCK);
        assert!(Codec::new().decode(&theirs.encode(&[("a", &long)])).is_err());
    }
}
