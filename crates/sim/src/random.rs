//! Sets by chance, and the plainest one.

use planner::{Beyond, Blob, Management, Retention, Set, Status, Strategy, Unavailable};

use crate::Rng;

/// A set as people write them.
pub(crate) fn random_set(rng: &mut Rng, replicas: usize) -> Set {
    let data = Blob::new(&b"a"[..]);
    let retention = |rng: &mut Rng| if rng.one_in(3) { Retention::Delete } else { Retention::Retain };
    Set {
        api_version: "apps/v1".into(),
        kind: "StatefulSet".into(),
        namespace: "default".into(),
        name: "web".into(),
        uid: "set#0".into(),
        generation: 1,
        deleting: false,
        replicas: i32::try_from(rng.below(replicas + 1)).unwrap_or(0),
        start: i32::try_from(rng.below(2)).unwrap_or(0),
        management: if rng.one_in(3) { Management::Parallel } else { Management::OrderedReady },
        strategy: random_strategy(rng, replicas),
        min_ready_seconds: if rng.one_in(3) { 5 } else { 0 },
        history_limit: i32::try_from(rng.below(4)).unwrap_or(0) - 1,
        claim_templates: ["data", "log"][..rng.below(3)].iter().map(|t| (*t).to_owned()).collect(),
        when_deleted: retention(rng),
        when_scaled: retention(rng),
        meaning: data.clone(),
        data,
        status: Status::default(),
        service_name: "web".into(),
        beyond: random_beyond(rng),
    }
}

fn random_beyond(rng: &mut Rng) -> Beyond {
    let deadline = i32::try_from(rng.below(30)).unwrap_or(0) + 5;
    Beyond {
        deadline_seconds: rng.one_in(2).then_some(deadline),
        rollback: rng.one_in(2),
        carry_out: rng.one_in(4),
        ordered_deletion: rng.one_in(2),
        replace_broken: rng.one_in(3),
        overrides: if rng.one_in(4) { [(1, "hash".to_owned())].into() } else { Default::default() },
        protect: rng.one_in(4).then_some(true),
        ..Beyond::default()
    }
}

/// An update strategy.
pub(crate) fn random_strategy(rng: &mut Rng, replicas: usize) -> Strategy {
    if rng.one_in(5) {
        return Strategy::OnDelete;
    }
    let partition = match rng.below(4) {
        0 => None,
        1 => Some(i32::try_from(rng.below(replicas + 1)).unwrap_or(0)),
        _ => Some(0),
    };
    let max_unavailable = match rng.below(4) {
        0 => Unavailable::Count(2),
        1 => Unavailable::Percent(50),
        _ => Unavailable::Count(1),
    };
    Strategy::RollingUpdate { partition, max_unavailable }
}

/// The set of [`crate::explore()`]: as plain as can be.
pub fn plain_set(management: Management, replicas: i32) -> Set {
    let mut rng = Rng::new(0);
    let set = random_set(&mut rng, 1);
    Set {
        replicas,
        start: 0,
        management,
        strategy: Strategy::RollingUpdate { partition: Some(0), max_unavailable: Unavailable::Count(1) },
        min_ready_seconds: 0,
        history_limit: 10,
        claim_templates: vec!["data".into()],
        when_deleted: Retention::Retain,
        when_scaled: Retention::Retain,
        beyond: Beyond::default(),
        ..set
    }
}
