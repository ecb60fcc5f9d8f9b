//! The columns of each kind: name, type, and whether only `-o wide` shows them.

use serde_json::{Value, json};

use super::custom;
use crate::resource::Resource;

/// One column in brief.
struct Column {
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    /// 1 for columns that only `-o wide` shows.
    priority: i32,
    description: &'static str,
}

/// A column of text.
const fn text(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", format: "", priority: 0, description }
}

/// A column of text that only `-o wide` shows.
const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", format: "", priority: 1, description }
}

/// A column of true and false.
const fn flag(name: &'static str, description: &'static str) -> Column {
    Column { kind: "boolean", ..text(name, description) }
}

/// A column of whole numbers.
const fn whole(name: &'static str, description: &'static str) -> Column {
    Column { kind: "integer", ..text(name, description) }
}

/// A column of times, shown as ages.
const fn date(name: &'static str, description: &'static str) -> Column {
    Column { kind: "date", ..text(name, description) }
}

const NAME: Column =
    Column { name: "Name", kind: "string", format: "name", priority: 0, description: "Name of the object." };
const AGE: Column = text("Age", "Time since the object was created.");
const CREATED: Column =
    Column { name: "Created At", kind: "date", format: "", priority: 0, description: "When the object was created." };

/// The columns that `-o wide` adds for what makes pods.
const OF_PODS: [Column; 3] = [
    wide("Containers", "Names of the containers."),
    wide("Images", "Images of the containers."),
    wide("Selector", "Labels of the pods it governs."),
];

/// The column definitions of a kind.
pub fn columns(resource: &Resource) -> Vec<Value> {
    if let Some(custom) = &resource.custom {
        return custom::columns(custom);
    }
    let show = |c: &Column| json!({"name": c.name, "type": c.kind, "format": c.format, "description": c.description, "priority": c.priority});
    of(resource).iter().map(show).collect()
}

/// The columns of a kind in brief.
fn of(resource: &Resource) -> Vec<Column> {
    match (resource.group.as_str(), resource.kind.as_str()) {
        ("", kind) | (crate::events::GROUP, kind) => core(kind),
        ("apps", "StatefulSet") => vec![
            NAME,
            text("Ready", "Ready pods of those desired."),
            AGE,
            wide("Containers", "Names of the containers."),
            wide("Images", "Images of the containers."),
        ],
        ("apps", "ControllerRevision") => vec![
            NAME,
            text("Controller", "The controller that made the revision."),
            text("Revision", "Number of the revision."),
            AGE,
        ],
        ("apps" | "batch", kind) => workloads(kind),
        ("networking.k8s.io", "NetworkPolicy") => {
            vec![NAME, text("Pod-Selector", "Labels of the pods that it governs."), AGE]
        }
        ("storage.k8s.io", kind) if kind != "StorageClass" => storage(kind),
        ("snapshot.storage.k8s.io", kind) => snapshots(kind),
        ("storage.k8s.io", "StorageClass") => vec![
            NAME,
            text("Provisioner", "Who makes volumes of the class."),
            text("ReclaimPolicy", "What becomes of volumes whose claims are deleted."),
            text("VolumeBindingMode", "When claims are bound."),
            text("AllowVolumeExpansion", "Whether volumes may grow."),
            AGE,
        ],
        ("discovery.k8s.io", "EndpointSlice") => vec![
            NAME,
            text("AddressType", "Type of the addresses."),
            text("Ports", "Ports of the endpoints."),
            text("Endpoints", "Addresses of the endpoints."),
            AGE,
        ],
        ("metrics.k8s.io", "NodeMetrics" | "PodMetrics") => vec![
            NAME,
            text("CPU", "Processors in use."),
            text("Memory", "Memory in use."),
            text("Window", "The time over which use was measured."),
        ],
        ("coordination.k8s.io", "Lease") => vec![NAME, text("Holder", "Who holds the lease."), AGE],
        ("policy", "PodDisruptionBudget") => vec![
            NAME,
            text("Min Available", "Pods that must stay available."),
            text("Max Unavailable", "Pods that may be unavailable."),
            Column { kind: "integer", ..text("Allowed Disruptions", "Evictions that would be granted now.") },
            AGE,
        ],
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => vec![
            NAME,
            text("Role", "The role that is granted."),
            AGE,
            wide("Users", "Users it is granted to."),
            wide("Groups", "Groups it is granted to."),
            wide("ServiceAccounts", "Service accounts it is granted to."),
        ],
        ("node.k8s.io", "RuntimeClass") => vec![NAME, text("Handler", "What runs pods of the class."), AGE],
        ("scheduling.k8s.io", "PriorityClass") => vec![
            NAME,
            text("Value", "The priority."),
            text("Global-Default", "Whether pods without a class get this one."),
            AGE,
            text("PreemptionPolicy", "Whether pods of the class displace others."),
        ],
        _ => vec![NAME, CREATED],
    }
}

