//! Asking: a program in the container, an HTTP request, or a TCP connection.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ambient::Ambient;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::{Kind, Timing, Track, Verdict, grpc, tls};
use crate::shim::Shim;
use crate::shim::protocol::ExecRequest;

/// As much of a program's or server's answer as goes into an event.
const MAX_OUTPUT: usize = 10 * 1024;

/// What a probe found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The container.
    pub container: String,
    /// The run that was asked, as in the shim's state.
    pub run: String,
    /// Which probe.
    pub kind: Kind,
    /// What follows.
    pub verdict: Verdict,
    /// What the last answer was, where it was a failure that counts.
    pub failure: Option<String>,
}

/// Where a container can be asked.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The pod's shim, for programs.
    pub shim: Shim,
    /// The pod's address, for sockets.
    pub address: Ipv4Addr,
    /// The run to ask, as in the shim's state.
    pub run: String,
    /// When that run started, on the monotonic clock.
    pub started: Duration,
    /// Whether the startup probe succeeded already (before this agent started).
    pub startup_done: bool,
}

/// The probes of one run of a container. Dropping it ends them.
#[derive(Debug)]
pub struct Running {
    run: String,
    _tasks: JoinSet<()>,
}

impl Running {
    /// Starts asking. Reports go to `reports`.
    pub fn start(container: &Container, subject: &Subject, ambient: &Ambient, reports: &mpsc::Sender<Report>) -> Self {
        let mut tasks = JoinSet::new();
        let startup = container.startup_probe.as_ref().filter(|_| !subject.startup_done);
        let (open, gate) = watch::channel(startup.is_none());
        let probes = [
            (Kind::Startup, startup),
            (Kind::Readiness, container.readiness_probe.as_ref()),
            (Kind::Liveness, container.liveness_probe.as_ref()),
        ];
        let open = Arc::new(open);
        for (kind, probe) in probes {
            let Some(probe) = probe else { continue };
            let asker = Asker {
                kind,
                probe: probe.clone(),
                container: container.clone(),
                subject: subject.clone(),
                ambient: ambient.clone(),
                reports: reports.clone(),
            };
            tasks.spawn(asker.run(gate.clone(), open.clone()));
        }
        Self { run: subject.run.clone(), _tasks: tasks }
    }

    /// The run that is being asked.
    pub fn run(&self) -> &str {
        &self.run
    }
}

/// One probe's loop.
struct Asker {
    kind: Kind,
    probe: Probe,
    container: Container,
    subject: Subject,
    ambient: Ambient,
    reports: mpsc::Sender<Report>,
}

impl Asker {
    async fn run(self, mut gate: watch::Receiver<bool>, open: Arc<watch::Sender<bool>>) {
        if self.kind != Kind::Startup && gate.wait_for(|open| *open).await.is_err() {
            return;
        }
        let timing = Timing::of(self.kind, &self.probe);
        let mut track = Track::new(self.kind, timing, self.subject.started, self.ambient.boottime());
        loop {
            tokio::time::sleep(track.due().saturating_sub(self.ambient.boottime())).await;
            let asked = self.ambient.boottime();
            let answer = match tokio::time::timeout(track.timeout(), self.ask(track.timeout())).await {
                Ok(answer) => answer,
                Err(_) => Err(self.timed_out(track.timeout())),
            };
            let (verdict, counted) = track.record(answer.is_ok(), asked, self.ambient.boottime());
            let failure = answer.err().filter(|_| counted);
            if verdict != Verdict::Same || failure.is_some() {
                let report = Report {
                    container: self.container.name.clone(),
                    run: self.subject.run.clone(),
                    kind: self.kind,
                    verdict,
                    failure,
                };
                if self.reports.send(report).await.is_err() {
                    return;
                }
            }
            if self.kind == Kind::Startup && verdict == Verdict::Succeeds {
                open.send_replace(true);
                return;
            }
        }
    }

