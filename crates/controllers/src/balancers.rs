//! Services of type LoadBalancer get the addresses of this cluster's own machines: there is no balancer before them.
//!
//! A port of a machine leads to one service only. Of two services that want the same, the older one gets it; the other
//! waits, and an event says for whom. `plan` decides, without I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ambient::Ambient;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Node, Service, ServiceStatus};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use crate::Term;
use crate::events::{Level, Recorder};
use crate::informer::Key;
use crate::informers::Informers;
use crate::queue::{Outcome, Queue};
use crate::work::{self, Stop, call_opt, name, namespace, reference, uid};

/// The one key of the queue: services depend on each other by their ports.
const ALL: &str = "";

/// Gives addresses until the term ends and its requests are settled.
pub async fn run(client: Client, term: Term, ambient: Ambient, informers: Informers) -> kube::Result<()> {
    let queue: Queue<Key> = Queue::new(&term, &ambient);
    let own = queue.clone();
    informers.services.on_change(move |old, new| {
        let is_balanced = |service: Option<&Arc<Service>>| service.is_some_and(|service| wants_balancer(service));
        if is_balanced(old) || is_balanced(new) {
            own.add(Key::new(ALL, ALL));
        }
    });
    let own = queue.clone();
    informers.nodes.on_change(move |old, new| {
        let address = |node: Option<&Arc<Node>>| node.and_then(|node| address_of(node));
        if address(old) != address(new) {
            own.add(Key::new(ALL, ALL));
        }
    });
    if !informers.services.synced().await || !informers.nodes.synced().await {
        return Ok(());
    }
    let recorder = Recorder::start(client.clone(), "service-controller", &term, &ambient);
    let controller = Controller { client, term, informers, recorder };
    work::run(&queue, 1, |_| controller.assign()).await;
    Ok(())
}

struct Controller {
    client: Client,
    term: Term,
    informers: Informers,
    recorder: Recorder,
}

impl Controller {
    async fn assign(&self) -> Result<Outcome, Stop> {
        let services = self.informers.services.all();
        let addresses: BTreeSet<String> =
            self.informers.nodes.all().iter().filter_map(|node| address_of(node)).collect();
        for decision in plan(&services, &addresses) {
            let Decision { service, ingress, waits_for } = decision;
            if let Some((port, other)) = waits_for {
                let message = format!(
                    "port {port} of the machine belongs to service {other}: choose another port, or delete that service"
                );
                self.recorder.event(&reference(&**service), Level::Warning, "PortTaken", message);
            }
            if has(service) != ingress {
                self.write(service, &ingress).await?;
            }
        }
        Ok(Outcome::Done)
    }

    async fn write(&self, service: &Service, ingress: &[LoadBalancerIngress]) -> Result<(), Stop> {
        let api: Api<Service> = Api::namespaced(self.client.clone(), namespace(service));
        let patch = json!({"metadata": {"uid": uid(service)}, "status": {"loadBalancer": {"ingress": ingress}}});
        call_opt(&self.term, api.patch_status(name(service), &PatchParams::default(), &Patch::Merge(patch))).await?;
        if let Some(first) = ingress.first().and_then(|ingress| ingress.ip.as_deref()) {
            let message = format!("reached at {first}");
            self.recorder.event(&reference(service), Level::Normal, "EnsuredLoadBalancer", message);
        }
        Ok(())
    }
}

/// What becomes of one service.
#[derive(Debug, PartialEq)]
struct Decision<'a> {
    service: &'a Arc<Service>,
    /// What its status says of balancers then.
    ingress: Vec<LoadBalancerIngress>,
    /// The port that another service has, and its name.
    waits_for: Option<(i32, String)>,
}

