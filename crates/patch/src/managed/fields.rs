//! Sets of fields, and the JSON in which objects carry them (`fieldsV1`).
//!
//! A place below another is named by an element: `f:NAME` a field or key, `k:{…}` the list item
//! with these keys, `v:VALUE` this scalar in a list. A set is a tree of elements; `.` marks that
//! the place itself belongs to the set, an empty object that it does and nothing below it.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Map, Value};

/// A set of fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// Whether this place itself belongs to the set.
    pub(super) member: bool,
    /// What lies below, by element.
    pub(super) children: BTreeMap<String, FieldSet>,
}

/// Deepest nesting that is read.
const MAX_DEPTH: usize = 100;

impl FieldSet {
    /// The set of the fields at these paths of field names, each with all that lies below.
    pub fn of_paths(paths: &[&[&str]]) -> Self {
        let mut set = FieldSet::default();
        for path in paths {
            let mut at = &mut set;
            for name in *path {
                at = at.children.entry(format!("f:{name}")).or_default();
            }
            at.member = true;
        }
        set
    }

    /// Reads `fieldsV1`; `None` if it is not of that form.
    pub fn parse(value: &Value) -> Option<Self> {
        Self::parse_at(value, 0).map(|mut set| {
            // The object itself is never owned; an empty document is the empty set.
            set.member = false;
            set
        })
    }

    /// Reads a place and what lies below it.
    fn parse_at(value: &Value, depth: usize) -> Option<Self> {
        let object = value.as_object().filter(|_| depth <= MAX_DEPTH)?;
        let mut set = FieldSet { member: object.is_empty(), children: BTreeMap::new() };
        for (key, child) in object {
            match key.as_str() {
                "." => set.member = true,
                _ if key.len() > 1 && key.as_bytes()[1] == b':' => {
                    set.children.insert(key.clone(), Self::parse_at(child, depth + 1)?);
                }
                _ => return None,
            }
        }
        Some(set)
    }

    /// Writes `fieldsV1`.
    pub fn to_value(&self) -> Value {
        let mut out: Map<String, Value> =
            self.children.iter().map(|(element, child)| (element.clone(), child.to_value())).collect();
        if self.member && !out.is_empty() {
            out.insert(".".to_owned(), Value::Object(Map::new()));
        }
        Value::Object(out)
    }

    /// Whether it contains nothing.
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// What is in either.
    pub fn union(mut self, other: &FieldSet) -> FieldSet {
        self.member |= other.member;
        for (element, child) in &other.children {
            let own = self.children.remove(element).unwrap_or_default();
            self.children.insert(element.clone(), own.union(child));
        }
        self
    }

    /// What is in both.
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        let both = |element: &String, child: &FieldSet| Some(child.intersection(other.children.get(element)?));
        self.rebuilt(self.member && other.member, |element, child| both(element, child))
    }

    /// What is in this and not in the other.
    pub fn difference(&self, other: &FieldSet) -> FieldSet {
        self.rebuilt(self.member && !other.member, |element, child| match other.children.get(element) {
            Some(others) => Some(child.difference(others)),
            None => Some(child.clone()),
        })
    }

    /// What is in this, and neither in the other nor below a place in it.
    pub fn without(&self, other: &FieldSet) -> FieldSet {
        self.rebuilt(self.member, |element, child| match other.children.get(element) {
            Some(others) if others.member => None,
            Some(others) => Some(child.without(others)),
            None => Some(child.clone()),
        })
    }

    /// A set of this shape with other children; empty ones are dropped.
    fn rebuilt(&self, member: bool, child: impl Fn(&String, &FieldSet) -> Option<FieldSet>) -> FieldSet {
        let children = self
            .children
            .iter()
            .filter_map(|(element, own)| Some((element.clone(), child(element, own).filter(|c| !c.is_empty())?)))
            .collect();
        FieldSet { member, children }
    }

    /// Adds a set below an element, unless it is empty.
    pub(super) fn add(&mut self, element: &str, child: FieldSet) {
        if !child.is_empty() {
            self.children.insert(element.to_owned(), child);
        }
    }

    /// The path of every member, such as `.spec.containers[name="a"].image`, sorted.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect_paths("", &mut out);
        out
    }

    /// Adds the paths of this place and of those below.
    fn collect_paths(&self, path: &str, out: &mut Vec<String>) {
        if self.member {
            out.push(path.to_owned());
        }
        for (element, child) in &self.children {
            child.collect_paths(&format!("{path}{}", shown(element)), out);
        }
    }
}

/// An element as people read it.
fn shown(element: &str) -> String {
    let (kind, rest) = element.split_at(element.len().min(2));
    match kind {
        "f:" => format!(".{rest}"),
        "v:" => format!("[={rest}]"),
        "k:" => match serde_json::from_str::<Map<String, Value>>(rest) {
            Ok(keys) => {
                let mut text = String::new();
                for (name, value) in keys {
                    let comma = if text.is_empty() { "" } else { "," };
                    let _ = write!(text, "{comma}{name}={value}");
                }
                format!("[{text}]")
            }
            Err(_) => format!("[{rest}]"),
        },
        _ => format!("[{rest}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A set from its JSON.
    fn set(value: Value) -> FieldSet {
        FieldSet::parse(&value).expect("a set")
    }

    #[test]
    fn json_survives() {
        for value in [
            json!({"f:data": {".": {}, "f:a": {}}, "f:metadata": {"f:finalizers": {"v:\"x\"": {}}}}),
            json!({"f:l": {"k:{\"name\":\"a\"}": {".": {}, "f:name": {}}}}),
            json!({}),
        ] {
            assert_eq!(set(value.clone()).to_value(), value);
        }
        assert_eq!(FieldSet::parse(&json!({"x": {}})), None);
        assert_eq!(FieldSet::parse(&json!([])), None);
    }

    #[test]
    fn sets_combine() {
        let a = set(json!({"f:x": {".": {}, "f:a": {}}, "f:y": {}}));
        let b = set(json!({"f:x": {"f:a": {}, "f:b": {}}}));
        assert_eq!(a.intersection(&b).to_value(), json!({"f:x": {"f:a": {}}}));
        assert_eq!(a.difference(&b).to_value(), json!({"f:x": {}, "f:y": {}}));
        assert_eq!(a.clone().union(&b).to_value(), json!({"f:x": {".": {}, "f:a": {}, "f:b": {}}, "f:y": {}}));
        assert_eq!(a.without(&FieldSet::of_paths(&[&["x"]])).to_value(), json!({"f:y": {}}));
    }

    #[test]
    fn paths_are_readable() {
        let all =
            set(json!({"f:s": {"f:l": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {"f:x": {}}}, "f:f": {"v:\"a\"": {}}}}));
        assert_eq!(all.paths(), [".s.f[=\"a\"]", ".s.l[port=80,protocol=\"TCP\"].x"]);
    }
}
