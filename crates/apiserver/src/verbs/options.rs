//! Options of requests, from query and body.

use api::decode::FieldValidation;
use api::selector::{FieldSelector, LabelSelector};
use api::status::{FieldError, Status};
use serde_json::Value;

use crate::cache::Filter;
use crate::errors::Outcome;
use crate::handler::Call;
use crate::media;

/// What a list or watch is about.
pub(crate) fn filter(call: &Call) -> Outcome<Filter> {
    let bad = |error: api::selector::ParseError| Box::new(Status::bad_request(error.0));
    let text = |name: &str| Some(call.query.text(name)).filter(|t| !t.trim().is_empty());
    let labels = text("labelSelector").map(LabelSelector::parse).transpose().map_err(bad)?;
    let fields = text("fieldSelector")
        .map(|t| FieldSelector::parse(t).and_then(|s| s.check(&call.resource)))
        .transpose()
        .map_err(bad)?;
    let mut filter = Filter {
        namespace: call.target.namespace.clone(),
        name: call.target.name.clone(),
        labels: labels.filter(|s| !s.is_everything()),
        fields: fields.filter(|s| !s.is_everything()),
    };
    // One object in one place: found by its key.
    let placed = !call.resource.namespaced || !filter.namespace.is_empty();
    if let Some(name) = filter.fields.as_ref().and_then(|s| s.pinned("metadata.name"))
        && filter.name.is_empty()
        && placed
    {
        filter.name = name.to_owned();
    }
    Ok(filter)
}

/// Longest name of a manager, in bytes.
const MANAGER_MAX: usize = 128;

/// What to do about unknown fields; refuses a manager's name that cannot be noted.
pub(crate) fn field_validation(call: &Call) -> Outcome<FieldValidation> {
    let manager = call.query.text("fieldManager");
    let wrong = if manager.len() > MANAGER_MAX {
        Some(FieldError::too_long("fieldManager", MANAGER_MAX))
    } else if manager.chars().any(char::is_control) {
        Some(FieldError::invalid("fieldManager", manager, "should only contain printable characters"))
    } else {
        None
    };
    if let Some(error) = wrong {
        return Err(Box::new(Status::invalid("meta.k8s.io", options_kind(call), "", vec![error])));
    }
    match call.query.text("fieldValidation") {
        "" | "Warn" => Ok(FieldValidation::Warn),
        "Strict" => Ok(FieldValidation::Strict),
        "Ignore" => Ok(FieldValidation::Ignore),
        other => {
            let error = FieldError::not_supported("fieldValidation", other, &["Ignore", "Strict", "Warn"]);
            Err(Box::new(Status::invalid("meta.k8s.io", options_kind(call), "", vec![error])))
        }
    }
}

/// 422 for the options of a list or watch if there are errors.
pub(crate) fn valid(errors: Vec<FieldError>) -> Outcome<()> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(Box::new(Status::invalid("meta.k8s.io", "ListOptions", "", errors)))
}

/// The kind of a write's options.
fn options_kind(call: &Call) -> &'static str {
    match call.verb {
        "create" => "CreateOptions",
        "patch" => "PatchOptions",
        _ => "UpdateOptions",
    }
}

/// A resourceVersion of the query: absent, or a number.
pub(crate) fn resource_version(text: &str) -> Outcome<Option<u64>> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        let why = format!("strconv.ParseUint: parsing {text:?}: invalid syntax");
        Box::new(Status::bad_request(format!("resourceVersion: Invalid value: {text:?}: {why}")))
    })
}

/// How a delete is to go.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeleteOptions {
    /// Seconds to wait; `None` leaves it to the object.
    pub(crate) grace_seconds: Option<i64>,
    /// What happens to dependents; `None` leaves it to the object.
    pub(crate) propagation: Option<Propagation>,
    /// What the client is told about what it left out.
    pub(crate) warning: Option<String>,
    /// Only an object with this uid.
    pub(crate) uid: Option<String>,
    /// Only an object at this version.
    pub(crate) resource_version: Option<String>,
    /// Nothing is written.
    pub(crate) dry_run: bool,
    /// `orphanDependents: false` was asked for in the old way.
    pub(crate) waits: bool,
}

