//! Patches of JSON documents, pure: JSON patch (RFC 6902), merge patch (RFC 7396), and
//! Kubernetes' strategic merge patch and server-side apply.
//!
//! | module | patch | media type |
//! |---|---|---|
//! | [`json`] | a list of operations | `application/json-patch+json` |
//! | [`merge`] | a partial document; lists are replaced | `application/merge-patch+json` |
//! | [`strategic`] | a partial document; lists merge as the [`MergeSchema`] says | `application/strategic-merge-patch+json` |
//! | [`managed`] | what one manager wants; others keep theirs | `application/apply-patch+yaml` |
//!
//! Nothing here knows a kind, a type or a server. What a field merges by comes from the caller's
//! [`MergeSchema`] or [`managed::TypeSchema`]. Every function leaves the document in an unspecified but valid state when it
//! fails: patch a copy.

pub mod json;
pub mod managed;
pub mod merge;
pub mod strategic;

pub use strategic::{FieldMerge, MergeSchema, TypeRef};

/// Why a patch cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The patch itself is malformed: the client must send another one.
    #[error("{0}")]
    Malformed(String),
    /// The patch is well-formed but does not fit this document: a `test` failed or a path is absent.
    #[error("{0}")]
    Mismatch(String),
    /// The patch asks for more work than is allowed; split it.
    #[error("{0}")]
    TooLarge(String),
}
