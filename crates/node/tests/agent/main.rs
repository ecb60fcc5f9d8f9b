//! The agent on a real machine, under a real API server, with real containers. Needs root.

mod harness;
mod life;
