//! The node in the API: its object, its conditions, its lease.

use std::collections::BTreeMap;
use std::time::Duration;

use ambient::Ambient;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::machine;
use super::pressure::{Facts, Held, Pressures};
use crate::config::Config;

/// Namespace of the nodes' leases.
const LEASES: &str = "kube-node-lease";
/// How long a lease holds.
pub const LEASE_S: i32 = 40;
/// How often it is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// Pause after a failed renewal.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// After a gap of this length between renewals the lease had run out.
const LAPSED: Duration = Duration::from_secs(LEASE_S as u64);
/// How often the node's conditions are written although nothing changed.
const HEARTBEAT: Duration = Duration::from_secs(300);
/// Most images that the node's status lists.
const MAX_IMAGES: usize = 50;
/// Conditions of shortage.
const MEMORY: &str = "MemoryPressure";
/// As [`MEMORY`].
const DISK: &str = "DiskPressure";
/// As [`MEMORY`].
const PIDS: &str = "PIDPressure";
/// The version of Kubernetes whose behaviour is followed.
const KUBERNETES: &str = "v1.37.0";

/// Makes the Node object, or brings it up to date, and says Ready.
pub async fn register(
    client: &Client,
    config: &Config,
    host: &str,
    held: Held,
    ambient: &Ambient,
) -> Result<Node, kube::Error> {
    let api: Api<Node> = Api::all(client.clone());
    let name = &config.node_name;
    let wanted = object(config);
    let found = match api.get_opt(name).await? {
        Some(_) => {
            let patch = json!({"metadata": wanted["metadata"]});
            api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?
        }
        None => match api.create(&PostParams::default(), &typed(&wanted)).await {
            Ok(created) => created,
            Err(kube::Error::Api(status)) if status.code == 409 => api.get(name).await?,
            Err(error) => return Err(error),
        },
    };
    let status = status(config, host, held, &found, ambient);
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(json!({"status": status}))).await
}

/// What the API was told of the node when it was registered.
#[derive(Debug)]
pub struct Told {
    /// The machine's address.
    pub host: String,
    /// The object.
    pub node: Node,
    /// What it was short of.
    pub pressures: Pressures,
}

/// Renews the lease and, now and then or where they change, the conditions, until `term`. The moment at which the last acknowledged renewal was
/// sent, on the monotonic clock, goes to `sent`: the lease holds that long from then, whatever the wall clock does.
pub async fn keep(
    client: Client,
    config: Config,
    Told { host, node, mut pressures }: Told,
    ambient: Ambient,
    sent: watch::Sender<Option<Duration>>,
    term: CancellationToken,
) {
    let mut spoke = ambient.boottime();
    let mut held = pressures.observe(&Facts::default(), spoke);
    // Not that of now: what came before the node was registered may not be in its status.
    let mut told = None;
    loop {
        let at = ambient.boottime();
        let pause = match renew(&client, &config, &node, &ambient).await {
            Ok(()) => {
                let before = sent.send_replace(Some(at));
                if before.is_some_and(|before| at.saturating_sub(before) >= LAPSED) {
                    // The server may have called this node unknown meanwhile: it says Ready again at once.
                    spoke = Duration::ZERO;
                }
                RENEW_EVERY
            }
            Err(error) => {
                tracing::warn!(%error, "the node's lease was not renewed; trying again");
                RETRY_AFTER
            }
        };
        let images = images_stamp(&config);
        let now = pressures.observe(&Facts::look(&config.data_dir), at);
        if at.saturating_sub(spoke) >= HEARTBEAT || images != told || now != held {
            match register(&client, &config, &host, now, &ambient).await {
                Ok(_) => (spoke, told, held) = (at, images, now),
                Err(error) => tracing::warn!(%error, "the node's conditions were not written; trying again"),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = term.cancelled() => return,
        }
    }
}

async fn renew(client: &Client, config: &Config, node: &Node, ambient: &Ambient) -> Result<(), kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), LEASES);
    let name = &config.node_name;
    let now = format!("{:.6}", ambient.now());
    let renewal = json!({"spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_S, "renewTime": now}});
    match api.patch(name, &PatchParams::default(), &Patch::Merge(renewal.clone())).await {
        Ok(_) => return Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(error),
    }
    let owner = json!({"apiVersion": "v1", "kind": "Node", "name": name, "uid": node.metadata.uid});
    let lease =
        json!({"metadata": {"name": name, "namespace": LEASES, "ownerReferences": [owner]}, "spec": renewal["spec"]});
    api.create(&PostParams::default(), &typed(&lease)).await.map(drop)
}

/// The parts of the object that are ours.
fn object(config: &Config) -> Value {
    let arch = machine::architecture();
    let labels = json!({
        "kubernetes.io/hostname": config.node_name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": arch,
        "beta.kubernetes.io/os": "linux",
        "beta.kubernetes.io/arch": arch,
    });
    let cidr = config.pod_cidr.to_string();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": config.node_name,
            "labels": labels,
            "annotations": {"statefuld.io/volumes-dir": config.volumes_dir()},
        },
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
    })
}