    async fn ask(&self, timeout: Duration) -> Result<(), String> {
        let address = |host: Option<&String>| -> Result<IpAddr, String> {
            match host.filter(|h| !h.is_empty()) {
                Some(host) if host == "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
                Some(host) => host.parse().map_err(|_| format!("{host:?} is not an address")),
                None => Ok(self.subject.address.into()),
            }
        };
        if let Some(exec) = &self.probe.exec {
            self.ask_program(exec.command.clone().unwrap_or_default(), timeout).await
        } else if let Some(get) = &self.probe.http_get {
            let target = SocketAddr::new(address(get.host.as_ref())?, port_of(&self.container, &get.port)?);
            ask_http(target, get).await
        } else if let Some(socket) = &self.probe.tcp_socket {
            let target = SocketAddr::new(address(socket.host.as_ref())?, port_of(&self.container, &socket.port)?);
            TcpStream::connect(target).await.map(drop).map_err(|e| format!("dial tcp {target}: {e}"))
        } else if let Some(action) = &self.probe.grpc {
            let port = port_of(&self.container, &IntOrString::Int(action.port))?;
            grpc::ask(SocketAddr::new(self.subject.address.into(), port), action).await
        } else {
            Err("this kind of probe is not supported".to_owned())
        }
    }

    async fn ask_program(&self, argv: Vec<String>, timeout: Duration) -> Result<(), String> {
        let request = ExecRequest {
            container: self.container.name.clone(),
            argv,
            timeout_ms: Some(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            ..ExecRequest::default()
        };
        let ran = self.subject.shim.run(request, MAX_OUTPUT).await.map_err(|e| e.to_string())?;
        if ran.exit.timed_out {
            return Err(self.timed_out(timeout));
        }
        if ran.exit.code == 0 {
            return Ok(());
        }
        let output = String::from_utf8_lossy(&ran.output);
        Err(if output.is_empty() { ran.exit.message } else { output.into_owned() })
    }

    fn timed_out(&self, timeout: Duration) -> String {
        if let Some(exec) = &self.probe.exec {
            let command = exec.command.as_deref().unwrap_or_default().join(" ");
            format!("command timed out: {command:?} timed out after {}s", timeout.as_secs())
        } else if self.probe.grpc.is_some() {
            format!("timeout: health rpc did not complete within {}s", timeout.as_secs())
        } else {
            format!("no answer from {} within {}s", self.subject.address, timeout.as_secs())
        }
    }
}

/// A port by number, or by the name that the container gives it.
pub fn port_of(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_ref() == Some(name))
            .map(|p| p.container_port)
            .or_else(|| name.parse().ok()),
    };
    let valid = number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    valid.ok_or_else(|| format!("couldn't find port: {port:?}"))
}

