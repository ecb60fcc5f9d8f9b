//! Which pod has which of the machine's users: ranges for pods with users of their own (`hostUsers: false`).
//!
//! As with addresses, a range is recorded with fsync before anything is made for it, and freed when nothing of the pod is
//! left, so no two pods of a node ever share one, also over crashes. Nodes side by side on one machine tell each other
//! by files below `/run/statefuld/users`, which count for as long as their node's own record says the same.
//!
//! The ranges lie where nothing else gives users out: above what systemd, `/etc/subuid` and directory services take by
//! default, and below what programs mistake for negative numbers. Sources: <https://systemd.io/UIDS-GIDS/>, `subuid(5)`,
//! `sssd-ad(5)`. What `/etc/subuid` and `/etc/subgid` give to others all the same is left out.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{Config, write_durably};
use crate::shim::spec::UserRange;

/// Users of one pod, as a kubelet gives them.
pub const USERS_OF_A_POD: u32 = 65_536;
/// The first pod's root.
const FIRST: u32 = 0x7739_0000;
/// How many pods of a machine can have users of their own: up to systemd's next reserved number.
const MOST: u32 = 0x7ffe - 0x7739;
/// Where nodes on one machine tell each other what is taken.
const CLAIMS: &str = "/run/statefuld/users";
const MAGIC: &str = "statefuld-users";
const VERSION: u32 = 1;

/// The ranges of one node, backed by a file.
#[derive(Debug)]
pub struct UserRanges {
    /// The node's data directory, which its claims name.
    owner: PathBuf,
    claims: PathBuf,
    pool: Pool,
}

/// The decision itself, without the files. Ranges are numbered from 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Where the next look for a free one begins: what was freed is given out last.
    next: u32,
    /// By the pods' uids.
    taken: BTreeMap<String, u32>,
}

#[derive(Serialize, Deserialize)]
struct Recorded {
    magic: String,
    version: u32,
    #[serde(flatten)]
    pool: Pool,
}

impl UserRanges {
    /// Reads a node's record, and claims what is in it.
    pub fn open(config: &Config) -> Result<Self, Error> {
        Self::open_at(&config.data_dir, Path::new(CLAIMS))
    }

    fn open_at(data_dir: &Path, claims: &Path) -> Result<Self, Error> {
        let mut ranges = Self { owner: data_dir.to_owned(), claims: claims.to_owned(), pool: read(data_dir)? };
        if ranges.pool.taken.is_empty() {
            return Ok(ranges);
        }
        let _lock = ranges.lock()?;
        // After a start of the machine there are no claims, and another node may have been faster: nothing runs, and
        // the pod gets another range.
        let mut kept = ranges.pool.clone();
        kept.taken.retain(|_, number| !ranges.is_anothers(*number));
        for number in kept.taken.values() {
            ranges.claim(*number)?;
        }
        ranges.commit(kept)?;
        Ok(ranges)
    }

    /// The users of this pod, recorded durably when this returns. Blocks for an fsync where they are new.
    pub fn allocate(&mut self, uid: &str) -> Result<UserRange, Error> {
        if let Some(range) = self.of(uid) {
            return Ok(range);
        }
        let _lock = self.lock()?;
        let others = subordinate();
        let mut next = self.pool.clone();
        let given = next.allocate(uid, |number| {
            others.iter().any(|range| overlap(*range, range_of(number))) || self.is_anothers(number)
        });
        let number = given.ok_or(Error::Exhausted)?;
        self.claim(number)?;
        self.commit(next)?;
        Ok(range_of(number))
    }

