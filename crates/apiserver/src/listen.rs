//! The listener: TLS, HTTP/1.1 and HTTP/2, and who the peer is.
//!
//! ```text
//!  accept ─▶ TLS (client certificate?) ─▶ HTTP ─▶ bearer token? ─▶ Identity as extension ─▶ service
//! ```
//!
//! A good certificate counts before a token. Nothing presented is anonymous; nothing good among what was presented is
//! 401.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ambient::Ambient;
use api::status::Status;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use crate::audit::{self, Event};
use crate::auth::Identity;
use crate::auth::tokens::TokenAuthenticator;
use crate::body::Body;
use crate::tls::{Peer, ServerTls};

/// How a listener serves. [`ListenOptions::new`] fills in what is usual.
#[derive(Clone)]
pub struct ListenOptions {
    /// Certificate and client verification.
    pub tls: ServerTls,
    /// Whose bearer tokens are good; `None` where there are none.
    pub tokens: Option<Arc<dyn TokenAuthenticator>>,
    /// Where refused requests are noted; the others are noted behind the listener.
    pub audit: Option<(Arc<audit::Log>, Ambient)>,
    /// Connections at a time; more wait in the kernel's queue.
    pub max_connections: usize,
    /// How long the TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long a request's head may take.
    pub header_timeout: Duration,
    /// How long requests under way may go on after the stop.
    pub grace: Duration,
}

impl ListenOptions {
    /// The usual limits, no tokens.
    pub fn new(tls: ServerTls) -> Self {
        Self {
            tls,
            tokens: None,
            audit: None,
            max_connections: 2000,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(30),
            grace: Duration::from_secs(2),
        }
    }
}

/// Bytes of a request's head.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Requests at a time on one HTTP/2 connection; client-go opens one connection for all its watches.
const MAX_STREAMS: u32 = 1000;

/// Idle HTTP/2 connections are probed this often.
const PROBE_EVERY: Duration = Duration::from_secs(30);

/// Pause after a failed accept: the usual cause, too many open files, does not go away at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves connections until `stop`; returns when the last one is done, at most `grace` later.
pub async fn serve<S>(listener: TcpListener, options: ListenOptions, service: S, stop: CancellationToken)
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let slots = Arc::new(Semaphore::new(options.max_connections));
    let tasks = TaskTracker::new();
    loop {
        let next = async {
            let slot = slots.clone().acquire_owned().await.expect("never closed");
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            next = next => next,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                tasks.spawn(connection(stream, slot, options.clone(), service.clone(), stop.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

/// One connection, from its handshake to its end.
async fn connection<S>(
    stream: TcpStream,
    _slot: OwnedSemaphorePermit,
    options: ListenOptions,
    service: S,
    stop: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    // Small answers must not wait for an acknowledgement. Fails only on a connection that is gone.
    let _ = stream.set_nodelay(true);
    let from = stream.peer_addr().ok().map(|address| audit::Origin(address.ip()));
    let handshake = TlsAcceptor::from(options.tls.config.clone()).accept(stream);
    let stream = tokio::select! {
        done = tokio::time::timeout(options.handshake_timeout, handshake) => match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => return tracing::debug!("TLS handshake took too long"),
        },
        () = stop.cancelled() => return,
    };
    let peer = options.tls.peer(stream.get_ref().1.peer_certificates());
    let service = Identified { service, peer, from, tokens: options.tokens.clone(), audit: options.audit.clone() };
    let http = http(options.header_timeout);
    let serving = http.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(serving);
    tokio::select! {
        done = &mut serving => {
            if let Err(error) = done {
                tracing::debug!(%error, "a connection ended early");
            }
            return;
        }
        () = stop.cancelled() => {}
    }
    serving.as_mut().graceful_shutdown();
    // Watches and followed logs would go on for ever.
    let _ = tokio::time::timeout(options.grace, serving).await;
}

fn http(header_timeout: Duration) -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(header_timeout).max_buf_size(MAX_HEAD_BYTES);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PROBE_EVERY)
        .keep_alive_timeout(PROBE_EVERY)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).expect("a small constant"));
    http
}

/// Puts the identity on each request.
#[derive(Clone)]
struct Identified<S> {
    service: S,
    /// From the client certificate.
    peer: Peer,
    /// Its address.
    from: Option<audit::Origin>,
    tokens: Option<Arc<dyn TokenAuthenticator>>,
    audit: Option<(Arc<audit::Log>, Ambient)>,
}

impl<S> Identified<S> {
    /// `None` where something was presented, and nothing that is good.
    fn identify(&self, headers: &HeaderMap) -> Option<Identity> {
        match (&self.peer, bearer(headers)) {
            (Peer::Known(identity), _) => Some(identity.clone()),
            (_, Some(token)) => self.tokens.as_ref()?.authenticate(&token),
            (Peer::Nobody, None) => Some(Identity::anonymous()),
            (Peer::Unknown, None) => None,
        }
    }

    /// 401, noted.
    fn refuse<B>(&self, request: Request<B>) -> Response<Body> {
        let response = unauthorized();
        if let Some((log, ambient)) = &self.audit {
            let (parts, _) = request.into_parts();
            log.note(Event::of(&parts, ambient).answered(&response, ambient));
        }
        response
    }
}

/// The token of `Authorization: Bearer …`.
fn bearer(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
}

impl<S, B> Service<Request<B>> for Identified<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if let Some(from) = &self.from {
            request.extensions_mut().insert(from.clone());
        }
        let Some(identity) = self.identify(request.headers()) else {
            return Box::pin(std::future::ready(Ok(self.refuse(request))));
        };
        // Nothing behind this point needs the secret, and nothing should log it.
        request.headers_mut().remove(AUTHORIZATION);
        request.extensions_mut().insert(identity);
        Box::pin(self.service.call(request))
    }
}

fn unauthorized() -> Response<Body> {
    let body = serde_json::to_vec(&Status::unauthorized().to_value()).expect("string keys only");
    Response::builder()
        .status(401)
        .header(CONTENT_TYPE, "application/json")
        .body(Body::full(body))
        .expect("constant parts")
}
