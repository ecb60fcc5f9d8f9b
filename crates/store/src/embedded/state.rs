//! The present: every key's entry, in key order, in memory.
//!
//! A [`State`] is a sorted list of shared chunks. A reader takes a reference to the whole and reads at
//! leisure; the writer changes it in place, and copies only the list and the chunks that a reader still
//! holds. So a long range read never holds the writer up, and never sees half a batch.

use std::sync::Arc;

use bytes::Bytes;

use crate::{Entry, Range, RangeQuery};

/// A chunk is split in two beyond this many entries.
const CHUNK_MAX: usize = 128;
/// Two neighbours that together have no more than this become one.
const CHUNK_MERGE: usize = 64;

/// All entries, as of one revision.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// The newest transaction that is applied.
    pub(super) revision: u64,
    /// Keys and values together, for the limit on size.
    pub(super) bytes: usize,
    /// Never holds an empty chunk.
    chunks: Vec<Arc<Vec<Entry>>>,
}

impl State {
    /// A state as loaded; `entries` are in key order.
    pub(super) fn from_sorted(revision: u64, entries: Vec<Entry>) -> Self {
        debug_assert!(entries.is_sorted_by(|a, b| a.key < b.key), "the table is ordered by key");
        let bytes = entries.iter().map(size_of).sum();
        let chunks = entries.chunks(CHUNK_MAX / 2).map(|part| Arc::new(part.to_vec())).collect();
        Self { revision, bytes, chunks }
    }

    /// The entry under `key`.
    pub(super) fn get(&self, key: &[u8]) -> Option<&Entry> {
        let chunk = self.chunks.get(self.chunk_of(key))?;
        let at = chunk.binary_search_by(|entry| entry.key.as_ref().cmp(key)).ok()?;
        Some(&chunk[at])
    }

    /// Answers a range query.
    pub(super) fn range(&self, query: &RangeQuery) -> Range {
        let limit = if query.limit == 0 { usize::MAX } else { query.limit };
        let mut entries = Vec::new();
        let mut more = false;
        'chunks: for chunk in &self.chunks[self.chunk_of(&query.start).min(self.chunks.len())..] {
            let from = chunk.partition_point(|entry| entry.key < query.start);
            for entry in &chunk[from..] {
                if !query.end.is_empty() && entry.key >= query.end {
                    break 'chunks;
                }
                if entries.len() == limit {
                    more = true;
                    break 'chunks;
                }
                entries.push(entry.clone());
            }
        }
        Range { revision: self.revision, entries, more }
    }

    /// Every entry, in key order.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// Sets or, with `None`, removes the entry under `key`.
    pub(super) fn set(&mut self, key: &Bytes, entry: Option<Entry>) {
        match entry {
            Some(entry) => self.put(entry),
            None => self.remove(key),
        }
    }

    fn put(&mut self, entry: Entry) {
        self.bytes += size_of(&entry);
        if self.chunks.is_empty() {
            self.chunks.push(Arc::new(vec![entry]));
            return;
        }
        let at = self.chunk_of(&entry.key);
        let chunk = Arc::make_mut(&mut self.chunks[at]);
        match chunk.binary_search_by(|have| have.key.cmp(&entry.key)) {
            Ok(found) => {
                self.bytes -= size_of(&chunk[found]);
                chunk[found] = entry;
            }
            Err(gap) => chunk.insert(gap, entry),
        }
        if chunk.len() > CHUNK_MAX {
            let upper = chunk.split_off(chunk.len() / 2);
            self.chunks.insert(at + 1, Arc::new(upper));
        }
    }

    fn remove(&mut self, key: &[u8]) {
        let at = self.chunk_of(key);
        let Some(chunk) = self.chunks.get_mut(at) else { return };
        let Ok(found) = chunk.binary_search_by(|have| have.key.as_ref().cmp(key)) else { return };
        let chunk = Arc::make_mut(chunk);
        self.bytes -= size_of(&chunk.remove(found));
        if chunk.is_empty() {
            self.chunks.remove(at);
        } else if at + 1 < self.chunks.len() && self.chunks[at].len() + self.chunks[at + 1].len() <= CHUNK_MERGE {
            let upper = self.chunks.remove(at + 1);
            Arc::make_mut(&mut self.chunks[at]).extend(upper.iter().cloned());
        }
    }

    /// The chunk that holds `key`, or would.
    fn chunk_of(&self, key: &[u8]) -> usize {
        self.chunks.partition_point(|chunk| chunk[0].key.as_ref() <= key).saturating_sub(1)
    }
}

/// What an entry counts for the limit on size.
pub(super) fn size_of(entry: &Entry) -> usize {
    entry.key.len() + entry.value.len()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn entry(key: u16, revision: u64) -> Entry {
        Entry {
            key: Bytes::from(key.to_be_bytes().to_vec()),
            value: Bytes::from(vec![0; usize::from(key % 7)]),
            create_revision: revision,
            mod_revision: revision,
        }
    }

    proptest! {
        #[test]
        fn it_answers_as_an_ordered_map_does(
            steps in prop::collection::vec((0u16..600, any::<bool>()), 1..2000),
            start in 0u16..600,
            width in 0u16..600,
            limit in 0usize..200,
        ) {
            let mut state = State::default();
            let mut model = BTreeMap::new();
            for (i, (key, put)) in steps.into_iter().enumerate() {
                let entry = entry(key, i as u64 + 1);
                let key = entry.key.clone();
                state.set(&key, put.then(|| entry.clone()));
                if put { model.insert(key, entry); } else { model.remove(&key); }
            }
            prop_assert!(state.iter().eq(model.values()));
            prop_assert!(state.chunks.iter().all(|c| !c.is_empty() && c.len() <= CHUNK_MAX));
            prop_assert_eq!(state.bytes, model.values().map(size_of).sum::<usize>());

            let query = RangeQuery {
                start: Bytes::from(start.to_be_bytes().to_vec()),
                end: Bytes::from(start.saturating_add(width).to_be_bytes().to_vec()),
                limit,
                at_least: 0,
            };
            let all: Vec<_> = model.range(query.start.clone()..query.end.clone()).map(|(_, e)| e.clone()).collect();
            let range = state.range(&query);
            let cut = if limit == 0 { all.len() } else { limit.min(all.len()) };
            prop_assert_eq!(range.more, cut < all.len());
            prop_assert_eq!(&range.entries[..], &all[..cut]);
            for key in 0u16..600 {
                let key = key.to_be_bytes();
                prop_assert_eq!(state.get(&key), model.get(&key[..]));
            }
        }
    }

    #[test]
    fn a_reader_keeps_what_it_took() {
        let mut state = Arc::new(State::default());
        for key in 0..300 {
            Arc::make_mut(&mut state).set(&entry(key, 1).key, Some(entry(key, 1)));
        }
        let taken = state.clone();
        for key in 0..300 {
            Arc::make_mut(&mut state).set(&entry(key, 2).key, None);
        }
        assert_eq!(taken.iter().count(), 300);
        assert_eq!(state.iter().count(), 0);
    }
}
