//! The pods of a set laid out by ordinal, and what is done for each: phases A to C of a plan.

use std::collections::{BTreeMap, BTreeSet};

use crate::beyond::Trouble;
use crate::call::{Act, ClaimMark};
use crate::claims;
use crate::names::{claim_name, parent_and_ordinal, pod_name};
use crate::plan::{Phase, Task};
use crate::reason;
use crate::revision::Choice;
use crate::types::{Claim, Millis, Observed, Phase as PodPhase, Pod, Revision, Set, Strategy};

/// Pods that one plan creates at most; the next plan goes on. Bounds a set with two billion replicas.
const CREATES_LIMIT: usize = 2000;

/// The pods of a set laid out by ordinal.
pub(crate) struct View<'a> {
    pub(crate) observed: &'a Observed,
    pub(crate) set: &'a Set,
    pub(crate) now: Millis,
    pub(crate) choice: &'a Choice,
    /// Existing pods that are wanted, by index.
    pub(crate) slots: BTreeMap<i64, &'a Pod>,
    /// Indices that are wanted and have no pod, the lowest ones.
    pub(crate) missing: Vec<i64>,
    /// Existing pods that are not wanted, highest ordinal first.
    pub(crate) condemned: Vec<(i32, &'a Pod)>,
    /// Existing pods whose ordinal is reserved, highest first.
    pub(crate) reserved: Vec<(i32, &'a Pod)>,
    /// Missing indices that are not filled before as many reserved pods have gone: the topmost ones.
    pub(crate) deferred: BTreeSet<i64>,
    /// The update revision failed and is held back.
    pub(crate) held: bool,
    /// Of the wanted pods, how many exist and are available.
    pub(crate) available: i64,
}

impl<'a> View<'a> {
    pub(crate) fn new(observed: &'a Observed, members: &[&'a Pod], choice: &'a Choice, now: Millis) -> Self {
        let set = &observed.set;
        let mut slots = BTreeMap::new();
        let (mut condemned, mut reserved) = (Vec::new(), Vec::new());
        for pod in members {
            let Some((_, ordinal)) = parent_and_ordinal(&pod.name) else { continue };
            match set.index_of(ordinal) {
                Some(index) => drop(slots.insert(index, *pod)),
                None if set.beyond.reserved.contains(ordinal) => reserved.push((ordinal, *pod)),
                None => condemned.push((ordinal, *pod)),
            }
        }
        condemned.sort_by_key(|(ordinal, _)| std::cmp::Reverse(*ordinal));
        reserved.sort_by_key(|(ordinal, _)| std::cmp::Reverse(*ordinal));
        let missing: Vec<i64> = (0..set.wanted())
            .filter(|i| !slots.contains_key(i) && set.ordinal_at(*i).is_some())
            .take(if set.is_ordered() { reason::REASONS_LIMIT } else { CREATES_LIMIT })
            .collect();
        // One that stands in for a reserved ordinal is made once that one is gone: no surge.
        let top = slots.keys().next_back().copied().unwrap_or(-1);
        let first_deferred =
            set.wanted().saturating_sub(i64::try_from(reserved.len()).unwrap_or(i64::MAX)).max(top + 1);
        let deferred = missing.iter().copied().filter(|i| *i >= first_deferred).collect();
        let held = set.beyond.rollback
            && choice.act.is_none()
            && choice.current.name != choice.update.name
            && choice.update.held.as_ref() == Some(&set.beyond.retry);
        let available = slots.values().filter(|p| !p.is_unavailable(set.min_ready_seconds, now)).count();
        let available = i64::try_from(available).unwrap_or(i64::MAX);
        Self { observed, set, now, choice, slots, missing, condemned, reserved, deferred, held, available }
    }

    /// Wanted pods that are missing or not available.
    pub(crate) fn unavailable(&self) -> i64 {
        self.set.wanted() - self.available
    }

    /// All existing pods of the set, lowest ordinals of the wanted ones first.
    pub(crate) fn pods(&self) -> impl Iterator<Item = &'a Pod> + use<'_, 'a> {
        let rest = self.condemned.iter().rev().chain(self.reserved.iter().rev());
        self.slots.values().copied().chain(rest.map(|(_, p)| *p))
    }

    /// The pod is not what the set would make of its ordinal at the update revision.
    pub(crate) fn is_out_of_date(&self, pod: &Pod) -> bool {
        let overrides = &self.set.beyond.overrides;
        // Asked for each pod, several times a plan.
        let ordinal = if overrides.is_empty() { None } else { parent_and_ordinal(&pod.name).map(|(_, n)| n) };
        let hash = ordinal.and_then(|n| overrides.get(&n));
        pod.revision.as_deref() != Some(self.choice.update.name.as_str())
            || pod.override_hash.as_ref() != hash
            || self.set.beyond.carry_out && pod.subdomain != self.set.service_name
    }

    pub(crate) fn is_available(&self, pod: &Pod) -> bool {
        pod.is_available(self.set.min_ready_seconds, self.now)
    }

    pub(crate) fn is_unavailable(&self, pod: &Pod) -> bool {
        pod.is_unavailable(self.set.min_ready_seconds, self.now)
    }

    /// Indices below this are not updated: the spec's partition, or all while the update revision is held.
    pub(crate) fn partition(&self) -> i64 {
        if self.held { self.set.wanted() } else { self.spec_partition() }
    }

    pub(crate) fn spec_partition(&self) -> i64 {
        match self.set.strategy {
            Strategy::RollingUpdate { partition: Some(partition), .. } => i64::from(partition.max(0)),
            _ => 0,
        }
    }

    /// The revision that a new pod at an index gets.
    pub(crate) fn revision_at(&self, index: i64) -> &Revision {
        let below = match self.set.strategy {
            _ if self.held => self.set.wanted(),
            Strategy::RollingUpdate { partition: Some(partition), .. } => i64::from(partition),
            // Only a server that does not default gets here. In a parallel set such a pod would be taken down
            // as an old one that is not available, and made again, for ever.
            Strategy::RollingUpdate { partition: None, .. } if self.set.is_ordered() => {
                i64::from(self.set.status.current)
            }
            Strategy::RollingUpdate { partition: None, .. } | Strategy::OnDelete | Strategy::Recreate => 0,
        };
        if index < below { &self.choice.current } else { &self.choice.update }
    }

    /// Phase A. Gives the pod at which an ordered set stops.
    pub(crate) fn create(&self, phases: &mut Vec<Phase>) -> Option<String> {
        let ordered = self.set.is_ordered();
        let mut indices: Vec<i64> = self.slots.keys().copied().chain(self.missing.iter().copied()).collect();
        indices.sort_unstable();
        let mut tasks = Vec::new();
        let mut stop = None;
        for index in indices {
            if self.deferred.contains(&index) {
                break;
            }
            let Some(ordinal) = self.set.ordinal_at(index) else { break };
            let made;
            let (name, (acts, wait)) = match self.slots.get(&index) {
                Some(pod) => (&pod.name, self.keep(ordinal, pod)),
                None => {
                    made = pod_name(&self.set.name, ordinal);
                    (&made, (self.make(index, ordinal, &made), true))
                }
            };
            if !acts.is_empty() {
                tasks.push(Task { pod: name.clone(), acts, leaves_current: false });
            }
            if wait && ordered {
                stop = Some(name.clone());
                break;
            }
        }
        phases.push(Phase { parallel: !ordered, tasks });
        stop
    }

    /// Acts that make a pod, its claims first.
    fn make(&self, index: i64, ordinal: i32, name: &str) -> Vec<Act> {
        if self.claims(ordinal).any(|(_, _, c)| c.is_some_and(|c| claims::is_stale(self.set, c, name, None))) {
            return Vec::new();
        }
        let mut acts = self.missing_claims(ordinal);
        let revision = self.revision_at(index);
        acts.push(Act::CreatePod {
            name: name.to_owned(),
            ordinal,
            revision: revision.name.clone(),
            data: revision.data.clone(),
        });
        acts.extend(self.claim_fixes(ordinal, name, None));
        acts
    }

    /// Acts for a wanted pod that exists, and whether an ordered set waits for it.
    fn keep(&self, ordinal: i32, pod: &Pod) -> (Vec<Act>, bool) {
        if pod.is_finished() {
            let acts = if pod.terminating { Vec::new() } else { vec![delete(pod)] };
            return (acts, true);
        }
        let mut acts = Vec::new();
        if pod.phase == PodPhase::Pending {
            acts = self.missing_claims_of(ordinal, pod);
            acts.extend(self.claim_fixes(ordinal, &pod.name, Some(&pod.uid)));
        }
        if self.set.is_ordered() && (pod.terminating || !self.is_available(pod)) {
            return (acts, true);
        }
        let identity = pod.pod_name_label.as_deref() == Some(pod.name.as_str());
        // Carried out, a changed list of claims reaches a pod when it is made again.
        let storage = self.set.beyond.carry_out
            || self.claims(ordinal).all(|(template, claim, _)| pod.volumes.get(template) == Some(&claim));
        let more = if storage { Vec::new() } else { self.missing_claims(ordinal) };
        for act in more.into_iter().chain(self.claim_fixes(ordinal, &pod.name, Some(&pod.uid))) {
            if !acts.contains(&act) {
                acts.push(act);
            }
        }
        if !(identity && storage) {
            acts.push(Act::UpdatePod {
                name: pod.name.clone(),
                ordinal,
                uid: pod.uid.clone(),
                version: pod.version,
                volumes: !storage,
            });
        }
        (acts, false)
    }

    /// Phases B and C. Gives the pod at which an ordered set stops.
    pub(crate) fn condemn(&self, phases: &mut Vec<Phase>) -> Option<String> {
        let ordered = self.set.is_ordered();
        let fixes = self.condemned.iter().map(|(ordinal, pod)| {
            let acts = self.claim_owners(*ordinal, &pod.name, Some(&pod.uid), true);
            Task { pod: pod.name.clone(), acts, leaves_current: false }
        });
        let fixes: Vec<Task> = fixes.chain(self.keep_reserved()).filter(|t| !t.acts.is_empty()).collect();
        phases.push(Phase { parallel: !ordered, tasks: fixes });
        let first_unavailable = self.first_unavailable();
        let mut tasks = Vec::new();
        // One at a time, whatever it goes for: a reserved one may have begun to go before others were condemned.
        let mut stop = self.reserved.iter().find(|(_, p)| ordered && p.terminating).map(|(_, p)| p.name.clone());
        for (_, pod) in &self.condemned {
            if stop.is_some() {
                break;
            }
            let held = !self.is_available(pod) && first_unavailable != Some(pod.name.as_str());
            if !(pod.terminating || ordered && held) {
                tasks.push(Task { pod: pod.name.clone(), acts: vec![delete(pod)], leaves_current: false });
            }
            stop = ordered.then(|| pod.name.clone());
        }
        phases.push(Phase { parallel: !ordered, tasks });
        stop
    }

    /// Claims of reserved ordinals are kept, whatever retention says of scaling, and marked.
    fn keep_reserved(&self) -> Vec<Task> {
        let mut ordinals: BTreeMap<i32, Option<&Pod>> = self.reserved.iter().map(|(n, p)| (*n, Some(*p))).collect();
        for name in self.observed.claims.keys() {
            let Some((stem, ordinal)) = parent_and_ordinal(name) else { continue };
            let is_ours =
                |t: &String| stem.strip_prefix(t.as_str()).and_then(|s| s.strip_prefix('-')) == Some(&self.set.name);
            if self.set.beyond.reserved.contains(ordinal) && self.set.claim_templates.iter().any(is_ours) {
                ordinals.entry(ordinal).or_insert(None);
            }
        }
        let task = |(ordinal, pod): (i32, Option<&Pod>)| {
            let name = pod_name(&self.set.name, ordinal);
            let mut acts = self.claim_owners(ordinal, &name, pod.map(|p| p.uid.as_str()), false);
            let unmarked = self.claims(ordinal).filter_map(|(_, _, c)| c.filter(|c| !c.terminating && !c.reserved));
            acts.extend(unmarked.map(|c| mark(c, ClaimMark::Reserved)));
            Task { pod: name, acts, leaves_current: false }
        };
        ordinals.into_iter().map(task).collect()
    }

    /// One pod of a reserved ordinal goes, once all that are wanted and exist are available and nothing else
    /// is on its way. Gives the pod at which the set stops.
    pub(crate) fn remove_reserved(&self, phases: &mut Vec<Phase>) -> Option<String> {
        let (_, pod) = self.reserved.first()?;
        let whole = self.missing.iter().all(|i| self.deferred.contains(i));
        let steady = whole && self.condemned.is_empty() && !self.slots.values().any(|p| self.is_unavailable(p));
        if steady && !self.reserved.iter().any(|(_, p)| p.terminating) {
            let tasks = vec![Task { pod: pod.name.clone(), acts: vec![delete(pod)], leaves_current: false }];
            phases.push(Phase { parallel: false, tasks });
        }
        Some(pod.name.clone())
    }

    /// The lowest wanted pod that is not available, else the lowest condemned one. A missing pod counts
    /// and has no name.
    fn first_unavailable(&self) -> Option<&str> {
        let slot = self.slots.iter().find(|(_, p)| self.is_unavailable(p));
        match (slot, self.missing.first()) {
            (Some((index, _)), Some(missing)) if missing < index => None,
            (Some((_, pod)), _) => Some(&pod.name),
            (None, Some(_)) => None,
            (None, None) => {
                let lowest = self.condemned.iter().rev().find(|(_, p)| self.is_unavailable(p));
                lowest.map(|(_, p)| p.name.as_str())
            }
        }
    }

    /// Template, claim name and claim, for each template.
    pub(crate) fn claims(&self, ordinal: i32) -> impl Iterator<Item = (&String, String, Option<&Claim>)> + use<'_, 'a> {
        self.set.claim_templates.iter().map(move |template| {
            let name = claim_name(template, &self.set.name, ordinal);
            let claim = self.observed.claims.get(&name);
            (template, name, claim)
        })
    }

    fn missing_claims(&self, ordinal: i32) -> Vec<Act> {
        self.claims(ordinal)
            .filter_map(|(template, name, claim)| match claim {
                None => Some(Act::CreateClaim {
                    name,
                    template: template.clone(),
                    ordinal,
                    owners: claims::of_new(self.set),
                }),
                Some(claim) if claim.terminating => {
                    Some(Act::Refuse { message: format!("pvc {name} is being deleted") })
                }
                Some(claim) if claim.reserved && !claim.reuse => Some(Act::Refuse {
                    message: format!(
                        "pvc {name} was kept when ordinal {ordinal} was reserved; delete it, or annotate it \
                         statefuld.io/reuse=true to use its data again"
                    ),
                }),
                Some(_) => None,
            })
            .collect()
    }

    /// The same for a pod that exists: only the claims that it names.
    fn missing_claims_of(&self, ordinal: i32, pod: &Pod) -> Vec<Act> {
        let mut acts = self.missing_claims(ordinal);
        acts.retain(|act| match act {
            Act::CreateClaim { name, .. } => !self.set.beyond.carry_out || pod.volumes.values().any(|c| c == name),
            // It has them.
            Act::Refuse { message } => message.ends_with("is being deleted"),
            _ => true,
        });
        acts
    }

    /// What is not right about the claims of a wanted ordinal, apart from claims that do not exist.
    fn claim_fixes(&self, ordinal: i32, pod: &str, uid: Option<&str>) -> Vec<Act> {
        let mut acts = self.claim_owners(ordinal, pod, uid, false);
        for (template, _, claim) in self.claims(ordinal) {
            let Some(claim) = claim.filter(|c| !c.terminating) else { continue };
            if claim.reserved {
                acts.push(mark(claim, ClaimMark::Reused));
            }
            if let Some(protect) = self.set.beyond.protect.filter(|p| *p != claim.protected) {
                acts.push(mark(claim, if protect { ClaimMark::Protected } else { ClaimMark::Unprotected }));
            }
            if self.set.beyond.claim_sizes.get(template).is_some_and(|size| *size > claim.requested) {
                let (name, uid, template) = (claim.name.clone(), claim.uid.clone(), template.clone());
                acts.push(Act::GrowClaim { name, uid, template });
            }
        }
        acts
    }

    pub(crate) fn claim_owners(&self, ordinal: i32, pod: &str, uid: Option<&str>, condemned: bool) -> Vec<Act> {
        self.claims(ordinal)
            .filter_map(|(_, name, claim)| {
                let claim = claim.filter(|c| !c.terminating)?;
                let change = claims::change(self.set, claim, pod, uid, condemned)?;
                Some(Act::SetClaimOwners {
                    name,
                    uid: claim.uid.clone(),
                    version: claim.version,
                    owners: change.owners,
                    conflict: change.conflict,
                })
            })
            .collect()
    }

    /// The next moment at which a ready pod becomes available.
    pub(crate) fn look_again(&self) -> Option<Millis> {
        self.pods().filter_map(|p| p.available_in(self.set.min_ready_seconds, self.now)).filter(|wait| *wait > 0).min()
    }

    /// Nobody hears of the pod's node.
    pub(crate) fn is_lost(&self, pod: &Pod) -> bool {
        pod.trouble == Trouble::NodeLost || pod.phase == PodPhase::Unknown
    }
}

pub(crate) fn delete(pod: &Pod) -> Act {
    Act::DeletePod { name: pod.name.clone(), uid: pod.uid.clone(), version: pod.version }
}

fn mark(claim: &Claim, mark: ClaimMark) -> Act {
    Act::MarkClaim { name: claim.name.clone(), uid: claim.uid.clone(), mark }
}
