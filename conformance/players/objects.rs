//! Objects as scenarios name them: short options become whole manifests, whole objects become short words.

use serde_json::{Map, Value, json};

/// The pods name it, so that the server's own scheduler leaves them alone.
pub(crate) const SCHEDULER: &str = "behaviour-suite";
/// Every image of a scenario stands in a registry that does not exist; scenarios name the tag only.
const IMAGE: &str = "registry.invalid/app:";
/// Says which revision a pod was made from.
pub(crate) const REVISION_LABEL: &str = "controller-revision-hash";
/// Carries the ordinal of a pod.
pub(crate) const INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// A kind by the word that scenarios use for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// `pods`
    Pods,
    /// `claims`
    Claims,
    /// `services`
    Services,
    /// `sets`
    Sets,
    /// `revisions`
    Revisions,
    /// `events`
    Events,
}

impl Kind {
    /// Those that a run watches.
    pub(crate) const WATCHED: [Kind; 5] = [Kind::Pods, Kind::Claims, Kind::Sets, Kind::Revisions, Kind::Events];

    /// The kind that a scenario means.
    pub(crate) fn parse(word: &str) -> Kind {
        match word {
            "pods" => Kind::Pods,
            "claims" => Kind::Claims,
            "services" => Kind::Services,
            "sets" => Kind::Sets,
            "revisions" => Kind::Revisions,
            "events" => Kind::Events,
            other => panic!("a scenario names the kind {other:?}, which this suite does not know"),
        }
    }

    /// The path of its collection, of one object, or of a subresource.
    pub(crate) fn path(self, namespace: &str, name: &str, sub: &str) -> String {
        let (prefix, plural) = match self {
            Kind::Pods => ("/api/v1", "pods"),
            Kind::Claims => ("/api/v1", "persistentvolumeclaims"),
            Kind::Services => ("/api/v1", "services"),
            Kind::Sets => ("/apis/apps/v1", "statefulsets"),
            Kind::Revisions => ("/apis/apps/v1", "controllerrevisions"),
            Kind::Events => ("/api/v1", "events"),
        };
        let mut path = format!("{prefix}/namespaces/{namespace}/{plural}");
        for part in [name, sub].into_iter().filter(|part| !part.is_empty()) {
            path.push('/');
            path.push_str(part);
        }
        path
    }

    /// apiVersion and kind.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Kind::Pods => ("v1", "Pod"),
            Kind::Claims => ("v1", "PersistentVolumeClaim"),
            Kind::Services => ("v1", "Service"),
            Kind::Sets => ("apps/v1", "StatefulSet"),
            Kind::Revisions => ("apps/v1", "ControllerRevision"),
            Kind::Events => ("v1", "Event"),
        }
    }

    /// A reference that makes `uid` the controller of an object.
    pub(crate) fn controller_reference(self, name: &str, uid: &Value) -> Value {
        let (version, kind) = self.names();
        json!({"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": true})
    }
}

/// A pod that a user makes.
pub(crate) fn pod(name: &str, options: &Value) -> Value {
    let labels = options.get("labels").cloned().unwrap_or_else(|| json!({}));
    let mut made = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
        "spec": pod_spec(options)});
    merge(&mut made, options.get("merge").unwrap_or(&json!({})));
    made
}

fn pod_spec(options: &Value) -> Value {
    let image = options.get("image").and_then(Value::as_str).unwrap_or("v1");
    let mut container = json!({"name": "app", "image": tagged(image)});
    if let Some(mounts) = options.get("mount").and_then(Value::as_array) {
        container["volumeMounts"] =
            mounts.iter().map(|v| json!({"name": v, "mountPath": format!("/{}", text(v))})).collect();
    }
    json!({"schedulerName": SCHEDULER, "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": options.get("grace").cloned().unwrap_or_else(|| json!(30)),
        "containers": [container]})
}

/// An image by its tag.
pub(crate) fn tagged(tag: &str) -> String {
    format!("{IMAGE}{tag}")
}

