//! Stopping a node's pods while their objects stay: `down`, and the shutdown of a machine.
//!
//! Works from the pods' folders alone, with or without an agent in this process. While pods are being stopped
//! a mark in the node's folder keeps a running agent from bringing any up again; a mark in each pod's folder
//! says that its end was not its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ambient::Ambient;
use futures::future::join_all;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::net::UnixStream;

use super::follow::Patience;
use super::names;
use crate::config::Config;
use crate::network;
use crate::shim::client::{Changes, ClientError};
use crate::shim::protocol::{ProtocolError, SOCKET_FILE};
use crate::shim::spec::ShimSpec;
use crate::shim::state::Phase;
use crate::shim::{self, Shim};
use crate::volume;

/// In a pod's folder: it was stopped with the node.
pub(super) const MARK: &str = "stopped-with-node";
/// In the node's folder: its pods are being stopped.
const STOPPING: &str = "stopping";
/// In the node's folder: held shared while a pod is launched, and once exclusively after the mark was made.
const LAUNCHING: &str = "launching.lock";
/// Beyond the grace period, how long a shim may take.
const KILL_MARGIN: Duration = Duration::from_secs(15);
/// How long a shim that can neither be asked nor be taken for dead is tried.
const REACH_LIMIT: Duration = Duration::from_secs(60);

/// Stops every pod of the node, each within its grace period (or `limit`, where that is shorter); objects and data stay.
///
/// Pods of one set stop one after the other from the top ordinal; sets side by side. Afterwards name server and
/// bridge are taken away. What cannot be stopped does not keep the others from it; the first error is answered. May be dropped while it runs: pods that were not reached go on.
pub async fn stop_pods(config: &Config, limit: Option<Duration>, ambient: &Ambient) -> Result<(), Error> {
    stop_nodes(std::slice::from_ref(config), limit, ambient).await
}

/// As [`stop_pods`], for several nodes of one machine: a set whose pods are on different nodes stops from the top ordinal
/// all the same.
pub async fn stop_nodes(configs: &[Config], limit: Option<Duration>, ambient: &Ambient) -> Result<(), Error> {
    let mut marks = Vec::new();
    for config in configs {
        let mark = config.node_dir().join(STOPPING);
        std::fs::write(&mark, "").map_err(|source| Error::Mark { path: mark.clone(), source })?;
        // Dropped or done: a later start may bring pods up again.
        marks.push(Stopping { mark });
        wait_for_launches(config).await?;
    }
    let (sets, unknown) = by_set(configs);
    let stopped = join_all(sets.into_values().map(|pods| async move {
        let mut first_error = Ok(());
        for pod in pods {
            let result = stop_one(&pod, limit, ambient).await;
            if let Err(error) = &result {
                tracing::error!(%error, "going on with the others");
            }
            first_error = first_error.and(result);
        }
        first_error
    }))
    .await;
    for config in configs {
        names::stop(config).await;
    }
    let all: Result<(), Error> = stopped.into_iter().collect();
    all?;
    if let Some(error) = unknown.into_iter().next() {
        return Err(error);
    }
    for config in configs {
        network::remove_bridge(config).await?;
    }
    marks.into_iter().for_each(Stopping::keep);
    Ok(())
}

/// Names of the node's pods that run, or of which it cannot be said: `namespace/name`.
pub async fn running_pods(config: &Config, ambient: &Ambient) -> Result<Vec<String>, Error> {
    let (sets, unknown) = by_set(std::slice::from_ref(config));
    if let Some(error) = unknown.into_iter().next() {
        return Err(error);
    }
    let mut running = Vec::new();
    for ((namespace, _), pods) in sets {
        for pod in pods {
            if !matches!(reach(&pod, ambient).await, Ok(Reached::Dead)) {
                running.push(format!("{namespace}/{}", pod.name));
            }
        }
    }
    Ok(running)
}

/// The agent's last act: where the node was stopped, what the agent may have started while it was (a name server, a
/// bridge) goes, too.
pub(super) async fn sweep(config: &Config) {
    if !is_stopping(config) {
        return;
    }
    names::stop(config).await;
    if let Err(error) = network::remove_bridge(config).await {
        tracing::warn!(bridge = %config.bridge, %error, "the bridge was not taken away");
    }
}

