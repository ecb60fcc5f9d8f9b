//! One instance of statefuld for one test, and kubectl to speak with it.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Long enough for a slow machine; reached only by failures.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// The built binary.
pub fn statefuld() -> Command {
    Command::new(env!("CARGO_BIN_EXE_statefuld"))
}

/// A manifest from `examples/`.
pub fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name)
}

/// Writes numbered things in a thread of its own, and remembers which writes were acknowledged.
pub struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<u32>>,
}

impl Writer {
    /// `write` is called with 1, 2, 3 … with a pause between, and says whether that one was acknowledged.
    pub fn start(pause: Duration, mut write: impl FnMut(u32) -> bool + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut acknowledged = Vec::new();
            for n in 1.. {
                if stopping.load(Ordering::SeqCst) {
                    break;
                }
                if write(n) {
                    acknowledged.push(n);
                }
                std::thread::park_timeout(pause);
            }
            acknowledged
        });
        Self { stop, thread }
    }

    /// Ends the thread; what was acknowledged.
    pub fn finish(self) -> Vec<u32> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("the writer does not panic")
    }
}

/// Calls until it gives something, or fails the test with what it was about.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    #[allow(clippy::disallowed_methods, reason = "a test's deadline is real time")]
    let now = Instant::now;
    let deadline = now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(now() < deadline, "not within {PATIENCE:?}: {what}");
        // A pause between two looks, not a synchronisation.
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// Puts this thread, and all that it starts from now on, into a network of its own that has nothing but loopback.
#[allow(deprecated, reason = "the flag given does not touch the descriptors that the safe call worries about")]
pub fn own_network() {
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).expect("root may have a network of its own");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip runs");
    assert!(up.success());
}

/// An instance with its own data directory. Dropping it stops everything and looks for leftovers.
pub struct Instance {
    root: tempfile::TempDir,
    /// What is killed and removed at the end even if `down` fails.
    started: bool,
}

impl Instance {
    /// Nothing runs yet.
    pub fn new() -> Self {
        let root = tempfile::Builder::new().prefix("statefuld-e2e-").tempdir().expect("a temporary directory");
        Self { root, started: false }
    }

    /// Where everything lies.
    pub fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// A folder for the test's own files.
    pub fn scratch(&self) -> &Path {
        self.root.path()
    }

    /// Something was started by other means than [`Instance::up`]; it is taken down all the same.
    pub fn mark_started(&mut self) {
        self.started = true;
    }

    /// `statefuld up --detach` with these files; the report.
    pub fn up(&mut self, files: &[PathBuf]) -> Value {
        self.started = true;
        let output = self.up_command(files).output().expect("statefuld runs");
        assert!(
            output.status.success(),
            "up failed: {}\nlog:\n{}",
            String::from_utf8_lossy(&output.stderr),
            fs::read_to_string(self.data().join("statefuld.log")).unwrap_or_default()
        );
        serde_json::from_slice(&output.stdout).expect("up -o json prints JSON")
    }

    /// The command that `up` runs.
    pub fn up_command(&self, files: &[PathBuf]) -> Command {
        let mut command = statefuld();
        command.arg("up").arg("--detach").arg("--data-dir").arg(self.data());
        command.args(["--listen", "127.0.0.1:0", "--timeout", "180s", "-o", "json"]).args(files);
        command
    }

