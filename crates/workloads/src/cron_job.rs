//! A cron job: jobs that are due, and which old ones go.

use cron::Schedule;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::{Event, Millis};

/// More starts than these in the past are told as too many.
const MISSED_MAX: i64 = 100;
/// Steps from a guess to the last start before now. The guess is off where a schedule is uneven.
const STEPS_MAX: usize = 100_000;
/// The controller looks so long after a start, so that it is due then.
const DELTA: Millis = 100;

/// A cron job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CronJob {
    /// Name.
    pub name: String,
    /// It has a deletion timestamp.
    pub deleting: bool,
    /// When it was created.
    pub created: Millis,
    /// spec.schedule: read, or the text and why it cannot be.
    pub schedule: Result<Schedule, (String, String)>,
    /// The zone of spec.timeZone, or why there is none.
    pub zone: Result<TimeZone, String>,
    /// spec.startingDeadlineSeconds.
    pub deadline_seconds: Option<i64>,
    /// spec.concurrencyPolicy.
    pub concurrency: Concurrency,
    /// spec.suspend.
    pub suspend: bool,
    /// spec.successfulJobsHistoryLimit.
    pub keep_succeeded: Option<i32>,
    /// spec.failedJobsHistoryLimit.
    pub keep_failed: Option<i32>,
    /// Its status.
    pub status: Status,
}

/// What becomes of a start while an earlier job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Concurrency {
    /// It starts.
    #[default]
    Allow,
    /// It is left out.
    Forbid,
    /// It starts, and the earlier one goes.
    Replace,
}

/// The status of a cron job.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Status {
    /// Jobs that run, name and uid.
    pub active: Vec<(String, String)>,
    /// When a job was last due.
    pub last_schedule: Option<Millis>,
    /// When a job last succeeded.
    pub last_success: Option<Millis>,
}

/// A job of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Job {
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// How it ended.
    pub ended: Option<Ended>,
    /// When it began; its creation where it did not.
    pub started: Millis,
    /// When it was complete.
    pub completed: Option<Millis>,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ended {
    /// Its condition Complete holds.
    Complete,
    /// Its condition Failed holds.
    Failed,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Plan {
    /// Jobs, name and uid, that are deleted with their pods.
    pub delete: Vec<(String, String)>,
    /// The job that is made.
    pub start: Option<Start>,
    /// The status, before the job that is made; see [`Plan::status_after`].
    pub status: Status,
    /// What people are told.
    pub events: Vec<Event>,
    /// When to look again although nothing changed.
    pub look_again: Option<Millis>,
}

/// A job to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Its name, which tells when it was due: made twice, it is one.
    pub name: String,
    /// When it was due.
    pub due: Millis,
    /// The same, in the zone of the schedule, as RFC 3339 writes it.
    pub due_text: String,
}

impl Plan {
    /// The status with the job that was made.
    pub fn status_after(&self, made: Option<(&Start, &str)>) -> Status {
        let mut status = self.status.clone();
        if let Some((start, uid)) = made {
            if !status.active.iter().any(|(_, known)| known == uid) {
                status.active.push((start.name.clone(), uid.to_owned()));
            }
            status.last_schedule = Some(start.due);
        }
        status
    }
}

/// Decides.
pub fn plan(cron: &CronJob, jobs: &[Job], now: Millis) -> Plan {
    let mut plan = Plan { status: cron.status.clone(), ..Plan::default() };
    follow(cron, jobs, &mut plan);
    if cron.deleting {
        return plan;
    }
    forget_old(cron, jobs, &mut plan);
    let (zone, schedule) = match (&cron.zone, &cron.schedule) {
        _ if cron.suspend => return plan,
        (Err(why), _) => {
            plan.events.push(Event::warning("UnknownTimeZone", format!("invalid timeZone: {why}")));
            return plan;
        }
        (_, Err((text, why))) => {
            let message = format!("unparseable schedule: {text:?} : {why}");
            plan.events.push(Event::warning("UnparseableSchedule", message));
            return plan;
        }
        (Ok(zone), Ok(schedule)) => (zone, schedule),
    };
    let clock = Clock { cron, zone, schedule, now };
    plan.look_again = clock.look_again();
    start(&clock, &mut plan);
    plan
}

