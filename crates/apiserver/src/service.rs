//! The server as a `tower::Service`: the same for sockets and for clients in this process.
//!
//! Here are the limits that keep one client from taking all (size of bodies, requests in flight), and the
//! wall that keeps a panic inside its request.

use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use api::status::Status;
use bytes::Bytes;
use futures::FutureExt;
use http::header::USER_AGENT;
use http::{HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tower::Service;

use crate::auth::Identity;
use crate::body::Body;
use crate::encoding::Way;
use crate::errors::Fail;
use crate::server::Shared;
use crate::{handler, respond};

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
        Box::pin(async move { Ok(guarded(shared, request).await) })
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

/// One request within the limits, its panic caught.
async fn guarded<B>(shared: Arc<Shared>, request: Request<B>) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (parts, body) = request.into_parts();
    let gate = if parts.method == Method::GET || parts.method == Method::HEAD { &shared.reads } else { &shared.writes };
    let Ok(_permit) = gate.clone().try_acquire_owned() else {
        return respond::too_busy();
    };
    let head = parts.method == Method::HEAD;
    let _counted = shared.metrics.request(head || parts.method == Method::GET);
    let way = Way::of(&parts);
    let work = async {
        let body = match read_body(body, shared.limits.body_bytes).await {
            Ok(body) => body,
            Err(fail) => return respond::status(&fail),
        };
        way.finish(handler::handle(&shared, parts, body).await).await
    };
    let mut response = match AssertUnwindSafe(work).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            tracing::error!("a request panicked; it was answered with 500");
            shared.metrics.panics.inc();
            respond::status(&Status::internal("this request failed in an unexpected way; the log says more"))
        }
    };
    if head {
        *response.body_mut() = Body::empty();
    }
    response
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
