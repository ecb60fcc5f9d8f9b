//! A job: pods that run to their end, each counted once.
//!
//! ```text
//!   pod ends, or is deleted ──▶ its uid stands in status.uncountedTerminatedPods      (status is written)
//!                           ──▶ its finalizer is taken off                            (it may go)
//!                           ──▶ its uid goes, and a counter grows                     (status is written)
//! ```
//!
//! A pod holds the finalizer until it stands in the status, and its uid stands there until the finalizer is off: a
//! controller that stops anywhere in between goes on where it was, and counts no pod twice or never. Completion
//! indexes that succeeded are a set in the status, and count themselves.
//!
//! Finished jobs first say what is to become of them (`SuccessCriteriaMet`, `FailureTarget`), and `Complete` or `Failed`
//! once every pod is counted and none is on its way out.

mod indexes;
mod types;

pub use indexes::Indexes;
pub use types::{Job, Observed, Plan, Status};

use std::collections::BTreeSet;

use crate::condition::{self, Condition, Truth};
use crate::{Event, Millis, Phase, Pod, choose_to_delete, whole_second};

/// The finalizer of pods that are not counted yet.
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// Most pods made or deleted at one go, and most uids that stand in a status.
const BURST: usize = 500;
/// Wait after the first failure, and the longest one; it doubles with each failure in between.
const BACKOFF: (Millis, Millis) = (10_000, 600_000);

/// Decides.
pub fn plan(observed: &Observed, now: Millis) -> Plan {
    let job = &observed.job;
    let name = |pod: &Pod| (pod.name.clone(), pod.uid.clone());
    if job.is_finished() || job.deleting {
        // Nobody counts any more: the pods may go.
        let held = observed.pods.iter().filter(|p| p.owned && p.tracked);
        return Plan { untrack: held.map(name).collect(), status: job.status.clone(), ..Plan::default() };
    }
    let mut work = Work::new(observed, now);
    work.count_ended();
    work.start();
    let target = work.target();
    match &target {
        Some(target) => work.stop(target),
        None => work.manage(),
    }
    work.finish(target)
}

/// A plan in the making.
struct Work<'a> {
    job: &'a Job,
    now: Millis,
    /// Pods of the job, with those that it takes.
    pods: Vec<&'a Pod>,
    /// Of these, the ones that may still run.
    active: Vec<&'a Pod>,
    /// Indexes that have succeeded; of an indexed job.
    succeeded: Indexes,
    status: Status,
    plan: Plan,
    /// How many of the active pods are left when the plan is done.
    left: i32,
}

impl<'a> Work<'a> {
    fn new(observed: &'a Observed, now: Millis) -> Self {
        let job = &observed.job;
        let name = |pod: &Pod| (pod.name.clone(), pod.uid.clone());
        let adopts = |pod: &Pod| !pod.owned && pod.matches;
        let pods: Vec<&Pod> = observed.pods.iter().filter(|p| p.matches).collect();
        let active: Vec<&Pod> = pods.iter().copied().filter(|p| p.is_active()).collect();
        let plan = Plan {
            adopt: observed.pods.iter().filter(|p| adopts(p)).map(name).collect(),
            release: observed.pods.iter().filter(|p| p.owned && !p.matches).map(name).collect(),
            ..Plan::default()
        };
        let mut succeeded = Indexes::parse(&job.status.completed_indexes);
        succeeded.keep_below(job.completions.unwrap_or(0));
        Self { job, now, left: count(active.len()), pods, active, succeeded, status: job.status.clone(), plan }
    }

