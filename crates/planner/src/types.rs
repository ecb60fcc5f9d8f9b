//! What is observed of a set: small values, projected from API objects by whoever reads them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::beyond::{Beyond, Condition, ConditionKind, Trouble};

/// Milliseconds since the Unix epoch.
pub type Millis = i64;

/// One consistent view of a set and of all that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Observed {
    /// The set.
    pub set: Set,
    /// Pods of the namespace that the set controls, and pods that nobody controls.
    pub pods: Vec<Member>,
    /// Claims of the namespace by name; at least those that the set's pods use or would use.
    pub claims: BTreeMap<String, Claim>,
    /// Revisions that match the selector and that the set controls, or nobody.
    pub revisions: Vec<Revision>,
}

/// A pod, and whether the set's selector takes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// The pod.
    pub pod: Arc<Pod>,
    /// The set's selector matches the pod's labels.
    pub matches: bool,
}

/// A StatefulSet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Set {
    /// Group and version, as owner references carry them.
    pub api_version: String,
    /// Kind, as owner references carry it.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// metadata.generation.
    pub generation: i64,
    /// It is being deleted: nothing is created or deleted for it any more.
    pub deleting: bool,
    /// How many pods are wanted.
    pub replicas: i32,
    /// The first ordinal.
    pub start: i32,
    /// Whether order matters.
    pub management: Management,
    /// How pods of an old revision are replaced.
    pub strategy: Strategy,
    /// A pod counts as available once it has been ready for this long.
    pub min_ready_seconds: i32,
    /// Revisions kept besides the live ones; negative keeps all.
    pub history_limit: i32,
    /// Names of the claim templates, in order.
    pub claim_templates: Vec<String>,
    /// What becomes of the claims when the set is deleted.
    pub when_deleted: Retention,
    /// What becomes of the claims of a pod that is scaled away.
    pub when_scaled: Retention,
    /// Revision data of the current template.
    pub data: Blob,
    /// The same with all that means nothing left out; equal meanings need no rollout.
    pub meaning: Blob,
    /// The status as last written.
    pub status: Status,
    /// spec.serviceName.
    pub service_name: String,
    /// What annotations ask for.
    pub beyond: Beyond,
}

/// Pod management policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Management {
    /// One after another, each waiting for its predecessor.
    OrderedReady,
    /// All at once.
    Parallel,
}

/// Update strategy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Strategy {
    /// The controller replaces pods from the top.
    RollingUpdate {
        /// Pods at an index below this keep the current revision. None: the field is absent.
        partition: Option<i32>,
        /// How many pods may be unavailable meanwhile.
        max_unavailable: Unavailable,
    },
    /// Pods get the new revision when somebody deletes them.
    OnDelete,
    /// All pods of an old revision go before one of the new revision is made.
    Recreate,
}

/// A number of pods, or a share of the replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unavailable {
    /// This many.
    Count(i32),
    /// This percentage, rounded down.
    Percent(i32),
}

/// What becomes of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Retention {
    /// It stays.
    Retain,
    /// It goes.
    Delete,
}

/// A set's status.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Status {
    /// The generation that this status speaks of.
    pub observed_generation: i64,
    /// Pods that exist.
    pub replicas: i32,
    /// Pods that are running and ready.
    pub ready: i32,
    /// Pods that have been ready for minReadySeconds.
    pub available: i32,
    /// Pods of the current revision that are not terminating.
    pub current: i32,
    /// Pods of the update revision that are not terminating.
    pub updated: i32,
    /// Name of the current revision.
    pub current_revision: String,
    /// Name of the revision that an update leads to.
    pub update_revision: String,
    /// How often a revision's name was taken by other content.
    pub collision_count: Option<i32>,
    /// Conditions of ours.
    pub conditions: Vec<Condition>,
}

impl Status {
    /// The condition of a kind.
    pub fn condition(&self, kind: ConditionKind) -> Option<&Condition> {
        self.conditions.iter().find(|c| c.kind == kind)
    }
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pod {
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// metadata.resourceVersion.
    pub version: u64,
    /// status.phase.
    pub phase: Phase,
    /// Since when the condition Ready is true, if it is.
    pub ready_since: Option<Millis>,
    /// It has a deletionTimestamp.
    pub terminating: bool,
    /// Owner references.
    pub owners: Vec<Owner>,
    /// Label controller-revision-hash.
    pub revision: Option<String>,
    /// Label statefulset.kubernetes.io/pod-name.
    pub pod_name_label: Option<String>,
    /// Volumes that are claims: volume name to claim name.
    pub volumes: BTreeMap<String, String>,
    /// What keeps it from running, in the words of scheduler or kubelet: `CrashLoopBackOff`, for one.
    pub detail: Option<String>,
    /// What that means.
    pub trouble: Trouble,
    /// metadata.creationTimestamp.
    pub created: Millis,
    /// It was ready at least once since its creation; none if its kubelet does not record that.
    pub was_ready: Option<bool>,
    /// Annotation `statefuld.io/override-hash`.
    pub override_hash: Option<String>,
    /// spec.subdomain; empty if absent.
    pub subdomain: String,
}

/// Phase of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Accepted, not all containers started.
    Pending,
    /// Bound, containers started.
    Running,
    /// All containers ended well.
    Succeeded,
    /// All containers ended, at least one badly.
    Failed,
    /// Its node cannot say.
    Unknown,
}

