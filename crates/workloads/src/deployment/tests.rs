//! What deployments decide, and where following the plans leads.

use proptest::prelude::*;

use super::types::Strategy;
use super::*;

fn rolling(surge: Amount, unavailable: Amount) -> Strategy {
    Strategy::Rolling { surge, unavailable }
}

fn deployment(replicas: i32) -> Deployment {
    Deployment {
        name: "web".into(),
        generation: 1,
        replicas,
        strategy: rolling(Amount::Percent(25), Amount::Percent(25)),
        history_limit: 10,
        deadline_seconds: 600,
        template: "one".into(),
        ..Deployment::default()
    }
}

/// A cluster around plans: sets obey, and their pods are available as soon as `step` lets them.
struct World {
    view: Observed,
    now: Millis,
    events: Vec<String>,
    /// Templates whose pods never become available.
    broken: Vec<String>,
}

impl World {
    fn new(deployment: Deployment) -> Self {
        Self { view: Observed { deployment, sets: vec![] }, now: 1_000_000, events: vec![], broken: vec![] }
    }

    /// Carries out one plan; tells whether it did anything.
    fn follow(&mut self) -> bool {
        let plan = plan(&self.view, self.now);
        for step in &plan.steps {
            self.events.extend(step.events.iter().map(|event| event.message.clone()));
            self.carry_out(&step.act);
        }
        !plan.steps.is_empty()
    }

    fn carry_out(&mut self, act: &Act) {
        let template = self.view.deployment.template.clone();
        let (now, count) = (self.now, self.view.sets.len());
        match act {
            Act::Adopt { name, .. } => self.set(name).owned = true,
            Act::Release { name, .. } => self.set(name).owned = false,
            Act::Create(new) => self.view.sets.push(Set {
                name: new.name.clone(),
                uid: format!("{}-{count}", new.name),
                owned: true,
                matches: true,
                created: now + count as i64,
                generation: 1,
                annotations: new.annotations.clone(),
                replicas: new.replicas,
                template,
                ..Set::default()
            }),
            Act::Update { name, replicas, annotations, .. } => {
                let set = self.set(name);
                set.replicas = *replicas;
                set.generation += 1;
                set.annotations.extend(annotations.clone());
            }
            Act::Delete { name, .. } => self.view.sets.retain(|set| set.name != *name),
            Act::NoteRevision(number) => {
                self.view.deployment.annotations.insert(REVISION.to_owned(), number.clone());
                self.view.deployment.generation += 1;
            }
            Act::WriteStatus(status) => self.view.deployment.status = status.clone(),
        }
    }

    fn set(&mut self, name: &str) -> &mut Set {
        self.view.sets.iter_mut().find(|set| set.name == name).expect("is there")
    }

    /// Every set makes or deletes its pods; those of broken templates are never available.
    fn obey(&mut self) {
        for set in &mut self.view.sets {
            let available = if self.broken.contains(&set.template) { 0 } else { set.replicas };
            (set.present, set.alive) = (set.replicas, set.replicas);
            (set.ready, set.available) = (available, available);
            set.observed_generation = set.generation;
        }
        self.now += 1000;
    }

    /// Until nothing more happens, with a bound that checks what must hold at every step.
    fn settle(&mut self) {
        for _ in 0..200 {
            let did = self.follow();
            self.check();
            self.obey();
            if !did && !self.follow() {
                return;
            }
        }
        panic!("goes on for ever: {:#?}", self.view);
    }

    /// Never more pods than wanted and surge, nor fewer available than wanted less those that may be missing.
    fn check(&self) {
        let deployment = &self.view.deployment;
        if !matches!(deployment.strategy, Strategy::Rolling { .. }) || deployment.paused {
            return;
        }
        let total: i32 = self.view.sets.iter().map(|set| set.replicas).sum();
        assert!(total <= deployment.replicas + deployment.surge(), "{:#?}", self.view);
    }

    /// Names of templates and sizes of the sets that have pods.
    fn sizes(&self) -> Vec<(&str, i32)> {
        let active = self.view.sets.iter().filter(|set| set.replicas > 0);
        active.map(|set| (set.template.as_str(), set.replicas)).collect()
    }

    fn condition(&self, kind: &str) -> &Condition {
        condition::find(&self.view.deployment.status.conditions, kind).expect("is there")
    }
}

