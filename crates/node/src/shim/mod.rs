//! The shim: one process per pod that owns everything that runs in it, and outlives the daemon.
//!
//! ```text
//!   agent                         shim (statefuld shim <pod-dir>)
//!     │ spec.json, launch ──────────▶ sandbox: net, ipc, uts namespaces, cgroups; state.json; shim.sock
//!     │ ◀───────────────── up, pid     Created
//!     │ attaches eth0
//!     │ Start ──────────────────────▶ init containers one by one, then the others      Running
//!     │ ◀────────────── state pushed   restarts in place with back-off, logs, execs
//!     │ Stop{grace} ────────────────▶ preStop, stop signal, SIGKILL at the deadline     Stopping
//!     │ ◀────────────── state pushed   nothing runs, nothing will                       Finished
//!     │ Acknowledge ────────────────▶ exits
//! ```
//!
//! The agent's side is [`launch`], [`client::Shim`] and [`cleanup`]; [`main`] is the process.

mod begin;
pub mod client;
mod connection;
mod ending;
pub mod exe;
mod exec;
pub mod file;
mod input;
mod last_words;
pub mod launch;
mod life;
mod pod;
mod process;
pub mod protocol;
mod request;
mod serve;
pub mod spec;
pub mod state;

use std::path::Path;
use std::process::ExitCode;

pub use client::Shim;
pub use exe::SealedExe;
pub use launch::{Launched, cleanup, launch};

/// The process: `statefuld shim <pod-dir>`. Call it before any thread is started.
pub fn main(pod_dir: &Path) -> ExitCode {
    process::main(pod_dir)
}
