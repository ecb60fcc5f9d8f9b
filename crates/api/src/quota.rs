//! ResourceQuotas: what objects count for, which quotas count them, and whether there is room.
//!
//! ```text
//!  object ─▶ usage ─▶ of what the quota bounds ─▶ + used ≤ hard? ─▶ used afterwards, or why not
//! ```
//!
//! Pure: the server charges a quota in the transaction that creates the object, the controller counts anew.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::Value;

use crate::amounts::{self, Amounts, Side};
use crate::quantity::Quantity;
use crate::strategy::qos_class;

/// Kinds of the core group that are counted under their own name too.
const PLAIN: [&str; 5] = ["configmaps", "persistentvolumeclaims", "resourcequotas", "secrets", "services"];
/// Suffix of names that count per storage class.
const OF_CLASS: &str = ".storageclass.storage.k8s.io/";
/// Annotation that named a claim's class before there was a field.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
/// Names that every container of a pod has to give an amount for where a quota bounds them.
const DEMANDED: [&str; 6] = ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];

/// What one object counts for.
pub fn usage(group: &str, plural: &str, object: &Value, now: Timestamp) -> Amounts {
    let mut out = Amounts::new();
    let one = || Quantity::from_units(1);
    let name = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
    out.insert(format!("count/{name}"), one());
    if group.is_empty() && PLAIN.contains(&plural) {
        out.insert(plural.to_owned(), one());
    }
    match (group, plural) {
        ("", "pods") if is_alive(object, now) => pod(&object["spec"], &mut out),
        ("", "services") => service(&object["spec"], &mut out),
        ("", "persistentvolumeclaims") => claim(object, &mut out),
        _ => {}
    }
    out
}

/// Whether a pod still takes anything: it has not ended, and its time to end has not run out long ago.
fn is_alive(pod: &Value, now: Timestamp) -> bool {
    if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
        return false;
    }
    let metadata = &pod["metadata"];
    let deleted: Option<Timestamp> = metadata["deletionTimestamp"].as_str().and_then(|t| t.parse().ok());
    match (deleted, metadata["deletionGracePeriodSeconds"].as_i64()) {
        (Some(at), Some(grace)) => now.as_second() <= at.as_second().saturating_add(grace),
        _ => true,
    }
}

/// What a pod counts for.
fn pod(spec: &Value, out: &mut Amounts) {
    out.insert("pods".to_owned(), Quantity::from_units(1));
    for (name, amount) in amounts::of_pod(spec, Side::Requests) {
        let is_standard = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
        if is_standard || name.starts_with("hugepages-") {
            out.insert(name.clone(), amount.clone());
        }
        if is_standard || name.starts_with("hugepages-") || name.contains('/') {
            out.insert(format!("requests.{name}"), amount);
        }
    }
    for (name, amount) in amounts::of_pod(spec, Side::Limits) {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            out.insert(format!("limits.{name}"), amount);
        }
    }
}

/// What a service counts for.
fn service(spec: &Value, out: &mut Amounts) {
    let ports = spec["ports"].as_array().map_or(&[][..], Vec::as_slice);
    let all = ports.len();
    let given = ports.iter().filter(|port| port["nodePort"].as_i64().unwrap_or(0) != 0).count();
    let (on_nodes, balancers) = match spec["type"].as_str() {
        Some("NodePort") => (all, 0),
        Some("LoadBalancer") if spec["allocateLoadBalancerNodePorts"] == false => (given, 1),
        Some("LoadBalancer") => (all, 1),
        _ => (0, 0),
    };
    let units = |n: usize| Quantity::from_units(i64::try_from(n).unwrap_or(i64::MAX));
    out.insert("services.nodeports".to_owned(), units(on_nodes));
    out.insert("services.loadbalancers".to_owned(), units(balancers));
}

