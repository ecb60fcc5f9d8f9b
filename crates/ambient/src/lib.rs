//! What a process takes from its surroundings: clock and entropy.
//!
//! Everything that needs the time, a random name or jitter receives an [`Ambient`] from whoever wires it.
//! Programs pass [`Ambient::system`]; tests and the simulator pass clocks that they move by hand and
//! entropy that a seed replays. Nothing else in this workspace asks the machine (clippy's
//! `disallowed-methods` sees to that), so a run can be repeated.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;

/// Clock and entropy, passed together. Cheap to clone.
#[derive(Clone)]
pub struct Ambient {
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

impl Ambient {
    /// The machine's own clock and entropy.
    pub fn system() -> Self {
        Self::new(Arc::new(SystemClock), Arc::new(SystemEntropy))
    }

    /// A given clock and a given entropy.
    pub fn new(clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Self {
        Self { clock, entropy }
    }

    /// A clock that stands at `start` until it is moved, and entropy replayed from `seed`.
    pub fn manual(start: Timestamp, seed: u64) -> (Self, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(start));
        (Self::new(clock.clone(), Arc::new(SeededEntropy::new(seed))), clock)
    }

    /// Wall time. May jump; for what people read and what objects record.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Time since an arbitrary point, monotonic, counting through suspend. For deadlines and leases.
    pub fn boottime(&self) -> Duration {
        self.clock.boottime()
    }

    /// A random (version 4) UUID in its usual text form, as object uids are.
    pub fn uid(&self) -> String {
        let mut b = [0u8; 16];
        self.entropy.fill(&mut b);
        b[6] = (b[6] & 0x0f) | 0x40;
        b[8] = (b[8] & 0x3f) | 0x80;
        let hex: String = b.iter().map(|x| format!("{x:02x}")).collect();
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }

    /// `len` characters for generated names, from Kubernetes' alphabet (no vowels, no look-alikes).
    pub fn suffix(&self, len: usize) -> String {
        const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let mut out = String::with_capacity(len);
        let mut byte = [0u8; 1];
        while out.len() < len {
            self.entropy.fill(&mut byte);
            // 243 = 9 * 27: reject the rest, so that no character is likelier than another.
            if byte[0] < 243 {
                out.push(ALPHABET[usize::from(byte[0]) % ALPHABET.len()] as char);
            }
        }
        out
    }

    /// `base` lengthened by up to `fraction` of itself, so that retries do not march in step.
    pub fn jitter(&self, base: Duration, fraction: f64) -> Duration {
        let mut b = [0u8; 4];
        self.entropy.fill(&mut b);
        let unit = f64::from(u32::from_le_bytes(b)) / f64::from(u32::MAX);
        base.mul_f64(1.0 + fraction * unit)
    }

    /// Random bytes, for keys and tokens.
    pub fn fill(&self, buffer: &mut [u8]) {
        self.entropy.fill(buffer);
    }
}

impl fmt::Debug for Ambient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ambient")
    }
}

/// A source of time.
pub trait Clock: Send + Sync + 'static {
    /// Wall time.
    fn now(&self) -> Timestamp;
    /// Monotonic time that counts through suspend (CLOCK_BOOTTIME).
    fn boottime(&self) -> Duration;
}

/// A source of random bytes.
pub trait Entropy: Send + Sync + 'static {
    /// Fills the buffer.
    fn fill(&self, buffer: &mut [u8]);
}

struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is the one place that asks the machine")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn boottime(&self) -> Duration {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0))
    }
}

struct SystemEntropy;

impl Entropy for SystemEntropy {
    #[allow(clippy::disallowed_methods, reason = "this is the one place that asks the machine")]
    fn fill(&self, buffer: &mut [u8]) {
        getrandom::fill(buffer).expect("the kernel gives random bytes once it has booted");
    }
}

/// A clock that stands still until it is moved. Wall and monotonic time move separately, so that tests
/// can make the wall jump.
#[derive(Debug)]
pub struct ManualClock {
    wall: Mutex<Timestamp>,
    boot_nanos: AtomicU64,
}

impl ManualClock {
    /// Stands at `start`; the monotonic side starts at one hour.
    pub fn new(start: Timestamp) -> Self {
        Self { wall: Mutex::new(start), boot_nanos: AtomicU64::new(3_600_000_000_000) }
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        let mut wall = self.wall.lock().expect("no holder of this lock panics");
        *wall += by;
        let nanos = u64::try_from(by.as_nanos()).expect("tests move by less than 584 years");
        self.boot_nanos.fetch_add(nanos, Ordering::SeqCst);
    }

    /// Sets the wall clock alone, as a person or NTP does.
    pub fn jump(&self, to: Timestamp) {
        *self.wall.lock().expect("no holder of this lock panics") = to;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.wall.lock().expect("no holder of this lock panics")
    }

    fn boottime(&self) -> Duration {
        Duration::from_nanos(self.boot_nanos.load(Ordering::SeqCst))
    }
}

/// Bytes that a seed replays (splitmix64). Not for keys.
#[derive(Debug)]
pub struct SeededEntropy {
    state: AtomicU64,
}

impl SeededEntropy {
    /// The same seed gives the same bytes.
    pub fn new(seed: u64) -> Self {
        Self { state: AtomicU64::new(seed) }
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let mut z = self.state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            chunk.copy_from_slice(&z.to_le_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_a_version_4_uuid() {
        let (ambient, _) = Ambient::manual(Timestamp::UNIX_EPOCH, 7);
        let uid = ambient.uid();
        assert_eq!(uid.len(), 36);
        assert_eq!(uid.as_bytes()[14], b'4');
        assert!(matches!(uid.as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
    }

    #[test]
    fn a_seed_replays() {
        let one = Ambient::manual(Timestamp::UNIX_EPOCH, 42).0;
        let two = Ambient::manual(Timestamp::UNIX_EPOCH, 42).0;
        assert_eq!(one.suffix(5), two.suffix(5));
        assert_ne!(one.uid(), one.uid());
    }

    #[test]
    fn jitter_only_lengthens() {
        let ambient = Ambient::manual(Timestamp::UNIX_EPOCH, 1).0;
        for _ in 0..100 {
            let d = ambient.jitter(Duration::from_secs(10), 0.5);
            assert!((Duration::from_secs(10)..=Duration::from_secs(15)).contains(&d));
        }
    }
}
