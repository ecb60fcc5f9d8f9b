//! The file: what lies where in redb, and how it is read and written.
//!
//! Format 2, three tables:
//! - `meta`: `format` (magic and version), `id`, `generation`, `revision` (the newest), `floor` (history
//!   up to it is forgotten), `data-digest` and `history-digest` (sums over the rows of the other tables);
//! - `data`: key → create revision, mod revision, time to live in ms (0: none), all u64 little-endian, value;
//! - `history`: revision → its events, in order: what the key held *before*. What it held after is
//!   found by walking from the present back, so no value is written twice.

use std::collections::HashMap;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ambient::Ambient;
use bytes::Bytes;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, StorageError, TableDefinition};

use super::Seed;
use super::batch::Slot;
use super::digest::Digest;
use super::disk::{Disk, Health};
use super::hub::{Record, Trim};
use super::medium::{Medium, io_error, unreadable};
use super::state::State;
use crate::{Entry, Error, Event, Identity};

const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");
const DATA: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("data");
const HISTORY: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("history");

const MAGIC: &[u8] = b"statefuld-store\0";
const VERSION: u32 = 2;
/// A new store stands at this revision, so that 0 is free to mean "none".
const FIRST_REVISION: u64 = 1;
/// redb's own page cache; reads are served from our memory, so it only has to hold a commit's work.
const PAGE_CACHE_BYTES: usize = 8 << 20;

/// The open file.
#[derive(Debug)]
pub(super) struct StoreFile {
    database: Database,
    health: Arc<Health>,
    medium: Arc<dyn Medium>,
    digests: Digests,
    /// Revision and checksums of a commit that is under way, or has failed.
    attempted: Option<(u64, Digests)>,
}

/// Checksums over the tables, as of the last commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Digests {
    data: Digest,
    history: Digest,
}

/// What a file holds.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) identity: Identity,
    pub(super) state: State,
    pub(super) history: Vec<Record>,
    pub(super) floor: u64,
    /// Keys with a time to live, and how long that is.
    pub(super) ttls: Vec<(Bytes, Duration)>,
}

