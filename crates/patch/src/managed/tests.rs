//! Tests of server-side apply, over a small schema.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Error, FieldSet, Manager, Managers, Operation, Place, Shape, TypeSchema, Writer, apply, changes};

/// `data` is a map of texts, `items` a list by `name`, `ports` one by `port` and `protocol`
/// (`TCP` by default), `names` a set, `whole` is owned as a whole, `inner` is the same again.
struct Small;

const ROOT: Place = Place(0);
const LEAF: Place = Place(1);
const DATA: Place = Place(2);
const ITEMS: Place = Place(3);
const PORTS: Place = Place(4);
const NAMES: Place = Place(5);

impl TypeSchema for Small {
    fn root(&self) -> Place {
        ROOT
    }

    fn shape(&self, place: Place) -> Shape<'_> {
        match place {
            ROOT => Shape::Struct,
            DATA => Shape::Map(LEAF),
            ITEMS => Shape::Keyed(ROOT, vec![("name".into(), None)]),
            PORTS => Shape::Keyed(ROOT, vec![("port".into(), None), ("protocol".into(), Some("TCP".into()))]),
            NAMES => Shape::Set,
            _ => Shape::Leaf,
        }
    }

    fn field(&self, _: Place, name: &str) -> Option<Place> {
        Some(match name {
            "data" => DATA,
            "items" => ITEMS,
            "ports" => PORTS,
            "names" => NAMES,
            "inner" | "metadata" => ROOT,
            "whole" | "name" | "port" | "protocol" | "v" => LEAF,
            _ => return None,
        })
    }
}

/// An object with its managers.
#[derive(Clone, Default)]
struct Object {
    value: Value,
    managers: Managers,
}

impl Object {
    /// One that nobody has written.
    fn new() -> Self {
        Object { value: json!({}), managers: Managers::default() }
    }

    /// Applies as `name`.
    fn apply(&mut self, name: &str, config: Value, force: bool) -> Result<(), Error> {
        let ignored = FieldSet::default();
        let writer =
            Writer { manager: manager(name, Operation::Apply), now: "2021-01-01T00:00:00Z", ignored: &ignored };
        let (value, managers) = apply(&self.value, &config, self.managers.clone(), &writer, force, &Small)?;
        (self.value, self.managers) = (value, managers);
        Ok(())
    }

    /// Replaces as `name`.
    fn update(&mut self, name: &str, value: Value) {
        let ignored = FieldSet::default();
        let writer =
            Writer { manager: manager(name, Operation::Update), now: "2021-01-01T00:00:00Z", ignored: &ignored };
        if let Some(changes) = changes(&self.value, &value, &writer, &Small) {
            self.managers.note(&changes, &writer);
        }
        self.value = value;
    }

    /// The fields of a manager, as JSON.
    fn fields(&self, name: &str) -> Value {
        let list = self.managers.to_value();
        let found = list.as_array().into_iter().flatten().find(|entry| entry["manager"] == name).cloned();
        found.map_or(Value::Null, |entry| entry["fieldsV1"].clone())
    }
}

/// A manager of version v1.
fn manager(name: &str, operation: Operation) -> Manager {
    Manager { operation, name: name.to_owned(), api_version: "v1".to_owned(), subresource: String::new() }
}

#[test]
fn an_applier_owns_what_it_names() {
    let mut object = Object::new();
    object
        .apply("a", json!({"data": {"x": "1"}, "items": [{"name": "i", "v": 1}], "inner": {}, "names": ["n"]}), false)
        .unwrap();
    assert_eq!(
        object.fields("a"),
        json!({"f:data": {"f:x": {}}, "f:items": {"k:{\"name\":\"i\"}": {".": {}, "f:name": {}, "f:v": {}}}, "f:inner": {}, "f:names": {"v:\"n\"": {}}})
    );
}

#[test]
fn another_value_conflicts_and_the_same_is_shared() {
    let mut object = Object::new();
    object.apply("a", json!({"data": {"x": "1", "y": "1"}}), false).unwrap();
    let error = object.apply("b", json!({"data": {"x": "2", "y": "2"}}), false).unwrap_err();
    assert_eq!(error.to_string(), "Apply failed with 2 conflicts: conflicts with \"a\":\n- .data.x\n- .data.y");
    object.apply("b", json!({"data": {"x": "1"}}), false).unwrap();
    let error = object.apply("a", json!({"data": {"x": "3", "y": "1"}}), false).unwrap_err();
    assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"b\": .data.x");
}

#[test]
fn force_takes_fields_over() {
    let mut object = Object::new();
    object.apply("a", json!({"data": {"x": "1", "y": "1"}}), false).unwrap();
    object.apply("b", json!({"data": {"x": "2"}}), true).unwrap();
    assert_eq!(object.value, json!({"data": {"x": "2", "y": "1"}}));
    assert_eq!(object.fields("a"), json!({"f:data": {"f:y": {}}}));
}

#[test]
fn what_nobody_wants_any_more_is_removed() {
    let mut object = Object::new();
    object
        .apply("a", json!({"data": {"x": "1", "y": "1"}, "items": [{"name": "i"}, {"name": "j", "v": 1}]}), false)
        .unwrap();
    object.apply("b", json!({"data": {"y": "1"}, "items": [{"name": "j"}]}), false).unwrap();
    object.apply("a", json!({}), false).unwrap();
    assert_eq!(object.value, json!({"data": {"y": "1"}, "items": [{"name": "j"}]}));
    assert_eq!(object.fields("a"), Value::Null);
}

