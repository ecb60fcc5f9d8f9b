//! A pod's row: what it is doing, in one word.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::text::{NONE, age, at, human_duration, list, number, or};

/// The cells of a pod.
pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarize(pod);
    let restarts = match summary.last_restart {
        Some(last) if summary.restarts > 0 => {
            format!("{} ({} ago)", summary.restarts, human_duration(now.as_second() - last.as_second()))
        }
        _ => summary.restarts.to_string(),
    };
    let ip = or(at(pod, "/status/podIPs/0/ip"), at(pod, "/status/podIP"));
    vec![
        at(pod, "/metadata/name").into(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        age(pod, now),
        or(ip, NONE).into(),
        or(at(pod, "/spec/nodeName"), NONE).into(),
        or(at(pod, "/status/nominatedNodeName"), NONE).into(),
        readiness_gates(pod).into(),
    ]
}

/// The row's conditions of a pod that has ended.
pub(super) fn conditions(pod: &Value) -> Option<Value> {
    let (reason, message) = match at(pod, "/status/phase") {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]))
}

/// What the columns of a pod say.
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    /// Counts a container's restarts.
    fn restarted(&mut self, status: &Value) {
        self.restarts += number(status, "/restartCount");
        let ended = at(status, "/lastState/terminated/finishedAt").parse().ok();
        self.last_restart = self.last_restart.max(ended);
    }
}

