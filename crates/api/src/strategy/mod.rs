//! What the server keeps for itself on writes: status, generation, identity.
//!
//! | write  | status            | spec                | generation                      |
//! |--------|-------------------|---------------------|---------------------------------|
//! | create | the kind's first  | the client's        | 1 where the kind counts         |
//! | update | kept              | the client's        | +1 if the spec changed          |
//! | status | the client's      | kept                | kept                            |
//!
//! Runs on objects that are decoded and defaulted, before validation. The caller sets uid, creationTimestamp, a
//! generated name and resourceVersion.

mod job;
mod service;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

pub use job::{NAME_LABELS as JOB_NAME_LABELS, UID_LABELS as JOB_UID_LABELS};

use crate::crd;
use crate::quantity::Quantity;
use crate::resource::Resource;

/// Kinds that count changes of their spec in `metadata.generation`.
fn counts_generations(resource: &Resource) -> bool {
    resource.custom.is_some()
        || matches!(
            (resource.group.as_str(), resource.kind.as_str()),
            ("apps", "StatefulSet" | "Deployment" | "ReplicaSet")
                | ("batch", "Job" | "CronJob")
                | ("", "Pod")
                | ("policy", "PodDisruptionBudget")
                | ("networking.k8s.io", "NetworkPolicy")
                | (SNAPSHOTS, _)
                | (crd::GROUP, crd::KIND)
        )
}

/// The group whose kinds are custom resources elsewhere, and behave so.
const SNAPSHOTS: &str = "snapshot.storage.k8s.io";

/// Before a create is validated.
pub fn prepare_create(resource: &Resource, new: &mut Value) {
    let metadata = metadata(new);
    metadata.remove("deletionTimestamp");
    metadata.remove("deletionGracePeriodSeconds");
    if counts_generations(resource) {
        metadata.insert("generation".into(), 1.into());
    }
    // A kubelet brings its node's status along; every other status begins as the server says.
    if resource.has_status() && !is(resource, "", "Node") {
        match first_status(resource, new) {
            Some(status) => new["status"] = status,
            None => remove(new, "status"),
        }
    }
    match (resource.group.as_str(), resource.kind.as_str()) {
        ("", "Namespace") => prepare_namespace(new),
        ("", "PersistentVolumeClaim") => align_data_sources(&mut new["spec"]),
        ("", "Secret") => merge_string_data(new),
        ("", "Service") => service::prepare_create(new),
        ("batch", "Job") => job::prepare_create(new),
        _ => {}
    }
}

/// Before an update of the object is validated.
pub fn prepare_update(resource: &Resource, new: &mut Value, old: &Value) {
    keep_identity(new, old);
    if resource.has_status() {
        keep(new, old, "status");
    }
    match (resource.group.as_str(), resource.kind.as_str()) {
        ("", "Namespace") => {
            new["spec"] = old["spec"].clone();
            label_with_name(new);
        }
        ("", "Secret") => merge_string_data(new),
        ("", "Service") => service::prepare_update(new, old),
        (crd::GROUP, crd::KIND) => {
            let mut status = new["status"].take();
            crd::note_storage_version(new, &mut status);
            new["status"] = status;
        }
        _ => {}
    }
    if counts_generations(resource) && content_differs(resource, new, old) {
        let next = old["metadata"]["generation"].as_i64().unwrap_or(0).saturating_add(1);
        metadata(new).insert("generation".into(), next.into());
    }
}

/// Before an update of the status is validated.
pub fn prepare_status_update(resource: &Resource, new: &mut Value, old: &Value) {
    if resource.custom.is_some() {
        keep_all_but_status(new, old);
        return;
    }
    keep_identity(new, old);
    keep(new, old, "spec");
    if is(resource, "", "Pod") {
        if let Some(owners) = old["metadata"].get("ownerReferences") {
            metadata(new).insert("ownerReferences".into(), owners.clone());
        } else {
            metadata(new).remove("ownerReferences");
        }
        if let (Some(class), Some(status)) = (old["status"].get("qosClass"), new["status"].as_object_mut()) {
            status.insert("qosClass".into(), class.clone());
        }
    }
}

