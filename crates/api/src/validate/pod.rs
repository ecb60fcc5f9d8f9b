//! Rules for pods and pod templates.

use std::collections::BTreeSet;

use serde_json::Value;

use super::container;
use super::cursor::{At, Errors};
use super::{metadata, resources, volume};
use crate::names;
use crate::status::FieldError;
use crate::strategy::qos_class;

/// Longest deadline.
const SECONDS_MAX: i64 = i32::MAX as i64;
/// Largest user and group id.
const ID_MAX: i64 = i32::MAX as i64;
/// Longest host name that Linux takes.
const HOST_NAME_MAX: usize = 64;
/// Longest name of a sysctl.
const SYSCTL_MAX: usize = 253;
/// What names of sysctls look like.
const SYSCTL: &str = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
/// Most search domains, and most characters of all of them together.
const SEARCHES_MAX: (usize, usize) = (32, 2048);
/// What is said when an update changes something else.
const FORBIDDEN_UPDATE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// A new pod.
pub(super) fn create(pod: &At<'_>, out: &mut Errors) {
    let spec = pod.field("spec");
    check_spec(&spec, &[], out);
    let ephemeral = spec.field("ephemeralContainers");
    if ephemeral.len() > 0 {
        out.push(ephemeral.forbidden("cannot be set on create"));
    }
}

/// A template. `claims` are volumes that come from elsewhere.
pub(super) fn template(template: &At<'_>, claims: &[&str], out: &mut Errors) {
    let metadata = template.field("metadata");
    // Upstream leaves `metadata` out of these paths.
    metadata::labels(&metadata.field("labels").named(format!("{}.labels", template.path)), out);
    metadata::annotations(&metadata.field("annotations").named(format!("{}.annotations", template.path)), out);
    check_spec(&template.field("spec"), claims, out);
}

/// The rules for a pod's spec.
fn check_spec(spec: &At<'_>, claims: &[&str], out: &mut Errors) {
    let mut volumes = volume::volumes(&spec.field("volumes"), claims, out);
    volumes.extend(claims);
    container::containers(spec, &volumes, out);
    spec.field("restartPolicy").one_of(&["Always", "OnFailure", "Never"], out);
    spec.field("dnsPolicy").one_of(&["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"], out);
    metadata::labels(&spec.field("nodeSelector"), out);
    security_context(&spec.field("securityContext"), out);
    dns_config(spec, out);
    for gate in spec.field("readinessGates").items() {
        gate.field("conditionType").check(names::qualified_name, out);
    }
    spec.field("serviceAccountName").check_if_set(names::dns1123_subdomain, out);
    spec.field("nodeName").check_if_set(names::dns1123_subdomain, out);
    let deadline = spec.field("activeDeadlineSeconds");
    if deadline.is_set() {
        let wrong = names::in_range(deadline.number(), 1, SECONDS_MAX).into_iter();
        out.extend(wrong.map(|sentence| deadline.invalid(sentence)));
    }
    spec.field("hostname").check_if_set(names::dns1123_label, out);
    spec.field("subdomain").check_if_set(names::dns1123_label, out);
    super::scheduling::check(spec, out);
    for alias in spec.field("hostAliases").items() {
        alias.field("ip").check(names::ip, out);
        alias.field("hostnames").items().for_each(|name| name.check(names::dns1123_subdomain, out));
    }
    spec.field("priorityClassName").check_if_set(names::dns1123_subdomain, out);
    spec.field("runtimeClassName").check_if_set(names::dns1123_subdomain, out);
    spec.field("preemptionPolicy").one_of_if_set(&["Never", "PreemptLowerPriority"], out);
    spec.field("os").field("name").one_of_if_set(&["linux", "windows"], out);
    processes(spec, out);
    let own = spec.field("resources");
    if own.is_set() {
        resources::of_pod(&own, out);
    }
    let name = spec.field("hostnameOverride");
    if name.is_set() {
        host_name_override(spec, &name, out);
    }
}

/// Which processes see each other.
fn processes(spec: &At<'_>, out: &mut Errors) {
    let on = |field: &str| spec.field(field).value == true;
    let shared = spec.field("shareProcessNamespace");
    if on("shareProcessNamespace") && on("hostPID") {
        out.push(shared.invalid("ShareProcessNamespace and HostPID cannot both be enabled"));
    }
    users(spec, out);
}

