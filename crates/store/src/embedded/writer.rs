//! The one writer: takes what is queued, makes it durable at once, lets it be seen, and answers.
//!
//! ```text
//! queue ─▶ evaluate against state + overlay ─▶ one redb commit, fsync ─▶ state ─▶ watchers ─▶ answers
//!            a failed compare fails alone        a failure fails all
//! ```
//! The order is the promise: nobody sees a write that a crash could take back, no watcher learns of a
//! write later than its writer's answer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

use ambient::Ambient;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::batch::{Overlay, Slot};
use super::file::{Recovery, StoreFile};
use super::hub::{Record, Trim};
use super::state::State;
use super::{Options, Shared};
use crate::{Compare, Error, Op, Txn, TxnOutcome};

/// Transactions in one commit.
const BATCH_MAX: usize = 1024;
/// Their bytes, about; one transaction may pass it.
const BATCH_BYTES: usize = 8 << 20;
/// Expired keys deleted in one batch.
const SWEEP_MAX: usize = 512;
/// How often the clock is looked at while keys wait to expire: it counts through suspend, a timeout does not.
const SWEEP_EVERY: Duration = Duration::from_millis(500);
/// Expired keys are looked for no more often than this, so that a sweep that fails does not spin.
const SWEEP_LEAST: Duration = Duration::from_millis(20);
/// How soon a watcher that lagged is told how far its watch is.
const PROGRESS_AGAIN: Duration = Duration::from_millis(20);

/// What the writer is asked for.
#[derive(Debug)]
pub(super) enum Request {
    /// Evaluate and commit.
    Txn {
        txn: Txn,
        answer: oneshot::Sender<Result<TxnOutcome, Error>>,
        /// Room in the queue, given back when the request is taken.
        room: OwnedSemaphorePermit,
    },
    /// Forget history.
    Compact { revision: u64, answer: oneshot::Sender<Result<(), Error>> },
    /// Finish.
    Stop { answer: Option<oneshot::Sender<()>> },
}

type Answer = oneshot::Sender<Result<TxnOutcome, Error>>;

/// The writer's own things. Lives on its thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
    file: File,
    requests: Receiver<Request>,
    ambient: Ambient,
    options: Options,
    expiry: Expiry,
    owes_progress: bool,
    /// Size and content of the file when it was last compacted.
    compacted: Option<(u64, usize)>,
}

/// The file, as it stands.
enum File {
    /// It can be written.
    Open(StoreFile),
    /// The disk was full, and is perhaps still. How the commit ended that found it so is not known before the file
    /// could be opened again: its writers wait for that.
    Full(Box<Recovery>, Option<Work>),
    /// Neither: the writer is about to end.
    Gone,
}

/// What is made durable at once.
struct Work {
    slots: BTreeMap<Bytes, Slot>,
    records: Vec<Record>,
    trim: Trim,
    answers: Vec<(Answer, TxnOutcome)>,
    /// Who asked for history to be forgotten.
    compaction: Option<oneshot::Sender<Result<(), Error>>>,
}

