//! LimitRanges: what containers get that do not say, and what a namespace allows one container, pod or claim.
//!
//! Both decide on one range at a time, as upstream does: its sentences name no range, and the first range that
//! refuses is the one that is heard.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::amounts::{self, Amounts, Side};
use crate::quantity::Quantity;

/// Says what was filled in.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// Fills in what the containers of a new pod leave open.
pub fn fill_in(range: &Value, pod: &mut Value) {
    let (mut requests, mut limits) = (BTreeMap::new(), BTreeMap::new());
    for item in items(range, "Container") {
        let into = |map: &mut BTreeMap<String, Value>, field: &str| {
            map.extend(item[field].as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
        };
        into(&mut requests, "defaultRequest");
        into(&mut limits, "default");
    }
    if requests.is_empty() && limits.is_empty() {
        return;
    }
    let mut done = Vec::new();
    for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            let of_limits = missing(container, "limits", &limits);
            for (defaults, side) in [(&requests, "requests"), (&limits, "limits")] {
                let set = if side == "limits" { of_limits.clone() } else { missing(container, side, defaults) };
                if set.is_empty() {
                    continue;
                }
                for key in &set {
                    container["resources"][side][key] = defaults[key].clone();
                }
                done.push(format!("{} {} for {what} {name}", set.join(", "), side.trim_end_matches('s')));
            }
        }
    }
    // Indexing made the list if there was none.
    if pod["spec"]["initContainers"].is_null()
        && let Some(spec) = pod["spec"].as_object_mut()
    {
        spec.remove("initContainers");
    }
    if !done.is_empty() {
        pod["metadata"]["annotations"][ANNOTATION] = format!("LimitRanger plugin set: {}", done.join("; ")).into();
    }
}

/// The names that a container has no amount for.
fn missing(container: &Value, side: &str, defaults: &BTreeMap<String, Value>) -> Vec<String> {
    let has = container.get("resources").and_then(|r| r.get(side));
    defaults.keys().filter(|key| has.and_then(|has| has.get(key.as_str())).is_none()).cloned().collect()
}

/// Why a range does not allow a pod.
pub fn refuse_pod(range: &Value, pod: &Value) -> Option<String> {
    let mut found = Vec::new();
    let spec = &pod["spec"];
    for item in range["spec"]["limits"].as_array().into_iter().flatten() {
        match item["type"].as_str() {
            Some("Container") => {
                let lists = ["containers", "initContainers"].into_iter();
                for container in lists.filter_map(|list| spec[list].as_array()).flatten() {
                    let resources = &container["resources"];
                    let sides = (amounts::read(&resources["requests"]), amounts::read(&resources["limits"]));
                    all(item, "Container", &sides.0, &sides.1, &mut found);
                }
            }
            Some("Pod") => {
                let (requests, limits) = (amounts::of_pod(spec, Side::Requests), amounts::of_pod(spec, Side::Limits));
                all(item, "Pod", &requests, &limits, &mut found);
            }
            _ => {}
        }
    }
    together(found)
}

/// Why a range does not allow a claim.
pub fn refuse_claim(range: &Value, claim: &Value) -> Option<String> {
    let requests = amounts::read(&claim["spec"]["resources"]["requests"]);
    let kind = "PersistentVolumeClaim";
    let mut found = Vec::new();
    for item in items(range, kind) {
        for (name, least) in amounts::read(&item["min"]) {
            found.extend(minimum(&name, kind, &least, requests.get(&name), None));
        }
        for (name, most) in amounts::read(&item["max"]) {
            let what = format!("maximum {name} usage per {kind} is {most}");
            match requests.get(&name) {
                None => found.push(format!("{what}.  No request is specified")),
                Some(request) if *request > most => found.push(format!("{what}, but request is {request}")),
                Some(_) => {}
            }
        }
    }
    together(found)
}

/// The items of a range for one type.
fn items<'a>(range: &'a Value, kind: &'static str) -> impl Iterator<Item = &'a Value> {
    range["spec"]["limits"].as_array().into_iter().flatten().filter(move |item| item["type"] == kind)
}

/// One sentence, or a list of several.
fn together(mut found: Vec<String>) -> Option<String> {
    found.dedup();
    match found.len() {
        0 | 1 => found.pop(),
        _ => Some(format!("[{}]", found.join(", "))),
    }
}

