//! What is known about Services and their endpoints, in our own small types.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Everything that records are made of. The agent keeps one up to date and pushes it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cluster {
    /// By `namespace/name`.
    pub services: BTreeMap<String, Service>,
    /// By `namespace/name` of the slice.
    pub slices: BTreeMap<String, EndpointSlice>,
}

/// A Service, as far as names depend on it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Cluster addresses; empty for headless services.
    pub cluster_ips: Vec<IpAddr>,
    /// Whether `clusterIP` is `None`.
    pub headless: bool,
    /// Target of an ExternalName service.
    pub external_name: Option<String>,
    /// Whether endpoints count that are not ready.
    pub publish_not_ready: bool,
    /// Ports.
    pub ports: Vec<Port>,
    /// Hostnames that will have an endpoint although there is none yet, such as `web-2` of a set that is starting:
    /// asked for early, they exist without data instead of being denied.
    #[serde(default)]
    pub expected: Vec<String>,
}

/// A named port.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Port {
    /// Name; empty if it has none.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Number.
    pub port: u16,
}

/// An EndpointSlice, as far as names depend on it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Namespace.
    pub namespace: String,
    /// Name of the service it belongs to.
    pub service: String,
    /// Ports of its endpoints.
    pub ports: Vec<Port>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Endpoint {
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it is ready (unknown counts as ready).
    pub ready: bool,
    /// Its own name below the service's.
    pub hostname: Option<String>,
}

/// The annotation that asked for unready pods before there was a field.
const OLD_UNREADY: &str = "service.alpha.kubernetes.io/tolerate-unready-endpoints";

impl Service {
    /// Reads a Kubernetes Service; `None` without a name and namespace.
    pub fn from_json(service: &Value) -> Option<Self> {
        let spec = &service["spec"];
        let (namespace, name) = names(service)?;
        let external = spec["type"] == "ExternalName";
        let address = spec["clusterIP"].as_str().unwrap_or("");
        let listed = spec["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let cluster_ips: BTreeSet<IpAddr> = listed.chain([address]).filter_map(|ip| ip.parse().ok()).collect();
        Some(Self {
            namespace,
            name,
            cluster_ips: if external { Vec::new() } else { cluster_ips.into_iter().collect() },
            headless: !external && address == "None",
            external_name: external.then(|| spec["externalName"].as_str().unwrap_or("").to_owned()),
            publish_not_ready: spec["publishNotReadyAddresses"] == true
                || service["metadata"]["annotations"][OLD_UNREADY] == "true",
            ports: ports(&spec["ports"]),
            expected: Vec::new(),
        })
    }

    /// `namespace/name`, the key in [`Cluster::services`].
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl EndpointSlice {
    /// Reads a Kubernetes EndpointSlice; `None` if it belongs to no service or has no IP addresses.
    pub fn from_json(slice: &Value) -> Option<Self> {
        let (namespace, _) = names(slice)?;
        if slice["addressType"] == "FQDN" {
            return None;
        }
        let service = slice["metadata"]["labels"]["kubernetes.io/service-name"].as_str()?;
        let endpoint = |endpoint: &Value| Endpoint {
            addresses: texts(&endpoint["addresses"]).filter_map(|ip| ip.parse().ok()).collect(),
            ready: endpoint["conditions"]["ready"] != false,
            hostname: endpoint["hostname"].as_str().filter(|h| !h.is_empty()).map(str::to_lowercase),
        };
        Some(Self {
            namespace,
            service: service.to_owned(),
            ports: ports(&slice["ports"]),
            endpoints: slice["endpoints"].as_array().into_iter().flatten().map(endpoint).collect(),
        })
    }
}

/// Namespace and name of an object.
fn names(object: &Value) -> Option<(String, String)> {
    let part = |field: &str| object["metadata"][field].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    Some((part("namespace")?, part("name")?))
}

/// The texts of a list.
fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Ports of a service or slice; those without a number are left out.
fn ports(list: &Value) -> Vec<Port> {
    let port = |port: &Value| {
        Some(Port {
            name: port["name"].as_str().unwrap_or("").to_owned(),
            protocol: port["protocol"].as_str().unwrap_or("TCP").to_owned(),
            port: port["port"].as_u64().and_then(|number| u16::try_from(number).ok())?,
        })
    };
    list.as_array().into_iter().flatten().filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn services_are_read() {
        let service = Service::from_json(&json!({"metadata": {"namespace": "n", "name": "web"}, "spec": {
            "clusterIP": "None", "clusterIPs": ["None"], "publishNotReadyAddresses": true,
            "ports": [{"name": "peer", "port": 2380, "protocol": "TCP"}]}}))
        .expect("has a name");
        assert!(service.headless && service.publish_not_ready && service.cluster_ips.is_empty());
        assert_eq!(service.key(), "n/web");
        assert_eq!(service.ports[0].port, 2380);
        let plain = json!({"metadata": {"namespace": "n", "name": "a"}, "spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]}});
        assert_eq!(Service::from_json(&plain).expect("has a name").cluster_ips.len(), 1);
        assert!(Service::from_json(&json!({})).is_none());
    }

    #[test]
    fn slices_are_read_and_unknown_readiness_counts_as_ready() {
        let slice = EndpointSlice::from_json(&json!({"addressType": "IPv4",
            "metadata": {"namespace": "n", "name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "peer", "port": 2380, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.1.0.2"], "hostname": "web-0"},
                {"addresses": ["10.1.0.3"], "conditions": {"ready": false}}]}))
        .expect("belongs to a service");
        assert!(slice.endpoints[0].ready && !slice.endpoints[1].ready);
        assert_eq!(slice.endpoints[0].hostname.as_deref(), Some("web-0"));
        assert!(EndpointSlice::from_json(&json!({"metadata": {"namespace": "n", "name": "x"}})).is_none());
    }
}
