//! Rules for a pod's volumes and where containers mount them.

use std::collections::BTreeSet;

use super::container::{self, FILE_FIELDS};
use super::cursor::{At, Errors};
use super::storage;
use crate::names;
use crate::quantity::Quantity;
use crate::status::FieldError;

/// Types of volumes, in the order that upstream looks for them.
const TYPES: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];
/// Types of paths on the host; empty is not checked.
const PATH_TYPES: [&str; 8] =
    ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
/// Shortest and longest life of a token, in seconds.
const TOKEN_SECONDS_MIN: i64 = 600;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;
/// Largest file mode.
const MODE_MAX: i64 = 0o777;

/// Checks volumes and gives the names of the good ones, which can be mounted. Names among `claims` are overridden
/// by claims, and their sources do not matter.
pub(super) fn volumes<'a>(list: &At<'a>, claims: &[&str], out: &mut Errors) -> BTreeSet<&'a str> {
    let mut good = BTreeSet::new();
    for volume in list.items() {
        let mut errors = Errors::new();
        let name = volume.field("name");
        if !claims.contains(&name.text()) {
            source(&volume, &mut errors);
        }
        name.check_required(names::dns1123_label, &mut errors);
        if good.contains(name.text()) {
            errors.push(name.duplicate());
        }
        if errors.is_empty() {
            good.insert(name.text());
        }
        out.extend(errors);
    }
    good
}

/// A volume has one source.
fn source(volume: &At<'_>, out: &mut Errors) {
    let mut given = 0;
    for kind in TYPES {
        let source = volume.field(kind);
        if !source.is_set() {
            continue;
        }
        given += 1;
        if given > 1 {
            out.push(source.forbidden("may not specify more than 1 volume type"));
        } else {
            check_source(kind, &source, out);
        }
    }
    if given == 0 {
        out.push(volume.required("must specify a volume type"));
    }
}

/// Rules of one type. Types that no node of ours can mount are not looked into.
fn check_source(kind: &str, source: &At<'_>, out: &mut Errors) {
    match kind {
        "emptyDir" => {
            let limit = source.field("sizeLimit");
            if Quantity::parse(limit.text()).is_ok_and(|limit| limit.is_negative()) {
                out.push(limit.forbidden("SizeLimit field must be a valid resource quantity"));
            }
        }
        "hostPath" => host_path(source, out),
        "secret" => {
            source.field("secretName").require(out);
            files(source, out);
        }
        "configMap" => {
            source.field("name").require(out);
            files(source, out);
        }
        "nfs" => nfs(source, out),
        "persistentVolumeClaim" => source.field("claimName").require(out),
        "downwardAPI" => {
            mode(&source.field("defaultMode"), out);
            source.field("items").items().for_each(|item| downward_file(&item, out));
        }
        "projected" => projected(source, out),
        "csi" => csi(source, out),
        "ephemeral" => {
            let template = source.field("volumeClaimTemplate");
            if template.is_set() {
                storage::claim_spec(&template.field("spec"), out);
            } else {
                out.push(template.required(""));
            }
        }
        "image" => {
            source.field("reference").require(out);
            source.field("pullPolicy").one_of_if_set(&["Always", "IfNotPresent", "Never"], out);
        }
        _ => required_of(kind, source, out),
    }
}

/// What types have to say that no node of ours can mount: valid objects all the same.
fn required_of(kind: &str, source: &At<'_>, out: &mut Errors) {
    let fields: &[&str] = match kind {
        "gitRepo" => &["repository"],
        "gcePersistentDisk" => &["pdName"],
        "awsElasticBlockStore" | "cinder" => &["volumeID"],
        "iscsi" => &["targetPortal", "iqn"],
        "glusterfs" => &["endpoints", "path"],
        "rbd" => &["image"],
        "quobyte" => &["registry", "volume"],
        "flexVolume" => &["driver"],
        "azureFile" => &["secretName", "shareName"],
        "vsphereVolume" => &["volumePath"],
        "photonPersistentDisk" => &["pdID"],
        "portworxVolume" => &["volumeID"],
        "azureDisk" => &["diskName", "diskURI"],
        "scaleIO" => &["gateway", "system", "volumeName"],
        _ => &[],
    };
    fields.iter().for_each(|field| source.field(field).require(out));
    for list in ["monitors"] {
        if matches!(kind, "cephfs" | "rbd") && source.field(list).len() == 0 {
            out.push(source.field(list).required(""));
        }
    }
}

/// A volume of a driver, described in the pod itself.
fn csi(source: &At<'_>, out: &mut Errors) {
    let driver = source.field("driver");
    if driver.text().is_empty() {
        out.push(driver.required(""));
    } else {
        let wrong = names::dns1123_subdomain(&driver.text().to_lowercase()).into_iter();
        out.extend(wrong.map(|sentence| driver.invalid(sentence)));
    }
    let secret = source.field("nodePublishSecretRef");
    if secret.is_set() {
        secret.field("name").require(out);
    }
}

/// A path on the host.
pub(super) fn host_path(source: &At<'_>, out: &mut Errors) {
    let path = source.field("path");
    if path.text().is_empty() {
        out.push(path.required(""));
        return;
    }
    no_backsteps(&path, out);
    source.field("type").one_of_if_set(&PATH_TYPES, out);
}

