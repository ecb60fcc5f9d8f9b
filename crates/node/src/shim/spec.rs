//! What a shim is told to run: written once by the agent as `spec.json` in the pod's folder.
//!
//! Everything is resolved: numeric users, absolute paths, expanded environment. Paths are the host's,
//! except where a field says that it is the container's.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::file::{self, FileError, Format};
use crate::container::seccomp::Profile;

/// File name of the specification in the pod's folder.
pub const SPEC_FILE: &str = "spec.json";

const FORMAT: Format = Format { magic: "statefuld-shim-spec", version: 1 };

/// A pod, as its shim sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShimSpec {
    /// Namespace of the pod object; only for messages and environment.
    pub namespace: String,
    /// Name of the pod object.
    pub name: String,
    /// Uid of the pod object.
    pub uid: String,
    /// Host name inside the pod.
    pub hostname: String,
    /// NIS domain name inside the pod; None leaves the kernel's default.
    #[serde(default)]
    pub domainname: Option<String>,
    /// Fencing epoch, given to containers as `STATEFULD_EPOCH`.
    pub epoch: u64,
    /// Added to a container's restart count in this sandbox to give its `STATEFULD_INCARNATION`.
    pub incarnation_base: u64,
    /// When an ended container is started again.
    pub restart_policy: RestartPolicy,
    /// How long to wait between restarts.
    #[serde(default)]
    pub back_off: BackOff,
    /// Grace period when nobody names one (SIGTERM to the shim), milliseconds.
    pub grace_ms: u64,
    /// Where container output goes.
    pub log: LogSpec,
    /// Cgroup of the pod, relative to each hierarchy's mount, e.g. `statefuld-1a2b/pod-<uid>`.
    pub cgroup: String,
    /// Limits of the pod as a whole.
    #[serde(default)]
    pub limits: Limits,
    /// File bound over `/etc/hosts`.
    #[serde(default)]
    pub hosts_file: Option<PathBuf>,
    /// File bound over `/etc/resolv.conf`.
    #[serde(default)]
    pub resolv_conf: Option<PathBuf>,
    /// Share the machine's network instead of an own network namespace.
    #[serde(default)]
    pub host_network: bool,
    /// Which other namespaces are shared with the machine or within the pod.
    #[serde(default)]
    pub sharing: Sharing,
    /// Who of the machine's users and groups stand for the pod's own; none where the pod's are the machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<UserRange>,
    /// Folder that is every container's `/dev/shm`; each has one of its own where there is none.
    #[serde(default)]
    pub shared_memory: Option<PathBuf>,
    /// Kernel settings of the pod's namespaces, as names with dots and values.
    #[serde(default)]
    pub sysctls: Vec<(String, String)>,
    /// Settings of [`Root::Host`].
    #[serde(default)]
    pub host_root: HostRoot,
    /// In order of start: init containers first.
    pub containers: Vec<ContainerSpec>,
}

impl ShimSpec {
    /// Writes `spec.json` in the pod's folder, atomically and durably.
    pub fn write(&self, pod_dir: &Path) -> Result<(), FileError> {
        file::write(&pod_dir.join(SPEC_FILE), FORMAT, self)
    }

    /// Reads `spec.json` of the pod's folder.
    pub fn read(pod_dir: &Path) -> Result<Self, FileError> {
        file::read(&pod_dir.join(SPEC_FILE), FORMAT)
    }
}

/// Users, and groups of the same numbers, of the machine that stand for a pod's own 0 to `count` - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UserRange {
    /// The machine's user who is the pod's root.
    pub first: u32,
    /// How many there are.
    pub count: u32,
}

impl UserRange {
    /// Who a user or group of the pod is on the machine; none where the pod has no such.
    pub fn on_machine(&self, id: u32) -> Option<u32> {
        if id < self.count { self.first.checked_add(id) } else { None }
    }
}

