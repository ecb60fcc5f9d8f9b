//! `statefuld bench api`: durable writes, lists, watches, memory and start-up of an API server.
//!
//! By default the server is one of this program's own, a process with nothing else in it, so that its memory and
//! processor time can be read; it shares the machine with the load, as it would with real clients.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ambient::Ambient;
use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures::TryStreamExt as _;
use http::Request;
use http_body_util::BodyStream;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use store::embedded::Embedded;
use store::{Op, Store as _, Txn};
use tokio::sync::mpsc;

use super::load::{self, MARK, Pieces, Write};
use super::process::{self, Process};
use super::{Figure, Scratch, millis, scratch};
use crate::cli;
use crate::place::DataDir;
use crate::say;

/// What an object's data takes.
const VALUE_BYTES: usize = 1000;
/// Pods on a page where lists are asked for in pages.
const PAGE: usize = 500;
/// Objects in one transaction where a store is filled without its server.
const FILL_BATCH: usize = 500;
/// How long a server is left alone before its memory is read.
const REST: Duration = Duration::from_millis(500);

/// Runs the command.
pub(super) async fn run(args: &cli::BenchApi, ambient: &Ambient) -> Result<Vec<Figure>> {
    process::raise_open_files();
    let own = if args.kubeconfig.is_none() { Some(OwnServer::start(scratch(ambient)?, "none").await?) } else { None };
    let kubeconfig = match (&args.kubeconfig, &own) {
        (Some(path), _) => path.clone(),
        (None, Some(own)) => own.kubeconfig(),
        (None, None) => bail!("there is no server"),
    };
    let bench = Bench { client: connect(&kubeconfig).await?, namespace: format!("bench-{}", ambient.suffix(5)) };
    bench.make_namespaces().await?;
    let mut figures = Vec::new();
    figures.extend(creates(&bench, args, own.as_ref(), ambient).await?);
    figures.extend(lists(&bench, args, own.as_ref(), ambient).await?);
    figures.extend(watches(&bench, args, own.as_ref(), ambient).await?);
    match own {
        // Its directory goes as a whole.
        Some(own) => {
            drop(bench);
            drop(own.stop()?);
            figures.extend(growth(args, ambient).await?);
        }
        None => bench.remove_namespaces().await?,
    }
    Ok(figures)
}

/// A server that is measured, and where in it.
struct Bench {
    client: Client,
    namespace: String,
}

impl Bench {
    fn path(&self, plural: &str) -> String {
        format!("/api/v1/namespaces/{}/{plural}", self.namespace)
    }

    /// The namespace of the one object that is watched.
    fn watched(&self) -> String {
        format!("{}-watched", self.namespace)
    }

    async fn make_namespaces(&self) -> Result<()> {
        for name in [&self.namespace, &self.watched()] {
            let body = format!(r#"{{"metadata":{{"name":"{name}"}}}}"#);
            self.send("POST", "/api/v1/namespaces".to_owned(), body).await?;
        }
        // What pods run as; with controllers it is there already.
        let _ = self.send("POST", self.path("serviceaccounts"), r#"{"metadata":{"name":"default"}}"#.to_owned()).await;
        let path = format!("/api/v1/namespaces/{}/configmaps", self.watched());
        self.send("POST", path, configmap("sample", "none")).await
    }

    async fn remove_namespaces(&self) -> Result<()> {
        for name in [&self.namespace, &self.watched()] {
            self.send("DELETE", format!("/api/v1/namespaces/{name}"), String::new()).await?;
        }
        Ok(())
    }

    async fn send(&self, method: &'static str, path: String, body: String) -> Result<()> {
        send(self.client.clone(), method, path, body).await
    }

    /// Creates an object for each number.
    fn creates(&self, plural: &'static str, body: fn(&str) -> String) -> Write {
        let (client, path) = (self.client.clone(), self.path(plural));
        Arc::new(move |n| {
            let body = body(&format!("{plural}-{n:x}"));
            Box::pin(send(client.clone(), "POST", path.clone(), body))
        })
    }

    /// Changes one object to each number.
    fn changes(&self) -> Write {
        let path = format!("/api/v1/namespaces/{}/configmaps/sample", self.watched());
        let client = self.client.clone();
        Arc::new(move |n| {
            let body = configmap("sample", &format!("{MARK}{n:04}"));
            Box::pin(send(client.clone(), "PUT", path.clone(), body))
        })
    }

    /// Reads a list; how long until its last byte, and how many bytes.
    async fn list(&self, query: &str, accept: &str, ambient: &Ambient) -> Result<(Duration, usize, String)> {
        let uri = format!("{}{query}", self.path("pods"));
        let request = Request::get(uri).header("accept", accept).body(Vec::new())?;
        let begin = ambient.boottime();
        let text = self.client.request_text(request).await.context("pods cannot be listed")?;
        Ok((ambient.boottime().saturating_sub(begin), text.len(), text))
    }

    async fn watch(&self) -> Result<Pieces> {
        let uri = format!("/api/v1/namespaces/{}/configmaps?watch=true&resourceVersion=0", self.watched());
        let request = Request::get(uri).body(kube::client::Body::empty())?;
        let response = self.client.send(request).await.context("a watch was not answered")?;
        if !response.status().is_success() {
            bail!("a watch was refused: {}", response.status());
        }
        let (sender, pieces) = mpsc::channel::<Bytes>(64);
        let mut body = BodyStream::new(response.into_body());
        tokio::spawn(async move {
            while let Ok(Some(frame)) = body.try_next().await {
                if let Ok(data) = frame.into_data()
                    && sender.send(data).await.is_err()
                {
                    return;
                }
            }
        });
        Ok(pieces)
    }
}

async fn send(client: Client, method: &'static str, path: String, body: String) -> Result<()> {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    client.request_text(request.body(body.into_bytes())?).await.map(drop).context("the server refused")
}

fn configmap(name: &str, mark: &str) -> String {
    let filling = "x".repeat(VALUE_BYTES);
    format!(r#"{{"metadata":{{"name":"{name}"}},"data":{{"mark":"{mark}","filling":"{filling}"}}}}"#)
}

fn pod(name: &str) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","labels":{{"app":"bench"}}}},"spec":{{"containers":[{{"name":"main",
        "image":"statefuld.local/sample","args":["--listen","0.0.0.0:8080"],"ports":[{{"containerPort":8080}}],
        "resources":{{"requests":{{"cpu":"10m","memory":"16Mi"}}}}}}]}}}}"#
    )
}