/// Checks one container's or pod's amounts against an item.
fn all(item: &Value, kind: &str, requests: &Amounts, limits: &Amounts, found: &mut Vec<String>) {
    for (name, least) in amounts::read(&item["min"]) {
        found.extend(minimum(&name, kind, &least, requests.get(&name), limits.get(&name)));
    }
    for (name, most) in amounts::read(&item["max"]) {
        let what = format!("maximum {name} usage per {kind} is {most}");
        match (limits.get(&name), requests.get(&name)) {
            (None, _) => found.push(format!("{what}.  No limit is specified")),
            (Some(limit), _) if *limit > most => found.push(format!("{what}, but limit is {limit}")),
            (_, Some(request)) if *request > most => found.push(format!("{what}, but request is {request}")),
            _ => {}
        }
    }
    for (name, most) in amounts::read(&item["maxLimitRequestRatio"]) {
        found.extend(ratio(&name, kind, &most, requests.get(&name), limits.get(&name)));
    }
}

/// Not less than this.
fn minimum(
    name: &str,
    kind: &str,
    least: &Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let what = format!("minimum {name} usage per {kind} is {least}");
    match (request, limit) {
        (None, _) => Some(format!("{what}.  No request is specified")),
        (Some(request), _) if request < least => Some(format!("{what}, but request is {request}")),
        (_, Some(limit)) if limit < least => Some(format!("{what}, but limit is {limit}")),
        _ => None,
    }
}

/// Not more times the request than this.
fn ratio(
    name: &str,
    kind: &str,
    most: &Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let what = format!("{name} max limit to request ratio per {kind} is {most}");
    let Some(request) = request.filter(|q| !q.is_zero()) else {
        return Some(format!("{what}, but no request is specified or request is 0"));
    };
    let Some(limit) = limit.filter(|q| !q.is_zero()) else {
        return Some(format!("{what}, but no limit is specified or limit is 0"));
    };
    let observed = limit.millis() as f64 / request.millis() as f64;
    (observed * 1000.0 > most.millis() as f64).then(|| format!("{what}, but provided ratio is {observed:.6}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn range(item: Value) -> Value {
        json!({"spec": {"limits": [item]}})
    }

    fn pod(resources: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "resources": resources}]}})
    }

    #[test]
    fn what_a_container_leaves_open_is_filled_in_and_said() {
        let range = range(json!({"type": "Container", "default": {"cpu": "1", "memory": "1Gi"},
            "defaultRequest": {"cpu": "500m"}}));
        let mut given = pod(json!({"limits": {"memory": "2Gi"}, "requests": {"memory": "2Gi"}}));
        fill_in(&range, &mut given);
        assert_eq!(
            given["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "1", "memory": "2Gi"}, "requests": {"cpu": "500m", "memory": "2Gi"}})
        );
        assert_eq!(
            given["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
        );
        assert!(given["spec"].get("initContainers").is_none());
        let before = given.clone();
        fill_in(&range, &mut given);
        assert_eq!(given, before);
    }

    #[test]
    fn containers_and_pods_are_held_to_bounds_and_ratio() {
        let container = range(json!({"type": "Container", "max": {"memory": "1Gi"}, "min": {"cpu": "100m"}}));
        let refused = |range: &Value, resources: Value| refuse_pod(range, &pod(resources)).unwrap_or_default();
        let fitting = json!({"limits": {"memory": "1Gi"}, "requests": {"cpu": "100m"}});
        assert_eq!(refused(&container, fitting), "");
        assert_eq!(
            refused(&container, json!({"limits": {"memory": "2Gi"}, "requests": {"cpu": "50m"}})),
            "[minimum cpu usage per Container is 100m, but request is 50m, maximum memory usage per Container is 1Gi, but limit is 2Gi]"
        );
        assert_eq!(
            refused(&container, json!({"requests": {"cpu": "1"}})),
            "maximum memory usage per Container is 1Gi.  No limit is specified"
        );
        let ratio = range(json!({"type": "Pod", "maxLimitRequestRatio": {"cpu": "2"}}));
        assert_eq!(refused(&ratio, json!({"limits": {"cpu": "2"}, "requests": {"cpu": "1"}})), "");
        assert_eq!(
            refused(&ratio, json!({"limits": {"cpu": "3"}, "requests": {"cpu": "1"}})),
            "cpu max limit to request ratio per Pod is 2, but provided ratio is 3.000000"
        );
    }

    #[test]
    fn claims_are_held_to_bounds() {
        let range =
            range(json!({"type": "PersistentVolumeClaim", "max": {"storage": "2Gi"}, "min": {"storage": "1Gi"}}));
        let claim = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
        assert_eq!(refuse_claim(&range, &claim("1Gi")), None);
        assert_eq!(
            refuse_claim(&range, &claim("3Gi")).unwrap(),
            "maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"
        );
        assert_eq!(
            refuse_claim(&range, &claim("1Mi")).unwrap(),
            "minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi"
        );
    }
}
