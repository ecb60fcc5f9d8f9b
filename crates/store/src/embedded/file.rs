//! The file: what lies where in redb, and how it is read and written.
//!
//! Format 1, four tables:
//! - `meta`: `format` (magic and version), `id`, `generation`, `revision` (the newest), `floor` (history
//!   up to it is forgotten);
//! - `data`: key → create revision, mod revision, time to live in ms (0: none), all u64 little-endian, value;
//! - `history`: revision → its events, in order: what the key held *before*. What it held after is
//!   found by walking from the present back, so no value is written twice.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ambient::Ambient;
use bytes::Bytes;
use redb::backends::FileBackend;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition};

use super::batch::Slot;
use super::disk::{Disk, Health, is_full};
use super::hub::{Record, Trim};
use super::state::State;
use crate::{Entry, Error, Event, Identity};

const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");
const DATA: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("data");
const HISTORY: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("history");

const MAGIC: &[u8] = b"statefuld-store\0";
const VERSION: u32 = 1;
/// A new store stands at this revision, so that 0 is free to mean "none".
const FIRST_REVISION: u64 = 1;
/// redb's own page cache; reads are served from our memory, so it only has to hold a commit's work.
const PAGE_CACHE_BYTES: usize = 8 << 20;
/// A file larger than this, and than four times its content, is compacted when it is opened.
const COMPACT_ABOVE_BYTES: u64 = 64 << 20;

/// The open file.
#[derive(Debug)]
pub(super) struct StoreFile {
    database: Database,
    health: Arc<Health>,
    path: PathBuf,
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
    /// Opens the store at `path`, making it if there is none, and reads all of it.
    pub(super) fn open(path: &Path, ambient: &Ambient) -> Result<(Self, Loaded), Error> {
        let exists = path.try_exists().map_err(|e| unreadable(path, &e))?;
        if !exists {
            create(path, ambient)?;
        }
        let mut file = Self::open_existing(path)?;
        let loaded = file.load()?;
        let content = loaded.state.bytes + loaded.history.iter().map(Record::bytes).sum::<usize>();
        let size = std::fs::metadata(path).map_or(0, |meta| meta.len());
        let bloated = size > COMPACT_ABOVE_BYTES && size > 4 * content as u64;
        if bloated && let Err(error) = file.database.compact() {
            // Compaction only saves room, and may lack the room to do so: the store works without it.
            tracing::warn!(%error, path = %path.display(), "the store's file could not be compacted");
            drop(file);
            file = Self::open_existing(path)?;
        }
        Ok((file, loaded))
    }

    fn open_existing(path: &Path) -> Result<Self, Error> {
        let (database, health) = open_database(path)?;
        Ok(Self { database, health, path: path.to_owned() })
    }

    /// After a failed commit: opens the file again if the only trouble was a full disk and the commit
    /// left no trace; `revision` is the newest that was committed before it.
    pub(super) fn recover_from_full(self, revision: u64) -> Result<Self, Error> {
        if !self.health.only_full() {
            return Err(Error::Closed("a write to the store's file failed".into()));
        }
        let path = self.path.clone();
        drop(self);
        let file = Self::open_existing(&path)?;
        let read = file.database.begin_read().map_err(|e| unreadable(&path, &e))?;
        let meta = read.open_table(META).map_err(|e| unreadable(&path, &e))?;
        let found = read_u64(&meta, "revision", &path)?;
        if found != revision {
            return Err(Error::Closed(format!("the file is at revision {found}, not {revision}")));
        }
        drop(meta);
        drop(read);
        Ok(file)
    }

    /// Makes a batch durable. When this returns well, the disk has it.
    pub(super) fn commit(
        &self,
        revision: u64,
        changes: &[(&Bytes, &Slot)],
        records: &[Record],
        trim: &Trim,
    ) -> Result<(), redb::Error> {
        let mut write = self.database.begin_write()?;
        write.set_durability(redb::Durability::Immediate)?;
        {
            let mut data = write.open_table(DATA)?;
            let mut buffer = Vec::new();
            for (key, slot) in changes {
                match &slot.entry {
                    Some(entry) => {
                        encode_data(&mut buffer, entry, slot.ttl);
                        data.insert(key.as_ref(), buffer.as_slice())?;
                    }
                    None => {
                        data.remove(key.as_ref())?;
                    }
                }
            }
            let mut history = write.open_table(HISTORY)?;
            for record in records {
                encode_record(&mut buffer, record);
                history.insert(record.revision, buffer.as_slice())?;
            }
            for revision in &trim.revisions {
                history.remove(revision)?;
            }
            let mut meta = write.open_table(META)?;
            meta.insert("revision", revision.to_le_bytes().as_slice())?;
            meta.insert("floor", trim.floor.to_le_bytes().as_slice())?;
        }
        write.commit()?;
        Ok(())
    }

