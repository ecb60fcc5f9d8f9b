//! What runs on a node: the shim of each pod, its containers, their cgroups, and the agent that looks after them.
//!
//! | module | holds | runs in |
//! |---|---|---|
//! | [`agent`] | from the API to running pods and back: the life of each pod, the node object, logs and exec | agent |
//! | [`network`] | bridge, interfaces, sticky addresses, name files | agent |
//! | [`services`] | service addresses, node ports and host ports: who answers there, and how it is reached | agent, kernel |
//! | [`nft`] | tables of the kernel's packet filter, and the way into it | agent |
//! | [`volume`] | from a manifest's volumes to paths | agent |
//! | [`probe`] | when to ask a container how it is, and what the answer means | agent |
//! | [`config`] | names and address range of a node, chosen once | agent |
//! | [`shim`] | one process per pod: container start, restart, stop, logs, exec; its protocol and its client | shim, agent |
//! | [`container`] | namespaces, roots, mounts, credentials: from a description to a running program | shim |
//! | [`cgroup`] | limits, whole-pod kill, OOM counts on cgroup v1, hybrid and v2 | shim, agent |
//! | [`fault`] | places where a test can have agent or shim die | shim, agent |
//! | [`log`] | the CRI log format: writer with rotation, line parser | shim, agent |
//! | [`sample`] | the journal server that the built-in image runs | a container |
//! | [`users`] | ranges of the machine's users for pods with users of their own | agent |
//! | [`rules`] | what the node's operator allows and limits | agent |
//! | [`sys`] | the system calls that no safe crate offers | shim |
//!
//! The shim knows nothing of Kubernetes objects: the agent translates a pod into a [`shim::spec::ShimSpec`].

pub mod agent;
pub mod cgroup;
pub mod config;
pub mod container;
pub mod fault;
pub mod log;
pub mod network;
pub mod nft;
pub mod probe;
pub mod rules;
pub mod sample;
pub mod services;
pub mod shim;
pub mod sys;
mod sysctl;
pub mod users;
pub mod volume;

pub use config::{Config, Wishes};
