//! What must hold for every call that a controller makes, judged from the view that it acted on and, where
//! the view does not excuse it, from the world. Written apart from the planner, from the specification.
//!
//! | rule | says |
//! |---|---|
//! | P1 | one pod per identity: a pod is made under its own name, where there is none |
//! | P2 | OrderedReady makes a pod only when all wanted ones below are available |
//! | P3 | OrderedReady with maxUnavailable 1 takes down one pod at a time |
//! | P4 | OrderedReady scales away from the top |
//! | P5 | pods below the partition are not updated, and are made again at the current revision |
//! | P5b | … also where broken pods are replaced and failed revisions held |
//! | P6 | an update takes down no more than maxUnavailable |
//! | P7 | no claim is given away that is retained |
//! | P8 | a template that was seen before gets its old revision |
//! | P9 | nothing is made or taken down for a set that is deleted |
//! | P10 | nothing is written once the set is as its spec says (judged by `explore` and `run`) |
//! | P11 | every change names what it means, so that a repeated or late one does no harm |
//! | P12 | recovery takes down no pod that was ever ready |
//! | Claims | a pod's claims come before it |
//! | Current | the update revision becomes current only when every pod has it |
//! | Counters | the status does not contradict itself |
//! | Target | a pod that is up to date and works is not updated |
//! | Leave | an ordered deletion goes from the top |
//! | Reserve | a reserved ordinal is never filled, and left only while all others work |
//! | Recreate | new pods are not made beside old ones |
//! | Live | the set reaches its spec (judged by `explore` and `run`) |

use std::fmt;

use planner::{
    Act, Call, Management, Member, Millis, Observed, Pod, PodPhase, Retention, Strategy, Trouble, Unavailable,
    parent_and_ordinal,
};

use crate::World;

/// A rule that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    /// Which one.
    pub rule: &'static str,
    /// What happened.
    pub why: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.why)
    }
}

type Judgement = Result<(), Breach>;

/// Judges a call before it is carried out. `view` is what the controller saw, at `now`.
pub fn call(view: &Observed, now: Millis, world: &World, call: &Call) -> Judgement {
    match call {
        Call::Act(Act::CreatePod { name, ordinal, revision, .. }) => {
            created(view, now, name, *ordinal, revision)?;
            claims_first(view, world, name, *ordinal)
        }
        Call::Act(Act::DeletePod { name, uid, version }) => deleted(view, now, world, name, uid, *version),
        Call::Act(Act::CreateClaim { name, owners, .. }) => {
            at_work(view)?;
            let kept = view.set.when_deleted == Retention::Retain;
            require("P7", owners.is_empty() == kept, || format!("claim {name} is created with owners {owners:?}"))?;
            require("Claims", !view.claims.contains_key(name), || format!("claim {name} existed already"))
        }
        Call::Act(Act::SetClaimOwners { name, uid, owners, conflict, .. }) => {
            named(uid, name)?;
            let set = &view.set;
            let condemned = parent_and_ordinal(name).is_some_and(|(_, n)| set.index_of(n).is_none());
            let reserved = parent_and_ordinal(name).is_some_and(|(_, n)| set.beyond.reserved.contains(n));
            let may_by_pod = set.when_scaled == Retention::Delete && condemned && !reserved && !set.deleting;
            let by_set = owners.iter().any(|o| o.uid == set.uid);
            let by_pod = owners.iter().any(|o| o.kind == "Pod");
            let kept = (!by_set || set.when_deleted == Retention::Delete) && (!by_pod || may_by_pod);
            require("P7", *conflict || kept, || format!("claim {name} would go although it is retained"))
        }
        Call::Act(Act::MarkClaim { name, uid, .. } | Act::GrowClaim { name, uid, .. }) => named(uid, name),
        Call::Act(Act::LetGo { .. }) => {
            let left = view.pods.iter().filter(|m| ours(view, &m.pod)).count();
            require("Leave", view.set.deleting && left == 0, || format!("let go with {left} pods left"))
        }
        Call::CreateRevision { name, data, .. } => {
            at_work(view)?;
            let known = view.revisions.iter().any(|r| r.data == *data);
            require("P8", !known, || format!("revision {name} has the content of an older one"))
        }
        Call::WriteStatus { status, .. } => {
            let s = status;
            let counters = [s.replicas, s.ready, s.available, s.current, s.updated];
            require("Counters", counters.iter().all(|c| *c >= 0), || format!("negative counter in {s:?}"))?;
            let agree = s.available <= s.ready && s.ready <= s.replicas;
            require("Counters", agree, || format!("counters contradict in {s:?}"))?;
            moved(view, status)
        }
        _ => Ok(()),
    }
}

