//! Defaults of pods and of what they consist of.

use serde_json::{Map, Value, json};

use super::{Object, Rule, add_missing, default, default_number, items, object_at, text};
use crate::quantity::Quantity;

/// Mode of files that volumes are filled with: `rw-r--r--`.
const FILE_MODE: i64 = 0o644;

/// Rules by type.
pub(super) const RULES: &[(&str, Rule)] = &[
    ("core/v1.Pod", pod),
    ("core/v1.PodSpec", pod_spec),
    ("core/v1.Container", container),
    ("core/v1.EphemeralContainer", container),
    ("core/v1.Probe", probe),
    ("core/v1.HTTPGetAction", http_get),
    ("core/v1.Volume", volume),
    ("core/v1.SecretVolumeSource", file_mode),
    ("core/v1.ConfigMapVolumeSource", file_mode),
    ("core/v1.DownwardAPIVolumeSource", file_mode),
    ("core/v1.ProjectedVolumeSource", file_mode),
    ("core/v1.HostPathVolumeSource", |source| {
        // No check of what lies there; written because it differs from an unknown wish.
        source.entry("type").or_insert(Value::from(""));
    }),
    ("core/v1.ServiceAccountTokenProjection", |source| default(source, "expirationSeconds", 3600)),
    ("core/v1.ObjectFieldSelector", |selector| default(selector, "apiVersion", "v1")),
];

/// A pod itself, not a template.
fn pod(pod: &mut Object) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    default(spec, "enableServiceLinks", true);
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["containers", "initContainers"] {
        for container in items(spec, list) {
            if let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) {
                requests_from_limits(resources);
            }
            if host_network {
                host_ports(container);
            }
        }
    }
    if spec.get("resources").is_some_and(Value::is_object) {
        pod_level_requests(spec);
    }
}

/// What is limited and not requested is requested to the limit.
fn requests_from_limits(resources: &mut Object) {
    let limits = resources.get("limits").cloned();
    if limits.as_ref().and_then(Value::as_object).is_none_or(Map::is_empty) {
        return;
    }
    if let Some(requests) = object_at(resources, "requests") {
        add_missing(requests, limits.as_ref());
    }
}

/// In the host's network, every port is a port of the host.
fn host_ports(container: &mut Object) {
    for port in items(container, "ports") {
        if let Some(number) = port.get("containerPort").and_then(Value::as_i64) {
            default_number(port, "hostPort", number);
        }
    }
}

/// A pod's own limits request what its containers request, or else the limit.
fn pod_level_requests(spec: &mut Object) {
    let names: Vec<String> = match spec["resources"].get("limits").and_then(Value::as_object) {
        Some(limits) => limits.keys().cloned().collect(),
        None => return,
    };
    for name in names {
        if spec["resources"].get("requests").is_some_and(|r| r.get(&name).is_some()) {
            continue;
        }
        let requested = items(spec, "containers")
            .filter_map(|container| container.get("resources")?.get("requests")?.get(&name)?.as_str()?.parse().ok())
            .reduce(|sum: Quantity, next| sum.add(&next));
        let value = match requested {
            Some(sum) => Value::from(sum.to_string()),
            None => spec["resources"]["limits"][&name].clone(),
        };
        if let Some(requests) =
            spec.get_mut("resources").and_then(Value::as_object_mut).and_then(|r| object_at(r, "requests"))
        {
            requests.insert(name, value);
        }
    }
}

/// The spec of pods and of templates.
fn pod_spec(spec: &mut Object) {
    default(spec, "dnsPolicy", "ClusterFirst");
    default(spec, "restartPolicy", "Always");
    default(spec, "schedulerName", "default-scheduler");
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "securityContext", json!({}));
    // The old name of the field is kept equal to the new one, which wins.
    let account = match text(spec, "serviceAccountName") {
        "" => text(spec, "serviceAccount").to_owned(),
        name => name.to_owned(),
    };
    if !account.is_empty() {
        for name in ["serviceAccountName", "serviceAccount"] {
            spec.insert(name.to_owned(), Value::from(account.as_str()));
        }
    }
}

/// Containers of every sort.
fn container(container: &mut Object) {
    let policy = pull_policy(text(container, "image"));
    default(container, "imagePullPolicy", policy);
    default(container, "terminationMessagePath", "/dev/termination-log");
    default(container, "terminationMessagePolicy", "File");
}

/// An image that may change under its name is pulled each time.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    // A colon before the last slash belongs to a port.
    let tag = name.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
    match (tag, digest) {
        (Some("latest"), _) => "Always",
        (None, None) if !name.is_empty() => "Always",
        _ => "IfNotPresent",
    }
}

/// Probes of every sort.
fn probe(probe: &mut Object) {
    default_number(probe, "timeoutSeconds", 1);
    default_number(probe, "periodSeconds", 10);
    default_number(probe, "successThreshold", 1);
    default_number(probe, "failureThreshold", 3);
}

/// HTTP requests of probes and hooks.
fn http_get(action: &mut Object) {
    default(action, "path", "/");
    default(action, "scheme", "HTTP");
}

/// A volume without a source is an empty directory.
fn volume(volume: &mut Object) {
    if volume.iter().all(|(name, value)| name == "name" || value.is_null()) {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
    if let Some(image) = volume.get_mut("image").and_then(Value::as_object_mut) {
        let policy = pull_policy(text(image, "reference"));
        default(image, "pullPolicy", policy);
    }
}

/// Volumes that are filled with files.
fn file_mode(source: &mut Object) {
    default(source, "defaultMode", FILE_MODE);
}

#[cfg(test)]
mod tests {
    use super::pull_policy;

    #[test]
    fn only_images_that_may_change_are_always_pulled() {
        for (image, policy) in [
            ("sample", "Always"),
            ("sample:latest", "Always"),
            ("host:5000/a/sample", "Always"),
            ("host:5000/a/sample:1", "IfNotPresent"),
            ("sample@sha256:00", "IfNotPresent"),
            ("sample:latest@sha256:00", "Always"),
            ("", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }
}
