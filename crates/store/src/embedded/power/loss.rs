//! Power loss at every moment.

// The store's writer is a thread of its own: nothing here needs a runtime.
use futures::executor::block_on;

use super::disk::{SECTOR, SimDisk, Step};
use super::history::{Dice, Model};
use super::*;
use crate::Store;

/// Up to so many unsynced writes, every subset is tried.
const EXHAUSTIVE: usize = 7;

/// What lies between two syncs: the disk before, what was done, and what had been acknowledged by the end.
#[derive(Debug)]
struct Epoch {
    before: Vec<u8>,
    pending: Vec<Step>,
    acknowledged: u64,
}

/// Cuts a log at its syncs. With `honest` false the disk lies: its syncs do nothing.
fn epochs(image: Vec<u8>, log: &[Step], mut acknowledged: u64, honest: bool) -> Vec<Epoch> {
    let mut epochs = Vec::new();
    let mut epoch = Epoch { before: image, pending: Vec::new(), acknowledged };
    for step in log {
        match step {
            Step::Acknowledged(revision) => acknowledged = acknowledged.max(*revision),
            Step::Sync if honest => {
                // What is acknowledged before the sync's end must survive a loss just before it.
                epoch.acknowledged = acknowledged;
                let mut before = epoch.before.clone();
                epoch.pending.iter().for_each(|step| persist(&mut before, step, |_| true));
                epochs.push(epoch);
                epoch = Epoch { before, pending: Vec::new(), acknowledged };
            }
            Step::Sync | Step::FailedSync => {}
            step => epoch.pending.push(step.clone()),
        }
    }
    epoch.acknowledged = acknowledged;
    epochs.push(epoch);
    epochs
}

/// Lets those sectors of a step reach the disk; a change of length has one sector.
fn persist(image: &mut Vec<u8>, step: &Step, mut survives: impl FnMut(usize) -> bool) {
    match step {
        Step::Write { at, bytes } => {
            let at = usize::try_from(*at).expect("a small disk");
            let mut from = 0;
            for sector in 0.. {
                if from >= bytes.len() {
                    break;
                }
                let to = (from + SECTOR - (at + from) % SECTOR).min(bytes.len());
                // What lies beyond the end that survived was never there.
                let end = (at + to).min(image.len());
                if survives(sector) && end > at + from {
                    image[at + from..end].copy_from_slice(&bytes[from..end - at]);
                }
                from = to;
            }
        }
        Step::Length(length) if survives(0) => image.resize(usize::try_from(*length).expect("a small disk"), 0),
        _ => {}
    }
}

/// The disks that a loss of power in this epoch can leave. `visit` says whether to go on.
fn states(epoch: &Epoch, random: u64, dice: &mut Dice<'_>, visit: &mut dyn FnMut(Vec<u8>)) {
    let pending = &epoch.pending;
    let mut state = |survives: &mut dyn FnMut(usize, usize) -> bool| {
        let mut image = epoch.before.clone();
        for (at, step) in pending.iter().enumerate() {
            persist(&mut image, step, |sector| survives(at, sector));
        }
        visit(image);
    };
    if pending.len() <= EXHAUSTIVE {
        for subset in 0..1u32 << pending.len() {
            state(&mut |at, _| subset & (1 << at) != 0);
        }
    } else {
        // Every moment between two writes, each with nothing out of order; and each write missing alone.
        for moment in 0..=pending.len() {
            state(&mut |at, _| at < moment);
            state(&mut |at, _| at != moment);
        }
    }
    // Each write torn at its first and last sector, with all others there or none.
    for torn in 0..pending.len() {
        for others in [false, true] {
            state(&mut |at, sector| if at == torn { sector == 0 } else { others });
            state(&mut |at, sector| if at == torn { sector != 0 } else { others });
        }
    }
    for _ in 0..random {
        let odds = [1, 5, 9][dice.below(3)];
        state(&mut |_, _| dice.below(10) < odds);
    }
}

/// Tries every state of a log. How many, or the first that is wrong.
fn try_all(model: &Model, image: Vec<u8>, log: &[Step], start: u64, honest: bool, random: u64) -> Result<u64, String> {
    let entropy = ambient(random);
    let mut dice = Dice::new(&entropy);
    let (mut tried, mut wrong) = (0, None);
    for (number, epoch) in epochs(image, log, start, honest).iter().enumerate() {
        states(epoch, random, &mut Dice::new(&ambient(number as u64)), &mut |image| {
            if wrong.is_some() {
                return;
            }
            tried += 1;
            let disk = SimDisk::holding(image);
            if let Err(why) = check_and_go_on(model, &disk, epoch.acknowledged, &mut dice) {
                wrong = Some(format!("sync {number}, state {tried}: {why}"));
            }
        });
    }
    wrong.map_or(Ok(tried), Err)
}

