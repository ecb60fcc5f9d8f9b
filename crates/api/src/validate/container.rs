//! Rules for containers: names, images, ports, environment, probes, hooks.

use std::collections::BTreeSet;

use serde_json::Value;

use super::cursor::{At, Errors};
use super::{pod, resources, volume};
use crate::names;
use crate::status::FieldError;

/// Supported protocols of ports.
pub(super) const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
/// Fields of a pod that an environment variable can take its value from.
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields of a pod that a file can take its content from.
pub(super) const FILE_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// All containers of a spec. `volumes` are the names that can be mounted.
pub(super) fn containers(spec: &At<'_>, volumes: &BTreeSet<&str>, out: &mut Errors) {
    let list = spec.field("containers");
    if list.len() == 0 {
        out.push(list.required(""));
    }
    let mut seen = BTreeSet::new();
    for container in list.items() {
        common(&container, volumes, out);
        unique_name(&container, &mut seen, out);
        lifecycle(&container.field("lifecycle"), out);
        probe(&container.field("livenessProbe"), true, out);
        probe(&container.field("readinessProbe"), false, out);
        probe(&container.field("startupProbe"), true, out);
        if container.field("restartPolicy").is_set() {
            out.push(container.field("restartPolicy").forbidden("may not be set for non-init containers"));
        }
    }
    host_ports(spec, out);
    for container in spec.field("initContainers").items() {
        common(&container, volumes, out);
        unique_name(&container, &mut seen, out);
        init_container(&container, out);
    }
    ephemeral_containers(&spec.field("ephemeralContainers"), volumes, &mut seen, out);
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for variable in
            spec.field(list).items().flat_map(|container| container.field("env").items().collect::<Vec<_>>())
        {
            env_volume(spec, &variable.field("valueFrom").field("fileKeyRef").field("volumeName"), out);
        }
    }
}

/// The volume of a file with variables is one that the pod's own containers fill.
fn env_volume(spec: &At<'_>, name: &At<'_>, out: &mut Errors) {
    if name.text().is_empty() {
        return;
    }
    match spec.field("volumes").items().find(|volume| volume.field("name").text() == name.text()) {
        None => out.push(FieldError::not_found(&name.path, name.text())),
        Some(volume) if !volume.field("emptyDir").is_set() => {
            out.push(name.invalid("the volume must be an emptyDir"));
        }
        Some(_) => {}
    }
}

/// Fields that an ephemeral container cannot have: nothing relies on it.
const NOT_EPHEMERAL: [&str; 8] = [
    "lifecycle",
    "livenessProbe",
    "ports",
    "readinessProbe",
    "resizePolicy",
    "resources",
    "restartPolicy",
    "startupProbe",
];

/// Containers that are added to a running pod to look into it.
fn ephemeral_containers<'a>(list: &At<'a>, volumes: &BTreeSet<&str>, seen: &mut BTreeSet<&'a str>, out: &mut Errors) {
    let detail = "cannot be set for an Ephemeral Container";
    let others = seen.clone();
    for container in list.items() {
        common(&container, volumes, out);
        let target = container.field("targetContainerName");
        if !target.text().is_empty() && !others.contains(target.text()) {
            out.push(FieldError::not_found(&target.path, target.text()));
        }
        unique_name(&container, seen, out);
        for field in NOT_EPHEMERAL {
            let at = container.field(field);
            let is_empty = at.value.as_object().is_some_and(serde_json::Map::is_empty);
            if at.is_set() && !is_empty {
                out.push(at.forbidden(detail));
            }
        }
        for mount in container.field("volumeMounts").items() {
            for field in ["subPath", "subPathExpr"] {
                if !mount.field(field).text().is_empty() {
                    out.push(mount.field(field).forbidden(detail));
                }
            }
        }
    }
}

/// Names are unique among containers and init containers.
fn unique_name<'a>(container: &At<'a>, seen: &mut BTreeSet<&'a str>, out: &mut Errors) {
    let name = container.field("name");
    if !name.text().is_empty() && !seen.insert(name.text()) {
        out.push(name.duplicate());
    }
}

