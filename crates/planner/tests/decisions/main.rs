//! Single decisions of the planner: one fact each, on a view made by hand.

mod beyond;

use std::collections::BTreeMap;
use std::sync::Arc;

use statefuld_planner::{
    Act, Answer, Beyond, Blob, Call, Claim, ExecState, Failure, FailureKind, LiveSet, Management, Member, Observed,
    Owner, Plan, Pod, PodPhase, Request, Response, Retention, Revision, Set, Status, Strategy, Trouble, Unavailable,
    Verdict, plan, step,
};

const OLD: &str = "web-old";
const NEW: &str = "web-new";
const NOW: i64 = 1_000_000;

fn rolling(partition: i32, max_unavailable: Unavailable) -> Strategy {
    Strategy::RollingUpdate { partition: Some(partition), max_unavailable }
}

fn set(replicas: i32) -> Set {
    let data = Blob::new(&b"new"[..]);
    Set {
        api_version: "apps/v1".into(),
        kind: "StatefulSet".into(),
        namespace: "default".into(),
        name: "web".into(),
        uid: "set".into(),
        generation: 1,
        deleting: false,
        replicas,
        start: 0,
        management: Management::OrderedReady,
        strategy: rolling(0, Unavailable::Count(1)),
        min_ready_seconds: 0,
        history_limit: 10,
        claim_templates: Vec::new(),
        when_deleted: Retention::Retain,
        when_scaled: Retention::Retain,
        meaning: data.clone(),
        data,
        status: Status { current_revision: OLD.into(), update_revision: NEW.into(), ..Status::default() },
        service_name: String::new(),
        beyond: Beyond::default(),
    }
}

fn revision(name: &str, number: i64, data: &str) -> Revision {
    let data = Blob::new(data.as_bytes());
    let owners = vec![set(0).as_owner()];
    let (name, uid) = (name.to_owned(), format!("uid-{name}"));
    Revision { name, uid, version: 1, number, created: 0, owners, meaning: data.clone(), data, held: None }
}

fn pod(ordinal: i32, revision: &str) -> Pod {
    let name = format!("web-{ordinal}");
    Pod {
        uid: format!("uid-{name}"),
        version: 7,
        phase: PodPhase::Running,
        ready_since: Some(0),
        terminating: false,
        owners: vec![set(0).as_owner()],
        revision: Some(revision.into()),
        pod_name_label: Some(name.clone()),
        volumes: BTreeMap::new(),
        detail: None,
        trouble: Trouble::None,
        created: 0,
        was_ready: None,
        override_hash: None,
        subdomain: String::new(),
        name,
    }
}

fn unready(pod: Pod) -> Pod {
    Pod { ready_since: None, ..pod }
}

fn observed(set: Set, pods: impl IntoIterator<Item = Pod>) -> Observed {
    Observed {
        set,
        pods: pods.into_iter().map(|p| Member { pod: Arc::new(p), matches: true }).collect(),
        claims: BTreeMap::new(),
        revisions: vec![revision(OLD, 1, "old"), revision(NEW, 2, "new")],
    }
}

fn acts(plan: &Plan) -> Vec<String> {
    let acts = plan.phases.iter().flat_map(|p| &p.tasks).flat_map(|t| &t.acts);
    acts.map(|act| match act {
        Act::CreatePod { name, revision, .. } => format!("+{name} {revision}"),
        Act::DeletePod { name, .. } => format!("-{name}"),
        Act::CreateClaim { name, .. } => format!("claim {name}"),
        Act::SetClaimOwners { name, owners, .. } => format!("owners {name} {}", owners.len()),
        Act::UpdatePod { name, .. } => format!("update {name}"),
        Act::MarkClaim { name, mark, .. } => format!("mark {name} {mark:?}"),
        Act::GrowClaim { name, .. } => format!("grow {name}"),
        Act::LetGo { .. } => "let go".into(),
        Act::Refuse { message } => message.clone(),
    })
    .collect()
}

