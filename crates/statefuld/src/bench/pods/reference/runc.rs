//! runc, driven by hand: for each pod a network namespace with one end of a pair of interfaces, whose other end hangs on a
//! bridge; a bundle; and `runc run --detach`. The bridge is made as a node's of ours is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use ambient::Ambient;
use anyhow::{Context as _, Result, bail};
use node::network::Network;
use serde_json::{Value, json};
use tokio::process::Command;

use super::root::{self, SERVER};
use super::{COMMAND_LIMIT, Clock, Laps, program, run, until_it_answers};
use crate::bench::{Scratch, scratch};

/// How its figures are called.
pub(super) const NAME: &str = "runc";
/// Where `ip` keeps named network namespaces.
const NAMESPACES: &str = "/run/netns";
/// What a container may do, as containerd and Docker allow it.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// A bridge, a root, and what was started.
pub(in crate::bench::pods) struct Runc {
    runc: PathBuf,
    ip: PathBuf,
    /// Of the names of all that is made.
    run: String,
    config: node::Config,
    /// Addresses given so far: each start gets another one.
    given: AtomicU32,
    scratch: Scratch,
}

impl Runc {
    /// Makes the bridge and the root.
    pub(super) async fn prepare(ambient: &Ambient) -> Result<Self> {
        let (runc, ip) = (program("runc", "runc")?, program("ip", "iproute2")?);
        let scratch = scratch(ambient)?;
        root::lay_down(&scratch.0.join("root"))?;
        let config = node::Config::choose(&scratch.0.join("network"), &node::Wishes::default())?;
        Network::ensure(&config).await.context("the bridge cannot be made")?;
        let run = format!("sfdb-{}", ambient.suffix(5));
        Ok(Self { runc, ip, run, config, given: AtomicU32::new(0), scratch })
    }

    fn name(&self, n: u32) -> String {
        format!("{}-{n}", self.run)
    }

    fn state(&self) -> PathBuf {
        self.scratch.0.join("state")
    }

    /// Starts a pod.
    pub(super) async fn start(&self, n: u32, ambient: &Ambient) -> Result<Laps> {
        let name = self.name(n);
        // The first is the bridge's; the network's own and the last are nobody's.
        let room = u32::try_from(self.config.pod_cidr.size())? - 3;
        let address = self.config.pod_cidr.host(2 + self.given.fetch_add(1, Ordering::Relaxed) % room);
        let mut clock = Clock::start(ambient);
        let bundle = self.scratch.0.join("bundles").join(&name);
        let data = bundle.join("data");
        fs::create_dir_all(&data).with_context(|| format!("{} cannot be made", data.display()))?;
        let config = bundle_config(&name, &self.scratch.0.join("root"), &data);
        fs::write(bundle.join("config.json"), config.to_string()).context("the bundle cannot be written")?;
        clock.lap("bundle written");
        run(&self.ip, &["netns", "add", &name], "").await?;
        let (bridge, prefix) = (&self.config.bridge, self.config.pod_cidr.prefix);
        let outside =
            format!("link add {name} master {bridge} type veth peer name eth0 netns {name}\nlink set {name} up\n");
        run(&self.ip, &["-batch", "-"], &outside).await?;
        let inside = format!(
            "link set lo up\naddr add {address}/{prefix} dev eth0\nlink set eth0 up\nroute add default via {}\n",
            self.config.gateway
        );
        run(&self.ip, &["-n", &name, "-batch", "-"], &inside).await?;
        clock.lap("network by ip(8)");
        self.run_detached(&name, &bundle).await?;
        clock.lap("runc run");
        until_it_answers(address).await?;
        clock.lap("first answer");
        Ok(clock.laps)
    }

    /// A detached container keeps what runc's own output was: no pipe of ours, which would never end.
    async fn run_detached(&self, name: &str, bundle: &Path) -> Result<()> {
        let log = bundle.join("log");
        let mut command = Command::new(&self.runc);
        command.arg("--root").arg(self.state()).arg("--log").arg(&log).args(["run", "--detach", "--bundle"]);
        command.arg(bundle).arg(name).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.kill_on_drop(true).spawn().context("runc cannot be started")?;
        let ended = tokio::time::timeout(COMMAND_LIMIT, child.wait()).await.context("runc does not end")?;
        if !ended.context("runc cannot be waited for")?.success() {
            bail!("runc run: {}", fs::read_to_string(&log).unwrap_or_default().trim());
        }
        Ok(())
    }

    /// Removes a pod.
    pub(super) async fn remove(&self, n: u32) -> Result<()> {
        self.remove_named(&self.name(n)).await
    }

    async fn remove_named(&self, name: &str) -> Result<()> {
        let state = self.state();
        if state.join(name).exists() {
            let state = state.to_str().context("the folder for temporary files has a strange name")?;
            run(&self.runc, &["--root", state, "delete", "--force", name], "").await?;
        }
        if Path::new(NAMESPACES).join(name).exists() {
            run(&self.ip, &["netns", "delete", name], "").await?;
        }
        // The pair goes with its namespace, a moment later: not for the next one of the name.
        if Path::new("/sys/class/net").join(name).exists() {
            let gone = run(&self.ip, &["link", "delete", name], "").await;
            if gone.is_err() && Path::new("/sys/class/net").join(name).exists() {
                return gone.map(drop);
            }
        }
        Ok(())
    }

    /// Removes everything.
    pub(super) async fn clean_up(self) -> Result<()> {
        let prefix = format!("{}-", self.run);
        let mut left = BTreeSet::new();
        for folder in [self.state(), NAMESPACES.into(), "/sys/class/net".into()] {
            let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
            left.extend(names.filter_map(|name| name.into_string().ok()).filter(|name| name.starts_with(&prefix)));
        }
        let mut all = Ok(());
        for name in left {
            all = all.and(self.remove_named(&name).await);
        }
        node::network::remove_bridge(&self.config).await.context("the bridge cannot be removed")?;
        all
    }
}

/// What `runc spec` writes, with the server, its data and its network.
fn bundle_config(name: &str, root: &Path, data: &Path) -> Value {
    let mount = |to: &str, kind: &str, options: &[&str]| json!({"destination": to, "type": kind, "source": kind, "options": options});
    let capabilities = json!(CAPABILITIES);
    json!({
        "ociVersion": "1.0.2",
        "hostname": name,
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": SERVER, "cwd": "/", "env": ["PATH=/"], "noNewPrivileges": false,
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        },
        "root": {"path": root, "readonly": true},
        "mounts": [
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            {"destination": "/data", "type": "bind", "source": data, "options": ["rbind", "rw"]},
        ],
        "linux": {
            // At the top, so that it goes whole with its container.
            "cgroupsPath": format!("/{name}"),
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "network", "path": Path::new(NAMESPACES).join(name)},
            ],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
