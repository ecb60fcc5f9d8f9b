//! What an agent counts, in Prometheus' text format; names are a kubelet's where it has the same.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::timeline::{Reached, Step};

/// Bounds of a step, in seconds: most are a few milliseconds.
const STEP_SECONDS: [f64; 14] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0, 300.0];
/// Bounds of a whole start, in seconds. The upper ones are as a kubelet's (pkg/kubelet/metrics, podStartupDurationBuckets).
const START_SECONDS: [f64; 14] = [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0];

/// What one agent counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    steps: Family<Which, Histogram, fn() -> Histogram>,
    starts: Histogram,
}

/// A step, as a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Which {
    step: &'static str,
}

impl Default for Metrics {
    /// All at zero.
    fn default() -> Self {
        let steps = Family::new_with_constructor((|| Histogram::new(STEP_SECONDS)) as fn() -> Histogram);
        let starts = Histogram::new(START_SECONDS);
        let mut registry = Registry::default();
        registry.register(
            "kubelet_pod_start_duration_seconds",
            "Duration in seconds from the agent seeing a pod for the first time to the pod starting to run",
            starts.clone(),
        );
        registry.register(
            "statefuld_pod_start_step_duration_seconds",
            "Duration in seconds of each step of a pod's start, in order; together they are the whole",
            steps.clone(),
        );
        for step in Step::ALL {
            // All are there from the beginning, so that a rate can be taken of each.
            drop(steps.get_or_create(&Which { step: step.name() }));
        }
        Self { registry, steps, starts }
    }
}

impl Metrics {
    /// A pod has come so far.
    pub(super) fn reached(&self, step: Step, reached: Reached) {
        self.steps.get_or_create(&Which { step: step.name() }).observe(reached.took.as_secs_f64());
        if let Some(running_after) = reached.running_after {
            self.starts.observe(running_after.as_secs_f64());
        }
    }

    /// All of it as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            text.clear();
        }
        // The mark of an end belongs to the newer form alone, in which histograms are written as in the older.
        if let Some(body) = text.strip_suffix("# EOF\n") {
            text.truncate(body.len());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn steps_are_told_as_histograms() {
        let metrics = Metrics::default();
        let took = |ms| Reached { took: Duration::from_millis(ms), running_after: None };
        metrics.reached(Step::Sandbox, took(15));
        metrics.reached(Step::Sandbox, took(25));
        metrics.reached(Step::Containers, Reached { running_after: Some(Duration::from_millis(70)), ..took(4) });
        let text = metrics.text();
        for line in [
            "# TYPE statefuld_pod_start_step_duration_seconds histogram",
            "statefuld_pod_start_step_duration_seconds_sum{step=\"sandbox\"} 0.04",
            "statefuld_pod_start_step_duration_seconds_count{step=\"sandbox\"} 2",
            "statefuld_pod_start_step_duration_seconds_bucket{le=\"0.02\",step=\"sandbox\"} 1",
            "statefuld_pod_start_step_duration_seconds_count{step=\"status\"} 0",
            "kubelet_pod_start_duration_seconds_count 1",
            "kubelet_pod_start_duration_seconds_bucket{le=\"0.1\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing: {text}");
        }
        assert!(!text.contains("EOF"), "{text}");
    }
}
