//! The store's own files: JSON that opens with what it is and which version, replaced whole.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use ambient::Ambient;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A file is longer than this only if it is not ours.
const MAX_BYTES: u64 = 64 << 20;

/// Name and version of a file format.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    /// What the file is.
    pub(super) magic: &'static str,
    /// The only version that is written and read.
    pub(super) version: u32,
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    magic: String,
    version: u32,
    body: T,
}

/// Reads a file; refuses another magic or version.
pub(super) fn read<T: DeserializeOwned>(path: &Path, format: Format) -> Result<T, FileError> {
    let broken = |what: String| FileError::Broken { path: path.to_owned(), what };
    let io = |source| FileError::Io { path: path.to_owned(), source };
    if fs::metadata(path).map_err(io)?.len() > MAX_BYTES {
        return Err(broken("it is too long".to_owned()));
    }
    let bytes = fs::read(path).map_err(io)?;
    let envelope: Envelope<serde_json::Value> = serde_json::from_slice(&bytes).map_err(|e| broken(e.to_string()))?;
    if envelope.magic != format.magic || envelope.version != format.version {
        return Err(broken(format!("it says {:?} version {}", envelope.magic, envelope.version)));
    }
    serde_json::from_value(envelope.body).map_err(|e| broken(e.to_string()))
}

/// Replaces a file. Its folder's lock is held, or it is nobody else's.
pub(super) fn write<T: Serialize>(path: &Path, format: Format, body: &T) -> Result<(), FileError> {
    let envelope = Envelope { magic: format.magic.to_owned(), version: format.version, body };
    let bytes = serde_json::to_vec(&envelope).expect("plain data always becomes JSON");
    replace(path, &path.with_extension("new"), &bytes).map_err(|source| FileError::Io { path: path.to_owned(), source })
}

/// Writes a file so that it is whole after a loss of power, whoever else writes it at the same time.
pub fn write_durably(path: &Path, bytes: &[u8], ambient: &Ambient) -> io::Result<()> {
    replace(path, &path.with_extension(ambient.suffix(10)), bytes)
}

fn replace(path: &Path, neighbour: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::File::create(neighbour)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(neighbour, path)?;
    fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// A file of the store that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is something else, or of another version of this program.
    #[error("{} is not usable: {what}; remove the folder that it lies in, and images are fetched again", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}
