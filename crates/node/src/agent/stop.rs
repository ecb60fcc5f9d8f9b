//! Stopping a node's pods while their objects stay: `down`, and the shutdown of a machine.
//!
//! Works from the pods' folders alone, with or without an agent in this process. While pods are being stopped
//! a mark in the node's folder keeps a running agent from bringing any up again; a mark in each pod's folder
//! says that its end was not its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use ambient::Ambient;
use futures::future::join_all;
use rustix::fs::{FlockOperation, flock};

use super::names;
use crate::config::Config;
use crate::network;
use crate::shim::spec::ShimSpec;
use crate::shim::state::Phase;
use crate::shim::{self, Shim};

/// In a pod's folder: it was stopped with the node.
pub(super) const MARK: &str = "stopped-with-node";
/// In the node's folder: its pods are being stopped.
const STOPPING: &str = "stopping";
/// In the node's folder: held shared while a pod is launched, and once exclusively after the mark was made.
const LAUNCHING: &str = "launching.lock";
/// Beyond the grace period, how long a shim may take.
const KILL_MARGIN: Duration = Duration::from_secs(15);

/// Stops every pod of the node, each within its grace period (or `limit`, where that is shorter); objects and data stay.
///
/// Pods of one set stop one after the other from the top ordinal; sets side by side. Afterwards name server and
/// bridge are taken away. May be dropped while it runs: pods that were not reached go on.
pub async fn stop_pods(config: &Config, limit: Option<Duration>, ambient: &Ambient) -> Result<(), Error> {
    let mark = config.node_dir().join(STOPPING);
    std::fs::write(&mark, "").map_err(|source| Error::Mark { path: mark.clone(), source })?;
    // Dropped or done: a later start may bring pods up again.
    let guard = Stopping { mark };
    wait_for_launches(config).await?;
    let sets = by_set(config);
    let stopped = join_all(sets.into_values().map(|pods| async move {
        let mut first_error = Ok(());
        for pod in pods {
            let result = stop_one(&pod, limit, ambient).await;
            first_error = first_error.and(result);
        }
        first_error
    }))
    .await;
    names::stop(config).await;
    let all: Result<(), Error> = stopped.into_iter().collect();
    all?;
    if !network::remove_bridge(config).await? {
        tracing::warn!(bridge = %config.bridge, "something still hangs on the bridge; it stays");
    }
    guard.keep();
    Ok(())
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
}

/// Pods by set, the top ordinal first.
fn by_set(config: &Config) -> BTreeMap<(String, String), Vec<Stoppable>> {
    let mut sets: BTreeMap<_, Vec<Stoppable>> = BTreeMap::new();
    for entry in std::fs::read_dir(config.pods_dir()).into_iter().flatten().flatten() {
        let dir = entry.path();
        let Ok(spec) = ShimSpec::read(&dir) else { continue };
        let (set, ordinal) = split_ordinal(&spec.name);
        let key = (spec.namespace.clone(), set.to_owned());
        let grace = Duration::from_millis(spec.grace_ms);
        sets.entry(key).or_default().push(Stoppable { dir, name: spec.name.clone(), ordinal, grace });
    }
    for pods in sets.values_mut() {
        pods.sort_by_key(|p| std::cmp::Reverse(p.ordinal));
    }
    sets
}

/// A pod's set and ordinal, by its name.
pub(super) fn split_ordinal(name: &str) -> (&str, u64) {
    let split = name.rsplit_once('-').and_then(|(set, ordinal)| Some((set, ordinal.parse().ok()?)));
    split.unwrap_or((name, 0))
}

async fn stop_one(pod: &Stoppable, limit: Option<Duration>, ambient: &Ambient) -> Result<(), Error> {
    let failed = |why: String| Error::Pod { name: pod.name.clone(), why };
    let grace = limit.map_or(pod.grace, |l| l.min(pod.grace));
    if let Ok(shim) = Shim::connect(&pod.dir).await {
        std::fs::write(pod.dir.join(MARK), "").map_err(|e| failed(e.to_string()))?;
        shim.stop(grace).await.map_err(|e| failed(e.to_string()))?;
        let deadline = ambient.boottime() + grace + KILL_MARGIN;
        let left = || deadline.saturating_sub(ambient.boottime());
        while let Ok(mut changes) = shim.subscribe().await {
            let finished = async {
                while let Ok(Some(state)) = changes.next().await {
                    if state.phase == Phase::Finished {
                        return true;
                    }
                }
                false
            };
            match tokio::time::timeout(left(), finished).await {
                Ok(true) => break,
                // The connection broke: ask again, or find the shim gone.
                Ok(false) => {}
                Err(_) => {
                    tracing::warn!(pod = %pod.name, "it did not end in time; killing what is left");
                    break;
                }
            }
        }
        let _ = shim.acknowledge().await;
    }
    shim::cleanup(&pod.dir).await.map_err(|e| failed(e.to_string()))
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
    /// A pod could not be stopped or cleared away. Run it again.
    #[error("pod {name} was not stopped: {why}")]
    Pod {
        /// Its name.
        name: String,
        /// Why.
        why: String,
    },
    /// The bridge could not be taken away.
    #[error(transparent)]
    Network(#[from] network::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_sets_and_ordinals() {
        assert_eq!(split_ordinal("web-10"), ("web", 10));
        assert_eq!(split_ordinal("my-web-0"), ("my-web", 0));
        assert_eq!(split_ordinal("lonely"), ("lonely", 0));
        assert_eq!(split_ordinal("web-a1"), ("web-a1", 0));
    }
}
