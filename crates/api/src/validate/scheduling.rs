//! Rules for where pods may run: affinity, tolerations, spreading, gates.

use std::collections::BTreeSet;

use super::cursor::{At, Errors};
use super::metadata;
use crate::names;
use crate::status::FieldError;

/// Largest weight of a preference.
const WEIGHT_MAX: i64 = 100;

/// Everything in a pod's spec that the scheduler reads.
pub(super) fn check(spec: &At<'_>, out: &mut Errors) {
    affinity(&spec.field("affinity"), out);
    spec.field("tolerations").items().for_each(|t| toleration(&t, out));
    spread(&spec.field("topologySpreadConstraints"), out);
    gates(spec, out);
}

/// Affinity to nodes and to other pods.
fn affinity(affinity: &At<'_>, out: &mut Errors) {
    node_affinity(&affinity.field("nodeAffinity"), out);
    for kind in ["podAffinity", "podAntiAffinity"] {
        let affinity = affinity.field(kind);
        for term in affinity.field("requiredDuringSchedulingIgnoredDuringExecution").items() {
            pod_term(&term, out);
        }
        for preference in affinity.field("preferredDuringSchedulingIgnoredDuringExecution").items() {
            weight(&preference, out);
            pod_term(&preference.field("podAffinityTerm"), out);
        }
    }
}

/// Affinity to nodes.
fn node_affinity(affinity: &At<'_>, out: &mut Errors) {
    node_selector(&affinity.field("requiredDuringSchedulingIgnoredDuringExecution"), out);
    for preference in affinity.field("preferredDuringSchedulingIgnoredDuringExecution").items() {
        weight(&preference, out);
        node_term(&preference.field("preference"), out);
    }
}

/// A selector of nodes: one of its terms at least.
pub(super) fn node_selector(selector: &At<'_>, out: &mut Errors) {
    if !selector.is_set() {
        return;
    }
    let terms = selector.field("nodeSelectorTerms");
    if terms.len() == 0 {
        out.push(terms.required("must have at least one node selector term"));
    }
    terms.items().for_each(|term| node_term(&term, out));
}

/// One term of a selector of nodes.
fn node_term(term: &At<'_>, out: &mut Errors) {
    for requirement in term.field("matchExpressions").items() {
        node_requirement(&requirement, out);
        requirement.field("key").check(names::qualified_name, out);
    }
    for requirement in term.field("matchFields").items() {
        let (key, operator, values) =
            (requirement.field("key"), requirement.field("operator"), requirement.field("values"));
        match operator.text() {
            "In" | "NotIn" if values.len() != 1 => {
                out.push(
                    values
                        .required("must be only one value when `operator` is 'In' or 'NotIn' for node field selector"),
                );
            }
            "In" | "NotIn" => {}
            other => out.push(FieldError::invalid(&operator.path, other, "not a valid selector operator")),
        }
        if key.text() == "metadata.name" {
            values.items().for_each(|value| value.check(names::dns1123_subdomain, out));
        } else {
            out.push(FieldError::invalid(&key.path, key.text(), "not a valid field selector key"));
        }
    }
}

/// What one label of a node has to be.
fn node_requirement(requirement: &At<'_>, out: &mut Errors) {
    let (operator, values) = (requirement.field("operator"), requirement.field("values"));
    match operator.text() {
        "In" | "NotIn" if values.len() == 0 => {
            out.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"));
        }
        "Exists" | "DoesNotExist" if values.len() > 0 => {
            out.push(values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
        }
        "Gt" | "Lt" if values.len() != 1 => {
            out.push(values.required("must be specified single value when `operator` is 'Lt' or 'Gt'"));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => out.push(FieldError::invalid(&operator.path, other, "not a valid selector operator")),
    }
}

/// How much a preference counts.
fn weight(preference: &At<'_>, out: &mut Errors) {
    let weight = preference.field("weight");
    if !(1..=WEIGHT_MAX).contains(&weight.number()) {
        out.push(FieldError::invalid(&weight.path, weight.number(), "must be in the range 1-100"));
    }
}

/// One term of an affinity to other pods.
fn pod_term(term: &At<'_>, out: &mut Errors) {
    metadata::selector(&term.field("labelSelector"), out);
    metadata::selector(&term.field("namespaceSelector"), out);
    let namespaces = term.field("namespaces");
    for namespace in namespaces.items() {
        let wrong = names::dns1123_label(namespace.text()).into_iter();
        let path = format!("{}.namespace", term.path);
        out.extend(wrong.map(|sentence| FieldError::invalid(&path, namespace.text(), sentence)));
    }
    let key = term.field("topologyKey");
    if key.text().is_empty() {
        out.push(key.required("can not be empty"));
    }
    key.check(names::qualified_name, out);
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

/// How pods are spread.
fn spread(constraints: &At<'_>, out: &mut Errors) {
    let mut seen = BTreeSet::new();
    for constraint in constraints.items() {
        let (skew, key, otherwise) =
            (constraint.field("maxSkew"), constraint.field("topologyKey"), constraint.field("whenUnsatisfiable"));
        if skew.number() <= 0 {
            out.push(FieldError::invalid(&skew.path, skew.number(), "must be greater than zero"));
        }
        if key.text().is_empty() {
            out.push(key.required("can not be empty"));
        }
        key.check(names::qualified_name, out);
        otherwise.one_of_or_empty(&["DoNotSchedule", "ScheduleAnyway"], out);
        if !seen.insert((key.text(), otherwise.text())) {
            let pair = format!("{{{}, {}}}", key.text(), otherwise.text());
            out.push(FieldError::duplicate(format!("{}.{{topologyKey, whenUnsatisfiable}}", constraint.path), pair));
        }
        let domains = constraint.field("minDomains");
        if domains.is_set() && domains.number() <= 0 {
            out.push(domains.invalid("must be greater than zero"));
        }
        if domains.is_set() && otherwise.text() != "DoNotSchedule" {
            let detail =
                format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}", otherwise.text());
            out.push(domains.invalid(detail));
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            constraint.field(policy).one_of_if_set(&["Honor", "Ignore"], out);
        }
        metadata::selector(&constraint.field("labelSelector"), out);
        label_keys(&constraint, out);
    }
}

/// Keys whose values the new pod's labels give.
fn label_keys(constraint: &At<'_>, out: &mut Errors) {
    let keys = constraint.field("matchLabelKeys");
    if keys.len() == 0 {
        return;
    }
    let selector = constraint.field("labelSelector");
    if !selector.is_set() {
        out.push(keys.forbidden("must not be specified when labelSelector is not set"));
        return;
    }
    for key in keys.items() {
        key.check(names::qualified_name, out);
        let named = selector.field("matchLabels").field(key.text()).is_set()
            || selector.field("matchExpressions").items().any(|e| e.field("key").text() == key.text());
        if named {
            out.push(key.invalid("exists in both matchLabelKeys and labelSelector"));
        }
    }
}

/// What keeps a pod from being scheduled.
fn gates(spec: &At<'_>, out: &mut Errors) {
    let gates = spec.field("schedulingGates");
    let mut seen = BTreeSet::new();
    for gate in gates.items() {
        let name = gate.field("name");
        name.named(gate.path.clone()).check(names::qualified_name, out);
        if !seen.insert(name.text()) {
            out.push(FieldError::duplicate(&gate.path, name.text()));
        }
    }
    let node = spec.field("nodeName");
    if gates.len() > 0 && !node.text().is_empty() {
        out.push(node.forbidden("cannot be set until all schedulingGates have been cleared"));
    }
}
