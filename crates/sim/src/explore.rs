//! Every history of a small set, up to a number of disturbances: breadth first over whole states, each
//! visited once. The controller's calls interleave with everything else at every point.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use planner::{Answer, ExecState, Failure, FailureKind, Management, Observed, PodPhase, Request, Response, step};

use crate::run::plain_set;
use crate::{World, check};

/// How far to go.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Policy of the set.
    pub management: Management,
    /// Its replicas.
    pub replicas: i32,
    /// Edits, deletions, crashes, lost answers and failing pods in one history.
    pub disturbances: u8,
    /// States after which the exploration ends.
    pub states: usize,
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
pub fn explore(limits: Limits) -> Result<Explored, String> {
    let world = World::new(plain_set(limits.management, limits.replicas));
    let first = State { world, work: None, stale: None, left: limits.disturbances };
    let mut seen = HashSet::from([fingerprint(&first)]);
    let mut calm_worlds = HashSet::new();
    let mut queue = VecDeque::from([first]);
    let mut result = Explored { states: 1, steps: 0, complete: true, calmed: 0 };
    while let Some(state) = queue.pop_front() {
        if calm_worlds.insert(fingerprint(&state.world)) {
            calm(state.world.clone(), &mut calm_worlds)?;
            result.calmed += 1;
        }
        if result.states >= limits.states {
            result.complete = false;
            continue;
        }
        for next in successors(&state)? {
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

fn successors(state: &State) -> Result<Vec<State>, String> {
    let mut out = Vec::new();
    match &state.work {
        None => {
            let fresh = state.world.observe();
            for view in [Some(fresh), state.stale.clone()].into_iter().flatten() {
                let (exec, waiting) = step(ExecState::new(view.clone(), state.world.now), None);
                if !waiting.is_empty() {
                    out.push(State { work: Some(Work { view, state: exec, waiting }), ..state.clone() });
                }
            }
        }
        Some(work) => {
            for index in 0..work.waiting.len() {
                out.push(delivered(state, work, index, true, true)?);
                if state.left > 0 {
                    // The answer is lost, or the call was.
                    out.push(spend(delivered(state, work, index, true, false)?));
                    out.push(spend(delivered(state, work, index, false, false)?));
                }
            }
            if state.left > 0 {
                out.push(spend(State { work: None, stale: None, ..state.clone() }));
            }
        }
    }
    surroundings(state, &mut out);
    Ok(out)
}

fn spend(mut state: State) -> State {
    state.left -= 1;
    state
}

/// One call reaches the server or not, and its answer the controller or not.
fn delivered(state: &State, work: &Work, index: usize, reaches: bool, answered: bool) -> Result<State, String> {
    let mut next = state.clone();
    let mut work = work.clone();
    let request = work.waiting.remove(index);
    let mut answer = Answer::Failed(Failure { kind: FailureKind::Other, message: "lost".into() });
    if reaches {
        check::call(&work.view, next.world.now, &next.world, &request.call)
            .map_err(|e| format!("{e}\nview: {:#?}\nworld: {:#?}", work.view, next.world))?;
        let before = next.world.clone();
        let given = next.world.apply(&request.call);
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

/// What kubelet, user and garbage collector may do.
fn surroundings(state: &State, out: &mut Vec<State>) {
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
    for (name, found) in &state.world.pods {
        let pod = &found.pod;
        if pod.terminating {
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
                push(false, &|w| {
                    w.make_ready(name);
                });
            }
        }
        if !pod.terminating {
            push(true, &|w| w.change_pod(name, |p| p.pod.terminating = true));
        }
    }
    for replicas in 0..=2 {
        if replicas != state.world.set.replicas {
            push(true, &|w| w.edit(|s| s.replicas = replicas));
        }
    }
    for template in ["a", "b"] {
        if state.world.set.data.bytes() != template.as_bytes() {
            push(true, &|w| w.edit_template(template));
        }
    }
}

/// From here on nothing goes wrong: the set must reach its spec, and then nothing is written any more.
fn calm(mut world: World, known: &mut HashSet<u64>) -> Result<(), String> {
    let from = world.clone();
    for _ in 0..100 {
        let before = world.clone();
        let view = world.observe();
        let (mut exec, mut waiting) = step(ExecState::new(view.clone(), world.now), None);
        while !waiting.is_empty() {
            let request = waiting.remove(0);
            check::call(&view, world.now, &world, &request.call)?;
            let answer = world.apply(&request.call);
            let (state, more) = step(exec, Some(Response { id: request.id, answer }));
            exec = state;
            waiting.extend(more);
        }
        let names: Vec<String> = world.pods.keys().cloned().collect();
        for name in names {
            let pod = &world.pods[&name].pod;
            let wanted = planner::parent_and_ordinal(&name).is_some_and(|(_, n)| n < world.set.replicas);
            // Two condemned pods that failed wait for each other in an ordered set, as upstream: somebody
            // takes them away.
            if pod.terminating || pod.phase == PodPhase::Failed && !wanted {
                world.remove_pod(&name);
            } else if world.pods[&name].pod.phase != PodPhase::Failed {
                world.make_ready(&name);
            }
        }
        if world == before {
            return arrived(&world).map_err(|e| format!("{e}\nfrom {from:#?}\nto {world:#?}"));
        }
        // A world that was calmed before leads to the same end.
        if !known.insert(fingerprint(&world)) {
            return Ok(());
        }
    }
    Err(format!("it does not settle from {from:#?}"))
}

fn arrived(world: &World) -> Result<(), String> {
    let set = &world.set;
    let wanted = usize::try_from(set.replicas).unwrap_or(0);
    let right =
        world.pods.values().all(|p| p.pod.is_ready() && p.pod.revision.as_ref() == Some(&set.status.update_revision));
    if world.pods.len() != wanted || !right {
        return Err("it is quiet, and the pods are not as the spec says".into());
    }
    let s = &set.status;
    let told = (s.observed_generation, s.replicas, s.ready, s.current_revision == s.update_revision);
    if told != (set.generation, set.replicas, set.replicas, true) {
        return Err("it is quiet, and the status is not as the spec says".into());
    }
    Ok(())
}