/// What goes with users of the pod's own, and what with none but such.
fn users(spec: &At<'_>, out: &mut Errors) {
    let on = |field: &str| spec.field(field).value == true;
    let own = spec.field("hostUsers").value == false;
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in spec.field(list).items() {
            let devices = container.field("volumeDevices");
            if own && devices.len() > 0 {
                out.push(devices.forbidden("when `hostUsers` is false"));
            }
            let proc = container.field("securityContext").field("procMount");
            if !own && proc.text() == "Unmasked" {
                out.push(proc.invalid("`hostUsers` must be false to use `Unmasked`"));
            }
        }
    }
    if own {
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            if on(field) {
                out.push(spec.field(field).forbidden("when `hostUsers` is false"));
            }
        }
    }
}

/// A host name in place of the pod's own.
fn host_name_override(spec: &At<'_>, name: &At<'_>, out: &mut Errors) {
    if spec.field("hostNetwork").value == true {
        out.push(name.forbidden("may not be specified when hostNetwork is true"));
    }
    if spec.field("setHostnameAsFQDN").value == true {
        out.push(name.forbidden("may not be specified when setHostnameAsFQDN is true"));
    }
    if name.text().len() > HOST_NAME_MAX {
        out.push(name.invalid(format!("must be no more than {HOST_NAME_MAX} characters")));
    }
    name.check(names::dns1123_subdomain, out);
}

/// Settings for all containers of a pod.
fn security_context(context: &At<'_>, out: &mut Errors) {
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        id(&context.field(field), out);
    }
    seccomp(&context.field("seccompProfile"), out);
    app_armor(&context.field("appArmorProfile"), out);
    context.field("supplementalGroupsPolicy").one_of_if_set(&["Merge", "Strict"], out);
    context.field("seLinuxChangePolicy").one_of_if_set(&["MountOption", "Recursive"], out);
    context.field("supplementalGroups").items().for_each(|group| id(&group, out));
    context.field("fsGroupChangePolicy").one_of_if_set(&["Always", "OnRootMismatch"], out);
    let mut seen = BTreeSet::new();
    for sysctl in context.field("sysctls").items() {
        let name = sysctl.field("name");
        if name.text().is_empty() {
            out.push(name.required(""));
        } else if name.text().len() > SYSCTL_MAX || !is_sysctl(name.text()) {
            let detail = format!("must have at most {SYSCTL_MAX} characters and match regex {SYSCTL}");
            out.push(name.invalid(detail));
        }
        if !seen.insert(name.text().replace('/', ".")) {
            out.push(name.duplicate());
        }
    }
}

/// Whether a text names a sysctl: words of lower-case letters, digits, `-` and `_`, parted by dots or slashes.
fn is_sysctl(name: &str) -> bool {
    name.split(['.', '/']).all(|word| {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let bytes = word.as_bytes();
        bytes.first().is_some_and(|c| plain(*c))
            && bytes.last().is_some_and(|c| plain(*c))
            && bytes.iter().all(|c| plain(*c) || matches!(c, b'-' | b'_'))
    })
}

/// Which system calls are let through.
pub(super) fn seccomp(profile: &At<'_>, out: &mut Errors) {
    profile_of(profile, "seccomp", "seccompProfile", out);
}

/// Which AppArmor profile confines.
pub(super) fn app_armor(profile: &At<'_>, out: &mut Errors) {
    profile_of(profile, "AppArmor", "appArmorProfile", out);
}

/// A profile of one of three types, of which one needs a name.
fn profile_of(profile: &At<'_>, what: &str, field: &str, out: &mut Errors) {
    if !profile.is_set() {
        return;
    }
    let (kind, local) = (profile.field("type"), profile.field("localhostProfile"));
    match kind.text() {
        "Localhost" if local.text().is_empty() => {
            out.push(local.required(&format!("must be set when {what} type is Localhost")));
        }
        "Localhost" if local.text().starts_with('/') || local.text().split('/').any(|part| part == "..") => {
            out.push(local.invalid("must be a relative path"));
        }
        "Localhost" => {}
        "" => out.push(kind.required(&format!("type is required when {field} is set"))),
        _ if local.is_set() => out.push(local.invalid(format!("can only be set when {what} type is Localhost"))),
        _ => {}
    }
    if !kind.text().is_empty() {
        kind.one_of_if_set(&["Localhost", "RuntimeDefault", "Unconfined"], out);
    }
}

/// A user or group id.
pub(super) fn id(at: &At<'_>, out: &mut Errors) {
    if at.is_set() {
        let wrong = names::in_range(at.number(), 0, ID_MAX).into_iter();
        out.extend(wrong.map(|sentence| at.invalid(sentence)));
    }
}