/// The path of a request, which may be written without its slash.
pub fn path_of(get: &HTTPGetAction) -> String {
    let path = get.path.as_deref().unwrap_or("/");
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

async fn ask_http(target: SocketAddr, get: &HTTPGetAction) -> Result<(), String> {
    let scheme = get.scheme.as_deref().unwrap_or("HTTP");
    let path = path_of(get);
    let named = |what: &str| format!("Get \"{}://{target}{path}\": {what}", scheme.to_ascii_lowercase());
    let stream = TcpStream::connect(target).await.map_err(|e| named(&format!("dial tcp {target}: {e}")))?;
    let _ = stream.set_nodelay(true);
    let request = http_request(target, &path, get).map_err(|e| named(&e))?;
    let status = if scheme.eq_ignore_ascii_case("HTTPS") {
        let name = ServerName::IpAddress(target.ip().into());
        let stream = tls::connector().connect(name, stream).await.map_err(|e| named(&e.to_string()))?;
        send(stream, request).await
    } else {
        send(stream, request).await
    };
    let status = status.map_err(|e| named(&e))?;
    // A redirect counts as an answer, as upstream counts those that leave the pod.
    if (200..400).contains(&status) { Ok(()) } else { Err(format!("HTTP probe failed with statuscode: {status}")) }
}

fn http_request(target: SocketAddr, path: &str, get: &HTTPGetAction) -> Result<http::Request<Empty<Bytes>>, String> {
    let mut request = http::Request::get(path);
    let mut host = target.to_string();
    let (mut agent, mut accept) = (Some("kube-probe/1.37"), Some("*/*"));
    for header in get.http_headers.iter().flatten() {
        if header.name.eq_ignore_ascii_case("host") {
            host.clone_from(&header.value);
            continue;
        }
        if header.name.eq_ignore_ascii_case("user-agent") {
            agent = None;
        }
        if header.name.eq_ignore_ascii_case("accept") {
            accept = None;
        }
        request = request.header(&header.name, &header.value);
    }
    request = request.header(http::header::HOST, host).header(http::header::CONNECTION, "close");
    if let Some(agent) = agent {
        request = request.header(http::header::USER_AGENT, agent);
    }
    if let Some(accept) = accept {
        request = request.header(http::header::ACCEPT, accept);
    }
    request.body(Empty::new()).map_err(|e| e.to_string())
}

async fn send<S>(stream: S, request: http::Request<Empty<Bytes>>) -> Result<u16, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        // Read a little, so that the server does not see a reset; what it says does not matter.
        let _ = Limited::new(response.into_body(), MAX_OUTPUT).collect().await;
        Ok(status)
    };
    let mut exchange = std::pin::pin!(exchange);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        biased;
        result = &mut exchange => result,
        ended = &mut connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ContainerPort, HTTPHeader};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn answering(answer: &'static str) -> (SocketAddr, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut seen = vec![0; 4096];
            let n = stream.read(&mut seen).await.expect("a request");
            stream.write_all(answer.as_bytes()).await.expect("answered");
            String::from_utf8_lossy(&seen[..n]).into_owned()
        });
        (address, task)
    }

    fn get(headers: &[(&str, &str)]) -> HTTPGetAction {
        let header = |(name, value): &(&str, &str)| HTTPHeader { name: (*name).into(), value: (*value).into() };
        HTTPGetAction {
            path: Some("healthz?deep=1".into()),
            http_headers: Some(headers.iter().map(header).collect()),
            ..HTTPGetAction::default()
        }
    }

    #[tokio::test]
    async fn success_is_200_to_399_and_headers_are_sent() {
        let (address, seen) = answering("HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n").await;
        ask_http(address, &get(&[("Host", "db.example"), ("X-Probe", "yes")])).await.expect("a success");
        let seen = seen.await.expect("the request").to_ascii_lowercase();
        assert!(seen.starts_with("get /healthz?deep=1 http/1.1\r\n"), "{seen}");
        assert!(seen.contains("host: db.example\r\n") && seen.contains("x-probe: yes\r\n"), "{seen}");
        assert!(seen.contains("user-agent: kube-probe/"), "{seen}");
    }

    #[tokio::test]
    async fn error_status_fails_with_upstreams_words() {
        let (address, _) = answering("HTTP/1.1 503 Unavailable\r\nContent-Length: 2\r\n\r\nno").await;
        let failure = ask_http(address, &get(&[])).await.expect_err("a failure");
        assert_eq!(failure, "HTTP probe failed with statuscode: 503");
    }

    #[tokio::test]
    async fn nobody_listening_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        drop(listener);
        let failure = ask_http(address, &get(&[])).await.expect_err("a failure");
        assert!(failure.contains("dial tcp"), "{failure}");
    }

    #[test]
    fn ports_by_name_number_and_neither() {
        let port = ContainerPort { name: Some("http".into()), container_port: 8080, ..ContainerPort::default() };
        let container = Container { ports: Some(vec![port]), ..Container::default() };
        assert_eq!(port_of(&container, &IntOrString::String("http".into())), Ok(8080));
        assert_eq!(port_of(&container, &IntOrString::Int(9)), Ok(9));
        assert!(port_of(&container, &IntOrString::String("other".into())).is_err());
        assert!(port_of(&container, &IntOrString::Int(0)).is_err());
    }
}
