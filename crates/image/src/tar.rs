//! Reading tar archives that somebody else made: every length is limited before memory is taken for it.
//!
//! Understood are the formats that tools for images write: ustar, GNU's long names, and pax headers with names, lengths,
//! owners, times and extended attributes. Sparse files, which those tools never write, are refused. Sources: POSIX.1-2017,
//! `pax`, "ustar Interchange Format"; GNU tar's manual, "Basic Tar Format".

use std::io::{self, Read};

/// Bytes of a header, and what data is padded to.
const BLOCK: usize = 512;
/// Longest name or pax header, bytes.
const MAX_EXTENSION: u64 = 1 << 20;
/// Most extended attributes of an entry.
const MAX_XATTRS: usize = 64;

/// One entry, without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name as it is written.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, set-id and sticky bits included.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Time of its last change, whole seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Length of its data.
    pub size: u64,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link to what is named.
    Symlink(Vec<u8>),
    /// Another name of the entry that is named.
    HardLink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A device.
    Device,
}

/// An archive, read from front to back.
#[derive(Debug)]
pub struct Archive<R> {
    inner: R,
    /// Of the current entry's data, not read yet.
    left: u64,
    /// After that data, up to the next header.
    padding: u64,
    /// Bytes read so far.
    at: u64,
    ended: bool,
}

/// What comes before an entry and changes it.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<R: Read> Archive<R> {
    /// From its first byte.
    pub fn new(inner: R) -> Self {
        Self { inner, left: 0, padding: 0, at: 0, ended: false }
    }

    /// The next entry; None at the end of the archive. What was not read of the last one's data is passed over.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.pass_over()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = number(&header[124..136]).ok_or(TarError::Number("size"))?;
            match header[156] {
                b'L' => extensions.path = Some(until_nul(&self.extension(size)?).to_vec()),
                b'K' => extensions.link = Some(until_nul(&self.extension(size)?).to_vec()),
                b'x' => {
                    let text = self.extension(size)?;
                    extensions.read_pax(&text)?;
                }
                // Of the whole archive: comments, mostly. Nothing that is read here may come from it.
                b'g' => drop(self.extension(size)?),
                _ => return self.entry(&header, size, extensions).map(Some),
            }
        }
    }

    /// Where the current entry's data begins, counted from the start of the archive.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The rest of what the archive is read from, whatever comes after its end.
    pub fn into_inner(self) -> R {
        self.inner
    }

    fn entry(&mut self, header: &[u8; BLOCK], size: u64, extensions: Extensions) -> Result<Entry, TarError> {
        let mut path = extensions.path.unwrap_or_else(|| header_path(header));
        let link = extensions.link.unwrap_or_else(|| until_nul(&header[157..257]).to_vec());
        let field = |range: std::ops::Range<usize>, name| number(&header[range]).ok_or(TarError::Number(name));
        let kind = match header[156] {
            // The oldest format has folders that are files but for the slash.
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Folder,
            b'0' | 0 | b'7' => Kind::File,
            b'1' => Kind::HardLink(link),
            b'2' => Kind::Symlink(link),
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Folder,
            b'6' => Kind::Fifo,
            b'S' => return Err(TarError::Sparse),
            other => return Err(TarError::Kind(other)),
        };
        while path.len() > 1 && path.ends_with(b"/") {
            path.pop();
        }
        // Only files have data, whatever the header of another says.
        let size = if kind == Kind::File { extensions.size.unwrap_or(size) } else { 0 };
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        Ok(Entry {
            path,
            kind,
            mode: u32::try_from(field(100..108, "mode")? & 0o7777).expect("twelve bits"),
            uid: extensions.uid.map_or_else(|| field(108..116, "uid"), Ok)?,
            gid: extensions.gid.map_or_else(|| field(116..124, "gid"), Ok)?,
            mtime: extensions.mtime.map_or_else(
                || Ok((i64::try_from(number(&header[136..148]).unwrap_or(0)).unwrap_or(0), 0)),
                Ok::<_, TarError>,
            )?,
            size,
            xattrs: extensions.xattrs,
        })
    }

    fn pass_over(&mut self) -> Result<(), TarError> {
        let rest = std::mem::take(&mut self.left).checked_add(std::mem::take(&mut self.padding));
        let rest = rest.ok_or(TarError::Number("size"))?;
        let passed = io::copy(&mut (&mut self.inner).take(rest), &mut io::sink())?;
        self.at += passed;
        if passed < rest { Err(TarError::Short) } else { Ok(()) }
    }

    /// The next header; None at a block of zeros or at the end.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.at += filled as u64;
        if filled == 0 || block == [0; BLOCK] {
            self.ended = true;
            return Ok(None);
        }
        if filled < BLOCK {
            return Err(TarError::Short);
        }
        let stated = number(&block[148..156]).ok_or(TarError::Checksum)?;
        let sum = |of: fn(u8) -> i64| -> i64 {
            block.iter().enumerate().map(|(at, b)| if (148..156).contains(&at) { 32 } else { of(*b) }).sum()
        };
        // Some old programs added signed bytes.
        let sums = [sum(i64::from), sum(|b| i64::from(b.cast_signed()))];
        if !sums.iter().any(|sum| u64::try_from(*sum) == Ok(stated)) {
            return Err(TarError::Checksum);
        }
        Ok(Some(block))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENSION {
            return Err(TarError::LongExtension(size));
        }
        let mut bytes = Vec::new();
        (&mut self.inner).take(size).read_to_end(&mut bytes)?;
        self.at += bytes.len() as u64;
        if (bytes.len() as u64) < size {
            return Err(TarError::Short);
        }
        self.padding = size.wrapping_neg() % BLOCK as u64;
        Ok(bytes)
    }
}

