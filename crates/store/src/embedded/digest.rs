//! Checksums over all rows of a table, kept up to date as rows come and go.
//!
//! The engine checks its pages only after a crash, and a disk may also spoil what was closed in peace. The sum of every
//! row's hash is part of each commit; when a store is opened, all rows are read anyway and must add up to it. A
//! row that was changed, lost or doubled is found wherever it lies. It guards against accidents, not against people.

/// The sum over a table's rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Digest(pub(super) u64);

/// An odd constant with well mixed bits.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

impl Digest {
    /// A row that is there from now on.
    pub(super) fn add(&mut self, key: &[u8], row: &[u8]) {
        self.0 = self.0.wrapping_add(hash(key, row));
    }

    /// A row that was added before and is there no more.
    pub(super) fn remove(&mut self, key: &[u8], row: &[u8]) {
        self.0 = self.0.wrapping_sub(hash(key, row));
    }
}

fn hash(key: &[u8], row: &[u8]) -> u64 {
    let mut state = absorb(MIX, key.len() as u64);
    for part in [key, row] {
        let (words, rest) = part.as_chunks::<8>();
        for word in words {
            state = absorb(state, u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        state = absorb(state, u64::from_le_bytes(last));
    }
    absorb(state, row.len() as u64)
}

/// Reversible in each of its arguments: a difference in one word is never lost on the way.
fn absorb(state: u64, word: u64) -> u64 {
    let mixed = (state ^ word).wrapping_mul(MIX);
    mixed ^ (mixed >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_key_and_row_counts_and_where_the_key_ends() {
        let (key, row) = (*b"key-of-a-row", *b"some bytes, more than two words");
        let base = hash(&key, &row);
        for bit in 0..key.len() * 8 {
            let mut changed = key;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(hash(&changed, &row), base);
        }
        for bit in 0..row.len() * 8 {
            let mut changed = row;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(hash(&key, &changed), base);
        }
        assert_ne!(hash(b"a", b"bc"), hash(b"ab", b"c"));
        assert_ne!(hash(b"a", b"b"), hash(b"a", b"b\0"));
    }

    #[test]
    fn what_is_removed_leaves_no_trace_in_whatever_order() {
        let mut digest = Digest::default();
        digest.add(b"a", b"1");
        digest.add(b"b", b"2");
        let two = digest;
        digest.add(b"c", b"3");
        digest.remove(b"c", b"3");
        assert_eq!(digest, two);
        digest.remove(b"a", b"1");
        digest.remove(b"b", b"2");
        assert_eq!(digest, Digest::default());
    }
}