/// An init container that ends has no probes; one that goes on (restartPolicy Always) may have.
fn init_container(container: &At<'_>, out: &mut Errors) {
    let sidecar = container.field("restartPolicy").text() == "Always";
    container.field("restartPolicy").one_of_if_set(&["Always"], out);
    for (field, once) in [("livenessProbe", true), ("readinessProbe", false), ("startupProbe", true)] {
        let at = container.field(field);
        if sidecar {
            probe(&at, once, out);
        } else if at.is_set() {
            out.push(at.forbidden("may not be set for init containers without restartPolicy=Always"));
        }
    }
    let hooks = container.field("lifecycle");
    if sidecar {
        lifecycle(&hooks, out);
    } else if hooks.is_set() {
        out.push(hooks.forbidden("may not be set for init containers without restartPolicy=Always"));
    }
}

/// Rules for every container.
fn common(container: &At<'_>, volumes: &BTreeSet<&str>, out: &mut Errors) {
    container.field("name").check_required(names::dns1123_label, out);
    let image = container.field("image");
    if image.text().is_empty() {
        out.push(image.required(""));
    } else if image.text().trim() != image.text() {
        out.push(image.invalid("must not have leading or trailing whitespace"));
    }
    let policy = container.field("terminationMessagePolicy");
    match policy.text() {
        "" => out.push(policy.required("")),
        "File" | "FallbackToLogsOnError" => {}
        _ => out.push(policy.invalid("must be 'File' or 'FallbackToLogsOnError'")),
    }
    ports(&container.field("ports"), out);
    container.field("env").items().for_each(|variable| env(&variable, out));
    container.field("envFrom").items().for_each(|source| env_from(&source, out));
    volume::mounts(container, volumes, out);
    container.field("imagePullPolicy").one_of(&["Always", "IfNotPresent", "Never"], out);
    resources::requirements(&container.field("resources"), out);
    security_context(&container.field("securityContext"), out);
}

/// Ports of one container.
fn ports(list: &At<'_>, out: &mut Errors) {
    let mut seen = BTreeSet::new();
    for port in list.items() {
        let name = port.field("name");
        if !name.text().is_empty() {
            let wrong = names::port_name(name.text());
            if wrong.is_empty() && !seen.insert(name.text()) {
                out.push(name.duplicate());
            }
            out.extend(wrong.into_iter().map(|sentence| name.invalid(sentence)));
        }
        let number = port.field("containerPort");
        if number.number() == 0 {
            out.push(number.required(""));
        } else {
            port_number(&number, out);
        }
        if port.field("hostPort").number() != 0 {
            port_number(&port.field("hostPort"), out);
        }
        port.field("protocol").one_of(&PROTOCOLS, out);
    }
}

/// A port's number is in range.
pub(super) fn port_number(at: &At<'_>, out: &mut Errors) {
    let wrong = names::port_number(at.number()).into_iter();
    out.extend(wrong.map(|sentence| FieldError::invalid(&at.path, at.number(), sentence)));
}

/// A port by number or name.
pub(super) fn port_or_name(at: &At<'_>, out: &mut Errors) {
    match at.value {
        Value::String(_) => at.check(names::port_name, out),
        _ => port_number(at, out),
    }
}

/// A port of the host can be given to one container only, and is the container's own on the host's network.
fn host_ports(spec: &At<'_>, out: &mut Errors) {
    let mut seen = BTreeSet::new();
    let on_host = spec.field("hostNetwork").value == true;
    for container in spec.field("containers").items() {
        for port in container.field("ports").items() {
            let host = port.field("hostPort");
            if host.number() == 0 {
                continue;
            }
            if on_host && host.number() != port.field("containerPort").number() {
                out.push(host.invalid("must match `containerPort` when `hostNetwork` is true"));
            }
            let key = format!("{}/{}/{}", port.field("protocol").text(), port.field("hostIP").text(), host.number());
            if !seen.insert(key.clone()) {
                out.push(FieldError::duplicate(&host.path, key));
            }
        }
    }
}

