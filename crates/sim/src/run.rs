//! A random history of one set: edits, pods that come and fail, stale views, lost answers, crashes; then
//! calm, in which the set must reach its spec and stay there.

use std::collections::VecDeque;

use planner::{
    Answer, ExecState, Failure, FailureKind, Observed, PodPhase, Request, Reserved, Response, Set, Strategy, Trouble,
    step,
};

use crate::random::{random_set, random_strategy};
use crate::{Rng, World, check};

/// How much goes wrong.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// Steps of the rough part.
    pub steps: usize,
    /// The largest number of replicas.
    pub replicas: usize,
    /// Views that the controller may be behind.
    pub staleness: usize,
}

impl Default for Faults {
    fn default() -> Self {
        Self { steps: 250, replicas: 5, staleness: 4 }
    }
}

/// A rule that did not hold. The seed replays it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The seed.
    pub seed: u64,
    /// What happened.
    pub what: String,
    /// The last steps before it.
    pub trace: Vec<String>,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "seed {}: {}", self.seed, self.what)?;
        self.trace.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// Runs the history of a seed.
pub fn run(seed: u64, faults: Faults) -> Result<(), Violation> {
    let mut rng = Rng::new(seed);
    let set = random_set(&mut rng, faults.replicas);
    let mut life = Life {
        views: VecDeque::from([World::new(set.clone()).observe()]),
        world: World::new(set),
        rng,
        faults,
        controller: None,
        behind: 0,
        trace: VecDeque::new(),
        writes: 0,
    };
    life.rough().and_then(|()| life.calm()).map_err(|what| Violation { seed, what, trace: life.trace.into() })
}

/// Executions are bounded by this in the calm part; a set that needs more never settles.
const CALM_ROUNDS: usize = 400;
/// Lines of trace kept for a failure.
const TRACE_LIMIT: usize = 60;

struct Life {
    world: World,
    /// Past views, oldest first; the last one is the world as it is.
    views: VecDeque<Observed>,
    /// How many of the last views the controller may be shown: none older than its own last write.
    behind: usize,
    rng: Rng,
    faults: Faults,
    controller: Option<Work>,
    trace: VecDeque<String>,
    writes: usize,
}

/// An execution under way.
struct Work {
    view: Observed,
    now: i64,
    state: ExecState,
    waiting: Vec<Request>,
}

impl Life {
    fn rough(&mut self) -> Result<(), String> {
        for _ in 0..self.faults.steps {
            match self.rng.below(10) {
                0..=4 => self.controller_step(true)?,
                5..=7 => self.kubelet(),
                8 => {
                    self.world.collect();
                    self.changed();
                }
                _ => self.user(),
            }
        }
        Ok(())
    }

    /// Nothing goes wrong any more: pods become ready, terminating ones go, views are fresh.
    fn calm(&mut self) -> Result<(), String> {
        self.note("calm");
        self.controller = None;
        let mut quiet = 0;
        for _ in 0..CALM_ROUNDS {
            let before = self.writes;
            self.behind = 0;
            self.controller_step(false)?;
            while self.controller.is_some() {
                self.controller_step(false)?;
            }
            let moved = self.settle_pods();
            self.world.now += 1_000;
            self.changed();
            quiet = if self.writes == before && !moved { quiet + 1 } else { 0 };
            // Ready is not yet available: give minReadySeconds time to pass.
            if quiet > 12 {
                return self.goal().map_err(|e| format!("{e}; {}", self.summary()));
            }
        }
        Err("it does not settle".into())
    }

