//! What all pods of the node have of it: what is left is what another can have.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::PodSpec;

use super::machine;
use super::translate::{self, Amounts};
use crate::config::Config;

/// The pods that are there, by uid, with what each has. One that has ended has nothing.
#[derive(Debug, Default)]
pub struct Ledger {
    held: Mutex<BTreeMap<String, Share>>,
}

/// What a pod takes of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// What it asks for.
    pub amounts: Amounts,
    /// Ports of the machine: address (empty for all), protocol, number.
    pub ports: Vec<(String, String, i32)>,
}

/// What there is too little of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Short {
    /// The resource; none where it is a port.
    pub resource: Option<&'static str>,
    /// In a kubelet's words.
    pub sentence: String,
}

impl Share {
    /// Of a pod.
    pub fn of(spec: &PodSpec) -> Self {
        let host = spec.host_network == Some(true);
        let sidecar = |c: &&k8s_openapi::api::core::v1::Container| c.restart_policy.as_deref() == Some("Always");
        let containers = spec.init_containers.iter().flatten().filter(sidecar).chain(&spec.containers);
        let ports = containers.flat_map(|c| c.ports.iter().flatten()).filter_map(|port| {
            // In the machine's network every port is the machine's.
            let number = port.host_port.or(host.then_some(port.container_port)).filter(|number| *number > 0)?;
            let address = port.host_ip.clone().filter(|ip| ip != "0.0.0.0").unwrap_or_default();
            Some((address, port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), number))
        });
        Self { amounts: translate::requests(spec), ports: ports.collect() }
    }

    /// Whether both want the same port at the same address.
    fn collides(&self, other: &Self) -> bool {
        let meets = |a: &str, b: &str| a.is_empty() || b.is_empty() || a == b;
        self.ports
            .iter()
            .any(|(ip, protocol, port)| other.ports.iter().any(|(i, p, n)| p == protocol && n == port && meets(ip, i)))
    }
}

impl Ledger {
    /// Notes what a pod has, whether or not it fits.
    pub fn hold(&self, uid: &str, share: Share) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), share);
    }

    /// Forgets a pod.
    pub fn release(&self, uid: &str) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Lets a pod have that much, if the others leave it; else says what is short.
    pub fn fit(&self, uid: &str, wanted: Share, capacity: Amounts) -> Result<(), Short> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let others = held.iter().filter(|(other, _)| *other != uid).map(|(_, share)| share);
        if others.clone().any(|share| share.collides(&wanted)) {
            let sentence = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
            return Err(Short { resource: None, sentence: sentence.to_owned() });
        }
        let used = others.fold(Amounts::default(), |sum, share| sum + share.amounts);
        for (((what, wanted), (_, used)), (_, capacity)) in
            by_name(wanted.amounts).into_iter().zip(by_name(used)).zip(by_name(capacity))
        {
            if wanted > 0 && used.saturating_add(wanted) > capacity {
                let sentence = format!(
                    "Node didn't have enough resource: {what}, requested: {wanted}, used: {used}, capacity: {capacity}"
                );
                return Err(Short { resource: Some(what), sentence });
            }
        }
        held.insert(uid.to_owned(), wanted);
        Ok(())
    }

    /// How many pods there are, besides that one.
    pub fn others(&self, uid: &str) -> usize {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.keys().filter(|other| *other != uid).count()
    }
}

/// In the order in which a kubelet looks.
fn by_name(amounts: Amounts) -> [(&'static str, u64); 3] {
    let Amounts { cpu_millis, memory_bytes, storage_bytes } = amounts;
    [("cpu", cpu_millis), ("memory", memory_bytes), ("ephemeral-storage", storage_bytes)]
}

/// The machine as pods may divide it.
pub fn capacity(config: &Config) -> Amounts {
    Amounts {
        cpu_millis: machine::cpus().saturating_mul(1000),
        memory_bytes: machine::memory_bytes(),
        storage_bytes: machine::disk_bytes(&config.data_dir),
    }
}

/// Why a machine can never give that much.
pub fn infeasible(wanted: Amounts, capacity: Amounts) -> Option<String> {
    by_name(wanted).into_iter().zip(by_name(capacity)).find(|((_, wanted), (_, capacity))| wanted > capacity).map(
        |((what, wanted), (_, capacity))| {
            format!("Node didn't have enough capacity: {what}, requested: {wanted}, capacity: {capacity}")
        },
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MACHINE: Amounts = Amounts { cpu_millis: 2000, memory_bytes: 1000, storage_bytes: 100 };

    fn share(cpu_millis: u64, memory_bytes: u64) -> Share {
        Share { amounts: Amounts { cpu_millis, memory_bytes, storage_bytes: 0 }, ports: Vec::new() }
    }

    #[test]
    fn what_others_have_is_not_given_twice() {
        let ledger = Ledger::default();
        ledger.hold("a", share(1500, 100));
        let short = ledger.fit("b", share(600, 0), MACHINE).expect_err("too much");
        assert_eq!(short.resource, Some("cpu"));
        assert_eq!(short.sentence, "Node didn't have enough resource: cpu, requested: 600, used: 1500, capacity: 2000");
        assert_eq!(ledger.fit("b", share(500, 900), MACHINE), Ok(()));
        let short = ledger.fit("c", share(0, 1), MACHINE).expect_err("too much").sentence;
        assert!(short.contains("memory, requested: 1, used: 1000"), "{short}");
        // Its own share may grow into what is free, and comes free when it goes.
        assert_eq!(ledger.fit("c", share(0, 0), MACHINE), Ok(()));
        ledger.release("a");
        assert_eq!(ledger.fit("b", share(2000, 1000), MACHINE), Ok(()));
        assert_eq!((ledger.others("b"), ledger.others("x")), (1, 2));
    }

    #[test]
    fn a_port_of_the_machine_is_one_pods() {
        let ports = |ports: serde_json::Value| {
            let spec = json!({"containers": [{"name": "c", "ports": ports}]});
            Share::of(&serde_json::from_value(spec).expect("a pod spec"))
        };
        let ledger = Ledger::default();
        ledger.hold(
            "a",
            ports(json!([{"containerPort": 1, "hostPort": 80, "hostIP": "127.0.0.1"}, {"containerPort": 2}])),
        );
        let everywhere = ports(json!([{"containerPort": 9, "hostPort": 80}]));
        assert_eq!(ledger.fit("b", everywhere, MACHINE).expect_err("taken").resource, None);
        let other = ports(json!([{"containerPort": 9, "hostPort": 80, "hostIP": "127.0.0.2"}, {"containerPort": 2},
            {"containerPort": 9, "hostPort": 80, "protocol": "UDP"}]));
        assert_eq!(ledger.fit("b", other, MACHINE), Ok(()));
    }

    #[test]
    fn what_no_machine_of_this_size_has_is_infeasible() {
        assert_eq!(infeasible(MACHINE, MACHINE), None);
        let why = "Node didn't have enough capacity: cpu, requested: 2001, capacity: 2000";
        assert_eq!(infeasible(share(2001, 0).amounts, MACHINE).as_deref(), Some(why));
    }
}
