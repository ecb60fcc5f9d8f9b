//! Simulated nodes: a client like any other that binds pods, makes them Ready at once and ends them when asked.
//! The load is the same against any server, so that what differs is the server.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ApiResource;
use kube::core::Object;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Pods name it, so that the server's own scheduler leaves them alone.
pub(super) const SCHEDULER: &str = "statefuld-bench";
/// Pods of a bench carry this label with the run's name.
pub(super) const LABEL: &str = "statefuld.io/bench";
/// Requests under way at once.
const AT_ONCE: usize = 64;
/// How often a refused request is tried again: a former pod of the name may not be confirmed gone yet.
const ATTEMPTS: u32 = 100;
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(5);

/// What of a pod's spec is looked at.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Spec {
    #[serde(rename = "nodeName")]
    node: Option<String>,
}

/// What of a pod's status is looked at.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Status {
    phase: Option<String>,
}

type Slim = Object<Spec, Status>;

/// Pods by what they are, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// They exist.
    pub(super) pods: usize,
    /// They run, are Ready, and are not on their way out.
    pub(super) ready: usize,
    /// Pods that were ever made Ready, each uid once.
    pub(super) ever_ready: usize,
}

/// Nodes that do nothing but answer well.
pub(super) struct Nodes {
    inner: Arc<Inner>,
    counts: watch::Receiver<Counts>,
    names: Vec<String>,
    _tasks: JoinSet<()>,
}

struct Inner {
    client: Client,
    permits: Semaphore,
    writes: AtomicU64,
    /// False once the server said that it keeps no holder records (only ours does).
    holders: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Act {
    Bind,
    Run,
    End,
}

impl Nodes {
    /// Registers nodes and looks after the pods of a run.
    pub(super) async fn start(client: &Client, run: &str, count: usize) -> Result<Self> {
        let inner = Arc::new(Inner {
            client: client.clone(),
            permits: Semaphore::new(AT_ONCE),
            writes: AtomicU64::new(0),
            holders: AtomicBool::new(true),
        });
        let names: Vec<String> = (0..count.max(1)).map(|n| format!("{run}-node-{n}")).collect();
        for name in &names {
            inner.register(name).await?;
        }
        let (sender, counts) = watch::channel(Counts::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(inner.clone(), run.to_owned(), names.clone(), sender));
        Ok(Self { inner, counts, names, _tasks: tasks })
    }

    /// Waits until the pods are so.
    pub(super) async fn until(&mut self, limit: Duration, holds: impl Fn(&Counts) -> bool) -> Result<Counts> {
        let waited =
            tokio::time::timeout(limit, self.counts.wait_for(|counts| holds(counts))).await.map(|end| end.map(|c| *c));
        match waited {
            Ok(counts) => counts.context("the watch of the pods has ended"),
            Err(_) => bail!("not so after {limit:?}: {:?}", self.counts()),
        }
    }

    /// The pods now.
    pub(super) fn counts(&self) -> Counts {
        *self.counts.borrow()
    }

    /// Writes that the nodes have made.
    pub(super) fn writes(&self) -> u64 {
        self.inner.writes.load(Ordering::Relaxed)
    }

