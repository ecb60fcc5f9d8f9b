//! Rules: what they say, and that they end.

use serde_json::json;

use super::super::{check_rules, parse};
use super::*;

/// What rules find wrong, as text.
fn findings(schema: Value, value: Value, old: Option<Value>) -> Vec<String> {
    let schema = parse(&schema).unwrap_or_else(|why| panic!("{why}"));
    let mut out = Vec::new();
    check_rules(&schema, &value, old.as_ref(), &mut out);
    out.iter().map(ToString::to_string).collect()
}

/// A schema of an object with one rule.
fn with(rule: Value) -> Value {
    json!({"type": "object", "x-kubernetes-validations": [rule], "properties": {
        "min": {"type": "integer"}, "max": {"type": "integer"}, "name": {"type": "string"},
        "when": {"type": "string", "format": "date-time"}, "for": {"type": "string", "format": "duration"},
        "ratio": {"type": "number"}, "list": {"type": "array", "items": {"type": "string"}},
        "free": {"type": "object", "additionalProperties": {"type": "string"}}}})
}

#[test]
fn rules_hold_or_are_broken_with_their_message() {
    for (rule, value, found) in [
        (json!({"rule": "self.min <= self.max"}), json!({"min": 1, "max": 2}), ""),
        (
            json!({"rule": "self.min <= self.max"}),
            json!({"min": 3, "max": 2}),
            "Invalid value: \"object\": failed rule: self.min <= self.max",
        ),
        (
            json!({"rule": "!has(self.name) || self.name.startsWith('a')", "message": "must begin with a"}),
            json!({"name": "b"}),
            "Invalid value: \"object\": must begin with a",
        ),
        (
            json!({"rule": "self.list.all(x, x.size() < 3)", "messageExpression": "'long: ' + self.list[0]"}),
            json!({"list": ["abcd"]}),
            "Invalid value: \"object\": long: abcd",
        ),
        (
            json!({"rule": "self.min > 0", "reason": "FieldValueForbidden", "fieldPath": ".min"}),
            json!({"min": 0}),
            "min: Forbidden: failed rule: self.min > 0",
        ),
        (json!({"rule": "self.ratio < 0.5"}), json!({"ratio": 0}), ""),
        (json!({"rule": "self.__for__ > duration('1h')"}), json!({"for": "90m"}), ""),
        (json!({"rule": "self.when < timestamp('2024-01-01T00:00:00Z')"}), json!({"when": "2023-01-01T00:00:00Z"}), ""),
        (json!({"rule": "self.free.all(k, self.free[k] != '')"}), json!({"free": {"a-b": "x"}}), ""),
        (
            json!({"rule": "quantity('1Gi').isGreaterThan(quantity('1Mi')) && self.name.matches('^[a-z]+$')"}),
            json!({"name": "ab"}),
            "",
        ),
        (
            json!({"rule": "self.list.exists(x, x == 'b') && self.list.map(x, x + x).size() == 2"}),
            json!({"list": ["a", "b"]}),
            "",
        ),
    ] {
        let out = findings(with(rule.clone()), value, None);
        let found: Vec<String> = if found.is_empty() { vec![] } else { vec![found.to_owned()] };
        let out: Vec<String> = out.iter().map(|text| text.trim_start_matches(": ").to_owned()).collect();
        assert_eq!(out, found, "{rule}");
    }
}

#[test]
fn transitions_are_judged_when_there_was_something_before() {
    let schema = with(json!({"rule": "self.min >= oldSelf.min", "message": "must not shrink"}));
    assert!(findings(schema.clone(), json!({"min": 1}), None).is_empty());
    assert!(findings(schema.clone(), json!({"min": 2}), Some(json!({"min": 1}))).is_empty());
    assert_eq!(findings(schema, json!({"min": 1}), Some(json!({"min": 2}))).len(), 1);
    let optional = with(json!({"rule": "oldSelf.hasValue() || self.min == 0", "optionalOldSelf": true}));
    assert_eq!(findings(optional.clone(), json!({"min": 1}), None).len(), 1);
    assert!(findings(optional, json!({"min": 1}), Some(json!({"min": 1}))).is_empty());
}

#[test]
fn rules_that_cannot_be_are_refused() {
    for (rule, why) in [
        ("self.nosuch > 1", "undefined field 'nosuch'"),
        ("other > 1", "undeclared reference to 'other'"),
        ("self.min >", "compilation failed"),
        ("Foo{a: 1} == self", "compilation failed"),
        ("self.list.all(x, y)", "undeclared reference to 'y'"),
    ] {
        let error = parse(&with(json!({"rule": rule}))).expect_err(rule).to_string();
        assert!(error.contains(why), "{rule}: {error}");
    }
    let deep = format!("{}self.min{} > 0", "(".repeat(2000), ")".repeat(2000));
    assert!(parse(&with(json!({"rule": deep}))).is_err());
    let chain = format!("self{} == 1", ".a".repeat(3000));
    assert!(parse(&with(json!({"rule": chain}))).is_err());
}

#[test]
fn hostile_rules_end() {
    let list: Vec<String> = (0..400).map(|n| format!("{n:0>200}")).collect();
    for rule in [
        "self.list.all(a, self.list.all(b, self.list.all(c, self.list.all(d, a + b + c != d + d))))",
        "self.list.map(a, self.list.map(b, self.list.join(a))).size() > 0",
        "lists.range(1000000000).size() > 0",
        "self.list.join(',').replace('', self.list.join(',')).size() > 0",
        "self.list.all(a, self.list.all(b, self.list.all(c, a.matches(b) || true)))",
        "sets.contains(self.list.map(a, self.list.map(b, a)), self.list.map(a, self.list.map(b, b))) || true",
    ] {
        let out = findings(with(json!({"rule": rule})), json!({"list": list}), None);
        assert!(!out.is_empty() && out.iter().any(|text| text.contains("call cost exceeds limit")), "{rule}: {out:?}");
    }
    let out = findings(with(json!({"rule": "'%.1000000000f'.format([1.0]) == ''"})), json!({}), None);
    assert!(out[0].contains("precision"), "{out:?}");
}
