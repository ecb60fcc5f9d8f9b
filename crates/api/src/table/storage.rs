//! The cells of the kinds that storage drivers and snapshots bring.

use jiff::Timestamp;
use serde_json::Value;

use super::text::{UNKNOWN, UNSET, at, list, or, since};

/// The cells of drivers, their nodes, attachments and classes.
pub(super) fn driver_kind(kind: &str, item: &Value, age: Value) -> Vec<Value> {
    let name: Value = at(item, "/metadata/name").into();
    match kind {
        "CSIDriver" => driver(item, age),
        "CSINode" => vec![name, list(item, "/spec/drivers").len().into(), age],
        "CSIStorageCapacity" => {
            vec![name, at(item, "/storageClassName").into(), or(at(item, "/capacity"), UNSET).into()]
        }
        "VolumeAttachment" => vec![
            name,
            at(item, "/spec/attacher").into(),
            at(item, "/spec/source/persistentVolumeName").into(),
            at(item, "/spec/nodeName").into(),
            (item["status"]["attached"] == true).into(),
            age,
        ],
        "VolumeAttributesClass" => vec![name, at(item, "/driverName").into(), age],
        _ => vec![name, or(at(item, "/metadata/creationTimestamp"), UNKNOWN).into()],
    }
}

/// A driver.
fn driver(item: &Value, age: Value) -> Vec<Value> {
    let spec = &item["spec"];
    let texts = |path: &str, member: &str| {
        let all = list(item, path).iter().map(|v| if member.is_empty() { v } else { &v[member] });
        let text = all.filter_map(Value::as_str).collect::<Vec<_>>().join(",");
        or(&text, UNSET).to_owned()
    };
    vec![
        at(item, "/metadata/name").into(),
        (spec["attachRequired"] != false).into(),
        (spec["podInfoOnMount"] == true).into(),
        (spec["storageCapacity"] == true).into(),
        texts("/spec/tokenRequests", "audience").into(),
        (spec["requiresRepublish"] == true).into(),
        texts("/spec/volumeLifecycleModes", "").into(),
        age,
    ]
}

/// The cells of snapshots. They are custom resources elsewhere, whose absent values are null.
pub(super) fn snapshot_kind(kind: &str, item: &Value, now: Timestamp) -> Vec<Value> {
    let value = |pointer: &str| item.pointer(pointer).cloned().unwrap_or_default();
    let ago = |pointer: &str| match at(item, pointer) {
        "" => Value::Null,
        _ => since(item, pointer, now).into(),
    };
    let name = at(item, "/metadata/name").into();
    let age = ago("/metadata/creationTimestamp");
    match kind {
        "VolumeSnapshot" => vec![
            name,
            value("/status/readyToUse"),
            value("/spec/source/persistentVolumeClaimName"),
            value("/spec/source/volumeSnapshotContentName"),
            value("/status/restoreSize"),
            value("/spec/volumeSnapshotClassName"),
            value("/status/boundVolumeSnapshotContentName"),
            ago("/status/creationTime"),
            age,
        ],
        "VolumeSnapshotClass" => vec![name, value("/driver"), value("/deletionPolicy"), age],
        _ => vec![
            name,
            value("/status/readyToUse"),
            value("/status/restoreSize"),
            value("/spec/deletionPolicy"),
            value("/spec/driver"),
            value("/spec/volumeSnapshotClassName"),
            value("/spec/volumeSnapshotRef/name"),
            value("/spec/volumeSnapshotRef/namespace"),
            age,
        ],
    }
}
