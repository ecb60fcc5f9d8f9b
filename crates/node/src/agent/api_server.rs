//! Where a pod's programs reach the API server, and the variables that tell them.
//!
//! Pods on the node's bridge use the address of the service `default/kubernetes`, which leads to the server from
//! there. Pods in the machine's own network use what lies behind it.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, Client};

/// Namespace and name of the service, and name of its slice.
const SERVICE: (&str, &str) = ("default", "kubernetes");

/// Address and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiServer {
    /// The address.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl ApiServer {
    /// The variables that a kubelet gives every container.
    pub fn variables(&self) -> Vec<(String, String)> {
        let Self { host, port } = self;
        // An address of the newer kind stands in brackets.
        let place = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let one = format!("KUBERNETES_PORT_{port}_TCP");
        [
            ("KUBERNETES_SERVICE_HOST".to_owned(), host.clone()),
            ("KUBERNETES_SERVICE_PORT".to_owned(), port.to_string()),
            ("KUBERNETES_SERVICE_PORT_HTTPS".to_owned(), port.to_string()),
            ("KUBERNETES_PORT".to_owned(), format!("tcp://{place}")),
            (one.clone(), format!("tcp://{place}")),
            (format!("{one}_PROTO"), "tcp".to_owned()),
            (format!("{one}_PORT"), port.to_string()),
            (format!("{one}_ADDR"), host.clone()),
        ]
        .into()
    }
}

/// Looks where the server is; `None` where it is not published.
pub(super) async fn find(client: &Client, host_network: bool) -> Result<Option<ApiServer>, kube::Error> {
    let (namespace, name) = SERVICE;
    if host_network {
        let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
        return Ok(slices.get_opt(name).await?.and_then(behind));
    }
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    Ok(services.get_opt(name).await?.and_then(in_front))
}

fn in_front(service: Service) -> Option<ApiServer> {
    let spec = service.spec?;
    let host = spec.cluster_ip.filter(|ip| !ip.is_empty() && ip != "None")?;
    let port = spec.ports?.into_iter().find(|port| port.name.as_deref() == Some("https"))?;
    Some(ApiServer { host, port: u16::try_from(port.port).ok()? })
}

fn behind(slice: EndpointSlice) -> Option<ApiServer> {
    let host = slice.endpoints?.first()?.addresses.first()?.clone();
    let port = slice.ports?.into_iter().find(|port| port.name.as_deref() == Some("https"))?.port?;
    Some(ApiServer { host, port: u16::try_from(port).ok()? })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_service_and_what_lies_behind_it() {
        let service = json!({"spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443}]}});
        let found = in_front(serde_json::from_value(service).expect("a service"));
        assert_eq!(found, Some(ApiServer { host: "10.96.0.1".to_owned(), port: 443 }));
        let slice = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.1.0.1"]}],
            "ports": [{"name": "https", "port": 6443}]});
        let found = behind(serde_json::from_value(slice).expect("a slice"));
        assert_eq!(found, Some(ApiServer { host: "10.1.0.1".to_owned(), port: 6443 }));
    }

    #[test]
    fn variables_are_a_kubelets() {
        let variables = ApiServer { host: "10.96.0.1".to_owned(), port: 443 }.variables();
        let of = |name: &str| variables.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(of("KUBERNETES_SERVICE_HOST"), Some("10.96.0.1"));
        assert_eq!(of("KUBERNETES_SERVICE_PORT"), Some("443"));
        assert_eq!(of("KUBERNETES_PORT_443_TCP"), Some("tcp://10.96.0.1:443"));
        assert_eq!(of("KUBERNETES_PORT_443_TCP_ADDR"), Some("10.96.0.1"));
    }
}