impl StoreFile {
    /// Opens the store that lies there, making it if there is none, and reads all of it.
    pub(super) fn open(medium: Arc<dyn Medium>, ambient: &Ambient) -> Result<(Self, Loaded), Error> {
        let path = medium.path().to_owned();
        if !medium.exists().map_err(|e| unreadable(&path, &e))? {
            medium.make(&|backend| create(backend, &path, ambient))?;
        }
        // The engine takes some kinds of damage for bugs of its own.
        let opened = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let mut file = Self::open_existing(medium)?;
            let loaded = file.load()?;
            Ok((file, loaded))
        }));
        opened.unwrap_or_else(|_| Err(damaged(&path, &"its pages contradict each other")))
    }

    /// Makes a store there that begins with these entries instead of none. Nothing can be watched from before it.
    pub(super) fn restore(medium: &dyn Medium, seed: &Seed) -> Result<(), Error> {
        let path = medium.path();
        if medium.exists().map_err(|e| unreadable(path, &e))? {
            return Err(unreadable(path, &"a store is there already"));
        }
        medium.make(&|backend| {
            let (database, _) = open_database(backend, path)?;
            fill(&database, seed).map_err(|e| redb_error(path, e))?;
            Ok(database)
        })
    }

    fn open_existing(medium: Arc<dyn Medium>) -> Result<Self, Error> {
        let (database, health) = open_database(medium.open()?, medium.path())?;
        Ok(Self { database, health, medium, digests: Digests::default(), attempted: None })
    }

    /// How large the file is.
    pub(super) fn len(&self) -> u64 {
        self.medium.len()
    }

    /// After a failed commit: closes the file, and says how it can be opened again if the only trouble was a full
    /// disk; `revision` is the newest that was committed before it.
    pub(super) fn give_up(self, revision: u64) -> Result<Recovery, Error> {
        if !self.health.only_full() {
            return Err(Error::Closed("a write to the store's file failed".into()));
        }
        let Self { medium, digests, attempted, .. } = self;
        Ok(Recovery { medium, digests, revision, attempted })
    }

    /// Whether no call to the file has failed.
    pub(super) fn is_well(&self) -> bool {
        self.health.is_well()
    }

    /// Gives room back to the file system.
    pub(super) fn compact(&mut self) -> Result<(), redb::CompactionError> {
        self.database.compact().map(drop)
    }

    /// Makes a batch durable. When this returns well, the disk has it.
    pub(super) fn commit(
        &mut self,
        revision: u64,
        changes: &[(&Bytes, &Slot)],
        records: &[Record],
        trim: &Trim,
    ) -> Result<(), redb::Error> {
        let mut digests = self.digests;
        let mut write = self.database.begin_write()?;
        write.set_durability(redb::Durability::Immediate)?;
        {
            let mut data = write.open_table(DATA)?;
            let mut buffer = Vec::new();
            for (key, slot) in changes {
                let former = match &slot.entry {
                    Some(entry) => {
                        encode_data(&mut buffer, entry, slot.ttl);
                        digests.data.add(key, &buffer);
                        data.insert(key.as_ref(), buffer.as_slice())?
                    }
                    None => data.remove(key.as_ref())?,
                };
                if let Some(former) = former {
                    digests.data.remove(key, former.value());
                }
            }
            let mut history = write.open_table(HISTORY)?;
            for record in records {
                encode_record(&mut buffer, record);
                digests.history.add(&record.revision.to_le_bytes(), &buffer);
                history.insert(record.revision, buffer.as_slice())?;
            }
            for revision in &trim.revisions {
                if let Some(former) = history.remove(revision)? {
                    digests.history.remove(&revision.to_le_bytes(), former.value());
                }
            }
            let mut meta = write.open_table(META)?;
            for (name, value) in [
                ("revision", revision),
                ("floor", trim.floor),
                ("data-digest", digests.data.0),
                ("history-digest", digests.history.0),
            ] {
                meta.insert(name, value.to_le_bytes().as_slice())?;
            }
        }
        self.attempted = Some((revision, digests));
        write.commit()?;
        (self.attempted, self.digests) = (None, digests);
        Ok(())
    }

    fn load(&mut self) -> Result<Loaded, Error> {
        let path = self.medium.path();
        let mut found = Digests::default();
        let read = self.database.begin_read().map_err(|e| damaged(path, &e))?;
        let meta =
            read.open_table(META).map_err(|_| unreadable(path, &"it is a database, but not a store of statefuld"))?;
        check_format(&meta, path)?;
        let identity = Identity {
            id: read_meta(&meta, "id", path)?,
            generation: u32::from_le_bytes(read_meta(&meta, "generation", path)?),
        };
        let revision = read_u64(&meta, "revision", path)?;
        let floor = read_u64(&meta, "floor", path)?;

        let data = read.open_table(DATA).map_err(|e| damaged(path, &e))?;
        let mut entries = Vec::new();
        let mut ttls = Vec::new();
        for row in data.iter().map_err(|e| damaged(path, &e))? {
            let (key, value) = row.map_err(|e| damaged(path, &e))?;
            found.data.add(key.value(), value.value());
            let (entry, ttl) =
                decode_data(key.value(), value.value()).ok_or_else(|| damaged(path, &"an entry is cut off"))?;
            if let Some(ttl) = ttl {
                ttls.push((entry.key.clone(), ttl));
            }
            entries.push(entry);
        }
        if found.data.0 != read_u64(&meta, "data-digest", path)? {
            return Err(damaged(path, &"its entries are not those that were written"));
        }
        let state = State::from_sorted(revision, entries);

        let table = read.open_table(HISTORY).map_err(|e| damaged(path, &e))?;
        let mut history = Vec::new();
        let mut later: HashMap<Bytes, Option<Entry>> = HashMap::new();
        for row in table.iter().map_err(|e| damaged(path, &e))?.rev() {
            let (at, events) = row.map_err(|e| damaged(path, &e))?;
            found.history.add(&at.value().to_le_bytes(), events.value());
            let record = decode_record(at.value(), events.value(), &state, &mut later)
                .ok_or_else(|| damaged(path, &format!("its history at {} does not fit its entries", at.value())))?;
            history.push(record);
        }
        history.reverse();
        if found.history.0 != read_u64(&meta, "history-digest", path)? {
            return Err(damaged(path, &"its history is not the one that was written"));
        }
        self.digests = found;
        Ok(Loaded { identity, state, history, floor, ttls })
    }
}

/// A store whose file has to be opened again, since the disk was full.
#[derive(Debug)]
pub(super) struct Recovery {
    medium: Arc<dyn Medium>,
    digests: Digests,
    revision: u64,
    attempted: Option<(u64, Digests)>,
}

