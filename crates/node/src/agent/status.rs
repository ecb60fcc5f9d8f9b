//! A pod's status, made from what its shim and its probes say. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    EphemeralContainer, HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus, VolumeMount, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::ephemeral::as_container;
use super::images::Noted;
use super::resize::Resize;
use super::translate::qos_class;
use crate::shim::state::{self, Phase, PodState, Status, Termination};

/// What a status is made from.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The pod as last seen, its old status included.
    pub pod: &'a Pod,
    /// What the shim says; none where there is no sandbox.
    pub state: Option<&'a PodState>,
    /// What the probes say about each container's current run.
    pub health: &'a BTreeMap<String, Health>,
    /// How containers ended in an earlier sandbox, and how often they had been restarted.
    pub carried: &'a BTreeMap<String, Carried>,
    /// Why the pod does not start.
    pub hold: Option<&'a Hold>,
    /// Why ephemeral containers, and those that ask what they are to be, do not start.
    pub refused: &'a BTreeMap<String, Hold>,
    /// Its address.
    pub address: Option<Ipv4Addr>,
    /// The machine's.
    pub host: Ipv4Addr,
    /// Identity of the built-in image, where it is known.
    pub sample_id: &'a str,
    /// What its containers run from, by their names.
    pub images: &'a BTreeMap<String, Noted>,
    /// Once everything has ended, that is the end of the pod.
    pub ends: bool,
    /// Why it is ended for good although nobody asked for it.
    pub verdict: Option<&'a Verdict>,
    /// What its containers have been given.
    pub resize: &'a Resize,
    /// Now.
    pub now: Timestamp,
}

/// What the probes say about one run of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The run, as in the shim's state.
    pub run: String,
    /// Its startup probe succeeded, or it has none.
    pub started: bool,
    /// Its readiness probe succeeds, or it has none.
    pub ready: bool,
}

/// What an earlier sandbox leaves behind for a container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Carried {
    /// How it ended there.
    pub last: Option<Termination>,
    /// Restarts so far.
    pub restarts: u32,
}

/// Why a pod is ended for good although nobody asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// In upstream's words.
    pub reason: String,
    /// One sentence.
    pub message: String,
    /// It made place for others, and is not to blame.
    pub evicted: bool,
    /// What it gets to end, where that is less than its own grace period.
    pub grace: Option<std::time::Duration>,
}

/// Whether a pod can come to its end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Something of it is always started again.
    Never,
    /// By the way its containers end.
    Perhaps,
    /// Nothing of it is ever started again.
    Always,
}

/// Whether a pod can come to its end by itself.
pub fn ending(spec: &PodSpec) -> Ending {
    let pods = spec.restart_policy.as_deref().unwrap_or("Always");
    let all = || super::translate::containers(spec).filter(|c| !is_sidecar(spec, &c.name));
    let has_rules = |c: &Container| c.restart_policy_rules.as_ref().is_some_and(|rules| !rules.is_empty());
    let only = |policy: &str| all().all(|c| c.restart_policy.as_deref().unwrap_or(pods) == policy);
    if pods == "Always" && only("Always") {
        Ending::Never
    } else if only("Never") && !all().any(has_rules) {
        Ending::Always
    } else {
        Ending::Perhaps
    }
}

/// Why a pod does not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The container that holds it up; empty where it is the whole pod.
    pub container: String,
    /// In upstream's words.
    pub reason: String,
    /// One sentence.
    pub message: String,
}

impl Hold {
    /// A container that cannot be started, and why.
    pub fn of(container: &str, reason: &str, message: String) -> Self {
        Self { container: container.to_owned(), reason: reason.to_owned(), message }
    }
}

