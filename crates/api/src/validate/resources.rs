//! Rules for requests and limits.

use super::cursor::{At, Errors, NOT_NEGATIVE};
use crate::names;
use crate::quantity::Quantity;
use crate::status::FieldError;

/// Resources without a prefix that anything may be counted in.
const STANDARD: [&str; 17] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "storage",
    "pods",
    "services",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "resourcequotas",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "limits.cpu",
    "limits.memory",
    "services.nodeports",
];
/// Those that containers can have.
const OF_CONTAINERS: [&str; 3] = ["cpu", "ephemeral-storage", "memory"];

/// Requests and limits of a container.
pub(super) fn requirements(resources: &At<'_>, out: &mut Errors) {
    let (limits, requests) = (resources.field("limits"), resources.field("requests"));
    for (name, amount) in limits.members() {
        check_amount(name, &amount, out);
    }
    for (name, amount) in requests.members() {
        check_amount(name, &amount, out);
        check_pair(name, &amount, &limits, &requests, out);
    }
    let any =
        |wanted: fn(&str) -> bool| [&limits, &requests].iter().any(|list| list.members().any(|(name, _)| wanted(name)));
    if any(is_huge_pages) && !any(|name| matches!(name, "cpu" | "memory")) {
        out.push(resources.forbidden("HugePages require cpu or memory"));
    }
}

/// Requests and limits of a whole pod: cpu, memory and huge pages.
pub(super) fn of_pod(resources: &At<'_>, out: &mut Errors) {
    for side in ["limits", "requests"] {
        for (name, amount) in resources.field(side).members() {
            if !matches!(name.as_str(), "cpu" | "memory") && !is_huge_pages(name) {
                out.push(FieldError::not_supported(&amount.path, name.as_str(), &["cpu", "hugepages-", "memory"]));
            }
        }
    }
    requirements(resources, out);
}

/// A name that anything may be counted in.
pub(super) fn name(name: &str, amount: &At<'_>, out: &mut Errors) {
    let malformed = names::qualified_name(name);
    if malformed.is_empty() && !name.contains('/') && !STANDARD.contains(&name) && !is_huge_pages(name) {
        let detail = "must be a standard resource type or fully qualified";
        out.push(FieldError::invalid(&amount.path, name, detail));
    }
    out.extend(malformed.into_iter().map(|sentence| FieldError::invalid(&amount.path, name, sentence)));
}

/// One named amount.
fn check_amount(name: &str, amount: &At<'_>, out: &mut Errors) {
    let wrong = |detail: &str| FieldError::invalid(&amount.path, name, detail);
    let malformed = names::qualified_name(name);
    if malformed.is_empty() {
        if !name.contains('/') {
            if !STANDARD.contains(&name) && !is_huge_pages(name) {
                out.push(wrong("must be a standard resource type or fully qualified"));
            }
            if !OF_CONTAINERS.contains(&name) && !is_huge_pages(name) {
                out.push(wrong("must be a standard resource for containers"));
            }
        } else if !is_native(name) && name.starts_with("requests.") {
            out.push(wrong("doesn't follow extended resource name standard"));
        }
    }
    out.extend(malformed.iter().map(|sentence| wrong(sentence)));
    if let Ok(quantity) = Quantity::parse(amount.text()) {
        if quantity.is_negative() {
            out.push(amount.invalid(NOT_NEGATIVE));
        }
        if !is_native(name) && !quantity.is_whole() {
            out.push(amount.invalid("must be an integer"));
        }
    }
}

/// A request against its limit: not above it, and equal to it where nothing can be overcommitted.
fn check_pair(name: &str, request: &At<'_>, limits: &At<'_>, requests: &At<'_>, out: &mut Errors) {
    let overcommit = is_native(name) && !is_huge_pages(name);
    let limit = limits.key(name);
    if !limit.is_set() {
        if !overcommit {
            out.push(limits.required("Limit must be set for non overcommitable resources"));
        }
        return;
    }
    let (Ok(amount), Ok(bound)) = (Quantity::parse(request.text()), Quantity::parse(limit.text())) else { return };
    if amount != bound && !overcommit {
        let detail = format!("must be equal to {name} limit of {bound}");
        out.push(FieldError::invalid(&requests.path, amount.to_string(), detail));
    } else if amount > bound {
        let detail = format!("must be less than or equal to {name} limit of {bound}");
        out.push(FieldError::invalid(&requests.path, amount.to_string(), detail));
    }
}

/// Whether a resource is one of Kubernetes' own.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Whether a resource is huge pages of some size.
fn is_huge_pages(name: &str) -> bool {
    name.starts_with("hugepages-")
}
