//! A client of the CRI, of the few calls that start a pod and end it. Messages are written by hand; their numbers are those
//! of `runtime.v1` (k8s.io/cri-api, pkg/apis/runtime/v1/api.proto).

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use bytes::{Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;

use super::COMMAND_LIMIT;
use crate::bench::grpc::{Value, field, fields, find, framed, number, unframed};

/// No answer here is longer.
const ANSWER_MAX: usize = 1 << 20;

/// A connection to a container runtime. Clones share it.
#[derive(Clone)]
pub(super) struct Cri {
    sender: SendRequest<Full<Bytes>>,
}

/// What a pod is called, and where it lies.
#[derive(Clone, Debug)]
pub(super) struct Pod<'a> {
    /// Name and uid.
    pub(super) name: &'a str,
    /// The control group that its own is made below.
    pub(super) cgroup_parent: &'a str,
    /// Where its containers' logs go.
    pub(super) logs: &'a Path,
}

impl Cri {
    /// Connects to its socket.
    pub(super) async fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        // It ends with its sender.
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    async fn call(&self, method: &str, message: &[u8]) -> Result<Bytes> {
        let request = Request::post(format!("http://localhost/runtime.v1.{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(framed(message)))?;
        let mut sender = self.sender.clone();
        let answered = async {
            sender.ready().await.context("the connection is gone")?;
            let (head, body) = sender.send_request(request).await.context("there is no answer")?.into_parts();
            let body = Limited::new(body, ANSWER_MAX).collect().await.map_err(anyhow::Error::from_boxed)?;
            let end = body.trailers().cloned().unwrap_or(head.headers);
            let said = |name: &str| end.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
            if said("grpc-status") != "0" {
                bail!("refused: {} {}", said("grpc-status"), said("grpc-message"));
            }
            unframed(body.to_bytes()).context("the answer is no message")
        };
        let answered = tokio::time::timeout(COMMAND_LIMIT, answered).await;
        answered.with_context(|| format!("{method} takes too long"))?.with_context(|| method.to_owned())
    }

    /// Whether it serves, and its network too: all conditions that it tells are true.
    pub(super) async fn is_ready(&self) -> Result<bool> {
        let answer = self.call("RuntimeService/Status", &[]).await?;
        let status = find(&answer, 1).unwrap_or_default();
        let mut conditions = 0;
        for (_, condition) in fields(status).filter(|(number, _)| *number == 1) {
            let Value::Bytes(condition) = condition else { continue };
            // A field that is false is left out.
            if !fields(condition).any(|field| field == (2, Value::Number(1))) {
                return Ok(false);
            }
            conditions += 1;
        }
        Ok(conditions > 0)
    }

    /// Whether it has an image.
    pub(super) async fn has_image(&self, image: &str) -> Result<bool> {
        let mut request = BytesMut::new();
        field(&mut request, 1, &text(1, image));
        let answer = self.call("ImageService/ImageStatus", &request).await?;
        Ok(find(&answer, 1).is_some())
    }

    /// Makes a sandbox with its network; its id.
    pub(super) async fn run_sandbox(&self, pod: &Pod<'_>) -> Result<String> {
        let mut request = BytesMut::new();
        field(&mut request, 1, &pod.config());
        let answer = self.call("RuntimeService/RunPodSandbox", &request).await?;
        id_of(&answer)
    }

    /// A sandbox's address.
    pub(super) async fn address(&self, sandbox: &str) -> Result<String> {
        let answer = self.call("RuntimeService/PodSandboxStatus", &text(1, sandbox)).await?;
        // PodSandboxStatus, then PodSandboxNetworkStatus, then its address.
        let address = find(&answer, 1).and_then(|status| find(status, 5)).and_then(|network| find(network, 1));
        Ok(String::from_utf8_lossy(address.context("the sandbox has no address")?).into_owned())
    }

    /// Makes a container that is to run an image's program, with a folder of the machine's in it; its id.
    pub(super) async fn create(
        &self,
        sandbox: &str,
        pod: &Pod<'_>,
        image: &str,
        mount: (&str, &Path),
    ) -> Result<String> {
        let mut config = BytesMut::new();
        field(&mut config, 1, &text(1, "server"));
        field(&mut config, 2, &text(1, image));
        let mut folder = text(1, mount.0);
        folder.extend_from_slice(&text(2, &mount.1.to_string_lossy()));
        field(&mut config, 7, &folder);
        config.extend_from_slice(&text(11, "server.log"));
        let mut request = text(1, sandbox);
        field(&mut request, 2, &config);
        field(&mut request, 3, &pod.config());
        let answer = self.call("RuntimeService/CreateContainer", &request).await?;
        id_of(&answer)
    }

    /// Starts a container.
    pub(super) async fn start(&self, container: &str) -> Result<()> {
        self.call("RuntimeService/StartContainer", &text(1, container)).await.map(drop)
    }

    /// Ends a sandbox with all that is in it, and removes it.
    pub(super) async fn remove_sandbox(&self, sandbox: &str) -> Result<()> {
        let request = text(1, sandbox);
        self.call("RuntimeService/StopPodSandbox", &request).await?;
        self.call("RuntimeService/RemovePodSandbox", &request).await.map(drop)
    }

    /// All sandboxes there are.
    pub(super) async fn sandboxes(&self) -> Result<Vec<String>> {
        let answer = self.call("RuntimeService/ListPodSandbox", &[]).await?;
        let items = fields(&answer).filter(|(number, _)| *number == 1);
        items
            .map(|(_, item)| match item {
                Value::Bytes(item) => id_of(item),
                Value::Number(_) => bail!("a sandbox is no message"),
            })
            .collect()
    }
}

impl Pod<'_> {
    /// As a `PodSandboxConfig`.
    fn config(&self) -> BytesMut {
        let mut metadata = text(1, self.name);
        metadata.extend_from_slice(&text(2, self.name));
        metadata.extend_from_slice(&text(3, "bench"));
        let mut config = BytesMut::new();
        field(&mut config, 1, &metadata);
        config.extend_from_slice(&text(2, self.name));
        config.extend_from_slice(&text(3, &self.logs.to_string_lossy()));
        // Linux: the parent group. Namespaces are the pod's own, but for processes, which are each container's.
        let mut namespaces = BytesMut::new();
        number(&mut namespaces, 2, PER_CONTAINER);
        let mut security = BytesMut::new();
        field(&mut security, 1, &namespaces);
        let mut linux = text(1, self.cgroup_parent);
        field(&mut linux, 2, &security);
        field(&mut config, 8, &linux);
        config
    }
}

/// `NamespaceMode_CONTAINER`.
const PER_CONTAINER: u64 = 1;

/// A message with one field of text.
fn text(number: u8, text: &str) -> BytesMut {
    let mut message = BytesMut::new();
    field(&mut message, number, text.as_bytes());
    message
}

/// The id that most answers begin with.
fn id_of(answer: &[u8]) -> Result<String> {
    let id = find(answer, 1).context("the answer has no id")?;
    Ok(String::from_utf8_lossy(id).into_owned())
}