/// One environment variable.
fn env(variable: &At<'_>, out: &mut Errors) {
    variable.field("name").check_required(names::env_var_name, out);
    let source = variable.field("valueFrom");
    if !source.is_set() {
        return;
    }
    let kinds = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
    let given: Vec<At<'_>> = kinds.iter().map(|kind| source.field(kind)).filter(At::is_set).collect();
    if source.field("fieldRef").is_set() {
        field_ref(&source.field("fieldRef"), &ENV_FIELDS, out);
    }
    resource_ref(&source.field("resourceFieldRef"), false, out);
    for kind in ["configMapKeyRef", "secretKeyRef"] {
        let reference = source.field(kind);
        if reference.is_set() {
            reference.field("name").require(out);
            reference.field("key").check_required(names::config_map_key, out);
        }
    }
    let file = source.field("fileKeyRef");
    if file.is_set() {
        file.field("volumeName").require(out);
        volume::file_path(&file.field("path"), out);
        file.field("key").check_required(names::env_var_name, out);
    }
    let wrong = |detail: &str| FieldError::invalid(&source.path, "", detail);
    if given.is_empty() {
        out.push(wrong("must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"));
    } else if !variable.field("value").text().is_empty() {
        out.push(wrong("may not be specified when `value` is not empty"));
    } else if given.len() > 1 {
        out.push(wrong("may not have more than one field specified at a time"));
    }
}

/// Resources of a container that a variable or file can take its value from.
const REF_RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// An amount of a container, in units of a divisor. In a volume it has to name the container.
pub(super) fn resource_ref(reference: &At<'_>, in_volume: bool, out: &mut Errors) {
    if !reference.is_set() {
        return;
    }
    if in_volume && reference.field("containerName").text().is_empty() {
        out.push(reference.field("containerName").required(""));
        return;
    }
    let resource = reference.field("resource");
    let name = resource.text();
    if name.is_empty() {
        out.push(resource.required(""));
        return;
    }
    if !REF_RESOURCES.contains(&name)
        && !name.starts_with("limits.hugepages-")
        && !name.starts_with("requests.hugepages-")
    {
        out.push(FieldError::not_supported(&resource.path, name, &REF_RESOURCES));
        return;
    }
    let divisor = reference.field("divisor");
    let (fits, detail) = if name.ends_with(".cpu") {
        (["1m", "1", "0"].as_slice(), "only divisor's values 1m and 1 are supported with the cpu resource")
    } else {
        let all = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei", "0"].as_slice();
        let detail = if name.ends_with(".memory") {
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory resource"
        } else {
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the local ephemeral storage resource"
        };
        (all, detail)
    };
    if divisor.is_set() && !fits.contains(&divisor.text()) {
        out.push(FieldError::invalid(format!("{}.divisor", reference.path), divisor.text(), detail));
    }
}

/// A field of the pod, one of `supported`.
pub(super) fn field_ref(reference: &At<'_>, supported: &[&str], out: &mut Errors) {
    let path = reference.field("fieldPath");
    let text = path.text();
    if text.is_empty() {
        out.push(path.required(""));
        return;
    }
    if let Some((map, key)) = text.strip_suffix(']').and_then(|text| text.split_once('[')) {
        let key = key.trim_matches('\'');
        match map {
            "metadata.annotations" => {
                let wrong = names::qualified_name(&key.to_lowercase()).into_iter();
                out.extend(wrong.map(|e| FieldError::invalid(&reference.path, key, e)));
            }
            "metadata.labels" => {
                let wrong = names::qualified_name(key).into_iter();
                out.extend(wrong.map(|e| FieldError::invalid(&reference.path, key, e)));
            }
            _ => out.push(FieldError::invalid(&reference.path, map, "does not support subscript")),
        }
        return;
    }
    let known = ENV_FIELDS.contains(&text)
        || FILE_FIELDS.contains(&text)
        || ["spec.restartPolicy", "spec.schedulerName", "status.phase"].contains(&text);
    if !known {
        out.push(path.invalid(format!("error converting fieldPath: field label not supported: {text}")));
    } else if !supported.contains(&text) {
        out.push(FieldError::not_supported(&path.path, text, supported));
    }
}

