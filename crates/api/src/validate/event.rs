//! Rules for events: lenient ones for the core group, as ever; strict ones for events.k8s.io.
//!
//! Findings name fields as they are stored, in both groups, as upstream's do.

use serde_json::Value;

use super::cursor::{At, Errors};
use crate::events;
use crate::names;
use crate::status::FieldError;

/// Longest reporting instance, action and reason.
const WORD_MAX: usize = 128;
/// Longest message.
const NOTE_MAX: usize = 1024;

/// A new or changed event of the core group.
pub(super) fn core(event: &At<'_>, out: &mut Errors) {
    basic(event, out);
}

/// A new or changed event of events.k8s.io.
pub(super) fn strict(event: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    let mut stored = event.value.clone();
    events::to_stored(&mut stored);
    let event = At::root(&stored);
    basic(&event, out);
    match old {
        None => new(&event, out),
        Some(old) => {
            let mut old = old.clone();
            events::to_stored(&mut old);
            changed(&event, &old, out);
        }
    }
}

/// What holds for every event.
fn basic(event: &At<'_>, out: &mut Errors) {
    let namespace = event.value.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
    let about = event.field("involvedObject").field("namespace");
    let elsewhere = FieldError::invalid(&about.path, about.text(), "does not match event.namespace");
    let text = |name: &str| event.value.get(name).and_then(Value::as_str).unwrap_or_default();
    if !event.field("eventTime").is_set() {
        // Events about what lies in no namespace lie in the default one.
        let fits = if about.text().is_empty() {
            namespace.is_empty() || namespace == "default"
        } else {
            about.text() == namespace
        };
        if !fits {
            out.push(elsewhere);
        }
    } else {
        if about.text().is_empty() && !matches!(namespace, "default" | "kube-system") {
            out.push(elsewhere);
        }
        let controller = text("reportingComponent");
        if controller.is_empty() {
            out.push(FieldError::required("reportingController", ""));
        }
        let wrong = names::qualified_name(controller).into_iter();
        out.extend(wrong.map(|sentence| FieldError::invalid("reportingController", controller, sentence)));
        for name in ["reportingInstance", "action", "reason"] {
            if text(name).is_empty() {
                out.push(FieldError::required(name, ""));
            }
            at_most(name, text(name), WORD_MAX, out);
        }
        at_most("message", text("message"), NOTE_MAX, out);
    }
    let wrong = names::dns1123_subdomain(namespace).into_iter();
    out.extend(wrong.map(|sentence| FieldError::invalid("namespace", namespace, sentence)));
}

/// A finding if a text is too long.
fn at_most(name: &str, text: &str, most: usize, out: &mut Errors) {
    if text.len() > most {
        out.push(FieldError::invalid(name, "", format!("can have at most {most} characters")));
    }
}

/// What holds for new events.
fn new(event: &At<'_>, out: &mut Errors) {
    series(event, out);
    if !event.field("eventTime").is_set() {
        out.push(FieldError::required("eventTime", ""));
    }
    let kind = event.field("type").text();
    if !matches!(kind, "Normal" | "Warning") {
        out.push(FieldError::invalid("type", "", format!("has invalid value: {kind}")));
    }
    let mut unset = |name: &str, is_set: bool| {
        if is_set {
            out.push(FieldError::invalid(name, "", "needs to be unset"));
        }
    };
    unset("firstTimestamp", event.field("firstTimestamp").is_set());
    unset("lastTimestamp", event.field("lastTimestamp").is_set());
    unset("count", event.field("count").number() != 0);
    let source = event.field("source");
    unset("source", !source.field("component").text().is_empty() || !source.field("host").text().is_empty());
}

