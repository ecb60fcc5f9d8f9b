//! Carries a plan out, one API call at a time (several in parallel sets).
//!
//! ```text
//!  prologue: live check ▶ adopt revisions ▶ adopt, release pods ▶ write the revision
//!      │ each answer is put into the view, and the plan made anew from it
//!      ▼
//!  phases A ▶ B ▶ C ▶ D        the first failure skips the rest
//!      ▼
//!  status ▶ history ▶ finished
//! ```
//!
//! A failed prologue ends the execution: nothing is known well enough to write a status. Every call is
//! safe to lose or to repeat: creations are unique by name, everything else carries uid and version.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::call::{Act, Answer, Call, Event, Failure, FailureKind, Level, Request, Response};
use crate::plan::{Hold, Plan, RevisionAct, plan};
use crate::revision;
use crate::status;
use crate::types::{Member, Millis, Observed, Status};

/// Calls that a parallel phase has in flight at most.
const BATCH_LIMIT: usize = 500;
/// Names tried for one revision before the execution gives up until later.
const REVISION_TRIES: u32 = 16;
/// Times that the prologue may lead to another one.
const PROLOGUE_LIMIT: u32 = 4;

/// An execution under way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecState {
    observed: Observed,
    now: Millis,
    plan: Plan,
    stage: Stage,
    prologues: u32,
    next_id: u32,
    /// What each call in flight was for.
    waiting: BTreeMap<u32, Ticket>,
    events: Vec<Event>,
    failures: Vec<String>,
    stale: bool,
    /// Pods of the current revision that were taken down to be updated.
    left_current: i32,
    /// A status that can wait is not written.
    puts_off: bool,
    owes_status: bool,
}

/// How an execution ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Outcome {
    /// Well or not.
    pub verdict: Verdict,
    /// When to look again even if nothing changes, in milliseconds.
    pub look_again: Option<Millis>,
    /// A status is worth a write and was put off.
    pub owes_status: bool,
}

/// Whether an execution went well.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// All was done; the next change brings the next plan.
    Settled,
    /// The view was older than the world: try again once it has caught up.
    Stale,
    /// Something failed: try again later.
    Failed(String),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Stage {
    Begin,
    /// Calls of the prologue that remain, one after another.
    Prologue(VecDeque<Step>),
    Phase(Run),
    Status,
    History(usize),
    Finished,
}

/// One call of the prologue.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Step {
    Live,
    AdoptRevision(usize),
    AdoptPod(usize),
    ReleasePod(usize),
    Hold,
    Number,
    Create { tries: u32 },
    Get { tries: u32 },
}

