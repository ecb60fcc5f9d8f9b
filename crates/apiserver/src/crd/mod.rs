//! Custom kinds while the server runs: definitions come, change and go, and the registry follows.
//!
//! One task looks at the definitions whenever one has changed. It decides about names, makes kinds served, and only
//! then says so in their status; it deletes the objects of a definition that goes, and then lets it go.
//!
//! ```text
//!  definitions (shelf) ──▶ names ──▶ shelf of the kind, filled from the store ──▶ registry (swapped whole)
//!        ▲                                                                              │
//!        └───────── status: NamesAccepted, Established, Terminating ◀───────────────────┘
//! ```

mod cleanup;
mod follow;
mod live;

use api::crd::{FINALIZER, GROUP, KIND, set_condition};
use api::resource::Resource;
use serde_json::{Value, json};
use store::{RangeQuery, Store};

use crate::handler::Call;
use crate::object;
use crate::verbs::create::{metadata, seconds, text};

pub(crate) use follow::{Kinds, run};
pub(crate) use live::Live;

/// Definitions lie below this in the store.
const PREFIX: &str = "/registry/apiextensions.k8s.io/customresourcedefinitions/";

/// Whether objects of the kind declare other kinds.
pub(crate) fn is_definition(resource: &Resource) -> bool {
    resource.group == GROUP && resource.kind == KIND
}

/// The definitions that the store holds.
pub(crate) async fn stored(store: &dyn Store, definitions: &Resource) -> Result<Vec<Value>, store::Error> {
    let range = store.range(RangeQuery::prefix(PREFIX)).await?;
    Ok(range.entries.iter().map(|e| object::value_of(definitions, &e.value, e.mod_revision)).collect())
}

/// A definition that is deleted stays until its objects are gone.
pub(crate) fn hold(call: &Call, definition: &mut Value) {
    if !is_definition(&call.resource) || !text(definition, "deletionTimestamp").is_empty() {
        return;
    }
    let finalizers = metadata(definition).entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = finalizers.as_array_mut().filter(|list| !list.iter().any(|f| f == FINALIZER)) {
        list.push(FINALIZER.into());
    }
    let now = seconds(call.shared.ambient.now());
    let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    let mut status = definition["status"].take();
    set_condition(&mut status, "Terminating", "True", "InstanceDeletionPending", message, &now);
    definition["status"] = status;
}
