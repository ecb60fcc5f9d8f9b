//! The pod folder's JSON files: each opens with what it is and which version, and is replaced as a whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Name and version of a file format.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// What the file is.
    pub magic: &'static str,
    /// The version this program writes, and the newest it reads.
    pub version: u32,
}

/// A file is longer than this only if it is not ours.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

#[derive(Serialize)]
struct Outgoing<'a, T> {
    magic: &'a str,
    version: u32,
    body: &'a T,
}

#[derive(Deserialize)]
struct Head {
    magic: String,
    version: u32,
}

#[derive(Deserialize)]
struct Incoming<T> {
    body: T,
}

/// Reads a file; refuses another magic or a newer version.
pub(crate) fn read<T: DeserializeOwned>(path: &Path, format: Format) -> Result<T, FileError> {
    let io = |source| FileError::Io { path: path.to_owned(), source };
    if fs::metadata(path).map_err(io)?.len() > MAX_BYTES {
        return Err(FileError::Foreign { path: path.to_owned(), found: "an oversized file".into() });
    }
    let bytes = fs::read(path).map_err(io)?;
    let broken = |source| FileError::Broken { path: path.to_owned(), source };
    let head: Head = serde_json::from_slice(&bytes).map_err(broken)?;
    if head.magic != format.magic {
        return Err(FileError::Foreign { path: path.to_owned(), found: head.magic });
    }
    if head.version != format.version {
        return Err(FileError::Version { path: path.to_owned(), found: head.version, known: format.version });
    }
    let body: Incoming<T> = serde_json::from_slice(&bytes).map_err(broken)?;
    Ok(body.body)
}

/// Replaces a file: after a crash at any moment, and a loss of power, it holds the old or the new content.
pub(crate) fn write<T: Serialize>(path: &Path, format: Format, body: &T) -> Result<(), FileError> {
    write_with(path, format, body, true)
}

/// Replaces a file: after a crash at any moment it holds the old or the new content. A loss of power may leave anything.
pub(crate) fn write_for_now<T: Serialize>(path: &Path, format: Format, body: &T) -> Result<(), FileError> {
    write_with(path, format, body, false)
}

fn write_with<T: Serialize>(path: &Path, format: Format, body: &T, synced: bool) -> Result<(), FileError> {
    let out = Outgoing { magic: format.magic, version: format.version, body };
    let bytes = serde_json::to_vec(&out).map_err(|source| FileError::Broken { path: path.to_owned(), source })?;
    replace(path, &bytes, synced).map_err(|source| FileError::Io { path: path.to_owned(), source })
}

fn replace(path: &Path, bytes: &[u8], synced: bool) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = dir.join(name);
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    if !synced {
        return fs::rename(&temporary, path);
    }
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}

/// A file of the pod's folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused; look at disk space and permissions.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The content is not what this program writes: damaged, or written by hand. Remove the pod's folder.
    #[error("{} cannot be read: {source}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Where it breaks.
        source: serde_json::Error,
    },
    /// Another program's file lies there.
    #[error("{} is not ours: it says it is {found:?}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it says it is.
        found: String,
    },
    /// Written by a version of statefuld that this one does not know; use that version.
    #[error("{} has format version {found}, this program knows {known}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
}

impl FileError {
    /// True where the file does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, FileError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: Format = Format { magic: "statefuld-test", version: 2 };

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        write(&path, FORMAT, &vec![1, 2]).unwrap();
        write(&path, FORMAT, &vec![3]).unwrap();
        assert_eq!(read::<Vec<u32>>(&path, FORMAT).unwrap(), [3]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn another_magic_and_another_version_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        write(&path, Format { magic: "other", version: 2 }, &1).unwrap();
        assert!(matches!(read::<u32>(&path, FORMAT), Err(FileError::Foreign { .. })));
        write(&path, Format { version: 3, ..FORMAT }, &1).unwrap();
        assert!(matches!(read::<u32>(&path, FORMAT), Err(FileError::Version { found: 3, known: 2, .. })));
        fs::write(&path, "{").unwrap();
        assert!(matches!(read::<u32>(&path, FORMAT), Err(FileError::Broken { .. })));
    }
}
