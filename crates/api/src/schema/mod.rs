//! The types of all served kinds, as one tree.
//!
//! The tree is built once, from tables that are part of the program (`data/schema.txt`,
//! `data/apiextensions.txt`, `data/metrics.txt`, `data/snapshot.txt`), and
//! drives decoding, pruning, normal form, defaults, merge keys and documents. A [`Schema`] is a
//! list of [`Node`]s that refer to each other by [`NodeId`], because types may contain themselves.
//!
//! ```text
//! Schema ── type name ──▶ NodeId ──▶ Node::Struct ── field name ──▶ Field ──▶ NodeId ──▶ …
//!                                    Node::List, Node::Map ──▶ NodeId
//!                                    Node::String, Node::Quantity, Node::Time, …
//! ```

mod merge;
mod parse;
mod walk;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;

use crate::resource::Resource;

pub use merge::{Merge, merge_schema};
pub use walk::{for_each_struct, pod_spec, pod_spec_mut, pod_template};

/// The tables of the built-in types.
pub(crate) const TABLES: [&str; 4] = [
    include_str!("../../data/schema.txt"),
    include_str!("../../data/apiextensions.txt"),
    include_str!("../../data/metrics.txt"),
    include_str!("../../data/snapshot.txt"),
];

/// A set of types that refer to each other.
#[derive(Debug, Default)]
pub struct Schema {
    nodes: Vec<Node>,
    by_name: HashMap<Cow<'static, str>, NodeId>,
}

/// Names a [`Node`] of one [`Schema`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(crate) u32);

/// What a value may be.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// Any text.
    String,
    /// True or false.
    Bool,
    /// A whole number of 32 bits.
    Int32,
    /// A whole number of 64 bits.
    Int64,
    /// Any number.
    Number,
    /// Bytes, in base64.
    Bytes,
    /// An amount such as `1500m` or `2Gi`.
    Quantity,
    /// A whole number or a text.
    IntOrString,
    /// A time in whole seconds, RFC 3339.
    Time,
    /// A time in microseconds, RFC 3339.
    MicroTime,
    /// A length of time such as `1m30s`.
    Duration,
    /// The set of fields that a manager owns; any object.
    FieldsV1,
    /// Any JSON.
    Raw,
    /// One of a closed set of texts.
    Enum(EnumType),
    /// A struct, or true or false in its place.
    OrBool(NodeId),
    /// A struct, or in its place a list of items of the second type.
    OrList(NodeId, NodeId),
    /// A list of items of one type.
    List(NodeId),
    /// A map from texts to values of one type.
    Map(NodeId),
    /// An object with known fields.
    Struct(StructType),
}

/// A closed set of texts.
#[derive(Debug, Clone, PartialEq)]
pub struct EnumType {
    /// Such as `core/v1.Protocol`.
    pub name: Cow<'static, str>,
    /// The texts, in their declared order.
    pub values: Vec<Cow<'static, str>>,
}

/// An object with known fields.
#[derive(Debug, Clone, PartialEq)]
pub struct StructType {
    /// Such as `core/v1.PodSpec`.
    pub name: Cow<'static, str>,
    /// Sorted by name.
    pub fields: Vec<Field>,
    /// Whether it is an object of its own, with `apiVersion`, `kind` and metadata.
    pub is_kind: bool,
    /// Whether server-side apply owns it as a whole.
    pub atomic: bool,
}

/// One field of a [`StructType`].
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Name in JSON.
    pub name: Cow<'static, str>,
    /// Type of its value.
    pub node: NodeId,
    /// Protobuf field numbers; more than one where upstream embeds a message. Empty: not encoded.
    pub proto: Vec<u32>,
    /// Written even if it is zero or empty.
    pub written: bool,
    /// Absent differs from zero.
    pub pointer: bool,
    /// Must be given.
    pub required: bool,
    /// Declared as optional.
    pub optional: bool,
    /// Not to be used any more.
    pub deprecated: bool,
    /// Left out when zero although its type is always written.
    pub omit_zero: bool,
    /// How server-side apply merges a list.
    pub list: Option<ListType>,
    /// Server-side apply owns this map or struct as a whole (`true`) or by field (`false`).
    pub atomic: Option<bool>,
    /// Strategic merge: lists merge item by item.
    pub merge: bool,
    /// Strategic merge: replaced as a whole.
    pub replace: bool,
    /// Strategic merge: clients send the keys to retain.
    pub retain_keys: bool,
    /// Strategic merge: what tells items apart.
    pub merge_key: Option<Cow<'static, str>>,
    /// Value if absent, where the type itself declares one.
    pub default: Option<Value>,
}