/// Whether the node's pods are being stopped.
pub(super) fn is_stopping(config: &Config) -> bool {
    config.node_dir().join(STOPPING).exists()
}

/// The right to launch a pod; stopping waits for it to be given back.
#[derive(Debug)]
pub(super) struct Permit {
    _lock: File,
}

/// Permission to launch a pod; none while the node's pods are being stopped.
pub(super) fn launch_permit(config: &Config) -> Option<Permit> {
    let lock = open_lock(config).ok()?;
    flock(&lock, FlockOperation::NonBlockingLockShared).ok()?;
    (!is_stopping(config)).then_some(Permit { _lock: lock })
}

fn open_lock(config: &Config) -> std::io::Result<File> {
    File::options().create(true).append(true).open(config.node_dir().join(LAUNCHING))
}

/// Launches that had their permission before the mark was made come to their end.
async fn wait_for_launches(config: &Config) -> Result<(), Error> {
    let path = config.node_dir().join(LAUNCHING);
    let failed = |source| Error::Mark { path: path.clone(), source };
    let lock = open_lock(config).map_err(failed)?;
    let waiting = tokio::task::spawn_blocking(move || flock(&lock, FlockOperation::LockExclusive));
    waiting.await.expect("locking does not panic").map_err(|e| failed(e.into()))
}

/// Lets pods be started again.
pub(super) fn clear(config: &Config) {
    let _ = std::fs::remove_file(config.node_dir().join(STOPPING));
}

/// The mark goes when stopping is given up. When it was carried through it stays, so that an agent that is still there
/// does not bring the pods back; the next agent removes it.
struct Stopping {
    mark: PathBuf,
}

impl Stopping {
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Stopping {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.mark);
    }
}

/// A pod to stop.
struct Stoppable {
    dir: PathBuf,
    name: String,
    ordinal: u64,
    grace: Duration,
    cgroup: String,
}

/// Pods by namespace and set.
type Sets = BTreeMap<(String, String), Vec<Stoppable>>;

/// Pods by set, the top ordinal first; and why there may be more than these.
fn by_set(configs: &[Config]) -> (Sets, Vec<Error>) {
    let (mut sets, mut unknown) = (Sets::new(), Vec::new());
    for config in configs {
        collect(config, &mut sets, &mut unknown);
    }
    for pods in sets.values_mut() {
        pods.sort_by_key(|p| std::cmp::Reverse(p.ordinal));
    }
    (sets, unknown)
}

/// The pods of one node.
fn collect(config: &Config, sets: &mut Sets, unknown: &mut Vec<Error>) {
    let pods = config.pods_dir();
    let entries = match std::fs::read_dir(&pods) {
        Ok(entries) => Some(entries),
        // No agent ever ran.
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => {
            unknown.push(Error::unknown(&pods, e));
            None
        }
    };
    for entry in entries.into_iter().flatten() {
        let dir = match entry {
            Ok(entry) => entry.path(),
            Err(e) => {
                unknown.push(Error::unknown(&pods, e));
                continue;
            }
        };
        let spec = match ShimSpec::read(&dir) {
            Ok(spec) => spec,
            // Without it no shim was ever started there.
            Err(e) if e.is_not_found() => continue,
            Err(e) => {
                unknown.push(Error::unknown(&dir, e));
                continue;
            }
        };
        let (set, ordinal) = split_ordinal(&spec.name);
        let key = (spec.namespace.clone(), set.to_owned());
        let grace = Duration::from_millis(spec.grace_ms);
        let pod = Stoppable { dir, name: spec.name.clone(), ordinal, grace, cgroup: spec.cgroup };
        sets.entry(key).or_default().push(pod);
    }
}

/// A pod's set and ordinal, by its name.
pub(super) fn split_ordinal(name: &str) -> (&str, u64) {
    let split = name.rsplit_once('-').and_then(|(set, ordinal)| Some((set, ordinal.parse().ok()?)));
    split.unwrap_or((name, 0))
}

