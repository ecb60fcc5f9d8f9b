//! Statuses in upstream's words.

use serde_json::{Value, json};

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn ended(code: i32) -> Termination {
    Termination {
        exit_code: code,
        signal: None,
        reason: if code == 0 { "Completed" } else { "Error" }.to_owned(),
        message: String::new(),
        started_at: at(1),
        finished_at: at(2),
        id: "r0".to_owned(),
    }
}

fn container(name: &str, state: Status) -> state::ContainerState {
    let id = if matches!(state, Status::Waiting { .. }) { "" } else { "r1" };
    state::ContainerState {
        name: name.to_owned(),
        state,
        last_termination: None,
        restart_count: 0,
        id: id.to_owned(),
        incarnation: 1,
        log_lines_dropped: 0,
        started_boot_ms: None,
        hooking: false,
        post_start_failures: 0,
        pre_stop_failures: 0,
        awaited: false,
        asks: false,
    }
}

fn running() -> Status {
    Status::Running { started_at: at(5), pid: 7 }
}

fn sandbox(phase: Phase, containers: Vec<state::ContainerState>) -> PodState {
    PodState {
        uid: "u".into(),
        shim_pid: 1,
        boot_id: "b".into(),
        sequence: 1,
        phase,
        epoch: 1,
        incarnation: 1,
        created_at: at(0),
        containers,
        warnings: Vec::new(),
    }
}

struct Case {
    spec: Value,
    status: Value,
    state: Option<PodState>,
    ready: bool,
    hold: Option<Hold>,
    leaving: bool,
    verdict: Option<Verdict>,
    carried: BTreeMap<String, Carried>,
    resize: Resize,
}

impl Case {
    fn new(state: Option<PodState>) -> Self {
        let spec = json!({"containers": [{"name": "c", "image": "x"}]});
        let (carried, resize) = (BTreeMap::new(), Resize::default());
        Self { spec, status: json!({}), state, ready: true, hold: None, leaving: false, verdict: None, carried, resize }
    }

    fn build(&self) -> PodStatus {
        let object = json!({"metadata": {"name": "web-0", "uid": "u"}, "spec": self.spec, "status": self.status});
        let pod: Pod = serde_json::from_value(object).expect("a pod");
        let health = Health { run: "r1".into(), started: true, ready: self.ready };
        build(&Facts {
            pod: &pod,
            state: self.state.as_ref(),
            health: &BTreeMap::from([("c".to_owned(), health)]),
            carried: &self.carried,
            hold: self.hold.as_ref(),
            refused: &BTreeMap::new(),
            address: Some(Ipv4Addr::new(10, 201, 7, 2)),
            host: Ipv4Addr::new(192, 0, 2, 2),
            sample_id: "",
            images: &BTreeMap::new(),
            ends: self.leaving || ending(pod.spec.as_ref().expect("a spec")) != Ending::Never,
            verdict: self.verdict.as_ref(),
            resize: &self.resize,
            now: at(100),
        })
    }
}

fn ready_of(status: &PodStatus) -> (String, Option<String>) {
    let found = status.conditions.iter().flatten().find(|c| c.type_ == "Ready").expect("a Ready condition");
    (found.status.clone(), found.message.clone())
}

#[test]
fn running_and_ready() {
    let status = Case::new(Some(sandbox(Phase::Running, vec![container("c", running())]))).build();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(ready_of(&status), ("True".to_owned(), None));
    assert_eq!(status.pod_ip.as_deref(), Some("10.201.7.2"));
    let c = &status.container_statuses.expect("statuses")[0];
    assert_eq!(c.container_id.as_deref(), Some("statefuld://r1"));
    assert!(c.ready && c.started == Some(true));
}

#[test]
fn running_and_not_ready_names_the_container() {
    let mut case = Case::new(Some(sandbox(Phase::Running, vec![container("c", running())])));
    case.ready = false;
    let status = case.build();
    assert_eq!(ready_of(&status), ("False".to_owned(), Some("containers with unready status: [c]".to_owned())));
    assert!(!is_ready(&status));
}

