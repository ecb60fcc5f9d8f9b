//! The cells of each kind, in the order of its columns.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use super::text::{NONE, UNKNOWN, UNSET, age, at, count, joined, list, number, or, scalar, since};
use super::{custom, pod, storage, workload};
use crate::quantity::Quantity;
use crate::resource::Resource;
use crate::selector::LabelSelector;

/// The cells of one object.
pub(super) fn cells(resource: &Resource, item: &Value, now: Timestamp) -> Vec<Value> {
    if let Some(custom) = &resource.custom {
        return custom::cells(custom, item, now);
    }
    let age = age(item, now);
    let name: Value = at(item, "/metadata/name").into();
    match (resource.group.as_str(), resource.kind.as_str()) {
        ("", "Pod") => pod::cells(item, now),
        ("", "Service") => service(item, age),
        ("", "Endpoints") => vec![name, endpoints(item).into(), age],
        ("", "PersistentVolumeClaim") => claim(item, age),
        ("", "PersistentVolume") => volume(item, age),
        ("", "ConfigMap") => vec![name, (count(item, "/data") + count(item, "/binaryData")).into(), age],
        ("", "Secret") => vec![name, at(item, "/type").into(), count(item, "/data").into(), age],
        ("", "ServiceAccount") => vec![name, list(item, "/secrets").len().into(), age],
        ("", "Namespace") => vec![name, at(item, "/status/phase").into(), age],
        ("", "Node") => node(item, age),
        ("", "Event") => event(item, now),
        (crate::events::GROUP, "Event") => {
            let mut stored = item.clone();
            crate::events::to_stored(&mut stored);
            event(&stored, now)
        }
        ("", "ResourceQuota") => quota(item, age),
        ("apps", "StatefulSet") => stateful_set(item, age),
        ("apps", "ControllerRevision") => vec![name, controller(item).into(), number(item, "/revision").into(), age],
        ("apps" | "batch", kind) => workload::cells(kind, item, now),
        ("storage.k8s.io", "StorageClass") => storage_class(item, age),
        ("networking.k8s.io", "NetworkPolicy") => vec![name, label_selector(&item["spec"]["podSelector"]).into(), age],
        ("storage.k8s.io", kind) => storage::driver_kind(kind, item, age),
        ("snapshot.storage.k8s.io", kind) => storage::snapshot_kind(kind, item, now),
        ("discovery.k8s.io", "EndpointSlice") => endpoint_slice(item, age),
        ("metrics.k8s.io", _) => {
            vec![name, used(item, "cpu").into(), used(item, "memory").into(), at(item, "/window").into()]
        }
        ("coordination.k8s.io", "Lease") => vec![name, at(item, "/spec/holderIdentity").into(), age],
        ("policy", "PodDisruptionBudget") => {
            let bound = |field: &str| scalar(&item["spec"][field]).unwrap_or_else(|| "N/A".into()).into();
            vec![
                name,
                bound("minAvailable"),
                bound("maxUnavailable"),
                number(item, "/status/disruptionsAllowed").into(),
                age,
            ]
        }
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => binding(item, age),
        ("node.k8s.io", "RuntimeClass") => vec![name, at(item, "/handler").into(), age],
        ("scheduling.k8s.io", "PriorityClass") => {
            let default = item["globalDefault"] == true;
            vec![name, number(item, "/value").into(), default.into(), age, at(item, "/preemptionPolicy").into()]
        }
        _ => vec![name, or(at(item, "/metadata/creationTimestamp"), UNKNOWN).into()],
    }
}

fn stateful_set(item: &Value, age: Value) -> Vec<Value> {
    let [names, images] = workload::containers(list(item, "/spec/template/spec/containers"));
    vec![
        at(item, "/metadata/name").into(),
        format!("{}/{}", number(item, "/status/readyReplicas"), number(item, "/spec/replicas")).into(),
        age,
        names,
        images,
    ]
}

