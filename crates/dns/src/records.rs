//! What is known about Services and their endpoints, in our own small types.

use std::collections::BTreeMap;
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

impl Service {
    /// Reads a Kubernetes Service; `None` without a name and namespace.
    pub fn from_json(_service: &Value) -> Option<Self> {
        None
    }

    /// `namespace/name`, the key in [`Cluster::services`].
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl EndpointSlice {
    /// Reads a Kubernetes EndpointSlice; `None` if it belongs to no service or has no IP addresses.
    pub fn from_json(_slice: &Value) -> Option<Self> {
        None
    }
}
