//! What a container may be told about its own pod: `fieldRef` and `resourceFieldRef`.

use k8s_openapi::api::core::v1::{Pod, ResourceFieldSelector};

use super::machine;
use super::quantity;

/// The value of a field path. The pod's status must hold its addresses already.
pub fn value(pod: &Pod, path: &str) -> Result<String, String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let text = |value: Option<&String>| Ok(value.cloned().unwrap_or_default());
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(format!("unsupported fieldPath: {path}")),
        };
        return text(map.and_then(|m| m.get(key)));
    }
    match path {
        "metadata.name" => text(meta.name.as_ref()),
        "metadata.namespace" => text(meta.namespace.as_ref()),
        "metadata.uid" => text(meta.uid.as_ref()),
        "metadata.labels" => Ok(format_map(meta.labels.as_ref())),
        "metadata.annotations" => Ok(format_map(meta.annotations.as_ref())),
        "spec.nodeName" => text(spec.and_then(|s| s.node_name.as_ref())),
        "spec.serviceAccountName" => text(spec.and_then(|s| s.service_account_name.as_ref())),
        "status.hostIP" => text(status.and_then(|s| s.host_ip.as_ref())),
        "status.podIP" => text(status.and_then(|s| s.pod_ip.as_ref())),
        "status.hostIPs" => {
            Ok(join(status.and_then(|s| s.host_ips.as_ref()).into_iter().flatten().map(|ip| ip.ip.as_str())))
        }
        "status.podIPs" => {
            Ok(join(status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten().map(|ip| ip.ip.as_str())))
        }
        _ => Err(format!("unsupported fieldPath: {path}")),
    }
}

/// The value of a container's request or limit in units of the divisor, rounded up. A limit that is not set is the machine's.
pub fn resource(pod: &Pod, container: &str, selector: &ResourceFieldSelector) -> Result<String, String> {
    let name = selector.container_name.as_deref().unwrap_or(container);
    let spec = pod.spec.as_ref().ok_or("the pod has no spec")?;
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    let container = all.into_iter().find(|c| c.name == name).ok_or_else(|| format!("container {name} not found"))?;
    let (list, what) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource: {}", selector.resource))?;
    let resources = container.resources.as_ref();
    let limit = quantity::of(resources.and_then(|r| r.limits.as_ref()), what);
    let said = match list {
        "limits" => limit,
        "requests" => quantity::of(resources.and_then(|r| r.requests.as_ref()), what).or(limit),
        _ => return Err(format!("unsupported container resource: {}", selector.resource)),
    };
    let cpu = what == "cpu";
    let amount = match said {
        Some(text) if cpu => quantity::millis(text).unwrap_or(0),
        Some(text) => quantity::bytes(text).unwrap_or(0),
        None if list == "requests" => 0,
        None if cpu => machine::cpus() * 1000,
        None if what == "memory" => machine::memory_bytes(),
        None => 0,
    };
    let divisor = selector.divisor.as_ref().map(|q| q.0.as_str()).filter(|t| *t != "0" && !t.is_empty()).unwrap_or("1");
    let divisor =
        if cpu { quantity::millis(divisor) } else { quantity::bytes(divisor) }.filter(|d| *d > 0).unwrap_or(1);
    Ok(amount.div_ceil(divisor).to_string())
}

/// `metadata.labels['key']` as map and key.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// One `key="value"` per line, sorted.
fn format_map(map: Option<&std::collections::BTreeMap<String, String>>) -> String {
    let quoted = |value: &str| serde_json::Value::String(value.to_owned()).to_string();
    map.into_iter().flatten().map(|(k, v)| format!("{k}={}", quoted(v))).collect::<Vec<_>>().join("\n")
}

fn join<'a>(items: impl Iterator<Item = &'a str>) -> String {
    items.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web-0", "namespace": "prod", "labels": {"a/b": "c", "x": "q\"q"}},
            "spec": {"nodeName": "n1", "containers": [
                {"name": "c", "resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "100Mi"}}}]},
            "status": {"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}, {"ip": "fd00::2"}]}
        }))
        .expect("a pod")
    }

    #[test]
    fn fields_by_path() {
        for (path, expected) in [
            ("metadata.name", "web-0"),
            ("spec.nodeName", "n1"),
            ("status.podIPs", "10.0.0.2,fd00::2"),
            ("metadata.labels['a/b']", "c"),
            ("metadata.labels['none']", ""),
            ("metadata.labels", "a/b=\"c\"\nx=\"q\\\"q\""),
        ] {
            assert_eq!(value(&pod(), path).as_deref(), Ok(expected), "{path}");
        }
        assert!(value(&pod(), "spec.hostname").is_err());
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let ask = |resource: &str, divisor: Option<&str>| {
            let selector = json!({"resource": resource, "divisor": divisor});
            super::resource(&pod(), "c", &serde_json::from_value(selector).expect("a selector"))
        };
        assert_eq!(ask("limits.cpu", None).as_deref(), Ok("2"));
        assert_eq!(ask("limits.cpu", Some("1")).as_deref(), Ok("2"));
        assert_eq!(ask("limits.cpu", Some("1m")).as_deref(), Ok("1500"));
        assert_eq!(ask("requests.memory", Some("1Mi")).as_deref(), Ok("100"));
        assert_eq!(ask("requests.cpu", Some("1m")).as_deref(), Ok("1500"));
        assert!(ask("cpu", None).is_err());
    }
}
