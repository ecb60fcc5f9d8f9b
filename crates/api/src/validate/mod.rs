//! The rules that objects have to follow, with upstream's paths and sentences.

use serde_json::Value;

use crate::resource::Resource;
use crate::status::FieldError;

/// What is wrong with a new object.
pub fn create(_resource: &Resource, _new: &Value) -> Vec<FieldError> {
    Vec::new()
}

/// What is wrong with a changed object.
pub fn update(_resource: &Resource, _new: &Value, _old: &Value) -> Vec<FieldError> {
    Vec::new()
}

/// What is wrong with a changed status.
pub fn status_update(_resource: &Resource, _new: &Value, _old: &Value) -> Vec<FieldError> {
    Vec::new()
}