/// Walks through the pod's state as its life goes: scheduling, init containers, containers, end.
fn summarize(pod: &Value) -> Summary {
    let phase = at(pod, "/status/phase");
    let gated =
        list(pod, "/status/conditions").iter().any(|c| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated");
    let reason = if gated { "SchedulingGated" } else { or(at(pod, "/status/reason"), phase) };
    let sidecars = list(pod, "/spec/initContainers").iter().filter(|c| c["restartPolicy"] == "Always").count();
    let total = list(pod, "/spec/containers").len() + sidecars;
    let mut summary = Summary { reason: reason.to_owned(), ready: 0, total, restarts: 0, last_restart: None };

    let initializing = init_containers(pod, &mut summary);
    if !initializing || condition_is_true(pod, "Initialized") {
        containers(pod, &mut summary);
    }

    if !pod["metadata"]["deletionTimestamp"].is_null() {
        if at(pod, "/status/reason") == "NodeLost" {
            summary.reason = "Unknown".into();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            summary.reason = "Terminating".into();
        }
    }
    summary
}

/// The first init container that has not done its part decides; tells whether there is one.
fn init_containers(pod: &Value, summary: &mut Summary) -> bool {
    let specs = list(pod, "/spec/initContainers");
    for (index, status) in list(pod, "/status/initContainerStatuses").iter().enumerate() {
        summary.restarted(status);
        let terminated = &status["state"]["terminated"];
        if !terminated.is_null() && number(terminated, "/exitCode") == 0 {
            continue;
        }
        if is_sidecar(specs, status) && status["started"] == true {
            summary.ready += usize::from(status["ready"] == true);
            continue;
        }
        let waiting = at(status, "/state/waiting/reason");
        summary.reason = if !terminated.is_null() {
            format!("Init:{}", end_of(terminated))
        } else if !matches!(waiting, "" | "PodInitializing") {
            format!("Init:{waiting}")
        } else {
            format!("Init:{index}/{}", specs.len())
        };
        return true;
    }
    false
}

/// The first container that does not run decides; restarts are counted anew, of sidecars and containers.
fn containers(pod: &Value, summary: &mut Summary) {
    let specs = list(pod, "/spec/initContainers");
    summary.restarts = 0;
    summary.last_restart = None;
    for status in list(pod, "/status/initContainerStatuses").iter().filter(|s| is_sidecar(specs, s)) {
        summary.restarted(status);
    }
    let mut any_running = false;
    for status in list(pod, "/status/containerStatuses").iter().rev() {
        summary.restarted(status);
        let waiting = at(status, "/state/waiting/reason");
        let terminated = &status["state"]["terminated"];
        if !waiting.is_empty() {
            summary.reason = waiting.to_owned();
        } else if !terminated.is_null() {
            summary.reason = end_of(terminated);
        } else if status["ready"] == true && !status["state"]["running"].is_null() {
            any_running = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" && any_running {
        summary.reason = if condition_is_true(pod, "Ready") { "Running" } else { "NotReady" }.into();
    }
}

/// How a container ended.
fn end_of(terminated: &Value) -> String {
    match (at(terminated, "/reason"), number(terminated, "/signal")) {
        ("", 0) => format!("ExitCode:{}", number(terminated, "/exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

/// Whether a status belongs to a restartable init container.
fn is_sidecar(specs: &[Value], status: &Value) -> bool {
    specs.iter().any(|c| c["name"] == status["name"] && c["restartPolicy"] == "Always")
}

/// Whether a condition of the pod is met.
fn condition_is_true(pod: &Value, kind: &str) -> bool {
    list(pod, "/status/conditions").iter().any(|c| c["type"] == kind && c["status"] == "True")
}

/// Gates that are met, of all.
fn readiness_gates(pod: &Value) -> String {
    let gates = list(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let met = gates.iter().filter(|gate| condition_is_true(pod, at(gate, "/conditionType"))).count();
    format!("{met}/{}", gates.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// READY, STATUS and RESTARTS of a pod.
    fn shown(pod: &Value) -> [String; 3] {
        let cells = cells(pod, "2024-01-01T01:00:00Z".parse().expect("a time"));
        [1, 2, 3].map(|i| cells[i].as_str().expect("a text").to_owned())
    }

    #[test]
    fn a_pod_that_waits_for_a_node_is_pending() {
        let pod = json!({"spec": {"containers": [{"name": "a"}]}, "status": {"phase": "Pending"}});
        assert_eq!(shown(&pod), ["0/1", "Pending", "0"]);
    }

    #[test]
    fn init_containers_count_up_and_show_their_failures() {
        let init = |state: Value| {
            json!({"spec": {"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}]},
                "status": {"phase": "Pending", "initContainerStatuses": [
                    {"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "restartCount": 2, "state": state}],
                    "containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "PodInitializing"}}}]}})
        };
        assert_eq!(shown(&init(json!({"running": {}})))[1], "Init:1/2");
        assert_eq!(
            shown(&init(json!({"waiting": {"reason": "CrashLoopBackOff"}}))),
            ["0/1", "Init:CrashLoopBackOff", "2"]
        );
        assert_eq!(shown(&init(json!({"terminated": {"exitCode": 3}})))[1], "Init:ExitCode:3");
        assert_eq!(shown(&init(json!({"terminated": {"exitCode": 137, "signal": 9}})))[1], "Init:Signal:9");
        assert_eq!(shown(&init(json!({"terminated": {"exitCode": 1, "reason": "Error"}})))[1], "Init:Error");
    }

    #[test]
    fn containers_show_crash_loops_completion_and_restarts() {
        let pod = |containers: Value, ready: &str| {
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}, "status": {"phase": "Running",
                "conditions": [{"type": "Ready", "status": ready}], "containerStatuses": containers}})
        };
        let crashing = pod(
            json!([{"name": "a", "restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"finishedAt": "2024-01-01T00:55:00Z"}}},
                {"name": "b", "ready": true, "state": {"running": {}}}]),
            "False",
        );
        assert_eq!(shown(&crashing), ["1/2", "CrashLoopBackOff", "4 (5m ago)"]);
        let half = json!([{"name": "a", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
            {"name": "b", "ready": true, "state": {"running": {}}}]);
        assert_eq!(shown(&pod(half.clone(), "False"))[1], "NotReady");
        assert_eq!(shown(&pod(half, "True"))[1], "Running");
    }

    #[test]
    fn a_pod_being_deleted_is_terminating_unless_it_has_ended() {
        let pod = |phase: &str| json!({"metadata": {"deletionTimestamp": "t"}, "status": {"phase": phase}});
        assert_eq!(shown(&pod("Running"))[1], "Terminating");
        assert_eq!(shown(&pod("Failed"))[1], "Failed");
    }

    #[test]
    fn a_sidecar_counts_as_a_container() {
        let pod = json!({"spec": {"initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "a"}]},
            "status": {"phase": "Running", "initContainerStatuses": [
                {"name": "s", "started": true, "ready": true, "restartCount": 1, "state": {"running": {}}}],
                "containerStatuses": [{"name": "a", "ready": true, "state": {"running": {}}}]}});
        assert_eq!(shown(&pod), ["2/2", "Running", "1"]);
    }
}
