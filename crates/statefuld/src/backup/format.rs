//! The backup file, written and read.
//!
//! Version 1, all numbers little-endian:
//! ```text
//!  magic "statefuld-backup\0" · version u32
//!  length u32 · header as JSON: who the store was, and when
//!  number u64 · entries: length u32, key, create revision u64, mod revision u64, length u32, value
//!  number u32 · files: length u32, path below the data directory, mode u32, length u32, content
//!  SHA-256 of everything before
//! ```
//! It holds secrets (the API's objects, the authority's keys) and is written for its owner alone.

use std::io::{self, Read, Write};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use store::Entry;

const MAGIC: &[u8; 17] = b"statefuld-backup\0";
const VERSION: u32 = 1;
/// No key is longer.
const MAX_KEY: usize = 64 << 10;
/// No value or file is larger.
const MAX_VALUE: usize = 64 << 20;
/// No backup has more files beside the store.
const MAX_FILES: u32 = 10_000;

/// Who was backed up, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// The store's id, base 16.
    pub store: String,
    /// Its generation.
    pub generation: u32,
    /// The revision of the state that was read.
    pub revision: u64,
    /// When, for people.
    pub created: String,
    /// Version of the program.
    pub program: String,
}

/// A file of the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Below the data directory; no step of it leads up.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Its content.
    pub content: Vec<u8>,
}

/// A backup, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Who and when.
    pub header: Header,
    /// The state of the API, in key order.
    pub entries: Vec<Entry>,
    /// Keys and recorded choices.
    pub files: Vec<Kept>,
}

impl Backup {
    /// Writes it.
    pub fn write(&self, to: impl Write) -> io::Result<()> {
        let mut out = Hashing { inner: to, hash: Sha256::new() };
        out.write_all(MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        put(&mut out, &serde_json::to_vec(&self.header)?)?;
        out.write_all(&(self.entries.len() as u64).to_le_bytes())?;
        for entry in &self.entries {
            put(&mut out, &entry.key)?;
            out.write_all(&entry.create_revision.to_le_bytes())?;
            out.write_all(&entry.mod_revision.to_le_bytes())?;
            put(&mut out, &entry.value)?;
        }
        out.write_all(&u32::try_from(self.files.len()).map_err(io::Error::other)?.to_le_bytes())?;
        for file in &self.files {
            put(&mut out, file.path.as_bytes())?;
            out.write_all(&file.mode.to_le_bytes())?;
            put(&mut out, &file.content)?;
        }
        let sum = out.hash.finalize();
        out.inner.write_all(&sum)?;
        out.inner.flush()
    }

    /// Reads one, and checks that nothing of it is missing or changed.
    pub fn read(from: impl Read) -> Result<Self, Error> {
        let mut from = Hashing { inner: from, hash: Sha256::new() };
        if take::<17>(&mut from).ok().as_ref() != Some(MAGIC) {
            return Err(Error::Foreign);
        }
        let version = u32::from_le_bytes(take(&mut from)?);
        if version != VERSION {
            return Err(Error::Version(version));
        }
        let header: Header = serde_json::from_slice(&get(&mut from, MAX_KEY)?).map_err(|_| Error::Damaged)?;
        let count = u64::from_le_bytes(take(&mut from)?);
        let mut entries = Vec::new();
        for _ in 0..count {
            let key = Bytes::from(get(&mut from, MAX_KEY)?);
            let create_revision = u64::from_le_bytes(take(&mut from)?);
            let mod_revision = u64::from_le_bytes(take(&mut from)?);
            let value = Bytes::from(get(&mut from, MAX_VALUE)?);
            entries.push(Entry { key, value, create_revision, mod_revision });
        }
        let count = u32::from_le_bytes(take(&mut from)?);
        if count > MAX_FILES {
            return Err(Error::Damaged);
        }
        let mut files = Vec::new();
        for _ in 0..count {
            let path = String::from_utf8(get(&mut from, MAX_KEY)?).map_err(|_| Error::Damaged)?;
            if !stays_below(&path) {
                return Err(Error::Damaged);
            }
            let mode = u32::from_le_bytes(take(&mut from)?);
            files.push(Kept { path, mode, content: get(&mut from, MAX_VALUE)? });
        }
        let sum = from.hash.clone().finalize();
        let mut written = Vec::new();
        // One byte more than the sum: nothing may follow it.
        from.inner.take(33).read_to_end(&mut written)?;
        if written != sum.as_slice() {
            return Err(Error::Damaged);
        }
        Ok(Self { header, entries, files })
    }
}

/// Whether a path leads to a place below the folder that it is joined to.
fn stays_below(path: &str) -> bool {
    !path.is_empty() && path.split('/').all(|step| !matches!(step, "" | "." | ".."))
}

/// Passes on, and sums up what passes.
struct Hashing<T> {
    inner: T,
    hash: Sha256,
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.hash.update(&bytes[..read]);
        Ok(read)
    }
}

