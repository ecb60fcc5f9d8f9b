//! Annotations together, and with the fields that they meet: every combination is carried out to its end by the
//! shipped planner, every single call is judged by the rules, and the end is what the documentation says.

use std::collections::BTreeMap;

use planner::{
    Call, ConditionKind, ExecState, Management, PodPhase, Reserved, Response, Retention, Set, Strategy, Trouble, Truth,
    Unavailable, step,
};
use statefuld_sim::{BROKEN_TEMPLATE, World, check, plain_set};

/// Rounds after which a set that is not quiet never will be.
const ROUNDS: usize = 200;

/// A pod that never becomes ready, and what is said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sick {
    CrashLooping,
    ImageLess,
    Unschedulable,
    /// It runs, and may yet become ready.
    Slow,
}

const SICK: [Sick; 4] = [Sick::CrashLooping, Sick::ImageLess, Sick::Unschedulable, Sick::Slow];

impl Sick {
    /// What scheduler and kubelet tell, as the projection reads it.
    fn tell(self) -> (PodPhase, Trouble, &'static str) {
        match self {
            Self::CrashLooping => (PodPhase::Running, Trouble::Container, "CrashLoopBackOff"),
            Self::ImageLess => (PodPhase::Pending, Trouble::Container, "ImagePullBackOff"),
            Self::Unschedulable => (PodPhase::Pending, Trouble::Misfit, "node(s) didn't match Pod's node selector"),
            Self::Slow => (PodPhase::Running, Trouble::None, ""),
        }
    }
}

/// A world in which pods of [`BROKEN_TEMPLATE`] are sick in one way, and all others become ready at once.
struct Play {
    world: World,
    sick: Sick,
    /// Names of pods that were stopped by the controller, in order.
    stopped: Vec<String>,
    /// What is being tried, for a failure.
    what: String,
}

impl Play {
    /// The set with all its pods ready.
    fn new(set: Set, what: String) -> Self {
        let mut play = Self { world: World::new(set), sick: Sick::CrashLooping, stopped: Vec::new(), what };
        play.run(false);
        assert_eq!(play.names().len(), usize::try_from(play.world.set.replicas).unwrap(), "{}", play.what);
        play
    }

    /// Lets controller, nodes and garbage collector work until nothing changes any more; with `patience` also until
    /// nothing changes by waiting.
    fn run(&mut self, patience: bool) {
        for _ in 0..ROUNDS {
            let before = self.world.clone();
            let view = self.world.observe();
            let now = self.world.now;
            let (mut exec, mut waiting) = step(ExecState::new(view.clone(), now), None);
            while !waiting.is_empty() {
                let request = waiting.remove(0);
                check::call(&view, now, &self.world, &request.call).unwrap_or_else(|e| panic!("{}: {e}", self.what));
                if let Call::Act(planner::Act::DeletePod { name, .. }) = &request.call {
                    self.stopped.push(name.clone());
                }
                let answer = self.world.apply(&request.call);
                let (state, more) = step(exec, Some(Response { id: request.id, answer }));
                exec = state;
                waiting.extend(more);
            }
            self.nodes();
            if self.world == before {
                let wait = exec.outcome().and_then(|outcome| outcome.look_again).filter(|wait| patience && *wait > 0);
                let Some(wait) = wait else { return };
                self.world.now += wait;
            }
        }
        panic!("{}: it does not become quiet", self.what);
    }

    /// Terminating pods go, the others become what they can.
    fn nodes(&mut self) {
        for name in self.world.pods.keys().cloned().collect::<Vec<_>>() {
            let pod = &self.world.pods[&name].pod;
            let broken = pod
                .revision
                .as_ref()
                .and_then(|r| self.world.revisions.get(r))
                .is_some_and(|r| r.data.bytes() == BROKEN_TEMPLATE.as_bytes());
            if pod.terminating {
                self.world.remove_pod(&name);
            } else if broken {
                let (phase, trouble, detail) = self.sick.tell();
                self.world.change_pod(&name, |p| {
                    (p.pod.phase, p.pod.trouble, p.pod.detail) = (phase, trouble, Some(detail.to_owned()));
                });
            } else {
                self.world.make_ready(&name);
            }
        }
        while self.world.collect() {}
    }

    fn names(&self) -> Vec<String> {
        self.world.pods.keys().cloned().collect()
    }

    /// The template that a pod was made from.
    fn template(&self, pod: &str) -> String {
        let revision = self.world.pods[pod].pod.revision.clone().unwrap_or_default();
        String::from_utf8_lossy(self.world.revisions[&revision].data.bytes()).into_owned()
    }

