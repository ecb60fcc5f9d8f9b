//! Tests of strategic merge patch, over a small schema.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{FieldMerge, MergeSchema, TypeRef, apply};
use crate::Error;

/// A document with a bit of everything: `items` merge by `name` and nest, `ports` merge by `port`,
/// `names` are a set, `args` are replaced, `whole` is an object that is replaced.
struct Small;

impl MergeSchema for Small {
    fn root(&self) -> TypeRef {
        TypeRef(0)
    }

    fn field(&self, _: TypeRef, name: &str) -> Option<FieldMerge<'_>> {
        let field = FieldMerge { child: TypeRef(0), merge: false, replace: false, key: None };
        Some(match name {
            "items" => FieldMerge { merge: true, key: Some("name"), ..field },
            "ports" => FieldMerge { merge: true, key: Some("port"), ..field },
            "names" => FieldMerge { merge: true, ..field },
            "whole" => FieldMerge { replace: true, ..field },
            "args" | "map" => field,
            _ => return None,
        })
    }
}

/// The document after the patch.
fn patched(mut document: Value, patch: Value) -> Result<Value, Error> {
    apply(&mut document, &patch, &Small).map(|()| document)
}

/// Checks one merge.
#[track_caller]
fn merges(document: Value, patch: Value, expected: Value) {
    assert_eq!(patched(document, patch), Ok(expected));
}

