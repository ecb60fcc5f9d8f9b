//! Reads the table of types.
//!
//! ```text
//! statefuld-schema 1                  magic and version
//! # comment
//! enum core/v1.Protocol TCP UDP       a closed set of texts; - is the empty text
//! type core/v1.Pod kind               a struct; words: kind, cluster, atomic
//!  spec 2 core/v1.PodSpec optional    a field: name, protobuf numbers, type, words
//! ```
//!
//! Protobuf numbers are joined by dots where upstream embeds one message in another; `-` means
//! that the field is not encoded. A type is a name, `[]` and a type, or `{}` and a type; `(bool)`, `(list)` or `(strings)`
//! before a struct lets true and false, a list of them, or a list of texts, stand in its place. Words of
//! a field are those that [`Field`] documents; `default=` comes last, because JSON may contain
//! spaces.

use std::borrow::Cow;
use std::collections::HashMap;

use super::{EnumType, Field, ListType, Node, NodeId, Schema, StructType};

/// First line of every table.
const MAGIC: &str = "statefuld-schema 1";

/// Builds the tree from all tables; the error names the line.
pub(super) fn parse(tables: &[&'static str]) -> Result<Schema, String> {
    let mut builder = Builder::default();
    for text in tables {
        let mut lines = text.lines().enumerate();
        if lines.next().map(|(_, line)| line) != Some(MAGIC) {
            return Err(format!("line 1: expected {MAGIC:?}"));
        }
        for (index, line) in lines {
            builder.line(line).map_err(|why| format!("line {}: {why}", index + 1))?;
        }
    }
    builder.finish()
}

/// The tree while it is built.
#[derive(Default)]
struct Builder {
    schema: Schema,
    /// Lists (`true`) and maps (`false`) that exist already, by their content.
    collections: HashMap<(bool, NodeId), NodeId>,
    /// The struct that field lines belong to.
    current: Option<NodeId>,
    /// Names that were referred to before they were declared.
    declared: Vec<bool>,
}

impl Builder {
    /// Takes one line.
    fn line(&mut self, line: &'static str) -> Result<(), String> {
        if let Some(field) = line.strip_prefix(' ') {
            let field = self.field(field)?;
            let current = self.current.ok_or("a field outside of a type")?;
            match &mut self.schema.nodes[current.0 as usize] {
                Node::Struct(s) => s.fields.push(field),
                _ => return Err("a field outside of a struct".to_owned()),
            }
            return Ok(());
        }
        let mut words = line.split(' ');
        match words.next() {
            Some("type") => {
                let name = words.next().ok_or("a type without a name")?;
                let mut declared = StructType { name: name.into(), fields: Vec::new(), is_kind: false, atomic: false };
                for word in words {
                    match word {
                        "kind" => declared.is_kind = true,
                        "atomic" => declared.atomic = true,
                        "cluster" => {}
                        _ => return Err(format!("unknown word {word:?}")),
                    }
                }
                self.current = Some(self.declare(name, Node::Struct(declared)));
            }
            Some("enum") => {
                let name = words.next().ok_or("an enum without a name")?;
                let values = words.map(|v| Cow::Borrowed(if v == "-" { "" } else { v })).collect();
                self.declare(name, Node::Enum(EnumType { name: name.into(), values }));
                self.current = None;
            }
            Some(word) if word.is_empty() || word.starts_with('#') => {}
            other => return Err(format!("unknown line {other:?}")),
        }
        Ok(())
    }

    /// Reads one field.
    fn field(&mut self, text: &'static str) -> Result<Field, String> {
        let (text, default) = match text.split_once(" default=") {
            Some((text, default)) => (text, Some(serde_json::from_str(default).map_err(|e| format!("default: {e}"))?)),
            None => (text, None),
        };
        let mut words = text.split(' ');
        let (Some(name), Some(proto), Some(kind)) = (words.next(), words.next(), words.next()) else {
            return Err("a field needs a name, numbers and a type".to_owned());
        };
        let proto = match proto {
            "-" => Vec::new(),
            numbers => numbers
                .split('.')
                .map(|n| n.parse().map_err(|_| format!("bad numbers {numbers:?}")))
                .collect::<Result<_, _>>()?,
        };
        let mut field = Field {
            name: name.into(),
            node: self.reference(kind),
            proto,
            written: false,
            pointer: false,
            required: false,
            optional: false,
            deprecated: false,
            omit_zero: false,
            list: None,
            atomic: None,
            merge: false,
            replace: false,
            retain_keys: false,
            merge_key: None,
            default,
        };
        for word in words {
            apply_word(&mut field, word)?;
        }
        Ok(field)
    }

    /// The node of a type's text.
    fn reference(&mut self, text: &'static str) -> NodeId {
        if let Some((place, inner)) = text.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            let inner = self.reference(inner);
            let either = match place {
                "bool" => Node::OrBool(inner),
                "list" => Node::OrList(inner, inner),
                // Whatever else it is has no type of that name, and is told at the end.
                item => Node::OrList(inner, self.named(item.strip_suffix('s').unwrap_or(item))),
            };
            return self.push(either, true);
        }
        let (is_list, inner) = match (text.strip_prefix("[]"), text.strip_prefix("{}")) {
            (Some(inner), _) => (true, inner),
            (None, Some(inner)) => (false, inner),
            (None, None) => return self.named(text),
        };
        let inner = self.reference(inner);
        if let Some(known) = self.collections.get(&(is_list, inner)) {
            return *known;
        }
        let id = self.push(if is_list { Node::List(inner) } else { Node::Map(inner) }, true);
        self.collections.insert((is_list, inner), id);
        id
    }

    /// The node of a name; scalars exist without a declaration.
    fn named(&mut self, name: &'static str) -> NodeId {
        if let Some(id) = self.schema.find(name) {
            return id;
        }
        let scalar = match name {
            "string" => Some(Node::String),
            "bool" => Some(Node::Bool),
            "int32" => Some(Node::Int32),
            "int64" => Some(Node::Int64),
            "number" => Some(Node::Number),
            "bytes" => Some(Node::Bytes),
            "Quantity" => Some(Node::Quantity),
            "IntOrString" => Some(Node::IntOrString),
            "Time" => Some(Node::Time),
            "MicroTime" => Some(Node::MicroTime),
            "Duration" => Some(Node::Duration),
            "FieldsV1" => Some(Node::FieldsV1),
            "RawExtension" => Some(Node::Raw),
            _ => None,
        };
        let is_known = scalar.is_some();
        let id = self.push(scalar.unwrap_or(Node::Raw), is_known);
        self.schema.by_name.insert(name.into(), id);
        id
    }

    /// Gives a name its meaning.
    fn declare(&mut self, name: &'static str, node: Node) -> NodeId {
        let id = self.named(name);
        self.schema.nodes[id.0 as usize] = node;
        self.declared[id.0 as usize] = true;
        id
    }

    /// Adds a node.
    fn push(&mut self, node: Node, is_declared: bool) -> NodeId {
        let id = NodeId(u32::try_from(self.schema.nodes.len()).expect("a table has far fewer than 2^32 types"));
        self.schema.nodes.push(node);
        self.declared.push(is_declared);
        id
    }

    /// Checks that nothing is missing.
    fn finish(mut self) -> Result<Schema, String> {
        for (name, id) in &self.schema.by_name {
            if !self.declared[id.0 as usize] {
                return Err(format!("type {name} is not declared"));
            }
        }
        for node in &mut self.schema.nodes {
            if let Node::Struct(s) = node {
                s.fields.sort_by(|a, b| a.name.cmp(&b.name));
                if s.fields.windows(2).any(|pair| pair[0].name == pair[1].name) {
                    return Err(format!("type {} has a field twice", s.name));
                }
            }
        }
        Ok(self.schema)
    }
}

