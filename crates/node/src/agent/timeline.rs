//! How long each step of a pod's start took.
//!
//! ```text
//!   taken up ─▶ config ─▶ address ─▶ image ─▶ volumes ─▶ sandbox ─▶ network ─▶ containers ─▶ probes ─▶ status
//!               the worker's steps, one after the other                        follows       the reporter
//! ```
//!
//! The steps follow each other without gaps, so that what they took adds up to the whole. A start that is broken off
//! counts as far as it came; the next try begins anew.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ambient::Ambient;

use super::metrics::Metrics;

/// A step of a pod's start, named by what is there when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Config maps, secrets and tokens that the pod names were read from the API.
    Config,
    /// Its address is on record.
    Address,
    /// Its images are on the machine.
    Image,
    /// Volumes, files and what its shim is told are written.
    Volumes,
    /// Its shim is up, with control groups and namespaces.
    Sandbox,
    /// Its interface has its address and routes.
    Network,
    /// Init containers are over, and the programs of all containers were executed.
    Containers,
    /// Probes say that it is ready.
    Probes,
    /// The API took the status that says so.
    Status,
}

impl Step {
    /// In the order in which they are reached.
    pub const ALL: [Self; 9] = [
        Self::Config,
        Self::Address,
        Self::Image,
        Self::Volumes,
        Self::Sandbox,
        Self::Network,
        Self::Containers,
        Self::Probes,
        Self::Status,
    ];

    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Address => "address",
            Self::Image => "image",
            Self::Volumes => "volumes",
            Self::Sandbox => "sandbox",
            Self::Network => "network",
            Self::Containers => "containers",
            Self::Probes => "probes",
            Self::Status => "status",
        }
    }

    fn next(self) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step > self)
    }
}

/// Where a start has come to, without a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// The step that is under way, and since when. None where nothing is: a pod that was found running has no start.
    under_way: Option<(Step, Duration)>,
    /// When the pod was first taken up.
    seen: Option<Duration>,
    /// It was told how long it took from there to running. A restart in place is a start, and not the pod's first.
    told: bool,
}

/// What reaching a step tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// How long the step took.
    pub took: Duration,
    /// From first taken up to running, where this step shows it.
    pub running_after: Option<Duration>,
}

impl Timeline {
    /// A try begins. `now` is of a clock that never goes back.
    pub fn begin(&mut self, now: Duration) {
        self.under_way = Some((Step::Config, now));
        self.seen.get_or_insert(now);
    }

    /// A step is done. None where another step is under way, or none: each is told once, in order.
    pub fn reach(&mut self, step: Step, now: Duration) -> Option<Reached> {
        let (under_way, since) = self.under_way.filter(|(under_way, _)| *under_way == step)?;
        self.under_way = under_way.next().map(|next| (next, now));
        let running_after =
            self.seen.filter(|_| step == Step::Containers && !self.told).map(|seen| now.saturating_sub(seen));
        self.told |= running_after.is_some();
        Some(Reached { took: now.saturating_sub(since), running_after })
    }
}

/// The timeline of one pod, with the machine's clock and the agent's metrics. Clones share it.
#[derive(Clone, Debug)]
pub struct Stopwatch {
    timeline: Arc<Mutex<Timeline>>,
    metrics: Arc<Metrics>,
    ambient: Ambient,
}

impl Stopwatch {
    /// For one pod.
    pub fn new(metrics: Arc<Metrics>, ambient: Ambient) -> Self {
        Self { timeline: Arc::default(), metrics, ambient }
    }

    /// A try begins.
    pub fn begin(&self) {
        let now = self.ambient.boottime();
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner).begin(now);
    }

    /// A step is done. Steps that are not under way say nothing.
    pub fn reach(&self, step: Step) {
        let now = self.ambient.boottime();
        let reached = self.timeline.lock().unwrap_or_else(PoisonError::into_inner).reach(step, now);
        if let Some(reached) = reached {
            self.metrics.reached(step, reached);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn steps_add_up_to_the_whole() {
        let mut timeline = Timeline::default();
        timeline.begin(ms(100));
        let ends = [103, 104, 104, 110, 131, 140, 155, 160, 165];
        let reached: Vec<Reached> =
            Step::ALL.into_iter().zip(ends).map(|(step, at)| timeline.reach(step, ms(at)).expect("in order")).collect();
        assert_eq!(reached.iter().map(|r| r.took).sum::<Duration>(), ms(65));
        assert_eq!(reached[4].took, ms(21));
        let running: Vec<_> = reached.iter().filter_map(|r| r.running_after).collect();
        assert_eq!(running, [ms(55)], "told once, by the step that shows it");
    }

    #[test]
    fn each_step_is_told_once_and_only_in_order() {
        let mut timeline = Timeline::default();
        assert_eq!(timeline.reach(Step::Containers, ms(1)), None, "a pod that was found running has no start");
        timeline.begin(ms(5));
        assert_eq!(timeline.reach(Step::Sandbox, ms(6)), None);
        assert!(timeline.reach(Step::Config, ms(7)).is_some());
        assert_eq!(timeline.reach(Step::Config, ms(8)), None);
        for step in Step::ALL.into_iter().skip(1) {
            assert!(timeline.reach(step, ms(9)).is_some(), "{step:?}");
        }
        assert_eq!(timeline.reach(Step::Status, ms(10)), None, "readiness that comes again is no start");
    }

    #[test]
    fn another_try_begins_anew_and_the_pod_was_seen_at_the_first() {
        let mut timeline = Timeline::default();
        timeline.begin(ms(0));
        assert!(timeline.reach(Step::Config, ms(1)).is_some());
        timeline.begin(ms(1000));
        for step in &Step::ALL[..6] {
            assert!(timeline.reach(*step, ms(1001)).is_some());
        }
        let reached = timeline.reach(Step::Containers, ms(1003)).expect("in order");
        assert_eq!((reached.took, reached.running_after), (ms(2), Some(ms(1003))));
        timeline.begin(ms(5000));
        for step in &Step::ALL[..6] {
            timeline.reach(*step, ms(5001));
        }
        let again = timeline.reach(Step::Containers, ms(5002)).expect("in order");
        assert_eq!(again.running_after, None, "a restart in place");
    }

    #[test]
    fn names_are_all_different() {
        let names: std::collections::BTreeSet<_> = Step::ALL.iter().map(|step| step.name()).collect();
        assert_eq!(names.len(), Step::ALL.len());
    }
}
