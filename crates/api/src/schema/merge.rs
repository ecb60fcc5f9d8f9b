//! The schema as the crate `patch` asks for it.

use patch::{FieldMerge, MergeSchema, TypeRef};

use super::{Node, NodeId, Schema};
use crate::resource::Resource;

/// How the objects of one type merge under a strategic merge patch.
pub struct Merge {
    schema: &'static Schema,
    root: Option<NodeId>,
}

/// A type about which nothing is known.
const UNKNOWN: TypeRef = TypeRef(u32::MAX);

/// How the objects of a resource merge under a strategic merge patch.
pub fn merge_schema(resource: &Resource) -> Merge {
    let schema = Schema::builtin();
    Merge { schema, root: schema.find(&resource.type_name) }
}

impl MergeSchema for Merge {
    fn root(&self) -> TypeRef {
        self.root.map_or(UNKNOWN, |id| TypeRef(id.0))
    }

    fn field(&self, parent: TypeRef, name: &str) -> Option<FieldMerge<'_>> {
        if parent == UNKNOWN {
            return None;
        }
        let plain = |node: NodeId| FieldMerge { child: TypeRef(node.0), merge: false, replace: false, key: None };
        match self.schema.node(NodeId(parent.0)) {
            Node::Map(value) => Some(plain(*value)),
            Node::Struct(s) => {
                let field = s.field(name)?;
                let child = match self.schema.node(field.node) {
                    Node::List(item) => *item,
                    _ => field.node,
                };
                Some(FieldMerge {
                    merge: field.merge,
                    replace: field.replace,
                    key: field.merge_key.as_deref(),
                    ..plain(child)
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Registry;

    #[test]
    fn merge_keys_are_found_through_a_template() {
        let sets = Registry::builtin().find("apps", "v1", "statefulsets").unwrap();
        let schema = merge_schema(&sets);
        let mut at = schema.root();
        for step in ["spec", "template", "spec", "containers"] {
            at = schema.field(at, step).unwrap().child;
        }
        let ports = schema.field(at, "ports").unwrap();
        assert!(ports.merge);
        assert_eq!(ports.key, Some("containerPort"));
        assert!(!schema.field(at, "args").unwrap().merge);
        assert!(schema.field(at, "nosuch").is_none());
    }
}
