//! One HTTP request over one connection: with TLS, or without where the operator says so.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ambient::Ambient;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::http::uri::Authority;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::resolve::resolve;
use super::settings::Registry;

/// How long a connection may take to be there.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// How long an answer may take to begin.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// What connections to a registry trust.
pub(super) fn tls(registry: &Registry) -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    // What cannot be read of the machine's own is not trusted; a registry that needs it says so by its certificate.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = &registry.ca_file {
        let about = |e: &dyn std::fmt::Display| io::Error::other(format!("caFile {}: {e}", path.display()));
        let certificates = rustls::pki_types::CertificateDer::pem_file_iter(path).map_err(|e| about(&e))?;
        for certificate in certificates {
            roots.add(certificate.map_err(|e| about(&e))?).map_err(|e| about(&e))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(io::Error::other)?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

/// Sends a request and waits for the beginning of its answer.
pub(super) async fn send(
    secure: bool,
    authority: &Authority,
    request: Request<Empty<Bytes>>,
    tls: &Arc<ClientConfig>,
    ambient: &Ambient,
) -> io::Result<Response<Incoming>> {
    let host = authority.host();
    let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no connection to {authority} in time"));
    let stream = timeout(CONNECT_LIMIT, connect(host, port, ambient)).await.map_err(|_| late())??;
    let answer = async {
        if secure {
            let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{host} is no host's name")))?;
            let connector = tokio_rustls::TlsConnector::from(tls.clone());
            exchange(connector.connect(name, stream).await?, request).await
        } else {
            exchange(stream, request).await
        }
    };
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {authority} in time"));
    timeout(ANSWER_LIMIT, answer).await.map_err(|_| late())?
}

async fn connect(host: &str, port: u16, ambient: &Ambient) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    for address in resolve(host, ambient).await? {
        match TcpStream::connect((address, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = io::Error::new(error.kind(), format!("dial tcp {address}:{port}: {error}")),
        }
    }
    Err(last)
}

async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> io::Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Ends with the answer's body, or when that is dropped.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(io::Error::other)
}