/// `statefulset.apps/web`, or `<none>`.
fn controller(item: &Value) -> String {
    let Some(owner) = list(item, "/metadata/ownerReferences").iter().find(|o| o["controller"] == true) else {
        return NONE.to_owned();
    };
    let kind = at(owner, "/kind").to_lowercase();
    match at(owner, "/apiVersion").split_once('/') {
        Some((group, _)) => format!("{kind}.{group}/{}", at(owner, "/name")),
        None => format!("{kind}/{}", at(owner, "/name")),
    }
}

fn service(item: &Value, age: Value) -> Vec<Value> {
    let ports = list(item, "/spec/ports").iter().map(|port| {
        let (number, protocol) = (number(port, "/port"), at(port, "/protocol"));
        match port["nodePort"].as_i64() {
            Some(node) if node > 0 => format!("{number}:{node}/{protocol}"),
            _ => format!("{number}/{protocol}"),
        }
    });
    let ports = ports.collect::<Vec<_>>().join(",");
    let address = or(at(item, "/spec/clusterIPs/0"), at(item, "/spec/clusterIP"));
    vec![
        at(item, "/metadata/name").into(),
        at(item, "/spec/type").into(),
        or(address, NONE).into(),
        external_address(item).into(),
        or(&ports, NONE).into(),
        age,
        selector(&item["spec"]["selector"]).into(),
    ]
}

/// A selector in brief, or `<none>`.
pub(super) fn label_selector(selector: &Value) -> String {
    let text = LabelSelector::from_json(selector).map(|s| s.to_string()).unwrap_or_default();
    or(&text, NONE).to_owned()
}

/// `a=b,c=d`, or `<none>`.
fn selector(labels: &Value) -> String {
    let pairs = labels.as_object().into_iter().flatten().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or("")));
    let text = pairs.collect::<Vec<_>>().join(",");
    or(&text, NONE).to_owned()
}

/// Where a service is reached from outside.
fn external_address(service: &Value) -> String {
    let fixed = list(service, "/spec/externalIPs").iter().filter_map(Value::as_str);
    match at(service, "/spec/type") {
        "ExternalName" => at(service, "/spec/externalName").to_owned(),
        "LoadBalancer" => {
            let ingress = list(service, "/status/loadBalancer/ingress").iter();
            let given: BTreeSet<&str> = ingress.map(|i| or(at(i, "/ip"), at(i, "/hostname"))).collect();
            let all = given.into_iter().chain(fixed).collect::<Vec<_>>().join(",");
            or(&all, "<pending>").to_owned()
        }
        _ => joined(fixed),
    }
}

/// How many addresses a cell shows.
const ADDRESSES_SHOWN: usize = 3;

/// The first few, and how many more there are.
fn abridged(all: &[String], empty: &str) -> String {
    let shown = all.iter().take(ADDRESSES_SHOWN).cloned().collect::<Vec<_>>().join(",");
    match all.len() {
        0 => empty.to_owned(),
        n if n > ADDRESSES_SHOWN => format!("{shown} + {} more...", n - ADDRESSES_SHOWN),
        _ => shown,
    }
}

/// Addresses with their ports.
fn endpoints(item: &Value) -> String {
    let mut all = Vec::new();
    for subset in list(item, "/subsets") {
        let addresses = || list(subset, "/addresses").iter().map(|a| at(a, "/ip"));
        let ports = list(subset, "/ports");
        if ports.is_empty() {
            all.extend(addresses().map(str::to_owned));
        }
        for port in ports {
            let port = number(port, "/port");
            all.extend(
                addresses().map(|ip| if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }),
            );
        }
    }
    abridged(&all, NONE)
}