/// Decides for every service that wants, or had, addresses of the machines.
fn plan<'a>(services: &'a [Arc<Service>], addresses: &BTreeSet<String>) -> Vec<Decision<'a>> {
    let mut wanting: Vec<&Arc<Service>> = services.iter().filter(|service| wants_balancer(service)).collect();
    let made = |service: &Service| service.metadata.creation_timestamp.as_ref().map(|time| time.0);
    wanting.sort_by_key(|service| (made(service), namespace(&***service).to_owned(), name(&***service).to_owned()));
    let mut taken: BTreeMap<(String, i32), String> = BTreeMap::new();
    let mut decisions = Vec::new();
    for service in wanting {
        let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
        let key = |port: &k8s_openapi::api::core::v1::ServicePort| {
            (port.protocol.clone().unwrap_or_else(|| "TCP".into()), port.port)
        };
        let waits_for = ports.iter().find_map(|port| Some((port.port, taken.get(&key(port))?.clone())));
        let mut ingress = Vec::new();
        if waits_for.is_none() {
            let own = format!("{}/{}", namespace(&**service), name(&**service));
            taken.extend(ports.iter().map(|port| (key(port), own.clone())));
            ingress.extend(addresses.iter().map(|ip| LoadBalancerIngress {
                ip: Some(ip.clone()),
                ip_mode: Some("VIP".into()),
                ..LoadBalancerIngress::default()
            }));
        }
        decisions.push(Decision { service, ingress, waits_for });
    }
    // One that is of another type now gives them back.
    let former = services.iter().filter(|service| !is_balancer(service) && !has(service).is_empty());
    decisions.extend(former.map(|service| Decision { service, ingress: Vec::new(), waits_for: None }));
    decisions
}

fn is_balancer(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer"))
}

/// Whether it is ours to give it addresses: a class names somebody else.
fn wants_balancer(service: &Service) -> bool {
    let classed = service.spec.as_ref().is_some_and(|spec| spec.load_balancer_class.is_some());
    is_balancer(service) && !classed && service.metadata.deletion_timestamp.is_none()
}

fn has(service: &Service) -> Vec<LoadBalancerIngress> {
    let status: Option<&ServiceStatus> = service.status.as_ref();
    let balancer: Option<&LoadBalancerStatus> = status.and_then(|status| status.load_balancer.as_ref());
    balancer.and_then(|balancer| balancer.ingress.clone()).unwrap_or_default()
}

/// The address that a node's machine has towards the outside.
fn address_of(node: &Node) -> Option<String> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let internal = addresses.iter().find(|address| address.type_ == "InternalIP")?;
    // Services have IPv4 addresses here.
    Some(internal.address.clone()).filter(|address| !address.contains(':'))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn service(name: &str, made: &str, port: i32, change: impl FnOnce(&mut Value)) -> Arc<Service> {
        let mut service = json!({"metadata": {"name": name, "namespace": "d", "creationTimestamp": made},
            "spec": {"type": "LoadBalancer", "ports": [{"port": port}]}});
        change(&mut service);
        Arc::new(serde_json::from_value(service).expect("a service"))
    }

    fn shown(services: &[Arc<Service>]) -> Vec<(String, Vec<String>, Option<String>)> {
        let addresses = ["192.0.2.2".to_owned()].into();
        let of = |d: Decision<'_>| {
            let ips = d.ingress.into_iter().filter_map(|ingress| ingress.ip).collect();
            (name(&**d.service).to_owned(), ips, d.waits_for.map(|(_, other)| other))
        };
        plan(services, &addresses).into_iter().map(of).collect()
    }

    const EARLY: &str = "2026-01-01T00:00:00Z";
    const LATE: &str = "2026-01-02T00:00:00Z";

    #[test]
    fn a_port_belongs_to_the_older_service_and_the_other_waits_for_it() {
        let services =
            [service("a", LATE, 80, |_| {}), service("b", EARLY, 80, |_| {}), service("c", LATE, 81, |_| {})];
        let ours = || vec!["192.0.2.2".to_owned()];
        let expected = [("b", ours(), None), ("a", vec![], Some("d/b".to_owned())), ("c", ours(), None)];
        assert_eq!(shown(&services), expected.map(|(name, ips, other)| (name.to_owned(), ips, other)));
    }

    #[test]
    fn classes_of_others_are_left_alone_and_other_types_give_addresses_back() {
        let ingress = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}});
        let services = [
            service("classed", EARLY, 80, |s| {
                s["spec"]["loadBalancerClass"] = "x/y".into();
                s["status"] = ingress.clone();
            }),
            service("former", EARLY, 80, |s| {
                s["spec"]["type"] = "ClusterIP".into();
                s["status"] = ingress.clone();
            }),
            service("plain", EARLY, 80, |s| s["spec"]["type"] = "ClusterIP".into()),
        ];
        assert_eq!(shown(&services), [("former".to_owned(), Vec::new(), None)]);
    }
}
