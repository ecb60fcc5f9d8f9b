//! What a pod writes besides its persistent volumes, and whether that is more than it may.
//!
//! | counted for | what |
//! |---|---|
//! | a container | its log files, and what it changed of its root |
//! | the pod | all containers, and emptyDir volumes that are not in memory |
//! | a volume with a size limit | itself |
//!
//! The kernel does not limit these; so they are measured now and then, and a pod beyond its limit is ended, as a
//! kubelet does it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::quantity;
use super::status::Verdict;
use super::translate::containers;
use super::worker::Worker;
use crate::volume;

/// What a pod that is evicted gets to end, as upstream gives it.
const GRACE: Duration = Duration::from_secs(1);

const WHAT: &str = "ephemeral-storage";

/// Where a pod writes.
#[derive(Clone, Debug)]
pub struct Places {
    /// One folder per container: what it changed of its root.
    pub roots: PathBuf,
    /// One folder per container: its log files.
    pub logs: PathBuf,
    /// The pod's, with its volumes.
    pub pod_dir: PathBuf,
}

impl Worker {
    /// Where the pod writes.
    pub(super) fn places(&self) -> Places {
        let logs = self.shared.config.pod_logs(&self.id.namespace, &self.id.name, &self.id.uid);
        Places { roots: self.dir().join("root"), pod_dir: self.dir(), logs }
    }
}

/// What was found, bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// By container.
    pub containers: BTreeMap<String, u64>,
    /// By emptyDir volume that is not in memory.
    pub volumes: BTreeMap<String, u64>,
}

/// Whether anything of the pod is limited, so that measuring is worth its while.
pub fn is_limited(spec: &PodSpec) -> bool {
    containers(spec).any(|c| limit(c).is_some()) || on_disk(spec).any(|(_, size)| size.is_some())
}

/// Measures. Blocks, and reads every folder.
pub fn measure(spec: &PodSpec, places: &Places) -> Used {
    let of = |name: &String| (name.clone(), size(&places.roots.join(name)) + size(&places.logs.join(name)));
    let containers = containers(spec).map(|c| of(&c.name)).collect();
    let volumes =
        on_disk(spec).map(|(name, _)| (name.to_owned(), size(&volume::empty_dir(&places.pod_dir, name)))).collect();
    Used { containers, volumes }
}

/// The first limit that is exceeded, in upstream's words and order.
pub fn judge(spec: &PodSpec, used: &Used) -> Option<Verdict> {
    let evicted =
        |message: String| Some(Verdict { reason: "Evicted".to_owned(), message, evicted: true, grace: Some(GRACE) });
    for (name, size) in on_disk(spec) {
        let have = used.volumes.get(name).copied().unwrap_or(0);
        if let Some((limit, text)) = size
            && have > limit
        {
            return evicted(format!("Usage of EmptyDir volume {name:?} exceeds the limit {text:?}. "));
        }
    }
    let limits: Vec<(u64, &str)> = containers(spec).filter_map(limit).collect();
    let total: u64 = limits.iter().map(|(bytes, _)| bytes).sum();
    let all: u64 = used.containers.values().chain(used.volumes.values()).sum();
    if !limits.is_empty() && all > total {
        let text = match limits[..] {
            [(_, only)] => only.to_owned(),
            _ => total.to_string(),
        };
        return evicted(format!("Pod ephemeral local storage usage exceeds the total limit of containers {text}. "));
    }
    for container in containers(spec) {
        let have = used.containers.get(&container.name).copied().unwrap_or(0);
        if let Some((limit, text)) = limit(container)
            && have > limit
        {
            let name = &container.name;
            return evicted(format!("Container {name} exceeded its local ephemeral storage limit {text:?}. "));
        }
    }
    None
}

fn limit(container: &Container) -> Option<(u64, &str)> {
    let text = quantity::of(container.resources.as_ref()?.limits.as_ref(), WHAT)?;
    Some((quantity::bytes(text)?, text))
}