/// The status.
pub fn build(facts: &Facts<'_>) -> PodStatus {
    let empty = PodSpec::default();
    let spec = facts.pod.spec.as_ref().unwrap_or(&empty);
    let old = facts.pod.status.clone().unwrap_or_default();
    let init: Vec<_> = spec.init_containers.iter().flatten().map(|c| container_status(facts, spec, c)).collect();
    let main: Vec<_> = spec.containers.iter().map(|c| container_status(facts, spec, c)).collect();
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| ephemeral_status(facts, &old, c));
    let ephemeral: Vec<_> = ephemeral.collect();
    let phase = phase(facts, spec, &init, &main);
    let was_over = is_terminal(facts.pod);
    let verdict = facts.verdict.filter(|_| phase == "Failed" && !was_over);
    let ips = facts.address.map(|a| a.to_string());
    let keep_ip = ips.clone().or_else(|| old.pod_ip.clone());
    PodStatus {
        conditions: Some(conditions(facts, spec, &old, phase, &init, &main)),
        container_statuses: Some(main),
        init_container_statuses: (!init.is_empty()).then_some(init),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        phase: Some(phase.to_owned()),
        reason: verdict.map(|v| v.reason.clone()).or(old.reason.clone().filter(|_| was_over)),
        message: verdict.map(|v| v.message.clone()).or(old.message.clone().filter(|_| was_over)),
        host_ip: Some(facts.host.to_string()),
        host_ips: Some(vec![HostIP { ip: facts.host.to_string() }]),
        pod_ip: keep_ip.clone(),
        pod_ips: keep_ip.map(|ip| vec![PodIP { ip }]),
        qos_class: Some(old.qos_class.unwrap_or_else(|| qos_class(spec).to_owned())),
        start_time: Some(old.start_time.unwrap_or(Time(facts.now))),
        observed_generation: facts.pod.metadata.generation,
        ..PodStatus::default()
    }
}

/// What an earlier sandbox leaves behind. A container that ran when its shim died ended nobody knows how.
pub fn carry(state: &PodState, now: Timestamp) -> BTreeMap<String, Carried> {
    let of = |container: &state::ContainerState| {
        let last = match &container.state {
            Status::Running { started_at, .. } => Some(Termination {
                exit_code: 137,
                signal: None,
                reason: "ContainerStatusUnknown".to_owned(),
                message: "The container could not be located when the pod was restarted".to_owned(),
                started_at: *started_at,
                finished_at: now,
                id: container.id.clone(),
            }),
            Status::Terminated(termination) => Some(termination.clone()),
            Status::Waiting { .. } => container.last_termination.clone(),
        };
        let restarts = container.restart_count + u32::from(!container.id.is_empty());
        (container.name.clone(), Carried { last, restarts })
    };
    state.containers.iter().map(of).collect()
}

/// Whether a status says that the pod is over for good.
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Whether a condition is the agent's to write.
pub fn is_ours(kind: &str) -> bool {
    matches!(
        kind,
        "PodReadyToStartContainers"
            | "Initialized"
            | "Ready"
            | "ContainersReady"
            | "PodScheduled"
            | "PodResizePending"
            | "PodResizeInProgress"
    )
}