    /// Takes the nodes away again.
    pub(super) async fn stop(self) -> Result<()> {
        for name in &self.names {
            self.inner.send("DELETE", format!("/api/v1/nodes/{name}"), &Value::Null).await;
        }
        Ok(())
    }
}

impl Inner {
    async fn register(&self, name: &str) -> Result<()> {
        let room = json!({"cpu": "1000", "memory": "10000Gi", "pods": "100000"});
        let ready =
            json!({"type": "Ready", "status": "True", "reason": "Simulated", "message": "played by statefuld bench"});
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "spec": {"taints": [{"key": "statefuld.io/bench", "effect": "NoSchedule"}]},
            "status": {"capacity": room, "allocatable": room, "conditions": [ready]}});
        let code = self.send("POST", "/api/v1/nodes".to_owned(), &node).await;
        if matches!(code, 200..=299 | 409) {
            Ok(())
        } else {
            bail!("a node cannot be registered: the server answers {code}")
        }
    }

    /// One request; its status code, 0 where there was no answer.
    async fn send(&self, method: &str, path: String, body: &Value) -> u16 {
        let media = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let bytes =
            if body.is_null() { Vec::new() } else { serde_json::to_vec(body).expect("JSON values can be written") };
        let request = Request::builder().method(method).uri(path).header("content-type", media).body(bytes);
        match self.client.request_text(request.expect("the parts are valid")).await {
            Ok(_) => {
                self.writes.fetch_add(1, Ordering::Relaxed);
                200
            }
            Err(kube::Error::Api(status)) => status.code,
            Err(_) => 0,
        }
    }

    async fn act(&self, act: Act, pod: &Slim, node: &str, now: Timestamp) {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let uid = pod.uid().unwrap_or_default();
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let _permit = self.permits.acquire().await;
        for _ in 0..ATTEMPTS {
            let code = match act {
                Act::Bind => {
                    let body = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name, "uid": uid},
                        "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
                    self.send("POST", format!("{path}/binding"), &body).await
                }
                Act::Run => self.send("PATCH", format!("{path}/status"), &running(&uid, now)).await,
                Act::End => {
                    let body = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {"uid": uid}});
                    self.send("DELETE", path.clone(), &body).await
                }
            };
            match code {
                0 | 429 | 500..=599 => tokio::time::sleep(PAUSE).await,
                409 if act == Act::Bind => tokio::time::sleep(PAUSE).await,
                // It is done, or the pod has gone or changed meanwhile.
                _ => return,
            }
        }
    }

    /// Tells our server that nothing of a pod runs any more, as its node would.
    async fn report_gone(&self, pod: &Slim) {
        if pod.spec.node.is_none() || !self.holders.load(Ordering::Relaxed) {
            return;
        }
        let (namespace, name, uid) =
            (pod.namespace().unwrap_or_default(), pod.name_any(), pod.uid().unwrap_or_default());
        let path = format!("/apis/statefuld.io/v1/namespaces/{namespace}/holders/{name}?uid={uid}");
        let _permit = self.permits.acquire().await;
        if self.send("DELETE", path, &Value::Null).await == 404 {
            // The record may be gone already; only a server that has none at all does not know the path's group.
            let known =
                self.client.request_text(Request::get("/apis/statefuld.io").body(Vec::new()).expect("a path")).await;
            self.holders.store(known.is_ok(), Ordering::Relaxed);
        }
    }
}

fn running(uid: &str, now: Timestamp) -> Value {
    let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now});
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(condition);
    json!({"metadata": {"uid": uid}, "status": {"phase": "Running", "startTime": now, "conditions": conditions}})
}

/// Follows the pods of a run and does for each what its node would.
async fn follow(inner: Arc<Inner>, run: String, nodes: Vec<String>, counts: watch::Sender<Counts>) {
    let clock = ambient::Ambient::system();
    let resource = ApiResource::erase::<Pod>(&());
    let api: Api<Slim> = Api::all_with(inner.client.clone(), &resource);
    let mut events = watcher(api, watcher::Config::default().labels(&format!("{LABEL}={run}"))).boxed();
    let mut pods: HashMap<(String, String), bool> = HashMap::new();
    let mut asked: HashSet<(Act, String)> = HashSet::new();
    let (mut ready, mut ever_ready) = (0, 0);
    let mut tasks = JoinSet::new();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            Some(_) = tasks.join_next() => continue,
        };
        match event {
            None => return,
            Some(Ok(Event::Init)) => {
                pods.clear();
                ready = 0;
            }
            Some(Ok(Event::Apply(pod) | Event::InitApply(pod))) => {
                let key = (pod.namespace().unwrap_or_default(), pod.name_any());
                let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
                let leaves = pod.metadata.deletion_timestamp.is_some();
                let is_ready = phase == "Running" && !leaves;
                let was_ready = pods.insert(key, is_ready).unwrap_or(false);
                ready = ready + usize::from(is_ready) - usize::from(was_ready);
                let act = match (&pod.spec.node, leaves) {
                    (Some(_), true) => Some(Act::End),
                    (None, false) => Some(Act::Bind),
                    (Some(_), false) if phase == "Pending" => Some(Act::Run),
                    _ => None,
                };
                let uid = pod.uid().unwrap_or_default();
                if let Some(act) = act.filter(|act| asked.insert((*act, uid))) {
                    ever_ready += usize::from(act == Act::Run);
                    let (inner, node, now) = (inner.clone(), nodes[asked.len() % nodes.len()].clone(), clock.now());
                    tasks.spawn(async move { inner.act(act, &pod, &node, now).await });
                }
            }
            Some(Ok(Event::Delete(pod))) => {
                let was_ready = pods.remove(&(pod.namespace().unwrap_or_default(), pod.name_any())).unwrap_or(false);
                ready -= usize::from(was_ready);
                let inner = inner.clone();
                tasks.spawn(async move { inner.report_gone(&pod).await });
            }
            Some(Ok(Event::InitDone)) => {}
            // The watcher tries again by itself.
            Some(Err(error)) => tracing::debug!(%error, "the watch of the pods was interrupted"),
        }
        counts.send_replace(Counts { pods: pods.len(), ready, ever_ready });
    }
}