/// Whether what the client wants has changed: the spec (of a deployment the annotations too, which its replica sets
/// get), or all but metadata of custom kinds (and but the status, where that is written apart).
fn content_differs(resource: &Resource, new: &Value, old: &Value) -> bool {
    if is(resource, "apps", "Deployment") && new["metadata"]["annotations"] != old["metadata"]["annotations"] {
        return true;
    }
    if resource.custom.is_none() && resource.group != SNAPSHOTS {
        return new["spec"] != old["spec"];
    }
    let counts =
        |name: &str| !(matches!(name, "metadata" | "apiVersion" | "kind") || name == "status" && resource.has_status());
    let content = |object: &Value| -> Map<String, Value> {
        let members = object.as_object().into_iter().flatten();
        members.filter(|(name, _)| counts(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    content(new) != content(old)
}

/// A written status of a custom kind changes nothing else, not even labels.
fn keep_all_but_status(new: &mut Value, old: &Value) {
    let status = new.get("status").cloned();
    let managers = new["metadata"].get("managedFields").cloned();
    *new = old.clone();
    match status {
        Some(status) => new["status"] = status,
        None => remove(new, "status"),
    }
    let metadata = metadata(new);
    match managers {
        Some(managers) => metadata.insert("managedFields".into(), managers),
        None => metadata.remove("managedFields"),
    };
}

/// Before a write of a pod's ephemeral containers is validated: nothing else of it changes.
pub fn prepare_ephemeral_update(new: &mut Value, old: &Value) {
    let list = new["spec"].get("ephemeralContainers").cloned();
    only(new, old, |pod| match list {
        Some(list) => pod["spec"]["ephemeralContainers"] = list,
        None => drop(pod["spec"].as_object_mut().and_then(|spec| spec.remove("ephemeralContainers"))),
    });
}

/// Before a resize of a pod is validated: nothing but the resources of its containers changes. Lists of other
/// containers are left for validation to refuse.
pub fn prepare_resize(new: &mut Value, old: &Value) {
    let wanted = new["spec"].clone();
    only(new, old, |pod| {
        for list in ["containers", "initContainers"] {
            let (Some(wanted), Some(now)) = (wanted[list].as_array(), pod["spec"][list].as_array_mut()) else {
                continue;
            };
            let same = wanted.len() == now.len() && wanted.iter().zip(&*now).all(|(a, b)| a["name"] == b["name"]);
            if !same {
                now.clone_from(wanted);
                continue;
            }
            for (now, wanted) in now.iter_mut().zip(wanted) {
                for field in ["resources", "resizePolicy"] {
                    match (wanted.get(field), now.as_object_mut()) {
                        (Some(value), Some(now)) => drop(now.insert(field.to_owned(), value.clone())),
                        (None, Some(now)) => drop(now.remove(field)),
                        _ => {}
                    }
                }
            }
        }
        // Looking for a list that is not there has made it.
        if let Some(spec) = pod["spec"].as_object_mut() {
            spec.retain(|_, value| !value.is_null());
        }
    });
}

/// Makes a pod what it was, but for one change, its managers and its version.
fn only(new: &mut Value, old: &Value, change: impl FnOnce(&mut Value)) {
    let mut pod = old.clone();
    for field in ["managedFields", "resourceVersion", "uid"] {
        match (new["metadata"].get(field).cloned(), pod["metadata"].as_object_mut()) {
            (Some(value), Some(metadata)) => drop(metadata.insert(field.to_owned(), value)),
            (None, Some(metadata)) => drop(metadata.remove(field)),
            _ => {}
        }
    }
    change(&mut pod);
    if pod["spec"] != old["spec"] {
        let next = old["metadata"]["generation"].as_i64().unwrap_or(0).saturating_add(1);
        pod["metadata"]["generation"] = next.into();
    }
    *new = pod;
}

/// Whether a resource is of this group and kind.
fn is(resource: &Resource, group: &str, kind: &str) -> bool {
    resource.group == group && resource.kind == kind
}

/// The object's metadata; made if it is missing.
fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    object["metadata"].as_object_mut().expect("was just made an object")
}

/// Takes a top-level member out.
fn remove(object: &mut Value, key: &str) {
    if let Some(map) = object.as_object_mut() {
        map.remove(key);
    }
}

/// Makes a top-level member what it was.
fn keep(new: &mut Value, old: &Value, key: &str) {
    match old.get(key) {
        Some(value) => new[key] = value.clone(),
        None => remove(new, key),
    }
}

/// Fields of the metadata that no update changes. What is wrong then (another uid) is for validation to say.
fn keep_identity(new: &mut Value, old: &Value) {
    let old = &old["metadata"];
    let new = metadata(new);
    for always in ["generation", "creationTimestamp"] {
        match old.get(always) {
            Some(value) => new.insert(always.into(), value.clone()),
            None => new.remove(always),
        };
    }
    if let Some(value) = old.get("deletionTimestamp") {
        new.insert("deletionTimestamp".into(), value.clone());
    }
    for if_absent in ["uid", "name", "namespace", "generateName", "deletionGracePeriodSeconds"] {
        if let Some(value) = old.get(if_absent)
            && new.get(if_absent).is_none_or(|v| v.as_str() == Some(""))
        {
            new.insert(if_absent.into(), value.clone());
        }
    }
}

/// The status that an object of a kind begins with.
fn first_status(resource: &Resource, new: &Value) -> Option<Value> {
    if resource.group == SNAPSHOTS {
        return None;
    }
    Some(match (resource.group.as_str(), resource.kind.as_str()) {
        ("apps", "StatefulSet") => json!({"replicas": 0, "availableReplicas": 0}),
        ("apps", "ReplicaSet") => json!({"replicas": 0}),
        ("", "Pod") => json!({"phase": "Pending", "qosClass": qos_class(&new["spec"])}),
        ("", "PersistentVolume" | "PersistentVolumeClaim") => json!({"phase": "Pending"}),
        ("", "Namespace") => json!({"phase": "Active"}),
        ("", "Service") => json!({"loadBalancer": {}}),
        (crd::GROUP, crd::KIND) => crd::first_status(new),
        _ if resource.custom.is_some() => return None,
        ("policy", "PodDisruptionBudget") => {
            json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0})
        }
        _ => json!({}),
    })
}

