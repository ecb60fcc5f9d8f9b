//! Limits, quality of service, and who is killed first when memory runs out.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::containers;
use crate::agent::{machine, quantity};
use crate::shim::spec::Limits;

/// Processor time, memory and disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Thousandths of a processor.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory_bytes: u64,
    /// Bytes, of what lies on the node's own disk and goes with the pod.
    pub storage_bytes: u64,
}

impl std::ops::Add for Amounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            storage_bytes: self.storage_bytes.saturating_add(other.storage_bytes),
        }
    }
}

/// A pod's quality of service class. Where the pod says something as a whole, that decides.
pub fn qos_class(spec: &PodSpec) -> &'static str {
    let whole = spec.resources.as_ref().filter(|r| ["cpu", "memory"].iter().any(|what| says(r, what)));
    let all: Vec<Option<&ResourceRequirements>> = match whole {
        Some(whole) => vec![Some(whole)],
        None => containers(spec).map(|c| c.resources.as_ref()).collect(),
    };
    let mut any = false;
    let mut guaranteed = true;
    for resources in all {
        for what in ["cpu", "memory"] {
            let (limit, request) = (limit(resources, what), request(resources, what));
            let (limit, request) = (limit.filter(|v| *v > 0), request.filter(|v| *v > 0));
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// What a pod asks for: what its containers need at the busiest moment, or what it says as a whole, and its overhead.
pub fn requests(spec: &PodSpec) -> Amounts {
    let of = |what| {
        let asked = |r: Option<&ResourceRequirements>| request(r, what).or(limit(r, what)).unwrap_or(0);
        let whole = spec.resources.as_ref().filter(|r| says(r, what)).map(|r| asked(Some(r)));
        let amount = whole.unwrap_or_else(|| peak(spec, |c| Some(asked(c.resources.as_ref()))).unwrap_or(0));
        amount.saturating_add(overhead(spec, what))
    };
    Amounts { cpu_millis: of("cpu"), memory_bytes: of("memory"), storage_bytes: of("ephemeral-storage") }
}

/// What a container's cgroup enforces.
pub fn of_container(container: &Container) -> Limits {
    let resources = container.resources.as_ref();
    let cpu = limit(resources, "cpu").filter(|m| *m > 0);
    Limits {
        memory_bytes: limit(resources, "memory").filter(|b| *b > 0),
        cpu_quota_us: cpu.map(quota),
        cpu_period_us: None,
        cpu_shares: Some(shares(request(resources, "cpu").or(cpu).unwrap_or(0))),
        pids: None,
    }
}

/// What the cgroup of all containers enforces: limits where the pod says them, or all of its containers do.
pub fn of_pod(spec: &PodSpec) -> Limits {
    let most = |what: &'static str| {
        let whole = limit(spec.resources.as_ref(), what).filter(|amount| *amount > 0);
        let summed = || peak(spec, |c| limit(c.resources.as_ref(), what).filter(|amount| *amount > 0));
        Some(whole.or_else(summed)?.saturating_add(overhead(spec, what)))
    };
    Limits {
        memory_bytes: most("memory"),
        cpu_quota_us: most("cpu").map(quota),
        cpu_period_us: None,
        cpu_shares: Some(shares(requests(spec).cpu_millis)),
        pids: None,
    }
}

/// Who is killed first when memory runs out, as upstream ranks it.
pub(super) fn oom_score(spec: &PodSpec, container: &Container) -> i32 {
    match qos_class(spec) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let own = |c: &Container| request(c.resources.as_ref(), "memory").unwrap_or(0);
            // What the pod asks for beyond its containers is shared among them.
            let whole = request(spec.resources.as_ref(), "memory").unwrap_or(0);
            let rest = whole.saturating_sub(containers(spec).map(own).sum());
            let wanted = own(container) + rest / containers(spec).count().max(1) as u64;
            let share = u128::from(wanted) * 1000 / u128::from(machine::memory_bytes().max(1));
            1000i32.saturating_sub(i32::try_from(share).unwrap_or(1000)).clamp(3, 999)
        }
    }
}

