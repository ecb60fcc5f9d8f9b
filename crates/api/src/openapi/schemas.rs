//! The types of the schema, as OpenAPI describes them.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{Dialect, custom};
use crate::resource::{Registry, Resource};
use crate::schema::{Field, ListType, Node, NodeId, Schema, StructType};

/// Describes types in one dialect.
pub(super) struct Describer<'a> {
    dialect: Dialect,
    registry: &'a Registry,
    schema: &'static Schema,
}

/// Every type that is reached from `roots`, the lists of `resources`, and what requests need.
pub(super) fn all(
    describer: &Describer<'_>,
    roots: BTreeSet<NodeId>,
    resources: &[Arc<Resource>],
) -> Map<String, Value> {
    let schema = describer.schema;
    let always = ["meta/v1.DeleteOptions", "meta/v1.Status", "meta/v1.ListMeta"];
    let mut open: Vec<NodeId> = roots.into_iter().chain(always.iter().filter_map(|name| schema.find(name))).collect();
    let mut done = BTreeSet::new();
    let mut out = Map::new();
    while let Some(id) = open.pop() {
        if !done.insert(id) {
            continue;
        }
        match schema.node(id) {
            Node::Struct(s) => open.extend(s.fields.iter().map(|f| f.node)),
            Node::List(inner) | Node::Map(inner) | Node::OrBool(inner) | Node::OrList(inner, _) => open.push(*inner),
            _ => {}
        }
        if let Some((name, description)) = describer.definition(id) {
            out.insert(name, description);
        }
    }
    for resource in resources {
        if let Some(custom) = &resource.custom {
            let item = describer.reference(&object_name(resource));
            out.insert(object_name(resource), custom::definition(describer.dialect, resource, custom));
            out.insert(list_name(resource), describer.list(resource, item));
        }
        if let Some(id) = schema.find(&resource.type_name).filter(|_| resource.allows("list")) {
            out.insert(list_name(resource), describer.list(resource, describer.value(id)));
        }
    }
    out.insert(
        PATCH.to_owned(),
        json!({"description": "A patch, in the form that its content type names.", "type": "object"}),
    );
    out
}

/// Name of the type of every patch.
pub(super) const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";

/// Name of the type of a kind's objects.
pub(super) fn object_name(resource: &Resource) -> String {
    match resource.custom {
        Some(_) => custom::name(resource),
        None => public_name(&resource.type_name),
    }
}

/// Name of the type of a list of these.
pub(super) fn list_name(resource: &Resource) -> String {
    format!("{}List", object_name(resource))
}

/// `core/v1.Pod` as documents name it: `io.k8s.api.core.v1.Pod`.
pub(super) fn public_name(type_name: &str) -> String {
    let dotted = type_name.replace('/', ".");
    if dotted.starts_with("meta.") {
        format!("io.k8s.apimachinery.pkg.apis.{dotted}")
    } else {
        format!("io.k8s.api.{dotted}")
    }
}

impl<'a> Describer<'a> {
    /// A describer of this dialect.
    pub(super) fn new(dialect: Dialect, registry: &'a Registry) -> Self {
        Describer { dialect, registry, schema: Schema::builtin() }
    }

