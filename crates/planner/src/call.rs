//! What a plan's execution asks of the API, and what it hears back.

use crate::types::{Blob, Owner, Revision, Status};

/// One API call, numbered so that its answer finds back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Request {
    /// Number of the call within one execution.
    pub id: u32,
    /// The call.
    pub call: Call,
}

/// The answer to one call.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Response {
    /// Number of the call.
    pub id: u32,
    /// The answer.
    pub answer: Answer,
}

/// An API call. All act in the set's namespace. A `version` of 0 is not sent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// Reads the set itself, not from a cache. Answered by [`Answer::Set`].
    GetSet,
    /// Replaces the owner references of a pod (adopts or releases it).
    SetPodOwners {
        /// Name.
        name: String,
        /// Precondition.
        uid: String,
        /// Precondition.
        version: u64,
        /// All owner references that it shall have.
        owners: Vec<Owner>,
    },
    /// Replaces the owner references of a revision. Answered by [`Answer::Done`].
    SetRevisionOwners {
        /// Name.
        name: String,
        /// Precondition.
        uid: String,
        /// Precondition.
        version: u64,
        /// All owner references that it shall have.
        owners: Vec<Owner>,
    },
    /// Creates a revision owned by the set. Answered by [`Answer::Revision`].
    CreateRevision {
        /// Name.
        name: String,
        /// Hash within the name.
        hash: String,
        /// Number.
        number: i64,
        /// Data.
        data: Blob,
    },
    /// Reads a revision, not from a cache. Answered by [`Answer::Revision`].
    GetRevision {
        /// Name.
        name: String,
    },
    /// Makes a revision the newest, and no longer held. Answered by [`Answer::Revision`].
    NumberRevision {
        /// Name.
        name: String,
        /// Precondition.
        uid: String,
        /// Precondition.
        version: u64,
        /// The new number.
        number: i64,
    },
    /// Notes that a rollout to a revision failed. Answered by [`Answer::Revision`].
    HoldRevision {
        /// Name.
        name: String,
        /// Precondition.
        uid: String,
        /// The set's `retry` at the time.
        retry: String,
    },
    /// Deletes a revision.
    DeleteRevision {
        /// Name.
        name: String,
        /// Precondition.
        uid: String,
        /// Precondition.
        version: u64,
    },
    /// Something for a pod.
    Act(Act),
    /// Writes the status of the set.
    WriteStatus {
        /// Precondition.
        uid: String,
        /// The status.
        status: Status,
    },
}

/// What is done for one pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Act {
    /// Creates the claim of a template for an ordinal.
    CreateClaim {
        /// Name.
        name: String,
        /// Template.
        template: String,
        /// Ordinal.
        ordinal: i32,
        /// Owner references that it shall have.
        owners: Vec<Owner>,
    },
    /// No call: the pod cannot be made, for this reason.
    Refuse {
        /// The reason.
        message: String,
    },
    /// Creates a pod.
    CreatePod {
        /// Name.
        name: String,
        /// Ordinal.
        ordinal: i32,
        /// Name of its revision.
        revision: String,
        /// Data of its revision.
        data: Blob,
    },
    /// Deletes a pod, with its own grace period.
    DeletePod {
        /// Name.
        name: String,
        /// Precondition.
        uid: String,
        /// Precondition.
        version: u64,
    },
    /// Puts a pod's identity right: its labels, and its volumes, which most servers refuse to change.
    UpdatePod {
        /// Name.
        name: String,
        /// Ordinal.
        ordinal: i32,
        /// Precondition.
        uid: String,
        /// Precondition.
        version: u64,
        /// The volumes are to be put right too.
        volumes: bool,
    },
    /// Replaces the owner references of a claim.
    SetClaimOwners {
        /// Name.
        name: String,
        /// Precondition.
        uid: String,
        /// Precondition.
        version: u64,
        /// All owner references that it shall have.
        owners: Vec<Owner>,
        /// Somebody else manages the claim: said in an event.
        conflict: bool,
    },
    /// Changes annotations of a claim.
    MarkClaim {
        /// Name.
        name: String,
        /// Precondition.
        uid: String,
        /// How.
        mark: ClaimMark,
    },
    /// Asks for more room in a claim: what its template asks for.
    GrowClaim {
        /// Name.
        name: String,
        /// Precondition.
        uid: String,
        /// Template.
        template: String,
    },
    /// Takes the finalizer of ordered deletion off the set: it may go.
    LetGo {
        /// Precondition.
        uid: String,
    },
}

/// A change of a claim's annotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClaimMark {
    /// Its ordinal is reserved: kept, and not to be used again by accident.
    Reserved,
    /// It is used again: what [`Self::Reserved`] and the permission said is over.
    Reused,
    /// Not to be deleted.
    Protected,
    /// No longer.
    Unprotected,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Answer {
    /// It is done; the object has this version now (0 where there is none).
    Done {
        /// metadata.resourceVersion.
        version: u64,
    },
    /// The set as it is.
    Set(LiveSet),
    /// A revision as it is.
    Revision(Revision),
    /// It was not done, or nobody knows.
    Failed(Failure),
}

/// What a fresh read of the set tells.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LiveSet {
    /// Uid.
    pub uid: String,
    /// It is being deleted.
    pub deleting: bool,
}

/// Why a call was not done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Failure {
    /// What kind of failure.
    pub kind: FailureKind,
    /// The server's words.
    pub message: String,
}

/// Kinds of failure that make a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureKind {
    /// No such object.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// A precondition does not hold: the view was old.
    Conflict,
    /// The object would not be valid.
    Invalid,
    /// Anything else; also when no answer came and it may have been done.
    Other,
}

/// Something to tell people, about the set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Event {
    /// Whether it is good news.
    pub level: Level,
    /// One word.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
}

/// Whether an event is good news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Told for information.
    Normal,
    /// Something is not as it should be.
    Warning,
}