/// A phase under way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Run {
    phase: usize,
    /// The next task to start.
    next: usize,
    /// Tasks to start at once.
    batch: usize,
    failed: bool,
    /// Tasks under way.
    tasks: BTreeMap<usize, Progress>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Progress {
    act: usize,
    errors: Vec<String>,
    /// An act lost against the world; nothing to tell people.
    stale: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Ticket {
    Step(Step),
    Act(usize),
    Status,
    Delete,
}

/// Takes the answer to a call (none to begin) and gives the next calls. An execution that waits for no
/// call has ended: see [`ExecState::outcome`].
pub fn step(mut state: ExecState, response: Option<Response>) -> (ExecState, Vec<Request>) {
    let mut requests = Vec::new();
    if let Some(Response { id, answer }) = response {
        // An answer that nobody waits for was given twice; the first one counted.
        if let Some(ticket) = state.waiting.remove(&id) {
            state.hear(ticket, answer, &mut requests);
        }
    }
    while state.waiting.is_empty() && state.stage != Stage::Finished {
        state.advance(&mut requests);
    }
    (state, requests)
}

impl ExecState {
    /// Plans for this view at this time, ready for the first [`step()`].
    pub fn new(observed: Observed, now: Millis) -> Self {
        let plan = plan(&observed, now);
        Self {
            observed,
            now,
            plan,
            stage: Stage::Begin,
            prologues: 0,
            next_id: 1,
            waiting: BTreeMap::new(),
            events: Vec::new(),
            failures: Vec::new(),
            stale: false,
            left_current: 0,
            puts_off: false,
            owes_status: false,
        }
    }

    /// The same, but a status that says no more than how far things have come is left to a later execution: to who
    /// carries it out, as if its write had been lost.
    pub fn putting_off_status(self) -> Self {
        Self { puts_off: true, ..self }
    }

    /// The plan that is carried out.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<Outcome> {
        if self.stage != Stage::Finished {
            return None;
        }
        let verdict = match (self.failures.is_empty(), self.stale) {
            (false, _) => Verdict::Failed(self.failures.join("; ")),
            (true, true) => Verdict::Stale,
            (true, false) => Verdict::Settled,
        };
        Some(Outcome { verdict, look_again: self.plan.look_again, owes_status: self.owes_status })
    }

    /// What there is to tell people since the last time.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    fn ask(&mut self, ticket: Ticket, call: Call, requests: &mut Vec<Request>) {
        let id = self.next_id;
        self.next_id += 1;
        self.waiting.insert(id, ticket);
        requests.push(Request { id, call });
    }

    /// Goes on when no call is in flight.
    fn advance(&mut self, requests: &mut Vec<Request>) {
        match &mut self.stage {
            Stage::Begin => self.begin(),
            Stage::Prologue(steps) => match steps.pop_front() {
                Some(step) => self.ask_step(step, requests),
                None if self.failures.is_empty() && !self.stale => {
                    // What was learnt is in the view now: the same decision again, one stage further.
                    self.plan = plan(&self.observed, self.now);
                    self.stage = Stage::Begin;
                }
                None => self.stage = Stage::Finished,
            },
            Stage::Phase(run) if run.tasks.is_empty() => self.next_batch(requests),
            Stage::Phase(_) => unreachable!("a task under way waits for a call"),
            Stage::Status => self.write_status(requests),
            Stage::History(next) => {
                let next = *next;
                self.delete_surplus(next, requests);
            }
            Stage::Finished => {}
        }
    }

    fn begin(&mut self) {
        let prologue = &self.plan.prologue;
        if prologue.is_empty() {
            self.stage = Stage::Phase(Run { phase: 0, next: 0, batch: 1, failed: false, tasks: BTreeMap::new() });
            return;
        }
        self.prologues += 1;
        if self.prologues > PROLOGUE_LIMIT {
            self.failures.push("what is adopted or released does not stay so".into());
            self.stage = Stage::Finished;
            return;
        }
        let mut steps = VecDeque::new();
        if prologue.needs_live_set() != (false, false) {
            steps.push_back(Step::Live);
        }
        steps.extend((0..prologue.adopt_revisions.len()).map(Step::AdoptRevision));
        steps.extend((0..prologue.adopt.len()).map(Step::AdoptPod));
        steps.extend((0..prologue.release.len()).map(Step::ReleasePod));
        match &prologue.revision {
            Some(RevisionAct::Number { .. }) => steps.push_back(Step::Number),
            Some(RevisionAct::Create { .. }) => steps.push_back(Step::Create { tries: 0 }),
            None => {}
        }
        steps.extend(prologue.hold.as_ref().map(|_| Step::Hold));
        self.stage = Stage::Prologue(steps);
    }

    fn ask_step(&mut self, step: Step, requests: &mut Vec<Request>) {
        let failed = !self.failures.is_empty() || self.stale;
        let prologue = &self.plan.prologue;
        let call = match &step {
            Step::Live => Call::GetSet,
            Step::AdoptRevision(i) => {
                let revision = &prologue.adopt_revisions[*i];
                let mut owners = revision.owners.clone();
                owners.push(self.observed.set.as_owner());
                Call::SetRevisionOwners {
                    name: revision.name.clone(),
                    uid: revision.uid.clone(),
                    version: revision.version,
                    owners,
                }
            }
            Step::AdoptPod(i) | Step::ReleasePod(i) => {
                let adopts = matches!(step, Step::AdoptPod(_));
                let pod = if adopts { &prologue.adopt[*i] } else { &prologue.release[*i] };
                let mut owners = pod.owners.clone();
                owners.retain(|o| o.uid != self.observed.set.uid);
                owners.extend(adopts.then(|| self.observed.set.as_owner()));
                Call::SetPodOwners { name: pod.name.clone(), uid: pod.uid.clone(), version: pod.version, owners }
            }
            // The revision comes last and needs all before it.
            Step::Number | Step::Create { .. } | Step::Get { .. } | Step::Hold if failed => return,
            Step::Hold => match prologue.hold.clone() {
                Some(Hold { name, uid, retry }) => Call::HoldRevision { name, uid, retry },
                None => return,
            },
            Step::Number | Step::Create { .. } => match prologue.revision.clone() {
                Some(RevisionAct::Number { name, uid, version, number }) => {
                    Call::NumberRevision { name, uid, version, number }
                }
                Some(RevisionAct::Create { name, hash, number, data }) => {
                    Call::CreateRevision { name, hash, number, data }
                }
                None => return,
            },
            Step::Get { .. } => match &prologue.revision {
                Some(RevisionAct::Create { name, .. }) => Call::GetRevision { name: name.clone() },
                _ => return,
            },
        };
        self.ask(Ticket::Step(step), call, requests);
    }

    fn hear(&mut self, ticket: Ticket, answer: Answer, requests: &mut Vec<Request>) {
        match ticket {
            Ticket::Step(step) => self.hear_step(&step, answer),
            Ticket::Act(task) => {
                self.hear_act(task, answer);
                self.pump(task, requests);
            }
            Ticket::Status => match answer {
                Answer::Failed(failure) if failure.kind == FailureKind::NotFound => {}
                Answer::Failed(failure) => self.fail("status", failure),
                _ => self.events.append(&mut self.plan.events),
            },
            Ticket::Delete => {
                if let Answer::Failed(failure) = answer
                    && failure.kind != FailureKind::NotFound
                {
                    self.fail("history", failure);
                }
            }
        }
    }

    fn fail(&mut self, what: &str, failure: Failure) {
        match failure.kind {
            FailureKind::Conflict => self.stale = true,
            _ => self.failures.push(format!("{what}: {}", failure.message)),
        }
    }

    fn hear_step(&mut self, step: &Step, answer: Answer) {
        match (step, answer) {
            (Step::Live, Answer::Set(live)) => {
                let set = &self.observed.set;
                let found = if live.uid != set.uid {
                    Some(format!("the original {} {}/{} is gone", set.kind, set.namespace, set.name))
                } else if live.deleting {
                    Some(format!("{} {}/{} has just been deleted", set.kind, set.namespace, set.name))
                } else {
                    None
                };
                if let Some(found) = found {
                    self.give_up(format!("cannot adopt: {found}"));
                }
            }
            (Step::Live, Answer::Failed(failure)) => self.give_up(format!("cannot adopt: {}", failure.message)),
            (Step::AdoptRevision(i), Answer::Done { version }) => {
                let uid = self.plan.prologue.adopt_revisions[*i].uid.clone();
                let owner = self.observed.set.as_owner();
                for revision in self.observed.revisions.iter_mut().filter(|r| r.uid == uid) {
                    revision.owners.push(owner.clone());
                    revision.version = version;
                }
            }
            (Step::AdoptPod(i), Answer::Done { version }) => {
                let uid = self.plan.prologue.adopt[*i].uid.clone();
                let owner = self.observed.set.as_owner();
                for Member { pod, .. } in self.observed.pods.iter_mut().filter(|m| m.pod.uid == uid) {
                    let pod = Arc::make_mut(pod);
                    pod.owners.push(owner.clone());
                    pod.version = version;
                }
            }
            (Step::ReleasePod(i), Answer::Done { .. }) => self.forget_pod(&self.plan.prologue.release[*i].uid.clone()),
            (Step::AdoptPod(i), Answer::Failed(f)) if f.kind == FailureKind::NotFound => {
                self.forget_pod(&self.plan.prologue.adopt[*i].uid.clone());
            }
            (Step::ReleasePod(i), Answer::Failed(f))
                if matches!(f.kind, FailureKind::NotFound | FailureKind::Invalid) =>
            {
                self.forget_pod(&self.plan.prologue.release[*i].uid.clone());
            }
            (Step::Number | Step::Create { .. } | Step::Get { .. } | Step::Hold, answer) => {
                self.hear_revision(step, answer);
            }
            (_, Answer::Failed(failure)) => {
                let set = &self.observed.set;
                let what = format!("owners in {}/{}", set.namespace, set.name);
                self.fail(&what, failure);
            }
            (step, answer) => self.give_up(format!("{step:?} cannot be answered by {answer:?}")),
        }
    }

    fn hear_revision(&mut self, step: &Step, answer: Answer) {
        match (step, answer) {
            (Step::Number | Step::Create { .. } | Step::Hold, Answer::Revision(found)) => self.learn(found),
            (Step::Get { .. }, Answer::Revision(found)) if found.data == self.observed.set.data => self.learn(found),
            (Step::Get { tries }, Answer::Revision(_)) => {
                // Other content under that name: the next collision count gives another name.
                let collisions = self.observed.set.status.collision_count.unwrap_or(0) + 1;
                self.observed.set.status.collision_count = Some(collisions);
                let number = match &self.plan.prologue.revision {
                    Some(RevisionAct::Create { number, .. }) => *number,
                    _ => 1,
                };
                self.plan.prologue.revision = Some(revision::create(&self.observed, number, collisions));
                self.try_again(Step::Create { tries: tries + 1 }, *tries);
            }
            (Step::Get { tries }, Answer::Failed(f)) if f.kind == FailureKind::NotFound => {
                self.try_again(Step::Create { tries: tries + 1 }, *tries);
            }
            (Step::Create { tries }, Answer::Failed(f)) if f.kind == FailureKind::AlreadyExists => {
                self.try_again(Step::Get { tries: *tries }, *tries);
            }
            (_, Answer::Failed(failure)) => self.fail("revision", failure),
            (step, answer) => self.give_up(format!("{step:?} cannot be answered by {answer:?}")),
        }
    }

    fn try_again(&mut self, step: Step, tries: u32) {
        if tries >= REVISION_TRIES {
            return self.give_up("no free name for a revision".into());
        }
        if let Stage::Prologue(steps) = &mut self.stage {
            steps.push_front(step);
        }
    }

    /// Ends the prologue as failed.
    fn give_up(&mut self, message: String) {
        self.failures.push(message);
        if let Stage::Prologue(steps) = &mut self.stage {
            steps.clear();
        }
    }

    fn learn(&mut self, found: crate::types::Revision) {
        self.observed.revisions.retain(|r| r.name != found.name);
        self.observed.revisions.push(found);
    }

    fn forget_pod(&mut self, uid: &str) {
        self.observed.pods.retain(|m| m.pod.uid != uid);
    }

    /// Starts the next tasks of a phase, or goes to what follows.
    fn next_batch(&mut self, requests: &mut Vec<Request>) {
        let Stage::Phase(run) = &mut self.stage else { return };
        let phase = self.plan.phases.get(run.phase);
        match phase {
            Some(phase) if !run.failed && run.next < phase.tasks.len() => {
                let count = if phase.parallel { run.batch } else { 1 };
                let started = run.next..(run.next + count).min(phase.tasks.len());
                run.next = started.end;
                run.batch = (run.batch * 2).min(BATCH_LIMIT);
                run.tasks.extend(started.clone().map(|task| (task, Progress::default())));
                for task in started {
                    self.pump(task, requests);
                }
            }
            Some(_) if !run.failed => {
                *run = Run { phase: run.phase + 1, next: 0, batch: 1, failed: false, tasks: BTreeMap::new() };
            }
            _ => self.stage = Stage::Status,
        }
    }

    /// Goes on with a task until it waits for a call or has ended.
    fn pump(&mut self, index: usize, requests: &mut Vec<Request>) {
        loop {
            let Stage::Phase(run) = &mut self.stage else { return };
            let Some(progress) = run.tasks.get_mut(&index) else { return };
            let Some(task) = self.plan.phases.get(run.phase).and_then(|p| p.tasks.get(index)) else { return };
            let Some(act) = task.acts.get(progress.act) else { return self.end_task(index) };
            match act {
                Act::Refuse { message } => progress.errors.push(message.clone()),
                Act::CreateClaim { .. } => return self.ask(Ticket::Act(index), Call::Act(act.clone()), requests),
                _ if !progress.errors.is_empty() || progress.stale => return self.end_task(index),
                _ => return self.ask(Ticket::Act(index), Call::Act(act.clone()), requests),
            }
            progress.act += 1;
        }
    }

    fn end_task(&mut self, index: usize) {
        let Stage::Phase(run) = &mut self.stage else { return };
        let Some(progress) = run.tasks.remove(&index) else { return };
        let task = &self.plan.phases[run.phase].tasks[index];
        if progress.errors.is_empty() && !progress.stale {
            self.left_current += i32::from(task.leaves_current);
            return;
        }
        run.failed = true;
        self.stale |= progress.stale;
        let Some(first) = progress.errors.first() else { return };
        let errors =
            if progress.errors.len() == 1 { first.clone() } else { format!("[{}]", progress.errors.join(", ")) };
        // Its claims kept the pod from being made: told as the pod's failure too.
        if let Some(Act::CreatePod { name, .. }) = task.acts.get(progress.act) {
            let set = &self.observed.set;
            let message = format!("create Pod {name} in {} {} failed error: {errors}", set.kind, set.name);
            self.events.push(Event { level: Level::Warning, reason: "FailedCreate", message });
        }
        self.failures.push(errors);
    }

    fn hear_act(&mut self, index: usize, answer: Answer) {
        let Stage::Phase(run) = &mut self.stage else { return };
        let task = &self.plan.phases[run.phase].tasks[index];
        let Some(progress) = run.tasks.get_mut(&index) else { return };
        let Some(act) = task.acts.get(progress.act) else { return };
        let set = format!("{} {}", self.observed.set.kind, self.observed.set.name);
        let told = match answer {
            Answer::Failed(failure) => tell_failure(act, &task.pod, &set, &failure, progress),
            _ => tell_success(act, &task.pod, &set),
        };
        // After an error the cursor stays on acts that end the task, so that the end knows which it was.
        if progress.errors.is_empty() && !progress.stale || matches!(act, Act::CreateClaim { .. }) {
            progress.act += 1;
        } else {
            progress.act = task.acts.len();
        }
        self.events.extend(told);
    }

    fn write_status(&mut self, requests: &mut Vec<Request>) {
        let set = &self.observed.set;
        let mut status: Status = self.plan.status.clone();
        status.current = (status.current - self.left_current).max(0);
        status::complete(set, &mut status);
        self.stage = Stage::History(0);
        if status::is_news(&set.status, &status) {
            let acts = !self.plan.phases.is_empty();
            if self.puts_off && self.plan.events.is_empty() && status::can_wait(&set.status, &status, acts) {
                self.owes_status = true;
                return;
            }
            let call = Call::WriteStatus { uid: set.uid.clone(), status };
            self.ask(Ticket::Status, call, requests);
        }
    }

    fn delete_surplus(&mut self, next: usize, requests: &mut Vec<Request>) {
        let Some(revision) = self.plan.surplus.get(next) else {
            self.stage = Stage::Finished;
            return;
        };
        let call =
            Call::DeleteRevision { name: revision.name.clone(), uid: revision.uid.clone(), version: revision.version };
        self.stage = Stage::History(next + 1);
        self.ask(Ticket::Delete, call, requests);
    }
}