    /// Frees the users of this pod. Call it when nothing of it is left.
    pub fn release(&mut self, uid: &str) -> Result<(), Error> {
        let Some(number) = self.pool.taken.get(uid).copied() else { return Ok(()) };
        let _lock = self.lock()?;
        let mut next = self.pool.clone();
        next.taken.remove(uid);
        self.commit(next)?;
        let path = self.claim_path(number);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::Io { path, source: e }),
            _ => Ok(()),
        }
    }

    /// The users that this pod has.
    pub fn of(&self, uid: &str) -> Option<UserRange> {
        self.pool.taken.get(uid).copied().map(range_of)
    }

    /// Held while ranges are given out or back on the machine. Released with the file.
    fn lock(&self) -> Result<fs::File, Error> {
        let failed = |path: &Path, source| Error::Io { path: path.to_owned(), source };
        fs::create_dir_all(&self.claims).map_err(|e| failed(&self.claims, e))?;
        let path = self.claims.join(".lock");
        let file = fs::OpenOptions::new().create(true).append(true).open(&path).map_err(|e| failed(&path, e))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).map_err(|e| failed(&path, e.into()))?;
        Ok(file)
    }

    fn claim_path(&self, number: u32) -> PathBuf {
        self.claims.join(range_of(number).first.to_string())
    }

    fn claim(&self, number: u32) -> Result<(), Error> {
        let path = self.claim_path(number);
        fs::write(&path, self.owner.as_os_str().as_encoded_bytes()).map_err(|source| Error::Io { path, source })
    }

    /// Whether another node's record says that it has that range.
    fn is_anothers(&self, number: u32) -> bool {
        let Ok(text) = fs::read(self.claim_path(number)) else { return false };
        let holder = PathBuf::from(OsString::from_vec(text));
        if holder == self.owner || !holder.is_dir() {
            return false;
        }
        // A record that cannot be read is no word that the range is free.
        read(&holder).map_or(true, |pool| pool.taken.values().any(|taken| *taken == number))
    }

    /// Disk first, memory after, so that memory never says more than the disk.
    fn commit(&mut self, next: Pool) -> Result<(), Error> {
        if next == self.pool {
            return Ok(());
        }
        let path = record_of(&self.owner);
        let recorded = Recorded { magic: MAGIC.to_owned(), version: VERSION, pool: next.clone() };
        let text = serde_json::to_vec(&recorded).expect("a struct of strings always becomes JSON");
        write_durably(&path, &text).map_err(|source| Error::Io { path, source })?;
        self.pool = next;
        Ok(())
    }
}

impl Pool {
    /// Gives the pod a range: the one it has, else the next that is free and not `foreign`. None when there is none.
    pub fn allocate(&mut self, uid: &str, foreign: impl Fn(u32) -> bool) -> Option<u32> {
        if let Some(number) = self.taken.get(uid) {
            return Some(*number);
        }
        let mut candidates = (0..MOST).map(|step| (self.next % MOST + step) % MOST);
        let number = candidates.find(|n| !self.taken.values().any(|taken| taken == n) && !foreign(*n))?;
        self.taken.insert(uid.to_owned(), number);
        self.next = (number + 1) % MOST;
        Some(number)
    }
}

fn record_of(data_dir: &Path) -> PathBuf {
    data_dir.join("node/users")
}

fn read(data_dir: &Path) -> Result<Pool, Error> {
    let path = record_of(data_dir);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Pool::default()),
        Err(source) => return Err(Error::Io { path, source }),
    };
    let unreadable = |what: String| Error::Unreadable { path: path.clone(), what };
    let recorded: Recorded = serde_json::from_slice(&text).map_err(|e| unreadable(e.to_string()))?;
    if recorded.magic != MAGIC || recorded.version != VERSION {
        return Err(unreadable(format!("it says {:?} version {}", recorded.magic, recorded.version)));
    }
    Ok(recorded.pool)
}

fn range_of(number: u32) -> UserRange {
    UserRange { first: FIRST + number * USERS_OF_A_POD, count: USERS_OF_A_POD }
}

fn overlap(a: UserRange, b: UserRange) -> bool {
    u64::from(a.first) < u64::from(b.first) + u64::from(b.count)
        && u64::from(b.first) < u64::from(a.first) + u64::from(a.count)
}

/// What the machine gives to others.
fn subordinate() -> Vec<UserRange> {
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    [text("/etc/subuid"), text("/etc/subgid")].iter().flat_map(|text| parse(text)).collect()
}

/// The ranges of a file as `subuid(5)` has it.
fn parse(text: &str) -> Vec<UserRange> {
    let of_line = |line: &str| {
        let mut columns = line.split(':').skip(1).map(|column| column.trim().parse().ok());
        Some(UserRange { first: columns.next()??, count: columns.next()?? })
    };
    text.lines().filter_map(of_line).collect()
}

