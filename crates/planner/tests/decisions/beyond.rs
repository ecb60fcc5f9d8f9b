//! What annotations change about a decision, alone and together.

use statefuld_planner::{Beyond, Condition, ConditionKind, Reserved, Trouble, Truth};

use super::*;

fn with(set: Set, beyond: Beyond) -> Set {
    Set { beyond, ..set }
}

fn reserving(set: Set, ranges: &[(i32, i32)]) -> Set {
    with(set, Beyond { reserved: Reserved::new(ranges.iter().copied()), ..Beyond::default() })
}

fn terminating(pod: Pod) -> Pod {
    Pod { terminating: true, ..pod }
}

/// A pod that never worked, for this reason.
fn never(pod: Pod, trouble: Trouble) -> Pod {
    Pod { trouble, was_ready: Some(false), phase: PodPhase::Pending, ..unready(pod) }
}

fn recreating(set: Set) -> Set {
    Set { strategy: Strategy::Recreate, ..set }
}

#[test]
fn recreate_takes_all_old_pods_down_at_once_and_waits_until_they_are_gone() {
    let set = recreating(set(2));
    let old = || [pod(0, OLD), unready(pod(1, OLD)), pod(5, OLD)];
    assert_eq!(decide(set.clone(), old()), ["-web-0", "-web-1", "-web-5"]);
    assert!(decide(set.clone(), old().map(terminating)).is_empty());
    assert!(decide(set.clone(), [pod(0, NEW), terminating(pod(5, OLD))]).is_empty(), "not beside an old one");
    assert_eq!(decide(set.clone(), []), ["+web-0 web-new"]);
    assert_eq!(decide(set.clone(), [pod(0, NEW)]), ["+web-1 web-new"]);
    assert!(decide(set, [unready(pod(0, NEW))]).is_empty(), "OrderedReady holds for the new ones");
}

fn progressing(plan: &Plan) -> (Truth, &str) {
    let found = plan.status.condition(ConditionKind::Progressing).expect("it is always said");
    (found.truth, &found.reason)
}

#[test]
fn recreate_says_when_it_begins_and_when_it_is_over() {
    let started = plan(&observed(recreating(set(1)), [pod(0, OLD)]), NOW);
    assert_eq!(progressing(&started), (Truth::True, "RecreateInProgress"));
    let told: Vec<_> = started.events.iter().map(|e| (e.reason, e.message.as_str())).collect();
    assert_eq!(told, [("RecreateStarted", "Deleting all pods for Recreate update")]);
    let over = plan(&observed(recreating(set(1)), [pod(0, NEW)]), NOW);
    assert_eq!(progressing(&over), (Truth::True, "RecreateComplete"));
}

#[test]
fn conditions_say_what_is_available_and_keep_their_time() {
    let mut view = observed(set(2), [pod(0, NEW), unready(pod(1, NEW))]);
    let first = plan(&view, NOW).status;
    let available = first.condition(ConditionKind::Available).expect("it is always said").clone();
    assert_eq!((available.truth, available.message.as_str()), (Truth::False, "1 of 2 replicas are available"));
    view.set.status = first;
    let again = plan(&view, NOW + 5_000);
    assert_eq!(again.status.condition(ConditionKind::Available), Some(&available));
    assert!(again.is_idle(&view.set), "nothing new is to be said");
}

#[test]
fn a_reserved_ordinal_is_left_out_and_the_partition_counts_positions() {
    let spec = reserving(set(3), &[(1, 1)]);
    assert_eq!(decide(parallel(spec.clone()), []), ["+web-0 web-new", "+web-2 web-new", "+web-3 web-new"]);
    assert_eq!(decide(spec.clone(), [pod(0, NEW)]), ["+web-2 web-new"], "order means desired predecessors");
    let partition = Set { strategy: rolling(2, Unavailable::Count(1)), ..spec };
    assert_eq!(decide(partition.clone(), [pod(0, OLD), pod(2, OLD), pod(3, OLD)]), ["-web-3"]);
    assert!(decide(partition, [pod(0, OLD), pod(2, OLD), pod(3, NEW)]).is_empty());
    let from = Set { start: 1, ..reserving(set(2), &[(0, 2)]) };
    assert_eq!(decide(parallel(from), []), ["+web-3 web-new", "+web-4 web-new"]);
}