    /// Moves what is no longer held to the counters, and notes what has ended.
    fn count_ended(&mut self) {
        let tracked: BTreeSet<&str> = self.pods.iter().filter(|p| p.tracked).map(|p| p.uid.as_str()).collect();
        let before = self.status.uncounted_failed.len();
        self.status.uncounted_failed.retain(|uid| tracked.contains(uid.as_str()));
        self.status.failed += count(before - self.status.uncounted_failed.len());
        let before = self.status.uncounted_succeeded.len();
        self.status.uncounted_succeeded.retain(|uid| tracked.contains(uid.as_str()));
        self.status.succeeded += count(before - self.status.uncounted_succeeded.len());
        // In the order of their indexes, as they are written.
        let mut ended: Vec<&Pod> = self.pods.iter().copied().filter(|p| p.tracked && self.has_ended(p)).collect();
        ended.sort_by(|a, b| (a.index, a.ended, &a.name).cmp(&(b.index, b.ended, &b.name)));
        for pod in ended {
            if self.status.uncounted_failed.len() + self.status.uncounted_succeeded.len() >= BURST {
                break;
            }
            self.note(pod);
            self.plan.untrack.push((pod.name.clone(), pod.uid.clone()));
        }
        if self.job.indexed {
            self.status.succeeded = self.succeeded.len();
            self.status.completed_indexes = self.succeeded.to_string();
        }
    }

    /// Whether a pod is to be counted now. One that is deleted counts as failed, at once unless the job replaces only
    /// pods that have ended and this one may still run somewhere.
    fn has_ended(&self, pod: &Pod) -> bool {
        pod.is_over() || pod.terminating && (!self.job.replaces_failed_only || pod.node.is_empty())
    }

    /// Notes one pod that has ended, unless it is noted already.
    fn note(&mut self, pod: &Pod) {
        let known = |list: &[String]| list.contains(&pod.uid);
        if known(&self.status.uncounted_failed) || known(&self.status.uncounted_succeeded) {
            return;
        }
        let within = |index: i32| self.job.completions.is_some_and(|completions| index >= 0 && index < completions);
        match (pod.phase, self.job.indexed) {
            (_, true) if !pod.index.is_some_and(within) => {}
            (Phase::Succeeded, true) => self.succeeded.insert(pod.index.unwrap_or_default()),
            (Phase::Succeeded, false) => self.status.uncounted_succeeded.push(pod.uid.clone()),
            _ => self.status.uncounted_failed.push(pod.uid.clone()),
        }
    }

    /// The time from which the deadline is counted.
    fn start(&mut self) {
        if self.status.start.is_none() && !self.job.suspend {
            self.status.start = Some(whole_second(self.now));
        }
    }

    /// Pods that succeeded, and that failed, those not counted yet among them.
    fn totals(&self) -> (i32, i32) {
        let status = &self.status;
        (
            status.succeeded + count(status.uncounted_succeeded.len()),
            status.failed + count(status.uncounted_failed.len()),
        )
    }

