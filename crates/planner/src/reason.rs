//! Why a pod is not moving: structured, and as one sentence.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use crate::call::Act;
use crate::claims;
use crate::names::pod_name;
use crate::plan::Phase;
use crate::types::{Millis, Phase as PodPhase, Pod, Strategy};
use crate::update::max_unavailable_pods;
use crate::view::View;

/// Reasons that one plan gives at most; the pods further up wait for the same.
pub(crate) const REASONS_LIMIT: usize = 64;

/// One pod that is not moving, and what it waits for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reason {
    /// Name of the pod.
    pub pod: String,
    /// What does not happen to it.
    pub why: Why,
    /// What it waits for.
    pub cause: Cause,
}

/// What does not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// It is wanted and does not exist.
    NotCreated,
    /// It exists and is not available.
    NotAvailable,
    /// It is of an old revision.
    NotUpdated,
    /// It is not wanted and exists.
    NotDeleted,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// That pod does not exist yet.
    Missing {
        /// The pod.
        pod: String,
    },
    /// That pod is not ready.
    NotReady {
        /// The pod.
        pod: String,
        /// Its phase.
        phase: PodPhase,
        /// What scheduler or kubelet say.
        detail: Option<String>,
    },
    /// That pod is ready, for less than minReadySeconds.
    Settling {
        /// The pod.
        pod: String,
        /// Milliseconds until it is available.
        remaining: Millis,
    },
    /// That pod is being stopped.
    Terminating {
        /// The pod.
        pod: String,
    },
    /// That pod has ended for good.
    Finished {
        /// The pod.
        pod: String,
        /// Its phase.
        phase: PodPhase,
    },
    /// That pod goes first.
    Turn {
        /// The pod.
        pod: String,
    },
    /// A claim of the same name is being deleted.
    ClaimDeleted {
        /// The claim.
        claim: String,
    },
    /// A claim still belongs to the former pod of that name and goes with it.
    ClaimStale {
        /// The claim.
        claim: String,
    },
    /// The partition holds it at the current revision.
    Partition {
        /// The partition.
        partition: i64,
    },
    /// The strategy is OnDelete: a person deletes the pod.
    OnDelete,
    /// As many pods as may be are unavailable.
    MaxUnavailable {
        /// How many are.
        unavailable: i64,
        /// How many may be.
        limit: i64,
    },
    /// The set is being deleted.
    SetDeleted,
    /// Nobody hears of that pod's node.
    NodeLost {
        /// The pod.
        pod: String,
    },
    /// The rollout to that revision failed; it is held back.
    Held {
        /// The revision.
        revision: String,
    },
    /// It stands in for that pod, whose ordinal is reserved and which goes first.
    NoSurge {
        /// The pod.
        pod: String,
    },
    /// A claim was kept when its ordinal was reserved, and nobody allowed its use.
    ClaimReserved {
        /// The claim.
        claim: String,
    },
    /// With strategy Recreate, that old pod has to be gone first.
    OldPod {
        /// The pod.
        pod: String,
    },
    /// An annotation is wrong; until it is put right nothing is deleted.
    Invalid {
        /// What is wrong.
        message: String,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.pod, self.why, self.cause.about(&self.pod))
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotCreated => "is not created",
            Self::NotAvailable => "is not available",
            Self::NotUpdated => "is not updated",
            Self::NotDeleted => "is not deleted",
        })
    }
}

