//! An API server, the StatefulSet controller and a kubelet that obeys the test, all in this process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ambient::Ambient;
use apiserver::auth::Identity;
use apiserver::{ApiServer, AuthorizerChoice, Options};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};
use statefuld_controllers::informer::Informer;
use statefuld_controllers::{Term, roster, statefulset};
use store::embedded::Embedded;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

/// How long a condition may take to come true before a test fails.
const PATIENCE: Duration = Duration::from_secs(30);
/// Namespace of all tests; each has a server of its own.
pub(crate) const NAMESPACE: &str = "default";
/// The node that all pods run on.
const NODE: &str = "one";

/// One server with its controller and kubelet.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) kubelet: Kubelet,
    api: Arc<ApiServer>,
    ambient: Ambient,
    term: Mutex<Term>,
    controller: Mutex<Option<JoinHandle<()>>>,
    /// What else was started; ends with the test.
    around: Mutex<JoinSet<Result<(), String>>>,
    _folder: tempfile::TempDir,
}

/// What the kubelet is told.
#[derive(Clone, Default)]
pub(crate) struct Kubelet {
    /// Pods that it does not make ready.
    unready: Arc<Mutex<BTreeSet<String>>>,
    /// The uid that holds each name.
    held: Arc<Mutex<BTreeMap<String, String>>>,
    /// Names of pods as they appeared (`+`) and went (`-`).
    history: Arc<Mutex<Vec<String>>>,
}

impl Cluster {
    /// Starts everything.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ambient = Ambient::system();
        let store = Embedded::open(&folder.path().join("store"), ambient.clone(), Default::default());
        let mut options = Options::new(store.expect("an empty store opens"), ambient.clone());
        options.authorizer = AuthorizerChoice::AllowAll;
        let api = ApiServer::start(options).await.expect("an API over an empty store starts");
        // User, scheduler and node in one.
        let client = Client::new(api.client(Identity::user("admin", &["system:masters"])), NAMESPACE);
        let kubelet = Kubelet::default();
        let cluster = Self {
            client,
            kubelet,
            api,
            ambient,
            term: Mutex::new(Term::new()),
            controller: Mutex::new(None),
            around: Mutex::new(JoinSet::new()),
            _folder: folder,
        };
        cluster.start_kubelet();
        cluster.start_controller();
        cluster
    }

    /// Starts the controller, as after a crash.
    pub(crate) fn start_controller(&self) {
        let term = Term::new();
        let identity = Identity::service_account("kube-system", "statefulset-controller");
        let client = Client::new(self.api.client(identity), NAMESPACE);
        let run = statefulset::run(client, term.clone(), self.ambient.clone(), statefulset::Options::default());
        let task = tokio::spawn(async move { run.await.expect("the controller ends well") });
        *self.term.lock().unwrap() = term;
        *self.controller.lock().unwrap() = Some(task);
    }

    /// Starts other controllers, by their names in the roster.
    pub(crate) fn start_around(&self, names: &str) {
        let selection = names.parse().expect("names of controllers");
        let client = |account| match account {
            roster::Account::Service(name) => {
                Client::new(self.api.client(Identity::service_account("kube-system", name)), NAMESPACE)
            }
            roster::Account::User(name) => Client::new(self.api.client(Identity::user(name, &[])), NAMESPACE),
        };
        let started = roster::start(&selection, &Term::new(), &self.ambient, None, &client);
        *self.around.lock().unwrap() = started;
    }

    /// Ends the controller's term and waits until its requests are settled.
    pub(crate) async fn stop_controller(&self) {
        self.term.lock().unwrap().end();
        let task = self.controller.lock().unwrap().take().expect("it runs");
        task.await.expect("it does not panic");
    }

    fn start_kubelet(&self) {
        let term = Term::new();
        let (queue, mut changes) = mpsc::unbounded_channel::<Arc<Pod>>();
        let history = self.kubelet.history.clone();
        let pods = Informer::builder(Api::<Pod>::all(self.client.clone()), Some).start(&term, &self.ambient);
        pods.on_change(move |old, new| {
            let line = match (old, new) {
                (None, Some(pod)) => Some(format!("+{}", name(pod))),
                (Some(pod), None) => Some(format!("-{}", name(pod))),
                _ => None,
            };
            history.lock().unwrap().extend(line);
            if let Some(pod) = new {
                // The receiver goes with the test's runtime.
                let _ = queue.send(pod.clone());
            }
        });
        let (client, kubelet) = (self.client.clone(), self.kubelet.clone());
        tokio::spawn(async move {
            while let Some(pod) = changes.recv().await {
                kubelet.see(&client, &pod).await;
            }
            drop(pods);
        });
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub(crate) fn sets(&self) -> Api<StatefulSet> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Creates a set.
    pub(crate) async fn create(&self, set: Value) {
        let set: StatefulSet = serde_json::from_value(set).expect("a set");
        self.sets().create(&PostParams::default(), &set).await.expect("the set is valid");
    }

    /// Merges something into a set.
    pub(crate) async fn patch(&self, name: &str, patch: Value) {
        self.sets().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.expect("the patch is valid");
    }

    /// Deletes a pod as a user does.
    pub(crate) async fn delete_pod(&self, name: &str) {
        self.pods().delete(name, &DeleteParams::default()).await.expect("the pod is there");
    }

    /// A set as it is.
    pub(crate) async fn set(&self, name: &str) -> StatefulSet {
        self.sets().get(name).await.expect("the set is there")
    }

    /// Waits until a set's status says that all is as the spec wants it.
    pub(crate) async fn settled(&self, name: &str) -> StatefulSet {
        let mut found = None;
        eventually("the set settles", async || {
            let set = self.set(name).await;
            let status = set.status.clone().unwrap_or_default();
            let wanted = set.spec.replicas.unwrap_or(1);
            let done = status.observed_generation == set.metadata.generation
                && (status.replicas, status.ready_replicas.unwrap_or(0)) == (wanted, wanted)
                && status.current_revision == status.update_revision;
            found = Some(set);
            done
        })
        .await;
        found.expect("it was read at least once")
    }
}

