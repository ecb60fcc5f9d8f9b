//! Rules for volumes, claims and storage classes.

use serde_json::Value;

use super::cursor::{At, Errors};
use super::{metadata, volume};
use crate::names;
use crate::quantity::Quantity;
use crate::status::FieldError;

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const VOLUME_MODES: [&str; 2] = ["Block", "Filesystem"];
/// Most parameters of a class.
const PARAMETERS_MAX: usize = 512;
/// Sources of volumes, in the order that upstream looks for them.
const SOURCES: [&str; 22] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

/// A new or changed claim.
pub(super) fn claim(claim: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    let spec = claim.field("spec");
    claim_spec(&spec, out);
    if let Some(old) = old {
        claim_change(&spec, old, out);
    }
}

/// The spec of a claim or of a claim template.
pub(super) fn claim_spec(spec: &At<'_>, out: &mut Errors) {
    metadata::selector(&spec.field("selector"), out);
    let modes = spec.field("accessModes");
    if modes.len() == 0 {
        out.push(modes.required("at least 1 access mode is required"));
    }
    access_modes(&modes, out);
    let size =
        spec.field("resources").field("requests").field("storage").named(format!("{}.resources[storage]", spec.path));
    if !size.is_set() {
        out.push(size.required(""));
    }
    positive(&size, out);
    spec.field("storageClassName").check_if_set(names::dns1123_subdomain, out);
    spec.field("volumeMode").one_of_if_set(&VOLUME_MODES, out);
    data_sources(spec, out);
    spec.field("volumeAttributesClassName").check_if_set(names::dns1123_subdomain, out);
}

/// What a claim is to be filled from, named once or twice alike.
fn data_sources(spec: &At<'_>, out: &mut Errors) {
    for field in ["dataSource", "dataSourceRef"] {
        let source = spec.field(field);
        if !source.is_set() {
            continue;
        }
        source.field("name").require(out);
        source.field("kind").require(out);
        let group = source.field("apiGroup").text();
        if group.is_empty() && source.field("kind").text() != "PersistentVolumeClaim" {
            out.push(source.invalid("must be 'PersistentVolumeClaim' when referencing the default apiGroup"));
        }
        if !group.is_empty() {
            let wrong = names::dns1123_subdomain(group).into_iter();
            out.extend(wrong.map(|e| FieldError::invalid(format!("{}.apiGroup", source.path), group, e)));
        }
    }
    let (source, reference) = (spec.field("dataSource"), spec.field("dataSourceRef"));
    if source.is_set() && reference.is_set() && !reference.field("namespace").is_set() {
        let same = ["apiGroup", "kind", "name"].iter().all(|f| source.field(f).text() == reference.field(f).text());
        if !same {
            out.push(spec.invalid("must match dataSourceRef"));
        }
    }
}

/// Access modes, of which ReadWriteOncePod stands alone.
fn access_modes(modes: &At<'_>, out: &mut Errors) {
    for mode in modes.items() {
        mode.named(modes.path.clone()).one_of_if_set(&ACCESS_MODES, out);
    }
    if modes.len() > 1 && modes.items().any(|mode| mode.text() == "ReadWriteOncePod") {
        out.push(modes.forbidden("may not use ReadWriteOncePod with other access modes"));
    }
}

/// An amount above zero.
fn positive(amount: &At<'_>, out: &mut Errors) {
    if Quantity::parse(amount.text()).is_ok_and(|amount| amount.is_negative() || amount.is_zero()) {
        out.push(amount.invalid("must be greater than zero"));
    }
}

/// A claim's spec stays, except that it is bound once, gets the default class, and grows once it is bound.
fn claim_change(spec: &At<'_>, old: &Value, out: &mut Errors) {
    let before = &old["spec"];
    let bound = old["status"]["phase"] == "Bound";
    let mut expected = before.clone();
    for late in ["volumeName", "storageClassName"] {
        if before[late].is_null() && spec.field(late).is_set() {
            expected[late] = spec.value[late].clone();
        }
    }
    if bound && spec.field("volumeAttributesClassName").is_set() {
        expected["volumeAttributesClassName"] = spec.value["volumeAttributesClassName"].clone();
    }
    let request = |spec: &Value| spec["resources"]["requests"]["storage"].clone();
    if bound && expected["resources"]["requests"].is_object() {
        expected["resources"]["requests"]["storage"] = request(spec.value);
    }
    if spec.value != &expected {
        out.push(spec.forbidden(
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        ));
    }
    let size = |value: Value| value.as_str().and_then(|text| Quantity::parse(text).ok());
    if let (Some(now), Some(before)) = (size(request(spec.value)), size(request(before)))
        && now < before
    {
        let at = spec.field("resources").field("requests").field("storage");
        out.push(at.forbidden("field can not be less than previous value"));
    }
}

