//! The paths under which kinds are served, and what can be done there.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::schemas::{PATCH, list_name, object_name, public_name, reference_text};
use super::{Dialect, group_path, type_of};
use crate::resource::{Resource, Subresource};
use crate::schema::{Node, NodeId, Schema};

/// Media types of bodies and answers.
const MEDIA_TYPES: [&str; 2] = ["application/json", "application/yaml"];

/// Media types of patches.
const PATCH_TYPES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// A query parameter: name and type.
type Parameter = (&'static str, &'static str);

/// Parameters of everything that writes.
const WRITE: [Parameter; 3] = [("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];

/// Parameters of everything that selects.
const SELECT: [Parameter; 10] = [
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];

/// Parameters of deletes.
const DELETE: [Parameter; 4] = [
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];

/// Type of the body of deletes.
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";

/// Type of the answer to deletes.
const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";

/// All paths of one group and version; notes the types that they use.
pub(super) fn of_group_version(
    dialect: Dialect,
    group: &str,
    version: &str,
    resources: &[Arc<Resource>],
    used: &mut BTreeSet<NodeId>,
) -> Map<String, Value> {
    let base = format!("/{}", group_path(group, version));
    let mut out = Map::new();
    for resource in resources {
        let metadata = resource.custom.is_some().then_some("meta/v1.ObjectMeta");
        used.extend(Schema::builtin().find(metadata.unwrap_or(&resource.type_name)));
        let collection = if resource.namespaced {
            let everywhere = operation(resource, "list")
                .map(|list| Operation { id: list.id.replacen("Namespaced", "", 1) + "ForAllNamespaces", ..list });
            add(dialect, &mut out, format!("{base}/{}", resource.plural), [everywhere]);
            format!("{base}/namespaces/{{namespace}}/{}", resource.plural)
        } else {
            format!("{base}/{}", resource.plural)
        };
        let verbs = ["list", "create", "deletecollection"].map(|verb| operation(resource, verb));
        add(dialect, &mut out, collection.clone(), verbs);
        let one = format!("{collection}/{{name}}");
        add(dialect, &mut out, one.clone(), ["get", "update", "patch", "delete"].map(|verb| operation(resource, verb)));
        for sub in &resource.subresources {
            let id = type_of(&sub.group, &sub.version, &sub.kind);
            used.extend(id);
            let operations = sub.verbs.iter().map(|verb| subresource(resource, sub, verb, id));
            add(dialect, &mut out, format!("{one}/{}", sub.name), operations);
        }
    }
    out
}

/// One operation in the making.
struct Operation {
    /// HTTP method in lower case.
    method: &'static str,
    /// What clients generated from the document call it, such as `listAppsV1NamespacedStatefulSet`.
    id: String,
    /// Kubernetes' name of the action.
    action: &'static str,
    group: String,
    version: String,
    kind: String,
    /// Name of the type of the body; none is sent if empty.
    body: String,
    /// Name of the type of the answer; a text if empty.
    answer: String,
    parameters: Vec<Parameter>,
}

/// A verb on the objects of a kind; `None` if it is not offered.
fn operation(resource: &Resource, verb: &str) -> Option<Operation> {
    if !resource.allows(verb) {
        return None;
    }
    let (method, action, name, parameters) = facts(verb)?;
    let own = object_name(resource);
    let (body, answer) = match verb {
        "list" => (String::new(), list_name(resource)),
        "get" => (String::new(), own),
        "patch" => (PATCH.to_owned(), own),
        "delete" | "deletecollection" => (DELETE_OPTIONS.to_owned(), STATUS.to_owned()),
        _ => (own.clone(), own),
    };
    Some(Operation {
        method,
        id: operation_id(resource, name, ""),
        action,
        group: resource.group.clone(),
        version: resource.version.clone(),
        kind: resource.kind.clone(),
        body,
        answer,
        parameters,
    })
}

/// A verb on a subresource, whose type is `id` if it has one.
fn subresource(resource: &Resource, sub: &Subresource, verb: &str, id: Option<NodeId>) -> Option<Operation> {
    let (method, action, name, parameters) = facts(verb)?;
    let schema = Schema::builtin();
    let own = match id.map(|id| schema.node(id)) {
        _ if resource.custom.is_some() && sub.kind == resource.kind => object_name(resource),
        // Logs are text, not pods.
        Some(Node::Struct(s)) if sub.name != "log" && sub.name != "proxy" => public_name(&s.name),
        _ => String::new(),
    };
    let body = match verb {
        "get" | "delete" => String::new(),
        "patch" if !own.is_empty() => PATCH.to_owned(),
        _ => own.clone(),
    };
    Some(Operation {
        method,
        id: operation_id(resource, name, &camel(&sub.name)),
        action,
        group: sub.group.clone(),
        version: sub.version.clone(),
        kind: sub.kind.clone(),
        body,
        answer: own,
        parameters,
    })
}

/// Method, action, name in ids and parameters of a verb.
fn facts(verb: &str) -> Option<(&'static str, &'static str, &'static str, Vec<Parameter>)> {
    Some(match verb {
        "get" => ("get", "get", "read", Vec::new()),
        "list" => ("get", "list", "list", SELECT.to_vec()),
        "create" => ("post", "post", "create", WRITE.to_vec()),
        "update" => ("put", "put", "replace", WRITE.to_vec()),
        "patch" => ("patch", "patch", "patch", [&WRITE[..], &[("force", "boolean")]].concat()),
        "delete" => ("delete", "delete", "delete", DELETE.to_vec()),
        "deletecollection" => ("delete", "deletecollection", "deleteCollection", [&SELECT[..9], &DELETE[..]].concat()),
        _ => return None,
    })
}

/// Adds one path, if anything is offered there.
fn add(
    dialect: Dialect,
    out: &mut Map<String, Value>,
    path: String,
    operations: impl IntoIterator<Item = Option<Operation>>,
) {
    let mut item: Map<String, Value> = operations
        .into_iter()
        .flatten()
        .map(|operation| (operation.method.to_owned(), describe(dialect, operation)))
        .collect();
    if item.is_empty() {
        return;
    }
    let mut parameters: Vec<Value> = ["namespace", "name"]
        .into_iter()
        .filter(|name| path.contains(&format!("{{{name}}}")))
        .map(|name| parameter(dialect, name, "path", "string"))
        .collect();
    parameters.push(parameter(dialect, "pretty", "query", "string"));
    item.insert("parameters".to_owned(), parameters.into());
    out.insert(path, Value::Object(item));
}

/// The text of an operation.
fn describe(dialect: Dialect, operation: Operation) -> Value {
    let mut parameters: Vec<Value> =
        operation.parameters.iter().map(|(name, kind)| parameter(dialect, name, "query", kind)).collect();
    let schema = |name: &str| json!({"$ref": reference_text(dialect, name)});
    let mut out = Map::new();
    let answer = if operation.answer.is_empty() { json!({"type": "string"}) } else { schema(&operation.answer) };
    match dialect {
        Dialect::V3 => {
            let content = |types: &[&str], schema: Value| -> Value {
                types.iter().map(|t| ((*t).to_owned(), json!({"schema": schema.clone()}))).collect::<Map<_, _>>().into()
            };
            if !operation.body.is_empty() {
                let types: &[&str] = if operation.body == PATCH { &PATCH_TYPES } else { &["*/*"] };
                out.insert("requestBody".to_owned(), json!({"content": content(types, schema(&operation.body))}));
            }
            out.insert(
                "responses".to_owned(),
                json!({"200": {"description": "OK", "content": content(&MEDIA_TYPES, answer)}}),
            );
        }
        Dialect::V2 => {
            if !operation.body.is_empty() {
                let is_optional = operation.body == DELETE_OPTIONS;
                parameters.push(
                    json!({"name": "body", "in": "body", "required": !is_optional, "schema": schema(&operation.body)}),
                );
                let types: &[&str] = if operation.body == PATCH { &PATCH_TYPES } else { &["*/*"] };
                out.insert("consumes".to_owned(), json!(types));
            }
            out.insert("produces".to_owned(), json!(MEDIA_TYPES));
            out.insert("schemes".to_owned(), json!(["https"]));
            out.insert("responses".to_owned(), json!({"200": {"description": "OK", "schema": answer}}));
        }
    }
    if !parameters.is_empty() {
        out.insert("parameters".to_owned(), parameters.into());
    }
    let tag = operation_tag(&operation.group, &operation.version);
    out.insert("operationId".to_owned(), operation.id.into());
    out.insert("tags".to_owned(), json!([tag]));
    out.insert("x-kubernetes-action".to_owned(), operation.action.into());
    out.insert(
        "x-kubernetes-group-version-kind".to_owned(),
        json!({"group": operation.group, "version": operation.version, "kind": operation.kind}),
    );
    Value::Object(out)
}

/// A parameter of a path or query.
fn parameter(dialect: Dialect, name: &str, place: &str, kind: &str) -> Value {
    let mut out = json!({"name": name, "in": place, "uniqueItems": true, "required": place == "path"});
    let Some(object) = out.as_object_mut() else { return out };
    if place == "query" {
        object.remove("required");
    }
    match dialect {
        Dialect::V3 => {
            object.remove("uniqueItems");
            object.insert("schema".to_owned(), json!({"type": kind, "uniqueItems": true}));
        }
        Dialect::V2 => {
            object.insert("type".to_owned(), kind.into());
        }
    }
    out
}

/// The id of an operation, such as `replaceAppsV1NamespacedStatefulSetStatus`.
fn operation_id(resource: &Resource, verb: &str, subresource: &str) -> String {
    let place = if resource.namespaced { "Namespaced" } else { "" };
    format!("{verb}{}{}{place}{}{subresource}", group_camel(&resource.group), camel(&resource.version), resource.kind)
}

/// The group as generated clients name it: `core` for none, without the common ending.
fn group_camel(group: &str) -> String {
    let group = group.strip_suffix(".k8s.io").unwrap_or(group);
    if group.is_empty() { "Core".to_owned() } else { group.split('.').map(camel).collect() }
}

/// What generated clients call the interface of a group and version.
fn operation_tag(group: &str, version: &str) -> String {
    let camel = group_camel(group);
    let mut chars = camel.chars();
    let first: String = chars.next().into_iter().flat_map(char::to_lowercase).collect();
    format!("{first}{}_{version}", chars.as_str())
}

/// A word with a capital.
fn camel(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().into_iter().flat_map(char::to_uppercase).chain(chars).collect()
}
