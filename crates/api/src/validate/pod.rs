//! Rules for pods and pod templates.

use std::collections::BTreeSet;

use serde_json::Value;

use super::container;
use super::cursor::{At, Errors};
use super::{metadata, volume};
use crate::names;
use crate::status::FieldError;

/// Longest deadline.
const SECONDS_MAX: i64 = i32::MAX as i64;
/// Largest user and group id.
const ID_MAX: i64 = i32::MAX as i64;
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
    spec.field("tolerations").items().for_each(|t| toleration(&t, out));
    for alias in spec.field("hostAliases").items() {
        alias.field("ip").check(names::ip, out);
        alias.field("hostnames").items().for_each(|name| name.check(names::dns1123_subdomain, out));
    }
    spec.field("priorityClassName").check_if_set(names::dns1123_subdomain, out);
    spec.field("runtimeClassName").check_if_set(names::dns1123_subdomain, out);
    spec.field("preemptionPolicy").one_of_if_set(&["Never", "PreemptLowerPriority"], out);
    for constraint in spec.field("topologySpreadConstraints").items() {
        let skew = constraint.field("maxSkew");
        if skew.number() <= 0 {
            out.push(skew.invalid("must be greater than zero"));
        }
        constraint.field("topologyKey").require(out);
        constraint.field("whenUnsatisfiable").one_of(&["DoNotSchedule", "ScheduleAnyway"], out);
    }
}

/// Settings for all containers of a pod.
fn security_context(context: &At<'_>, out: &mut Errors) {
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        id(&context.field(field), out);
    }
    context.field("supplementalGroups").items().for_each(|group| id(&group, out));
    context.field("fsGroupChangePolicy").one_of_if_set(&["Always", "OnRootMismatch"], out);
    let mut seen = BTreeSet::new();
    for sysctl in context.field("sysctls").items() {
        let name = sysctl.field("name");
        name.require(out);
        if !seen.insert(name.text()) {
            out.push(name.duplicate());
        }
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
    config.field("options").items().for_each(|option| option.field("name").require(out));
}

/// One toleration.
fn toleration(toleration: &At<'_>, out: &mut Errors) {
    let (key, operator, effect) = (toleration.field("key"), toleration.field("operator"), toleration.field("effect"));
    key.check_if_set(names::qualified_name, out);
    if key.text().is_empty() && operator.text() != "Exists" {
        let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        out.push(FieldError::invalid(&operator.path, operator.text(), detail));
    }
    if toleration.field("tolerationSeconds").is_set() && effect.text() != "NoExecute" {
        let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        out.push(FieldError::invalid(&effect.path, effect.text(), detail));
    }
    match operator.text() {
        "" | "Equal" => toleration.field("value").check(names::label_value, out),
        "Exists" if !toleration.field("value").text().is_empty() => {
            out.push(
                toleration
                    .field("value")
                    .named(operator.path)
                    .invalid("value must be empty when `operator` is 'Exists'"),
            );
        }
        "Exists" => {}
        _ => operator.one_of(&["Equal", "Exists"], out),
    }
    if !effect.text().is_empty() {
        effect.one_of(&["NoSchedule", "PreferNoSchedule", "NoExecute"], out);
    }
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
        // Ephemeral containers are written through their own subresource, which refuses other changes itself.
        let was_negative = before["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0);
        if was_negative && map.get("terminationGracePeriodSeconds").and_then(Value::as_i64) == Some(1) {
            map.insert("terminationGracePeriodSeconds".into(), before["terminationGracePeriodSeconds"].clone());
        }
    }
    spec
}

/// A changed status.
pub(super) fn status(pod: &At<'_>, out: &mut Errors) {
    let status = pod.field("status");
    if !status.field("nominatedNodeName").text().is_empty() {
        status.field("nominatedNodeName").check(names::dns1123_subdomain, out);
    }
    for ip in status.field("podIPs").items() {
        ip.field("ip").check(names::ip, out);
    }
}
