//! Names of pods, claims and revisions, and what can be read from them.

/// Characters that hashes are written in: no vowels, nothing that looks like something else.
const SAFE: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// Characters of a set's name that a revision's name keeps.
const REVISION_STEM_LIMIT: usize = 223;

/// Name of the pod at an ordinal.
pub fn pod_name(set: &str, ordinal: i32) -> String {
    format!("{set}-{ordinal}")
}

/// Name of the claim of a template for an ordinal.
pub fn claim_name(template: &str, set: &str, ordinal: i32) -> String {
    format!("{template}-{set}-{ordinal}")
}

/// Name of the set that a pod's name speaks of, and the ordinal.
///
/// Only the one spelling that a set would give counts: `web-01` is nobody's `web-1`.
pub fn parent_and_ordinal(pod: &str) -> Option<(&str, i32)> {
    let (parent, digits) = pod.rsplit_once('-')?;
    if parent.is_empty() || digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    if digits.len() > 1 && digits.starts_with('0') {
        return None;
    }
    Some((parent, digits.parse().ok()?))
}

/// Hash of a revision's data, spelled as in its name: FNV-1 over the bytes and the collision count in
/// decimal, the sum in decimal, each digit's byte mapped to a safe character.
pub fn revision_hash(data: &[u8], collisions: i32) -> String {
    let sum = fnv1(&[data, collisions.to_string().as_bytes()]);
    sum.to_string().bytes().map(|b| char::from(SAFE[usize::from(b) % SAFE.len()])).collect()
}

/// Name of the revision with a hash.
pub fn revision_name(set: &str, hash: &str) -> String {
    let end = (0..=set.len().min(REVISION_STEM_LIMIT)).rev().find(|i| set.is_char_boundary(*i)).unwrap_or(0);
    format!("{}-{hash}", &set[..end])
}

/// FNV-1, 32 bits, over the parts one after another.
pub(crate) fn fnv1(parts: &[&[u8]]) -> u32 {
    const OFFSET: u32 = 0x811c_9dc5;
    const PRIME: u32 = 0x0100_0193;
    parts.iter().flat_map(|p| p.iter()).fold(OFFSET, |hash, byte| hash.wrapping_mul(PRIME) ^ u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_spelling_names_an_ordinal() {
        assert_eq!(parent_and_ordinal("web-0"), Some(("web", 0)));
        assert_eq!(parent_and_ordinal("my-web-12"), Some(("my-web", 12)));
        for other in ["web-01", "web", "web-", "-1", "web-x", "web--", "web-99999999999", "web-+1"] {
            assert_eq!(parent_and_ordinal(other), None, "{other}");
        }
    }

    #[test]
    fn fnv1_matches_its_published_vectors() {
        assert_eq!(fnv1(&[b""]), 0x811c_9dc5);
        assert_eq!(fnv1(&[b"a"]), 0x050c_5d7e);
        assert_eq!(fnv1(&[b"foo", b"bar"]), 0x31f0_b262);
    }

    #[test]
    fn a_hash_is_decimal_digits_in_safe_letters() {
        // '0' is 48, and 48 mod 27 is 21, the letter '4' minus two: the alphabet's 22nd.
        assert_eq!(SAFE[usize::from(b'0') % 27], b'4');
        let hash = revision_hash(b"{}", 0);
        assert!((1..=10).contains(&hash.len()));
        assert!(hash.bytes().all(|b| SAFE.contains(&b)));
        assert_ne!(hash, revision_hash(b"{}", 1), "a collision gives another name");
    }

    #[test]
    fn a_long_set_name_is_cut() {
        let name = revision_name(&"x".repeat(300), "abc");
        assert_eq!(name.len(), 223 + 1 + 3);
    }
}
