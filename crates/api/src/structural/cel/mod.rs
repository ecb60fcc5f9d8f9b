//! Rules in the Common Expression Language: `x-kubernetes-validations`.
//!
//! A rule is compiled when its definition is read, and evaluated wherever its schema applies to a value. The
//! interpreter knows no limit of its own; so every rule is rewritten before it is run ([`budget`]): each call,
//! each selection and each round of a loop pays for what it does out of a budget, and the rule ends when that is spent.

use serde_json::Value;

use super::{Additional, ListType, Structural, child};
use crate::status::{ErrorKind, FieldError};

mod budget;
mod scope;
mod values;

#[cfg(test)]
mod tests;

use budget::Program;

/// Longest text of a rule, in bytes.
const MAX_RULE_BYTES: usize = 8192;
/// Longest message that an expression makes, in bytes.
const MAX_MESSAGE_BYTES: usize = 5 * 1024;
/// What one rule may spend on one value.
const RULE_BUDGET: u64 = 1_000_000;
/// What all rules may spend on one object.
const OBJECT_BUDGET: u64 = 3_000_000;

/// One rule of a schema.
pub struct Rule {
    text: String,
    program: Program,
    message: String,
    message_expression: Option<Program>,
    reason: ErrorKind,
    field_path: String,
    optional_old: bool,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rule({:?})", self.text)
    }
}

impl Rule {
    /// Compiles one entry of `x-kubernetes-validations` for values of this schema. Errors name the field of the
    /// entry that is wrong.
    pub(crate) fn parse(entry: &Value, schema: &Structural) -> Result<Self, FieldError> {
        let word = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (text, expression) = (word("rule"), word("messageExpression"));
        if text.trim().is_empty() {
            return Err(FieldError::required("rule", "rule is not specified"));
        }
        let compile = |field: &str, text: &str| {
            if text.len() > MAX_RULE_BYTES {
                return Err(FieldError::too_long(field, MAX_RULE_BYTES));
            }
            Program::compile(text, schema)
                .map_err(|why| FieldError::invalid(field, text, format!("compilation failed: {why}")))
        };
        let program = compile("rule", &text)?;
        let optional_old = entry.get("optionalOldSelf") == Some(&Value::Bool(true));
        if entry.get("optionalOldSelf").is_some_and(|v| !v.is_null()) && !program.uses_old {
            return Err(FieldError::invalid(
                "optionalOldSelf",
                optional_old,
                "must not be set if oldSelf is not used in rule",
            ));
        }
        let message = word("message");
        if message.contains(['\n', '\r']) {
            return Err(FieldError::invalid("message", message, "message must not contain line breaks"));
        }
        if text.contains('\n') && message.trim().is_empty() && expression.is_empty() {
            return Err(FieldError::required("message", "message must be specified if rule contains line breaks"));
        }
        let reason = match word("reason").as_str() {
            "" | "FieldValueInvalid" => ErrorKind::Invalid,
            "FieldValueForbidden" => ErrorKind::Forbidden,
            "FieldValueRequired" => ErrorKind::Required,
            "FieldValueDuplicate" => ErrorKind::Duplicate,
            other => {
                let known = ["FieldValueRequired", "FieldValueInvalid", "FieldValueForbidden", "FieldValueDuplicate"];
                return Err(FieldError::not_supported("reason", other, &known));
            }
        };
        let message_expression =
            if expression.is_empty() { None } else { Some(compile("messageExpression", &expression)?) };
        Ok(Rule { text, program, message, message_expression, reason, field_path: word("fieldPath"), optional_old })
    }

