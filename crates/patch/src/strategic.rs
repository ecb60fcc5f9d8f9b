//! Strategic merge patch.

use serde_json::Value;

use crate::Error;

/// A caller's name for one type; opaque here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TypeRef(pub u32);

/// How one field merges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldMerge<'a> {
    /// Type of the field's value; of a list, the type of its items.
    pub child: TypeRef,
    /// Lists merge item by item; otherwise they are replaced.
    pub merge: bool,
    /// The value is always replaced as a whole, maps included.
    pub replace: bool,
    /// The field that tells items of a merged list apart; `None` for lists of scalars.
    pub key: Option<&'a str>,
}

/// What is known about the fields of the document.
pub trait MergeSchema {
    /// Type of the whole document.
    fn root(&self) -> TypeRef;

    /// How the field `name` of an object of type `parent` merges. `None` if it is not known.
    fn field(&self, parent: TypeRef, name: &str) -> Option<FieldMerge<'_>>;
}

/// Merges `patch` into `target`.
pub fn apply(target: &mut Value, patch: &Value, schema: &dyn MergeSchema) -> Result<(), Error> {
    let _ = (target, patch, schema);
    Err(Error::Malformed("strategic merge patch is not available yet".to_owned()))
}
