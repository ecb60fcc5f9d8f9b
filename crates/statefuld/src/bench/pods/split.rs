//! From moments to a table: how long each step of a pod's start took, on the mean of all pods.
//!
//! A client's watch tells when a pod was created, scheduled and Ready; the node's own metrics tell how long each step
//! took there. What is left between the two is what handing over took: watches on their way to the agent, and the last
//! status on its way back.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::report::Step;

/// The metric that tells of the node's steps.
const METRIC: &str = "statefuld_pod_start_step_duration_seconds";
/// The node's last step.
pub(super) const LAST: &str = "status";
/// The node's steps in their order, and what they are.
const STEPS: [(&str, &str); 9] = [
    ("config", "what it names is read"),
    ("address", "address on record"),
    ("image", "image found"),
    ("volumes", "volumes and files written"),
    ("sandbox", "sandbox: shim, namespaces, cgroups"),
    ("network", "network"),
    ("containers", "container executed"),
    ("probes", "first probe that succeeds"),
    (LAST, "Ready written"),
];

/// When a client saw what became of a pod, on a clock that never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moments {
    /// It exists.
    pub(super) created: Option<Duration>,
    /// It has a node.
    pub(super) scheduled: Option<Duration>,
    /// It is Ready.
    pub(super) ready: Option<Duration>,
}

impl Moments {
    /// Takes what was seen of the pod at a moment. The first time counts.
    pub(super) fn see(&mut self, bound: bool, ready: bool, now: Duration) {
        self.created.get_or_insert(now);
        if bound {
            self.scheduled.get_or_insert(now);
        }
        if ready {
            self.ready.get_or_insert(now);
        }
    }
}

/// Of each of the node's steps: seconds in all, and how often it was taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Counted(BTreeMap<String, (f64, u64)>);

impl Counted {
    /// Reads the node's metrics.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut counted = BTreeMap::<String, (f64, u64)>::new();
        for line in text.lines() {
            let Some((kind, rest)) = line.strip_prefix(METRIC).and_then(|rest| rest.split_once("{step=\"")) else {
                continue;
            };
            if !matches!(kind, "_sum" | "_count") {
                continue;
            }
            let (step, value) = rest.split_once("\"} ").with_context(|| format!("not a metric: {line:?}"))?;
            let wrong = || format!("not a number: {line:?}");
            let of_step = counted.entry(step.to_owned()).or_default();
            if kind == "_sum" {
                of_step.0 = value.trim().parse().with_context(wrong)?;
            } else {
                of_step.1 = value.trim().parse().with_context(wrong)?;
            }
        }
        Ok(Self(counted))
    }

    /// How often a step was taken.
    pub(super) fn count(&self, step: &str) -> u64 {
        self.0.get(step).map_or(0, |(_, count)| *count)
    }

    /// Seconds that a step took since an earlier look.
    fn since(&self, earlier: &Self, step: &str) -> f64 {
        let seconds = |counted: &Self| counted.0.get(step).map_or(0.0, |(seconds, _)| *seconds);
        seconds(self) - seconds(earlier)
    }
}

/// What one start of a set showed: seconds of each step, of all its pods together.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sums {
    pods: u32,
    steps: Vec<(&'static str, f64)>,
}

impl Sums {
    /// Splits one start. `pods` are in the order of their ordinals; `ordered` says that each was created when the one
    /// before was Ready. A pod that was not seen in all its moments is an error.
    pub(super) fn of(
        apply: Duration,
        ordered: bool,
        pods: &[Moments],
        before: &Counted,
        after: &Counted,
    ) -> Result<Self> {
        let (mut created, mut scheduled, mut rest) = (0.0, 0.0, 0.0);
        let mut from = apply;
        for moments in pods {
            let all = moments.created.zip(moments.scheduled).zip(moments.ready);
            let ((made, bound), ready) = all.context("a pod was not seen from its creation to Ready")?;
            created += seconds_between(from, made);
            scheduled += seconds_between(made, bound);
            rest += seconds_between(bound, ready);
            if ordered {
                from = ready;
            }
        }
        let node = STEPS.map(|(name, what)| (what, after.since(before, name)));
        let handed = rest - node.iter().map(|(_, seconds)| seconds).sum::<f64>();
        let mut steps = vec![
            ("created, after apply or the one before", created),
            ("scheduled", scheduled),
            ("handed to the node and back", handed),
        ];
        steps.extend(node);
        Ok(Self { pods: u32::try_from(pods.len())?, steps })
    }