impl Cause {
    /// The cause as a clause of a sentence about that pod, which it calls "it".
    pub fn about(&self, pod: &str) -> String {
        /// Borrows what `write` needs, so that both ways to say a cause are one.
        struct Clause<'a>(&'a Cause, &'a str);
        impl fmt::Display for Clause<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.write(f, self.1)
            }
        }
        Clause(self, pod).to_string()
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, about: &str) -> fmt::Result {
        let who = |pod: &str| if pod == about { "it".to_owned() } else { pod.to_owned() };
        match self {
            Self::Missing { pod } => write!(f, "{} does not exist yet", who(pod)),
            Self::NotReady { pod, phase, detail } => {
                match phase {
                    PodPhase::Pending => write!(f, "{} is pending", who(pod))?,
                    PodPhase::Unknown => write!(f, "{}'s node does not answer", pod)?,
                    _ => write!(f, "{} is running but not ready", who(pod))?,
                }
                match detail {
                    Some(detail) => write!(f, " ({detail})"),
                    None => Ok(()),
                }
            }
            Self::Settling { pod, remaining } => {
                let seconds = remaining.saturating_add(999) / 1000;
                write!(f, "{} is ready, and counts as available in {seconds} s (minReadySeconds)", who(pod))
            }
            Self::Terminating { pod } => write!(f, "{} is being stopped", who(pod)),
            Self::Finished { pod, phase } => {
                let word = if *phase == PodPhase::Failed { "failed" } else { "ended" };
                write!(f, "{} has {word}", who(pod))
            }
            Self::Turn { pod } => write!(f, "{} goes first", who(pod)),
            Self::ClaimDeleted { claim } => write!(f, "its claim {claim} is being deleted"),
            Self::ClaimStale { claim } => write!(f, "the claim {claim} of the former pod has not gone yet"),
            Self::Partition { partition } => {
                write!(f, "the partition ({partition}) holds it at the current revision")
            }
            Self::OnDelete => f.write_str("the update strategy is OnDelete; delete the pod to update it"),
            Self::MaxUnavailable { unavailable, limit } => {
                write!(f, "{unavailable} of the set's pods are unavailable, and maxUnavailable is {limit}")
            }
            Self::SetDeleted => f.write_str("the set is being deleted"),
            Self::NodeLost { pod } => {
                write!(f, "nothing is heard of the node of {}", who(pod))
            }
            Self::Held { revision } => write!(
                f,
                "the rollout to {revision} failed and is held back; apply another template, or change the annotation \
                 statefuld.io/retry"
            ),
            Self::NoSurge { pod } => {
                write!(f, "it stands in for {pod}, which goes first because its ordinal is reserved")
            }
            Self::ClaimReserved { claim } => write!(
                f,
                "its claim {claim} was kept when the ordinal was reserved; delete it, or annotate it \
                 statefuld.io/reuse=true to use its data again"
            ),
            Self::OldPod { pod } => write!(f, "the strategy is Recreate and {pod} of an old revision is not gone yet"),
            Self::Invalid { message } => write!(f, "nothing is deleted while an annotation is wrong: {message}"),
        }
    }
}

/// Reasons for all pods that these phases do not move. `stop` is the pod at which an ordered set stops.
pub(crate) fn explain(view: &View<'_>, phases: &[Phase], stop: Option<&str>) -> Vec<Reason> {
    let moved: BTreeSet<&str> = phases
        .iter()
        .flat_map(|p| &p.tasks)
        .filter(|t| t.acts.iter().any(|a| matches!(a, Act::CreatePod { .. } | Act::DeletePod { .. })))
        .filter(|t| !t.acts.iter().any(|a| matches!(a, Act::Refuse { .. })))
        .map(|t| t.pod.as_str())
        .collect();
    let waiting = Waiting::new(view, stop);
    let mut wanted: Vec<(i64, Option<&Pod>)> = view.slots.iter().map(|(i, p)| (*i, Some(*p))).collect();
    wanted.extend(view.missing.iter().map(|i| (*i, None)));
    wanted.sort_unstable_by_key(|(i, _)| *i);
    let mut reasons = Vec::new();
    for (index, pod) in wanted {
        if reasons.len() >= REASONS_LIMIT {
            return reasons;
        }
        let Some(ordinal) = view.set.ordinal_at(index) else { continue };
        let name = pod.map_or_else(|| Cow::Owned(pod_name(&view.set.name, ordinal)), |pod| Cow::Borrowed(&pod.name));
        if moved.contains(name.as_str()) {
            continue;
        }
        let found = match pod {
            None => Some((Why::NotCreated, waiting.not_created(index, ordinal, &name))),
            Some(pod) => own(view, pod)
                .map(|cause| (Why::NotAvailable, cause))
                .or_else(|| waiting.not_updated(index, pod).map(|cause| (Why::NotUpdated, cause))),
        };
        reasons.extend(found.map(|(why, cause)| Reason { pod: name.into_owned(), why, cause }));
    }
    let unwanted = view.condemned.iter().rev().chain(view.reserved.iter().rev());
    for (_, pod) in unwanted.filter(|(_, p)| !moved.contains(p.name.as_str())) {
        if reasons.len() >= REASONS_LIMIT {
            break;
        }
        reasons.push(Reason { pod: pod.name.clone(), why: Why::NotDeleted, cause: waiting.not_deleted(pod) });
    }
    reasons
}

/// What is the same for all pods that wait, found once.
struct Waiting<'a> {
    view: &'a View<'a>,
    /// The pod at which an ordered set stops, and what waiting for it means.
    stop: Option<(&'a str, Cause)>,
    /// The old pod that a set with strategy Recreate waits for.
    old: Option<&'a str>,
    /// The topmost pod of an old revision: the next whose turn it is.
    top: Option<&'a str>,
}

