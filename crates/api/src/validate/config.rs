//! Rules for small kinds: config maps, secrets, leases, budgets, classes of pods.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::cursor::{At, Errors, IMMUTABLE};
use super::{int_or_percent, metadata};
use crate::names;
use crate::status::FieldError;

/// All values of a config map or secret together, in bytes.
const DATA_MAX: usize = 1 << 20;
/// The highest priority that people may define.
const PRIORITY_MAX: i64 = 1_000_000_000;

/// A new or changed config map.
pub(super) fn config_map(map: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    let (data, binary) = (map.field("data"), map.field("binaryData"));
    let mut total = 0;
    let invalid_key = |at: &At<'_>, key: &str, detail: String| FieldError::invalid(&at.path, key, detail);
    for (key, value) in data.members() {
        out.extend(names::config_map_key(key).into_iter().map(|e| invalid_key(&value, key, e)));
        if binary.field(key).is_set() {
            out.push(invalid_key(&value, key, "duplicate of key present in binaryData".into()));
        }
        total += value.text().len();
    }
    for (key, value) in binary.members() {
        out.extend(names::config_map_key(key).into_iter().map(|e| invalid_key(&value, key, e)));
        total += decoded_len(value.text());
    }
    if total > DATA_MAX {
        // The path of the whole object, as upstream writes it.
        out.push(FieldError::too_long("[]", DATA_MAX));
    }
    unchanged_if_immutable(map, old, &["data", "binaryData"], out);
}

/// A new or changed secret.
pub(super) fn secret(secret: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    let data = secret.field("data");
    let mut total = 0;
    for (key, value) in data.members() {
        let wrong = names::config_map_key(key).into_iter();
        out.extend(wrong.map(|e| FieldError::invalid(&value.path, key.as_str(), e)));
        total += decoded_len(value.text());
    }
    if total > DATA_MAX {
        out.push(FieldError::too_long(&data.path, DATA_MAX));
    }
    by_type(secret, &data, out);
    if let Some(old) = old {
        secret.field("type").immutable(&old["type"], out);
    }
    unchanged_if_immutable(secret, old, &["data"], out);
}

/// What a secret of a known type has to hold.
fn by_type(secret: &At<'_>, data: &At<'_>, out: &mut Errors) {
    let missing = |key: &str| data.key(key).required("");
    let has = |key: &str| data.field(key).is_set();
    match secret.field("type").text() {
        "kubernetes.io/dockercfg" => registry_logins(data, ".dockercfg", out),
        "kubernetes.io/dockerconfigjson" => registry_logins(data, ".dockerconfigjson", out),
        "kubernetes.io/ssh-auth" if data.field("ssh-privatekey").text().is_empty() => {
            out.push(missing("ssh-privatekey"));
        }
        "kubernetes.io/tls" => {
            out.extend(["tls.crt", "tls.key"].into_iter().filter(|key| !has(key)).map(missing));
        }
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            out.extend(["username", "password"].map(missing));
        }
        "kubernetes.io/service-account-token" => {
            let account = secret.field("metadata").field("annotations").key("kubernetes.io/service-account.name");
            account.require(out);
        }
        _ => {}
    }
}

/// Logins at registries are a JSON object.
fn registry_logins(data: &At<'_>, key: &str, out: &mut Errors) {
    if !data.field(key).is_set() {
        out.push(data.key(key).required(""));
        return;
    }
    let bytes = STANDARD.decode(data.field(key).text()).unwrap_or_default();
    if serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes).is_err() {
        let first = bytes.iter().find(|b| !b.is_ascii_whitespace()).map(|b| char::from(*b));
        let why = match first {
            None => "unexpected end of JSON input".to_owned(),
            Some(c) if !"{[\"-0123456789tfn".contains(c) => {
                format!("invalid character '{c}' looking for beginning of value")
            }
            Some(_) => "must be a JSON object".to_owned(),
        };
        out.push(FieldError::invalid(data.key(key).path, "<secret contents redacted>", why));
    }
}

/// A changed status of a namespace: it says whether the namespace is being deleted.
pub(super) fn namespace_status(namespace: &At<'_>, out: &mut Errors) {
    let deleting = namespace.field("metadata").field("deletionTimestamp").is_set();
    let phase = namespace.field("status").field("phase").named("status.Phase".to_owned());
    let (wanted, detail) = if deleting {
        ("Terminating", "may only be 'Terminating' if `deletionTimestamp` is not empty")
    } else {
        ("Active", "may only be 'Active' if `deletionTimestamp` is empty")
    };
    if phase.text() != wanted {
        out.push(FieldError::invalid(&phase.path, phase.text(), detail));
    }
}

/// How many bytes a base64 text stands for.
fn decoded_len(text: &str) -> usize {
    STANDARD.decode(text).map_or(text.len(), |bytes| bytes.len())
}

/// What was once declared immutable stays so, with its data.
fn unchanged_if_immutable(object: &At<'_>, old: Option<&Value>, fields: &[&str], out: &mut Errors) {
    let Some(old) = old.filter(|old| old["immutable"] == true) else { return };
    let detail = "field is immutable when `immutable` is set";
    if object.field("immutable").value != true {
        out.push(object.field("immutable").forbidden(detail));
    }
    for field in fields {
        if object.field(field).value != &old[field] {
            out.push(object.field(field).forbidden(detail));
        }
    }
}

/// A new or changed lease.
pub(super) fn lease(lease: &At<'_>, out: &mut Errors) {
    let spec = lease.field("spec");
    let duration = spec.field("leaseDurationSeconds");
    if duration.is_set() && duration.number() <= 0 {
        out.push(duration.invalid("must be greater than 0"));
    }
    spec.field("leaseTransitions").not_negative(out);
}

/// A new or changed disruption budget.
pub(super) fn budget(budget: &At<'_>, out: &mut Errors) {
    let spec = budget.field("spec");
    let (available, unavailable) = (spec.field("minAvailable"), spec.field("maxUnavailable"));
    if available.is_set() && unavailable.is_set() {
        out.push(spec.invalid("minAvailable and maxUnavailable cannot be both set"));
    }
    for bound in [available, unavailable].iter().filter(|bound| bound.is_set()) {
        int_or_percent(bound, out);
    }
    metadata::selector(&spec.field("selector"), out);
    spec.field("unhealthyPodEvictionPolicy").one_of_if_set(&["AlwaysAllow", "IfHealthyBudget"], out);
}

/// A new or changed runtime class.
pub(super) fn runtime_class(class: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    let handler = class.field("handler");
    handler.check(names::dns1123_label, out);
    if let Some(old) = old {
        handler.immutable(&old["handler"], out);
    }
}

/// A new or changed priority class.
pub(super) fn priority_class(class: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    let value = class.field("value");
    let name = class.field("metadata").field("name").text();
    if value.number() > PRIORITY_MAX && !name.starts_with("system-") {
        out.push(value.forbidden(format!("maximum allowed value of a user defined priority is {PRIORITY_MAX}")));
    }
    class.field("preemptionPolicy").one_of_if_set(&["Never", "PreemptLowerPriority"], out);
    if let Some(old) = old {
        if value.number() != old["value"].as_i64().unwrap_or(0) {
            out.push(value.forbidden("may not be changed in an update."));
        }
        let policy = class.field("preemptionPolicy");
        if policy.value != &old["preemptionPolicy"] {
            out.push(policy.invalid(IMMUTABLE));
        }
    }
}