#[test]
fn the_name_keeps_the_metadata_when_all_else_in_it_goes() {
    let mut object = Object::new();
    object.apply("one", json!({"metadata": {"name": "a", "data": {"l": "1"}}}), false).unwrap();
    object.apply("one", json!({"metadata": {"name": "a"}}), false).unwrap();
    assert_eq!(object.value, json!({"metadata": {"name": "a"}}));
}

#[test]
fn updates_own_what_they_change_with_the_maps_they_add() {
    let mut object = Object::new();
    object.update("u", json!({"data": {"x": "1"}, "inner": {"v": 1}}));
    assert_eq!(object.fields("u"), json!({"f:data": {".": {}, "f:x": {}}, "f:inner": {".": {}, "f:v": {}}}));
    object.update("w", json!({"data": {"x": "2"}}));
    assert_eq!(object.fields("w"), json!({"f:data": {"f:x": {}}}));
    assert_eq!(object.fields("u"), json!({"f:data": {}}));
    let error = object.apply("a", json!({"data": {"x": "3"}}), false).unwrap_err();
    assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"w\" using v1: .data.x");
}

#[test]
fn items_keep_the_order_of_the_applier_and_others_their_place() {
    let mut object = Object::new();
    object.update("u", json!({"items": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}));
    object.apply("x", json!({"items": [{"name": "c"}, {"name": "n"}, {"name": "a"}]}), false).unwrap();
    let names: Vec<&str> =
        object.value["items"].as_array().unwrap().iter().filter_map(|i| i["name"].as_str()).collect();
    assert_eq!(names, ["b", "c", "n", "a"]);
}

#[test]
fn keys_have_defaults() {
    let mut object = Object::new();
    object.apply("a", json!({"ports": [{"port": 80}]}), false).unwrap();
    assert_eq!(
        object.fields("a"),
        json!({"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}})
    );
}

#[test]
fn a_configuration_of_another_form_is_refused() {
    let refused = |config: Value| Object::new().apply("a", config, false).unwrap_err().to_string();
    assert_eq!(refused(json!({"nope": 1})), ".nope: field not declared in schema");
    assert_eq!(
        refused(json!({"items": [{"v": 1}]})),
        ".items: element 0: associative list with keys has an element that omits key field \"name\""
    );
    assert_eq!(
        refused(json!({"ports": [{"port": 80}, {"port": 80, "protocol": "TCP"}]})),
        ".ports: duplicate entries for key [port=80,protocol=\"TCP\"]"
    );
}

#[test]
fn old_updates_are_merged_beyond_ten() {
    let mut object = Object::new();
    for i in 0..15 {
        let mut value = object.value.clone();
        value["data"][format!("k{i}")] = "1".into();
        object.update(&format!("u{i}"), value);
    }
    assert_eq!(object.managers.to_value().as_array().unwrap().len(), 10);
    assert_ne!(object.fields("ancient-changes"), Value::Null);
}

#[test]
fn managers_survive_the_object() {
    let mut object = Object::new();
    object.apply("a", json!({"data": {"x": "1"}}), false).unwrap();
    object.update("u", json!({"data": {"x": "1", "y": "1"}}));
    let list = object.managers.to_value();
    assert_eq!(Managers::parse(&list).unwrap().to_value(), list);
    assert!(Managers::parse(&json!([{"operation": "What"}])).is_err());
    assert!(Managers::parse(&Value::Null).unwrap().is_empty());
}

/// Configurations over the small schema.
fn configs() -> impl Strategy<Value = Value> {
    let data = prop::collection::btree_map("[abc]", "[12]", 0..3);
    let items = prop::collection::btree_map("[abc]", 0..3i64, 0..3);
    let names = prop::collection::btree_set("[abc]", 0..3);
    (data, items, names, any::<(bool, bool, bool)>()).prop_map(|(data, items, names, (d, i, n))| {
        let mut out = json!({});
        if d {
            out["data"] = json!(data);
        }
        if i {
            out["items"] = items.into_iter().map(|(name, v)| json!({"name": name, "v": v})).collect();
        }
        if n {
            out["names"] = json!(names);
        }
        out
    })
}

proptest! {
    #[test]
    fn applying_twice_changes_nothing(other in configs(), config in configs()) {
        let mut object = Object::new();
        object.update("u", other);
        object.apply("a", config.clone(), true).unwrap();
        let once = object.clone();
        object.apply("a", config, true).unwrap();
        prop_assert_eq!(object.value, once.value);
        prop_assert_eq!(object.managers, once.managers);
    }

    #[test]
    fn what_is_applied_is_in_the_object(other in configs(), config in configs()) {
        let mut object = Object::new();
        object.update("u", other);
        object.apply("a", config.clone(), true).unwrap();
        for (key, value) in config["data"].as_object().into_iter().flatten() {
            prop_assert_eq!(&object.value["data"][key], value);
        }
    }

    #[test]
    fn giving_up_all_leaves_what_others_manage(other in configs(), config in configs()) {
        let mut object = Object::new();
        object.apply("b", other.clone(), false).unwrap();
        let before = object.value.clone();
        if object.apply("a", config, false).is_ok() {
            object.apply("a", json!({}), false).unwrap();
            for (key, value) in before["data"].as_object().into_iter().flatten() {
                prop_assert_eq!(&object.value["data"][key], value);
            }
        }
    }
}
