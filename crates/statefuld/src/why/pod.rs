//! Why a pod is not Ready, from what the API says of it. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Event, Pod, PodCondition, PodStatus, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

use super::facts::{Facts, times};
use super::{Finding, Link, claim, span};

/// Running, and condition Ready is true.
pub fn is_ready(pod: &Pod) -> bool {
    phase(pod) == "Running" && condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

/// What a pod waits for, in a few words, from the pod alone. None: it is Ready.
pub fn state(pod: &Pod) -> Option<String> {
    let nothing = Facts::none();
    let finding = explain(&nothing, pod).into_iter().next()?;
    // The first link says what everybody sees: that it is not Ready.
    let links = if finding.chain.len() > 1 { &finding.chain[1..] } else { &finding.chain[..] };
    let words: Vec<_> = links.iter().map(|link| link.says.as_str()).collect();
    Some(words.join(": "))
}

/// Why a pod is not Ready, or not gone. Empty: it waits for nothing.
pub fn explain(facts: &Facts, pod: &Pod) -> Vec<Finding> {
    let this = format!("pod/{}", pod.name_any());
    if let Some(asked) = &pod.metadata.deletion_timestamp {
        return vec![terminating(facts, pod, &this, asked.0)];
    }
    match phase(pod) {
        "Failed" => return vec![ended(pod, &this, "has failed").helped_by(format!("kubectl delete {this}"))],
        "Succeeded" => return vec![ended(pod, &this, "has ended")],
        _ if is_ready(pod) => return Vec::new(),
        _ => {}
    }
    let unready = condition(pod, "Ready").filter(|ready| ready.status != "True");
    let since = unready.and_then(changed).or_else(|| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
    let cause = cause(facts, pod, &this);
    vec![cause.under(Link::new(&this, "is not Ready").since(since))]
}

/// The root of what keeps it from being Ready.
fn cause(facts: &Facts, pod: &Pod, this: &str) -> Finding {
    let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) else {
        return unscheduled(facts, pod, this);
    };
    if let Some(lost) = node_lost(facts, node) {
        let link = Link::new(format!("node/{node}"), "does not answer").since(Some(lost));
        return Finding::of(link).helped_by(format!("bring node {node} back; its pods are not moved by themselves"));
    }
    let status = pod.status.clone().unwrap_or_default();
    let spec = pod.spec.clone().unwrap_or_default();
    let inits = spec.init_containers.iter().flatten();
    let containers = inits.chain(&spec.containers);
    for container in containers {
        if let Some(found) = container_status(&status, &container.name)
            .and_then(|status| container_cause(facts, pod, this, container, status))
        {
            return found;
        }
    }
    for reason in ["FailedMount", "FailedCreatePodSandBox", "FailedCreatePodContainer", "Failed"] {
        if let Some(event) = facts.event(pod.metadata.uid.as_deref(), reason) {
            return Finding::of(Link::new(this, told(event)));
        }
    }
    if let Some(gate) = unmet_gate(pod) {
        let says = format!("its readiness gate {gate} is not True");
        return Finding::of(Link::new(this, says)).helped_by(format!("whoever owns the condition {gate} sets it"));
    }
    Finding::of(Link::new(this, "starts"))
}

fn unscheduled(facts: &Facts, pod: &Pod, this: &str) -> Finding {
    let claims = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let claims = claims.filter_map(|volume| volume.persistent_volume_claim.as_ref()).map(|source| &source.claim_name);
    let said = condition(pod, "PodScheduled").filter(|c| c.status != "True");
    let message = said.and_then(|condition| condition.message.clone()).filter(|message| !message.is_empty());
    // What preemption could do about it is another sentence, for those who read conditions.
    let message = message.map(|message| message.split(" preemption: ").next().unwrap_or_default().to_owned());
    let link = Link::new(this, message.clone().unwrap_or_else(|| "waits for a node".to_owned()));
    for name in claims {
        let Some(found) = facts.claim(name) else {
            let named = message.as_deref().is_some_and(|message| message.contains(name.as_str()));
            if named || facts.is_whole() {
                let absent = Link::new(format!("pvc/{name}"), "does not exist");
                return Finding::of(absent)
                    .helped_by(format!("create the claim {name}, or correct the volume that names it"));
            }
            continue;
        };
        if let Some(blocked) = claim::explain(facts, found).into_iter().find(|finding| !claim::waits_for_pod(finding)) {
            return blocked.under(link);
        }
    }
    match message {
        Some(message) => Finding::of(link).helped_by(scheduling_remedy(facts, pod, &message)),
        None => Finding::of(link),
    }
}

/// What helps a pod that finds no place. Of several obstacles the one that is listed first here counts.
fn scheduling_remedy(facts: &Facts, pod: &Pod, message: &str) -> String {
    if message.contains("didn't match pod anti-affinity rules") && keeps_own_kind_away(pod) && facts.nodes.len() == 1 {
        return "its anti-affinity wants every pod of its kind on a machine of its own, and there is one: `statefuld up \
                --nodes 3` runs several nodes on one machine; or make the anti-affinity preferred instead of required"
            .to_owned();
    }
    let remedies = [
        ("no nodes", "start a node: `statefuld up` runs one"),
        ("hold", "wait until the former pod of that name is confirmed to be gone"),
        ("didn't have free ports", "free the host port, or choose another one"),
        ("anti-affinity", "add a node, or make the anti-affinity preferred instead of required"),
        ("topology spread", "add a node to the emptiest domain, or set whenUnsatisfiable: ScheduleAnyway"),
        ("taint", "add a toleration to the pod, or remove the taint from a node"),
        ("unschedulable", "kubectl uncordon a node"),
        ("persistent volumes", "create a volume that the claim fits, where the pod may run"),
        ("PersistentVolume's node affinity", "bring the node back where the volume is; its data is there alone"),
        ("affinity", "change the pod's node selector or affinity, or label a node so that it matches"),
        ("Insufficient", "lower the pod's requests, or stop something else: the node has no room left"),
    ];
    let found = remedies.iter().find(|(word, _)| message.contains(word));
    found.map_or("see the message above".to_owned(), |(_, remedy)| (*remedy).to_owned())
}

/// Whether the pod must be apart from pods with its own labels.
fn keeps_own_kind_away(pod: &Pod) -> bool {
    let spec = pod.spec.clone().unwrap_or_default();
    let apart = spec.affinity.and_then(|a| a.pod_anti_affinity);
    let terms = apart.and_then(|a| a.required_during_scheduling_ignored_during_execution);
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    terms.into_iter().flatten().any(|term| {
        let selector = serde_json::to_value(term.label_selector).unwrap_or_default();
        api::selector::LabelSelector::from_json(&selector).is_ok_and(|selector| selector.matches(&labels))
    })
}

/// Since when a node is not Ready.
fn node_lost(facts: &Facts, name: &str) -> Option<Timestamp> {
    let node = facts.nodes.iter().find(|node| node.name_any() == name)?;
    let ready =
        node.status.iter().flat_map(|status| status.conditions.iter().flatten()).find(|c| c.type_ == "Ready")?;
    (ready.status != "True").then(|| ready.last_transition_time.as_ref().map_or(facts.now, |time| time.0))
}

fn container_cause(
    facts: &Facts,
    pod: &Pod,
    this: &str,
    container: &Container,
    status: &ContainerStatus,
) -> Option<Finding> {
    let state = status.state.clone().unwrap_or_default();
    let name = &container.name;
    let line = facts.lines.get(&(pod.name_any(), name.clone()));
    let last_line = line.map(|line| format!("; last log line: {line}")).unwrap_or_default();
    if let Some(waiting) = state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or("waiting");
        if matches!(reason, "PodInitializing" | "ContainerCreating") && waiting.message.is_none() {
            return None;
        }
        let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        let detail = match (waiting.message.filter(|message| !message.is_empty()), last) {
            (_, Some(last)) if reason == "CrashLoopBackOff" => {
                format!(
                    "{reason}: its last run ended with {}, {}",
                    exit(last.exit_code, last.signal, last.reason.as_deref()),
                    restarts(status.restart_count)
                )
            }
            (Some(message), _) => format!("{reason}: {message}"),
            (None, Some(last)) => format!(
                "{reason}: its last run ended with {}",
                exit(last.exit_code, last.signal, last.reason.as_deref())
            ),
            (None, None) => reason.to_owned(),
        };
        let finding = Finding::of(Link::new(this, format!("container {name}: {detail}{last_line}")));
        return Some(match container_remedy(reason, this, name) {
            Some(remedy) => finding.helped_by(remedy),
            None => finding,
        });
    }
    if let Some(ended) = state.terminated {
        // An init container that ended well has done its work.
        return (ended.exit_code != 0).then(|| {
            let how = exit(ended.exit_code, ended.signal, ended.reason.as_deref());
            Finding::of(Link::new(this, format!("container {name} ended with {how}{last_line}")))
                .helped_by(format!("kubectl logs {this} -c {name} --previous"))
        });
    }
    let started = status.started.unwrap_or(true);
    if status.ready || (started && container.readiness_probe.is_none()) {
        return None;
    }
    Some(probe_cause(facts, pod, this, container, started, &last_line))
}