fn decide(set: Set, pods: impl IntoIterator<Item = Pod>) -> Vec<String> {
    acts(&plan(&observed(set, pods), NOW))
}

fn reasons(set: Set, pods: impl IntoIterator<Item = Pod>) -> Vec<String> {
    plan(&observed(set, pods), NOW).reasons.iter().map(ToString::to_string).collect()
}

fn parallel(set: Set) -> Set {
    Set { management: Management::Parallel, ..set }
}

#[test]
fn the_lowest_missing_ordinal_is_created_first_and_alone() {
    assert_eq!(decide(set(3), []), ["+web-0 web-new"]);
    assert_eq!(decide(set(3), [pod(1, NEW)]), ["+web-0 web-new"]);
    assert_eq!(decide(set(3), [pod(0, NEW)]), ["+web-1 web-new"]);
    assert!(decide(set(3), [unready(pod(0, NEW))]).is_empty());
}

#[test]
fn parallel_sets_create_all_at_once() {
    assert_eq!(decide(parallel(set(3)), [unready(pod(1, NEW))]), ["+web-0 web-new", "+web-2 web-new"]);
}

#[test]
fn ordinals_begin_at_the_start_and_the_partition_counts_from_there() {
    let set = Set { start: 5, strategy: rolling(1, Unavailable::Count(1)), ..parallel(set(2)) };
    assert_eq!(decide(set.clone(), []), ["+web-5 web-old", "+web-6 web-new"]);
    assert_eq!(decide(set, [pod(5, OLD), pod(6, OLD)]), ["-web-6"]);
}

#[test]
fn an_update_takes_the_highest_old_pod_and_waits_for_its_return() {
    assert_eq!(decide(set(3), [pod(0, OLD), pod(1, OLD), pod(2, OLD)]), ["-web-2"]);
    assert!(decide(set(3), [pod(0, OLD), pod(1, OLD), unready(pod(2, NEW))]).is_empty());
    assert_eq!(decide(set(3), [pod(0, OLD), pod(1, OLD), pod(2, NEW)]), ["-web-1"]);
}

#[test]
fn max_unavailable_bounds_an_update_and_percent_rounds_down_to_at_least_one() {
    let pods = || (0..4).map(|n| pod(n, OLD));
    let with = |max| Set { strategy: rolling(0, max), ..set(4) };
    assert_eq!(decide(with(Unavailable::Count(2)), pods()), ["-web-3", "-web-2"]);
    assert_eq!(decide(with(Unavailable::Percent(74)), pods()), ["-web-3", "-web-2"]);
    assert_eq!(decide(with(Unavailable::Percent(10)), pods()), ["-web-3"]);
}

#[test]
fn in_parallel_sets_broken_old_pods_go_first_and_do_not_use_up_the_budget() {
    let pods = [pod(0, OLD), unready(pod(1, OLD)), pod(2, OLD)];
    assert_eq!(decide(parallel(set(3)), pods), ["-web-1"], "the budget of one is spent by the broken pod itself");
    let two = Set { strategy: rolling(0, Unavailable::Count(2)), ..parallel(set(3)) };
    assert_eq!(decide(two, [pod(0, OLD), unready(pod(1, OLD)), pod(2, OLD)]), ["-web-1", "-web-2"]);
}

#[test]
fn on_delete_replaces_nothing_by_itself_and_makes_new_pods_of_the_new_revision() {
    let set = Set { strategy: Strategy::OnDelete, ..set(2) };
    assert!(decide(set.clone(), [pod(0, OLD), pod(1, OLD)]).is_empty());
    assert_eq!(decide(set, [pod(0, OLD)]), ["+web-1 web-new"]);
}

#[test]
fn scaling_down_takes_one_pod_from_the_top_and_waits_for_it() {
    assert_eq!(decide(set(1), [pod(0, NEW), pod(1, NEW), pod(2, NEW)]), ["-web-2"]);
    let going = Pod { terminating: true, ..pod(2, NEW) };
    assert!(decide(set(1), [pod(0, NEW), pod(1, NEW), going]).is_empty());
}

