//! Scheduler and kubelet of one namespace: binds pods and drives them as the scenario's rules say.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ambient::Ambient;
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc};

use super::client::{Client, stamp};
use super::objects::{Kind, image, matches, name, phase, terminating, text, uid};
use super::world::{Change, World};

/// How often a refused binding is tried again: while a former pod of the name is not confirmed to be gone.
const BIND_ATTEMPTS: u32 = 200;
/// Between two attempts.
const BIND_PAUSE: Duration = Duration::from_millis(20);

/// Plays the node of one namespace.
#[derive(Clone)]
pub(crate) struct Kubelet {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    world: World,
    namespace: String,
    node: String,
    rules: Mutex<Vec<Value>>,
    asked: Mutex<HashSet<(Act, String)>>,
    /// Acts that are due or being done.
    busy: AtomicUsize,
    queue: mpsc::UnboundedSender<Due>,
    clock: Ambient,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Act {
    Bind,
    Start { phase: &'static str, ready: bool },
    Stop,
}

struct Due {
    at: Duration,
    act: Act,
    pod: Arc<Value>,
}

/// What holds for a pod: of all rules that match, the last one that names a field decides it.
struct Rule {
    bind: bool,
    start: bool,
    /// What becomes of it then.
    phase: &'static str,
    ready: bool,
    stop: bool,
    start_after: Duration,
    stop_after: Duration,
}

impl Kubelet {
    /// Starts to look after the pods of a namespace.
    pub(crate) fn start(
        client: &Client,
        world: &World,
        namespace: &str,
        node: &str,
        tasks: &mut tokio::task::JoinSet<()>,
    ) -> Kubelet {
        let (queue, due) = mpsc::unbounded_channel();
        let inner = Inner {
            client: client.clone(),
            world: world.clone(),
            namespace: namespace.to_owned(),
            node: node.to_owned(),
            rules: Mutex::default(),
            asked: Mutex::default(),
            busy: AtomicUsize::new(0),
            queue,
            clock: Ambient::system(),
        };
        let kubelet = Kubelet { inner: Arc::new(inner) };
        tasks.spawn(kubelet.clone().listen(world.pods()));
        tasks.spawn(kubelet.clone().work(due));
        kubelet
    }

    /// Adds a rule for pods to come, and for those that are there and wait.
    pub(crate) fn rule(&self, rule: Value) {
        self.inner.rules.lock().expect("held for a line only").push(rule);
        self.review();
    }

    /// Nothing but what ends every pod at once.
    pub(crate) fn let_go(&self) {
        *self.inner.rules.lock().expect("held for a line only") = vec![json!({"stop_ms": 0})];
        self.review();
    }

    /// Whether nothing is left to do.
    pub(crate) fn idle(&self) -> bool {
        self.inner.busy.load(Ordering::SeqCst) == 0
    }

    fn review(&self) {
        let pods: Vec<_> = self.inner.world.look().all(Kind::Pods).map(|(_, pod)| Arc::clone(pod)).collect();
        for pod in pods {
            self.see(&pod);
        }
    }

    async fn listen(self, mut pods: broadcast::Receiver<(Change, Arc<Value>)>) {
        loop {
            match pods.recv().await {
                Ok((Change::There, pod)) => self.see(&pod),
                Ok((Change::Gone, pod)) => self.report_gone(&pod).await,
                Err(broadcast::error::RecvError::Lagged(_)) => self.review(),
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    fn see(&self, pod: &Arc<Value>) {
        let rule = self.rule_of(pod);
        match text(&pod["spec"]["nodeName"]) {
            "" if rule.bind && !terminating(pod) => self.ask(Act::Bind, Duration::ZERO, pod),
            node if node != self.inner.node => {}
            _ if terminating(pod) && rule.stop => self.ask(Act::Stop, rule.stop_after, pod),
            _ if terminating(pod) => {}
            _ if phase(pod) == "Pending" && rule.start => {
                self.ask(Act::Start { phase: rule.phase, ready: rule.ready }, rule.start_after, pod);
            }
            _ => {}
        }
    }

    fn rule_of(&self, pod: &Value) -> Rule {
        let rules = self.inner.rules.lock().expect("held for a line only");
        let apt: Vec<&Value> = rules
            .iter()
            .filter(|rule| matches(name(pod), rule["pod"].as_str().unwrap_or("*")))
            .filter(|rule| rule["image"].as_str().is_none_or(|wanted| wanted == image(pod)))
            .collect();
        let last = |field: &str| apt.iter().rev().find_map(|rule| rule.get(field));
        let flag = |field: &str| last(field).and_then(Value::as_bool).unwrap_or(true);
        let after = |field: &str| Duration::from_millis(last(field).and_then(Value::as_u64).unwrap_or(15));
        let phase = match last("phase").and_then(Value::as_str) {
            None => "Running",
            Some("Succeeded") => "Succeeded",
            Some("Failed") => "Failed",
            Some(other) => panic!("a rule names the phase {other:?}"),
        };
        Rule {
            bind: flag("bind"),
            start: flag("start"),
            phase,
            ready: flag("ready") && phase == "Running",
            stop: flag("stop"),
            start_after: after("start_ms"),
            stop_after: after("stop_ms"),
        }
    }

    /// Each act happens once in the life of a pod.
    fn ask(&self, act: Act, after: Duration, pod: &Arc<Value>) {
        let start = Act::Start { phase: "Running", ready: true };
        let key = if matches!(act, Act::Start { .. }) { start } else { act };
        if self.inner.asked.lock().expect("held for a line only").insert((key, uid(pod).to_owned())) {
            self.inner.busy.fetch_add(1, Ordering::SeqCst);
            // The worker ends with the whole run only.
            let _ = self.inner.queue.send(Due { at: self.inner.clock.boottime() + after, act, pod: Arc::clone(pod) });
        }
    }

    async fn work(self, mut asked: mpsc::UnboundedReceiver<Due>) {
        let mut waiting: BinaryHeap<Reverse<(Duration, usize)>> = BinaryHeap::new();
        let mut acts: Vec<Option<Due>> = Vec::new();
        loop {
            let next = waiting.peek().map(|Reverse((at, _))| at.saturating_sub(self.inner.clock.boottime()));
            tokio::select! {
                due = asked.recv() => {
                    let Some(due) = due else { return };
                    waiting.push(Reverse((due.at, acts.len())));
                    acts.push(Some(due));
                }
                () = tokio::time::sleep(next.unwrap_or_default()), if next.is_some() => {
                    let Some(Reverse((_, at))) = waiting.pop() else { continue };
                    if let Some(due) = acts[at].take() {
                        self.act(due.act, &due.pod).await;
                        self.inner.busy.fetch_sub(1, Ordering::SeqCst);
                    }
                }
            }
        }
    }

    async fn act(&self, act: Act, pod: &Value) {
        match act {
            Act::Bind => self.bind(pod).await,
            Act::Start { phase, ready } => self.set_status(pod, phase, ready).await,
            Act::Stop => self.finish(pod).await,
        }
    }

    async fn bind(&self, pod: &Value) {
        let path = Kind::Pods.path(&self.inner.namespace, name(pod), "binding");
        let body = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name(pod), "uid": uid(pod)},
            "target": {"apiVersion": "v1", "kind": "Node", "name": self.inner.node}});
        for _ in 0..BIND_ATTEMPTS {
            let (code, answer) = self.inner.client.call("POST", &path, Some(&body)).await;
            if code != 409 || !text(&answer["message"]).contains("hold") {
                return self.judge("bind", pod, code, &answer);
            }
            tokio::time::sleep(BIND_PAUSE).await;
        }
        panic!("pod {} could not be bound: its former one is held for ever", name(pod));
    }

    /// Writes what a kubelet would report.
    pub(crate) async fn set_status(&self, pod: &Value, phase: &str, ready: bool) {
        let conditions: Vec<_> =
            [("Initialized", true), ("Ready", ready), ("ContainersReady", ready), ("PodScheduled", true)]
                .into_iter()
                .map(|(kind, holds)| {
                    let status = if holds { "True" } else { "False" };
                    json!({"type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": stamp()})
                })
                .collect();
        let change = json!({"metadata": {"uid": uid(pod)},
            "status": {"phase": phase, "startTime": stamp(), "conditions": conditions}});
        let path = Kind::Pods.path(&self.inner.namespace, name(pod), "status");
        let (code, answer) = self.inner.client.call("PATCH", &path, Some(&change)).await;
        self.judge("status", pod, code, &answer);
    }

    async fn finish(&self, pod: &Value) {
        let path = Kind::Pods.path(&self.inner.namespace, name(pod), "");
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
            "preconditions": {"uid": uid(pod)}});
        let (code, answer) = self.inner.client.call("DELETE", &path, Some(&options)).await;
        self.judge("delete", pod, code, &answer);
    }

    /// Tells a server that keeps holder records (ours) that nothing of the pod runs any more; others do not know the path.
    async fn report_gone(&self, pod: &Value) {
        if pod["spec"]["nodeName"] == self.inner.node.as_str() {
            let namespace = &self.inner.namespace;
            let path = format!("/apis/statefuld.io/v1/namespaces/{namespace}/holders/{}?uid={}", name(pod), uid(pod));
            self.inner.client.call("DELETE", &path, None).await;
        }
    }

    /// A pod may have gone, changed or been replaced meanwhile; anything else is a fault of the server.
    fn judge(&self, what: &str, pod: &Value, code: u16, answer: &Value) {
        // A patch that names the uid of a former pod would change the uid of the present one.
        let replaced = code == 422 && text(&answer["message"]).contains("metadata.uid: Invalid value");
        let fine = matches!(code, 200..=202 | 404 | 409) || replaced;
        assert!(fine, "{what} of pod {} in {}: {code} {}", name(pod), self.inner.namespace, answer["message"]);
    }
}
