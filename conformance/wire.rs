//! Connections of one's own: for what leaves HTTP, and for clients that behave badly on purpose.

use std::sync::Arc;

use kube::client::ConfigExt as _;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Opens a connection to where a kubeconfig points; `protocol` is what is spoken inside (`h2`, `http/1.1`).
pub(crate) async fn connect(config: &kube::Config, protocol: &str) -> TlsStream<TcpStream> {
    let host = host(config);
    let port = config.cluster_url.port_u16().unwrap_or(443);
    let mut tls = config.rustls_client_config().expect("the kubeconfig's TLS");
    tls.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let name = config.tls_server_name.clone().unwrap_or_else(|| host.clone());
    let name = ServerName::try_from(name).expect("a name");
    let stream = TcpStream::connect((host.as_str(), port)).await.expect("the server listens");
    TlsConnector::from(Arc::new(tls)).connect(name, stream).await.expect("TLS")
}

/// The host of the server.
pub(crate) fn host(config: &kube::Config) -> String {
    config.cluster_url.host().expect("a host").trim_matches(['[', ']']).to_owned()
}
