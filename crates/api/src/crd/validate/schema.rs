//! The rules of schemas: they are structural, and say nothing that cannot be kept.

use serde_json::{Map, Value};

use super::text;
use crate::crd::list;
use crate::status::FieldError;
use crate::structural::{self, Rule};

/// Deepest nesting.
const MAX_DEPTH: usize = 64;
/// Most findings about one schema.
const MAX_ERRORS: usize = 50;
/// Types of values.
const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
/// Ways to combine schemas.
const JUNCTORS: [&str; 3] = ["allOf", "anyOf", "oneOf"];

/// Where a schema stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Root,
    Field,
    Item,
}

/// Checks a version's schema.
pub(super) fn check(schema: &Value, path: &str, out: &mut Vec<FieldError>) {
    let before = out.len();
    Walk { out, depth: 0 }.shape(schema, path, Place::Root);
    if out.len() > before {
        return;
    }
    Walk { out, depth: 0 }.validations(schema, path);
    if out.len() > before {
        return;
    }
    match structural::parse(schema) {
        Ok(_) => {
            Walk { out, depth: 0 }.defaults(schema, path);
        }
        Err(why) => out.push(FieldError::invalid(path, "", why.to_string())),
    }
}

/// One walk through a schema.
struct Walk<'a> {
    out: &'a mut Vec<FieldError>,
    depth: usize,
}

