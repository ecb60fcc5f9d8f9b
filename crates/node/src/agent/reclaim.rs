//! Removes the data of released volumes: those with reclaim policy Delete whose claim is gone.
//!
//! The volumes controller marks such a volume with the finalizer `statefuld.io/local-data`. The node that holds
//! the data removes the folder and then the finalizer, so that the object goes when the data is gone and not before.
//! Where the policy is Retain, a volume that is being deleted loses the finalizer only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::Shared;
use crate::shim::file::FileError;
use crate::shim::spec::{ShimSpec, Source};
use crate::volume::LocalVolumes;

/// What holds a volume until its data is gone.
const FINALIZER: &str = "statefuld.io/local-data";
/// Pause after a removal that failed, before the volumes are looked through again.
const RETRY: Duration = Duration::from_secs(30);

/// Watches volumes until `term`.
pub(super) async fn run(shared: Arc<Shared>) {
    let local = shared.local.clone();
    tokio::task::spawn_blocking(move || local.sweep()).await.expect("sweeping does not panic");
    let mut reclaimer = Reclaimer {
        api: Api::all(shared.client.clone()),
        local: shared.local.clone(),
        pods_dir: shared.config.pods_dir(),
        node: shared.config.node_name.clone(),
        failed: BTreeMap::new(),
    };
    let mut retry = tokio::time::interval(RETRY);
    retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let volumes = watcher(reclaimer.api.clone(), watcher::Config::default()).default_backoff().applied_objects();
        let mut volumes = std::pin::pin!(volumes.into_stream());
        loop {
            tokio::select! {
                next = volumes.next() => match next {
                    Some(Ok(volume)) => reclaimer.take(volume).await,
                    Some(Err(error)) => tracing::debug!(%error, "the watch of volumes broke; going on"),
                    None => break,
                },
                _ = retry.tick() => reclaimer.retry().await,
                () = shared.term.cancelled() => return,
            }
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = shared.term.cancelled() => return,
        }
    }
}

/// Removes one volume at a time. One that cannot be removed does not hold up the others.
struct Reclaimer {
    api: Api<PersistentVolume>,
    local: LocalVolumes,
    pods_dir: PathBuf,
    node: String,
    /// To be tried again, by name: as many as there are volumes, at most.
    failed: BTreeMap<String, PersistentVolume>,
}

/// What is to be done about a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Duty {
    /// Remove the data, then let the volume go.
    Wipe,
    /// Let the volume go and keep the data.
    LetGo,
}

impl Reclaimer {
    async fn take(&mut self, volume: PersistentVolume) {
        let name = volume.name_any();
        match self.reclaim(&volume).await {
            Ok(()) => {
                self.failed.remove(&name);
            }
            Err(error) => {
                tracing::warn!(volume = name, %error, "a released volume was not removed; trying again");
                self.failed.insert(name, volume);
            }
        }
    }

    async fn retry(&mut self) {
        for volume in std::mem::take(&mut self.failed).into_values() {
            self.take(volume).await;
        }
    }

