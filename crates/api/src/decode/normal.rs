//! The normal form of an object: the one that a round through upstream's typed encoder gives.
//!
//! | field | absent or zero | otherwise |
//! |---|---|---|
//! | pointer | absent; `null` where always written | as it is, zero and empty too |
//! | scalar, list, map | left out; where always written zero, or `null` for lists and maps | as it is |
//! | struct | `{}` with what its own fields require | as it is |
//! | time, free-form JSON | `null` | as it is |
//! | quantity, length of time | `"0"`, `"0s"` | as it is |

use serde_json::{Map, Value};

use crate::schema::{Field, Node, NodeId, Schema};

/// Brings a value into normal form.
pub(super) fn normalize(schema: &Schema, id: NodeId, value: &mut Value) {
    match (schema.node(id), value) {
        (Node::Struct(s), Value::Object(object)) => {
            object.retain(|name, value| match s.field(name) {
                Some(field) => !is_left_out(schema, field, value),
                // Unknown fields are the reader's business.
                None => true,
            });
            for field in &s.fields {
                match object.get_mut(field.name.as_ref()) {
                    Some(value) => normalize(schema, field.node, value),
                    None => fill(schema, field, object),
                }
            }
        }
        (Node::OrBool(inner) | Node::OrList(inner, _), value @ Value::Object(_)) => normalize(schema, *inner, value),
        // Scalars have nothing inside to normalise.
        (Node::List(item) | Node::OrList(_, item), Value::Array(items)) if has_inside(schema.node(*item)) => {
            items.iter_mut().for_each(|value| normalize(schema, *item, value));
        }
        (Node::Map(inner), Value::Object(object)) if has_inside(schema.node(*inner)) => {
            object.values_mut().for_each(|value| normalize(schema, *inner, value));
        }
        _ => {}
    }
}

/// Whether there is something to normalise inside of a value.
fn has_inside(node: &Node) -> bool {
    matches!(node, Node::Struct(_) | Node::List(_) | Node::Map(_) | Node::OrBool(_) | Node::OrList(..))
}

/// Whether a field with this value is removed, to be filled in again if it must be there.
fn is_left_out(schema: &Schema, field: &Field, value: &Value) -> bool {
    if value.is_null() {
        return true;
    }
    if field.pointer {
        return false;
    }
    match schema.node(field.node) {
        Node::String | Node::Enum(_) | Node::Bytes => value == "" && !field.written,
        Node::Bool => *value == false && !field.written,
        Node::Int32 | Node::Int64 => *value == 0 && !field.written,
        Node::List(_) => value.as_array().is_some_and(Vec::is_empty),
        Node::Map(_) => value.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

/// Adds what an absent field is written as, if it is written at all.
fn fill(schema: &Schema, field: &Field, object: &mut Map<String, Value>) {
    let zero = if field.pointer {
        field.written.then_some(Value::Null)
    } else {
        match schema.node(field.node) {
            Node::Struct(_) => {
                let mut value = Value::Object(Map::new());
                normalize(schema, field.node, &mut value);
                Some(value)
            }
            Node::Time | Node::MicroTime | Node::Raw if !field.omit_zero => Some(Value::Null),
            Node::Quantity => Some(Value::from("0")),
            Node::IntOrString => Some(Value::from(0)),
            Node::Duration => Some(Value::from("0s")),
            _ if !field.written => None,
            Node::String | Node::Enum(_) | Node::Bytes => Some(Value::from("")),
            Node::Bool => Some(Value::Bool(false)),
            Node::Int32 | Node::Int64 => Some(Value::from(0)),
            _ => Some(Value::Null),
        }
    };
    if let Some(zero) = zero {
        object.insert(field.name.as_ref().to_owned(), zero);
    }
}
