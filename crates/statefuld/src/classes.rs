//! Storage classes that manifests name and that are nowhere: said, or made to stand for class `local`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use controllers::volumes::PROVISIONER;
use kube::Client;
use serde_json::{Value, json};

use crate::apply;
use crate::manifest::{Object, Place};
use crate::served::builtin;

/// The class whose likes are made.
const LOCAL: &str = "local";
/// Marks a class that stands for another.
const STANDS_FOR: &str = "statefuld.io/stands-for";
/// The annotation that named a claim's class before there was a field.
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// Classes of this provisioner have volumes made by hand.
const BY_HAND: &str = "kubernetes.io/no-provisioner";
/// Where the classes are.
const CLASSES: &str = "/apis/storage.k8s.io/v1/storageclasses";

/// What is to be said, and what is to be applied before everything else.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Sentences.
    pub words: Vec<String>,
    /// Classes that are to be made.
    pub made: Vec<Object>,
}

/// Looks which classes are missing; with `fallback` they are made like `local`, and classes among the objects that
/// nothing here provisions for are changed to be so.
pub async fn settle(client: &Client, objects: &mut [Object], fallback: bool) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for object in objects.iter_mut().filter(|object| object.resource.kind == "StorageClass") {
        let provisioner = object.value["provisioner"].as_str().unwrap_or_default().to_owned();
        if [PROVISIONER, BY_HAND, ""].contains(&provisioner.as_str()) {
            continue;
        }
        let title = format!("{}: {}", object.place, object.title());
        let there = apply::exists(client, &format!("{CLASSES}/{}", object.name)).await?;
        outcome.words.push(if fallback && !there {
            become_local(&mut object.value);
            format!("{title}: stands for class {LOCAL}: nothing here makes volumes for {provisioner:?}")
        } else {
            format!(
                "{title}: nothing here makes volumes for {provisioner:?}: its claims stay Pending \
                 (--storage-class-fallback has new classes stand for {LOCAL})"
            )
        });
    }
    for (class, first) in missing(client, objects).await? {
        let title = format!("{}: {}", first.place, first.title());
        if fallback {
            outcome
                .words
                .push(format!("{title}: storage class {class:?} does not exist: it is made to stand for {LOCAL}"));
            let place = first.place.clone();
            outcome.made.push(like_local(client, &class, place).await?);
        } else {
            outcome.words.push(format!(
                "{title}: storage class {class:?} does not exist: claims of it stay Pending until it does \
                 (--storage-class-fallback has it stand for {LOCAL})"
            ));
        }
    }
    Ok(outcome)
}

/// Classes that are named, and neither exist, nor come with the objects, nor are names that volumes made by hand share
/// with their claims; each with the first object that names it.
async fn missing(client: &Client, objects: &[Object]) -> Result<Vec<(String, Object)>> {
    let mut named: BTreeMap<String, &Object> = BTreeMap::new();
    for object in objects {
        for class in classes(object) {
            named.entry(class).or_insert(object);
        }
    }
    if named.is_empty() {
        return Ok(Vec::new());
    }
    let of_kind = |kind: &'static str| objects.iter().filter(move |o| o.resource.kind == kind);
    let class_of = |volume: &Value| volume.pointer("/spec/storageClassName").and_then(Value::as_str).map(str::to_owned);
    let mut known: BTreeSet<String> = of_kind("StorageClass").map(|o| o.name.clone()).collect();
    known.extend(of_kind("PersistentVolume").filter_map(|o| class_of(&o.value)));
    let mut missing = Vec::new();
    for (class, first) in named.into_iter().filter(|(class, _)| !known.contains(class)) {
        if !apply::exists(client, &format!("{CLASSES}/{class}")).await? {
            missing.push((class, first.clone()));
        }
    }
    if !missing.is_empty() {
        let volumes = apply::read(client, "/api/v1/persistentvolumes").await.context("the API does not answer")?;
        let taken: BTreeSet<String> = volumes["items"].as_array().into_iter().flatten().filter_map(class_of).collect();
        missing.retain(|(class, _)| !taken.contains(class));
    }
    Ok(missing)
}

