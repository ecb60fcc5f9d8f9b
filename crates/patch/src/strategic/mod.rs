//! Strategic merge patch: a partial document whose lists merge item by item.
//!
//! What the caller's [`MergeSchema`] says of a field decides how it merges:
//!
//! | field | without a directive |
//! |---|---|
//! | object | merges field by field; `null` deletes |
//! | list with merge and a key | items with the same key merge, others are added |
//! | list with merge, of scalars | union |
//! | any other list, scalars | replaced |
//!
//! Directives inside the patch change that:
//!
//! | directive | where | effect |
//! |---|---|---|
//! | `$patch: replace` | object; any item of a list | the object or list is replaced by the rest of the patch |
//! | `$patch: delete` | object; item with its key | the object becomes empty; the item goes away |
//! | `$retainKeys: [..]` | object | fields not named go away |
//! | `$setElementOrder/f: [..]` | beside `f` | order of the list `f` afterwards |
//! | `$deleteFromPrimitiveList/f: [..]` | beside `f` | scalars that leave the list `f` |
//!
//! Behaviour follows Kubernetes' own implementation, including where items that only the server
//! has end up. One difference: directives inside a part that the document does not have yet are
//! carried out; upstream stores them as if they were fields.

mod order;

use serde_json::{Map, Value};

use crate::Error;

/// Marks an object or list item to be replaced, deleted or merged.
const PATCH: &str = "$patch";
/// Names the fields that survive.
const RETAIN_KEYS: &str = "$retainKeys";
/// Prefix of the key that orders the list named after it.
const SET_ORDER: &str = "$setElementOrder/";
/// Prefix of the key that takes scalars out of the list named after it.
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";

/// A caller's name for one type; opaque here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TypeRef(pub u32);

/// How one field merges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldMerge<'a> {
    /// Type of the field's value; of a list, the type of its items.
    pub child: TypeRef,
    /// Lists merge item by item; otherwise they are replaced.
    pub merge: bool,
    /// The value is always replaced as a whole, maps included.
    pub replace: bool,
    /// The field that tells items of a merged list apart; `None` for lists of scalars.
    pub key: Option<&'a str>,
}

/// What is known about the fields of the document.
pub trait MergeSchema {
    /// Type of the whole document.
    fn root(&self) -> TypeRef;

    /// How the field `name` of an object of type `parent` merges. `None` if it is not known: then
    /// objects merge and lists are replaced.
    fn field(&self, parent: TypeRef, name: &str) -> Option<FieldMerge<'_>>;
}

/// Merges `patch` into `target`; both are objects.
pub fn apply(target: &mut Value, patch: &Value, schema: &dyn MergeSchema) -> Result<(), Error> {
    let (Value::Object(document), Value::Object(patch)) = (target, patch) else {
        return Err(malformed("a strategic merge patch and its target must be objects"));
    };
    merge_objects(document, patch.clone(), schema, schema.root())
}

/// Merges `patch` into `target`, both of type `at`.
fn merge_objects(
    target: &mut Map<String, Value>,
    mut patch: Map<String, Value>,
    schema: &dyn MergeSchema,
    at: TypeRef,
) -> Result<(), Error> {
    if let Some(directive) = patch.remove(PATCH) {
        return match directive.as_str() {
            Some("replace") => {
                *target = patch;
                Ok(())
            }
            Some("delete") => {
                target.clear();
                Ok(())
            }
            _ => Err(unknown_directive(&directive)),
        };
    }
    retain_keys(target, &mut patch)?;
    merge_ordered_lists(target, &mut patch, schema, at)?;
    for (key, value) in patch {
        let (name, deletes) = match key.strip_prefix(DELETE_FROM_LIST) {
            Some(name) => (name, true),
            None => (key.as_str(), false),
        };
        if value.is_null() {
            target.remove(name);
            continue;
        }
        let merge = schema.field(at, name);
        match (target.get_mut(name), value) {
            (Some(Value::Object(old)), Value::Object(new)) => match merge {
                Some(FieldMerge { replace: true, .. }) => *old = new,
                Some(merge) => merge_objects(old, new, schema, merge.child)?,
                None => merge_objects(old, new, schema, TypeRef(u32::MAX))?,
            },
            (Some(Value::Array(old)), Value::Array(new)) => {
                let list = std::mem::take(old);
                *old = merge_lists(name, list, new, schema, merge.as_ref(), deletes)?;
            }
            // Nothing to delete from.
            (_, _) if deletes => {}
            (_, value) => {
                if let Some(value) = plain(value) {
                    target.insert(name.to_owned(), value);
                }
            }
        }
    }
    Ok(())
}

