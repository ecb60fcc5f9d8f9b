//! Tables of custom kinds: columns and cells as the definition says.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::human_duration;
use super::text::at;
use crate::crd::{Column, Custom};

/// What is shown for a time that is none.
const INVALID: &str = "<invalid>";

/// The column definitions.
pub(super) fn columns(custom: &Custom) -> Vec<Value> {
    let name = json!({"name": "Name", "type": "string", "format": "name", "description": "Name of the object.", "priority": 0});
    let own = custom.columns.iter().map(|column| {
        json!({"name": column.name, "type": column.kind, "format": column.format, "description": column.description,
            "priority": column.priority})
    });
    [name].into_iter().chain(own).collect()
}

/// The cells of one object.
pub(super) fn cells(custom: &Custom, item: &Value, now: Timestamp) -> Vec<Value> {
    let name: Value = at(item, "/metadata/name").into();
    [name].into_iter().chain(custom.columns.iter().map(|column| cell(column, item, now))).collect()
}

/// One cell; null where there is no value of the column's type.
fn cell(column: &Column, item: &Value, now: Timestamp) -> Value {
    let found = column.path.as_ref().and_then(|path| path.find(item).first().copied());
    match (column.kind.as_str(), found) {
        (_, None | Some(Value::Null)) => Value::Null,
        ("integer", Some(Value::Number(n))) => n.as_i64().or_else(|| n.as_f64().map(|f| f as i64)).into(),
        ("number", Some(Value::Number(n))) => n.clone().into(),
        ("boolean", Some(Value::Bool(flag))) => (*flag).into(),
        ("string", Some(Value::String(text))) => text.clone().into(),
        ("string", Some(other)) => other.to_string().into(),
        ("date", Some(Value::String(text))) => match text.parse::<Timestamp>() {
            Ok(then) => human_duration(now.as_second() - then.as_second()).into(),
            Err(_) => INVALID.into(),
        },
        _ => Value::Null,
    }
}
