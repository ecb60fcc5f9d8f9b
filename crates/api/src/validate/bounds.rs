//! Rules for quotas and limit ranges.

use std::collections::BTreeSet;

use serde_json::Value;

use super::cursor::{At, Errors, NOT_NEGATIVE};
use super::resources;
use crate::amounts;
use crate::names;
use crate::quantity::Quantity;
use crate::status::FieldError;

/// What a limit range can be about without a prefix.
const TYPES: [&str; 3] = ["Pod", "Container", "PersistentVolumeClaim"];
/// Scopes of quotas.
const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];
/// Names that quotas bound without a prefix, further to those of containers.
const BOUNDED: [&str; 20] = [
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
    "storage",
];

/// A new or changed quota.
pub(super) fn quota(quota: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    let spec = quota.field("spec");
    for (name, amount) in spec.field("hard").members() {
        bound_name(name, &amount, out);
        amount_of(name, &amount, out);
    }
    let scopes = spec.field("scopes");
    all_scopes(&scopes, out);
    for requirement in spec.field("scopeSelector").field("matchExpressions").items() {
        scope_requirement(&requirement, out);
    }
    if let Some(old) = old {
        let sorted = |list: &Value| -> BTreeSet<String> {
            list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        if sorted(scopes.value) != sorted(&old["spec"]["scopes"]) {
            out.push(scopes.invalid("field is immutable"));
        }
    }
}

/// A changed status of a quota.
pub(super) fn quota_status(quota: &At<'_>, out: &mut Errors) {
    for list in ["hard", "used"] {
        for (name, amount) in quota.field("status").field(list).members() {
            bound_name(name, &amount, out);
            amount_of(name, &amount, out);
        }
    }
}

/// A name that can be bounded.
fn bound_name(name: &str, amount: &At<'_>, out: &mut Errors) {
    let wrong = |detail: String| FieldError::invalid(&amount.path, name, detail);
    let malformed = names::qualified_name(name);
    if malformed.is_empty()
        && !name.contains('/')
        && !BOUNDED.contains(&name)
        && !name.starts_with("requests.hugepages-")
        && !name.starts_with("hugepages-")
    {
        out.push(wrong("must be a standard resource for quota".into()));
    }
    out.extend(malformed.into_iter().map(wrong));
}

/// An amount that is not negative, and whole where things are counted.
fn amount_of(name: &str, amount: &At<'_>, out: &mut Errors) {
    let Ok(quantity) = Quantity::parse(amount.text()) else { return };
    if quantity.is_negative() {
        out.push(amount.invalid(NOT_NEGATIVE));
    }
    let counted = matches!(
        name,
        "pods"
            | "services"
            | "secrets"
            | "configmaps"
            | "persistentvolumeclaims"
            | "replicationcontrollers"
            | "resourcequotas"
            | "services.nodeports"
            | "services.loadbalancers"
    );
    if counted && !quantity.is_whole() {
        out.push(amount.invalid("must be an integer"));
    }
}

/// Scopes that are known and do not rule each other out.
fn all_scopes(scopes: &At<'_>, out: &mut Errors) {
    let given: BTreeSet<&str> = scopes.items().map(|scope| scope.text()).collect();
    for scope in scopes.items().filter(|scope| !SCOPES.contains(&scope.text())) {
        out.push(FieldError::invalid(&scopes.path, scope.text(), "unsupported scope"));
    }
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if pair.iter().all(|scope| given.contains(scope)) {
            out.push(scopes.invalid("conflicting scopes"));
        }
    }
}

