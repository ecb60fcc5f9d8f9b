//! The agent on a real machine, under a real API server, with real containers. Needs root.

mod apart;
mod faults;
mod harness;
mod images;
mod life;
mod limits;
mod pods;
mod users;
