//! What lies below objects, and the few resources that are computed instead of stored.

use api::status::Status;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::request::Parts;
use http::{Method, Response};
use serde_json::Value;

use crate::auth::Identity;
use crate::body::Body;
use crate::errors::Outcome;
use crate::handler::{Call, header};
use crate::media::Shape;
use crate::route::Target;
use crate::server::Shared;
use crate::{media, respond, verbs};

pub(crate) mod binding;
mod eviction;
mod finalize;
mod gone;
mod node_metrics;
pub(crate) mod reviews;
mod scale;
mod stream;
pub(crate) mod summary;
pub(crate) mod token;
pub(crate) mod usage;

pub(crate) use gone::holders;
pub(crate) use node_metrics::{is_node_metrics, node_metrics};
pub(crate) use stream::{is_stream, stream};

/// Subresources that are the object itself, with their own rules.
const WHOLE: [&str; 2] = ["ephemeralcontainers", "resize"];

/// Carries out a verb on a subresource that is not `status`.
pub(crate) async fn dispatch(call: Call) -> Outcome<Response<Body>> {
    match (call.target.subresource.as_str(), call.verb) {
        ("scale", _) if call.wanted.shape == Shape::Table => Err(Box::new(Status::not_acceptable(&media::READ))),
        ("scale", "get") => scale::get(call).await,
        ("scale", _) => scale::write(call).await,
        ("binding", _) => binding::bind(call).await,
        ("eviction", _) => eviction::evict(call).await,
        ("finalize", _) => finalize::finalize(call).await,
        ("token", _) => token::create(call).await,
        (sub, "get") if WHOLE.contains(&sub) => verbs::read::get(call).await,
        (sub, "update") if WHOLE.contains(&sub) => verbs::update::update(call).await,
        (sub, "patch") if WHOLE.contains(&sub) => verbs::patch::patch(call).await,
        _ => Err(Box::new(Status::path_not_found())),
    }
}

/// Whether the path is about holder records. These say themselves who may ask.
pub(crate) fn is_holders(target: &Target) -> bool {
    target.group == "statefuld.io" && target.plural == "holders"
}

/// Answers a review; `None` if the path is about something else.
pub(crate) fn review(
    shared: &Shared,
    identity: &Identity,
    target: &Target,
    parts: &Parts,
    body: &Bytes,
) -> Option<Outcome<Response<Body>>> {
    let kinds = reviews::kinds(&target.group, &target.version);
    let (_, kind, namespaced) = kinds.iter().find(|(plural, ..)| *plural == target.plural)?;
    if !target.subresource.is_empty() || *namespaced == target.namespace.is_empty() {
        return Some(Err(Box::new(Status::path_not_found())));
    }
    if parts.method != Method::POST || !target.name.is_empty() {
        return Some(Err(Box::new(Status::method_not_allowed())));
    }
    let notation = media::notation(&header(parts, &ACCEPT));
    let review = reviews::answer(shared, identity, target, kind, &header(parts, &CONTENT_TYPE), body);
    Some(review.map(|review| respond::document(201, &review, notation)))
}

/// Puts a condition into a status, in place of the one of its type.
fn set_condition(value: &mut Value, condition: Value) {
    let conditions = &mut value["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = Value::Array(Vec::new());
    }
    let Some(list) = conditions.as_array_mut() else { return };
    match list.iter_mut().find(|old| old["type"] == condition["type"]) {
        Some(old) => *old = condition,
        None => list.push(condition),
    }
}