/// The pod's quality of service: `Guaranteed`, `Burstable` or `BestEffort`.
pub fn qos_class(spec: &Value) -> &'static str {
    let lists = ["initContainers", "containers"].into_iter();
    let containers: Vec<&Value> = lists.filter_map(|list| spec[list].as_array()).flatten().collect();
    let amount = |value: &Value| value.as_str().and_then(|text| Quantity::parse(text).ok()).filter(|q| !q.is_zero());
    let (mut any, mut all_limited) = (false, true);
    for container in &containers {
        for resource in ["cpu", "memory"] {
            let limit = amount(&container["resources"]["limits"][resource]);
            let request = amount(&container["resources"]["requests"][resource]);
            any |= limit.is_some() || request.is_some();
            let pinned = match (&limit, &request) {
                (Some(limit), Some(request)) => limit == request,
                (Some(_), None) => true,
                (None, _) => false,
            };
            all_limited &= pinned;
        }
    }
    match (any, all_limited) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// A namespace is emptied before it goes, and carries its name as a label.
fn prepare_namespace(new: &mut Value) {
    if !new["spec"].is_object() {
        new["spec"] = json!({});
    }
    let finalizers = &mut new["spec"]["finalizers"];
    match finalizers.as_array_mut() {
        Some(list) if list.iter().any(|f| f == "kubernetes") => {}
        Some(list) => list.push("kubernetes".into()),
        None => *finalizers = json!(["kubernetes"]),
    }
    label_with_name(new);
}

/// Sets the label `kubernetes.io/metadata.name`.
fn label_with_name(namespace: &mut Value) {
    let metadata = metadata(namespace);
    if let Some(name) = metadata.get("name").filter(|n| n.as_str() != Some("")).cloned() {
        let labels = metadata.entry("labels").or_insert_with(|| json!({}));
        if let Some(labels) = labels.as_object_mut() {
            labels.insert("kubernetes.io/metadata.name".into(), name);
        }
    }
}

/// A claim names its data source in two fields, the older of which knows claims and snapshots only and forgets others.
fn align_data_sources(spec: &mut Value) {
    let classic = |source: &Value| match source["apiGroup"].as_str().unwrap_or("") {
        "" => source["kind"] == "PersistentVolumeClaim",
        group => group == "snapshot.storage.k8s.io" && source["kind"] == "VolumeSnapshot",
    };
    let (source, reference) = (spec["dataSource"].clone(), spec["dataSourceRef"].clone());
    let Some(spec) = spec.as_object_mut() else { return };
    if source.is_null() {
        // Indexing has made the members; absent ones stay absent.
        spec.remove("dataSource");
        if reference.is_null() {
            spec.remove("dataSourceRef");
        } else if classic(&reference) && reference["namespace"].is_null() {
            spec.insert("dataSource".into(), reference);
        }
    } else if !classic(&source) {
        spec.remove("dataSource");
        if reference.is_null() {
            spec.remove("dataSourceRef");
        }
    } else if reference.is_null() {
        spec.insert("dataSourceRef".into(), source);
    }
}