    /// Judges one value; `old` is what it was, where that is known.
    fn judge(
        &self,
        schema: &Structural,
        value: &Value,
        old: Option<&Value>,
        path: &str,
        left: &mut u64,
    ) -> Option<FieldError> {
        if self.program.uses_old && old.is_none() && !self.optional_old {
            return None;
        }
        let own = values::of(value, schema);
        let before = old.map(|old| values::of(old, schema));
        let limit = RULE_BUDGET.min(*left);
        let outcome = self.program.run(&own, before.as_ref(), self.optional_old, limit, left);
        let kind = schema.kind.map_or("object", super::Kind::name);
        match outcome {
            Ok(budget::Answer::Yes) => None,
            Ok(budget::Answer::No) => {
                let message = self.message_for(&own, before.as_ref(), left);
                let at = format!("{path}{}", self.field_path);
                let at = at.strip_prefix('.').filter(|_| path.is_empty()).unwrap_or(&at).to_owned();
                let bad =
                    (!matches!(self.reason, ErrorKind::Required | ErrorKind::Forbidden)).then(|| Value::from(kind));
                Some(FieldError::new(self.reason, at, bad, message))
            }
            Ok(budget::Answer::Text(_)) => {
                let why = format!("rule evaluation error: the rule must evaluate to a bool for rule: {}", self.text);
                Some(FieldError::invalid(path, kind, why))
            }
            Err(budget::Failure::Spent) => {
                let why = format!(
                    "rule evaluation error: call cost exceeds limit for rule: {}: no further validation rules will be run",
                    self.text
                );
                *left = 0;
                Some(FieldError::invalid(path, kind, why))
            }
            Err(budget::Failure::Evaluation(why)) => {
                Some(FieldError::invalid(path, kind, format!("rule evaluation error: {why} for rule: {}", self.text)))
            }
        }
    }

    /// What is said when the rule is broken.
    fn message_for(&self, own: &values::Cel, old: Option<&values::Cel>, left: &mut u64) -> String {
        let made = self.message_expression.as_ref().and_then(|expression| {
            let limit = RULE_BUDGET.min(*left);
            match expression.run(own, old, self.optional_old, limit, left) {
                Ok(budget::Answer::Text(text)) => Some(text),
                _ => None,
            }
        });
        let made = made.filter(|m| !m.trim().is_empty() && !m.contains('\n') && m.len() <= MAX_MESSAGE_BYTES);
        match made {
            Some(message) => message,
            None if !self.message.is_empty() => self.message.clone(),
            None => format!("failed rule: {}", self.text.trim()),
        }
    }
}

/// Evaluates the rules of a schema and of all below it; `old` is what the value was, if it was there.
pub fn check_rules(schema: &Structural, value: &Value, old: Option<&Value>, out: &mut Vec<FieldError>) {
    if !schema.has_validations {
        return;
    }
    let mut left = OBJECT_BUDGET;
    visit(schema, value, old, "", &mut left, out);
    if left == 0 {
        let why = "validation failed due to running out of cost budget, no further validation rules will be run";
        out.push(FieldError::invalid("", "", why));
    }
}

/// Evaluates rules at one place and below.
fn visit(
    schema: &Structural,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    left: &mut u64,
    out: &mut Vec<FieldError>,
) {
    if !schema.has_validations || *left == 0 || value.is_null() {
        return;
    }
    for rule in &schema.validations {
        out.extend(rule.judge(schema, value, old, path, left));
        if *left == 0 {
            return;
        }
    }
    match value {
        Value::Object(object) => {
            for (name, member) in object {
                let Some(inner) = schema.field(name) else { continue };
                let path = match schema.additional {
                    Additional::Schema(_) if !schema.properties.contains_key(name) => format!("{path}[{name}]"),
                    _ => child(path, name),
                };
                visit(inner, member, old.and_then(|old| old.get(name)), &path, left, out);
            }
        }
        Value::Array(items) => {
            let Some(inner) = &schema.items else { return };
            for (index, item) in items.iter().enumerate() {
                let before = old.and_then(|old| twin(schema, item, old));
                visit(inner, item, before, &format!("{path}[{index}]"), left, out);
            }
        }
        _ => {}
    }
}

/// The item of the same keys in what a list was; items of other lists have no past.
fn twin<'v>(schema: &Structural, item: &Value, old: &'v Value) -> Option<&'v Value> {
    let ListType::Map(keys) = &schema.list else { return None };
    old.as_array()?.iter().find(|other| keys.iter().all(|key| other.get(key) == item.get(key)))
}