/// A network file system.
pub(super) fn nfs(source: &At<'_>, out: &mut Errors) {
    source.field("server").require(out);
    let path = source.field("path");
    path.require(out);
    if !path.text().starts_with('/') {
        out.push(FieldError::invalid(&path.path, path.text(), "must be an absolute path"));
    }
}

/// Files made of a map's entries.
fn files(source: &At<'_>, out: &mut Errors) {
    mode(&source.field("defaultMode"), out);
    for item in source.field("items").items() {
        item.field("key").require(out);
        file_path(&item.field("path"), out);
        mode(&item.field("mode"), out);
    }
}

/// A file made of a field of the pod.
fn downward_file(item: &At<'_>, out: &mut Errors) {
    file_path(&item.field("path"), out);
    let (field, resource) = (item.field("fieldRef"), item.field("resourceFieldRef"));
    match (field.is_set(), resource.is_set()) {
        (true, true) => out.push(item.invalid("fieldRef and resourceFieldRef can not be specified simultaneously")),
        (true, false) => container::field_ref(&field, &FILE_FIELDS, out),
        (false, true) => container::resource_ref(&resource, true, out),
        (false, false) => out.push(item.required("one of fieldRef and resourceFieldRef is required")),
    }
    mode(&item.field("mode"), out);
}

/// Several sources in one folder.
fn projected(source: &At<'_>, out: &mut Errors) {
    mode(&source.field("defaultMode"), out);
    for part in source.field("sources").items() {
        for kind in ["secret", "configMap"] {
            let map = part.field(kind);
            if map.is_set() {
                map.field("name").require(out);
                files(&map, out);
            }
        }
        part.field("downwardAPI").field("items").items().for_each(|item| downward_file(&item, out));
        let token = part.field("serviceAccountToken");
        if token.is_set() {
            let seconds = token.field("expirationSeconds");
            if seconds.is_set() && seconds.number() < TOKEN_SECONDS_MIN {
                out.push(seconds.invalid("may not specify a duration less than 10 minutes"));
            }
            if seconds.number() > TOKEN_SECONDS_MAX {
                out.push(seconds.invalid("may not specify a duration larger than 2^32 seconds"));
            }
            if token.field("path").text().is_empty() {
                out.push(token.field("path").required(""));
            }
        }
        one_projection(&part, out);
    }
}

/// A part of a projected volume is of one kind.
fn one_projection(part: &At<'_>, out: &mut Errors) {
    let kinds = ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"];
    let mut given = kinds.iter().map(|kind| part.field(kind)).filter(At::is_set);
    if given.next().is_some() {
        out.extend(given.map(|more| more.forbidden("may not specify more than 1 volume type")));
    }
}

/// A file's mode.
fn mode(at: &At<'_>, out: &mut Errors) {
    if at.is_set() && !(0..=MODE_MAX).contains(&at.number()) {
        out.push(at.invalid("must be a number between 0 and 0777 (octal), both inclusive"));
    }
}

/// A path inside a volume that is made by us: required, relative, and not like our own names.
pub(super) fn file_path(at: &At<'_>, out: &mut Errors) {
    if at.text().is_empty() {
        out.push(at.required(""));
        return;
    }
    descending(at, out);
    if at.text().starts_with("..") && !at.text().starts_with("../") {
        out.push(at.invalid("must not start with '..'"));
    }
}

/// A relative path that stays below.
fn descending(at: &At<'_>, out: &mut Errors) {
    if at.text().starts_with('/') {
        out.push(at.invalid("must be a relative path"));
    }
    no_backsteps(at, out);
}

/// A path without `..`.
fn no_backsteps(at: &At<'_>, out: &mut Errors) {
    if at.text().split('/').any(|part| part == "..") {
        out.push(at.invalid("must not contain '..'"));
    }
}

/// Where a container mounts volumes, as files and as devices.
pub(super) fn mounts(container: &At<'_>, volumes: &BTreeSet<&str>, out: &mut Errors) {
    let list = container.field("volumeMounts");
    let mut places = BTreeSet::new();
    for mount in list.items() {
        let (name, place) = (mount.field("name"), mount.field("mountPath"));
        name.require(out);
        if !volumes.contains(name.text()) {
            out.push(FieldError::not_found(&name.path, name.text()));
        }
        if place.text().is_empty() {
            out.push(place.required(""));
        }
        if !places.insert(place.text()) {
            out.push(place.invalid("must be unique"));
        }
        // Upstream leaves the index out of these paths.
        let below = |field: &str| mount.field(field).named(format!("{}.{field}", list.path));
        descending(&below("subPath"), out);
        if !mount.field("subPathExpr").text().is_empty() && !mount.field("subPath").text().is_empty() {
            out.push(mount.field("subPathExpr").invalid("subPathExpr and subPath are mutually exclusive"));
        }
        descending(&below("subPathExpr"), out);
        mount.field("mountPropagation").one_of_if_set(&["Bidirectional", "HostToContainer", "None"], out);
    }
    for device in container.field("volumeDevices").items() {
        let (name, place) = (device.field("name"), device.field("devicePath"));
        name.require(out);
        if !volumes.contains(name.text()) {
            out.push(FieldError::not_found(&name.path, name.text()));
        }
        place.require(out);
        if !place.text().is_empty() && !places.insert(place.text()) {
            out.push(place.invalid("must be unique"));
        }
        no_backsteps(&place, out);
    }
}
