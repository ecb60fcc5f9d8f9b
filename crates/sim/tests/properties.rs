//! What must hold at any time, and what must come about eventually, over many random histories and over all
//! histories of a small set. `STATEFULD_SIM_SEEDS=100000 cargo test -p statefuld-sim` runs more of them;
//! `STATEFULD_SIM_SEED=n` one alone.

use planner::Management;
use statefuld_sim::{Faults, Limits, explore, run};

fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    match number("STATEFULD_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("STATEFULD_SIM_SEEDS").unwrap_or(default),
    }
}

fn all(faults: Faults, default: u64) {
    for seed in seeds(default) {
        if let Err(violation) = run(seed, faults) {
            panic!("{violation}");
        }
    }
}

#[test]
fn anytime_and_eventually_over_random_histories() {
    all(Faults::default(), 1000);
}

#[test]
fn anytime_and_eventually_for_larger_sets() {
    all(Faults { steps: 600, replicas: 12, ..Faults::default() }, 60);
}

#[test]
fn anytime_and_eventually_with_views_far_behind() {
    all(Faults { staleness: 20, ..Faults::default() }, 200);
}

#[test]
fn anytime_and_eventually_over_all_histories_of_two_ordered_replicas() {
    exhaustive(Management::OrderedReady);
}

#[test]
fn anytime_and_eventually_over_all_histories_of_two_parallel_replicas() {
    exhaustive(Management::Parallel);
}

fn exhaustive(management: Management) {
    let deeper = std::env::var("STATEFULD_SIM_DISTURBANCES").ok().and_then(|v| v.parse().ok());
    let limits = Limits { management, replicas: 2, disturbances: deeper.unwrap_or(2), states: 2_000_000 };
    match explore(limits) {
        Ok(explored) => {
            println!("{management:?}: {explored:?}");
            assert!(explored.complete, "the limit of states was reached: {explored:?}");
        }
        Err(violation) => panic!("{violation}"),
    }
}