    fn templates(&self) -> Vec<String> {
        self.names().iter().map(|name| self.template(name)).collect()
    }

    fn all_ready(&self) -> bool {
        self.world.pods.values().all(|p| p.pod.is_ready())
    }

    fn progressing(&self) -> (Truth, &str) {
        let condition = self.world.set.status.condition(ConditionKind::Progressing).expect("it is always said");
        (condition.truth, &condition.reason)
    }
}

fn rolling(partition: i32, max_unavailable: Unavailable) -> Strategy {
    Strategy::RollingUpdate { partition: Some(partition), max_unavailable }
}

const MANAGEMENT: [Management; 2] = [Management::OrderedReady, Management::Parallel];
const RETENTION: [(Retention, Retention); 4] = [
    (Retention::Retain, Retention::Retain),
    (Retention::Delete, Retention::Retain),
    (Retention::Retain, Retention::Delete),
    (Retention::Delete, Retention::Delete),
];

#[test]
fn reserved_ordinals_with_start_partition_max_unavailable_and_retention() {
    let budgets = [Unavailable::Count(1), Unavailable::Count(2), Unavailable::Percent(50)];
    let mut tried = 0;
    for management in MANAGEMENT {
        for start in [0, 5] {
            for partition in 0..=4 {
                for budget in budgets {
                    for (when_deleted, when_scaled) in RETENTION {
                        for reserved in 0..4 {
                            let mut set = plain_set(management, 4);
                            (set.start, set.when_deleted, set.when_scaled) = (start, when_deleted, when_scaled);
                            set.strategy = rolling(partition, budget);
                            let what = format!(
                                "{management:?}, start {start}, partition {partition}, {budget:?}, whenDeleted \
                                 {when_deleted:?}, whenScaled {when_scaled:?}, ordinal {} reserved",
                                start + reserved
                            );
                            reserve_one_and_update(set, start + reserved, partition, what);
                            tried += 1;
                        }
                    }
                }
            }
        }
    }
    assert_eq!(tried, 2 * 2 * 5 * 3 * 4 * 4);
}

fn reserve_one_and_update(set: Set, ordinal: i32, partition: i32, what: String) {
    let mut play = Play::new(set, what);
    play.world.edit(|s| s.beyond.reserved = Reserved::new([(ordinal, ordinal)]));
    play.world.edit_template("b");
    play.run(true);
    let what = &play.what;
    let set = &play.world.set;
    let wanted: Vec<i32> = (set.start..).filter(|n| *n != ordinal).take(4).collect();
    assert_eq!(play.names(), wanted.iter().map(|n| format!("web-{n}")).collect::<Vec<_>>(), "{what}");
    assert!(play.all_ready(), "{what}");
    let at_b = play.templates().iter().filter(|t| *t == "b").count();
    // Those below the partition stay, by position; what stands in for the reserved one is new.
    let expected = usize::try_from((4 - partition).max(0)).unwrap();
    let below = wanted.iter().take(usize::try_from(partition).unwrap());
    let kept = below.clone().all(|n| play.template(&format!("web-{n}")) == "a");
    assert!(kept && at_b == expected, "{what}: {:?}", play.templates());
    let claim = &play.world.claims[&format!("data-web-{ordinal}")];
    assert!(claim.reserved && claim.owners.iter().all(|o| o.kind != "Pod"), "{what}: {claim:?}");
    // Released without a word of what becomes of its claim, it does not come back.
    play.world.edit(|s| s.beyond.reserved = Reserved::default());
    play.run(true);
    assert!(!play.world.pods.contains_key(&format!("web-{ordinal}")), "{}", play.what);
    play.world.allow_reuse();
    play.run(true);
    assert!(play.world.pods.contains_key(&format!("web-{ordinal}")), "{}", play.what);
    assert!(!play.world.claims[&format!("data-web-{ordinal}")].reserved, "{}", play.what);
    assert_eq!(play.names().len(), 4, "{}", play.what);
}

