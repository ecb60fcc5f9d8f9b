//! A deployment: which replica sets there are, and how many pods each shall have.
//!
//! ```text
//!   paused, or scaled ──▶ scale: every set its share
//!   otherwise ──▶ rollout: the set of the present template up, older ones down, within the bounds of the strategy
//!   then ──▶ status: counters, Available, Progressing
//! ```
//!
//! A set is written at most once per plan: the plan is made on copies, and what differs in the end becomes the calls.

mod rollout;
mod scale;
mod status;
mod types;
mod work;

pub use types::{Act, Amount, Deployment, NewSet, Observed, Plan, Set, Status, Step, Strategy};

use crate::condition::{self, Condition, Truth};
use crate::{Event, Millis};
use work::Work;

/// Annotation of a set and its deployment: the number of the revision.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Annotation of a set: the numbers that it had before.
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Annotation of a set: how many pods its deployment wanted when the set was last scaled.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// Annotation of a set: how many pods its deployment would have at most.
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// Condition: enough pods are available.
pub const AVAILABLE: &str = "Available";
/// Condition: the rollout goes on, or is done.
pub const PROGRESSING: &str = "Progressing";

/// Decides.
pub fn plan(observed: &Observed, now: Millis) -> Plan {
    let mut work = Work::new(observed, now);
    if work.deployment.deleting {
        return work.finish_with_status(false);
    }
    work.note_pause();
    if work.deployment.paused || work.is_scaled() {
        work.sync_revision(false);
        work.scale();
        if work.deployment.paused {
            work.clean_up();
        }
        return work.finish_with_status(false);
    }
    match work.deployment.strategy {
        Strategy::Recreate => work.recreate(),
        Strategy::Rolling { .. } => work.roll(),
    }
    work.finish_with_status(true)
}

/// The status after a set could not be made because another has its name: the next name will differ.
pub fn after_collision(deployment: &Deployment) -> Status {
    let mut status = deployment.status.clone();
    status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
    status
}

/// The status and what people are told after a set could not be made for another reason.
pub fn after_failed_create(deployment: &Deployment, name: &str, why: &str, now: Millis) -> (Status, Event) {
    let message = format!("Failed to create new replica set {name:?}: {why}");
    let mut status = deployment.status.clone();
    if deployment.deadline().is_some() {
        let failed = Condition::new(PROGRESSING, Truth::False, "ReplicaSetCreateError", &message, now);
        condition::set(&mut status.conditions, failed);
    }
    (status, Event::warning("ReplicaSetCreateError", message))
}

#[cfg(test)]
mod tests;
