//! What a store must read as: at each revision its entries and its events.

use std::collections::BTreeMap;
use std::sync::Arc;

use ambient::Ambient;
use bytes::Bytes;

use super::disk::SimDisk;
use super::{ambient, options};
use crate::embedded::file::StoreFile;
use crate::{Entry, Event, Identity, Op, Txn};

type Entries = BTreeMap<Bytes, Entry>;

/// All that was ever written.
#[derive(Debug)]
pub(super) struct Model {
    identity: Identity,
    /// The entries after each revision.
    states: BTreeMap<u64, Entries>,
    /// The events of each revision.
    events: BTreeMap<u64, Vec<Event>>,
}

impl Model {
    /// A new store.
    pub(super) fn new(identity: Identity) -> Self {
        Self { identity, states: BTreeMap::from([(1, Entries::new())]), events: BTreeMap::new() }
    }

    /// The newest revision.
    pub(super) fn newest(&self) -> u64 {
        *self.states.keys().next_back().expect("it begins with one")
    }

    /// Takes in a transaction that was committed at this revision.
    pub(super) fn apply(&mut self, revision: u64, txn: &Txn) {
        let mut state = self.states[&self.newest()].clone();
        let mut events = Vec::new();
        for op in &txn.ops {
            let (Op::Put { key, .. } | Op::Delete { key }) = op;
            let previous = state.get(key).cloned();
            let entry = match op {
                Op::Put { value, .. } => Some(Entry {
                    key: key.clone(),
                    value: value.clone(),
                    create_revision: previous.as_ref().map_or(revision, |entry| entry.create_revision),
                    mod_revision: revision,
                }),
                Op::Delete { .. } => None,
            };
            match &entry {
                Some(entry) => state.insert(key.clone(), entry.clone()),
                None => state.remove(key),
            };
            if entry.is_some() || previous.is_some() {
                events.push(Event { key: key.clone(), entry, previous });
            }
        }
        if events.is_empty() {
            assert_eq!(revision, self.newest(), "what changes nothing has the current revision");
            return;
        }
        assert_eq!(revision, self.newest() + 1, "revisions rise by one and never come twice");
        self.states.insert(revision, state);
        self.events.insert(revision, events);
    }

    /// Opens what a disk holds and checks that it is this history at some revision not before `acknowledged`; which.
    pub(super) fn check(&self, disk: &SimDisk, acknowledged: u64) -> Result<u64, String> {
        let (_file, loaded) =
            StoreFile::open(Arc::new(disk.clone()), &ambient(7)).map_err(|error| error.to_string())?;
        let revision = loaded.state.revision;
        if loaded.identity != self.identity {
            return Err(format!("it is another store: {:?}", loaded.identity));
        }
        if revision < acknowledged {
            return Err(format!("it is at {revision}, and {acknowledged} was acknowledged"));
        }
        let Some(state) = self.states.get(&revision) else {
            return Err(format!("it is at {revision}, which was never written"));
        };
        if !loaded.state.iter().eq(state.values()) {
            return Err(format!("its entries are not those of revision {revision}"));
        }
        // A watcher that resumes must find every revision after the floor.
        let mut expected = loaded.floor.max(1) + 1;
        for record in &loaded.history {
            if record.revision != expected {
                return Err(format!("its history goes from {} to {}", expected - 1, record.revision));
            }
            if !same(&record.events, &self.events[&expected]) {
                return Err(format!("its history at {expected} is another"));
            }
            expected += 1;
        }
        if expected != revision + 1 {
            return Err(format!("its history ends before {expected}, and it is at {revision}"));
        }
        if loaded.history.len() > options().history_count {
            return Err(format!("its history has {} revisions", loaded.history.len()));
        }
        Ok(revision)
    }
}

fn same(found: &[Event], wanted: &[Event]) -> bool {
    let parts = |event: &Event| (event.key.clone(), event.entry.clone(), event.previous.clone());
    found.iter().map(parts).eq(wanted.iter().map(parts))
}

/// Numbers out of entropy.
pub(super) struct Dice<'a>(&'a Ambient);

impl<'a> Dice<'a> {
    /// From this source.
    pub(super) fn new(entropy: &'a Ambient) -> Self {
        Self(entropy)
    }

    /// A number less than `bound`.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        usize::try_from(u64::from_le_bytes(bytes) % bound as u64).expect("less than a usize")
    }
}
