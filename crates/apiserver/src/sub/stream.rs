//! pods/log, exec, attach, portforward: finds the pod and container, and leaves the rest to the node.

use std::sync::Arc;

use api::resource::Resource;
use api::status::Status;
use http::Response;
use http::request::Parts;

use crate::body::Body;
use crate::errors::Outcome;
use crate::route::Target;
use crate::server::Shared;
use crate::streams;

/// Whether the path is a stream from or to a node.
pub(crate) fn is_stream(resource: &Resource, target: &Target) -> bool {
    resource.group.is_empty()
        && resource.kind == "Pod"
        && matches!(target.subresource.as_str(), "log" | "exec" | "attach" | "portforward")
}

/// Serves a stream.
pub(crate) async fn stream(
    shared: &Arc<Shared>,
    resource: &Resource,
    target: &Target,
    parts: Parts,
) -> Outcome<Response<Body>> {
    shared.cache.catch_up().await?;
    let found = shared.cache.get("", "pods", &target.namespace, &target.name);
    let pod = found.ok_or_else(|| Box::new(Status::not_found("", "pods", &target.name)))?.value(resource);
    streams::handle(&shared.nodes, shared.ambient.now(), &pod, &target.subresource, parts).await
}
