//! What a service keeps: its addresses, their families, and node ports.

use serde_json::{Value, json};

/// Before a create: one address also as a list, families of headless services.
pub(super) fn prepare_create(service: &mut Value) {
    let spec = &mut service["spec"];
    if !spec.is_object() || spec["type"] == "ExternalName" {
        return;
    }
    normalize(spec);
    fill_families(spec);
}

/// Before an update: what was allocated stays unless it is given up or named anew.
pub(super) fn prepare_update(service: &mut Value, old: &Value) {
    let spec = &mut service["spec"];
    let old = &old["spec"];
    if !spec.is_object() {
        return;
    }
    if spec["type"] == "ExternalName" {
        drop_addresses(spec, old);
        return;
    }
    if old["type"] != "ExternalName" {
        keep_addresses(spec, old);
        keep_node_ports(spec, old);
    }
    normalize(spec);
    fill_families(spec);
}

/// `clusterIPs` begins with `clusterIP`.
fn normalize(spec: &mut Value) {
    let address = spec["clusterIP"].as_str().unwrap_or("").to_owned();
    let listed = spec["clusterIPs"].as_array().is_some_and(|list| !list.is_empty());
    if !address.is_empty() && !listed {
        spec["clusterIPs"] = json!([address]);
    } else if address.is_empty() && listed {
        spec["clusterIP"] = spec["clusterIPs"][0].clone();
    }
}

/// One family, IPv4, unless the client says otherwise; both for a headless service whose endpoints others write.
fn fill_families(spec: &mut Value) {
    let headless = spec["clusterIP"] == "None";
    let selects = spec["selector"].as_object().is_some_and(|s| !s.is_empty());
    let open = headless && !selects;
    if spec["ipFamilyPolicy"].is_null() {
        spec["ipFamilyPolicy"] = if open { "RequireDualStack" } else { "SingleStack" }.into();
    }
    if spec["ipFamilies"].as_array().is_none_or(Vec::is_empty) {
        let dual = spec["ipFamilyPolicy"] == "RequireDualStack";
        spec["ipFamilies"] = if dual { json!(["IPv4", "IPv6"]) } else { json!(["IPv4"]) };
    }
}

/// An external name needs no addresses; those of before go, unless the client asks for others.
fn drop_addresses(spec: &mut Value, old: &Value) {
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if spec[field] == old[field]
            && let Some(map) = spec.as_object_mut()
        {
            map.remove(field);
        }
    }
}

/// Addresses and families that the client leaves out stay.
fn keep_addresses(spec: &mut Value, old: &Value) {
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let empty = match &spec[field] {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        if empty && !old[field].is_null() {
            // A new single address renews the list instead of keeping the old one.
            let renewed = field == "clusterIPs" && spec["clusterIP"] != old["clusterIP"];
            spec[field] = if renewed { json!([spec["clusterIP"]]) } else { old[field].clone() };
        }
    }
}

/// Node ports stay with their port and protocol.
fn keep_node_ports(spec: &mut Value, old: &Value) {
    let exposed = |spec: &Value| matches!(spec["type"].as_str(), Some("NodePort" | "LoadBalancer"));
    if !(exposed(spec) && exposed(old)) {
        return;
    }
    let old_ports = old["ports"].as_array().cloned().unwrap_or_default();
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        if port["nodePort"].as_i64().unwrap_or(0) == 0
            && let Some(same) =
                old_ports.iter().find(|o| o["port"] == port["port"] && o["protocol"] == port["protocol"])
            && !same["nodePort"].is_null()
        {
            port["nodePort"] = same["nodePort"].clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_headless_service_lists_its_non_address() {
        let mut service = json!({"spec": {"clusterIP": "None", "selector": {"a": "b"}}});
        prepare_create(&mut service);
        assert_eq!(service["spec"]["clusterIPs"], json!(["None"]));
        assert_eq!(service["spec"]["ipFamilies"], json!(["IPv4"]));
    }

    #[test]
    fn an_update_without_the_address_keeps_it() {
        let old = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.0.0.5", "clusterIPs": ["10.0.0.5"]}});
        let mut new = json!({"spec": {"type": "ClusterIP", "ports": []}});
        prepare_update(&mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.0.0.5");
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.0.0.5"]));
    }
}