/// Which namespaces are shared with the machine or within the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sharing {
    /// Containers see the machine's processes.
    #[serde(default)]
    pub host_pid: bool,
    /// Containers have the machine's message queues, semaphores and shared memory.
    #[serde(default)]
    pub host_ipc: bool,
    /// Containers see each other's processes.
    #[serde(default)]
    pub pod_pid: bool,
}

/// One container of the pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerSpec {
    /// Name, unique in the pod; also names its log folder and cgroup.
    pub name: String,
    /// When it is started and what its end means.
    #[serde(default)]
    pub role: Role,
    /// What it sees as `/`.
    pub root: Root,
    /// Program and arguments; never empty. A program without a slash is looked up in the container's `PATH`.
    pub argv: Vec<String>,
    /// Environment. `PATH`, `HOME`, `HOSTNAME`, `STATEFULD_EPOCH` and `STATEFULD_INCARNATION` are added where absent
    /// (the last two always).
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Working directory in the container; empty means `/`.
    #[serde(default)]
    pub cwd: String,
    /// Volumes and files, mounted in this order on top of the root.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Whom it runs as.
    #[serde(default)]
    pub user: User,
    /// Changes to the default capability set.
    #[serde(default)]
    pub capabilities: Capabilities,
    /// All capabilities of the bounding set, nothing masked, the machine's devices.
    #[serde(default)]
    pub privileged: bool,
    /// Which system calls it may make.
    #[serde(default)]
    pub seccomp: Seccomp,
    /// Nothing of `/proc` is masked or read-only (procMount: Unmasked).
    #[serde(default)]
    pub unmasked_proc: bool,
    /// Set `no_new_privs` (allowPrivilegeEscalation: false).
    #[serde(default)]
    pub no_new_privileges: bool,
    /// Nothing of the root is writable, volumes excepted.
    #[serde(default)]
    pub read_only_root: bool,
    /// Give it a terminal; its output then is one stream, logged as stdout.
    #[serde(default)]
    pub tty: bool,
    /// Keep its stdin open instead of `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
    /// Its stdin ends when the first client that was attached to it leaves.
    #[serde(default)]
    pub stdin_once: bool,
    /// The container whose processes it sees; only for [`Role::Ephemeral`]. None gives it a pid namespace of its own.
    #[serde(default)]
    pub target: Option<String>,
    /// Limits of this container.
    #[serde(default)]
    pub limits: Limits,
    /// Wanted `oom_score_adj`; dropped where the machine does not permit it.
    #[serde(default)]
    pub oom_score_adj: Option<i32>,
    /// Run as soon as the program was executed. Until it has ended the container does not count as running, and what
    /// comes after it waits; where it fails, the container is ended.
    #[serde(default)]
    pub post_start: Option<Hook>,
    /// Run before the stop signal, inside the grace period.
    #[serde(default)]
    pub pre_stop: Option<Hook>,
    /// What comes after it waits until a client says that it has started (its startup probe succeeded); only for
    /// [`Role::Sidecar`].
    #[serde(default)]
    pub awaits_startup: bool,
    /// Where it leaves its last words.
    #[serde(default)]
    pub last_words: Option<LastWords>,
    /// Before which of its starts the agent is asked what it is to be.
    #[serde(default)]
    pub asks: Asks,
    /// Its own restart policy, in place of the pod's.
    #[serde(default)]
    pub restart_policy: Option<RestartPolicy>,
    /// Exit codes that are followed by another start, whatever the policy.
    #[serde(default)]
    pub restart_on: Vec<ExitCodes>,
    /// Signal that asks it to end; default SIGTERM (15).
    #[serde(default = "sigterm")]
    pub stop_signal: i32,
    /// Restart count to start from (of the pod's earlier sandboxes); log files are named by it.
    #[serde(default)]
    pub restart_count_base: u32,
}

fn sigterm() -> i32 {
    15
}

/// Before which starts of a container the agent is asked for its specification, which may be another by then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Asks {
    /// It stays what it is.
    #[default]
    Never,
    /// When it is started again: its image may be another. Without an agent it starts as it was.
    Again,
    /// At every start: its environment is not known before. Without an agent it waits the first time, and then starts as it
    /// was.
    Always,
}

