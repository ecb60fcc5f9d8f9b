//! Power loss, full and failing disks and damage, replayed under the engine.
//!
//! A [`SimDisk`] lies under the store and remembers every write, change of length and sync. From that log every
//! state is built in which a power loss could have left the disk: what was synced is there, and of what was not, any
//! part, down to single sectors. Each is opened again and must hold all that was acknowledged, exactly as it was at one
//! revision, with a history that a watcher can resume from.
//!
//! What is not synced survives sector by sector and independently: that is every subset and, since sectors do
//! not depend on each other, every order. (One sector written twice without a sync holds the older or the newer bytes.)
//!
//! `just soak` runs this for longer: `STATEFULD_STORE_SEEDS` histories, `STATEFULD_STORE_STATES` random states at each sync.

mod damage;
mod disk;
mod faults;
mod history;
mod loss;

use std::sync::Arc;

use ambient::Ambient;
use bytes::Bytes;
use jiff::Timestamp;

use super::{Embedded, Options};
use crate::{Error, Op, Txn};

use disk::SimDisk;
use history::Model;

/// How often something is tried, by an environment variable; the default is for everyday runs.
fn effort(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A clock that stands still, and entropy of this seed.
fn ambient(seed: u64) -> Ambient {
    Ambient::manual(Timestamp::UNIX_EPOCH, seed).0
}

fn open(disk: &SimDisk) -> Result<Arc<Embedded>, Error> {
    open_with(disk, options())
}

fn open_with(disk: &SimDisk, options: Options) -> Result<Arc<Embedded>, Error> {
    Embedded::open_on(Arc::new(disk.clone()), ambient(1), options)
}

/// A short history, so that its trimming is part of what is tested.
fn options() -> Options {
    Options { history_count: 6, ..Options::default() }
}

fn put(key: &str, len: usize, fill: u8) -> Op {
    Op::Put { key: Bytes::copy_from_slice(key.as_bytes()), value: Bytes::from(vec![fill; len]), ttl: None }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: Bytes::copy_from_slice(key.as_bytes()) }
}

fn txn(ops: Vec<Op>) -> Txn {
    Txn { compare: Vec::new(), ops }
}

/// Every kind of change, small and larger than a page, so that pages come, go and are used again.
fn short() -> Vec<Txn> {
    vec![
        txn(vec![put("a", 10, 1)]),
        txn(vec![put("b", 6000, 2), put("c", 20, 2)]),
        txn(vec![delete("a"), put("b", 100, 3)]),
        txn(vec![delete("nothing")]),
        txn(vec![put("d", 3000, 4)]),
        txn(vec![delete("c"), put("a", 5000, 5), put("e", 1, 5)]),
        txn(vec![put("a", 2, 6)]),
        txn(vec![delete("d")]),
        txn(vec![put("f", 9000, 7)]),
    ]
}

/// Transactions of a seed.
fn random(seed: u64, count: usize) -> Vec<Txn> {
    let entropy = ambient(seed);
    let mut dice = history::Dice::new(&entropy);
    (0..count)
        .map(|_| {
            let ops = (0..=dice.below(3)).map(|n| {
                // One key occurs once in a transaction.
                let key = format!("k{}-{n}", dice.below(9));
                let length = [3, 60, 900, 5000, 20_000][dice.below(5)];
                if dice.below(4) == 0 { delete(&key) } else { put(&key, length, dice.below(256) as u8) }
            });
            txn(ops.collect())
        })
        .collect()
}

/// Writes a history, one transaction after the other; what it must read as.
async fn write(disk: &SimDisk, store: &Embedded, txns: Vec<Txn>) -> Model {
    let mut model = Model::new(crate::Store::identity(store));
    for txn in txns {
        let outcome = crate::Store::txn(store, txn.clone()).await.expect("the disk is well");
        let crate::TxnOutcome::Committed { revision } = outcome else { panic!("it compares nothing") };
        model.apply(revision, &txn);
        disk.note(revision);
    }
    model
}
