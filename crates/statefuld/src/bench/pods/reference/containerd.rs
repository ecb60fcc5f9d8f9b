//! containerd, in a process of its own with folders of its own, driven through its CRI as a kubelet drives it: a sandbox with
//! its network by CNI (`bridge`, `host-local`), a container, its start.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ambient::Ambient;
use anyhow::{Context as _, Result};
use futures::future::{join_all, try_join_all};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::cri::{Cri, Pod};
use super::root::{self, PAUSE_IMAGE, SERVER_IMAGE};
use super::{Clock, Laps, program, run, until_it_answers};
use crate::bench::pods::idle::{self, Processes};
use crate::bench::pods::report::Report;
use crate::bench::{Scratch, scratch};
use crate::cli;
use crate::say;

/// How its figures are called.
pub(super) const NAME: &str = "containerd (CRI)";
/// Where CNI's plugins lie: Debian's folder, and that of everybody else.
const PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
/// Those that are needed.
const NEEDED: [&str; 3] = ["bridge", "host-local", "loopback"];
/// The namespace that the CRI keeps its images in.
const NAMESPACE: &str = "k8s.io";
/// How long it may take to serve.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to end.
const END_LIMIT: Duration = Duration::from_secs(20);
/// Pause between two looks.
const POLL: Duration = Duration::from_millis(20);
/// Where its shims' sockets and the network's records are, whatever its own folders.
const OUTSIDE: [&str; 2] = ["/run/containerd", "/var/lib/cni"];

/// A containerd that runs.
pub(in crate::bench::pods) struct Containerd {
    daemon: Child,
    cri: Cri,
    /// Sandboxes by the pod's number.
    sandboxes: Mutex<Vec<(u32, String)>>,
    run: String,
    network: node::Config,
    /// Folders outside of its own that it makes.
    made: Vec<&'static str>,
    scratch: Scratch,
}

impl Containerd {
    /// Starts one, and gives it its images.
    pub(super) async fn prepare(ambient: &Ambient) -> Result<Self> {
        let containerd = program("containerd", "containerd")?;
        let ctr = program("ctr", "containerd")?;
        program("containerd-shim-runc-v2", "containerd")?;
        program("runc", "runc")?;
        let plugins = PLUGINS.iter().find(|folder| NEEDED.iter().all(|name| Path::new(folder).join(name).is_file()));
        let plugins =
            plugins.context("CNI's plugins are not installed (Debian's package containernetworking-plugins)")?;
        let scratch = scratch(ambient)?;
        let folder = scratch.0.clone();
        let network = node::Config::choose(&folder.join("network"), &node::Wishes::default())?;
        write_config(&folder, plugins, &network)?;
        let made = OUTSIDE.into_iter().filter(|place| !Path::new(place).exists()).collect();
        let log = fs::File::create(folder.join("log")).context("containerd's log cannot be made")?;
        let mut command = Command::new(containerd);
        command.arg("--config").arg(folder.join("config.toml")).process_group(0).stdin(Stdio::null());
        let daemon = command.stdout(Stdio::null()).stderr(log).spawn().context("containerd cannot be started")?;
        let mut half = Half { daemon: Some(daemon) };
        let cri = tokio::time::timeout(READY_LIMIT, connect(&folder)).await;
        let cri = cri.with_context(|| format!("containerd does not serve: {}", last_words(&folder)))?;
        say::note("containerd is given its images");
        root::write_images(&folder.join("images.tar"))?;
        let (socket, archive) = (folder.join("c.sock"), folder.join("images.tar"));
        let [socket, archive] = [&socket, &archive].map(|path| path.to_string_lossy().into_owned());
        run(&ctr, &["--address", &socket, "--namespace", NAMESPACE, "images", "import", &archive], "").await?;
        let ready = async {
            // The CRI hears of imported images a moment later.
            while !(cri.is_ready().await? && cri.has_image(SERVER_IMAGE).await? && cri.has_image(PAUSE_IMAGE).await?) {
                tokio::time::sleep(POLL).await;
            }
            Ok::<(), anyhow::Error>(())
        };
        let ready = tokio::time::timeout(READY_LIMIT, ready).await;
        ready.with_context(|| format!("containerd's CRI is not ready: {}", last_words(&folder)))??;
        let daemon = half.daemon.take().context("containerd is gone")?;
        let run = format!("sfdb-{}", ambient.suffix(5));
        Ok(Self { daemon, cri, sandboxes: Mutex::default(), run, network, made, scratch })
    }

    fn name(&self, n: u32) -> String {
        format!("{}-{n}", self.run)
    }

    /// The control group that all pods' are made below.
    fn group(&self) -> String {
        format!("/{}", self.run)
    }