/// An owner reference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// It is the managing controller.
    pub controller: bool,
    /// blockOwnerDeletion.
    pub block: bool,
}

/// A persistent volume claim.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// metadata.resourceVersion.
    pub version: u64,
    /// It has a deletionTimestamp.
    pub terminating: bool,
    /// Owner references.
    pub owners: Vec<Owner>,
    /// Bytes asked for.
    pub requested: i64,
    /// Annotation `statefuld.io/reserved-since`: kept when its ordinal was reserved.
    pub reserved: bool,
    /// Annotation `statefuld.io/reuse: "true"`: may be used again all the same.
    pub reuse: bool,
    /// Annotation `statefuld.io/protect: "true"`.
    pub protected: bool,
}

/// A ControllerRevision.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// metadata.resourceVersion.
    pub version: u64,
    /// Its number; the highest is the newest.
    pub number: i64,
    /// When it was created.
    pub created: Millis,
    /// Owner references.
    pub owners: Vec<Owner>,
    /// Its data, in canonical bytes.
    pub data: Blob,
    /// The same with all that means nothing left out.
    pub meaning: Blob,
    /// A rollout to it failed, under this value of `retry`; it is held back while the set's is the same.
    pub held: Option<String>,
}

/// Bytes that nobody here looks into, shared, compared by their hash first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blob {
    hash: u32,
    bytes: Arc<[u8]>,
}

impl Blob {
    /// These bytes.
    pub fn new(bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes = bytes.into();
        Self { hash: crate::names::fnv1(&[&bytes]), bytes }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({:08x}, {} bytes)", self.hash, self.bytes.len())
    }
}

impl Set {
    /// The owner reference that makes this set the controller of something.
    pub fn as_owner(&self) -> Owner {
        Owner {
            api_version: self.api_version.clone(),
            kind: self.kind.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            controller: true,
            block: true,
        }
    }

    /// Ordinals matter: one pod after another.
    pub fn is_ordered(&self) -> bool {
        self.management == Management::OrderedReady
    }

    /// Wanted pods; a negative number, which no server accepts, counts as none.
    pub fn wanted(&self) -> i64 {
        i64::from(self.replicas.max(0))
    }

    /// Index of the ordinal among the wanted ones, if it is one of them.
    pub fn index_of(&self, ordinal: i32) -> Option<i64> {
        let index = self.beyond.reserved.index_of(self.start, ordinal)?;
        (index < self.wanted()).then_some(index)
    }

    /// Ordinal at an index. A set whose last ordinals do not fit keeps to those that do.
    pub fn ordinal_at(&self, index: i64) -> Option<i32> {
        i32::try_from(self.beyond.reserved.ordinal_at(self.start, index)).ok()
    }

    /// The set has been told to leave order and identity to its annotations, and they are wrong.
    pub(crate) fn is_invalid(&self) -> bool {
        self.beyond.invalid.is_some()
    }
}

impl Pod {
    /// Running, and its condition Ready is true.
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Running && self.ready_since.is_some()
    }

    /// Ready for at least the set's minReadySeconds.
    pub fn is_available(&self, min_ready_seconds: i32, now: Millis) -> bool {
        self.is_ready() && self.available_in(min_ready_seconds, now) == Some(0)
    }

    /// Not available, or on its way out.
    pub(crate) fn is_unavailable(&self, min_ready_seconds: i32, now: Millis) -> bool {
        self.terminating || !self.is_available(min_ready_seconds, now)
    }

    /// Milliseconds until it is available if it stays ready; none if it is not ready.
    pub(crate) fn available_in(&self, min_ready_seconds: i32, now: Millis) -> Option<Millis> {
        let since = self.ready_since.filter(|_| self.phase == Phase::Running)?;
        if min_ready_seconds <= 0 {
            return Some(0);
        }
        let at = since.saturating_add(i64::from(min_ready_seconds) * 1000);
        Some(at.saturating_sub(now).max(0))
    }

    /// All its containers have ended for good.
    pub(crate) fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Failed | Phase::Succeeded)
    }

    /// It is certain that it was never ready since its creation.
    pub fn was_never_ready(&self) -> bool {
        !self.is_ready() && self.was_ready == Some(false)
    }

    /// The managing controller, if it has one.
    pub fn controller(&self) -> Option<&Owner> {
        controller(&self.owners)
    }
}

impl Revision {
    /// The managing controller, if it has one.
    pub fn controller(&self) -> Option<&Owner> {
        controller(&self.owners)
    }
}

fn controller(owners: &[Owner]) -> Option<&Owner> {
    owners.iter().find(|o| o.controller)
}