    /// Everything that kubelet and garbage collector still have to do. False if nothing.
    fn settle_pods(&mut self) -> bool {
        let mut moved = false;
        let names: Vec<String> = self.world.pods.keys().cloned().collect();
        for name in names {
            let found = &self.world.pods[&name];
            let pod = &found.pod;
            let ordinal = planner::parent_and_ordinal(&name).map(|(_, n)| n);
            let wanted = ordinal.is_some_and(|n| self.world.set.index_of(n).is_some());
            let ended = matches!(pod.phase, PodPhase::Failed | PodPhase::Succeeded);
            // Somebody takes away what holds a name that nobody selects any more, and what blocks an
            // ordered scale-down for good: two condemned pods that ended wait for each other (as upstream).
            if pod.terminating || !found.matches || ended && !wanted {
                self.world.remove_pod(&name);
                moved = true;
            } else if !pod.is_ready() && !ended {
                // Nobody makes claims for a pod that is not wanted; without them it never gets ready.
                if !wanted {
                    self.world.restore_claims(&name);
                }
                moved |= self.world.make_ready(&name);
            }
        }
        let free = |name: &str| !self.world.pods.values().any(|p| p.pod.volumes.values().any(|c| c == name));
        let claims = self.world.claims.values().filter(|c| c.terminating && free(&c.name));
        for name in claims.map(|c| c.name.clone()).collect::<Vec<_>>() {
            self.world.claims.remove(&name);
            moved = true;
        }
        while self.world.collect() {
            moved = true;
        }
        moved
    }

    /// The set and its pods in a few words, for a failure.
    fn summary(&self) -> String {
        let Set { replicas, start, management, strategy, deleting, .. } = &self.world.set;
        let pods: Vec<String> = self
            .world
            .pods
            .values()
            .map(|p| {
                let pod = &p.pod;
                let state = (pod.is_ready(), pod.terminating, p.matches, pod.controller().is_some());
                format!("{} {:?} {state:?}", pod.name, pod.phase)
            })
            .collect();
        let plan = planner::plan(&self.world.observe(), self.world.now);
        let reasons: Vec<String> = plan.reasons.iter().map(ToString::to_string).collect();
        format!(
            "{replicas} from {start}, {management:?}, {strategy:?}, deleting {deleting}, \
             pods (ready, terminating, matches, owned) {pods:?}, reasons {reasons:?}"
        )
    }

    /// What must be true once all is quiet.
    fn goal(&mut self) -> Result<(), String> {
        let world = &self.world;
        let set = &world.set;
        if set.deleting {
            let left = world.pods.values().filter(|p| p.pod.controller().is_some()).count();
            if set.beyond.ordered_deletion {
                return Err("the set is not let go".into());
            }
            return if left == 0 { Ok(()) } else { Err(format!("{left} pods outlive their set")) };
        }
        let plan = planner::plan(&world.observe(), world.now);
        if !plan.is_idle(set) {
            return Err(format!("quiet, and yet there is more to do: {plan:?}"));
        }
        let target = &set.status.update_revision;
        let retry = &set.beyond.retry;
        // A revision that failed is held back until somebody asks to try again.
        let held = set.beyond.rollback && world.revisions.get(target).is_some_and(|r| r.held.as_ref() == Some(retry));
        let (partition, follows) = match set.strategy {
            Strategy::RollingUpdate { partition, .. } => (partition.unwrap_or(0), true),
            Strategy::OnDelete => (0, false),
            Strategy::Recreate => (0, true),
        };
        for index in 0..set.replicas {
            let Some(ordinal) = set.ordinal_at(i64::from(index)) else { continue };
            let name = planner::pod_name(&set.name, ordinal);
            let Some(found) = world.pods.get(&name) else { return Err(format!("{name} is missing")) };
            let owner = found.pod.controller().map(|o| &o.uid);
            if owner != Some(&set.uid) {
                return Err(format!("{name} is not the set's"));
            }
            if follows && !held && index >= partition && found.pod.revision.as_ref() != Some(target) {
                return Err(format!("{name} is of {:?}, not of {target}", found.pod.revision));
            }
            for claim in found.pod.volumes.values() {
                if !world.claims.contains_key(claim) {
                    return Err(format!("{name} lacks its claim {claim}"));
                }
            }
        }
        let surplus = world.pods.values().find(|p| {
            let ordinal = planner::parent_and_ordinal(&p.pod.name).map(|(_, n)| n);
            p.pod.controller().is_some_and(|o| o.uid == set.uid) && ordinal.is_none_or(|n| set.index_of(n).is_none())
        });
        if let Some(surplus) = surplus {
            return Err(format!("{} is not wanted and stays", surplus.pod.name));
        }
        let s = &set.status;
        let told = (s.observed_generation, s.replicas, s.ready, s.available);
        let true_ones = (set.generation, set.replicas, set.replicas, set.replicas);
        if told != true_ones { Err(format!("the status says {s:?}")) } else { Ok(()) }
    }

