//! A plan in the making: copies of the sets, changed as the plan goes, and revisions.

use std::collections::BTreeMap;

use planner::{revision_hash, revision_name};

use super::{
    Act, DESIRED, Deployment, MAX, NewSet, Observed, PROGRESSING, Plan, REVISION, REVISION_HISTORY, Set, Step,
};
use crate::condition::{self, Condition, Truth};
use crate::{Event, Millis};

/// Annotations of a deployment that its sets do not get.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];
/// Longest text of former revisions.
const HISTORY_CHARACTERS: usize = 2000;

/// A plan in the making.
pub(super) struct Work<'a> {
    pub(super) deployment: &'a Deployment,
    pub(super) now: Millis,
    /// The sets as they were; the first ones are those of `sets`.
    before: Vec<Set>,
    /// The sets as they shall be; `before` and one that is new.
    pub(super) sets: Vec<Set>,
    /// The place of the set of the present template.
    pub(super) new: Option<usize>,
    /// What is told about each set.
    events: BTreeMap<usize, Vec<Event>>,
    /// Sets taken and let go, and old ones deleted.
    first: Vec<Act>,
    last: Vec<Act>,
    /// The hash of a set that is to be made.
    hash: Option<String>,
    /// The number of the revision that the deployment is to carry.
    revision: Option<String>,
    /// Conditions of the status that is to be written.
    pub(super) conditions: Vec<Condition>,
}

impl<'a> Work<'a> {
    /// Begins with the deployment's own sets.
    pub(super) fn new(observed: &'a Observed, now: Millis) -> Self {
        let deployment = &observed.deployment;
        let adopts = |set: &Set| !set.owned && set.matches && !set.deleting && !deployment.deleting;
        let call = |adopt: bool, set: &Set| {
            let (name, uid) = (set.name.clone(), set.uid.clone());
            if adopt { Act::Adopt { name, uid } } else { Act::Release { name, uid } }
        };
        let mut first: Vec<Act> = observed.sets.iter().filter(|s| adopts(s)).map(|s| call(true, s)).collect();
        first.extend(observed.sets.iter().filter(|s| s.owned && !s.matches).map(|s| call(false, s)));
        let held = |set: &&Set| set.matches && (set.owned || adopts(set));
        let mut sets: Vec<Set> = observed.sets.iter().filter(held).cloned().collect();
        sets.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        Self {
            deployment,
            now,
            new: sets.iter().position(|set| set.template == deployment.template),
            before: sets.clone(),
            sets,
            events: BTreeMap::new(),
            first,
            last: Vec::new(),
            hash: None,
            revision: None,
            conditions: deployment.status.conditions.clone(),
        }
    }

    /// Places of the sets of other templates, oldest first.
    pub(super) fn old(&self) -> Vec<usize> {
        (0..self.sets.len()).filter(|at| Some(*at) != self.new).collect()
    }

    /// Places of the old sets that shall have pods.
    pub(super) fn active_old(&self) -> Vec<usize> {
        self.old().into_iter().filter(|at| self.sets[*at].replicas > 0).collect()
    }

    /// Pods that all sets together shall have.
    pub(super) fn total(&self) -> i32 {
        self.sets.iter().map(|set| set.replicas).sum()
    }

    /// Whether the number of pods wanted has changed since the sets were last scaled. Where all old pods are to go
    /// first, several sets with pods are not scaled but replaced.
    pub(super) fn is_scaled(&self) -> bool {
        let desired = |set: &Set| set.annotations.get(DESIRED).and_then(|text| text.parse::<i32>().ok());
        let active = || self.sets.iter().filter(|set| set.replicas > 0);
        let replaces = matches!(self.deployment.strategy, super::Strategy::Recreate) && active().count() > 1;
        !replaces && active().filter_map(desired).any(|desired| desired != self.deployment.replicas)
    }

