//! scale: the number of replicas, read and written through autoscaling/v1 Scale.

use api::crd::{Custom, Scale};
use api::decode::{self, FieldValidation};
use api::managed::{self, Change};
use api::selector::LabelSelector;
use api::status::{FieldError, Status};
use http::Response;
use serde_json::{Value, json};

use crate::body::Body;
use crate::errors::Outcome;
use crate::handler::Call;
use crate::verbs::create::{seconds, text};
use crate::verbs::{options, patch, update, write};
use crate::{media, object};

/// Reads it.
pub(crate) async fn get(call: Call) -> Outcome<Response<Body>> {
    call.shared.cache.catch_up().await?;
    let object = crate::verbs::read::shelf(&call)?.get(&call.key()).ok_or_else(|| call.not_found())?;
    Ok(call.view()?.document(200, &of(&call, &object.value(&call.resource))?))
}

/// Writes it, by update or patch.
pub(crate) async fn write(call: Call) -> Outcome<Response<Body>> {
    let updates = call.verb == "update";
    let dry_run = call.query.dry_run(if updates { "UpdateOptions" } else { "PatchOptions" })?;
    let _ = options::field_validation(&call)?;
    let given = if updates { Some(read(&call)?) } else { None };
    let patch = if updates { None } else { Some(patch::read(&call)?) };
    if let Some(wanted) = patch.as_ref().and_then(patch::Patch::wanted) {
        return apply(&call, wanted, dry_run).await;
    }
    let written = write::modify(&call, dry_run, |current, extra| {
        let mut scale = of(&call, &current.value)?;
        if let Some(given) = &given {
            scale = given.clone();
        } else if let Some(patch) = &patch {
            patch::apply(&call, patch, &mut scale)?;
        }
        let replicas = replicas(&call, &scale)?;
        update::precondition(
            &call,
            &json!({"metadata": {
                "resourceVersion": text(&scale, "resourceVersion"), "uid": text(&scale, "uid"),
            }}),
            &current.value,
        )?;
        let mut new = current.value.clone();
        set_replicas(&call, &mut new, replicas)?;
        let checked = decode::check_value(&call.resource, new, FieldValidation::Ignore)?;
        update::replace(&call, checked.object, current, extra)
    })
    .await?;
    Ok(call.view()?.document(200, &of(&call, &object::value_of(&call.resource, &written.raw, written.revision))?))
}

/// Makes the number what a manager wants; it then manages it through this subresource.
async fn apply(call: &Call, wanted: &Value, dry_run: bool) -> Outcome<Response<Body>> {
    patch::need_manager(call)?;
    let (manager, now) = (call.manager(), seconds(call.shared.ambient.now()));
    let change = Change { manager: &manager, subresource: &call.target.subresource, now: &now };
    let replicas = replicas(call, wanted)?;
    let resource = &call.resource;
    let mut config = json!({
        "apiVersion": resource.api_version(), "kind": resource.kind,
        "metadata": {"name": call.target.name, "namespace": call.target.namespace},
    });
    set_replicas(call, &mut config, replicas)?;
    let written = write::modify(call, dry_run, |current, extra| {
        let new = managed::apply(resource, Some(&current.value), config.clone(), &change, call.query.flag("force"))?;
        let checked = decode::check_value(resource, new, FieldValidation::Ignore)?;
        update::replace(call, checked.object, current, extra)
    })
    .await?;
    Ok(call.view()?.document(200, &of(call, &object::value_of(resource, &written.raw, written.revision))?))
}

/// Puts the number where the kind holds it.
fn set_replicas(call: &Call, object: &mut Value, replicas: i64) -> Outcome<()> {
    match &call.resource.custom {
        Some(custom) => paths(custom)?.set_wanted(object, replicas),
        None => object["spec"]["replicas"] = replicas.into(),
    }
    Ok(())
}

/// The Scale of an object.
fn of(call: &Call, value: &Value) -> Outcome<Value> {
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = value.get("metadata").and_then(|m| m.get(field)) {
            metadata[field] = value.clone();
        }
    }
    let (replicas, running, selector) = match &call.resource.custom {
        Some(custom) => custom_numbers(paths(custom)?, value)?,
        None => {
            let number = |path| value.pointer(path).and_then(Value::as_i64);
            let selector = value.pointer("/spec/selector").and_then(|s| LabelSelector::from_json(s).ok());
            let selector = selector.map(|s| s.to_string());
            (number("/spec/replicas").unwrap_or(1), number("/status/replicas").unwrap_or(0), selector)
        }
    };
    let mut spec = json!({});
    if replicas != 0 {
        spec["replicas"] = replicas.into();
    }
    let mut status = json!({"replicas": running});
    if let Some(selector) = selector.filter(|s| !s.is_empty()) {
        status["selector"] = selector.into();
    }
    Ok(json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status}))
}

/// Where a custom kind holds its replicas.
fn paths(custom: &Custom) -> Outcome<&Scale> {
    custom.scale.as_ref().ok_or_else(|| Box::new(Status::path_not_found()))
}

/// The numbers of an object of a custom kind: wanted, present, and the selector of its pods.
fn custom_numbers(scale: &Scale, value: &Value) -> Outcome<(i64, i64, Option<String>)> {
    let internal = |why: String| Box::new(Status::internal(why));
    let wanted = scale.wanted(value).map_err(internal)?;
    let missing = || internal(format!("the spec replicas field {:?} does not exist", scale.spec_path));
    let present = scale.present(value).map_err(internal)?.unwrap_or(0);
    Ok((wanted.ok_or_else(missing)?, present, scale.selector(value).map_err(internal)?))
}

/// Reads the Scale in the body.
fn read(call: &Call) -> Outcome<Value> {
    let parsed = decode::typed("autoscaling/v1.Scale", &call.body, media::written(&call.content_type)?);
    let scale: Value = parsed.map_err(|why| Status::bad_request(format!("the Scale cannot be read: {why}")))?;
    let kind = scale.get("kind").and_then(Value::as_str).unwrap_or("Scale");
    if kind != "Scale" {
        let version = scale.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
        let short = version.rsplit('/').next().unwrap_or_default();
        let why = format!(
            "{kind} in version {version:?} cannot be handled as a Scale: converting ({short}.{kind}) to \
             (autoscaling.Scale): unknown conversion"
        );
        return Err(Box::new(Status::bad_request(why)));
    }
    let name = text(&scale, "name");
    if !name.is_empty() && name != call.target.name {
        let why = format!("the name of the object ({name}) does not match the name on the URL ({})", call.target.name);
        return Err(Box::new(Status::bad_request(why)));
    }
    Ok(scale)
}

/// How many replicas a Scale asks for.
fn replicas(call: &Call, scale: &Value) -> Outcome<i64> {
    if scale.get("spec").is_some_and(|spec| !spec.is_object() && !spec.is_null()) {
        return Err(Box::new(Status::bad_request("spec of the Scale must be an object")));
    }
    let given = scale.pointer("/spec/replicas").cloned().unwrap_or(Value::Null);
    let replicas = match &given {
        Value::Null => 0,
        Value::Number(n) if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => n.as_i64().unwrap_or(0),
        other => {
            let why = format!("spec.replicas of the Scale must be a 32 bit integer, not {other}");
            return Err(Box::new(Status::bad_request(why)));
        }
    };
    // Custom kinds say with their own paths what is wrong.
    if replicas < 0 && call.resource.custom.is_none() {
        let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(Box::new(Status::invalid("autoscaling", "Scale", &call.target.name, vec![error])));
    }
    Ok(replicas)
}
