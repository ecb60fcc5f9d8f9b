//! Every history of a small set, up to a number of disturbances: breadth first over whole states, each
//! visited once. The controller's calls interleave with everything else at every point: pods that fail and flip,
//! nodes that are lost, edits, deletions by users, views that are old in part or in whole, answers that are lost,
//! and a crash between any two calls.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use planner::{
    Answer, Call, ExecState, Failure, FailureKind, Management, Observed, PodPhase, Request, Reserved, Response, Set,
    Strategy, Trouble, step,
};

use crate::check::{Breach, breach};
use crate::{Mutant, World, check};

/// A template whose pods never become ready.
pub const BROKEN_TEMPLATE: &str = "x";

/// What to explore, and how far to go.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The set in the beginning.
    pub set: Set,
    /// What people may do to it, besides deleting pods.
    pub edits: Vec<Edit>,
    /// Edits, deletions, crashes, lost answers and failing pods in one history.
    pub disturbances: u8,
    /// States after which the exploration ends.
    pub states: usize,
    /// A bug that is put in.
    pub mutant: Option<Mutant>,
}

/// What a person, or a machine, may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Another number of replicas.
    Scale(i32),
    /// Another template; [`BROKEN_TEMPLATE`] for one that never works.
    Template(&'static str),
    /// Another update strategy.
    Strategy(Strategy),
    /// Another management policy.
    Policy(Management),
    /// An ordinal is reserved, and only this.
    Reserve(i32),
    /// The set is deleted.
    Delete,
    /// Nodes may be lost, and come back.
    NodeLoss,
    /// Seconds pass in which nothing else happens.
    Later(i64),
    /// Another value of `retry`.
    Retry(&'static str),
}

impl Edit {
    fn apply(self, world: &mut World) {
        match self {
            Self::Scale(replicas) if world.set.replicas != replicas => world.edit(|s| s.replicas = replicas),
            Self::Template(template) if world.set.data.bytes() != template.as_bytes() => world.edit_template(template),
            Self::Strategy(strategy) if world.set.strategy != strategy => world.edit(|s| s.strategy = strategy),
            Self::Policy(policy) if world.set.management != policy => world.edit(|s| s.management = policy),
            Self::Reserve(ordinal) if !world.set.beyond.reserved.contains(ordinal) => {
                world.edit(|s| s.beyond.reserved = Reserved::new([(ordinal, ordinal)]));
                // Another ordinal is released by that, which takes this permission.
                world.allow_reuse();
            }
            Self::Retry(retry) if world.set.beyond.retry != retry => world.edit(|s| s.beyond.retry = retry.to_owned()),
            Self::Later(seconds) => world.now += seconds * 1000,
            Self::Delete if !world.set.deleting => world.edit(|s| s.deleting = true),
            _ => {}
        }
    }
}

/// What was explored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explored {
    /// Different states.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
    /// Every state within the limits was visited.
    pub complete: bool,
    /// States from which calm was tried out, each leading to the spec.
    pub calmed: usize,
}

impl std::fmt::Display for Explored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { states, steps, calmed, .. } = self;
        write!(f, "{states} states, {steps} steps between them, {calmed} worlds from which calm leads to the spec")
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    world: World,
    work: Option<Work>,
    /// The view before the last change, which the next execution may still see; none if the controller
    /// has written since.
    stale: Option<Observed>,
    left: u8,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Work {
    view: Observed,
    state: ExecState,
    waiting: Vec<Request>,
}

/// Explores. Fails with the first state in which a rule does not hold.
pub fn explore(limits: &Limits) -> Result<Explored, Breach> {
    let world = World::new(limits.set.clone());
    let first = State { world, work: None, stale: None, left: limits.disturbances };
    let mut seen = HashSet::from([fingerprint(&first)]);
    let mut calm_worlds = HashSet::new();
    let mut queue = VecDeque::from([first]);
    let mut result = Explored { states: 1, steps: 0, complete: true, calmed: 0 };
    while let Some(state) = queue.pop_front() {
        if calm_worlds.insert(fingerprint(&state.world)) {
            calm(limits, state.world.clone(), &mut calm_worlds)?;
            result.calmed += 1;
        }
        if result.states >= limits.states {
            result.complete = false;
            continue;
        }
        for next in successors(limits, &state)? {
            result.steps += 1;
            if seen.insert(fingerprint(&next)) {
                result.states += 1;
                queue.push_back(next);
            }
        }
    }
    Ok(result)
}

