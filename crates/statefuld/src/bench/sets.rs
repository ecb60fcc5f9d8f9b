//! `statefuld bench sets`: how fast StatefulSets become what their spec says, with nodes that are Ready at once.
//!
//! Everything goes through the API, so that any server with a StatefulSet controller and a garbage collector is
//! measured by the same load in the same way. The floor of an ordered set is what its durable commits take if they do
//! nothing but follow each other: a pod is created, bound and Ready before the next one begins.

use std::time::Duration;

use ambient::Ambient;
use anyhow::{Context as _, Result};
use http::Request;
use kube::Client;
use serde_json::{Value, json};

use super::api::{OwnServer, connect};
use super::nodes::{LABEL, Nodes, SCHEDULER};
use super::process::{self, Usage};
use super::{Figure, millis, scratch};
use crate::cli;

/// Commits of an ordered pod that cannot overlap: creation, binding, status.
const COMMITS_PER_POD: f64 = 3.0;
/// The same of a pod that is updated: what the old one takes to go comes before.
const COMMITS_PER_UPDATE: f64 = 5.0;
/// Pods of one set where their number grows.
const GROWTH_SET: u32 = 100;
/// Commits whose mean time makes the floor.
const SAMPLES: u32 = 50;
/// How long one workload may take.
const LIMIT: Duration = Duration::from_secs(1800);
/// What a server of our own runs.
const CONTROLLERS: &str = "statefulset,garbagecollector,namespace,serviceaccount";

/// Runs the command.
pub(super) async fn run(args: &cli::BenchSets, ambient: &Ambient) -> Result<Vec<Figure>> {
    process::raise_open_files();
    let own = match &args.kubeconfig {
        Some(_) => None,
        None => Some(OwnServer::start(scratch(ambient)?, CONTROLLERS).await?),
    };
    let client = match (&args.kubeconfig, &own) {
        (Some(path), _) => connect(path).await?,
        (None, Some(own)) => connect(&own.kubeconfig()).await?,
        (None, None) => unreachable!("one of them was made above"),
    };
    let pids: Vec<u32> = args.pids.iter().copied().chain(own.as_ref().map(OwnServer::pid)).collect();
    let run = format!("bench-{}", ambient.suffix(5));
    let nodes = Nodes::start(&client, &run, args.nodes).await?;
    let figures = Vec::new();
    let mut bench =
        Bench { client, run, nodes, ambient: ambient.clone(), pids: pids.clone(), commit: Duration::ZERO, figures };
    bench.make_namespace().await?;
    let before = usage(&pids)?;
    let outcome = bench.workloads(args).await;
    let after = usage(&pids)?;
    bench.remove_namespace().await?;
    outcome?;
    let mut figures = bench.figures;
    for ((pid, before), (_, after)) in before.into_iter().zip(after) {
        figures.push(Figure::new(
            format!("process {pid}: processor time"),
            after.cpu_seconds - before.cpu_seconds,
            "s",
        ));
        figures.push(Figure::new(format!("process {pid}: memory at first"), before.resident_bytes / 1e6, "MB"));
        figures.push(Figure::new(format!("process {pid}: memory at the end"), after.resident_bytes / 1e6, "MB"));
    }
    bench.nodes.stop().await?;
    Ok(figures)
}

fn usage(pids: &[u32]) -> Result<Vec<(u32, Usage)>> {
    pids.iter().map(|pid| Ok((*pid, Usage::of(*pid)?))).collect()
}

struct Bench {
    client: Client,
    run: String,
    nodes: Nodes,
    ambient: Ambient,
    pids: Vec<u32>,
    /// How long one durable write takes.
    commit: Duration,
    figures: Vec<Figure>,
}

/// A point from which time and writes are counted.
struct Mark {
    at: Duration,
    revision: u64,
    own: u64,
    ever_ready: usize,
    usage: Vec<(u32, Usage)>,
}

impl Bench {
    async fn workloads(&mut self, args: &cli::BenchSets) -> Result<()> {
        self.commit = self.one_commit().await?;
        self.figures.push(Figure::new("one durable write through the API", millis(self.commit), "ms"));
        for pods in &args.ordered {
            let what = format!("OrderedReady {pods}: create to all Ready");
            self.create("ordered", "OrderedReady", *pods, &what).await?;
            self.floor(COMMITS_PER_POD, *pods);
            self.remove("ordered", *pods).await?;
        }
        for pods in &args.parallel {
            self.create("parallel", "Parallel", *pods, &format!("Parallel {pods}: create to all Ready")).await?;
            self.remove("parallel", *pods).await?;
        }
        for pods in &args.update {
            self.create("rolled", "Parallel", *pods, "").await?;
            self.update("rolled", *pods).await?;
            self.floor(COMMITS_PER_UPDATE, *pods);
            self.remove("rolled", *pods).await?;
        }
        if args.sets > 0 {
            self.many(args.sets).await?;
        }
        self.growth(&args.grow).await
    }