    /// `statefuld down`, with further arguments.
    pub fn down(&self, arguments: &[&str]) {
        let output = statefuld()
            .arg("down")
            .arg("--data-dir")
            .arg(self.data())
            .args(arguments)
            .output()
            .expect("statefuld runs");
        assert!(output.status.success(), "down failed: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The daemon's process id.
    pub fn pid(&self) -> i32 {
        let text = fs::read_to_string(self.data().join("statefuld.pid")).expect("the daemon wrote its pid");
        text.trim().parse().expect("a pid")
    }

    /// kill -9 for the daemon; returns when it is gone.
    pub fn kill_daemon(&self) {
        kill(self.pid());
        eventually("the daemon is gone", || {
            let lock = fs::File::open(self.data().join("statefuld.lock")).ok()?;
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).ok()
        });
    }

    /// kubectl, set up for this instance.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.with_kubeconfig(Command::new("kubectl"));
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// A command for whose children this instance is the cluster.
    pub fn with_kubeconfig(&self, mut command: Command) -> Command {
        command.env("KUBECONFIG", self.data().join("kubeconfig")).env("HOME", self.root.path());
        command
    }

    /// kubectl; its output, or why not.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.kubectl_command(arguments).output().expect("kubectl runs");
        text_of(&output)
    }

    /// kubectl, which must succeed.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).unwrap_or_else(|error| panic!("kubectl {}: {error}", arguments.join(" ")))
    }

    /// kubectl with something on its standard input.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut command = self.kubectl_command(arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kubectl runs");
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("kubectl reads");
        text_of(&child.wait_with_output().expect("kubectl ends"))
    }

    /// An object as JSON.
    pub fn get(&self, kind: &str, name: &str) -> Value {
        serde_json::from_str(&self.kubectl(&["get", kind, name, "-o", "json"])).expect("kubectl prints JSON")
    }

    /// Runs a shell line in a pod.
    pub fn exec(&self, pod: &str, line: &str) -> Result<String, String> {
        self.try_kubectl(&["exec", pod, "--", "/bin/bash", "-c", line])
    }

    /// Waits until the pod of this name is Ready and, where given, another than the one with this uid.
    pub fn ready(&self, pod: &str, other_than: Option<&str>) -> Value {
        eventually(&format!("{pod} is Ready"), || {
            self.wait_a_while(&["pod", pod]);
            let text = self.try_kubectl(&["get", "pod", pod, "-o", "json"]).ok()?;
            let pod: Value = serde_json::from_str(&text).ok()?;
            (is_ready(&pod) && pod["metadata"]["uid"].as_str() != other_than).then_some(pod)
        })
    }

    /// Waits until the set has exactly so many pods, all Ready.
    pub fn settled(&self, set: &str, replicas: usize) {
        let label = format!("app={set}");
        eventually(&format!("{set} has {replicas} Ready pods"), || {
            self.wait_a_while(&["pods", "-l", &label]);
            let text = self.try_kubectl(&["get", "pods", "-l", &label, "-o", "json"]).ok()?;
            let list: Value = serde_json::from_str(&text).ok()?;
            let pods = list["items"].as_array()?;
            (pods.len() == replicas && pods.iter().all(is_ready)).then_some(())
        });
    }

    /// Waits until these pods are Ready, or for a while: one kubectl that waits costs less than many that look.
    fn wait_a_while(&self, pods: &[&str]) {
        let _ = self.try_kubectl(&[&["wait", "--for=condition=Ready", "--timeout=20s"], pods].concat());
    }

    /// Waits until the pod is gone.
    pub fn gone(&self, pod: &str) {
        eventually(&format!("{pod} is gone"), || {
            self.try_kubectl(&["get", "pod", pod]).err().filter(|error| error.contains("NotFound"))
        });
    }

    /// What must outlive everything that happens to a set: per claim its uid and its folder.
    pub fn identities(&self, set: &str, replicas: usize) -> Vec<(String, String, String)> {
        (0..replicas)
            .map(|n| {
                let name = format!("data-{set}-{n}");
                let claim = self.get("pvc", &name);
                let volume = claim["spec"]["volumeName"].as_str().expect("the claim is bound").to_owned();
                let folder =
                    self.get("pv", &volume)["spec"]["local"]["path"].as_str().expect("a local volume").to_owned();
                assert!(Path::new(&folder).is_dir(), "{folder} is a folder that a person can find");
                (name, claim["metadata"]["uid"].as_str().expect("a uid").to_owned(), folder)
            })
            .collect()
    }

    /// kill -9 for the first process of a pod's only container; waits until the container was started again.
    pub fn kill_container(&self, pod: &str) {
        let before = self.get("pod", pod);
        let restarts = &before["status"]["containerStatuses"][0]["restartCount"];
        kill(self.container_pid(before["metadata"]["uid"].as_str().expect("a uid")));
        eventually(&format!("{pod}'s container is started again"), || {
            let after = self.get("pod", pod);
            let now = &after["status"]["containerStatuses"][0]["restartCount"];
            (now.as_u64() > restarts.as_u64()).then_some(())
        });
        let after = self.ready(pod, None);
        assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"], "a restart in place keeps the pod");
        let last = &after["status"]["containerStatuses"][0]["lastState"]["terminated"];
        assert_eq!(last["exitCode"], 137, "the former run was killed: {last}");
    }

    /// The machine's process id of a pod's running container.
    fn container_pid(&self, uid: &str) -> i32 {
        let state = self.data().join("node/pods").join(uid).join("state.json");
        let state = fs::read_to_string(&state).expect("the shim's state");
        let (_, rest) = state.split_once("\"pid\":").expect("a running container");
        let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
        digits.parse().expect("a pid")
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if !self.started {
            return;
        }
        if std::thread::panicking() {
            let show = |arguments: &[&str]| eprintln!("{}", self.try_kubectl(arguments).unwrap_or_else(|e| e));
            show(&["get", "sts,pods,pvc", "-o", "wide"]);
            show(&["get", "events"]);
            show(&["describe", "pods"]);
            eprintln!("{}", fs::read_to_string(self.data().join("statefuld.log")).unwrap_or_default());
        }
        let output = statefuld().arg("down").arg("--data-dir").arg(self.data()).output();
        let down = output.map_err(|error| error.to_string()).and_then(|output| text_of(&output));
        let left = leftovers(&self.data());
        if !std::thread::panicking() {
            down.unwrap_or_else(|error| panic!("down failed at the end: {error}"));
            assert!(left.is_empty(), "left behind: {left:#?}");
        }
    }
}