    /// Starts a pod.
    pub(super) async fn start(&self, n: u32, ambient: &Ambient) -> Result<Laps> {
        let (name, group) = (self.name(n), self.group());
        let mut clock = Clock::start(ambient);
        let folder = self.scratch.0.join("pods").join(&name);
        let data = folder.join("data");
        fs::create_dir_all(&data).with_context(|| format!("{} cannot be made", data.display()))?;
        let pod = Pod { name: &name, cgroup_parent: &group, logs: &folder };
        let sandbox = self.cri.run_sandbox(&pod).await?;
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner).push((n, sandbox.clone()));
        let address = self.cri.address(&sandbox).await?;
        let address: Ipv4Addr = address.parse().with_context(|| format!("{address:?} is not an address"))?;
        clock.lap("RunPodSandbox: sandbox and network");
        let container = self.cri.create(&sandbox, &pod, SERVER_IMAGE, ("/data", &data)).await?;
        clock.lap("CreateContainer");
        self.cri.start(&container).await?;
        clock.lap("StartContainer");
        until_it_answers(address).await?;
        clock.lap("first answer");
        Ok(clock.laps)
    }

    /// Removes a pod.
    pub(super) async fn remove(&self, n: u32) -> Result<()> {
        let sandbox = {
            let mut sandboxes = self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner);
            let at = sandboxes.iter().position(|(number, _)| *number == n);
            at.map(|at| sandboxes.swap_remove(at).1)
        };
        match sandbox {
            Some(sandbox) => self.cri.remove_sandbox(&sandbox).await,
            None => Ok(()),
        }
    }

    /// What idle pods take here.
    pub(super) async fn idle(&self, args: &cli::BenchPods, report: &mut Report, ambient: &Ambient) -> Result<()> {
        let mut numbers: Vec<u32> = args.idle.iter().copied().filter(|pods| *pods > 0).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut have = 0;
        for pods in numbers {
            say::note(format_args!("{NAME}: {pods} idle pods for {} seconds", args.idle_window.as_secs()));
            try_join_all((have..pods).map(|n| self.start(n, ambient))).await?;
            have = pods;
            report.idle.push(idle::measure(NAME, pods, args.idle_window, ambient, || self.processes()).await?);
        }
        let removed = join_all((0..have).map(|n| self.remove(n))).await;
        removed.into_iter().collect()
    }

    /// containerd itself, and the shim of each sandbox, which names its socket.
    fn processes(&self) -> Result<Processes> {
        let mut found = Processes { daemon: vec![self.daemon.id()], ..Processes::default() };
        let socket = self.scratch.0.join("c.sock");
        for (pid, words) in idle::command_lines()? {
            let is_shim = words.first().is_some_and(|program| program.contains("containerd-shim"));
            if is_shim && words.iter().any(|word| Path::new(word) == socket) {
                let sandbox = words.iter().skip_while(|word| *word != "-id").nth(1).cloned().unwrap_or_default();
                found.guards.entry(sandbox).or_default().push(pid);
            }
        }
        Ok(found)
    }

    /// Removes everything.
    pub(super) async fn clean_up(mut self) -> Result<()> {
        // Also those that were under way when the measurement was broken off.
        let sandboxes = self.cri.sandboxes().await.unwrap_or_default();
        let removed = join_all(sandboxes.iter().map(|sandbox| self.cri.remove_sandbox(sandbox))).await;
        kill_process(Pid::from_child(&self.daemon), Signal::TERM).context("containerd cannot be stopped")?;
        let ended = async {
            while self.daemon.try_wait()?.is_none() {
                tokio::time::sleep(POLL).await;
            }
            Ok::<(), std::io::Error>(())
        };
        if tokio::time::timeout(END_LIMIT, ended).await.is_err() {
            let _ = self.daemon.kill();
            let _ = self.daemon.wait();
        }
        unmount_below(&self.scratch.0);
        node::network::remove_bridge(&self.network).await.context("the bridge cannot be removed")?;
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            // Empty by now, where it is there at all.
            let _ = fs::remove_dir(hierarchy.path().join(&self.run));
        }
        self.made.iter().for_each(|place| remove_empty(Path::new(place)));
        removed.into_iter().collect()
    }
}

/// A containerd whose making may fail yet: it is ended then.
struct Half {
    daemon: Option<Child>,
}

impl Drop for Half {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

async fn connect(folder: &Path) -> Cri {
    loop {
        if let Ok(cri) = Cri::connect(&folder.join("c.sock")).await
            && cri.is_ready().await.is_ok()
        {
            return cri;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Lets go of what a sandbox that could not be removed has mounted, so that its folder can be.
fn unmount_below(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let places =
        mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|place| Path::new(place).starts_with(folder));
    // What was mounted last lies on top.
    for place in places.collect::<Vec<_>>().into_iter().rev() {
        let _ = rustix::mount::unmount(place, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Removes a folder and those in it, as far as there are no files.
fn remove_empty(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}

/// The end of its log.
fn last_words(folder: &Path) -> String {
    let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
    log.lines()
        .rfind(|line| line.contains("level=error") || line.contains("level=fatal"))
        .unwrap_or_default()
        .to_owned()
}

/// Its configuration, and that of its pods' network. Where root may not lower scores of the OOM killer, neither may it.
fn write_config(folder: &Path, plugins: &str, network: &node::Config) -> Result<()> {
    let place = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let text = format!(
        r#"version = 2
root = {root:?}
state = {state:?}
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = {socket:?}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = {cni:?}
"#,
        root = place("root"),
        state = place("state"),
        socket = place("c.sock"),
        cni = place("cni"),
    );
    let list = json!({"cniVersion": "0.4.0", "name": "bench", "plugins": [{
        "type": "bridge", "bridge": network.bridge, "isGateway": true, "hairpinMode": true,
        "ipam": {"type": "host-local", "dataDir": place("addresses"),
            "ranges": [[{"subnet": network.pod_cidr.to_string()}]], "routes": [{"dst": "0.0.0.0/0"}]}}]});
    let written = fs::create_dir_all(folder.join("cni"))
        .and_then(|()| fs::write(folder.join("config.toml"), text))
        .and_then(|()| fs::write(folder.join("cni").join("10-bench.conflist"), list.to_string()));
    written.with_context(|| format!("{} cannot be written", folder.display()))
}