/// How soon a file that the disk had no room for is opened again.
const FULL_AGAIN: Duration = Duration::from_millis(100);
/// A file that holds less than one part in so many of its size is compacted.
const BLOATED: u64 = 4;

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        file: StoreFile,
        requests: Receiver<Request>,
        ambient: Ambient,
        options: Options,
        ttls: Vec<(Bytes, Duration)>,
    ) -> Self {
        let mut expiry = Expiry::default();
        let now = ambient.boottime();
        for (key, ttl) in ttls {
            expiry.set(&key, Some(now + ttl));
        }
        Self {
            shared,
            file: File::Open(file),
            requests,
            ambient,
            options,
            expiry,
            owes_progress: false,
            compacted: None,
        }
    }

    /// Serves until it is stopped, forgotten by its owner, or fails for good.
    pub(super) fn run(mut self) {
        let parting = self.serve();
        self.shared.close(match &parting {
            Ok(_) => "it was shut down",
            Err(why) => why,
        });
        // The lock on the file goes before anybody is told that the store is closed.
        self.file = File::Gone;
        match parting {
            Ok(Some(answer)) => {
                let _ = answer.send(());
            }
            Ok(None) => {}
            Err(why) => {
                tracing::error!(%why, "the store failed and was closed");
                if let Some(hook) = &self.options.on_fatal {
                    hook(&why);
                }
            }
        }
    }

    fn serve(&mut self) -> Result<Option<oneshot::Sender<()>>, String> {
        loop {
            let mut batch: Vec<(Txn, Option<Answer>)> = Vec::new();
            let mut compactions = Vec::new();
            let mut stop = None;
            match self.next()? {
                Ok(request) => self.gather(request, &mut batch, &mut compactions, &mut stop),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
            if self.owes_progress {
                self.owes_progress = self.shared.lock_hub().pay_progress();
            }
            batch.extend(self.expired().into_iter().map(|txn| (txn, None)));
            if matches!(self.file, File::Full(..)) {
                self.recover()?;
            }
            if !batch.is_empty() {
                self.commit_batch(batch)?;
            }
            for (revision, answer) in compactions {
                self.compact(revision, answer)?;
            }
            if let Some(answer) = stop {
                return Ok(answer);
            }
        }
    }

    /// What is to be done next; when nothing waits, the file is looked after first.
    fn next(&mut self) -> Result<Result<Request, RecvTimeoutError>, String> {
        match self.requests.try_recv() {
            Ok(request) => return Ok(Ok(request)),
            Err(TryRecvError::Disconnected) => return Ok(Err(RecvTimeoutError::Disconnected)),
            Err(TryRecvError::Empty) => {}
        }
        self.tidy()?;
        Ok(self.wait())
    }

    /// Compacts a file that has become much larger than what it holds. Readers and watchers do not notice; writers
    /// wait while what is left is moved together, which is little.
    fn tidy(&mut self) -> Result<(), String> {
        let File::Open(file) = &mut self.file else { return Ok(()) };
        let (size, state) = (file.len(), self.shared.state());
        let content = state.bytes + self.shared.lock_hub().history_bytes();
        // Where it did not help, it is tried again only once things have changed.
        let tried = self.compacted.is_some_and(|(was, held)| size < was.saturating_mul(2) && content > held / 2);
        if size <= self.options.compact_above || size / BLOATED <= content as u64 || tried {
            return Ok(());
        }
        let outcome = file.compact();
        self.compacted = Some((file.len(), content));
        match outcome {
            Ok(()) => tracing::debug!(from = size, to = file.len(), "the store's file was compacted"),
            // It only saves room, and may lack the room to do so: the store works without it.
            Err(error) if file.is_well() => tracing::warn!(%error, "the store's file could not be compacted"),
            Err(error) => {
                let File::Open(file) = std::mem::replace(&mut self.file, File::Gone) else { return Ok(()) };
                let recovery = file.give_up(state.revision);
                let recovery = recovery.map_err(|why| format!("a compaction failed: {error}; {why}"))?;
                self.file = File::Full(Box::new(recovery), None);
            }
        }
        Ok(())
    }

    fn wait(&self) -> Result<Request, RecvTimeoutError> {
        if matches!(self.file, File::Full(..)) {
            return self.requests.recv_timeout(FULL_AGAIN);
        }
        let timeout = match (self.owes_progress, self.expiry.first()) {
            (true, _) => PROGRESS_AGAIN,
            (false, Some(at)) => at.saturating_sub(self.ambient.boottime()).clamp(SWEEP_LEAST, SWEEP_EVERY),
            (false, None) => return self.requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        self.requests.recv_timeout(timeout)
    }

    /// Takes the first request and whatever else is queued, up to the bounds of a batch.
    fn gather(
        &self,
        first: Request,
        batch: &mut Vec<(Txn, Option<Answer>)>,
        compactions: &mut Vec<(u64, oneshot::Sender<Result<(), Error>>)>,
        stop: &mut Option<Option<oneshot::Sender<()>>>,
    ) {
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Request::Txn { txn, answer, room } => {
                    bytes += super::size_of_txn(&txn);
                    drop(room);
                    batch.push((txn, Some(answer)));
                }
                Request::Compact { revision, answer } => compactions.push((revision, answer)),
                Request::Stop { answer } => {
                    *stop = Some(answer);
                    return;
                }
            }
            next = if batch.len() < BATCH_MAX && bytes < BATCH_BYTES { self.requests.try_recv().ok() } else { None };
        }
    }

    /// Evaluates, commits, applies, publishes and answers. An error is for good.
    fn commit_batch(&mut self, batch: Vec<(Txn, Option<Answer>)>) -> Result<(), String> {
        let state = self.shared.state();
        let mut overlay = Overlay::new(&state);
        let mut answers: Vec<(Answer, TxnOutcome)> = Vec::with_capacity(batch.len());
        let crowded = self.disk_is_crowded();
        for (txn, answer) in batch {
            let puts = txn.ops.iter().any(|op| matches!(op, Op::Put { .. }));
            if puts && (crowded || overlay.bytes() > self.options.max_bytes) {
                // Deletes go on: they are how room is made.
                if let Some(answer) = answer {
                    let _ = answer.send(Err(self.full()));
                }
                continue;
            }
            let outcome = overlay.apply(txn);
            if let Some(answer) = answer {
                answers.push((answer, outcome));
            }
        }
        let (slots, records) = overlay.finish();
        drop(state);
        if records.is_empty() {
            answers.into_iter().for_each(|(answer, outcome)| drop(answer.send(Ok(outcome))));
            return Ok(());
        }
        let trim =
            self.shared.lock_hub().plan_trim(&records, self.options.history_count, self.options.history_bytes, 0);
        self.write(Work { slots, records, trim, answers, compaction: None })
    }

    /// Makes work durable, lets it be seen and answers; or, if there is no room, refuses it. An error is for good.
    fn write(&mut self, work: Work) -> Result<(), String> {
        let mut file = match std::mem::replace(&mut self.file, File::Gone) {
            File::Open(file) => file,
            full @ File::Full(..) => {
                self.file = full;
                self.refuse(work);
                return Ok(());
            }
            File::Gone => return Err(self.lost("the file is gone".into())),
        };
        let before = self.shared.state().revision;
        let revision = work.records.last().map_or(before, |record| record.revision);
        let changes: Vec<(&Bytes, &Slot)> = work.slots.iter().collect();
        let Err(error) = file.commit(revision, &changes, &work.records, &work.trim) else {
            self.file = File::Open(file);
            self.settle(work);
            return Ok(());
        };
        drop(changes);
        let recovery = file.give_up(before).map_err(|why| self.lost(format!("a commit failed: {error}; {why}")))?;
        tracing::warn!(%error, "a commit found the disk full");
        // At once, so that a trace of the failed commit is found before anything else happens.
        self.file = File::Full(Box::new(recovery), Some(work));
        self.recover()
    }

    /// Tries to open the file again after the disk was full, and then says how the commit ended that found it so.
    fn recover(&mut self) -> Result<(), String> {
        let (recovery, work) = match std::mem::replace(&mut self.file, File::Gone) {
            File::Full(recovery, work) => (recovery, work),
            other => {
                self.file = other;
                return Ok(());
            }
        };
        match recovery.open() {
            Ok((file, committed)) => {
                self.file = File::Open(file);
                match work {
                    Some(work) if committed => self.settle(work),
                    Some(work) => self.refuse(work),
                    None => {}
                }
                Ok(())
            }
            Err(Error::Full(_)) => {
                self.file = File::Full(recovery, work);
                Ok(())
            }
            Err(why) => Err(self.lost(format!("the file cannot be opened again after the disk was full: {why}"))),
        }
    }

    /// Closes the store for good while those who wait for an answer still wait: when none comes, they find it closed.
    fn lost(&self, why: String) -> String {
        self.shared.close(&why);
        why
    }

    /// What is durable is seen, then answered.
    fn settle(&mut self, work: Work) {
        self.apply(work.slots, work.records, &work.trim);
        for (answer, outcome) in work.answers {
            let _ = answer.send(Ok(outcome));
        }
        if let Some(answer) = work.compaction {
            let _ = answer.send(Ok(()));
        }
    }

    /// Nothing was changed, for want of room.
    fn refuse(&self, work: Work) {
        for (answer, _) in work.answers {
            let _ = answer.send(Err(self.full()));
        }
        if let Some(answer) = work.compaction {
            let _ = answer.send(Err(self.full()));
        }
    }

    /// Lets readers and watchers see what is durable.
    fn apply(&mut self, slots: BTreeMap<Bytes, Slot>, records: Vec<Record>, trim: &Trim) {
        let now = self.ambient.boottime();
        for (key, slot) in &slots {
            self.expiry.set(key, slot.ttl.and_then(|ttl| now.checked_add(ttl)));
        }
        let mut hub = self.shared.lock_hub();
        self.shared.update(|state: &mut State| {
            state.revision = records.last().map_or(state.revision, |record| record.revision);
            for (key, slot) in slots {
                state.set(&key, slot.entry);
            }
        });
        hub.publish(records, trim);
        self.owes_progress = hub.pay_progress();
    }

    fn compact(&mut self, revision: u64, answer: oneshot::Sender<Result<(), Error>>) -> Result<(), String> {
        let newest = self.shared.state().revision;
        if revision > newest {
            let _ = answer.send(Err(Error::Future { asked: revision, newest }));
            return Ok(());
        }
        let trim = {
            let hub = self.shared.lock_hub();
            if revision <= hub.floor() {
                let _ = answer.send(Ok(()));
                return Ok(());
            }
            hub.plan_trim(&[], usize::MAX, usize::MAX, revision)
        };
        let (slots, records, answers) = (BTreeMap::new(), Vec::new(), Vec::new());
        self.write(Work { slots, records, trim, answers, compaction: Some(answer) })
    }

    /// Deletes of the keys whose time has passed, each on the condition that it was not written since.
    fn expired(&self) -> Vec<Txn> {
        if self.expiry.first().is_none() {
            return Vec::new();
        }
        let state = self.shared.state();
        let due = self.expiry.due(self.ambient.boottime()).take(SWEEP_MAX);
        due.filter_map(|key| {
            let mod_revision = state.get(key)?.mod_revision;
            Some(Txn {
                compare: vec![Compare { key: key.clone(), mod_revision }],
                ops: vec![Op::Delete { key: key.clone() }],
            })
        })
        .collect()
    }

    /// Less room than the reserve. If the file system does not say, the commit will.
    fn disk_is_crowded(&self) -> bool {
        self.shared.medium.room().is_some_and(|room| room < self.options.disk_reserve)
    }

    fn full(&self) -> Error {
        Error::Full(self.shared.medium.path().display().to_string())
    }
}

impl Drop for Writer {
    /// A panic must not leave callers waiting for a writer that is gone.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.close("its writer panicked");
            if let Some(hook) = &self.options.on_fatal {
                hook("the store's writer panicked");
            }
        }
    }
}

/// Which keys end when, on the monotonic clock.
#[derive(Debug, Default)]
struct Expiry {
    by_time: BTreeSet<(Duration, Bytes)>,
    by_key: HashMap<Bytes, Duration>,
}

impl Expiry {
    fn set(&mut self, key: &Bytes, at: Option<Duration>) {
        let before = match at {
            Some(at) => self.by_key.insert(key.clone(), at),
            None => self.by_key.remove(key),
        };
        if let Some(before) = before {
            self.by_time.remove(&(before, key.clone()));
        }
        if let Some(at) = at {
            self.by_time.insert((at, key.clone()));
        }
    }

    fn first(&self) -> Option<Duration> {
        self.by_time.first().map(|(at, _)| *at)
    }

    fn due(&self, now: Duration) -> impl Iterator<Item = &Bytes> {
        self.by_time.iter().take_while(move |(at, _)| *at <= now).map(|(_, key)| key)
    }
}