/// One source of many environment variables.
fn env_from(source: &At<'_>, out: &mut Errors) {
    source.field("prefix").check_if_set(names::env_var_name, out);
    let given: Vec<At<'_>> =
        ["configMapRef", "secretRef"].iter().map(|kind| source.field(kind)).filter(At::is_set).collect();
    given.iter().for_each(|reference| reference.field("name").require(out));
    match given.len() {
        0 => out.push(FieldError::invalid(&source.path, "", "must specify one of: `configMapRef` or `secretRef`")),
        1 => {}
        _ => out.push(FieldError::invalid(&source.path, "", "may not have more than one field specified at a time")),
    }
}

/// Hooks.
fn lifecycle(lifecycle: &At<'_>, out: &mut Errors) {
    for hook in ["postStart", "preStop"] {
        let hook = lifecycle.field(hook);
        if hook.is_set() {
            handler(&hook, &["exec", "httpGet", "tcpSocket", "sleep"], out);
            let seconds = hook.field("sleep").field("seconds");
            if seconds.number() < 0 {
                out.push(seconds.invalid("must be non-negative"));
            }
        }
    }
}

/// A probe; for liveness and startup one success has to do.
fn probe(probe: &At<'_>, once: bool, out: &mut Errors) {
    if !probe.is_set() {
        return;
    }
    handler(probe, &["exec", "httpGet", "tcpSocket", "grpc"], out);
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        probe.field(field).not_negative(out);
    }
    let grace = probe.field("terminationGracePeriodSeconds");
    if grace.is_set() && grace.number() <= 0 {
        out.push(grace.invalid("must be greater than 0"));
    }
    let successes = probe.field("successThreshold");
    if once && successes.is_set() && successes.number() != 1 {
        out.push(successes.invalid("must be 1"));
    }
}

/// What a probe or hook does: one of `kinds`.
fn handler(handler: &At<'_>, kinds: &[&str], out: &mut Errors) {
    let mut given = 0;
    for kind in kinds {
        let action = handler.field(kind);
        if !action.is_set() {
            continue;
        }
        given += 1;
        if given > 1 {
            out.push(action.forbidden("may not specify more than 1 handler type"));
            continue;
        }
        match *kind {
            "exec" if action.field("command").len() == 0 => out.push(action.field("command").required("")),
            "httpGet" => {
                action.field("path").require(out);
                port_or_name(&action.field("port"), out);
                action.field("scheme").one_of(&["HTTP", "HTTPS"], out);
                for header in action.field("httpHeaders").items() {
                    header.field("name").check(names::http_header_name, out);
                }
            }
            "grpc" => port_number(&action.field("port"), out),
            "tcpSocket" => port_or_name(&action.field("port"), out),
            _ => {}
        }
    }
    if given == 0 {
        out.push(handler.required("must specify a handler type"));
    }
}

/// Settings of one container.
fn security_context(context: &At<'_>, out: &mut Errors) {
    pod::seccomp(&context.field("seccompProfile"), out);
    pod::app_armor(&context.field("appArmorProfile"), out);
    pod::id(&context.field("runAsUser"), out);
    pod::id(&context.field("runAsGroup"), out);
    context.field("procMount").one_of_if_set(&["Default", "Unmasked"], out);
    let escalation = context.field("allowPrivilegeEscalation");
    if escalation.value == false {
        if context.field("privileged").value == true {
            out.push(context.invalid("cannot set `allowPrivilegeEscalation` to false and `privileged` to true"));
        }
        if context
            .field("capabilities")
            .field("add")
            .items()
            .any(|c| c.text() == "SYS_ADMIN" || c.text() == "CAP_SYS_ADMIN")
        {
            out.push(
                context.invalid("cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"),
            );
        }
    }
}