/// How server-side apply merges a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListType {
    /// Owned as a whole.
    Atomic,
    /// Each scalar is owned for itself.
    Set,
    /// Items are told apart by these fields.
    Map(Vec<Cow<'static, str>>),
}

impl Schema {
    /// The types of the built-in kinds.
    pub fn builtin() -> &'static Schema {
        static BUILTIN: LazyLock<Schema> =
            LazyLock::new(|| parse::parse(&TABLES).expect("the built-in tables are well-formed (tested)"));
        &BUILTIN
    }

    /// The type of this name, such as `apps/v1.StatefulSet`.
    pub fn find(&self, type_name: &str) -> Option<NodeId> {
        self.by_name.get(type_name).copied()
    }

    /// What a value of this type may be.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// The type as a struct, if it is one.
    pub fn as_struct(&self, id: NodeId) -> Option<&StructType> {
        match self.node(id) {
            Node::Struct(s) => Some(s),
            _ => None,
        }
    }

    /// How many nodes there are; ids are below it.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is no type at all.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// All named types, sorted by name.
    pub fn names(&self) -> Vec<(&str, NodeId)> {
        let mut names: Vec<_> = self.by_name.iter().map(|(name, id)| (name.as_ref(), *id)).collect();
        names.sort_unstable();
        names
    }
}

impl StructType {
    /// The field of this name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|f| f.name.as_ref().cmp(name)).ok().map(|i| &self.fields[i])
    }
}

/// Where the type of a resource's objects is described; `None` if nothing is known about it.
pub fn of(resource: &Resource) -> Option<(&'static Schema, NodeId)> {
    let schema = Schema::builtin();
    Some((schema, schema.find(&resource.type_name)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Registry;

    #[test]
    fn every_served_kind_has_a_type() {
        for resource in Registry::builtin().all() {
            let (schema, id) = of(&resource).unwrap_or_else(|| panic!("{}", resource.type_name));
            assert!(schema.as_struct(id).is_some_and(|s| s.is_kind), "{}", resource.type_name);
        }
    }

    #[test]
    fn embedded_structs_are_flattened_with_their_numbers() {
        let schema = Schema::builtin();
        let volume = schema.as_struct(schema.find("core/v1.Volume").unwrap()).unwrap();
        assert_eq!(volume.field("name").unwrap().proto, [1]);
        assert_eq!(volume.field("emptyDir").unwrap().proto, [2, 2]);
        let pod = schema.as_struct(schema.find("core/v1.Pod").unwrap()).unwrap();
        assert!(pod.field("kind").unwrap().proto.is_empty());
    }

    #[test]
    fn facts_of_a_field_survive_the_table() {
        let schema = Schema::builtin();
        let spec = schema.as_struct(schema.find("core/v1.PodSpec").unwrap()).unwrap();
        let spread = spec.field("topologySpreadConstraints").unwrap();
        assert_eq!(spread.list, Some(ListType::Map(vec!["topologyKey".into(), "whenUnsatisfiable".into()])));
        assert!(spread.merge);
        assert_eq!(spread.merge_key.as_deref(), Some("topologyKey"));
        assert!(spec.field("volumes").unwrap().retain_keys);
        assert!(spec.field("containers").unwrap().written);
        let port = schema.as_struct(schema.find("core/v1.ServicePort").unwrap()).unwrap();
        assert_eq!(port.field("protocol").unwrap().default, Some(Value::from("TCP")));
    }

    #[test]
    fn fields_of_alpha_features_are_absent() {
        let schema = Schema::builtin();
        let spec = schema.as_struct(schema.find("core/v1.PodSpec").unwrap()).unwrap();
        assert!(spec.field("evictionResponders").is_none());
    }
}
