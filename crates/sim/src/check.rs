//! What must hold for every call that a controller makes, judged from the view that it acted on and, where
//! the view does not excuse it, from the world. Written apart from the planner, from the specification.

use planner::{
    Act, Call, Management, Member, Millis, Observed, Pod, PodPhase, Retention, Strategy, Unavailable,
    parent_and_ordinal,
};

use crate::World;

/// Judges a call before it is carried out. `view` is what the controller saw, at `now`.
pub fn call(view: &Observed, now: Millis, world: &World, call: &Call) -> Result<(), String> {
    match call {
        Call::Act(Act::CreatePod { name, ordinal, revision, .. }) => {
            created(view, now, name, *ordinal, revision)?;
            claims_first(view, world, name, *ordinal)
        }
        Call::Act(Act::DeletePod { name, uid, version }) => deleted(view, now, world, name, uid, *version),
        Call::Act(Act::CreateClaim { name, owners, .. }) => {
            at_work(view)?;
            let kept = view.set.when_deleted == Retention::Retain;
            require(owners.is_empty() == kept, || format!("claim {name} is created with owners {owners:?} (P7)"))?;
            require(!view.claims.contains_key(name), || format!("claim {name} existed already"))
        }
        Call::Act(Act::SetClaimOwners { name, owners, conflict, .. }) => {
            let keep = view.set.when_deleted == Retention::Retain && view.set.when_scaled == Retention::Retain;
            let ours = owners.iter().any(|o| o.uid == view.set.uid || o.kind == "Pod");
            require(*conflict || !(keep && ours), || format!("claim {name} would go although it is retained (P7)"))
        }
        Call::CreateRevision { name, data, .. } => {
            at_work(view)?;
            let known = view.revisions.iter().any(|r| r.data == *data);
            require(!known, || format!("revision {name} has the content of an older one (P8)"))
        }
        Call::WriteStatus { status, .. } => {
            let s = status;
            let counters = [s.replicas, s.ready, s.available, s.current, s.updated];
            require(counters.iter().all(|c| *c >= 0), || format!("negative counter in {s:?}"))?;
            require(s.available <= s.ready && s.ready <= s.replicas, || format!("counters contradict in {s:?}"))?;
            moved(view, status)
        }
        _ => Ok(()),
    }
}

/// P2, P5 and P9: a pod is created only in its turn, of the right revision, and not for a set that goes.
fn created(view: &Observed, now: Millis, name: &str, ordinal: i32, revision: &str) -> Result<(), String> {
    at_work(view)?;
    let set = &view.set;
    let last = set.start + set.replicas - 1;
    require((set.start..=last).contains(&ordinal), || format!("{name} is created, and not wanted"))?;
    // An orphan may have turned out to be gone when it was to be adopted.
    let exists = member(view, ordinal).is_some_and(|p| ours(view, p));
    require(!exists, || format!("{name} is created, and exists"))?;
    if set.management == Management::OrderedReady {
        for lower in set.start..ordinal {
            let ready = member(view, lower).is_some_and(|p| available(view, p, now) && !p.terminating);
            require(ready, || format!("{name} is created before {lower} is available (P2)"))?;
        }
    }
    let current = &set.status.current_revision;
    let known = view.revisions.iter().any(|r| r.name == *current);
    if let Strategy::RollingUpdate { partition: Some(partition), .. } = set.strategy
        && ordinal - set.start < partition
        && known
    {
        require(revision == current, || format!("{name}, below the partition, is created at {revision} (P5)"))?;
    }
    Ok(())
}

fn claims_first(view: &Observed, world: &World, name: &str, ordinal: i32) -> Result<(), String> {
    for template in &view.set.claim_templates {
        let claim = planner::claim_name(template, &view.set.name, ordinal);
        // Somebody may have deleted it again meanwhile.
        require(world.existed(&claim), || format!("{name} is created before its claim {claim}"))?;
    }
    Ok(())
}

