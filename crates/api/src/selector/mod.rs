//! Label selectors and field selectors: parsing, matching, and which fields each kind can be selected by.
//!
//! ```text
//! "app=web,tier in (a,b)" ─┐
//!                          ├─▶ LabelSelector ──matches──▶ labels of an object
//! {matchLabels: ..}       ─┘
//! "spec.nodeName=n1"      ───▶ FieldSelector ──matches──▶ fields(resource, object)
//! ```

mod fields;
mod label;
mod lexer;

pub use fields::{FieldRequirement, FieldSelector, fields};
pub use label::{Label, LabelSelector, Labels, Operator, Requirement, labels};

/// Why a selector could not be read. The sentence is upstream's; the server answers it with 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub String);

impl From<ParseError> for crate::status::Status {
    fn from(error: ParseError) -> Self {
        crate::status::Status::bad_request(error.0)
    }
}