#[test]
fn health_of_an_earlier_run_does_not_count() {
    let mut current = container("c", running());
    current.id = "r2".to_owned();
    let status = Case::new(Some(sandbox(Phase::Running, vec![current]))).build();
    assert_eq!(ready_of(&status).0, "False");
}

#[test]
fn a_held_pod_is_pending_with_the_reason() {
    let mut case = Case::new(None);
    let hold = Hold { container: "c".into(), reason: "ErrImagePull".into(), message: "no".into() };
    case.hold = Some(hold);
    let status = case.build();
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    let waiting =
        status.container_statuses.expect("statuses")[0].state.clone().and_then(|s| s.waiting).expect("waiting");
    assert_eq!((waiting.reason.as_deref(), waiting.message.as_deref()), (Some("ErrImagePull"), Some("no")));
}

#[test]
fn crash_loop_stays_running_with_its_last_end() {
    let back_off = Status::Waiting { reason: "CrashLoopBackOff".into(), message: "back-off 10s".into() };
    let mut crashed = container("c", back_off);
    crashed.last_termination = Some(ended(1));
    crashed.restart_count = 3;
    let status = Case::new(Some(sandbox(Phase::Running, vec![crashed]))).build();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let c = &status.container_statuses.expect("statuses")[0];
    assert_eq!((c.restart_count, c.ready), (3, false));
    assert_eq!(c.last_state.clone().and_then(|s| s.terminated).map(|t| t.exit_code), Some(1));
}

#[test]
fn over_is_failed_or_succeeded_only_where_nothing_restarts() {
    let over = |code, policy: &str, leaving| {
        let mut case = Case::new(Some(sandbox(Phase::Finished, vec![container("c", Status::Terminated(ended(code)))])));
        case.spec["restartPolicy"] = json!(policy);
        case.leaving = leaving;
        case.build().phase
    };
    assert_eq!(over(0, "Never", false).as_deref(), Some("Succeeded"));
    assert_eq!(over(3, "Never", false).as_deref(), Some("Failed"));
    assert_eq!(over(0, "Always", false).as_deref(), Some("Running"));
    assert_eq!(over(143, "Always", true).as_deref(), Some("Failed"));
}

#[test]
fn init_containers_hold_the_pod_pending() {
    let wait = Status::Waiting { reason: "PodInitializing".into(), message: String::new() };
    let state = sandbox(Phase::Running, vec![container("i", running()), container("c", wait)]);
    let mut case = Case::new(Some(state));
    case.spec["initContainers"] = json!([{"name": "i", "image": "x"}]);
    let status = case.build();
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    let initialized = status.conditions.iter().flatten().find(|c| c.type_ == "Initialized").expect("a condition");
    assert_eq!(initialized.message.as_deref(), Some("containers with incomplete status: [i]"));
}

#[test]
fn times_move_only_with_the_status_and_foreign_conditions_stay() {
    let mut case = Case::new(Some(sandbox(Phase::Running, vec![container("c", running())])));
    let time = |t: i64| at(t).to_string();
    case.status = json!({"startTime": time(3), "conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": time(9)},
        {"type": "ContainersReady", "status": "False", "lastTransitionTime": time(9)},
        {"type": "example.org/gate", "status": "False"}]});
    let status = case.build();
    let since = |kind: &str| {
        let found = status.conditions.iter().flatten().find(|c| c.type_ == kind);
        found.and_then(|c| c.last_transition_time.clone()).map(|t| t.0)
    };
    assert_eq!((since("Ready"), since("ContainersReady")), (Some(at(9)), Some(at(100))));
    assert!(status.conditions.iter().flatten().any(|c| c.type_ == "example.org/gate"));
    assert_eq!(status.start_time.map(|t| t.0), Some(at(3)));
}