fn endpoint_slice(item: &Value, age: Value) -> Vec<Value> {
    let ports = list(item, "/ports").iter().map(|p| scalar(&p["port"]).unwrap_or_else(|| "*".into()));
    let addresses = list(item, "/endpoints").iter().flat_map(|e| list(e, "/addresses")).filter_map(Value::as_str);
    vec![
        at(item, "/metadata/name").into(),
        at(item, "/addressType").into(),
        abridged(&ports.collect::<Vec<_>>(), UNSET).into(),
        abridged(&addresses.map(str::to_owned).collect::<Vec<_>>(), UNSET).into(),
        age,
    ]
}

/// `RWO,ROX`: access modes in brief, each once, in upstream's order.
fn access_modes(modes: &[Value]) -> String {
    let known =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let named = known.iter().filter(|(mode, _)| modes.iter().any(|m| m == mode)).map(|(_, short)| *short);
    named.collect::<Vec<_>>().join(",")
}

/// The phase, unless the object is being deleted.
fn phase(item: &Value) -> &str {
    if item["metadata"]["deletionTimestamp"].is_null() { at(item, "/status/phase") } else { "Terminating" }
}

/// The storage class, also as it was named long ago.
fn class(item: &Value) -> &str {
    let old = item["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"].as_str();
    old.unwrap_or(at(item, "/spec/storageClassName"))
}

fn claim(item: &Value, age: Value) -> Vec<Value> {
    let bound = !at(item, "/spec/volumeName").is_empty();
    let modes = if bound { access_modes(list(item, "/status/accessModes")) } else { String::new() };
    let capacity = if bound { or(at(item, "/status/capacity/storage"), "0") } else { "" };
    vec![
        at(item, "/metadata/name").into(),
        phase(item).into(),
        at(item, "/spec/volumeName").into(),
        capacity.into(),
        modes.into(),
        class(item).into(),
        or(at(item, "/spec/volumeAttributesClassName"), UNSET).into(),
        age,
        or(at(item, "/spec/volumeMode"), UNSET).into(),
    ]
}

fn volume(item: &Value, age: Value) -> Vec<Value> {
    let claim = &item["spec"]["claimRef"];
    let claim =
        if claim.is_null() { String::new() } else { format!("{}/{}", at(claim, "/namespace"), at(claim, "/name")) };
    vec![
        at(item, "/metadata/name").into(),
        or(at(item, "/spec/capacity/storage"), "0").into(),
        access_modes(list(item, "/spec/accessModes")).into(),
        at(item, "/spec/persistentVolumeReclaimPolicy").into(),
        phase(item).into(),
        claim.into(),
        class(item).into(),
        or(at(item, "/spec/volumeAttributesClassName"), UNSET).into(),
        at(item, "/status/reason").into(),
        age,
        or(at(item, "/spec/volumeMode"), UNSET).into(),
    ]
}

fn storage_class(item: &Value, age: Value) -> Vec<Value> {
    let flag = |name: &str| item["metadata"]["annotations"][name] == "true";
    let default =
        flag("storageclass.kubernetes.io/is-default-class") || flag("storageclass.beta.kubernetes.io/is-default-class");
    let name = at(item, "/metadata/name");
    vec![
        if default { format!("{name} (default)") } else { name.to_owned() }.into(),
        at(item, "/provisioner").into(),
        or(at(item, "/reclaimPolicy"), "Delete").into(),
        or(at(item, "/volumeBindingMode"), "Immediate").into(),
        (item["allowVolumeExpansion"] == true).into(),
        age,
    ]
}