/// Whether the status says Ready.
pub fn is_ready(status: &PodStatus) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn container_status(facts: &Facts<'_>, spec: &PodSpec, container: &Container) -> ContainerStatus {
    let image = container.image.clone().unwrap_or_default();
    let sample = image.starts_with(super::translate::SAMPLE_IMAGE);
    let (image, image_id) = match facts.images.get(&container.name) {
        // As the runtime knows it, not as the pod wrote it.
        Some(noted) => (noted.image.clone(), noted.image_id.clone()),
        None if sample => (image, facts.sample_id.to_owned()),
        None => (image, String::new()),
    };
    let carried = facts.carried.get(&container.name);
    let most = message_bytes(facts.pod);
    let found = facts.state.and_then(|s| s.container(&container.name));
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image,
        image_id,
        ready: false,
        started: Some(false),
        resources: facts.resize.actual.get(&container.name).cloned(),
        allocated_resources: facts.resize.allocated.get(&container.name).and_then(|r| r.requests.clone()),
        restart_count: carried.map_or(0, |c| i32::try_from(c.restarts).unwrap_or(i32::MAX)),
        last_state: Some(
            carried.and_then(|c| c.last.as_ref()).map_or_else(ContainerState::default, |t| terminated(t, most)),
        ),
        volume_mounts: volume_mounts(container),
        stop_signal: container.lifecycle.as_ref().and_then(|l| l.stop_signal.clone()),
        ..ContainerStatus::default()
    };
    let Some(found) = found else {
        status.state = Some(waiting_without_sandbox(facts, spec, container));
        return status;
    };
    status.restart_count = i32::try_from(found.restart_count).unwrap_or(i32::MAX);
    if let Some(last) = &found.last_termination {
        status.last_state = Some(terminated(last, most));
    }
    if !found.id.is_empty() {
        status.container_id = Some(container_id(&found.id));
    }
    let health = facts.health.get(&container.name).filter(|h| h.run == found.id);
    status.state = Some(match &found.state {
        Status::Running { started_at, .. } => {
            status.started = Some(health.is_some_and(|h| h.started));
            status.ready = health.is_some_and(|h| h.started && h.ready);
            ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(Time(*started_at)) }),
                ..ContainerState::default()
            }
        }
        Status::Terminated(termination) => {
            // An init container that did its work counts as ready.
            let init = spec.init_containers.iter().flatten().any(|c| c.name == container.name);
            status.ready = init && termination.exit_code == 0;
            terminated(termination, most)
        }
        Status::Waiting { reason, message } => match facts.refused.get(&container.name).filter(|_| found.asks) {
            Some(hold) => waiting(&hold.reason, &hold.message),
            None => waiting(reason, message),
        },
    });
    status
}

/// An ephemeral container runs once: what an earlier sandbox says of it stays.
fn ephemeral_status(facts: &Facts<'_>, old: &PodStatus, container: &EphemeralContainer) -> ContainerStatus {
    let plain = as_container(container);
    let empty = PodSpec::default();
    let mut status = container_status(facts, &empty, &plain);
    status.restart_count = 0;
    status.ready = false;
    status.started = None;
    status.last_state = Some(ContainerState::default());
    if facts.state.and_then(|s| s.container(&container.name)).is_some() {
        return status;
    }
    let carried = facts.carried.get(&container.name).and_then(|c| c.last.as_ref());
    let carried = carried.map(|termination| terminated(termination, message_bytes(facts.pod)));
    let mut reported = old.ephemeral_container_statuses.iter().flatten().filter(|s| s.name == container.name);
    let reported = reported.find_map(|s| s.state.clone()).filter(|s| s.waiting.is_none());
    let refused = facts.refused.get(&container.name).map(|hold| waiting(&hold.reason, &hold.message));
    status.state = carried.or(reported).or(refused).or(status.state);
    status
}

fn waiting_without_sandbox(facts: &Facts<'_>, spec: &PodSpec, container: &Container) -> ContainerState {
    if let Some(hold) = facts.hold
        && hold.container == container.name
    {
        return waiting(&hold.reason, &hold.message);
    }
    let has_init = spec.init_containers.as_ref().is_some_and(|i| !i.is_empty());
    waiting(if has_init { "PodInitializing" } else { "ContainerCreating" }, "")
}

fn waiting(reason: &str, message: &str) -> ContainerState {
    let message = (!message.is_empty()).then(|| message.to_owned());
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

/// As much of a termination's message as there is room for: all of a pod's share 12 KiB, as upstream has it.
fn message_bytes(pod: &Pod) -> usize {
    const ALL: usize = 12 * 1024;
    let Some(spec) = &pod.spec else { return ALL };
    let count = |list: Option<usize>| list.unwrap_or(0);
    let init = count(spec.init_containers.as_ref().map(Vec::len));
    let ephemeral = count(spec.ephemeral_containers.as_ref().map(Vec::len));
    ALL / (spec.containers.len() + init + ephemeral).max(1)
}

/// What is mounted, and whether it is read-only down to the last mount in it.
fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let of = |mount: &VolumeMount| {
        let read_only = mount.read_only == Some(true);
        let whole = matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"));
        VolumeMountStatus {
            mount_path: mount.mount_path.clone(),
            name: mount.name.clone(),
            read_only: read_only.then_some(true),
            recursive_read_only: read_only.then(|| if whole { "Enabled" } else { "Disabled" }.to_owned()),
            ..VolumeMountStatus::default()
        }
    };
    container.volume_mounts.as_ref().map(|mounts| mounts.iter().map(of).collect())
}

