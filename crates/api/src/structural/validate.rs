//! Whether a value follows its schema's rules, in the sentences that clients know.

use serde_json::Value;

use super::{Additional, Kind, Rules, Structural, child, format};
use crate::status::{ErrorKind, FieldError};

/// Most findings about one object.
const MAX_ERRORS: usize = 100;
/// Deepest nesting of a value that is looked at.
const MAX_DEPTH: usize = 128;

/// Finds what breaks the rules below `path` (empty for the whole object).
pub fn validate(schema: &Structural, value: &Value, path: &str, out: &mut Vec<FieldError>) {
    Walk { out, depth: 0 }.visit(schema, value, path);
}

/// One walk through a value.
struct Walk<'a> {
    out: &'a mut Vec<FieldError>,
    depth: usize,
}

impl Walk<'_> {
    /// Checks a value and all below it.
    fn visit(&mut self, schema: &Structural, value: &Value, path: &str) {
        if self.depth > MAX_DEPTH || self.out.len() >= MAX_ERRORS {
            return;
        }
        self.depth += 1;
        if self.has_type(schema, value, path) {
            self.enumerated(&schema.rules, value, path);
            match value {
                Value::Number(number) => self.number(&schema.rules, number, path),
                Value::String(text) => self.text(&schema.rules, text, path),
                Value::Array(items) => self.list(schema, items, path),
                Value::Object(_) => self.object(schema, value, path),
                _ => {}
            }
            self.junctors(&schema.rules, value, path);
        }
        self.depth -= 1;
    }

    /// Notes a finding.
    fn invalid(&mut self, path: &str, bad: impl Into<Value>, why: String) {
        self.out.push(FieldError::invalid(path, bad, why));
    }

    /// Whether the value is of the type; what is not is looked at no further.
    fn has_type(&mut self, schema: &Structural, value: &Value, path: &str) -> bool {
        if value.is_null() && schema.nullable {
            return false;
        }
        let found = name_of(value);
        let (fits, wanted) = match schema.kind {
            _ if schema.int_or_string => (matches!(found, "integer" | "string"), "integer,string"),
            None => return true,
            Some(Kind::Number) => (matches!(found, "integer" | "number"), "number"),
            Some(kind) => (found == kind.name(), kind.name()),
        };
        if !fits {
            let why = format!("{path} in body must be of type {wanted}: \"{found}\"");
            self.out.push(FieldError::new(ErrorKind::TypeInvalid, path, Some(found.into()), why));
        }
        fits
    }

    /// The value is one of those that are allowed.
    fn enumerated(&mut self, rules: &Rules, value: &Value, path: &str) {
        if rules.one_of_values.is_empty() || rules.one_of_values.iter().any(|known| equal(known, value)) {
            return;
        }
        let shown: Vec<String> =
            rules.one_of_values.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
        let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
        self.out.push(FieldError::not_supported(path, value.clone(), &shown));
    }

    /// A number is within its range.
    fn number(&mut self, rules: &Rules, number: &serde_json::Number, path: &str) {
        let value = number.as_f64().unwrap_or(f64::NAN);
        let bad = || Value::Number(number.clone());
        if let Some((least, excluded)) = rules.minimum
            && (value < least || (excluded && value == least))
        {
            let or_equal = if excluded { "" } else { " or equal to" };
            self.invalid(path, bad(), format!("{path} in body should be greater than{or_equal} {least}"));
        }
        if let Some((most, excluded)) = rules.maximum
            && (value > most || (excluded && value == most))
        {
            let or_equal = if excluded { "" } else { " or equal to" };
            self.invalid(path, bad(), format!("{path} in body should be less than{or_equal} {most}"));
        }
        if let Some(step) = rules.multiple_of
            && !is_multiple(value, step)
        {
            self.invalid(path, bad(), format!("{path} in body should be a multiple of {step}"));
        }
    }

    /// A text has its length and form.
    fn text(&mut self, rules: &Rules, text: &str, path: &str) {
        let length = text.chars().count() as u64;
        if let Some(most) = rules.max_length.filter(|most| length > *most) {
            self.out.push(FieldError::too_long(path, usize::try_from(most).unwrap_or(usize::MAX)));
        }
        if let Some(least) = rules.min_length.filter(|least| length < *least) {
            self.invalid(path, text, format!("{path} in body should be at least {least} chars long"));
        }
        if let Some((pattern, shown)) = &rules.pattern
            && !pattern.is_match(text)
        {
            self.invalid(path, text, format!("{path} in body should match '{shown}'"));
        }
        if !format::fits(&rules.format, text) {
            let why = format!("{path} in body must be of type {}: {}", rules.format, crate::status::quote(text));
            self.out.push(FieldError::new(ErrorKind::TypeInvalid, path, Some(text.into()), why));
        }
    }

    /// A list has its size, and each item follows the rules of items.
    fn list(&mut self, schema: &Structural, items: &[Value], path: &str) {
        if let Some(inner) = &schema.items {
            for (index, item) in items.iter().enumerate() {
                self.visit(inner, item, &format!("{path}[{index}]"));
            }
        }
        let rules = &schema.rules;
        let size = items.len() as u64;
        if let Some(most) = rules.max_items.filter(|most| size > *most) {
            self.out.push(FieldError::too_many(path, items.len(), usize::try_from(most).unwrap_or(usize::MAX)));
        }
        if let Some(least) = rules.min_items.filter(|least| size < *least) {
            self.invalid(path, size, format!("{path} in body should have at least {least} items"));
        }
        if rules.unique_items && has_twins(items) {
            self.invalid(path, "", format!("{path} in body shouldn't contain duplicates"));
        }
    }

    /// An object has its fields, and each follows its rules.
    fn object(&mut self, schema: &Structural, value: &Value, path: &str) {
        let Some(object) = value.as_object() else { return };
        let rules = &schema.rules;
        let size = object.len() as u64;
        if let Some(most) = rules.max_properties.filter(|most| size > *most) {
            self.out.push(FieldError::too_many(path, object.len(), usize::try_from(most).unwrap_or(usize::MAX)));
        }
        if let Some(least) = rules.min_properties.filter(|least| size < *least) {
            self.invalid(path, size, format!("{path} in body should have at least {least} properties"));
        }
        for name in rules.required.iter().filter(|name| !object.contains_key(*name)) {
            self.out.push(FieldError::required(child(path, name), ""));
        }
        for (name, member) in object {
            match (schema.properties.get(name), &schema.additional) {
                (Some(inner), _) => self.visit(inner, member, &child(path, name)),
                (None, Additional::Schema(inner)) => self.visit(inner, member, &child(path, name)),
                (None, Additional::Forbidden) => {
                    let path = child(path, name);
                    self.invalid(&path, "", format!("{path} in body is a forbidden property"));
                }
                _ => {}
            }
        }
    }

    /// What holds of a value besides its own rules.
    fn junctors(&mut self, rules: &Rules, value: &Value, path: &str) {
        let trials = |schemas: &[Structural]| -> Vec<Vec<FieldError>> {
            let depth = self.depth;
            schemas
                .iter()
                .map(|schema| {
                    let mut found = Vec::new();
                    Walk { out: &mut found, depth }.visit(schema, value, path);
                    found
                })
                .collect()
        };
        let (all, any, one) = (trials(&rules.all_of), trials(&rules.any_of), trials(&rules.one_of));
        let not = rules.not.as_deref().map(|schema| trials(std::slice::from_ref(schema)));
        let mut fail = |why: String, nearest: Vec<FieldError>| {
            self.out.push(FieldError::invalid("<nil>", "", why));
            self.out.extend(nearest);
        };
        let failing = |tried: &[Vec<FieldError>]| tried.iter().filter(|found| !found.is_empty()).count();
        if !any.is_empty() && failing(&any) == any.len() {
            fail(format!("\"{path}\" must validate at least one schema (anyOf)"), nearest(any));
        }
        let fitting = one.len() - failing(&one);
        if !one.is_empty() && fitting != 1 {
            let (found, nearest) = if fitting == 0 {
                ("Found none valid".to_owned(), nearest(one))
            } else {
                (format!("Found {fitting} valid alternatives"), Vec::new())
            };
            fail(format!("\"{path}\" must validate one and only one schema (oneOf). {found}"), nearest);
        }
        if failing(&all) > 0 {
            let how = if failing(&all) == all.len() { ". None validated" } else { "" };
            let found = all.into_iter().flatten().collect();
            fail(format!("\"{path}\" must validate all the schemas (allOf){how}"), found);
        }
        if not.is_some_and(|tried| failing(&tried) == 0) {
            fail(format!("\"{path}\" must not validate the schema (not)"), Vec::new());
        }
    }
}

/// The findings of the schema that was broken least.
fn nearest(tried: Vec<Vec<FieldError>>) -> Vec<FieldError> {
    tried.into_iter().min_by_key(Vec::len).unwrap_or_default()
}

/// What JSON calls the type of a value; numbers without fraction are integers.
pub(super) fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() && n.as_f64().is_some_and(|f| f.fract() != 0.0) => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Whether two values are the same; numbers by amount.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

/// Whether a number is a multiple of a step, as far as fractions of binary numbers can tell.
fn is_multiple(value: f64, step: f64) -> bool {
    const NEAR: f64 = 1e-9;
    let ratio = value / step;
    (ratio - ratio.round()).abs() <= NEAR * ratio.abs().max(1.0)
}

/// Whether an item appears twice.
fn has_twins(items: &[Value]) -> bool {
    let mut seen = std::collections::HashSet::new();
    !items.iter().all(|item| seen.insert(item.to_string()))
}
