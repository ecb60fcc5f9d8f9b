//! Sets of completion indexes, written as `1,3-5,7`.

use std::collections::BTreeSet;
use std::fmt;

/// A set of completion indexes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Indexes(BTreeSet<i32>);

/// Most indexes that a text is read as; what is beyond them is dropped.
const LIMIT: usize = 1_000_000;

impl Indexes {
    /// Reads a text; parts that are none are left out.
    pub fn parse(text: &str) -> Self {
        let mut set = BTreeSet::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
                set.extend((first..=last).take(LIMIT.saturating_sub(set.len())));
            }
        }
        Self(set)
    }

    /// Whether an index is in it.
    pub fn has(&self, index: i32) -> bool {
        self.0.contains(&index)
    }

    /// How many there are.
    pub fn len(&self) -> i32 {
        i32::try_from(self.0.len()).unwrap_or(i32::MAX)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds an index.
    pub(super) fn insert(&mut self, index: i32) {
        self.0.insert(index);
    }

    /// Drops what is not below a bound.
    pub(super) fn keep_below(&mut self, bound: i32) {
        self.0.retain(|index| *index < bound);
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut comma = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if(|next| *next == last + 1) {
                last = next;
            }
            write!(f, "{comma}{first}")?;
            match last - first {
                0 => {}
                1 => write!(f, ",{last}")?,
                _ => write!(f, "-{last}")?,
            }
            comma = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_as_upstream_writes_them() {
        for text in ["", "0", "1,3-5,7", "0,1", "0-2", "2,3,9-20"] {
            assert_eq!(Indexes::parse(text).to_string(), text);
        }
        assert_eq!(Indexes::parse("4,3,5,x,8-").to_string(), "3-5");
        assert_eq!(Indexes::parse("1-3").len(), 3);
    }
}