#[test]
fn a_live_ordinal_that_is_reserved_goes_before_another_takes_its_place() {
    for policy in [Management::OrderedReady, Management::Parallel] {
        let spec = Set { management: policy, ..reserving(set(3), &[(1, 1)]) };
        let pods = || [pod(0, NEW), pod(1, NEW), pod(2, NEW)];
        assert_eq!(decide(spec.clone(), pods()), ["-web-1"], "{policy:?}");
        assert_eq!(
            reasons(spec.clone(), pods()),
            ["web-3 is not created: it stands in for web-1, which goes first because its ordinal is reserved"]
        );
        assert!(decide(spec.clone(), [pod(0, NEW), terminating(pod(1, NEW)), pod(2, NEW)]).is_empty());
        assert_eq!(decide(spec.clone(), [pod(0, NEW), pod(2, NEW)]), ["+web-3 web-new"]);
        let unready = [unready(pod(0, NEW)), pod(1, NEW), pod(2, NEW)];
        assert!(decide(spec, unready).is_empty(), "all other desired pods are available first");
    }
    let two = reserving(set(3), &[(0, 1)]);
    assert_eq!(decide(parallel(two), [pod(0, NEW), pod(1, NEW), pod(2, NEW)]), ["-web-1"], "one at a time");
}

#[test]
fn claims_of_a_reserved_ordinal_are_kept_marked_and_not_used_by_accident() {
    let spec = Set { when_scaled: Retention::Delete, ..reserving(set(1), &[(0, 0)]) };
    let live = with_claim(spec.clone(), claim(Vec::new(), false), [pod(0, NEW)]);
    assert_eq!(live, ["mark data-web-0 Reserved", "-web-0"], "whatever whenScaled says");
    let armed = claim(vec![owned_by_pod("uid-web-0")], false);
    let disarmed = with_claim(spec, armed, [pod(0, NEW)]);
    assert_eq!(disarmed, ["owners data-web-0 0", "mark data-web-0 Reserved", "-web-0"]);
    let kept = Claim { reserved: true, ..claim(Vec::new(), false) };
    let refused = with_claim(set(1), kept.clone(), []);
    assert!(refused[0].contains("statefuld.io/reuse=true"), "{refused:?}");
    let allowed = with_claim(set(1), Claim { reuse: true, ..kept }, []);
    assert_eq!(allowed, ["+web-0 web-new", "mark data-web-0 Reused"]);
}

#[test]
fn a_changed_override_replaces_its_pod_by_the_normal_rules() {
    let hash = |n: i32, hash: &str| Beyond { overrides: BTreeMap::from([(n, hash.to_owned())]), ..Beyond::default() };
    let carrying = |pod: Pod, hash: &str| Pod { override_hash: Some(hash.to_owned()), ..pod };
    let pods = || [pod(0, NEW), carrying(pod(1, NEW), "a"), pod(2, NEW)];
    assert!(decide(with(set(3), hash(1, "a")), pods()).is_empty());
    assert_eq!(decide(with(set(3), hash(1, "b")), pods()), ["-web-1"]);
    assert_eq!(decide(set(3), pods()), ["-web-1"], "an override that is taken back");
    let below = Set { strategy: rolling(2, Unavailable::Count(1)), ..with(set(3), hash(1, "b")) };
    assert!(decide(below, pods()).is_empty(), "the partition holds it");
    let by_hand = Set { strategy: Strategy::OnDelete, ..with(set(3), hash(1, "b")) };
    assert!(decide(by_hand, pods()).is_empty());
    let status = plan(&observed(with(set(3), hash(1, "b")), pods()), NOW).status;
    assert_eq!(status.updated, 2);
}

fn recovering(set: Set) -> Set {
    with(set, Beyond { replace_broken: true, ..Beyond::default() })
}

#[test]
fn a_broken_pod_of_an_old_revision_is_replaced_from_the_top_one_at_a_time() {
    let broken = |n| never(pod(n, OLD), Trouble::Container);
    assert!(decide(set(3), [pod(0, OLD), broken(1), broken(2)]).is_empty(), "without the annotation it waits");
    assert_eq!(decide(recovering(set(3)), [pod(0, OLD), broken(1), broken(2)]), ["-web-2"]);
    assert!(decide(recovering(set(3)), [pod(0, OLD), broken(1), terminating(broken(2))]).is_empty());
    assert_eq!(decide(recovering(set(3)), [pod(0, OLD), broken(1)]), ["-web-1"]);
    let misfit = never(pod(2, OLD), Trouble::Misfit);
    assert_eq!(decide(recovering(set(3)), [pod(0, OLD), pod(1, OLD), misfit]), ["-web-2"], "an unschedulable one");
}

