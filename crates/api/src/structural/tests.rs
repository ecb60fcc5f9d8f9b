//! What the parts of the structural schema do together, for any schema and any value.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Any JSON.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3i64..20).prop_map(Value::from),
        (-2.0f64..2.0).prop_map(Value::from),
        "[a-c]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Schemas as definitions hold them, with defaults that may or may not fit.
fn any_schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "string", "maxLength": 2, "pattern": "^a"})),
        Just(json!({"type": "string", "nullable": true})),
        Just(json!({"type": "string", "default": "b", "enum": ["a", "b"]})),
        Just(json!({"type": "integer", "minimum": 1, "multipleOf": 2})),
        Just(json!({"type": "number", "default": 1.5, "maximum": 1, "exclusiveMaximum": true})),
        Just(json!({"type": "boolean", "default": true})),
        Just(json!({"x-kubernetes-int-or-string": true})),
        Just(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})),
        Just(json!({"type": "object", "default": {"a": {}}, "properties": {"a": {"type": "object", "properties": {
            "b": {"type": "string", "default": "x"}}}}})),
        Just(json!({"type": "string", "format": "date-time", "not": {"enum": ["a"]}})),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::btree_map("[a-d]", inner.clone(), 0..4).prop_map(
                |map| json!({"type": "object", "properties": map, "required": ["a"], "anyOf": [{"required": ["b"]}, {"required": ["c"]}]})
            ),
            inner.clone().prop_map(|schema| json!({"type": "object", "additionalProperties": schema})),
            inner.clone().prop_map(|schema| json!({"type": "array", "items": schema, "maxItems": 2, "uniqueItems": true})),
            inner.clone().prop_map(|schema| json!({"type": "array", "items": schema, "x-kubernetes-list-type": "set"})),
            inner.prop_map(|schema| json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"],
                "items": {"type": "object", "properties": {"a": schema}}})),
        ]
    })
}

proptest! {
    #[test]
    fn pruning_and_defaulting_again_change_nothing(schema in any_schema(), value in any_json()) {
        let schema = parse(&schema).expect("patterns are well-formed");
        let mut once = value;
        prune(&schema, &mut once, &mut |_| {});
        let mut again = once.clone();
        let mut unknown = Vec::new();
        prune(&schema, &mut again, &mut |path| unknown.push(path));
        prop_assert_eq!(&once, &again);
        prop_assert!(unknown.is_empty());
        apply_defaults(&schema, &mut once);
        drop_nulls(&schema, &mut once);
        let mut again = once.clone();
        apply_defaults(&schema, &mut again);
        drop_nulls(&schema, &mut again);
        prop_assert_eq!(once, again);
    }

    #[test]
    fn nothing_panics_whatever_the_schema_says(schema in any_json(), value in any_json()) {
        let _ = crate::crd::create(&json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": schema.clone()}}]}}));
        let Ok(schema) = parse(&schema) else { return Ok(()) };
        let mut value = value;
        prune(&schema, &mut value, &mut |_| {});
        apply_defaults(&schema, &mut value);
        let mut out = Vec::new();
        validate(&schema, &value, "", &mut out);
        check_lists(&schema, &value, "", &mut out);
    }

    #[test]
    fn findings_name_places_that_exist(schema in any_schema(), value in any_json()) {
        let schema = parse(&schema).expect("patterns are well-formed");
        let mut out = Vec::new();
        validate(&schema, &value, "", &mut out);
        check_lists(&schema, &value, "", &mut out);
        for error in out.iter().filter(|e| e.kind != crate::status::ErrorKind::Required && e.field != "<nil>") {
            let text = format!("{}{}", if error.field.is_empty() || error.field.starts_with('[') { "" } else { "." }, error.field);
            let found = path::JsonPath::parse(&text).expect("a path");
            prop_assert_eq!(found.find(&value).len(), 1, "{}", error);
        }
    }
}

/// What is found wrong, as text.
fn findings(schema: Value, value: Value) -> Vec<String> {
    let schema = parse(&schema).expect("a schema");
    let mut out = Vec::new();
    validate(&schema, &value, "", &mut out);
    out.iter().map(ToString::to_string).collect()
}

#[test]
fn junctors_say_what_they_wanted_and_what_came_nearest() {
    let choice = json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "oneOf": [{"required": ["a"]}, {"required": ["b"]}]});
    assert_eq!(
        findings(choice.clone(), json!({})),
        [
            "<nil>: Invalid value: \"\": \"\" must validate one and only one schema (oneOf). Found none valid",
            "a: Required value"
        ]
    );
    assert_eq!(findings(choice.clone(), json!({"a": 1})), [""; 0]);
    assert_eq!(findings(choice, json!({"a": 1, "b": 1})).len(), 1);
    let all = json!({"type": "object", "allOf": [{"required": ["a"]}, {"not": {"required": ["b"]}}]});
    assert_eq!(findings(all.clone(), json!({"a": 1})), [""; 0]);
    assert!(findings(all, json!({"a": 1, "b": 1}))[0].contains("must validate all the schemas (allOf)"));
}

#[test]
fn sizes_and_steps_are_counted() {
    let of = |schema: Value, value: Value| {
        findings(json!({"type": "object", "properties": {"x": schema}}), json!({"x": value}))
    };
    assert_eq!(
        of(json!({"type": "string", "maxLength": 2}), json!("äöü")),
        ["x: Too long: may not be more than 2 bytes"]
    );
    assert_eq!(
        of(json!({"type": "string", "minLength": 2}), json!("ä")),
        ["x: Invalid value: \"ä\": x in body should be at least 2 chars long"]
    );
    assert_eq!(
        of(json!({"type": "array", "maxItems": 1}), json!([1, 2])),
        ["x: Too many: 2: must have at most 1 item"]
    );
    assert_eq!(of(json!({"type": "number", "multipleOf": 0.1}), json!(0.3)), [""; 0]);
    assert_eq!(of(json!({"type": "number", "multipleOf": 0.1}), json!(0.35)).len(), 1);
    assert_eq!(
        of(json!({"type": "integer", "minimum": 1, "exclusiveMinimum": true}), json!(1)),
        ["x: Invalid value: 1: x in body should be greater than 1"]
    );
    assert_eq!(of(json!({"type": "integer"}), json!(1.0)), [""; 0]);
    assert_eq!(
        of(json!({"type": "string", "format": "date"}), json!("today")),
        ["x: Invalid value: \"today\": x in body must be of type date: \"today\""]
    );
}