/// A claim of a class that must not exist.
pub(crate) fn claim(name: &str, options: &Value) -> Value {
    let size = options.get("size").cloned().unwrap_or_else(|| json!("1Gi"));
    let mut made = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "behaviour-none",
                 "resources": {"requests": {"storage": size}}}});
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = options.get(field) {
            made["metadata"][field] = value.clone();
        }
    }
    made
}

/// A headless service.
pub(crate) fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"clusterIP": "None", "ports": [{"port": 80}]}})
}

/// A set from short options; `merge` is a JSON merge patch on the result.
pub(crate) fn set(name: &str, options: &Value) -> Value {
    let option = |field: &str, otherwise: Value| options.get(field).cloned().unwrap_or(otherwise);
    let labels = option("labels", json!({"app": name}));
    let mut spec = json!({
        "replicas": option("replicas", json!(1)),
        "serviceName": option("service", json!(name)),
        "selector": option("selector", json!({"matchLabels": labels})),
        "template": {"metadata": {"labels": labels}, "spec": pod_spec(options)},
    });
    if spec["serviceName"].is_null() {
        spec.as_object_mut().expect("it was made as one").remove("serviceName");
    }
    if let Some(policy) = options.get("policy") {
        spec["podManagementPolicy"] = policy.clone();
    }
    if options.get("strategy").is_some() || options.get("partition").is_some() {
        spec["updateStrategy"] = json!({"type": option("strategy", json!("RollingUpdate"))});
        if let Some(partition) = options.get("partition") {
            spec["updateStrategy"]["rollingUpdate"] = json!({"partition": partition});
        }
    }
    if let Some(history) = options.get("history") {
        spec["revisionHistoryLimit"] = history.clone();
    }
    if let Some(claims) = options.get("claims").and_then(Value::as_array) {
        spec["volumeClaimTemplates"] = claims.iter().map(|name| claim(text(name), &Value::Null)).collect();
    }
    let mut made = json!({"apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": name, "labels": {"set": name}}, "spec": spec});
    merge(&mut made, options.get("merge").unwrap_or(&json!({})));
    made
}

/// JSON merge patch (RFC 7386).
pub(crate) fn merge(target: &mut Value, change: &Value) {
    let Value::Object(change) = change else { return target.clone_from(change) };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let target = target.as_object_mut().expect("it is one now");
    for (key, value) in change {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.as_str()).or_insert(Value::Null), value);
        }
    }
}

/// A text, or nothing.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// `metadata.name`
pub(crate) fn name(object: &Value) -> &str {
    text(&object["metadata"]["name"])
}

/// `metadata.uid`
pub(crate) fn uid(object: &Value) -> &str {
    text(&object["metadata"]["uid"])
}

/// A label's value.
pub(crate) fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["metadata"]["labels"][key].as_str()
}

/// The reference to the object's controller.
pub(crate) fn controller(object: &Value) -> Option<&Value> {
    object["metadata"]["ownerReferences"].as_array()?.iter().find(|reference| reference["controller"] == json!(true))
}

/// Whether a deletion was asked for.
pub(crate) fn terminating(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// Condition Ready of a pod.
pub(crate) fn ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

/// The phase of a pod.
pub(crate) fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().filter(|phase| !phase.is_empty()).unwrap_or("Pending")
}

/// The tag of a pod's image.
pub(crate) fn image(pod: &Value) -> String {
    text(&pod["spec"]["containers"][0]["image"]).replace(IMAGE, "")
}

/// Orders names as people do: `web-2` before `web-10`.
pub(crate) fn natural(name: &str) -> Vec<(bool, u64, String)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let digits = rest.starts_with(|c: char| c.is_ascii_digit());
        let end = rest.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(rest.len());
        let (part, after) = rest.split_at(end);
        parts.push((!digits, if digits { part.parse().unwrap_or(u64::MAX) } else { 0 }, part.to_owned()));
        rest = after;
    }
    parts
}

/// Matches a name against a pattern of letters and `*`.
pub(crate) fn matches(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|after| {
            (0..=after.len()).filter(|at| after.is_char_boundary(*at)).any(|at| matches(&after[at..], rest))
        }),
    }
}
