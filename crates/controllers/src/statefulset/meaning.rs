//! What a revision's data means: two templates that mean the same need no rollout, however they are written.

use api::resource::Registry;
use planner::Blob;
use serde_json::{Value, json};

use super::project::canonical;

/// Revision data with all that a server adds by default, and without what means nothing: nulls, and empty objects
/// that defaulting adds or not.
pub(super) fn meaning(data: &Value) -> Blob {
    let mut template = data["spec"]["template"].clone();
    drop_nulls(&mut template);
    let registry = Registry::builtin();
    if let Some(sets) = registry.find("apps", "v1", "statefulsets") {
        let mut set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "spec": {"template": template}});
        api::defaults::apply(&sets, &mut set);
        template = set["spec"]["template"].take();
    }
    if let Some(meta) = template["metadata"].as_object_mut() {
        meta.remove("creationTimestamp");
    }
    let is_empty = |v: Option<&Value>| v.and_then(Value::as_object).is_some_and(serde_json::Map::is_empty);
    if let Some(template) = template.as_object_mut()
        && is_empty(template.get("metadata"))
    {
        template.remove("metadata");
    }
    if let Some(spec) = template["spec"].as_object_mut() {
        if is_empty(spec.get("securityContext")) {
            spec.remove("securityContext");
        }
        for list in ["containers", "initContainers"] {
            let containers = spec.get_mut(list).and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
                for field in ["resources", "securityContext"] {
                    if is_empty(container.get(field)) {
                        container.remove(field);
                    }
                }
            }
        }
    }
    drop_nulls(&mut template);
    Blob::new(canonical(&template))
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_adds_by_default_means_the_same_as_its_absence() {
        let bare = json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "x"}]}}}});
        let full = json!({"spec": {"template": {"metadata": {"creationTimestamp": null}, "spec": {
            "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
            "securityContext": {}, "terminationGracePeriodSeconds": 30, "containers": [{
                "name": "a", "image": "x", "imagePullPolicy": "Always", "resources": {},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
        }}}});
        let mut other = full.clone();
        other["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 5.into();
        assert_eq!(meaning(&bare), meaning(&full));
        assert_ne!(meaning(&full), meaning(&other));
    }
}