/// The columns of what makes pods, sets aside.
fn workloads(kind: &str) -> Vec<Column> {
    let mut columns = match kind {
        "Deployment" => vec![
            NAME,
            text("Ready", "Ready pods of those desired."),
            text("Up-to-date", "Pods made from the present template."),
            text("Available", "Pods that have been ready for long enough."),
            AGE,
        ],
        "ReplicaSet" => vec![
            NAME,
            whole("Desired", "Pods that shall be."),
            whole("Current", "Pods that there are."),
            whole("Ready", "Pods that are ready."),
            AGE,
        ],
        "Job" => vec![
            NAME,
            text("Status", "How far the job is."),
            text("Completions", "Pods that succeeded, of those needed."),
            text("Duration", "Time from its start to its end, or to now."),
            AGE,
        ],
        "CronJob" => vec![
            NAME,
            text("Schedule", "When it is due."),
            text("Timezone", "Time zone of the schedule."),
            flag("Suspend", "Whether nothing is started."),
            whole("Active", "Jobs that run."),
            text("Last Schedule", "Time since a job was last due."),
            AGE,
        ],
        _ => return vec![NAME, CREATED],
    };
    columns.extend(OF_PODS);
    columns
}

/// The columns of kinds that storage drivers and their controllers use.
fn storage(kind: &str) -> Vec<Column> {
    match kind {
        "CSIDriver" => vec![
            NAME,
            flag("AttachRequired", "Whether volumes are attached to nodes."),
            flag("PodInfoOnMount", "Whether the driver is told about the pod."),
            flag("StorageCapacity", "Whether the driver tells what room it has."),
            text("TokenRequests", "Audiences of tokens that the driver is given."),
            flag("RequiresRepublish", "Whether the driver is called again from time to time."),
            text("Modes", "How volumes of the driver live."),
            AGE,
        ],
        "CSINode" => vec![NAME, whole("Drivers", "Number of drivers on the node."), AGE],
        "CSIStorageCapacity" => vec![
            NAME,
            text("StorageClassName", "Class that has the room."),
            text("Capacity", "How much room there is."),
        ],
        "VolumeAttachment" => vec![
            NAME,
            text("Attacher", "The driver that attaches."),
            text("PV", "The volume."),
            text("Node", "The node."),
            flag("Attached", "Whether it is attached."),
            AGE,
        ],
        "VolumeAttributesClass" => vec![NAME, text("DriverName", "The driver that the attributes are for."), AGE],
        _ => vec![NAME, CREATED],
    }
}

/// The columns of snapshots and what belongs to them.
fn snapshots(kind: &str) -> Vec<Column> {
    match kind {
        "VolumeSnapshot" => vec![
            NAME,
            flag("ReadyToUse", "Whether volumes can be made from it."),
            text("SourcePVC", "The claim that it was taken of."),
            text("SourceSnapshotContent", "The content that it stands for."),
            text("RestoreSize", "Least size of volumes made from it."),
            text("SnapshotClass", "Its class."),
            text("SnapshotContent", "The content that it is bound to."),
            date("CreationTime", "Time since it was taken."),
            date("Age", "Time since the object was created."),
        ],
        "VolumeSnapshotClass" => vec![
            NAME,
            text("Driver", "Who takes snapshots of the class."),
            text("DeletionPolicy", "What becomes of contents whose snapshots are deleted."),
            date("Age", "Time since the object was created."),
        ],
        _ => vec![
            NAME,
            flag("ReadyToUse", "Whether volumes can be made from it."),
            whole("RestoreSize", "Least size of volumes made from it, in bytes."),
            text("DeletionPolicy", "What becomes of it when its snapshot is deleted."),
            text("Driver", "Who took it."),
            text("VolumeSnapshotClass", "Its class."),
            text("VolumeSnapshot", "The snapshot that it is bound to."),
            text("VolumeSnapshotNamespace", "Namespace of that snapshot."),
            date("Age", "Time since the object was created."),
        ],
    }
}

