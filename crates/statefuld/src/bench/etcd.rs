//! `statefuld bench etcd`: the same writes and watches against etcd, which Kubernetes keeps its state in.
//!
//! etcd has no API server before it here: no TLS, no admission, no encoding of objects. What is compared is what
//! durability and fan-out cost. The few messages of its protocol that are needed (`rpc.proto`, gRPC over HTTP/2)
//! are written by hand.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ambient::Ambient;
use anyhow::{Context as _, Result, bail};
use bytes::{Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt as _, BodyStream, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::grpc::{field, framed};
use super::load::{self, MARK, Pieces, Write};
use super::process::{self, Process};
use super::{Figure, scratch};
use crate::cli;
use crate::say;

type Body = http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>;

/// What a value takes, as for the API's objects.
const VALUE_BYTES: usize = 1000;
/// Watches on one connection.
const STREAMS: usize = 100;
/// How often a starting etcd is asked whether it serves.
const READY_POLL: Duration = Duration::from_millis(20);

/// Runs the command.
pub(super) async fn run(args: &cli::BenchEtcd, ambient: &Ambient) -> Result<Vec<Figure>> {
    process::raise_open_files();
    let scratch = scratch(ambient)?;
    let (client, peer) = (free_port()?, free_port()?);
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let mut command = Command::new(&args.etcd);
    command.arg("--data-dir").arg(scratch.0.join("etcd")).args(["--name", "bench", "--log-level", "error"]);
    command.args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)]);
    command.args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)]);
    command.args(["--initial-cluster", &format!("bench={}", url(peer))]).stdout(Stdio::null());
    let process = Process::start(&mut command)
        .context("install it with `apt-get install etcd-server`, or name it with --etcd FILE")?;
    let etcd = tokio::time::timeout(load::LIMIT, Etcd::connect(client)).await.context("etcd does not serve")?;
    tokio::time::timeout(load::LIMIT, until_it_serves(&etcd)).await.context("etcd has no leader")?;

    let mut figures = Vec::new();
    for (round, writers) in args.load.writers.iter().enumerate() {
        say::note(format_args!("puts with {writers} writers"));
        let put = etcd.clone();
        let write: Write = Arc::new(move |n| {
            let key = format!("/registry/configmaps/bench/{round}-{n:x}");
            let put = put.clone();
            Box::pin(async move { put.put(key.as_bytes(), "x".repeat(VALUE_BYTES).as_bytes()).await })
        });
        let before = process.usage()?;
        let done = load::writers(&write, *writers, args.load.duration, ambient).await?;
        figures.extend(done.figures("durable puts of 1 KB", *writers));
        let cpu = process.usage()?.cpu_seconds - before.cpu_seconds;
        figures.push(Figure::new("  processor time of etcd", cpu, "s"));
    }
    figures.extend(watches(&etcd, client, &args.load, &process, ambient).await?);
    figures.push(Figure::new("memory of etcd at the end", process.usage()?.resident_bytes / 1e6, "MB"));
    process.stop()?;
    Ok(figures)
}

async fn watches(
    etcd: &Etcd,
    port: u16,
    load: &cli::Load,
    process: &Process,
    ambient: &Ambient,
) -> Result<Vec<Figure>> {
    say::note(format_args!("{} watchers", load.watchers));
    let before = process.usage()?;
    let mut watches = Vec::with_capacity(load.watchers);
    while watches.len() < load.watchers {
        let connection = Etcd::connect(port).await;
        for _ in 0..STREAMS.min(load.watchers - watches.len()) {
            watches.push(connection.watch(b"/watched").await?);
        }
    }
    #[allow(clippy::cast_precision_loss, reason = "thousands")]
    let each = (process.usage()?.resident_bytes - before.resident_bytes) / load.watchers.max(1) as f64;
    let put = etcd.clone();
    let write: Write = Arc::new(move |n| {
        let put = put.clone();
        let value = format!("{MARK}{n:04}{}", "x".repeat(VALUE_BYTES));
        Box::pin(async move { put.put(b"/watched", value.as_bytes()).await })
    });
    let done = load::fan_out(watches, &write, load.changes, ambient).await?;
    let mut figures = vec![Figure::new("memory of etcd per watcher", each / 1e3, "KB")];
    figures.extend(done.figures(load.watchers));
    Ok(figures)
}

async fn until_it_serves(etcd: &Etcd) {
    while etcd.put(b"ready", b"?").await.is_err() {
        tokio::time::sleep(READY_POLL).await;
    }
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no port is free")?;
    Ok(listener.local_addr().context("the port has no number")?.port())
}

/// One connection to etcd. Clones share it.
#[derive(Clone)]
struct Etcd {
    sender: SendRequest<Body>,
    authority: String,
}

impl Etcd {
    /// Connects, as often as it takes.
    async fn connect(port: u16) -> Self {
        loop {
            if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await
                && stream.set_nodelay(true).is_ok()
                && let Ok((sender, connection)) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await
            {
                // It ends with its sender.
                tokio::spawn(connection);
                return Self { sender, authority: format!("127.0.0.1:{port}") };
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    async fn call(&self, method: &str, body: Body) -> Result<http::Response<Incoming>> {
        let request = Request::post(format!("http://{}/etcdserverpb.{method}", self.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body)?;
        let mut sender = self.sender.clone();
        sender.ready().await.context("the connection to etcd is gone")?;
        sender.send_request(request).await.context("etcd does not answer")
    }

    /// A durable write.
    async fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let mut message = BytesMut::new();
        field(&mut message, 1, key);
        field(&mut message, 2, value);
        let response = self.call("KV/Put", Full::new(framed(&message)).boxed()).await?;
        let answered = response.into_body().collect().await.context("etcd broke its answer off")?;
        let status = answered.trailers().and_then(|trailers| trailers.get("grpc-status"));
        if status.is_none_or(|status| status != "0") {
            bail!("etcd refused a put: {status:?}");
        }
        Ok(())
    }

    /// Watches one key; returns when the watch is under way.
    async fn watch(&self, key: &[u8]) -> Result<Pieces> {
        let mut create = BytesMut::new();
        field(&mut create, 1, key);
        let mut message = BytesMut::new();
        field(&mut message, 1, &create);
        let first = futures::stream::iter([Ok(Frame::data(framed(&message)))]);
        // The stream of requests stays open as long as the watch.
        let body = StreamBody::new(futures::StreamExt::chain(first, futures::stream::pending()));
        let response = self.call("Watch/Watch", http_body_util::BodyExt::boxed(body)).await?;
        let mut body = BodyStream::new(response.into_body());
        let created = futures::StreamExt::next(&mut body).await;
        created.context("etcd ended a watch")?.context("etcd broke a watch off")?;
        let (sender, pieces) = mpsc::channel(64);
        let connection = self.clone();
        tokio::spawn(async move {
            while let Some(Ok(frame)) = futures::StreamExt::next(&mut body).await {
                if let Ok(data) = frame.into_data()
                    && sender.send(data).await.is_err()
                {
                    break;
                }
            }
            drop(connection);
        });
        Ok(pieces)
    }
}