#[test]
fn closed_gate_keeps_a_pod_unready() {
    let mut case = Case::new(Some(sandbox(Phase::Running, vec![container("c", running())])));
    case.spec["readinessGates"] = json!([{"conditionType": "example.org/gate"}]);
    let status = case.build();
    assert_eq!(ready_of(&status).0, "False");
    assert!(status.conditions.iter().flatten().any(|c| c.type_ == "ContainersReady" && c.status == "True"));
}

#[test]
fn a_lost_sandbox_leaves_its_restarts_and_an_unknown_end() {
    let carried = carry(&sandbox(Phase::Running, vec![container("c", running())]), at(50));
    assert_eq!(carried["c"].restarts, 1);
    assert_eq!(carried["c"].last.as_ref().map(|t| t.exit_code), Some(137));
    let mut case = Case::new(None);
    case.carried = carried;
    let c = case.build().container_statuses.expect("statuses")[0].clone();
    assert_eq!(c.restart_count, 1);
    assert_eq!(
        c.last_state.and_then(|s| s.terminated).and_then(|t| t.reason).as_deref(),
        Some("ContainerStatusUnknown")
    );
}

#[test]
fn an_ephemeral_container_that_ran_keeps_how_it_ended_and_holds_nothing_up() {
    let container = |name: &str| json!({"name": name, "image": "host"});
    let mut case = Case::new(None);
    case.spec["ephemeralContainers"] = json!([container("new"), container("over"), container("lost")]);
    case.status = json!({"ephemeralContainerStatuses": [
        {"name": "over", "image": "host", "imageID": "", "ready": false, "restartCount": 0,
         "state": {"terminated": {"exitCode": 3}}}]});
    let lost = Termination {
        exit_code: 137,
        signal: Some(9),
        reason: "Error".into(),
        message: String::new(),
        started_at: at(0),
        finished_at: at(1),
        id: "r0".into(),
    };
    case.carried.insert("lost".into(), Carried { last: Some(lost), restarts: 1 });
    let status = case.build();
    let state = |name: &str| {
        let all = status.ephemeral_container_statuses.iter().flatten();
        let found = all.clone().find(|s| s.name == name).expect("a status");
        assert_eq!((found.ready, found.restart_count), (false, 0), "{name}");
        found.state.clone().expect("a state")
    };
    assert_eq!(state("new").waiting.and_then(|w| w.reason).as_deref(), Some("ContainerCreating"));
    assert_eq!(state("over").terminated.map(|t| t.exit_code), Some(3));
    assert_eq!(state("lost").terminated.map(|t| t.exit_code), Some(137));
}

#[test]
fn a_pod_that_broke_a_limit_has_failed_once_it_ended_and_stays_so() {
    let verdict = Verdict { reason: "Evicted".into(), message: "too large".into(), evicted: true, grace: None };
    let mut case = Case::new(Some(sandbox(Phase::Stopping, vec![container("c", running())])));
    case.verdict = Some(verdict);
    assert_eq!(case.build().phase.as_deref(), Some("Running"));
    case.state = Some(sandbox(Phase::Finished, vec![container("c", Status::Terminated(ended(143)))]));
    let over = case.build();
    assert_eq!((over.phase.as_deref(), over.reason.as_deref()), (Some("Failed"), Some("Evicted")));
    let disrupted = over.conditions.iter().flatten().find(|c| c.type_ == "DisruptionTarget").expect("a condition");
    assert_eq!(disrupted.reason.as_deref(), Some("TerminationByKubelet"));
    // A later agent knows of it from the API alone.
    case.status = serde_json::to_value(&over).expect("JSON");
    (case.verdict, case.state) = (None, None);
    let later = case.build();
    assert_eq!((later.phase.as_deref(), later.reason.as_deref()), (Some("Failed"), Some("Evicted")));
    assert!(later.conditions.iter().flatten().any(|c| c.type_ == "DisruptionTarget"));
}