impl Recovery {
    /// Opens the file again, and tells whether the failed commit is in it after all: the engine still works on its
    /// file after the point of no return. [`Error::Full`] means that there is no room, not even for that; any other
    /// error is for good.
    pub(super) fn open(&self) -> Result<(StoreFile, bool), Error> {
        let path = self.medium.path();
        let mut file = StoreFile::open_existing(self.medium.clone())?;
        let read = file.database.begin_read().map_err(|e| unreadable(path, &e))?;
        let meta = read.open_table(META).map_err(|e| unreadable(path, &e))?;
        let found = read_u64(&meta, "revision", path)?;
        // Forgetting history has no revision of its own; the checksum over the history tells.
        let history = read_u64(&meta, "history-digest", path)?;
        drop(meta);
        drop(read);
        let is = |revision, digests: &Digests| revision == found && digests.history.0 == history;
        if is(self.revision, &self.digests) {
            file.digests = self.digests;
            return Ok((file, false));
        }
        match &self.attempted {
            Some((revision, digests)) if is(*revision, digests) => {
                file.digests = *digests;
                // What was read may not be on the disk yet.
                file.sync().map_err(|error| Error::Closed(format!("the file cannot be synced: {error}")))?;
                Ok((file, true))
            }
            _ => Err(Error::Closed(format!("the file is at revision {found}, not {}", self.revision))),
        }
    }
}

impl StoreFile {
    /// A commit that changes nothing: what was read is on the disk when it returns well.
    fn sync(&self) -> Result<(), redb::Error> {
        let mut write = self.database.begin_write()?;
        write.set_durability(redb::Durability::Immediate)?;
        {
            let mut meta = write.open_table(META)?;
            meta.insert("data-digest", self.digests.data.0.to_le_bytes().as_slice())?;
        }
        Ok(write.commit()?)
    }
}

/// Fills empty bytes with an empty store.
fn create(backend: Box<dyn StorageBackend>, path: &Path, ambient: &Ambient) -> Result<Database, Error> {
    let (database, _) = open_database(backend, path)?;
    let read = database.begin_read().map_err(|e| unreadable(path, &e))?;
    let tables = read.list_tables().map_err(|e| unreadable(path, &e))?.count();
    drop(read);
    if tables > 0 {
        return Err(unreadable(path, &"a new store is to be made where one is already"));
    }
    let mut id = [0; 16];
    ambient.fill(&mut id);
    init(&database, id).map_err(|e| redb_error(path, e))?;
    Ok(database)
}

fn init(database: &Database, id: [u8; 16]) -> Result<(), redb::Error> {
    let identity = Identity { id, generation: 1 };
    let write = database.begin_write()?;
    write_meta(&write, identity, FIRST_REVISION, 0, Digest::default())?;
    write.open_table(DATA)?;
    write.open_table(HISTORY)?;
    Ok(write.commit()?)
}

/// As [`init`], with entries.
fn fill(database: &Database, seed: &Seed) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    let mut digest = Digest::default();
    {
        let mut data = write.open_table(DATA)?;
        let mut buffer = Vec::new();
        for entry in &seed.entries {
            debug_assert!(entry.mod_revision <= seed.revision, "no entry is newer than its store");
            encode_data(&mut buffer, entry, None);
            // A key that occurs twice would spoil the checksum: the last one counts, as in any table.
            if let Some(former) = data.insert(entry.key.as_ref(), buffer.as_slice())? {
                digest.remove(&entry.key, former.value());
            }
            digest.add(&entry.key, &buffer);
        }
        write.open_table(HISTORY)?;
    }
    write_meta(&write, seed.identity, seed.revision, seed.revision, digest)?;
    Ok(write.commit()?)
}

/// All rows about the store as a whole; its history is empty.
fn write_meta(
    write: &redb::WriteTransaction,
    identity: Identity,
    revision: u64,
    floor: u64,
    data: Digest,
) -> Result<(), redb::Error> {
    let mut meta = write.open_table(META)?;
    let format = [MAGIC, &VERSION.to_le_bytes()].concat();
    meta.insert("format", format.as_slice())?;
    meta.insert("id", identity.id.as_slice())?;
    meta.insert("generation", identity.generation.to_le_bytes().as_slice())?;
    for (name, value) in
        [("revision", revision), ("floor", floor), ("data-digest", data.0), ("history-digest", Digest::default().0)]
    {
        meta.insert(name, value.to_le_bytes().as_slice())?;
    }
    Ok(())
}

fn open_database(backend: Box<dyn StorageBackend>, path: &Path) -> Result<(Database, Arc<Health>), Error> {
    let (disk, health) = Disk::new(backend);
    let database =
        Database::builder().set_cache_size(PAGE_CACHE_BYTES).create_with_backend(disk).map_err(|e| match e {
            DatabaseError::DatabaseAlreadyOpen => Error::InUse(path.display().to_string()),
            DatabaseError::Storage(StorageError::Io(e))
                if !matches!(e.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                io_error(path, e)
            }
            other => damaged(path, &other),
        })?;
    Ok((database, health))
}

