//! From a description to a running program: namespaces, roots, mounts, credentials.

pub mod sample;