#[test]
fn messages_of_all_containers_share_what_room_there_is() {
    let mut end = ended(1);
    end.message = "ä".repeat(5000);
    let mut case = Case::new(Some(sandbox(Phase::Finished, vec![container("c", Status::Terminated(end))])));
    case.spec = json!({"restartPolicy": "Never", "containers": [{"name": "c"}, {"name": "d"}, {"name": "e"}]});
    let status = case.build();
    let first = status.container_statuses.expect("statuses")[0].state.clone().and_then(|s| s.terminated);
    assert_eq!(first.and_then(|t| t.message).map(|m| m.len()), Some(4096));
}

#[test]
fn containers_policies_decide_whether_a_pod_can_end() {
    let of = |spec: Value| ending(&serde_json::from_value(spec).expect("a pod spec"));
    let one = |pods: &str, own: Value| {
        of(json!({"restartPolicy": pods, "containers": [{"name": "c", "restartPolicy": own}]}))
    };
    assert_eq!(one("Always", Value::Null), Ending::Never);
    assert_eq!(one("Never", Value::Null), Ending::Always);
    assert_eq!(one("OnFailure", Value::Null), Ending::Perhaps);
    assert_eq!(one("Always", json!("Never")), Ending::Always);
    assert_eq!(one("Never", json!("OnFailure")), Ending::Perhaps);
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [3]}}]);
    let ruled = json!({"containers": [{"name": "c", "restartPolicy": "Never", "restartPolicyRules": rules}]});
    assert_eq!(of(ruled), Ending::Perhaps);
}

#[test]
fn read_only_mounts_say_how_deep() {
    let mut case = Case::new(None);
    case.spec = json!({"containers": [{"name": "c", "volumeMounts": [{"name": "a", "mountPath": "/a"},
        {"name": "b", "mountPath": "/b", "readOnly": true, "recursiveReadOnly": "IfPossible"}]}]});
    let mounts = case.build().container_statuses.expect("statuses")[0].volume_mounts.clone().expect("mounts");
    assert_eq!((mounts[0].read_only, mounts[0].recursive_read_only.as_deref()), (None, None));
    assert_eq!((mounts[1].read_only, mounts[1].recursive_read_only.as_deref()), (Some(true), Some("Enabled")));
}

#[test]
fn a_pod_that_is_not_admitted_has_failed_without_a_sandbox() {
    let mut case = Case::new(None);
    case.verdict = Some(Verdict {
        reason: "SysctlForbidden".to_owned(),
        message: "Pod was rejected: no".to_owned(),
        evicted: false,
        grace: None,
    });
    let status = case.build();
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("SysctlForbidden")));
    assert!(!status.conditions.iter().flatten().any(|c| c.type_ == "DisruptionTarget"));
}

#[test]
fn resources_are_told_as_given_and_a_wait_has_its_reason() {
    let mut case = Case::new(Some(sandbox(Phase::Running, vec![container("c", running())])));
    let given = json!({"limits": {"cpu": "2"}, "requests": {"cpu": "1"}});
    let given: BTreeMap<_, _> = [("c".to_owned(), serde_json::from_value(given).expect("resources"))].into();
    let pending = Some(("Deferred", "no room".to_owned()));
    case.resize = Resize { actual: given.clone(), allocated: given, pending, in_progress: Some(String::new()) };
    let status = serde_json::to_value(case.build()).expect("a status");
    assert_eq!(status["containerStatuses"][0]["resources"]["limits"], json!({"cpu": "2"}));
    assert_eq!(status["containerStatuses"][0]["allocatedResources"], json!({"cpu": "1"}));
    let conditions = status["conditions"].as_array().expect("conditions");
    let of = |kind: &str| conditions.iter().find(|c| c["type"] == kind).cloned().unwrap_or_default();
    assert_eq!(
        (&of("PodResizePending")["reason"], &of("PodResizePending")["status"]),
        (&json!("Deferred"), &json!("True"))
    );
    assert_eq!(of("PodResizeInProgress")["status"], "True");
    assert!(of("PodResizeInProgress")["reason"].is_null());
}
