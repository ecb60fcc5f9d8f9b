//! create.

use api::decode::{self, Decoded};
use api::status::Status;
use api::{defaults, strategy, validate};
use http::Response;
use serde_json::{Map, Value};

use super::options;
use super::write::{self, Created, Extra};
use crate::admission;
use crate::audit::Named;
use crate::body::Body;
use crate::errors::Outcome;
use crate::handler::Call;
use crate::{media, respond};

/// Longest name that generateName makes.
const NAME_MAX: usize = 63;
/// Characters that generateName adds.
const SUFFIX: usize = 5;
/// How many generated names are tried.
const NAMES: usize = 8;

/// Creates what the body holds.
pub(crate) async fn create(call: Call) -> Outcome<Response<Body>> {
    let view = call.view()?;
    let dry_run = call.query.dry_run("CreateOptions")?;
    let mode = options::field_validation(&call)?;
    let media = media::written(&call.content_type)?;
    let Decoded { object, warnings } = decode::decode(&call.resource, &call.body, media, mode)?;
    let written = create_object(&call, object, dry_run).await?;
    let answer = respond::warn(view.object(201, &written.raw, written.revision), &warnings);
    let mut response = respond::warn(answer, &written.warnings);
    response.extensions_mut().insert(Named(written.name));
    Ok(response)
}

/// Creates a decoded object; its name is generated if it has none.
pub(crate) async fn create_object(call: &Call, mut object: Value, dry_run: bool) -> Outcome<write::Written> {
    let resource = &call.resource;
    check(call, &mut object)?;
    let generated = text(&object, "name").is_empty().then(|| text(&object, "generateName").to_owned());
    let mut tries = 1;
    if let Some(prefix) = generated.as_deref().filter(|p| !p.is_empty()) {
        tries = NAMES;
        set(&mut object, "name", generate(call, prefix));
    }
    defaults::apply(resource, &mut object);
    if !call.applies() {
        // What the server adds from here on is nobody's.
        super::update::track(call, &mut object, None);
    }
    loop {
        tries -= 1;
        let made = write::create(call, dry_run, |extra| build(call, object.clone(), extra)).await?;
        match made {
            Created::New(written) => return Ok(written),
            Created::Taken(name) => match generated.as_deref().filter(|p| !p.is_empty()) {
                Some(prefix) if tries > 0 => set(&mut object, "name", generate(call, prefix)),
                Some(_) => {
                    return Err(Box::new(Status::generate_name_conflict(&resource.group, &resource.plural, &name)));
                }
                None => return Err(Box::new(Status::already_exists(&resource.group, &resource.plural, &name))),
            },
        }
    }
}

/// The object as it is to be stored, decided on the state of the moment.
fn build(call: &Call, mut object: Value, extra: &mut Extra) -> Outcome<Value> {
    let resource = &call.resource;
    admission::create(call, &mut object, extra)?;
    stamp(call, &mut object);
    strategy::prepare_create(resource, &mut object);
    respond::invalid(resource, text(&object, "name"), validate::create(resource, &object))?;
    admission::judge(call, &object, None, extra)?;
    admission::allocate(call, &mut object, None, extra)?;
    decode::normalize(resource, &mut object);
    Ok(object)
}

/// What does not fit the request.
fn check(call: &Call, object: &mut Value) -> Outcome<()> {
    if !object.get("metadata").is_some_and(Value::is_object) {
        object["metadata"] = Value::Object(Map::new());
    }
    if !text(object, "resourceVersion").is_empty() {
        return Err(Box::new(Status::bad_request("resourceVersion should not be set on objects to be created")));
    }
    fit_namespace(call, object)
}

/// The object lies in the namespace of the path.
pub(crate) fn fit_namespace(call: &Call, object: &mut Value) -> Outcome<()> {
    let given = text(object, "namespace");
    let path = &call.target.namespace;
    if !call.resource.namespaced {
        metadata(object).remove("namespace");
    } else if given.is_empty() {
        set(object, "namespace", path.clone());
    } else if given != path {
        let why = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Box::new(Status::bad_request(why)));
    }
    Ok(())
}

/// What the server alone says about a new object.
fn stamp(call: &Call, object: &mut Value) {
    let uid = call.shared.ambient.uid();
    let now = seconds(call.shared.ambient.now());
    let metadata = metadata(object);
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"] {
        metadata.remove(field);
    }
    metadata.insert("uid".to_owned(), uid.into());
    metadata.insert("creationTimestamp".to_owned(), now.into());
}

/// A name from its beginning.
fn generate(call: &Call, prefix: &str) -> String {
    let room = NAME_MAX - SUFFIX;
    let end = prefix.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= room).last();
    format!("{}{}", &prefix[..end.unwrap_or(0)], call.shared.ambient.suffix(SUFFIX))
}

/// A time as objects hold it.
pub(crate) fn seconds(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A text of the object's metadata; empty where it is absent.
pub(crate) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default()
}

/// Sets a text of the object's metadata.
fn set(object: &mut Value, field: &str, value: String) {
    metadata(object).insert(field.to_owned(), value.into());
}

/// The object's metadata, to change it.
pub(crate) fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let place = &mut object["metadata"];
    if !place.is_object() {
        *place = Value::Object(Map::new());
    }
    place.as_object_mut().expect("it was made one just now")
}