/// What a claim counts for.
fn claim(claim: &Value, out: &mut Amounts) {
    let annotated = claim["metadata"]["annotations"][CLASS_ANNOTATION].as_str();
    let class = annotated.or_else(|| claim["spec"]["storageClassName"].as_str()).unwrap_or_default();
    let size = claim["spec"]["resources"]["requests"]["storage"].as_str();
    let size = size.and_then(|text| Quantity::parse(text).ok());
    if !class.is_empty() {
        out.insert(format!("{class}{OF_CLASS}persistentvolumeclaims"), Quantity::from_units(1));
    }
    if let Some(size) = size {
        if !class.is_empty() {
            out.insert(format!("{class}{OF_CLASS}requests.storage"), size.clone());
        }
        out.insert("requests.storage".to_owned(), size);
    }
}

/// The kinds that a quota's bounds count, as group and plural.
pub fn counted_kinds(hard: &Value) -> BTreeSet<(String, String)> {
    let core = |plural: &str| (String::new(), plural.to_owned());
    let kind = |name: &String| match name.strip_prefix("count/") {
        Some(counted) => match counted.split_once('.') {
            Some((plural, group)) => (group.to_owned(), plural.to_owned()),
            None => core(counted),
        },
        None if name.starts_with("services") => core("services"),
        None if name.ends_with("requests.storage") || name.ends_with("persistentvolumeclaims") => {
            core("persistentvolumeclaims")
        }
        None if PLAIN.contains(&name.as_str()) => core(name),
        None => core("pods"),
    };
    hard.as_object().into_iter().flatten().map(|(name, _)| kind(name)).collect()
}