/// Understands one word of a field.
fn apply_word(field: &mut Field, word: &'static str) -> Result<(), String> {
    match word.split_once('=') {
        None => match word {
            "written" => field.written = true,
            "pointer" => field.pointer = true,
            "required" => field.required = true,
            "optional" => field.optional = true,
            "deprecated" => field.deprecated = true,
            "omitzero" => field.omit_zero = true,
            _ => return Err(format!("unknown word {word:?}")),
        },
        Some(("list", "atomic")) => field.list = Some(ListType::Atomic),
        Some(("list", "set")) => field.list = Some(ListType::Set),
        Some(("list", keys)) => {
            let keys = keys.strip_prefix("map:").ok_or_else(|| format!("unknown list type {keys:?}"))?;
            field.list = Some(ListType::Map(keys.split(',').map(Cow::Borrowed).collect()));
        }
        Some(("map" | "struct", "atomic")) => field.atomic = Some(true),
        Some(("map" | "struct", "granular")) => field.atomic = Some(false),
        Some(("patch", strategies)) => {
            for strategy in strategies.split(',') {
                match strategy {
                    "merge" => field.merge = true,
                    "replace" => field.replace = true,
                    "retainKeys" => field.retain_keys = true,
                    _ => return Err(format!("unknown patch strategy {strategy:?}")),
                }
            }
        }
        Some(("key", key)) => field.merge_key = Some(key.into()),
        Some(_) => return Err(format!("unknown word {word:?}")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_table_of_another_version_is_refused() {
        assert!(parse(&["statefuld-schema 2\n"]).unwrap_err().contains("line 1"));
    }

    #[test]
    fn errors_name_the_line() {
        assert!(parse(&["statefuld-schema 1\ntype a\n x 1 string what\n"]).unwrap_err().starts_with("line 3: "));
        assert!(parse(&["statefuld-schema 1\n x 1 string\n"]).unwrap_err().starts_with("line 2: "));
        assert!(parse(&["statefuld-schema 1\ntype a\n x 1 missing\n"]).unwrap_err().contains("missing"));
    }

    #[test]
    fn types_may_contain_themselves() {
        let schema = parse(&["statefuld-schema 1\ntype a\n x 1 []a\n y 2 {}a\n"]).unwrap();
        let id = schema.find("a").unwrap();
        assert_eq!(schema.as_struct(id).unwrap().fields.len(), 2);
    }
}