/// The data of the current entry.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut buffer[..wanted])?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, TarError::Short));
        }
        self.left -= n as u64;
        self.at += n as u64;
        Ok(n)
    }
}

impl Extensions {
    /// Records of the form `LENGTH KEY=VALUE\n`, where the length counts the whole record.
    fn read_pax(&mut self, mut text: &[u8]) -> Result<(), TarError> {
        while !text.is_empty() {
            let space = text.iter().take(20).position(|b| *b == b' ').ok_or(TarError::Pax)?;
            let length = decimal(&text[..space]).and_then(|n| usize::try_from(n).ok()).ok_or(TarError::Pax)?;
            if length <= space + 1 || length > text.len() || text[length - 1] != b'\n' {
                return Err(TarError::Pax);
            }
            let record = &text[space + 1..length - 1];
            text = &text[length..];
            let equals = record.iter().position(|b| *b == b'=').ok_or(TarError::Pax)?;
            self.take(&record[..equals], &record[equals + 1..])?;
        }
        Ok(())
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value).ok_or(TarError::Number("size"))?),
            b"uid" => self.uid = Some(decimal(value).ok_or(TarError::Number("uid"))?),
            b"gid" => self.gid = Some(decimal(value).ok_or(TarError::Number("gid"))?),
            b"mtime" => self.mtime = Some(time(value).ok_or(TarError::Number("mtime"))?),
            _ if key.starts_with(b"GNU.sparse.") => return Err(TarError::Sparse),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.retain(|(known, _)| known != name);
                    if self.xattrs.len() >= MAX_XATTRS {
                        return Err(TarError::Xattrs);
                    }
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// The name of the oldest kind, with POSIX' prefix where there is one.
fn header_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    // GNU's own magic has a space there, and other things in the prefix' place.
    let prefix = if &header[257..263] == b"ustar\0" { until_nul(&header[345..500]) } else { b"" };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

