//! What is observed of a deployment, and what is decided.

use std::collections::BTreeMap;

use crate::{Condition, Event, Millis};

/// A deployment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Deployment {
    /// Name.
    pub name: String,
    /// metadata.generation.
    pub generation: i64,
    /// It has a deletion timestamp.
    pub deleting: bool,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// spec.replicas.
    pub replicas: i32,
    /// spec.paused.
    pub paused: bool,
    /// spec.strategy.
    pub strategy: Strategy,
    /// spec.minReadySeconds.
    pub min_ready_seconds: i32,
    /// spec.revisionHistoryLimit; the largest number stands for none.
    pub history_limit: i32,
    /// spec.progressDeadlineSeconds; the largest number stands for none.
    pub deadline_seconds: i32,
    /// spec.template in a form in which equal ones are equal texts.
    pub template: String,
    /// Its status.
    pub status: Status,
}

/// How pods are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Strategy {
    /// All old ones go before the first new one comes.
    #[default]
    Recreate,
    /// A few at a time.
    Rolling {
        /// So many more than wanted.
        surge: Amount,
        /// So many fewer available than wanted.
        unavailable: Amount,
    },
}

/// A count, or a share of the replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Amount {
    /// Pods.
    Count(i32),
    /// Hundredths of the replicas.
    Percent(i32),
}

/// The status of a deployment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Status {
    /// Generation that this is about.
    pub observed_generation: i64,
    /// Pods of all sets.
    pub replicas: i32,
    /// Pods of the present template.
    pub updated: i32,
    /// Pods that are ready.
    pub ready: i32,
    /// Pods that are available.
    pub available: i32,
    /// Pods that lack.
    pub unavailable: i32,
    /// Pods that are on their way out.
    pub terminating: Option<i32>,
    /// How often the name of a set was taken.
    pub collision_count: Option<i32>,
    /// Conditions.
    pub conditions: Vec<Condition>,
}

/// A replica set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Set {
    /// Name.
    pub name: String,
    /// Uid; empty while it is only planned.
    pub uid: String,
    /// metadata.resourceVersion.
    pub version: u64,
    /// The deployment controls it; otherwise nobody does.
    pub owned: bool,
    /// The deployment's selector takes it.
    pub matches: bool,
    /// It has a deletion timestamp.
    pub deleting: bool,
    /// When it was created.
    pub created: Millis,
    /// metadata.generation.
    pub generation: i64,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// spec.replicas.
    pub replicas: i32,
    /// spec.minReadySeconds.
    pub min_ready_seconds: i32,
    /// spec.template without the label that tells templates apart.
    pub template: String,
    /// Generation that its status is about.
    pub observed_generation: i64,
    /// Pods.
    pub present: i32,
    /// Pods that are ready.
    pub ready: i32,
    /// Pods that are available.
    pub available: i32,
    /// Pods that are on their way out.
    pub terminating: Option<i32>,
    /// What keeps it from making or deleting pods: reason and message.
    pub failure: Option<(String, String)>,
    /// Pods of it that have not ended, those on their way out too.
    pub alive: i32,
}

/// A deployment with its sets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Observed {
    /// The deployment.
    pub deployment: Deployment,
    /// Its sets, and those of nobody that its selector takes.
    pub sets: Vec<Set>,
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Takes a set; the deployment is read again before the first of them.
    Adopt {
        /// Name.
        name: String,
        /// Precondition.
        uid: String,
    },
    /// Lets a set go.
    Release {
        /// Name.
        name: String,
        /// Precondition.
        uid: String,
    },
    /// Makes the set of the present template.
    Create(NewSet),
    /// Changes a set.
    Update {
        /// Name.
        name: String,
        /// Precondition.
        uid: String,
        /// Precondition.
        version: u64,
        /// Pods that it shall have.
        replicas: i32,
        /// spec.minReadySeconds that it shall have.
        min_ready_seconds: i32,
        /// Annotations that are new or differ.
        annotations: BTreeMap<String, String>,
    },
    /// Deletes an old set without pods.
    Delete {
        /// Name.
        name: String,
        /// Precondition.
        uid: String,
        /// Precondition.
        version: u64,
    },
    /// Notes the number of the present revision at the deployment.
    NoteRevision(String),
    /// Writes the status.
    WriteStatus(Status),
}

/// A set to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSet {
    /// Name.
    pub name: String,
    /// What tells its template apart.
    pub hash: String,
    /// Pods that it shall have.
    pub replicas: i32,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// A call, and what people are told once it is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The call.
    pub act: Act,
    /// What people are told.
    pub events: Vec<Event>,
}

/// What is to be done, in this order, until a call fails.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Plan {
    /// The calls.
    pub steps: Vec<Step>,
    /// When to look again although nothing changed.
    pub look_again: Option<Millis>,
}

impl Deployment {
    /// The deadline of a rollout's progress in seconds, if it has one.
    pub(super) fn deadline(&self) -> Option<i32> {
        Some(self.deadline_seconds).filter(|seconds| *seconds != i32::MAX)
    }

    /// Pods over the number wanted.
    pub(super) fn surge(&self) -> i32 {
        self.bounds().0
    }

    /// Pods that may be unavailable.
    pub(super) fn unavailable(&self) -> i32 {
        if self.replicas == 0 { 0 } else { self.bounds().1.min(self.replicas) }
    }

    /// Surge, rounded up, and unavailability, rounded down; where both come to nothing one pod may be unavailable.
    fn bounds(&self) -> (i32, i32) {
        let Strategy::Rolling { surge, unavailable } = self.strategy else { return (0, 0) };
        match (surge.of(self.replicas, true), unavailable.of(self.replicas, false)) {
            (0, 0) => (0, 1),
            bounds => bounds,
        }
    }
}

impl Amount {
    /// So many of a whole.
    fn of(self, whole: i32, up: bool) -> i32 {
        match self {
            Self::Count(count) => count.max(0),
            Self::Percent(percent) => {
                let hundredths = i64::from(percent.max(0)) * i64::from(whole.max(0));
                let rounded = if up { (hundredths + 99) / 100 } else { hundredths / 100 };
                i32::try_from(rounded).unwrap_or(i32::MAX)
            }
        }
    }
}