#[test]
fn overrides_stay_while_a_failed_rollout_goes_back_and_while_a_person_takes_it_back() {
    for management in MANAGEMENT {
        for sick in SICK {
            let mut set = plain_set(management, 3);
            set.beyond.overrides = BTreeMap::from([(1, "hash".to_owned())]);
            (set.beyond.deadline_seconds, set.beyond.rollback) = (Some(60), true);
            let mut play = Play::new(set, format!("{management:?}, {sick:?}"));
            let overridden = |play: &Play| {
                let hashes: Vec<_> = play.world.pods.values().map(|p| p.pod.override_hash.clone()).collect();
                assert_eq!(hashes, [None, Some("hash".to_owned()), None], "{}", play.what);
            };
            play.sick = sick;
            play.world.edit_template(BROKEN_TEMPLATE);
            play.run(true);
            assert_eq!(play.templates(), ["a", "a", "a"], "{}: the failed revision is held back", play.what);
            assert_eq!(play.progressing(), (Truth::False, "ProgressDeadlineExceeded"), "{}", play.what);
            assert_ne!(
                play.world.set.status.update_revision, play.world.set.status.current_revision,
                "CI is not green"
            );
            overridden(&play);
            // Another override while the revision is held: no update of anything that works.
            play.world.edit_template("b");
            play.run(true);
            assert_eq!((play.templates(), play.all_ready()), (vec!["b".to_owned(); 3], true), "{}", play.what);
            overridden(&play);
            play.world.edit_template("a");
            play.run(true);
            assert_eq!((play.templates(), play.all_ready()), (vec!["a".to_owned(); 3], true), "{}", play.what);
            overridden(&play);
        }
    }
}

#[test]
fn a_deadline_with_a_partition_judges_and_takes_back_only_what_the_partition_lets_through() {
    for management in MANAGEMENT {
        for rollback in [false, true] {
            for partition in 0..=4 {
                let mut set = plain_set(management, 4);
                set.strategy = rolling(partition, Unavailable::Count(1));
                (set.beyond.deadline_seconds, set.beyond.rollback) = (Some(60), rollback);
                let mut play = Play::new(set, format!("{management:?}, partition {partition}, rollback {rollback}"));
                play.world.edit_template(BROKEN_TEMPLATE);
                play.run(true);
                let what = &play.what;
                let broken = play.templates().iter().filter(|t| *t == BROKEN_TEMPLATE).count();
                if partition == 4 {
                    assert_eq!(play.progressing(), (Truth::True, "RolloutComplete"), "{what}");
                    assert!(broken == 0 && play.stopped.is_empty(), "{what}");
                    continue;
                }
                assert_eq!(play.progressing(), (Truth::False, "ProgressDeadlineExceeded"), "{what}");
                assert_eq!(
                    broken,
                    usize::from(!rollback),
                    "{what}: one is down, and goes back where that is asked for"
                );
                let below =
                    play.stopped.iter().filter_map(|p| planner::parent_and_ordinal(p)).any(|(_, n)| n < partition);
                assert!(!below, "{what}: {:?}", play.stopped);
                // Tried again, it fails again; another template goes through.
                play.world.edit(|s| s.beyond.retry = "again".to_owned());
                play.run(true);
                assert_eq!(play.progressing().0, Truth::False, "{}", play.what);
                play.world.edit_template("b");
                play.world.edit(|s| s.beyond.replace_broken = true);
                play.run(true);
                let at_b = play.templates().iter().filter(|t| *t == "b").count();
                assert_eq!(at_b, usize::try_from(4 - partition).unwrap(), "{}: {:?}", play.what, play.templates());
                assert!(play.all_ready(), "{}", play.what);
            }
        }
    }
}

#[test]
fn replace_broken_frees_a_rollout_from_what_cannot_work_and_waits_for_what_is_slow() {
    for management in MANAGEMENT {
        for partition in [0, 1] {
            for deadline in [None, Some(60)] {
                for sick in SICK {
                    let mut set = plain_set(management, 3);
                    set.strategy = rolling(partition, Unavailable::Count(1));
                    (set.beyond.replace_broken, set.beyond.deadline_seconds) = (true, deadline);
                    let what = format!("{management:?}, partition {partition}, deadline {deadline:?}, {sick:?}");
                    let mut play = Play::new(set, what);
                    play.sick = sick;
                    play.world.edit_template(BROKEN_TEMPLATE);
                    play.run(false);
                    assert_eq!(play.stopped, ["web-2"], "{}: the broken revision gets no further", play.what);
                    play.world.edit_template("b");
                    play.run(false);
                    // A parallel set replaces what is not available anyway, as upstream.
                    let waits = sick == Sick::Slow && management == Management::OrderedReady;
                    assert_eq!(play.templates()[2] == BROKEN_TEMPLATE, waits, "{}", play.what);
                    play.run(true);
                    let stays = waits && deadline.is_none();
                    let expected = if stays { ["a", "a", BROKEN_TEMPLATE] } else { ["a", "b", "b"] };
                    let expected: Vec<_> = match (stays, partition) {
                        (false, 0) => vec!["b"; 3],
                        _ => expected.to_vec(),
                    };
                    assert_eq!(play.templates(), expected, "{}", play.what);
                    assert_eq!(play.all_ready(), !stays, "{}", play.what);
                }
            }
        }
    }
}
