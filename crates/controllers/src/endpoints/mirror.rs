//! Endpoints that people or programs wrote for a service without a selector, as slices: what reads slices alone then sees
//! them. The decision; no I/O.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::slices::{self, Changes, MANAGED_BY_LABEL, SERVICE_LABEL, SLICE_MAX};
use crate::work::{name, namespace, uid};

/// Who keeps these slices, as upstream names it.
pub(super) const MANAGED_BY: &str = "endpointslicemirroring-controller.k8s.io";
/// Says that an object is not to be mirrored.
const SKIP_LABEL: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Marks objects that only elect leaders.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that say nothing of the mirror.
const OWN_ANNOTATIONS: [&str; 2] =
    ["kubectl.kubernetes.io/last-applied-configuration", "endpoints.kubernetes.io/last-change-trigger-time"];

/// How a service's mirrors come to be as they should. `existing` are the mirrors that there are.
pub(super) fn changes(
    service: Option<&Service>,
    endpoints: Option<&Endpoints>,
    existing: &[Arc<EndpointSlice>],
) -> Changes {
    let mirrored = endpoints.filter(|endpoints| service.is_some_and(selects_nothing) && is_mirrored(endpoints));
    slices::settle(mirrored.map(wanted).unwrap_or_default(), existing)
}

fn selects_nothing(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    service.metadata.deletion_timestamp.is_none()
        && spec.is_some_and(|spec| spec.selector.as_ref().is_none_or(|s| s.is_empty()))
}

fn is_mirrored(endpoints: &Endpoints) -> bool {
    let labels = endpoints.metadata.labels.as_ref();
    let annotations = endpoints.metadata.annotations.as_ref();
    endpoints.metadata.deletion_timestamp.is_none()
        && labels.and_then(|labels| labels.get(SKIP_LABEL)).is_none_or(|skip| skip != "true")
        && annotations.is_none_or(|annotations| !annotations.contains_key(LEADER))
        && !super::legacy::is_ours(endpoints)
}

fn wanted(endpoints: &Endpoints) -> Vec<EndpointSlice> {
    let mut found = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        for family in ["IPv4", "IPv6"] {
            let mut of_family = Vec::new();
            for (addresses, ready) in [(&subset.addresses, true), (&subset.not_ready_addresses, false)] {
                let here = addresses.iter().flatten().filter(|address| is_of(&address.ip, family));
                of_family.extend(here.map(|address| endpoint(address, ready)));
            }
            found.extend(of_family.chunks(SLICE_MAX).map(|chunk| slice(endpoints, subset, family, chunk)));
        }
    }
    found
}

fn is_of(ip: &str, family: &str) -> bool {
    (family == "IPv6") == ip.contains(':')
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|hostname| !hostname.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn slice(endpoints: &Endpoints, subset: &EndpointSubset, family: &str, chunk: &[Endpoint]) -> EndpointSlice {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_LABEL.into(), name(endpoints).into());
    labels.insert(MANAGED_BY_LABEL.into(), MANAGED_BY.into());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    for own in OWN_ANNOTATIONS {
        annotations.remove(own);
    }
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Endpoints".into(),
        name: name(endpoints).into(),
        uid: uid(endpoints).into(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    };
    let stem: String = name(endpoints).chars().take(50).collect();
    let ports = subset.ports.iter().flatten().map(|port| EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
        port: Some(port.port),
        app_protocol: port.app_protocol.clone(),
    });
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{stem}-")),
            namespace: Some(namespace(endpoints).into()),
            labels: Some(labels),
            annotations: Some(annotations).filter(|annotations| !annotations.is_empty()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        address_type: family.into(),
        endpoints: Some(chunk.to_vec()),
        ports: Some(ports.collect()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(selector: Value) -> Service {
        let service = json!({"metadata": {"name": "db", "namespace": "d"}, "spec": {"selector": selector}});
        serde_json::from_value(service).expect("a service")
    }

    fn endpoints(change: impl FnOnce(&mut Value)) -> Endpoints {
        let mut endpoints = json!({"metadata": {"name": "db", "namespace": "d", "uid": "e", "labels": {"a": "b"}},
            "subsets": [{"addresses": [{"ip": "10.0.0.2", "hostname": "db-0", "nodeName": "n"}, {"ip": "fd00::2"}],
                "notReadyAddresses": [{"ip": "10.0.0.3"}], "ports": [{"name": "pg", "port": 5432}]}]});
        change(&mut endpoints);
        serde_json::from_value(endpoints).expect("endpoints")
    }

    #[test]
    fn what_was_written_by_hand_is_mirrored_by_family_and_readiness() {
        let made = changes(Some(&service(Value::Null)), Some(&endpoints(|_| {})), &[]);
        let [v4, v6] = &made.create[..] else { panic!("{made:?}") };
        assert_eq!((v4.address_type.as_str(), v6.address_type.as_str()), ("IPv4", "IPv6"));
        let four = v4.endpoints.as_ref().expect("endpoints");
        let ready = |e: &Endpoint| e.conditions.as_ref().and_then(|c| c.ready);
        assert_eq!(four.iter().map(ready).collect::<Vec<_>>(), [Some(true), Some(false)]);
        assert_eq!((four[0].hostname.as_deref(), four[0].node_name.as_deref()), (Some("db-0"), Some("n")));
        let labels = v4.metadata.labels.as_ref().expect("labels");
        assert_eq!((labels["a"].as_str(), labels[SERVICE_LABEL].as_str()), ("b", "db"));
        assert_eq!(labels[MANAGED_BY_LABEL], MANAGED_BY);
        assert_eq!(v4.metadata.owner_references.as_ref().expect("an owner")[0].kind, "Endpoints");
        let port = &v4.ports.as_ref().expect("ports")[0];
        assert_eq!((port.port, port.protocol.as_deref()), (Some(5432), Some("TCP")));
    }

    #[test]
    fn selectors_labels_and_leaders_keep_from_mirroring() {
        let none = |service: Option<&Service>, endpoints: &Endpoints| {
            assert_eq!(changes(service, Some(endpoints), &[]), Changes::default());
        };
        let plain = service(Value::Null);
        none(None, &endpoints(|_| {}));
        none(Some(&service(json!({"app": "db"}))), &endpoints(|_| {}));
        none(Some(&plain), &endpoints(|e| e["metadata"]["labels"][SKIP_LABEL] = "true".into()));
        none(Some(&plain), &endpoints(|e| e["metadata"]["annotations"] = json!({LEADER: "x"})));
    }

    #[test]
    fn mirrors_follow_and_go() {
        let plain = service(Value::Null);
        let only_four = endpoints(|e| e["subsets"][0]["addresses"].as_array_mut().expect("a list").truncate(1));
        let mut there = changes(Some(&plain), Some(&only_four), &[]).create.remove(0);
        there.metadata.name = Some("db-x".into());
        let there = [Arc::new(there)];
        assert_eq!(changes(Some(&plain), Some(&only_four), &there), Changes::default());
        let moved = endpoints(|e| e["subsets"][0]["addresses"] = json!([{"ip": "10.0.0.9"}]));
        let followed = changes(Some(&plain), Some(&moved), &there);
        assert_eq!((followed.create.len(), followed.update.len(), followed.delete.len()), (0, 1, 0));
        assert_eq!(changes(Some(&plain), None, &there).delete.len(), 1);
    }
}
