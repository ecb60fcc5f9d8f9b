//! A pod of one's own for a test: its folder, cgroup and shim, gone when the test is.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use statefuld_node::cgroup::{Layout, PodCgroup};
use statefuld_node::log::Line;
use statefuld_node::shim::client::Ran;
use statefuld_node::shim::protocol::ExecRequest;
use statefuld_node::shim::spec::{
    BackOff, ContainerSpec, HostRoot, LogSpec, Mount, Propagation, RestartPolicy, Role, Root, ShimSpec, Source,
};
use statefuld_node::shim::state::{ContainerState, Phase, PodState, Status, Termination};
use statefuld_node::shim::{SealedExe, Shim, launch};

/// Nothing in these tests takes a tenth of it, on a machine that does other things besides.
const DEADLINE: Duration = Duration::from_secs(60);

/// A pod that is cleaned up when dropped.
pub(crate) struct TestPod {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) spec: ShimSpec,
    pub(crate) shim_pid: i32,
}

/// The program that plays the real binary, sealed once.
pub(crate) fn exe() -> &'static SealedExe {
    static EXE: OnceLock<SealedExe> = OnceLock::new();
    EXE.get_or_init(|| SealedExe::from_path(Path::new(env!("CARGO_BIN_EXE_statefuld-node-helper"))).unwrap())
}

/// A container with the machine's root that runs a shell script.
pub(crate) fn script(name: &str, script: &str) -> ContainerSpec {
    let argv = ["/bin/sh", "-c", script];
    serde_json::from_value(serde_json::json!({ "name": name, "root": Root::Host, "argv": argv })).unwrap()
}

/// The same, as an init container.
pub(crate) fn init(name: &str, text: &str) -> ContainerSpec {
    ContainerSpec { role: Role::Init, ..script(name, text) }
}

impl TestPod {
    /// A pod of these containers, not yet launched, in its own temporary data directory.
    pub(crate) fn new(containers: Vec<ContainerSpec>) -> Self {
        Self::below(Path::new("/tmp"), containers)
    }

    /// The same with its data directory below a given folder.
    pub(crate) fn below(base: &Path, containers: Vec<ContainerSpec>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = tempfile::Builder::new().prefix("statefuld-shim-test-").tempdir_in(base).unwrap();
        let spec = ShimSpec {
            namespace: "default".into(),
            name: "web-0".into(),
            uid: format!("uid-{number}"),
            hostname: "web-0".into(),
            domainname: None,
            epoch: 7,
            incarnation_base: 40,
            restart_policy: RestartPolicy::Never,
            back_off: BackOff::default(),
            grace_ms: 30_000,
            log: LogSpec::new(folder.path().join("logs")),
            cgroup: format!("statefuld-test-{}-{number}/pod-{number}", std::process::id()),
            limits: Default::default(),
            hosts_file: None,
            resolv_conf: None,
            host_network: false,
            sharing: Default::default(),
            users: None,
            shared_memory: None,
            sysctls: Vec::new(),
            host_root: HostRoot { masked: vec![folder.path().to_owned()], upper_dir: folder.path().join("pod/layers") },
            containers,
        };
        fs::create_dir(folder.path().join("pod")).unwrap();
        Self { folder, spec, shim_pid: 0 }
    }

    pub(crate) fn pod_dir(&self) -> PathBuf {
        self.folder.path().join("pod")
    }

    pub(crate) fn cgroup(&self) -> PodCgroup {
        PodCgroup::new(&Layout::detect().unwrap(), &self.spec.cgroup).unwrap()
    }

    /// Launches the shim and leaves it waiting for Start.
    pub(crate) async fn launch(&mut self) -> Shim {
        self.spec.write(&self.pod_dir()).unwrap();
        self.shim_pid = launch(&self.pod_dir(), exe()).await.unwrap().pid;
        Shim::connect(&self.pod_dir()).await.unwrap()
    }

    /// Launches the shim and starts the containers.
    pub(crate) async fn run(&mut self) -> Shim {
        let shim = self.launch().await;
        shim.start().await.unwrap();
        shim
    }

    /// Runs the pod to its end by itself, and returns its last state.
    pub(crate) async fn run_to_end(&mut self) -> PodState {
        let shim = self.run().await;
        wait_for(&shim, |state| state.phase == Phase::Finished).await
    }

    /// The texts that a start of a container printed. A line that is being written just now is left out.
    pub(crate) fn printed(&self, container: &str, restart: u32) -> Vec<String> {
        let path = statefuld_node::log::path(&self.spec.log.dir, container, restart);
        let bytes = fs::read(path).unwrap_or_default();
        let whole = bytes.split_inclusive(|b| *b == b'\n').filter(|line| line.ends_with(b"\n"));
        let lines = whole.map(|line| Line::parse(line).unwrap());
        lines.map(|line| String::from_utf8_lossy(line.text).into_owned()).collect()
    }
}

impl Drop for TestPod {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("state: {:#?}", PodState::read(&self.pod_dir()));
            eprintln!("shim.log: {}", fs::read_to_string(self.pod_dir().join("shim.log")).unwrap_or_default());
        }
        // Also where the test failed half-way.
        let cleaned = self.cgroup().destroy();
        assert!(cleaned.is_ok() || std::thread::panicking(), "{cleaned:?}");
    }
}

/// The first state that fits, from now on.
pub(crate) async fn wait_for(shim: &Shim, mut fits: impl FnMut(&PodState) -> bool) -> PodState {
    let mut last = None;
    let found = within(async {
        let mut changes = shim.subscribe().await.unwrap();
        while let Some(state) = changes.next().await.unwrap() {
            if fits(&state) {
                return state;
            }
            last = Some(state);
        }
        panic!("the shim ended in state {last:#?}");
    });
    found.await
}

/// A future's result, if it comes before the deadline.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("it did not happen in a minute")
}

/// Waits until something outside of the shim's knowledge is so.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let polling = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, polling).await.is_ok(), "in a minute, never: {what}");
}

/// All containers run.
pub(crate) async fn running(shim: &Shim) -> PodState {
    wait_for(shim, |state| state.containers.iter().all(|c| c.state.is_running())).await
}

/// How a container ended for good.
pub(crate) fn ended(container: &ContainerState) -> &Termination {
    match &container.state {
        Status::Terminated(termination) => termination,
        other => panic!("{} has not ended: {other:?}", container.name),
    }
}

/// Runs a shell script in the first container.
pub(crate) async fn sh(shim: &Shim, container: &str, script: &str) -> Ran {
    let argv = ["/bin/sh", "-c", script].map(String::from).to_vec();
    let request = ExecRequest { container: container.into(), argv, ..ExecRequest::default() };
    within(shim.run(request, 1 << 20)).await.unwrap()
}

/// What a shell script in a container prints.
pub(crate) async fn prints(shim: &Shim, container: &str, script: &str) -> String {
    let ran = sh(shim, container, script).await;
    let text = String::from_utf8_lossy(&ran.output).trim().to_owned();
    assert_eq!(ran.exit.code, 0, "{script}: {text}");
    text
}

/// A folder or file of the machine as a volume.
pub(crate) fn bind(path: &Path, target: &str) -> Mount {
    Mount {
        target: target.into(),
        read_only: false,
        recursive_read_only: false,
        propagation: Propagation::None,
        source: Source::Bind { path: path.to_owned(), sub: None },
    }
}
