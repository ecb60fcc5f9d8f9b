//! A deterministic cluster for the planner: one thread, no clock but its own, every run replayed by its seed.
//!
//! - [`World`]: the API server's side, in memory: objects, preconditions, what kubelet, user and garbage
//!   collector do to them.
//! - [`check`]: what must hold for every single call that a controller makes.
//! - [`run()`]: a random history of faults and edits, then calm; the set must reach its spec and stay.
//! - [`imagine()`]: what would happen to a real set, if all went well.
//! - [`explore()`]: every history of a small set, up to a number of faults.
//! - [`Mutant`]: seeded bugs, each of which a rule of [`check`] has to catch.
//!
//! What runs here is the shipped `planner`, not a model of it.

pub mod check;
mod explore;
mod imagine;
mod mutant;
mod random;
mod rng;
mod run;
mod world;

pub use explore::{BROKEN_TEMPLATE, Edit, Explored, Limits, explore};
pub use imagine::{Imagined, Step, Stop, imagine, is_wish};
pub use mutant::Mutant;
pub use random::plain_set;
pub use rng::Rng;
pub use run::{Faults, Violation, run};
pub use world::{SimPod, World};
