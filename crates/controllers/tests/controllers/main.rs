//! The controllers at a server in this process. One binary: each would link all of it.

mod around;
mod disruption;
mod place;
mod quotas;
mod sets;
mod support;
mod trust;
mod workloads;
