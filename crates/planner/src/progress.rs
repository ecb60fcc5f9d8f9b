//! Whether a rollout goes on: the conditions, the progress deadline and its clock.
//!
//! The clock needs no memory of its own. It starts when the rollout does (the condition says since when), and again
//! with each pod that becomes available; it stands while what is waited for lies outside of the template, and the
//! condition's message then holds how far it had come.

use crate::beyond::{Condition, ConditionKind, Trouble, Truth};
use crate::call::{Event, Level};
use crate::plan::Hold;
use crate::types::{Millis, Pod, Strategy};
use crate::view::View;

/// The rollout is over.
const COMPLETE: &str = "RolloutComplete";
/// It goes on.
const IN_PROGRESS: &str = "RolloutInProgress";
/// It waits for what the template cannot help; its clock stands.
const PAUSED: &str = "ProgressPaused";
/// It stands still.
const EXCEEDED: &str = "ProgressDeadlineExceeded";
/// The same two with strategy Recreate, whose names are Kubernetes'.
const RECREATE_COMPLETE: &str = "RecreateComplete";
const RECREATE_IN_PROGRESS: &str = "RecreateInProgress";
/// How the message of [`PAUSED`] begins; seconds follow.
const STANDS_AT: &str = "the clock stands at ";

/// What is to be said about a rollout, and done.
pub(crate) struct Progress {
    pub(crate) conditions: Vec<Condition>,
    pub(crate) events: Vec<Event>,
    pub(crate) hold: Option<Hold>,
    pub(crate) look_again: Option<Millis>,
}

/// Where a rollout stands.
enum State {
    Complete,
    Going { remaining: Option<Millis> },
    Paused { elapsed: Millis, pod: String },
    Exceeded,
}

/// Looks at the rollout.
pub(crate) fn assess(view: &View<'_>) -> Progress {
    let state = state(view);
    let progressing = progressing(view, &state);
    let old = view.set.status.condition(ConditionKind::Progressing);
    let mut events = Vec::new();
    if old.is_none_or(|c| c.reason != progressing.reason) {
        if progressing.reason == EXCEEDED {
            let message = progressing.message.clone();
            events.push(Event { level: Level::Warning, reason: EXCEEDED, message });
        }
        if progressing.reason == RECREATE_IN_PROGRESS && view.pods().any(|p| !p.terminating && view.is_out_of_date(p)) {
            let message = "Deleting all pods for Recreate update".to_owned();
            events.push(Event { level: Level::Normal, reason: "RecreateStarted", message });
        }
    }
    let mut conditions = vec![available(view), progressing];
    conditions.extend(invalid(view));
    let look_again = match state {
        State::Going { remaining } => remaining,
        _ => None,
    };
    let hold = matches!(state, State::Exceeded).then(|| hold(view)).flatten();
    Progress { conditions, events, hold, look_again }
}

/// The failed revision is to be held, where that is asked for and there is one to go back to.
fn hold(view: &View<'_>) -> Option<Hold> {
    let (update, beyond) = (&view.choice.update, &view.set.beyond);
    let possible = view.choice.act.is_none() && view.choice.current.name != update.name;
    let rolls = matches!(view.set.strategy, Strategy::RollingUpdate { .. });
    (beyond.rollback && possible && rolls && !view.held).then(|| Hold {
        name: update.name.clone(),
        uid: update.uid.clone(),
        retry: beyond.retry.clone(),
    })
}

fn state(view: &View<'_>) -> State {
    let set = view.set;
    let old = set.status.condition(ConditionKind::Progressing);
    // What was said is of this rollout only if it was said of this revision.
    let old = old.filter(|_| set.status.update_revision == view.choice.update.name);
    let from = view.spec_partition();
    let targets: Vec<&Pod> = view.slots.range(from..).map(|(_, p)| *p).collect();
    let is_new = |p: &&&Pod| !view.is_out_of_date(p);
    let all_new = targets.iter().all(|p| is_new(&p))
        && (set.strategy != Strategy::Recreate || !view.pods().any(|p| view.is_out_of_date(p)));
    let done = targets.iter().filter(is_new).filter(|p| !view.is_unavailable(p)).count();
    let wanted = (set.wanted() - from).max(0);
    let was_complete = old.is_some_and(|c| c.reason == COMPLETE || c.reason == RECREATE_COMPLETE);
    // Once complete it stays so, whatever becomes of single pods, until there is something to roll out again.
    if all_new && (was_complete || i64::try_from(done) == Ok(wanted)) {
        return State::Complete;
    }
    if view.held {
        return State::Exceeded;
    }
    let Some(deadline) = set.beyond.deadline_seconds.map(|s| i64::from(s) * 1000) else {
        return State::Going { remaining: None };
    };
    let waiting: Vec<&Pod> =
        targets.iter().filter(is_new).filter(|p| !p.terminating && !view.is_available(p)).copied().collect();
    let Some(oldest) = waiting.iter().map(|p| p.created).min() else { return State::Going { remaining: None } };
    let min_ready = i64::from(set.min_ready_seconds.max(0)) * 1000;
    let arrived = targets.iter().filter(is_new).filter(|p| view.is_available(p)).filter_map(|p| p.ready_since);
    let derived = arrived.map(|since| since.saturating_add(min_ready)).max().map_or(oldest, |at| at.max(oldest));
    let base = match old {
        Some(c) if c.reason == PAUSED => view.now - elapsed_said(&c.message),
        Some(c) if c.truth == Truth::False => derived,
        Some(c) if c.reason == IN_PROGRESS || c.reason == RECREATE_IN_PROGRESS => derived.max(c.since),
        _ => view.now,
    };
    let elapsed = (view.now - base).max(0);
    let outside = |p: &&Pod| p.trouble == Trouble::Outside || view.is_lost(p);
    if waiting.iter().all(outside) {
        return State::Paused { elapsed, pod: waiting[0].name.clone() };
    }
    if elapsed >= deadline {
        return State::Exceeded;
    }
    State::Going { remaining: Some(deadline - elapsed) }
}