/// P3, P4, P5 and P6: a pod is deleted only in its turn and within the budget.
fn deleted(view: &Observed, now: Millis, world: &World, name: &str, uid: &str, version: u64) -> Result<(), String> {
    at_work(view)?;
    require(!uid.is_empty() && version != 0, || format!("{name} is deleted without preconditions"))?;
    let found = view.pods.iter().find(|m| m.pod.name == name && m.pod.uid == uid);
    let pod = found.map(|m| &*m.pod).ok_or_else(|| format!("{name} is deleted, and was not seen"))?;
    let set = &view.set;
    let (_, ordinal) = parent_and_ordinal(name).ok_or_else(|| format!("{name} is deleted, and is nobody's"))?;
    // It serves nobody any more, whoever else goes.
    if pod.phase == PodPhase::Failed || pod.phase == PodPhase::Succeeded {
        return Ok(());
    }
    let ordered = set.management == Management::OrderedReady;
    let condemned = wanted_index(view, name).is_none();
    if ordered && one_at_a_time(view) {
        // What went when it was wanted may still be going when the set is scaled below it.
        let before = |n: &str| !condemned || parent_and_ordinal(n).is_some_and(|(_, n)| n > ordinal);
        let mut going = world.pods.values().filter(|p| p.deleted_by_controller && p.pod.name != name);
        let other = going.find(|p| ours(view, &p.pod) && before(&p.pod.name));
        require(other.is_none(), || format!("{name} is deleted while another still goes (P3)"))?;
    }
    let index = ordinal - set.start;
    if condemned {
        let above = |m: &&Member| parent_and_ordinal(&m.pod.name).is_some_and(|(_, n)| n > ordinal && n != ordinal);
        let higher = view.pods.iter().filter(|m| is_member(view, m) && ours(view, &m.pod)).filter(above);
        let others = higher.filter(|m| wanted_index(view, &m.pod.name).is_none()).count();
        return require(!ordered || others == 0, || format!("{name} is scaled away before a higher one (P4)"));
    }
    updated(view, now, pod, index)
}

/// A pod that is wanted and works goes only because of an update.
fn updated(view: &Observed, now: Millis, pod: &Pod, index: i32) -> Result<(), String> {
    let name = &pod.name;
    let set = &view.set;
    let Strategy::RollingUpdate { partition, max_unavailable } = set.strategy else {
        return Err(format!("{name} is deleted for an update although the strategy is OnDelete"));
    };
    require(index >= partition.unwrap_or(0), || format!("{name} is below the partition and deleted (P5)"))?;
    let target = view.revisions.iter().filter(|r| r.data == set.data).map(|r| &r.name).next_back();
    let old = target.is_none() || pod.revision.as_ref() != target;
    require(old, || format!("{name} is up to date and deleted"))?;
    let broken = !available(view, pod, now);
    if set.management == Management::Parallel && broken {
        return Ok(());
    }
    let limit = match max_unavailable {
        Unavailable::Count(count) => count.max(1),
        Unavailable::Percent(percent) => (percent * set.replicas / 100).max(1),
    };
    let up = (0..set.replicas)
        .filter(|i| member(view, set.start + i).is_some_and(|p| available(view, p, now) && !p.terminating));
    let down = set.replicas - i32::try_from(up.count()).unwrap_or(0);
    require(down < limit, || format!("{name} is taken down with {down} of {limit} down already (P6)"))
}

/// The update revision becomes current only when every pod has it.
fn moved(view: &Observed, status: &planner::Status) -> Result<(), String> {
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
    require(done, || "currentRevision moved before every pod was updated".into())
}

fn at_work(view: &Observed) -> Result<(), String> {
    require(!view.set.deleting, || "something is made or deleted for a set that goes (P9)".into())
}

fn one_at_a_time(view: &Observed) -> bool {
    matches!(
        view.set.strategy,
        Strategy::OnDelete | Strategy::RollingUpdate { max_unavailable: Unavailable::Count(1), .. }
    )
}

fn wanted_index(view: &Observed, name: &str) -> Option<i32> {
    let index = parent_and_ordinal(name)?.1 - view.set.start;
    (0..view.set.replicas).contains(&index).then_some(index)
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
    pod.phase == PodPhase::Running && pod.ready_since.is_some_and(|since| since + wait <= now)
}

fn require(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}