    async fn reclaim(&self, seen: &PersistentVolume) -> Result<(), Error> {
        let Some(duty) = duty(seen, &self.node) else { return Ok(()) };
        // What the watch told may be old; nothing that cannot be undone is done on its word.
        let Some(volume) = self.api.get_opt(&seen.name_any()).await? else { return Ok(()) };
        if volume.uid() != seen.uid() || self::duty(&volume, &self.node) != Some(duty) {
            // Changed meanwhile: its present version comes along the watch.
            return Ok(());
        }
        if duty == Duty::Wipe {
            self.wipe(&volume).await?;
        }
        let left: Vec<&String> = volume.finalizers().iter().filter(|f| *f != FINALIZER).collect();
        // With the version, so that a finalizer that somebody added meanwhile is not taken away.
        let metadata = json!({"finalizers": left, "resourceVersion": volume.resource_version(), "uid": volume.uid()});
        let patch = Patch::Merge(json!({"metadata": metadata}));
        match self.api.patch(&volume.name_any(), &PatchParams::default(), &patch).await {
            Ok(_) => Ok(()),
            // Changed meanwhile: its next version comes along the watch.
            Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn wipe(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let path = volume.spec.as_ref().and_then(|s| s.local.as_ref()).map(|l| l.path.clone()).unwrap_or_default();
        let (local, pods_dir, name) = (self.local.clone(), self.pods_dir.clone(), volume.name_any());
        let removing = tokio::task::spawn_blocking(move || {
            refuse_used(&pods_dir, Path::new(&path))?;
            Ok(local.reclaim(Path::new(&path), &name)?)
        });
        removing.await.expect("removing does not panic")
    }
}

/// An error while a pod that has a folder on this node mounts the volume or something in it, whatever its state.
fn refuse_used(pods_dir: &Path, volume: &Path) -> Result<(), Error> {
    let failed = |e| crate::volume::Error::io("read", pods_dir, e);
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let real_volume = real(volume);
    let pods = match fs::read_dir(pods_dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        pods => pods.map_err(failed)?,
    };
    for pod in pods {
        let spec = match ShimSpec::read(&pod.map_err(failed)?.path()) {
            // Not yet prepared, or just removed.
            Err(error) if error.is_not_found() => continue,
            spec => spec?,
        };
        for mount in spec.containers.iter().flat_map(|c| &c.mounts) {
            let Source::Bind { path, sub } = &mount.source else { continue };
            let path = &sub.as_ref().map_or_else(|| path.clone(), |sub| path.join(sub));
            if path.starts_with(volume) || real(path).starts_with(&real_volume) {
                return Err(Error::Used { pod: format!("{}/{}", spec.namespace, spec.name) });
            }
        }
    }
    Ok(())
}

/// What this node has to do about a volume.
fn duty(volume: &PersistentVolume, node: &str) -> Option<Duty> {
    let spec = volume.spec.as_ref()?;
    let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref());
    let marked = volume.finalizers().iter().any(|f| f == FINALIZER);
    if !marked || spec.local.is_none() || !names_node(volume, node) {
        return None;
    }
    match spec.persistent_volume_reclaim_policy.as_deref() {
        // Only the controller says Released, after a fresh look at the claim. A volume that is being deleted may
        // still be bound, or about to be.
        Some("Delete") if phase == Some("Released") => Some(Duty::Wipe),
        // The data does not hang on the object.
        Some("Retain") if volume.metadata.deletion_timestamp.is_some() => Some(Duty::LetGo),
        _ => None,
    }
}

/// Whether the volume's node affinity names this node.
fn names_node(volume: &PersistentVolume, node: &str) -> bool {
    let required = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()).and_then(|a| a.required.as_ref());
    let terms = required.into_iter().flat_map(|r| &r.node_selector_terms);
    let expressions = terms.flat_map(|t| t.match_expressions.iter().flatten());
    let mut hosts = expressions.filter(|e| e.key == "kubernetes.io/hostname" && e.operator == "In");
    hosts.any(|e| e.values.iter().flatten().any(|v| v == node))
}

