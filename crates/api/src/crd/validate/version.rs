//! The rules of what each version of a definition has: schema, subresources, columns, selectable fields.

use serde_json::Value;

use super::{schema, text};
use crate::crd::list;
use crate::status::FieldError;
use crate::structural::path::{self, JsonPath};

/// Types of columns.
const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
/// Formats of columns.
const COLUMN_FORMATS: [&str; 8] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
/// Fields that objects of a version may be selected by.
const MAX_SELECTABLE: usize = 8;

/// A rule about one part of a version: the part, the version, its path.
type Rule = fn(&Value, &Value, &str, &mut Vec<FieldError>);

/// Checks the parts of all versions: once, where they all have the same.
pub(super) fn check_all(spec: &Value, old: Option<&Value>, out: &mut Vec<FieldError>) {
    let versions = list(&spec["versions"]);
    let parts: [(&str, &str, Rule); 4] = [
        ("schema", "validation", schema_of),
        ("subresources", "subresources", subresources),
        ("additionalPrinterColumns", "additionalPrinterColumns", columns),
        ("selectableFields", "selectableFields", selectable),
    ];
    for (part, common, rule) in parts {
        let is_common = versions.windows(2).all(|pair| pair[0][part] == pair[1][part]);
        for (index, version) in versions.iter().enumerate() {
            let path = if is_common { format!("spec.{common}") } else { format!("spec.versions[{index}].{part}") };
            let before = old.and_then(|old| list(&old["versions"]).iter().find(|v| v["name"] == version["name"]));
            if before.is_none_or(|before| before[part] != version[part]) {
                rule(&version[part], version, &path, out);
            }
            if is_common {
                break;
            }
        }
    }
}

/// The schema.
fn schema_of(part: &Value, _: &Value, path: &str, out: &mut Vec<FieldError>) {
    let path = format!("{path}.openAPIV3Schema");
    match &part["openAPIV3Schema"] {
        Value::Null => out.push(FieldError::required(path, "schemas are required")),
        document => schema::check(document, &path, out),
    }
}

/// The paths of scale.
fn subresources(part: &Value, _: &Value, path: &str, out: &mut Vec<FieldError>) {
    let scale = &part["scale"];
    if !scale.is_object() {
        return;
    }
    for (field, root, required) in [
        ("specReplicasPath", ".spec", true),
        ("statusReplicasPath", ".status", true),
        ("labelSelectorPath", ".status", false),
    ] {
        let given = text(&scale[field]);
        let path = format!("{path}.scale.{field}");
        if given.is_empty() {
            if required {
                out.push(FieldError::required(path, ""));
            }
        } else if !given.starts_with('.') {
            out.push(FieldError::invalid(path, given, "must be a simple json path starting with ."));
        } else if !is_simple(given) {
            out.push(FieldError::invalid(path, given, "must be a json path in the dot notation"));
        } else if !(given.starts_with(&format!("{root}."))
            || field == "labelSelectorPath" && given.starts_with(".spec."))
        {
            let roots = if required { root.to_owned() } else { ".spec or .status".to_owned() };
            out.push(FieldError::invalid(path, given, format!("should be a json path under {roots}")));
        }
    }
}

/// The columns of tables.
fn columns(part: &Value, _: &Value, path: &str, out: &mut Vec<FieldError>) {
    for (index, column) in list(part).iter().enumerate() {
        let path = format!("{path}[{index}]");
        if text(&column["name"]).is_empty() {
            out.push(FieldError::required(format!("{path}.name"), ""));
        }
        match text(&column["type"]) {
            "" => {
                let why = format!("must be one of {}", COLUMN_TYPES.join(","));
                out.push(FieldError::required(format!("{path}.type"), why));
            }
            kind if !COLUMN_TYPES.contains(&kind) => {
                let why = format!("must be one of {}", COLUMN_TYPES.join(","));
                out.push(FieldError::invalid(format!("{path}.type"), kind, why));
            }
            _ => {}
        }
        let format = text(&column["format"]);
        if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
            let why = format!("must be one of {}", COLUMN_FORMATS.join(","));
            out.push(FieldError::invalid(format!("{path}.format"), format, why));
        }
        match text(&column["jsonPath"]) {
            "" => out.push(FieldError::required(format!("{path}.JSONPath"), "")),
            given => {
                if let Err(why) = JsonPath::parse(given) {
                    let why = format!("illegal JSON path: {why}");
                    out.push(FieldError::invalid(format!("{path}.JSONPath"), given, why));
                }
            }
        }
    }
}

/// The fields that objects may be selected by.
fn selectable(part: &Value, version: &Value, path: &str, out: &mut Vec<FieldError>) {
    let fields = list(part);
    if fields.len() > MAX_SELECTABLE {
        out.push(FieldError::too_many(path, fields.len(), MAX_SELECTABLE));
    }
    let mut seen = std::collections::BTreeSet::new();
    for (index, field) in fields.iter().enumerate() {
        let given = text(&field["jsonPath"]);
        let path = format!("{path}[{index}].jsonPath");
        if given.is_empty() {
            out.push(FieldError::required(path, ""));
            continue;
        }
        if !seen.insert(given) {
            out.push(FieldError::duplicate(path.clone(), given));
        }
        if !given.starts_with('.') || !is_simple(given) {
            out.push(FieldError::invalid(path, given, "is an invalid path: must be a simple path such as .spec.color"));
            continue;
        }
        if given.starts_with(".metadata") {
            out.push(FieldError::invalid(path, given, "must not point to fields in metadata"));
            continue;
        }
        let mut place = &version["schema"]["openAPIV3Schema"];
        for name in path::simple(given) {
            place = &place["properties"][name.as_str()];
        }
        match text(&place["type"]) {
            "" if place.is_null() => {
                out.push(FieldError::invalid(path, given, "is an invalid path: does not refer to a valid field"));
            }
            "string" | "boolean" | "integer" => {}
            _ => {
                let why = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
                out.push(FieldError::invalid(path, given, why));
            }
        }
    }
}

/// Whether a path is of fields alone.
fn is_simple(path: &str) -> bool {
    let fields = path.trim_start_matches('.').split('.');
    fields.clone().count() > 0
        && fields.clone().all(|f| !f.is_empty() && !f.contains(['[', ']', '*', ' ', '(', '\'', '"']))
}
