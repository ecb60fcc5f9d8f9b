//! A registry on this machine, which serves images well, or as badly as a test asks for.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HOST, LOCATION, RANGE, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::image::Built;

/// How it serves.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only whoever has this name and password is served.
    pub user: Option<(String, String)>,
    /// They are given to a server for tokens, not to the registry itself.
    pub tokens: bool,
    /// With TLS, and a certificate of an authority of its own.
    pub tls: bool,
    /// Blobs are elsewhere, as with large registries: on another name of this machine.
    pub redirect: bool,
}

/// What goes wrong, once, with the next request whose path contains a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status is answered.
    Status(u16),
    /// The connection is closed after so many bytes of the body.
    Cut(usize),
    /// The body comes in pieces of this length.
    Pieces(usize),
    /// The bytes are others.
    Spoilt,
    /// The whole is sent although a part was asked for.
    NoRange,
}

/// A registry that runs until it is dropped.
pub struct Registry {
    state: Arc<State>,
    port: u16,
    authority: Option<String>,
    _end: oneshot::Sender<()>,
}

#[derive(Default)]
struct State {
    options: Options,
    /// By `repository/tag` and `repository/digest`: type and bytes.
    manifests: Mutex<BTreeMap<String, (String, Vec<u8>)>>,
    blobs: Mutex<BTreeMap<String, Vec<u8>>>,
    faults: Mutex<Vec<(String, Fault)>>,
    refused: Mutex<Option<(String, u16)>>,
    requests: Mutex<Vec<String>>,
    port: Mutex<u16>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    /// Starts one on a free port of the loopback interface, in a thread of its own.
    pub fn start(options: Options) -> Self {
        let (authority, acceptor) = if options.tls { Some(certificate()).unzip() } else { (None, None) };
        let state = Arc::new(State { options, ..State::default() });
        let (end, ended) = oneshot::channel();
        let (bound, address) = std::sync::mpsc::channel();
        let serving = state.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
                bound.send(listener.local_addr().expect("an address").port()).expect("somebody waits");
                tokio::select! {
                    () = serve(listener, acceptor, serving) => {}
                    _ = ended => {}
                }
            });
        });
        let port = address.recv().expect("it listens");
        *lock(&state.port) = port;
        Self { state, port, authority, _end: end }
    }

    /// Its name as images have it.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Certificate of its authority, PEM; with TLS only.
    pub fn authority(&self) -> &str {
        self.authority.as_deref().expect("only with TLS")
    }

    /// Serves an image from now on; returns its whole name.
    pub fn put(&self, repository: &str, tag: &str, image: &Built) -> String {
        let mut manifests = lock(&self.state.manifests);
        manifests.insert(format!("{repository}/{tag}"), (image.media_type.clone(), image.manifest.clone()));
        for (digest, bytes) in &image.blobs {
            let text: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
            if let Some(kind) = text["mediaType"].as_str() {
                manifests.insert(format!("{repository}/{digest}"), (kind.to_owned(), bytes.clone()));
            }
        }
        lock(&self.state.blobs).extend(image.blobs.clone());
        format!("{}/{repository}:{tag}", self.host())
    }

    /// Lets the next request whose path contains `path` go wrong.
    pub fn fail(&self, path: &str, fault: Fault) {
        lock(&self.state.faults).push((path.to_owned(), fault));
    }

    /// Lets every request whose path contains `path` be answered with this status, until told otherwise (none).
    pub fn refuse(&self, path: &str, status: Option<u16>) {
        *lock(&self.state.refused) = status.map(|status| (path.to_owned(), status));
    }

    /// What was asked since the last call: `GET /path`, with ` range=…` and ` as=…` (basic, bearer) where given.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.state.requests))
    }
}

/// An authority's certificate, and what a server that it vouches for needs.
fn certificate() -> (String, tokio_rustls::TlsAcceptor) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = parameters.self_signed(&key).expect("a certificate").pem();
    let issuer = rcgen::Issuer::new(parameters, key);
    let own_key = rcgen::KeyPair::generate().expect("a key");
    let own = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).expect("parameters");
    let own = own.signed_by(&own_key, &issuer).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![own.der().clone()],
            PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own_key.serialize_der())),
        );
    (authority, tokio_rustls::TlsAcceptor::from(Arc::new(config.expect("a configuration"))))
}

async fn serve(listener: TcpListener, acceptor: Option<tokio_rustls::TlsAcceptor>, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (state, acceptor) = (state.clone(), acceptor.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let state = state.clone();
                async move { Ok::<_, Infallible>(state.answer(&request)) }
            });
            let http = hyper::server::conn::http1::Builder::new();
            // A client that goes away, or a body that is cut off on purpose, is no failure of the test.
            match acceptor {
                None => drop(http.serve_connection(TokioIo::new(stream), service).await),
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        drop(http.serve_connection(TokioIo::new(stream), service).await);
                    }
                }
            }
        });
    }
}

type Answer = Response<BoxBody<Bytes, std::io::Error>>;