#[test]
fn what_may_still_work_or_is_not_to_blame_is_not_replaced() {
    let kept = [
        ("merely slow", never(pod(1, OLD), Trouble::None)),
        ("waits for a volume", never(pod(1, OLD), Trouble::Outside)),
        ("on a lost node", never(pod(1, OLD), Trouble::NodeLost)),
        ("was ready once", Pod { was_ready: Some(true), ..never(pod(1, OLD), Trouble::Container) }),
        ("nobody knows", Pod { was_ready: None, ..never(pod(1, OLD), Trouble::Container) }),
        ("at the target", never(pod(1, NEW), Trouble::Container)),
    ];
    for (why, pod1) in kept {
        assert!(decide(recovering(set(2)), [pod(0, OLD), pod1]).is_empty(), "{why}");
    }
    let below = Set { strategy: rolling(2, Unavailable::Count(1)), ..recovering(set(2)) };
    assert!(decide(below, [pod(0, OLD), never(pod(1, OLD), Trouble::Container)]).is_empty(), "below the partition");
}

#[test]
fn a_running_pod_that_is_not_ready_is_broken_only_after_the_deadline() {
    let beyond = Beyond { replace_broken: true, deadline_seconds: Some(60), ..Beyond::default() };
    let since = |created| {
        let slow = Pod { phase: PodPhase::Running, created, ..never(pod(1, OLD), Trouble::None) };
        plan(&observed(with(set(2), beyond.clone()), [pod(0, OLD), slow]), NOW)
    };
    assert!(acts(&since(NOW - 59_000)).is_empty());
    assert_eq!(since(NOW - 59_000).look_again, Some(1_000));
    assert_eq!(acts(&since(NOW - 60_000)), ["-web-1"]);
}

fn deadline(rollback: bool) -> Beyond {
    Beyond { deadline_seconds: Some(60), rollback, ..Beyond::default() }
}

fn in_progress(set: Set, since: i64) -> Set {
    let condition = Condition {
        kind: ConditionKind::Progressing,
        truth: Truth::True,
        reason: "RolloutInProgress".into(),
        message: String::new(),
        since,
    };
    let status = Status { conditions: vec![condition], ..set.status.clone() };
    Set { status, ..set }
}

fn stuck(created: i64) -> Pod {
    Pod { created, ..never(pod(1, NEW), Trouble::Container) }
}

#[test]
fn a_rollout_that_stands_still_is_told_and_nothing_else() {
    let at =
        |created| plan(&observed(in_progress(with(set(2), deadline(false)), 0), [pod(0, OLD), stuck(created)]), NOW);
    let going = at(NOW - 59_000);
    assert_eq!((progressing(&going), going.look_again), ((Truth::True, "RolloutInProgress"), Some(1_000)));
    let over = at(NOW - 60_000);
    assert_eq!(progressing(&over), (Truth::False, "ProgressDeadlineExceeded"));
    assert_eq!(over.events.iter().map(|e| e.reason).collect::<Vec<_>>(), ["ProgressDeadlineExceeded"]);
    assert!(acts(&over).is_empty() && over.prologue.is_empty());
}

#[test]
fn the_clock_starts_again_with_each_pod_that_becomes_available_and_with_the_rollout() {
    let arrived = Pod { ready_since: Some(NOW - 10_000), ..pod(0, NEW) };
    let spec = in_progress(with(parallel(set(2)), deadline(false)), 0);
    let plan1 = plan(&observed(spec, [arrived, stuck(NOW - 90_000)]), NOW);
    assert_eq!((progressing(&plan1).0, plan1.look_again), (Truth::True, Some(50_000)));
    let fresh = in_progress(with(set(2), deadline(false)), NOW - 5_000);
    let plan2 = plan(&observed(fresh, [pod(0, OLD), stuck(NOW - 90_000)]), NOW);
    assert_eq!(plan2.look_again, Some(55_000));
}

