//! `nodes/NAME/proxy/stats/summary`: what a node and its pods use and how full their volumes are, as a kubelet tells it.
//!
//! The one path of a node's proxy that is served. The node knows folders; which claim's folder each is, is known here.
//! <https://kubernetes.io/docs/reference/instrumentation/node-metrics/#summary-api-source>

use std::sync::Arc;

use api::status::Status;
use http::Response;
use nodeconn::StreamRequest;
use serde_json::{Value, json};

use super::usage::ask_one;
use crate::body::Body;
use crate::errors::Outcome;
use crate::respond;
use crate::route::Target;
use crate::server::Shared;

/// Whether the path leads here.
pub(crate) fn is_meant(target: &Target) -> bool {
    target.group.is_empty()
        && target.plural == "nodes"
        && target.subresource == "proxy"
        && target.rest == "stats/summary"
}

/// Answers, once both of the node's documents are there.
pub(crate) async fn answer(shared: &Arc<Shared>, target: &Target) -> Outcome<Response<Body>> {
    shared.cache.catch_up().await?;
    let node = &target.name;
    if shared.cache.get("", "nodes", "", node).is_none() {
        return Err(Box::new(Status::not_found("", "nodes", node)));
    }
    let nodes = &shared.nodes;
    let (usage, fill) =
        tokio::join!(ask_one(nodes, node, StreamRequest::Stats), ask_one(nodes, node, StreamRequest::Volumes));
    let (Some(usage), Some(fill)) = (usage, fill) else {
        let why = format!("node {node} does not answer; try again when its agent is back");
        return Err(Box::new(Status::service_unavailable(why)));
    };
    let pods: Vec<Value> =
        usage["pods"].as_array().into_iter().flatten().map(|pod| of_pod(shared, pod, &usage, &fill)).collect();
    let mut whole = used(&usage["node"]["usage"], &usage["timestamp"]);
    whole["nodeName"] = usage["node"]["nodeName"].clone();
    Ok(respond::json(200, &json!({"node": whole, "pods": pods})))
}

fn of_pod(shared: &Shared, seen: &Value, usage: &Value, fill: &Value) -> Value {
    let time = &usage["timestamp"];
    let containers: Vec<Value> = seen["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|container| {
            let mut item = used(&container["usage"], time);
            item["name"] = container["name"].clone();
            item
        })
        .collect();
    let mut item = json!({"podRef": seen["podRef"], "startTime": seen["startTime"], "containers": containers});
    let volumes = volumes(shared, &seen["podRef"], fill);
    if !volumes.is_empty() {
        item["volume"] = volumes.into();
    }
    item
}

/// Processor and memory, where they are known.
fn used(usage: &Value, time: &Value) -> Value {
    if usage.is_null() {
        return json!({});
    }
    json!({
        "cpu": {"time": time, "usageNanoCores": usage["cpuNanocores"]},
        "memory": {"time": time, "workingSetBytes": usage["memoryBytes"]},
    })
}

/// The volumes of a pod that are claims', by what their folders hold.
fn volumes(shared: &Shared, reference: &Value, fill: &Value) -> Vec<Value> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (namespace, name, uid) = (text(&reference["namespace"]), text(&reference["name"]), text(&reference["uid"]));
    let value = |plural: &str, namespace: &str, name: &str| {
        let object = shared.cache.get("", plural, namespace, name)?;
        Some(object.value(shared.cache.named("", plural)?.resource()))
    };
    let Some(pod) = value("pods", &namespace, &name) else { return Vec::new() };
    let folders = &fill["pods"][&uid];
    let of_volume = |volume: &Value| {
        let claim = match volume["persistentVolumeClaim"]["claimName"].as_str() {
            Some(claim) => claim.to_owned(),
            None if volume["ephemeral"].is_object() => format!("{name}-{}", volume["name"].as_str()?),
            None => return None,
        };
        let bound = value("persistentvolumeclaims", &namespace, &claim)?;
        let volume_object = value("persistentvolumes", "", bound["spec"]["volumeName"].as_str()?)?;
        let mut item = folders.get(volume_object["spec"]["local"]["path"].as_str()?)?.clone();
        item["name"] = volume["name"].clone();
        item["time"] = fill["timestamp"].clone();
        item["pvcRef"] = json!({"name": claim, "namespace": namespace});
        Some(item)
    };
    pod["spec"]["volumes"].as_array().into_iter().flatten().filter_map(of_volume).collect()
}
