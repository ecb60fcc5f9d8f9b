//! Applies manifests through the API, as `kubectl apply` does: what is new is created, what exists is
//! patched to what the file says now, and fields that the file dropped since the last time are dropped.
//!
//! Every object is first tried as a dry run. Only if the server would accept all of them is anything written.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};
use http::{Method, Request};
use kube::Client;
use serde_json::{Map, Value, json};

use crate::manifest::Object;

/// Where both `kubectl apply` and `up` remember what was applied last.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// How often a write is tried again when somebody else changed the object in between.
const MAX_CONFLICTS: u32 = 5;

/// What became of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did not exist.
    Created,
    /// It existed and now differs.
    Configured,
    /// It existed and was as the file says.
    Unchanged,
}

impl Outcome {
    /// As kubectl says it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
        }
    }
}

/// Checks all objects against the server, writing nothing.
pub async fn check(client: &Client, objects: &[Object]) -> Result<()> {
    let namespaces: BTreeSet<&str> =
        objects.iter().filter(|o| o.resource.kind == "Namespace").map(|o| o.name.as_str()).collect();
    let mut refusals = Vec::new();
    for object in objects {
        // An object in a namespace that this run creates cannot be tried before: the namespace is not there.
        if namespaces.contains(object.namespace.as_str())
            && !exists(client, "v1", "namespaces", &object.namespace).await?
        {
            continue;
        }
        if let Err(error) = write(client, object, true).await {
            refusals.push(format!("{error:#}"));
        }
    }
    match refusals.as_slice() {
        [] => Ok(()),
        some => bail!("{}\nnothing was applied", some.join("\n")),
    }
}

/// Applies one object.
pub async fn apply(client: &Client, object: &Object) -> Result<Outcome> {
    write(client, object, false).await
}

async fn exists(client: &Client, api: &str, plural: &str, name: &str) -> Result<bool> {
    let request = Request::get(format!("/api/{api}/{plural}/{name}")).body(Vec::new()).context("a request")?;
    match client.request::<Value>(request).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(error).context("the API does not answer"),
    }
}

async fn write(client: &Client, object: &Object, dry_run: bool) -> Result<Outcome> {
    let mut desired = object.value.clone();
    let applied = last_applied(&desired)?;
    set_annotation(&mut desired, LAST_APPLIED, &applied);
    for _ in 0..MAX_CONFLICTS {
        match send(client, object, Method::POST, &collection(object), "application/json", &desired, dry_run).await {
            Ok(_) => return Ok(Outcome::Created),
            Err(error) if code(&error) == 409 => {}
            Err(error) => return Err(explain(object, error)),
        }
        let path = format!("{}/{}", collection(object), object.name);
        let live: Value = match send(client, object, Method::GET, &path, "", &Value::Null, false).await {
            Ok(live) => live,
            Err(error) if code(&error) == 404 => continue,
            Err(error) => return Err(explain(object, error)),
        };
        let patch = patch_towards(&live, &desired);
        match send(client, object, Method::PATCH, &path, "application/strategic-merge-patch+json", &patch, dry_run)
            .await
        {
            Ok(after) => {
                let same = after.pointer("/metadata/resourceVersion") == live.pointer("/metadata/resourceVersion");
                return Ok(if same { Outcome::Unchanged } else { Outcome::Configured });
            }
            Err(error) if matches!(code(&error), 404 | 409) => {}
            Err(error) => return Err(explain(object, error)),
        }
    }
    bail!("{}: {}: somebody else keeps changing it; try again", object.place, object.title())
}

/// The path of the object's collection.
pub fn collection(object: &Object) -> String {
    let r = &object.resource;
    let root =
        if r.group.is_empty() { format!("/api/{}", r.version) } else { format!("/apis/{}/{}", r.group, r.version) };
    if r.namespaced {
        format!("{root}/namespaces/{}/{}", object.namespace, r.plural)
    } else {
        format!("{root}/{}", r.plural)
    }
}