fn terminated(termination: &Termination, most: usize) -> ContainerState {
    let cut = termination.message.floor_char_boundary(most);
    let message = (cut > 0).then(|| termination.message[..cut].to_owned());
    let ended = ContainerStateTerminated {
        container_id: (!termination.id.is_empty()).then(|| container_id(&termination.id)),
        exit_code: termination.exit_code,
        signal: termination.signal,
        reason: Some(termination.reason.clone()),
        message,
        started_at: Some(Time(termination.started_at)),
        finished_at: Some(Time(termination.finished_at)),
    };
    ContainerState { terminated: Some(ended), ..ContainerState::default() }
}

fn container_id(id: &str) -> String {
    format!("statefuld://{id}")
}

/// Upstream's rules: pending until every container ran once, then running, and over only where none will run again.
fn phase(facts: &Facts<'_>, spec: &PodSpec, init: &[ContainerStatus], main: &[ContainerStatus]) -> &'static str {
    if is_terminal(facts.pod) {
        return if facts.pod.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Failed")) {
            "Failed"
        } else {
            "Succeeded"
        };
    }
    let ended = |s: &ContainerStatus| s.state.as_ref().and_then(|s| s.terminated.clone());
    let over = facts.state.is_some_and(|s| s.phase == Phase::Finished);
    if facts.verdict.is_some() && (over || facts.state.is_none()) {
        return "Failed";
    }
    if over && facts.ends {
        let plain = |c: &&ContainerStatus| !is_sidecar(spec, &c.name);
        let failed = init.iter().filter(plain).chain(main).any(|s| ended(s).is_none_or(|t| t.exit_code != 0));
        return if failed { "Failed" } else { "Succeeded" };
    }
    // Waiting without ever having run, behind init containers or on its own; a container in back-off has run.
    let never_ran = |s: &ContainerStatus| {
        s.state.as_ref().is_some_and(|s| s.waiting.is_some())
            && s.last_state.as_ref().is_none_or(|s| s.terminated.is_none())
    };
    if main.iter().any(never_ran) { "Pending" } else { "Running" }
}

/// Resources that are not yet what the pod asks for.
fn resizing(facts: &Facts<'_>, old: &PodStatus) -> Vec<PodCondition> {
    let resize = facts.resize;
    let pending = resize.pending.as_ref().map(|(reason, message)| {
        condition(facts, old, "PodResizePending", (true, (*reason).to_owned(), message.clone()))
    });
    let in_progress = resize.in_progress.as_ref().map(|error| {
        let reason = if error.is_empty() { "" } else { "Error" };
        condition(facts, old, "PodResizeInProgress", (true, reason.to_owned(), error.clone()))
    });
    pending.into_iter().chain(in_progress).collect()
}

fn is_sidecar(spec: &PodSpec, name: &str) -> bool {
    spec.init_containers.iter().flatten().any(|c| c.name == name && c.restart_policy.as_deref() == Some("Always"))
}

