//! What a client left out.
//!
//! Defaults belong to types, not to kinds: [`apply`] walks the object along the schema, and every
//! struct gets its declared defaults and then those of its rule in [`rules`], parents before
//! children, so that a struct that a parent adds gets its own defaults too. Parts of the schema
//! that have no defaults are not walked.

mod kinds;
mod pod;

use std::sync::LazyLock;

use serde_json::{Map, Value};

use crate::crd;
use crate::quantity::Quantity;
use crate::resource::Resource;
use crate::schema::{self, Node, NodeId, Schema, StructType};

/// Fills in every default of the kind. Applying it again changes nothing.
///
/// What only a create does (finalizers, phases, allocated addresses) is the strategy's work.
pub fn apply(resource: &Resource, object: &mut Value) {
    if let Some(custom) = &resource.custom {
        return crd::apply_defaults(custom, object);
    }
    if let Some((schema, id)) = schema::of(resource) {
        visit(schema, plan(), id, object);
    }
}

/// An object on its way to complete.
type Object = Map<String, Value>;

/// Adds what one struct lacks.
type Rule = fn(&mut Object);

/// The rules, by type.
fn rules() -> impl Iterator<Item = (&'static str, Rule)> {
    pod::RULES.iter().chain(kinds::RULES).copied()
}

/// What is to be done at each node of the schema.
struct Plan {
    rules: Vec<Option<Rule>>,
    /// Whether anything is to be done at the node or below.
    reaches: Vec<bool>,
}

/// The plan for the built-in types.
fn plan() -> &'static Plan {
    static PLAN: LazyLock<Plan> = LazyLock::new(|| Plan::new(Schema::builtin()));
    &PLAN
}

impl Plan {
    /// Finds out where something is to be done.
    fn new(schema: &Schema) -> Self {
        let mut by_node = vec![None; schema.len()];
        for (name, rule) in rules() {
            let id = schema.find(name).expect("rules are about types of the schema (tested)");
            by_node[id.0 as usize] = Some(rule);
        }
        let ids = || (0..schema.len() as u32).map(NodeId);
        let mut reaches: Vec<bool> = ids()
            .map(|id| match schema.node(id) {
                Node::Struct(s) => by_node[id.0 as usize].is_some() || s.fields.iter().any(|f| f.default.is_some()),
                Node::Map(value) => *schema.node(*value) == Node::Quantity,
                _ => false,
            })
            .collect();
        // Types refer to each other in any order, and to themselves: go round until nothing changes.
        loop {
            let mut changed = false;
            for id in ids().filter(|id| !reaches[id.0 as usize]).collect::<Vec<_>>() {
                let found = match schema.node(id) {
                    Node::Struct(s) => s.fields.iter().any(|f| reaches[f.node.0 as usize]),
                    Node::List(inner) | Node::Map(inner) => reaches[inner.0 as usize],
                    _ => false,
                };
                reaches[id.0 as usize] = found;
                changed |= found;
            }
            if !changed {
                return Plan { rules: by_node, reaches };
            }
        }
    }
}

/// Completes a value and all inside it.
fn visit(schema: &Schema, plan: &Plan, id: NodeId, value: &mut Value) {
    if !plan.reaches[id.0 as usize] {
        return;
    }
    match (schema.node(id), value) {
        (Node::Struct(s), Value::Object(object)) => {
            declared(s, object);
            if let Some(rule) = plan.rules[id.0 as usize] {
                rule(object);
            }
            for (name, child) in object.iter_mut() {
                if let Some(field) = s.field(name) {
                    visit(schema, plan, field.node, child);
                }
            }
        }
        (Node::List(item), Value::Array(items)) => {
            items.iter_mut().for_each(|child| visit(schema, plan, *item, child));
        }
        (Node::Map(inner), Value::Object(object)) => {
            if *schema.node(*inner) == Node::Quantity {
                object.values_mut().for_each(round_up_to_milli);
            } else {
                object.values_mut().for_each(|child| visit(schema, plan, *inner, child));
            }
        }
        _ => {}
    }
}

/// Adds the defaults that the type itself declares.
fn declared(s: &StructType, object: &mut Object) {
    for field in &s.fields {
        let Some(default) = &field.default else { continue };
        // An empty text without a pointer is the same as none.
        if (field.pointer || default != "") && is_empty(object, &field.name) {
            object.insert(field.name.as_ref().to_owned(), default.clone());
        }
    }
}

/// Resources are counted in thousandths; finer amounts are rounded up.
fn round_up_to_milli(value: &mut Value) {
    let Some(quantity) = value.as_str().and_then(|text| Quantity::parse(text).ok()) else { return };
    if quantity.is_whole() {
        return;
    }
    if let Ok(rounded) = Quantity::parse(&format!("{}m", quantity.millis()))
        && rounded != quantity
    {
        *value = rounded.to_string().into();
    }
}

/// Whether a field is absent, null or the empty text.
fn is_empty(object: &Object, name: &str) -> bool {
    object.get(name).is_none_or(|value| value.is_null() || value == "")
}

/// Sets a field that is absent, null or the empty text.
fn default(object: &mut Object, name: &str, value: impl Into<Value>) {
    if is_empty(object, name) {
        object.insert(name.to_owned(), value.into());
    }
}

/// Sets a number that is absent or zero.
fn default_number(object: &mut Object, name: &str, value: i64) {
    if is_empty(object, name) || object.get(name) == Some(&Value::from(0)) {
        object.insert(name.to_owned(), value.into());
    }
}

/// The text of a field; empty if absent.
fn text<'a>(object: &'a Object, name: &str) -> &'a str {
    object.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// The objects in a list; none if absent.
fn items<'a>(object: &'a mut Object, name: &str) -> impl Iterator<Item = &'a mut Object> {
    object.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

/// The object in a field, added if absent.
fn object_at<'a>(object: &'a mut Object, name: &str) -> Option<&'a mut Object> {
    if object.get(name).is_none_or(Value::is_null) {
        object.insert(name.to_owned(), Value::Object(Map::new()));
    }
    object.get_mut(name).and_then(Value::as_object_mut)
}

/// Adds the entries of `from` whose keys `to` does not have.
fn add_missing(to: &mut Object, from: Option<&Value>) {
    for (key, value) in from.and_then(Value::as_object).into_iter().flatten() {
        if !to.contains_key(key) {
            to.insert(key.clone(), value.clone());
        }
    }
}

#[cfg(test)]
mod tests;
