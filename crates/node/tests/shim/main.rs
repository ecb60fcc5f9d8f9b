//! The shim as a process, with real namespaces, cgroups and mounts. Needs root.

mod attach;
mod ephemeral;
mod exec;
mod harness;
mod hooks;
mod images;
mod life;
mod propagation;
mod roots;
mod security;
mod users;