/// The columns of the core group's kinds.
fn core(kind: &str) -> Vec<Column> {
    match kind {
        "Pod" => vec![
            NAME,
            text("Ready", "Ready containers of all."),
            text("Status", "What the pod is doing, or what keeps it from running."),
            text("Restarts", "Restarts of its containers, and how long ago the last one was."),
            AGE,
            wide("IP", "Address of the pod."),
            wide("Node", "Node the pod is bound to."),
            wide("Nominated Node", "Node where room is being made for the pod."),
            wide("Readiness Gates", "Further conditions that are met, of those required."),
        ],
        "Service" => vec![
            NAME,
            text("Type", "How the service is exposed."),
            text("Cluster-IP", "Address inside the cluster."),
            text("External-IP", "Addresses outside the cluster."),
            text("Port(s)", "Ports of the service."),
            AGE,
            wide("Selector", "Labels of the pods it stands for."),
        ],
        "Endpoints" => vec![NAME, text("Endpoints", "Addresses and ports."), AGE],
        "PersistentVolumeClaim" => vec![
            NAME,
            text("Status", "Phase of the claim."),
            text("Volume", "Volume it is bound to."),
            text("Capacity", "Size of the volume."),
            text("Access Modes", "How the volume may be mounted."),
            text("StorageClass", "Class of the claim."),
            text("VolumeAttributesClass", "Class of the volume's attributes."),
            AGE,
            wide("VolumeMode", "File system or block device."),
        ],
        "PersistentVolume" => vec![
            NAME,
            text("Capacity", "Size of the volume."),
            text("Access Modes", "How it may be mounted."),
            text("Reclaim Policy", "What becomes of it when its claim is deleted."),
            text("Status", "Phase of the volume."),
            text("Claim", "Claim it is bound to."),
            text("StorageClass", "Class of the volume."),
            text("VolumeAttributesClass", "Class of its attributes."),
            text("Reason", "Why the volume is in its phase."),
            AGE,
            wide("VolumeMode", "File system or block device."),
        ],
        "ConfigMap" => vec![NAME, text("Data", "Number of entries."), AGE],
        "Secret" => vec![NAME, text("Type", "Type of the secret."), text("Data", "Number of entries."), AGE],
        "ServiceAccount" => vec![NAME, text("Secrets", "Number of secrets."), AGE],
        "Namespace" => vec![NAME, text("Status", "Phase of the namespace."), AGE],
        "Node" => vec![
            NAME,
            text("Status", "Whether the node is ready."),
            text("Roles", "Roles of the node."),
            AGE,
            text("Version", "Version of its agent."),
            wide("Internal-IP", "Address inside the cluster."),
            wide("External-IP", "Address outside the cluster."),
            wide("OS-Image", "Operating system."),
            wide("Kernel-Version", "Version of the kernel."),
            wide("Container-Runtime", "What runs containers."),
        ],
        "Event" => vec![
            text("Last Seen", "Time since it was last seen."),
            text("Type", "Normal or Warning."),
            text("Reason", "Why it came about, in one word."),
            text("Object", "What it is about."),
            wide("Subobject", "Which part of it."),
            wide("Source", "Who saw it."),
            text("Message", "What happened."),
            wide("First Seen", "Time since it was first seen."),
            wide("Count", "How often it was seen."),
            Column { format: "name", ..wide("Name", "Name of the event.") },
        ],
        "ResourceQuota" => vec![
            NAME,
            text("Request", "Requests that are used, of those allowed."),
            text("Limit", "Limits that are used, of those allowed."),
            AGE,
        ],
        _ => vec![NAME, CREATED],
    }
}
