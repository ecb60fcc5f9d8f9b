//! Probes: when to ask a container how it is, and what the answers mean.
//!
//! The decision is [`Track`], one per probe of a running container, without clock and without I/O: it says
//! when the next question is due, is told the answer, and says what follows from it. Asking is
//! [`run`]'s part. Readiness and liveness wait behind the startup probe where there is one.
//!
//! ```text
//!   container runs ──▶ startup probe ──success──▶ readiness ⟲ ready / not ready
//!                          │                     liveness  ⟲ failureThreshold misses ──▶ restart
//!                          └─ failureThreshold misses ──▶ restart
//! ```
//!
//! One difference from a kubelet, on purpose: a readiness or startup probe without initial delay asks more
//! often than `periodSeconds` in the first period, at once and then after pauses that double, so that a program
//! that is up in 20 ms is ready in 30 ms and not a period later. Such extra questions can only succeed early;
//! their failures neither count nor make an event. Questions that count begin one period after the start.

pub mod grpc;
pub mod run;
pub mod tls;

use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;

/// The first pause between extra questions to a socket; it doubles.
const EAGER_SOCKET: Duration = Duration::from_millis(4);
/// The first pause between extra questions that start a program; it doubles.
const EAGER_EXEC: Duration = Duration::from_millis(40);

/// Which of a container's probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Holds the other two back until it succeeded once.
    Startup,
    /// Decides whether traffic is sent.
    Readiness,
    /// Decides whether the container is restarted.
    Liveness,
}

impl Kind {
    /// As events and messages name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// A probe's numbers, with upstream's defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Wait after the container's start.
    pub initial_delay: Duration,
    /// From question to question.
    pub period: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Successes in a row that make it succeed.
    pub success_threshold: u32,
    /// Failures in a row that make it fail.
    pub failure_threshold: u32,
    /// First pause between extra questions; none where there are no extra questions.
    pub eager: Option<Duration>,
}

impl Timing {
    /// Reads the numbers of a probe.
    pub fn of(kind: Kind, probe: &Probe) -> Self {
        let seconds = |value: Option<i32>, default: u64, least: u64| {
            Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default).max(least))
        };
        let count = |value: Option<i32>, default: u32| {
            value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
        };
        let initial_delay = seconds(probe.initial_delay_seconds, 0, 0);
        let success_threshold = count(probe.success_threshold, 1);
        let eager = (kind != Kind::Liveness && initial_delay.is_zero() && success_threshold == 1)
            .then_some(if probe.exec.is_some() { EAGER_EXEC } else { EAGER_SOCKET });
        Self {
            initial_delay,
            period: seconds(probe.period_seconds, 10, 1),
            timeout: seconds(probe.timeout_seconds, 1, 1),
            success_threshold,
            failure_threshold: count(probe.failure_threshold, 3),
            eager,
        }
    }
}

/// What follows from an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing new.
    Same,
    /// The probe now succeeds.
    Succeeds,
    /// The probe now fails.
    Fails,
}

/// One probe of one run of a container. Times count from any fixed point.
#[derive(Clone, Debug)]
pub struct Track {
    kind: Kind,
    timing: Timing,
    /// When the next regular question is due.
    regular: Duration,
    /// When the next extra question is due, and the pause after it.
    extra: Option<(Duration, Duration)>,
    successes: u32,
    failures: u32,
    verdict: Option<bool>,
}

impl Track {
    /// A container started at `started`; questions may be asked from `now` (later where a startup probe held it back).
    pub fn new(kind: Kind, timing: Timing, started: Duration, now: Duration) -> Self {
        let first = (started + timing.initial_delay).max(now);
        let extra = timing.eager.map(|pause| (first, pause));
        let regular = if extra.is_some() { first + timing.period } else { first };
        Self { kind, timing, regular, extra, successes: 0, failures: 0, verdict: None }
    }

    /// Which probe it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How long an answer may take.
    pub fn timeout(&self) -> Duration {
        self.timing.timeout
    }

    /// When to ask next.
    pub fn due(&self) -> Duration {
        match self.extra {
            Some((at, _)) => at.min(self.regular),
            None => self.regular,
        }
    }

    /// Takes an answer to the question asked at `asked`, which came at `now`. Answers what follows, and
    /// whether the failure counted (an uncounted one is not worth an event).
    pub fn record(&mut self, success: bool, asked: Duration, now: Duration) -> (Verdict, bool) {
        let counted = asked >= self.regular;
        if counted {
            // As a ticker does: missed questions are not made up for.
            self.regular = (self.regular + self.timing.period).max(now);
        }
        self.plan_extra(success, now);
        if success {
            self.failures = 0;
            self.successes = self.successes.saturating_add(1);
            if self.successes >= self.timing.success_threshold && self.verdict != Some(true) {
                self.verdict = Some(true);
                return (Verdict::Succeeds, true);
            }
        } else if counted {
            self.successes = 0;
            self.failures = self.failures.saturating_add(1);
            if self.failures >= self.timing.failure_threshold {
                let new = self.verdict != Some(false);
                self.verdict = Some(false);
                // A container that was not restarted after all must be told again.
                if new || self.kind != Kind::Readiness {
                    self.failures = 0;
                    return (Verdict::Fails, true);
                }
            }
        }
        (Verdict::Same, counted)
    }

