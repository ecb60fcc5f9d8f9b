//! Fuzzing of the pure parts with plain seeds: no input panics or hangs, and the laws hold.
//!
//! By default a few hundred inputs per test. `STATEFULD_FUZZ_RUNS=100000 cargo test -p statefuld-api --test fuzz`
//! makes it long; `STATEFULD_FUZZ_SEED` starts elsewhere. A failure names its seed.

mod decoders;
mod generate;
mod patches;
mod texts;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use generate::Rng;

/// Runs `check` with many seeds; names the one that fails.
pub(crate) fn for_seeds(default_runs: u64, check: impl Fn(&mut Rng)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("STATEFULD_FUZZ_SEED").unwrap_or(0);
    for seed in first..first + number("STATEFULD_FUZZ_RUNS").unwrap_or(default_runs) {
        let outcome = catch_unwind(AssertUnwindSafe(|| check(&mut Rng::new(seed))));
        if let Err(panic) = outcome {
            eprintln!("failed with STATEFULD_FUZZ_SEED={seed} STATEFULD_FUZZ_RUNS=1");
            resume_unwind(panic);
        }
    }
}