#[test]
fn bounds_round_up_and_down_and_are_never_both_nothing() {
    let bounds = |replicas, surge, unavailable| {
        let deployment = Deployment { strategy: rolling(surge, unavailable), ..deployment(replicas) };
        (deployment.surge(), deployment.unavailable())
    };
    assert_eq!(bounds(10, Amount::Percent(25), Amount::Percent(25)), (3, 2));
    assert_eq!(bounds(1, Amount::Percent(25), Amount::Percent(25)), (1, 0));
    assert_eq!(bounds(1, Amount::Count(0), Amount::Percent(25)), (0, 1));
    assert_eq!(bounds(3, Amount::Count(2), Amount::Count(9)), (2, 3));
    assert_eq!(bounds(0, Amount::Count(2), Amount::Count(9)), (2, 0));
}

#[test]
fn a_first_set_is_made_with_all_pods_and_told() {
    let mut world = World::new(deployment(3));
    world.settle();
    assert_eq!(world.sizes(), [("one", 3)]);
    assert_eq!(world.events.len(), 1);
    assert!(world.events[0].starts_with("Scaled up replica set web-") && world.events[0].ends_with(" from 0 to 3"));
    let status = &world.view.deployment.status;
    assert_eq!((status.replicas, status.updated, status.available, status.unavailable), (3, 3, 3, 0));
    assert_eq!(world.condition(PROGRESSING).reason, "NewReplicaSetAvailable");
    assert_eq!(world.condition(AVAILABLE).truth, Truth::True);
    assert_eq!(world.view.deployment.annotations[REVISION], "1");
}

#[test]
fn a_new_template_replaces_the_old_one_and_going_back_makes_no_new_set() {
    let mut world = World::new(deployment(4));
    world.settle();
    world.view.deployment.template = "two".into();
    world.view.deployment.generation += 1;
    world.settle();
    assert_eq!(world.sizes(), [("two", 4)]);
    world.view.deployment.template = "one".into();
    world.view.deployment.generation += 1;
    world.settle();
    assert_eq!((world.sizes(), world.view.sets.len()), (vec![("one", 4)], 2));
    let annotations = &world.view.sets.iter().find(|set| set.template == "one").expect("is there").annotations;
    assert_eq!((&*annotations[REVISION], &*annotations[REVISION_HISTORY]), ("3", "1"));
    assert_eq!(world.view.deployment.annotations[REVISION], "3");
}

#[test]
fn pods_that_never_work_stop_a_rollout_within_its_bounds_and_it_is_called_late() {
    let mut world = World::new(deployment(4));
    world.settle();
    world.broken.push("two".into());
    world.view.deployment.template = "two".into();
    world.view.deployment.generation += 1;
    world.settle();
    assert_eq!(world.sizes(), [("one", 3), ("two", 2)]);
    let again = plan(&world.view, world.now).look_again.expect("looks at the deadline");
    world.now = again;
    world.settle();
    let progress = world.condition(PROGRESSING);
    assert_eq!((progress.truth, progress.reason.as_str()), (Truth::False, "ProgressDeadlineExceeded"));
    assert_eq!(plan(&world.view, world.now).look_again, None);
}