impl Kubelet {
    /// Keeps a pod from being ready from now on; one that is ready turns unready at once.
    pub(crate) async fn hold(&self, cluster: &Cluster, name: &str) {
        self.hold_in(cluster, NAMESPACE, name).await;
    }

    /// The same in another namespace.
    pub(crate) async fn hold_in(&self, cluster: &Cluster, space: &str, name: &str) {
        self.unready.lock().unwrap().insert(name.to_owned());
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), space);
        if let Ok(pod) = pods.get(name).await {
            report(&cluster.client, &pod, "Running", false).await;
        }
    }

    /// Lets it be ready again.
    pub(crate) async fn release(&self, cluster: &Cluster, name: &str) {
        self.release_in(cluster, NAMESPACE, name).await;
    }

    /// The same in another namespace.
    pub(crate) async fn release_in(&self, cluster: &Cluster, space: &str, name: &str) {
        self.unready.lock().unwrap().remove(name);
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), space);
        if let Ok(pod) = pods.get(name).await {
            report(&cluster.client, &pod, "Running", true).await;
        }
    }

    /// A pod ends badly.
    pub(crate) async fn fail(&self, cluster: &Cluster, name: &str) {
        let pod = cluster.pods().get(name).await.expect("the pod is there");
        report(&cluster.client, &pod, "Failed", false).await;
    }

    /// What came and went so far.
    pub(crate) fn history(&self) -> Vec<String> {
        self.history.lock().unwrap().clone()
    }

    async fn see(&self, client: &Client, pod: &Pod) {
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace(pod));
        let spec = pod.spec.clone().unwrap_or_default();
        let phase = pod.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default();
        if pod.metadata.deletion_timestamp.is_some() {
            let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
            let now = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(preconditions),
                ..DeleteParams::default()
            };
            // Somebody may have been quicker.
            let _ = pods.delete(&name(pod), &now).await;
        } else if let Some(status) = sick(&spec) {
            if spec.node_name.is_none() && status["phase"] == "Running" {
                self.bind(client, pod, &binding(pod)).await;
            }
            let told = pod.status.as_ref().is_some_and(|s| s.message.is_some());
            if !told {
                let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
                // The pod may have gone meanwhile.
                let _ = pods.patch_status(&name(pod), &PatchParams::default(), &Patch::Merge(patch)).await;
            }
        } else if spec.node_name.is_none() {
            self.bind(client, pod, &binding(pod)).await;
        } else if phase == "Pending" {
            let ready = !self.unready.lock().unwrap().contains(&name(pod));
            report(client, pod, "Running", ready).await;
        }
    }

    /// Binds a pod. What held its name before is gone, and this node is the one to say so.
    async fn bind(&self, client: &Client, pod: &Pod, binding: &Value) {
        let (name, uid) = (name(pod), pod.metadata.uid.clone().unwrap_or_default());
        let before = self.held.lock().unwrap().insert(name.clone(), uid.clone());
        if let Some(before) = before.filter(|b| *b != uid) {
            let path = format!("/apis/statefuld.io/v1/namespaces/{}/holders/{name}?uid={before}", namespace(pod));
            let request = http::Request::delete(path).body(Vec::new()).expect("a valid request");
            // Not found if it went with the pod.
            let _: Result<Value, _> = client.request(request).await;
        }
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace(pod));
        let _: Result<Value, _> = pods.create_subresource("binding", &name, &PostParams::default(), binding).await;
    }
}

async fn report(client: &Client, pod: &Pod, phase: &str, ready: bool) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace(pod));
    let status = json!({"metadata": {"uid": pod.metadata.uid}, "status": {
        "phase": phase,
        "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" },
            "lastTransitionTime": Ambient::system().now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()}],
    }});
    // The pod may have gone meanwhile.
    let _ = pods.patch_status(&name(pod), &PatchParams::default(), &Patch::Merge(status)).await;
}

fn binding(pod: &Pod) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name(pod), "uid": pod.metadata.uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
    })
}

/// What scheduler and kubelet tell of pods whose image is tagged with what is wrong with them.
fn sick(spec: &PodSpec) -> Option<Value> {
    let tag = spec.containers.first()?.image.as_deref()?.strip_prefix("sample:")?;
    let waiting = |reason: &str| {
        json!([{"name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 1,
            "state": {"waiting": {"reason": reason}}}])
    };
    let mut status = match tag {
        "crash-looping" => json!({"phase": "Running", "containerStatuses": waiting("CrashLoopBackOff")}),
        "image-less" => json!({"phase": "Running", "containerStatuses": waiting("ImagePullBackOff")}),
        "unschedulable" => json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."}]}),
        "slow" => json!({"phase": "Running"}),
        _ => return None,
    };
    status["message"] = tag.into();
    Some(status)
}

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or(NAMESPACE)
}

fn name(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap_or_default()
}

/// Asks again and again until the answer is yes; fails the test when patience ends.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let asked = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, asked).await.is_err() {
        panic!("in vain: {what}");
    }
}

/// A set called `web` with one claim per pod.
pub(crate) fn web(replicas: i32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas, "serviceName": "web", "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"automountServiceAccountToken": false, "containers": [{"name": "main", "image": "sample:1"}]},
            },
            "volumeClaimTemplates": [{
                "metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
            }],
        },
    })
}