/// What answers in a pod's folder.
enum Reached {
    Living(Shim),
    /// A shim of another version: it understands signals.
    Foreign(ProtocolError),
    Dead,
}

async fn stop_one(pod: &Stoppable, limit: Option<Duration>, ambient: &Ambient) -> Result<(), Error> {
    let failed = |why: String| Error::Pod { name: pod.name.clone(), dir: pod.dir.clone(), why };
    let grace = limit.map_or(pod.grace, |l| l.min(pod.grace));
    let reached = reach(pod, ambient).await.map_err(|e| failed(e.to_string()))?;
    if !matches!(reached, Reached::Dead) {
        std::fs::write(pod.dir.join(MARK), "").map_err(|e| failed(e.to_string()))?;
    }
    match reached {
        Reached::Living(shim) => end(pod, &shim, grace, ambient).await,
        Reached::Foreign(error) => {
            let signalled = terminate(pod, grace).await;
            signalled.map_err(|e| failed(format!("{error}, and it cannot be ended by a signal: {e}")))?;
        }
        Reached::Dead => {}
    }
    shim::cleanup(&pod.dir).await.map_err(|e| failed(e.to_string()))?;
    // As after a restart of the machine: memory is empty.
    let dir = pod.dir.clone();
    let unmounted = tokio::task::spawn_blocking(move || volume::unmount_pod_dir(&dir)).await;
    unmounted.expect("unmounting does not panic").map_err(|e| failed(e.to_string()))
}

/// Tells a living shim from a dead one. An error where it is neither for too long: what may live is not killed.
async fn reach(pod: &Stoppable, ambient: &Ambient) -> Result<Reached, ClientError> {
    let deadline = ambient.boottime() + REACH_LIMIT;
    let mut patience = Patience::default();
    loop {
        let error = match Shim::connect(&pod.dir).await {
            Ok(shim) => return Ok(Reached::Living(shim)),
            Err(ClientError::Protocol(error)) => return Ok(Reached::Foreign(error)),
            Err(error) => error,
        };
        if patience.is_dead(&error) {
            return Ok(Reached::Dead);
        }
        if ambient.boottime() > deadline {
            return Err(error);
        }
        tracing::warn!(pod = %pod.name, %error, "the shim cannot be asked; trying again");
        tokio::time::sleep(patience.pause()).await;
    }
}

/// Has a shim end its containers. Returns when they have ended, the shim is dead, or the time is over.
async fn end(pod: &Stoppable, shim: &Shim, grace: Duration, ambient: &Ambient) {
    let end = ambient.boottime() + grace;
    let mut patience = Patience::default();
    loop {
        let now = ambient.boottime();
        // Said again on every connection: a stop that has begun is only ever shortened.
        let asked = match shim.stop(end.saturating_sub(now)).await {
            Ok(()) => shim.subscribe().await,
            Err(error) => Err(error),
        };
        let left = (end + KILL_MARGIN).saturating_sub(ambient.boottime());
        match asked {
            Ok(changes) => match tokio::time::timeout(left, finished(changes)).await {
                Ok(true) => break,
                // The connection broke: ask again, or find the shim gone.
                Ok(false) if !left.is_zero() => {}
                Ok(false) | Err(_) => {
                    tracing::warn!(pod = %pod.name, "it did not end in time; killing what is left");
                    break;
                }
            },
            Err(error) if patience.is_dead(&error) || left.is_zero() => {
                tracing::warn!(pod = %pod.name, %error, "its shim is lost; killing what is left");
                break;
            }
            Err(error) => tracing::warn!(pod = %pod.name, %error, "the shim cannot be asked; trying again"),
        }
        tokio::time::sleep(patience.pause()).await;
    }
    let _ = shim.acknowledge().await;
}

/// Whether the pod finished; false where the connection broke first.
async fn finished(mut changes: Changes) -> bool {
    while let Ok(Some(state)) = changes.next().await {
        if state.phase == Phase::Finished {
            return true;
        }
    }
    false
}

