//! What keeps a pod from being ready, read from what scheduler, kubelet and node controller say of it.

use k8s_openapi::api::core::v1::{PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use planner::Trouble;

/// Characters of what they say that are kept.
const DETAIL_LIMIT: usize = 200;
/// Reasons of a waiting container for which the template is to blame.
const BROKEN: [&str; 9] = [
    "CrashLoopBackOff",
    "ImagePullBackOff",
    "ErrImagePull",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "ErrImageInspect",
];
/// Reasons for which a node counts as lost, in the condition Ready of its pods.
const LOST: [&str; 3] = ["NodeLost", "NodeNotReady", "NodeStatusUnknown"];
/// What a scheduler says where another template would fit: all of its reasons must be of these.
const TEMPLATE_REASONS: [&str; 6] = [
    "didn't match Pod's node affinity/selector",
    "didn't match pod affinity rules",
    "didn't match pod anti-affinity rules",
    "didn't match Pod's node selector",
    "had untolerated taint",
    "had taint",
];
/// Taints that say how a node is, not what it is for.
const STATE_TAINTS: [&str; 2] = ["node.kubernetes.io/", "node.cloudprovider.kubernetes.io/"];
/// Annotation of the epoch: the pod is on a node of ours, whose agent records when a pod is first ready.
const EPOCH: &str = "statefuld.io/epoch";

/// What the trouble is, and the words for it.
pub(super) fn of(spec: Option<&PodSpec>, status: &PodStatus) -> (Trouble, Option<String>) {
    let cut = |text: &str| Some(text.chars().take(DETAIL_LIMIT).collect::<String>());
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let ready = conditions.iter().find(|c| c.type_ == "Ready" && c.status != "True");
    if let Some(reason) = ready.and_then(|c| c.reason.as_deref()).filter(|r| LOST.contains(r)) {
        return (Trouble::NodeLost, cut(reason));
    }
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let waiting = containers.filter_map(|c| c.state.as_ref()?.waiting.as_ref()?.reason.as_deref());
    let waiting: Vec<&str> = waiting.filter(|r| *r != "PodInitializing" && *r != "ContainerCreating").collect();
    if let Some(reason) = waiting.iter().find(|r| BROKEN.contains(r)) {
        return (Trouble::Container, cut(reason));
    }
    if let Some(reason) = waiting.first() {
        return (Trouble::None, cut(reason));
    }
    let placed = spec.is_some_and(|s| s.node_name.as_ref().is_some_and(|n| !n.is_empty()));
    match conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False") {
        Some(unscheduled) if !placed => {
            let message = unscheduled.message.as_deref().or(unscheduled.reason.as_deref()).unwrap_or_default();
            (if is_misfit(message) { Trouble::Misfit } else { Trouble::Outside }, cut(message))
        }
        _ => (Trouble::None, None),
    }
}

/// Every reason for which no node takes the pod lies in its template.
fn is_misfit(message: &str) -> bool {
    // What preemption could do about it is another sentence.
    let message = message.split(" preemption: ").next().unwrap_or_default();
    let Some((_, reasons)) = message.split_once(" nodes are available: ") else { return false };
    let mut parts = reasons.trim_end_matches('.').split(", ").peekable();
    let of_template = |part: &str| {
        TEMPLATE_REASONS.iter().any(|r| part.contains(r)) && !STATE_TAINTS.iter().any(|t| part.contains(t))
    };
    parts.peek().is_some() && parts.all(of_template)
}

/// Whether the pod was ready at least once; none if nobody records that.
pub(super) fn was_ready(meta: &ObjectMeta, spec: Option<&PodSpec>) -> Option<bool> {
    if annotation(meta, api::beyond::FIRST_READY).is_some() {
        return Some(true);
    }
    let placed = spec.is_some_and(|s| s.node_name.as_ref().is_some_and(|n| !n.is_empty()));
    (!placed || annotation(meta, EPOCH).is_some()).then_some(false)
}

/// The value of an annotation.
pub(super) fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn trouble(spec: Value, status: Value) -> Trouble {
        let spec: PodSpec = serde_json::from_value(spec).expect("a spec");
        of(Some(&spec), &serde_json::from_value(status).expect("a status")).0
    }

    fn unscheduled(message: &str) -> Trouble {
        let condition =
            json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message});
        trouble(json!({"containers": []}), json!({"conditions": [condition]}))
    }

    #[test]
    fn only_reasons_in_the_template_blame_the_template() {
        let affinity = "1 node(s) didn't match Pod's node affinity/selector";
        assert_eq!(unscheduled(&format!("0/1 nodes are available: {affinity}.")), Trouble::Misfit);
        let more = "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
        assert_eq!(unscheduled(&format!("0/1 nodes are available: {affinity}. {more}")), Trouble::Misfit);
        let full = format!("0/2 nodes are available: 1 Too many pods, {affinity}.");
        assert_eq!(unscheduled(&full), Trouble::Outside, "room may come");
        let lost = "0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }.";
        assert_eq!(unscheduled(lost), Trouble::Outside);
        assert_eq!(unscheduled("waiting for the volume of claim data-web-0"), Trouble::Outside);
    }

    #[test]
    fn a_container_that_does_not_run_and_a_node_that_is_lost_are_told_apart() {
        let spec = json!({"containers": [], "nodeName": "a"});
        let waiting = |reason: &str| {
            let state = json!({"waiting": {"reason": reason}});
            json!({"containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": state}]})
        };
        for reason in
            ["CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "InvalidImageName", "CreateContainerConfigError"]
        {
            assert_eq!(trouble(spec.clone(), waiting(reason)), Trouble::Container, "{reason}");
        }
        assert_eq!(trouble(spec.clone(), waiting("ContainerCreating")), Trouble::None, "merely slow");
        let lost = json!({"conditions": [{"type": "Ready", "status": "False", "reason": "NodeNotReady"}]});
        assert_eq!(trouble(spec, lost), Trouble::NodeLost);
    }

    #[test]
    fn a_foreign_kubelet_leaves_it_unknown_whether_a_pod_was_ever_ready() {
        let meta = |annotations: Value| serde_json::from_value(json!({"annotations": annotations})).expect("metadata");
        let placed: PodSpec = serde_json::from_value(json!({"containers": [], "nodeName": "a"})).expect("a spec");
        assert_eq!(was_ready(&meta(json!({})), Some(&placed)), None);
        assert_eq!(was_ready(&meta(json!({})), None), Some(false), "it is on no node");
        assert_eq!(was_ready(&meta(json!({"statefuld.io/epoch": "1"})), Some(&placed)), Some(false));
        assert_eq!(was_ready(&meta(json!({"statefuld.io/first-ready": "t"})), Some(&placed)), Some(true));
    }
}
