//! From the JSON of a schema to its compiled form.

use regex::RegexBuilder;
use serde_json::{Map, Value};

use super::{Additional, Kind, ListType, Rule, Rules, Structural};
use crate::status::FieldError;

/// Deepest nesting of a schema.
const MAX_DEPTH: usize = 64;
/// Largest compiled pattern, in bytes.
const MAX_PATTERN_BYTES: usize = 1 << 20;

/// Compiles a schema. It need not be structural: what is not understood is left out.
pub fn parse(schema: &Value) -> Result<Structural, ParseError> {
    at_depth(schema, 0)
}

/// Compiles a schema inside others.
fn at_depth(schema: &Value, depth: usize) -> Result<Structural, ParseError> {
    if depth > MAX_DEPTH {
        return Err(ParseError::Depth);
    }
    let Some(object) = schema.as_object() else { return Ok(Structural::default()) };
    let inner = |value: &Value| at_depth(value, depth + 1);
    let mut properties = std::collections::BTreeMap::new();
    for (name, value) in object.get("properties").and_then(Value::as_object).into_iter().flatten() {
        properties.insert(name.clone(), inner(value)?);
    }
    let additional = match object.get("additionalProperties") {
        None | Some(Value::Null) => Additional::Unsaid,
        Some(Value::Bool(true)) => Additional::Any,
        Some(Value::Bool(false)) => Additional::Forbidden,
        Some(value) => Additional::Schema(Box::new(inner(value)?)),
    };
    let items = object.get("items").filter(|i| i.is_object()).map(inner).transpose()?.map(Box::new);
    let mut schema = Structural {
        kind: Kind::parse(text(object, "type")),
        nullable: flag(object, "nullable"),
        int_or_string: flag(object, "x-kubernetes-int-or-string"),
        properties,
        additional,
        items,
        preserve_unknown: flag(object, "x-kubernetes-preserve-unknown-fields"),
        embedded: flag(object, "x-kubernetes-embedded-resource"),
        default: object.get("default").filter(|d| !d.is_null()).cloned(),
        list: match text(object, "x-kubernetes-list-type") {
            "set" => ListType::Set,
            "map" => ListType::Map(texts(object, "x-kubernetes-list-map-keys")),
            _ => ListType::Atomic,
        },
        atomic_map: text(object, "x-kubernetes-map-type") == "atomic",
        rules: rules(object, depth)?,
        validations: Vec::new(),
        has_validations: false,
    };
    for (index, entry) in
        object.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten().enumerate()
    {
        let rule = Rule::parse(entry, &schema).map_err(|mut error| {
            error.field = format!("x-kubernetes-validations[{index}].{}", error.field);
            ParseError::Rule(Box::new(error))
        })?;
        schema.validations.push(rule);
    }
    schema.has_validations = !schema.validations.is_empty() || has_validations(&schema);
    Ok(schema)
}

/// Whether there are rules below a schema.
fn has_validations(schema: &Structural) -> bool {
    let additional = match &schema.additional {
        Additional::Schema(inner) => Some(&**inner),
        _ => None,
    };
    schema.properties.values().chain(schema.items.as_deref()).chain(additional).any(|inner| inner.has_validations)
}

/// The rules of a schema.
fn rules(object: &Map<String, Value>, depth: usize) -> Result<Rules, ParseError> {
    let several = |name: &str| -> Result<Vec<Structural>, ParseError> {
        let list = object.get(name).and_then(Value::as_array);
        list.into_iter().flatten().map(|value| at_depth(value, depth + 1)).collect()
    };
    let number = |name: &str| object.get(name).and_then(Value::as_f64);
    let count = |name: &str| object.get(name).and_then(Value::as_u64);
    let pattern = match text(object, "pattern") {
        "" => None,
        text => Some((compile(text)?, text.to_owned())),
    };
    Ok(Rules {
        one_of_values: object.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
        minimum: number("minimum").map(|n| (n, flag(object, "exclusiveMinimum"))),
        maximum: number("maximum").map(|n| (n, flag(object, "exclusiveMaximum"))),
        multiple_of: number("multipleOf").filter(|n| *n > 0.0),
        min_length: count("minLength"),
        max_length: count("maxLength"),
        pattern,
        format: text(object, "format").to_owned(),
        min_items: count("minItems"),
        max_items: count("maxItems"),
        unique_items: flag(object, "uniqueItems"),
        min_properties: count("minProperties"),
        max_properties: count("maxProperties"),
        required: texts(object, "required"),
        all_of: several("allOf")?,
        any_of: several("anyOf")?,
        one_of: several("oneOf")?,
        not: object.get("not").filter(|n| n.is_object()).map(|n| at_depth(n, depth + 1)).transpose()?.map(Box::new),
    })
}

/// Compiles a pattern, within limits of size.
pub(crate) fn compile(pattern: &str) -> Result<regex::Regex, ParseError> {
    RegexBuilder::new(pattern)
        .size_limit(MAX_PATTERN_BYTES)
        .build()
        .map_err(|error| ParseError::Pattern { pattern: pattern.to_owned(), why: error.to_string() })
}

/// A text of a schema; empty if absent.
fn text<'a>(object: &'a Map<String, Value>, name: &str) -> &'a str {
    object.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// A flag of a schema.
fn flag(object: &Map<String, Value>, name: &str) -> bool {
    object.get(name) == Some(&Value::Bool(true))
}

/// A list of texts of a schema.
fn texts(object: &Map<String, Value>, name: &str) -> Vec<String> {
    let list = object.get(name).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Why a schema cannot be compiled.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ParseError {
    /// A regular expression is malformed or too large; correct it.
    #[error("must be a valid regular expression, but isn't: {why}")]
    Pattern {
        /// The expression.
        pattern: String,
        /// What is wrong with it.
        why: String,
    },
    /// A rule cannot be compiled; the error says where in the schema's own entry, and why.
    #[error("{0}")]
    Rule(Box<FieldError>),
    /// Schemas are nested too deeply; flatten them.
    #[error("must not be nested deeper than {MAX_DEPTH} levels")]
    Depth,
}