/// SIGTERM for a shim that cannot be talked to: it ends its containers and then itself. Waits for that, for as long as
/// it may take.
async fn terminate(pod: &Stoppable, grace: Duration) -> std::io::Result<()> {
    let process = shim_process(pod).await?;
    pidfd_send_signal(&process, Signal::TERM)?;
    if !ends_within(process, grace + KILL_MARGIN).await? {
        tracing::warn!(pod = %pod.name, "it did not end in time; killing what is left");
    }
    Ok(())
}

/// Whether a process ends within the time.
pub(super) async fn ends_within(process: OwnedFd, limit: Duration) -> std::io::Result<bool> {
    let limit = Timespec::try_from(limit).map_err(std::io::Error::other)?;
    let wait = move || retry_on_intr(|| poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)));
    Ok(tokio::task::spawn_blocking(wait).await.expect("waiting does not panic")? != 0)
}

/// The process that listens in the pod's folder, where it is in the shim's own control group: then it is the shim.
async fn shim_process(pod: &Stoppable) -> std::io::Result<OwnedFd> {
    // Through a descriptor, because a socket's path may not be longer than 107 bytes.
    let dir = rustix::fs::open(&pod.dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let stream = UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET_FILE}", dir.as_raw_fd())).await?;
    let unknown = || std::io::Error::other("the process that listens there is not known");
    let pid = stream.peer_cred()?.pid().ok_or_else(unknown)?;
    // First the handle, then the question whose it is: the number may be another's a moment later, the handle not.
    let process = pidfd_open(Pid::from_raw(pid).ok_or_else(unknown)?, PidfdFlags::empty())?;
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let own = format!("/{}/shim", pod.cgroup);
    if groups.lines().any(|line| line.ends_with(&own)) {
        return Ok(process);
    }
    Err(std::io::Error::other(format!("process {pid}, which listens there, is not in the control group {own}")))
}

