//! The embedded store: the present and the recent past in memory, all of it durable in one redb file.
//!
//! ```text
//!  txn ──▶ bounded queue ──▶ writer thread ──▶ redb file (fsync)
//!                               │ then
//!  get, range ◀── state ◀───────┤          one lock orders what becomes visible
//!  watch ◀── hub: history ◀─────┘
//! ```
//! Reads never touch the disk. What must hold:
//! - an answered write is on disk, and readers and watchers saw it no later than its writer;
//! - revisions never repeat, also after a crash: the newest is part of every commit;
//! - after a failed commit the store closes for good ([`Options::on_fatal`] lets the process end) unless the
//!   disk was merely full and the file shows no trace of the batch.

mod batch;
mod digest;
mod disk;
mod file;
mod hub;
mod medium;
#[cfg(test)]
mod power;
mod reserve;
mod state;
mod writer;

use std::fmt;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;

use ambient::Ambient;
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};

use self::file::StoreFile;
use self::hub::Hub;
use self::medium::{FileMedium, Medium};
use self::state::State;
use self::writer::{Request, Writer};
use crate::{Entry, Error, Identity, Op, Range, RangeQuery, Store, Txn, TxnOutcome, Watch};

/// One unit of room in the writer's queue, in bytes; a transaction takes at least one.
const QUEUE_UNIT: usize = 1024;
/// What may wait for the writer: 64 MiB of transactions, or 65,536 small ones.
const QUEUE_UNITS: usize = 65_536;

/// Called once, from the writer's thread, when the store has failed for good; gets the reason.
pub type OnFatal = Arc<dyn Fn(&str) + Send + Sync>;

/// Limits, and what to do when the store fails.
#[derive(Clone)]
pub struct Options {
    /// Longest key, in bytes.
    pub max_key: usize,
    /// Largest value, in bytes.
    pub max_value: usize,
    /// Largest transaction, all its keys and values together, in bytes.
    pub max_txn: usize,
    /// All keys and values together, in bytes; beyond it puts are answered with [`Error::Full`].
    pub max_bytes: usize,
    /// Puts are answered with [`Error::Full`] when the file system has fewer bytes left than this.
    pub disk_reserve: u64,
    /// Bytes of the disk that only the store may use, in a file beside its own, once others have filled it. Taken where
    /// the disk has several times as much.
    pub reserve: u64,
    /// Transactions kept for watches that start in the past.
    pub history_count: usize,
    /// Their bytes in memory.
    pub history_bytes: usize,
    /// A file larger than this, and than four times its content, is compacted when nothing else is to do.
    pub compact_above: u64,
    /// Batches that a watcher may lag behind before it is dropped.
    pub watch_queue: usize,
    /// What to do when the store has failed for good: usually to end the process, which then recovers.
    pub on_fatal: Option<OnFatal>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_key: 4 << 10,
            max_value: 4 << 20,
            max_txn: 16 << 20,
            max_bytes: 8 << 30,
            disk_reserve: 16 << 20,
            reserve: 64 << 20,
            history_count: 10_000,
            history_bytes: 64 << 20,
            compact_above: 64 << 20,
            watch_queue: 1024,
            on_fatal: None,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").finish_non_exhaustive()
    }
}

/// What a store is made from that takes the place of another one: after a restore, or a migration.
#[derive(Clone, Debug)]
pub struct Seed {
    /// The id of the store whose place it takes, and a generation above every one that store had.
    pub identity: Identity,
    /// Where its revisions go on: above any that was ever served of that id.
    pub revision: u64,
    /// What it holds, none of it newer than `revision`. Nothing of it expires.
    pub entries: Vec<Entry>,
}

/// A store in a file of this machine. Dropping the last reference settles and closes it.
#[derive(Debug)]
pub struct Embedded {
    shared: Arc<Shared>,
    identity: Identity,
    options: Options,
    room: Arc<Semaphore>,
    requests: Sender<Request>,
    writer: Option<JoinHandle<()>>,
}

impl Embedded {
    /// Opens the store in the file at `path`, making it if it is not there. The folder must exist.
    /// Blocks while it reads the file.
    pub fn open(path: &Path, ambient: Ambient, options: Options) -> Result<Arc<Self>, Error> {
        let medium = FileMedium::with_reserve(path, options.reserve);
        Self::open_on(Arc::new(medium), ambient, options)
    }

    /// Makes a store at `path` that begins with `seed`, durably and whole or not at all. There must be none yet.
    pub fn restore(path: &Path, seed: &Seed) -> Result<(), Error> {
        StoreFile::restore(&FileMedium::new(path), seed)
    }

