//! `nodes/NAME/proxy/metrics/resource`: what a node, its pods and their containers use, in Prometheus' text format and
//! under a kubelet's names; `nodes/NAME/proxy/metrics`: what its agent counts. Of a node, these and its summary are all
//! that is reached by way of the server's proxy.

use std::fmt::Write as _;

use api::status::Status;
use http::Response;
use nodeconn::StreamRequest;
use serde_json::Value;

use super::usage::ask_one;
use crate::body::Body;
use crate::errors::Outcome;
use crate::metrics::TEXT;
use crate::respond;
use crate::route::Target;
use crate::server::Shared;

/// Names, types and meanings. Source: pkg/kubelet/metrics/collectors/resource_metrics.go.
const FAMILIES: [(&str, &str, &str); 8] = [
    ("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the container in core-seconds"),
    ("container_memory_working_set_bytes", "gauge", "Current working set of the container in bytes"),
    ("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds"),
    ("node_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the node in core-seconds"),
    ("node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes"),
    ("pod_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the pod in core-seconds"),
    ("pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes"),
    ("resource_scrape_error", "gauge", "1 if there was an error while getting container metrics, 0 otherwise"),
];

/// Whether the path is that of a node's metrics.
pub(crate) fn is_node_metrics(target: &Target) -> bool {
    let node = target.group.is_empty() && target.plural == "nodes" && !target.name.is_empty();
    node && target.subresource == "proxy" && matches!(target.rest.as_str(), "metrics" | "metrics/resource")
}

/// Asks the node.
pub(crate) async fn node_metrics(shared: &Shared, target: &Target) -> Outcome<Response<Body>> {
    let node = target.name.as_str();
    shared.cache.catch_up().await?;
    shared.cache.get("", "nodes", "", node).ok_or_else(|| Box::new(Status::not_found("", "nodes", node)))?;
    let counted = target.rest == "metrics";
    let request = if counted { StreamRequest::Metrics } else { StreamRequest::Stats };
    let answer = ask_one(&shared.nodes, node, request).await;
    let answer = answer.ok_or_else(|| {
        Box::new(Status::new(503, "ServiceUnavailable", format!("node {node} is not connected, or does not answer")))
    })?;
    Ok(respond::raw(200, TEXT, if counted { text_of(&answer).to_owned() } else { text(&answer) }))
}

/// An agent's answer as text.
fn text(look: &Value) -> String {
    let moment: Option<jiff::Timestamp> = look["timestamp"].as_str().and_then(|text| text.parse().ok());
    let at = moment.map(|moment| format!(" {}", moment.as_millisecond())).unwrap_or_default();
    let mut out = String::new();
    let samples = samples(look);
    for (name, kind, help) in FAMILIES {
        let _ = writeln!(out, "# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}");
        for (_, labels, value) in samples.iter().filter(|(family, ..)| *family == name) {
            let _ = writeln!(out, "{name}{labels} {value}{at}");
        }
    }
    let _ = writeln!(out, "resource_scrape_error 0");
    out
}

/// Family, labels and value of all that is known.
fn samples(look: &Value) -> Vec<(&'static str, String, f64)> {
    let mut out = Vec::new();
    let mut both = |families: [&'static str; 2], labels: &str, total: [Option<f64>; 2]| {
        for (family, value) in families.into_iter().zip(total) {
            out.extend(value.map(|value| (family, labels.to_owned(), value)));
        }
    };
    both(["node_cpu_usage_seconds_total", "node_memory_working_set_bytes"], "", total(&look["node"]));
    let mut starts = Vec::new();
    for pod in look["pods"].as_array().into_iter().flatten() {
        let [namespace, name] = ["namespace", "name"].map(|field| pod["podRef"][field].as_str().unwrap_or_default());
        let mut sums = [None, None];
        for container in pod["containers"].as_array().into_iter().flatten() {
            let own = total(container);
            let labels =
                format!("{{container={:?},namespace={namespace:?},pod={name:?}}}", text_of(&container["name"]));
            both(["container_cpu_usage_seconds_total", "container_memory_working_set_bytes"], &labels, own);
            for (sum, own) in sums.iter_mut().zip(own) {
                *sum = own.map_or(*sum, |own| Some(sum.unwrap_or(0.0) + own));
            }
            let started: Option<jiff::Timestamp> = text_of(&container["startedAt"]).parse().ok();
            starts.extend(started.map(|at| ("container_start_time_seconds", labels, at.as_duration().as_secs_f64())));
        }
        let labels = format!("{{namespace={namespace:?},pod={name:?}}}");
        both(["pod_cpu_usage_seconds_total", "pod_memory_working_set_bytes"], &labels, sums);
    }
    out.extend(starts);
    out
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Processor time so far in seconds, and memory in bytes.
fn total(of: &Value) -> [Option<f64>; 2] {
    let total = &of["total"];
    [total["cpuNanos"].as_f64().map(|nanos| nanos / 1e9), total["memoryBytes"].as_f64()]
}
