//! The store's vocabulary: the trait, and the shapes that pass through it.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

/// Durable keys, bytes and revisions, on whatever engine.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Which store this is, and which generation of it.
    fn identity(&self) -> Identity;

    /// The newest committed revision, linearizable: at least that of every write answered before the call.
    async fn current_revision(&self) -> Result<u64, Error>;

    /// One entry, from a state at least as new as revision `at_least` (0: whatever is at hand).
    async fn get(&self, key: &[u8], at_least: u64) -> Result<Option<Entry>, Error>;

    /// Entries in key order, from a state at least as new as `query.at_least`.
    async fn range(&self, query: RangeQuery) -> Result<Range, Error>;

    /// Evaluates the comparisons and, if all hold, applies the operations, all or nothing, durably.
    /// Answers only once the outcome is on disk and visible to readers.
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, Error>;

    /// The changes under `prefix` with a revision greater than `after`.
    async fn watch(&self, prefix: Bytes, after: u64) -> Result<Watch, Error>;

    /// Forgets the history up to and including `revision`: watches from before it are then refused.
    async fn compact(&self, revision: u64) -> Result<(), Error>;
}

/// Who a store is. Restore and migration keep the id and raise the generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Chosen at random when the store was made.
    pub id: [u8; 16],
    /// Rises with every restore or migration; epochs are made from it.
    pub generation: u32,
}

/// A key's current value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// The value, shared and never copied.
    pub value: Bytes,
    /// Revision of the transaction that created the key.
    pub create_revision: u64,
    /// Revision of the transaction that last wrote it.
    pub mod_revision: u64,
}

/// What to read.
#[derive(Clone, Debug, Default)]
pub struct RangeQuery {
    /// First key, inclusive.
    pub start: Bytes,
    /// End, exclusive; empty means "to the last key".
    pub end: Bytes,
    /// At most so many entries; 0 means all.
    pub limit: usize,
    /// The state must be at least this new.
    pub at_least: u64,
}

impl RangeQuery {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        Self { end: prefix_end(&start), start, ..Self::default() }
    }
}

/// The smallest key greater than every key that begins with `prefix` (empty: there is none).
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Bytes::from(end);
        }
    }
    Bytes::new()
}

/// What a range read found.
#[derive(Clone, Debug)]
pub struct Range {
    /// The revision of the state that was read.
    pub revision: u64,
    /// The entries, in key order.
    pub entries: Vec<Entry>,
    /// There are more after the last.
    pub more: bool,
}

/// Comparisons, and what to do if all of them hold.
#[derive(Clone, Debug, Default)]
pub struct Txn {
    /// All must hold.
    pub compare: Vec<Compare>,
    /// Applied in order, at one revision. A key may occur once.
    pub ops: Vec<Op>,
}

/// A condition on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: Bytes,
    /// The revision that last wrote it; 0 means that it must be absent.
    pub mod_revision: u64,
}

/// A change to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes the value. With `ttl` the key is deleted by the store when that time has passed without
    /// another put; the remaining time starts afresh when the store is opened.
    Put {
        /// The key.
        key: Bytes,
        /// The new value.
        value: Bytes,
        /// How long it lives; `None` means for ever.
        ttl: Option<Duration>,
    },
    /// Deletes the key; nothing happens if it is absent.
    Delete {
        /// The key.
        key: Bytes,
    },
}

/// How a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOutcome {
    /// It was applied, and is durable.
    Committed {
        /// The transaction's revision. (A transaction that changed nothing has the current one.)
        revision: u64,
    },
    /// A comparison did not hold; nothing was changed.
    Failed {
        /// The revision of the state that was compared.
        revision: u64,
        /// The compared keys' entries, in the order of the comparisons.
        current: Vec<Option<Entry>>,
    },
}

/// The changes of one transaction that a watch asked for.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The transaction's revision. A batch without events says only that the watch is this far.
    pub revision: u64,
    /// In the order of the transaction's operations.
    pub events: Vec<Event>,
}

/// One change.
#[derive(Clone, Debug)]
pub struct Event {
    /// The key.
    pub key: Bytes,
    /// The new entry, or `None` if the key was deleted.
    pub entry: Option<Entry>,
    /// What was there before.
    pub previous: Option<Entry>,
}

/// A running watch. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    /// Batches in revision order. Ends with [`Error::SlowWatcher`] when the reader fell too far behind.
    pub batches: tokio::sync::mpsc::Receiver<Result<Batch, Error>>,
}

/// What a store can answer instead.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The history that was asked for is compacted. Read the present and watch from there.
    #[error("revision {asked} is compacted; the oldest that can be watched from is {oldest}")]
    Compacted {
        /// The revision that was asked for.
        asked: u64,
        /// A watch may start after this one or any later.
        oldest: u64,
    },
    /// The revision lies in the future: it belongs to another store, or to a lost history.
    #[error("revision {asked} is not reached yet; the newest is {newest}")]
    Future {
        /// The revision that was asked for.
        asked: u64,
        /// The newest there is.
        newest: u64,
    },
    /// A watcher did not keep up. Watch again from the last revision that was seen.
    #[error("the watcher fell behind and was dropped")]
    SlowWatcher,
    /// A limit on sizes was passed.
    #[error("{what} is {is} bytes, the limit is {limit}")]
    TooLarge {
        /// "key", "value" or "transaction".
        what: &'static str,
        /// Its size.
        is: usize,
        /// The limit.
        limit: usize,
    },
    /// The disk is full. Nothing was changed; free some space and try again.
    #[error("the disk that holds the store is full: {0}")]
    Full(String),
    /// The store has shut down, or failed for good; the process has to open it again.
    #[error("the store is closed: {0}")]
    Closed(String),
    /// The file is in use by another process.
    #[error("the store at {0} is in use by another process")]
    InUse(String),
    /// The file is not a store, is damaged, or of a version that this binary does not know.
    #[error("the store at {path} cannot be opened: {why}")]
    Unreadable {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}
