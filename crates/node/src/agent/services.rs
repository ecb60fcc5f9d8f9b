//! The variables that tell a container of the services that were there when it was made. As a kubelet's; source:
//! <https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>.

use k8s_openapi::api::core::v1::Service;
use kube::api::ListParams;
use kube::{Api, Client};

/// Most services that a container is told of: each takes about 500 bytes of what the kernel allows for an environment.
const MAX_SERVICES: usize = 1000;

/// The services of a namespace, where they are wanted.
pub(super) async fn of_namespace(client: &Client, namespace: &str, wanted: bool) -> Result<Vec<Service>, kube::Error> {
    if !wanted || namespace.is_empty() {
        return Ok(Vec::new());
    }
    let api: Api<Service> = Api::namespaced(client.clone(), namespace);
    Ok(api.list(&ListParams::default()).await?.items)
}

/// The variables of all services that have an address.
pub fn variables(services: &[Service]) -> Vec<(String, String)> {
    services.iter().filter_map(of_service).take(MAX_SERVICES).flatten().collect()
}

fn of_service(service: &Service) -> Option<Vec<(String, String)>> {
    let spec = service.spec.as_ref()?;
    let host = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None")?;
    let name = variable(service.metadata.name.as_deref()?);
    let ports = spec.ports.as_deref().unwrap_or_default();
    let first = ports.first()?;
    let mut all = vec![
        (format!("{name}_SERVICE_HOST"), host.to_owned()),
        (format!("{name}_SERVICE_PORT"), first.port.to_string()),
    ];
    for port in ports {
        if let Some(named) = port.name.as_deref().filter(|n| !n.is_empty()) {
            all.push((format!("{name}_SERVICE_PORT_{}", variable(named)), port.port.to_string()));
        }
    }
    // An address of the newer kind stands in brackets.
    let place = |port: i32| if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().filter(|p| !p.is_empty()).unwrap_or("TCP");
        let (lower, upper) = (protocol.to_lowercase(), protocol.to_uppercase());
        let url = format!("{lower}://{}", place(port.port));
        if index == 0 {
            all.push((format!("{name}_PORT"), url.clone()));
        }
        let prefix = format!("{name}_PORT_{}_{upper}", port.port);
        all.push((prefix.clone(), url));
        all.push((format!("{prefix}_PROTO"), lower));
        all.push((format!("{prefix}_PORT"), port.port.to_string()));
        all.push((format!("{prefix}_ADDR"), host.to_owned()));
    }
    Some(all)
}

/// A name as part of a variable's.
fn variable(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_form_of_every_port_is_there_and_headless_services_are_not() {
        let services = json!([
            {"metadata": {"name": "redis-primary"}, "spec": {"clusterIP": "10.0.0.11", "ports": [
                {"name": "client-port", "port": 6379, "protocol": "TCP"}, {"name": "gossip", "port": 7, "protocol": "UDP"}]}},
            {"metadata": {"name": "headless"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}},
            {"metadata": {"name": "external"}, "spec": {"type": "ExternalName"}}]);
        let services: Vec<Service> = serde_json::from_value(services).expect("services");
        let found = variables(&services);
        let found: Vec<(&str, &str)> = found.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let expected = [
            ("REDIS_PRIMARY_SERVICE_HOST", "10.0.0.11"),
            ("REDIS_PRIMARY_SERVICE_PORT", "6379"),
            ("REDIS_PRIMARY_SERVICE_PORT_CLIENT_PORT", "6379"),
            ("REDIS_PRIMARY_SERVICE_PORT_GOSSIP", "7"),
            ("REDIS_PRIMARY_PORT", "tcp://10.0.0.11:6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP", "tcp://10.0.0.11:6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP_PROTO", "tcp"),
            ("REDIS_PRIMARY_PORT_6379_TCP_PORT", "6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP_ADDR", "10.0.0.11"),
            ("REDIS_PRIMARY_PORT_7_UDP", "udp://10.0.0.11:7"),
            ("REDIS_PRIMARY_PORT_7_UDP_PROTO", "udp"),
            ("REDIS_PRIMARY_PORT_7_UDP_PORT", "7"),
            ("REDIS_PRIMARY_PORT_7_UDP_ADDR", "10.0.0.11"),
        ];
        assert_eq!(found, expected);
    }
}
