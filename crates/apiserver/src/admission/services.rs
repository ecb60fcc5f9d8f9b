//! Services: addresses and ports, each given out once.
//!
//! What is given out is a key of its own in the store, written and deleted in the service's transaction: two
//! servers cannot give the same address, and none is lost in a crash.

use std::net::Ipv4Addr;

use api::status::{FieldError, Status};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::errors::Outcome;
use crate::handler::Call;
use crate::respond;
use crate::verbs::create::text;
use crate::verbs::write::Extra;

/// Given addresses.
const ADDRESSES: &str = "/allocations/addresses/";
/// Given node ports.
const PORTS: &str = "/allocations/ports/";
/// How many random candidates are tried before all are gone through.
const TRIES: usize = 64;

/// Gives a service what its type needs, keeps what it has, and gives back what it no longer needs.
pub(super) fn allocate(call: &Call, new: &mut Value, old: Option<&Value>, extra: &mut Extra) -> Outcome<()> {
    let name = text(new, "name").to_owned();
    let owner: Bytes = format!("{}/{name}", text(new, "namespace")).into();
    let kind = field(new, "type").to_owned();
    let before = old.map(|o| field(o, "clusterIP").to_owned()).unwrap_or_default();
    if kind == "ExternalName" {
        if let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) {
            for gone in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                spec.remove(gone);
            }
        }
    } else {
        if field(new, "clusterIP").is_empty() {
            let address = if before.is_empty() { free_address(call, extra)? } else { before.clone() };
            new["spec"]["clusterIP"] = address.into();
        }
        let address = field(new, "clusterIP").to_owned();
        if address != before && address != "None" {
            claim_address(call, &name, &address, owner.clone(), extra)?;
        }
        families(new, &address);
    }
    let now = field(new, "clusterIP");
    if !before.is_empty() && before != "None" && before != now {
        extra.delete(format!("{ADDRESSES}{before}").into());
    }
    ports(call, new, old, owner, extra)
}

/// Gives back what a deleted service had.
pub(super) fn release(call: &Call, service: &Value, extra: &mut Extra) {
    let address = field(service, "clusterIP");
    if !address.is_empty() && address != "None" {
        extra.delete(format!("{ADDRESSES}{address}").into());
    }
    for port in node_ports(service) {
        extra.delete(format!("{PORTS}{port}").into());
    }
    let _ = call;
}

/// Where the store notes who has an address.
pub(crate) fn address_key(address: &str) -> Bytes {
    format!("{ADDRESSES}{address}").into()
}

/// A text of the spec.
fn field<'a>(service: &'a Value, name: &str) -> &'a str {
    service.get("spec").and_then(|s| s.get(name)).and_then(Value::as_str).unwrap_or_default()
}

/// The fields that say again what kind of address it is.
fn families(service: &mut Value, address: &str) {
    let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else { return };
    spec.insert("clusterIPs".to_owned(), json!([address]));
    spec.entry("ipFamilies").or_insert_with(|| json!(["IPv4"]));
    spec.entry("ipFamilyPolicy").or_insert_with(|| json!("SingleStack"));
}

/// An address that nobody has.
fn free_address(call: &Call, extra: &mut Extra) -> Outcome<String> {
    let (network, prefix) = call.shared.service_cidr;
    let size = 1u32 << (32 - u32::from(prefix));
    let base = u32::from(network) & !(size - 1);
    // The first is the network, the second kept for the API itself, the last the broadcast address.
    let usable = size - 3;
    let start = random(call);
    let at = |n: u32| Ipv4Addr::from(base + 2 + n % usable);
    let free = |address: &Ipv4Addr| {
        let key: Bytes = format!("{ADDRESSES}{address}").into();
        call.shared.cache.note_at(&key).is_none() && !extra.compare.iter().any(|c| c.key == key)
    };
    (0..TRIES as u32)
        .map(|n| at(start.wrapping_mul(n + 1)))
        .chain((0..usable).map(|n| at(start.wrapping_add(n))))
        .find(free)
        .map(|address| address.to_string())
        .ok_or_else(|| {
            let why = "failed to allocate a serviceIP: range is full";
            Box::new(Status::internal(why))
        })
}