    fn load(&self) -> Result<Loaded, Error> {
        let path = &self.path;
        let read = self.database.begin_read().map_err(|e| unreadable(path, &e))?;
        let meta =
            read.open_table(META).map_err(|_| unreadable(path, &"it is a database, but not a store of statefuld"))?;
        check_format(&meta, path)?;
        let identity = Identity {
            id: read_meta(&meta, "id", path)?,
            generation: u32::from_le_bytes(read_meta(&meta, "generation", path)?),
        };
        let revision = read_u64(&meta, "revision", path)?;
        let floor = read_u64(&meta, "floor", path)?;

        let data = read.open_table(DATA).map_err(|e| unreadable(path, &e))?;
        let mut entries = Vec::new();
        let mut ttls = Vec::new();
        for row in data.iter().map_err(|e| unreadable(path, &e))? {
            let (key, value) = row.map_err(|e| unreadable(path, &e))?;
            let (entry, ttl) =
                decode_data(key.value(), value.value()).ok_or_else(|| unreadable(path, &"an entry is damaged"))?;
            if let Some(ttl) = ttl {
                ttls.push((entry.key.clone(), ttl));
            }
            entries.push(entry);
        }
        let state = State::from_sorted(revision, entries);

        let table = read.open_table(HISTORY).map_err(|e| unreadable(path, &e))?;
        let mut history = Vec::new();
        let mut later: HashMap<Bytes, Option<Entry>> = HashMap::new();
        for row in table.iter().map_err(|e| unreadable(path, &e))?.rev() {
            let (at, events) = row.map_err(|e| unreadable(path, &e))?;
            let record = decode_record(at.value(), events.value(), &state, &mut later)
                .ok_or_else(|| unreadable(path, &format!("the history at {} is damaged", at.value())))?;
            history.push(record);
        }
        history.reverse();
        Ok(Loaded { identity, state, history, floor, ttls })
    }
}

/// Makes a new store beside its final place and moves it there whole, so that a crash leaves none or one.
fn create(path: &Path, ambient: &Ambient) -> Result<(), Error> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let (database, _) = match open_database(&new) {
        Ok(opened) => opened,
        Err(error @ (Error::InUse(_) | Error::Full(_))) => return Err(error),
        Err(_) => {
            // What a crash left of an earlier attempt; it was never a store.
            std::fs::remove_file(&new).map_err(|e| unreadable(&new, &e))?;
            open_database(&new)?
        }
    };
    let mut id = [0; 16];
    ambient.fill(&mut id);
    init(&database, id).map_err(|e| redb_error(&new, e))?;
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

fn init(database: &Database, id: [u8; 16]) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    {
        let mut meta = write.open_table(META)?;
        let format = [MAGIC, &VERSION.to_le_bytes()].concat();
        meta.insert("format", format.as_slice())?;
        meta.insert("id", id.as_slice())?;
        meta.insert("generation", 1u32.to_le_bytes().as_slice())?;
        meta.insert("revision", FIRST_REVISION.to_le_bytes().as_slice())?;
        meta.insert("floor", 0u64.to_le_bytes().as_slice())?;
        write.open_table(DATA)?;
        write.open_table(HISTORY)?;
    }
    write.commit()?;
    Ok(())
}

fn open_database(path: &Path) -> Result<(Database, Arc<Health>), Error> {
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
    let backend = FileBackend::new(file).map_err(|e| unreadable(path, &e))?;
    let (disk, health) = Disk::new(backend);
    let database =
        Database::builder().set_cache_size(PAGE_CACHE_BYTES).create_with_backend(disk).map_err(|e| match e {
            DatabaseError::DatabaseAlreadyOpen => Error::InUse(path.display().to_string()),
            DatabaseError::Storage(StorageError::Io(e)) => io_error(path, e),
            other => unreadable(path, &other),
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
    row.and_then(|guard| guard.value().try_into().ok())
        .ok_or_else(|| unreadable(path, &format!("its {name} is missing")))
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

fn io_error(path: &Path, error: io::Error) -> Error {
    if is_full(&error) { Error::Full(path.display().to_string()) } else { unreadable(path, &error) }
}

fn unreadable(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::Unreadable { path: path.display().to_string(), why: why.to_string() }
}
