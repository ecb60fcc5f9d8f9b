//! What the server keeps for itself on writes: status, generation, identity.

use serde_json::Value;

use crate::resource::Resource;

/// Before a create is defaulted and validated.
pub fn prepare_create(_resource: &Resource, _new: &mut Value) {}

/// Before an update of the object is validated.
pub fn prepare_update(_resource: &Resource, _new: &mut Value, _old: &Value) {}

/// Before an update of the status is validated.
pub fn prepare_status_update(_resource: &Resource, _new: &mut Value, _old: &Value) {}