/// Why a released volume is still there.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The folder cannot be removed.
    #[error(transparent)]
    Volume(#[from] crate::volume::Error),
    /// The finalizer cannot be removed.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// A pod mounts it. Once the pod's folder is gone it is removed.
    #[error("pod {pod} still mounts it")]
    Used {
        /// Namespace and name.
        pod: String,
    },
    /// What a pod mounts cannot be read, so that nobody knows whether it is this volume.
    #[error(transparent)]
    Pod(#[from] FileError),
}

#[cfg(test)]
mod tests {
    use ambient::Ambient;
    use apiserver::auth::Identity;
    use apiserver::{ApiServer, Options};
    use kube::Client;
    use kube::api::PostParams;
    use serde_json::Value;

    use super::*;

    struct Bench {
        dir: tempfile::TempDir,
        reclaimer: Reclaimer,
        _api: Arc<ApiServer>,
    }

    async fn bench() -> Bench {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("store");
        let store = store::embedded::Embedded::open(&path, Ambient::system(), store::embedded::Options::default());
        let api =
            ApiServer::start(Options::new(store.expect("a store"), Ambient::system())).await.expect("an API server");
        let client = Client::new(api.client(Identity::user("admin", &["system:masters"])), "default");
        let reclaimer = Reclaimer {
            api: Api::all(client),
            local: LocalVolumes::new(dir.path().join("volumes")),
            pods_dir: dir.path().join("pods"),
            node: "node-a".to_owned(),
            failed: BTreeMap::new(),
        };
        Bench { dir, reclaimer, _api: api }
    }

    impl Bench {
        fn folder(&self, name: &str) -> PathBuf {
            self.dir.path().join("volumes/prod").join(name)
        }

        /// A volume with data in it.
        async fn volume(&self, name: &str, policy: &str, phase: &str) -> PersistentVolume {
            let path = self.folder(name);
            let data = self.reclaimer.local.attach(&path, 1, "u").expect("attached");
            fs::write(data.join("file"), "x").expect("written");
            let hosts = json!([{"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-a"]}]);
            let volume = json!({"metadata": {"name": name, "finalizers": [FINALIZER]}, "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "local": {"path": path},
                "persistentVolumeReclaimPolicy": policy, "storageClassName": "local",
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": hosts}]}}}});
            let volume = serde_json::from_value(volume).expect("a volume");
            self.reclaimer.api.create(&PostParams::default(), &volume).await.expect("made");
            let status = Patch::Merge(json!({"status": {"phase": phase}}));
            self.reclaimer.api.patch_status(name, &PatchParams::default(), &status).await.expect("told")
        }

        async fn change(&self, name: &str, change: Value) -> PersistentVolume {
            let params = PatchParams::default();
            self.reclaimer.api.patch(name, &params, &Patch::Merge(change)).await.expect("changed")
        }

        async fn marked(&self, name: &str) -> bool {
            let volume = self.reclaimer.api.get_opt(name).await.expect("asked");
            volume.is_some_and(|v| v.finalizers().iter().any(|f| f == FINALIZER))
        }

        fn pod(&self, mounts: &Path) {
            let mounts = json!([{"target": "/data", "source": {"kind": "bind", "path": mounts.parent(), "sub": mounts.file_name().and_then(|n| n.to_str())}}]);
            let root = json!({"kind": "host"});
            let spec = json!({"namespace": "prod", "name": "web-0", "uid": "u", "hostname": "web-0", "epoch": 1,
                "incarnationBase": 0, "restartPolicy": "Always", "graceMs": 0, "cgroup": "c",
                "log": {"dir": "/l", "maxBytes": 1, "maxFiles": 1},
                "containers": [{"name": "c", "root": root, "argv": ["x"], "mounts": mounts}]});
            let pod_dir = self.reclaimer.pods_dir.join("u");
            fs::create_dir_all(&pod_dir).expect("folder");
            serde_json::from_value::<ShimSpec>(spec).expect("a specification").write(&pod_dir).expect("written");
        }
    }

    #[tokio::test]
    async fn released_volume_is_wiped_and_let_go() {
        let mut bench = bench().await;
        let volume = bench.volume("a", "Delete", "Released").await;
        bench.reclaimer.take(volume).await;
        assert!(!bench.folder("a").exists() && !bench.marked("a").await);
    }

    #[tokio::test]
    async fn nothing_is_wiped_on_the_word_of_an_old_copy() {
        let mut bench = bench().await;
        let seen = bench.volume("a", "Delete", "Released").await;
        bench.change("a", json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}})).await;
        bench.reclaimer.take(seen).await;
        assert!(bench.folder("a").exists() && bench.marked("a").await);
        let mut other = bench.volume("b", "Delete", "Released").await;
        other.metadata.uid = Some("of an earlier volume of that name".to_owned());
        bench.reclaimer.take(other).await;
        assert!(bench.folder("b").exists() && bench.marked("b").await);
    }

    #[tokio::test]
    async fn retained_volume_that_is_deleted_goes_and_its_data_stays() {
        let mut bench = bench().await;
        let volume = bench.volume("a", "Retain", "Released").await;
        bench.reclaimer.take(volume).await;
        assert!(bench.marked("a").await, "it is not being deleted");
        bench.reclaimer.api.delete("a", &kube::api::DeleteParams::default()).await.expect("marked as deleted");
        let volume = bench.reclaimer.api.get("a").await.expect("still there");
        bench.reclaimer.take(volume).await;
        assert!(bench.folder("a").join("file").exists() && !bench.marked("a").await);
    }

    #[tokio::test]
    async fn volume_in_use_waits_and_holds_up_no_other() {
        let mut bench = bench().await;
        let (used, free) =
            (bench.volume("a", "Delete", "Released").await, bench.volume("b", "Delete", "Released").await);
        bench.pod(&bench.folder("a").join("sub"));
        bench.reclaimer.take(used).await;
        bench.reclaimer.take(free).await;
        assert!(bench.folder("a").join("file").exists() && bench.marked("a").await);
        assert!(!bench.folder("b").exists() && !bench.marked("b").await);
        fs::write(bench.reclaimer.pods_dir.join("u/spec.json"), "{").expect("damaged");
        bench.reclaimer.retry().await;
        assert!(bench.folder("a").join("file").exists(), "nobody knows what that pod mounts");
        fs::remove_dir_all(&bench.reclaimer.pods_dir).expect("the pod went");
        bench.reclaimer.retry().await;
        assert!(!bench.folder("a").exists() && !bench.marked("a").await);
        assert!(bench.reclaimer.failed.is_empty());
    }
}
