//! What jobs decide, and that pods are counted once whatever happens in between.

use proptest::prelude::*;

use super::*;

/// A cluster around plans: the status and the pods are as the plans leave them.
struct World {
    view: Observed,
    now: Millis,
    made: usize,
    events: Vec<&'static str>,
}

impl World {
    fn new(change: impl FnOnce(&mut Job)) -> Self {
        let mut job = Job { parallelism: 1, completions: Some(1), backoff_limit: 6, ..Job::default() };
        change(&mut job);
        Self { view: Observed { job, pods: vec![] }, now: 1_000_000, made: 0, events: vec![] }
    }

    /// Carries out a plan up to its `calls`-th call; all of it without a bound.
    fn follow(&mut self, mut calls: usize) -> Plan {
        let plan = plan(&self.view, self.now);
        let mut next = || {
            let go = calls > 0;
            calls = calls.saturating_sub(1);
            go
        };
        for (_, uid) in plan.drop.iter().chain(&plan.delete) {
            if next() {
                let dropped = plan.drop.iter().any(|(_, other)| other == uid);
                let pod = self.pod(uid);
                pod.terminating = true;
                pod.tracked &= !dropped;
            }
        }
        for index in &plan.create {
            if next() {
                let name = format!("p{}", self.made);
                self.made += 1;
                self.view.pods.push(Pod {
                    uid: name.clone(),
                    name,
                    owned: true,
                    matches: true,
                    tracked: true,
                    node: "n".into(),
                    index: *index,
                    created: self.now,
                    ..Pod::default()
                });
            }
        }
        if next() {
            self.view.job.status = plan.status.clone();
            self.events.extend(plan.events.iter().map(|event| event.reason));
            for (_, uid) in &plan.untrack {
                if next() {
                    self.pod(uid).tracked = false;
                }
            }
        }
        // What holds nothing and is deleted goes.
        self.view.pods.retain(|p| !p.terminating || p.tracked);
        plan
    }

    fn pod(&mut self, uid: &str) -> &mut Pod {
        self.view.pods.iter_mut().find(|p| p.uid == uid).expect("is there")
    }

    /// Ends the first active pod.
    fn end_one(&mut self, phase: Phase) -> bool {
        let now = self.now;
        let Some(pod) = self.view.pods.iter_mut().find(|p| p.is_active()) else { return false };
        (pod.phase, pod.ended) = (phase, now);
        true
    }

    fn settle(&mut self) {
        for _ in 0..20 {
            self.now += 700_000;
            self.follow(usize::MAX);
        }
    }

    fn is(&self, kind: &str) -> bool {
        condition::holds(&self.view.job.status.conditions, kind)
    }
}

#[test]
fn a_job_runs_its_pod_and_is_complete() {
    let mut world = World::new(|_| {});
    world.settle();
    let status = &world.view.job.status;
    assert_eq!((status.active, world.view.pods.len(), world.is("Complete")), (1, 1, false));
    assert!(status.start.is_some());
    world.end_one(Phase::Succeeded);
    world.follow(usize::MAX);
    assert_eq!(world.view.job.status.uncounted_succeeded, ["p0"]);
    assert!(world.is("SuccessCriteriaMet") && !world.is("Complete"), "it is not counted yet");
    world.settle();
    let status = &world.view.job.status;
    assert_eq!((status.succeeded, status.active, status.uncounted_succeeded.len()), (1, 0, 0));
    assert!(world.is("Complete") && status.completion.is_some());
    assert_eq!(world.events, ["Completed"]);
}

#[test]
fn failures_wait_longer_each_time_until_there_are_too_many() {
    let mut world = World::new(|job| job.backoff_limit = 2);
    world.follow(usize::MAX);
    for (failures, wait) in [(1, 10_000), (2, 20_000)] {
        world.now += 100_000;
        world.end_one(Phase::Failed);
        assert_eq!(world.follow(usize::MAX).look_again, Some(world.now + wait), "{failures}");
        world.now += wait;
        world.follow(usize::MAX);
        assert_eq!(world.made, failures + 1);
    }
    world.end_one(Phase::Failed);
    world.settle();
    assert!(world.is("FailureTarget") && world.is("Failed"));
    assert_eq!((world.view.job.status.failed, world.events.as_slice()), (3, &["BackoffLimitExceeded"][..]));
}

#[test]
fn pods_run_side_by_side_and_no_more_than_are_needed() {
    let mut world = World::new(|job| (job.parallelism, job.completions) = (3, Some(4)));
    world.follow(usize::MAX);
    assert_eq!(world.view.job.status.active, 3);
    world.end_one(Phase::Succeeded);
    world.follow(usize::MAX);
    world.end_one(Phase::Succeeded);
    world.settle();
    assert_eq!((world.made, world.view.job.status.active), (4, 2));
    while world.end_one(Phase::Succeeded) {}
    world.settle();
    assert!(world.is("Complete"));
    assert_eq!((world.view.job.status.succeeded, world.made), (4, 4));
}

#[test]
fn a_queue_ends_with_its_first_success() {
    let mut world = World::new(|job| (job.parallelism, job.completions) = (2, None));
    world.follow(usize::MAX);
    world.end_one(Phase::Succeeded);
    world.settle();
    assert_eq!((world.made, world.is("Complete")), (2, false));
    world.end_one(Phase::Failed);
    world.settle();
    assert_eq!((world.made, world.is("Complete")), (2, true));
}

