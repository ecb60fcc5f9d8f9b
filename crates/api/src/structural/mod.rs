//! Structural schemas: the types of custom kinds, as their definitions give them.
//!
//! A schema in a CustomResourceDefinition says two things at once: the shape of objects (which
//! fields there are, of which types, with which defaults) and the rules that values have to follow.
//! [`Structural`] is both, compiled once when the definition is read.
//!
//! ```text
//!                         ┌─▶ prune     unknown fields dropped and named
//! openAPIV3Schema ─parse─▶┼─▶ default   what a client left out; nulls that mean nothing
//!                         ├─▶ validate  types, ranges, patterns, junctors ─┐
//!                         ├─▶ lists     keys and members that are unique  ─┼─▶ FieldErrors
//!                         ├─▶ cel       x-kubernetes-validations          ─┘
//!                         └─▶ merge     what server-side apply merges by
//! ```

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::Value;

mod cel;
mod default;
mod format;
mod lists;
mod merge;
mod parse;
pub mod path;
mod prune;
#[cfg(test)]
mod tests;
mod validate;

pub use cel::{Rule, check_rules};
pub use default::{apply_defaults, drop_nulls};
pub use lists::check_lists;
pub use merge::Types;
pub(crate) use parse::compile;
pub use parse::{ParseError, parse};
pub use prune::prune;
pub use validate::validate;

/// The type of a value, and the rules that it follows. Used for parts of junctors too, which have no shape.
#[derive(Debug, Default)]
pub struct Structural {
    /// What a value is; `None` lets anything through.
    pub kind: Option<Kind>,
    /// Null is a value, too.
    pub nullable: bool,
    /// A whole number or a text.
    pub int_or_string: bool,
    /// Fields that are known, by name.
    pub properties: BTreeMap<String, Structural>,
    /// What further fields hold.
    pub additional: Additional,
    /// What the items of a list are.
    pub items: Option<Box<Structural>>,
    /// Unknown fields are kept.
    pub preserve_unknown: bool,
    /// The object is one of Kubernetes', with apiVersion, kind and metadata.
    pub embedded: bool,
    /// What absent means.
    pub default: Option<Value>,
    /// What tells the items of a list apart.
    pub list: ListType,
    /// Server-side apply owns the object as a whole.
    pub atomic_map: bool,
    /// The rules about a value.
    pub rules: Rules,
    /// The rules in the Common Expression Language.
    pub validations: Vec<Rule>,
    /// Whether there are such rules here or below.
    pub has_validations: bool,
}

/// What JSON calls the type of a value, integers apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An object.
    Object,
    /// A list.
    Array,
    /// A text.
    String,
    /// A whole number.
    Integer,
    /// Any number.
    Number,
    /// True or false.
    Boolean,
}

/// What is said about fields that are not among the properties.
#[derive(Debug, Default)]
pub enum Additional {
    /// Nothing: they are unknown.
    #[default]
    Unsaid,
    /// They may hold anything.
    Any,
    /// There are none.
    Forbidden,
    /// They are values of a map.
    Schema(Box<Structural>),
}

/// What tells the items of a list apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum ListType {
    /// Nothing: the list is one value.
    #[default]
    Atomic,
    /// Their values.
    Set,
    /// The values of these fields.
    Map(Vec<String>),
}

/// The rules about a value, whatever its shape.
#[derive(Debug, Default)]
pub struct Rules {
    /// The only values allowed.
    pub one_of_values: Vec<Value>,
    /// Least number, and whether it is excluded itself.
    pub minimum: Option<(f64, bool)>,
    /// Greatest number, and whether it is excluded itself.
    pub maximum: Option<(f64, bool)>,
    /// Numbers are multiples of this.
    pub multiple_of: Option<f64>,
    /// Fewest characters.
    pub min_length: Option<u64>,
    /// Most characters.
    pub max_length: Option<u64>,
    /// What texts look like, with the text of the expression.
    pub pattern: Option<(Regex, String)>,
    /// What texts mean.
    pub format: String,
    /// Fewest items.
    pub min_items: Option<u64>,
    /// Most items.
    pub max_items: Option<u64>,
    /// No item appears twice.
    pub unique_items: bool,
    /// Fewest fields.
    pub min_properties: Option<u64>,
    /// Most fields.
    pub max_properties: Option<u64>,
    /// Fields that must be there.
    pub required: Vec<String>,
    /// All of these hold.
    pub all_of: Vec<Structural>,
    /// One of these holds, or more.
    pub any_of: Vec<Structural>,
    /// Exactly one of these holds.
    pub one_of: Vec<Structural>,
    /// This does not hold.
    pub not: Option<Box<Structural>>,
}

impl Kind {
    /// The type's name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Object => "object",
            Kind::Array => "array",
            Kind::String => "string",
            Kind::Integer => "integer",
            Kind::Number => "number",
            Kind::Boolean => "boolean",
        }
    }

    /// The type of this name.
    pub fn parse(name: &str) -> Option<Kind> {
        [Kind::Object, Kind::Array, Kind::String, Kind::Integer, Kind::Number, Kind::Boolean]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

impl Structural {
    /// What a field holds, if it is known or further fields are described.
    pub fn field(&self, name: &str) -> Option<&Structural> {
        match (self.properties.get(name), &self.additional) {
            (Some(property), _) => Some(property),
            (None, Additional::Schema(schema)) => Some(schema),
            _ => None,
        }
    }
}

/// The path of a field below `base`.
fn child(base: &str, name: &str) -> String {
    if base.is_empty() { name.to_owned() } else { format!("{base}.{name}") }
}
