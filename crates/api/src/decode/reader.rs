//! Reads a body along the schema: types are checked and unknown fields dropped while parsing, so
//! that nothing is built that will not be kept, and problems come in the order of the body.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{FieldValidation, scalar};
use crate::schema::{Node, NodeId, Schema};

/// Most problems that one body is told about.
pub(super) const MAX_PROBLEMS: usize = 100;

/// Deepest nesting of an object; no built-in kind comes near it.
const MAX_DEPTH: usize = 100;

/// What is known while a body is read.
pub(super) struct Context {
    schema: &'static Schema,
    /// Type of the whole; `None` if there is no schema for it.
    root: Option<NodeId>,
    path: Vec<Segment>,
    /// Names of the structs around the current place, for messages.
    owners: Vec<&'static str>,
    problems: Vec<String>,
    /// Why reading stopped, where it was not for the syntax.
    pub(super) fatal: Option<String>,
}

/// One step of a path.
enum Segment {
    Key(Cow<'static, str>),
    Index(usize),
}

impl Context {
    /// A fresh context for an object of this type.
    pub(super) fn new(type_name: &str) -> Self {
        let schema = Schema::builtin();
        Context {
            schema,
            root: schema.find(type_name),
            path: Vec::new(),
            owners: Vec::new(),
            problems: Vec::new(),
            fatal: None,
        }
    }

    /// A fresh context for a value of this type at `path` of an object.
    pub(super) fn below(type_name: &str, path: &str) -> Self {
        let mut context = Context::new(type_name);
        context.path.push(Segment::Key(Cow::Owned(path.to_owned())));
        context
    }

    /// What becomes of the problems: warnings, or an error that names them all.
    pub(super) fn finish(self, mode: FieldValidation) -> Result<Vec<String>, String> {
        match mode {
            FieldValidation::Ignore => Ok(Vec::new()),
            FieldValidation::Warn => Ok(self.problems),
            FieldValidation::Strict if self.problems.is_empty() => Ok(Vec::new()),
            FieldValidation::Strict => Err(format!("strict decoding error: {}", self.problems.join(", "))),
        }
    }

    /// Notes a problem that does not stop reading.
    fn problem(&mut self, what: &str, key: &str) {
        if self.problems.len() < MAX_PROBLEMS {
            let path = self.path_text();
            let dot = if path.is_empty() { "" } else { "." };
            self.problems.push(format!("{what} field \"{path}{dot}{key}\""));
        }
    }

    /// Stops reading, with the path.
    fn stop<E: Error>(&mut self, why: String) -> E {
        let error = E::custom(&why);
        self.fatal.get_or_insert(why);
        error
    }

    /// Stops reading because of a value's type.
    fn wrong_type<E: Error>(&mut self, found: &str, node: NodeId) -> E {
        let wanted = go_type(self.schema, node);
        let why = match self.owners.last() {
            Some(owner) => format!(
                "json: cannot unmarshal {found} into Go struct field {}.{} of type {wanted}",
                short(owner),
                self.path_text()
            ),
            None => format!("json: cannot unmarshal {found} into Go value of type {wanted}"),
        };
        self.stop(why)
    }

    /// Stops reading because of what a text says.
    fn wrong_text<E: Error>(&mut self, why: &str) -> E {
        let why = format!("{}: {why}", self.path_text());
        self.stop(why)
    }

    /// The current place, such as `spec.containers[0].image`.
    fn path_text(&self) -> String {
        let mut text = String::new();
        for segment in &self.path {
            match segment {
                Segment::Key(key) => {
                    if !text.is_empty() {
                        text.push('.');
                    }
                    text.push_str(key);
                }
                Segment::Index(index) => text.push_str(&format!("[{index}]")),
            }
        }
        text
    }
}

/// Reads one value; nulls come out as [`Value::Null`].
pub(super) struct Seed<'c> {
    context: &'c mut Context,
    node: Option<NodeId>,
}

impl<'c> Seed<'c> {
    /// Reads a whole object.
    pub(super) fn root(context: &'c mut Context) -> Self {
        let node = context.root;
        Seed { context, node }
    }

