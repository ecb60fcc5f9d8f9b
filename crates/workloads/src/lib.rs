//! What is decided about Deployments, ReplicaSets, Jobs and CronJobs, without I/O.
//!
//! ```text
//!   API objects ──project──▶ Observed ──plan(now)──▶ Plan: calls in order, status, events, when to look again
//!        ▲                                             │
//!        └──────────────── driver ◀────────────────────┘
//! ```
//!
//! One module per kind, each with an `Observed`, a `Plan` and a function `plan` between them. They decide as Kubernetes'
//! controllers do, on one consistent view that holds the controller's own last writes; the driver sees to that, and
//! carries the calls of a plan out in their order until one fails.
//!
//! - [`deployment`]: which replica sets there are, and how many pods each shall have.
//! - [`replica_set`]: which pods are made, and which go first.
//! - [`job`]: pods that run to their end, each counted once.
//! - [`cron_job`]: jobs that are due, and which old ones go.
//! - `pod`: what is seen of a pod. `condition`: conditions of statuses, and events.
//!
//! Nothing here knows the Kubernetes types, and all that is observed is small and can be compared.

mod condition;
pub mod cron_job;
pub mod deployment;
pub mod job;
mod pod;
pub mod replica_set;

pub use condition::{Condition, Event, Level, Truth};
pub use pod::{Phase, Pod, choose_to_delete};

/// Milliseconds since 1970.
pub type Millis = i64;

/// The label of a pod that says of which template of a deployment it was made.
pub const HASH_LABEL: &str = "pod-template-hash";

/// A moment as objects hold it: without parts of a second.
pub(crate) fn whole_second(at: Millis) -> Millis {
    at.div_euclid(1000) * 1000
}
