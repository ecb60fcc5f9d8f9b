//! Where a store's bytes lie: a file of this machine. The tests put a disk of their own in its place, which
//! remembers every write and fails as it is told.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::backends::FileBackend;
use redb::{Database, DatabaseError, StorageBackend};

use super::disk::is_full;
use super::reserve::{Reserve, WithReserve};
use crate::Error;

/// Writes a new store into empty bytes, and gives what holds them meanwhile.
pub(super) type Fill<'a> = &'a dyn Fn(Box<dyn StorageBackend>) -> Result<Database, Error>;

/// Bytes that can hold one store.
pub(super) trait Medium: fmt::Debug + Send + Sync {
    /// Its name in messages.
    fn path(&self) -> &Path;

    /// Whether a store was made there.
    fn exists(&self) -> io::Result<bool>;

    /// Opens the bytes that are there.
    fn open(&self) -> Result<Box<dyn StorageBackend>, Error>;

    /// Makes a store there; a crash leaves all of it or nothing.
    fn make(&self, fill: Fill<'_>) -> Result<(), Error>;

    /// How many bytes there are.
    fn len(&self) -> u64;

    /// How many more there is room for, where that is known.
    fn room(&self) -> Option<u64>;
}

/// A file.
#[derive(Debug)]
pub(super) struct FileMedium {
    path: PathBuf,
    /// Room that is kept for it.
    reserve: Option<Arc<Reserve>>,
}

impl FileMedium {
    /// The file at that path.
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), reserve: None }
    }

    /// The same, with so many bytes kept for it where the disk has plenty.
    pub(super) fn with_reserve(path: &Path, bytes: u64) -> Self {
        let reserve = (bytes > 0).then(|| Reserve::beside(path, bytes));
        Self { path: path.to_owned(), reserve }
    }
}

impl Medium for FileMedium {
    fn path(&self) -> &Path {
        &self.path
    }

    fn exists(&self) -> io::Result<bool> {
        self.path.try_exists()
    }

    fn open(&self) -> Result<Box<dyn StorageBackend>, Error> {
        let file = open(&self.path)?;
        Ok(match &self.reserve {
            Some(reserve) => Box::new(WithReserve::new(file, reserve.clone())),
            None => file,
        })
    }

    /// Makes the store beside its final place and moves it there whole.
    fn make(&self, fill: Fill<'_>) -> Result<(), Error> {
        let path = &self.path;
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        let database = match open(&new).and_then(fill) {
            Ok(database) => database,
            Err(error @ (Error::InUse(_) | Error::Full(_))) => return Err(error),
            Err(_) => {
                // What a crash left of an earlier attempt; it was never a store, or is one under its own name already.
                std::fs::remove_file(&new).map_err(|e| unreadable(&new, &e))?;
                open(&new).and_then(fill)?
            }
        };
        // A rename would replace a store that another process has just made; a link never does.
        std::fs::hard_link(&new, path).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => Error::InUse(path.display().to_string()),
            _ => unreadable(path, &e),
        })?;
        std::fs::remove_file(&new).map_err(|e| unreadable(&new, &e))?;
        drop(database);
        let dir_file = std::fs::File::open(dir).map_err(|e| unreadable(dir, &e))?;
        dir_file.sync_all().map_err(|e| unreadable(dir, &e))
    }

    fn len(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |meta| meta.len())
    }

    fn room(&self) -> Option<u64> {
        let free = rustix::fs::statvfs(&self.path).ok().map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize))?;
        let Some(reserve) = &self.reserve else { return Some(free) };
        reserve.fill();
        Some(free.saturating_add(reserve.held()))
    }
}

fn open(path: &Path) -> Result<Box<dyn StorageBackend>, Error> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|e| io_error(path, e))?;
    // Pages of a commit whose fsync failed may still be in the kernel's cache, marked as clean: what is read now must
    // come from the disk. A file system that cannot do this has no such cache to drop.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    let backend = FileBackend::new(file).map_err(|e| match e {
        DatabaseError::DatabaseAlreadyOpen => Error::InUse(path.display().to_string()),
        other => unreadable(path, &other),
    })?;
    Ok(Box::new(backend))
}

/// What went wrong with a file, in the store's words.
pub(super) fn io_error(path: &Path, error: io::Error) -> Error {
    if is_full(&error) { Error::Full(path.display().to_string()) } else { unreadable(path, &error) }
}

/// A file that cannot be used, and why.
pub(super) fn unreadable(path: &Path, why: &dyn fmt::Display) -> Error {
    Error::Unreadable { path: path.display().to_string(), why: why.to_string() }
}
