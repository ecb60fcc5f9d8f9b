//! Applies manifests through the API by server-side apply: what is new is created, what exists becomes what the file
//! says now, and what the file dropped since the last time is dropped, inside lists too. `kubectl apply` goes on from there:
//! it finds its record of what was applied last.
//!
//! Every object is first tried as a dry run. Only if the server would accept all of them is anything written. What lies in
//! a namespace, or is of a kind, that the same run creates cannot be tried before that is there.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http::Request;
use kube::Client;
use serde_json::{Value, json};

use crate::manifest::Object;

/// Where both `kubectl apply` and `up` remember what was applied last.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// How often a write is tried again when somebody else changed the object in between.
const MAX_CONFLICTS: u32 = 5;

/// How long a new definition may take until objects of its kind can be made.
const DEFINED_LIMIT: Duration = Duration::from_secs(10);
/// Pause between looks at it.
const DEFINED_POLL: Duration = Duration::from_millis(10);

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

/// What is not there yet and comes with the objects themselves.
#[derive(Debug, Default)]
pub struct Coming {
    /// Namespaces.
    pub namespaces: BTreeSet<String>,
    /// Kinds: group and plural.
    pub kinds: BTreeSet<(String, String)>,
}

impl Coming {
    /// Asks the server which of the objects' namespaces and definitions are new.
    pub async fn find(client: &Client, objects: &[Object]) -> Result<Self> {
        let mut coming = Self::default();
        for object in objects {
            let new = match object.resource.kind.as_str() {
                "Namespace" | "CustomResourceDefinition" => {
                    !exists(client, &format!("{}/{}", collection(object), object.name)).await?
                }
                _ => false,
            };
            if new && object.resource.kind == "Namespace" {
                coming.namespaces.insert(object.name.clone());
            } else if new && let Some((plural, group)) = object.name.split_once('.') {
                coming.kinds.insert((group.to_owned(), plural.to_owned()));
            }
        }
        Ok(coming)
    }

    /// Whether the server cannot say anything of the object before that.
    pub fn holds(&self, object: &Object) -> bool {
        let kind = (object.resource.group.clone(), object.resource.plural.clone());
        self.namespaces.contains(&object.namespace) || self.kinds.contains(&kind)
    }
}

/// Checks objects against the server, writing nothing. `so_far` ends the error: what was applied before it.
pub async fn check(client: &Client, objects: impl Iterator<Item = &Object>, so_far: &str) -> Result<()> {
    let mut refusals = Vec::new();
    for object in objects {
        if let Err(error) = preview(client, object).await {
            refusals.push(format!("{error:#}"));
        }
    }
    match refusals.as_slice() {
        [] => Ok(()),
        some => bail!("{}\n{so_far}", some.join("\n")),
    }
}

/// The namespaces that objects name and that neither exist nor come with them, each with the first object that needs it.
pub async fn missing_namespaces<'a>(
    client: &Client,
    objects: &'a [Object],
    coming: &Coming,
) -> Result<Vec<(&'a str, &'a Object)>> {
    let mut seen = BTreeSet::new();
    let mut missing = Vec::new();
    for object in objects.iter().filter(|object| object.resource.namespaced) {
        let name = object.namespace.as_str();
        if coming.namespaces.contains(name) || !seen.insert(name) {
            continue;
        }
        if !exists(client, &format!("/api/v1/namespaces/{name}")).await? {
            missing.push((name, object));
        }
    }
    Ok(missing)
}

/// Waits until objects of a kind that was just defined can be made.
pub async fn until_defined(client: &Client, definition: &Object) -> Result<()> {
    let path = format!("{}/{}", collection(definition), definition.name);
    let established = async {
        loop {
            let found = read(client, &path).await.context("the API does not answer")?;
            let conditions = found.pointer("/status/conditions").and_then(Value::as_array);
            if conditions.into_iter().flatten().any(|c| c["type"] == "Established" && c["status"] == "True") {
                return Ok(());
            }
            tokio::time::sleep(DEFINED_POLL).await;
        }
    };
    match tokio::time::timeout(DEFINED_LIMIT, established).await {
        Ok(done) => done,
        Err(_) => bail!(
            "{}: {}: the server does not serve the kind that it defines; see `kubectl describe crd {}`",
            definition.place,
            definition.title(),
            definition.name
        ),
    }
}

