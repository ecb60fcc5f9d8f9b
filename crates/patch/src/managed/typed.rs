//! Operations on documents along their types: the set of fields in a document, what differs
//! between two, their merge, and the removal of a set.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::fields::FieldSet;

/// A caller's name for a place in the schema: a type, and how the field that holds it merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place(pub u64);

/// What is at a place.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape<'a> {
    /// A scalar, or anything else that is owned as a whole.
    Leaf,
    /// An object whose fields have their own places.
    Struct,
    /// An object whose values are all alike.
    Map(Place),
    /// A list of scalars, each owned for itself.
    Set,
    /// A list of objects that are told apart by keys; a key may have a default.
    Keyed(Place, Vec<(Cow<'a, str>, Option<Value>)>),
    /// Anything: objects are owned by field, however deep, all else as a whole.
    Free,
}

/// What is known about the shape of documents.
pub trait TypeSchema {
    /// The place of the whole document.
    fn root(&self) -> Place;

    /// What is there.
    fn shape(&self, place: Place) -> Shape<'_>;

    /// The place of a field of the [`Shape::Struct`] at `place`; `None` if there is no such field.
    fn field(&self, place: Place, name: &str) -> Option<Place>;
}

/// How two documents differ.
#[derive(Debug, Clone, Default)]
pub(super) struct Difference {
    pub(super) added: FieldSet,
    pub(super) removed: FieldSet,
    pub(super) modified: FieldSet,
}

/// The items of a keyed list or set, by element, in their order.
type Items<'v> = Vec<(String, &'v Value)>;

/// Operations along one schema.
pub(super) struct Typed<'s> {
    pub(super) schema: &'s dyn TypeSchema,
}

