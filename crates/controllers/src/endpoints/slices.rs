//! The endpoint slices that a service should have, and the least that makes them so. No I/O.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ObjectReference, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::informers::PodView;
use crate::work::{name, namespace, uid};

/// Endpoints in one slice; the API takes no more.
pub(super) const SLICE_MAX: usize = 1000;
/// Who keeps these slices, as upstream names it, so that tools find them.
pub(super) const MANAGED_BY: &str = "endpointslice-controller.k8s.io";
/// The label that says so.
pub(super) const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// The label that names the service.
pub(super) const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// The label of what belongs to a headless service.
pub(super) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// Pods that offer the same ports under one kind of address.
pub(super) type Groups<'a> = BTreeMap<(&'static str, Vec<Port>), Vec<(&'a PodView, &'a str)>>;

/// A resolved port of a service, on one pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) protocol: String,
    pub(super) number: i32,
    pub(super) app_protocol: Option<String>,
}

/// How the slices of a service come to be as they should.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Changes {
    pub(super) create: Vec<EndpointSlice>,
    pub(super) update: Vec<EndpointSlice>,
    /// Name and uid.
    pub(super) delete: Vec<(String, String)>,
}

/// Whether a service has endpoints that follow from its selector.
pub(super) fn selects(service: &Service) -> bool {
    let Some(spec) = service.spec.as_ref() else { return false };
    spec.type_.as_deref() != Some("ExternalName") && spec.selector.as_ref().is_some_and(|s| !s.is_empty())
}

/// Whether a service's selector takes these labels.
pub(super) fn takes(service: &Service, labels: &BTreeMap<String, String>) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selects(service) && selector.into_iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
}

/// Whether the service is headless.
pub(super) fn headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

/// The annotation that asked for unready pods before there was a field.
const OLD_UNREADY: &str = "service.alpha.kubernetes.io/tolerate-unready-endpoints";

/// Whether pods are published that are not ready: by the field, or by the annotation that stood in its place.
pub(super) fn publishes_unready(service: &Service) -> bool {
    let annotations = service.metadata.annotations.as_ref();
    let annotated = annotations.and_then(|a| a.get(OLD_UNREADY)).is_some_and(|value| value == "true");
    annotated || service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true)
}

/// The pods behind a service, grouped by address family and resolved ports.
pub(super) fn groups<'a>(service: &Service, pods: &'a [std::sync::Arc<PodView>]) -> Groups<'a> {
    let mut groups = Groups::new();
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    for pod in pods.iter().filter(|pod| !pod.is_over() && takes(service, &pod.labels)) {
        let ports = resolve(service, pod);
        for ip in &pod.ips {
            let family = if ip.contains(':') { "IPv6" } else { "IPv4" };
            if families.is_empty() || families.iter().any(|f| f == family) {
                groups.entry((family, ports.clone())).or_default().push((pod, ip));
            }
        }
    }
    for pods in groups.values_mut() {
        pods.sort_by_key(|(pod, _)| &pod.name);
    }
    groups
}

/// The service's ports as this pod offers them; a named one that it does not offer is left out.
fn resolve(service: &Service, pod: &PodView) -> Vec<Port> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let mut resolved: Vec<Port> = ports
        .into_iter()
        .flatten()
        .filter_map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
            let number = match port.target_port.as_ref() {
                None => port.port,
                Some(IntOrString::Int(0)) => port.port,
                Some(IntOrString::Int(number)) => *number,
                Some(IntOrString::String(name)) if name.is_empty() => port.port,
                Some(IntOrString::String(name)) => {
                    let offered = |(n, p, _): &&(String, String, i32)| n == name && *p == protocol;
                    pod.ports.iter().find(offered)?.2
                }
            };
            let name = port.name.clone().unwrap_or_default();
            Some(Port { name, protocol, number, app_protocol: port.app_protocol.clone() })
        })
        .collect();
    resolved.sort();
    resolved
}