fn check_format(meta: &impl ReadableTable<&'static str, &'static [u8]>, path: &Path) -> Result<(), Error> {
    let found = meta.get("format").map_err(|e| unreadable(path, &e))?;
    let found = found.as_ref().map_or(&[][..], |guard| guard.value());
    let version = found.strip_prefix(MAGIC).and_then(|v| v.try_into().ok()).map(u32::from_le_bytes);
    match version {
        Some(VERSION) => Ok(()),
        Some(other) => Err(unreadable(
            path,
            &format!("its format is {other} and this statefuld knows {VERSION} only; use the statefuld that wrote it"),
        )),
        None => Err(unreadable(path, &"it is not a store of statefuld")),
    }
}

fn read_meta<const N: usize>(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
    path: &Path,
) -> Result<[u8; N], Error> {
    let row = meta.get(name).map_err(|e| unreadable(path, &e))?;
    row.and_then(|guard| guard.value().try_into().ok()).ok_or_else(|| damaged(path, &format!("its {name} is missing")))
}

fn read_u64(meta: &impl ReadableTable<&'static str, &'static [u8]>, name: &str, path: &Path) -> Result<u64, Error> {
    Ok(u64::from_le_bytes(read_meta(meta, name, path)?))
}

fn encode_data(buffer: &mut Vec<u8>, entry: &Entry, ttl: Option<Duration>) {
    buffer.clear();
    buffer.extend_from_slice(&entry.create_revision.to_le_bytes());
    buffer.extend_from_slice(&entry.mod_revision.to_le_bytes());
    // 0 says "for ever", so the shortest life is a millisecond.
    let ttl_ms = ttl.map_or(0, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1));
    buffer.extend_from_slice(&ttl_ms.to_le_bytes());
    buffer.extend_from_slice(&entry.value);
}

fn decode_data(key: &[u8], row: &[u8]) -> Option<(Entry, Option<Duration>)> {
    let mut rest = row;
    let create_revision = take_u64(&mut rest)?;
    let mod_revision = take_u64(&mut rest)?;
    let ttl_ms = take_u64(&mut rest)?;
    let ttl = (ttl_ms > 0).then(|| Duration::from_millis(ttl_ms));
    let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(rest));
    Some((Entry { key, value, create_revision, mod_revision }, ttl))
}

/// Per event: 1 if there was something before, key; then create and mod revision and value of that.
fn encode_record(buffer: &mut Vec<u8>, record: &Record) {
    buffer.clear();
    for event in &record.events {
        buffer.push(u8::from(event.previous.is_some()));
        put_bytes(buffer, &event.key);
        if let Some(previous) = &event.previous {
            buffer.extend_from_slice(&previous.create_revision.to_le_bytes());
            buffer.extend_from_slice(&previous.mod_revision.to_le_bytes());
            put_bytes(buffer, &previous.value);
        }
    }
}

/// Decodes one record on the way back from the present: `later` holds what newer records found before them.
fn decode_record(
    revision: u64,
    row: &[u8],
    present: &State,
    later: &mut HashMap<Bytes, Option<Entry>>,
) -> Option<Record> {
    let mut befores = Vec::new();
    let mut rest = row;
    while !rest.is_empty() {
        let had = take::<1>(&mut rest)?[0];
        let key = Bytes::copy_from_slice(take_bytes(&mut rest)?);
        let previous = match had {
            0 => None,
            1 => Some(Entry {
                key: key.clone(),
                create_revision: take_u64(&mut rest)?,
                mod_revision: take_u64(&mut rest)?,
                value: Bytes::copy_from_slice(take_bytes(&mut rest)?),
            }),
            _ => return None,
        };
        befores.push((key, previous));
    }
    let mut events = Vec::with_capacity(befores.len());
    for (key, previous) in befores.into_iter().rev() {
        let entry = later.insert(key.clone(), previous.clone()).unwrap_or_else(|| present.get(&key).cloned());
        if entry.as_ref().is_some_and(|entry| entry.mod_revision != revision) {
            return None;
        }
        events.push(Event { key, entry, previous });
    }
    events.reverse();
    Some(Record { revision, events })
}

fn put_bytes(buffer: &mut Vec<u8>, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).expect("keys and values are bounded far below 4 GiB");
    buffer.extend_from_slice(&len.to_le_bytes());
    buffer.extend_from_slice(bytes);
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    take(rest).map(u64::from_le_bytes)
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = u32::from_le_bytes(take(rest)?) as usize;
    let (head, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(head)
}

fn redb_error(path: &Path, error: redb::Error) -> Error {
    match error {
        redb::Error::Io(e) => io_error(path, e),
        other => unreadable(path, &other),
    }
}

/// A store whose file the disk has spoilt, and what to do.
fn damaged(path: &Path, what: &dyn std::fmt::Display) -> Error {
    unreadable(
        path,
        &format!(
            "{what}; the file is damaged: put a copy of it back, or move it away to begin with an empty store \
             (what lies in volumes is kept, the objects have to be applied again)"
        ),
    )
}
