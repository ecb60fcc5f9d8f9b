//! Creates and patches with the answers that a real Kubernetes API server recorded for them, run
//! through decoding, defaults and patches.
//!
//! `data/creates.json` holds bodies with what was stored, without what admission, strategies and
//! the server add. `data/patches.json` holds objects with patches in order, and the values at
//! some paths, or the code and message, that each was answered with. What validation refuses is
//! not among them: it has its own tests. `data/applies.json` holds server-side applies between other
//! writes, with the managers that the object then had, as the newest version notes them: it owns
//! empty maps that are applied, and names the subresource in conflicts.

use statefuld_api as api;

use api::decode::{FieldValidation, check_value};
use api::managed::{self, Change};
use api::resource::{Registry, Resource};
use api::status::Status;
use api::{defaults, schema, strategy};
use serde_json::{Value, json};

/// The resource that a case is about.
fn resource(case: &Value) -> Resource {
    let text = |name: &str| case[name].as_str().expect("a text");
    (*Registry::builtin().find(text("group"), "v1", text("plural")).expect("a built-in kind")).clone()
}

/// Decodes and completes an object.
fn completed(resource: &Resource, body: Value) -> Result<Value, (u16, String)> {
    let decoded =
        check_value(resource, body, FieldValidation::Ignore).map_err(|status| (status.code, status.message))?;
    let mut object = decoded.object;
    defaults::apply(resource, &mut object);
    api::decode::normalize(resource, &mut object);
    Ok(object)
}

#[test]
fn creates_are_stored_as_recorded() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("data/creates.json")).expect("test data");
    for case in &cases {
        let resource = resource(case);
        let mut object =
            completed(&resource, case["given"].clone()).unwrap_or_else(|e| panic!("{}: {e:?}", case["from"]));
        let object_fields = object.as_object_mut().expect("an object");
        object_fields.remove("status");
        if resource.plural == "namespaces" {
            object_fields.remove("spec");
        }
        let metadata = object["metadata"].as_object_mut().expect("metadata");
        for server_side in ["uid", "creationTimestamp", "generation", "finalizers", "deletionTimestamp", "namespace"] {
            metadata.remove(server_side);
        }
        assert_eq!(object, case["stored"], "{}", case["from"]);
    }
    assert!(cases.len() > 40, "the data is complete");
}

#[test]
fn patches_answer_as_recorded() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("data/patches.json")).expect("test data");
    for case in &cases {
        let resource = resource(case);
        let mut object = completed(&resource, case["given"].clone()).expect("the object is in order");
        for step in case["steps"].as_array().expect("steps") {
            let name = format!("{}: {}", case["name"], step["name"]);
            match (patched(&resource, &object, step), step["code"].as_u64()) {
                (Ok(result), None) => {
                    for (path, expected) in step["values"].as_object().into_iter().flatten() {
                        let found: Value = find(&result, path).into_iter().cloned().collect();
                        assert_eq!(found, *expected, "{name}: {path}");
                    }
                    object = result;
                }
                (Err((code, message)), Some(expected)) => {
                    assert_eq!(u64::from(code), expected, "{name}: {message}");
                    if let Some(text) = step["message"].as_str() {
                        assert_eq!(message, text, "{name}");
                    }
                }
                (Ok(result), Some(expected)) => panic!("{name}: expected {expected}, got {result}"),
                (Err(error), None) => panic!("{name}: {error:?}"),
            }
        }
    }
}

/// The object after a step, as a server would make it, or the code and message of the answer.
fn patched(resource: &Resource, object: &Value, step: &Value) -> Result<Value, (u16, String)> {
    let mut result = object.clone();
    let patch = &step["patch"];
    let applied = match step["type"].as_str().expect("a type") {
        "json" => patch::json::apply(&mut result, patch),
        "merge" => {
            patch::merge::apply(&mut result, patch);
            Ok(())
        }
        "strategic" => patch::strategic::apply(&mut result, patch, &schema::merge_schema(resource)),
        other => panic!("unknown type {other}"),
    };
    applied.map_err(|error| match error {
        patch::Error::Malformed(message) => (400, message),
        patch::Error::Mismatch(message) => (422, message),
        patch::Error::TooLarge(message) => (413, message),
    })?;
    let result = completed(resource, result)?;
    if result["metadata"]["name"] != object["metadata"]["name"] {
        let (new, old) = (&result["metadata"]["name"], &object["metadata"]["name"]);
        let message = format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            new.as_str().unwrap_or_default(),
            old.as_str().unwrap_or_default()
        );
        return Err((400, message));
    }
    Ok(result)
}

#[test]
fn applies_are_managed_as_recorded() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("data/applies.json")).expect("test data");
    for case in &cases {
        let resource = resource(case);
        let mut object = None;
        for step in case["steps"].as_array().expect("steps") {
            let name = format!("{}: {}", case["name"], step["name"]);
            match (written(&resource, object.as_ref(), step), step["code"].as_u64()) {
                (Ok(result), None) => {
                    assert_eq!(managers(&result), step["managers"], "{name}");
                    object = Some(result);
                }
                (Err(status), Some(code)) => {
                    assert_eq!(u64::from(status.code), code, "{name}");
                    assert!(status.message.ends_with(step["message"].as_str().expect("a text")), "{name}: {status}");
                    if !step["causes"].is_null() {
                        assert_eq!(status.to_value()["details"]["causes"], step["causes"], "{name}");
                    }
                }
                (result, expected) => panic!("{name}: expected {expected:?}, got {result:?}"),
            }
        }
    }
}

/// The object after a write, as a server would make it.
fn written(resource: &Resource, live: Option<&Value>, step: &Value) -> Result<Value, Status> {
    let text = |name: &str| step[name].as_str().expect("a text");
    let subresource = text("subresource");
    let change = Change { manager: text("manager"), subresource, now: "2021-01-01T00:00:00Z" };
    let mut new = match text("kind") {
        "apply" => managed::apply(resource, live, step["body"].clone(), &change, step["force"] == true)?,
        "create" => step["body"].clone(),
        "update" => step["body"].clone(),
        _ => {
            let mut new = live.cloned().expect("an object to patch");
            patch::merge::apply(&mut new, &step["body"]);
            new
        }
    };
    new = completed(resource, new).map_err(|(code, message)| Status::new(code, "", message))?;
    match live {
        None => strategy::prepare_create(resource, &mut new),
        Some(live) if subresource == "status" => strategy::prepare_status_update(resource, &mut new, live),
        Some(live) => strategy::prepare_update(resource, &mut new, live),
    }
    api::decode::normalize(resource, &mut new);
    if text("kind") != "apply" {
        managed::track(resource, live, &mut new, &change);
    }
    Ok(new)
}

/// Name, operation and fields of every manager of an object; old recordings do not name the
/// subresource.
fn managers(object: &Value) -> Value {
    let list = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    list.map(|entry| json!([entry["manager"], entry["operation"], entry["fieldsV1"]])).collect()
}

/// Every value at a path such as `a.b[0].c`.
fn find<'a>(value: &'a Value, path: &str) -> Vec<&'a Value> {
    path.split('.').fold(vec![value], |found, part| found.into_iter().filter_map(|value| value.get(part)).collect())
}

#[test]
fn paths_are_found() {
    assert_eq!(find(&json!({"a": {"b": 1}}), "a.b"), [&json!(1)]);
    assert!(find(&json!({"a": {}}), "a.b").is_empty());
}
