//! What differs between two versions of an object, field by field, as a person would name it. Pure.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::apply::without_bookkeeping;

/// Differences that are listed; the last line says that there are more.
const LIMIT: usize = 30;
/// Characters of a value that are shown.
const VALUE_LIMIT: usize = 60;
/// Fields by which items of a list are known.
const KEYS: [&str; 4] = ["name", "containerPort", "mountPath", "key"];

/// Every field that differs, as `path: before → after`. The status is not compared: nobody applies it.
pub fn differences(before: &Value, after: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let (mut before, mut after) = (without_bookkeeping(before), without_bookkeeping(after));
    for object in [&mut before, &mut after] {
        if let Some(fields) = object.as_object_mut() {
            fields.remove("status");
        }
    }
    compare(&before, &after, "", &mut found);
    if found.len() > LIMIT {
        let more = found.len() - LIMIT;
        found.truncate(LIMIT);
        found.push(format!("… and {more} more"));
    }
    found
}

fn compare(before: &Value, after: &Value, path: &str, found: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(left), Value::Object(right)) => {
            let keys: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(left.get(key).unwrap_or(&Value::Null), right.get(key).unwrap_or(&Value::Null), &path, found);
            }
        }
        (Value::Array(left), Value::Array(right)) => match key_of(left, right) {
            Some(key) => {
                let named = |items: &'_ [Value], name: &Value| items.iter().find(|item| item[key] == *name).cloned();
                let mut names: Vec<&Value> = Vec::new();
                for item in left.iter().chain(right) {
                    if !names.contains(&&item[key]) {
                        names.push(&item[key]);
                    }
                }
                for name in names {
                    let path = format!("{path}[{}]", plain(name));
                    let (one, other) = (named(left, name).unwrap_or_default(), named(right, name).unwrap_or_default());
                    compare(&one, &other, &path, found);
                }
            }
            None if left != right => found.push(format!("{path}: {} → {}", shown(before), shown(after))),
            None => {}
        },
        _ if before != after => found.push(format!("{path}: {} → {}", shown(before), shown(after))),
        _ => {}
    }
}

/// The field that names every item of both lists, each once.
fn key_of(left: &[Value], right: &[Value]) -> Option<&'static str> {
    let names = |list: &[Value], key: &str| {
        let values: BTreeSet<String> = list.iter().filter_map(|item| item.get(key)).map(ToString::to_string).collect();
        values.len() == list.len()
    };
    KEYS.into_iter().find(|key| names(left, key) && names(right, key) && !(left.is_empty() && right.is_empty()))
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::Null => return "(none)".to_owned(),
        other => plain(other),
    };
    match text.char_indices().nth(VALUE_LIMIT) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn items_are_named_and_bookkeeping_is_none() {
        let before = json!({"metadata": {"resourceVersion": "1"}, "spec": {"replicas": 1,
            "containers": [{"name": "app", "image": "a:1"}, {"name": "log", "image": "l"}]}, "status": {"x": 1}});
        let after = json!({"metadata": {"resourceVersion": "2"}, "spec": {"replicas": 3,
            "containers": [{"name": "app", "image": "a:2"}]}});
        assert_eq!(
            differences(&before, &after),
            [
                "spec.containers[app].image: a:1 → a:2",
                "spec.containers[log]: {\"image\":\"l\",\"name\":\"log\"} → (none)",
                "spec.replicas: 1 → 3",
            ]
        );
    }

    #[test]
    fn long_lists_of_differences_are_cut() {
        let many = |value: i32| Value::Object((0..50).map(|n| (format!("f{n:02}"), json!(value))).collect());
        let found = differences(&many(1), &many(2));
        assert_eq!((found.len(), found.last().map(String::as_str)), (31, Some("… and 20 more")));
    }
}