/// Octal digits, or with the highest bit set, big-endian bytes.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        // Negative numbers would have the next bit set too.
        let mut value = u64::from(field[0] & 0x7f);
        for byte in &field[1..] {
            value = value.checked_mul(256)?.checked_add(u64::from(*byte))?;
        }
        return Some(value);
    }
    let text = until_nul(field).trim_ascii();
    let digit = |value: u64, b: &u8| match b {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(b - b'0')),
        _ => None,
    };
    text.iter().try_fold(0, digit)
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with a fraction, perhaps negative.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let mut parts = text.splitn(2, |b| *b == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanos = digits.fold(0u32, |value, digit| value * 10 + u32::from(digit - b'0'));
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

/// An archive that is not taken.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It ends in the middle of something.
    #[error("the archive is cut short")]
    Short,
    /// It is no tar archive, or damaged.
    #[error("a header's checksum is wrong: it is no tar archive, or damaged")]
    Checksum,
    /// A number that is none, or too large.
    #[error("a header's {0} is no number")]
    Number(&'static str),
    /// A pax header that does not follow its format.
    #[error("a pax header is malformed")]
    Pax,
    /// A name or header longer than any real one.
    #[error("a name or header of {0} bytes is too long; at most {MAX_EXTENSION} are taken")]
    LongExtension(u64),
    /// More attributes than any real file has.
    #[error("an entry has more than {MAX_XATTRS} extended attributes")]
    Xattrs,
    /// A sparse file.
    #[error("it has a sparse file, which is not supported")]
    Sparse,
    /// A type that nobody knows.
    #[error("an entry is of unknown type {0:#04x}")]
    Kind(u8),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with its checksum.
    fn header(name: &str, kind: u8, size: u64) -> [u8; BLOCK] {
        let mut block = [0u8; BLOCK];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000644");
        block[108..115].copy_from_slice(b"0000007");
        block[116..123].copy_from_slice(b"0000010");
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[136..147].copy_from_slice(b"00000000012");
        block[156] = kind;
        block[257..263].copy_from_slice(b"ustar\0");
        sign(&mut block);
        block
    }

    fn sign(block: &mut [u8; BLOCK]) {
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }

    fn padded(bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn with_pax(records: &[(&str, &str)], then: &[u8]) -> Vec<u8> {
        let mut text = String::new();
        for (key, value) in records {
            let rest = format!(" {key}={value}\n");
            let mut length = rest.len() + 1;
            while length.to_string().len() + rest.len() != length {
                length += 1;
            }
            text.push_str(&format!("{length}{rest}"));
        }
        [&header("pax", b'x', text.len() as u64)[..], &padded(text.as_bytes()), then].concat()
    }

    fn first(bytes: &[u8]) -> Result<Option<Entry>, TarError> {
        Archive::new(bytes).next_entry()
    }

    #[test]
    fn entries_come_with_their_data_and_what_is_not_read_is_passed_over() {
        let bytes =
            [&header("a", b'0', 3)[..], &padded(b"abc"), &header("b", b'0', 600), &padded(&[7; 600]), &[0; 1024]];
        let bytes = bytes.concat();
        let mut archive = Archive::new(&bytes[..]);
        let a = archive.next_entry().expect("readable").expect("an entry");
        assert_eq!(
            (&a.path[..], &a.kind, a.mode, a.uid, a.gid, a.mtime, a.size),
            (&b"a"[..], &Kind::File, 0o644, 7, 8, (10, 0), 3)
        );
        let b = archive.next_entry().expect("readable").expect("an entry");
        assert_eq!((&b.path[..], archive.position()), (&b"b"[..], 3 * 512));
        let mut data = Vec::new();
        archive.read_to_end(&mut data).expect("readable");
        assert_eq!(data, [7; 600]);
        assert_eq!(archive.next_entry().expect("readable"), None);
    }

    #[test]
    fn pax_records_and_long_names_count_for_the_next_entry_alone() {
        let name = "d/".repeat(100) + "x";
        let records = [("path", name.as_str()), ("uid", "70000"), ("mtime", "-1.25"), ("SCHILY.xattr.user.a", "b\nc")];
        let next = [&header("short", b'0', 0)[..], &header("other", b'0', 0)].concat();
        let bytes = with_pax(&records, &next);
        let mut archive = Archive::new(&bytes[..]);
        let long = archive.next_entry().expect("readable").expect("an entry");
        assert_eq!((long.path, long.uid, long.mtime), (name.clone().into_bytes(), 70_000, (-2, 750_000_000)));
        assert_eq!(long.xattrs, [(b"user.a".to_vec(), b"b\nc".to_vec())]);
        let other = archive.next_entry().expect("readable").expect("an entry");
        assert_eq!((&other.path[..], other.uid, other.xattrs.len()), (&b"other"[..], 7, 0));
        let gnu = [&header("././@LongLink", b'L', name.len() as u64 + 1)[..], &padded(name.as_bytes()), &next].concat();
        assert_eq!(first(&gnu).expect("readable").expect("an entry").path, name.into_bytes());
    }

    #[test]
    fn large_numbers_are_read_and_too_large_ones_refused() {
        let mut block = header("a", b'5', 0);
        block[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        sign(&mut block);
        assert_eq!(first(&block).expect("readable").expect("an entry").uid, u64::from(u32::MAX));
        let mut block = header("a", b'0', 0);
        block[124..136].copy_from_slice(&[0xff; 12]);
        sign(&mut block);
        assert!(matches!(first(&block), Err(TarError::Number("size"))));
    }

    #[test]
    fn what_would_take_memory_without_limit_or_is_odd_is_refused() {
        assert!(matches!(first(&header("x", b'L', 1 << 32)), Err(TarError::LongExtension(_))));
        assert!(matches!(first(&header("x", b'x', 1 << 32)), Err(TarError::LongExtension(_))));
        let many: Vec<_> = (0..100).map(|n| (format!("SCHILY.xattr.user.{n}"), "v")).collect();
        let many: Vec<_> = many.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        assert!(matches!(first(&with_pax(&many, &header("a", b'0', 0))), Err(TarError::Xattrs)));
        assert!(matches!(first(&header("a", b'S', 0)), Err(TarError::Sparse)));
        assert!(matches!(first(&with_pax(&[("GNU.sparse.major", "1")], &[])), Err(TarError::Sparse)));
        assert!(matches!(first(&header("a", b'V', 0)), Err(TarError::Kind(b'V'))));
        let mut damaged = header("a", b'0', 0);
        damaged[0] = b'b';
        assert!(matches!(first(&damaged), Err(TarError::Checksum)));
        assert!(matches!(first(&header("a", b'0', 0)[..100]), Err(TarError::Short)));
        let nine = header("a", b'0', 9);
        let mut cut = Archive::new(&nine[..]);
        cut.next_entry().expect("readable");
        assert!(cut.read_to_end(&mut Vec::new()).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(0u8.., 0..2048), sum in 0u8..) {
            let mut block = header("a", b'x', u64::from(sum));
            for (at, byte) in bytes.iter().take(100).enumerate() {
                block[at] = *byte;
            }
            sign(&mut block);
            let all = [&block[..], &bytes].concat();
            let mut archive = Archive::new(&all[..]);
            while let Ok(Some(_)) = archive.next_entry() {}
        }
    }
}