/// What may not change.
fn changed(event: &At<'_>, old: &Value, out: &mut Errors) {
    if event.field("series").value != &old["series"] {
        series(event, out);
    }
    let fixed = [
        ("involvedObject", "involvedObject"),
        ("reason", "reason"),
        ("message", "message"),
        ("source", "source"),
        ("firstTimestamp", "firstTimestamp"),
        ("lastTimestamp", "lastTimestamp"),
        ("count", "count"),
        ("type", "type"),
        ("eventTime", "eventTime"),
        ("action", "action"),
        ("related", "related"),
        ("reportingComponent", "reportingController"),
        ("reportingInstance", "reportingInstance"),
    ];
    for (name, shown) in fixed {
        event.field(name).named(shown.to_owned()).immutable(&old[name], out);
    }
}

/// A series has begun with the second event.
fn series(event: &At<'_>, out: &mut Errors) {
    let series = event.field("series");
    if !series.is_set() {
        return;
    }
    if series.field("count").number() < 2 {
        out.push(FieldError::invalid("series.count", "", "should be at least 2"));
    }
    if !series.field("lastObservedTime").is_set() {
        out.push(FieldError::required("series.lastObservedTime", ""));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event() -> Value {
        json!({"metadata": {"name": "a", "namespace": "ns"}, "eventTime": "2021-01-01T00:00:00.000001Z",
            "reportingController": "golden.example/c", "reportingInstance": "c-1", "action": "Testing", "reason": "Tested",
            "type": "Normal", "note": "a note", "regarding": {"kind": "Pod", "name": "p", "namespace": "ns"}})
    }

    fn found(new: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = Errors::new();
        strict(&At::root(new), old, &mut out);
        out.into_iter().map(|error| format!("{}: {}", error.field, error.detail)).collect()
    }

    #[test]
    fn a_complete_event_is_taken() {
        assert_eq!(found(&event(), None), Vec::<String>::new());
    }

    #[test]
    fn new_events_are_held_to_strict_rules() {
        for (pointer, value, expected) in [
            ("eventTime", Value::Null, "eventTime: "),
            ("type", json!("Odd"), "type: has invalid value: Odd"),
            ("deprecatedCount", json!(2), "count: needs to be unset"),
            ("deprecatedSource", json!({"component": "x"}), "source: needs to be unset"),
            ("deprecatedLastTimestamp", json!("2021-01-01T00:00:00Z"), "lastTimestamp: needs to be unset"),
            ("reportingInstance", json!(""), "reportingInstance: "),
            ("action", json!("x".repeat(129)), "action: can have at most 128 characters"),
            ("note", json!("x".repeat(1025)), "message: can have at most 1024 characters"),
            ("series", json!({"count": 1, "lastObservedTime": null}), "series.count: should be at least 2"),
        ] {
            let mut wrong = event();
            wrong[pointer] = value;
            let found = found(&wrong, None);
            assert!(found.iter().any(|line| line == expected), "{pointer}: {found:?}");
        }
    }

    #[test]
    fn only_the_series_of_an_event_changes() {
        let mut new = event();
        new["series"] = json!({"count": 2, "lastObservedTime": "2021-01-01T00:00:00.000001Z"});
        assert_eq!(found(&new, Some(&event())), Vec::<String>::new());
        new["note"] = json!("other");
        new["reportingController"] = json!("other");
        assert_eq!(
            found(&new, Some(&event())),
            ["message: field is immutable", "reportingController: field is immutable"]
        );
    }

    #[test]
    fn old_events_lie_in_the_namespace_that_they_are_about() {
        let core_found = |event: Value| {
            let mut out = Errors::new();
            core(&At::root(&event), &mut out);
            out.len()
        };
        let event = |about: &str, namespace: &str| json!({"metadata": {"namespace": namespace}, "involvedObject": {"namespace": about}});
        assert_eq!(core_found(event("a", "a")), 0);
        assert_eq!(core_found(event("", "default")), 0);
        assert_eq!(core_found(event("", "a")), 1);
        assert_eq!(core_found(event("b", "a")), 1);
    }
}