    /// The node's meaning; without a schema, anything.
    fn node(&self) -> &'static Node {
        self.node.map_or(&Node::Raw, |id| self.context.schema.node(id))
    }

    /// A value of another type was found.
    fn wrong<E: Error>(self, found: &str) -> E {
        match self.node {
            Some(id) => self.context.wrong_type(found, id),
            None => self.context.wrong_text("unexpected value"),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.context.path.len() > MAX_DEPTH {
            return Err(self.context.stop("exceeded max depth".to_owned()));
        }
        match self.node() {
            Node::Raw => Value::deserialize(deserializer),
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of the field's type")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        match self.node() {
            Node::Bool | Node::OrBool(_) => Ok(Value::Bool(value)),
            _ => Err(self.wrong("bool")),
        }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        match self.node() {
            Node::Int64 => Ok(value.into()),
            Node::Number => Ok(scalar::number(value as f64)),
            Node::Int32 | Node::IntOrString if i32::try_from(value).is_ok() => Ok(value.into()),
            Node::Int32 | Node::IntOrString => Err(self.wrong(&format!("number {value}"))),
            Node::Quantity => self.visit_str(&value.to_string()),
            _ => Err(self.wrong("number")),
        }
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        match i64::try_from(value) {
            Ok(value) => self.visit_i64(value),
            Err(_) => Err(self.wrong(&format!("number {value}"))),
        }
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        match self.node() {
            Node::Quantity => self.visit_str(&value.to_string()),
            Node::Number => Ok(scalar::number(value)),
            Node::Int32 | Node::Int64 | Node::IntOrString => Err(self.wrong(&format!("number {value}"))),
            _ => Err(self.wrong("number")),
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        let canonical = match self.node() {
            // Whether a text is one of the set is for validation to say: its message lists them.
            Node::String | Node::Enum(_) | Node::IntOrString | Node::Duration => Ok(text.to_owned()),
            Node::Quantity => scalar::quantity(text),
            Node::Time => scalar::time(text),
            Node::MicroTime => scalar::micro_time(text),
            Node::Bytes => scalar::bytes(text),
            _ => return Err(self.wrong("string")),
        };
        canonical.map(Value::String).map_err(|why| self.context.wrong_text(&why))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let (Node::List(item) | Node::OrList(_, item)) = *self.node() else { return Err(self.wrong("array")) };
        let mut out = Vec::new();
        self.context.path.push(Segment::Index(0));
        while let Some(value) = items.next_element_seed(Seed { context: self.context, node: Some(item) })? {
            out.push(if value.is_null() { zero(self.context.schema.node(item)) } else { value });
            if let Some(Segment::Index(index)) = self.context.path.last_mut() {
                *index += 1;
            }
        }
        self.context.path.pop();
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        match self.node() {
            Node::OrBool(inner) | Node::OrList(inner, _) => {
                Seed { node: Some(*inner), context: self.context }.visit_map(entries)
            }
            Node::Struct(s) => {
                self.context.owners.push(&s.name);
                let mut out = Map::new();
                let mut seen: Vec<&'static str> = Vec::with_capacity(8);
                while let Some(key) = entries.next_key::<String>()? {
                    let Some(field) = s.field(&key) else {
                        self.context.problem("unknown", &key);
                        entries.next_value::<IgnoredAny>()?;
                        continue;
                    };
                    if seen.contains(&field.name.as_ref()) {
                        self.context.problem("duplicate", &key);
                    }
                    seen.push(&field.name);
                    self.context.path.push(Segment::Key(Cow::Borrowed(&field.name)));
                    let value = entries.next_value_seed(Seed { context: self.context, node: Some(field.node) })?;
                    self.context.path.pop();
                    if value.is_null() {
                        out.remove(&key);
                    } else {
                        out.insert(key, value);
                    }
                }
                self.context.owners.pop();
                Ok(Value::Object(out))
            }
            Node::Map(inner) => {
                let inner = *inner;
                let mut out = Map::new();
                while let Some(key) = entries.next_key::<String>()? {
                    if out.contains_key(&key) {
                        self.context.problem("duplicate", &key);
                    }
                    self.context.path.push(Segment::Key(Cow::Owned(key.clone())));
                    let value = entries.next_value_seed(Seed { context: self.context, node: Some(inner) })?;
                    self.context.path.pop();
                    let value = if value.is_null() { zero(self.context.schema.node(inner)) } else { value };
                    out.insert(key, value);
                }
                Ok(Value::Object(out))
            }
            Node::FieldsV1 => {
                let mut out = Map::new();
                while let Some((key, value)) = entries.next_entry()? {
                    out.insert(key, value);
                }
                Ok(Value::Object(out))
            }
            _ => Err(self.wrong("object")),
        }
    }
}

/// What a null inside a list or map stands for.
fn zero(node: &Node) -> Value {
    match node {
        Node::Struct(_) | Node::Map(_) | Node::FieldsV1 | Node::OrBool(_) | Node::OrList(..) => {
            Value::Object(Map::new())
        }
        Node::List(_) => Value::Array(Vec::new()),
        Node::String | Node::Enum(_) | Node::Bytes | Node::Duration => Value::String(String::new()),
        Node::Bool => Value::Bool(false),
        Node::Int32 | Node::Int64 | Node::Number | Node::IntOrString => Value::from(0),
        Node::Quantity => Value::from("0"),
        Node::Time | Node::MicroTime | Node::Raw => Value::Null,
    }
}

/// What JSON calls the type of a value.
pub(super) fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// `core/v1.PodSpec` without its package.
fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// A type as upstream's messages name it.
fn go_type(schema: &Schema, node: NodeId) -> String {
    let named = |name: &str| name.rsplit('/').next().unwrap_or(name).to_owned();
    match schema.node(node) {
        Node::String | Node::Duration => "string".to_owned(),
        Node::Bool => "bool".to_owned(),
        Node::Int32 => "int32".to_owned(),
        Node::Int64 => "int64".to_owned(),
        Node::Number => "float64".to_owned(),
        Node::OrBool(inner) => format!("{}OrBool", go_type(schema, *inner)),
        Node::OrList(inner, item) => {
            let item = if item == inner { "" } else { "String" };
            format!("{}Or{item}Array", go_type(schema, *inner))
        }
        Node::Bytes => "[]uint8".to_owned(),
        Node::Quantity => "resource.Quantity".to_owned(),
        Node::IntOrString => "intstr.IntOrString".to_owned(),
        Node::Time => "v1.Time".to_owned(),
        Node::MicroTime => "v1.MicroTime".to_owned(),
        Node::FieldsV1 => "v1.FieldsV1".to_owned(),
        Node::Raw => "runtime.RawExtension".to_owned(),
        Node::Enum(e) => named(&e.name),
        Node::Struct(s) => named(&s.name),
        Node::List(item) => format!("[]{}", go_type(schema, *item)),
        Node::Map(value) => format!("map[string]{}", go_type(schema, *value)),
    }
}
