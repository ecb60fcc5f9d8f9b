//! What is observed of a job, and what is decided.

use crate::{Condition, Event, Millis, Pod, condition};

/// A job.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Job {
    /// It has a deletion timestamp.
    pub deleting: bool,
    /// spec.parallelism.
    pub parallelism: i32,
    /// spec.completions.
    pub completions: Option<i32>,
    /// spec.completionMode is Indexed.
    pub indexed: bool,
    /// spec.backoffLimit.
    pub backoff_limit: i32,
    /// spec.activeDeadlineSeconds.
    pub deadline_seconds: Option<i64>,
    /// spec.suspend.
    pub suspend: bool,
    /// spec.podReplacementPolicy is Failed.
    pub replaces_failed_only: bool,
    /// The pods' restartPolicy is OnFailure.
    pub restarts_in_place: bool,
    /// Its status.
    pub status: Status,
}

/// The status of a job.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Status {
    /// Conditions.
    pub conditions: Vec<Condition>,
    /// When it began.
    pub start: Option<Millis>,
    /// When it was complete.
    pub completion: Option<Millis>,
    /// Pods that may still run.
    pub active: i32,
    /// Of these, the ready ones.
    pub ready: Option<i32>,
    /// Pods on their way out.
    pub terminating: Option<i32>,
    /// Pods that succeeded, as far as they are counted.
    pub succeeded: i32,
    /// Pods that failed, as far as they are counted.
    pub failed: i32,
    /// Indexes that succeeded, as text.
    pub completed_indexes: String,
    /// Uids of pods that succeeded and are not counted yet.
    pub uncounted_succeeded: Vec<String>,
    /// Uids of pods that failed and are not counted yet.
    pub uncounted_failed: Vec<String>,
}

/// A job with its pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Observed {
    /// The job.
    pub job: Job,
    /// Its pods, and those of nobody that its selector takes.
    pub pods: Vec<Pod>,
}

/// What is to be done, in this order, until something fails; of pods their names and uids.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Plan {
    /// Pods that the job takes; it is read again before the first of them.
    pub adopt: Vec<(String, String)>,
    /// Pods that it lets go, with their finalizer.
    pub release: Vec<(String, String)>,
    /// Pods that are not needed: their finalizer is taken off, then they are deleted; nobody counts them.
    pub drop: Vec<(String, String)>,
    /// Pods that are deleted, and count as failed.
    pub delete: Vec<(String, String)>,
    /// Pods that are made, each with its index.
    pub create: Vec<Option<i32>>,
    /// The status, which is written where it differs.
    pub status: Status,
    /// Pods whose finalizer is taken off once the status is written.
    pub untrack: Vec<(String, String)>,
    /// What people are told.
    pub events: Vec<Event>,
    /// When to look again although nothing changed.
    pub look_again: Option<Millis>,
}

impl Job {
    /// It is complete or has failed.
    pub fn is_finished(&self) -> bool {
        ["Complete", "Failed"].iter().any(|kind| condition::holds(&self.status.conditions, kind))
    }

    /// When it finished.
    pub fn finished_at(&self) -> Option<Millis> {
        let last = |kind: &&str| condition::holds(&self.status.conditions, kind);
        let kind = ["Complete", "Failed"].into_iter().find(|kind| last(kind))?;
        condition::find(&self.status.conditions, kind).map(|c| c.since)
    }
}