/// One requirement of a selector of scopes.
fn scope_requirement(requirement: &At<'_>, out: &mut Errors) {
    let (scope, operator, values) =
        (requirement.field("scopeName"), requirement.field("operator"), requirement.field("values"));
    if !SCOPES.contains(&scope.text()) {
        out.push(FieldError::invalid(&scope.path, scope.text(), "unsupported scope"));
    }
    let only_exists = !matches!(scope.text(), "PriorityClass" | "VolumeAttributesClass");
    match operator.text() {
        "In" | "NotIn" if only_exists => {
            out.push(operator.invalid("must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity"));
        }
        "In" | "NotIn" if values.len() == 0 => {
            out.push(
                values.required("must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"),
            );
        }
        "Exists" | "DoesNotExist" if values.len() > 0 => {
            out.push(
                values.invalid("must be no value when `operator` is 'Exists' or 'DoesNotExist' for scope selector"),
            );
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => out.push(FieldError::invalid(&operator.path, other, "not a valid selector operator")),
    }
}

/// A new or changed limit range.
pub(super) fn limit_range(range: &At<'_>, out: &mut Errors) {
    let mut seen = BTreeSet::new();
    for item in range.field("spec").field("limits").items() {
        let kind = item.field("type");
        if !TYPES.contains(&kind.text()) && !kind.text().contains('/') {
            out.push(kind.invalid("must be a standard limit type or fully qualified"));
        }
        kind.check(names::qualified_name, out);
        if !seen.insert(kind.text()) {
            out.push(FieldError::duplicate(format!("{}.type", item.path), kind.text()));
        }
        for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            for (name, amount) in item.field(list).members() {
                resources::name(name, &amount, out);
            }
        }
        if kind.text() == "Pod" {
            for list in ["default", "defaultRequest"] {
                if item.field(list).len() > 0 {
                    out.push(item.field(list).forbidden("may not be specified when `type` is 'Pod'"));
                }
            }
        }
        if kind.text() == "PersistentVolumeClaim"
            && !item.field("min").field("storage").is_set()
            && !item.field("max").field("storage").is_set()
        {
            let detail = "either minimum or maximum storage value is required, but neither was provided";
            out.push(item.required(detail));
        }
        bounds_agree(&item, out);
    }
}

/// What an item says about one resource has to fit together.
fn bounds_agree(item: &At<'_>, out: &mut Errors) {
    let list = |name: &str| amounts::read(item.field(name).value);
    let (max, min, default, request, ratio) =
        (list("max"), list("min"), list("default"), list("defaultRequest"), list("maxLimitRequestRatio"));
    let lists = [&max, &min, &default, &request, &ratio];
    let keys: BTreeSet<&String> = lists.iter().flat_map(|list| list.keys()).collect();
    for key in keys {
        // Of two that do not fit, which one and where is as upstream says it.
        let mut above =
            |field: &str, low: (&str, Option<&Quantity>), high: (&str, Option<&Quantity>), shows_low: bool| {
                if let (Some(least), Some(most)) = (low.1, high.1)
                    && least > most
                {
                    let detail = format!("{} value {least} is greater than {} value {most}", low.0, high.0);
                    let shown = if shows_low { least } else { most };
                    out.push(FieldError::invalid(format!("{}.{field}[{key}]", item.path), shown.to_string(), detail));
                }
            };
        let (min, max, default, request) = (min.get(key), max.get(key), default.get(key), request.get(key));
        above("min", ("min", min), ("max", max), true);
        above("defaultRequest", ("min", min), ("default request", request), false);
        above("defaultRequest", ("default request", request), ("max", max), true);
        above("defaultRequest", ("default request", request), ("default limit", default), true);
        above("default", ("min", min), ("default", default), true);
        above("default", ("default", default), ("max", max), false);
        if let Some(most) = ratio.get(key)
            && *most < Quantity::from_units(1)
        {
            let path = format!("{}.maxLimitRequestRatio[{key}]", item.path);
            out.push(FieldError::invalid(path, most.to_string(), format!("ratio {most} is less than 1")));
        }
    }
}

/// A changed or new node: its labels of taints.
pub(super) fn node(node: &At<'_>, out: &mut Errors) {
    let mut seen = BTreeSet::new();
    for taint in node.field("spec").field("taints").items() {
        let (key, value, effect) = (taint.field("key"), taint.field("value"), taint.field("effect"));
        key.check(names::qualified_name, out);
        value.check(names::label_value, out);
        if effect.text().is_empty() {
            out.push(effect.required(""));
        } else {
            effect.one_of_if_set(&["NoSchedule", "PreferNoSchedule", "NoExecute"], out);
        }
        if !seen.insert((key.text(), effect.text())) {
            let mut duplicate = taint.duplicate();
            duplicate.detail = "taints must be unique by key and effect pair".into();
            out.push(duplicate);
        }
    }
}