impl<'a> Waiting<'a> {
    fn new(view: &'a View<'a>, stop: Option<&'a str>) -> Self {
        let is_old = |pod: &&Pod| view.is_out_of_date(pod);
        let stop = stop.map(|stop| {
            let cause = match view.pods().find(|p| p.name == stop) {
                None => Cause::Missing { pod: stop.to_owned() },
                Some(pod) => own(view, pod).unwrap_or_else(|| Cause::Turn { pod: stop.to_owned() }),
            };
            (stop, cause)
        });
        let recreates = view.set.strategy == Strategy::Recreate;
        let old = if recreates { view.pods().find(is_old).map(|p| p.name.as_str()) } else { None };
        let top = view.slots.values().copied().rev().find(is_old).map(|p| p.name.as_str());
        Self { view, stop, old, top }
    }

    fn old_pod(&self) -> Option<Cause> {
        self.old.map(|pod| Cause::OldPod { pod: pod.to_owned() })
    }

    fn not_created(&self, index: i64, ordinal: i32, name: &str) -> Cause {
        let view = self.view;
        if let Some(cause) = self.old_pod() {
            return cause;
        }
        if view.deferred.contains(&index)
            && let Some((_, pod)) = view.reserved.first()
        {
            return Cause::NoSurge { pod: pod.name.clone() };
        }
        if self.stop.as_ref().is_none_or(|(stop, _)| *stop == name) {
            for (_, claim, found) in view.claims(ordinal) {
                match found {
                    Some(c) if claims::is_stale(view.set, c, name, None) => return Cause::ClaimStale { claim },
                    Some(c) if c.terminating => return Cause::ClaimDeleted { claim },
                    Some(c) if c.reserved && !c.reuse => return Cause::ClaimReserved { claim },
                    _ => {}
                }
            }
        }
        self.turn(name)
    }

    fn not_updated(&self, index: i64, pod: &Pod) -> Option<Cause> {
        let view = self.view;
        if !view.is_out_of_date(pod) {
            return None;
        }
        if let Some(message) = view.set.beyond.invalid.clone() {
            return Some(Cause::Invalid { message });
        }
        let max_unavailable = match view.set.strategy {
            Strategy::RollingUpdate { max_unavailable, .. } => max_unavailable,
            Strategy::OnDelete => return Some(Cause::OnDelete),
            Strategy::Recreate => return self.old_pod(),
        };
        if view.held {
            return Some(Cause::Held { revision: view.choice.update.name.clone() });
        }
        if index < view.partition() {
            return Some(Cause::Partition { partition: view.partition() });
        }
        if let Some((_, cause)) = &self.stop {
            return Some(cause.clone());
        }
        let unavailable = view.unavailable();
        let limit = max_unavailable_pods(max_unavailable, view.set.wanted());
        if unavailable >= limit {
            return Some(Cause::MaxUnavailable { unavailable, limit });
        }
        Some(Cause::Turn { pod: self.top.unwrap_or(&pod.name).to_owned() })
    }

    fn not_deleted(&self, pod: &Pod) -> Cause {
        let name = || pod.name.clone();
        if pod.terminating && self.view.is_lost(pod) {
            Cause::NodeLost { pod: name() }
        } else if pod.terminating {
            Cause::Terminating { pod: name() }
        } else if let Some(message) = self.view.set.beyond.invalid.clone() {
            Cause::Invalid { message }
        } else if self.stop.as_ref().is_some_and(|(stop, _)| *stop == pod.name) {
            self.first_unavailable(&pod.name)
        } else {
            self.turn(&pod.name)
        }
    }

    /// Waits for the pod at which the set stops, or else for what is not available.
    fn turn(&self, about: &str) -> Cause {
        self.stop.as_ref().map_or_else(|| self.first_unavailable(about), |(_, cause)| cause.clone())
    }

    /// A condemned pod at the top that is held is held by a lower pod that is not available.
    fn first_unavailable(&self, about: &str) -> Cause {
        let first = self.view.pods().filter(|p| p.name != about).find_map(|p| own(self.view, p));
        first.unwrap_or_else(|| Cause::Turn { pod: about.to_owned() })
    }
}

/// What keeps a pod itself from being available.
fn own(view: &View<'_>, pod: &Pod) -> Option<Cause> {
    let name = || pod.name.clone();
    if view.is_lost(pod) {
        return Some(Cause::NodeLost { pod: name() });
    }
    if pod.terminating {
        return Some(Cause::Terminating { pod: name() });
    }
    if pod.is_finished() {
        return Some(Cause::Finished { pod: name(), phase: pod.phase });
    }
    match pod.available_in(view.set.min_ready_seconds, view.now) {
        Some(0) => None,
        Some(remaining) => Some(Cause::Settling { pod: name(), remaining }),
        None => Some(Cause::NotReady { pod: name(), phase: pod.phase, detail: pod.detail.clone() }),
    }
}