/// Why a pod has no users of its own.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The record, or a claim, cannot be read or written. Check the disk.
    #[error("cannot use the record of pods' users {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The record is damaged or from another version. With no pod running it can be removed.
    #[error("{} is not a record of pods' users that this version can read: {what}", path.display())]
    Unreadable {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Every range of the machine is in use. Delete pods with `hostUsers: false`, or use another machine.
    #[error("hostUsers: false: all {MOST} ranges of users that this machine has for pods are in use")]
    Exhausted,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The data directory of a node, and where it meets others.
    fn node(dir: &Path, name: &str) -> UserRanges {
        fs::create_dir_all(dir.join(name).join("node")).expect("a folder");
        UserRanges::open_at(&dir.join(name), &dir.join("claims")).expect("opened")
    }

    #[test]
    fn a_pod_has_the_same_users_after_a_restart_and_others_get_them_when_it_is_gone() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut first = node(dir.path(), "a");
        let range = first.allocate("u0").expect("a range");
        assert_eq!((range.first, range.count), (FIRST, 65_536));
        assert_eq!(first.allocate("u0").expect("again"), range);
        let mut again = node(dir.path(), "a");
        assert_eq!(again.of("u0"), Some(range));
        assert!(!overlap(again.allocate("u1").expect("another"), range));
        again.release("u0").expect("released");
        assert_eq!(node(dir.path(), "a").of("u0"), None);
        assert_eq!(fs::read_dir(dir.path().join("claims")).expect("listed").count(), 2, "a lock and one claim");
    }

    #[test]
    fn nodes_of_a_machine_never_share_and_what_a_lost_one_had_is_free() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (mut a, mut b) = (node(dir.path(), "a"), node(dir.path(), "b"));
        let (of_a, of_b) = (a.allocate("u0").expect("a range"), b.allocate("v0").expect("a range"));
        assert!(!overlap(of_a, of_b));
        // The machine started anew, and b was faster.
        fs::remove_dir_all(dir.path().join("claims")).expect("gone");
        b.release("v0").expect("released");
        b.pool.next = 0;
        assert_eq!(b.allocate("v1").expect("a range"), of_a);
        let mut late = node(dir.path(), "a");
        assert_eq!(late.of("u0"), None);
        assert_ne!(late.allocate("u0").expect("another"), of_a);
        fs::remove_dir_all(dir.path().join("b")).expect("gone");
        late.pool.next = 0;
        assert_eq!(late.allocate("u1").expect("a range"), of_a, "its node is no more");
    }

    #[test]
    fn what_is_anothers_is_left_out_and_an_end_is_told() {
        let mut pool = Pool::default();
        assert_eq!(pool.allocate("u0", |n| n < 7), Some(7));
        assert_eq!(pool.allocate("u1", |n| n != 7), None);
        let text = "# people\nann:100000:65536\nbob:2000224000:300\nodd:x:1\n";
        let others = parse(text);
        assert_eq!(others.len(), 2);
        assert!(others.iter().any(|range| overlap(*range, range_of(0))));
        assert!(!others.iter().any(|range| overlap(*range, range_of(1))));
        let error = Error::Exhausted.to_string();
        assert!(error.contains("2245 ranges"), "{error}");
    }

    #[test]
    fn ranges_lie_where_nobody_else_gives_users_out() {
        assert!(range_of(0).first > 2_000_200_000, "above directory services");
        let last = range_of(MOST - 1);
        assert_eq!(last.first + last.count, 0x7ffe_0000, "below systemd's foreign range");
    }

    #[test]
    fn a_damaged_record_is_refused_not_guessed() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        drop(node(dir.path(), "a"));
        fs::write(record_of(&dir.path().join("a")), "{").expect("written");
        let opened = UserRanges::open_at(&dir.path().join("a"), &dir.path().join("claims"));
        assert!(matches!(opened, Err(Error::Unreadable { .. })));
    }

    proptest! {
        #[test]
        fn anytime_one_pod_per_range(steps in proptest::collection::vec((any::<bool>(), 0u8..24), 0..200)) {
            let mut pool = Pool::default();
            for (take, uid) in steps {
                let uid = format!("u{uid}");
                if take {
                    prop_assert!(pool.allocate(&uid, |n| n % 3 == 0).is_some_and(|n| n < MOST && n % 3 != 0));
                } else {
                    pool.taken.remove(&uid);
                }
                let mut numbers: Vec<u32> = pool.taken.values().copied().collect();
                numbers.sort_unstable();
                numbers.dedup();
                prop_assert_eq!(numbers.len(), pool.taken.len());
            }
        }
    }
}
