//! What the node and its containers use: processor time over a short while, memory now.
//!
//! Nothing is measured until somebody asks. A rate needs two looks at a counter: the first may be that of an earlier
//! question, if it is recent and saw all containers that run now; otherwise there is a short wait between two.

use std::collections::HashMap;
use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ambient::Ambient;
use serde_json::{Value, json};

use super::machine;
use crate::cgroup::{Layout, PodCgroup, Usage};
use crate::config::Config;
use crate::shim::spec::ShimSpec;
use crate::shim::state::{PodState, Status};

/// The shortest time between two looks that a rate is taken from.
const WINDOW_MIN: Duration = Duration::from_millis(500);
/// The longest.
const WINDOW_MAX: Duration = Duration::from_secs(60);
/// Length of the kernel's clock ticks in /proc/stat, in nanoseconds.
const TICK_NS: u64 = 10_000_000;

/// Takes looks, and remembers the last one.
#[derive(Debug)]
pub struct Sampler {
    config: Config,
    ambient: Ambient,
    last: Mutex<Option<Look>>,
}

/// The counters at one moment.
#[derive(Clone, Debug)]
struct Look {
    at: Duration,
    node: Usage,
    pods: Vec<PodLook>,
}

/// A pod at one moment.
#[derive(Clone, Debug)]
struct PodLook {
    spec: ShimSpec,
    created_at: Value,
    containers: Vec<ContainerLook>,
}

/// A container at one moment.
#[derive(Clone, Debug)]
struct ContainerLook {
    name: String,
    /// Since when it runs; none where it does not.
    since: Option<jiff::Timestamp>,
    usage: Option<Usage>,
}

impl Sampler {
    /// For that node.
    pub fn new(config: Config, ambient: Ambient) -> Self {
        Self { config, ambient, last: Mutex::new(None) }
    }

    /// The document that answers a question for statistics.
    pub async fn document(&self) -> Value {
        let mut now = self.look();
        let mut before = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if !before.as_ref().is_some_and(|before| serves(before, &now)) {
            tokio::time::sleep(WINDOW_MIN).await;
            before = Some(std::mem::replace(&mut now, self.look()));
        }
        let before = before.expect("a look was taken just now, if there was none");
        let document = self.describe(&before, &now);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        document
    }

    /// Looks at everything.
    fn look(&self) -> Look {
        let layout = Layout::detect().unwrap_or_default();
        let mut pods = Vec::new();
        for entry in fs::read_dir(self.config.pods_dir()).into_iter().flatten().flatten() {
            let (Ok(spec), Ok(Some(state))) = (ShimSpec::read(&entry.path()), PodState::read(&entry.path())) else {
                continue;
            };
            let group = PodCgroup::new(&layout, &spec.cgroup).ok();
            let containers = state.containers.iter().map(|c| {
                let since = match &c.state {
                    Status::Running { started_at, .. } => Some(*started_at),
                    _ => None,
                };
                let usage = group.as_ref().filter(|_| since.is_some()).and_then(|g| g.container(&c.name).usage());
                ContainerLook { name: c.name.clone(), since, usage }
            });
            let containers = containers.collect();
            pods.push(PodLook { created_at: json!(state.created_at), spec, containers });
        }
        let node = Usage { cpu_ns: busy_ns().unwrap_or(0), memory_bytes: used_bytes().unwrap_or(0) };
        Look { at: self.ambient.boottime(), node, pods }
    }

