//! Room on the disk that only the store may use: a file beside it that holds nothing, and gives up its blocks when a pod
//! has filled the disk, so that the store goes on being written.
//!
//! It is taken where it leaves the disk's other users enough, and taken again when there is room.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::{BackendError, StorageBackend};
use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::disk::is_full;

/// How much is given up at a time.
const STEP: u64 = 1 << 20;
/// It is taken only where so many times its size are free.
const ROOM_FOR: u64 = 8;
/// Others take what is given up, too: so often it is tried before a write fails.
const TRIES: u32 = 8;

/// The file that holds room.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    wanted: u64,
    /// How much it holds now.
    held: AtomicU64,
}

impl Reserve {
    /// Beside that store; takes its room if there is enough.
    pub(super) fn beside(store: &Path, wanted: u64) -> Arc<Self> {
        let path = store.with_added_extension("reserve");
        let held = std::fs::metadata(&path).map_or(0, |meta| meta.len());
        let reserve = Self { path, wanted, held: AtomicU64::new(held) };
        reserve.fill();
        Arc::new(reserve)
    }

    /// Bytes that it holds.
    pub(super) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Takes what it lacks, where the disk has plenty.
    pub(super) fn fill(&self) {
        let held = self.held();
        if held >= self.wanted {
            return;
        }
        let Some(folder) = self.path.parent() else { return };
        let free = statvfs(folder).map_or(0, |fs| fs.f_bavail.saturating_mul(fs.f_frsize));
        if free / ROOM_FOR < self.wanted - held {
            return;
        }
        match self.open().and_then(|file| Ok(fallocate(&file, FallocateFlags::empty(), 0, self.wanted)?)) {
            Ok(()) => self.held.store(self.wanted, Ordering::Relaxed),
            // Some file systems cannot promise room. Then there is none but what is free.
            Err(error) => tracing::debug!(path = %self.path.display(), %error, "no room is reserved"),
        }
    }

    /// Gives up a part. False where there is nothing left.
    fn give_up(&self) -> bool {
        let held = self.held();
        if held == 0 {
            return false;
        }
        let left = held.saturating_sub(STEP);
        let shrunk = self.open().and_then(|file| {
            file.set_len(left)?;
            // Blocks can be taken by others once the file system has noted that they are free.
            file.sync_all()
        });
        if let Err(error) = shrunk {
            tracing::warn!(path = %self.path.display(), %error, "reserved room cannot be given up");
            return false;
        }
        tracing::warn!(left, "the disk is full: the store goes on with the room that it has reserved");
        self.held.store(left, Ordering::Relaxed);
        true
    }

    fn open(&self) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(false).open(&self.path)
    }
}

/// A file whose writes fall back on the reserve.
#[derive(Debug)]
pub(super) struct WithReserve {
    file: Box<dyn StorageBackend>,
    reserve: Arc<Reserve>,
}

impl WithReserve {
    /// Over an open file.
    pub(super) fn new(file: Box<dyn StorageBackend>, reserve: Arc<Reserve>) -> Self {
        Self { file, reserve }
    }

    fn try_with(&self, action: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let mut result = action();
        for _ in 0..TRIES {
            match &result {
                Err(error) if is_full(error) && self.reserve.give_up() => result = action(),
                _ => break,
            }
        }
        result
    }
}

impl StorageBackend for WithReserve {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.try_with(|| self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        // Never again after a failure: what was lost then is not known.
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.try_with(|| self.file.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}