/// Notes which jobs run, which have ended, and which are gone.
fn follow(cron: &CronJob, jobs: &[Job], plan: &mut Plan) {
    for job in jobs {
        let known = cron.status.active.iter().any(|(_, uid)| *uid == job.uid);
        match job.ended {
            None if !known => {
                let message = format!("Saw a job that the controller did not create or forgot: {}", job.name);
                plan.events.push(Event::warning("UnexpectedJob", message));
            }
            Some(ended) if known => {
                plan.status.active.retain(|(_, uid)| *uid != job.uid);
                let message = format!("Saw completed job: {}, condition: {ended:?}", job.name);
                plan.events.push(Event::normal("SawCompletedJob", message));
            }
            _ => {}
        }
        if job.ended == Some(Ended::Complete) {
            plan.status.last_success = plan.status.last_success.max(job.completed);
        }
    }
    for (name, uid) in &cron.status.active {
        if !jobs.iter().any(|job| job.uid == *uid) {
            plan.status.active.retain(|(_, other)| other != uid);
            plan.events.push(Event::normal("MissingJob", format!("Active job went missing: {name}")));
        }
    }
}

/// Deletes the oldest jobs that ended beyond what is kept.
fn forget_old(cron: &CronJob, jobs: &[Job], plan: &mut Plan) {
    for (ended, keep) in [(Ended::Complete, cron.keep_succeeded), (Ended::Failed, cron.keep_failed)] {
        let Some(keep) = keep.and_then(|keep| usize::try_from(keep).ok()) else { continue };
        let mut old: Vec<&Job> = jobs.iter().filter(|job| job.ended == Some(ended)).collect();
        old.sort_by(|a, b| (a.started, &a.name).cmp(&(b.started, &b.name)));
        let surplus = old.len().saturating_sub(keep);
        plan.delete.extend(old[..surplus].iter().map(|job| (job.name.clone(), job.uid.clone())));
    }
}

/// Starts what is due, if the policy allows it.
fn start(clock: &Clock<'_>, plan: &mut Plan) {
    let (cron, now) = (clock.cron, clock.now);
    let (due, missed) = match clock.last_due(true) {
        Ok(found) => found,
        Err(why) => {
            plan.events.push(Event::warning("InvalidSchedule", format!("invalid schedule: {why}")));
            return;
        }
    };
    let Some(due) = due else { return };
    if missed > MISSED_MAX {
        let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.events.push(Event::warning("TooManyMissedTimes", message));
    }
    if cron.deadline_seconds.is_some_and(|seconds| due.saturating_add(seconds.saturating_mul(1000)) < now) {
        let message =
            format!("Missed scheduled time to start a job: {}", clock.text(due, "%a, %d %b %Y %H:%M:%S +0000"));
        plan.events.push(Event::warning("MissSchedule", message));
        return;
    }
    let name = format!("{}-{}", cron.name, due / 60_000);
    if cron.status.last_schedule == Some(due) || plan.status.active.iter().any(|(other, _)| *other == name) {
        return;
    }
    match cron.concurrency {
        Concurrency::Allow => {}
        Concurrency::Forbid if plan.status.active.is_empty() => {}
        Concurrency::Forbid => {
            let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.events.push(Event::normal("JobAlreadyActive", message));
            return;
        }
        Concurrency::Replace => plan.delete.append(&mut plan.status.active),
    }
    let zoned = Timestamp::from_millisecond(due).map(|at| at.to_zoned(clock.zone.clone()));
    let due_text = zoned.map(|at| at.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()).unwrap_or_default();
    plan.start = Some(Start { name, due, due_text: due_text.replace("+00:00", "Z") });
}

/// A schedule, and what time it is.
struct Clock<'a> {
    cron: &'a CronJob,
    zone: &'a TimeZone,
    schedule: &'a Schedule,
    now: Millis,
}