fn conditions(
    facts: &Facts<'_>,
    spec: &PodSpec,
    old: &PodStatus,
    phase: &str,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Vec<PodCondition> {
    let over = matches!(phase, "Succeeded" | "Failed");
    let unready: Vec<&str> = main
        .iter()
        .chain(init.iter().filter(|s| is_sidecar(spec, &s.name)))
        .filter(|s| !s.ready)
        .map(|s| s.name.as_str())
        .collect();
    let incomplete: Vec<&str> = init.iter().filter(|s| !init_done(spec, s)).map(|s| s.name.as_str()).collect();
    let done = |reason: &str| (false, reason.to_owned(), String::new());
    let containers_ready = match phase {
        "Succeeded" => done("PodCompleted"),
        "Failed" => done("PodFailed"),
        _ if unready.is_empty() => (true, String::new(), String::new()),
        _ => {
            (false, "ContainersNotReady".to_owned(), format!("containers with unready status: [{}]", unready.join(" ")))
        }
    };
    let gates = open_gates(spec, old);
    let ready = match (containers_ready.0, gates.is_empty()) {
        (true, false) => {
            let words = gates.iter().map(|g| {
                format!("corresponding condition of pod readiness gate \"{g}\" does not exist or is not True.")
            });
            (false, "ReadinessGatesNotReady".to_owned(), words.collect::<Vec<_>>().join(", "))
        }
        _ => containers_ready.clone(),
    };
    let initialized = if over && incomplete.is_empty() {
        (true, if phase == "Succeeded" { "PodCompleted".to_owned() } else { String::new() }, String::new())
    } else if incomplete.is_empty() {
        (true, String::new(), String::new())
    } else {
        let names = incomplete.join(" ");
        (false, "ContainersNotInitialized".to_owned(), format!("containers with incomplete status: [{names}]"))
    };
    let sandbox = facts.state.is_some_and(|s| s.phase >= Phase::Running && s.phase != Phase::Finished);
    let wanted = [
        ("PodReadyToStartContainers", (sandbox, String::new(), String::new())),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", (true, String::new(), String::new())),
    ];
    let mut conditions: Vec<PodCondition> =
        wanted.into_iter().map(|(kind, to)| condition(facts, old, kind, to)).collect();
    if let Some(verdict) = facts.verdict.filter(|v| v.evicted) {
        let to = (true, "TerminationByKubelet".to_owned(), verdict.message.clone());
        conditions.push(condition(facts, old, "DisruptionTarget", to));
    }
    conditions.extend(resizing(facts, old));
    // Other writers' conditions (readiness gates, disruption targets) stay.
    let have: Vec<String> = conditions.iter().map(|c| c.type_.clone()).collect();
    let others = old.conditions.iter().flatten().filter(|c| !is_ours(&c.type_) && !have.contains(&c.type_));
    conditions.extend(others.cloned());
    conditions
}

fn init_done(spec: &PodSpec, status: &ContainerStatus) -> bool {
    if is_sidecar(spec, &status.name) {
        return status.started == Some(true) || status.state.as_ref().is_some_and(|s| s.terminated.is_some());
    }
    status.state.as_ref().and_then(|s| s.terminated.as_ref()).is_some_and(|t| t.exit_code == 0)
}

/// Readiness gates that nobody opened.
fn open_gates(spec: &PodSpec, old: &PodStatus) -> Vec<String> {
    let open = |kind: &str| old.conditions.iter().flatten().any(|c| c.type_ == kind && c.status == "True");
    let gates = spec.readiness_gates.iter().flatten().map(|g| g.condition_type.clone());
    gates.filter(|kind| !open(kind)).collect()
}

/// A condition whose time only moves when its status does.
fn condition(facts: &Facts<'_>, old: &PodStatus, kind: &str, to: (bool, String, String)) -> PodCondition {
    let (value, reason, message) = to;
    let status = if value { "True" } else { "False" };
    let before = old.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == status);
    let since = before.and_then(|c| c.last_transition_time.clone()).unwrap_or(Time(facts.now));
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        last_transition_time: Some(since),
        reason: (!reason.is_empty()).then_some(reason),
        message: (!message.is_empty()).then_some(message),
        observed_generation: facts.pod.metadata.generation,
        ..PodCondition::default()
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