    /// Extra questions go on while there was no success, until their pauses are as long as the period.
    fn plan_extra(&mut self, success: bool, now: Duration) {
        let Some((at, pause)) = self.extra else { return };
        if success || pause >= self.timing.period {
            self.extra = None;
        } else if now >= at {
            self.extra = Some((now + pause, pause * 2));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn timing(delay: u64, period: u64, successes: u32, failures: u32) -> Timing {
        Timing {
            initial_delay: S * u32::try_from(delay).expect("small"),
            period: S * u32::try_from(period).expect("small"),
            timeout: S,
            success_threshold: successes,
            failure_threshold: failures,
            eager: None,
        }
    }

    #[test]
    fn defaults_are_upstreams() {
        let read = Timing::of(Kind::Liveness, &Probe::default());
        assert_eq!(read, timing(0, 10, 1, 3));
        assert!(Timing::of(Kind::Readiness, &Probe::default()).eager.is_some());
        let later = Probe { initial_delay_seconds: Some(1), ..Probe::default() };
        assert!(Timing::of(Kind::Readiness, &later).eager.is_none());
    }

    #[test]
    fn liveness_fails_after_the_threshold_and_a_success_starts_over() {
        let mut track = Track::new(Kind::Liveness, timing(5, 10, 1, 3), S, S);
        assert_eq!(track.due(), S * 6);
        let mut at = track.due();
        let mut answer = |track: &mut Track, ok| {
            let verdict = track.record(ok, at, at).0;
            at = track.due();
            verdict
        };
        assert_eq!(answer(&mut track, false), Verdict::Same);
        assert_eq!(answer(&mut track, false), Verdict::Same);
        assert_eq!(answer(&mut track, true), Verdict::Succeeds);
        assert_eq!(answer(&mut track, false), Verdict::Same);
        assert_eq!(answer(&mut track, false), Verdict::Same);
        assert_eq!(answer(&mut track, false), Verdict::Fails);
        assert_eq!(at, S * 66);
    }

    #[test]
    fn readiness_needs_its_successes_and_tells_each_change_once() {
        let mut track = Track::new(Kind::Readiness, timing(0, 1, 2, 2), S, S);
        let mut verdicts = Vec::new();
        for ok in [true, true, true, false, false, false, true, true] {
            let at = track.due();
            verdicts.push(track.record(ok, at, at).0);
        }
        use Verdict::{Fails, Same, Succeeds};
        assert_eq!(verdicts, [Same, Succeeds, Same, Same, Fails, Same, Same, Succeeds]);
    }

    #[test]
    fn extra_questions_come_early_succeed_early_and_never_count_as_failures() {
        let eager = Timing { eager: Some(EAGER_SOCKET), ..timing(0, 10, 1, 1) };
        let mut track = Track::new(Kind::Startup, eager.clone(), S, S);
        assert_eq!(track.due(), S);
        let mut asked = 0;
        while track.due() < S * 11 {
            let at = track.due();
            assert_eq!(track.record(false, at, at), (Verdict::Same, false));
            asked += 1;
        }
        assert!((5..20).contains(&asked), "{asked}");
        assert_eq!(track.record(false, S * 11, S * 11), (Verdict::Fails, true));
        let mut quick = Track::new(Kind::Startup, eager, S, S);
        assert_eq!(quick.record(false, S, S).0, Verdict::Same);
        let at = quick.due();
        assert!(at < S * 2);
        assert_eq!(quick.record(true, at, at).0, Verdict::Succeeds);
        assert_eq!(quick.due(), S * 11);
    }

    proptest! {
        #[test]
        fn questions_never_pile_up_and_time_never_stands(
            period in 1u64..5, delay in 0u64..3, answers in proptest::collection::vec((any::<bool>(), 0u64..4000), 1..60)
        ) {
            let timing = Timing { eager: (delay == 0).then_some(EAGER_SOCKET), ..timing(delay, period, 1, 3) };
            let mut track = Track::new(Kind::Readiness, timing, S, S);
            let mut now = S;
            let mut regular = 0u32;
            for (ok, took) in answers {
                let asked = track.due().max(now);
                now = asked + Duration::from_millis(took);
                let counted = asked >= track.regular;
                regular += u32::from(counted);
                track.record(ok, asked, now);
                prop_assert!(track.due() > asked || took > 0 || !counted);
                // Never more regular questions than periods that have passed.
                prop_assert!(u64::from(regular - u32::from(regular > 0)) * period <= now.as_secs() + period);
            }
        }
    }
}