    /// Adds another start of the same kind.
    pub(super) fn add(&mut self, other: &Self) {
        if self.steps.is_empty() {
            self.steps.clone_from(&other.steps);
        } else {
            for ((_, sum), (_, more)) in self.steps.iter_mut().zip(&other.steps) {
                *sum += more;
            }
        }
        self.pods += other.pods;
    }

    /// What each step took on the mean of all pods.
    pub(super) fn means(&self) -> Vec<Step> {
        let pods = f64::from(self.pods.max(1));
        self.steps.iter().map(|(step, sum)| Step { step: (*step).to_owned(), mean_ms: sum * 1000.0 / pods }).collect()
    }
}

/// Negative where the second came first: two watches do not run in step.
fn seconds_between(from: Duration, to: Duration) -> f64 {
    to.as_secs_f64() - from.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(of: &[(&str, f64, u64)]) -> Counted {
        let mut text = format!("# TYPE {METRIC} histogram\nother_sum{{step=\"config\"}} 7\n");
        for (step, sum, count) in of {
            text.push_str(&format!(
                "{METRIC}_sum{{step=\"{step}\"}} {sum}\n{METRIC}_count{{step=\"{step}\"}} {count}\n"
            ));
            text.push_str(&format!("{METRIC}_bucket{{le=\"+Inf\",step=\"{step}\"}} {count}\n"));
        }
        Counted::parse(&text).expect("metrics")
    }

    fn seen(created: u64, scheduled: u64, ready: u64) -> Moments {
        let mut moments = Moments::default();
        moments.see(false, false, Duration::from_millis(created));
        moments.see(true, false, Duration::from_millis(scheduled));
        moments.see(true, true, Duration::from_millis(ready));
        moments.see(true, true, Duration::from_millis(ready + 500));
        moments
    }

    fn mean(steps: &[Step], what: &str) -> f64 {
        let found = steps.iter().find(|step| step.step.starts_with(what)).expect(what);
        (found.mean_ms * 1000.0).round() / 1000.0
    }

    #[test]
    fn means_of_an_ordered_set_add_up_to_the_whole() {
        let before = metrics(&[("config", 1.0, 5), ("sandbox", 2.0, 5)]);
        let after = metrics(&[("config", 1.006, 7), ("sandbox", 2.040, 7), ("status", 0.004, 2)]);
        let apply = Duration::from_millis(100);
        let sums = Sums::of(apply, true, &[seen(110, 112, 150), seen(156, 160, 200)], &before, &after).expect("whole");
        let steps = sums.means();
        assert_eq!(mean(&steps, "created"), 8.0, "10 after apply, 6 after the one before");
        assert_eq!(mean(&steps, "scheduled"), 3.0);
        assert_eq!(mean(&steps, "what it names"), 3.0);
        assert_eq!(mean(&steps, "sandbox"), 20.0);
        assert_eq!(mean(&steps, "handed"), 14.0, "39 on the mean, 25 of them on the node");
        let all: f64 = steps.iter().map(|step| step.mean_ms).sum();
        assert!((all * 2.0 - 100.0).abs() < 1e-6, "{all}");
    }

    #[test]
    fn pods_of_a_parallel_set_all_count_from_apply() {
        let none = Counted::default();
        let pods = [seen(10, 11, 40), seen(20, 21, 40)];
        let mut sums = Sums::of(Duration::ZERO, false, &pods, &none, &none).expect("whole");
        assert_eq!(mean(&sums.means(), "created"), 15.0);
        sums.add(&Sums::of(Duration::ZERO, false, &[seen(60, 61, 70)], &none, &none).expect("whole"));
        assert_eq!(mean(&sums.means(), "created"), 30.0, "each pod weighs the same, whatever round it was in");
        let mut empty = Sums::default();
        empty.add(&sums);
        assert_eq!(empty, sums);
    }

    #[test]
    fn a_pod_that_was_not_seen_ready_is_told() {
        let mut moments = Moments::default();
        moments.see(true, false, Duration::from_millis(1));
        let none = Counted::default();
        assert!(Sums::of(Duration::ZERO, true, &[moments], &none, &none).is_err());
    }

    #[test]
    fn the_steps_are_those_that_the_node_counts() {
        let names: Vec<_> = node::agent::timeline::Step::ALL.iter().map(|step| step.name()).collect();
        assert_eq!(STEPS.map(|(name, _)| name).to_vec(), names);
        let counted = Counted::parse(&node::agent::metrics::Metrics::default().text()).expect("the node's own text");
        assert_eq!(counted.0.keys().count(), names.len());
        assert_eq!(counted.count(LAST), 0);
    }

    #[test]
    fn what_is_no_number_is_told() {
        assert!(Counted::parse(&format!("{METRIC}_sum{{step=\"config\"}} many")).is_err());
    }
}