fn node(item: &Value, age: Value) -> Vec<Value> {
    let ready = list(item, "/status/conditions").iter().find(|c| c["type"] == "Ready");
    let mut status = match ready {
        Some(condition) if condition["status"] == "True" => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if item["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    let address = |kind: &str| {
        let found = list(item, "/status/addresses").iter().find(|a| a["type"] == kind);
        or(found.map_or("", |a| at(a, "/address")), NONE).to_owned()
    };
    let info = |field: &str| or(item["status"]["nodeInfo"][field].as_str().unwrap_or(""), UNKNOWN).to_owned();
    vec![
        at(item, "/metadata/name").into(),
        status.into(),
        roles(item).into(),
        age,
        at(item, "/status/nodeInfo/kubeletVersion").into(),
        address("InternalIP").into(),
        address("ExternalIP").into(),
        info("osImage").into(),
        info("kernelVersion").into(),
        info("containerRuntimeVersion").into(),
    ]
}

/// The roles that a node's labels give it.
fn roles(node: &Value) -> String {
    let mut roles = BTreeSet::new();
    for (key, value) in node["metadata"]["labels"].as_object().into_iter().flatten() {
        let value = value.as_str().unwrap_or("");
        match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => drop(roles.insert(role)),
            _ if key == "kubernetes.io/role" && !value.is_empty() => drop(roles.insert(value)),
            _ => {}
        }
    }
    joined(roles.into_iter())
}

fn event(item: &Value, now: Timestamp) -> Vec<Value> {
    let time = |pointers: &[&str]| {
        let known = pointers.iter().find(|p| !at(item, p).is_empty());
        known.map_or_else(|| UNKNOWN.to_owned(), |p| since(item, p, now))
    };
    let series = item["series"].is_object();
    let first = time(&["/firstTimestamp", "/eventTime"]);
    let last = if series {
        time(&["/series/lastObservedTime"])
    } else {
        time(&["/lastTimestamp", "/firstTimestamp", "/eventTime"])
    };
    let count = if series { number(item, "/series/count") } else { number(item, "/count").max(1) };
    let kind = at(item, "/involvedObject/kind").to_lowercase();
    let target = match at(item, "/involvedObject/name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let component = or(at(item, "/source/component"), at(item, "/reportingComponent"));
    let source = match or(at(item, "/source/host"), at(item, "/reportingInstance")) {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    };
    vec![
        last.into(),
        at(item, "/type").into(),
        at(item, "/reason").into(),
        target.into(),
        at(item, "/involvedObject/fieldPath").into(),
        source.into(),
        at(item, "/message").trim().into(),
        first.into(),
        count.into(),
        at(item, "/metadata/name").into(),
    ]
}

fn quota(item: &Value, age: Value) -> Vec<Value> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (resource, hard) in item["status"]["hard"].as_object().into_iter().flatten() {
        let used = item["status"]["used"][resource].as_str().unwrap_or("0");
        let text = format!("{resource}: {used}/{}", hard.as_str().unwrap_or("0"));
        if resource.starts_with("limits.") { limits.push(text) } else { requests.push(text) }
    }
    vec![at(item, "/metadata/name").into(), requests.join(", ").into(), limits.join(", ").into(), age]
}

fn binding(item: &Value, age: Value) -> Vec<Value> {
    let subjects = |kind: &str| {
        let all = list(item, "/subjects").iter().filter(|s| s["kind"] == kind).map(|s| match kind {
            "ServiceAccount" => format!("{}/{}", at(s, "/namespace"), at(s, "/name")),
            _ => at(s, "/name").to_owned(),
        });
        all.collect::<Vec<_>>().join(", ")
    };
    vec![
        at(item, "/metadata/name").into(),
        format!("{}/{}", at(item, "/roleRef/kind"), at(item, "/roleRef/name")).into(),
        age,
        subjects("User").into(),
        subjects("Group").into(),
        subjects("ServiceAccount").into(),
    ]
}

/// What a node, or all containers of a pod together, use of something.
fn used(item: &Value, name: &str) -> String {
    let containers = item["containers"].as_array().into_iter().flatten().map(|c| &c["usage"]);
    let amounts = containers.chain([&item["usage"]]).filter_map(|usage| Quantity::parse(usage[name].as_str()?).ok());
    amounts.reduce(|a, b| a.add(&b)).map(|sum| sum.to_string()).unwrap_or_default()
}
