//! Rules for what storage drivers bring: drivers, nodes, attachments, capacities, snapshots.

use std::collections::BTreeSet;

use serde_json::Value;

use super::cursor::{At, Errors, NOT_NEGATIVE};
use super::metadata;
use crate::names;
use crate::quantity::Quantity;
use crate::status::FieldError;

/// Longest name of a driver.
const DRIVER_NAME_MAX: usize = 63;
/// Longest name that a driver gives a node.
const NODE_ID_MAX: usize = 192;
/// Shortest life of a token, in seconds.
const TOKEN_SECONDS_MIN: i64 = 600;

/// A driver's name.
fn driver_name(at: &At<'_>, out: &mut Errors) {
    let name = at.text();
    if name.is_empty() {
        out.push(at.required(""));
    }
    if name.len() > DRIVER_NAME_MAX {
        out.push(FieldError::too_long(&at.path, DRIVER_NAME_MAX));
    }
    let wrong = names::dns1123_subdomain(&name.to_lowercase()).into_iter();
    out.extend(wrong.map(|sentence| at.invalid(sentence)));
}

/// A new or changed driver.
pub(super) fn driver(driver: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    driver_name(&driver.field("metadata").field("name"), out);
    let spec = driver.field("spec");
    spec.field("fsGroupPolicy").one_of_if_set(&["File", "None", "ReadWriteOnceWithFSType"], out);
    let mut audiences = BTreeSet::new();
    for token in spec.field("tokenRequests").items() {
        let audience = token.field("audience");
        if !audiences.insert(audience.text()) {
            out.push(audience.duplicate());
        }
        let seconds = token.field("expirationSeconds");
        if seconds.is_set() && seconds.number() < TOKEN_SECONDS_MIN {
            out.push(seconds.invalid("may not specify a duration less than 10 minutes"));
        }
    }
    let modes = spec.field("volumeLifecycleModes");
    modes.items().for_each(|m| m.named(modes.path.clone()).one_of_if_set(&["Ephemeral", "Persistent"], out));
    if let Some(old) = old {
        for field in ["attachRequired", "volumeLifecycleModes"] {
            spec.field(field).immutable(&old["spec"][field], out);
        }
    }
}

/// A new or changed list of a node's drivers.
pub(super) fn node(node: &At<'_>, out: &mut Errors) {
    let mut seen = BTreeSet::new();
    for driver in node.field("spec").field("drivers").items() {
        let (name, id) = (driver.field("name"), driver.field("nodeID"));
        driver_name(&name, out);
        if id.text().is_empty() {
            out.push(id.required(""));
        }
        if id.text().len() > NODE_ID_MAX {
            out.push(id.invalid(format!("must be {NODE_ID_MAX} characters or less")));
        }
        if !seen.insert(name.text()) {
            out.push(name.duplicate());
        }
        let keys = driver.field("topologyKeys");
        let mut known = BTreeSet::new();
        for key in keys.items() {
            if !known.insert(key.text()) {
                out.push(key.named(keys.path.clone()).duplicate());
            }
            key.named(keys.path.clone()).check(names::qualified_name, out);
        }
        let count = driver.field("allocatable").field("count");
        if count.number() < 0 {
            out.push(count.invalid("must be greater than or equal to zero"));
        }
    }
}

/// A new or changed attachment.
pub(super) fn attachment(attachment: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    let spec = attachment.field("spec");
    driver_name(&spec.field("attacher"), out);
    let source = spec.field("source");
    let (volume, inline) = (source.field("persistentVolumeName"), source.field("inlineVolumeSpec"));
    match (volume.is_set(), inline.is_set()) {
        (false, false) => {
            out.push(source.required("must specify exactly one of inlineVolumeSpec and persistentVolumeName"))
        }
        (true, true) => {
            out.push(source.invalid("must specify exactly one of inlineVolumeSpec and persistentVolumeName"));
        }
        (true, false) if volume.text().is_empty() => {
            out.push(volume.required("must specify non empty persistentVolumeName"));
        }
        _ => {}
    }
    spec.field("nodeName").check(names::dns1123_subdomain, out);
    if let Some(old) = old {
        spec.immutable(&old["spec"], out);
    }
}