#[test]
fn recreate_waits_until_every_old_pod_is_gone() {
    let mut world = World::new(Deployment { strategy: Strategy::Recreate, ..deployment(2) });
    world.settle();
    world.view.deployment.template = "two".into();
    world.view.deployment.generation += 1;
    world.follow();
    world.obey();
    assert_eq!(world.sizes(), []);
    world.view.sets[0].alive = 1;
    world.follow();
    assert_eq!(world.sizes(), [], "a pod is on its way out still");
    world.view.sets[0].alive = 0;
    world.settle();
    assert_eq!(world.sizes(), [("two", 2)]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut world = World::new(deployment(2));
    world.settle();
    world.view.deployment.paused = true;
    world.view.deployment.template = "two".into();
    world.settle();
    assert_eq!(world.sizes(), [("one", 2)]);
    assert_eq!(world.condition(PROGRESSING).reason, "DeploymentPaused");
    world.view.deployment.replicas = 3;
    world.settle();
    assert_eq!(world.sizes(), [("one", 3)]);
    world.view.deployment.paused = false;
    world.settle();
    assert_eq!(world.sizes(), [("two", 3)]);
}

#[test]
fn in_the_middle_of_a_rollout_every_set_gets_its_share() {
    let mut world = World::new(deployment(10));
    world.settle();
    world.broken.push("two".into());
    world.view.deployment.template = "two".into();
    world.settle();
    assert_eq!(world.sizes(), [("one", 8), ("two", 5)]);
    world.view.deployment.replicas = 20;
    world.follow();
    // 25 in all: the larger gets the larger part of the twelve, and what is left over.
    assert_eq!(world.sizes(), [("one", 15), ("two", 10)]);
}

#[test]
fn old_sets_beyond_the_limit_go() {
    let mut world = World::new(Deployment { history_limit: 1, ..deployment(1) });
    for template in ["one", "two", "three", "four"] {
        world.view.deployment.template = template.into();
        world.view.deployment.generation += 1;
        world.settle();
    }
    let left: Vec<&str> = world.view.sets.iter().map(|set| set.template.as_str()).collect();
    assert_eq!(left, ["three", "four"]);
}

#[test]
fn a_set_of_nobody_is_taken_and_a_stranger_let_go() {
    let mut world = World::new(deployment(1));
    let orphan = Set { name: "o".into(), matches: true, template: "one".into(), replicas: 1, ..Set::default() };
    let stranger = Set { name: "s".into(), owned: true, template: "x".into(), replicas: 1, ..Set::default() };
    world.view.sets = vec![orphan, stranger];
    let plan = plan(&world.view, world.now);
    assert!(matches!(&plan.steps[0].act, Act::Adopt { name, .. } if name == "o"));
    assert!(matches!(&plan.steps[1].act, Act::Release { name, .. } if name == "s"));
    assert!(!plan.steps.iter().any(|step| matches!(step.act, Act::Create(_))));
}

#[test]
fn annotations_go_along_but_for_those_that_are_the_deployments_own() {
    let mut world = World::new(deployment(1));
    let annotations = [("team", "db"), ("kubectl.kubernetes.io/last-applied-configuration", "{}"), (REVISION, "9")];
    world.view.deployment.annotations = annotations.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    world.settle();
    let keys: Vec<&str> = world.view.sets[0].annotations.keys().map(String::as_str).collect();
    assert_eq!(keys, [DESIRED, MAX, REVISION, "team"]);
}

#[test]
fn a_name_that_is_taken_leads_to_another() {
    let mut world = World::new(deployment(1));
    let name = |world: &World| match &plan(&world.view, 0).steps[0].act {
        Act::Create(new) => new.name.clone(),
        other => panic!("{other:?}"),
    };
    let first = name(&world);
    world.view.deployment.status = after_collision(&world.view.deployment);
    assert_ne!(name(&world), first);
}

#[test]
fn what_hinders_a_set_is_told_of_the_deployment() {
    let mut world = World::new(deployment(1));
    world.settle();
    world.view.sets[0].failure = Some(("FailedCreate".into(), "exceeded quota".into()));
    world.settle();
    assert_eq!(world.condition("ReplicaFailure").message, "exceeded quota");
    world.view.sets[0].failure = None;
    world.settle();
    assert!(condition::find(&world.view.deployment.status.conditions, "ReplicaFailure").is_none());
}

proptest! {
    #[test]
    fn whatever_was_asked_for_in_between_the_last_wish_comes_true(
        wishes in proptest::collection::vec((0..3u8, 0..7i32, any::<bool>(), 0..4u8), 1..6),
        surge in 0..3i32, unavailable in 0..3i32,
    ) {
        let strategy = rolling(Amount::Count(surge), Amount::Count(unavailable));
        let mut world = World::new(Deployment { strategy, ..deployment(3) });
        for (template, replicas, recreate, steps) in wishes {
            let wanted = &mut world.view.deployment;
            wanted.template = ["one", "two", "three"][usize::from(template)].into();
            wanted.replicas = replicas;
            wanted.strategy = if recreate { Strategy::Recreate } else { strategy };
            wanted.generation += 1;
            for _ in 0..steps {
                world.follow();
                world.obey();
            }
        }
        let wanted = (world.view.deployment.template.clone(), world.view.deployment.replicas);
        for _ in 0..100 {
            world.follow();
            world.obey();
        }
        let expected = if wanted.1 == 0 { vec![] } else { vec![(wanted.0.as_str(), wanted.1)] };
        prop_assert_eq!(world.sizes(), expected);
        prop_assert!(plan(&world.view, world.now).steps.is_empty(), "{:#?}", plan(&world.view, world.now));
    }
}
