//! The past, and who waits for the future: the bounded history of transactions, and the watchers.
//!
//! One lock guards both. The writer holds it from before a batch becomes visible to readers until its
//! events are handed out, and a new watcher takes its replay and joins the list under it; so between
//! replay and live there is neither gap nor duplicate, and no watcher can know a revision that its watch
//! does not reach.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{Batch, Error, Event, Watch};

/// What a record costs in memory beside its bytes.
const RECORD_OVERHEAD: usize = 128;

/// One transaction's changes, kept for watches that start in the past.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// The transaction's revision.
    pub(super) revision: u64,
    /// In the order of its operations; never empty.
    pub(super) events: Vec<Event>,
}

impl Record {
    /// What it counts against the history's bound.
    pub(super) fn bytes(&self) -> usize {
        let event = |event: &Event| {
            let value = |entry: &Option<crate::Entry>| entry.as_ref().map_or(0, |e| e.value.len());
            event.key.len() + value(&event.entry) + value(&event.previous)
        };
        RECORD_OVERHEAD + self.events.iter().map(event).sum::<usize>()
    }
}

/// History and watchers.
#[derive(Debug)]
pub(super) struct Hub {
    history: VecDeque<Arc<Record>>,
    history_bytes: usize,
    /// Everything up to here is forgotten; a watch may start after it.
    floor: u64,
    newest: u64,
    watchers: Vec<Watcher>,
    queue: usize,
}

impl Hub {
    /// A hub with the history that survived. `queue` is how many batches a watcher may lag behind.
    pub(super) fn new(history: Vec<Record>, floor: u64, newest: u64, queue: usize) -> Self {
        let history_bytes = history.iter().map(Record::bytes).sum();
        let history = history.into_iter().map(Arc::new).collect();
        Self { history, history_bytes, floor, newest, watchers: Vec::new(), queue }
    }

    /// The revision up to which history is forgotten.
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// What the history's values take.
    pub(super) fn history_bytes(&self) -> usize {
        self.history_bytes
    }

    /// Starts a watch.
    pub(super) fn watch(&mut self, prefix: Bytes, after: u64) -> Result<Watch, Error> {
        if after > self.newest {
            return Err(Error::Future { asked: after, newest: self.newest });
        }
        if after < self.floor {
            return Err(Error::Compacted { asked: after, oldest: self.floor });
        }
        let from = self.history.partition_point(|record| record.revision <= after);
        let replay: Vec<Batch> = self.history.range(from..).filter_map(|record| matching(record, &prefix)).collect();
        // The replay fits whole; one slot beyond the queue is kept for the parting error.
        let (sender, batches) = mpsc::channel(replay.len() + self.queue + 1);
        let mut watcher = Watcher { prefix, sender, told: after };
        for batch in replay {
            watcher.told = batch.revision;
            watcher.send(Ok(batch));
        }
        watcher.progress(self.newest, self.queue);
        self.watchers.push(watcher);
        Ok(Watch { batches })
    }

    /// Which revisions have to go so that `incoming` fits the bounds, and the floor that this makes.
    pub(super) fn plan_trim(&self, incoming: &[Record], max_count: usize, max_bytes: usize, compact_to: u64) -> Trim {
        let mut count = self.history.len() + incoming.len();
        let mut bytes = self.history_bytes + incoming.iter().map(Record::bytes).sum::<usize>();
        let mut trim = Trim { revisions: Vec::new(), floor: self.floor.max(compact_to) };
        for record in &self.history {
            if count <= max_count && bytes <= max_bytes && record.revision > trim.floor {
                break;
            }
            count -= 1;
            bytes -= record.bytes();
            trim.floor = trim.floor.max(record.revision);
            trim.revisions.push(record.revision);
        }
        trim
    }

    /// Takes in a batch that is durable and visible, and hands its events out.
    pub(super) fn publish(&mut self, records: Vec<Record>, trim: &Trim) {
        for _ in &trim.revisions {
            if let Some(record) = self.history.pop_front() {
                self.history_bytes -= record.bytes();
            }
        }
        self.floor = trim.floor;
        let queue = self.queue;
        self.newest = records.last().map_or(self.newest, |record| record.revision);
        let newest = self.newest;
        self.watchers.retain_mut(|watcher| {
            for record in &records {
                if let Some(batch) = matching(record, &watcher.prefix)
                    && !watcher.deliver(batch)
                {
                    return false;
                }
            }
            watcher.progress(newest, queue);
            !watcher.sender.is_closed()
        });
        for record in records {
            self.history_bytes += record.bytes();
            self.history.push_back(Arc::new(record));
        }
    }

    /// Tells watchers that had no room for it how far they are. True if some still have to be told.
    pub(super) fn pay_progress(&mut self) -> bool {
        let (newest, queue) = (self.newest, self.queue);
        self.watchers.retain_mut(|watcher| {
            watcher.progress(newest, queue);
            !watcher.sender.is_closed()
        });
        self.watchers.iter().any(|watcher| watcher.told < newest)
    }

    /// Ends every watch.
    pub(super) fn close(&mut self, error: &Error) {
        for watcher in self.watchers.drain(..) {
            watcher.send(Err(error.clone()));
        }
    }
}