/// It runs, and a probe says no.
fn probe_cause(facts: &Facts, pod: &Pod, this: &str, container: &Container, started: bool, last_line: &str) -> Finding {
    let (kind, probe) = match (started, &container.startup_probe, &container.readiness_probe) {
        (false, Some(probe), _) => ("Startup", probe),
        (_, _, Some(probe)) => ("Readiness", probe),
        _ => {
            return Finding::of(Link::new(
                this,
                format!("container {} runs, is not ready yet{last_line}", container.name),
            ));
        }
    };
    let uid = pod.metadata.uid.as_deref();
    let path = format!("{{{}}}", container.name);
    let prefix = format!("{kind} probe");
    let failures = facts.events.iter().rev().filter(|event| {
        let about = &event.involved_object;
        about.uid.as_deref() == uid
            && event.reason.as_deref() == Some("Unhealthy")
            && about.field_path.as_deref().is_none_or(|field| field.ends_with(&path))
            && event.message.as_deref().is_some_and(|message| message.starts_with(&prefix))
    });
    let what = format!("{} {}", kind.to_lowercase(), aim(probe));
    let newest = failures.clone().next();
    let says = match newest.and_then(|event| event.message.as_deref()) {
        Some(message) => {
            let count: i32 = failures.filter(|event| event.message.as_deref() == Some(message)).map(times).sum();
            let how_often = if count == 1 { "once".to_owned() } else { format!("{count} times") };
            format!("{what} {}, {how_often}{last_line}", answer(message))
        }
        None => format!("{what} has not succeeded yet{last_line}"),
    };
    Finding::of(Link::new(this, says)).helped_by(format!("kubectl logs {this} -c {}", container.name))
}

