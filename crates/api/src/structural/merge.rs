//! What server-side apply merges by, for objects of custom kinds.

use std::collections::HashMap;

use patch::managed::{Place, Shape, TypeSchema};
use serde_json::Value;

use super::{Additional, Kind, ListType, Structural};

/// The types of one custom kind as crate `patch` asks for them: the object's own from its structural schema,
/// metadata from the built-in types.
///
/// Places of structural types are numbers in the order of a walk; built-in ones have the highest bit set.
pub struct Types<'a> {
    nodes: Vec<&'a Structural>,
    /// Where a node is among them, by its address.
    places: HashMap<usize, Place>,
    builtin: crate::managed::Types,
    metadata: Option<Place>,
}

/// Marks places of built-in types.
const BUILTIN: u64 = 1 << 63;
/// A place about which nothing is known, such as a kept unknown field: it and all below it merge by field.
const FREE: u64 = 1 << 62;
/// A text, such as `kind`.
const TEXT: u64 = (1 << 62) + 1;

impl<'a> Types<'a> {
    /// The types of a kind with this schema.
    pub fn new(schema: &'a Structural) -> Self {
        let mut nodes = Vec::new();
        let mut places = HashMap::new();
        let mut open = vec![schema];
        while let Some(next) = open.pop() {
            places.insert(std::ptr::from_ref(next).addr(), Place(nodes.len() as u64));
            nodes.push(next);
            open.extend(next.properties.values());
            open.extend(next.items.as_deref());
            if let Additional::Schema(inner) = &next.additional {
                open.push(inner);
            }
        }
        let builtin = crate::managed::Types::named("meta/v1.ObjectMeta");
        let metadata = builtin.known_root();
        Types { nodes, places, builtin, metadata }
    }

    /// The schema at a place.
    fn at(&self, place: Place) -> Option<&'a Structural> {
        usize::try_from(place.0).ok().and_then(|index| self.nodes.get(index).copied())
    }

    /// The place of a schema.
    fn place(&self, schema: &Structural) -> Option<Place> {
        self.places.get(&std::ptr::from_ref(schema).addr()).copied()
    }
}

impl TypeSchema for Types<'_> {
    fn root(&self) -> Place {
        Place(0)
    }

    fn shape(&self, place: Place) -> Shape<'_> {
        if place.0 & BUILTIN != 0 {
            return mark(self.builtin.shape(Place(place.0 & !BUILTIN)));
        }
        if place.0 == FREE {
            return Shape::Free;
        }
        let Some(schema) = self.at(place) else { return Shape::Leaf };
        if schema.atomic_map {
            return Shape::Leaf;
        }
        match schema.kind {
            Some(Kind::Array) => match (&schema.list, schema.items.as_deref().and_then(|i| self.place(i))) {
                (ListType::Set, _) => Shape::Set,
                (ListType::Map(keys), Some(item)) => {
                    let default =
                        |key: &str| -> Option<Value> { schema.items.as_ref()?.properties.get(key)?.default.clone() };
                    Shape::Keyed(item, keys.iter().map(|key| (key.clone().into(), default(key))).collect())
                }
                _ => Shape::Leaf,
            },
            Some(Kind::Object) | None => match &schema.additional {
                Additional::Schema(inner) => self.place(inner).map_or(Shape::Leaf, Shape::Map),
                _ if schema.preserve_unknown && schema.properties.is_empty() && !schema.embedded => Shape::Free,
                _ if schema.kind.is_some() || place.0 == 0 => Shape::Struct,
                _ => Shape::Leaf,
            },
            _ => Shape::Leaf,
        }
    }

    fn field(&self, place: Place, name: &str) -> Option<Place> {
        if place.0 & BUILTIN != 0 {
            return self.builtin.field(Place(place.0 & !BUILTIN), name).map(|p| Place(p.0 | BUILTIN));
        }
        let schema = self.at(place)?;
        if place.0 == 0 || schema.embedded {
            match name {
                "metadata" => return self.metadata.map(|p| Place(p.0 | BUILTIN)),
                "apiVersion" | "kind" => return Some(Place(TEXT)),
                _ => {}
            }
        }
        match schema.field(name) {
            Some(inner) => self.place(inner),
            None if schema.preserve_unknown => Some(Place(FREE)),
            None => None,
        }
    }
}

/// A shape of the built-in types, whose places are marked.
fn mark(shape: Shape<'_>) -> Shape<'_> {
    match shape {
        Shape::Map(place) => Shape::Map(Place(place.0 | BUILTIN)),
        Shape::Keyed(place, keys) => Shape::Keyed(Place(place.0 | BUILTIN), keys),
        other => other,
    }
}