fn fingerprint(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// An execution that begins with this view, seen through the bug if there is one.
fn begin(limits: &Limits, view: &Observed, now: i64) -> (ExecState, Vec<Request>) {
    let mut seen = view.clone();
    if let Some(mutant) = limits.mutant {
        mutant.view(&mut seen);
    }
    step(ExecState::new(seen, now), None)
}

/// Views that the controller may have: of now, of before, and mixed, as informers do not move together.
fn views(state: &State) -> Vec<Observed> {
    let fresh = state.world.observe();
    let Some(stale) = &state.stale else { return vec![fresh] };
    let old_set = Observed { set: stale.set.clone(), ..fresh.clone() };
    let old_pods = Observed { pods: stale.pods.clone(), ..fresh.clone() };
    let mut views = vec![fresh];
    for view in [stale.clone(), old_set, old_pods] {
        if !views.contains(&view) {
            views.push(view);
        }
    }
    views
}

fn successors(limits: &Limits, state: &State) -> Result<Vec<State>, Breach> {
    let mut out = Vec::new();
    match &state.work {
        None => {
            for view in views(state) {
                let (exec, waiting) = begin(limits, &view, state.world.now);
                if !waiting.is_empty() {
                    out.push(State { work: Some(Work { view, state: exec, waiting }), ..state.clone() });
                }
            }
        }
        Some(work) => {
            for index in 0..work.waiting.len() {
                out.push(delivered(limits, state, work, index, true, true)?);
                if state.left > 0 {
                    // The answer is lost, or the call was.
                    out.push(spend(delivered(limits, state, work, index, true, false)?));
                    out.push(spend(delivered(limits, state, work, index, false, false)?));
                }
            }
            if state.left > 0 {
                out.push(spend(State { work: None, stale: None, ..state.clone() }));
            }
        }
    }
    surroundings(limits, state, &mut out);
    Ok(out)
}

fn spend(mut state: State) -> State {
    state.left -= 1;
    state
}

/// One call reaches the server or not, and its answer the controller or not.
fn delivered(
    limits: &Limits,
    state: &State,
    work: &Work,
    index: usize,
    reaches: bool,
    answered: bool,
) -> Result<State, Breach> {
    let mut next = state.clone();
    let mut work = work.clone();
    let request = work.waiting.remove(index);
    let mut answer = Answer::Failed(Failure { kind: FailureKind::Other, message: "lost".into() });
    if reaches {
        let before = next.world.clone();
        let given = carried_out(limits, &work.view, &mut next.world, request.call)?;
        if next.world != before {
            // A controller never plans from views older than its own last write.
            next.stale = None;
        }
        if answered {
            answer = given;
        }
    }
    let (exec, more) = step(work.state, Some(Response { id: request.id, answer }));
    work.state = exec;
    work.waiting.extend(more);
    next.work = (!work.waiting.is_empty()).then_some(work);
    Ok(next)
}

/// Judges a call, spoiled by the bug if there is one, and carries it out.
fn carried_out(limits: &Limits, view: &Observed, world: &mut World, call: Call) -> Result<Answer, Breach> {
    let spoiled = match limits.mutant {
        Some(mutant) => mutant.call(view, call),
        None => Some(call),
    };
    let Some(call) = spoiled else { return Ok(Answer::Done { version: 0 }) };
    check::call(view, world.now, world, &call)
        .map_err(|e| breach(e.rule, format!("{}\nview: {view:#?}\nworld: {world:#?}", e.why)))?;
    Ok(world.apply(&call))
}

/// What kubelet, user and garbage collector may do.
fn surroundings(limits: &Limits, state: &State, out: &mut Vec<State>) {
    let mut push = |costs: bool, change: &dyn Fn(&mut World)| {
        if costs && state.left == 0 {
            return;
        }
        let mut next = state.clone();
        change(&mut next.world);
        if next.world != state.world {
            next.stale = Some(state.world.observe());
            next.left -= u8::from(costs);
            out.push(next);
        }
    };
    let loses_nodes = limits.edits.contains(&Edit::NodeLoss);
    for (name, found) in &state.world.pods {
        let pod = &found.pod;
        let lost = pod.trouble == Trouble::NodeLost;
        if pod.terminating && !lost {
            push(false, &|w| w.remove_pod(name));
        }
        if matches!(pod.phase, PodPhase::Pending | PodPhase::Running) {
            if pod.is_ready() {
                push(true, &|w| w.change_pod(name, |p| p.pod.ready_since = None));
                push(true, &|w| {
                    w.change_pod(name, |p| {
                        p.pod.phase = PodPhase::Failed;
                        p.pod.ready_since = None;
                    });
                });
            } else {
                push(false, &|w| settle(w, name));
            }
        }
        if loses_nodes && !lost {
            push(true, &|w| {
                w.change_pod(name, |p| {
                    p.pod.ready_since = None;
                    p.pod.trouble = Trouble::NodeLost;
                });
            });
        }
        if !pod.terminating {
            push(true, &|w| w.change_pod(name, |p| p.pod.terminating = true));
        }
    }
    for edit in &limits.edits {
        push(true, &|w| edit.apply(w));
    }
    push(false, &|w| {
        w.collect();
    });
}

/// What comes of a pod if it is let be: it becomes ready, or turns out never to.
fn settle(world: &mut World, name: &str) {
    let revision = world.pods.get(name).and_then(|p| p.pod.revision.clone());
    let broken = revision.and_then(|r| world.revisions.get(&r).cloned()).map(|r| r.data);
    if broken.is_some_and(|data| data.bytes() == BROKEN_TEMPLATE.as_bytes()) {
        world.change_pod(name, |p| p.pod.trouble = Trouble::Container);
    } else {
        world.make_ready(name);
    }
}

/// Rounds of calm after which a set that is not quiet never will be.
const CALM_ROUNDS: usize = 100;

/// From here on nothing goes wrong: the set must reach its spec, and then nothing is written any more.
fn calm(limits: &Limits, mut world: World, known: &mut HashSet<u64>) -> Result<(), Breach> {
    let from = world.clone();
    for _ in 0..CALM_ROUNDS {
        let before = world.clone();
        let view = world.observe();
        let (mut exec, mut waiting) = begin(limits, &view, world.now);
        let mut wrote = false;
        while !waiting.is_empty() {
            let request = waiting.remove(0);
            wrote |= !matches!(request.call, Call::GetSet | Call::GetRevision { .. });
            let answer = carried_out(limits, &view, &mut world, request.call)?;
            let (state, more) = step(exec, Some(Response { id: request.id, answer }));
            exec = state;
            waiting.extend(more);
        }
        pods_settle(&mut world);
        let look_again = exec.outcome().and_then(|outcome| outcome.look_again);
        if world == before {
            // Nothing is left but to wait, for a deadline or for minReadySeconds.
            if let (false, Some(wait)) = (wrote, look_again.filter(|wait| *wait > 0)) {
                world.now += wait;
                continue;
            }
            if wrote {
                return Err(breach("P10", format!("it is quiet, and writes go on\nfrom {from:#?}\nto {world:#?}")));
            }
            return arrived(&world).map_err(|e| breach("Live", format!("{e}\nfrom {from:#?}\nto {world:#?}")));
        }
        // A world that was calmed before leads to the same end.
        if !known.insert(fingerprint(&world)) {
            return Ok(());
        }
    }
    Err(breach("Live", format!("it does not settle from {from:#?}")))
}

/// Everything that nodes, people and the garbage collector still have to do.
fn pods_settle(world: &mut World) {
    let names: Vec<String> = world.pods.keys().cloned().collect();
    for name in names {
        let pod = &world.pods[&name].pod;
        let wanted = planner::parent_and_ordinal(&name).is_some_and(|(_, n)| world.set.index_of(n).is_some());
        // Two condemned pods that failed wait for each other in an ordered set, as upstream: somebody
        // takes them away.
        if pod.terminating || pod.phase == PodPhase::Failed && !wanted {
            world.remove_pod(&name);
        } else if pod.phase != PodPhase::Failed {
            settle(world, &name);
        }
    }
    while world.collect() {}
}

fn arrived(world: &World) -> Result<(), String> {
    let set = &world.set;
    if set.deleting {
        let gone = world.pods.is_empty() && !set.beyond.ordered_deletion;
        return if gone { Ok(()) } else { Err("it is quiet, and the set is not gone".into()) };
    }
    let broken = |data: &planner::Blob| data.bytes() == BROKEN_TEMPLATE.as_bytes();
    // A template that never works is reached by nobody; what it leaves behind blocks an ordered set, as upstream,
    // unless it was asked to recover.
    let of = |revision: &String| world.revisions.get(revision);
    let stuck = world.pods.values().any(|p| p.pod.revision.as_ref().and_then(of).is_some_and(|r| broken(&r.data)));
    let wanted = usize::try_from(set.replicas).unwrap_or(0);
    let retry = Some(&set.beyond.retry);
    if set.beyond.rollback && of(&set.status.update_revision).is_some_and(|r| r.held.as_ref() == retry) {
        // What failed is held back: every pod works, be it of the one revision or the other.
        let works = world.pods.len() == wanted && world.pods.values().all(|p| p.pod.is_ready());
        return if works { Ok(()) } else { Err("a failed revision is held back, and its pods stay".into()) };
    }
    if broken(&set.data) || stuck && !set.beyond.replace_broken {
        return Ok(());
    }
    let (from, follows) = match set.strategy {
        Strategy::RollingUpdate { partition, .. } => (i64::from(partition.unwrap_or(0)), true),
        Strategy::OnDelete => (0, false),
        Strategy::Recreate => (0, true),
    };
    let right = world.pods.values().all(|p| {
        let index = planner::parent_and_ordinal(&p.pod.name).and_then(|(_, n)| set.index_of(n));
        let new = p.pod.revision.as_ref() == Some(&set.status.update_revision);
        p.pod.is_ready() && index.is_some_and(|i| new || !follows || i < from)
    });
    if world.pods.len() != wanted || !right {
        return Err("it is quiet, and the pods are not as the spec says".into());
    }
    let s = &set.status;
    let whole = from == 0 && follows;
    let told = (s.observed_generation, s.replicas, s.ready, !whole || s.current_revision == s.update_revision);
    if told != (set.generation, set.replicas, set.replicas, true) {
        return Err("it is quiet, and the status is not as the spec says".into());
    }
    Ok(())
}
