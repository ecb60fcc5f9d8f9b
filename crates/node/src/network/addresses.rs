//! Which pod has which address: a record on disk that is always ahead of the interfaces.
//!
//! An address is recorded with fsync before its interface exists and freed after it is gone, so no two
//! interfaces ever share one, also over crashes. Addresses are sticky: an identity (namespace and pod name,
//! which for a set is namespace, set and ordinal) gets the address back that it had, and what one identity
//! had is given to others last. Clients that cache names for too long then still reach the right pod.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{Cidr, write_durably};

const MAGIC: &str = "statefuld-addresses";
const VERSION: u32 = 1;

/// The addresses of one node, backed by a file.
#[derive(Debug)]
pub struct Addresses {
    path: PathBuf,
    pool: Pool,
}

/// The decision itself, without the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    range: Cidr,
    /// Rises with every release; the lowest was released longest ago.
    clock: u64,
    entries: BTreeMap<Ipv4Addr, Entry>,
}

/// One address that is, or was, somebody's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// `namespace/pod`.
    pub identity: String,
    /// Uid of the pod that has it now; none where it is only remembered.
    pub uid: Option<String>,
    /// The pool's clock when it was released.
    pub released: u64,
}

#[derive(Serialize, Deserialize)]
struct Recorded {
    magic: String,
    version: u32,
    clock: u64,
    entries: BTreeMap<Ipv4Addr, Entry>,
}

impl Addresses {
    /// Reads the record. Entries outside of the range (it was chosen anew) are forgotten.
    pub fn open(path: &Path, range: Cidr) -> Result<Self, Error> {
        let mut pool = Pool::new(range);
        match fs::read(path) {
            Ok(text) => {
                let unreadable = |what: String| Error::Unreadable { path: path.to_path_buf(), what };
                let recorded: Recorded = serde_json::from_slice(&text).map_err(|e| unreadable(e.to_string()))?;
                if recorded.magic != MAGIC || recorded.version != VERSION {
                    return Err(unreadable(format!("it says {:?} version {}", recorded.magic, recorded.version)));
                }
                pool.clock = recorded.clock;
                pool.entries = recorded.entries;
                pool.entries.retain(|address, _| range.contains(*address));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::Io { path: path.to_path_buf(), source: e }),
        }
        Ok(Self { path: path.to_path_buf(), pool })
    }

    /// The address of this pod, recorded durably when this returns. Blocks for an fsync where it is new.
    pub fn allocate(&mut self, identity: &str, uid: &str) -> Result<Ipv4Addr, Error> {
        let mut next = self.pool.clone();
        let address = next.allocate(identity, uid).ok_or(Error::Exhausted { range: self.pool.range })?;
        self.commit(next)?;
        Ok(address)
    }

    /// Frees the addresses of this pod. Call it when its interface is gone.
    pub fn release(&mut self, uid: &str) -> Result<(), Error> {
        let mut next = self.pool.clone();
        next.release(uid);
        self.commit(next)
    }

    /// The address that this pod has.
    pub fn of(&self, uid: &str) -> Option<Ipv4Addr> {
        self.pool.of(uid)
    }

    /// Uids that have an address.
    pub fn holders(&self) -> Vec<String> {
        self.pool.entries.values().filter_map(|e| e.uid.clone()).collect()
    }

    /// Disk first, memory after, so that memory never says more than the disk.
    fn commit(&mut self, next: Pool) -> Result<(), Error> {
        if next == self.pool {
            return Ok(());
        }
        let recorded =
            Recorded { magic: MAGIC.to_owned(), version: VERSION, clock: next.clock, entries: next.entries.clone() };
        let text = serde_json::to_vec(&recorded).expect("a struct of strings always becomes JSON");
        write_durably(&self.path, &text).map_err(|source| Error::Io { path: self.path.clone(), source })?;
        self.pool = next;
        Ok(())
    }
}

impl Pool {
    /// Nothing given out. The first address is the bridge's, the network's own and the last are never given.
    pub fn new(range: Cidr) -> Self {
        Self { range, clock: 0, entries: BTreeMap::new() }
    }