/// A new or changed volume.
pub(super) fn volume(object: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    let spec = object.field("spec");
    let modes = spec.field("accessModes");
    if modes.len() == 0 {
        out.push(modes.required(""));
    }
    access_modes(&modes, out);
    let capacity = spec.field("capacity");
    if capacity.len() == 0 {
        out.push(capacity.required(""));
    }
    if capacity.len() != 1 || !capacity.field("storage").is_set() {
        out.push(FieldError::not_supported(&capacity.path, capacity.value.clone(), &["storage"]));
    }
    for (_, amount) in capacity.members() {
        positive(&amount, out);
    }
    sources(&spec, out);
    super::scheduling::node_selector(&spec.field("nodeAffinity").field("required"), out);
    let affinity = spec.field("nodeAffinity");
    if affinity.is_set() && !affinity.field("required").is_set() {
        out.push(affinity.field("required").required("must specify required node constraints"));
    }
    spec.field("persistentVolumeReclaimPolicy").one_of_if_set(&["Delete", "Recycle", "Retain"], out);
    spec.field("storageClassName").check_if_set(names::dns1123_subdomain, out);
    spec.field("volumeMode").one_of_if_set(&VOLUME_MODES, out);
    if let Some(old) = old {
        volume_change(&spec, &old["spec"], out);
    }
}

/// A volume has one source.
fn sources(spec: &At<'_>, out: &mut Errors) {
    let mut given = 0;
    for kind in SOURCES {
        let source = spec.field(kind);
        if !source.is_set() {
            continue;
        }
        given += 1;
        match kind {
            _ if given > 1 => out.push(source.forbidden("may not specify more than 1 volume type")),
            "hostPath" => volume::host_path(&source, out),
            "nfs" => volume::nfs(&source, out),
            "local" => local(&source, spec, out),
            "csi" => {
                source.field("driver").require(out);
                source.field("volumeHandle").require(out);
            }
            _ => {}
        }
    }
    if given == 0 {
        out.push(spec.required("must specify a volume type"));
    }
}

/// A folder of one node, which therefore has to be named.
fn local(source: &At<'_>, spec: &At<'_>, out: &mut Errors) {
    let path = source.field("path");
    path.require(out);
    if path.text().split('/').any(|part| part == "..") {
        out.push(path.invalid("must not contain '..'"));
    }
    let affinity = spec.field("nodeAffinity");
    if !affinity.is_set() {
        out.push(affinity.required("Local volume requires node affinity"));
    }
}

/// A volume stays what and where it is.
fn volume_change(spec: &At<'_>, before: &Value, out: &mut Errors) {
    if SOURCES.iter().any(|kind| spec.value.get(*kind) != before.get(*kind)) {
        let source = spec.field("persistentvolumesource");
        out.push(source.forbidden("spec.persistentvolumesource is immutable after creation"));
    }
    spec.field("volumeMode").immutable(&before["volumeMode"], out);
    if !before["nodeAffinity"].is_null() {
        spec.field("nodeAffinity").immutable(&before["nodeAffinity"], out);
    }
}

/// A new or changed storage class.
pub(super) fn class(class: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    class.field("provisioner").check_required(|text| names::qualified_name(&text.to_lowercase()), out);
    let parameters = class.field("parameters");
    if parameters.len() > PARAMETERS_MAX {
        out.push(FieldError::too_long("parameters", PARAMETERS_MAX));
    }
    for (key, _) in parameters.members().filter(|(key, _)| key.is_empty()) {
        out.push(FieldError::invalid("parameters", key.as_str(), "field can not be empty."));
    }
    class.field("reclaimPolicy").one_of_if_set(&["Delete", "Retain"], out);
    class.field("volumeBindingMode").one_of(&["Immediate", "WaitForFirstConsumer"], out);
    if let Some(old) = old {
        for field in ["parameters", "provisioner", "reclaimPolicy"] {
            let now = class.field(field);
            if now.value != &old[field] {
                out.push(now.forbidden(format!("updates to {field} are forbidden.")));
            }
        }
        class.field("volumeBindingMode").immutable(&old["volumeBindingMode"], out);
    }
}
