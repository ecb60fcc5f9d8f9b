//! Rules for services and their endpoints.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use super::container::{PROTOCOLS, port_number, port_or_name};
use super::cursor::{At, Errors};
use super::metadata;
use crate::names;
use crate::status::FieldError;

/// The longest time that a client sticks to an endpoint.
const AFFINITY_MAX: i64 = 86_400;
/// Endpoints of one slice.
const ENDPOINTS_MAX: usize = 1000;
/// Addresses of one endpoint.
const ADDRESSES_MAX: usize = 100;

/// A new or changed service.
pub(super) fn service(service: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    let spec = service.field("spec");
    let kind = spec.field("type");
    let headless = spec.field("clusterIP").text() == "None";
    let ports = spec.field("ports");
    if ports.len() == 0 && !headless && kind.text() != "ExternalName" {
        out.push(ports.required(""));
    }
    by_type(&spec, headless, out);
    let mut seen = BTreeSet::new();
    for port in ports.items() {
        service_port(&port, ports.len() > 1, &mut seen, out);
    }
    metadata::labels(&spec.field("selector"), out);
    session_affinity(&spec, out);
    addresses(&spec, out);
    kind.one_of(&["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], out);
    port_conflicts(&spec, out);
    let outside = matches!(kind.text(), "NodePort" | "LoadBalancer") || spec.field("externalIPs").len() > 0;
    if spec.field("loadBalancerSourceRanges").len() > 0 && kind.text() != "LoadBalancer" {
        let ranges = spec.field("LoadBalancerSourceRanges");
        out.push(ranges.forbidden("may only be used when `type` is 'LoadBalancer'"));
    }
    let policy = spec.field("externalTrafficPolicy");
    if !policy.text().is_empty() && !outside {
        out.push(policy.invalid("may only be set for externally-accessible services"));
    } else {
        policy.one_of_if_set(&["Cluster", "Local"], out);
    }
    spec.field("internalTrafficPolicy").one_of_if_set(&["Cluster", "Local"], out);
    balancer(&spec, kind.text(), out);
    if let Some(old) = old {
        address_change(&spec, &old["spec"], out);
    }
}

/// What only load balancers have.
fn balancer(spec: &At<'_>, kind: &str, out: &mut Errors) {
    let is_balancer = kind == "LoadBalancer";
    let allocates = spec.field("allocateLoadBalancerNodePorts");
    if allocates.is_set() && !is_balancer {
        out.push(allocates.forbidden("may only be used when `type` is 'LoadBalancer'"));
    }
    let class = spec.field("loadBalancerClass");
    if class.is_set() {
        if is_balancer {
            class.check(names::qualified_name, out);
        } else {
            out.push(class.forbidden("may only be used when `type` is 'LoadBalancer'"));
        }
    }
    let ranges = spec.field("loadBalancerSourceRanges");
    for range in ranges.items() {
        let fits = range.text().trim().split_once('/').is_some_and(|(address, length)| {
            let bits = address.parse::<IpAddr>().map(|ip| if ip.is_ipv4() { 32 } else { 128 });
            bits.is_ok_and(|bits| length.parse::<u8>().is_ok_and(|length| length <= bits))
        });
        if !fits {
            let detail = "must be a list of IP ranges. For example, 10.240.0.0/24,10.250.0.0/24";
            out.push(range.invalid(detail));
        }
    }
    let probe = spec.field("healthCheckNodePort");
    let local = is_balancer && spec.field("externalTrafficPolicy").text() == "Local";
    if probe.number() != 0 && !local {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        out.push(probe.invalid(detail));
    }
    let distribution = spec.field("trafficDistribution");
    distribution.one_of_if_set(&["PreferClose", "PreferSameNode", "PreferSameZone"], out);
}

/// What a type asks for or rules out.
fn by_type(spec: &At<'_>, headless: bool, out: &mut Errors) {
    let addresses = spec.field("clusterIPs");
    let kind = spec.field("type").text();
    match kind {
        "LoadBalancer" | "NodePort" if headless => {
            let detail = format!("may not be set to 'None' for {kind} services");
            out.push(FieldError::invalid(format!("{}[0]", addresses.path), "None", detail));
        }
        "ExternalName" => {
            if addresses.len() > 0 {
                out.push(addresses.forbidden("may not be set for ExternalName services"));
            }
            let name = spec.field("externalName");
            let host = name.text().trim_end_matches('.');
            if host.is_empty() {
                out.push(name.required(""));
            } else {
                let wrong = names::dns1123_subdomain(host).into_iter();
                out.extend(wrong.map(|sentence| FieldError::invalid(&name.path, host, sentence)));
            }
        }
        _ => {}
    }
}

/// One port of a service.
fn service_port<'a>(port: &At<'a>, named: bool, seen: &mut BTreeSet<&'a str>, out: &mut Errors) {
    let name = port.field("name");
    if !name.text().is_empty() {
        name.check(names::dns1123_label, out);
        if !seen.insert(name.text()) {
            out.push(name.duplicate());
        }
    } else if named {
        out.push(name.required(""));
    }
    port_number(&port.field("port"), out);
    port.field("protocol").one_of(&PROTOCOLS, out);
    port_or_name(&port.field("targetPort"), out);
    port.field("appProtocol").check_if_set(names::qualified_name, out);
}

/// Whether clients stick to endpoints, and for how long.
fn session_affinity(spec: &At<'_>, out: &mut Errors) {
    let affinity = spec.field("sessionAffinity");
    affinity.one_of(&["ClientIP", "None"], out);
    let config = spec.field("sessionAffinityConfig");
    match affinity.text() {
        "ClientIP" => {
            let seconds = config.field("clientIP").field("timeoutSeconds");
            if !seconds.is_set() {
                out.push(seconds.required("timeout can't be empty"));
            } else if !(1..=AFFINITY_MAX).contains(&seconds.number()) {
                out.push(seconds.invalid(format!("must be greater than 0 and less than {AFFINITY_MAX}")));
            }
        }
        "None" if config.is_set() => {
            out.push(config.forbidden("must not be set when session affinity is None"));
        }
        _ => {}
    }
}

/// Addresses inside and outside.
fn addresses(spec: &At<'_>, out: &mut Errors) {
    let list = spec.field("clusterIPs");
    for address in list.items() {
        match address.text() {
            "None" if list.len() > 1 => out.push(list.invalid("'None' must be the first and only value")),
            "None" => {}
            _ => address.check(names::ip, out),
        }
    }
    let first = spec.field("clusterIP");
    if list.len() > 0 && list.value.get(0) != Some(first.value) {
        out.push(first.invalid("must be equal to the first item of clusterIPs"));
    }
    spec.field("ipFamilies").items().for_each(|family| family.one_of_if_set(&["IPv4", "IPv6"], out));
    spec.field("ipFamilyPolicy").one_of_if_set(&["SingleStack", "PreferDualStack", "RequireDualStack"], out);
    for address in spec.field("externalIPs").items() {
        let before = out.len();
        address.check(names::ip, out);
        if out.len() == before {
            ordinary(&address, out);
        }
    }
}

/// An address that others can be reached at.
fn ordinary(address: &At<'_>, out: &mut Errors) {
    let detail = match address.text().parse::<IpAddr>() {
        Err(_) => "must be a valid IP address",
        Ok(ip) if ip.is_unspecified() => "may not be unspecified (0.0.0.0 or ::)",
        Ok(ip) if ip.is_loopback() => "may not be in the loopback range (127.0.0.0/8)",
        Ok(IpAddr::V4(ip)) if ip.is_link_local() => "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        Ok(IpAddr::V4(ip)) if ip.octets()[..3] == [224, 0, 0] => {
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
        }
        _ => return,
    };
    // The loopback of the other family is named after its only address.
    let detail =
        if address.text() == "::1" { "may not be in the loopback range (127.0.0.0/8, ::1/128)" } else { detail };
    out.push(address.invalid(detail));
}

