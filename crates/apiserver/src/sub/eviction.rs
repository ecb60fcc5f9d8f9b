//! pods/eviction: a delete that asks the pod's disruption budget first.

use std::sync::Arc;

use api::selector::LabelSelector;
use api::status::{Cause, Details, Status};
use http::Response;
use serde_json::{Value, json};

use crate::body::Body;
use crate::cache::Shelf;
use crate::errors::Outcome;
use crate::handler::Call;
use crate::object::Object;
use crate::respond;
use crate::verbs::create::{seconds, text};
use crate::verbs::options::DeleteOptions;
use crate::verbs::{delete, write};

/// Evicts the pod that the path names.
pub(crate) async fn evict(call: Call) -> Outcome<Response<Body>> {
    let media = crate::media::written(&call.content_type)?;
    let body: Value = api::decode::typed("policy/v1.Eviction", &call.body, media)
        .map_err(|error| Status::bad_request(format!("the eviction cannot be read: {error}")))?;
    let name = text(&body, "name");
    if !name.is_empty() && name != call.target.name {
        return Err(Box::new(Status::bad_request("name in URL does not match name in Eviction object")));
    }
    let options = eviction_options(&call, &body)?;
    call.shared.cache.catch_up().await?;
    let pod = crate::verbs::read::shelf(&call)?.get(&call.key()).ok_or_else(|| call.not_found())?;
    let options = if counts(&pod) { spend(&call, &pod, options).await? } else { options };
    let options = mark(&call, options).await?;
    delete::delete_object(&call, &options).await?;
    let done = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(respond::document(201, &done, call.wanted.notation))
}

/// The options of the delete that an eviction is.
fn eviction_options(call: &Call, body: &Value) -> Outcome<DeleteOptions> {
    let given = |path: &str| body.pointer(path).and_then(Value::as_str).map(str::to_owned);
    let dry = body.pointer("/deleteOptions/dryRun").and_then(Value::as_array).is_some_and(|d| !d.is_empty());
    Ok(DeleteOptions {
        grace_seconds: body.pointer("/deleteOptions/gracePeriodSeconds").and_then(Value::as_i64),
        uid: given("/deleteOptions/preconditions/uid"),
        resource_version: given("/deleteOptions/preconditions/resourceVersion"),
        dry_run: dry || call.query.dry_run("CreateOptions")?,
        ..DeleteOptions::default()
    })
}

/// Whether the pod's going is a disruption.
fn counts(pod: &Object) -> bool {
    let phase = pod.fields.get("status.phase").map(String::as_str);
    !pod.terminating && !matches!(phase, Some("Succeeded" | "Failed" | "Pending"))
}

/// Takes one allowed disruption from the budget that covers the pod, unless it may go without. 429 if there is none left.
/// How the pod is then to be deleted.
async fn spend(call: &Call, pod: &Object, options: DeleteOptions) -> Outcome<DeleteOptions> {
    let Some(shelf) = call.shared.cache.named("policy", "poddisruptionbudgets") else { return Ok(options) };
    let covering = budgets(&shelf, pod);
    let budget = match covering.as_slice() {
        [] => return Ok(options),
        [one] => one.clone(),
        _ => {
            let why =
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(Box::new(Status::new(500, "", why)));
        }
    };
    let pod_value = pod.value(&call.resource);
    if !is_ready(&pod_value) && lets_unready_go(&budget.value(shelf.resource())) {
        // Only as it is: one that becomes ready meanwhile has to ask again.
        let version = options.resource_version.clone().or_else(|| Some(text(&pod_value, "resourceVersion").to_owned()));
        return Ok(DeleteOptions { resource_version: version, ..options });
    }
    let mut one = call.clone();
    one.resource = shelf.resource().clone();
    one.target.name = budget.key.name.to_string();
    let now = seconds(call.shared.ambient.now());
    write::modify(&one, options.dry_run, |current, _| {
        let mut new = current.value.clone();
        let number = |path: &str| new.pointer(path).and_then(Value::as_i64).unwrap_or(0);
        let allowed = number("/status/disruptionsAllowed");
        let stale = number("/status/observedGeneration") < number("/metadata/generation");
        if stale || allowed <= 0 {
            return Err(Box::new(refused(&one.target.name, stale, &new)));
        }
        new["status"]["disruptionsAllowed"] = (allowed - 1).into();
        new["status"]["disruptedPods"][&*pod.key.name] = now.clone().into();
        Ok(write::Step::Write(new))
    })
    .await?;
    Ok(options)
}

/// Says on the pod that it is being evicted. One that is not deleted after all loses that again by its controller. How the
/// pod is then to be deleted.
async fn mark(call: &Call, options: DeleteOptions) -> Outcome<DeleteOptions> {
    if options.dry_run {
        return Ok(options);
    }
    let now = seconds(call.shared.ambient.now());
    let mut refused = false;
    let written = write::modify(call, false, |current, _| {
        let mut pod = current.value.clone();
        let differs =
            |wanted: &Option<String>, field| wanted.as_deref().is_some_and(|wanted| wanted != text(&pod, field));
        // By the deletion, which says why.
        refused = differs(&options.uid, "uid") || differs(&options.resource_version, "resourceVersion");
        if !refused && text(&pod, "deletionTimestamp").is_empty() {
            let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting", "lastProbeTime": null, "lastTransitionTime": now});
            super::set_condition(&mut pod, condition);
        }
        Ok(write::Step::Write(pod))
    })
    .await?;
    let asked = options.resource_version.as_ref().filter(|_| !refused);
    let version = asked.map(|_| written.revision.to_string());
    Ok(DeleteOptions { resource_version: version.or(options.resource_version.clone()), ..options })
}

/// Whether the pod's condition Ready is True.
fn is_ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Whether a budget lets pods go that are not ready without counting: always, or while enough others are.
fn lets_unready_go(budget: &Value) -> bool {
    let number = |path: &str| budget.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    let (healthy, desired) = (number("/status/currentHealthy"), number("/status/desiredHealthy"));
    budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow" || (healthy >= desired && desired > 0)
}

/// The budgets that cover a pod.
fn budgets(shelf: &Shelf, pod: &Object) -> Vec<Arc<Object>> {
    let covers = |value: &Value| {
        value
            .pointer("/spec/selector")
            .and_then(|s| LabelSelector::from_json(s).ok())
            .is_some_and(|selector| selector.matches(&pod.labels))
    };
    shelf.all(&pod.key.namespace).into_iter().filter(|object| covers(&object.value(shelf.resource()))).collect()
}

/// 429: the budget is used up, or not worked out yet.
fn refused(budget: &str, stale: bool, value: &Value) -> Status {
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    let number = |path: &str| value.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    let cause = if stale {
        format!("The disruption budget {budget} is still being processed by the server.")
    } else {
        format!(
            "The disruption budget {budget} needs {} healthy pods and has {} currently",
            number("/status/desiredHealthy"),
            number("/status/currentHealthy")
        )
    };
    let cause = Cause { reason: "DisruptionBudget".to_owned(), message: cause, ..Cause::default() };
    let details = Details { causes: vec![cause], ..Details::default() };
    Status::new(429, "TooManyRequests", message).with_details(details)
}
