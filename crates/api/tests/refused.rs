//! Values that are refused, each with the path and the sentence that upstream has for it.
//!
//! `data/refused.json` holds a valid object per kind, and cases that change some places of one; the object itself must
//! pass, so that every finding is the change's.

use serde::Deserialize;
use serde_json::{Map, Value};
use statefuld_api::decode::{self, FieldValidation};
use statefuld_api::resource::{Registry, Resource};
use statefuld_api::{defaults, strategy, validate};

/// The file.
#[derive(Deserialize)]
struct Data {
    /// Objects by `group/plural`.
    objects: Map<String, Value>,
    cases: Vec<Case>,
}

/// One change of an object.
#[derive(Deserialize)]
struct Case {
    /// Which object.
    of: String,
    /// Values by JSON pointer.
    set: Map<String, Value>,
    /// What is found, whole.
    errors: Vec<String>,
}

/// The resource of `group/plural`.
fn resource(name: &str) -> std::sync::Arc<Resource> {
    let (group, plural) = name.split_once('/').unwrap_or(("", name));
    Registry::builtin().find(group, "v1", plural).unwrap_or_else(|| panic!("{name} is served"))
}

/// What is wrong with an object that is created.
fn found(resource: &Resource, object: Value) -> Vec<String> {
    let decoded = decode::check_value(resource, object, FieldValidation::Strict);
    let mut object = decoded.unwrap_or_else(|status| panic!("{}: {status}", resource.plural)).object;
    defaults::apply(resource, &mut object);
    if resource.namespaced {
        object["metadata"]["namespace"] = "ns".into();
    }
    strategy::prepare_create(resource, &mut object);
    validate::create(resource, &object).iter().map(ToString::to_string).collect()
}

/// Sets the value at a pointer; maps are made, and lists grow by one at their end.
fn set(object: &mut Value, pointer: &str, value: Value) {
    let mut place = object;
    for part in pointer.trim_start_matches('/').split('/') {
        let part = part.replace("~1", "/");
        place = match part.parse::<usize>() {
            Ok(index) => {
                if place.is_null() {
                    *place = Value::Array(Vec::new());
                }
                let list = place.as_array_mut().unwrap_or_else(|| panic!("{pointer}: {part} is in a list"));
                if index == list.len() {
                    list.push(Value::Null);
                }
                &mut list[index]
            }
            Err(_) => &mut place[part.as_str()],
        };
    }
    *place = value;
}

#[test]
fn refused_values_are_named_with_path_and_reason() {
    let data: Data = serde_json::from_str(include_str!("data/refused.json")).expect("test data");
    for (name, object) in &data.objects {
        assert_eq!(found(&resource(name), object.clone()), [""; 0], "{name} begins well");
    }
    let mut wrong = String::new();
    for case in &data.cases {
        let mut object = data.objects[&case.of].clone();
        for (pointer, value) in &case.set {
            set(&mut object, pointer, value.clone());
        }
        let found = found(&resource(&case.of), object);
        if found != case.errors {
            wrong += &format!("{} {:?}\n  expected {:#?}\n  found    {found:#?}\n", case.of, case.set, case.errors);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(data.cases.len() > 100, "the data is complete");
}
