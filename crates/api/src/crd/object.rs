//! Objects of custom kinds: what is done to them where built-in kinds follow their tables.

use serde_json::{Map, Value};

use super::Custom;
use crate::decode::ObjectMeta;
use crate::resource::Resource;
use crate::status::{ErrorKind, FieldError};
use crate::structural::path::JsonPath;
use crate::structural::{self, Structural};

/// What of metadata schemas and rules may speak of.
const SEEN: [&str; 2] = ["name", "generateName"];

/// Checks the metadata of an object and of objects in it, and drops unknown fields. `problem` is told the path
/// of each; an error is a sentence with the path of a value of a wrong type.
pub fn decode_value(custom: &Custom, object: &mut Value, problem: &mut dyn FnMut(String)) -> Result<(), String> {
    metadata(object, "metadata", problem)?;
    embedded(&custom.schema, object, "", problem)?;
    structural::prune(&custom.schema, object, &mut |path| problem(format!("unknown field \"{path}\"")));
    Ok(())
}

/// Fills in defaults, and drops nulls that mean nothing.
pub fn apply_defaults(custom: &Custom, object: &mut Value) {
    apart_from_metadata(object, |object| {
        structural::apply_defaults(&custom.schema, object);
        structural::drop_nulls(&custom.schema, object);
    });
}

/// A stored object as a version sees it: without what that does not know, with its defaults.
pub fn convert(custom: &Custom, object: &mut Value) {
    structural::prune(&custom.schema, object, &mut |_| {});
    apply_defaults(custom, object);
}

/// What is wrong with an object; `old` is what it was.
pub fn validate_object(custom: &Custom, object: &mut Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut out = Vec::new();
    apart_from_metadata(object, |object| {
        structural::validate(&custom.schema, object, "", &mut out);
        structural::check_lists(&custom.schema, object, "", &mut out);
    });
    if let Some(old) = old {
        out.retain(|error| !is_old(error, object, old));
    }
    // Rules are for objects that have the shape which they were written for.
    if out.is_empty() && custom.schema.has_validations {
        let mut past = old.cloned();
        if let Some(past) = &mut past {
            apart_from_metadata_for_good(past);
        }
        apart_from_metadata(object, |object| structural::check_rules(&custom.schema, object, past.as_ref(), &mut out));
    }
    if let Some(scale) = &custom.scale {
        scale.check_spec(object, &mut out);
    }
    out
}

/// What is wrong with an object whose status was written.
pub fn validate_status(resource: &Resource, custom: &Custom, object: &mut Value, old: &Value) -> Vec<FieldError> {
    let mut out = validate_object(custom, object, Some(old));
    if let Some(scale) = custom.scale.as_ref().filter(|_| resource.has_scale()) {
        scale.check_status(object, &mut out);
    }
    out
}

/// Whether a finding is about something that an update did not touch: objects older than a rule can still be
/// changed elsewhere.
fn is_old(error: &FieldError, new: &Value, old: &Value) -> bool {
    let path = match error.kind {
        // What is missing is judged with what it is missing in.
        ErrorKind::Required => error.field.rsplit_once('.').map_or("", |(parent, _)| parent),
        _ => &error.field,
    };
    if path.is_empty() || path == "<nil>" {
        return false;
    }
    let Ok(path) = JsonPath::parse(&format!(".{path}")) else { return false };
    let (new, old) = (path.find(new), path.find(old));
    !new.is_empty() && new == old
}

/// Leaves of an object's metadata what rules may see.
fn apart_from_metadata_for_good(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|name, _| SEEN.contains(&name.as_str()));
    }
}

/// Does something to an object while its metadata is away: schemas say nothing about it that would count,
/// except restrictions of the name, which are kept.
fn apart_from_metadata(object: &mut Value, act: impl FnOnce(&mut Value)) {
    let Some(members) = object.as_object_mut() else { return };
    let whole = members.remove("metadata");
    if let Some(whole) = &whole {
        let mut shown = Map::new();
        for field in SEEN {
            if let Some(value) = whole.get(field) {
                shown.insert(field.to_owned(), value.clone());
            }
        }
        members.insert("metadata".to_owned(), shown.into());
    }
    act(object);
    if let (Some(members), Some(whole)) = (object.as_object_mut(), whole) {
        members.insert("metadata".to_owned(), whole);
    }
}

/// Reads an object's metadata along the built-in type.
fn metadata(object: &mut Value, path: &str, problem: &mut dyn FnMut(String)) -> Result<(), String> {
    let Some(value) = object.get_mut("metadata").filter(|m| !m.is_null()) else { return Ok(()) };
    *value = ObjectMeta::read(value, path, problem)?;
    Ok(())
}

/// Reads the metadata of objects that are embedded.
fn embedded(schema: &Structural, value: &mut Value, path: &str, problem: &mut dyn FnMut(String)) -> Result<(), String> {
    match value {
        Value::Object(object) => {
            for (name, member) in object {
                let Some(schema) = schema.field(name) else { continue };
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                if schema.embedded && member.is_object() {
                    metadata(member, &format!("{path}.metadata"), problem)?;
                }
                embedded(schema, member, &path, problem)?;
            }
        }
        Value::Array(items) => {
            let Some(schema) = &schema.items else { return Ok(()) };
            for (index, item) in items.iter_mut().enumerate() {
                let path = format!("{path}[{index}]");
                if schema.embedded && item.is_object() {
                    metadata(item, &format!("{path}.metadata"), problem)?;
                }
                embedded(schema, item, &path, problem)?;
            }
        }
        _ => {}
    }
    Ok(())
}
