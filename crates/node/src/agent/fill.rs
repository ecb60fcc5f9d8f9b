//! How full the volumes of this node's pods are: what each folder occupies, and what its file system has.
//!
//! Every file is looked at, so nothing is measured until somebody asks, and who asks again soon gets the same answer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ambient::Ambient;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::storage;
use crate::config::Config;
use crate::shim::spec::{ShimSpec, Source};

/// How long an answer is good for.
const KEPT: Duration = Duration::from_secs(10);

/// Measures, and remembers the last answer.
#[derive(Debug)]
pub(super) struct Fill {
    config: Config,
    ambient: Ambient,
    last: Mutex<Option<(Duration, Value)>>,
}

impl Fill {
    /// For that node.
    pub(super) fn new(config: Config, ambient: Ambient) -> Self {
        Self { config, ambient, last: Mutex::new(None) }
    }

    /// The document that answers a question for volumes: by pod uid and folder, bytes and numbers of files. Who asks while
    /// another's answer is measured waits for that one.
    pub(super) async fn document(&self) -> Value {
        let mut last = self.last.lock().await;
        let now = self.ambient.boottime();
        if let Some((at, document)) = &*last
            && now.saturating_sub(*at) < KEPT
        {
            return document.clone();
        }
        let (pods, root) = (self.config.pods_dir(), self.config.volumes_dir());
        let measured = tokio::task::spawn_blocking(move || measure(&pods, &root)).await.unwrap_or_default();
        let document = json!({"timestamp": self.ambient.now().to_string(), "pods": measured});
        *last = Some((now, document.clone()));
        document
    }
}

/// The folders below `root` that pods have mounted, measured once each.
fn measure(pods: &Path, root: &Path) -> BTreeMap<String, BTreeMap<String, Value>> {
    let mut known: BTreeMap<PathBuf, Value> = BTreeMap::new();
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(pods).into_iter().flatten().flatten() {
        let Ok(spec) = ShimSpec::read(&entry.path()) else { continue };
        let mounts = spec.containers.iter().flat_map(|container| &container.mounts);
        let folders = mounts.filter_map(|mount| match &mount.source {
            Source::Bind { path, .. } if path.starts_with(root) => Some(path.clone()),
            _ => None,
        });
        let of_pod: BTreeMap<String, Value> = folders
            .filter_map(|folder| {
                if !known.contains_key(&folder) {
                    known.insert(folder.clone(), look(&folder)?);
                }
                Some((folder.to_str()?.to_owned(), known[&folder].clone()))
            })
            .collect();
        all.insert(spec.uid, of_pod);
    }
    all
}

/// One folder, in the names of the kubelet's summary.
fn look(folder: &Path) -> Option<Value> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    Some(json!({
        "usedBytes": storage::size(folder),
        "capacityBytes": disk.f_blocks.saturating_mul(disk.f_frsize),
        "availableBytes": disk.f_bavail.saturating_mul(disk.f_frsize),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_as_full_as_its_files_are_large() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let before = look(dir.path()).expect("it is there");
        std::fs::write(dir.path().join("data"), vec![1; 1 << 20]).expect("written");
        let after = look(dir.path()).expect("it is there");
        let used = |look: &Value| look["usedBytes"].as_u64().expect("a number");
        assert!(used(&after) - used(&before) >= 1 << 20, "{before} {after}");
        assert!(after["availableBytes"].as_u64() <= after["capacityBytes"].as_u64());
        assert_eq!(look(&dir.path().join("gone")), None);
    }
}