    /// What the job is to end as, if that is known already or becomes clear now.
    fn target(&mut self) -> Option<Condition> {
        for kind in ["SuccessCriteriaMet", "FailureTarget"] {
            if let Some(known) = condition::find(&self.status.conditions, kind).filter(|c| c.truth == Truth::True) {
                return Some(known.clone());
            }
        }
        let failed = |reason, message: &str| Condition::new("FailureTarget", Truth::True, reason, message, self.now);
        if self.totals().1 > self.job.backoff_limit || self.restarts_too_often() {
            return Some(failed("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
        }
        if let (Some(seconds), Some(start), false) = (self.job.deadline_seconds, self.status.start, self.job.suspend) {
            let due = start.saturating_add(seconds.saturating_mul(1000));
            if due <= self.now {
                return Some(failed("DeadlineExceeded", "Job was active longer than specified deadline"));
            }
            self.look_again(due);
        }
        None
    }

    /// Containers that are restarted in place count as failures, too.
    fn restarts_too_often(&self) -> bool {
        if !self.job.restarts_in_place {
            return false;
        }
        let runs = self.pods.iter().filter(|p| matches!(p.phase, Phase::Running | Phase::Pending));
        let restarts: i64 = runs.map(|p| p.all_restarts).sum();
        let limit = i64::from(self.job.backoff_limit);
        if limit == 0 { restarts > 0 } else { restarts >= limit }
    }

    /// Ends the pods of a job that has failed, or needs no more of them.
    fn stop(&mut self, target: &Condition) {
        let active = std::mem::take(&mut self.active);
        let some = active.iter().take(BURST).map(|p| (p.name.clone(), p.uid.clone()));
        if target.kind == "FailureTarget" {
            self.plan.delete.extend(some);
        } else {
            self.plan.drop.extend(some);
        }
        self.left = count(active.len().saturating_sub(BURST));
    }

    /// Makes pods that lack, or ends those that are too many; then sees whether that was all.
    fn manage(&mut self) {
        if self.job.suspend {
            self.drop_some(self.active.len());
        } else {
            self.fit();
        }
        self.note_suspension();
    }

    /// As many pods as may and need run.
    fn fit(&mut self) {
        let (succeeded, _) = self.totals();
        let active = count(self.active.len());
        let wanted = match self.job.completions {
            // Once one has succeeded, the others may finish and no more come.
            None if succeeded > 0 => active,
            None => self.job.parallelism,
            Some(completions) => (completions - succeeded).clamp(0, self.job.parallelism),
        };
        let surplus = usize::try_from(active - wanted).unwrap_or(0);
        if self.drop_some(surplus) {
            return;
        }
        let leaving = if self.job.replaces_failed_only { self.terminating() } else { 0 };
        let lacking = usize::try_from(wanted - leaving - active).unwrap_or(0).min(BURST);
        if lacking == 0 {
            return;
        }
        let after = self.backoff();
        if after > self.now {
            return self.look_again(after);
        }
        self.plan.create = if self.job.indexed {
            self.pending_indexes(lacking).into_iter().map(Some).collect()
        } else {
            vec![None; lacking]
        };
        self.left += count(self.plan.create.len());
    }

    /// Lets so many pods go without counting them, and of an indexed job those whose index is another's or none;
    /// tells whether there were any.
    fn drop_some(&mut self, at_least: usize) -> bool {
        let mut chosen: Vec<&Pod> = Vec::new();
        let mut kept: Vec<&Pod> = self.active.clone();
        if self.job.indexed {
            let completions = self.job.completions.unwrap_or(0);
            kept.sort_by_key(|p| (p.index, std::cmp::Reverse(p.phase), p.created));
            let mut seen = BTreeSet::new();
            let is_needed = |p: &&Pod| {
                p.index.is_some_and(|index| {
                    index >= 0 && index < completions && !self.succeeded.has(index) && seen.insert(index)
                })
            };
            (kept, chosen) = kept.into_iter().partition(is_needed);
        }
        let more = at_least.saturating_sub(chosen.len());
        chosen.extend(choose_to_delete(&kept, &Default::default(), more, self.now));
        chosen.truncate(BURST);
        self.left -= count(chosen.len());
        self.plan.drop.extend(chosen.iter().map(|p| (p.name.clone(), p.uid.clone())));
        !chosen.is_empty()
    }

    /// The first indexes that have neither succeeded nor a pod.
    fn pending_indexes(&self, limit: usize) -> Vec<i32> {
        let leaving = |p: &&&Pod| self.job.replaces_failed_only && p.terminating && !p.is_over();
        let busy = self.active.iter().chain(self.pods.iter().filter(leaving));
        let taken: BTreeSet<i32> = busy.filter_map(|p| p.index).collect();
        let all = 0..self.job.completions.unwrap_or(0);
        all.filter(|index| !taken.contains(index) && !self.succeeded.has(*index)).take(limit).collect()
    }

    /// When the next pod may be made: failures since the last success keep it back, longer with each.
    fn backoff(&self) -> Millis {
        let last_success = self.pods.iter().filter(|p| p.phase == Phase::Succeeded).map(|p| p.ended).max();
        let failed = |p: &&&Pod| p.phase == Phase::Failed && last_success.is_none_or(|at| p.ended > at);
        let failures: Vec<Millis> = self.pods.iter().filter(failed).map(|p| p.ended).collect();
        match failures.iter().max() {
            None => Millis::MIN,
            Some(last) => {
                let doublings = u32::try_from(failures.len() - 1).unwrap_or(u32::MAX).min(16);
                last + (BACKOFF.0 << doublings).min(BACKOFF.1)
            }
        }
    }

    /// Pods on their way out.
    fn terminating(&self) -> i32 {
        count(self.pods.iter().filter(|p| p.terminating && !p.is_over()).count())
    }

    /// Tells when the job is suspended and when it goes on; then its time begins anew.
    fn note_suspension(&mut self) {
        let suspended = condition::holds(&self.status.conditions, "Suspended");
        let (truth, reason, event, message) = match (self.job.suspend, suspended) {
            (true, false) => (Truth::True, "JobSuspended", "Suspended", "Job suspended"),
            (false, true) => (Truth::False, "JobResumed", "Resumed", "Job resumed"),
            _ => return,
        };
        if !self.job.suspend {
            self.status.start = Some(whole_second(self.now));
        }
        condition::set(&mut self.status.conditions, Condition::new("Suspended", truth, reason, message, self.now));
        self.plan.events.push(Event::normal(event, message));
    }

    fn look_again(&mut self, at: Millis) {
        self.plan.look_again = Some(self.plan.look_again.map_or(at, |other| other.min(at)));
    }

    /// Says what the job ends as, and that it has ended once nothing is left to count.
    fn finish(mut self, target: Option<Condition>) -> Plan {
        let (succeeded, _) = self.totals();
        let enough = match self.job.completions {
            None => succeeded > 0,
            Some(completions) => succeeded >= completions,
        };
        let met = || {
            let message = "Reached expected number of succeeded pods";
            Condition::new("SuccessCriteriaMet", Truth::True, "CompletionsReached", message, self.now)
        };
        let target = target.or_else(|| (enough && self.left == 0 && !self.job.suspend).then(met));
        let gone = count(self.plan.drop.len() + self.plan.delete.len());
        self.status.active = self.left;
        let goes = |p: &&&Pod| !self.plan.drop.iter().chain(&self.plan.delete).any(|(_, uid)| *uid == p.uid);
        let ready = self.pods.iter().filter(|p| p.is_active() && p.ready_since.is_some()).filter(goes).count();
        self.status.ready = Some(count(ready));
        self.status.terminating = Some(self.terminating() + gone);
        if let Some(target) = target {
            let settled = self.left == 0
                && self.status.terminating == Some(0)
                && self.plan.untrack.is_empty()
                && !self.pods.iter().any(|p| p.tracked)
                && self.status.uncounted_failed.is_empty()
                && self.status.uncounted_succeeded.is_empty();
            if settled {
                self.end(&target);
            }
            condition::set(&mut self.status.conditions, target);
        }
        self.plan.status = self.status;
        self.plan
    }

    /// The last word.
    fn end(&mut self, target: &Condition) {
        let kind = if target.kind == "FailureTarget" { "Failed" } else { "Complete" };
        let last = Condition::new(kind, Truth::True, &target.reason, target.message.clone(), self.now);
        if kind == "Complete" {
            self.status.completion = Some(last.since);
            self.plan.events.push(Event::normal("Completed", "Job completed"));
        } else {
            let reason = match target.reason.as_str() {
                "DeadlineExceeded" => "DeadlineExceeded",
                _ => "BackoffLimitExceeded",
            };
            self.plan.events.push(Event::warning(reason, target.message.clone()));
        }
        condition::set(&mut self.status.conditions, last);
    }
}

/// A number of pods as statuses hold it.
fn count(pods: usize) -> i32 {
    i32::try_from(pods).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