    /// The controller begins, goes on by one call, or crashes.
    fn controller_step(&mut self, rough: bool) -> Result<(), String> {
        let Some(mut work) = self.controller.take() else {
            let lag = if rough { self.rng.below(self.behind.min(self.faults.staleness) + 1) } else { 0 };
            let view = self.views[self.views.len() - 1 - lag].clone();
            // Its clock is not the one that wrote the times which it reads.
            let skew = if rough { self.rng.below(7) as i64 * 1_000 - 3_000 } else { 0 };
            let now = self.world.now + skew;
            let begun = ExecState::new(view.clone(), now);
            // As the driver does for sets whose status was just written.
            let begun = if rough && self.rng.one_in(2) { begun.putting_off_status() } else { begun };
            let (state, waiting) = step(begun, None);
            if !waiting.is_empty() {
                self.controller = Some(Work { view, now, state, waiting });
            }
            return Ok(());
        };
        if rough && self.rng.one_in(25) {
            self.note("the controller crashes");
            // A new one lists: its first view is the present.
            self.behind = 0;
            return Ok(());
        }
        let next = self.rng.below(work.waiting.len());
        let request = work.waiting.swap_remove(next);
        let answer = self.deliver(&work, &request, rough)?;
        let (state, more) = step(work.state, Some(Response { id: request.id, answer }));
        work.state = state;
        work.waiting.extend(more);
        if !work.waiting.is_empty() {
            self.controller = Some(work);
        } else if work.state.outcome().is_none() {
            return Err("an execution waits for nothing and has not ended".into());
        }
        Ok(())
    }

    fn deliver(&mut self, work: &Work, request: &Request, rough: bool) -> Result<Answer, String> {
        let lost = Answer::Failed(Failure { kind: FailureKind::Other, message: "lost".into() });
        if rough && self.rng.one_in(30) {
            self.note(&format!("never sent: {:?}", request.call));
            return Ok(lost);
        }
        self.note(&format!("{:?}", request.call));
        check::call(&work.view, work.now, &self.world, &request.call)
            .map_err(|e| format!("{e}; seen: {}; pods as seen: {:#?}", self.summary(), work.view.pods))?;
        let answer = self.world.apply(&request.call);
        match &answer {
            Answer::Failed(failure) => self.note(&format!("  refused: {}", failure.message)),
            _ if matches!(request.call, planner::Call::GetSet | planner::Call::GetRevision { .. }) => {}
            _ => {
                self.writes += 1;
                self.changed();
                self.behind = 0;
            }
        }
        Ok(if rough && self.rng.one_in(30) { lost } else { answer })
    }

    /// Something happens to a pod.
    fn kubelet(&mut self) {
        let names: Vec<String> = self.world.pods.keys().cloned().collect();
        let Some(name) = self.rng.pick(&names).cloned() else { return };
        let pod = self.world.pods[&name].pod.clone();
        let choice = self.rng.below(10);
        let lost = pod.trouble == Trouble::NodeLost;
        let finished = matches!(pod.phase, PodPhase::Failed | PodPhase::Succeeded);
        let what = match choice {
            0 if !finished => {
                self.world.change_pod(&name, |p| p.pod.ready_since = None);
                "unready"
            }
            1 if self.rng.one_in(3) => {
                self.world.change_pod(&name, |p| {
                    p.pod.phase = PodPhase::Failed;
                    p.pod.ready_since = None;
                });
                "failed"
            }
            2 => {
                self.world.now += 3_000;
                "later"
            }
            // Nobody but its node can say that it is gone.
            _ if pod.terminating && !lost => {
                self.world.remove_pod(&name);
                "gone"
            }
            3 if !finished => {
                let all = [Trouble::Container, Trouble::Misfit, Trouble::Outside, Trouble::NodeLost];
                let trouble = all[self.rng.below(all.len())];
                self.world.change_pod(&name, |p| {
                    p.pod.ready_since = None;
                    p.pod.trouble = trouble;
                });
                "in trouble"
            }
            4 if !finished && !pod.is_ready() && self.world.has_claims(&name) => {
                self.world.change_pod(&name, |p| p.pod.phase = PodPhase::Running);
                "runs, is not ready"
            }
            _ if !finished => {
                self.world.make_ready(&name);
                "ready"
            }
            _ => return,
        };
        self.note(&format!("{name} {what}"));
        self.changed();
    }