/// The emptyDir volumes that are not in memory, with their limits.
fn on_disk(spec: &PodSpec) -> impl Iterator<Item = (&str, Option<(u64, &str)>)> {
    spec.volumes.iter().flatten().filter_map(|volume| {
        let source = volume.empty_dir.as_ref().filter(|source| source.medium.as_deref() != Some("Memory"))?;
        let size = source.size_limit.as_ref().map(|q| q.0.as_str());
        let size = size.and_then(|text| Some((quantity::bytes(text)?, text))).filter(|(bytes, _)| *bytes > 0);
        Some((volume.name.as_str(), size))
    })
}

/// What a tree occupies on its disk. Links are not followed, other file systems left out, and a file of several names
/// is counted once.
pub(super) fn size(root: &Path) -> u64 {
    let Ok(top) = fs::symlink_metadata(root) else { return 0 };
    let mut counted: BTreeSet<u64> = BTreeSet::new();
    let mut total = occupied(&top);
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != top.dev() {
                continue;
            }
            if meta.is_dir() {
                folders.push(entry.path());
            } else if meta.nlink() > 1 && !counted.insert(meta.ino()) {
                continue;
            }
            total += occupied(&meta);
        }
    }
    total
}

fn occupied(meta: &fs::Metadata) -> u64 {
    meta.blocks().saturating_mul(512)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec() -> PodSpec {
        serde_json::from_value(json!({
            "volumes": [
                {"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}},
                {"name": "free", "emptyDir": {}},
                {"name": "ram", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
            "containers": [
                {"name": "a", "resources": {"limits": {"ephemeral-storage": "2Mi"}}},
                {"name": "b", "resources": {"limits": {"ephemeral-storage": "4Mi"}}},
                {"name": "c"}]}))
        .expect("a pod spec")
    }

    fn judged(containers: &[(&str, u64)], volumes: &[(&str, u64)]) -> Option<String> {
        let owned = |list: &[(&str, u64)]| list.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect();
        let used = Used { containers: owned(containers), volumes: owned(volumes) };
        judge(&spec(), &used).map(|verdict| {
            assert_eq!(verdict.reason, "Evicted");
            verdict.message
        })
    }

    #[test]
    fn each_limit_is_told_as_upstream_tells_it() {
        assert_eq!(judged(&[("a", 2 << 20), ("b", 4 << 20)], &[]), None);
        let volume = "Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Mi\". ";
        assert_eq!(judged(&[], &[("scratch", (1 << 20) + 1)]).as_deref(), Some(volume));
        let container = "Container a exceeded its local ephemeral storage limit \"2Mi\". ";
        assert_eq!(judged(&[("a", (2 << 20) + 1)], &[]).as_deref(), Some(container));
        let pod = "Pod ephemeral local storage usage exceeds the total limit of containers 6291456. ";
        assert_eq!(judged(&[("c", 1)], &[("free", 6 << 20)]).as_deref(), Some(pod));
    }

    #[test]
    fn only_what_lies_on_disk_is_counted_and_once() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let places =
            Places { roots: dir.path().join("root"), logs: dir.path().join("logs"), pod_dir: dir.path().to_owned() };
        fs::create_dir_all(places.roots.join("a/0/etc")).expect("folders");
        fs::create_dir_all(volume::empty_dir(&places.pod_dir, "free")).expect("folders");
        let before = measure(&spec(), &places);
        fs::write(places.roots.join("a/0/etc/big"), vec![1; 1 << 20]).expect("written");
        fs::hard_link(places.roots.join("a/0/etc/big"), places.roots.join("a/0/same")).expect("a second name");
        std::os::unix::fs::symlink("/usr", places.roots.join("a/0/usr")).expect("a link");
        let after = measure(&spec(), &places);
        let grown = after.containers["a"] - before.containers["a"];
        assert!((1 << 20..(1 << 20) + 65536).contains(&grown), "{grown}");
        assert_eq!(after.volumes.keys().collect::<Vec<_>>(), ["free", "scratch"]);
        assert_eq!(after.containers["b"], 0);
    }

    #[test]
    fn a_pod_without_limits_is_not_measured() {
        assert!(is_limited(&spec()));
        let spec = json!({"containers": [{"name": "a"}], "volumes": [{"name": "v", "emptyDir": {}}]});
        assert!(!is_limited(&serde_json::from_value(spec).expect("a pod spec")));
    }
}