/// Checks that a patch is refused with this text in the message.
#[track_caller]
fn refused(document: Value, patch: Value, text: &str) {
    match patched(document, patch) {
        Err(Error::Malformed(message)) => assert!(message.contains(text), "{message}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn objects_merge_and_null_deletes() {
    merges(
        json!({"map": {"a": 1, "b": 2}, "x": 1}),
        json!({"map": {"b": null, "c": 3}}),
        json!({"map": {"a": 1, "c": 3}, "x": 1}),
    );
    merges(json!({"map": {"a": 1}}), json!({"map": null, "other": null}), json!({}));
    merges(json!({}), json!({"map": {"a": null, "b": {"c": null}}}), json!({"map": {"b": {}}}));
}

#[test]
fn plain_lists_and_changed_types_are_replaced() {
    merges(json!({"args": [1, 2]}), json!({"args": [3]}), json!({"args": [3]}));
    merges(json!({"args": [1, 2]}), json!({"args": {"a": 1}}), json!({"args": {"a": 1}}));
    merges(json!({"whole": {"a": 1}}), json!({"whole": {"b": 1}}), json!({"whole": {"b": 1}}));
}

#[test]
fn items_with_the_same_key_merge_and_others_are_added() {
    merges(
        json!({"items": [{"name": "a", "v": 1}, {"name": "b", "ports": [{"port": 1}]}]}),
        json!({"items": [{"name": "b", "ports": [{"port": 1, "x": 1}, {"port": 2}]}, {"name": "c"}]}),
        json!({"items": [{"name": "a", "v": 1}, {"name": "b", "ports": [{"port": 1, "x": 1}, {"port": 2}]}, {"name": "c"}]}),
    );
}

#[test]
fn scalars_of_a_merged_list_become_a_union() {
    merges(json!({"names": ["a", "b"]}), json!({"names": ["c", "a"]}), json!({"names": ["c", "a", "b"]}));
}

#[test]
fn items_are_deleted_by_key() {
    merges(
        json!({"items": [{"name": "a"}, {"name": "b"}]}),
        json!({"items": [{"name": "a", "$patch": "delete"}, {"name": "zz", "$patch": "delete"}]}),
        json!({"items": [{"name": "b"}]}),
    );
}

#[test]
fn a_list_is_replaced_by_directive() {
    merges(
        json!({"items": [{"name": "a"}, {"name": "b"}]}),
        json!({"items": [{"name": "c"}, {"$patch": "replace"}]}),
        json!({"items": [{"name": "c"}]}),
    );
}

#[test]
fn an_object_is_replaced_or_emptied_by_directive() {
    merges(json!({"map": {"a": 1}}), json!({"map": {"b": 2, "$patch": "replace"}}), json!({"map": {"b": 2}}));
    merges(json!({"map": {"a": 1}}), json!({"map": {"$patch": "delete"}}), json!({"map": {}}));
}

#[test]
fn directives_for_absent_parts_leave_nothing_behind() {
    merges(json!({}), json!({"map": {"b": 2, "$patch": "replace"}}), json!({"map": {"b": 2}}));
    merges(json!({}), json!({"map": {"$patch": "delete"}}), json!({}));
    merges(
        json!({}),
        json!({"items": [{"name": "a", "$patch": "delete"}, {"name": "b", "$retainKeys": ["name"]}]}),
        json!({"items": [{"name": "b"}]}),
    );
    merges(json!({}), json!({"$deleteFromPrimitiveList/names": ["a"]}), json!({}));
}

#[test]
fn retain_keys_drops_what_it_does_not_name() {
    merges(
        json!({"items": [{"name": "v", "emptyDir": {}}]}),
        json!({"items": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/h"}}]}),
        json!({"items": [{"name": "v", "hostPath": {"path": "/h"}}]}),
    );
    refused(json!({"map": {}}), json!({"map": {"$retainKeys": ["a"], "b": 1}}), "invalid patch format of retainKeys");
    refused(json!({"map": {}}), json!({"map": {"$retainKeys": "a"}}), "invalid patch format of retainKeys");
}

#[test]
fn scalars_are_deleted_from_a_list() {
    merges(
        json!({"names": ["a", "b", "c"]}),
        json!({"$deleteFromPrimitiveList/names": ["b", "x"]}),
        json!({"names": ["a", "c"]}),
    );
}

#[test]
fn the_named_order_holds_and_server_items_keep_their_place() {
    merges(
        json!({"items": [{"name": "s"}, {"name": "a"}, {"name": "b"}]}),
        json!({"$setElementOrder/items": [{"name": "b"}, {"name": "a"}, {"name": "n"}], "items": [{"name": "n"}]}),
        json!({"items": [{"name": "s"}, {"name": "b"}, {"name": "a"}, {"name": "n"}]}),
    );
    merges(json!({"names": ["a", "b"]}), json!({"$setElementOrder/names": ["b", "a"]}), json!({"names": ["b", "a"]}));
    merges(
        json!({"items": [{"name": "a", "v": 1}, {"name": "b"}]}),
        json!({"$setElementOrder/items": [{"name": "b"}], "items": [{"name": "a", "$patch": "delete"}]}),
        json!({"items": [{"name": "b"}]}),
    );
}

#[test]
fn an_order_that_contradicts_the_list_is_refused() {
    refused(
        json!({"items": [{"name": "a"}]}),
        json!({"$setElementOrder/items": [{"name": "a"}], "items": [{"name": "b"}]}),
        "does not match",
    );
    refused(json!({"names": []}), json!({"$setElementOrder/names": "a"}), "invalid patch format");
}

#[test]
fn what_cannot_be_understood_is_refused() {
    refused(json!({"map": {"a": 1}}), json!({"map": {"$patch": "explode"}}), "explode");
    refused(json!({"items": [{"name": "a"}]}), json!({"items": [{"v": 1}]}), "declared merge key: name");
    refused(json!({"items": [{"name": "a"}]}), json!({"items": [1]}), "different types");
    refused(json!({"items": [{"name": "a"}]}), json!({"items": [{"name": "a", "$patch": "merge"}]}), "cannot yet");
    refused(json!({}), json!([1]), "must be objects");
}

/// Documents over the small schema.
fn documents() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), "[ab]".prop_map(Value::from)];
    scalar
        .prop_recursive(3, 32, 4, |inner| {
            let item = ("[abc]", inner.clone()).prop_map(|(name, v)| json!({"name": name, "map": v}));
            let items = prop::collection::btree_map("[abc]", item, 0..4).prop_map(|m| {
                m.into_iter()
                    .map(|(name, mut item)| {
                        item["name"] = name.into();
                        item
                    })
                    .collect::<Value>()
            });
            let names = prop::collection::btree_set("[abc]", 0..3)
                .prop_map(|s| s.into_iter().map(Value::from).collect::<Value>());
            (items, names, inner, any::<(bool, bool, bool)>()).prop_map(|(items, names, map, (i, n, m))| {
                let mut object = serde_json::Map::new();
                if i {
                    object.insert("items".into(), items);
                }
                if n {
                    object.insert("names".into(), names);
                }
                if m {
                    object.insert("map".into(), map);
                }
                Value::Object(object)
            })
        })
        .prop_filter("an object", Value::is_object)
}

/// A document without its nulls, as every stored document is.
fn without_nulls(value: Value) -> Value {
    super::plain(value).unwrap_or_default()
}

proptest! {
    #[test]
    fn patching_twice_is_patching_once(document in documents(), patch in documents()) {
        let document = without_nulls(document);
        if let Ok(once) = patched(document, patch.clone()) {
            prop_assert_eq!(patched(once.clone(), patch), Ok(once));
        }
    }

    #[test]
    fn a_document_patched_with_itself_stays(document in documents()) {
        let document = without_nulls(document);
        prop_assert_eq!(patched(document.clone(), document.clone()), Ok(document));
    }

    #[test]
    fn an_empty_document_becomes_the_patch(patch in documents()) {
        prop_assert_eq!(patched(json!({}), patch.clone()), Ok(without_nulls(patch)));
    }
}
