//! Objects of every kind through the decoders: JSON, YAML, the binary form.

use std::sync::Arc;

use serde_json::Value;
use statefuld_api::decode::{FieldValidation, MediaType, check_value, decode};
use statefuld_api::resource::{Registry, Resource};
use statefuld_api::schema::Schema;
use statefuld_api::{defaults, protobuf, strategy, table, validate};

use crate::for_seeds;
use crate::generate::{Rng, any, mutate, scramble, valid};

/// One of the kinds.
fn kind(rng: &mut Rng) -> Arc<Resource> {
    let all: Vec<_> = Registry::builtin().all().into_iter().filter(|r| protobuf::has_form(&r.type_name)).collect();
    rng.pick(&all).clone()
}

/// An object that decodes as its kind, in its stored form.
fn object(resource: &Resource, rng: &mut Rng) -> Value {
    let schema = Schema::builtin();
    let mut made = valid(schema, schema.find(&resource.type_name).expect("a known type"), rng, 0);
    if rng.one_in(2) {
        defaults::apply(resource, &mut made);
    }
    // Templates of claims name their kind, which the binary form has no place for.
    for claim in made.pointer_mut("/spec/volumeClaimTemplates").and_then(Value::as_array_mut).into_iter().flatten() {
        claim.as_object_mut().into_iter().for_each(|c| c.retain(|name, _| name != "apiVersion" && name != "kind"));
    }
    check_value(resource, made, FieldValidation::Ignore).expect("generated along the schema").object
}

#[test]
fn what_is_stored_survives_the_binary_form() {
    for_seeds(400, |rng| {
        let resource = kind(rng);
        let stored = object(&resource, rng);
        let bytes = protobuf::encode(&resource.type_name, &stored).expect("a known type");
        let read = protobuf::decode(&resource.type_name, &bytes).expect("what was written");
        let again = check_value(&resource, read, FieldValidation::Strict).expect("of its type").object;
        assert_eq!(again, stored, "{}", resource.type_name);
        // And writing is a function of the object alone.
        assert_eq!(protobuf::encode(&resource.type_name, &again).expect("a known type"), bytes);
    });
}

#[test]
fn the_normal_form_is_normal() {
    for_seeds(200, |rng| {
        let resource = kind(rng);
        let stored = object(&resource, rng);
        let text = serde_json::to_vec(&stored).expect("a value");
        let read = decode(&resource, &text, MediaType::Json, FieldValidation::Strict).expect("what was written");
        assert_eq!(read.object, stored);
        assert!(read.warnings.is_empty(), "{:?}", read.warnings);
    });
}

#[test]
fn yaml_reads_as_the_json_it_stands_for() {
    for_seeds(60, |rng| {
        let resource = kind(rng);
        let stored = object(&resource, rng);
        let text = serde_saphyr::to_string(&stored).expect("a value");
        let read = decode(&resource, text.as_bytes(), MediaType::Yaml, FieldValidation::Ignore);
        assert_eq!(read.map(|d| d.object).map_err(|s| s.message), Ok(stored), "{text}");
    });
}

#[test]
fn any_bytes_are_read_or_refused() {
    for_seeds(400, |rng| {
        let resource = kind(rng);
        let stored = object(&resource, rng);
        let media = *rng.pick(&[MediaType::Json, MediaType::Yaml, MediaType::Protobuf]);
        let mut bytes = match media {
            MediaType::Protobuf => protobuf::encode(&resource.type_name, &stored).expect("a known type"),
            _ => serde_json::to_vec(&stored).expect("a value"),
        };
        scramble(&mut bytes, rng);
        let mode = *rng.pick(&[FieldValidation::Strict, FieldValidation::Warn, FieldValidation::Ignore]);
        if let Err(status) = decode(&resource, &bytes, media, mode) {
            assert!((400..500).contains(&status.code), "{status:?}");
        }
    });
}

#[test]
fn whatever_decodes_goes_all_the_way() {
    for_seeds(400, |rng| {
        let resource = kind(rng);
        let mut made = if rng.one_in(8) { any(rng, 0) } else { object(&resource, rng) };
        for _ in 0..rng.below(4) {
            mutate(&mut made, rng);
        }
        let Ok(decoded) = check_value(&resource, made, FieldValidation::Ignore) else { return };
        let mut new = decoded.object;
        defaults::apply(&resource, &mut new);
        let old = new.clone();
        strategy::prepare_create(&resource, &mut new);
        let _ = validate::create(&resource, &new);
        for _ in 0..rng.below(3) {
            mutate(&mut new, rng);
        }
        let Ok(decoded) = check_value(&resource, new, FieldValidation::Ignore) else { return };
        let mut new = decoded.object;
        strategy::prepare_update(&resource, &mut new, &old);
        let _ = validate::update(&resource, &new, &old);
        let _ = validate::status_update(&resource, &new, &old);
        let _ = statefuld_api::selector::fields(&resource, &new);
        let now = jiff::Timestamp::from_second(1_700_000_000).expect("a time");
        let _ = table::render(&resource, &[&new, &old], now, table::IncludeObject::Object);
        let _ = protobuf::encode(&resource.type_name, &new);
    });
}

#[test]
fn defaults_settle_at_once() {
    for_seeds(200, |rng| {
        let resource = kind(rng);
        let mut once = object(&resource, rng);
        defaults::apply(&resource, &mut once);
        let mut twice = once.clone();
        defaults::apply(&resource, &mut twice);
        assert_eq!(twice, once, "{}", resource.type_name);
    });
}
