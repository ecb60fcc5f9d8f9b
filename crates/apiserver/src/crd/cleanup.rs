//! The objects of a definition that goes.

use std::sync::Arc;

use api::resource::Resource;
use bytes::Bytes;

use crate::auth::Identity;
use crate::handler::Call;
use crate::media::{Notation, Shape, Wanted};
use crate::query::Query;
use crate::route::Target;
use crate::server::Shared;
use crate::verbs::delete::delete_object;
use crate::verbs::options::DeleteOptions;

/// Deletes all objects of a kind; gives how many are there still, because something holds them.
pub(super) async fn remaining(shared: &Arc<Shared>, resource: &Arc<Resource>) -> usize {
    let Some(shelf) = shared.cache.shelf(resource) else { return 0 };
    for object in shelf.all("").iter().filter(|object| !object.terminating) {
        let call = call(shared, resource, &object.key.namespace, &object.key.name);
        if let Err(status) = delete_object(&call, &DeleteOptions::default()).await
            && status.code != 404
        {
            tracing::warn!(%status, kind = %resource.kind, "an object of a definition that goes was not deleted; trying again");
        }
    }
    // What was just deleted may not have reached the shelf yet.
    drop(shared.cache.catch_up().await);
    shelf.all("").len()
}

/// A delete by the server itself.
fn call(shared: &Arc<Shared>, resource: &Arc<Resource>, namespace: &str, name: &str) -> Call {
    Call {
        shared: shared.clone(),
        identity: Identity::user("system:apiserver", &["system:masters"]),
        resource: resource.clone(),
        target: Target {
            group: resource.group.clone(),
            version: resource.version.clone(),
            plural: resource.plural.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..Target::default()
        },
        verb: "delete",
        query: Query::parse(""),
        content_type: String::new(),
        user_agent: "apiserver".to_owned(),
        body: Bytes::new(),
        wanted: Wanted { shape: Shape::Object, list: None, notation: Notation::Json, beta: false },
    }
}