fn status(config: &Config, host: &str, held: Held, found: &Node, ambient: &Ambient) -> Value {
    let memory = format!("{}Ki", machine::memory_bytes() / 1024);
    let resources = json!({
        "cpu": machine::cpus().to_string(),
        "memory": memory,
        "pods": config.rules.max_pods.to_string(),
        "ephemeral-storage": format!("{}Ki", machine::disk_bytes(&config.data_dir) / 1024),
    });
    let now = ambient.now();
    let old = found.status.as_ref().and_then(|s| s.conditions.as_ref());
    let since: BTreeMap<&str, String> = old
        .into_iter()
        .flatten()
        .filter_map(|c| Some((c.type_.as_str(), (c.status.clone(), c.last_transition_time.clone()?))))
        .map(|(kind, (status, time))| (kind, format!("{status}{}", time.0)))
        .collect();
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        let before = since.get(kind).and_then(|s| s.strip_prefix(status)).map(str::to_owned);
        json!({"type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": seconds(now), "lastTransitionTime": before.unwrap_or_else(|| seconds(now))})
    };
    json!({
        "images": images(config, ambient),
        "capacity": resources,
        "allocatable": resources,
        "addresses": [
            {"type": "InternalIP", "address": host},
            {"type": "Hostname", "address": config.node_name},
        ],
        "conditions": [
            match held.memory {
                true => condition(MEMORY, "True", "KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
                false => condition(MEMORY, "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            },
            match held.disk {
                true => condition(DISK, "True", "KubeletHasDiskPressure", "kubelet has disk pressure"),
                false => condition(DISK, "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            },
            match held.processes {
                true => condition(PIDS, "True", "KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
                false => condition(PIDS, "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            },
            condition("Ready", "True", "KubeletReady", "statefuld's node agent is ready"),
        ],
        "nodeInfo": {
            "machineID": machine::machine_id(),
            "systemUUID": machine::machine_id(),
            "bootID": machine::boot_id(),
            "kernelVersion": machine::kernel(),
            "osImage": machine::os_image(),
            "containerRuntimeVersion": concat!("statefuld://", env!("CARGO_PKG_VERSION")),
            "kubeletVersion": format!("{KUBERNETES}+statefuld.{}", env!("CARGO_PKG_VERSION")),
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": machine::architecture(),
        },
    })
}

/// The images that are there, the largest first, as many as the kubelet tells.
fn images(config: &Config, ambient: &Ambient) -> Vec<Value> {
    let found = image::Store::open(&config.images_dir(), ambient.clone()).and_then(|store| store.images());
    let mut images = found.unwrap_or_else(|error| {
        tracing::warn!(%error, "which images there are is not known");
        Vec::new()
    });
    images.sort_by_key(|image| std::cmp::Reverse(image.size));
    images.iter().take(MAX_IMAGES).map(|i| json!({"names": i.names, "sizeBytes": i.size})).collect()
}

/// Changes with the list of images.
fn images_stamp(config: &Config) -> Option<std::time::SystemTime> {
    std::fs::metadata(config.images_dir().join("index.json")).and_then(|m| m.modified()).ok()
}

/// Times of objects have whole seconds.
fn seconds(at: jiff::Timestamp) -> String {
    format!("{at:.0}")
}

fn typed<K: serde::de::DeserializeOwned>(value: &Value) -> K {
    serde_json::from_value(value.clone()).expect("what this module writes is of the kind that it names")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Wishes;

    #[test]
    fn object_and_status_are_of_their_kind() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let config = Config::choose(dir.path(), &Wishes::default()).expect("a configuration");
        let (ambient, _) = Ambient::manual("2026-01-02T03:04:05.678Z".parse().expect("a time"), 1);
        let mut object = object(&config);
        let first: Node = typed(&object);
        object["status"] = status(&config, "192.0.2.2", Held::default(), &first, &ambient);
        let node: Node = typed(&object);
        let status = node.status.clone().expect("a status");
        let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready").expect("a condition");
        assert_eq!(ready.status, "True");
        assert!(status.capacity.expect("capacity").contains_key("ephemeral-storage"));
        assert_eq!(node.spec.clone().and_then(|s| s.pod_cidr), Some(config.pod_cidr.to_string()));
        let (later, _) = Ambient::manual("2026-01-03T00:00:00Z".parse().expect("a time"), 1);
        let held = Held { disk: true, ..Held::default() };
        let again = super::status(&config, "192.0.2.2", held, &node, &later);
        assert_eq!(again["conditions"][3]["lastTransitionTime"], "2026-01-02T03:04:05Z");
        assert_eq!(again["conditions"][3]["lastHeartbeatTime"], "2026-01-03T00:00:00Z");
        let [memory, disk] = [0, 1].map(|at| again["conditions"][at].clone());
        assert_eq!((memory["type"].as_str(), memory["status"].as_str()), (Some("MemoryPressure"), Some("False")));
        assert_eq!((disk["type"].as_str(), disk["status"].as_str()), (Some("DiskPressure"), Some("True")));
        assert_eq!(disk["reason"], "KubeletHasDiskPressure");
        assert_eq!(disk["lastTransitionTime"], "2026-01-03T00:00:00Z");
    }
}
