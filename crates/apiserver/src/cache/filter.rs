//! Which objects a list or watch is about.

use api::selector::{FieldSelector, LabelSelector};

use super::Kind;
use super::change::Change;
use super::watchers::Scope;
use crate::object::{Key, Object};

/// The field of pods that every node agent watches by.
const INDEXED_FIELD: &str = "spec.nodeName";

/// What to let through; an absent part lets everything through.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Only this namespace; empty for all.
    pub(crate) namespace: String,
    /// Only this name; empty for all.
    pub(crate) name: String,
    /// Only with such labels.
    pub(crate) labels: Option<LabelSelector>,
    /// Only with such fields.
    pub(crate) fields: Option<FieldSelector>,
}

impl Filter {
    /// Whether an object passes.
    pub(crate) fn matches(&self, object: &Object) -> bool {
        (self.namespace.is_empty() || *self.namespace == *object.key.namespace)
            && (self.name.is_empty() || *self.name == *object.key.name)
            && self.labels.as_ref().is_none_or(|s| s.matches(&object.labels))
            && self.fields.as_ref().is_none_or(|s| s.matches(&object.fields))
    }

    /// What a watcher with this filter is told of a change: an object that begins to pass was added for it,
    /// one that ceases to pass was deleted.
    pub(crate) fn judge(&self, change: &Change) -> Option<Kind> {
        let now = change.current.as_ref().is_some_and(|o| self.matches(o));
        let before = change.previous.as_ref().is_some_and(|o| self.matches(o));
        match (before, now) {
            (false, true) => Some(Kind::Added),
            (true, true) => Some(Kind::Modified),
            (true, false) => Some(Kind::Deleted),
            (false, false) => None,
        }
    }

    /// The narrowest index that covers all that passes.
    pub(crate) fn scope(&self) -> Scope {
        if !self.name.is_empty() {
            return Scope::Object(Key::new(&self.namespace, &self.name));
        }
        if let Some(value) = self.fields.as_ref().and_then(|s| s.pinned(INDEXED_FIELD)) {
            return Scope::Field(value.into());
        }
        if self.namespace.is_empty() { Scope::All } else { Scope::Namespace(self.namespace.as_str().into()) }
    }
}

/// The value of the indexed field; an object without it has the empty one, which selectors can ask for too.
pub(super) fn indexed(object: &Object) -> &str {
    object.fields.get(INDEXED_FIELD).map_or("", String::as_str)
}