#[test]
fn the_clock_stands_while_the_cause_is_outside_of_the_template_and_goes_on_from_there() {
    let outside = Pod { trouble: Trouble::Outside, ..stuck(NOW - 40_000) };
    let mut view = observed(in_progress(with(set(2), deadline(false)), NOW - 40_000), [pod(0, OLD), outside.clone()]);
    let paused = plan(&view, NOW);
    assert_eq!(progressing(&paused), (Truth::Unknown, "ProgressPaused"));
    view.set.status = paused.status;
    let later = NOW + 1_000_000;
    assert!(plan(&view, later).is_idle(&view.set), "said once");
    view.pods[1].pod = Arc::new(Pod { trouble: Trouble::Container, ..outside });
    let resumed = plan(&view, later);
    assert_eq!((progressing(&resumed).0, resumed.look_again), (Truth::True, Some(20_000)));
    view.set.status = resumed.status;
    assert_eq!(plan(&view, later + 5_000).look_again, Some(15_000));
    assert_eq!(progressing(&plan(&view, later + 20_000)), (Truth::False, "ProgressDeadlineExceeded"));
}

#[test]
fn a_complete_rollout_is_not_undone_by_a_pod_that_fails_later() {
    let mut view = observed(with(set(1), deadline(true)), [pod(0, NEW)]);
    view.set.status = plan(&view, NOW).status;
    assert_eq!(
        view.set.status.condition(ConditionKind::Progressing).map(|c| c.reason.as_str()),
        Some("RolloutComplete")
    );
    view.pods[0].pod = Arc::new(unready(pod(0, NEW)));
    assert_eq!(progressing(&plan(&view, NOW + 1_000_000)), (Truth::True, "RolloutComplete"));
}

#[test]
fn a_failed_revision_is_held_and_only_its_never_ready_pods_go_back() {
    let view = |retry: &str, pods: Vec<Pod>| {
        let beyond = Beyond { retry: retry.into(), ..deadline(true) };
        let mut view = observed(in_progress(with(set(4), beyond), 0), pods);
        view.revisions[1].held = Some(String::new());
        view
    };
    let worked = Pod { was_ready: Some(true), ..unready(pod(3, NEW)) };
    let never2 = never(pod(2, NEW), Trouble::Container);
    let pods = vec![pod(0, OLD), pod(1, OLD), never2.clone(), worked.clone()];
    let held = plan(&view("", pods.clone()), NOW);
    assert_eq!(acts(&held), ["-web-2"]);
    assert_eq!(progressing(&held), (Truth::False, "ProgressDeadlineExceeded"));
    assert_eq!(held.status.update_revision, NEW, "so that rollout status goes on failing");
    let gone = vec![pod(0, OLD), pod(1, OLD), worked];
    assert_eq!(acts(&plan(&view("", gone), NOW)), ["+web-2 web-old"], "at the current revision");
    let back: Vec<Pod> = (0..4).map(|n| pod(n, OLD)).collect();
    let quiet = plan(&view("", back.clone()), NOW);
    assert!(acts(&quiet).is_empty() && progressing(&quiet).0 == Truth::False, "it stays so");
    assert_eq!(acts(&plan(&view("again", back), NOW)), ["-web-3"], "a new value of retry tries again");
}

#[test]
fn a_rollout_past_its_deadline_is_held_first_and_only_with_an_earlier_revision() {
    let pods = || [pod(0, OLD), stuck(0)];
    let first = plan(&observed(in_progress(with(set(2), deadline(true)), 0), pods()), NOW);
    let hold = first.prologue.hold.expect("the revision is to be marked");
    assert_eq!((hold.name.as_str(), hold.retry.as_str()), (NEW, ""));
    let mut spec = in_progress(with(set(2), deadline(true)), 0);
    spec.status.current_revision = NEW.into();
    let none = plan(&observed(spec, pods()), NOW);
    assert!(none.prologue.hold.is_none());
    assert_eq!(progressing(&none).0, Truth::False, "condition only");
    let (calls, verdict, told) =
        execute(observed(in_progress(with(set(2), deadline(true)), 0), pods()), |call| match call {
            Call::HoldRevision { name, retry, .. } => {
                Answer::Revision(Revision { held: Some(retry.clone()), ..revision(name, 2, "new") })
            }
            _ => Answer::Done { version: 1 },
        });
    let kinds: Vec<&str> = calls
        .iter()
        .map(|c| match c {
            Call::HoldRevision { .. } => "hold",
            Call::Act(Act::DeletePod { .. }) => "delete",
            Call::WriteStatus { .. } => "status",
            _ => "other",
        })
        .collect();
    assert_eq!((kinds.as_slice(), verdict), (["hold", "delete", "status"].as_slice(), Verdict::Settled));
    assert!(told.iter().any(|t| t.contains("is held back at web-old")), "{told:?}");
}