/// P1, P2, P5 and P9: a pod is created only in its turn, of the right revision, and not for a set that goes.
fn created(view: &Observed, now: Millis, name: &str, ordinal: i32, revision: &str) -> Judgement {
    at_work(view)?;
    let set = &view.set;
    require("P1", name == planner::pod_name(&set.name, ordinal), || format!("{name} is no name for {ordinal}"))?;
    require("Reserve", !set.beyond.reserved.contains(ordinal), || format!("{name} is created, and reserved"))?;
    let index = set.index_of(ordinal);
    let index = index.ok_or_else(|| breach("P1", format!("{name} is created, and not wanted")))?;
    if set.strategy == Strategy::Recreate {
        let old = view.pods.iter().filter(|m| is_member(view, m)).find(|m| is_old(view, &m.pod));
        let old = old.map(|m| &m.pod.name);
        require("Recreate", old.is_none(), || format!("{name} is created beside {old:?} of an old revision"))?;
    }
    // An orphan may have turned out to be gone when it was to be adopted.
    let exists = member(view, ordinal).is_some_and(|p| ours(view, p));
    require("P1", !exists, || format!("{name} is created, and exists"))?;
    if set.management == Management::OrderedReady {
        for lower in (0..index).filter_map(|i| set.ordinal_at(i)) {
            let ready = member(view, lower).is_some_and(|p| available(view, p, now) && !p.terminating);
            require("P2", ready, || format!("{name} is created before {lower} is available"))?;
        }
    }
    let current = &set.status.current_revision;
    let known = view.revisions.iter().any(|r| r.name == *current);
    if let Strategy::RollingUpdate { partition: Some(partition), .. } = set.strategy
        && index < i64::from(partition)
        && known
    {
        let rule = if set.beyond.replace_broken || set.beyond.rollback { "P5b" } else { "P5" };
        require(rule, revision == current, || format!("{name}, below the partition, is created at {revision}"))?;
    }
    Ok(())
}

fn claims_first(view: &Observed, world: &World, name: &str, ordinal: i32) -> Judgement {
    for template in &view.set.claim_templates {
        let claim = planner::claim_name(template, &view.set.name, ordinal);
        // Somebody may have deleted it again meanwhile.
        require("Claims", world.existed(&claim), || format!("{name} is created before its claim {claim}"))?;
    }
    Ok(())
}