/// Processes, mounts, interfaces and control groups that still have to do with a data directory.
pub fn leftovers(data: &Path) -> Vec<String> {
    let needle = data.to_str().expect("a UTF-8 path");
    let mut found = Vec::new();
    let further = fs::read_dir(data.join("nodes")).into_iter().flatten().flatten().map(|e| e.path());
    let nodes = std::iter::once(data.to_owned()).chain(further).map(|node| node.join("node/config.json"));
    for config in nodes.filter_map(|config| fs::read_to_string(config).ok()) {
        let field = |name: &str| config.split(&format!("\"{name}\":")).nth(1)?.split('"').nth(1).map(str::to_owned);
        let bridge = field("bridge").expect("the node chose a bridge");
        if Path::new("/sys/class/net").join(&bridge).exists() {
            found.push(format!("interface {bridge}"));
        }
        let table = bridge.replace("sfd-", "statefuld-");
        let there = node::nft::Socket::open().and_then(|socket| node::nft::is_there(&socket, &table));
        if there.is_ok_and(|there| there) {
            found.push(format!("table {table} of the packet filter"));
        }
        let group = field("cgroupRoot").expect("the node chose a control group");
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|e| e.path());
        let left = hierarchies.map(|h| h.join(&group)).filter(|g| g.exists());
        found.extend(left.map(|g| format!("control group {}", g.display())));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    found.extend(mounts.lines().filter(|l| l.contains(needle)).map(|l| format!("mount {l}")));
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(needle) && !line.contains("/deps/e2e") {
            found.push(format!("process {pid}: {line}"));
        }
    }
    found
}

fn text_of(output: &Output) -> Result<String, String> {
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
    }
}

/// Whether the pod is Ready and stays.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// SIGKILL for one process.
pub fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it can be killed");
}