impl State {
    fn answer(&self, request: &Request<Incoming>) -> Answer {
        let path = request.uri().path().to_owned();
        let header = |name| request.headers().get(name).and_then(|h| h.to_str().ok()).unwrap_or_default();
        let (range, authorization) = (header(RANGE), header(AUTHORIZATION));
        let mut line = format!("{} {path}", request.method());
        if !range.is_empty() {
            line.push_str(&format!(" range={range}"));
        }
        if let Some((scheme, _)) = authorization.split_once(' ') {
            line.push_str(&format!(" as={}", scheme.to_lowercase()));
        }
        lock(&self.requests).push(line);
        let fault = {
            let mut faults = lock(&self.faults);
            faults.iter().position(|(text, _)| path.contains(text.as_str())).map(|at| faults.remove(at).1)
        };
        if let Some(Fault::Status(code)) = fault {
            return refuse(code, "UNAVAILABLE", "as the test asked for");
        }
        let refused = lock(&self.refused).clone().filter(|(text, _)| path.contains(text.as_str()));
        if let Some((_, code)) = refused {
            return refuse(code, "UNAVAILABLE", "as the test asked for");
        }
        if path == "/token" {
            return self.token(authorization);
        }
        if path.starts_with("/v2/") && !self.lets_in(authorization) {
            return self.challenge(header(HOST));
        }
        let (kind, bytes) = match self.find(&path) {
            Ok(found) => found,
            Err(answer) => return *answer,
        };
        content(&kind, bytes, range, fault)
    }

    fn find(&self, path: &str) -> Result<(String, Vec<u8>), Box<Answer>> {
        let unknown = |code| Box::new(refuse(404, code, "unknown"));
        if let Some(digest) = path.strip_prefix("/elsewhere/") {
            let blob = lock(&self.blobs).get(digest).cloned();
            return blob.map(|b| ("application/octet-stream".to_owned(), b)).ok_or_else(|| unknown("BLOB_UNKNOWN"));
        }
        let path = path.strip_prefix("/v2/").unwrap_or_default();
        if let Some((repository, version)) = path.split_once("/manifests/") {
            let found = lock(&self.manifests).get(&format!("{repository}/{version}")).cloned();
            return found.ok_or_else(|| unknown("MANIFEST_UNKNOWN"));
        }
        let Some((_, digest)) = path.split_once("/blobs/") else { return Err(unknown("NAME_UNKNOWN")) };
        if self.options.redirect {
            let scheme = if self.options.tls { "https" } else { "http" };
            let to = format!("{scheme}://localhost:{}/elsewhere/{digest}", lock(&self.port));
            let answer = Response::builder().status(307).header(LOCATION, to).body(full(Vec::new()));
            return Err(Box::new(answer.expect("an answer")));
        }
        let blob = lock(&self.blobs).get(digest).cloned();
        blob.map(|b| ("application/octet-stream".to_owned(), b)).ok_or_else(|| unknown("BLOB_UNKNOWN"))
    }

    /// What the name and password are worth, as a header.
    fn basic(&self) -> Option<String> {
        let (name, password) = self.options.user.as_ref()?;
        Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"))))
    }

    fn lets_in(&self, authorization: &str) -> bool {
        match (self.basic(), self.options.tokens) {
            (_, true) => authorization == "Bearer good",
            (Some(basic), false) => authorization == basic,
            (None, false) => true,
        }
    }

    fn challenge(&self, host: &str) -> Answer {
        let scheme = if self.options.tls { "https" } else { "http" };
        let challenge = if self.options.tokens {
            format!("Bearer realm=\"{scheme}://{host}/token\",service=\"test\"")
        } else {
            "Basic realm=\"test\"".to_owned()
        };
        let mut answer = refuse(401, "UNAUTHORIZED", "authentication required");
        answer.headers_mut().insert(WWW_AUTHENTICATE, challenge.parse().expect("a header"));
        answer
    }

    fn token(&self, authorization: &str) -> Answer {
        if self.basic().is_some_and(|basic| authorization != basic) {
            return refuse(401, "UNAUTHORIZED", "wrong name or password");
        }
        Response::new(full(json!({"token": "good"}).to_string().into_bytes()))
    }
}

fn content(kind: &str, mut bytes: Vec<u8>, range: &str, fault: Option<Fault>) -> Answer {
    let mut answer = Response::builder().header(CONTENT_TYPE, kind);
    if fault == Some(Fault::Spoilt) {
        bytes.iter_mut().for_each(|b| *b ^= 1);
    }
    let from = range.strip_prefix("bytes=").and_then(|r| r.split('-').next()?.parse::<usize>().ok());
    if let Some(from) = from.filter(|_| fault != Some(Fault::NoRange)) {
        if from >= bytes.len() {
            return refuse(416, "RANGE", "not satisfiable");
        }
        answer = answer
            .status(StatusCode::PARTIAL_CONTENT)
            .header(CONTENT_RANGE, format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len()));
        bytes.drain(..from);
    }
    let body = match fault {
        Some(Fault::Cut(after)) => {
            Badly { length: bytes.len(), at: 0, cut: after, piece: after.max(1), bytes, waited: false }.boxed()
        }
        Some(Fault::Pieces(piece)) => {
            Badly { length: bytes.len(), at: 0, cut: usize::MAX, piece, bytes, waited: false }.boxed()
        }
        _ => full(bytes),
    };
    answer.body(body).expect("an answer")
}

fn refuse(code: u16, word: &str, message: &str) -> Answer {
    let text = json!({"errors": [{"code": word, "message": message}]}).to_string();
    Response::builder().status(code).body(full(text.into_bytes())).expect("an answer")
}

fn full(bytes: Vec<u8>) -> BoxBody<Bytes, std::io::Error> {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed()
}

/// A body that comes in pieces, or not to its end.
struct Badly {
    length: usize,
    at: usize,
    cut: usize,
    piece: usize,
    bytes: Vec<u8>,
    waited: bool,
}

impl Body for Badly {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let end = (self.at + self.piece).min(self.length).min(self.cut);
        if end > self.at {
            let piece = Bytes::copy_from_slice(&self.bytes[self.at..end]);
            self.at = end;
            return std::task::Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if end < self.length && !std::mem::replace(&mut self.waited, true) {
            // What was sent before leaves first.
            context.waker().wake_by_ref();
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready((end < self.length).then(|| Err(std::io::Error::other("cut off as the test asked for"))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact((self.length - self.at) as u64)
    }
}