/// Compares what should be with what is. `existing` are this controller's slices of the service.
pub(super) fn changes(
    service: &Service,
    pods: &[std::sync::Arc<PodView>],
    existing: &[std::sync::Arc<EndpointSlice>],
) -> Changes {
    let mut groups = groups(service, pods);
    if groups.is_empty() && selects(service) {
        // A service without pods has one empty slice, so that watchers know it from one not yet looked at.
        groups.insert(("IPv4", Vec::new()), Vec::new());
    }
    if !selects(service) {
        groups.clear();
    }
    let mut wanted = Vec::new();
    for ((family, ports), pods) in groups {
        let endpoints: Vec<Endpoint> = pods.iter().map(|(pod, ip)| endpoint(service, pod, ip)).collect();
        let chunks: Vec<&[Endpoint]> =
            if endpoints.is_empty() { vec![&[]] } else { endpoints.chunks(SLICE_MAX).collect() };
        wanted.extend(chunks.into_iter().map(|chunk| slice(service, family, &ports, chunk)));
    }
    settle(wanted, existing)
}

/// The least that turns the existing slices into the wanted ones.
pub(super) fn settle(wanted: Vec<EndpointSlice>, existing: &[std::sync::Arc<EndpointSlice>]) -> Changes {
    let mut changes = Changes::default();
    let mut unclaimed: Vec<&EndpointSlice> = existing.iter().map(|slice| &**slice).collect();
    for wanted in wanted {
        // Best an equal one, then one of the same ports, then any of the family.
        let alike =
            |s: &&EndpointSlice| s.address_type == wanted.address_type && s.metadata.deletion_timestamp.is_none();
        let found = unclaimed
            .iter()
            .position(|s| alike(s) && same(s, &wanted))
            .or_else(|| unclaimed.iter().position(|s| alike(s) && s.ports == wanted.ports))
            .or_else(|| unclaimed.iter().position(alike));
        match found.map(|at| unclaimed.remove(at)) {
            Some(have) if same(have, &wanted) => {}
            Some(have) => changes.update.push(adopt(have, wanted)),
            None => changes.create.push(wanted),
        }
    }
    let gone = unclaimed.into_iter().filter(|slice| slice.metadata.deletion_timestamp.is_none());
    changes.delete = gone.map(|slice| (name(slice).to_owned(), uid(slice).to_owned())).collect();
    changes
}

fn endpoint(service: &Service, pod: &PodView, ip: &str) -> Endpoint {
    let serving = pod.ready;
    let named = !pod.hostname.is_empty() && pod.subdomain == name(service);
    Endpoint {
        addresses: vec![ip.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(publishes_unready(service) || (serving && !pod.deleting)),
            serving: Some(serving),
            terminating: Some(pod.deleting),
        }),
        hostname: named.then(|| pod.hostname.clone()),
        node_name: pod.node.clone(),
        target_ref: Some(target(pod)),
        ..Endpoint::default()
    }
}

/// How endpoints name their pod.
pub(super) fn target(pod: &PodView) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    }
}

fn slice(service: &Service, family: &str, ports: &[Port], endpoints: &[Endpoint]) -> EndpointSlice {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_LABEL.into(), name(service).into());
    labels.insert(MANAGED_BY_LABEL.into(), MANAGED_BY.into());
    labels.remove(HEADLESS_LABEL);
    if headless(service) {
        labels.insert(HEADLESS_LABEL.into(), String::new());
    }
    let port = |port: &Port| EndpointPort {
        name: Some(port.name.clone()),
        protocol: Some(port.protocol.clone()),
        port: Some(port.number),
        app_protocol: port.app_protocol.clone(),
    };
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Service".into(),
        name: name(service).into(),
        uid: uid(service).into(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    };
    // A name of 63 characters leaves no room for what makes it unique.
    let stem: String = name(service).chars().take(50).collect();
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{stem}-")),
            namespace: Some(namespace(service).into()),
            labels: Some(labels),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        address_type: family.into(),
        endpoints: Some(endpoints.to_vec()),
        ports: Some(ports.iter().map(port).collect()),
    }
}

