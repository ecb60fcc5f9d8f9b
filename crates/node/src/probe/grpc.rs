//! Asking by gRPC's health protocol: one call of `grpc.health.v1.Health/Check` over HTTP/2.
//!
//! Sentences are a kubelet's. Source: <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::GRPCAction;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::tls;

/// An answer is two bytes and its frame.
const MAX_ANSWER: usize = 4096;

/// gRPC's code for a method that the server does not have.
const UNIMPLEMENTED: &str = "12";

/// Asks whether a service is healthy. Takes as long as the server takes.
pub async fn ask(target: SocketAddr, action: &GRPCAction) -> Result<(), String> {
    let dial = |why: &dyn std::fmt::Display| format!("error: failed to connect service at \"{target}\": {why}");
    let stream = TcpStream::connect(target).await.map_err(|error| dial(&error))?;
    let _ = stream.set_nodelay(true);
    let service = action.service.as_deref().unwrap_or_default();
    if action.mode.as_deref() == Some("TLS") {
        let name = ServerName::IpAddress(target.ip().into());
        let stream = tls::http2_connector().connect(name, stream).await.map_err(|error| dial(&error))?;
        check("https", target, stream, service).await
    } else {
        check("http", target, stream, service).await
    }
}

async fn check<S>(scheme: &str, target: SocketAddr, stream: S, service: &str) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let failed = |what: &dyn std::fmt::Display| format!("error: health rpc probe failed: {what}");
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|error| failed(&error))?;
    // Ends with the sender.
    let driving = tokio::spawn(connection);
    let _end = AbortOnDrop(driving.abort_handle());
    let request = http::Request::post(format!("{scheme}://{target}/grpc.health.v1.Health/Check"))
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers")
        .header(http::header::USER_AGENT, "kube-probe/1.37")
        .body(Full::new(Bytes::from(question(service))))
        .map_err(|error| failed(&error))?;
    let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
    if response.status() != http::StatusCode::OK {
        return Err(failed(&format!("unexpected HTTP status code received from server: {}", response.status())));
    }
    let head = response.headers().clone();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|error| failed(&error))?;
    // A call that fails at once has its end in the head.
    let end = body.trailers().cloned().unwrap_or(head);
    let text = |name: &str| end.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    match text("grpc-status").as_str() {
        "0" => verdict(&body.to_bytes()),
        UNIMPLEMENTED => Err(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            text("grpc-message")
        )),
        code => Err(failed(&format!("rpc error: code = {code} desc = {}", text("grpc-message")))),
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A framed `HealthCheckRequest`: its first field is the service's name.
fn question(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        varint(service.len() as u64, &mut message);
        message.extend_from_slice(service.as_bytes());
    }
    // Not compressed, and its length.
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(&message);
    frame
}

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(u8::try_from(number & 0x7f).unwrap_or(0) | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).unwrap_or(0));
}

/// What a framed `HealthCheckResponse` says: its first field is a status.
fn verdict(frame: &[u8]) -> Result<(), String> {
    let message = match frame.split_first_chunk::<5>() {
        // The default, 0, is not written at all.
        Some((head, message)) if head[0] == 0 => message,
        _ => return Err("error: health rpc probe failed: the answer is not a message".to_owned()),
    };
    let status = match message {
        [0x08, status, ..] => *status,
        _ => 0,
    };
    let name = match status {
        1 => return Ok(()),
        0 => "UNKNOWN",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "an unknown status",
    };
    Err(format!("service unhealthy (responded with \"{name}\")"))
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use hyper::service::service_fn;
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers every call with this message and these last words.
    async fn serving(status: &'static str, message: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answer = service_fn(move |request: http::Request<hyper::body::Incoming>| async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let asked = request.into_body().collect().await.expect("a body").to_bytes();
                    assert_eq!(&asked[..], question("db"));
                    let mut end = http::HeaderMap::new();
                    end.insert("grpc-status", status.parse().expect("a value"));
                    let frames =
                        [Ok::<_, hyper::Error>(Frame::data(Bytes::from_static(message))), Ok(Frame::trailers(end))];
                    let body = StreamBody::new(futures::stream::iter(frames));
                    Ok::<_, hyper::Error>(http::Response::new(body))
                });
                let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), answer);
                tokio::spawn(serving);
            }
        });
        address
    }

    async fn answer(status: &'static str, message: &'static [u8]) -> Result<(), String> {
        let target = serving(status, message).await;
        let action = GRPCAction { service: Some("db".into()), ..GRPCAction::default() };
        ask(target, &action).await
    }

    #[tokio::test]
    async fn only_serving_is_a_success() {
        assert_eq!(answer("0", &[0, 0, 0, 0, 2, 8, 1]).await, Ok(()));
        let sick = answer("0", &[0, 0, 0, 0, 2, 8, 2]).await;
        assert_eq!(sick, Err("service unhealthy (responded with \"NOT_SERVING\")".to_owned()));
        let unknown = answer("0", &[0, 0, 0, 0, 0]).await;
        assert_eq!(unknown, Err("service unhealthy (responded with \"UNKNOWN\")".to_owned()));
    }

    #[tokio::test]
    async fn a_server_without_the_protocol_and_none_at_all_are_told_apart() {
        let other = answer("12", &[]).await.expect_err("a failure");
        assert!(other.starts_with("error: this server does not implement the grpc health protocol"), "{other}");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        drop(listener);
        let none = ask(address, &GRPCAction::default()).await.expect_err("a failure");
        assert!(none.starts_with("error: failed to connect service at"), "{none}");
    }

    #[test]
    fn long_names_have_long_lengths() {
        let asked = question(&"x".repeat(300));
        assert_eq!(asked[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 0x02]);
        assert_eq!(asked.len(), 8 + 300);
    }
}