    /// Name and description of a type that has a name in documents.
    fn definition(&self, id: NodeId) -> Option<(String, Value)> {
        let node = self.schema.node(id);
        let name = reference_name(node)?;
        let v3 = self.dialect == Dialect::V3;
        let description = match node {
            Node::Struct(s) => self.object(s),
            Node::Quantity if v3 => {
                json!({"description": "An amount, such as 500m or 2Gi.", "oneOf": [{"type": "string"}, {"type": "number"}]})
            }
            Node::Quantity => json!({"description": "An amount, such as 500m or 2Gi.", "type": "string"}),
            Node::IntOrString if v3 => {
                json!({"description": "A whole number or a text.", "format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
            }
            Node::IntOrString => {
                json!({"description": "A whole number or a text.", "format": "int-or-string", "type": "string"})
            }
            Node::Time => json!({"description": "A time in whole seconds.", "type": "string", "format": "date-time"}),
            Node::MicroTime => {
                json!({"description": "A time in microseconds.", "type": "string", "format": "date-time"})
            }
            Node::Duration => json!({"description": "A length of time, such as 1m30s.", "type": "string"}),
            Node::FieldsV1 => json!({"description": "The set of fields that a manager owns.", "type": "object"}),
            _ => json!({"description": "Any object.", "type": "object"}),
        };
        Some((name, description))
    }

    /// A struct.
    fn object(&self, s: &StructType) -> Value {
        let mut out = Map::new();
        out.insert("type".to_owned(), "object".into());
        let properties: Map<String, Value> =
            s.fields.iter().map(|field| (field.name.as_ref().to_owned(), self.field(field))).collect();
        if !properties.is_empty() {
            out.insert("properties".to_owned(), properties.into());
        }
        let required: Vec<&str> = s.fields.iter().filter(|f| is_required(f)).map(|f| f.name.as_ref()).collect();
        if !required.is_empty() {
            out.insert("required".to_owned(), required.into());
        }
        if s.atomic {
            out.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
        }
        let kinds = self.kinds(&s.name);
        if !kinds.is_empty() {
            out.insert("x-kubernetes-group-version-kind".to_owned(), kinds.into());
        }
        Value::Object(out)
    }

    /// The group, version and kind under which a type is served or sent.
    fn kinds(&self, type_name: &str) -> Vec<Value> {
        let mut kinds: Vec<Value> = self
            .registry
            .all()
            .iter()
            .filter(|r| r.type_name == type_name)
            .map(|r| json!({"group": r.group, "version": r.version, "kind": r.kind}))
            .collect();
        let other = match type_name {
            "meta/v1.DeleteOptions" => Some(("", "DeleteOptions")),
            "meta/v1.Status" => Some(("", "Status")),
            "core/v1.Binding" => Some(("", "Binding")),
            "autoscaling/v1.Scale" => Some(("autoscaling", "Scale")),
            "policy/v1.Eviction" => Some(("policy", "Eviction")),
            "authentication/v1.TokenRequest" => Some(("authentication.k8s.io", "TokenRequest")),
            _ => None,
        };
        kinds.extend(other.map(|(group, kind)| json!({"group": group, "version": "v1", "kind": kind})));
        kinds
    }

    /// A list of the objects of one kind.
    fn list(&self, resource: &Resource, item: Value) -> Value {
        json!({
            "description": format!("A list of objects of kind {}.", resource.kind),
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"description": text_of("apiVersion"), "type": "string"},
                "kind": {"description": text_of("kind"), "type": "string"},
                "metadata": self.wrapped(self.reference_to("meta/v1.ListMeta"), Some("What is known about the list.")),
                "items": {"type": "array", "items": item},
            },
            "x-kubernetes-group-version-kind": [
                {"group": resource.group, "version": resource.version, "kind": resource.list_kind}
            ],
        })
    }

    /// A field of a struct.
    fn field(&self, field: &Field) -> Value {
        let description = text_of(&field.name);
        let deprecated = if field.deprecated { "Deprecated." } else { "" };
        let description = [deprecated, description].join(" ");
        let description = description.trim();
        let mut value = self.wrapped(self.value(field.node), (!description.is_empty()).then_some(description));
        let Some(out) = value.as_object_mut() else { return value };
        if let Some(default) = &field.default {
            out.insert("default".to_owned(), default.clone());
        }
        match &field.list {
            Some(ListType::Atomic) => out.insert("x-kubernetes-list-type".to_owned(), "atomic".into()),
            Some(ListType::Set) => out.insert("x-kubernetes-list-type".to_owned(), "set".into()),
            Some(ListType::Map(keys)) => {
                let keys: Vec<&str> = keys.iter().map(AsRef::as_ref).collect();
                out.insert("x-kubernetes-list-map-keys".to_owned(), keys.into());
                out.insert("x-kubernetes-list-type".to_owned(), "map".into())
            }
            None => None,
        };
        if let Some(atomic) = field.atomic {
            let kind = if atomic { "atomic" } else { "granular" };
            out.insert("x-kubernetes-map-type".to_owned(), kind.into());
        }
        let strategies: Vec<&str> =
            [(field.merge, "merge"), (field.replace, "replace"), (field.retain_keys, "retainKeys")]
                .into_iter()
                .filter_map(|(is_set, name)| is_set.then_some(name))
                .collect();
        if !strategies.is_empty() {
            out.insert("x-kubernetes-patch-strategy".to_owned(), strategies.join(",").into());
        }
        if let Some(key) = &field.merge_key {
            out.insert("x-kubernetes-patch-merge-key".to_owned(), key.as_ref().into());
        }
        value
    }