/// P3 to P6, P11 and P12: a pod is deleted only in its turn and within the budget.
fn deleted(view: &Observed, now: Millis, world: &World, name: &str, uid: &str, version: u64) -> Judgement {
    require("P11", !uid.is_empty() && version != 0, || format!("{name} is deleted without preconditions"))?;
    let found = view.pods.iter().find(|m| m.pod.name == name && m.pod.uid == uid);
    let pod = found.map(|m| &*m.pod).ok_or_else(|| breach("P11", format!("{name} is deleted, and was not seen")))?;
    let set = &view.set;
    let ordinal = parent_and_ordinal(name).map(|(_, n)| n);
    let ordinal = ordinal.ok_or_else(|| breach("P1", format!("{name} is deleted, and is nobody's")))?;
    if set.deleting && set.beyond.ordered_deletion {
        let above =
            |m: &&Member| ours(view, &m.pod) && parent_and_ordinal(&m.pod.name).is_some_and(|(_, n)| n > ordinal);
        let higher = view.pods.iter().find(above).map(|m| &m.pod.name);
        return require("Leave", higher.is_none(), || format!("{name} goes before {higher:?}"));
    }
    at_work(view)?;
    // It serves nobody any more, whoever else goes.
    if pod.phase == PodPhase::Failed || pod.phase == PodPhase::Succeeded {
        return Ok(());
    }
    if set.strategy == Strategy::Recreate && is_old(view, pod) {
        return Ok(());
    }
    let ordered = set.management == Management::OrderedReady;
    let index = set.index_of(ordinal);
    if ordered && one_at_a_time(view) {
        // What went when it was wanted may still be going when the set is scaled below it.
        let before = |n: &str| index.is_some() || parent_and_ordinal(n).is_some_and(|(_, n)| n > ordinal);
        let mut going = world.pods.values().filter(|p| p.deleted_by_controller && p.pod.name != name);
        let other = going.find(|p| ours(view, &p.pod) && before(&p.pod.name));
        require("P3", other.is_none(), || format!("{name} is deleted while another still goes"))?;
    }
    match index {
        Some(index) => updated(view, now, world, pod, index),
        None if set.beyond.reserved.contains(ordinal) => {
            let idle = |m: &&Member| {
                let wanted = parent_and_ordinal(&m.pod.name).is_some_and(|(_, n)| set.index_of(n).is_some());
                wanted && is_member(view, m) && (!available(view, &m.pod, now) || m.pod.terminating)
            };
            let waiting = view.pods.iter().find(idle).map(|m| &m.pod.name);
            require("Reserve", waiting.is_none(), || format!("{name} is removed while {waiting:?} is not available"))
        }
        None => {
            let condemned = |m: &&Member| {
                let n = parent_and_ordinal(&m.pod.name).map(|(_, n)| n);
                n.is_some_and(|n| n > ordinal && set.index_of(n).is_none() && !set.beyond.reserved.contains(n))
            };
            let mut higher = view.pods.iter().filter(|m| is_member(view, m) && ours(view, &m.pod));
            let higher = higher.find(condemned).map(|m| &m.pod.name);
            require("P4", !ordered || higher.is_none(), || format!("{name} is scaled away before {higher:?}"))
        }
    }
}

/// A pod that is wanted and has not ended goes only because of an update, or because it never worked.
fn updated(view: &Observed, now: Millis, world: &World, pod: &Pod, index: i64) -> Judgement {
    let name = &pod.name;
    let set = &view.set;
    let Strategy::RollingUpdate { partition, max_unavailable } = set.strategy else {
        return Err(breach("Target", format!("{name} is deleted for an update although the strategy updates nothing")));
    };
    let recovers = set.beyond.replace_broken || set.beyond.rollback;
    let rule = if recovers { "P5b" } else { "P5" };
    require(rule, index >= i64::from(partition.unwrap_or(0)), || format!("{name} is below the partition and deleted"))?;
    let worked = pod.was_ready != Some(false) || pod.is_ready();
    if set.beyond.rollback && !is_old(view, pod) {
        // It may have been held back by this very execution.
        let holds = |r: &planner::Revision| r.held.as_ref() == Some(&set.beyond.retry);
        let held = target(view).is_some_and(|r| holds(r) || world.revisions.get(&r.name).is_some_and(holds));
        require("P12", held, || format!("{name} is rolled back, and its revision is not held back"))?;
        return require("P12", !worked, || format!("{name} worked once and is rolled back"));
    }
    require("Target", is_old(view, pod), || format!("{name} is up to date and deleted"))?;
    let broken = !available(view, pod, now);
    if set.management == Management::Parallel && broken {
        return Ok(());
    }
    let limit = match max_unavailable {
        Unavailable::Count(count) => i64::from(count.max(1)),
        Unavailable::Percent(percent) => (i64::from(percent) * i64::from(set.replicas) / 100).max(1),
    };
    // What this controller has taken down itself since the view is known to it.
    let taken = |p: &Pod| world.pods.get(&p.name).is_some_and(|w| w.deleted_by_controller && w.pod.uid == p.uid);
    let is_up = |p: &Pod| available(view, p, now) && !p.terminating && !taken(p);
    let wanted = i64::from(set.replicas);
    let up = (0..wanted).filter_map(|i| set.ordinal_at(i)).filter(|n| member(view, *n).is_some_and(is_up)).count();
    let down = wanted - i64::try_from(up).unwrap_or(0);
    if down >= limit && broken && recovers {
        let lost = pod.trouble == Trouble::NodeLost;
        return require("P12", !worked && !lost, || {
            format!("{name} worked once, or its node is lost, and is replaced")
        });
    }
    require("P6", down < limit, || format!("{name} is taken down with {down} of {limit} down already"))
}

