//! What of a backup's entries goes into a store that takes the backed-up one's place. Pure.
//!
//! Nothing runs when a store is restored, and volumes may since have been used by newer pods, with higher epochs. So what
//! says where something runs is left out: holder records, bindings, leases, events. Pods of a controller are left out whole:
//! their controller makes them again, in its order; other pods are kept and wait for a node anew. Their next binding gives them
//! an epoch of the new generation, above any that a volume has seen.

use bytes::Bytes;
use serde_json::Value;
use store::Entry;

use crate::admission::holders::{EPOCH_ANNOTATION, HOLDERS};

/// Objects of these kinds tell of what was, not of what is wanted.
const LEFT_OUT: [&str; 3] = [HOLDERS, "/registry/core/events/", "/registry/coordination.k8s.io/leases/"];
const PODS: &str = "/registry/core/pods/";
const VOLUMES: &str = "/registry/core/persistentvolumes/";

/// Entries that go on, at most as new as `revision`.
#[derive(Debug, Default)]
pub struct Carried {
    /// What the new store begins with.
    pub entries: Vec<Entry>,
    /// Pods, as namespace/name, that their controllers make again.
    pub left_to_controllers: Vec<String>,
    /// Paths of the folders that volumes lie in.
    pub volume_folders: Vec<String>,
}

/// A data directory that is elsewhere now.
#[derive(Clone, Copy, Debug)]
pub struct Moved<'a> {
    /// Where it was, absolute.
    pub from: &'a str,
    /// Where it is, absolute.
    pub to: &'a str,
}

/// Carries entries over. `revision` is the one that the new store begins at; an entry that changes is as new as that.
pub fn carry_over(entries: Vec<Entry>, revision: u64, moved: Option<Moved<'_>>) -> Carried {
    let mut carried = Carried::default();
    for entry in entries {
        let key = String::from_utf8_lossy(&entry.key).into_owned();
        if LEFT_OUT.iter().any(|prefix| key.starts_with(prefix)) {
            continue;
        }
        if key.starts_with(VOLUMES) {
            let entry = relocated(entry, revision, moved);
            carried.volume_folders.extend(folder_of(&entry.value));
            carried.entries.push(entry);
            continue;
        }
        let Some(pod) = key.strip_prefix(PODS) else {
            carried.entries.push(entry);
            continue;
        };
        match unbound(&entry.value) {
            Some(value) => carried.entries.push(Entry { value, mod_revision: revision, ..entry }),
            None => carried.left_to_controllers.push(pod.to_owned()),
        }
    }
    carried
}

/// The folder of a volume of class `local`, or of any other local volume.
fn folder_of(volume: &[u8]) -> Option<String> {
    let volume: Value = serde_json::from_slice(volume).ok()?;
    volume.pointer("/spec/local/path")?.as_str().map(str::to_owned)
}

/// A volume whose folder lies in the data directory goes where that went.
fn relocated(entry: Entry, revision: u64, moved: Option<Moved<'_>>) -> Entry {
    let changed = moved.and_then(|moved| {
        let mut volume: Value = serde_json::from_slice(&entry.value).ok()?;
        let path = volume.pointer_mut("/spec/local/path")?;
        let below = path.as_str()?.strip_prefix(moved.from.trim_end_matches('/'))?.strip_prefix('/')?;
        *path = format!("{}/{below}", moved.to.trim_end_matches('/')).into();
        serde_json::to_vec(&volume).ok().map(Bytes::from)
    });
    match changed {
        Some(value) => Entry { value, mod_revision: revision, ..entry },
        None => entry,
    }
}

/// A pod as it was before it had a node; none where a controller makes it, or where it is not understood or on its way out.
fn unbound(pod: &[u8]) -> Option<Bytes> {
    let mut pod: Value = serde_json::from_slice(pod).ok()?;
    let metadata = pod.get_mut("metadata")?.as_object_mut()?;
    let owners = metadata.get("ownerReferences").and_then(Value::as_array);
    let controlled = owners.is_some_and(|owners| owners.iter().any(|owner| owner["controller"] == true));
    if controlled || metadata.contains_key("deletionTimestamp") {
        return None;
    }
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.remove(EPOCH_ANNOTATION);
    }
    pod.get_mut("spec")?.as_object_mut()?.remove("nodeName");
    pod["status"] = serde_json::json!({"phase": "Pending", "qosClass": pod["status"]["qosClass"]});
    serde_json::to_vec(&pod).ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(key: &str, value: &Value) -> Entry {
        let value = Bytes::from(value.to_string());
        Entry { key: Bytes::copy_from_slice(key.as_bytes()), value, create_revision: 3, mod_revision: 4 }
    }

    #[test]
    fn what_says_where_something_runs_is_left_out() {
        let pod = |owners: Value| {
            json!({
                "metadata": {"name": "p", "ownerReferences": owners, "annotations": {EPOCH_ANNOTATION: "9", "mine": "x"}},
                "spec": {"nodeName": "n", "containers": []},
                "status": {"phase": "Running", "podIP": "10.0.0.1", "qosClass": "Burstable"},
            })
        };
        let entries = vec![
            entry("/holders/d/web-0", &json!({})),
            entry("/registry/apps/statefulsets/d/web", &json!({"spec": {}})),
            entry("/registry/core/events/d/e", &json!({})),
            entry("/registry/core/persistentvolumes/v", &json!({"spec": {"local": {"path": "/v/d/web-0-data"}}})),
            entry("/registry/core/pods/d/alone", &pod(json!([{"controller": false}]))),
            entry("/registry/core/pods/d/web-0", &pod(json!([{"controller": true}]))),
        ];
        let carried = carry_over(entries, 50, None);
        let keys: Vec<_> = carried.entries.iter().map(|e| String::from_utf8_lossy(&e.key).into_owned()).collect();
        assert_eq!(
            keys,
            ["/registry/apps/statefulsets/d/web", "/registry/core/persistentvolumes/v", "/registry/core/pods/d/alone"]
        );
        assert_eq!(carried.left_to_controllers, ["d/web-0"]);
        assert_eq!(carried.volume_folders, ["/v/d/web-0-data"]);
        assert_eq!((carried.entries[0].mod_revision, carried.entries[2].mod_revision), (4, 50));
        let alone: Value = serde_json::from_slice(&carried.entries[2].value).expect("JSON");
        assert_eq!(alone["spec"].get("nodeName"), None);
        assert_eq!(alone["status"], json!({"phase": "Pending", "qosClass": "Burstable"}));
        assert_eq!(alone["metadata"]["annotations"], json!({"mine": "x"}));
    }

    #[test]
    fn volumes_go_where_the_data_directory_went() {
        let volume = |path: &str| json!({"spec": {"local": {"path": path}}});
        let entries = ["/var/lib/statefuld/volumes/d/a", "/var/lib/statefuld-other/volumes/d/a", "/mnt/disk"]
            .map(|path| entry("/registry/core/persistentvolumes/v", &volume(path)));
        let moved = Some(Moved { from: "/var/lib/statefuld", to: "/srv/state/" });
        let carried = carry_over(entries.to_vec(), 50, moved);
        assert_eq!(
            carried.volume_folders,
            ["/srv/state/volumes/d/a", "/var/lib/statefuld-other/volumes/d/a", "/mnt/disk"]
        );
    }
}
