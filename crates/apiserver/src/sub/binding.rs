//! pods/binding: puts a pod on a node, and gives it its name there, in one transaction.

use api::decode;
use api::status::{FieldError, Status};
use http::Response;
use serde_json::{Value, json};

use crate::admission::holders;
use crate::body::Body;
use crate::errors::Outcome;
use crate::handler::Call;
use crate::verbs::create::{seconds, text};
use crate::verbs::write::{self, Step};
use crate::{media, respond};

/// Binds the pod that the path names to the node that the body names.
pub(crate) async fn bind(call: Call) -> Outcome<Response<Body>> {
    let dry_run = call.query.dry_run("CreateOptions")?;
    let binding = body(&call)?;
    let node = target_node(&binding)?;
    let uid = text(&binding, "uid").to_owned();
    let now = seconds(call.shared.ambient.now());
    write::modify(&call, dry_run, |current, extra| {
        let mut pod = current.value.clone();
        let conflict = |why: String| Box::new(Status::conflict("", "pods/binding", &call.target.name, why));
        let is = text(&pod, "uid");
        if !uid.is_empty() && uid != is {
            return Err(conflict(format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {is}")));
        }
        if !text(&pod, "deletionTimestamp").is_empty() {
            return Err(conflict(format!("pod {} is being deleted, cannot be assigned to a host", call.target.name)));
        }
        let bound = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
        if !bound.is_empty() {
            return Err(conflict(format!("pod {} is already assigned to node {bound:?}", call.target.name)));
        }
        pod["spec"]["nodeName"] = node.clone().into();
        if let Some(annotations) = binding.pointer("/metadata/annotations").and_then(Value::as_object) {
            for (key, value) in annotations.iter().filter(|(_, value)| value.is_string()) {
                pod["metadata"]["annotations"][key] = value.clone();
            }
        }
        scheduled(&mut pod, &now);
        holders::take(&call, &mut pod, &node, current.object.revision, extra)?;
        decode::normalize(&call.resource, &mut pod);
        Ok(Step::Write(pod))
    })
    .await?;
    let done = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(respond::document(201, &done, call.wanted.notation))
}

/// The binding, read.
fn body(call: &Call) -> Outcome<Value> {
    let parsed = decode::typed("core/v1.Binding", &call.body, media::written(&call.content_type)?);
    let binding: Value = parsed.map_err(|why| Status::bad_request(format!("the binding cannot be read: {why}")))?;
    let name = text(&binding, "name");
    if !name.is_empty() && name != call.target.name {
        return Err(Box::new(Status::bad_request("name in URL does not match name in Binding object")));
    }
    Ok(binding)
}

/// The pod that a binding in a body names.
pub(crate) fn pod_of(content_type: &str, body: &[u8]) -> Outcome<String> {
    let parsed = decode::typed("core/v1.Binding", body, media::written(content_type)?);
    let binding = parsed.map_err(|why| Status::bad_request(format!("the binding cannot be read: {why}")))?;
    match text(&binding, "name") {
        "" => Err(Box::new(Status::bad_request("name is required"))),
        name => Ok(name.to_owned()),
    }
}

/// The node that a binding names.
fn target_node(binding: &Value) -> Outcome<String> {
    let of = |field: &str| binding.pointer(field).and_then(Value::as_str).unwrap_or_default();
    // Upstream answers with the bare finding, as 500; ours is the client's fault and says so.
    let name = text(binding, "name");
    let invalid = |error| Err(Box::new(Status::invalid("", "Binding", name, vec![error])));
    if !matches!(of("/target/kind"), "" | "Node") {
        return invalid(FieldError::not_supported("target.kind", of("/target/kind"), &["Node", "<empty>"]));
    }
    if of("/target/name").is_empty() {
        return invalid(FieldError::required("target.name", ""));
    }
    Ok(of("/target/name").to_owned())
}

/// Notes that the pod is scheduled.
fn scheduled(pod: &mut Value, now: &str) {
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    super::set_condition(pod, condition);
}
