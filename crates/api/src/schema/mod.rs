//! The types of all served kinds, as one tree.

use patch::{FieldMerge, MergeSchema, TypeRef};

use crate::resource::Resource;

/// How the objects of a resource merge under a strategic merge patch.
pub fn merge_schema(resource: &Resource) -> impl MergeSchema + use<> {
    let _ = resource;
    Merge
}

/// A view on the schema for the crate `patch`.
struct Merge;

impl MergeSchema for Merge {
    fn root(&self) -> TypeRef {
        TypeRef(0)
    }

    fn field(&self, _: TypeRef, _: &str) -> Option<FieldMerge<'_>> {
        None
    }
}