/// What to tell people about an act that went well.
fn tell_success(act: &Act, pod: &str, set: &str) -> Option<Event> {
    let (level, reason, message) = match act {
        Act::CreateClaim { name, .. } => {
            (Level::Normal, "SuccessfulCreate", format!("create Claim {name} Pod {pod} in {set} success"))
        }
        Act::CreatePod { .. } => (Level::Normal, "SuccessfulCreate", format!("create Pod {pod} in {set} successful")),
        Act::DeletePod { .. } => (Level::Normal, "SuccessfulDelete", format!("delete Pod {pod} in {set} successful")),
        Act::UpdatePod { .. } => (Level::Normal, "SuccessfulUpdate", format!("update Pod {pod} in {set} successful")),
        Act::SetClaimOwners { name, conflict: true, .. } => {
            let message = format!(
                "PersistentVolumeClaim {name} has a conflicting OwnerReference that acts as a manging controller, \
                 the retention policy is ignored for this claim"
            );
            (Level::Warning, "ConflictingController", message)
        }
        Act::SetClaimOwners { .. }
        | Act::MarkClaim { .. }
        | Act::GrowClaim { .. }
        | Act::LetGo { .. }
        | Act::Refuse { .. } => return None,
    };
    Some(Event { level, reason, message })
}