/// Where a container leaves the message of its termination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastWords {
    /// Absolute path in the container; an empty file is mounted there at each start.
    pub path: PathBuf,
    /// Take the end of its log where it failed and left nothing there.
    #[serde(default)]
    pub or_log: bool,
}

/// A set of exit codes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExitCodes {
    /// All others are meant.
    #[serde(default)]
    pub not: bool,
    /// The codes.
    pub codes: Vec<i32>,
}

impl ExitCodes {
    /// Whether this code is one of them.
    pub fn contains(&self, code: i32) -> bool {
        self.codes.contains(&code) != self.not
    }
}

/// When a container is started and what its end means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Runs to completion before the next one starts.
    Init,
    /// Restartable init container: started in order with the init containers, always restarted, ended last.
    Sidecar,
    /// Started together with the others once all init containers are done.
    #[default]
    Main,
    /// Added while the pod runs: started at once, never restarted, and nobody waits for it.
    Ephemeral,
}

/// What a container sees as `/`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
#[non_exhaustive]
pub enum Root {
    /// The machine's own root: programs read-only, `/etc`, `/var`, `/srv` as private overlays.
    Host,
    /// The built-in image: nothing but our binary as `/statefuld`, read-only.
    Sample,
    /// An image's layers under an overlay that takes the writes of one start of the container.
    Image {
        /// Folders with the layers, the lowest first.
        layers: Vec<PathBuf>,
        /// Folders that the image wants to write to, also where the root is read-only.
        #[serde(default)]
        volumes: Vec<PathBuf>,
    },
}

/// A mount on top of the root.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Absolute path in the container; made where missing.
    pub target: PathBuf,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
    /// Refuse writes to what is mounted below it, too.
    #[serde(default)]
    pub recursive_read_only: bool,
    /// Whether later mounts are seen on the other side.
    #[serde(default)]
    pub propagation: Propagation,
    /// What is mounted.
    pub source: Source,
}

/// Whether mounts that are made below a bind later are seen on the other side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Propagation {
    /// Nowhere.
    #[default]
    None,
    /// The machine's in the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Source {
    /// A folder or file of the machine, with what is mounted below it.
    Bind {
        /// Path on the machine.
        path: PathBuf,
        /// What of it is meant, resolved when the container starts: links in it cannot lead out of `path`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sub: Option<PathBuf>,
    },
    /// An image's content, read-only, for a pod with users of its own: to them it is stacked where it is mounted.
    Layers {
        /// Folders with the layers, the lowest first.
        layers: Vec<PathBuf>,
        /// What of it is meant; links in it cannot lead out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sub: Option<PathBuf>,
    },
    /// An empty memory file system, private to this container.
    Tmpfs {
        /// Size limit in bytes; None takes the kernel's default (half of the memory).
        #[serde(default)]
        size_bytes: Option<u64>,
        /// Permission bits; None means 1777.
        #[serde(default)]
        mode: Option<u32>,
    },
}

/// Whom a container runs as.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// User id.
    #[serde(default)]
    pub uid: u32,
    /// Group id.
    #[serde(default)]
    pub gid: u32,
    /// Supplementary groups (fsGroup among them).
    #[serde(default)]
    pub groups: Vec<u32>,
}

/// Changes to the default capability set. Names as Kubernetes writes them (`NET_ADMIN`, `ALL`), `CAP_` optional.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// Added.
    #[serde(default)]
    pub add: Vec<String>,
    /// Dropped; applied before `add`, as a container runtime does with `drop: [ALL]`.
    #[serde(default)]
    pub drop: Vec<String>,
}

/// Which system calls a container may make.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Seccomp {
    /// What every container may do, and what its capabilities bring along.
    #[default]
    Default,
    /// All that the kernel has.
    Unconfined,
    /// As a profile says.
    Profile {
        /// The profile.
        profile: Box<Profile>,
    },
}

