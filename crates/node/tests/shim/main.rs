//! The shim as a process, with real namespaces, cgroups and mounts. Needs root.

mod exec;
mod harness;
mod life;
mod roots;
