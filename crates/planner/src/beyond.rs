//! What a set's annotations ask for beyond Kubernetes, and what is observed for it.

use std::collections::BTreeMap;

use crate::types::Millis;

/// What annotations ask for; the default is Kubernetes' own behaviour.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Beyond {
    /// `deletion: ordered`, as its finalizer says: the set stays until its pods went one after another.
    pub ordered_deletion: bool,
    /// `rollout-recovery: replace-broken`.
    pub replace_broken: bool,
    /// `progress-deadline-seconds`.
    pub deadline_seconds: Option<i32>,
    /// `rollback: auto`.
    pub rollback: bool,
    /// `retry`; empty if absent.
    pub retry: String,
    /// `reserve-ordinals`.
    pub reserved: Reserved,
    /// `overrides`: the hash of an ordinal's patch, as its pod shall carry it.
    pub overrides: BTreeMap<i32, String>,
    /// `volume-expansion: online`: bytes asked for by each claim template.
    pub claim_sizes: BTreeMap<String, i64>,
    /// `immutable-fields: carry-out`: pods follow a changed service name and changed claim templates.
    pub carry_out: bool,
    /// `protect`: claims are marked (true) or unmarked (false); none leaves them as they are.
    pub protect: Option<bool>,
    /// An annotation that a server without our admission let in and that is wrong: nothing is deleted.
    pub invalid: Option<String>,
}

/// Ordinals that are left out: inclusive ranges, ascending, apart from each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reserved(Vec<(i32, i32)>);

impl Reserved {
    /// These ranges, in any order; those that touch become one, and empty ones go.
    pub fn new(ranges: impl IntoIterator<Item = (i32, i32)>) -> Self {
        let mut ranges: Vec<(i32, i32)> = ranges.into_iter().filter(|(a, b)| a <= b).collect();
        ranges.sort_unstable();
        let mut merged: Vec<(i32, i32)> = Vec::new();
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if i64::from(first) <= i64::from(before.1) + 1 => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    /// The ranges.
    pub fn ranges(&self) -> &[(i32, i32)] {
        &self.0
    }

    /// True if the ordinal is left out.
    pub fn contains(&self, ordinal: i32) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&ordinal))
    }

    /// The ordinal at an index of those that are not left out, from `start` on.
    pub fn ordinal_at(&self, start: i32, index: i64) -> i64 {
        let mut ordinal = i64::from(start) + index;
        for (first, last) in self.0.iter().map(|(a, b)| (i64::from(*a).max(i64::from(start)), i64::from(*b))) {
            if last < first {
                continue;
            }
            if first > ordinal {
                break;
            }
            ordinal += last - first + 1;
        }
        ordinal
    }

    /// The index of an ordinal among those that are not left out, from `start` on.
    pub fn index_of(&self, start: i32, ordinal: i32) -> Option<i64> {
        if ordinal < start || self.contains(ordinal) {
            return None;
        }
        let before = |(first, last): &(i32, i32)| {
            let (first, last) = (i64::from(*first).max(i64::from(start)), i64::from(*last).min(i64::from(ordinal) - 1));
            (last - first + 1).max(0)
        };
        Some(i64::from(ordinal) - i64::from(start) - self.0.iter().map(before).sum::<i64>())
    }
}

/// What keeps a pod from becoming ready, as far as scheduler, kubelet and nodes tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trouble {
    /// Nothing is known: it works, or it is slow.
    #[default]
    None,
    /// A container is not running and the template is to blame: CrashLoopBackOff, ErrImagePull and the like.
    Container,
    /// No node takes it, for a reason in the template.
    Misfit,
    /// It waits for something outside of the template: room on a node, a volume.
    Outside,
    /// Nobody hears of its node.
    NodeLost,
}

/// A condition of a set that the controller writes. Those of others are not seen here and are left alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Condition {
    /// Which one.
    pub kind: ConditionKind,
    /// Whether it holds.
    pub truth: Truth,
    /// One word.
    pub reason: String,
    /// One sentence.
    pub message: String,
    /// Since when it is so.
    pub since: Millis,
}

/// The conditions that the controller writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionKind {
    /// Every wanted pod is available.
    Available,
    /// A rollout goes on or is complete; false once it stands still past its deadline.
    Progressing,
    /// An annotation is wrong.
    Invalid,
}

impl ConditionKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Available, Self::Progressing, Self::Invalid];

    /// As the API writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Available => "Available",
            Self::Progressing => "Progressing",
            Self::Invalid => "statefuld.io/Invalid",
        }
    }
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody can say now.
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_and_ordinals_agree_around_what_is_reserved() {
        let reserved = Reserved::new([(4, 5), (1, 1), (5, 6), (9, 8)]);
        assert_eq!(reserved.ranges(), [(1, 1), (4, 6)]);
        for start in 0..8 {
            let expected: Vec<i32> = (start..40).filter(|n| ![1, 4, 5, 6].contains(n)).take(10).collect();
            for (index, ordinal) in (0i64..).zip(&expected) {
                assert_eq!(reserved.ordinal_at(start, index), i64::from(*ordinal), "from {start} at {index}");
                assert_eq!(reserved.index_of(start, *ordinal), Some(index), "from {start} of {ordinal}");
            }
            assert_eq!(reserved.index_of(start, 5), None);
        }
        assert_eq!(reserved.index_of(3, 2), None, "below the start");
    }
}