/// What happens to the objects that a deleted object owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    /// They stay, without owner.
    Orphan,
    /// They are deleted afterwards.
    Background,
    /// They are deleted first.
    Foreground,
}

/// What is said to who deletes a job without a word about its pods; they stay, as they did before anybody could choose.
const PODS_ARE_KEPT: &str = "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning";

/// Options from the body if there is one, else from the query.
pub(crate) fn delete_options(call: &Call) -> Outcome<DeleteOptions> {
    let body = delete_body(call)?;
    let mut options = DeleteOptions { dry_run: call.query.dry_run("DeleteOptions")?, ..DeleteOptions::default() };
    let (policy, orphan) = match &body {
        Some(body) => {
            let text = |path| body.pointer(path).and_then(Value::as_str).map(str::to_owned);
            options.grace_seconds = body.get("gracePeriodSeconds").and_then(Value::as_i64);
            options.uid = text("/preconditions/uid");
            options.resource_version = text("/preconditions/resourceVersion");
            options.dry_run |= dry_run_of(body)?;
            (text("/propagationPolicy"), body.get("orphanDependents").and_then(Value::as_bool))
        }
        None => {
            options.grace_seconds = call.query.number("gracePeriodSeconds")?;
            let policy = Some(call.query.text("propagationPolicy").to_owned()).filter(|t| !t.is_empty());
            (policy, call.query.get("orphanDependents").map(|_| call.query.flag("orphanDependents")))
        }
    };
    options.waits = orphan == Some(false);
    options.propagation = propagation(policy.as_deref(), orphan)?;
    if options.propagation.is_none() && (&*call.resource.group, &*call.resource.plural) == ("batch", "jobs") {
        options.propagation = Some(Propagation::Orphan);
        options.warning = Some(PODS_ARE_KEPT.to_owned());
    }
    Ok(options)
}

/// The body of a delete, if it has one.
fn delete_body(call: &Call) -> Outcome<Option<Value>> {
    if call.body.is_empty() {
        return Ok(None);
    }
    let media = media::written(&call.content_type)?;
    let parsed = api::decode::typed("meta/v1.DeleteOptions", &call.body, media);
    let body: Value = parsed.map_err(|why| Status::bad_request(format!("the delete options cannot be read: {why}")))?;
    let kind = body.get("kind").and_then(Value::as_str).unwrap_or("DeleteOptions");
    if !body.is_object() || kind != "DeleteOptions" {
        return Err(Box::new(Status::bad_request(format!("the body of a delete must be DeleteOptions, not {kind}"))));
    }
    Ok(Some(body))
}

/// `dryRun` of a body.
fn dry_run_of(body: &Value) -> Outcome<bool> {
    let values = body.get("dryRun").and_then(Value::as_array).cloned().unwrap_or_default();
    match values.iter().find(|v| *v != "All") {
        None => Ok(!values.is_empty()),
        Some(other) => {
            let error = FieldError::not_supported("dryRun", other.clone(), &["All"]);
            Err(Box::new(Status::invalid("meta.k8s.io", "DeleteOptions", "", vec![error])))
        }
    }
}

/// What the two ways to say it come to.
fn propagation(policy: Option<&str>, orphan: Option<bool>) -> Outcome<Option<Propagation>> {
    let invalid = |error: FieldError| Box::new(Status::invalid("meta.k8s.io", "DeleteOptions", "", vec![error]));
    match (policy, orphan) {
        (Some(policy), Some(_)) => Err(invalid(FieldError::invalid(
            "propagationPolicy",
            policy,
            "orphanDependents and deletionPropagation cannot be both set",
        ))),
        (Some("Orphan"), None) | (None, Some(true)) => Ok(Some(Propagation::Orphan)),
        (Some("Background"), None) | (None, Some(false)) => Ok(Some(Propagation::Background)),
        (Some("Foreground"), None) => Ok(Some(Propagation::Foreground)),
        (Some(other), None) => Err(invalid(FieldError::not_supported(
            "propagationPolicy",
            other,
            &["Foreground", "Background", "Orphan", "nil"],
        ))),
        (None, None) => Ok(None),
    }
}