/// Carries out `$retainKeys`: fields of `target` that it does not name go away.
fn retain_keys(target: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<(), Error> {
    let Some(list) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let invalid = || malformed("invalid patch format of retainKeys");
    let list = list.as_array().ok_or_else(invalid)?;
    let names = |key: &str| list.iter().any(|name| name == key);
    let fields = patch
        .iter()
        .filter(|(key, value)| !value.is_null() && !key.starts_with(DELETE_FROM_LIST) && !key.starts_with(SET_ORDER));
    for (key, _) in fields {
        if !names(key) {
            return Err(invalid());
        }
    }
    target.retain(|key, _| names(key));
    Ok(())
}

/// Carries out every `$setElementOrder/f` together with the patch of `f`; takes both out of `patch`.
fn merge_ordered_lists(
    target: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    schema: &dyn MergeSchema,
    at: TypeRef,
) -> Result<(), Error> {
    let directives: Vec<String> = patch.keys().filter(|key| key.starts_with(SET_ORDER)).cloned().collect();
    for directive in directives {
        let name = &directive[SET_ORDER.len()..];
        let invalid = || malformed(format!("invalid patch format of setElementOrder list for {name}"));
        let Some(Value::Array(wanted)) = patch.remove(&directive) else { return Err(invalid()) };
        if !target.get(name).is_none_or(Value::is_array) {
            return Err(invalid());
        }
        let merge = schema.field(at, name);
        let key = merge.as_ref().and_then(|m| m.key);
        let new = match patch.get(name) {
            None => None,
            // A deleted list has no order.
            Some(Value::Null) => continue,
            Some(Value::Array(_)) => match patch.remove(name) {
                Some(Value::Array(items)) => Some(items),
                _ => None,
            },
            Some(_) => return Err(invalid()),
        };
        if let Some(new) = &new {
            order::check_consistent(name, new, &wanted, key)?;
        }
        let old = match target.get_mut(name) {
            Some(Value::Array(old)) => Some(std::mem::take(old)),
            _ => None,
        };
        let (merged, before) = match (old, new) {
            (None, None) => continue,
            (Some(old), None) => (old.clone(), old),
            (None, Some(new)) => (plain_items(new), Vec::new()),
            (Some(old), Some(new)) => (merge_lists(name, old.clone(), new, schema, merge.as_ref(), false)?, old),
        };
        let sorted = order::arrange(merged, &wanted, &before, key)?;
        target.insert(name.to_owned(), Value::Array(sorted));
    }
    Ok(())
}

/// Merges the list `patch` into `old`.
fn merge_lists(
    name: &str,
    old: Vec<Value>,
    patch: Vec<Value>,
    schema: &dyn MergeSchema,
    merge: Option<&FieldMerge<'_>>,
    deletes: bool,
) -> Result<Vec<Value>, Error> {
    let Some(merge) = merge.filter(|m| m.merge) else {
        return Ok(patch);
    };
    let objects = match of_objects(name, &old, &patch)? {
        Some(objects) => objects,
        None => return Ok(old),
    };
    if !objects {
        if deletes {
            return Ok(old.into_iter().filter(|item| !patch.contains(item)).collect());
        }
        let mut merged = old.clone();
        for item in &patch {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return order::arrange(merged, &patch, &old, None);
    }
    let Some(key) = merge.key else {
        return Err(malformed(format!("cannot merge lists without merge key for {name}")));
    };
    let (old, patch) = carry_out_directives(old, patch, key)?;
    let mut merged = old.clone();
    for item in &patch {
        let wanted = order::key_of(item, key)?;
        match merged.iter_mut().find(|o| o.get(key) == Some(wanted)) {
            Some(Value::Object(existing)) => {
                let item = item.as_object().cloned().unwrap_or_default();
                merge_objects(existing, item, schema, merge.child)?;
            }
            _ => merged.extend(plain(item.clone())),
        }
    }
    order::arrange(merged, &patch, &old, Some(key))
}

/// Whether the items are objects; `None` if there are no items. They must not be of both sorts.
fn of_objects(name: &str, old: &[Value], patch: &[Value]) -> Result<Option<bool>, Error> {
    let mut found = None;
    for item in old.iter().chain(patch) {
        if item.is_array() {
            return Err(malformed(format!("lists of lists are not supported in {name}")));
        }
        if *found.get_or_insert(item.is_object()) != item.is_object() {
            return Err(malformed(format!("the items of list {name} are of different types")));
        }
    }
    Ok(found)
}

/// Carries out `$patch` in the items of a list. Returns the old items and the patch's plain ones.
fn carry_out_directives(mut old: Vec<Value>, patch: Vec<Value>, key: &str) -> Result<(Vec<Value>, Vec<Value>), Error> {
    let mut plain_ones = Vec::with_capacity(patch.len());
    let mut replace = false;
    for item in patch {
        match item.get(PATCH) {
            None => plain_ones.push(item),
            Some(directive) => match directive.as_str() {
                Some("delete") => {
                    let gone = order::key_of(&item, key)?;
                    old.retain(|o| o.get(key) != Some(gone));
                }
                Some("replace") => replace = true,
                Some("merge") => return Err(malformed("merging lists cannot yet be specified in the patch")),
                _ => return Err(unknown_directive(directive)),
            },
        }
    }
    Ok(if replace { (plain_items(plain_ones), Vec::new()) } else { (old, plain_ones) })
}

/// A value for a place where the document has none: without nulls and with its directives carried
/// out. `None` if a directive deletes it.
fn plain(value: Value) -> Option<Value> {
    match value {
        Value::Object(mut object) => {
            match object.get(PATCH).and_then(Value::as_str) {
                Some("delete") => return None,
                Some("replace" | "merge") => {
                    object.remove(PATCH);
                }
                _ => {}
            }
            let fields = object
                .into_iter()
                .filter(|(key, value)| !value.is_null() && !is_list_directive(key, value))
                .filter_map(|(key, value)| Some((key, plain(value)?)));
            Some(Value::Object(fields.collect()))
        }
        Value::Array(items) => Some(Value::Array(plain_items(items))),
        scalar => Some(scalar),
    }
}

/// [`plain`] for every item of a list.
fn plain_items(items: Vec<Value>) -> Vec<Value> {
    items.into_iter().filter_map(plain).collect()
}

/// Whether this field is a directive about lists or fields, which means nothing without a document.
fn is_list_directive(key: &str, value: &Value) -> bool {
    value.is_array() && (key == RETAIN_KEYS || key.starts_with(SET_ORDER) || key.starts_with(DELETE_FROM_LIST))
}

/// The client's patch cannot be understood.
fn malformed(why: impl Into<String>) -> Error {
    Error::Malformed(why.into())
}

/// `$patch` has a value that means nothing.
fn unknown_directive(value: &Value) -> Error {
    malformed(format!("unknown value of $patch: {value}; replace and delete are known"))
}

#[cfg(test)]
mod tests;