/// A new or changed class of attributes.
pub(super) fn attributes_class(class: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    let (driver, parameters) = (class.field("driverName"), class.field("parameters"));
    driver.check_required(|text| names::qualified_name(&text.to_lowercase()), out);
    if parameters.len() == 0 {
        out.push(parameters.required("must contain at least one key/value pair"));
    }
    for (key, value) in parameters.members() {
        if key.is_empty() {
            out.push(value.invalid("field can not be empty."));
        }
    }
    if let Some(old) = old {
        for field in ["driverName", "parameters"] {
            let now = class.field(field);
            if now.value != &old[field] {
                out.push(now.forbidden(format!("updates to {field} are forbidden.")));
            }
        }
    }
}

/// A new or changed capacity.
pub(super) fn capacity(capacity: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    let class = capacity.field("storageClassName");
    class.check(names::dns1123_subdomain, out);
    metadata::selector(&capacity.field("nodeTopology"), out);
    for field in ["capacity", "maximumVolumeSize"] {
        let amount = capacity.field(field);
        if Quantity::parse(amount.text()).is_ok_and(|amount| amount.is_negative()) {
            out.push(amount.invalid(NOT_NEGATIVE));
        }
    }
    if let Some(old) = old {
        capacity.field("nodeTopology").immutable(&old["nodeTopology"], out);
        class.immutable(&old["storageClassName"], out);
    }
}

/// A new or changed snapshot. Its rules are those of the snapshot controller's own definitions.
pub(super) fn snapshot(snapshot: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    let spec = snapshot.field("spec");
    let class = spec.field("volumeSnapshotClassName");
    if class.is_set() && class.text().is_empty() {
        out.push(class.invalid("volumeSnapshotClassName must not be the empty string when set"));
    }
    one_source(&spec.field("source"), ["volumeSnapshotContentName", "persistentVolumeClaimName"], old, out);
}

/// A new or changed content of a snapshot.
pub(super) fn snapshot_content(content: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    let spec = content.field("spec");
    spec.field("driver").require(out);
    spec.field("deletionPolicy").one_of(&["Delete", "Retain"], out);
    one_source(&spec.field("source"), ["volumeHandle", "snapshotHandle"], old, out);
    let reference = spec.field("volumeSnapshotRef");
    if reference.field("name").text().is_empty() || reference.field("namespace").text().is_empty() {
        out.push(
            reference.invalid("both spec.volumeSnapshotRef.name and spec.volumeSnapshotRef.namespace must be set"),
        );
    }
    if let Some(old) = old {
        let mode = spec.field("sourceVolumeMode");
        if !old["spec"]["sourceVolumeMode"].is_null() {
            mode.immutable(&old["spec"]["sourceVolumeMode"], out);
        }
    }
}

/// Exactly one of two sources, which then stays.
fn one_source(source: &At<'_>, fields: [&str; 2], old: Option<&Value>, out: &mut Errors) {
    let given = fields.iter().filter(|field| source.field(field).is_set()).count();
    if given != 1 {
        out.push(source.invalid(format!("exactly one of {} and {} must be set", fields[0], fields[1])));
    }
    let Some(old) = old else { return };
    for field in fields {
        let now = source.field(field);
        if now.value != &old["spec"]["source"][field] {
            out.push(now.invalid(format!("{field} is immutable")));
        }
    }
}

/// A new or changed class of snapshots.
pub(super) fn snapshot_class(class: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    class.field("driver").require(out);
    class.field("deletionPolicy").one_of(&["Delete", "Retain"], out);
    if let Some(old) = old {
        class.field("driver").immutable(&old["driver"], out);
    }
}