#[test]
fn scaling_down_halts_at_an_unready_pod_unless_it_is_the_lowest_one() {
    assert_eq!(decide(set(1), [pod(0, NEW), pod(1, NEW), unready(pod(2, NEW))]), ["-web-2"]);
    assert!(decide(set(1), [pod(0, NEW), unready(pod(1, NEW)), unready(pod(2, NEW))]).is_empty());
    assert_eq!(decide(set(1), [pod(0, NEW), unready(pod(1, NEW)), pod(2, NEW)]), ["-web-2"]);
}

#[test]
fn a_finished_pod_is_deleted_and_an_ordered_set_waits_for_its_place() {
    let failed = Pod { phase: PodPhase::Failed, ready_since: None, ..pod(0, NEW) };
    assert_eq!(decide(set(2), [failed.clone(), pod(1, OLD)]), ["-web-0"]);
    assert!(decide(set(2), [Pod { terminating: true, ..failed }]).is_empty());
}

#[test]
fn min_ready_seconds_hold_back_the_next_pod_and_say_when_to_look_again() {
    let set = Set { min_ready_seconds: 10, ..set(2) };
    let settling = Pod { ready_since: Some(NOW - 4_000), ..pod(0, NEW) };
    let plan = plan(&observed(set.clone(), [settling]), NOW);
    assert!(plan.phases.is_empty());
    assert_eq!(plan.look_again, Some(6_000));
    assert_eq!(decide(set, [Pod { ready_since: Some(NOW - 10_000), ..pod(0, NEW) }]), ["+web-1 web-new"]);
}

#[test]
fn a_set_that_is_deleted_does_nothing_but_count() {
    let plan = plan(&observed(Set { deleting: true, ..set(3) }, [pod(0, OLD)]), NOW);
    assert!(plan.phases.is_empty() && plan.prologue.is_empty());
    assert_eq!(plan.status.replicas, 1);
}

#[test]
fn a_name_with_a_leading_zero_is_not_adopted() {
    let stranger = Pod { name: "web-01".into(), owners: Vec::new(), ..pod(1, NEW) };
    let orphan = Pod { owners: Vec::new(), ..pod(0, NEW) };
    let plan = plan(&observed(set(2), [stranger, orphan]), NOW);
    let adopted: Vec<&str> = plan.prologue.adopt.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(adopted, ["web-0"]);
}

fn claim(owners: Vec<Owner>, terminating: bool) -> Claim {
    Claim {
        name: "data-web-0".into(),
        uid: "claim".into(),
        version: 3,
        terminating,
        owners,
        requested: 1,
        reserved: false,
        reuse: false,
        protected: false,
    }
}

fn with_claim(set: Set, claim: Claim, pods: impl IntoIterator<Item = Pod>) -> Vec<String> {
    let set = Set { claim_templates: vec!["data".into()], ..set };
    let mut observed = observed(set, pods);
    observed.claims.insert(claim.name.clone(), claim);
    acts(&plan(&observed, NOW))
}

fn owned_by_pod(uid: &str) -> Owner {
    let (api_version, kind, name) = ("v1".into(), "Pod".into(), "web-0".into());
    Owner { api_version, kind, name, uid: uid.into(), controller: true, block: true }
}

#[test]
fn claims_come_before_their_pod_and_existing_ones_are_used() {
    let set = Set { claim_templates: vec!["data".into()], ..set(1) };
    assert_eq!(decide(set.clone(), []), ["claim data-web-0", "+web-0 web-new"]);
    assert_eq!(with_claim(set, claim(Vec::new(), false), []), ["+web-0 web-new"]);
}

#[test]
fn a_terminating_claim_refuses_and_a_stale_one_waits() {
    let refused = with_claim(set(1), claim(Vec::new(), true), []);
    assert_eq!(refused, ["pvc data-web-0 is being deleted", "+web-0 web-new"]);
    let set = Set { when_scaled: Retention::Delete, ..set(1) };
    assert!(with_claim(set, claim(vec![owned_by_pod("former")], false), []).is_empty());
}

