//! The old Endpoints object of a service: all in one, ready apart from not ready. No I/O.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::slices::{HEADLESS_LABEL, groups, headless, publishes_unready, target};
use crate::informers::PodView;
use crate::work::{name, namespace};

/// Addresses in the object; the rest is cut, as upstream does, and only slices have them.
const ADDRESS_MAX: usize = 1000;
/// Marks an object that was cut.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY_LABEL: &str = "endpoints.kubernetes.io/managed-by";
const MANAGED_BY: &str = "endpoint-controller";

/// The object as it should be, or `None` if `have` is so already.
pub(super) fn wanted(service: &Service, pods: &[Arc<PodView>], have: Option<&Endpoints>) -> Option<Endpoints> {
    let (subsets, cut) = subsets(service, pods);
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY_LABEL.into(), MANAGED_BY.into());
    labels.remove(HEADLESS_LABEL);
    if headless(service) {
        labels.insert(HEADLESS_LABEL.into(), String::new());
    }
    let mut wanted = have.cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            name: Some(name(service).into()),
            namespace: Some(namespace(service).into()),
            ..ObjectMeta::default()
        },
        subsets: None,
    });
    let mut annotations = wanted.metadata.annotations.take().unwrap_or_default();
    annotations.remove(OVER_CAPACITY);
    if cut {
        annotations.insert(OVER_CAPACITY.into(), "truncated".into());
    }
    wanted.metadata.annotations = Some(annotations).filter(|annotations| !annotations.is_empty());
    wanted.metadata.labels = Some(labels);
    wanted.subsets = Some(subsets).filter(|subsets| !subsets.is_empty());
    let same = |have: &Endpoints| {
        let empty_is_none = |subsets: &Option<Vec<EndpointSubset>>| subsets.clone().filter(|s| !s.is_empty());
        have.metadata == wanted.metadata && empty_is_none(&have.subsets) == wanted.subsets
    };
    if have.is_some_and(same) { None } else { Some(wanted) }
}

/// Whether the object was made here.
pub(super) fn is_ours(endpoints: &Endpoints) -> bool {
    endpoints
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(MANAGED_BY_LABEL))
        .is_some_and(|by| by == MANAGED_BY)
}

fn subsets(service: &Service, pods: &[Arc<PodView>]) -> (Vec<EndpointSubset>, bool) {
    let eager = publishes_unready(service);
    let mut subsets = Vec::new();
    let (mut room, mut cut) = (ADDRESS_MAX, false);
    for ((_, ports), pods) in groups(service, pods) {
        let mut subset = EndpointSubset::default();
        // Here, other than in slices, a pod that is being deleted is not there at all.
        for (pod, ip) in pods.into_iter().filter(|(pod, _)| eager || !pod.deleting) {
            if room == 0 {
                cut = true;
                break;
            }
            room -= 1;
            let named = !pod.hostname.is_empty() && pod.subdomain == name(service);
            let address = EndpointAddress {
                ip: ip.to_owned(),
                hostname: named.then(|| pod.hostname.clone()),
                node_name: pod.node.clone(),
                target_ref: Some(target(pod)),
            };
            let list = if eager || pod.ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
            list.get_or_insert_default().push(address);
        }
        if subset == EndpointSubset::default() {
            continue;
        }
        let port = |port: super::slices::Port| EndpointPort {
            name: Some(port.name).filter(|name| !name.is_empty()),
            port: port.number,
            protocol: Some(port.protocol),
            app_protocol: port.app_protocol,
        };
        subset.ports = Some(ports.into_iter().map(port).collect::<Vec<_>>()).filter(|ports| !ports.is_empty());
        subsets.push(subset);
    }
    (subsets, cut)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, ready: bool, deleting: bool) -> Arc<PodView> {
        Arc::new(PodView {
            name: name.into(),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            ips: vec![format!("10.0.0.{}", name.len())],
            phase: "Running".into(),
            ready,
            deleting,
            ..PodView::default()
        })
    }

    fn service(eager: bool) -> Service {
        let service = json!({"metadata": {"name": "web", "namespace": "d"}, "spec": {"selector": {"app": "web"},
            "publishNotReadyAddresses": eager, "ports": [{"port": 80}]}});
        serde_json::from_value(service).expect("a service")
    }

    fn counts(endpoints: &Endpoints) -> (usize, usize) {
        let count = |list: &Option<Vec<EndpointAddress>>| list.as_ref().map_or(0, Vec::len);
        let subsets = endpoints.subsets.as_deref().unwrap_or_default();
        subsets
            .iter()
            .fold((0, 0), |(ready, not), s| (ready + count(&s.addresses), not + count(&s.not_ready_addresses)))
    }

    #[test]
    fn ready_and_unready_are_apart_and_terminating_are_absent() {
        let pods = [pod("a", true, false), pod("bb", false, false), pod("ccc", true, true)];
        let made = wanted(&service(false), &pods, None).expect("to be made");
        assert_eq!(counts(&made), (1, 1));
        let eager = wanted(&service(true), &pods, None).expect("to be made");
        assert_eq!(counts(&eager), (3, 0));
    }

    #[test]
    fn what_is_as_it_should_be_is_not_written() {
        let pods = [pod("a", true, false)];
        let made = wanted(&service(false), &pods, None).expect("to be made");
        assert_eq!(wanted(&service(false), &pods, Some(&made)), None);
        let turned = wanted(&service(false), &[pod("a", false, false)], Some(&made)).expect("to be changed");
        assert_eq!(counts(&turned), (0, 1));
        let empty = wanted(&service(false), &[], Some(&made)).expect("to be changed");
        assert_eq!(empty.subsets, None);
    }
}
