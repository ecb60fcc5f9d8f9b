//! A node of one's own for a test: API server over a store in a temporary folder, agent, bridge; gone when the test is.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ambient::Ambient;
use apiserver::auth::Identity;
use apiserver::{ApiServer, Options};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, PodStatus};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use statefuld_node::agent;
use statefuld_node::shim::state::{PodState, Status};
use statefuld_node::{Config, Wishes};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Nothing in these tests takes a tenth of it, on a machine that does other things besides.
const DEADLINE: Duration = Duration::from_secs(90);

/// One machine with one node.
pub(crate) struct Cluster {
    pub(crate) api: Arc<ApiServer>,
    pub(crate) config: Config,
    /// While true, the agent's statuses of pods are not answered, as by a server that cannot write.
    pub(crate) mute: Arc<AtomicBool>,
    agent: Option<(CancellationToken, JoinHandle<()>)>,
    /// Last, because it is removed after what lies in it was cleared away.
    _folder: tempfile::TempDir,
}

/// What a failed test leaves is killed and removed.
impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some((term, _)) = &self.agent {
            term.cancel();
        }
        for uid in self.uids() {
            let dir = self.config.pod_dir(&uid);
            let _ = statefuld_node::shim::launch::cleanup_blocking(&dir);
            let _ = statefuld_node::volume::remove_pod_dir(&dir);
        }
        let _ = std::process::Command::new("ip").args(["link", "delete", &self.config.bridge]).output();
        let claim = format!("/run/statefuld/ranges/{}", self.config.pod_cidr.to_string().replace('/', "-"));
        let _ = std::fs::remove_file(claim);
    }
}

impl Cluster {
    /// Starts everything and waits for the node.
    pub(crate) async fn start() -> Self {
        let mut cluster = Self::prepare().await;
        cluster.start_agent();
        cluster.node_is_ready().await;
        cluster
    }

    /// Starts everything but the agent.
    pub(crate) async fn prepare() -> Self {
        let folder = tempfile::Builder::new().prefix("statefuld-agent-test-").tempdir_in("/tmp").expect("a folder");
        let path = folder.path().join("store");
        let store = store::embedded::Embedded::open(&path, Ambient::system(), store::embedded::Options::default());
        let api =
            ApiServer::start(Options::new(store.expect("a store"), Ambient::system())).await.expect("an API server");
        let wishes = Wishes { node_name: Some("node-a".to_owned()), ..Wishes::default() };
        let config = Config::choose(folder.path(), &wishes).expect("a configuration");
        let cluster = Self { api, config, mute: Arc::default(), agent: None, _folder: folder };
        cluster.publish_authority().await;
        cluster
    }

    /// Waits until an agent has said that the node is there.
    pub(crate) async fn node_is_ready(&self) {
        let nodes: Api<Node> = Api::all(self.admin());
        until("the node is registered", || async {
            let node = nodes.get_opt("node-a").await.ok()??;
            node.status?.conditions?.iter().any(|c| c.type_ == "Ready" && c.status == "True").then_some(())
        })
        .await;
    }