pub(super) async fn connect(kubeconfig: &Path) -> Result<Client> {
    let config =
        Kubeconfig::read_from(kubeconfig).with_context(|| format!("{} cannot be used", kubeconfig.display()))?;
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

async fn creates(
    bench: &Bench,
    args: &cli::BenchApi,
    own: Option<&OwnServer>,
    ambient: &Ambient,
) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (round, writers) in args.load.writers.iter().enumerate() {
        say::note(format_args!("creates with {writers} writers"));
        let write = bench.creates("configmaps", |name| configmap(name, "none"));
        // Names of its own for each round.
        let write: Write = Arc::new(move |n| write((round as u64) << 48 | n));
        let before = own.map(|own| own.process.usage()).transpose()?;
        let done = load::writers(&write, *writers, args.load.duration, ambient).await?;
        figures.extend(done.figures("durable creates of 1 KB", *writers));
        if let (Some(own), Some(before)) = (own, before) {
            let cpu = own.process.usage()?.cpu_seconds - before.cpu_seconds;
            figures.push(Figure::new("  processor time of the server", cpu, "s"));
        }
    }
    Ok(figures)
}

async fn lists(bench: &Bench, args: &cli::BenchApi, own: Option<&OwnServer>, ambient: &Ambient) -> Result<Vec<Figure>> {
    say::note(format_args!("{} pods", args.pods));
    let before = own.map(|own| own.process.usage()).transpose()?;
    load::fill(&bench.creates("pods", pod), args.pods).await?;
    let mut figures = Vec::new();
    if let (Some(own), Some(before)) = (own, before) {
        tokio::time::sleep(REST).await;
        #[allow(clippy::cast_precision_loss, reason = "thousands")]
        let each = (own.process.usage()?.resident_bytes - before.resident_bytes) / args.pods as f64;
        figures.push(Figure::new("memory of the server per stored pod, with its history", each / 1e3, "KB"));
    }
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let page = format!("?limit={PAGE}");
    for (what, query, accept) in [
        (format!("list of {} pods", args.pods), "", "application/json"),
        (format!("its first page of {PAGE}"), page.as_str(), "application/json"),
        ("the list as a Table".to_owned(), "", table),
    ] {
        let (time, bytes, _) = bench.list(query, accept, ambient).await?;
        figures.push(Figure::new(what.clone(), millis(time), "ms"));
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        figures.push(Figure::new("  bytes", bytes as f64 / 1e6, "MB"));
    }
    let (mut total, mut query) = (Duration::ZERO, page.clone());
    loop {
        let (time, _, text) = bench.list(&query, "application/json", ambient).await?;
        total += time;
        let token: Option<String> = serde_json::from_str::<serde_json::Value>(&text)?
            .pointer("/metadata/continue")
            .and_then(|token| token.as_str())
            .filter(|token| !token.is_empty())
            .map(str::to_owned);
        let Some(token) = token else { break };
        query = format!("{page}&continue={}", token.replace('+', "%2B").replace('=', "%3D"));
    }
    figures.push(Figure::new(format!("the list in pages of {PAGE}"), millis(total), "ms"));
    Ok(figures)
}