#[test]
fn retention_gives_a_claim_to_the_set_or_to_its_condemned_pod() {
    let mut ready = pod(0, NEW);
    ready.volumes.insert("data".into(), "data-web-0".into());
    let both = |replicas| Set { when_deleted: Retention::Delete, when_scaled: Retention::Delete, ..set(replicas) };
    let by_set = vec![set(0).as_owner()];
    assert_eq!(with_claim(both(1), claim(Vec::new(), false), [ready.clone()]), ["owners data-web-0 1"]);
    assert!(with_claim(both(1), claim(by_set.clone(), false), [ready.clone()]).is_empty());
    assert_eq!(with_claim(both(0), claim(by_set, false), [ready.clone()]), ["owners data-web-0 1", "-web-0"]);
    let armed = claim(vec![owned_by_pod(&ready.uid)], false);
    assert_eq!(with_claim(both(0), armed.clone(), [ready.clone()]), ["-web-0"]);
    assert_eq!(with_claim(set(1), armed, [ready.clone()]), ["owners data-web-0 0"], "retained again");
    let other = Owner { uid: "other".into(), name: "other".into(), ..set(0).as_owner() };
    assert!(with_claim(both(1), claim(vec![other], false), [ready]).is_empty(), "another controller keeps it");
}

#[test]
fn history_beyond_the_limit_goes_oldest_first_and_live_revisions_stay() {
    let mut view = observed(Set { history_limit: 1, ..set(1) }, [pod(0, "web-r1")]);
    let old = (1..=4).map(|n| revision(&format!("web-r{n}"), n, &n.to_string()));
    view.revisions = old.chain([revision(OLD, 5, "old"), revision(NEW, 6, "new")]).collect();
    let surplus: Vec<String> = plan(&view, NOW).surplus.into_iter().map(|r| r.name).collect();
    assert_eq!(surplus, ["web-r2", "web-r3"]);
}

#[test]
fn a_template_that_differs_in_nothing_that_matters_makes_no_revision() {
    let mut view = observed(set(1), [pod(0, NEW)]);
    view.set.data = Blob::new(&b"new, written otherwise"[..]);
    assert!(plan(&view, NOW).prologue.is_empty());
    view.set.meaning = view.set.data.clone();
    assert!(plan(&view, NOW).prologue.revision.is_some());
}

#[test]
fn the_status_counts_as_upstream_counts() {
    let status =
        plan(&observed(set(3), [pod(0, OLD), Pod { terminating: true, ..pod(1, NEW) }, unready(pod(2, NEW))]), NOW)
            .status;
    assert_eq!((status.replicas, status.ready, status.available), (3, 2, 2), "terminating pods count");
    assert_eq!((status.current, status.updated), (1, 1), "and belong to no revision any more");
}

#[test]
fn reasons_are_sentences() {
    let broken = Pod { detail: Some("CrashLoopBackOff".into()), ..unready(pod(0, NEW)) };
    assert_eq!(
        reasons(set(2), [broken]),
        [
            "web-0 is not available: it is running but not ready (CrashLoopBackOff)",
            "web-1 is not created: web-0 is running but not ready (CrashLoopBackOff)",
        ]
    );
    let held = Set { strategy: rolling(1, Unavailable::Count(1)), ..set(1) };
    assert_eq!(
        reasons(held, [pod(0, OLD)]),
        ["web-0 is not updated: the partition (1) holds it at the current revision"]
    );
    assert_eq!(reasons(set(1), [pod(0, NEW), pod(1, NEW), pod(2, NEW)]), ["web-1 is not deleted: web-2 goes first"]);
}

