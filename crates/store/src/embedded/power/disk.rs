//! A disk in memory that remembers what was done to it, and fails as it is told.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use crate::Error;
use crate::embedded::medium::{Fill, Medium};

/// What a disk writes whole or not at all.
pub(super) const SECTOR: usize = 512;
/// In what units a file system gives out room.
const BLOCK: u64 = 4096;

/// One thing that happened, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Bytes were written.
    Write { at: u64, bytes: Vec<u8> },
    /// The file got this length.
    Length(u64),
    /// All before is durable.
    Sync,
    /// A sync failed: nobody knows.
    FailedSync,
    /// A writer was told that this revision is durable.
    Acknowledged(u64),
}

/// What is to go wrong.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// So many writes and changes of length succeed; the next ones find the disk full.
    pub(super) full_after: Option<usize>,
    /// How many do; then there is room again.
    pub(super) refusals: usize,
    /// So many blocks can still be taken; writes into what was written before go on.
    pub(super) blocks_left: Option<usize>,
    /// So many syncs succeed; the next one fails.
    pub(super) sync_fails_after: Option<usize>,
    /// Syncs wait while this is set.
    pub(super) hold_syncs: bool,
}

#[derive(Debug, Default)]
struct Inner {
    image: Vec<u8>,
    taken: HashSet<u64>,
    log: Vec<Step>,
    plan: Plan,
    /// Syncs that wait.
    waiting: usize,
    /// Something was refused.
    was_full: bool,
}

/// A disk; clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(super) struct SimDisk(Arc<(Mutex<Inner>, Condvar)>);

impl SimDisk {
    /// A disk that holds these bytes.
    pub(super) fn holding(image: Vec<u8>) -> Self {
        let disk = Self::default();
        disk.lock().image = image;
        disk
    }

    /// What it holds now.
    pub(super) fn image(&self) -> Vec<u8> {
        self.lock().image.clone()
    }

    /// Forgets the log, which begins anew with what the disk holds now: the image.
    pub(super) fn begin(&self) -> Vec<u8> {
        let mut inner = self.lock();
        inner.log.clear();
        inner.image.clone()
    }

    /// What happened since.
    pub(super) fn log(&self) -> Vec<Step> {
        self.lock().log.clone()
    }

    /// A writer was told that this revision is durable.
    pub(super) fn note(&self, revision: u64) {
        self.lock().log.push(Step::Acknowledged(revision));
    }

    /// What goes wrong from now on.
    pub(super) fn plan(&self, plan: Plan) {
        self.lock().plan = plan;
        self.0.1.notify_all();
    }

    /// Whether it ever had no room.
    pub(super) fn was_full(&self) -> bool {
        self.lock().was_full
    }

    /// Returns when a sync waits.
    pub(super) fn await_held_sync(&self) {
        let mut inner = self.lock();
        while inner.waiting == 0 {
            inner = self.0.1.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn full() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

impl Inner {
    /// Whether one more write or change of length is refused.
    fn refuses(&mut self) -> bool {
        match &mut self.plan.full_after {
            Some(0) => {
                self.plan.refusals = self.plan.refusals.saturating_sub(1);
                if self.plan.refusals == 0 {
                    self.plan.full_after = None;
                }
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut room = bytes.len();
        if self.refuses() {
            // As far as there was room; what is half written is written.
            room /= 2;
        }
        for block in at / BLOCK..(at + bytes.len() as u64).div_ceil(BLOCK) {
            if self.taken.contains(&block) {
                continue;
            }
            if let Some(left) = &mut self.plan.blocks_left {
                if *left == 0 {
                    room = room.min((block * BLOCK).saturating_sub(at) as usize);
                    break;
                }
                *left -= 1;
            }
            self.taken.insert(block);
        }
        let from = at as usize;
        let end = (from + room).min(self.image.len());
        if end > from {
            self.image[from..end].copy_from_slice(&bytes[..end - from]);
            self.log.push(Step::Write { at, bytes: bytes[..end - from].to_vec() });
        }
        if room < bytes.len() {
            self.was_full = true;
            return Err(full());
        }
        Ok(())
    }
}

/// The same disk, as the engine sees it.
impl StorageBackend for SimDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().image.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.lock();
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = from.checked_add(out.len()).and_then(|end| inner.image.get(from..end));
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.lock();
        if inner.refuses() {
            inner.was_full = true;
            return Err(full());
        }
        inner.image.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
        inner.taken.retain(|block| block * BLOCK < len);
        inner.log.push(Step::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.lock();
        inner.waiting += 1;
        self.0.1.notify_all();
        while inner.plan.hold_syncs {
            inner = self.0.1.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.waiting -= 1;
        match &mut inner.plan.sync_fails_after {
            Some(0) => {
                inner.log.push(Step::FailedSync);
                return Err(io::Error::other("planted"));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        inner.log.push(Step::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.lock().write(offset, data)
    }
}

impl Medium for SimDisk {
    fn path(&self) -> &Path {
        Path::new("simulated")
    }

    fn exists(&self) -> io::Result<bool> {
        Ok(!self.lock().image.is_empty())
    }

    fn open(&self) -> Result<Box<dyn StorageBackend>, Error> {
        Ok(Box::new(self.clone()))
    }

    fn make(&self, fill: Fill<'_>) -> Result<(), Error> {
        fill(Box::new(self.clone())).map(drop)
    }

    fn len(&self) -> u64 {
        self.lock().image.len() as u64
    }

    fn room(&self) -> Option<u64> {
        None
    }
}