/// Node ports only where they are used; no port twice.
fn port_conflicts(spec: &At<'_>, out: &mut Errors) {
    let ports = spec.field("ports");
    let kind = spec.field("type").text();
    if kind == "ClusterIP" {
        for port in ports.items().filter(|port| port.field("nodePort").number() != 0) {
            out.push(port.field("nodePort").forbidden("may not be used when `type` is 'ClusterIP'"));
        }
    }
    let (mut seen, mut seen_on_nodes) = (BTreeSet::new(), BTreeSet::new());
    for port in ports.items() {
        let protocol = port.field("protocol").text();
        let on_node = port.field("nodePort");
        if on_node.number() != 0 && !seen_on_nodes.insert((protocol, on_node.number())) {
            out.push(on_node.duplicate());
        }
        let number = port.field("port").number();
        if !seen.insert((protocol, number)) {
            let key = serde_json::json!({"protocol": protocol, "port": number});
            out.push(FieldError::duplicate(&port.path, key));
        }
    }
}

/// An address once given stays, unless the service no longer needs one.
fn address_change(spec: &At<'_>, before: &Value, out: &mut Errors) {
    let given = before["clusterIP"].as_str().unwrap_or("");
    let external = spec.field("type").text() == "ExternalName" || before["type"] == "ExternalName";
    if !given.is_empty() && !external && spec.field("clusterIP").text() != given {
        let list = spec.field("clusterIPs");
        out.push(FieldError::invalid(format!("{}[0]", list.path), list.value.clone(), "may not change once set"));
    }
}