/// Notes a failed act in its task's progress, and says what to tell people.
fn tell_failure(act: &Act, pod: &str, set: &str, failure: &Failure, progress: &mut Progress) -> Option<Event> {
    let error = &failure.message;
    let warning = |reason, message| Some(Event { level: Level::Warning, reason, message });
    match (act, failure.kind) {
        // Gone already is what was wanted.
        (
            Act::DeletePod { .. }
            | Act::SetClaimOwners { .. }
            | Act::MarkClaim { .. }
            | Act::GrowClaim { .. }
            | Act::LetGo { .. },
            FailureKind::NotFound,
        ) => None,
        // Told per ordinal, and in nobody's way: the pod works with the room that it has.
        (Act::GrowClaim { name, .. }, kind) if kind != FailureKind::Conflict => {
            warning("FailedResize", format!("grow Claim {name} of Pod {pod} in {set} failed error: {error}"))
        }
        (_, FailureKind::Conflict) | (Act::CreateClaim { .. }, FailureKind::AlreadyExists) => {
            progress.stale = true;
            None
        }
        (Act::CreateClaim { name, .. }, _) => {
            progress.errors.push(format!("failed to create PVC {name}: {error}"));
            warning("FailedCreate", format!("create Claim {name} for Pod {pod} in {set} failed error: {error}"))
        }
        (Act::CreatePod { .. }, kind) => {
            progress.errors.push(error.clone());
            match kind {
                FailureKind::AlreadyExists => None,
                _ => warning("FailedCreate", format!("create Pod {pod} in {set} failed error: {error}")),
            }
        }
        (Act::DeletePod { .. }, _) => {
            progress.errors.push(error.clone());
            warning("FailedDelete", format!("delete Pod {pod} in {set} failed error: {error}"))
        }
        (_, _) => {
            progress.errors.push(error.clone());
            warning("FailedUpdate", format!("update Pod {pod} in {set} failed error: {error}"))
        }
    }
}