    /// A value of this type.
    fn value(&self, id: NodeId) -> Value {
        match self.schema.node(id) {
            Node::String => json!({"type": "string"}),
            Node::Bool => json!({"type": "boolean"}),
            Node::Int32 => json!({"type": "integer", "format": "int32"}),
            Node::Int64 => json!({"type": "integer", "format": "int64"}),
            Node::Number => json!({"type": "number", "format": "double"}),
            Node::OrBool(inner) | Node::OrList(inner, _) => self.value(*inner),
            Node::Bytes => json!({"type": "string", "format": "byte"}),
            Node::Enum(e) => {
                let values: Vec<&str> = e.values.iter().map(AsRef::as_ref).collect();
                json!({"type": "string", "enum": values})
            }
            Node::List(item) => json!({"type": "array", "items": self.value(*item)}),
            Node::Map(value) => json!({"type": "object", "additionalProperties": self.value(*value)}),
            node => self.reference(&reference_name(node).unwrap_or_default()),
        }
    }

    /// A reference to the type of this name.
    fn reference_to(&self, type_name: &str) -> Value {
        self.reference(&public_name(type_name))
    }

    /// A reference to a definition.
    fn reference(&self, name: &str) -> Value {
        json!({"$ref": reference_text(self.dialect, name)})
    }

    /// A value with a description; in version 3, nothing may stand beside a reference.
    fn wrapped(&self, value: Value, description: Option<&str>) -> Value {
        let mut value = match value.get("$ref") {
            Some(_) if self.dialect == Dialect::V3 => json!({"allOf": [value]}),
            _ => value,
        };
        if let (Some(out), Some(description)) = (value.as_object_mut(), description) {
            out.insert("description".to_owned(), description.into());
        }
        value
    }
}

/// Where a definition lies in the document.
pub(super) fn reference_text(dialect: Dialect, name: &str) -> String {
    match dialect {
        Dialect::V3 => format!("#/components/schemas/{name}"),
        Dialect::V2 => format!("#/definitions/{name}"),
    }
}

/// The name of a type that documents refer to by name.
fn reference_name(node: &Node) -> Option<String> {
    let fixed = match node {
        Node::Struct(s) => return Some(public_name(&s.name)),
        Node::Quantity => "io.k8s.apimachinery.pkg.api.resource.Quantity",
        Node::IntOrString => "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
        Node::Time => "io.k8s.apimachinery.pkg.apis.meta.v1.Time",
        Node::MicroTime => "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime",
        Node::Duration => "io.k8s.apimachinery.pkg.apis.meta.v1.Duration",
        Node::FieldsV1 => "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1",
        Node::Raw => "io.k8s.apimachinery.pkg.runtime.RawExtension",
        _ => return None,
    };
    Some(fixed.to_owned())
}

/// Whether a client must give a field.
fn is_required(field: &Field) -> bool {
    field.required || (field.written && !field.optional)
}

/// Short descriptions of fields whose meaning is the same wherever they occur.
fn text_of(field: &str) -> &'static str {
    match field {
        "apiVersion" => "Group and version of the API that the object belongs to.",
        "kind" => "What the object is, in CamelCase.",
        "metadata" => "Name, labels and what else is known about every object.",
        "spec" => "What is wanted.",
        "status" => "What is observed; written by controllers.",
        "name" => "Name, unique among its like.",
        "namespace" => "The namespace it lives in.",
        "labels" => "Texts to find it by.",
        "annotations" => "Texts that tools keep with it.",
        "conditions" => "Observations about it, by type.",
        "replicas" => "Number of pods.",
        "selector" => "Labels of the pods that belong to it.",
        "template" => "What each pod is made from.",
        "serviceName" => "The headless service that gives its pods their names.",
        "volumeClaimTemplates" => "Claims that each pod gets for itself.",
        "podManagementPolicy" => "Whether pods are created and deleted one after the other.",
        "updateStrategy" => "How pods are replaced when the template changes.",
        "revisionHistoryLimit" => "How many old revisions are kept.",
        "minReadySeconds" => "For how long a pod must be ready to count as available.",
        "persistentVolumeClaimRetentionPolicy" => "What becomes of claims when pods go.",
        "ordinals" => "How pods are numbered.",
        "containers" => "Programs that run in the pod.",
        "initContainers" => "Programs that run before the containers, in order.",
        "volumes" => "Directories that containers may mount.",
        "image" => "What the container's file system is made from.",
        "command" => "Program and first arguments, instead of the image's own.",
        "args" => "Arguments to the program.",
        "env" => "Environment variables.",
        "ports" => "Ports that are served.",
        "resources" => "What is requested and the limits.",
        "volumeMounts" => "Where volumes appear in the container.",
        "readinessProbe" => "How to find out whether it can serve.",
        "livenessProbe" => "How to find out whether it must be restarted.",
        "startupProbe" => "How to find out whether it has started.",
        "restartPolicy" => "When containers that end are started again.",
        "terminationGracePeriodSeconds" => "How long it may take to stop.",
        _ => "",
    }
}