    /// Somebody edits or deletes something.
    fn user(&mut self) {
        let pods: Vec<String> = self.world.pods.keys().cloned().collect();
        let what = match self.rng.below(14) {
            0..=2 => {
                let replicas = i32::try_from(self.rng.below(self.faults.replicas + 1)).unwrap_or(0);
                self.world.edit(|s| s.replicas = replicas);
                format!("scale to {replicas}")
            }
            3..=4 => {
                let template = ["a", "b", "c"][self.rng.below(3)];
                self.world.edit_template(template);
                format!("template {template}")
            }
            5 => {
                let strategy = random_strategy(&mut self.rng, self.faults.replicas);
                self.world.edit(|s| s.strategy = strategy);
                format!("{strategy:?}")
            }
            6..=7 => {
                let Some(name) = self.rng.pick(&pods).cloned() else { return };
                self.world.change_pod(&name, |p| p.pod.terminating = true);
                format!("deletes {name}")
            }
            8 => {
                let Some(name) = self.rng.pick(&pods).cloned() else { return };
                let choice = self.rng.below(3);
                self.world.change_pod(&name, |p| match choice {
                    0 => p.matches = !p.matches,
                    1 => p.pod.owners.clear(),
                    _ => p.pod.pod_name_label = None,
                });
                format!("relabels {name}, {choice}")
            }
            9 => {
                let claims: Vec<String> = self.world.claims.keys().cloned().collect();
                let Some(name) = self.rng.pick(&claims).cloned() else { return };
                // As protection of claims in use would have it.
                let used = self.world.pods.values().any(|p| p.pod.volumes.values().any(|c| *c == name));
                match self.world.claims.get_mut(&name) {
                    Some(claim) if used => claim.terminating = true,
                    _ => drop(self.world.claims.remove(&name)),
                }
                format!("deletes claim {name}")
            }
            10 if self.rng.one_in(2) => {
                let reserved = i32::try_from(self.rng.below(5)).unwrap_or(0) - 1;
                self.world.edit(|s| s.beyond.reserved = Reserved::new((reserved >= 0).then_some((reserved, reserved))));
                // What was kept may be used again: somebody who releases an ordinal says so.
                self.world.allow_reuse();
                format!("reserves {reserved}")
            }
            12 => {
                let retry = ["", "again"][self.rng.below(2)];
                self.world.edit(|s| s.beyond.retry = retry.to_owned());
                format!("retry {retry:?}")
            }
            13 => self.annotate(),
            10 => {
                let start = i32::try_from(self.rng.below(3)).unwrap_or(0);
                self.world.edit(|s| s.start = start);
                format!("start {start}")
            }
            _ => {
                if !self.rng.one_in(10) {
                    return;
                }
                self.world.edit(|s| s.deleting = true);
                "deletes the set".into()
            }
        };
        self.note(&what);
        self.changed();
    }

    /// Somebody changes what an annotation is about.
    fn annotate(&mut self) -> String {
        match self.rng.below(3) {
            0 => {
                let hash = ["one", "two"][self.rng.below(2)];
                self.world.edit(|s| s.beyond.overrides = [(1, hash.to_owned())].into());
                format!("overrides ordinal 1 by {hash}")
            }
            1 if self.world.set.beyond.carry_out => {
                let name = ["web", "www"][self.rng.below(2)];
                self.world.edit(|s| s.service_name = name.to_owned());
                format!("service {name}")
            }
            _ => {
                let size = i64::try_from(self.rng.below(4)).unwrap_or(0);
                self.world.edit(|s| {
                    s.beyond.claim_sizes = s.claim_templates.iter().map(|t| (t.clone(), size)).collect();
                });
                format!("claims of {size}")
            }
        }
    }

    /// The world has changed: the views so far are older by one.
    fn changed(&mut self) {
        let view = self.world.observe();
        if self.views.back() == Some(&view) {
            return;
        }
        self.views.push_back(view);
        self.behind += 1;
        while self.views.len() > self.faults.staleness + 1 {
            self.views.pop_front();
        }
    }

    fn note(&mut self, what: &str) {
        self.trace.push_back(what.to_owned());
        if self.trace.len() > TRACE_LIMIT {
            self.trace.pop_front();
        }
    }
}
