//! Random transactions, watches, compactions and restarts, against a model that is too simple to be wrong.

mod common;

use std::collections::BTreeMap;

use common::*;
use proptest::prelude::*;
use statefuld_store::{Compare, Error, Op, RangeQuery, Store, Txn, TxnOutcome, Watch};

/// Key → value, create revision, mod revision.
type Present = BTreeMap<String, (String, u64, u64)>;
/// Revision, key, new value.
type Seen = Vec<(u64, String, Option<String>)>;

#[derive(Clone, Debug)]
enum Step {
    /// Compared keys (true: with their real revision), and operations (`None`: delete).
    Txn {
        compare: Vec<(u8, bool)>,
        ops: Vec<(u8, Option<u8>)>,
    },
    /// Several put at once, racing for one commit.
    Burst(Vec<(u8, u8)>),
    Watch {
        prefix: u8,
        back: u64,
    },
    Compact {
        back: u64,
    },
    Restart,
}

#[derive(Default)]
struct Model {
    revision: u64,
    floor: u64,
    present: Present,
    history: Seen,
}

fn step() -> impl Strategy<Value = Step> {
    let compare = prop::collection::vec((0u8..12, prop::bool::weighted(0.85)), 0..3);
    let ops = prop::collection::btree_map(0u8..12, prop::option::weighted(0.7, any::<u8>()), 0..4);
    prop_oneof![
        12 => (compare, ops).prop_map(|(compare, ops)| Step::Txn { compare, ops: ops.into_iter().collect() }),
        2 => prop::collection::vec((0u8..12, any::<u8>()), 2..12).prop_map(Step::Burst),
        3 => (0u8..4, 0u64..30).prop_map(|(prefix, back)| Step::Watch { prefix, back }),
        1 => (0u64..20).prop_map(|back| Step::Compact { back }),
        1 => Just(Step::Restart),
    ]
}

/// Keys `0/…`, `1/…`, `2/…`; prefix 3 is everything.
fn name(key: u8) -> String {
    format!("{}/{key}", key % 3)
}

fn prefix_of(prefix: u8) -> String {
    if prefix == 3 { String::new() } else { format!("{prefix}/") }
}

impl Model {
    fn apply(&mut self, ops: &[(u8, Option<u8>)]) {
        let next = self.revision + 1;
        let mut changed = false;
        for (key, value) in ops {
            let key = name(*key);
            match value {
                Some(value) => {
                    let created = self.present.get(&key).map_or(next, |(_, created, _)| *created);
                    self.present.insert(key.clone(), (value.to_string(), created, next));
                }
                None => {
                    if self.present.remove(&key).is_none() {
                        continue;
                    }
                }
            }
            changed = true;
            self.history.push((next, key, value.map(|v| v.to_string())));
        }
        if changed {
            self.revision = next;
        }
    }

    fn after(&self, prefix: &str, revision: u64) -> Seen {
        let wanted = |(at, key, _): &&(u64, String, Option<String>)| *at > revision && key.starts_with(prefix);
        self.history.iter().filter(wanted).cloned().collect()
    }
}

async fn check_present(store: &dyn Store, model: &Model) {
    let range = store.range(RangeQuery::default()).await.expect("open");
    let found: Present = range
        .entries
        .iter()
        .map(|e| {
            let text = |b: &[u8]| String::from_utf8(b.to_vec()).expect("text");
            (text(&e.key), (text(&e.value), e.create_revision, e.mod_revision))
        })
        .collect();
    assert_eq!((range.revision, &found), (model.revision, &model.present));
}

async fn run(steps: Vec<Step>) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut store = open(dir.path());
    let mut model = Model { revision: 1, ..Model::default() };
    let mut watches: Vec<(Watch, String, u64)> = Vec::new();
    for step in steps {
        match step {
            Step::Txn { compare, ops } => {
                let revision_of = |key: &u8| model.present.get(&name(*key)).map_or(0, |(_, _, at)| *at);
                let txn = Txn {
                    compare: compare
                        .iter()
                        .map(|(k, real)| Compare {
                            key: key(&name(*k)),
                            mod_revision: revision_of(k) + u64::from(!real),
                        })
                        .collect(),
                    ops: ops.iter().map(|(k, v)| op(*k, *v)).collect(),
                };
                let outcome = store.txn(txn).await.expect("open");
                if compare.iter().all(|(_, real)| *real) {
                    model.apply(&ops);
                    assert_eq!(outcome, TxnOutcome::Committed { revision: model.revision });
                } else {
                    assert!(matches!(outcome, TxnOutcome::Failed { revision, .. } if revision == model.revision));
                }
            }
            Step::Burst(puts) => {
                let all = puts.iter().map(|(k, v)| store.txn(Txn { compare: vec![], ops: vec![op(*k, Some(*v))] }));
                let outcomes = futures::future::join_all(all).await;
                let mut order: Vec<(u64, (u8, Option<u8>))> = Vec::new();
                for (outcome, (k, v)) in outcomes.into_iter().zip(puts) {
                    let TxnOutcome::Committed { revision } = outcome.expect("open") else { panic!("no compare") };
                    order.push((revision, (k, Some(v))));
                }
                order.sort_by_key(|(revision, _)| *revision);
                for (revision, put) in order {
                    model.apply(&[put]);
                    assert_eq!(revision, model.revision, "each has its own revision");
                }
            }
            Step::Watch { prefix, back } => {
                let after = model.revision.saturating_sub(back);
                let prefix = prefix_of(prefix);
                match store.watch(key(&prefix), after).await {
                    Ok(watch) => watches.push((watch, prefix, after)),
                    Err(Error::Compacted { asked, oldest }) => {
                        assert_eq!((asked, oldest), (after, model.floor));
                        assert!(after < model.floor);
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            Step::Compact { back } => {
                let to = model.revision.saturating_sub(back);
                store.compact(to).await.expect("compacts");
                model.floor = model.floor.max(to);
            }
            Step::Restart => {
                check_watches(&mut watches, &model).await;
                watches.clear();
                store.close().await;
                store = open(dir.path());
            }
        }
        check_present(&*store, &model).await;
    }
    check_watches(&mut watches, &model).await;
}

async fn check_watches(watches: &mut [(Watch, String, u64)], model: &Model) {
    for (watch, prefix, after) in watches {
        let seen = if *after < model.revision { until(watch, model.revision).await } else { Vec::new() };
        assert_eq!(seen, model.after(prefix, *after));
        assert!(watch.batches.try_recv().is_err(), "nothing comes twice");
    }
}

fn op(key: u8, value: Option<u8>) -> Op {
    match value {
        Some(value) => put(&name(key), &value.to_string()),
        None => delete(&name(key)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_what_the_model_does(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(run(steps));
    }
}
