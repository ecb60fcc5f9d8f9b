//! A batch of transactions: each is evaluated against the state and the batch's own earlier writes.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::hub::Record;
use super::state::{State, size_of};
use crate::{Entry, Event, Op, Txn, TxnOutcome};

/// What a batch will have left under a key.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    /// The entry, or `None` if the key was deleted.
    pub(super) entry: Option<Entry>,
    /// How long it lives.
    pub(super) ttl: Option<Duration>,
}

/// The writes of a batch that is not committed yet. Only the writer sees it.
#[derive(Debug)]
pub(super) struct Overlay<'a> {
    state: &'a State,
    slots: BTreeMap<Bytes, Slot>,
    records: Vec<Record>,
    revision: u64,
    bytes: usize,
}

impl<'a> Overlay<'a> {
    /// An empty batch over a state.
    pub(super) fn new(state: &'a State) -> Self {
        Self { state, slots: BTreeMap::new(), records: Vec::new(), revision: state.revision, bytes: state.bytes }
    }

    /// Keys and values together, as they will be.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Evaluates one transaction, and takes its writes in if all its comparisons hold.
    pub(super) fn apply(&mut self, txn: Txn) -> TxnOutcome {
        let holds =
            |compare: &crate::Compare| self.get(&compare.key).map_or(0, |e| e.mod_revision) == compare.mod_revision;
        if !txn.compare.iter().all(holds) {
            let current = txn.compare.iter().map(|compare| self.get(&compare.key).cloned()).collect();
            return TxnOutcome::Failed { revision: self.revision, current };
        }
        let revision = self.revision + 1;
        let mut events = Vec::with_capacity(txn.ops.len());
        for op in txn.ops {
            let (key, slot) = match op {
                Op::Put { key, value, ttl } => {
                    let create_revision = self.get(&key).map_or(revision, |e| e.create_revision);
                    let entry = Entry { key: key.clone(), value, create_revision, mod_revision: revision };
                    (key, Slot { entry: Some(entry), ttl })
                }
                Op::Delete { key } => (key, Slot { entry: None, ttl: None }),
            };
            let previous = self.get(&key).cloned();
            if previous.is_none() && slot.entry.is_none() {
                continue;
            }
            self.bytes += slot.entry.as_ref().map_or(0, size_of);
            self.bytes -= previous.as_ref().map_or(0, size_of);
            events.push(Event { key: key.clone(), entry: slot.entry.clone(), previous });
            self.slots.insert(key, slot);
        }
        if !events.is_empty() {
            self.revision = revision;
            self.records.push(Record { revision, events });
        }
        TxnOutcome::Committed { revision: self.revision }
    }

    /// What the batch changed: final slots in key order, records in revision order.
    pub(super) fn finish(self) -> (BTreeMap<Bytes, Slot>, Vec<Record>) {
        (self.slots, self.records)
    }

    fn get(&self, key: &[u8]) -> Option<&Entry> {
        match self.slots.get(key) {
            Some(slot) => slot.entry.as_ref(),
            None => self.state.get(key),
        }
    }
}
