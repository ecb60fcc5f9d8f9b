//! Properties of one shelf: what is listed of the past is what was there, and replaying leads to the present.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::resource::Registry;
use bytes::Bytes;
use proptest::prelude::*;
use serde_json::json;
use store::Entry;

use super::{Filter, Kind, Shelf, Since};
use crate::object::{Key, stored_bytes};

/// A change: which object, and its label, or that it is deleted.
type Step = (u8, Option<u8>);

fn shelf() -> Arc<Shelf> {
    let maps = Registry::builtin().find("", "v1", "configmaps").expect("config maps are served");
    Arc::new(Shelf::new(maps, None))
}

/// Applies one change at a revision.
fn apply(shelf: &Shelf, revision: u64, (which, label): Step) {
    let (namespace, name) = (format!("ns{}", which % 2), format!("m{which}"));
    let key = Key::new(&namespace, &name);
    let object = label.and_then(|label| {
        let value = json!({"metadata": {"name": name, "namespace": namespace, "labels": {"x": label.to_string()}}});
        let entry =
            Entry { key: Bytes::new(), value: stored_bytes(value), create_revision: revision, mod_revision: revision };
        shelf.read_object(key.clone(), entry, true)
    });
    shelf.apply(revision, vec![(key, object)]);
}

/// Names with the revisions that wrote them, at a revision.
fn state(shelf: &Shelf, filter: &Filter, at: Option<u64>, now: u64) -> BTreeMap<Key, u64> {
    let page = shelf.list(filter, at, now, None, 0).expect("the history holds it");
    page.objects.iter().map(|o| (o.key.clone(), o.revision)).collect()
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec((0u8..6, proptest::option::weighted(0.7, 0u8..2)), 1..60)
}

fn filters() -> Vec<Filter> {
    let selector = api::selector::LabelSelector::parse("x=1").expect("it is well-formed");
    vec![
        Filter::default(),
        Filter { namespace: "ns1".to_owned(), ..Filter::default() },
        Filter { labels: Some(selector), ..Filter::default() },
        Filter { namespace: "ns0".to_owned(), name: "m2".to_owned(), ..Filter::default() },
    ]
}

proptest! {
    #[test]
    fn the_past_is_listed_as_it_was(steps in steps()) {
        let shelf = shelf();
        let mut past = Vec::new();
        for (n, step) in steps.iter().enumerate() {
            apply(&shelf, n as u64 + 1, *step);
            past.push(filters().iter().map(|f| state(&shelf, f, None, n as u64 + 1)).collect::<Vec<_>>());
        }
        let now = steps.len() as u64;
        for (n, states) in past.iter().enumerate() {
            for (filter, expected) in filters().iter().zip(states) {
                prop_assert_eq!(&state(&shelf, filter, Some(n as u64 + 1), now), expected);
            }
        }
    }

    #[test]
    fn pages_add_up_to_the_whole(steps in steps(), limit in 1usize..4) {
        let shelf = shelf();
        for (n, step) in steps.iter().enumerate() {
            apply(&shelf, n as u64 + 1, *step);
        }
        let now = steps.len() as u64;
        for filter in filters() {
            let whole = state(&shelf, &filter, None, now);
            let mut found = BTreeMap::new();
            let mut after = None;
            loop {
                let page = shelf.list(&filter, Some(now), now, after.as_ref(), limit).expect("it is kept");
                prop_assert!(page.objects.len() <= limit);
                found.extend(page.objects.iter().map(|o| (o.key.clone(), o.revision)));
                match page.next {
                    Some(next) => after = Some(next),
                    None => break,
                }
            }
            prop_assert_eq!(found, whole);
        }
    }

    #[test]
    fn events_lead_from_any_state_to_the_present(steps in steps(), cut in 0usize..60, join in 0usize..60) {
        let shelf = shelf();
        let cut = cut.min(steps.len());
        let join = join.clamp(cut, steps.len());
        for filter in filters() {
            let shelf = if filter.name.is_empty() && filter.namespace.is_empty() { shelf.clone() } else { self::shelf() };
            shelf.replace(Vec::new(), 0);
            let mut view = BTreeMap::new();
            let mut watcher = None;
            for (n, step) in steps.iter().enumerate() {
                if n == cut {
                    view = state(&shelf, &filter, None, n as u64);
                }
                if n == join {
                    watcher = Some(shelf.watch(filter.clone(), Since::Revision(cut as u64), n as u64, 100).expect("it is kept"));
                }
                apply(&shelf, n as u64 + 1, *step);
            }
            let Some(mut watcher) = watcher else { continue };
            let mut items = std::mem::take(&mut watcher.replay);
            while let Ok(item) = watcher.queue.try_recv() {
                items.push(item);
            }
            for item in items {
                let (object, revision) = item.change.subject(item.kind);
                let before = match item.kind {
                    Kind::Deleted => view.remove(&object.key),
                    _ => view.insert(object.key.clone(), revision),
                };
                // An addition is of something that was not there, everything else of something that was.
                prop_assert_eq!(before.is_none(), item.kind == Kind::Added);
            }
            prop_assert_eq!(view, state(&shelf, &filter, None, steps.len() as u64));
        }
    }
}

#[test]
fn what_is_forgotten_is_refused() {
    let shelf = shelf();
    for n in 1..=5000 {
        apply(&shelf, n, (1, Some(0)));
    }
    let old = shelf.watch(Filter::default(), Since::Revision(1), 5000, 10);
    assert_eq!(old.err().map(|status| status.code), Some(410));
    let page = shelf.list(&Filter::default(), Some(1), 5000, None, 0);
    assert_eq!(page.err().map(|status| status.code), Some(410));
    assert!(shelf.watch(Filter::default(), Since::Revision(4990), 5000, 10).is_ok());
}

#[test]
fn a_dropped_watcher_leaves_no_trace() {
    let shelf = shelf();
    let watcher = shelf.watch(Filter::default(), Since::Now, 0, 10).expect("it is kept");
    assert_eq!(shelf.watching(), 1);
    drop(watcher);
    assert_eq!(shelf.watching(), 0);
}

#[test]
fn one_event_is_encoded_once_for_all() {
    let shelf = shelf();
    let mut watchers: Vec<_> =
        (0..3).map(|_| shelf.watch(Filter::default(), Since::Now, 0, 10).expect("it is kept")).collect();
    apply(&shelf, 1, (1, Some(1)));
    let frames: Vec<Bytes> = watchers
        .iter_mut()
        .map(|w| w.queue.try_recv().expect("it was told"))
        .map(|item| item.change.frame(item.kind))
        .collect();
    assert!(frames.windows(2).all(|pair| pair[0].as_ptr() == pair[1].as_ptr()));
}