/// New or changed endpoints.
pub(super) fn endpoints(endpoints: &At<'_>, out: &mut Errors) {
    for subset in endpoints.field("subsets").items() {
        let lists = [subset.field("addresses"), subset.field("notReadyAddresses")];
        if lists.iter().all(|list| list.len() == 0) {
            out.push(subset.required("must specify `addresses` or `notReadyAddresses`"));
        }
        for address in lists.iter().flat_map(At::items) {
            address.field("ip").check(names::ip, out);
            address.field("hostname").check_if_set(names::dns1123_label, out);
            address.field("nodeName").check_if_set(names::dns1123_subdomain, out);
            ordinary(&address.field("ip"), out);
        }
        let ports = subset.field("ports");
        for port in ports.items() {
            let name = port.field("name");
            if ports.len() > 1 {
                name.require(out);
            }
            name.check_if_set(names::dns1123_label, out);
            port_number(&port.field("port"), out);
            port.field("protocol").one_of(&PROTOCOLS, out);
        }
    }
}

/// One address of a slice, of the slice's type.
fn slice_address(address: &At<'_>, kind: &str, out: &mut Errors) {
    let parsed = address.text().parse::<IpAddr>();
    match kind {
        "FQDN" => address.check(names::dns1123_subdomain, out),
        "IPv4" | "IPv6" => {
            if !parsed.is_ok_and(|ip| ip.is_ipv4() == (kind == "IPv4")) {
                out.push(address.invalid(format!("must be a valid {kind} address")));
            }
            ordinary(address, out);
        }
        _ => {}
    }
}

/// A new or changed slice of endpoints.
pub(super) fn endpoint_slice(slice: &At<'_>, old: Option<&Value>, out: &mut Errors) {
    let kind = slice.field("addressType");
    kind.one_of(&["FQDN", "IPv4", "IPv6"], out);
    let endpoints = slice.field("endpoints");
    if endpoints.len() > ENDPOINTS_MAX {
        out.push(FieldError::too_many(&endpoints.path, endpoints.len(), ENDPOINTS_MAX));
        return;
    }
    for endpoint in endpoints.items() {
        let addresses = endpoint.field("addresses");
        match addresses.len() {
            0 => out.push(addresses.required("must contain at least 1 address")),
            count if count > ADDRESSES_MAX => out.push(FieldError::too_many(&addresses.path, count, ADDRESSES_MAX)),
            _ => {}
        }
        for address in addresses.items() {
            slice_address(&address, kind.text(), out);
        }
        endpoint.field("hostname").check_if_set(names::dns1123_label, out);
        endpoint.field("nodeName").check_if_set(names::dns1123_subdomain, out);
    }
    let mut seen = BTreeSet::new();
    for port in slice.field("ports").items() {
        let name = port.field("name");
        if !name.text().is_empty() {
            name.check(names::dns1123_label, out);
        }
        if !seen.insert(name.text()) {
            out.push(name.duplicate());
        }
        port.field("protocol").one_of(&PROTOCOLS, out);
    }
    if let Some(old) = old {
        kind.immutable(&old["addressType"], out);
    }
}