#[test]
fn an_ordered_deletion_goes_from_the_top_whatever_is_ready_and_then_lets_go() {
    let leaving = |policy| Set {
        deleting: true,
        management: policy,
        ..with(set(3), Beyond { ordered_deletion: true, ..Beyond::default() })
    };
    for policy in [Management::OrderedReady, Management::Parallel] {
        let set = leaving(policy);
        assert_eq!(decide(set.clone(), [pod(0, NEW), unready(pod(1, NEW)), unready(pod(2, NEW))]), ["-web-2"]);
        assert!(
            decide(set.clone(), [pod(0, NEW), terminating(pod(2, NEW))]).is_empty(),
            "each waits for the one above"
        );
        assert_eq!(decide(set.clone(), [pod(0, NEW), pod(2, NEW)]), ["-web-2"], "a missing one is not made");
        assert_eq!(decide(set.clone(), [pod(0, NEW), pod(7, NEW)]), ["-web-7"]);
        assert_eq!(decide(set.clone(), []), ["let go"]);
        let lost = Pod { trouble: Trouble::NodeLost, ..terminating(pod(1, NEW)) };
        assert_eq!(
            reasons(set, [pod(0, NEW), lost]),
            ["web-0 is not deleted: web-1 goes first", "web-1 is not deleted: nothing is heard of the node of it"]
        );
    }
    assert!(
        decide(Set { deleting: true, ..set(1) }, [pod(0, NEW)]).is_empty(),
        "without the finalizer nobody orders it"
    );
}

#[test]
fn claims_follow_when_deleted_alone_in_an_ordered_deletion() {
    for (when_deleted, when_scaled, owners) in [
        (Retention::Retain, Retention::Retain, 0),
        (Retention::Retain, Retention::Delete, 0),
        (Retention::Delete, Retention::Retain, 1),
        (Retention::Delete, Retention::Delete, 1),
    ] {
        let beyond = Beyond { ordered_deletion: true, ..Beyond::default() };
        let set = Set { deleting: true, when_deleted, when_scaled, ..with(set(0), beyond) };
        let armed = claim(vec![owned_by_pod("uid-web-0")], false);
        let acts = with_claim(set, armed, [pod(0, NEW)]);
        let expected = [format!("owners data-web-0 {owners}"), "-web-0".to_owned()];
        assert_eq!(acts, expected, "{when_deleted:?} {when_scaled:?}");
    }
}

#[test]
fn claims_grow_with_their_template_and_are_never_shrunk() {
    let sized =
        |size| with(set(1), Beyond { claim_sizes: BTreeMap::from([("data".to_owned(), size)]), ..Beyond::default() });
    let mut ready = pod(0, NEW);
    ready.volumes.insert("data".into(), "data-web-0".into());
    let has = |requested| Claim { requested, ..claim(Vec::new(), false) };
    assert_eq!(with_claim(sized(20), has(10), [ready.clone()]), ["grow data-web-0"]);
    assert!(with_claim(sized(20), has(20), [ready.clone()]).is_empty());
    assert!(with_claim(sized(20), has(30), [ready.clone()]).is_empty());
    assert!(with_claim(set(1), has(10), [ready]).is_empty(), "not without the annotation");
    assert_eq!(with_claim(sized(20), has(10), []), ["+web-0 web-new", "grow data-web-0"], "when next used");
}

#[test]
fn protection_is_copied_to_claims_and_taken_off_when_it_is_said_so() {
    let protecting = |protect| with(set(1), Beyond { protect, ..Beyond::default() });
    let mut ready = pod(0, NEW);
    ready.volumes.insert("data".into(), "data-web-0".into());
    let bare = claim(Vec::new(), false);
    let protected = Claim { protected: true, ..bare.clone() };
    assert_eq!(with_claim(protecting(Some(true)), bare, [ready.clone()]), ["mark data-web-0 Protected"]);
    assert!(with_claim(protecting(Some(true)), protected.clone(), [ready.clone()]).is_empty());
    assert_eq!(
        with_claim(protecting(Some(false)), protected.clone(), [ready.clone()]),
        ["mark data-web-0 Unprotected"]
    );
    assert!(with_claim(protecting(None), protected, [ready]).is_empty());
}

