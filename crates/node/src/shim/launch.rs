//! Starting a shim, and cleaning up after one: the agent's side.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::exe::SealedExe;
use super::file::FileError;
use super::process::UP;
use super::spec::ShimSpec;
use crate::cgroup::{Layout, PodCgroup};
use crate::fault;

/// A shim that is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launched {
    /// Its process id; the pod's network namespace is `/proc/<pid>/ns/net`.
    pub pid: i32,
}

/// Starts the shim of a pod whose `spec.json` is written, and waits until its sandbox is up and its socket
/// answers. The shim is in a session and a cgroup of its own and no child of this process.
pub async fn launch(pod_dir: &Path, exe: &SealedExe) -> Result<Launched, LaunchError> {
    let (pod_dir, exe) = (pod_dir.to_owned(), exe.clone());
    tokio::task::spawn_blocking(move || launch_blocking(&pod_dir, &exe)).await.expect("launching does not panic")
}

/// [`launch`] for callers without a runtime.
pub fn launch_blocking(pod_dir: &Path, exe: &SealedExe) -> Result<Launched, LaunchError> {
    let spawn = |source| LaunchError::Spawn { pod_dir: pod_dir.to_owned(), source };
    // The first process only makes the shim and waits until it is up, so that the shim is nobody's child here.
    let mut command = Command::new(exe.path());
    command.arg0("shim").arg("shim").arg(pod_dir).env_clear().current_dir("/").stdin(Stdio::null());
    fault::pass_on(&mut command);
    let output = command.stderr(Stdio::null()).output().map_err(spawn)?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.strip_prefix(UP).and_then(|pid| pid.parse().ok()) {
        Some(pid) => Ok(Launched { pid }),
        None if text.is_empty() => {
            Err(LaunchError::Sandbox(format!("the shim ended without a word ({})", output.status)))
        }
        None => Err(LaunchError::Sandbox(text.into_owned())),
    }
}

/// Kills whatever is left of a pod, its shim included, and removes its cgroups. Returns when no process is left.
/// The pod's folder, with `state.json` and the overlays, stays. Calling it for a pod that never ran, or twice, is fine.
pub async fn cleanup(pod_dir: &Path) -> Result<(), CleanupError> {
    let pod_dir = pod_dir.to_owned();
    tokio::task::spawn_blocking(move || cleanup_blocking(&pod_dir)).await.expect("cleaning does not panic")
}

/// [`cleanup`] for callers without a runtime.
pub fn cleanup_blocking(pod_dir: &Path) -> Result<(), CleanupError> {
    let spec = match ShimSpec::read(pod_dir) {
        Err(error) if error.is_not_found() => return Ok(()),
        result => result?,
    };
    PodCgroup::new(&Layout::detect()?, &spec.cgroup)?.destroy()?;
    Ok(())
}

/// A shim could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The process could not be made; look at process limits and memory.
    #[error("the shim for {} cannot be started: {source}", pod_dir.display())]
    Spawn {
        /// The pod's folder.
        pod_dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The shim ran and could not set up the sandbox; it says why.
    #[error("{0}")]
    Sandbox(String),
}

/// What a pod left could not be removed; try again.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// Its specification, which names the cgroup, cannot be read.
    #[error(transparent)]
    Spec(#[from] FileError),
    /// Its cgroup cannot be emptied or removed.
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::CgroupError),
}
