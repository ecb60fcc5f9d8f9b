//! The server behind its TLS listener, as clients on sockets see it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{Method, Request};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use nodeconn::{ExitStatus, Frame, NodeHandler, Stream, StreamRequest};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use statefuld_apiserver::auth::Identity;
use statefuld_apiserver::auth::tokens::StaticTokens;
use statefuld_apiserver::listen::{ListenOptions, serve};
use statefuld_apiserver::tls::{Authority, Issued, server_config};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use crate::support::{PATIENCE, Server, config_map, pod};

/// A server with a listener on a free port.
struct Listening {
    server: Server,
    authority: Arc<Authority>,
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Listening {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut ListenOptions)) -> Self {
        let server = Server::start().await;
        let authority =
            Authority::load_or_create(&server.folder.path().join("pki"), ambient::Ambient::system()).unwrap();
        let mut tokens = StaticTokens::new();
        tokens.insert("good", Identity::user("token-admin", &["system:masters"]));
        let mut options = ListenOptions::new(server_config(&authority, &[], &[]).unwrap());
        options.tokens = Some(Arc::new(tokens));
        change(&mut options);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, options, server.api.service(), stop.clone()));
        Self { server, authority, address, stop, serving }
    }

    /// A TLS connection that trusts the server and shows this certificate.
    async fn connect(&self, client: Option<&Issued>, alpn: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.certificate_pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots);
        let mut config = match client {
            None => config.with_no_client_auth(),
            Some(issued) => {
                let certificate = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
                config.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(self.address).await?).await
    }

    /// Status and body of a GET over HTTP/1.1.
    async fn get(&self, client: Option<&Issued>, path: &str, token: Option<&str>) -> Result<(u16, Value), String> {
        let io = self.connect(client, "http/1.1").await.map_err(|error| error.to_string())?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(Method::GET).uri(path).header("host", "localhost");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let code = answer.status().as_u16();
        let body = answer.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
        Ok((code, serde_json::from_slice(&body).unwrap_or_default()))
    }
}

const NAMESPACES: &str = "/api/v1/namespaces";

#[tokio::test]
async fn a_client_certificate_says_who_asks() {
    let listening = Listening::start().await;
    let admin = listening.authority.admin().unwrap();
    let (code, body) = listening.get(Some(&admin), NAMESPACES, None).await.unwrap();
    assert_eq!((code, &body["kind"]), (200, &json!("NamespaceList")));
    let node = listening.authority.node("n1").unwrap();
    let (code, body) = listening.get(Some(&node), NAMESPACES, None).await.unwrap();
    assert_eq!(code, 403);
    assert!(body["message"].as_str().unwrap().contains("User \"system:node:n1\" cannot list"), "{body}");
}

#[tokio::test]
async fn nothing_presented_is_anonymous() {
    let listening = Listening::start().await;
    let (code, body) = listening.get(None, NAMESPACES, None).await.unwrap();
    assert_eq!(code, 403);
    assert!(body["message"].as_str().unwrap().contains("system:anonymous"), "{body}");
    assert_eq!(listening.get(None, "/version", None).await.unwrap().0, 200);
}

