//! End to end: the built binary, real kubectl, real containers, real databases. Needs root.
//!
//! Each test runs an instance of its own (data directory, port, bridge, address range, cgroups) and takes it down
//! again; what it leaves on the machine is a failure.

#![allow(unreachable_pub, reason = "in a test program, pub says that other modules use it")]

mod acknowledged;
mod bad_input;
mod bench_pods;
mod browser;
mod bundle;
mod clients;
mod etcd;
mod explain;
mod first_day;
mod first_light;
mod harness;
mod images;
mod inside;
mod journal;
mod kubectl;
mod moving;
mod nodes;
mod package;
mod page;
mod patroni;
mod postgres;
mod redis;
mod server;
mod services;
mod take_over;
mod top;
mod upgrade;
