//! scale of a custom kind: where the numbers are.

use serde_json::{Map, Value};

use crate::status::FieldError;
use crate::structural::path;

/// Where objects of a kind hold their replicas.
#[derive(Debug)]
pub struct Scale {
    /// Path of the number that is wanted, such as `.spec.replicas`.
    pub spec_path: String,
    /// Path of the number that there is.
    pub status_path: String,
    /// Path of the selector of their pods.
    pub selector_path: Option<String>,
}

impl Scale {
    /// Reads the paths of a definition's version.
    pub(super) fn read(scale: &Value) -> Option<Self> {
        Some(Scale {
            spec_path: scale.get("specReplicasPath")?.as_str()?.to_owned(),
            status_path: scale.get("statusReplicasPath")?.as_str()?.to_owned(),
            selector_path: scale
                .get("labelSelectorPath")
                .and_then(Value::as_str)
                .filter(|p| !p.is_empty())
                .map(str::to_owned),
        })
    }

    /// How many are wanted; `None` if the object does not say.
    pub fn wanted(&self, object: &Value) -> Result<Option<i64>, String> {
        number(object, &self.spec_path)
    }

    /// How many there are.
    pub fn present(&self, object: &Value) -> Result<Option<i64>, String> {
        number(object, &self.status_path)
    }

    /// The selector of their pods.
    pub fn selector(&self, object: &Value) -> Result<Option<String>, String> {
        let Some(path) = &self.selector_path else { return Ok(None) };
        match at(object, path)? {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(format!(
                "{path} accessor error: {} is of the type {}, expected string",
                shown(other),
                go_type(other)
            )),
        }
    }

    /// Sets how many are wanted.
    pub fn set_wanted(&self, object: &mut Value, replicas: i64) {
        let mut place = object;
        for name in path::simple(&self.spec_path) {
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            place = &mut place[name.as_str()];
        }
        *place = replicas.into();
    }

    /// What is wrong with the number that is wanted.
    pub(super) fn check_spec(&self, object: &Value, out: &mut Vec<FieldError>) {
        check_number(&self.spec_path, self.wanted(object), out);
    }

    /// What is wrong with what is said about the state.
    pub(super) fn check_status(&self, object: &Value, out: &mut Vec<FieldError>) {
        check_number(&self.status_path, self.present(object), out);
        if let (Some(path), Err(why)) = (&self.selector_path, self.selector(object)) {
            out.push(FieldError::invalid(path.clone(), "", why));
        }
    }
}

/// A number of replicas is a whole one of 32 bits that is not negative.
fn check_number(path: &str, found: Result<Option<i64>, String>, out: &mut Vec<FieldError>) {
    match found {
        Err(why) => out.push(FieldError::invalid(path, 0, why)),
        Ok(Some(n)) if n < 0 => out.push(FieldError::invalid(path, n, "should be a non-negative integer")),
        Ok(Some(n)) if n > i64::from(i32::MAX) => {
            out.push(FieldError::invalid(path, n, format!("should be less than or equal to {}", i32::MAX)));
        }
        Ok(_) => {}
    }
}

/// The whole number at a path.
fn number(object: &Value, path: &str) -> Result<Option<i64>, String> {
    match at(object, path)? {
        None => Ok(None),
        Some(Value::Number(n)) if n.as_i64().is_some() => Ok(n.as_i64()),
        Some(other) => {
            Err(format!("{path} accessor error: {} is of the type {}, expected int64", shown(other), go_type(other)))
        }
    }
}

/// What is at a path.
fn at<'v>(object: &'v Value, path: &str) -> Result<Option<&'v Value>, String> {
    let mut place = object;
    for name in path::simple(path) {
        match place {
            Value::Object(map) => match map.get(&name) {
                Some(inner) => place = inner,
                None => return Ok(None),
            },
            other => {
                return Err(format!(
                    "{path} accessor error: {} is of the type {}, expected map[string]interface{{}}",
                    shown(other),
                    go_type(other)
                ));
            }
        }
    }
    Ok(Some(place))
}

/// A value in a sentence.
fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A type as sentences name it.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}