/// Name servers of a pod's own.
fn dns_config(spec: &At<'_>, out: &mut Errors) {
    let config = spec.field("dnsConfig");
    let servers = config.field("nameservers");
    if spec.field("dnsPolicy").text() == "None" && servers.len() == 0 {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        out.push(if config.is_set() {
            servers.required(detail)
        } else {
            config.required("must provide `dnsConfig` when `dnsPolicy` is None")
        });
    }
    if servers.len() > 3 {
        out.push(servers.invalid("must not have more than 3 nameservers"));
    }
    servers.items().for_each(|server| server.check(names::ip, out));
    let searches = config.field("searches");
    if searches.len() > SEARCHES_MAX.0 {
        out.push(searches.invalid(format!("must not have more than {} search paths", SEARCHES_MAX.0)));
    }
    let together: usize = searches.items().map(|search| search.text().len() + 1).sum();
    if together.saturating_sub(1) > SEARCHES_MAX.1 {
        let detail =
            format!("must not have more than {} characters (including spaces) in the search list", SEARCHES_MAX.1);
        out.push(searches.invalid(detail));
    }
    for search in searches.items() {
        let name = search.text().strip_suffix('.').unwrap_or(search.text());
        if name != "." && !name.is_empty() {
            let wrong = names::dns1123_subdomain(name).into_iter();
            out.extend(wrong.map(|sentence| search.invalid(sentence)));
        }
    }
    config.field("options").items().for_each(|option| option.field("name").require(out));
}

/// A changed pod: images, a shorter deadline and more tolerations, nothing else.
pub(super) fn update(pod: &At<'_>, old: &Value, out: &mut Errors) {
    let spec = pod.field("spec");
    let before = &old["spec"];
    check_spec(&spec, &[], out);
    for list in ["containers", "initContainers"] {
        let now = spec.field(list);
        if now.len() != before[list].as_array().map_or(0, Vec::len) {
            out.push(now.forbidden("pod updates may not add or remove containers"));
            return;
        }
        for container in now.items() {
            container.field("image").require(out);
        }
    }
    if !deadline_change(&spec.field("activeDeadlineSeconds"), &before["activeDeadlineSeconds"], out) {
        return;
    }
    tolerations_change(&spec.field("tolerations"), &before["tolerations"], out);
    gates_change(&spec.field("schedulingGates"), &before["schedulingGates"], out);
    let changed = frozen_changes(spec.value, before);
    if !changed.is_empty() {
        let list: Vec<String> = changed.iter().map(|field| format!("`spec.{field}`")).collect();
        out.push(spec.forbidden(format!("{FORBIDDEN_UPDATE}\nchanged: {}", list.join(", "))));
    }
}

/// A deadline may come and get shorter; tells whether it is worth going on.
fn deadline_change(now: &At<'_>, before: &Value, out: &mut Errors) -> bool {
    match (now.value.as_i64(), before.as_i64()) {
        (Some(new), Some(old)) if new > old => {
            out.push(now.invalid("must be less than or equal to previous value"));
            false
        }
        (None, Some(_)) => {
            out.push(now.invalid("must not update from a positive integer to nil value"));
            true
        }
        _ => true,
    }
}

/// Tolerations may be added; of those there are, only the seconds may change.
fn tolerations_change(now: &At<'_>, before: &Value, out: &mut Errors) {
    let core = |toleration: &Value| {
        let mut core = toleration.clone();
        if let Some(map) = core.as_object_mut() {
            map.remove("tolerationSeconds");
        }
        core
    };
    let kept: Vec<Value> = now.items().map(|t| core(t.value)).collect();
    if before.as_array().into_iter().flatten().any(|old| !kept.contains(&core(old))) {
        out.push(now.forbidden("existing toleration can not be modified except its tolerationSeconds"));
    }
}

/// Gates only go.
fn gates_change(now: &At<'_>, before: &Value, out: &mut Errors) {
    let known = before.as_array().map_or(&[][..], Vec::as_slice);
    for gate in now.items().filter(|gate| !known.contains(gate.value)) {
        let detail = format!("only deletion is allowed, but found new scheduling gate '{}'", gate.field("name").text());
        out.push(gate.forbidden(detail));
    }
}

/// Members of the spec that differ although they may not.
fn frozen_changes(now: &Value, before: &Value) -> BTreeSet<String> {
    let (now, before) = (thawed(now, before), thawed(before, before));
    let empty = serde_json::Map::new();
    let (now, before) = (now.as_object().unwrap_or(&empty), before.as_object().unwrap_or(&empty));
    now.keys().chain(before.keys()).filter(|key| now.get(*key) != before.get(*key)).cloned().collect()
}