/// The update revision becomes current only when every pod has it.
fn moved(view: &Observed, status: &planner::Status) -> Judgement {
    let before = &view.set.status;
    if status.current_revision == before.current_revision || before.current_revision.is_empty() {
        return Ok(());
    }
    if !view.revisions.iter().any(|r| r.name == before.current_revision) {
        return Ok(());
    }
    // Orphans may have turned out to be gone when they were to be adopted.
    let mut pods = view.pods.iter().filter(|m| is_member(view, m) && ours(view, &m.pod));
    let done = pods.all(|m| m.pod.revision.as_ref() == Some(&status.update_revision));
    require("Current", done, || "currentRevision moved before every pod was updated".into())
}

fn at_work(view: &Observed) -> Judgement {
    require("P9", !view.set.deleting, || "something is made or deleted for a set that goes".into())
}

fn named(uid: &str, name: &str) -> Judgement {
    require("P11", !uid.is_empty(), || format!("{name} is changed without a precondition"))
}

fn one_at_a_time(view: &Observed) -> bool {
    matches!(
        view.set.strategy,
        Strategy::OnDelete | Strategy::RollingUpdate { max_unavailable: Unavailable::Count(1), .. }
    )
}

/// The newest revision of the set's template.
fn target(view: &Observed) -> Option<&planner::Revision> {
    view.revisions.iter().filter(|r| r.data == view.set.data).max_by_key(|r| r.number)
}

/// The pod is not of the set's template, not of its ordinal's override, or not of the service that is carried out.
fn is_old(view: &Observed, pod: &Pod) -> bool {
    let hash = parent_and_ordinal(&pod.name).and_then(|(_, n)| view.set.beyond.overrides.get(&n));
    target(view).is_none_or(|t| pod.revision.as_ref() != Some(&t.name))
        || pod.override_hash.as_ref() != hash
        || view.set.beyond.carry_out && pod.subdomain != view.set.service_name
}

fn member(view: &Observed, ordinal: i32) -> Option<&Pod> {
    let name = planner::pod_name(&view.set.name, ordinal);
    view.pods.iter().find(|m| m.pod.name == name && is_member(view, m)).map(|m| &*m.pod)
}

fn is_member(view: &Observed, member: &Member) -> bool {
    let named = parent_and_ordinal(&member.pod.name).is_some_and(|(parent, _)| parent == view.set.name);
    // An orphan on its way out is not taken.
    let takes = match member.pod.controller() {
        Some(owner) => owner.uid == view.set.uid,
        None => !member.pod.terminating,
    };
    named && member.matches && takes
}

fn ours(view: &Observed, pod: &Pod) -> bool {
    pod.controller().is_some_and(|o| o.uid == view.set.uid)
}

fn available(view: &Observed, pod: &Pod, now: Millis) -> bool {
    let wait = i64::from(view.set.min_ready_seconds) * 1000;
    // Without a wait, ready is available, whatever the clocks say.
    pod.phase == PodPhase::Running && pod.ready_since.is_some_and(|since| wait == 0 || since + wait <= now)
}

fn require(rule: &'static str, holds: bool, otherwise: impl FnOnce() -> String) -> Judgement {
    if holds { Ok(()) } else { Err(breach(rule, otherwise())) }
}

pub(crate) fn breach(rule: &'static str, why: String) -> Breach {
    Breach { rule, why }
}