/// Resource limits of a cgroup. None and absent controllers mean unlimited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Memory limit, bytes.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// CPU time per period, microseconds.
    #[serde(default)]
    pub cpu_quota_us: Option<u64>,
    /// Length of the period, microseconds; default 100,000.
    #[serde(default)]
    pub cpu_period_us: Option<u64>,
    /// CPU weight as cgroup v1 shares (1024 = one CPU requested).
    #[serde(default)]
    pub cpu_shares: Option<u64>,
    /// Number of processes and threads.
    #[serde(default)]
    pub pids: Option<u64>,
}

/// Something done on behalf of a container at a point of its life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
#[non_exhaustive]
pub enum Hook {
    /// A program in the container.
    Exec {
        /// Program and arguments.
        argv: Vec<String>,
    },
    /// Waiting.
    Sleep {
        /// How long, milliseconds.
        ms: u64,
    },
    /// An HTTP request, made from the machine's network; any answer is a success.
    Http(HttpHook),
}

/// An HTTP GET of a hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpHook {
    /// Whom to ask.
    pub address: SocketAddr,
    /// Over TLS, with whatever certificate.
    #[serde(default)]
    pub tls: bool,
    /// Path and query.
    pub path: String,
    /// Headers besides `Host`, `User-Agent`, `Accept` and `Connection`, which are added where absent.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
}

/// When an ended container is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// Whatever its exit code.
    Always,
    /// Unless it exited with 0.
    OnFailure,
    /// Never.
    Never,
}

/// How long to wait between restarts: at once, then `initial`, doubling up to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackOff {
    /// Wait before the second restart, milliseconds.
    pub initial_ms: u64,
    /// Longest wait, milliseconds.
    pub max_ms: u64,
    /// A container that ran this long starts afresh, milliseconds.
    pub reset_after_ms: u64,
}

impl Default for BackOff {
    fn default() -> Self {
        Self { initial_ms: 10_000, max_ms: 300_000, reset_after_ms: 600_000 }
    }
}

impl BackOff {
    /// The wait before restart number `restarts` (0 is the first one since the last reset).
    pub fn delay(&self, restarts: u32) -> Duration {
        let Some(doublings) = restarts.checked_sub(1) else { return Duration::ZERO };
        let factor = 1u64.checked_shl(doublings.min(63)).unwrap_or(u64::MAX);
        Duration::from_millis(self.initial_ms.saturating_mul(factor).min(self.max_ms))
    }
}

/// Where container output goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogSpec {
    /// Folder of the pod's logs; output is in `<dir>/<container>/<restart count>.log`.
    pub dir: PathBuf,
    /// A file that grew beyond this is rotated, bytes.
    pub max_bytes: u64,
    /// Files kept per container start, the current one included.
    pub max_files: u32,
}

impl LogSpec {
    /// Kubernetes' limits: 10 MiB, 5 files.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, max_bytes: 10 * 1024 * 1024, max_files: 5 }
    }
}

/// Settings of [`Root::Host`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostRoot {
    /// Folders and files of the machine that containers must not see, the data directory first of all.
    /// A fixed list (host keys, shadow files, other runtimes' state) is always masked.
    pub masked: Vec<PathBuf>,
    /// Folder for the overlays' upper layers; one folder per container is made in it.
    pub upper_dir: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_named_or_all_others() {
        let named = ExitCodes { not: false, codes: vec![3, 42] };
        let others = ExitCodes { not: true, ..named.clone() };
        assert_eq!([3, 0].map(|c| named.contains(c)), [true, false]);
        assert_eq!([3, 0].map(|c| others.contains(c)), [false, true]);
    }

    #[test]
    fn the_first_restart_is_at_once_and_waits_double_up_to_five_minutes() {
        let seconds: Vec<u64> = (0..8).map(|n| BackOff::default().delay(n).as_secs()).collect();
        assert_eq!(seconds, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(BackOff::default().delay(u32::MAX).as_secs(), 300);
    }
}