    /// What the controller does that gives pods the certificate of the API server's authority.
    async fn publish_authority(&self) {
        let map = json!({"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": "CERTIFICATE"}});
        let map: ConfigMap = serde_json::from_value(map).expect("a config map");
        let maps: Api<ConfigMap> = Api::namespaced(self.admin(), "default");
        maps.create(&PostParams::default(), &map).await.expect("made");
    }

    /// Starts the agent, which must not be running.
    pub(crate) fn start_agent(&mut self) {
        assert!(self.agent.is_none(), "one agent at a time");
        let term = CancellationToken::new();
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let (api, mute) = (self.api.client(Identity::node("node-a")), self.mute.clone());
        let muted = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (api, path) = (api.clone(), request.uri().path().to_owned());
            let unanswered = mute.load(Ordering::SeqCst) && path.contains("/pods/") && path.ends_with("/status");
            async move {
                if unanswered {
                    std::future::pending::<()>().await;
                }
                tower::ServiceExt::oneshot(api, request).await
            }
        });
        let client = Client::new(muted, "default");
        let program = Some(Path::new(env!("CARGO_BIN_EXE_statefuld-node-helper")).to_path_buf());
        let (config, token, nodes) = (self.config.clone(), term.clone(), self.api.nodes().clone());
        let task = tokio::spawn(async move {
            let attached = tokio::spawn(async move { nodes.attach("node-a", ours).await });
            let ran = agent::run_with(client, config, theirs, token, Ambient::system(), program).await;
            attached.abort();
            ran.expect("the agent runs");
        });
        self.agent = Some((term, task));
    }

    /// Ends the agent as a daemon's end does: what runs goes on.
    pub(crate) async fn end_agent(&mut self) {
        let (term, task) = self.agent.take().expect("it runs");
        term.cancel();
        task.await.expect("the agent ends without a panic");
    }

    /// The administrator.
    pub(crate) fn admin(&self) -> Client {
        Client::new(self.api.client(Identity::user("kubernetes-admin", &["system:masters"])), "default")
    }

    /// Pods of the default namespace.
    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::default_namespaced(self.admin())
    }

    /// Makes a pod and binds it to the node, as a scheduler does.
    pub(crate) async fn run(&self, name: &str, spec: Value) -> Pod {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec});
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        let made = self.pods().create(&PostParams::default(), &pod).await.expect("made");
        let target = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": "node-a"}});
        let bound: Result<Value, _> =
            self.pods().create_subresource("binding", name, &PostParams::default(), &target).await;
        bound.expect("bound");
        made
    }

    /// Waits until the pod's status is as wanted, and answers it.
    pub(crate) async fn status(&self, name: &str, what: &str, wanted: impl Fn(&PodStatus) -> bool) -> PodStatus {
        let pods = self.pods();
        let last = std::sync::Mutex::new(None);
        let found = try_until(|| async {
            let status = pods.get_opt(name).await.ok()??.status?;
            *last.lock().expect("nobody panics with it") = Some(status.clone());
            wanted(&status).then_some(status)
        })
        .await;
        found.unwrap_or_else(|| {
            panic!("{name} never was {what}; last: {:#?}", last.lock().expect("nobody panics with it"))
        })
    }

    /// Waits until the pod is Ready.
    pub(crate) async fn ready(&self, name: &str) -> PodStatus {
        self.status(name, "ready", is_ready).await
    }

    /// Asks for a pod's deletion and waits until it is gone.
    pub(crate) async fn delete(&self, name: &str) {
        self.pods().delete(name, &DeleteParams::default()).await.expect("accepted");
        self.gone(name).await;
    }

    /// Waits until the pod's object is gone.
    pub(crate) async fn gone(&self, name: &str) {
        let pods = self.pods();
        until("the pod is gone", || async { pods.get_opt(name).await.ok()?.is_none().then_some(()) }).await;
    }

    /// Stops everything and shows that nothing is left.
    pub(crate) async fn end(mut self) {
        agent::stop_pods(&self.config, Some(Duration::ZERO), &Ambient::system()).await.expect("stopped");
        if self.agent.is_some() {
            self.end_agent().await;
        }
        assert!(!Path::new("/sys/class/net").join(&self.config.bridge).exists(), "the bridge is gone");
        for uid in self.uids() {
            assert!(shim_pids(&self.config, &uid).is_empty(), "no process is left of {uid}");
        }
    }

    /// Uids that have a folder.
    pub(crate) fn uids(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.config.pods_dir()).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().into_string().ok()).collect()
    }
}

/// Processes whose command line names the pod's folder: its shim.
pub(crate) fn shim_pids(config: &Config, uid: &str) -> Vec<i32> {
    let dir = config.pod_dir(uid).display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let text = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&text).split('\0').any(|word| word == dir) {
            found.push(pid);
        }
    }
    found
}

/// Whether a status says Ready.
pub(crate) fn is_ready(status: &PodStatus) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// The id of the first container's current run.
pub(crate) fn run_of(status: &PodStatus) -> String {
    let first = status.container_statuses.as_ref().and_then(|s| s.first());
    first.and_then(|s| s.container_id.clone()).unwrap_or_default()
}

/// Kills the program of a pod's container that runs, as if it had ended by itself.
pub(crate) async fn end_program(cluster: &Cluster, name: &str) {
    let uid = cluster.pods().get(name).await.expect("there").metadata.uid.expect("a uid");
    let state = PodState::read(&cluster.config.pod_dir(&uid)).expect("read").expect("a state");
    let running = state.containers.iter().find_map(|c| match c.state {
        Status::Running { pid, .. } => Some(pid),
        _ => None,
    });
    let pid = running.and_then(rustix::process::Pid::from_raw).expect("one runs");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
}

/// Waits for something.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, look: impl FnMut() -> F) -> T {
    try_until(look).await.unwrap_or_else(|| panic!("never happened: {what}"))
}

async fn try_until<T, F: Future<Output = Option<T>>>(mut look: impl FnMut() -> F) -> Option<T> {
    let watch = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, watch).await.ok()
}