#[tokio::test]
async fn a_good_token_is_an_identity_and_a_bad_one_401() {
    let listening = Listening::start().await;
    assert_eq!(listening.get(None, NAMESPACES, Some("good")).await.unwrap().0, 200);
    let (code, body) = listening.get(None, NAMESPACES, Some("bad")).await.unwrap();
    assert_eq!((code, &body["reason"]), (401, &json!("Unauthorized")));
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused_with_401_and_may_go_with_a_good_token() {
    let listening = Listening::start().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Authority::load_or_create(elsewhere.path(), ambient::Ambient::system()).unwrap();
    let other = other.admin().unwrap();
    let (code, body) = listening.get(Some(&other), "/version", None).await.unwrap();
    assert_eq!((code, &body["message"]), (401, &json!("Unauthorized")));
    assert_eq!(listening.get(Some(&other), "/version", Some("bad")).await.unwrap().0, 401);
    assert_eq!(listening.get(Some(&other), NAMESPACES, Some("good")).await.unwrap().0, 200);
    // The server's own certificate is for servers.
    let server = listening
        .authority
        .issue(&statefuld_apiserver::tls::Purpose::Server { names: Vec::new(), addresses: Vec::new() })
        .unwrap();
    assert_eq!(listening.get(Some(&server), "/version", None).await.unwrap().0, 401);
    assert_eq!(listening.get(None, "/version", None).await.unwrap().0, 200);
}

#[tokio::test]
async fn a_kube_client_lives_on_the_kubeconfig() {
    let listening = Listening::start().await;
    let text = listening.authority.admin_kubeconfig(&format!("https://{}", listening.address)).unwrap();
    let config = kube::config::Kubeconfig::from_yaml(&text).unwrap();
    let config =
        kube::Config::from_custom_kubeconfig(config, &kube::config::KubeConfigOptions::default()).await.unwrap();
    let client = kube::Client::try_from(config).unwrap();
    let maps: kube::Api<k8s_openapi::api::core::v1::ConfigMap> = kube::Api::namespaced(client, "default");
    let wanted = serde_json::from_value(config_map("a", "1")).unwrap();
    maps.create(&kube::api::PostParams::default(), &wanted).await.unwrap();
    assert_eq!(maps.get("a").await.unwrap().data.unwrap()["k"], "v");
}

#[tokio::test]
async fn the_stop_ends_watches_too() {
    let listening = Listening::start().await;
    let io = listening.connect(Some(&listening.authority.admin().unwrap()), "h2").await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    let url = format!("https://localhost{NAMESPACES}?watch=true");
    let answer = sender.send_request(Request::get(url).body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 200);
    listening.stop.cancel();
    tokio::time::timeout(PATIENCE, listening.serving).await.expect("the listener ends").unwrap();
}

/// Upper-cases what it is given, and ends with the terminal's width as exit code.
struct Shouting;

#[async_trait]
impl NodeHandler for Shouting {
    async fn handle(&self, _: StreamRequest, mut stream: Stream) -> Result<(), nodeconn::Error> {
        let mut code = 0;
        while let Some(frame) = stream.rx.recv().await {
            match frame {
                Frame::Stdin(data) => {
                    stream.tx.send(Frame::Stdout(data.to_ascii_uppercase().into())).await.unwrap();
                }
                Frame::Resize { width, .. } => code = i32::from(width),
                _ => break,
            }
        }
        stream.tx.send(Frame::Exit(ExitStatus::Code(code))).await.unwrap();
        Ok(())
    }
}

#[tokio::test]
async fn exec_goes_through_an_upgraded_connection() {
    let listening = Listening::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    listening.server.create(pods, pod("a")).await;
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "a"},
        "target": {"kind": "Node", "name": "n1"}});
    listening.server.ask(Method::POST, &format!("{pods}/a/binding"), Some(binding)).await;
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    tokio::spawn(nodeconn::serve(theirs, Arc::new(Shouting)));
    let nodes = listening.server.api.nodes().clone();
    let (conn, driver) = nodeconn::connect(ours).await.unwrap();
    let _registered = nodes.register("n1", Arc::new(conn));
    tokio::spawn(driver);

    let io = listening.connect(Some(&listening.authority.admin().unwrap()), "http/1.1").await.unwrap();
    let request = Request::get(format!("wss://localhost{pods}/a/exec?command=sh&stdin=true&stdout=true"))
        .header("host", "localhost")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA==")
        .header("sec-websocket-protocol", "v5.channel.k8s.io")
        .body(())
        .unwrap();
    let (mut socket, answer) = tokio_tungstenite::client_async(request, io).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
    socket.send(Message::binary(b"\0hello".to_vec())).await.unwrap();
    socket.send(Message::binary(b"\x04{\"Width\":3,\"Height\":1}".to_vec())).await.unwrap();
    socket.send(Message::binary(vec![255, 0])).await.unwrap();
    let mut said = Vec::new();
    while let Ok(Some(Ok(message))) = tokio::time::timeout(PATIENCE, socket.next()).await {
        if let Message::Binary(data) = message
            && data.len() > 1
        {
            said.push(data.to_vec());
        }
    }
    assert_eq!(said[0], b"\x01HELLO");
    let status: Value = serde_json::from_slice(&said[1][1..]).unwrap();
    assert_eq!((said[1][0], &status["details"]["causes"][0]["message"]), (3, &json!("3")));
}

/// What is left to read until the other end closes.
async fn rest(io: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut all = Vec::new();
    let reading = tokio::io::AsyncReadExt::read_to_end(io, &mut all);
    // A reset is an end too.
    let _ = tokio::time::timeout(PATIENCE, reading).await.expect("the other end closes");
    all
}

#[tokio::test]
async fn who_says_nothing_is_hung_up_on() {
    let listening = Listening::start_with(|options| options.handshake_timeout = Duration::from_millis(50)).await;
    let mut silent = TcpStream::connect(listening.address).await.unwrap();
    assert!(rest(&mut silent).await.is_empty());
    assert_eq!(listening.get(None, "/version", None).await.unwrap().0, 200);
}

#[tokio::test]
async fn who_sends_a_head_too_slowly_is_hung_up_on() {
    let listening = Listening::start_with(|options| options.header_timeout = Duration::from_millis(50)).await;
    let mut slow = listening.connect(None, "http/1.1").await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut slow, b"GET /version HTTP/1.1\r\nhost: x\r\nx-slow: ").await.unwrap();
    let said = String::from_utf8(rest(&mut slow).await).unwrap();
    assert!(!said.contains("200 OK"), "{said}");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let listening = Listening::start().await;
    let mut io = listening.connect(None, "http/1.1").await.unwrap();
    let head = format!("GET /version HTTP/1.1\r\nhost: x\r\nx-large: {}\r\n\r\n", "x".repeat(100 << 10));
    // The other end may hang up before it has taken all.
    let _ = tokio::io::AsyncWriteExt::write_all(&mut io, head.as_bytes()).await;
    let said = String::from_utf8(rest(&mut io).await).unwrap();
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 431"), "{said}");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_their_turn() {
    let listening = Arc::new(Listening::start_with(|options| options.max_connections = 1).await);
    let first = listening.connect(None, "h2").await.unwrap();
    let waiting = tokio::spawn({
        let listening = listening.clone();
        async move { listening.get(None, "/version", None).await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    drop(first);
    let answer = tokio::time::timeout(PATIENCE, waiting).await.expect("its turn comes").unwrap();
    assert_eq!(answer.unwrap().0, 200);
}
