//! The verbs, the same for every kind.
//!
//! Reads and watches are answered from the cache. A write takes the newest state, decides on it without
//! waiting for anything, and commits under the condition that it still is the newest; if it is not, the
//! write is decided again.

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod options;
pub(crate) mod patch;
pub(crate) mod read;
pub(crate) mod update;
pub(crate) mod watch;
pub(crate) mod write;