/// What a probe asks.
fn aim(probe: &Probe) -> String {
    let port = |port: &IntOrString| match port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => name.clone(),
    };
    if let Some(http) = &probe.http_get {
        return format!("GET :{}{}", port(&http.port), http.path.as_deref().unwrap_or("/"));
    }
    if let Some(tcp) = &probe.tcp_socket {
        return format!("connect to :{}", port(&tcp.port));
    }
    if let Some(grpc) = &probe.grpc {
        return format!("gRPC :{}", grpc.port);
    }
    let command = probe.exec.as_ref().and_then(|exec| exec.command.clone()).unwrap_or_default();
    let mut text = command.join(" ").replace('\n', " ");
    if let Some((cut, _)) = text.char_indices().nth(60) {
        text.truncate(cut);
        text.push('…');
    }
    format!("command `{text}`")
}

/// A kubelet's message without what the sentence has said already.
fn answer(message: &str) -> String {
    let detail = message.split_once(": ").map_or(message, |(_, detail)| detail).trim();
    match detail.split_once("statuscode: ") {
        Some((_, code)) => format!("answered {code}"),
        None if detail.is_empty() => "failed".to_owned(),
        None => format!("failed ({detail})"),
    }
}

fn terminating(facts: &Facts, pod: &Pod, this: &str, due: Timestamp) -> Finding {
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
    let asked = due.checked_sub(jiff::SignedDuration::from_secs(grace)).unwrap_or(due);
    let going = Link::new(this, "is being stopped").since(Some(asked));
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    if let Some((node, lost)) = node.and_then(|node| Some((node, node_lost(facts, node)?))) {
        let link = Link::new(format!("node/{node}"), "does not answer").since(Some(lost));
        let remedy = format!("bring node {node} back; only it can confirm that the pod has stopped");
        return Finding::of(link).under(going).helped_by(remedy);
    }
    if let Some(finalizers) = pod.metadata.finalizers.as_ref().filter(|list| !list.is_empty()) {
        let list = finalizers.join(", ");
        if due <= facts.now {
            let remedy = format!("whoever owns the finalizer {list} removes it from {this}");
            return Finding::of(Link::new(this, format!("is held by finalizer {list}"))).under(going).helped_by(remedy);
        }
    }
    let left = due.duration_since(facts.now);
    let says = if left.is_positive() {
        format!("has {} of its grace period left", span(left))
    } else {
        "its grace period is over and its containers have not all ended".to_owned()
    };
    Finding::of(Link::new(this, says)).under(going)
}

