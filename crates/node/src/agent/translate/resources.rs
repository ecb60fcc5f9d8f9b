//! Limits, quality of service, and who is killed first when memory runs out.

use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::containers;
use crate::agent::{machine, quantity};
use crate::shim::spec::Limits;

/// A pod's quality of service class.
pub fn qos_class(spec: &PodSpec) -> &'static str {
    let mut any = false;
    let mut all = true;
    for container in containers(spec) {
        let resources = container.resources.as_ref();
        for what in ["cpu", "memory"] {
            let limit = quantity::of(resources.and_then(|r| r.limits.as_ref()), what).and_then(quantity::millis);
            let request = quantity::of(resources.and_then(|r| r.requests.as_ref()), what).and_then(quantity::millis);
            let (limit, request) = (limit.filter(|v| *v > 0), request.filter(|v| *v > 0));
            any |= limit.is_some() || request.is_some();
            all &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

pub(super) fn of_container(container: &Container) -> Limits {
    let resources = container.resources.as_ref();
    let limit = |what| quantity::of(resources.and_then(|r| r.limits.as_ref()), what);
    let request = |what| quantity::of(resources.and_then(|r| r.requests.as_ref()), what);
    let cpu = limit("cpu").and_then(quantity::millis).filter(|m| *m > 0);
    let wanted = request("cpu").and_then(quantity::millis).or(cpu);
    Limits {
        memory_bytes: limit("memory").and_then(quantity::bytes).filter(|b| *b > 0),
        // A period is 100 ms; the kernel takes no quota below 1 ms.
        cpu_quota_us: cpu.map(|m| (m * 100).max(1000)),
        cpu_period_us: None,
        cpu_shares: Some(wanted.map_or(2, |m| (m * 1024 / 1000).max(2))),
        pids: None,
    }
}

/// A pod is limited as a whole where all of its containers are.
pub(super) fn of_pod(spec: &PodSpec) -> Limits {
    let all: Vec<Limits> = containers(spec).map(of_container).collect();
    let sum = |of: fn(&Limits) -> Option<u64>| all.iter().map(of).try_fold(0u64, |a, v| Some(a.saturating_add(v?)));
    Limits {
        memory_bytes: sum(|l| l.memory_bytes),
        cpu_quota_us: sum(|l| l.cpu_quota_us),
        cpu_period_us: None,
        cpu_shares: sum(|l| l.cpu_shares),
        pids: None,
    }
}

/// Who is killed first when memory runs out, as upstream ranks it.
pub(super) fn oom_score(spec: &PodSpec, container: &Container) -> i32 {
    match qos_class(spec) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
            let wanted = quantity::of(requests, "memory").and_then(quantity::bytes).unwrap_or(0);
            let share = u128::from(wanted) * 1000 / u128::from(machine::memory_bytes().max(1));
            1000i32.saturating_sub(i32::try_from(share).unwrap_or(1000)).clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn qos_classes() {
        let class = |resources: serde_json::Value| {
            let spec = json!({"containers": [{"name": "c", "resources": resources}]});
            qos_class(&serde_json::from_value(spec).expect("a pod spec"))
        };
        assert_eq!(class(json!({})), "BestEffort");
        assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
        assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
        assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})), "Burstable");
    }
}