#[test]
fn indexes_are_all_done_each_by_one_pod() {
    let mut world = World::new(|job| (job.parallelism, job.completions, job.indexed) = (2, Some(4), true));
    world.follow(usize::MAX);
    let indexes = |world: &World| world.view.pods.iter().map(|p| p.index).collect::<Vec<_>>();
    assert_eq!(indexes(&world), [Some(0), Some(1)]);
    world.end_one(Phase::Failed);
    world.settle();
    assert_eq!(indexes(&world), [Some(0), Some(1), Some(0)]);
    for _ in 0..4 {
        while world.end_one(Phase::Succeeded) {}
        world.settle();
    }
    let status = &world.view.job.status;
    assert_eq!((status.completed_indexes.as_str(), status.succeeded, status.failed), ("0-3", 4, 1));
    assert!(world.is("Complete"));
}

#[test]
fn two_pods_of_one_index_become_one() {
    let mut world = World::new(|job| (job.parallelism, job.completions, job.indexed) = (2, Some(2), true));
    world.follow(usize::MAX);
    world.view.pods[1].index = Some(0);
    world.settle();
    let indexes: Vec<_> = world.view.pods.iter().map(|p| p.index).collect();
    assert_eq!((indexes, world.view.job.status.failed), (vec![Some(0), Some(1)], 0));
}

#[test]
fn a_deadline_ends_what_runs() {
    let mut world = World::new(|job| job.deadline_seconds = Some(60));
    assert_eq!(world.follow(usize::MAX).look_again, Some(1_060_000));
    world.now += 60_000;
    world.settle();
    assert!(world.is("Failed"));
    assert_eq!((world.events.as_slice(), world.view.job.status.failed), (&["DeadlineExceeded"][..], 1));
    assert_eq!(world.view.pods, []);
}

#[test]
fn while_suspended_nothing_runs_and_nothing_counts() {
    let mut world = World::new(|job| job.deadline_seconds = Some(10_000_000));
    world.settle();
    world.view.job.suspend = true;
    world.settle();
    assert_eq!((world.view.pods.len(), world.view.job.status.failed, world.is("Suspended")), (0, 0, true));
    world.view.job.suspend = false;
    let now = world.now;
    world.settle();
    assert_eq!((world.view.pods.len(), world.is("Suspended")), (1, false));
    assert!(world.view.job.status.start.is_some_and(|start| start > now), "its time begins anew");
    assert_eq!(world.events, ["Suspended", "Resumed"]);
}

#[test]
fn a_deleted_pod_is_a_failure_and_is_replaced() {
    let mut world = World::new(|_| {});
    world.settle();
    world.view.pods[0].terminating = true;
    world.settle();
    assert_eq!((world.made, world.view.job.status.failed), (2, 1));
}

#[test]
fn where_only_failed_pods_are_replaced_those_on_their_way_out_are_waited_for() {
    let mut world = World::new(|job| job.replaces_failed_only = true);
    world.settle();
    world.view.pods[0].terminating = true;
    world.settle();
    assert_eq!((world.made, world.view.job.status.failed, world.view.job.status.terminating), (1, 0, Some(1)));
    world.view.pods[0].phase = Phase::Failed;
    world.settle();
    assert_eq!((world.made, world.view.job.status.failed), (2, 1));
}

#[test]
fn containers_that_are_restarted_in_place_count_too() {
    let mut world = World::new(|job| (job.restarts_in_place, job.backoff_limit) = (true, 3));
    world.settle();
    world.view.pods[0].all_restarts = 2;
    world.settle();
    assert!(!world.is("FailureTarget"));
    world.view.pods[0].all_restarts = 3;
    world.settle();
    assert!(world.is("Failed"));
}

#[test]
fn pods_of_a_job_that_goes_or_has_ended_are_not_held() {
    let mut world = World::new(|_| {});
    world.settle();
    world.view.job.deleting = true;
    let plan = plan(&world.view, world.now);
    assert_eq!((plan.untrack.len(), plan.create.len(), plan.delete.len()), (1, 0, 0));
}

proptest! {
    /// The controller stops after any number of calls, again and again; pods end well, badly, or are deleted.
    #[test]
    fn every_pod_is_counted_once_wherever_the_controller_stops(
        steps in proptest::collection::vec((0..5u8, 0..6usize), 1..60), indexed in any::<bool>(),
    ) {
        let mut world = World::new(|job| {
            (job.parallelism, job.completions, job.indexed) = (3, Some(6), indexed);
            job.backoff_limit = 1000;
        });
        let (mut succeeded, mut failed) = (0, 0);
        for (what, calls) in steps {
            world.now += 700_000;
            match what {
                0 => succeeded += i32::from(world.end_one(Phase::Succeeded)),
                1 => failed += i32::from(world.end_one(Phase::Failed)),
                2 => {
                    let running = world.view.pods.iter_mut().find(|p| p.is_active() && p.tracked);
                    failed += i32::from(running.is_some());
                    running.into_iter().for_each(|p| p.terminating = true);
                }
                _ => {}
            }
            world.follow(calls);
        }
        world.settle();
        while !world.is("Complete") {
            while world.end_one(Phase::Succeeded) {
                succeeded += 1;
            }
            world.settle();
        }
        let status = &world.view.job.status;
        prop_assert_eq!((status.succeeded, status.failed), (succeeded, failed));
        prop_assert_eq!(status.succeeded, 6);
        prop_assert!(!world.view.pods.iter().any(|p| p.tracked));
    }
}
