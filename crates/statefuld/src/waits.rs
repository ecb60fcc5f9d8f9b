//! What a pod waits for, in one sentence, from what the API says of it. Pure.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

/// How far a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Running and Ready.
    Ready,
    /// Not yet; for what.
    Waits(String),
}

/// How far this pod is, and what it waits for.
pub fn step(pod: &Pod) -> Step {
    if pod.metadata.deletion_timestamp.is_some() {
        return Step::Waits("is terminating".to_owned());
    }
    let status = pod.status.clone().unwrap_or_default();
    let phase = status.phase.as_deref().unwrap_or("Pending");
    let condition = |kind: &str| status.conditions.iter().flatten().find(|c| c.type_ == kind);
    if phase == "Running" && condition("Ready").is_some_and(|c| c.status == "True") {
        return Step::Ready;
    }
    if matches!(phase, "Failed" | "Succeeded") {
        return Step::Waits(format!("has ended ({phase}) and is to be replaced"));
    }
    if pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none()) {
        let why = condition("PodScheduled").and_then(|c| c.message.clone());
        return Step::Waits(why.unwrap_or_else(|| "waits for a node".to_owned()));
    }
    let containers = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    for container in containers {
        if let Some(sentence) = waiting_container(container) {
            return Step::Waits(sentence);
        }
    }
    let running = status.container_statuses.iter().flatten().any(|c| !c.ready);
    Step::Waits(if running { "runs, is not ready yet" } else { "starts" }.to_owned())
}

fn waiting_container(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or("waiting");
        let last = container.last_state.as_ref().and_then(|s| s.terminated.as_ref());
        let message = waiting.message.clone().filter(|m| !m.is_empty());
        return Some(match (message, last) {
            (Some(message), _) => format!("container {}: {reason}: {message}", container.name),
            (None, Some(last)) => {
                format!("container {}: {reason}: its last run ended with exit code {}", container.name, last.exit_code)
            }
            (None, None) => format!("container {}: {reason}", container.name),
        });
    }
    let ended = state.terminated.as_ref()?;
    (ended.exit_code != 0).then(|| format!("container {} ended with exit code {}", container.name, ended.exit_code))
}

/// The set's name and the ordinal in a pod's name, where it has that form.
pub fn ordinal(pod_name: &str) -> Option<(&str, u32)> {
    let (set, ordinal) = pod_name.rsplit_once('-')?;
    let number: u32 = ordinal.parse().ok()?;
    (number.to_string() == ordinal).then_some((set, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(json).expect("a pod")
    }

    #[test]
    fn a_ready_pod_waits_for_nothing() {
        let ready = pod(serde_json::json!({"metadata": {}, "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}));
        assert_eq!(step(&ready), Step::Ready);
    }

    #[test]
    fn a_crash_loop_is_named_with_its_exit_code() {
        let looping = pod(serde_json::json!({"metadata": {}, "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": "Running", "containerStatuses": [{
                "name": "db", "ready": false, "restartCount": 2, "image": "", "imageID": "",
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 3}}}]}}));
        assert_eq!(
            step(&looping),
            Step::Waits("container db: CrashLoopBackOff: its last run ended with exit code 3".to_owned())
        );
    }

    #[test]
    fn an_unschedulable_pod_says_why() {
        let pending = pod(serde_json::json!({"metadata": {}, "spec": {"containers": []},
            "status": {"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}]}}));
        assert_eq!(step(&pending), Step::Waits("0/1 nodes are available".to_owned()));
    }

    #[test]
    fn ordinals_are_plain_numbers() {
        assert_eq!(ordinal("web-12"), Some(("web", 12)));
        assert_eq!(ordinal("web-01"), None);
        assert_eq!(ordinal("web"), None);
    }
}
