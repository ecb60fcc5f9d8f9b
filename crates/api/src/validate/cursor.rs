//! A place in an object: its value together with its path, as findings name it.

use serde_json::Value;

use crate::status::{ErrorKind, FieldError};

/// JSON null, for what is not there.
static NULL: Value = Value::Null;

/// Findings, collected in the order of the checks.
pub(super) type Errors = Vec<FieldError>;

/// The sentence for numbers below zero.
pub(super) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
/// The sentence for what may not change.
pub(super) const IMMUTABLE: &str = "field is immutable";

/// A value and where it is.
#[derive(Debug, Clone)]
pub(super) struct At<'a> {
    /// The value; null if it is not there.
    pub value: &'a Value,
    /// Such as `spec.containers[0].name`.
    pub path: String,
}

impl<'a> At<'a> {
    /// The whole object.
    pub(super) fn root(value: &'a Value) -> Self {
        Self { value, path: String::new() }
    }

    /// A member by name.
    pub(super) fn field(&self, name: &str) -> At<'a> {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        At { value: self.value.get(name).unwrap_or(&NULL), path }
    }

    /// The same value under another path: where upstream names it differently.
    pub(super) fn named(&self, path: String) -> At<'a> {
        At { value: self.value, path }
    }

    /// A member of a map, as `path[key]`.
    pub(super) fn key(&self, key: &str) -> At<'a> {
        At { value: self.value.get(key).unwrap_or(&NULL), path: format!("{}[{key}]", self.path) }
    }

    /// The items of a list.
    pub(super) fn items(&self) -> impl Iterator<Item = At<'a>> + use<'a> {
        let path = self.path.clone();
        let items = self.value.as_array().into_iter().flatten().enumerate();
        items.map(move |(index, value)| At { value, path: format!("{path}[{index}]") })
    }

    /// The members of a map, as `path[key]`.
    pub(super) fn members(&self) -> impl Iterator<Item = (&'a String, At<'a>)> + use<'a> {
        let path = self.path.clone();
        let members = self.value.as_object().into_iter().flatten();
        members.map(move |(key, value)| (key, At { value, path: format!("{path}[{key}]") }))
    }

    /// The text; empty if there is none.
    pub(super) fn text(&self) -> &'a str {
        self.value.as_str().unwrap_or("")
    }

    /// The number; 0 if there is none.
    pub(super) fn number(&self) -> i64 {
        self.value.as_i64().unwrap_or(0)
    }

    /// Whether anything is there.
    pub(super) fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    /// How many items or members there are.
    pub(super) fn len(&self) -> usize {
        match self.value {
            Value::Array(items) => items.len(),
            Value::Object(members) => members.len(),
            _ => 0,
        }
    }

    /// A finding about this value.
    pub(super) fn invalid(&self, detail: impl Into<String>) -> FieldError {
        // An absent text was an empty one for upstream.
        FieldError::new(ErrorKind::Invalid, &self.path, Some(self.value.clone()), detail)
    }

    /// A finding that something is missing here.
    pub(super) fn required(&self, detail: &str) -> FieldError {
        FieldError::required(&self.path, detail)
    }

    /// A finding that something may not be here.
    pub(super) fn forbidden(&self, detail: impl Into<String>) -> FieldError {
        FieldError::forbidden(&self.path, detail)
    }

    /// A finding that this value is there already.
    pub(super) fn duplicate(&self) -> FieldError {
        FieldError::duplicate(&self.path, self.value.clone())
    }

    /// Findings for every sentence of a name check.
    pub(super) fn check(&self, check: impl Fn(&str) -> Vec<String>, out: &mut Errors) {
        out.extend(
            check(self.text()).into_iter().map(|sentence| FieldError::invalid(&self.path, self.text(), sentence)),
        );
    }

    /// [`Self::check`], and a finding if there is no text.
    pub(super) fn check_required(&self, check: impl Fn(&str) -> Vec<String>, out: &mut Errors) {
        if self.text().is_empty() {
            out.push(self.required(""));
        } else {
            self.check(check, out);
        }
    }

    /// [`Self::check`] if there is a text.
    pub(super) fn check_if_set(&self, check: impl Fn(&str) -> Vec<String>, out: &mut Errors) {
        if !self.text().is_empty() {
            self.check(check, out);
        }
    }

    /// A finding if there is no text.
    pub(super) fn require(&self, out: &mut Errors) {
        if self.text().is_empty() {
            out.push(self.required(""));
        }
    }

    /// The value must be one of `choices`; absent is as wrong as another value.
    pub(super) fn one_of(&self, choices: &[&str], out: &mut Errors) {
        if self.text().is_empty() {
            out.push(self.required(""));
        } else {
            self.one_of_if_set(choices, out);
        }
    }

    /// The value must be one of `choices`; absent is another value like any.
    pub(super) fn one_of_or_empty(&self, choices: &[&str], out: &mut Errors) {
        if !choices.contains(&self.text()) {
            out.push(FieldError::not_supported(&self.path, self.text(), choices));
        }
    }

    /// The value must be one of `choices` if it is there.
    pub(super) fn one_of_if_set(&self, choices: &[&str], out: &mut Errors) {
        if self.is_set() && !choices.contains(&self.text()) {
            out.push(FieldError::not_supported(&self.path, self.value.clone(), choices));
        }
    }

    /// The number must not be below zero.
    pub(super) fn not_negative(&self, out: &mut Errors) {
        if self.number() < 0 {
            out.push(self.invalid(NOT_NEGATIVE));
        }
    }

    /// The value must be what it was.
    pub(super) fn immutable(&self, old: &Value, out: &mut Errors) {
        if self.value != old {
            out.push(self.invalid(IMMUTABLE));
        }
    }
}