/// The most that containers need at once: all that run together, or one that runs before them beside the sidecars that
/// were started already. None where one of them says nothing.
fn peak(spec: &PodSpec, of: impl Fn(&Container) -> Option<u64>) -> Option<u64> {
    let mut sidecars = 0u64;
    let mut most = 0u64;
    for container in spec.init_containers.iter().flatten() {
        let own = of(container)?;
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = sidecars.saturating_add(own);
            most = most.max(sidecars);
        } else {
            most = most.max(sidecars.saturating_add(own));
        }
    }
    let together = spec.containers.iter().map(of).try_fold(sidecars, |sum, own| Some(sum.saturating_add(own?)))?;
    Some(most.max(together))
}

/// A period is 100 ms; the kernel takes no quota below 1 ms.
fn quota(millis: u64) -> u64 {
    millis.saturating_mul(100).max(1000)
}

/// 1024 stand for one processor; the kernel takes none below 2.
fn shares(millis: u64) -> u64 {
    (millis.saturating_mul(1024) / 1000).clamp(2, 262_144)
}

fn says(resources: &ResourceRequirements, what: &str) -> bool {
    limit(Some(resources), what).is_some() || request(Some(resources), what).is_some()
}

fn limit(resources: Option<&ResourceRequirements>, what: &str) -> Option<u64> {
    amount(resources?.limits.as_ref(), what)
}

fn request(resources: Option<&ResourceRequirements>, what: &str) -> Option<u64> {
    amount(resources?.requests.as_ref(), what)
}

fn overhead(spec: &PodSpec, what: &str) -> u64 {
    amount(spec.overhead.as_ref(), what).unwrap_or(0)
}

/// Thousandths of a processor, bytes of anything else.
fn amount(list: Option<&BTreeMap<String, Quantity>>, what: &str) -> Option<u64> {
    let text = quantity::of(list, what)?;
    if what == "cpu" { quantity::millis(text) } else { quantity::bytes(text) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(value: Value) -> PodSpec {
        serde_json::from_value(value).expect("a pod spec")
    }

    #[test]
    fn qos_classes() {
        let class = |resources: Value| qos_class(&spec(json!({"containers": [{"name": "c", "resources": resources}]})));
        assert_eq!(class(json!({})), "BestEffort");
        assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
        assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
        assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})), "Burstable");
        let whole = json!({"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}, "containers": [{"name": "c"}]});
        assert_eq!(qos_class(&spec(whole)), "Guaranteed");
    }

    #[test]
    fn the_busiest_moment_counts() {
        let container = |name: &str, cpu: &str, policy: Option<&str>| json!({"name": name, "restartPolicy": policy, "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}});
        let pod = spec(json!({
            "initContainers": [container("first", "900m", None), container("side", "100m", Some("Always")),
                container("second", "700m", None)],
            "containers": [container("a", "300m", None), container("b", "200m", None)],
            "overhead": {"cpu": "10m"}}));
        assert_eq!(requests(&pod).cpu_millis, 910);
        assert_eq!((of_pod(&pod).cpu_quota_us, of_pod(&pod).cpu_shares), (Some(91_000), Some(931)));
    }

    #[test]
    fn a_pod_that_is_limited_as_a_whole_is_so_whatever_its_containers_say() {
        let pod =
            spec(json!({"containers": [{"name": "a"}, {"name": "b", "resources": {"limits": {"memory": "8Mi"}}}],
            "resources": {"limits": {"memory": "64Mi", "cpu": "250m"}}}));
        assert_eq!((of_pod(&pod).memory_bytes, of_pod(&pod).cpu_quota_us), (Some(64 << 20), Some(25_000)));
        assert_eq!(of_container(&pod.containers[0]).memory_bytes, None);
        assert_eq!(requests(&pod), Amounts { cpu_millis: 250, memory_bytes: 64 << 20, storage_bytes: 0 });
        let without = PodSpec { resources: None, ..pod };
        assert_eq!(of_pod(&without).memory_bytes, None, "one container is unlimited");
    }

    #[test]
    fn whoever_asked_for_more_memory_is_killed_later() {
        let pod = spec(json!({"containers": [{"name": "a", "resources": {"requests": {"memory": "1"}}},
            {"name": "b", "resources": {"requests": {"memory": "512Mi"}}}]}));
        let [small, large] = [0, 1].map(|index| oom_score(&pod, &pod.containers[index]));
        assert!(small == 999 && large < small && large >= 3, "{small} {large}");
    }
}
