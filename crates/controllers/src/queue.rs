//! Keys that want work: each held once, worked on by one worker at a time, retried with back-off.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ambient::Ambient;
use tokio::sync::Notify;

use crate::Term;

/// Wait after a key's first failure; doubled per further failure in a row.
const BACKOFF_FIRST: Duration = Duration::from_millis(5);
/// The longest wait of a key that keeps failing.
const BACKOFF_LIMIT: Duration = Duration::from_secs(1000);

/// A queue of keys. Cheap to clone.
///
/// A key that is added while a worker has it is handed out again once that worker is done, so no change
/// is lost and no key is ever with two workers.
pub struct Queue<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

/// How a worker leaves a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing more to do until the next change. Past failures are forgotten.
    Done,
    /// Look again after this time. Past failures are forgotten.
    After(Duration),
    /// It failed: look again after a wait that doubles each time.
    Retry,
}

struct Shared<K> {
    state: Mutex<State<K>>,
    changed: Notify,
    term: Term,
    ambient: Ambient,
}

struct State<K> {
    ready: VecDeque<K>,
    /// Keys in `ready`, or added again while with a worker.
    dirty: HashSet<K>,
    /// Keys that a worker has.
    working: HashSet<K>,
    /// When to add a key, soonest first. A key may be here several times; adding it twice is harmless.
    later: BinaryHeap<Reverse<(Duration, K)>>,
    /// The soonest entry of each key in `later`: a later one need not be held too.
    soonest: HashMap<K, Duration>,
    failures: HashMap<K, u32>,
}

impl<K: Clone + Eq + Hash + Ord + Send + 'static> Queue<K> {
    /// An empty queue that hands out keys until the term ends.
    pub fn new(term: &Term, ambient: &Ambient) -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            working: HashSet::new(),
            later: BinaryHeap::new(),
            soonest: HashMap::new(),
            failures: HashMap::new(),
        };
        let shared =
            Shared { state: Mutex::new(state), changed: Notify::new(), term: term.clone(), ambient: ambient.clone() };
        Self { shared: Arc::new(shared) }
    }

    /// Wants work on this key now.
    pub fn add(&self, key: K) {
        let mut state = self.lock();
        state.add(key);
        drop(state);
        self.shared.changed.notify_one();
    }

    /// Wants work on this key after `delay`.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let at = self.shared.ambient.boottime() + delay;
        let mut state = self.lock();
        if state.soonest.get(&key).is_some_and(|s| *s <= at) {
            return;
        }
        state.soonest.insert(key.clone(), at);
        state.later.push(Reverse((at, key)));
        drop(state);
        self.shared.changed.notify_one();
    }

    /// The next key, once there is one; none once the term has ended. Give it back with
    /// [`Queue::finish`].
    pub async fn next(&self) -> Option<K> {
        loop {
            if self.shared.term.is_over() {
                return None;
            }
            let pause = {
                let mut state = self.lock();
                let now = self.shared.ambient.boottime();
                state.move_due(now);
                if let Some(key) = state.take() {
                    // Another worker may have slept through the notification that this one consumed.
                    if !state.ready.is_empty() {
                        self.shared.changed.notify_one();
                    }
                    return Some(key);
                }
                state.later.peek().map(|Reverse((at, _))| at.saturating_sub(now))
            };
            let changed = self.shared.changed.notified();
            match pause {
                Some(pause) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep(pause) => {}
                        () = self.shared.term.cancelled() => return None,
                    }
                }
                None => {
                    self.shared.term.during(changed).await?;
                }
            }
        }
    }

    /// Gives a key back.
    pub fn finish(&self, key: K, outcome: Outcome) {
        let mut state = self.lock();
        state.working.remove(&key);
        if state.dirty.contains(&key) {
            state.ready.push_back(key.clone());
        }
        let delay = match outcome {
            Outcome::Done => {
                state.failures.remove(&key);
                None
            }
            Outcome::After(delay) => {
                state.failures.remove(&key);
                Some(delay)
            }
            Outcome::Retry => {
                let failures = state.failures.entry(key.clone()).or_insert(0);
                *failures += 1;
                let doublings = (*failures - 1).min(30);
                Some(BACKOFF_FIRST.saturating_mul(1 << doublings).min(BACKOFF_LIMIT))
            }
        };
        drop(state);
        self.shared.changed.notify_one();
        if let Some(delay) = delay {
            self.add_after(key, delay);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash + Ord> State<K> {
    fn add(&mut self, key: K) {
        if self.dirty.insert(key.clone()) && !self.working.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn move_due(&mut self, now: Duration) {
        while self.later.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            let Some(Reverse((at, key))) = self.later.pop() else { return };
            if self.soonest.get(&key).is_some_and(|s| *s <= at) {
                self.soonest.remove(&key);
                self.add(key);
            }
        }
    }

    fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.working.insert(key.clone());
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> (Queue<u32>, Term) {
        let term = Term::new();
        (Queue::new(&term, &Ambient::system()), term)
    }

    #[tokio::test]
    async fn a_key_added_twice_is_handed_out_once() {
        let (queue, _term) = queue();
        queue.add(1);
        queue.add(1);
        queue.add(2);
        assert_eq!((queue.next().await, queue.next().await), (Some(1), Some(2)));
        assert!(queue.lock().ready.is_empty());
    }

    #[tokio::test]
    async fn a_key_added_while_worked_on_comes_again_afterwards() {
        let (queue, _term) = queue();
        queue.add(1);
        assert_eq!(queue.next().await, Some(1));
        queue.add(1);
        assert!(queue.lock().ready.is_empty(), "never with two workers");
        queue.finish(1, Outcome::Done);
        assert_eq!(queue.next().await, Some(1));
    }

    #[tokio::test]
    async fn failures_back_off_and_success_forgets_them() {
        let (queue, _term) = queue();
        queue.add(1);
        for expected in 1..=3 {
            assert_eq!(queue.next().await, Some(1));
            queue.finish(1, Outcome::Retry);
            assert_eq!(queue.lock().failures.get(&1), Some(&expected));
        }
        assert_eq!(queue.next().await, Some(1));
        queue.finish(1, Outcome::Done);
        assert!(queue.lock().failures.is_empty() && queue.lock().later.is_empty());
    }

    #[tokio::test]
    async fn a_delayed_key_comes_when_its_time_has_come() {
        let term = Term::new();
        let (ambient, clock) = Ambient::manual(jiff::Timestamp::UNIX_EPOCH, 1);
        let queue: Queue<u32> = Queue::new(&term, &ambient);
        queue.add_after(1, Duration::from_secs(3600));
        queue.add_after(1, Duration::from_secs(60));
        queue.add_after(1, Duration::from_secs(600));
        assert!(queue.lock().ready.is_empty());
        clock.advance(Duration::from_secs(61));
        assert_eq!(queue.next().await, Some(1));
        clock.advance(Duration::from_secs(3600));
        let now = ambient.boottime();
        queue.lock().move_due(now);
        assert!(queue.lock().dirty.is_empty(), "the later wishes were covered by the soonest");
    }

    #[tokio::test]
    async fn the_end_of_the_term_wakes_every_worker() {
        let (queue, term) = queue();
        let workers: Vec<_> = (0..3)
            .map(|_| {
                tokio::spawn({
                    let q = queue.clone();
                    async move { q.next().await }
                })
            })
            .collect();
        term.end();
        for worker in workers {
            assert_eq!(worker.await.expect("workers do not panic"), None);
        }
    }
}
