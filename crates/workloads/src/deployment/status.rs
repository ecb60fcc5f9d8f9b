//! The status of a deployment: counters, and how its rollout goes.

use super::work::Work;
use super::{AVAILABLE, PROGRESSING, Plan, Set, Status};
use crate::condition::{self, Condition, Truth};
use crate::replica_set::REPLICA_FAILURE;
use crate::{Millis, whole_second};

/// Reason of a rollout that is done.
const DONE: &str = "NewReplicaSetAvailable";
/// Reason of a rollout that stood still for too long.
const TIMED_OUT: &str = "ProgressDeadlineExceeded";

impl Work<'_> {
    /// Counts, judges the rollout if there is one, and makes the plan.
    pub(super) fn finish_with_status(mut self, judges: bool) -> Plan {
        let mut status = self.count();
        if judges {
            self.judge(&mut status);
        }
        let again = if judges { self.look_again(&status) } else { None };
        let write = (status != self.deployment.status).then_some(status);
        self.finish(write, again)
    }

    /// Counters and the condition Available. Only sets that are there have pods.
    fn count(&mut self) -> Status {
        let deployment = self.deployment;
        let sum = |of: fn(&Set) -> i32| self.sets.iter().map(of).sum::<i32>();
        let (wanted, available) = (self.total(), sum(|set| set.available));
        let enough = available >= deployment.replicas - deployment.unavailable();
        let (truth, reason, message) = if enough {
            (Truth::True, "MinimumReplicasAvailable", "Deployment has minimum availability.")
        } else {
            (Truth::False, "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
        };
        let mut conditions = self.conditions.clone();
        condition::set(&mut conditions, Condition::new(AVAILABLE, truth, reason, message, self.now));
        Status {
            observed_generation: deployment.generation,
            replicas: sum(|set| set.present),
            updated: self.new.map_or(0, |at| self.sets[at].present),
            ready: sum(|set| set.ready),
            available,
            unavailable: (wanted - available).max(0),
            terminating: Some(sum(|set| set.terminating.unwrap_or(0))),
            collision_count: deployment.status.collision_count,
            conditions,
        }
    }

    /// Whether the rollout goes on, is done, or stands still; and what hinders the sets.
    fn judge(&mut self, status: &mut Status) {
        let current = condition::find(&status.conditions, PROGRESSING).cloned();
        let done = current.as_ref().is_some_and(|c| c.reason == DONE) && status.replicas == status.updated;
        let subject = match self.new {
            Some(at) => format!("ReplicaSet {:?}", self.sets[at].name),
            None => format!("Deployment {:?}", self.deployment.name),
        };
        let say = |truth, reason, what: &str| {
            Condition::new(PROGRESSING, truth, reason, format!("{subject} {what}"), self.now)
        };
        if self.deployment.deadline().is_none() {
            condition::remove(&mut status.conditions, PROGRESSING);
        } else if done {
            // The rollout was over before; there is nothing to judge.
        } else if self.is_complete(status) {
            condition::set(&mut status.conditions, say(Truth::True, DONE, "has successfully progressed."));
        } else if self.moves(status) {
            let mut goes_on = say(Truth::True, "ReplicaSetUpdated", "is progressing.");
            if let Some(current) = current.filter(|c| c.truth == Truth::True) {
                goes_on.since = current.since;
            }
            // The time of the last progress is news of its own.
            condition::remove(&mut status.conditions, PROGRESSING);
            status.conditions.push(goes_on);
        } else if self.is_late(status) {
            condition::set(&mut status.conditions, say(Truth::False, TIMED_OUT, "has timed out progressing."));
        }
        let sets = self.new.into_iter().chain(self.old());
        match sets.into_iter().find_map(|at| self.sets[at].failure.clone()) {
            Some((reason, message)) => {
                let failure = Condition::new(REPLICA_FAILURE, Truth::True, &reason, message, self.now);
                condition::set(&mut status.conditions, failure);
            }
            None => condition::remove(&mut status.conditions, REPLICA_FAILURE),
        }
    }

    /// Something has come forward since the status was last written.
    fn moves(&self, status: &Status) -> bool {
        let old = &self.deployment.status;
        status.updated > old.updated
            || status.replicas - status.updated < old.replicas - old.updated
            || status.ready > old.ready
            || status.available > old.available
    }

    /// Nothing has come forward for as long as the deadline.
    fn is_late(&self, status: &Status) -> bool {
        condition::find(&status.conditions, PROGRESSING).is_some_and(|c| match c.reason.as_str() {
            DONE => false,
            TIMED_OUT => true,
            _ => self.due(c) < self.now,
        })
    }

    /// When a rollout with this last word of progress is late.
    fn due(&self, progress: &Condition) -> Millis {
        progress.updated + i64::from(self.deployment.deadline().unwrap_or(0)) * 1000
    }

    /// When a rollout that does not move is to be judged again: a second after its deadline.
    fn look_again(&self, status: &Status) -> Option<Millis> {
        self.deployment.deadline()?;
        let progress = condition::find(&status.conditions, PROGRESSING)?;
        let over = self.is_complete(status) || matches!(progress.reason.as_str(), TIMED_OUT | DONE);
        (!over).then(|| (self.due(progress) + 1000).max(whole_second(self.now) + 1000))
    }
}
