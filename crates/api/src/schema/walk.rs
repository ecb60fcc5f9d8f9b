//! Ways through an object along its schema.

use serde_json::{Map, Value};

use super::{Node, NodeId, Schema};

/// Calls `visit` for every struct inside `value`, parents before children, with its type and node.
pub fn for_each_struct(
    schema: &Schema,
    id: NodeId,
    value: &mut Value,
    visit: &mut dyn FnMut(NodeId, &mut Map<String, Value>),
) {
    match (schema.node(id), value) {
        (Node::Struct(s), Value::Object(object)) => {
            visit(id, object);
            for (name, child) in object.iter_mut() {
                if let Some(field) = s.field(name) {
                    for_each_struct(schema, field.node, child, visit);
                }
            }
        }
        (Node::List(item), Value::Array(items)) => {
            for child in items {
                for_each_struct(schema, *item, child, visit);
            }
        }
        (Node::Map(inner), Value::Object(object)) => {
            for child in object.values_mut() {
                for_each_struct(schema, *inner, child, visit);
            }
        }
        _ => {}
    }
}

/// The pod template of a workload (`spec.template`), if the object has one.
pub fn pod_template(object: &Value) -> Option<&Value> {
    object.get("spec")?.get("template").filter(|t| t.is_object())
}

/// The pod's part of an object: a pod's own spec, or that of a workload's template.
pub fn pod_spec(object: &Value) -> Option<&Value> {
    match object.get("kind").and_then(Value::as_str) {
        Some("Pod") => object.get("spec"),
        _ => pod_template(object)?.get("spec"),
    }
}

/// Like [`pod_spec`], to change it.
pub fn pod_spec_mut(object: &mut Value) -> Option<&mut Value> {
    if object.get("kind").and_then(Value::as_str) == Some("Pod") {
        return object.get_mut("spec");
    }
    object.get_mut("spec")?.get_mut("template")?.get_mut("spec")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn structs_are_visited_inside_lists_and_templates() {
        let schema = Schema::builtin();
        let root = schema.find("apps/v1.StatefulSet").unwrap();
        let mut object = json!({"spec": {"template": {"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}}});
        let mut names = Vec::new();
        for_each_struct(schema, root, &mut object, &mut |id, object| {
            let name = &schema.as_struct(id).unwrap().name;
            names.push(format!("{name} {}", object.get("name").and_then(Value::as_str).unwrap_or("")));
        });
        assert_eq!(names[names.len() - 2..], ["core/v1.Container a", "core/v1.Container b"]);
        assert_eq!(names[0], "apps/v1.StatefulSet ");
    }

    #[test]
    fn the_pod_spec_is_found_in_pods_and_workloads() {
        assert_eq!(pod_spec(&json!({"kind": "Pod", "spec": {"a": 1}})), Some(&json!({"a": 1})));
        let set = json!({"kind": "StatefulSet", "spec": {"template": {"spec": {"b": 1}}}});
        assert_eq!(pod_spec(&set), Some(&json!({"b": 1})));
        assert_eq!(pod_spec(&json!({"kind": "ConfigMap"})), None);
    }
}