fn put(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(&u32::try_from(bytes.len()).map_err(io::Error::other)?.to_le_bytes())?;
    out.write_all(bytes)
}

fn take<const N: usize>(from: &mut impl Read) -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Bytes with their length before them. What a spoilt length promises is not made room for before it is there.
fn get(from: &mut impl Read, limit: usize) -> Result<Vec<u8>, Error> {
    let length = u32::from_le_bytes(take(from)?) as usize;
    if length > limit {
        return Err(Error::Damaged);
    }
    let mut bytes = Vec::new();
    from.take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() < length { Err(Error::Damaged) } else { Ok(bytes) }
}

/// Why a backup cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is something else.
    #[error("it is not a backup of statefuld")]
    Foreign,
    /// A newer program wrote it. Use that one.
    #[error("its format is {0} and this statefuld knows 1 only; use the statefuld that wrote it")]
    Version(u32),
    /// A part is missing or changed. Take another copy.
    #[error("it is damaged: a part of it is missing or changed; take another copy")]
    Damaged,
    /// The disk did not give it.
    #[error("{0}")]
    Io(io::Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Damaged } else { Self::Io(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup() -> Backup {
        let entry = |key: &str, value: &str| Entry {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            create_revision: 2,
            mod_revision: 7,
        };
        Backup {
            header: Header {
                store: "00ff".to_owned(),
                generation: 3,
                revision: 9,
                created: "2026-01-01T00:00:00Z".to_owned(),
                program: "0.1.0".to_owned(),
            },
            entries: vec![entry("/a", "1"), entry("/b", "")],
            files: vec![Kept { path: "pki/ca.key".to_owned(), mode: 0o600, content: b"key".to_vec() }],
        }
    }

    fn bytes(backup: &Backup) -> Vec<u8> {
        let mut bytes = Vec::new();
        backup.write(&mut bytes).expect("written");
        bytes
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(Backup::read(bytes(&backup()).as_slice()).expect("read"), backup());
    }

    #[test]
    fn a_backup_that_is_cut_or_changed_anywhere_is_refused() {
        let whole = bytes(&backup());
        for length in 0..whole.len() {
            assert!(Backup::read(&whole[..length]).is_err(), "cut after {length} bytes");
        }
        for at in 0..whole.len() {
            let mut spoilt = whole.clone();
            spoilt[at] ^= 1;
            assert!(Backup::read(spoilt.as_slice()).is_err(), "byte {at} changed");
        }
        let longer = [whole.as_slice(), b"x"].concat();
        assert!(matches!(Backup::read(longer.as_slice()), Err(Error::Damaged)));
    }

    #[test]
    fn a_file_that_would_leave_the_data_directory_is_refused() {
        for path in ["../x", "/etc/passwd", "pki/../../x", "", "a//b"] {
            let mut backup = backup();
            backup.files[0].path = path.to_owned();
            assert!(matches!(Backup::read(bytes(&backup).as_slice()), Err(Error::Damaged)), "{path}");
        }
    }
}
