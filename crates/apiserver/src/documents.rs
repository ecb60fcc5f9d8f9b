//! The OpenAPI documents as they are sent: built when first asked for, once per state of the registry.
//!
//! They are large and change only with the kinds that are served. Each has a tag by which clients find out that
//! the one that they keep is still true, and those of version 3 have addresses that change with their content.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use api::openapi;
use api::resource::Registry;
use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::sub::reviews;

/// Documents kept at once; there are a few per group.
const KEPT: usize = 512;

/// Builds documents, and keeps them as long as the registry stays the same.
#[derive(Default)]
pub(crate) struct Documents(Mutex<Kept>);

/// What is kept.
#[derive(Default)]
struct Kept {
    /// The state that the documents describe.
    registry: Option<Arc<Registry>>,
    by_path: HashMap<String, Document>,
}

/// One document.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    /// Its text.
    pub(crate) bytes: Bytes,
    /// Changes with its content.
    pub(crate) tag: Arc<str>,
}

impl Document {
    /// A document whose tag is taken from its content.
    pub(crate) fn new(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let tag: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02X}")).collect();
        Self { bytes, tag: tag.into() }
    }
}

impl Documents {
    /// The document of a path below `/openapi/`, such as `v3/apis/apps/v1`; `None` if there is none.
    pub(crate) fn openapi(&self, registry: &Arc<Registry>, rest: &[&str]) -> Option<Document> {
        match rest {
            ["v2"] => self.get(registry, "v2", |registry| Some(openapi::v2(registry).to_string().into())),
            ["v3"] => self.get(registry, "v3", |all| {
                let tag =
                    |group: &str, version: &str| self.version(registry, group, version).map(|d| d.tag.to_string());
                Some(openapi::v3_index(all, tag).to_string().into())
            }),
            ["v3", "api", version] => self.version(registry, "", version),
            ["v3", "apis", group, version] => self.version(registry, group, version),
            _ => None,
        }
    }

    /// The document of version 2 in its binary form.
    pub(crate) fn binary(&self, registry: &Arc<Registry>) -> Option<Document> {
        self.get(registry, "v2 in binary", |registry| Some(openapi::binary(&openapi::v2(registry)).into()))
    }

    /// The document of one group and version.
    fn version(&self, registry: &Arc<Registry>, group: &str, version: &str) -> Option<Document> {
        self.get(registry, &format!("v3/{group}/{version}"), |registry| {
            openapi::v3(registry, group, version).map(|document| document.to_string().into())
        })
    }

    /// A kept document, or one that is built now. Two who ask at once may both build it.
    fn get(
        &self,
        registry: &Arc<Registry>,
        path: &str,
        build: impl FnOnce(&Registry) -> Option<Bytes>,
    ) -> Option<Document> {
        if let Some(document) = self.lock(registry).by_path.get(path) {
            return Some(document.clone());
        }
        // Reviews are no stored kinds, but clients are generated for them too.
        let mut all = (**registry).clone();
        reviews::resources().for_each(|review| all.add(review));
        let document = Document::new(build(&all)?);
        let mut kept = self.lock(registry);
        if kept.by_path.len() < KEPT {
            kept.by_path.insert(path.to_owned(), document.clone());
        }
        Some(document)
    }

    /// What is kept for this state of the registry.
    fn lock(&self, registry: &Arc<Registry>) -> std::sync::MutexGuard<'_, Kept> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !kept.registry.as_ref().is_some_and(|known| Arc::ptr_eq(known, registry)) {
            *kept = Kept { registry: Some(registry.clone()), by_path: HashMap::new() };
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_built_once_for_a_registry_and_anew_for_the_next() {
        let documents = Documents::default();
        let registry = Registry::builtin();
        let first = documents.openapi(&registry, &["v3", "apis", "apps", "v1"]).unwrap();
        let again = documents.openapi(&registry, &["v3", "apis", "apps", "v1"]).unwrap();
        assert_eq!(first.bytes.as_ptr(), again.bytes.as_ptr());
        let mut fewer = Registry::default();
        fewer.add((*registry.find("apps", "v1", "statefulsets").unwrap()).clone());
        let other = documents.openapi(&Arc::new(fewer), &["v3", "apis", "apps", "v1"]).unwrap();
        assert_ne!(first.tag, other.tag);
        assert!(documents.openapi(&registry, &["v3", "apis", "nosuch", "v1"]).is_none());
    }

    #[test]
    fn the_index_names_each_document_by_its_content() {
        let documents = Documents::default();
        let registry = Registry::builtin();
        let index = documents.openapi(&registry, &["v3"]).unwrap();
        let apps = documents.openapi(&registry, &["v3", "apis", "apps", "v1"]).unwrap();
        let text = String::from_utf8(index.bytes.to_vec()).unwrap();
        assert!(text.contains(&format!("/openapi/v3/apis/apps/v1?hash={}", apps.tag)));
    }
}