    /// Notes when a deployment is paused or resumed, so that the time in between does not count against its deadline.
    pub(super) fn note_pause(&mut self) {
        let progress = condition::find(&self.conditions, PROGRESSING);
        let reason = progress.map(|c| c.reason.as_str());
        if self.deployment.deadline().is_none() || reason == Some("ProgressDeadlineExceeded") {
            return;
        }
        let (reason, message) = match (self.deployment.paused, reason == Some("DeploymentPaused")) {
            (true, false) => ("DeploymentPaused", "Deployment is paused"),
            (false, true) => ("DeploymentResumed", "Deployment is resumed"),
            _ => return,
        };
        self.progress(Truth::Unknown, reason, message.to_owned());
    }

    /// Sets the condition Progressing.
    pub(super) fn progress(&mut self, truth: Truth, reason: &str, message: String) {
        condition::set(&mut self.conditions, Condition::new(PROGRESSING, truth, reason, message, self.now));
    }

    /// Gives the set of the present template its revision; makes it where there is none and `create` says so.
    pub(super) fn sync_revision(&mut self, create: bool) {
        let number = |set: &Set| set.annotations.get(REVISION).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
        let next = self.old().into_iter().map(|at| number(&self.sets[at])).max().unwrap_or(0) + 1;
        let fresh = self.new.is_none();
        if fresh && !create {
            return;
        }
        let at = self.new.unwrap_or_else(|| self.add_set());
        let deployment = self.deployment;
        let set = &mut self.sets[at];
        set.min_ready_seconds = deployment.min_ready_seconds;
        let copied = deployment.annotations.iter().filter(|(key, _)| !NOT_COPIED.contains(&key.as_str()));
        set.annotations.extend(copied.map(|(key, value)| (key.clone(), value.clone())));
        let was = number(set);
        if was < next
            && let Some(old) = set.annotations.insert(REVISION.to_owned(), next.to_string())
        {
            remember(&mut set.annotations, &old);
        }
        let name = set.name.clone();
        self.revision = set.annotations.get(REVISION).cloned();
        if fresh {
            self.new = Some(at);
            let replicas = self.room_for_new();
            self.sets[at].replicas = replicas;
            annotate(deployment, &mut self.sets[at]);
            if replicas > 0 {
                self.tell(at, format!("Scaled up replica set {name} from 0 to {replicas}"));
            }
        }
        if deployment.deadline().is_some() && (fresh || condition::find(&self.conditions, PROGRESSING).is_none()) {
            let (reason, what) =
                if fresh { ("NewReplicaSetCreated", "Created") } else { ("FoundNewReplicaSet", "Found") };
            self.progress(Truth::True, reason, format!("{what} new replica set {name:?}"));
        }
    }

    /// A set of the present template, without pods yet.
    fn add_set(&mut self) -> usize {
        let deployment = self.deployment;
        let hash = revision_hash(deployment.template.as_bytes(), deployment.status.collision_count.unwrap_or(0));
        self.sets.push(Set {
            name: revision_name(&deployment.name, &hash),
            owned: true,
            matches: true,
            created: self.now,
            template: deployment.template.clone(),
            min_ready_seconds: deployment.min_ready_seconds,
            ..Set::default()
        });
        self.hash = Some(hash);
        self.sets.len() - 1
    }

    /// Gives a set a number of pods, and tells so.
    pub(super) fn scale_set(&mut self, at: usize, replicas: i32) {
        let set = &mut self.sets[at];
        let (was, name) = (set.replicas, set.name.clone());
        set.replicas = replicas;
        annotate(self.deployment, set);
        if was != replicas {
            let way = if was < replicas { "up" } else { "down" };
            self.tell(at, format!("Scaled {way} replica set {name} from {was} to {replicas}"));
        }
    }

    fn tell(&mut self, at: usize, message: String) {
        self.events.entry(at).or_default().push(Event::normal("ScalingReplicaSet", message));
    }