/// Whether there is something at this path.
pub async fn exists(client: &Client, path: &str) -> Result<bool> {
    match read(client, path).await {
        Ok(_) => Ok(true),
        Err(error) if code(&error) == 404 => Ok(false),
        Err(error) => Err(error).context("the API does not answer"),
    }
}

/// Applies one object.
pub async fn apply(client: &Client, object: &Object) -> Result<Outcome> {
    Ok(write(client, object, false).await?.outcome)
}

/// What a write did, or would do.
#[derive(Clone, Debug)]
pub struct Written {
    /// In a word.
    pub outcome: Outcome,
    /// The object before, where it existed.
    pub before: Option<Value>,
    /// The object after.
    pub after: Value,
}

/// What applying an object would do. Nothing is written.
pub async fn preview(client: &Client, object: &Object) -> Result<Written> {
    write(client, object, true).await
}

async fn write(client: &Client, object: &Object, dry_run: bool) -> Result<Written> {
    let mut desired = object.value.clone();
    if let Some(metadata) = desired["metadata"].as_object_mut() {
        // Written by servers; an object that was printed and applied again carries it.
        metadata.remove("managedFields");
        if object.resource.namespaced {
            metadata.insert("namespace".to_owned(), json!(object.namespace));
        }
    }
    let applied = last_applied(&desired)?;
    set_annotation(&mut desired, LAST_APPLIED, &applied);
    let path = format!("{}/{}", collection(object), object.name);
    for _ in 0..MAX_CONFLICTS {
        let before = match read(client, &path).await {
            Ok(live) => Some(live),
            Err(error) if code(&error) == 404 => None,
            Err(error) => return Err(explain(object, error)),
        };
        match patch(client, &path, &desired, dry_run).await {
            Ok(after) => {
                let same = |before: &Value| without_bookkeeping(before) == without_bookkeeping(&after);
                let outcome = match &before {
                    None => Outcome::Created,
                    Some(before) if same(before) => Outcome::Unchanged,
                    Some(_) => Outcome::Configured,
                };
                return Ok(Written { outcome, before, after });
            }
            Err(error) if code(&error) == 409 && object.value.pointer("/metadata/resourceVersion").is_none() => {}
            Err(error) => return Err(explain(object, error)),
        }
    }
    bail!("{}: {}: somebody else keeps changing it; try again", object.place, object.title())
}

/// An object without what every write changes.
pub fn without_bookkeeping(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in ["managedFields", "resourceVersion", "generation"] {
            metadata.remove(field);
        }
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(LAST_APPLIED);
            if annotations.is_empty() {
                metadata.remove("annotations");
            }
        }
    }
    object
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

/// What is at this path.
pub async fn read(client: &Client, path: &str) -> Result<Value, kube::Error> {
    let request = Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
    client.request::<Value>(request).await
}

/// A server-side apply. What the file says wins: whoever runs `up` wants the file.
async fn patch(client: &Client, path: &str, desired: &Value, dry_run: bool) -> Result<Value, kube::Error> {
    let dry_run = if dry_run { "&dryRun=All" } else { "" };
    let uri = format!("{path}?fieldManager=statefuld-up&force=true&fieldValidation=Strict{dry_run}");
    // JSON is YAML, which is what the media type asks for.
    let body = serde_json::to_vec(desired).expect("JSON values can be written");
    let request = Request::patch(uri).header("content-type", "application/apply-patch+yaml").body(body);
    client.request::<Value>(request.map_err(kube::Error::HttpError)?).await
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_write_changes_is_no_change() {
        let object = json!({"metadata": {"name": "x", "resourceVersion": "7", "generation": 2, "managedFields": [],
            "annotations": {LAST_APPLIED: "{}"}}, "spec": {"a": 1}});
        assert_eq!(without_bookkeeping(&object), json!({"metadata": {"name": "x"}, "spec": {"a": 1}}));
    }

    #[test]
    fn the_record_does_not_record_itself() {
        let mut manifest = json!({"metadata": {"name": "x"}});
        let record = last_applied(&manifest).expect("JSON");
        set_annotation(&mut manifest, LAST_APPLIED, &record);
        assert_eq!(last_applied(&manifest).expect("JSON"), "{\"metadata\":{\"annotations\":{},\"name\":\"x\"}}\n");
    }
}
