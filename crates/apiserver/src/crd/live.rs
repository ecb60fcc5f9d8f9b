//! The registry as it is now: read often, replaced as a whole when definitions change.

use std::sync::{Arc, PoisonError, RwLock};

use api::resource::{Registry, Resource};

/// A registry that can be replaced. Readers take the whole of it and are never held up for longer than that.
pub(crate) struct Live(RwLock<Arc<Registry>>);

impl Live {
    /// Begins with a registry.
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        Self(RwLock::new(registry))
    }

    /// All kinds of this moment.
    pub(crate) fn snapshot(&self) -> Arc<Registry> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another registry in its place.
    pub(super) fn replace(&self, registry: Registry) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(registry);
    }

    /// The kind that is served at this group, version and plural.
    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        self.snapshot().find(group, version, plural)
    }

    /// The resource of this group, version and kind.
    pub(crate) fn find_kind(&self, group: &str, version: &str, kind: &str) -> Option<Arc<Resource>> {
        self.snapshot().find_kind(group, version, kind)
    }

    /// The kinds of one group and version.
    pub(crate) fn in_group_version(&self, group: &str, version: &str) -> Vec<Arc<Resource>> {
        self.snapshot().in_group_version(group, version)
    }

    /// Every group and version that serves a kind.
    pub(crate) fn group_versions(&self) -> Vec<(String, String)> {
        self.snapshot().group_versions()
    }
}