fn ended(pod: &Pod, this: &str, says: &str) -> Finding {
    let status = pod.status.clone().unwrap_or_default();
    let words: Vec<_> = [status.reason, status.message].into_iter().flatten().filter(|word| !word.is_empty()).collect();
    let link = Link::new(this, says);
    if words.is_empty() { Finding::of(link) } else { Finding::of(Link::new(this, words.join(": "))).under(link) }
}

fn exit(code: i32, signal: Option<i32>, reason: Option<&str>) -> String {
    match (reason, signal) {
        (Some("OOMKilled"), _) => "OOMKilled (it used more memory than its limit)".to_owned(),
        (_, Some(signal)) if signal > 0 => format!("signal {signal}"),
        _ => format!("exit code {code}"),
    }
}

fn restarts(count: i32) -> String {
    if count == 1 { "restarted once".to_owned() } else { format!("restarted {count} times") }
}

fn container_remedy(reason: &str, this: &str, container: &str) -> Option<String> {
    Some(match reason {
        "CrashLoopBackOff" | "Error" => format!(
            "kubectl logs {this} -c {container} --previous; correct the template or the data that it starts with"
        ),
        "ImagePullBackOff" | "ErrImagePull" | "InvalidImageName" | "ErrImageNeverPull" => {
            format!("correct the image of container {container}, or make it available")
        }
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            format!("create what container {container} refers to, or correct the reference")
        }
        _ => return None,
    })
}

fn told(event: &Event) -> String {
    format!("{}: {}", event.reason.as_deref().unwrap_or("event"), event.message.as_deref().unwrap_or_default())
}

fn unmet_gate(pod: &Pod) -> Option<String> {
    let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let met = |gate: &str| condition(pod, gate).is_some_and(|condition| condition.status == "True");
    gates.map(|gate| gate.condition_type.clone()).find(|gate| !met(gate))
}

fn container_status<'a>(status: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    let inits = status.init_container_statuses.iter().flatten();
    inits.chain(status.container_statuses.iter().flatten()).find(|container| container.name == name)
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