/// Reserves a given address; 422 if it is taken or outside the range.
fn claim_address(call: &Call, name: &str, address: &str, owner: Bytes, extra: &mut Extra) -> Outcome<()> {
    let (network, prefix) = call.shared.service_cidr;
    let invalid = |why: String| {
        let error = FieldError::invalid("spec.clusterIPs", json!([address]), why);
        respond::invalid(&call.resource, name, vec![error])
    };
    let mask = u32::MAX << (32 - u32::from(prefix));
    let inside = address.parse::<Ipv4Addr>().is_ok_and(|ip| u32::from(ip) & mask == u32::from(network) & mask);
    if !inside {
        return invalid(format!(
            "failed to allocate IP {address}: the provided IP ({address}) is not in the valid range. The range of \
             valid IPs is {network}/{prefix}"
        ));
    }
    let key: Bytes = format!("{ADDRESSES}{address}").into();
    if call.shared.cache.note_at(&key).is_some() {
        return invalid(format!("failed to allocate IP {address}: provided IP is already allocated"));
    }
    extra.unchanged(key.clone(), 0);
    extra.put(key, owner);
    Ok(())
}

/// Node ports of the types that have them.
fn ports(call: &Call, new: &mut Value, old: Option<&Value>, owner: Bytes, extra: &mut Extra) -> Outcome<()> {
    let wants = matches!(field(new, "type"), "NodePort" | "LoadBalancer")
        && new.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false));
    let had: Vec<u64> = old.map(node_ports).unwrap_or_default();
    let name = text(new, "name").to_owned();
    if wants {
        let count = new.pointer("/spec/ports").and_then(Value::as_array).map_or(0, Vec::len);
        for n in 0..count {
            let port = new["spec"]["ports"][n].get("nodePort").and_then(Value::as_u64).unwrap_or(0);
            let port = if port != 0 { port } else { free_port(call, old, n, extra)? };
            new["spec"]["ports"][n]["nodePort"] = port.into();
            if !had.contains(&port) {
                claim_port(call, &name, n, port, owner.clone(), extra)?;
            }
        }
    }
    let has = node_ports(new);
    for port in had.into_iter().filter(|port| !has.contains(port)) {
        extra.delete(format!("{PORTS}{port}").into());
    }
    Ok(())
}

/// The node ports of a service, each once.
fn node_ports(service: &Value) -> Vec<u64> {
    let list = service.pointer("/spec/ports").and_then(Value::as_array);
    let mut ports: Vec<u64> =
        list.into_iter().flatten().filter_map(|p| p.get("nodePort")?.as_u64()).filter(|p| *p != 0).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// The port that it had at this place before, or one that nobody has.
fn free_port(call: &Call, old: Option<&Value>, n: usize, extra: &Extra) -> Outcome<u64> {
    let before = old.and_then(|o| o.pointer(&format!("/spec/ports/{n}/nodePort"))).and_then(Value::as_u64);
    if let Some(port) = before.filter(|p| *p != 0) {
        return Ok(port);
    }
    let range = &call.shared.node_ports;
    let size = u32::from(*range.end() - *range.start()) + 1;
    let start = random(call);
    (0..size)
        .map(|n| u64::from(*range.start()) + u64::from(start.wrapping_add(n) % size))
        .find(|port| {
            let key: Bytes = format!("{PORTS}{port}").into();
            call.shared.cache.note_at(&key).is_none() && !extra.compare.iter().any(|c| c.key == key)
        })
        .ok_or_else(|| Box::new(Status::internal("failed to allocate a nodePort: range is full")))
}

/// Reserves a port; 422 if it is taken or outside the range.
fn claim_port(call: &Call, name: &str, n: usize, port: u64, owner: Bytes, extra: &mut Extra) -> Outcome<()> {
    let range = &call.shared.node_ports;
    let invalid = |why: String| {
        let error = FieldError::invalid(format!("spec.ports[{n}].nodePort"), port, why);
        respond::invalid(&call.resource, name, vec![error])
    };
    if !u16::try_from(port).is_ok_and(|p| range.contains(&p)) {
        return invalid(format!(
            "provided port is not in the valid range. The range of valid ports is {}-{}",
            range.start(),
            range.end()
        ));
    }
    let key: Bytes = format!("{PORTS}{port}").into();
    if extra.compare.iter().any(|c| c.key == key) {
        return Ok(());
    }
    if call.shared.cache.note_at(&key).is_some() {
        return invalid("provided port is already allocated".to_owned());
    }
    extra.unchanged(key.clone(), 0);
    extra.put(key, owner);
    Ok(())
}

/// A random number.
fn random(call: &Call) -> u32 {
    let mut bytes = [0; 4];
    call.shared.ambient.fill(&mut bytes);
    u32::from_le_bytes(bytes)
}
