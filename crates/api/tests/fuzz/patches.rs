//! Patches of all four sorts, of objects of every kind.

use serde_json::{Map, Value, json};
use statefuld_api::decode::{FieldValidation, check_value};
use statefuld_api::managed::{self, Change};
use statefuld_api::resource::{Registry, Resource};
use statefuld_api::schema::{self, Schema};

use crate::for_seeds;
use crate::generate::{Rng, any, mutate, valid};

/// A kind, and an object of it.
fn subject(rng: &mut Rng) -> (std::sync::Arc<Resource>, Value) {
    let all = Registry::builtin().all();
    let resource = rng.pick(&all).clone();
    let schema = Schema::builtin();
    let made = match schema.find(&resource.type_name) {
        Some(id) => valid(schema, id, rng, 0),
        None => any(rng, 0),
    };
    let object = check_value(&resource, made, FieldValidation::Ignore).map_or(json!({}), |decoded| decoded.object);
    (resource, object)
}

/// A patch that has something to do with the object.
fn patch_of(object: &Value, rng: &mut Rng) -> Value {
    let mut patch = if rng.one_in(6) { any(rng, 0) } else { object.clone() };
    for _ in 0..=rng.below(4) {
        mutate(&mut patch, rng);
    }
    patch
}

/// Whether there is a list of more than one item, or a directive, in which order or repetition may matter.
fn is_delicate(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.len() > 1 || items.iter().any(is_delicate),
        Value::Object(object) => object.iter().any(|(name, value)| name.starts_with('$') || is_delicate(value)),
        _ => false,
    }
}

/// The same without nulls, which mean nothing: a list that is new loses its nulls at once, and one that takes the
/// place of another later, as upstream has it.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(without_nulls).collect::<Vec<_>>().into(),
        Value::Object(object) => {
            let kept = object.into_iter().map(|(name, value)| (name, without_nulls(value)));
            let kept: Map<String, Value> = kept.filter(|(_, value)| !value.is_null()).collect();
            // Nothing is as good as nothing but nulls.
            if kept.is_empty() { Value::Null } else { Value::Object(kept) }
        }
        other => other,
    }
}

#[test]
fn a_merge_patch_does_the_same_when_it_is_applied_again() {
    for_seeds(300, |rng| {
        let (_, object) = subject(rng);
        let patch = patch_of(&object, rng);
        let mut once = object.clone();
        patch::merge::apply(&mut once, &patch);
        let mut twice = once.clone();
        patch::merge::apply(&mut twice, &patch);
        assert_eq!(twice, once);
    });
}

#[test]
fn json_patches_succeed_or_are_refused_and_what_was_added_is_there() {
    const PATHS: [&str; 10] = [
        "",
        "/metadata",
        "/metadata/labels",
        "/metadata/labels/a~1b",
        "/spec",
        "/spec/containers/0",
        "/spec/containers/-",
        "/~0",
        "/metadata/finalizers/18446744073709551616",
        "no",
    ];
    for_seeds(600, |rng| {
        let (_, object) = subject(rng);
        let operations: Vec<Value> = (0..rng.below(5))
            .map(|_| {
                let verb = *rng.pick(&["add", "remove", "replace", "move", "copy", "test", "odd"]);
                json!({"op": verb, "path": rng.pick(&PATHS), "from": rng.pick(&PATHS), "value": any(rng, 8)})
            })
            .collect();
        let mut patch = Value::Array(operations);
        if rng.one_in(4) {
            mutate(&mut patch, rng);
        }
        let mut target = object.clone();
        let _ = patch::json::apply(&mut target, &patch);
        let value = any(rng, 8);
        let added =
            json!([{"op": "add", "path": "/added", "value": value}, {"op": "test", "path": "/added", "value": value}]);
        let mut target = json!({});
        assert_eq!(patch::json::apply(&mut target, &added), Ok(()));
    });
}

#[test]
fn strategic_merge_patches_succeed_or_are_refused_and_do_the_same_again() {
    for_seeds(600, |rng| {
        let (resource, object) = subject(rng);
        let patch = patch_of(&object, rng);
        let schema = schema::merge_schema(&resource);
        let mut once = object.clone();
        if patch::strategic::apply(&mut once, &patch, &schema).is_err() || is_delicate(&patch) {
            return;
        }
        let mut twice = once.clone();
        assert_eq!(patch::strategic::apply(&mut twice, &patch, &schema), Ok(()));
        assert_eq!(without_nulls(twice), without_nulls(once), "{patch}");
    });
}

#[test]
fn an_apply_succeeds_or_is_refused_and_changes_nothing_when_it_is_made_again() {
    for_seeds(400, |rng| {
        let (resource, mut config) = subject(rng);
        for _ in 0..rng.below(3) {
            mutate(&mut config, rng);
        }
        // A null that is applied says nothing that could stay the same.
        let mut config = without_nulls(config);
        let Some(object) = config.as_object_mut() else { return };
        object.remove("status");
        object.insert("kind".to_owned(), resource.kind.as_str().into());
        object.insert("apiVersion".to_owned(), resource.api_version().into());
        object.insert("metadata".to_owned(), json!({"name": "a", "labels": {"x": rng.word()}}));
        let change = Change { manager: "m", subresource: "", now: "2024-01-01T00:00:00Z" };
        let Ok(once) = managed::apply(&resource, None, config.clone(), &change, false) else { return };
        let Ok(checked) = check_value(&resource, once, FieldValidation::Ignore) else { return };
        match managed::apply(&resource, Some(&checked.object), config, &change, false) {
            Ok(twice) => {
                let twice = check_value(&resource, twice, FieldValidation::Ignore).expect("as the first time").object;
                assert_eq!(twice, checked.object, "{}", resource.type_name);
            }
            Err(status) => panic!("its own fields are in its way: {}", status.message),
        }
    });
}