/// The classes that an object's claims name.
fn classes(object: &Object) -> Vec<String> {
    let list = |value: &Value, path: &str| value.pointer(path).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut claims: Vec<Value> = Vec::new();
    let mut pod: Option<&str> = Some("/spec/template/spec");
    match object.resource.kind.as_str() {
        "PersistentVolumeClaim" => claims.push(object.value.clone()),
        "StatefulSet" => claims.extend(list(&object.value, "/spec/volumeClaimTemplates")),
        "Pod" => pod = Some("/spec"),
        "CronJob" => pod = Some("/spec/jobTemplate/spec/template/spec"),
        _ => {}
    }
    if let Some(pod) = pod.take() {
        let volumes = list(&object.value, &format!("{pod}/volumes"));
        claims.extend(volumes.iter().filter_map(|v| v.pointer("/ephemeral/volumeClaimTemplate").cloned()));
    }
    let named = claims.iter().filter_map(|claim| {
        let old = claim.pointer("/metadata/annotations").and_then(|a| a.get(OLD_CLASS));
        // A claim that names its volume waits for no class.
        let bound = claim.pointer("/spec/volumeName").is_some_and(|v| v.as_str().is_some_and(|v| !v.is_empty()));
        let class = old.or_else(|| claim.pointer("/spec/storageClassName"))?.as_str()?;
        (!bound && !class.is_empty()).then(|| class.to_owned())
    });
    named.collect()
}

/// A class of that name which is as `local` is.
async fn like_local(client: &Client, name: &str, place: Place) -> Result<Object> {
    let path = format!("{CLASSES}/{LOCAL}");
    let local = apply::read(client, &path)
        .await
        .with_context(|| format!("class {LOCAL} cannot be read, for which {name:?} would stand"))?;
    let mut value = local;
    value["metadata"] = json!({"name": name, "annotations": {STANDS_FOR: LOCAL}});
    let resource = builtin("storage.k8s.io", "v1", "StorageClass");
    value["apiVersion"] = json!(resource.api_version());
    value["kind"] = json!(resource.kind);
    Ok(Object { place, resource, namespace: String::new(), name: name.to_owned(), value })
}

/// Changes a class so that its volumes are made as those of `local`. What it said of other provisioners goes.
fn become_local(class: &mut Value) {
    class["provisioner"] = json!(PROVISIONER);
    class["volumeBindingMode"] = json!("WaitForFirstConsumer");
    class["allowVolumeExpansion"] = json!(true);
    if let Some(class) = class.as_object_mut() {
        class.remove("parameters");
        class.remove("mountOptions");
        class.remove("allowedTopologies");
    }
    if !class["metadata"]["annotations"].is_object() {
        class["metadata"]["annotations"] = json!({});
    }
    class["metadata"]["annotations"][STANDS_FOR] = json!(LOCAL);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: (&str, &str), value: Value) -> Object {
        let place = Place { file: "m.yaml".into(), line: 1 };
        Object { place, resource: builtin(kind.0, "v1", kind.1), namespace: "d".into(), name: "x".into(), value }
    }

    #[test]
    fn classes_are_found_in_claims_templates_and_old_annotations() {
        let set = object(
            ("apps", "StatefulSet"),
            json!({"spec": {
                "volumeClaimTemplates": [
                    {"spec": {"storageClassName": "a"}},
                    {"metadata": {"annotations": {OLD_CLASS: "b"}}, "spec": {}},
                    {"spec": {"storageClassName": ""}}, {"spec": {}},
                    {"spec": {"storageClassName": "by-name", "volumeName": "v"}}],
                "template": {"spec": {"volumes": [
                    {"name": "e", "ephemeral": {"volumeClaimTemplate": {"spec": {"storageClassName": "c"}}}}]}}}}),
        );
        assert_eq!(classes(&set), ["a", "b", "c"]);
        let claim = object(("", "PersistentVolumeClaim"), json!({"spec": {"storageClassName": "d"}}));
        assert_eq!(classes(&claim), ["d"]);
    }

    #[test]
    fn a_foreign_class_becomes_local_in_all_that_counts() {
        let mut class = json!({"metadata": {"name": "fast", "annotations": {"a": "b"}}, "provisioner": "example.com/x",
            "parameters": {"type": "ssd"}, "reclaimPolicy": "Retain", "volumeBindingMode": "Immediate"});
        become_local(&mut class);
        assert_eq!(class["provisioner"], PROVISIONER);
        assert_eq!(class["volumeBindingMode"], "WaitForFirstConsumer");
        assert_eq!(class["reclaimPolicy"], "Retain", "what becomes of the data is still the author's to say");
        assert!(class.get("parameters").is_none());
    }
}