impl Typed<'_> {
    /// The place below `place` at a field or key.
    fn below(&self, place: Option<Place>, shape: &Shape<'_>, name: &str) -> Option<Place> {
        match shape {
            Shape::Struct => self.schema.field(place?, name),
            Shape::Map(value) => Some(*value),
            Shape::Free => place,
            _ => None,
        }
    }

    /// The shape of a place that holds these values: what is free there is decided by what they are.
    fn shape_with(&self, place: Option<Place>, values: &[Option<&Value>]) -> Shape<'_> {
        match (self.shape(place), place) {
            (Shape::Free, Some(place)) => {
                let mut values = values.iter().flatten().peekable();
                let are_objects = values.peek().is_some() && values.all(|value| value.is_object());
                if are_objects { Shape::Map(place) } else { Shape::Leaf }
            }
            (shape, _) => shape,
        }
    }

    /// The shape of a place; what nothing is known about is owned as a whole.
    fn shape(&self, place: Option<Place>) -> Shape<'_> {
        place.map_or(Shape::Leaf, |place| self.schema.shape(place))
    }

    /// Checks that a document has only known fields and no item twice; the error names the path.
    pub(super) fn check(&self, place: Option<Place>, value: &Value, path: &str) -> Result<(), String> {
        let shape = self.shape_with(place, &[Some(value)]);
        match (&shape, value) {
            (Shape::Struct | Shape::Map(_), Value::Object(object)) => {
                for (name, child) in object {
                    let path = format!("{path}.{name}");
                    let below = self.below(place, &shape, name);
                    if below.is_none() {
                        return Err(format!("{path}: field not declared in schema"));
                    }
                    self.check(below, child, &path)?;
                }
                Ok(())
            }
            (Shape::Set | Shape::Keyed(..), Value::Array(_)) => {
                let items = self.items(&shape, Some(value)).map_err(|why| format!("{path}: {why}"))?;
                let mut seen = BTreeSet::new();
                for (element, child) in items {
                    let shown = FieldSet::of_element(&element).paths().concat();
                    if !seen.insert(element) {
                        return Err(format!("{path}: duplicate entries for key {shown}"));
                    }
                    if let Shape::Keyed(item, _) = &shape {
                        self.check(Some(*item), child, &format!("{path}{shown}"))?;
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The set of the fields in a document.
    pub(super) fn fields(&self, place: Option<Place>, value: &Value) -> FieldSet {
        let shape = self.shape_with(place, &[Some(value)]);
        let mut set = FieldSet::default();
        match (&shape, value) {
            (Shape::Leaf, _) => set.member = true,
            (Shape::Struct | Shape::Map(_), Value::Object(object)) => {
                for (name, child) in object {
                    let below = self.below(place, &shape, name);
                    let mut fields = self.fields(below, child);
                    let is_empty = child.is_null() || child.as_object().is_some_and(Map::is_empty);
                    fields.member |= is_empty || !matches!(shape, Shape::Struct) || below.is_none();
                    set.add(&format!("f:{name}"), fields);
                }
            }
            (Shape::Set | Shape::Keyed(..), Value::Array(_)) => {
                for (element, child) in self.items(&shape, Some(value)).unwrap_or_default() {
                    let mut fields = match &shape {
                        Shape::Keyed(item, _) => self.fields(Some(*item), child),
                        _ => FieldSet::default(),
                    };
                    fields.member = true;
                    set.add(&element, fields);
                }
            }
            _ => {}
        }
        set
    }

    /// What must be done to `old` to get `new`. A whole that is on one side alone counts for
    /// itself and for all in it.
    pub(super) fn compare(&self, place: Option<Place>, old: Option<&Value>, new: Option<&Value>) -> Difference {
        if old.is_some() && old == new {
            // Most of an object stays in most writes.
            return Difference::default();
        }
        let shape = self.shape_with(place, &[old, new]);
        let is_leaf = matches!(shape, Shape::Leaf) || (is_nothing(old) && is_nothing(new));
        let mut difference = Difference {
            added: FieldSet { member: old.is_none() && new.is_some(), ..FieldSet::default() },
            removed: FieldSet { member: new.is_none() && old.is_some(), ..FieldSet::default() },
            modified: FieldSet {
                member: is_leaf && old.is_some() && new.is_some() && old != new,
                ..FieldSet::default()
            },
        };
        if is_leaf {
            return difference;
        }
        let mut include = |element: &str, below: Option<Place>, old: Option<&Value>, new: Option<&Value>| {
            let inner = self.compare(below, old, new);
            difference.added.add(element, inner.added);
            difference.removed.add(element, inner.removed);
            difference.modified.add(element, inner.modified);
        };
        match &shape {
            Shape::Set | Shape::Keyed(..) => {
                let old = self.items(&shape, old).unwrap_or_default();
                let new = self.items(&shape, new).unwrap_or_default();
                let below = if let Shape::Keyed(item, _) = &shape { Some(*item) } else { None };
                let (before, after) = (by_element(&old), by_element(&new));
                for (element, value) in &before {
                    include(element, below, Some(value), after.get(element).copied());
                }
                for (element, value) in after.iter().filter(|(element, _)| !before.contains_key(*element)) {
                    include(element, below, None, Some(value));
                }
            }
            _ => {
                let old = old.and_then(Value::as_object);
                let new = new.and_then(Value::as_object);
                for (name, old) in old.into_iter().flatten() {
                    let new = new.and_then(|new| new.get(name));
                    // Asked before the element's name is made up; what is equal costs nothing more.
                    if Some(old) != new {
                        include(&format!("f:{name}"), self.below(place, &shape, name), Some(old), new);
                    }
                }
                for (name, new) in new.into_iter().flatten() {
                    if old.is_none_or(|old| !old.contains_key(name)) {
                        include(&format!("f:{name}"), self.below(place, &shape, name), None, Some(new));
                    }
                }
            }
        }
        difference
    }

    /// `new` laid over `old`: leaves of `new` win, objects and keyed lists merge.
    pub(super) fn merge(&self, place: Option<Place>, old: Option<&Value>, new: Option<&Value>) -> Option<Value> {
        let shape = self.shape_with(place, &[old, new]);
        let (Some(from), Some(to)) = (old, new) else { return new.or(old).cloned() };
        match (&shape, from, to) {
            (Shape::Struct | Shape::Map(_), Value::Object(old), Value::Object(new)) => {
                let mut out = old.clone();
                for (name, value) in new {
                    let below = self.below(place, &shape, name);
                    match self.merge(below, old.get(name), Some(value)).filter(|merged| !merged.is_null()) {
                        Some(merged) => out.insert(name.clone(), merged),
                        None => out.remove(name),
                    };
                }
                Some(Value::Object(out))
            }
            (Shape::Set | Shape::Keyed(..), Value::Array(_), Value::Array(_)) => {
                let (Ok(old_items), Ok(new_items)) = (self.items(&shape, old), self.items(&shape, new)) else {
                    return new.cloned();
                };
                Some(Value::Array(self.merge_items(&shape, &old_items, &new_items)))
            }
            _ => Some(to.clone()),
        }
    }

    /// Merges lists: items of `new` keep its order; items that only `old` has stay as near as
    /// possible to where they stood among those that both have.
    fn merge_items(&self, shape: &Shape<'_>, old: &Items<'_>, new: &Items<'_>) -> Vec<Value> {
        let below = if let Shape::Keyed(item, _) = shape { Some(*item) } else { None };
        let mut shared =
            new.iter().map(|(element, _)| element).filter(|element| item(old, element).is_some()).peekable();
        let merged = |element: &str| self.merge(below, item(old, element), item(new, element));
        let mut done = BTreeSet::new();
        let mut out = Vec::new();
        let (mut o, mut n) = (0, 0);
        while o < old.len() || n < new.len() {
            if let (Some((mine, _)), Some((theirs, _))) = (old.get(o), new.get(n)) {
                if mine == theirs {
                    out.extend(merged(mine));
                    done.insert(mine.as_str());
                    shared.next();
                    (o, n) = (o + 1, n + 1);
                    continue;
                }
                if item(new, mine).is_some() && shared.peek().is_some_and(|next| *next != mine) {
                    // It has a place in the new order, and that comes later.
                    o += 1;
                    continue;
                }
            }
            if let Some((mine, value)) = old.get(o) {
                if item(new, mine).is_none() {
                    out.push((*value).clone());
                    o += 1;
                    continue;
                }
                if done.contains(mine.as_str()) {
                    o += 1;
                }
            }
            if let Some((theirs, _)) = new.get(n) {
                if done.insert(theirs.as_str()) {
                    out.extend(merged(theirs));
                }
                if shared.peek() == Some(&theirs) {
                    shared.next();
                }
                n += 1;
            }
        }
        out
    }

    /// The document without the fields of a set; `None` if nothing is left.
    pub(super) fn remove(&self, place: Option<Place>, value: &Value, set: &FieldSet) -> Option<Value> {
        let shape = self.shape_with(place, &[Some(value)]);
        match (&shape, value) {
            (Shape::Struct | Shape::Map(_), Value::Object(object)) => {
                let mut out = Map::new();
                for (name, child) in object {
                    let kept = match set.children.get(&format!("f:{name}")) {
                        None => Some(child.clone()),
                        Some(inner) if inner.member => None,
                        Some(inner) => self.remove(self.below(place, &shape, name), child, inner),
                    };
                    out.extend(kept.map(|kept| (name.clone(), kept)));
                }
                (!out.is_empty()).then_some(Value::Object(out))
            }
            (Shape::Set | Shape::Keyed(..), Value::Array(_)) => {
                let below = if let Shape::Keyed(item, _) = &shape { Some(*item) } else { None };
                let mut out = Vec::new();
                for (element, child) in self.items(&shape, Some(value)).unwrap_or_default() {
                    out.extend(match set.children.get(&element) {
                        None => Some(child.clone()),
                        Some(inner) if inner.member => None,
                        Some(inner) => self.remove(below, child, inner),
                    });
                }
                (!out.is_empty()).then_some(Value::Array(out))
            }
            _ => Some(value.clone()),
        }
    }

    /// The set together with every struct that it has a field in. Who owns a field of a struct
    /// holds the struct in place.
    pub(super) fn with_structs(&self, place: Option<Place>, set: &FieldSet) -> FieldSet {
        let shape = self.shape(place);
        let mut out = FieldSet { member: set.member, ..FieldSet::default() };
        for (element, child) in &set.children {
            let (below, is_field) = match (element.strip_prefix("f:"), &shape) {
                (Some(name), _) => {
                    let below = self.below(place, &shape, name);
                    (below, below.is_some() && matches!(shape, Shape::Struct))
                }
                (None, Shape::Keyed(item, _)) => (Some(*item), false),
                _ => (None, false),
            };
            let mut inner = self.with_structs(below, child);
            inner.member |= is_field && !child.children.is_empty();
            out.add(element, inner);
        }
        out
    }

    /// The items of a list by element; the error says why one has none.
    fn items<'v>(&self, shape: &Shape<'_>, value: Option<&'v Value>) -> Result<Items<'v>, String> {
        let list = value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let element = |(index, value): (usize, &'v Value)| match shape {
            Shape::Keyed(_, keys) => {
                let mut named = Map::new();
                for (key, default) in keys {
                    let found = value.get(key.as_ref()).filter(|v| !v.is_null()).or(default.as_ref());
                    let found = found.ok_or_else(|| {
                        format!(
                            "element {index}: associative list with keys has an element that omits key field {key:?}"
                        )
                    })?;
                    named.insert(key.as_ref().to_owned(), found.clone());
                }
                Ok((format!("k:{}", Value::Object(named)), value))
            }
            _ => Ok((format!("v:{value}"), value)),
        };
        list.iter().enumerate().map(element).collect()
    }
}

impl FieldSet {
    /// The set of one element.
    fn of_element(element: &str) -> Self {
        let mut set = FieldSet::default();
        set.children.insert(element.to_owned(), FieldSet { member: true, ..FieldSet::default() });
        set
    }
}

/// The items of a list, found by element; of items that are alike the first.
fn by_element<'i, 'v>(items: &'i Items<'v>) -> BTreeMap<&'i str, &'v Value> {
    items.iter().rev().map(|(element, value)| (element.as_str(), *value)).collect()
}

/// The item of this element.
fn item<'v>(items: &Items<'v>, element: &str) -> Option<&'v Value> {
    items.iter().find(|(known, _)| known == element).map(|(_, value)| *value)
}

/// Whether a side is absent, null or empty.
fn is_nothing(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(object)) => object.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    }
}