async fn watches(
    bench: &Bench,
    args: &cli::BenchApi,
    own: Option<&OwnServer>,
    ambient: &Ambient,
) -> Result<Vec<Figure>> {
    let watchers = args.load.watchers;
    say::note(format_args!("{watchers} watchers"));
    let before = own.map(|own| own.process.usage()).transpose()?;
    let mut watches = Vec::with_capacity(watchers);
    for _ in 0..watchers {
        watches.push(bench.watch().await?);
    }
    let mut figures = Vec::new();
    if let (Some(own), Some(before)) = (own, before) {
        tokio::time::sleep(REST).await;
        #[allow(clippy::cast_precision_loss, reason = "thousands")]
        let each = (own.process.usage()?.resident_bytes - before.resident_bytes) / watchers.max(1) as f64;
        figures.push(Figure::new("memory of the server per watcher, with its TLS connection", each / 1e3, "KB"));
    }
    let done = load::fan_out(watches, &bench.changes(), args.load.changes, ambient).await?;
    figures.extend(done.figures(watchers));
    Ok(figures)
}

/// Start-up, memory and writes with more and more objects.
async fn growth(args: &cli::BenchApi, ambient: &Ambient) -> Result<Vec<Figure>> {
    let own = OwnServer::start(scratch(ambient)?, "none").await?;
    let client = connect(&own.kubeconfig()).await?;
    send(client, "POST", "/api/v1/namespaces/default/configmaps".to_owned(), configmap("sample", "none")).await?;
    let mut scratch = own.stop()?;
    let path = DataDir::new(&scratch.0)?.store();
    let mut figures = Vec::new();
    let mut have = 0;
    for &objects in &args.objects {
        say::note(format_args!("{objects} objects"));
        fill_store(&path, have..objects, ambient).await?;
        have = have.max(objects);
        let begin = ambient.boottime();
        let own = OwnServer::start(scratch, "none").await?;
        let client = connect(&own.kubeconfig()).await?;
        client.apiserver_version().await.context("the API does not answer")?;
        let ready = ambient.boottime().saturating_sub(begin);
        tokio::time::sleep(REST).await;
        let usage = own.process.usage()?;
        figures.push(Figure::new(format!("{objects} objects of 1 KB: exec to API ready"), millis(ready), "ms"));
        figures.push(Figure::new("  memory of the server", usage.resident_bytes / 1e6, "MB"));
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        let size = std::fs::metadata(&path).map_or(0, |meta| meta.len()) as f64;
        figures.push(Figure::new("  file of the store", size / 1e6, "MB"));
        let bench = Bench { client, namespace: "default".to_owned() };
        let write = bench.creates("configmaps", |name| configmap(name, "none"));
        let write: Write = Arc::new(move |n| write((objects as u64) << 42 | n));
        let done = load::writers(&write, 16, args.load.duration, ambient).await?;
        figures.extend(done.figures("  creates", 16).into_iter().take(1));
        scratch = own.stop()?;
    }
    Ok(figures)
}

/// Where config maps are kept.
const STORED: &str = "/registry/core/configmaps/default/";

/// Writes copies of an object into a store that no server has open.
async fn fill_store(path: &Path, which: std::ops::Range<usize>, ambient: &Ambient) -> Result<()> {
    let store = Embedded::open(path, ambient.clone(), store::embedded::Options::default())?;
    let sample = store.get(format!("{STORED}sample").as_bytes(), 0).await?;
    let Some(entry) = sample else { bail!("the store has no config map to copy") };
    let object: serde_json::Value = serde_json::from_slice(&entry.value).context("the stored object is not JSON")?;
    for from in which.clone().step_by(FILL_BATCH) {
        let ops = (from..which.end.min(from + FILL_BATCH)).map(|n| {
            let mut object = object.clone();
            let name = format!("filled-{n}");
            object["metadata"]["name"] = name.as_str().into();
            object["metadata"]["uid"] = ambient.uid().into();
            object["data"] = serde_json::json!({"filling": "x".repeat(VALUE_BYTES)});
            let key = Bytes::from(format!("{STORED}{name}"));
            Op::Put { key, value: Bytes::from(object.to_string()), ttl: None }
        });
        store.txn(Txn { compare: Vec::new(), ops: ops.collect() }).await?;
    }
    store.close().await;
    Ok(())
}

/// `statefuld server` in a directory of its own.
pub(super) struct OwnServer {
    process: Process,
    scratch: Scratch,
}

impl OwnServer {
    /// Starts one with these controllers; returns when its API is ready.
    pub(super) async fn start(scratch: Scratch, controllers: &str) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["server", "--controllers", controllers, "--listen", "127.0.0.1:0", "-o", "json", "--data-dir"]);
        command.arg(&scratch.0).stdout(Stdio::piped());
        let mut process = Process::start(&mut command)?;
        let output = process.output()?;
        let ready = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(output).read_line(&mut line).map(|_| line)
        });
        let line = tokio::time::timeout(load::LIMIT, ready).await.context("the API was not ready in time")???;
        if line.is_empty() {
            bail!("the server ended at once");
        }
        Ok(Self { process, scratch })
    }

    /// The admin's kubeconfig.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.scratch.0.join("kubeconfig")
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    fn stop(self) -> Result<Scratch> {
        self.process.stop()?;
        Ok(self.scratch)
    }
}