    /// Gives the pod an address: the one it has; else the one its identity had; else one that nobody ever
    /// had; else the one that was released longest ago. None when all are in use.
    pub fn allocate(&mut self, identity: &str, uid: &str) -> Option<Ipv4Addr> {
        if let Some(address) = self.of(uid) {
            return Some(address);
        }
        let free = |entry: &Entry| entry.uid.is_none();
        let own = self.entries.iter().find(|(_, e)| free(e) && e.identity == identity).map(|(a, _)| *a);
        let address = own.or_else(|| self.candidates().find(|a| !self.entries.contains_key(a))).or_else(|| {
            self.entries.iter().filter(|(_, e)| free(e)).min_by_key(|(_, e)| e.released).map(|(a, _)| *a)
        })?;
        let entry = Entry { identity: identity.to_owned(), uid: Some(uid.to_owned()), released: 0 };
        self.entries.insert(address, entry);
        Some(address)
    }

    /// Remembers the identity and frees the address.
    pub fn release(&mut self, uid: &str) {
        let mine = |e: &&mut Entry| e.uid.as_deref() == Some(uid);
        let released = self.clock + 1;
        let mut last = None;
        for entry in self.entries.values_mut().filter(mine) {
            entry.uid = None;
            entry.released = released;
            last = Some(entry.identity.clone());
            self.clock = released;
        }
        // An identity remembers one address: the one it had last.
        if let Some(identity) = last {
            self.entries.retain(|_, e| e.uid.is_some() || e.identity != identity || e.released == released);
        }
    }

    /// The address that this pod has.
    pub fn of(&self, uid: &str) -> Option<Ipv4Addr> {
        self.entries.iter().find(|(_, e)| e.uid.as_deref() == Some(uid)).map(|(a, _)| *a)
    }

    fn candidates(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let last = u32::try_from(self.range.size().saturating_sub(1)).unwrap_or(u32::MAX);
        (2..last).map(|n| self.range.host(n))
    }
}

/// Why a pod has no address.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The record cannot be read or written. Check the disk.
    #[error("cannot use the address record {}: {source}", path.display())]
    Io {
        /// The record.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The record is damaged or from another version. With no pod running it can be removed: pods then get new addresses.
    #[error("{} is not an address record that this version can read: {what}", path.display())]
    Unreadable {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Every address is in use. Delete pods, or use another node.
    #[error("all addresses of {range} are in use")]
    Exhausted {
        /// The node's range.
        range: Cidr,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> Cidr {
        text.parse().expect("a range")
    }

    #[test]
    fn identity_gets_its_address_back_and_others_get_it_last() {
        let mut pool = Pool::new(range("10.201.7.0/29"));
        let web0 = pool.allocate("ns/web-0", "u0").expect("an address");
        pool.release("u0");
        let web1 = pool.allocate("ns/web-1", "u1").expect("an address");
        assert_ne!(web0, web1);
        assert_eq!(pool.allocate("ns/web-0", "u2"), Some(web0));
        pool.release("u2");
        // .2 to .6 are five addresses: three untouched ones go first, then web-0's.
        let others: Vec<_> = (0..4).map(|i| pool.allocate(&format!("ns/x-{i}"), &format!("x{i}"))).collect();
        assert_eq!(others[3], Some(web0));
        assert_eq!(pool.allocate("ns/y", "y"), None);
    }

    #[test]
    fn record_survives_reopening() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("addresses");
        let mut first = Addresses::open(&path, range("10.201.7.0/24")).expect("new");
        let a = first.allocate("ns/web-0", "u0").expect("an address");
        let mut again = Addresses::open(&path, range("10.201.7.0/24")).expect("reopened");
        assert_eq!(again.of("u0"), Some(a));
        assert_ne!(again.allocate("ns/web-1", "u1").expect("an address"), a);
        let moved = Addresses::open(&path, range("10.201.8.0/24")).expect("another range");
        assert!(moved.holders().is_empty());
    }

    proptest! {
        #[test]
        fn anytime_one_pod_per_address(steps in proptest::collection::vec((any::<bool>(), 0u8..8, 0u8..24), 0..200)) {
            let mut pool = Pool::new(range("10.201.7.0/28"));
            let mut have: BTreeMap<String, Ipv4Addr> = BTreeMap::new();
            for (take, identity, uid) in steps {
                let uid = format!("u{uid}");
                if take {
                    match pool.allocate(&format!("ns/p-{identity}"), &uid) {
                        Some(address) => {
                            prop_assert!(have.iter().all(|(u, a)| *a != address || *u == uid));
                            prop_assert!(address != range("10.201.7.0/28").host(1));
                            have.insert(uid, address);
                        }
                        None => prop_assert_eq!(have.len(), 13),
                    }
                } else {
                    pool.release(&uid);
                    have.remove(&uid);
                }
                prop_assert!(pool.entries.len() <= 13);
            }
        }
    }
}