fn progressing(view: &View<'_>, state: &State) -> Condition {
    let set = view.set;
    let recreate = set.strategy == Strategy::Recreate;
    let target = &view.choice.update.name;
    let from = view.spec_partition();
    let new = view.slots.range(from..).filter(|(_, p)| !p.terminating && !view.is_out_of_date(p)).count();
    let wanted = (set.wanted() - from).max(0);
    let seconds = set.beyond.deadline_seconds.unwrap_or(0);
    let (truth, reason, message) = match state {
        State::Complete => (
            Truth::True,
            if recreate { RECREATE_COMPLETE } else { COMPLETE },
            format!("the pods are at revision {target}"),
        ),
        State::Going { .. } => {
            let reason = if recreate { RECREATE_IN_PROGRESS } else { IN_PROGRESS };
            (Truth::True, reason, format!("{new} of {wanted} pods are at revision {target}"))
        }
        State::Paused { elapsed, pod } => {
            let message = format!("{STANDS_AT}{} s: {pod} waits for something outside of its template", elapsed / 1000);
            (Truth::Unknown, PAUSED, message)
        }
        State::Exceeded => {
            let held = if view.held {
                format!(
                    "; it is held back at {} until the template or statefuld.io/retry changes",
                    view.choice.current.name
                )
            } else {
                String::new()
            };
            (Truth::False, EXCEEDED, format!("revision {target} made no progress for {seconds} s{held}"))
        }
    };
    let old = set.status.condition(ConditionKind::Progressing);
    let same_rollout = set.status.update_revision == *target;
    // What was paused goes on with the time that it had used up.
    let resumed = old.filter(|c| c.reason == PAUSED && reason != PAUSED && same_rollout);
    let since = match resumed {
        Some(c) => view.now - elapsed_said(&c.message),
        None => old.filter(|c| c.truth == truth && c.reason == reason && same_rollout).map_or(view.now, |c| c.since),
    };
    // How far the clock had come is said once, when it stops.
    let message = match old.filter(|c| c.reason == PAUSED && reason == PAUSED && same_rollout) {
        Some(c) => c.message.clone(),
        None => message,
    };
    Condition { kind: ConditionKind::Progressing, truth, reason: reason.to_owned(), message, since }
}

/// Milliseconds that the message of a paused rollout tells; none if it is not ours.
fn elapsed_said(message: &str) -> Millis {
    let seconds = message.strip_prefix(STANDS_AT).and_then(|rest| rest.split(' ').next()).and_then(|n| n.parse().ok());
    seconds.unwrap_or(0i64).saturating_mul(1000)
}

fn available(view: &View<'_>) -> Condition {
    let wanted = view.set.wanted();
    let up = view.available;
    let message = format!("{up} of {wanted} replicas are available");
    if up == wanted {
        kept(view, ConditionKind::Available, Truth::True, "AllReplicasAvailable", message)
    } else {
        kept(view, ConditionKind::Available, Truth::False, "ReplicasUnavailable", message)
    }
}

/// Said while an annotation is wrong, and once it no longer is.
fn invalid(view: &View<'_>) -> Option<Condition> {
    let kind = ConditionKind::Invalid;
    match &view.set.beyond.invalid {
        Some(message) => Some(kept(view, kind, Truth::True, "InvalidAnnotation", message.clone())),
        None => view.set.status.condition(kind).map(|_| kept(view, kind, Truth::False, "Valid", String::new())),
    }
}

/// A condition whose time stays while it says the same.
fn kept(view: &View<'_>, kind: ConditionKind, truth: Truth, reason: &str, message: String) -> Condition {
    let old = view.set.status.condition(kind).filter(|c| c.truth == truth);
    Condition { kind, truth, reason: reason.to_owned(), message, since: old.map_or(view.now, |c| c.since) }
}
