//! The server as a `tower::Service`: the same for sockets and for clients in this process.
//!
//! Here are the limits that keep one client from taking all (size of bodies, requests in flight, time, memory of
//! answers), the wall that keeps a panic inside its request, and the audit log.

use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use api::status::Status;
use bytes::Bytes;
use futures::FutureExt;
use http::header::USER_AGENT;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tower::Service;

use crate::audit::Event;
use crate::auth::Identity;
use crate::body::Body;
use crate::encoding::Way;
use crate::errors::Fail;
use crate::gate::Permit;
use crate::query::{self, Query};
use crate::server::Shared;
use crate::{handler, respond};

/// Answers of this size and more are counted against the limit of memory.
const COUNTED_FROM: usize = 64 << 10;

/// The API. Cheap to clone; one per connection or client.
///
/// The request's extensions carry the [`Identity`]; without one it is anonymous.
#[derive(Clone)]
pub struct ApiService {
    shared: Arc<Shared>,
}

impl ApiService {
    /// The service of a server.
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl<B> Service<Request<B>> for ApiService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let shared = self.shared.clone();
        Box::pin(async move { Ok(audited(shared, request).await) })
    }
}

/// The API as one fixed identity sees it; for clients in the same process.
#[derive(Clone)]
pub struct InProcess {
    service: ApiService,
    identity: Identity,
}

impl InProcess {
    /// Every request of this client is made by `identity`.
    pub(crate) fn new(service: ApiService, identity: Identity) -> Self {
        Self { service, identity }
    }
}

impl<B> Service<Request<B>> for InProcess
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        request.extensions_mut().insert(self.identity.clone());
        // What our own parts change is noted under our name, unless they say another.
        request.headers_mut().entry(USER_AGENT).or_insert(HeaderValue::from_static("statefuld"));
        self.service.call(request)
    }
}

/// One request, noted in the audit log.
async fn audited<B>(shared: Arc<Shared>, request: Request<B>) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (parts, body) = request.into_parts();
    let Some(log) = &shared.audit else { return guarded(&shared, parts, body).await };
    let event = Event::of(&parts, &shared.ambient);
    let mut response = guarded(&shared, parts, body).await;
    if let Ok(id) = HeaderValue::from_str(&event.id) {
        response.headers_mut().insert("Audit-Id", id);
    }
    log.note(event.answered(&response, &shared.ambient));
    response
}

/// One request within the limits, its panic caught.
async fn guarded<B>(shared: &Arc<Shared>, parts: Parts, body: B) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let head = parts.method == Method::HEAD;
    let reads = head || parts.method == Method::GET;
    let gate = if reads { &shared.reads } else { &shared.writes };
    let caller = handler::caller(&parts);
    let Some(_permit) = gate.enter(&caller) else {
        return respond::too_busy();
    };
    let _counted = shared.metrics.request(reads);
    let way = Way::of(&parts);
    let limit = time_limit(&parts, shared.limits.request_timeout);
    // Reading the body is part of it: a client that sends it byte by byte must not keep its permit for ever.
    let work = tokio::time::timeout(limit, async {
        let body = match read_body(body, shared.limits.body_bytes).await {
            Ok(body) => body,
            Err(fail) => return respond::status(&fail),
        };
        way.finish(handler::handle(shared, parts, body).await).await
    });
    let mut response = match AssertUnwindSafe(work).catch_unwind().await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => {
            let why = "request did not complete within the allotted timeout";
            respond::status(&Status::timeout(why, 0))
        }
        Err(_) => {
            tracing::error!("a request panicked; it was answered with 500");
            shared.metrics.panics.inc();
            respond::status(&Status::internal("this request failed in an unexpected way; the log says more"))
        }
    };
    if head {
        *response.body_mut() = Body::empty();
    }
    within_memory(shared, &caller, response)
}

/// How long the request may take: as long as the server says, or less where the client does.
fn time_limit(parts: &Parts, limit: Duration) -> Duration {
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    match query::go_duration(query.text("timeout")) {
        Some(asked) if !asked.is_zero() => asked.min(limit),
        _ => limit,
    }
}

/// Holds large answers against a limit until they are sent: clients that ask for everything and read slowly get 429,
/// before the server's memory is full of what they asked for.
fn within_memory(shared: &Shared, caller: &Identity, mut response: Response<Body>) -> Response<Body> {
    let Some(bytes) = response.body().bytes().filter(|b| b.len() >= COUNTED_FROM).cloned() else { return response };
    let Some(permit) = shared.answers.enter_with(caller, bytes.len() >> 10) else { return respond::too_busy() };
    *response.body_mut() = Body::full(Bytes::from_owner(Held { bytes, _permit: permit }));
    response
}

/// Bytes with their room, which is given back with the last of them.
struct Held {
    bytes: Bytes,
    _permit: Permit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The whole body, if it is within the limit.
async fn read_body<B>(body: B, limit: usize) -> Result<Bytes, Fail>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Box::new(Status::too_large(format!("limit is {limit}")))),
        Err(error) => Err(Box::new(Status::bad_request(format!("the body could not be read: {error}")))),
    }
}
