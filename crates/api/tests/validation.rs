//! Creates that a real API server answered, and what it found wrong with them.
//!
//! `validation.json` was taken over from recorded answers and then brought up to the newest rules. In a sentence,
//! `*` stands for a value that upstream prints in its own language's notation.

use serde::Deserialize;
use serde_json::Value;
use statefuld_api::decode::{self, FieldValidation};
use statefuld_api::resource::Registry;
use statefuld_api::{defaults, strategy, validate};

/// One create.
#[derive(Deserialize)]
struct Case {
    name: String,
    group: String,
    plural: String,
    object: Value,
    /// Field, reason, sentence.
    causes: Vec<(String, String, String)>,
}

/// What we find wrong, in the same form.
fn found(case: &Case) -> Vec<(String, String, String)> {
    let resource = Registry::builtin().find(&case.group, "v1", &case.plural).expect("is served");
    let decoded = decode::check_value(&resource, case.object.clone(), FieldValidation::Ignore);
    let mut object = decoded.unwrap_or_else(|status| panic!("{}: {status}", case.name)).object;
    defaults::apply(&resource, &mut object);
    if resource.namespaced {
        object["metadata"]["namespace"] = "ns".into();
    }
    strategy::prepare_create(&resource, &mut object);
    let errors = validate::create(&resource, &object);
    errors.iter().map(|e| (e.field.clone(), e.kind.reason().to_owned(), e.body())).collect()
}

/// Whether a sentence is as expected.
fn fits(found: &str, expected: &str) -> bool {
    match expected.split_once('*').filter(|(start, _)| start.ends_with("value: ")) {
        Some((start, end)) => found.starts_with(start) && found.ends_with(end),
        None => found == expected,
    }
}

#[test]
fn recorded_creates_are_judged_as_they_were() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("data/validation.json")).expect("well-formed");
    assert!(cases.len() > 100);
    let mut wrong = String::new();
    for case in &cases {
        let found = found(case);
        let same = found.len() == case.causes.len()
            && found.iter().zip(&case.causes).all(|(f, e)| f.0 == e.0 && f.1 == e.1 && fits(&f.2, &e.2));
        if !same {
            wrong += &format!("{}\n  expected {:#?}\n  found    {:#?}\n", case.name, case.causes, found);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