/// A spec without what may change.
fn thawed(spec: &Value, before: &Value) -> Value {
    let mut spec = spec.clone();
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(map) = container.as_object_mut() {
                map.remove("image");
            }
        }
    }
    if let Some(map) = spec.as_object_mut() {
        map.remove("activeDeadlineSeconds");
        map.remove("tolerations");
        map.remove("schedulingGates");
        // Ephemeral containers are written through their own subresource, which refuses other changes itself.
        let was_negative = before["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0);
        if was_negative && map.get("terminationGracePeriodSeconds").and_then(Value::as_i64) == Some(1) {
            map.insert("terminationGracePeriodSeconds".into(), before["terminationGracePeriodSeconds"].clone());
        }
    }
    spec
}

/// A pod whose ephemeral containers are written: those that are there stay as they are.
pub(super) fn ephemeral_update(pod: &At<'_>, old: &Value, out: &mut Errors) {
    let spec = pod.field("spec");
    check_spec(&spec, &[], out);
    let list = spec.field("ephemeralContainers");
    let named =
        |list: &Value, name: &Value| list.as_array().into_iter().flatten().find(|c| c["name"] == *name).cloned();
    for before in old["spec"]["ephemeralContainers"].as_array().into_iter().flatten() {
        let name = before["name"].as_str().unwrap_or_default();
        match named(list.value, &before["name"]) {
            None => out.push(list.forbidden(format!("existing ephemeral containers {name:?} may not be removed\n"))),
            Some(now) if now != *before => {
                out.push(list.forbidden(format!("existing ephemeral containers {name:?} may not be changed\n")));
            }
            Some(_) => {}
        }
    }
}

/// A pod that is resized: cpu and memory of its containers, and nothing that would change its class.
pub(super) fn resize_update(pod: &At<'_>, old: &Value, out: &mut Errors) {
    let spec = pod.field("spec");
    check_spec(&spec, &[], out);
    if matches!(old["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
        out.push(pod.forbidden("Pod has ended: it cannot be resized"));
    }
    let class = qos_class(spec.value);
    if class != qos_class(&old["spec"]) {
        out.push(FieldError::invalid(&spec.path, class, "Pod QOS Class may not change as a result of resizing"));
    }
    for list in ["containers", "initContainers"] {
        let (now, before) = (spec.field(list), old["spec"][list].as_array().map_or(&[][..], Vec::as_slice));
        if now.len() != before.len() {
            out.push(now.forbidden("containers may not be added or removed"));
            return;
        }
        for (container, before) in now.items().zip(before) {
            if container.value["name"] != before["name"] {
                out.push(now.forbidden("containers may not be renamed or reordered on resize"));
                return;
            }
            let sidecar = list == "containers" || before["restartPolicy"] == "Always";
            if !sidecar && container.value["resources"] != before["resources"] {
                out.push(container.forbidden("only sidecar containers can be resized"));
            }
            resized(&container.field("resources"), &before["resources"], out);
        }
    }
}

/// Resources that are resized: amounts of cpu and memory, none of which goes.
fn resized(now: &At<'_>, before: &Value, out: &mut Errors) {
    for side in ["requests", "limits"] {
        let (list, was) = (now.field(side), &before[side]);
        let names = was.as_object().into_iter().flatten().map(|(name, _)| name);
        for name in names {
            if !list.field(name).is_set() {
                out.push(list.forbidden(format!("resource {side} cannot be removed")));
                break;
            }
        }
        let other = |map: &Value| -> Vec<(String, Value)> {
            let members = map.as_object().into_iter().flatten();
            members
                .filter(|(n, _)| !matches!(n.as_str(), "cpu" | "memory"))
                .map(|(n, v)| (n.clone(), v.clone()))
                .collect()
        };
        if other(list.value) != other(was) {
            out.push(list.forbidden("only cpu and memory resources are mutable"));
        }
    }
}

/// A changed status.
pub(super) fn status(pod: &At<'_>, out: &mut Errors) {
    let status = pod.field("status");
    for condition in status.field("conditions").items() {
        // A type with a prefix is somebody's own and has to be well-formed.
        let kind = condition.field("type");
        if kind.text().contains('/') {
            kind.check(names::qualified_name, out);
        }
    }
    if !status.field("nominatedNodeName").text().is_empty() {
        status.field("nominatedNodeName").check(names::dns1123_subdomain, out);
    }
    for ip in status.field("podIPs").items() {
        ip.field("ip").check(names::ip, out);
    }
}