fn changed(condition: &PodCondition) -> Option<Timestamp> {
    condition.last_transition_time.as_ref().map(|time| time.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(json).expect("a pod")
    }

    fn sentence(facts: &Facts, pod: &Pod) -> String {
        explain(facts, pod).first().map(|finding| finding.sentence(facts.now)).unwrap_or_default()
    }

    #[test]
    fn a_ready_pod_waits_for_nothing() {
        let ready = pod(json!({"metadata": {}, "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}));
        assert_eq!(state(&ready), None);
    }

    #[test]
    fn a_crash_loop_is_named_with_its_exit_code_and_last_words() {
        let looping =
            pod(json!({"metadata": {"name": "web-0"}, "spec": {"nodeName": "n", "containers": [{"name": "db"}]},
            "status": {"phase": "Running", "containerStatuses": [{
                "name": "db", "ready": false, "restartCount": 2, "image": "", "imageID": "",
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s"}},
                "lastState": {"terminated": {"exitCode": 3}}}]}}));
        let mut facts = Facts::none();
        facts.lines.insert(("web-0".into(), "db".into()), "no config".into());
        assert_eq!(
            sentence(&facts, &looping),
            "web-0 is not Ready: container db: CrashLoopBackOff: its last run ended with exit code 3, restarted 2 times; \
             last log line: no config"
        );
    }

    #[test]
    fn a_failing_probe_is_named_with_what_it_asks_and_what_it_heard() {
        let unready = pod(json!({"metadata": {"name": "web-1", "uid": "u"}, "spec": {"nodeName": "n", "containers": [
                {"name": "app", "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}}}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}],
                "containerStatuses": [{"name": "app", "ready": false, "started": true, "restartCount": 0,
                    "image": "", "imageID": "", "state": {"running": {}}}]}}));
        let mut facts = Facts::none();
        facts.events = serde_json::from_value(json!([{"metadata": {}, "reason": "Unhealthy", "count": 51,
            "message": "Readiness probe failed: HTTP probe failed with statuscode: 503",
            "involvedObject": {"uid": "u", "fieldPath": "spec.containers{app}"}}]))
        .unwrap();
        assert_eq!(
            sentence(&facts, &unready),
            "web-1 is not Ready: readiness GET :8080/healthz answered 503, 51 times"
        );
    }

    #[test]
    fn an_unschedulable_pod_says_why_and_what_helps() {
        let pending = pod(json!({"metadata": {"name": "web-0"}, "spec": {"containers": []},
            "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
                "message": "0/1 nodes are available: 1 Insufficient memory."}]}}));
        let found = explain(&Facts::none(), &pending);
        assert!(found[0].sentence(Timestamp::UNIX_EPOCH).ends_with("1 Insufficient memory."), "{found:?}");
        assert!(found[0].unblock[0].contains("requests"), "{found:?}");
        assert_eq!(state(&pending).as_deref(), Some("0/1 nodes are available: 1 Insufficient memory."));
    }

    #[test]
    fn a_pod_that_is_stopped_says_how_long_it_may_take() {
        let mut facts = Facts::none();
        facts.now = "2026-01-01T00:00:10Z".parse().unwrap();
        let going = pod(json!({"metadata": {"name": "web-0", "deletionTimestamp": "2026-01-01T00:00:30Z",
            "deletionGracePeriodSeconds": 30}, "spec": {"nodeName": "n", "containers": []}, "status": {"phase": "Running"}}));
        assert_eq!(sentence(&facts, &going), "web-0 is being stopped for 10s: has 20s of its grace period left");
        facts.nodes = serde_json::from_value(json!([{"metadata": {"name": "n"}, "status": {"conditions":
            [{"type": "Ready", "status": "Unknown", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}]))
        .unwrap();
        assert_eq!(sentence(&facts, &going), "web-0 is being stopped for 10s: node/n does not answer for 10s");
    }
}
