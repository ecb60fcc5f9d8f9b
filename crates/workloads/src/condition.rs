//! Conditions of statuses, and what people are told.

use crate::{Millis, whole_second};

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Nobody knows.
    Unknown,
}

impl Truth {
    /// As the API writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }

    /// Reads what the API writes; anything else is unknown.
    pub fn read(text: &str) -> Self {
        match text {
            "True" => Self::True,
            "False" => Self::False,
            _ => Self::Unknown,
        }
    }
}

/// One condition of a status.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Condition {
    /// Its type, such as `Progressing`.
    pub kind: String,
    /// Whether it holds.
    pub truth: Truth,
    /// Why, in one word.
    pub reason: String,
    /// Why, in a sentence.
    pub message: String,
    /// When it was last said; deployments and jobs note it.
    pub updated: Millis,
    /// When its truth last changed.
    pub since: Millis,
}

impl Condition {
    /// A condition that begins now.
    pub fn new(kind: &str, truth: Truth, reason: &str, message: impl Into<String>, now: Millis) -> Self {
        let now = whole_second(now);
        Self { kind: kind.into(), truth, reason: reason.into(), message: message.into(), updated: now, since: now }
    }
}

/// The condition of a type, if there is one.
pub(crate) fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.kind == kind)
}

/// Whether a condition of this type holds.
pub(crate) fn holds(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|c| c.truth == Truth::True)
}

/// Puts a condition in place of the one of its type. The same truth for the same reason is no news and changes
/// nothing; the same truth for another reason keeps its time.
pub(crate) fn set(conditions: &mut Vec<Condition>, mut new: Condition) {
    if let Some(old) = find(conditions, &new.kind) {
        if old.truth == new.truth && old.reason == new.reason {
            return;
        }
        if old.truth == new.truth {
            new.since = old.since;
        }
    }
    remove(conditions, &new.kind);
    conditions.push(new);
}

/// Takes the condition of a type away.
pub(crate) fn remove(conditions: &mut Vec<Condition>, kind: &str) {
    conditions.retain(|c| c.kind != kind);
}

/// Whether an event is good news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Told for information.
    Normal,
    /// Something is not as it should be.
    Warning,
}

/// What people are told about an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Event {
    /// Whether it is good news.
    pub level: Level,
    /// Why, in one word.
    pub reason: &'static str,
    /// What happened.
    pub message: String,
}

impl Event {
    /// Good news.
    pub fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { level: Level::Normal, reason, message: message.into() }
    }

    /// Bad news.
    pub fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { level: Level::Warning, reason, message: message.into() }
    }
}
