//! Rules for roles and their bindings.

use serde_json::Value;

use super::cursor::{At, Errors};
use crate::names;
use crate::status::FieldError;

/// The only group that roles, users and groups are of.
const GROUP: &str = "rbac.authorization.k8s.io";

/// A new or changed role.
pub(super) fn rules(role: &At<'_>, namespaced: bool, out: &mut Errors) {
    for rule in role.field("rules").items() {
        let (verbs, urls) = (rule.field("verbs"), rule.field("nonResourceURLs"));
        if verbs.len() == 0 {
            out.push(verbs.required("verbs must contain at least one value"));
        }
        let (groups, resources) = (rule.field("apiGroups"), rule.field("resources"));
        if urls.len() > 0 {
            if namespaced {
                out.push(urls.invalid("namespaced rules cannot apply to non-resource URLs"));
            }
            if groups.len() + resources.len() + rule.field("resourceNames").len() > 0 {
                out.push(urls.invalid("rules cannot apply to both regular resources and non-resource URLs"));
            }
            continue;
        }
        if groups.len() == 0 {
            out.push(groups.required("resource rules must supply at least one api group"));
        }
        if resources.len() == 0 {
            out.push(resources.required("resource rules must supply at least one resource"));
        }
    }
}

/// A new or changed binding.
pub(super) fn binding(binding: &At<'_>, namespaced: bool, old: Option<&Value>, out: &mut Errors) {
    let role = binding.field("roleRef");
    let group = role.field("apiGroup");
    if group.text() != GROUP {
        out.push(FieldError::not_supported(&group.path, group.text(), &[GROUP]));
    }
    let kind = role.field("kind");
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&kind.text()) {
        out.push(FieldError::not_supported(&kind.path, kind.text(), kinds));
    }
    role.field("name").check_required(names::path_segment, out);
    for subject in binding.field("subjects").items() {
        check_subject(&subject, namespaced, out);
    }
    if let Some(old) = old
        && role.value != &old["roleRef"]
    {
        out.push(role.invalid("cannot change roleRef"));
    }
}

/// Who a role is granted to.
fn check_subject(subject: &At<'_>, namespaced: bool, out: &mut Errors) {
    let (name, group, kind) = (subject.field("name"), subject.field("apiGroup"), subject.field("kind"));
    name.require(out);
    let expect_group = |expected: &str, out: &mut Errors| {
        if group.text() != expected {
            out.push(FieldError::not_supported(&group.path, group.text(), &[expected]));
        }
    };
    match kind.text() {
        "ServiceAccount" => {
            name.check_if_set(names::dns1123_subdomain, out);
            expect_group("", out);
            if !namespaced {
                subject.field("namespace").require(out);
            }
        }
        "User" | "Group" => expect_group(GROUP, out),
        other => {
            out.push(FieldError::not_supported(&kind.path, other, &["ServiceAccount", "User", "Group"]));
        }
    }
}