/// The existing slice with the wanted content.
fn adopt(have: &EndpointSlice, wanted: EndpointSlice) -> EndpointSlice {
    let mut slice = have.clone();
    slice.metadata.labels = wanted.metadata.labels;
    slice.metadata.owner_references = wanted.metadata.owner_references;
    slice.endpoints = wanted.endpoints;
    slice.ports = wanted.ports;
    slice
}

/// Whether nothing needs to be written.
fn same(have: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    let endpoints = |slice: &EndpointSlice| slice.endpoints.clone().unwrap_or_default();
    let ports = |slice: &EndpointSlice| slice.ports.clone().unwrap_or_default();
    endpoints(have) == endpoints(wanted)
        && ports(have) == ports(wanted)
        && have.metadata.labels == wanted.metadata.labels
        && have.metadata.owner_references == wanted.metadata.owner_references
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    pub(crate) fn service(change: impl FnOnce(&mut Value)) -> Service {
        let mut service = json!({
            "metadata": {"name": "web", "namespace": "d", "uid": "s"},
            "spec": {"clusterIP": "None", "selector": {"app": "web"},
                     "ports": [{"name": "http", "port": 80, "targetPort": "web"}, {"name": "peer", "port": 7000}]},
        });
        change(&mut service);
        serde_json::from_value(service).expect("a service")
    }

    pub(crate) fn pod(ordinal: usize, change: impl FnOnce(&mut PodView)) -> Arc<PodView> {
        let mut pod = PodView {
            namespace: "d".into(),
            name: format!("web-{ordinal}"),
            uid: format!("u{ordinal}"),
            labels: BTreeMap::from([("app".to_owned(), "web".to_owned())]),
            hostname: format!("web-{ordinal}"),
            subdomain: "web".into(),
            ports: vec![("web".into(), "TCP".into(), 8080)],
            phase: "Running".into(),
            ips: vec![format!("10.0.{}.{}", ordinal / 250, ordinal % 250)],
            ready: true,
            node: Some("n".into()),
            ..PodView::default()
        };
        change(&mut pod);
        Arc::new(pod)
    }

    /// Does what changes say, and gives the slices that there are then.
    fn carry_out(existing: Vec<Arc<EndpointSlice>>, changes: Changes) -> Vec<Arc<EndpointSlice>> {
        let touched: Vec<&str> =
            changes.update.iter().map(name).chain(changes.delete.iter().map(|(n, _)| n.as_str())).collect();
        let kept = existing.into_iter().filter(|slice| !touched.contains(&name(&**slice)));
        let created = changes.create.iter().enumerate().map(|(i, slice)| {
            let mut slice = slice.clone();
            slice.metadata.name = Some(format!("web-new{i}"));
            slice
        });
        let mut all: Vec<_> = kept.collect();
        all.extend(created.chain(changes.update.iter().cloned()).map(Arc::new));
        all
    }

    fn first(changes: &Changes) -> &Endpoint {
        &changes.create[0].endpoints.as_ref().expect("endpoints")[0]
    }

    #[test]
    fn a_ready_pod_of_a_set_has_address_hostname_and_resolved_ports() {
        let changes = changes(&service(|_| ()), &[pod(0, |_| ())], &[]);
        let endpoint = first(&changes);
        assert_eq!(endpoint.addresses, ["10.0.0.0"]);
        assert_eq!(endpoint.hostname.as_deref(), Some("web-0"));
        let conditions = endpoint.conditions.clone().expect("conditions");
        assert_eq!(
            (conditions.ready, conditions.serving, conditions.terminating),
            (Some(true), Some(true), Some(false))
        );
        let ports = changes.create[0].ports.clone().expect("ports");
        let numbers: Vec<_> = ports.iter().map(|p| (p.name.as_deref(), p.port)).collect();
        assert_eq!(numbers, [(Some("http"), Some(8080)), (Some("peer"), Some(7000))]);
        let labels = changes.create[0].metadata.labels.clone().expect("labels");
        assert_eq!(labels.get(HEADLESS_LABEL).map(String::as_str), Some(""));
    }

    #[test]
    fn hostnames_are_only_given_under_the_pods_own_subdomain() {
        let elsewhere = changes(&service(|_| ()), &[pod(0, |p| p.subdomain = "other".into())], &[]);
        assert_eq!(first(&elsewhere).hostname, None);
        let nameless = changes(&service(|_| ()), &[pod(0, |p| p.hostname.clear())], &[]);
        assert_eq!(first(&nameless).hostname, None);
    }

    #[test]
    fn conditions_tell_unready_and_terminating_pods_apart() {
        let plain = service(|_| ());
        let eager = service(|s| s["spec"]["publishNotReadyAddresses"] = json!(true));
        let old = service(|s| s["metadata"]["annotations"] = json!({OLD_UNREADY: "true"}));
        assert!(publishes_unready(&eager) && publishes_unready(&old) && !publishes_unready(&service(|_| ())));
        for (ready, deleting, of_plain, of_eager) in [
            (true, false, true, true),
            (false, false, false, true),
            (true, true, false, true),
            (false, true, false, true),
        ] {
            let pods = [pod(0, |p| (p.ready, p.deleting) = (ready, deleting))];
            for (service, expected) in [(&plain, of_plain), (&eager, of_eager)] {
                let changes = changes(service, &pods, &[]);
                let conditions = first(&changes).conditions.clone().expect("conditions");
                assert_eq!(conditions.ready, Some(expected), "{ready} {deleting}");
                assert_eq!((conditions.serving, conditions.terminating), (Some(ready), Some(deleting)));
            }
        }
    }

    #[test]
    fn ended_pods_pods_without_address_and_strangers_are_left_out() {
        let pods = [
            pod(0, |p| p.phase = "Failed".into()),
            pod(1, |p| p.phase = "Succeeded".into()),
            pod(2, |p| p.ips.clear()),
            pod(3, |p| p.labels.clear()),
        ];
        let changes = changes(&service(|_| ()), &pods, &[]);
        assert_eq!(changes.create.len(), 1, "one empty slice");
        assert_eq!(changes.create[0].endpoints.as_deref(), Some(&[][..]));
    }

    #[test]
    fn what_is_as_it_should_be_is_not_written() {
        let service = service(|_| ());
        let pods: Vec<_> = (0..2500).map(|i| pod(i, |_| ())).collect();
        let made = carry_out(Vec::new(), changes(&service, &pods, &[]));
        assert_eq!(made.len(), 3, "at most 1000 in each");
        assert_eq!(changes(&service, &pods, &made), Changes::default());
    }

    #[test]
    fn one_change_is_one_update_and_the_last_pod_leaves_an_empty_slice() {
        let service = service(|_| ());
        let pods: Vec<_> = (0..3).map(|i| pod(i, |_| ())).collect();
        let made = carry_out(Vec::new(), changes(&service, &pods, &[]));
        let turned = [pods[0].clone(), pod(1, |p| p.ready = false), pods[2].clone()];
        let change = changes(&service, &turned, &made);
        assert_eq!((change.create.len(), change.update.len(), change.delete.len()), (0, 1, 0));
        let change = changes(&service, &[], &made);
        assert_eq!((change.create.len(), change.update.len(), change.delete.len()), (0, 1, 0));
        assert_eq!(change.update[0].endpoints.as_deref(), Some(&[][..]));
    }

    #[test]
    fn pods_with_other_ports_get_a_slice_of_their_own_and_a_lost_selector_takes_all_away() {
        let pods = [pod(0, |_| ()), pod(1, |p| p.ports[0].2 = 9090)];
        let made = carry_out(Vec::new(), changes(&service(|_| ()), &pods, &[]));
        assert_eq!(made.len(), 2);
        let unselecting = service(|s| s["spec"]["selector"] = Value::Null);
        let change = changes(&unselecting, &pods, &made);
        assert_eq!((change.create.len(), change.update.len(), change.delete.len()), (0, 0, 2));
    }
}