async fn send(
    client: &Client,
    object: &Object,
    method: Method,
    path: &str,
    content_type: &str,
    body: &Value,
    dry_run: bool,
) -> Result<Value, kube::Error> {
    let mut uri = path.to_owned();
    let mut request = Request::builder().method(method.clone());
    let mut bytes = Vec::new();
    if method != Method::GET {
        uri.push_str("?fieldValidation=Strict&fieldManager=statefuld-up");
        if dry_run {
            uri.push_str("&dryRun=All");
        }
        request = request.header("content-type", content_type);
        let mut body = body.clone();
        if method == Method::POST && object.resource.namespaced {
            body["metadata"]["namespace"] = json!(object.namespace);
        }
        bytes = serde_json::to_vec(&body).expect("JSON values can be written");
    }
    let request = request.uri(uri).body(bytes).map_err(kube::Error::HttpError)?;
    client.request::<Value>(request).await
}

fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    }
}

/// File, object, field, and what to do.
fn explain(object: &Object, error: kube::Error) -> anyhow::Error {
    let kube::Error::Api(status) = &error else {
        return anyhow::Error::new(error).context(format!("{}: {}", object.place, object.title()));
    };
    let causes: Vec<String> = status
        .details
        .iter()
        .flat_map(|details| &details.causes)
        .filter(|cause| !cause.field.is_empty())
        .map(|cause| format!("{}: {}", cause.field, cause.message))
        .collect();
    let what = if causes.is_empty() { status.message.clone() } else { causes.join("; ") };
    anyhow::anyhow!("{}: {}: {what}", object.place, object.title())
}

/// The manifest as kubectl records it: without the record itself.
fn last_applied(manifest: &Value) -> Result<String> {
    let mut manifest = manifest.clone();
    if let Some(annotations) = manifest.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
    }
    Ok(serde_json::to_string(&manifest)? + "\n")
}

fn set_annotation(object: &mut Value, key: &str, value: &str) {
    let metadata = object["metadata"].as_object_mut().expect("manifests have metadata");
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    if !annotations.is_object() {
        // The server refuses it in its own words.
        return;
    }
    annotations[key] = json!(value);
}

/// What the file says now, and null for whatever the last applied file said and this one does not.
fn patch_towards(live: &Value, desired: &Value) -> Value {
    let mut patch = desired.clone();
    let last = live
        .pointer("/metadata/annotations")
        .and_then(|annotations| annotations.get(LAST_APPLIED))
        .and_then(Value::as_str)
        .and_then(|text| serde_json::from_str::<Value>(text).ok());
    if let (Some(Value::Object(last)), Value::Object(patch)) = (last, &mut patch) {
        null_removed(&last, patch);
    }
    patch
}

fn null_removed(last: &Map<String, Value>, now: &mut Map<String, Value>) {
    for (key, before) in last {
        match (before, now.get_mut(key)) {
            (_, None) => {
                now.insert(key.clone(), Value::Null);
            }
            (Value::Object(before), Some(Value::Object(now))) => null_removed(before, now),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_the_file_dropped_is_dropped() {
        let live = json!({"metadata": {"annotations": {
            LAST_APPLIED: "{\"spec\":{\"a\":1,\"b\":{\"c\":1,\"d\":2}},\"metadata\":{\"name\":\"x\"}}"
        }}});
        let desired = json!({"metadata": {"name": "x"}, "spec": {"b": {"c": 1}}});
        assert_eq!(
            patch_towards(&live, &desired),
            json!({"metadata": {"name": "x"}, "spec": {"a": null, "b": {"c": 1, "d": null}}})
        );
    }

    #[test]
    fn the_record_does_not_record_itself() {
        let mut manifest = json!({"metadata": {"name": "x"}});
        let record = last_applied(&manifest).expect("JSON");
        set_annotation(&mut manifest, LAST_APPLIED, &record);
        assert_eq!(last_applied(&manifest).expect("JSON"), "{\"metadata\":{\"annotations\":{},\"name\":\"x\"}}\n");
    }
}
