//! The server as pods find it: the service `default/kubernetes`, with its endpoints, kept as long as the server runs.
//!
//! Its address is the first of the service range. Nobody else writes these three objects: what is changed or deleted
//! is put back.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use api::resource::Resource;
use api::{decode, defaults, strategy};
use serde_json::{Value, json};
use store::{Compare, Op, Txn};
use tokio_util::sync::CancellationToken;

use crate::admission::services;
use crate::cache::store_key;
use crate::errors::Outcome;
use crate::object;
use crate::server::Shared;
use crate::verbs::create::{metadata, seconds, text};

/// Name of all three objects.
const NAME: &str = "kubernetes";
/// Where they live.
const NAMESPACE: &str = "default";
/// How often they are looked after, as upstream.
const INTERVAL: Duration = Duration::from_secs(10);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Where the server can be reached from pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The service's port.
    pub port: u16,
    /// What lies behind the service; `None` where nothing that pods could reach does.
    pub endpoint: Option<SocketAddrV4>,
}

/// The first address of the service range: the server's own.
pub(crate) fn address((network, prefix): (Ipv4Addr, u8)) -> Ipv4Addr {
    let mask = u32::MAX << (32 - u32::from(prefix));
    Ipv4Addr::from((u32::from(network) & mask) + 1)
}

/// Keeps the three objects until `token` is cancelled.
pub(crate) async fn keep(shared: Arc<Shared>, published: Published, token: CancellationToken) {
    loop {
        let pause = match ensure(&shared, published).await {
            Ok(()) => INTERVAL,
            Err(status) => {
                tracing::warn!(%status, "the service of the API server could not be written");
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = token.cancelled() => return,
        }
    }
}

/// Writes what is missing or different, in one transaction. One that fails is decided again at the next look.
pub(crate) async fn ensure(shared: &Shared, published: Published) -> Outcome<()> {
    shared.cache.catch_up().await?;
    let mut txn = Txn::default();
    for wanted in objects(address(shared.service_cidr), published) {
        let (version, kind) = (wanted["apiVersion"].as_str().unwrap_or_default(), wanted["kind"].as_str());
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let Some(resource) = shared.registry.find_kind(group, version, kind.unwrap_or_default()) else { continue };
        add(shared, &resource, wanted, &mut txn);
    }
    if txn.ops.is_empty() {
        return Ok(());
    }
    shared.store.txn(txn).await.map_err(crate::errors::from_store)?;
    Ok(())
}

/// Adds what brings one object to what is wanted.
fn add(shared: &Shared, resource: &Resource, wanted: Value, txn: &mut Txn) {
    let found = shared.cache.get(&resource.group, &resource.plural, NAMESPACE, NAME);
    let (mut value, was) = match &found {
        Some(found) => (found.value(resource), found.revision),
        None => (Value::Null, 0),
    };
    let before = value.clone();
    if was == 0 {
        value = wanted;
        defaults::apply(resource, &mut value);
        strategy::prepare_create(resource, &mut value);
        let metadata = metadata(&mut value);
        metadata.insert("uid".to_owned(), shared.ambient.uid().into());
        metadata.insert("creationTimestamp".to_owned(), seconds(shared.ambient.now()).into());
    } else {
        let mut complete = wanted;
        defaults::apply(resource, &mut complete);
        for (label, text) in complete["metadata"]["labels"].as_object().into_iter().flatten() {
            value["metadata"]["labels"][label] = text.clone();
        }
        for part in ["spec", "subsets", "addressType", "endpoints", "ports"] {
            if let Some(content) = complete.get(part) {
                value[part] = content.clone();
            }
        }
    }
    decode::normalize(resource, &mut value);
    if value == before {
        return;
    }
    let key = store_key(resource, NAMESPACE, text(&value, "name"));
    if resource.kind == "Service" {
        let (has, had) = (address_of(&value), address_of(&before));
        let owner = format!("{NAMESPACE}/{NAME}");
        txn.ops.push(Op::Put { key: services::address_key(has), value: owner.into(), ttl: None });
        if !had.is_empty() && had != has {
            txn.ops.push(Op::Delete { key: services::address_key(had) });
        }
    }
    txn.compare.push(Compare { key: key.clone(), mod_revision: was });
    txn.ops.push(Op::Put { key, value: object::stored_bytes(value), ttl: None });
}

fn address_of(service: &Value) -> &str {
    service.pointer("/spec/clusterIP").and_then(Value::as_str).unwrap_or_default()
}

/// Service, endpoints and slice.
fn objects(address: Ipv4Addr, published: Published) -> [Value; 3] {
    let Published { port, endpoint } = published;
    let target = endpoint.map_or(port, |endpoint| endpoint.port());
    let behind = json!([{"name": "https", "protocol": "TCP", "port": target}]);
    let (subsets, endpoints) = match endpoint {
        Some(endpoint) => {
            let ip = endpoint.ip().to_string();
            let conditions = json!({"ready": true});
            (
                json!([{"addresses": [{"ip": ip}], "ports": behind}]),
                json!([{"addresses": [ip], "conditions": conditions}]),
            )
        }
        None => (json!([]), json!([])),
    };
    [
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": NAME, "namespace": NAMESPACE,
                "labels": {"component": "apiserver", "provider": "kubernetes"}},
            "spec": {
                "clusterIP": address.to_string(), "clusterIPs": [address.to_string()],
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "type": "ClusterIP",
                "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
                "ports": [{"name": "https", "protocol": "TCP", "port": port, "targetPort": target}],
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"name": NAME, "namespace": NAMESPACE,
                "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
            "subsets": subsets,
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": NAME}},
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": behind,
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_address_is_the_first_of_the_range() {
        assert_eq!(address((Ipv4Addr::new(10, 96, 0, 0), 16)), Ipv4Addr::new(10, 96, 0, 1));
        assert_eq!(address((Ipv4Addr::new(10, 0, 0, 200), 25)), Ipv4Addr::new(10, 0, 0, 129));
    }
}