/// What a commit removes from the history.
#[derive(Debug)]
pub(super) struct Trim {
    /// The oldest records, in order.
    pub(super) revisions: Vec<u64>,
    /// The floor afterwards.
    pub(super) floor: u64,
}

/// One running watch.
#[derive(Debug)]
struct Watcher {
    prefix: Bytes,
    sender: mpsc::Sender<Result<Batch, Error>>,
    /// The newest revision that its reader will know of.
    told: u64,
}

impl Watcher {
    /// Queues a batch with events. False if the watcher is gone or too slow, and was told so.
    fn deliver(&mut self, batch: Batch) -> bool {
        if self.sender.capacity() <= 1 {
            self.send(Err(Error::SlowWatcher));
            return false;
        }
        self.told = batch.revision;
        self.send(Ok(batch));
        !self.sender.is_closed()
    }

    /// Says how far the watch is, unless its queue has better things to carry: it is told later then.
    fn progress(&mut self, newest: u64, queue: usize) {
        if self.told < newest && self.sender.capacity() > queue / 2 {
            self.told = newest;
            self.send(Ok(Batch { revision: newest, events: Vec::new() }));
        }
    }

    /// A reader that went away needs no answer, and a full queue was looked for before.
    fn send(&self, item: Result<Batch, Error>) {
        let _ = self.sender.try_send(item);
    }
}

/// The part of a record that lies under `prefix`.
fn matching(record: &Record, prefix: &Bytes) -> Option<Batch> {
    let events: Vec<Event> = record.events.iter().filter(|event| event.key.starts_with(prefix)).cloned().collect();
    (!events.is_empty()).then_some(Batch { revision: record.revision, events })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(revision: u64, key: &'static str) -> Record {
        let event = Event { key: Bytes::from(key), entry: None, previous: None };
        Record { revision, events: vec![event] }
    }

    fn keep() -> Trim {
        Trim { revisions: Vec::new(), floor: 0 }
    }

    #[test]
    fn replay_and_live_join_without_gap_or_duplicate() {
        let mut hub = Hub::new(Vec::new(), 0, 1, 8);
        hub.publish(vec![record(2, "a/1"), record(3, "b/1")], &keep());
        let mut watch = hub.watch(Bytes::from("a/"), 1).expect("in the window");
        hub.publish(vec![record(4, "a/2")], &keep());
        let mut seen = Vec::new();
        while let Ok(item) = watch.batches.try_recv() {
            let batch = item.expect("fast enough");
            seen.push((batch.revision, batch.events.len()));
        }
        assert_eq!(seen, [(2, 1), (3, 0), (4, 1)]);
    }

    #[test]
    fn a_slow_watcher_is_told_and_dropped() {
        let mut hub = Hub::new(Vec::new(), 0, 1, 2);
        let mut watch = hub.watch(Bytes::new(), 1).expect("in the window");
        for revision in 2..10 {
            hub.publish(vec![record(revision, "k")], &keep());
        }
        assert!(watch.batches.try_recv().is_ok_and(|item| item.is_ok_and(|b| b.revision == 2)));
        assert!(watch.batches.try_recv().is_ok_and(|item| item.is_ok_and(|b| b.revision == 3)));
        assert!(matches!(watch.batches.try_recv(), Ok(Err(Error::SlowWatcher))));
        assert!(matches!(watch.batches.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
        assert!(hub.watchers.is_empty());
    }

    #[test]
    fn progress_that_had_no_room_is_paid_later() {
        let mut hub = Hub::new(Vec::new(), 0, 1, 4);
        let mut watch = hub.watch(Bytes::from("a"), 1).expect("in the window");
        hub.publish((2..5).map(|r| record(r, "a")).collect(), &keep());
        hub.publish(vec![record(5, "b")], &keep());
        assert!(hub.pay_progress(), "the queue is more than half full");
        while watch.batches.try_recv().is_ok() {}
        assert!(!hub.pay_progress());
        let told = watch.batches.try_recv().expect("queued").expect("no error");
        assert_eq!((told.revision, told.events.len()), (5, 0));
    }

    #[test]
    fn trimming_keeps_the_bounds() {
        let mut hub = Hub::new((2..12).map(|r| record(r, "k")).collect(), 0, 11, 4);
        let incoming = vec![record(12, "k")];
        let trim = hub.plan_trim(&incoming, 5, usize::MAX, 0);
        assert_eq!(trim.revisions, [2, 3, 4, 5, 6, 7]);
        hub.publish(incoming, &trim);
        assert_eq!(hub.history.len(), 5);
        assert!(matches!(hub.watch(Bytes::new(), 6), Err(Error::Compacted { asked: 6, oldest: 7 })));
        assert!(hub.watch(Bytes::new(), 7).is_ok());
        assert!(matches!(hub.watch(Bytes::new(), 13), Err(Error::Future { asked: 13, newest: 12 })));
        let trim = hub.plan_trim(&[], 5, usize::MAX, 10);
        assert_eq!((trim.revisions, trim.floor), (vec![8, 9, 10], 10));
    }
}