impl Walk<'_> {
    /// Whether the walk goes on below here.
    fn enter(&mut self, path: &str) -> bool {
        if self.depth >= MAX_DEPTH {
            self.out.push(FieldError::invalid(path, "", format!("must not be nested deeper than {MAX_DEPTH} levels")));
            return false;
        }
        self.depth += 1;
        self.out.len() < MAX_ERRORS
    }

    /// Notes something that may not be set.
    fn forbid(&mut self, path: &str, field: &str, why: &str) {
        self.out.push(FieldError::forbidden(format!("{path}.{field}"), why));
    }

    /// A schema that gives a shape.
    fn shape(&mut self, schema: &Value, path: &str, place: Place) {
        let Some(object) = schema.as_object() else { return };
        if !self.enter(path) {
            return;
        }
        self.unsupported(object, path);
        self.typed(object, path, place);
        self.extensions(object, path);
        if is_set(object, "x-kubernetes-embedded-resource") || place == Place::Root {
            self.metadata(object, path);
        }
        for (name, inner) in object.get("properties").and_then(Value::as_object).into_iter().flatten() {
            self.shape(inner, &format!("{path}.properties[{name}]"), Place::Field);
        }
        if let Some(inner) = object.get("additionalProperties").filter(|a| a.is_object()) {
            self.shape(inner, &format!("{path}.additionalProperties"), Place::Field);
        }
        if let Some(inner) = object.get("items").filter(|i| i.is_object()) {
            self.shape(inner, &format!("{path}.items"), Place::Item);
        }
        for junctor in JUNCTORS {
            for (index, inner) in list(&schema[junctor]).iter().enumerate() {
                self.judge(inner, schema, &format!("{path}.{junctor}[{index}]"));
            }
        }
        if object.get("not").is_some_and(Value::is_object) {
            self.judge(&schema["not"], schema, &format!("{path}.not"));
        }
        self.depth -= 1;
    }

    /// What no schema may say.
    fn unsupported(&mut self, object: &Map<String, Value>, path: &str) {
        let given = |name: &str| object.get(name).is_some_and(|v| !v.is_null() && v != "");
        for field in ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"] {
            if given(field) {
                self.forbid(path, field, &format!("{field} is not supported"));
            }
        }
        if is_set(object, "uniqueItems") {
            let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            self.forbid(path, "uniqueItems", why);
        }
        if object.get("items").is_some_and(Value::is_array) {
            self.forbid(path, "items", "items must be a schema object and not an array");
        }
        match object.get("additionalProperties") {
            Some(Value::Bool(false)) => {
                self.forbid(path, "additionalProperties", "additionalProperties cannot be set to false");
            }
            Some(Value::Object(_))
                if object.get("properties").is_some_and(|p| p.as_object().is_some_and(|p| !p.is_empty())) =>
            {
                self.forbid(path, "additionalProperties", "additionalProperties and properties are mutual exclusive");
            }
            _ => {}
        }
        let pattern = object.get("pattern").and_then(Value::as_str).unwrap_or_default();
        if let Err(why) = structural::compile(pattern) {
            self.out.push(FieldError::invalid(format!("{path}.pattern"), pattern, why.to_string()));
        }
        if let Some(step) = object.get("multipleOf").and_then(Value::as_f64).filter(|n| *n <= 0.0) {
            self.out.push(FieldError::invalid(format!("{path}.multipleOf"), step, "must be greater than 0"));
        }
    }

    /// Every value has a type.
    fn typed(&mut self, object: &Map<String, Value>, path: &str, place: Place) {
        let at = format!("{path}.type");
        let kind = object.get("type").and_then(Value::as_str).unwrap_or_default();
        let is_free =
            is_set(object, "x-kubernetes-int-or-string") || is_set(object, "x-kubernetes-preserve-unknown-fields");
        match (kind, place) {
            ("", Place::Root) => self.out.push(FieldError::required(at, "must not be empty at the root")),
            ("", Place::Field) if !is_free => {
                self.out.push(FieldError::required(at, "must not be empty for specified object fields"));
            }
            ("", Place::Item) if !is_free => {
                self.out.push(FieldError::required(at, "must not be empty for specified array items"));
            }
            ("", _) => {}
            ("null", _) => self.forbid(path, "type", "type cannot be set to null, use nullable as an alternative"),
            (kind, _) if !TYPES.contains(&kind) => self.out.push(FieldError::not_supported(at, kind, &TYPES)),
            (kind, Place::Root) if kind != "object" => {
                self.out.push(FieldError::invalid(at, kind, "must be object at the root"));
            }
            ("array", _) if !object.get("items").is_some_and(|i| i.is_object() || i.is_array()) => {
                self.out.push(FieldError::required(format!("{path}.items"), "must be specified"));
            }
            _ => {}
        }
        if place == Place::Root && is_set(object, "nullable") {
            self.forbid(path, "nullable", "nullable cannot be true at the root");
        }
        if is_set(object, "x-kubernetes-int-or-string") && !kind.is_empty() {
            let why = "must be empty if x-kubernetes-int-or-string is true";
            self.out.push(FieldError::invalid(format!("{path}.type"), kind, why));
        }
        if is_set(object, "x-kubernetes-preserve-unknown-fields") && !matches!(kind, "" | "object" | "array") {
            let why = "must be object if x-kubernetes-preserve-unknown-fields is true";
            self.out.push(FieldError::invalid(format!("{path}.type"), kind, why));
        }
    }

    /// Kubernetes' own words make sense.
    fn extensions(&mut self, object: &Map<String, Value>, path: &str) {
        let word = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
        let kind = word("type");
        let wants = |walk: &mut Self, wanted: &str, why: String| match kind {
            kind if kind == wanted => {}
            "" => walk.out.push(FieldError::required(format!("{path}.type"), why)),
            other => walk.out.push(FieldError::invalid(format!("{path}.type"), other, why)),
        };
        if is_set(object, "x-kubernetes-embedded-resource") {
            wants(self, "object", "must be object if x-kubernetes-embedded-resource is true".to_owned());
            let has_properties = object.get("properties").and_then(Value::as_object).is_some_and(|p| !p.is_empty());
            if !has_properties && !is_set(object, "x-kubernetes-preserve-unknown-fields") {
                let why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
                self.out.push(FieldError::required(format!("{path}.properties"), why));
            }
        }
        match word("x-kubernetes-map-type") {
            "" => {}
            "atomic" | "granular" => {
                wants(self, "object", "must be object if x-kubernetes-map-type is specified".to_owned())
            }
            other => {
                let at = format!("{path}.x-kubernetes-map-type");
                self.out.push(FieldError::not_supported(at, other, &["atomic", "granular"]));
            }
        }
        let keys = object.get("x-kubernetes-list-map-keys").map(|keys| list(keys).to_vec()).unwrap_or_default();
        match word("x-kubernetes-list-type") {
            "" | "atomic" | "set" if !keys.is_empty() => {
                self.forbid(path, "x-kubernetes-list-map-keys", "must be empty if x-kubernetes-list-type is not map");
            }
            "" => {}
            "atomic" | "set" => wants(self, "array", "must be array if x-kubernetes-list-type is specified".to_owned()),
            "map" => {
                wants(self, "array", "must be array if x-kubernetes-list-type is specified".to_owned());
                self.keyed(object, &keys, path);
            }
            other => {
                let at = format!("{path}.x-kubernetes-list-type");
                self.out.push(FieldError::not_supported(at, other, &["atomic", "map", "set"]));
            }
        }
    }

    /// The keys of a list exist, hold scalars, and are always there.
    fn keyed(&mut self, object: &Map<String, Value>, keys: &[Value], path: &str) {
        if keys.is_empty() {
            let why = "must not be empty if x-kubernetes-list-type is map";
            return self.out.push(FieldError::required(format!("{path}.x-kubernetes-list-map-keys"), why));
        }
        let Some(items) = object.get("items").filter(|i| i.is_object()) else { return };
        if text(&items["type"]) != "object" {
            let why = "must be object if parent array's x-kubernetes-list-type is map";
            self.out.push(FieldError::invalid(format!("{path}.items.type"), items["type"].clone(), why));
        }
        for (index, key) in keys.iter().enumerate() {
            let name = text(key);
            let property = &items["properties"][name];
            if property.is_null() {
                let at = format!("{path}.x-kubernetes-list-map-keys[{index}]");
                self.out.push(FieldError::invalid(at, name, "entries must all be names of item properties"));
                continue;
            }
            if matches!(text(&property["type"]), "array" | "object") {
                let at = format!("{path}.items.properties[{name}].type");
                let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                self.out.push(FieldError::invalid(at, property["type"].clone(), why));
            }
            if property["default"].is_null() && !list(&items["required"]).contains(key) {
                let at = format!("{path}.items.properties[{name}].default");
                let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                self.out.push(FieldError::required(at, why));
            }
        }
    }

    /// Metadata is Kubernetes' own: only names may be restricted.
    fn metadata(&mut self, object: &Map<String, Value>, path: &str) {
        let Some(metadata) = object.get("properties").and_then(|p| p.get("metadata")) else { return };
        let known = ["name", "generateName"];
        let names = metadata["properties"].as_object();
        let others = names.is_some_and(|names| names.keys().any(|name| !known.contains(&name.as_str())));
        if others || metadata["additionalProperties"].is_object() {
            let at = format!("{path}.properties[metadata]");
            let why =
                "must not specify anything other than name and generateName, but metadata is implicitly specified";
            self.out.push(FieldError::forbidden(at, why));
        }
        if !matches!(text(&metadata["type"]), "object") {
            let at = format!("{path}.properties[metadata].type");
            self.out.push(FieldError::invalid(at, metadata["type"].clone(), "must be object"));
        }
    }

    /// A schema inside a junctor: it judges values, and gives no shape beyond that of `outer`.
    fn judge(&mut self, schema: &Value, outer: &Value, path: &str) {
        let Some(object) = schema.as_object() else { return };
        if !self.enter(path) {
            return;
        }
        self.unsupported(object, path);
        let is_choice = outer["x-kubernetes-int-or-string"] == true;
        for (field, why) in [
            ("description", "must be empty to be structural"),
            ("title", "must be empty to be structural"),
            ("default", "must be undefined to be structural"),
            ("additionalProperties", "must be undefined to be structural"),
            ("nullable", "must be false to be structural"),
            ("type", "must be empty to be structural"),
            ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
            ("x-kubernetes-embedded-resource", "must be false to be structural"),
            ("x-kubernetes-int-or-string", "must be false to be structural"),
            ("x-kubernetes-list-type", "must be undefined to be structural"),
            ("x-kubernetes-list-map-keys", "must be empty to be structural"),
            ("x-kubernetes-map-type", "must be undefined to be structural"),
        ] {
            let is_given = object.get(field).is_some_and(|v| !v.is_null() && *v != false && *v != "");
            if is_given && !(field == "type" && is_choice) {
                self.forbid(path, field, why);
            }
        }
        for (name, inner) in object.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let path = format!("{path}.properties[{name}]");
            let shape = match (&outer["properties"][name.as_str()], &outer["additionalProperties"]) {
                (Value::Null, Value::Null) if outer["x-kubernetes-preserve-unknown-fields"] != true => {
                    if name != "metadata" {
                        self.out.push(FieldError::required(path.clone(), "must be specified outside of value validations, too: it is not among the properties of the schema around it"));
                    }
                    &Value::Null
                }
                (Value::Null, additional) => additional,
                (property, _) => property,
            };
            self.judge(inner, shape, &path);
        }
        if object.get("items").is_some_and(Value::is_object) {
            self.judge(&schema["items"], &outer["items"], &format!("{path}.items"));
        }
        for junctor in JUNCTORS {
            for (index, inner) in list(&schema[junctor]).iter().enumerate() {
                self.judge(inner, outer, &format!("{path}.{junctor}[{index}]"));
            }
        }
        if object.get("not").is_some_and(Value::is_object) {
            self.judge(&schema["not"], outer, &format!("{path}.not"));
        }
        self.depth -= 1;
    }

    /// Rules can be compiled where they stand.
    fn validations(&mut self, schema: &Value, path: &str) {
        let Some(object) = schema.as_object() else { return };
        for (name, inner) in object.get("properties").and_then(Value::as_object).into_iter().flatten() {
            self.validations(inner, &format!("{path}.properties[{name}]"));
        }
        for part in ["items", "additionalProperties"] {
            if let Some(inner) = object.get(part) {
                self.validations(inner, &format!("{path}.{part}"));
            }
        }
        let rules = object.get("x-kubernetes-validations").map(list).unwrap_or_default();
        if rules.is_empty() || self.out.len() >= MAX_ERRORS {
            return;
        }
        // Those below were looked at just now: each rule is compiled once.
        let shape = structural::parse(&without_rules(schema)).unwrap_or_default();
        for (index, entry) in rules.iter().enumerate() {
            if let Err(mut error) = Rule::parse(entry, &shape) {
                error.field = format!("{path}.x-kubernetes-validations[{index}].{}", error.field);
                self.out.push(error);
            }
        }
    }

    /// Defaults are what they are defaults of.
    fn defaults(&mut self, schema: &Value, path: &str) {
        let Some(object) = schema.as_object() else { return };
        if let (Some(default), Ok(compiled)) =
            (object.get("default").filter(|d| !d.is_null()), structural::parse(schema))
        {
            let at = format!("{path}.default");
            let mut complete = default.clone();
            let mut unknown = Vec::new();
            structural::prune(&compiled, &mut complete, &mut |field| unknown.push(field));
            if complete != *default {
                let why = format!("must not have unknown fields: {}", unknown.join(", "));
                self.out.push(FieldError::invalid(at.clone(), default.clone(), why));
            }
            structural::apply_defaults(&compiled, &mut complete);
            let mut found = Vec::new();
            structural::validate(&compiled, &complete, "", &mut found);
            structural::check_lists(&compiled, &complete, "", &mut found);
            for mut error in found {
                let dot = if error.field.is_empty() || error.field.starts_with('[') { "" } else { "." };
                error.field = format!("{at}{dot}{}", error.field);
                self.out.push(error);
            }
        }
        for (name, inner) in object.get("properties").and_then(Value::as_object).into_iter().flatten() {
            self.defaults(inner, &format!("{path}.properties[{name}]"));
        }
        for part in ["items", "additionalProperties"] {
            if let Some(inner) = object.get(part) {
                self.defaults(inner, &format!("{path}.{part}"));
            }
        }
    }
}

/// A schema without its rules.
fn without_rules(schema: &Value) -> Value {
    match schema {
        Value::Object(object) => object
            .iter()
            .filter(|(name, value)| !(name.as_str() == "x-kubernetes-validations" && value.is_array()))
            .map(|(name, value)| (name.clone(), without_rules(value)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(without_rules).collect(),
        other => other.clone(),
    }
}

/// Whether a flag is set.
fn is_set(object: &Map<String, Value>, name: &str) -> bool {
    object.get(name) == Some(&Value::Bool(true))
}