    fn open_on(medium: Arc<dyn Medium>, ambient: Ambient, options: Options) -> Result<Arc<Self>, Error> {
        let (file, loaded) = StoreFile::open(medium.clone(), &ambient)?;
        let revision = loaded.state.revision;
        let shared = Arc::new(Shared {
            medium,
            state: RwLock::new(Arc::new(loaded.state)),
            hub: Mutex::new(Hub::new(loaded.history, loaded.floor, revision, options.watch_queue)),
            closed: OnceLock::new(),
        });
        let (requests, queue) = channel();
        let writer = Writer::new(shared.clone(), file, queue, ambient, options.clone(), loaded.ttls);
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run())
            .map_err(|e| Error::Closed(format!("its writer thread cannot start: {e}")))?;
        Ok(Arc::new(Self {
            shared,
            identity: loaded.identity,
            options,
            room: Arc::new(Semaphore::new(QUEUE_UNITS)),
            requests,
            writer: Some(writer),
        }))
    }

    /// Answers what is queued, closes the file and ends all watches. The store answers
    /// [`Error::Closed`] from then on.
    pub async fn close(&self) {
        self.room.close();
        let (answer, closed) = oneshot::channel();
        if self.requests.send(Request::Stop { answer: Some(answer) }).is_ok() {
            // An error means that the writer has ended on its own, which is as good.
            let _ = closed.await;
        }
    }

    /// Queues a request and waits for its answer; a writer that is gone means that the store is closed.
    async fn ask<T>(&self, request: Request, answer: oneshot::Receiver<Result<T, Error>>) -> Result<T, Error> {
        if self.requests.send(request).is_err() {
            return Err(self.shared.closed());
        }
        answer.await.unwrap_or_else(|_| Err(self.shared.closed()))
    }

    fn check_limits(&self, txn: &Txn) -> Result<(), Error> {
        let check = |what, is, limit| {
            if is > limit { Err(Error::TooLarge { what, is, limit }) } else { Ok(()) }
        };
        for op in &txn.ops {
            match op {
                Op::Put { key, value, .. } => {
                    check("key", key.len(), self.options.max_key)?;
                    check("value", value.len(), self.options.max_value)?;
                }
                Op::Delete { key } => check("key", key.len(), self.options.max_key)?,
            }
        }
        check("transaction", size_of_txn(txn), self.options.max_txn)
    }
}

#[async_trait]
impl Store for Embedded {
    fn identity(&self) -> Identity {
        self.identity
    }

    async fn current_revision(&self) -> Result<u64, Error> {
        Ok(self.shared.open_state(0)?.revision)
    }

    async fn get(&self, key: &[u8], at_least: u64) -> Result<Option<Entry>, Error> {
        Ok(self.shared.open_state(at_least)?.get(key).cloned())
    }

    async fn range(&self, query: RangeQuery) -> Result<Range, Error> {
        Ok(self.shared.open_state(query.at_least)?.range(&query))
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, Error> {
        self.check_limits(&txn)?;
        let units = (size_of_txn(&txn) / QUEUE_UNIT + 1).min(QUEUE_UNITS);
        let units = u32::try_from(units).expect("bounded by QUEUE_UNITS");
        let room = self.room.clone().acquire_many_owned(units).await.map_err(|_| self.shared.closed())?;
        let (answer, answered) = oneshot::channel();
        self.ask(Request::Txn { txn, answer, room }, answered).await
    }

    async fn watch(&self, prefix: Bytes, after: u64) -> Result<Watch, Error> {
        let mut hub = self.shared.lock_hub();
        // Under the hub's lock: a store that closes after this look still finds the watcher and ends it.
        self.shared.check_open()?;
        hub.watch(prefix, after)
    }

    async fn compact(&self, revision: u64) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        self.ask(Request::Compact { revision, answer }, answered).await
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        let _ = self.requests.send(Request::Stop { answer: None });
        if let Some(writer) = self.writer.take() {
            // Its panic was reported where it happened.
            let _ = writer.join();
        }
    }
}

/// What the writer and everybody else have in common.
#[derive(Debug)]
struct Shared {
    medium: Arc<dyn Medium>,
    state: RwLock<Arc<State>>,
    hub: Mutex<Hub>,
    /// Why the store is closed, once it is.
    closed: OnceLock<String>,
}

impl Shared {
    /// The present, to be read at leisure.
    fn state(&self) -> Arc<State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The present of a store that is open, at least as new as `at_least`. Every revision that was ever
    /// answered is applied, so a newer one is not ours.
    fn open_state(&self, at_least: u64) -> Result<Arc<State>, Error> {
        self.check_open()?;
        let state = self.state();
        if state.revision < at_least {
            return Err(Error::Future { asked: at_least, newest: state.revision });
        }
        Ok(state)
    }

    /// Changes the present; readers that took it before keep theirs.
    fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut state));
    }

    fn lock_hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_open(&self) -> Result<(), Error> {
        if self.closed.get().is_some() { Err(self.closed()) } else { Ok(()) }
    }

    fn closed(&self) -> Error {
        Error::Closed(self.closed.get().cloned().unwrap_or_else(|| "it was shut down".into()))
    }

    /// Refuses everything from now on, and ends the watches.
    fn close(&self, why: &str) {
        let mut hub = self.lock_hub();
        let _ = self.closed.set(why.to_owned());
        hub.close(&self.closed());
    }
}

/// The bytes of a transaction's keys and values.
fn size_of_txn(txn: &Txn) -> usize {
    let ops: usize = txn
        .ops
        .iter()
        .map(|op| match op {
            Op::Put { key, value, .. } => key.len() + value.len(),
            Op::Delete { key } => key.len(),
        })
        .sum();
    ops + txn.compare.iter().map(|compare| compare.key.len()).sum::<usize>()
}