    /// Deletes the oldest of the old sets beyond the limit, as far as they have no pods and know it.
    pub(super) fn clean_up(&mut self) {
        let Ok(limit) = usize::try_from(self.deployment.history_limit) else { return };
        if self.deployment.history_limit == i32::MAX {
            return;
        }
        let number = |set: &Set| set.annotations.get(REVISION).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
        let mut old: Vec<&Set> = self.old().into_iter().map(|at| &self.sets[at]).filter(|set| !set.deleting).collect();
        old.sort_by_key(|set| number(set));
        let surplus = old.len().saturating_sub(limit);
        let idle = |set: &&&Set| set.present == 0 && set.replicas == 0 && set.generation <= set.observed_generation;
        let gone = old[..surplus].iter().filter(idle).map(|set| Act::Delete {
            name: set.name.clone(),
            uid: set.uid.clone(),
            version: set.version,
        });
        let gone: Vec<Act> = gone.collect();
        self.last.extend(gone);
    }

    /// The calls that lead to what was decided; the status is written last.
    pub(super) fn finish(mut self, status: Option<super::Status>, look_again: Option<Millis>) -> Plan {
        let quiet = |act: Act| Step { act, events: Vec::new() };
        let mut steps: Vec<Step> = std::mem::take(&mut self.first).into_iter().map(quiet).collect();
        // What is to grow comes first.
        let mut order: Vec<usize> = (0..self.sets.len()).collect();
        order.sort_by_key(|at| Some(*at) != self.new);
        for at in order {
            let events = self.events.remove(&at).unwrap_or_default();
            steps.extend(self.change(at).map(|act| Step { act, events }));
        }
        steps.extend(self.last.into_iter().map(quiet));
        let noted = self.deployment.annotations.get(REVISION);
        steps.extend(
            self.revision.filter(|number| noted != Some(number)).map(|number| quiet(Act::NoteRevision(number))),
        );
        steps.extend(status.map(|status| quiet(Act::WriteStatus(status))));
        Plan { steps, look_again }
    }

    /// The call that makes a set what it shall be, unless it is that.
    fn change(&self, at: usize) -> Option<Act> {
        let set = &self.sets[at];
        let Some(was) = self.before.get(at) else {
            return Some(Act::Create(NewSet {
                name: set.name.clone(),
                hash: self.hash.clone()?,
                replicas: set.replicas,
                annotations: set.annotations.clone(),
            }));
        };
        let differs = |(key, value): &(&String, &String)| was.annotations.get(*key) != Some(*value);
        let annotations: BTreeMap<String, String> =
            set.annotations.iter().filter(differs).map(|(key, value)| (key.clone(), value.clone())).collect();
        let same =
            annotations.is_empty() && (set.replicas, set.min_ready_seconds) == (was.replicas, was.min_ready_seconds);
        (!same).then(|| Act::Update {
            name: set.name.clone(),
            uid: set.uid.clone(),
            version: set.version,
            replicas: set.replicas,
            min_ready_seconds: set.min_ready_seconds,
            annotations,
        })
    }
}

/// Notes at a set what its deployment wants, for the next time it is scaled.
fn annotate(deployment: &Deployment, set: &mut Set) {
    let most = i64::from(deployment.replicas) + i64::from(deployment.surge());
    set.annotations.insert(DESIRED.to_owned(), deployment.replicas.to_string());
    set.annotations.insert(MAX.to_owned(), most.to_string());
}

/// Adds a number to the revisions that a set had before; the oldest ones are forgotten.
fn remember(annotations: &mut BTreeMap<String, String>, old: &str) {
    let mut history: Vec<&str> = Vec::new();
    let known = annotations.get(REVISION_HISTORY).cloned().unwrap_or_default();
    history.extend(known.split(',').filter(|number| !number.is_empty()));
    history.push(old);
    while history.len() > 1 && history.iter().map(|n| n.len() + 1).sum::<usize>() > HISTORY_CHARACTERS + 1 {
        history.remove(0);
    }
    annotations.insert(REVISION_HISTORY.to_owned(), history.join(","));
}