#[test]
fn a_changed_service_name_is_carried_out_by_a_rolling_restart() {
    let spec =
        |carry_out| Set { service_name: "new".into(), ..with(set(2), Beyond { carry_out, ..Beyond::default() }) };
    let at = |n, subdomain: &str| Pod { subdomain: subdomain.into(), ..pod(n, NEW) };
    assert_eq!(decide(spec(true), [at(0, "old"), at(1, "old")]), ["-web-1"]);
    assert_eq!(decide(spec(true), [at(0, "old"), at(1, "new")]), ["-web-0"]);
    assert!(decide(spec(false), [at(0, "old"), at(1, "old")]).is_empty());
}

#[test]
fn a_claim_template_that_is_added_reaches_pods_when_they_are_made_again() {
    let beyond = Beyond { carry_out: true, ..Beyond::default() };
    let spec = Set { claim_templates: vec!["data".into()], ..with(set(1), beyond) };
    assert!(decide(spec.clone(), [pod(0, NEW)]).is_empty());
    assert_eq!(decide(spec, []), ["claim data-web-0", "+web-0 web-new"]);
}

#[test]
fn nothing_is_deleted_while_an_annotation_is_wrong() {
    let wrong = Beyond { invalid: Some("statefuld.io/rollback: no such value".into()), ..Beyond::default() };
    let view = observed(with(set(2), wrong), [pod(0, OLD), pod(1, OLD), pod(2, OLD)]);
    let plan1 = plan(&view, NOW);
    assert!(acts(&plan1).is_empty());
    let said = plan1.status.condition(ConditionKind::Invalid).expect("it is said");
    assert_eq!((said.truth, said.message.as_str()), (Truth::True, "statefuld.io/rollback: no such value"));
    assert!(
        plan1.reasons.iter().all(|r| r.to_string().contains("while an annotation is wrong")),
        "{:?}",
        plan1.reasons
    );
}

#[test]
fn deadline_with_partition_judges_only_what_the_partition_lets_through() {
    let spec = Set { strategy: rolling(1, Unavailable::Count(1)), ..in_progress(with(set(2), deadline(true)), 0) };
    let done = plan(&observed(spec.clone(), [pod(0, OLD), pod(1, NEW)]), NOW);
    assert_eq!(progressing(&done), (Truth::True, "RolloutComplete"));
    let standing = plan(&observed(spec, [pod(0, OLD), stuck(0)]), NOW);
    assert_eq!(progressing(&standing).0, Truth::False);
    assert!(standing.prologue.hold.is_some());
}

#[test]
fn overrides_survive_a_rollback_of_the_template() {
    let beyond = Beyond { overrides: BTreeMap::from([(1, "a".to_owned())]), ..Beyond::default() };
    let mut view =
        observed(with(set(2), beyond), [pod(0, NEW), Pod { override_hash: Some("a".into()), ..pod(1, NEW) }]);
    view.set.data = Blob::new(&b"old"[..]);
    view.set.meaning = view.set.data.clone();
    let (calls, ..) = execute(view, |call| match call {
        Call::NumberRevision { name, number, .. } => Answer::Revision(revision(name, *number, "old")),
        _ => Answer::Done { version: 1 },
    });
    assert!(matches!(&calls[0], Call::NumberRevision { name, .. } if name == OLD), "the old name is used again");
    assert!(calls.iter().any(|c| matches!(c, Call::Act(Act::DeletePod { name, .. }) if name == "web-1")));
}

#[test]
fn an_ordered_set_removes_nothing_while_a_pod_of_a_reserved_ordinal_still_goes() {
    let moved = Set { start: 1, ..reserving(set(1), &[(1, 1)]) };
    let pods = || [pod(0, NEW), terminating(pod(1, NEW))];
    assert!(decide(moved.clone(), pods()).is_empty());
    assert!(reasons(moved.clone(), pods()).contains(&"web-0 is not deleted: web-1 is being stopped".to_owned()));
    assert_eq!(decide(parallel(moved.clone()), pods()), ["-web-0"]);
    assert_eq!(decide(moved, [pod(0, NEW), pod(2, NEW)]), ["-web-0"]);
}

#[test]
fn reserved_ordinals_respect_start_partition_and_budget_together() {
    let strategy = rolling(1, Unavailable::Count(2));
    let spec = Set { start: 2, strategy, when_scaled: Retention::Delete, ..reserving(set(4), &[(3, 3), (5, 5)]) };
    // Desired: 2, 4, 6, 7; the partition keeps the first position.
    assert_eq!(decide(spec, [pod(2, OLD), pod(4, OLD), pod(6, OLD), pod(7, OLD)]), ["-web-7", "-web-6"]);
}
