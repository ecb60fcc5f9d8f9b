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
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use ambient::Ambient;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::batch::{Overlay, Slot};
use super::file::StoreFile;
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
    /// `None` only while it is being opened again.
    file: Option<StoreFile>,
    requests: Receiver<Request>,
    ambient: Ambient,
    options: Options,
    expiry: Expiry,
    owes_progress: bool,
}

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
        Self { shared, file: Some(file), requests, ambient, options, expiry, owes_progress: false }
    }

    /// Serves until it is stopped, forgotten by its owner, or fails for good.
    pub(super) fn run(mut self) {
        let parting = self.serve();
        self.shared.close(match &parting {
            Ok(_) => "it was shut down",
            Err(why) => why,
        });
        // The lock on the file goes before anybody is told that the store is closed.
        drop(self.file.take());
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
            match self.wait() {
                Ok(request) => self.gather(request, &mut batch, &mut compactions, &mut stop),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
            if self.owes_progress {
                self.owes_progress = self.shared.lock_hub().pay_progress();
            }
            batch.extend(self.expired().into_iter().map(|txn| (txn, None)));
            if !batch.is_empty() {
                self.commit_batch(batch)?;
            }
            for (revision, answer) in compactions {
                let outcome = self.compact(revision)?;
                let _ = answer.send(outcome);
            }
            if let Some(answer) = stop {
                return Ok(answer);
            }
        }
    }

    fn wait(&self) -> Result<Request, RecvTimeoutError> {
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
        if !records.is_empty() {
            let trim =
                self.shared.lock_hub().plan_trim(&records, self.options.history_count, self.options.history_bytes, 0);
            match self.write(&slots, &records, &trim)? {
                Ok(()) => self.apply(slots, records, &trim),
                Err(error) => {
                    for (answer, _) in answers {
                        let _ = answer.send(Err(error.clone()));
                    }
                    return Ok(());
                }
            }
        }
        for (answer, outcome) in answers {
            let _ = answer.send(Ok(outcome));
        }
        Ok(())
    }

    /// Makes a batch durable. The outer error is for good; the inner one leaves the store as it was.
    fn write(
        &mut self,
        slots: &BTreeMap<Bytes, Slot>,
        records: &[Record],
        trim: &Trim,
    ) -> Result<Result<(), Error>, String> {
        let before = self.shared.state().revision;
        let revision = records.last().map_or(before, |record| record.revision);
        let changes: Vec<(&Bytes, &Slot)> = slots.iter().collect();
        let file = self.file.take().ok_or("the file is gone")?;
        match file.commit(revision, &changes, records, trim) {
            Ok(()) => {
                self.file = Some(file);
                Ok(Ok(()))
            }
            Err(error) => match file.recover_from_full(before) {
                Ok(file) => {
                    self.file = Some(file);
                    tracing::warn!(%error, "a commit found the disk full; nothing was changed");
                    Ok(Err(self.full()))
                }
                Err(why) => Err(format!("a commit failed: {error}; {why}")),
            },
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

    fn compact(&mut self, revision: u64) -> Result<Result<(), Error>, String> {
        let newest = self.shared.state().revision;
        if revision > newest {
            return Ok(Err(Error::Future { asked: revision, newest }));
        }
        let trim = {
            let hub = self.shared.lock_hub();
            if revision <= hub.floor() {
                return Ok(Ok(()));
            }
            hub.plan_trim(&[], usize::MAX, usize::MAX, revision)
        };
        let outcome = self.write(&BTreeMap::new(), &[], &trim)?;
        if outcome.is_ok() {
            self.shared.lock_hub().publish(Vec::new(), &trim);
        }
        Ok(outcome)
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
        rustix::fs::statvfs(&self.shared.path)
            .is_ok_and(|fs| fs.f_bavail.saturating_mul(fs.f_frsize) < self.options.disk_reserve)
    }

    fn full(&self) -> Error {
        Error::Full(self.shared.path.display().to_string())
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
