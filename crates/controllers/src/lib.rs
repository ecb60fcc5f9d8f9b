//! Controllers over `kube::Client`: they work against any Kubernetes API, in process or across a network.
//!
//! ```text
//!   informer ──changes──▶ queue ──key──▶ worker: view ▶ planner ▶ requests ──▶ kube::Client
//!      ▲                                                                          │
//!      └───────────────────────────── watch ◀── API server ◀──────────────────────┘
//! ```
//!
//! - [`Term`]: how long a controller may act.
//! - [`informer`]: one local copy per kind, with the revision that it has reached.
//! - [`queue`]: keys that want work, one worker per key, back-off.
//! - [`events`]: what a controller tells people.
//! - [`statefulset`]: the driver of the pure planner.
//! - [`roster`]: all controllers by name, and which of them a process runs.
//! - [`informers`]: the copies that the following share.
//! - [`scheduler`], [`volumes`], [`endpoints`], [`nodes`], [`taint_eviction`], [`gc`]: what a set needs around it, each one
//!   `run`.
//! - [`disruption`]: how many pods of disruption budgets may be disturbed.
//! - [`balancers`]: addresses of services of type LoadBalancer.
//! - [`governing`]: tells sets whose service is not as it should be.
//! - [`workloads`]: the drivers of the planners of Deployments, ReplicaSets, Jobs and CronJobs.
//! - [`root_ca`], [`tokens`], [`aggregation`]: what accounts and roles need.

pub mod aggregation;
pub mod balancers;
pub mod disruption;
pub mod endpoints;
pub mod events;
pub mod gc;
pub mod governing;
pub mod informer;
pub mod informers;
mod lean;
pub mod nodes;
pub mod queue;
pub mod quota;
pub mod root_ca;
pub mod roster;
pub mod scheduler;
pub mod statefulset;
pub mod taint_eviction;
mod term;
pub mod tokens;
pub mod volumes;
mod work;
pub mod workloads;

pub use term::Term;
