//! The conformance suite: what clients of Kubernetes expect of an API server, asked over HTTPS.
//!
//! The server under test is that of the kubeconfig which `STATEFULD_CONFORMANCE_KUBECONFIG` names; without it, the
//! built binary is started for the run, and stopped after it. `cargo test --test conformance [WORD...]` runs the
//! cases whose names contain one of the words; `-- --list` names them. README.md tells more.
//!
//! ```text
//!  main ─▶ cases ─┬─ recorded::*  one per file in recorded/: replay/ asks again, compares, differences.json excuses
//!                 ├─ behaviour::* what a real StatefulSet controller did in scripted scenarios, played again
//!                 ├─ sets::*      what upstream's own tests show of StatefulSets
//!                 ├─ workloads::* Deployments, ReplicaSets, Jobs and CronJobs
//!                 ├─ auth::*, verbs::*, documents::*, records::*   written by hand, for what the recordings do not hold
//!                 ├─ limits::*    what one client may take, on a server with small limits
//!                 └─ streams::*   on a server that is a node too
//!            └──▶ cluster: the server under test (target), a namespace per case
//! ```
//! It has a runner of its own and not the usual one, because all cases share one server that must not outlive
//! them, and because they wait more than they work: many run at once on two threads.

mod auth;
mod behaviour;
mod cluster;
mod documents;
mod limits;
mod players;
mod records;
mod replay;
mod runner;
mod sets;
mod streams;
mod target;
mod verbs;
mod wire;
mod workloads;

use std::process::ExitCode;

use tokio::runtime::Builder;

use crate::runner::Selection;

fn main() -> ExitCode {
    let selection = Selection::from_args(std::env::args().skip(1));
    let mut cases = replay::cases();
    cases.extend(behaviour::cases());
    cases.extend(sets::cases());
    cases.extend(workloads::cases());
    cases.extend(auth::cases());
    cases.extend(verbs::cases());
    cases.extend(documents::cases());
    cases.extend(records::cases());
    cases.extend(limits::cases());
    cases.extend(streams::cases());
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    if selection.list {
        cases.iter().for_each(|case| println!("{}: test", case.name));
        return ExitCode::SUCCESS;
    }
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime starts");
    runtime.block_on(runner::run(cases, selection))
}
