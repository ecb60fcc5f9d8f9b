//! The shim as a process, with real namespaces, cgroups and mounts. Needs root.

mod harness;
mod life;