/// Moves `stringData` of a secret into `data`, encoded.
fn merge_string_data(secret: &mut Value) {
    let Some(Value::Object(texts)) = secret.as_object_mut().and_then(|map| map.remove("stringData")) else {
        return;
    };
    if texts.is_empty() {
        return;
    }
    if !secret["data"].is_object() {
        secret["data"] = json!({});
    }
    for (key, text) in texts {
        secret["data"][key] = STANDARD.encode(text.as_str().unwrap_or("")).into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Registry;

    fn resource(group: &str, plural: &str) -> std::sync::Arc<Resource> {
        Registry::builtin().find(group, "v1", plural).expect("is served")
    }

    #[test]
    fn a_set_begins_at_generation_one_with_an_empty_status() {
        let sets = resource("apps", "statefulsets");
        let mut new = json!({"metadata": {"name": "a", "generation": 9}, "spec": {}, "status": {"replicas": 7}});
        prepare_create(&sets, &mut new);
        assert_eq!(new["metadata"]["generation"], 1);
        assert_eq!(new["status"], json!({"replicas": 0, "availableReplicas": 0}));
    }

    #[test]
    fn only_a_changed_spec_counts() {
        let sets = resource("apps", "statefulsets");
        let old = json!({"metadata": {"name": "a", "uid": "u", "generation": 4, "creationTimestamp": "t"},
            "spec": {"replicas": 1}, "status": {"replicas": 1}});
        let mut labelled =
            json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"replicas": 1}, "status": {}});
        prepare_update(&sets, &mut labelled, &old);
        assert_eq!(labelled["metadata"]["generation"], 4);
        assert_eq!(labelled["metadata"]["uid"], "u");
        assert_eq!(labelled["metadata"]["creationTimestamp"], "t");
        assert_eq!(labelled["status"], old["status"]);
        let mut scaled = json!({"metadata": {"name": "a", "generation": 99}, "spec": {"replicas": 2}});
        prepare_update(&sets, &mut scaled, &old);
        assert_eq!(scaled["metadata"]["generation"], 5);
    }

    #[test]
    fn a_status_update_leaves_the_spec() {
        let sets = resource("apps", "statefulsets");
        let old = json!({"metadata": {"name": "a", "generation": 4}, "spec": {"replicas": 1}, "status": {}});
        let mut new = json!({"metadata": {"name": "a"}, "spec": {"replicas": 5}, "status": {"replicas": 1}});
        prepare_status_update(&sets, &mut new, &old);
        assert_eq!(new["spec"], old["spec"]);
        assert_eq!(new["metadata"]["generation"], 4);
        assert_eq!(new["status"]["replicas"], 1);
    }

    #[test]
    fn a_deletion_once_begun_is_not_taken_back() {
        let pods = resource("", "pods");
        let old =
            json!({"metadata": {"name": "a", "deletionTimestamp": "t", "deletionGracePeriodSeconds": 30}, "spec": {}});
        let mut new = json!({"metadata": {"name": "a"}, "spec": {}});
        prepare_update(&pods, &mut new, &old);
        assert_eq!(new["metadata"]["deletionTimestamp"], "t");
        assert_eq!(new["metadata"]["deletionGracePeriodSeconds"], 30);
    }

    #[test]
    fn a_pods_class_follows_its_resources() {
        let with = |resources: Value| json!({"containers": [{"resources": resources}]});
        assert_eq!(qos_class(&with(json!({}))), "BestEffort");
        assert_eq!(qos_class(&with(json!({"limits": {"cpu": "1", "memory": "1Gi"}}))), "Guaranteed");
        assert_eq!(
            qos_class(&with(
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}})
            )),
            "Burstable"
        );
        assert_eq!(qos_class(&with(json!({"requests": {"cpu": "1"}}))), "Burstable");
    }

    #[test]
    fn a_claims_data_source_is_named_twice_or_forgotten() {
        let claims = resource("", "persistentvolumeclaims");
        let with = |spec: Value| {
            let mut claim = json!({"metadata": {}, "spec": spec});
            prepare_create(&claims, &mut claim);
            claim["spec"].clone()
        };
        assert_eq!(with(json!({"volumeName": "v"})), json!({"volumeName": "v"}));
        assert_eq!(with(json!({"dataSource": {"kind": "Pod", "name": "x"}})), json!({}));
        let source = json!({"kind": "PersistentVolumeClaim", "name": "x"});
        let both = json!({"dataSource": source, "dataSourceRef": source});
        assert_eq!(with(json!({"dataSource": source})), both);
        assert_eq!(with(json!({"dataSourceRef": source})), both);
    }

    #[test]
    fn a_namespace_has_its_finalizer_and_label_and_a_secret_its_texts() {
        let mut namespace = json!({"metadata": {"name": "n"}});
        prepare_create(&resource("", "namespaces"), &mut namespace);
        assert_eq!(namespace["spec"]["finalizers"], json!(["kubernetes"]));
        assert_eq!(namespace["metadata"]["labels"]["kubernetes.io/metadata.name"], "n");
        let mut secret = json!({"metadata": {}, "data": {"b": "Yg=="}, "stringData": {"a": "1"}});
        prepare_create(&resource("", "secrets"), &mut secret);
        assert_eq!(secret["data"], json!({"a": "MQ==", "b": "Yg=="}));
        assert!(secret.get("stringData").is_none());
    }
}