/// Answers every call of an execution; gives the calls and how it ended.
fn execute(view: Observed, mut answer: impl FnMut(&Call) -> Answer) -> (Vec<Call>, Verdict, Vec<String>) {
    let (mut state, mut waiting) = step(ExecState::new(view, NOW), None);
    let (mut calls, mut told) = (Vec::new(), Vec::new());
    while let Some(Request { id, call }) = waiting.pop() {
        let given = answer(&call);
        calls.push(call);
        let (next, more) = step(state, Some(Response { id, answer: given }));
        state = next;
        waiting.extend(more);
        told.extend(state.take_events().into_iter().map(|e| format!("{}: {}", e.reason, e.message)));
    }
    let outcome = state.outcome().expect("it has ended");
    (calls, outcome.verdict, told)
}

fn failed(kind: FailureKind) -> Answer {
    Answer::Failed(Failure { kind, message: "no".into() })
}

#[test]
fn a_revision_whose_name_is_taken_by_other_content_gets_another_name() {
    let mut view = observed(set(0), []);
    view.revisions.clear();
    let mut names = Vec::new();
    let (_, verdict, _) = execute(view, |call| match call {
        Call::CreateRevision { name, data, .. } => {
            names.push(name.clone());
            if names.len() == 1 {
                return failed(FailureKind::AlreadyExists);
            }
            Answer::Revision(Revision { data: data.clone(), meaning: data.clone(), ..revision(name, 1, "") })
        }
        Call::GetRevision { name } => Answer::Revision(revision(name, 1, "somebody else's")),
        Call::WriteStatus { status, .. } => {
            assert_eq!(status.collision_count, Some(1));
            Answer::Done { version: 1 }
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(verdict, Verdict::Settled);
    assert!(names.len() == 2 && names[0] != names[1]);
}

#[test]
fn nothing_is_adopted_for_a_set_that_was_replaced_meanwhile() {
    let view = observed(set(1), [Pod { owners: Vec::new(), ..pod(0, NEW) }]);
    let (calls, verdict, _) = execute(view, |_| Answer::Set(LiveSet { uid: "another".into(), deleting: false }));
    assert_eq!(calls, [Call::GetSet]);
    assert!(matches!(verdict, Verdict::Failed(_)));
}

#[test]
fn a_refused_pod_is_told_and_the_status_written_all_the_same() {
    let (calls, verdict, told) = execute(observed(set(1), []), |call| match call {
        Call::Act(Act::CreatePod { .. }) => failed(FailureKind::Other),
        _ => Answer::Done { version: 1 },
    });
    assert!(matches!(calls.last(), Some(Call::WriteStatus { .. })));
    assert!(matches!(verdict, Verdict::Failed(_)));
    assert_eq!(told, ["FailedCreate: create Pod web-0 in StatefulSet web failed error: no"]);
}

#[test]
fn a_lost_precondition_is_no_failure_and_is_not_told() {
    let view = observed(set(1), [pod(0, OLD)]);
    let (calls, verdict, told) = execute(view, |call| match call {
        Call::Act(Act::DeletePod { uid, version, .. }) => {
            assert_eq!((uid.as_str(), *version), ("uid-web-0", 7));
            failed(FailureKind::Conflict)
        }
        _ => Answer::Done { version: 1 },
    });
    assert!(calls.iter().any(|c| matches!(c, Call::Act(Act::DeletePod { .. }))));
    assert_eq!((verdict, told), (Verdict::Stale, Vec::new()));
}

#[test]
fn a_status_that_can_wait_is_owed_where_that_is_allowed() {
    let mut view = observed(set(1), [unready(pod(0, NEW))]);
    let written = plan(&view, NOW).status;
    view.set.status = Status { replicas: 0, ..written };
    let asked = |state: ExecState| {
        let (state, waiting) = step(state, None);
        (waiting.len(), state.outcome().map(|outcome| outcome.owes_status))
    };
    assert_eq!(asked(ExecState::new(view.clone(), NOW)), (1, None), "it is written");
    assert_eq!(asked(ExecState::new(view.clone(), NOW).putting_off_status()), (0, Some(true)));
    view.set.generation = 2;
    assert_eq!(asked(ExecState::new(view, NOW).putting_off_status()), (1, None), "another spec was seen: that is news");
}