impl Clock<'_> {
    /// The first time after another.
    fn next(&self, after: Millis) -> Option<Millis> {
        let next = self.schedule.next(Timestamp::from_millisecond(after).ok()?, self.zone)?;
        Some(next.as_millisecond())
    }

    /// From when on starts are looked for.
    fn earliest(&self, with_deadline: bool) -> Millis {
        let since = self.cron.status.last_schedule.unwrap_or(self.cron.created);
        match self.cron.deadline_seconds.filter(|_| with_deadline) {
            Some(seconds) => since.max(self.now.saturating_sub(seconds.saturating_mul(1000))),
            None => since,
        }
    }

    /// The last time that was due and was not started, and about how many there were since the last start.
    ///
    /// The distance of the first two tells about where the last one is; from one before that on they are counted
    /// through, so that a controller that was away for years does not count them all.
    fn last_due(&self, with_deadline: bool) -> Result<(Option<Millis>, i64), &'static str> {
        let Some(first) = self.next(self.earliest(with_deadline)).filter(|first| *first <= self.now) else {
            return Ok((None, 0));
        };
        let Some(second) = self.next(first).filter(|second| *second <= self.now) else {
            return Ok((Some(first), 1));
        };
        let distance = second - first;
        if distance < 1000 {
            return Err("time difference between two schedules is less than 1 second");
        }
        let missed = (self.now - first) / distance + 1;
        let guess = first + (missed - 2) * distance;
        let due = |at| self.next(at).filter(|next| *next <= self.now);
        // Where the schedule is uneven the guess may lie behind the last one: go back, further each time.
        let before = (0..63).map(|n| guess.saturating_sub(distance.saturating_mul((1 << n) - 1)).max(first - 1000));
        let mut last = before.into_iter().find_map(due);
        for _ in 0..STEPS_MAX {
            match last.and_then(due) {
                Some(next) => last = Some(next),
                None => break,
            }
        }
        Ok((last, missed))
    }

    /// When the next start is due.
    fn look_again(&self) -> Option<Millis> {
        let from = match self.last_due(false) {
            Ok((Some(last), _)) => last,
            Ok((None, 0)) => self.earliest(false),
            _ => self.now,
        };
        self.next(from).map(|next| next.max(self.now) + DELTA)
    }

    /// A moment as text, in UTC.
    fn text(&self, at: Millis, format: &str) -> String {
        Timestamp::from_millisecond(at).map(|at| at.strftime(format).to_string()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Millis {
        text.parse::<Timestamp>().expect("a time").as_millisecond()
    }

    fn cron(change: impl FnOnce(&mut CronJob)) -> CronJob {
        let mut cron = CronJob {
            name: "dump".into(),
            deleting: false,
            created: at("2024-01-01T00:30:00Z"),
            schedule: Ok("0 * * * *".parse().expect("a schedule")),
            zone: Ok(TimeZone::UTC),
            deadline_seconds: None,
            concurrency: Concurrency::Allow,
            suspend: false,
            keep_succeeded: Some(3),
            keep_failed: Some(1),
            status: Status::default(),
        };
        change(&mut cron);
        cron
    }

    fn words(plan: &Plan) -> Vec<&str> {
        plan.events.iter().map(|event| event.reason).collect()
    }

    fn job(name: &str, ended: Option<Ended>, started: Millis) -> Job {
        Job { name: name.into(), uid: name.into(), ended, started, completed: ended.map(|_| started + 1000) }
    }

    #[test]
    fn what_is_due_is_started_once() {
        let mut cron = cron(|_| {});
        let early = plan(&cron, &[], at("2024-01-01T00:59:59Z"));
        assert_eq!((early.start.as_ref(), early.look_again), (None, Some(at("2024-01-01T01:00:00Z") + DELTA)));
        let now = at("2024-01-01T01:00:00Z") + DELTA;
        let due = plan(&cron, &[], now);
        let start = due.start.as_ref().expect("is due");
        assert_eq!((start.name.as_str(), start.due_text.as_str()), ("dump-28401180", "2024-01-01T01:00:00Z"));
        cron.status = due.status_after(Some((start, "u")));
        let running = Job { uid: "u".into(), ..job("dump-28401180", None, now) };
        let again = plan(&cron, &[running], now);
        assert_eq!((again.start.as_ref(), again.status.clone()), (None, cron.status.clone()));
        assert_eq!(again.look_again, Some(at("2024-01-01T02:00:00Z") + DELTA));
    }

    #[test]
    fn of_many_missed_starts_the_last_one_is_made_up_for() {
        let cron = cron(|_| {});
        let few = plan(&cron, &[], at("2024-01-01T10:20:00Z"));
        assert_eq!(few.start.map(|s| s.due), Some(at("2024-01-01T10:00:00Z")));
        assert_eq!(few.events, []);
        let many = plan(&cron, &[], at("2024-02-01T10:20:00Z"));
        assert_eq!(words(&many), ["TooManyMissedTimes"]);
        assert_eq!(many.start.map(|s| s.due), Some(at("2024-02-01T10:00:00Z")));
    }

    #[test]
    fn a_deadline_bounds_how_late_a_start_may_be() {
        let cron = cron(|c| c.deadline_seconds = Some(600));
        assert!(plan(&cron, &[], at("2024-01-01T10:09:00Z")).start.is_some());
        let late = plan(&cron, &[], at("2024-01-01T10:11:00Z"));
        assert_eq!((late.start, late.look_again), (None, Some(at("2024-01-01T11:00:00Z") + DELTA)));
    }

    #[test]
    fn policies_say_what_happens_while_a_job_runs() {
        let now = at("2024-01-01T02:00:01Z");
        let running = job("dump-1", None, at("2024-01-01T01:00:00Z"));
        let with = |concurrency| {
            let cron = cron(|c| {
                c.concurrency = concurrency;
                c.status.active = vec![("dump-1".into(), "dump-1".into())];
                c.status.last_schedule = Some(at("2024-01-01T01:00:00Z"));
            });
            plan(&cron, std::slice::from_ref(&running), now)
        };
        let allow = with(Concurrency::Allow);
        assert!(allow.start.is_some() && allow.delete.is_empty());
        let forbid = with(Concurrency::Forbid);
        assert_eq!((forbid.start.is_some(), words(&forbid)), (false, vec!["JobAlreadyActive"]));
        let replace = with(Concurrency::Replace);
        assert_eq!((replace.start.is_some(), replace.delete.len(), replace.status.active.len()), (true, 1, 0));
    }

    #[test]
    fn nothing_starts_while_it_is_suspended_or_cannot_be_read() {
        let now = at("2024-01-01T02:00:01Z");
        assert_eq!(plan(&cron(|c| c.suspend = true), &[], now).start, None);
        let lost = plan(&cron(|c| c.zone = Err("unknown time zone X".into())), &[], now);
        assert_eq!((lost.start.is_some(), words(&lost)), (false, vec!["UnknownTimeZone"]));
        let unread = plan(&cron(|c| c.schedule = Err(("x".into(), "why".into()))), &[], now);
        assert_eq!((unread.start.is_some(), words(&unread)), (false, vec!["UnparseableSchedule"]));
        assert_eq!(plan(&cron(|c| c.deleting = true), &[], now).start, None);
    }

    #[test]
    fn jobs_that_ended_leave_the_list_and_old_ones_go() {
        let cron = cron(|c| {
            c.keep_succeeded = Some(1);
            c.status.active = vec![("a".into(), "a".into()), ("gone".into(), "gone".into())];
            c.suspend = true;
        });
        let jobs = [
            job("a", Some(Ended::Complete), 3000),
            job("b", Some(Ended::Complete), 2000),
            job("c", Some(Ended::Failed), 1000),
        ];
        let plan = plan(&cron, &jobs, 9000);
        assert_eq!(plan.status, Status { active: vec![], last_schedule: None, last_success: Some(4000) });
        assert_eq!(plan.delete, [("b".to_owned(), "b".to_owned())]);
        assert_eq!(words(&plan), ["SawCompletedJob", "MissingJob"]);
    }

    #[test]
    fn schedules_follow_their_zone() {
        let cron = cron(|c| {
            c.zone = cron::zone("Asia/Kathmandu");
            c.schedule = Ok("0 3 * * *".parse().expect("a schedule"));
        });
        let start = plan(&cron, &[], at("2024-01-01T22:00:00Z")).start.expect("is due");
        assert_eq!(start.due_text, "2024-01-02T03:00:00+05:45");
    }

    proptest! {
        #[test]
        fn what_is_started_was_due_and_no_later_time_was(
            minutes in 1..300i64, step in 1..30u32, hours in 1..12u32,
        ) {
            let schedule: Schedule = format!("*/{step} */{hours} * * *").parse().expect("a schedule");
            let cron = cron(|c| c.schedule = Ok(schedule.clone()));
            let now = cron.created + minutes * 60_000;
            let plan = plan(&cron, &[], now);
            let next = |after| schedule.next(Timestamp::from_millisecond(after).expect("a time"), &TimeZone::UTC);
            let next = |after| next(after).expect("comes").as_millisecond();
            match plan.start {
                Some(start) => {
                    prop_assert!(start.due <= now && start.due > cron.created);
                    prop_assert_eq!(next(start.due - 1000), start.due);
                    prop_assert!(next(start.due) > now);
                }
                None => prop_assert!(next(cron.created) > now),
            }
            prop_assert!(plan.look_again.expect("comes again") > now);
        }
    }
}