    /// What commits take that must follow each other, beside the figure before.
    fn floor(&mut self, commits: f64, pods: u32) {
        let floor = millis(self.commit) * commits * f64::from(pods);
        self.figures.push(Figure::new(format!("  its floor: {commits} commits a pod, one after another"), floor, "ms"));
    }

    /// Time, memory and one more set, with more and more pods.
    async fn growth(&mut self, steps: &[u32]) -> Result<()> {
        let mut have = 0;
        for &pods in steps.iter().filter(|pods| **pods > 0) {
            let mark = self.mark().await?;
            let from = have;
            while have < pods {
                let name = format!("grown-{have}");
                self.send("POST", self.sets(), &self.set(&name, "Parallel", GROWTH_SET.min(pods - have))).await?;
                have += GROWTH_SET.min(pods - have);
                let wanted = usize::try_from(have)?;
                self.nodes.until(LIMIT, |counts| counts.ready == wanted).await?;
            }
            self.tell(&mark, &format!("from {from} to {pods} pods, in Parallel sets of {GROWTH_SET}"), pods - from)
                .await?;
            for (pid, usage) in usage(&self.pids)? {
                self.figures.push(Figure::new(format!("  memory of process {pid}"), usage.resident_bytes / 1e6, "MB"));
            }
            let wanted = usize::try_from(have)? + 3;
            let at = self.ambient.boottime();
            self.send("POST", self.sets(), &self.set("one-more", "OrderedReady", 3)).await?;
            self.nodes.until(LIMIT, |counts| counts.ready == wanted).await?;
            let took = self.ambient.boottime().saturating_sub(at);
            self.figures.push(Figure::new("  one more OrderedReady set of 3", millis(took), "ms"));
            self.send("DELETE", format!("{}/one-more", self.sets()), &Value::Null).await?;
            self.nodes.until(LIMIT, |counts| counts.pods == wanted - 3).await?;
        }
        if have > 0 {
            let mark = self.mark().await?;
            self.send("DELETE", format!("{}?propagationPolicy=Background", self.sets()), &Value::Null).await?;
            self.nodes.until(LIMIT, |counts| counts.pods == 0).await?;
            self.tell(&mark, &format!("delete of all {have} pods"), have).await?;
        }
        Ok(())
    }

    /// How long a write takes that waits for nothing but itself.
    async fn one_commit(&self) -> Result<Duration> {
        let path = format!("/api/v1/namespaces/{}/configmaps", self.run);
        let begin = self.ambient.boottime();
        for n in 0..SAMPLES {
            self.send("POST", path.clone(), &json!({"metadata": {"name": format!("commit-{n}")}, "data": {"k": "v"}}))
                .await?;
        }
        Ok(self.ambient.boottime().saturating_sub(begin) / SAMPLES)
    }

    async fn create(&mut self, name: &str, policy: &str, pods: u32, what: &str) -> Result<()> {
        let mark = self.mark().await?;
        self.send("POST", self.sets(), &self.set(name, policy, pods)).await?;
        let wanted = usize::try_from(pods)?;
        self.nodes.until(LIMIT, |counts| counts.ready == wanted).await?;
        if !what.is_empty() {
            self.tell(&mark, what, pods).await?;
        }
        Ok(())
    }

    async fn update(&mut self, name: &str, pods: u32) -> Result<()> {
        let mark = self.mark().await?;
        let change = json!({"spec": {"template": {"metadata": {"annotations": {"bench": "updated"}}}}});
        self.send("PATCH", format!("{}/{name}", self.sets()), &change).await?;
        let wanted = usize::try_from(pods)?;
        let all = mark.ever_ready + wanted;
        self.nodes.until(LIMIT, |counts| counts.ready == wanted && counts.ever_ready >= all).await?;
        self.tell(&mark, &format!("rolling update of {pods}"), pods).await
    }

    async fn remove(&mut self, name: &str, pods: u32) -> Result<()> {
        let mark = self.mark().await?;
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"});
        self.send("DELETE", format!("{}/{name}", self.sets()), &options).await?;
        self.nodes.until(LIMIT, |counts| counts.pods == 0).await?;
        self.tell(&mark, &format!("cascade delete of {pods}"), pods).await
    }