/// Opens a disk after the loss and checks it; now and then loses power again while that happens, or goes on writing.
fn check_and_go_on(model: &Model, disk: &SimDisk, acknowledged: u64, dice: &mut Dice<'_>) -> Result<(), String> {
    let image = disk.begin();
    let revision = model.check(disk, acknowledged)?;
    if dice.below(16) != 0 {
        return Ok(());
    }
    // What opening wrote, lost again: whatever was found may not be lost now. (It was shown to readers.)
    let log = disk.log();
    for epoch in epochs(image, &log, revision, true) {
        let mut wrong = None;
        states(&epoch, 2, dice, &mut |image| {
            if wrong.is_none() {
                wrong = model.check(&SimDisk::holding(image), acknowledged).err();
            }
        });
        if let Some(why) = wrong {
            return Err(format!("lost again while it was opened: {why}"));
        }
    }
    block_on(async {
        let store = open(disk).map_err(|error| error.to_string())?;
        let outcome = store.txn(txn(vec![put("after", 700, 9)])).await.map_err(|error| error.to_string())?;
        if outcome != (crate::TxnOutcome::Committed { revision: revision + 1 }) {
            return Err(format!("it was at {revision} and goes on with {outcome:?}"));
        }
        drop(store);
        let store = open(disk).map_err(|error| error.to_string())?;
        let found = store.get(b"after", revision + 1).await.map_err(|error| error.to_string())?;
        found.map(|_| ()).ok_or_else(|| "what was written after the loss is not there".to_owned())
    })
}

#[test]
fn nothing_acknowledged_is_lost_wherever_the_power_fails() {
    let disk = SimDisk::default();
    let store = open(&disk).expect("opens");
    let image = disk.begin();
    let model = block_on(write(&disk, &store, short()));
    block_on(store.compact(4)).expect("compacts");
    drop(store);
    let log = disk.log();
    let tried =
        try_all(&model, image, &log, 1, true, effort("STATEFULD_STORE_STATES", 4)).expect("every state is good");
    assert!(tried > 300, "{tried} states");
}

#[test]
fn nothing_acknowledged_is_lost_in_histories_by_chance() {
    let states = effort("STATEFULD_STORE_STATES", 2);
    for seed in 0..effort("STATEFULD_STORE_SEEDS", 1) {
        let disk = SimDisk::default();
        let store = open(&disk).expect("opens");
        let image = disk.begin();
        let model = block_on(write(&disk, &store, random(seed, 12)));
        drop(store);
        let log = disk.log();
        try_all(&model, image, &log, 1, true, states).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn nothing_acknowledged_is_lost_of_batches() {
    let states = effort("STATEFULD_STORE_STATES", 1);
    for seed in 100..100 + effort("STATEFULD_STORE_SEEDS", 1) {
        let disk = SimDisk::default();
        let store = open(&disk).expect("opens");
        let mut model = Model::new(store.identity());
        let image = disk.begin();
        for round in 0..4 {
            let txns = random(seed * 10 + round, 5);
            let outcomes = block_on(futures::future::join_all(txns.iter().map(|txn| store.txn(txn.clone()))));
            let mut done: Vec<(u64, usize)> = Vec::new();
            for (at, outcome) in outcomes.into_iter().enumerate() {
                let Ok(crate::TxnOutcome::Committed { revision }) = outcome else { panic!("it compares nothing") };
                done.push((revision, at));
            }
            // One after the other in the queue: of two with one revision, the later changed nothing.
            done.sort_unstable();
            done.iter().for_each(|(revision, at)| model.apply(*revision, &txns[*at]));
            disk.note(model.newest());
        }
        drop(store);
        let log = disk.log();
        try_all(&model, image, &log, 1, true, states).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

/// The test of the tests: a disk whose syncs do nothing loses what was acknowledged, and that is noticed.
#[test]
fn a_disk_that_lies_is_found_out() {
    let disk = SimDisk::default();
    let store = open(&disk).expect("opens");
    let image = disk.begin();
    let model = block_on(write(&disk, &store, short()));
    drop(store);
    let why = try_all(&model, image, &disk.log(), 1, false, 1).expect_err("acknowledged writes are lost");
    assert!(why.contains("was acknowledged"), "{why}");
}