/// Why not everything was stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node's folder cannot be written. Check the disk.
    #[error("cannot write {}: {source}", path.display())]
    Mark {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Whether something runs there cannot be told. Look into the folder; stop its processes by hand, then remove it.
    #[error("{} cannot be read, so a pod of it may still run: {source}", dir.display())]
    Unknown {
        /// The folder of a pod, or of all pods.
        dir: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A pod could not be stopped or cleared away. Run it again.
    #[error("pod {name} in {} was not stopped: {why}", dir.display())]
    Pod {
        /// Its name.
        name: String,
        /// Its folder.
        dir: PathBuf,
        /// Why.
        why: String,
    },
    /// The bridge could not be taken away.
    #[error(transparent)]
    Network(#[from] network::Error),
}

impl Error {
    fn unknown(dir: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unknown { dir: dir.to_path_buf(), source: source.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixListener;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Child, Command};

    use serde_json::json;

    use super::*;
    use crate::Wishes;
    use crate::cgroup::{Layout, PodCgroup};
    use crate::shim::protocol::{Frame, Hello};

    /// Tells [`a_shim_of_another_version`] which pod it plays.
    const PLAYED: &str = "STATEFULD_TEST_POD";

    /// A node's folder and a pod in it.
    struct Node {
        _folder: tempfile::TempDir,
        config: Config,
        pod: PathBuf,
        spec: ShimSpec,
    }

    impl Drop for Node {
        fn drop(&mut self) {
            let _ = group(&self.spec).destroy();
            let claim = self.config.pod_cidr.to_string().replace('/', "-");
            let _ = std::fs::remove_file(Path::new("/run/statefuld/ranges").join(claim));
        }
    }

    fn node() -> Node {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = Config::choose(folder.path(), &Wishes::default()).expect("a choice");
        let pod = config.pod_dir("u");
        std::fs::create_dir_all(&pod).expect("a folder");
        let spec = json!({"namespace": "default", "name": "web-0", "uid": "u", "hostname": "web-0", "epoch": 1,
            "incarnationBase": 1, "restartPolicy": "Always", "graceMs": 20_000,
            "log": {"dir": folder.path().join("logs"), "maxBytes": 1000, "maxFiles": 1},
            "cgroup": format!("{}/pod-u", config.cgroup_root), "containers": []});
        let spec: ShimSpec = serde_json::from_value(spec).expect("a specification");
        spec.write(&pod).expect("written");
        Node { _folder: folder, config, pod, spec }
    }

    fn group(spec: &ShimSpec) -> PodCgroup {
        PodCgroup::new(&Layout::detect().expect("mounts"), &spec.cgroup).expect("a group")
    }

    /// Not a test by itself: what [`a_shim_of_another_version_gets_a_signal`] starts as a process of its own. Its first
    /// connection breaks; on all others it says that it is of another version.
    #[test]
    fn a_shim_of_another_version() {
        let Some(dir) = std::env::var_os(PLAYED).map(PathBuf::from) else { return };
        let spec = ShimSpec::read(&dir).expect("its specification");
        let shim = group(&spec).shim();
        shim.create().expect("its group");
        shim.add(0).expect("in its group");
        let listener = UnixListener::bind(dir.join("early")).expect("a socket");
        std::fs::rename(dir.join("early"), dir.join(SOCKET_FILE)).expect("in its place");
        let mut hello = Vec::new();
        Frame::json(&Hello { version: 99, oldest: 99, ..Hello::ours() }).encode(&mut hello);
        drop(listener.accept().expect("a connection"));
        let mut open = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().expect("a connection");
            let _ = stream.write_all(&hello);
            open.push(stream);
        }
    }

    /// Starts it, and waits until it listens.
    async fn play(pod: &Path) -> Child {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "agent::stop::tests::a_shim_of_another_version"]).env(PLAYED, pod);
        let child = command.stdout(std::process::Stdio::null()).spawn().expect("a process");
        let listens = async {
            while !pod.join(SOCKET_FILE).exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), listens).await.expect("it listens");
        child
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_shim_of_another_version_gets_a_signal() {
        let node = node();
        let mut shim = play(&node.pod).await;
        let stopped = stop_pods(&node.config, None, &Ambient::system()).await;
        let ended = shim.wait().expect("its end");
        stopped.expect("stopped");
        // A shim that is killed cannot end its containers in good order.
        assert_eq!(ended.signal(), Some(libc::SIGTERM), "{ended}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_is_not_provably_the_shim_is_left_alone() {
        let node = node();
        let listener = tokio::net::UnixListener::bind(node.pod.join(SOCKET_FILE)).expect("a socket");
        let mut hello = Vec::new();
        Frame::json(&Hello { version: 99, oldest: 99, ..Hello::ours() }).encode(&mut hello);
        let answering = tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.writable().await;
                let _ = stream.try_write(&hello);
                open.push(stream);
            }
        });
        let error = stop_pods(&node.config, None, &Ambient::system()).await.expect_err("not stopped");
        answering.abort();
        let text = error.to_string();
        assert!(text.contains("control group") && text.contains("pods/u"), "{text}");
    }

    #[tokio::test]
    async fn a_pod_that_cannot_be_read_is_an_error() {
        let node = node();
        std::fs::write(node.pod.join("spec.json"), "{").expect("written");
        let error = stop_pods(&node.config, None, &Ambient::system()).await.expect_err("one pod is not known");
        assert!(error.to_string().contains("pods/u"), "{error}");
        std::fs::remove_dir_all(node.config.pods_dir()).expect("removed");
        stop_pods(&node.config, None, &Ambient::system()).await.expect("there is nothing");
        std::fs::write(node.config.pods_dir(), "").expect("a file in place of the folder");
        let error = stop_pods(&node.config, None, &Ambient::system()).await.expect_err("no pod is known");
        assert!(error.to_string().contains("node/pods"), "{error}");
    }

    #[test]
    fn names_have_sets_and_ordinals() {
        assert_eq!(split_ordinal("web-10"), ("web", 10));
        assert_eq!(split_ordinal("my-web-0"), ("my-web", 0));
        assert_eq!(split_ordinal("lonely"), ("lonely", 0));
        assert_eq!(split_ordinal("web-a1"), ("web-a1", 0));
    }
}