/// Whether a quota is about an object: all its scopes are those of the object. Only pods have scopes, and claims the
/// class of their attributes.
pub fn covers(quota: &Value, group: &str, plural: &str, object: &Value) -> bool {
    let spec = &quota["spec"];
    let scopes = spec["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut all = scopes.map(|scope| (scope, "Exists", Vec::new())).collect::<Vec<_>>();
    for requirement in spec["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten() {
        let values = requirement["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let text = |field: &str| requirement[field].as_str().unwrap_or_default();
        all.push((text("scopeName"), text("operator"), values));
    }
    all.iter().all(|(scope, operator, values)| match (group, plural, *scope) {
        ("", "pods", scope) => pod_has_scope(&object["spec"], scope, operator, values),
        ("", "persistentvolumeclaims", "VolumeAttributesClass") => {
            chosen(object["spec"]["volumeAttributesClassName"].as_str(), operator, values)
        }
        _ => false,
    })
}

/// Whether a pod is of a scope.
fn pod_has_scope(spec: &Value, scope: &str, operator: &str, values: &[&str]) -> bool {
    let ends = spec["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0);
    match scope {
        "Terminating" => ends,
        "NotTerminating" => !ends,
        "BestEffort" => qos_class(spec) == "BestEffort",
        "NotBestEffort" => qos_class(spec) != "BestEffort",
        "PriorityClass" => chosen(spec["priorityClassName"].as_str(), operator, values),
        "CrossNamespacePodAffinity" => looks_elsewhere(&spec["affinity"]),
        _ => false,
    }
}

/// Whether a name is chosen by an operator and values.
fn chosen(name: Option<&str>, operator: &str, values: &[&str]) -> bool {
    let name = name.filter(|name| !name.is_empty());
    let is_in = name.is_some_and(|name| values.contains(&name));
    match operator {
        "In" => is_in,
        "NotIn" => !is_in,
        "DoesNotExist" => name.is_none(),
        _ => name.is_some(),
    }
}

/// Whether an affinity term is about pods of other namespaces.
fn looks_elsewhere(affinity: &Value) -> bool {
    let elsewhere = |term: &Value| {
        term["namespaces"].as_array().is_some_and(|list| !list.is_empty()) || !term["namespaceSelector"].is_null()
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let of = |field: &str| affinity[*kind][field].as_array().into_iter().flatten();
        of("requiredDuringSchedulingIgnoredDuringExecution").any(elsewhere)
            || of("preferredDuringSchedulingIgnoredDuringExecution").any(|term| elsewhere(&term["podAffinityTerm"]))
    })
}

/// What the containers of a pod do not say although a bound demands it.
pub fn unsaid(hard: &Value, pod: &Value) -> Option<String> {
    let spec = &pod["spec"];
    let lists = ["containers", "initContainers"].into_iter();
    let containers: Vec<&Value> = lists.filter_map(|list| spec[list].as_array()).flatten().collect();
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for name in DEMANDED.into_iter().filter(|name| hard.get(name).is_some()) {
        let (side, what) = match name.split_once('.') {
            Some((side, what)) => (side, what),
            None => ("requests", name),
        };
        if spec["resources"][side].get(what).is_some() {
            continue;
        }
        let silent = containers.iter().filter(|c| c["resources"][side].get(what).is_none());
        for container in silent {
            missing.entry(name).or_default().insert(container["name"].as_str().unwrap_or_default());
        }
    }
    let texts =
        missing.iter().map(|(name, who)| format!("{name} for: {}", who.iter().copied().collect::<Vec<_>>().join(",")));
    (!missing.is_empty()).then(|| format!("must specify {}", texts.collect::<Vec<_>>().join("; ")))
}

/// What is used of a quota's bounds after `more` is added, or why there is no room.
pub fn charge(name: &str, hard: &Amounts, used: &Amounts, more: &Amounts) -> Result<Amounts, String> {
    let asked: Amounts = more
        .iter()
        .filter(|(key, amount)| hard.contains_key(*key) && !amount.is_zero())
        .map(|(key, amount)| (key.clone(), amount.clone()))
        .collect();
    let mut after = used.clone();
    amounts::add(&mut after, &asked);
    let over: Vec<&String> = asked
        .iter()
        .filter(|(key, amount)| !amount.is_negative() && after[*key] > hard[*key])
        .map(|(k, _)| k)
        .collect();
    if over.is_empty() {
        return Ok(after);
    }
    let shown = |list: &Amounts| {
        let each = over.iter().map(|key| match list.get(*key) {
            Some(amount) => format!("{key}={amount}"),
            None => format!("{key}=0"),
        });
        each.collect::<Vec<_>>().join(",")
    };
    Err(format!(
        "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
        shown(&asked),
        shown(used),
        shown(hard)
    ))
}

/// What is used of a quota's bounds by these objects of one kind: nothing is said of what the kind does not count for.
pub fn total<'a>(
    quota: &Value,
    (group, plural): (&str, &str),
    objects: impl Iterator<Item = &'a Value>,
    now: Timestamp,
) -> Amounts {
    let hard = &quota["spec"]["hard"];
    let mut out = Amounts::new();
    for object in objects.filter(|object| covers(quota, group, plural, object)) {
        let counted = usage(group, plural, object, now);
        amounts::add(&mut out, &counted.into_iter().filter(|(name, _)| hard.get(name).is_some()).collect());
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn now() -> Timestamp {
        "2024-01-01T00:00:00Z".parse().expect("a time")
    }

    fn shown(amounts: &Amounts) -> Vec<String> {
        amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect()
    }

    fn pod(phase: &str) -> Value {
        json!({"metadata": {"name": "p"}, "status": {"phase": phase}, "spec": {"containers": [
            {"name": "c", "resources": {"requests": {"cpu": "500m", "a.b/c": "2"}, "limits": {"memory": "1Gi"}}}]}})
    }

    #[test]
    fn pods_count_for_what_they_ask_until_they_end() {
        assert_eq!(
            shown(&usage("", "pods", &pod("Running"), now())),
            ["count/pods=1", "cpu=500m", "limits.memory=1Gi", "pods=1", "requests.a.b/c=2", "requests.cpu=500m"]
        );
        assert_eq!(shown(&usage("", "pods", &pod("Failed"), now())), ["count/pods=1"]);
        let mut stuck = pod("Running");
        stuck["metadata"]["deletionTimestamp"] = "2023-12-31T00:00:00Z".into();
        stuck["metadata"]["deletionGracePeriodSeconds"] = 30.into();
        assert_eq!(shown(&usage("", "pods", &stuck, now())), ["count/pods=1"]);
    }

    #[test]
    fn claims_count_by_class_and_services_by_type() {
        let claim = json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "1Gi"}}}});
        assert_eq!(
            shown(&usage("", "persistentvolumeclaims", &claim, now())),
            [
                "count/persistentvolumeclaims=1",
                "fast.storageclass.storage.k8s.io/persistentvolumeclaims=1",
                "fast.storageclass.storage.k8s.io/requests.storage=1Gi",
                "persistentvolumeclaims=1",
                "requests.storage=1Gi",
            ]
        );
        let service = json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 1}, {"port": 2}]}});
        assert_eq!(
            shown(&usage("", "services", &service, now())),
            ["count/services=1", "services=1", "services.loadbalancers=1", "services.nodeports=2"]
        );
        assert_eq!(shown(&usage("apps", "statefulsets", &json!({}), now())), ["count/statefulsets.apps=1"]);
    }

    #[test]
    fn scopes_choose_pods() {
        let quota = |spec: Value| json!({"spec": spec});
        let covers = |spec: Value, object: &Value| covers(&quota(spec), "", "pods", object);
        let pod = pod("Running");
        assert!(covers(json!({}), &pod));
        assert!(covers(json!({"scopes": ["NotBestEffort", "NotTerminating"]}), &pod));
        assert!(!covers(json!({"scopes": ["BestEffort"]}), &pod));
        let class = |operator: &str| {
            json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": operator, "values": ["high"]}]}})
        };
        let mut high = pod.clone();
        high["spec"]["priorityClassName"] = "high".into();
        assert!(covers(class("In"), &high) && !covers(class("NotIn"), &high) && !covers(class("In"), &pod));
        assert!(!super::covers(&quota(json!({"scopes": ["BestEffort"]})), "", "configmaps", &json!({})));
    }

    #[test]
    fn what_is_bounded_has_to_be_said() {
        let hard = json!({"limits.cpu": "1", "requests.cpu": "1", "pods": "3"});
        assert_eq!(unsaid(&hard, &pod("Running")).as_deref(), Some("must specify limits.cpu for: c"));
        assert_eq!(unsaid(&json!({"pods": "3"}), &pod("Running")), None);
    }

    #[test]
    fn a_quota_is_charged_up_to_its_bounds() {
        let list = |value: Value| amounts::read(&value);
        let hard = list(json!({"pods": "2", "requests.cpu": "1"}));
        let more = usage("", "pods", &pod("Pending"), now());
        let once = charge("q", &hard, &Amounts::new(), &more).expect("there is room");
        assert_eq!(shown(&once), ["pods=1", "requests.cpu=500m"]);
        let twice = charge("q", &hard, &once, &more).expect("there is room");
        assert_eq!(
            charge("q", &hard, &twice, &more).unwrap_err(),
            "exceeded quota: q, requested: pods=1,requests.cpu=500m, used: pods=2,requests.cpu=1, limited: pods=2,requests.cpu=1"
        );
    }

    #[test]
    fn bounds_name_the_kinds_they_count() {
        let kinds =
            counted_kinds(&json!({"limits.memory": "1", "count/statefulsets.apps": "1", "services.nodeports": "1",
            "fast.storageclass.storage.k8s.io/requests.storage": "1", "configmaps": "1"}));
        let names: Vec<String> = kinds.into_iter().map(|(group, plural)| format!("{plural}.{group}")).collect();
        assert_eq!(names, ["configmaps.", "persistentvolumeclaims.", "pods.", "services.", "statefulsets.apps"]);
    }
}