    async fn many(&mut self, sets: u32) -> Result<()> {
        let mark = self.mark().await?;
        let path = self.sets();
        let bodies: Vec<Value> = (0..sets).map(|n| self.set(&format!("many-{n}"), "OrderedReady", 3)).collect();
        let this = &*self;
        let path = &path;
        let creates = bodies.iter().map(|body| async move { this.send("POST", path.clone(), body).await });
        let mut creates = futures::stream::StreamExt::buffer_unordered(futures::stream::iter(creates), 64);
        while let Some(created) = futures::StreamExt::next(&mut creates).await {
            created?;
        }
        drop(creates);
        let wanted = usize::try_from(sets)? * 3;
        self.nodes.until(LIMIT, |counts| counts.ready == wanted).await?;
        self.tell(&mark, &format!("{sets} sets of 3 at once: create to all Ready"), sets * 3).await?;
        let mark = self.mark().await?;
        self.send("DELETE", format!("{}?propagationPolicy=Background", self.sets()), &Value::Null).await?;
        self.nodes.until(LIMIT, |counts| counts.pods == 0).await?;
        self.tell(&mark, &format!("delete of {sets} sets of 3"), sets * 3).await
    }

    async fn mark(&self) -> Result<Mark> {
        Ok(Mark {
            revision: self.revision().await?,
            own: self.nodes.writes(),
            ever_ready: self.nodes.counts().ever_ready,
            usage: usage(&self.pids)?,
            at: self.ambient.boottime(),
        })
    }

    async fn tell(&mut self, mark: &Mark, what: &str, pods: u32) -> Result<()> {
        let took = self.ambient.boottime().saturating_sub(mark.at);
        // Every write of the server is one revision; those of the nodes, which are load and not work, are taken off.
        let all = self.revision().await?.saturating_sub(mark.revision);
        let server = all.saturating_sub(self.nodes.writes() - mark.own);
        self.figures.push(Figure::new(what, millis(took), "ms"));
        #[allow(clippy::cast_precision_loss, reason = "counts of writes are small")]
        let each = server as f64 / f64::from(pods.max(1));
        self.figures.push(Figure::new("  writes a pod besides the nodes'", each, ""));
        for ((pid, before), (_, after)) in mark.usage.iter().zip(usage(&self.pids)?) {
            let spent = after.cpu_seconds - before.cpu_seconds;
            self.figures.push(Figure::new(format!("  processor time of process {pid}"), spent, "s"));
        }
        Ok(())
    }

    async fn revision(&self) -> Result<u64> {
        let path = format!("/api/v1/namespaces/{}/services?limit=1", self.run);
        let list: Value = self.client.request(Request::get(path).body(Vec::new())?).await?;
        let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        version.parse().with_context(|| format!("the server's version {version:?} is not a number"))
    }

    fn sets(&self) -> String {
        format!("/apis/apps/v1/namespaces/{}/statefulsets", self.run)
    }

    fn set(&self, name: &str, policy: &str, replicas: u32) -> Value {
        let labels = json!({"app": name, LABEL: self.run});
        json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name}, "spec": {
            "replicas": replicas, "serviceName": name, "podManagementPolicy": policy,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": labels}, "spec": {"schedulerName": SCHEDULER,
                "automountServiceAccountToken": false, "containers": [{"name": "app", "image": "bench.invalid/app"}]}}}})
    }

    async fn make_namespace(&self) -> Result<()> {
        self.send("POST", "/api/v1/namespaces".to_owned(), &json!({"metadata": {"name": self.run}})).await?;
        let account =
            Request::get(format!("/api/v1/namespaces/{}/serviceaccounts/default", self.run)).body(Vec::new())?;
        let there = async {
            while self.client.request_text(account.clone()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), there)
            .await
            .context("the namespace has no default service account")
    }

    async fn remove_namespace(&self) -> Result<()> {
        self.send("DELETE", format!("/api/v1/namespaces/{}", self.run), &Value::Null).await
    }

    async fn send(&self, method: &str, path: String, body: &Value) -> Result<()> {
        let media = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let bytes = if body.is_null() { Vec::new() } else { serde_json::to_vec(body)? };
        let request = Request::builder().method(method).uri(&path).header("content-type", media).body(bytes)?;
        self.client.request_text(request).await.with_context(|| format!("{method} {path}"))?;
        Ok(())
    }
}
