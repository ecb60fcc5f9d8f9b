//! metrics.k8s.io: what nodes and pods use just now, asked of the nodes' agents and never stored.
//!
//! A node that is not connected, or does not answer in time, is left out of lists, and so are its pods; asked for by
//! name, it is not found. So do metrics servers elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::quantity::Quantity;
use api::status::Status;
use api::table;
use futures::StreamExt;
use futures::stream;
use http::Response;
use nodeconn::{Frame, StreamRequest};
use serde_json::{Value, json};

use crate::body::Body;
use crate::cache::Shelf;
use crate::errors::Outcome;
use crate::handler::Call;
use crate::media::Shape;
use crate::object::Object;
use crate::verbs::{create, options};

/// The group.
pub(crate) const GROUP: &str = "metrics.k8s.io";

/// How long a node may take to answer; its own look takes half a second.
const PATIENCE: Duration = Duration::from_secs(5);
/// Nodes that are asked at once.
const AT_ONCE: usize = 64;
/// The longest answer of a node.
const ANSWER_MAX: usize = 8 << 20;

/// Answers get and list.
pub(crate) async fn answer(call: Call) -> Outcome<Response<Body>> {
    let is_nodes = call.target.plural == "nodes";
    call.shared.cache.catch_up().await?;
    let stored = shelf(&call, &call.target.plural)?;
    let filter = options::filter(&call)?;
    let subjects: Vec<Arc<Object>> =
        stored.all(&call.target.namespace).into_iter().filter(|o| filter.matches(o)).collect();
    let nodes: BTreeSet<String> = subjects
        .iter()
        .map(|o| if is_nodes { o.key.name.to_string() } else { host(o) })
        .filter(|n| !n.is_empty())
        .collect();
    let looks = ask(&call, nodes).await;
    let items: Vec<Value> = subjects
        .iter()
        .filter_map(|subject| if is_nodes { of_node(&call, subject, &looks) } else { of_pod(&call, subject, &looks) })
        .collect();
    let view = call.view()?;
    if call.verb == "get" {
        let item = items.into_iter().next().ok_or_else(|| call.not_found())?;
        return Ok(view.value(200, &item));
    }
    let list = json!({
        "kind": call.resource.list_kind,
        "apiVersion": call.resource.api_version(),
        "metadata": {},
        "items": items,
    });
    if view.wanted.shape == Shape::Table {
        let rows: Vec<&Value> = list["items"].as_array().into_iter().flatten().collect();
        return Ok(view.document(200, &table::render(&call.resource, &rows, view.now, view.include)));
    }
    Ok(view.document(200, &list))
}

/// The shelf of the kind whose use is asked for.
fn shelf(call: &Call, plural: &str) -> Outcome<Arc<Shelf>> {
    let found = call.shared.cache.named("", plural);
    found.ok_or_else(|| Box::new(Status::path_not_found()))
}

/// The node of a pod.
fn host(pod: &Object) -> String {
    pod.fields.get("spec.nodeName").cloned().unwrap_or_default()
}

/// Asks nodes what they and their pods use; those that do not answer are absent.
async fn ask(call: &Call, nodes: BTreeSet<String>) -> BTreeMap<String, Value> {
    stream::iter(nodes)
        .map(|node| async move {
            let look = ask_one(&call.shared.nodes, &node, StreamRequest::Stats).await?;
            Some((node, look))
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(async |answer| answer)
        .collect()
        .await
}

/// Asks one node for a document; `None` where it does not answer in time.
pub(super) async fn ask_one(nodes: &nodeconn::Nodes, node: &str, request: StreamRequest) -> Option<Value> {
    let answer = async {
        let mut stream = nodes.open(node, request).await.ok()?;
        let mut text = Vec::new();
        while let Some(frame) = stream.rx.recv().await {
            match frame {
                Frame::Stdout(bytes) if text.len() + bytes.len() <= ANSWER_MAX => text.extend_from_slice(&bytes),
                _ => break,
            }
        }
        serde_json::from_slice(&text).ok()
    };
    tokio::time::timeout(PATIENCE, answer).await.ok().flatten()
}

/// What a node uses.
fn of_node(call: &Call, node: &Object, looks: &BTreeMap<String, Value>) -> Option<Value> {
    let look = looks.get(&*node.key.name)?;
    let mut item = header(call, node, look)?;
    item["usage"] = usage(&look["node"]["usage"])?;
    Some(item)
}

/// What the running containers of a pod use.
fn of_pod(call: &Call, pod: &Object, looks: &BTreeMap<String, Value>) -> Option<Value> {
    let look = looks.get(&host(pod))?;
    let value = pod.value(call.shared.cache.named("", "pods")?.resource());
    let uid = create::text(&value, "uid");
    let seen = look["pods"].as_array()?.iter().find(|p| p["podRef"]["uid"] == uid)?;
    let containers: Vec<Value> = seen["containers"]
        .as_array()?
        .iter()
        .filter_map(|c| Some(json!({"name": c["name"], "usage": usage(&c["usage"])?})))
        .collect();
    let mut item = header(call, pod, look)?;
    item["containers"] = containers.into();
    Some(item)
}

/// What both kinds begin with.
fn header(call: &Call, subject: &Object, look: &Value) -> Option<Value> {
    let window = Duration::from_nanos(look["windowNanos"].as_u64()?);
    let moment: jiff::Timestamp = look["timestamp"].as_str()?.parse().ok()?;
    let mut metadata = json!({"name": subject.key.name, "creationTimestamp": create::seconds(moment)});
    if !subject.key.namespace.is_empty() {
        metadata["namespace"] = (*subject.key.namespace).into();
    }
    if !subject.labels.is_empty() {
        metadata["labels"] = json!(subject.labels);
    }
    Some(json!({
        "kind": call.resource.kind,
        "apiVersion": call.resource.api_version(),
        "metadata": metadata,
        "timestamp": create::seconds(moment),
        "window": format!("{}s", (window.as_secs_f64() * 1000.0).round() / 1000.0),
    }))
}

/// An agent's numbers as quantities.
fn usage(numbers: &Value) -> Option<Value> {
    let (nanocores, bytes) = (numbers["cpuNanocores"].as_u64()?, numbers["memoryBytes"].as_u64()?);
    let canonical = |text: String| Quantity::parse(&text).ok().map(|q| q.to_string());
    // In nanocores and kibibytes, as metrics servers tell them.
    Some(json!({"cpu": canonical(format!("{nanocores}n"))?, "memory": canonical(format!("{}Ki", bytes / 1024))?}))
}
