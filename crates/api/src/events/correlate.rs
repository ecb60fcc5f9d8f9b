//! What a program that records events writes, so that its events help and do not flood.
//!
//! ```text
//!  occurrence ─▶ too many about this object? ─▶ dropped
//!             ─▶ many alike, in other words? ─▶ one event for all of them
//!             ─▶ the same as one before?     ─▶ its count goes up
//!             ─▶ a new event
//! ```
//!
//! The numbers are those of upstream's recorders. Without I/O and without a clock: both are the caller's.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;

use jiff::Timestamp;

/// Events about one object that may come at once.
const BURST: f64 = 25.0;
/// Seconds after which there may be one more.
const REFILL_SECONDS: f64 = 300.0;
/// From so many different messages for one reason on, the rest becomes one event.
const SIMILAR_MAX: usize = 10;
/// Messages further apart than this are not similar.
const SIMILAR_SECONDS: i64 = 600;
/// What is remembered of each sort.
const REMEMBERED: usize = 4096;
/// The longest message that the API takes, in bytes.
const MESSAGE_MAX: usize = 1024;
/// How the message of an event for many begins.
const COMBINED: &str = "(combined from similar events): ";
/// Room for an object's name in the name of an event about it.
const STEM_MAX: usize = 253 - 17;

/// Something happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Occurrence {
    /// What it happened to: apiVersion, kind, namespace, name, uid, field path.
    pub about: [String; 6],
    /// `Normal` or `Warning`.
    pub level: String,
    /// Why, in one word.
    pub reason: String,
    /// The sentence.
    pub message: String,
}

/// What to do about an occurrence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: there were too many.
    Drop,
    /// Write a new event with this name and message; then call [`Correlator::written`].
    Create {
        /// Its name: sorts by time among those of the same object.
        name: String,
        /// Its message.
        message: String,
        /// By what it is remembered.
        key: Key,
    },
    /// Raise the count of an event; if it is gone, call [`Correlator::gone`] and ask again.
    Again {
        /// Its name.
        name: String,
        /// How often it has happened now.
        count: i32,
        /// The newest message.
        message: String,
        /// By what it is remembered.
        key: Key,
    },
}

/// By what an event is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    occurrence: Occurrence,
    is_combined: bool,
}

/// Decides for one source of events.
#[derive(Debug, Default)]
pub struct Correlator {
    spent: Bounded<[String; 6], Bucket>,
    similar: Bounded<Occurrence, Similar>,
    known: Bounded<Key, Known>,
    last_name: i128,
}

/// How many more events there may be about an object.
#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Timestamp,
}

/// Messages that were given for one reason.
#[derive(Debug)]
struct Similar {
    messages: BTreeSet<String>,
    at: Timestamp,
}

/// An event that was written.
#[derive(Debug)]
struct Known {
    name: String,
    count: i32,
}

impl Correlator {
    /// What to do about something that happened now.
    pub fn decide(&mut self, occurrence: Occurrence, now: Timestamp) -> Decision {
        let mut occurrence = occurrence;
        truncate(&mut occurrence.message);
        if !self.spend(&occurrence.about, now) {
            return Decision::Drop;
        }
        let (key, message) = self.combine(occurrence, now);
        if let Some(known) = self.known.get_mut(&key) {
            known.count = known.count.saturating_add(1);
            return Decision::Again { name: known.name.clone(), count: known.count, message, key };
        }
        Decision::Create { name: self.name(&key.occurrence.about[3], now), message, key }
    }

    /// The event of a [`Decision::Create`] exists now.
    pub fn written(&mut self, key: Key, name: String) {
        self.known.insert(key, Known { name, count: 1 });
    }

    /// The event of a [`Decision::Again`] is gone: events expire. Gives the decision in its place.
    pub fn gone(&mut self, key: Key, message: String, now: Timestamp) -> Decision {
        self.known.remove(&key);
        Decision::Create { name: self.name(&key.occurrence.about[3], now), message, key }
    }

    /// Takes one from what there may be about an object.
    fn spend(&mut self, about: &[String; 6], now: Timestamp) -> bool {
        // Parts of an object share what the object has.
        let mut about = about.clone();
        about[5].clear();
        let bucket = self.spent.get_or_insert(about, || Bucket { left: BURST, at: now });
        let passed = now.duration_since(bucket.at).as_secs_f64().max(0.0);
        bucket.left = (bucket.left + passed / REFILL_SECONDS).min(BURST);
        bucket.at = now;
        if bucket.left < 1.0 {
            return false;
        }
        bucket.left -= 1.0;
        true
    }

    /// The event that stands for an occurrence: its own, or that of many alike.
    fn combine(&mut self, occurrence: Occurrence, now: Timestamp) -> (Key, String) {
        let alike = Occurrence { message: String::new(), ..occurrence.clone() };
        let similar = self.similar.get_or_insert(alike.clone(), || Similar { messages: BTreeSet::new(), at: now });
        if now.duration_since(similar.at).as_secs() > SIMILAR_SECONDS {
            similar.messages.clear();
        }
        similar.at = now;
        similar.messages.insert(occurrence.message.clone());
        if similar.messages.len() < SIMILAR_MAX {
            let message = occurrence.message.clone();
            return (Key { occurrence, is_combined: false }, message);
        }
        similar.messages.pop_first();
        let mut message = format!("{COMBINED}{}", occurrence.message);
        truncate(&mut message);
        (Key { occurrence: alike, is_combined: true }, message)
    }

