//! Durable keys, bytes and revisions.
//!
//! A [`Store`] holds byte values under byte keys. Every committed transaction gets the next revision; a watch
//! delivers the changes after a revision, whole transactions at a time, in order and without gaps. It
//! knows nothing of Kubernetes. [`embedded`] keeps it on this machine's disk; an etcd back end has the same
//! trait.

pub mod embedded;
mod types;

pub use types::*;
