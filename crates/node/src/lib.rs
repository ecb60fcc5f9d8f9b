//! What runs on a node: the shim of each pod, its containers, their cgroups, and the agent that looks after them.
//!
//! | module | holds | runs in |
//! |---|---|---|
//! | [`shim`] | one process per pod: container start, restart, stop, logs, exec; its protocol and its client | shim, agent |
//! | [`container`] | namespaces, roots, mounts, credentials: from a description to a running program | shim |
//! | [`cgroup`] | limits, whole-pod kill, OOM counts on cgroup v1, hybrid and v2 | shim, agent |
//! | [`log`] | the CRI log format: writer with rotation, line parser | shim, agent |
//! | [`sample`] | the journal server that the built-in image runs | a container |
//! | [`sys`] | the system calls that no safe crate offers | shim |
//!
//! The shim knows nothing of Kubernetes objects: the agent translates a pod into a [`shim::spec::ShimSpec`].

pub mod agent;
pub mod cgroup;
pub mod config;
pub mod container;
pub mod log;
pub mod network;
pub mod sample;
pub mod shim;
pub mod sys;

pub use config::{Config, Wishes};