    /// Both looks as one document.
    fn describe(&self, before: &Look, now: &Look) -> Value {
        let window = now.at.saturating_sub(before.at);
        let known = counters(before);
        let pods: Vec<Value> = now
            .pods
            .iter()
            .map(|pod| {
                let containers: Vec<Value> = pod
                    .containers
                    .iter()
                    .map(|ContainerLook { name, since, usage }| {
                        let mut container = json!({"name": name, "running": since.is_some()});
                        if let Some(since) = since {
                            container["startedAt"] = since.to_string().into();
                        }
                        if let Some(usage) = usage {
                            container["total"] = total(usage);
                        }
                        let first = known.get(&(pod.spec.uid.as_str(), name.as_str()));
                        if let Some((usage, first)) = usage.zip(first) {
                            container["usage"] = rate(first, &usage, window);
                        }
                        container
                    })
                    .collect();
                json!({
                    "podRef": {"name": pod.spec.name, "namespace": pod.spec.namespace, "uid": pod.spec.uid},
                    "startTime": pod.created_at,
                    "containers": containers,
                })
            })
            .collect();
        json!({
            "node": {
                "nodeName": self.config.node_name,
                "cpus": machine::cpus(),
                "memoryBytes": machine::memory_bytes(),
                "usage": rate(&before.node, &now.node, window),
                "total": total(&now.node),
            },
            "timestamp": self.ambient.now().to_string(),
            "windowNanos": u64::try_from(window.as_nanos()).unwrap_or(u64::MAX),
            "pods": pods,
        })
    }
}

/// The counters of a look, by pod and container.
fn counters(look: &Look) -> HashMap<(&str, &str), &Usage> {
    let containers = look.pods.iter().flat_map(|pod| {
        let uid = pod.spec.uid.as_str();
        pod.containers.iter().filter_map(move |c| Some(((uid, c.name.as_str()), c.usage.as_ref()?)))
    });
    containers.collect()
}

/// Whether an earlier look serves as the first of a pair.
fn serves(before: &Look, now: &Look) -> bool {
    let age = now.at.saturating_sub(before.at);
    let (known, asked) = (counters(before), counters(now));
    // A counter that went back is that of another run.
    (WINDOW_MIN..=WINDOW_MAX).contains(&age)
        && asked.iter().all(|(key, usage)| known.get(key).is_some_and(|first| first.cpu_ns <= usage.cpu_ns))
}

/// What was used so far, and memory as it is.
fn total(now: &Usage) -> Value {
    json!({"cpuNanos": now.cpu_ns, "memoryBytes": now.memory_bytes})
}

/// A counter's rate, and memory as it is.
fn rate(before: &Usage, now: &Usage, window: Duration) -> Value {
    let used = u128::from(now.cpu_ns.saturating_sub(before.cpu_ns));
    let nanocores = used * 1_000_000_000 / window.as_nanos().max(1);
    json!({
        "cpuNanocores": u64::try_from(nanocores).unwrap_or(u64::MAX),
        "memoryBytes": now.memory_bytes,
    })
}

/// Time that all processors together were busy since the machine started.
fn busy_ns() -> Option<u64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|at| ticks.get(*at)).sum();
    Some(busy.saturating_mul(TICK_NS))
}

/// Memory of the machine that is not available to new programs.
fn used_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()
    };
    Some(kib("MemTotal:")?.saturating_sub(kib("MemAvailable:")?) * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(cpu_ns: u64) -> Usage {
        Usage { cpu_ns, memory_bytes: 7 }
    }

    #[test]
    fn half_a_processor_is_five_hundred_million_nanocores() {
        let rate = rate(&usage(1_000), &usage(1_000 + 250_000_000), Duration::from_millis(500));
        assert_eq!(rate, json!({"cpuNanocores": 500_000_000, "memoryBytes": 7}));
    }

    #[test]
    fn a_counter_that_went_back_counts_as_nothing() {
        assert_eq!(rate(&usage(9), &usage(3), Duration::from_secs(1))["cpuNanocores"], 0);
    }

    #[test]
    fn the_machine_tells_what_it_uses() {
        assert!(busy_ns().is_some_and(|ns| ns > 0));
        assert!(used_bytes().is_some_and(|bytes| bytes > 0));
    }

    #[test]
    fn an_old_or_too_recent_look_does_not_serve() {
        let look = |at| Look { at: Duration::from_millis(at), node: usage(0), pods: Vec::new() };
        assert!(serves(&look(0), &look(5_000)));
        assert!(!serves(&look(0), &look(100)));
        assert!(!serves(&look(0), &look(61_000)));
    }
}