    /// A name for an event about an object: the object's, and the moment in hexadecimal.
    fn name(&mut self, about: &str, now: Timestamp) -> String {
        // Never the same twice, however coarse the clock.
        self.last_name = now.as_nanosecond().max(self.last_name + 1);
        let mut stem = about.to_owned();
        while stem.len() > STEM_MAX {
            stem.pop();
        }
        format!("{}.{:x}", stem.trim_end_matches(['.', '-']), self.last_name)
    }
}

/// Cuts a message to what the API takes, between characters.
fn truncate(message: &mut String) {
    while message.len() > MESSAGE_MAX {
        message.pop();
    }
}

/// A map that forgets its oldest entries.
#[derive(Debug)]
struct Bounded<K, V> {
    map: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K, V> Default for Bounded<K, V> {
    fn default() -> Self {
        Self { map: HashMap::new(), order: VecDeque::new() }
    }
}

impl<K: Clone + Eq + Hash, V> Bounded<K, V> {
    fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.map.get_mut(key)
    }

    fn get_or_insert(&mut self, key: K, value: impl FnOnce() -> V) -> &mut V {
        if !self.map.contains_key(&key) {
            self.make_room();
            self.order.push_back(key.clone());
        }
        self.map.entry(key).or_insert_with(value)
    }

    fn insert(&mut self, key: K, value: V) {
        if self.map.insert(key.clone(), value).is_none() {
            self.order.push_back(key);
            if self.order.len() > REMEMBERED {
                self.make_room();
            }
        }
    }

    fn remove(&mut self, key: &K) {
        if self.map.remove(key).is_some() {
            self.order.retain(|other| other != key);
        }
    }

    fn make_room(&mut self) {
        while self.order.len() >= REMEMBERED {
            let Some(oldest) = self.order.pop_front() else { return };
            self.map.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn occurrence(pod: &str, message: &str) -> Occurrence {
        Occurrence {
            about: ["v1", "Pod", "ns", pod, "uid", ""].map(str::to_owned),
            level: "Warning".to_owned(),
            reason: "BackOff".to_owned(),
            message: message.to_owned(),
        }
    }

    /// Decides, and writes what is to be written.
    fn settle(correlator: &mut Correlator, occurrence: Occurrence, now: Timestamp) -> Decision {
        let decision = correlator.decide(occurrence, now);
        if let Decision::Create { name, key, .. } = &decision {
            correlator.written(key.clone(), name.clone());
        }
        decision
    }

    #[test]
    fn the_same_again_raises_the_count() {
        let mut correlator = Correlator::default();
        let Decision::Create { name, .. } = settle(&mut correlator, occurrence("a", "m"), at(0)) else { panic!() };
        for expected in 2..5 {
            match settle(&mut correlator, occurrence("a", "m"), at(1)) {
                Decision::Again { name: again, count, .. } => assert_eq!((again, count), (name.clone(), expected)),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn many_alike_become_one() {
        let mut correlator = Correlator::default();
        let decisions: Vec<Decision> =
            (0..12).map(|n| settle(&mut correlator, occurrence("a", &format!("m{n}")), at(n))).collect();
        assert!(decisions[..9].iter().all(|d| matches!(d, Decision::Create { .. })), "{decisions:?}");
        assert!(
            matches!(&decisions[9], Decision::Create { message, .. } if message == "(combined from similar events): m9")
        );
        assert!(matches!(&decisions[11], Decision::Again { count: 3, message, .. } if message.ends_with("m11")));
        // After a while they are told apart again.
        assert!(matches!(
            settle(&mut correlator, occurrence("a", "later"), at(1000)),
            Decision::Create { message, .. } if message == "later"
        ));
    }

    #[test]
    fn a_flood_about_one_object_is_dropped_and_others_are_not() {
        let mut correlator = Correlator::default();
        let mut kept = 0;
        for _ in 0..100 {
            kept += i32::from(settle(&mut correlator, occurrence("a", "m"), at(0)) != Decision::Drop);
        }
        assert_eq!(kept, 25);
        assert_ne!(settle(&mut correlator, occurrence("b", "m"), at(0)), Decision::Drop);
        assert_eq!(settle(&mut correlator, occurrence("a", "m"), at(299)), Decision::Drop);
        assert_ne!(settle(&mut correlator, occurrence("a", "m"), at(300)), Decision::Drop);
    }

    #[test]
    fn names_sort_by_time_and_are_never_the_same() {
        let mut correlator = Correlator::default();
        let mut name = |message: &str, second| match correlator.decide(occurrence("web-1", message), at(second)) {
            Decision::Create { name, .. } => name,
            other => panic!("{other:?}"),
        };
        let names = [name("1", 0), name("2", 0), name("3", 1)];
        assert!(names.is_sorted() && names[0] != names[1], "{names:?}");
        assert!(names[0].starts_with("web-1.17"), "{names:?}");
        assert!(name(&"x".repeat(3000), 2).len() < 253);
    }

    #[test]
    fn an_expired_event_is_written_anew() {
        let mut correlator = Correlator::default();
        settle(&mut correlator, occurrence("a", "m"), at(0));
        let Decision::Again { key, message, .. } = correlator.decide(occurrence("a", "m"), at(1)) else { panic!() };
        let Decision::Create { name, key, .. } = correlator.gone(key, message, at(1)) else { panic!() };
        correlator.written(key, name);
        assert!(matches!(correlator.decide(occurrence("a", "m"), at(2)), Decision::Again { count: 2, .. }));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut correlator = Correlator::default();
        for n in 0..5000 {
            settle(&mut correlator, occurrence(&format!("p{n}"), "m"), at(0));
        }
        assert!(correlator.known.map.len() <= REMEMBERED && correlator.known.order.len() <= REMEMBERED);
        assert!(correlator.spent.map.len() <= REMEMBERED && correlator.similar.map.len() <= REMEMBERED);
    }
}
