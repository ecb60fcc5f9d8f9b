//! Services, egress and host ports with real packets: a machine, its pods and the outside are network namespaces of a
//! test's own. Needs root.

mod balance;
mod beyond;
mod links;
mod relay;
mod space;
