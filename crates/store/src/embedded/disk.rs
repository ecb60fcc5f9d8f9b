//! The file under redb, watched: it remembers how writing failed.
//!
//! redb refuses everything after any failed write. If the cause was only that the disk is full, and no sync failed,
//! the file can be opened again and the last commit is the truth; after anything else it may not be
//! trusted before the process has started anew. [`Health`] tells the two apart.

use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use redb::{BackendError, StorageBackend};

/// How the file under the store is doing: 0 is well.
#[derive(Debug, Default)]
pub(super) struct Health(AtomicU8);

const NO_SPACE: u8 = 1;
const FAILED: u8 = 2;

impl Health {
    /// No call to the file has failed.
    pub(super) fn is_well(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }

    /// Nothing worse happened than that the disk had no room for a write.
    pub(super) fn only_full(&self) -> bool {
        self.0.load(Ordering::SeqCst) == NO_SPACE
    }

    fn note<T>(&self, result: io::Result<T>, syncing: bool) -> io::Result<T> {
        if let Err(error) = &result {
            let to = if !syncing && is_full(error) { NO_SPACE } else { FAILED };
            self.0.fetch_max(to, Ordering::SeqCst);
        }
        result
    }
}

/// Whether an error says that there is no space left, or no quota.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The file, passing everything on.
#[derive(Debug)]
pub(super) struct Disk {
    file: Box<dyn StorageBackend>,
    health: Arc<Health>,
}

impl Disk {
    /// Over an open file.
    pub(super) fn new(file: Box<dyn StorageBackend>) -> (Self, Arc<Health>) {
        let health = Arc::new(Health::default());
        (Self { file, health: health.clone() }, health)
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.health.note(self.file.read(offset, out), true)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.health.note(self.file.set_len(len), false)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.health.note(self.file.sync_data(), true)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.health.note(self.file.write(offset, data), false)
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
