//! Server-side apply and `metadata.managedFields` for the kinds of the schema: the crate `patch`
//! does the work, this module says what merges by what and how failures are answered.

use patch::managed::{self, FieldSet, Manager, Managers, Operation, Place, Shape, TypeSchema, Writer};
use serde_json::{Value, json};

use crate::decode;
use crate::resource::Resource;
use crate::schema::{Field, ListType, Node, NodeId, Schema};
use crate::status::{Details, Status};
use crate::structural;

/// Who writes an object, how, and when.
#[derive(Debug, Clone)]
pub struct Change<'a> {
    /// The field manager's name.
    pub manager: &'a str,
    /// The subresource that it writes through; empty for the object itself.
    pub subresource: &'a str,
    /// The time in whole seconds, RFC 3339.
    pub now: &'a str,
}

/// What an object becomes when a manager applies `config`; `live` is the object as it is, `None`
/// if there is none yet. The result carries its managers and still has to be decoded, completed
/// and validated like any other.
pub fn apply(
    resource: &Resource,
    live: Option<&Value>,
    mut config: Value,
    change: &Change<'_>,
    force: bool,
) -> Result<Value, Status> {
    check_config(resource, &config)?;
    // Versions and owners are preconditions, not wishes: whoever calls has looked at them.
    take_metadata(&mut config, "resourceVersion");
    let schema = &*types(resource);
    let mut live = live.cloned().unwrap_or_else(|| empty(resource));
    let list = take_metadata(&mut live, "managedFields").unwrap_or_default();
    let mut managers = Managers::parse(&list).unwrap_or_default();
    let ignored = ignored(resource, change.subresource);
    let writer = |name: &str, operation| Writer {
        manager: manager(resource, name, operation, change.subresource),
        now: change.now,
        ignored: &ignored,
    };
    if managers.is_empty() {
        // Nobody was noted so far: what is there was written by somebody before.
        let before = Writer {
            manager: manager(resource, "before-first-apply", Operation::Update, ""),
            now: change.now,
            ignored: &ignored,
        };
        if let Some(changes) = managed::changes(&empty(resource), &live, &before, schema) {
            managers.note(&changes, &before);
        }
    }
    let result = managed::apply(&live, &config, managers, &writer(change.manager, Operation::Apply), force, schema);
    let (mut new, managers) = result.map_err(|error| answer(&config, error))?;
    put_managers(&mut new, &managers);
    Ok(new)
}

/// Notes in `new` which fields a create, an update or a patch other than an apply changes; to be done before the
/// server adds anything of its own. Objects whose managers a client has taken off are not tracked until somebody
/// applies. A client may write managers itself, but not through a subresource.
pub fn track(resource: &Resource, live: Option<&Value>, new: &mut Value, change: &Change<'_>) {
    let given = take_metadata(new, "managedFields").unwrap_or_default();
    let known = live.and_then(|live| live.pointer("/metadata/managedFields")).unwrap_or(&Value::Null);
    let list = if !change.subresource.is_empty() || given == *known {
        known
    } else if is_reset(&given) {
        &Value::Null
    } else if Managers::parse(&given).is_ok_and(|managers| !managers.is_empty()) {
        &given
    } else {
        known
    };
    let is_tracked = live.is_none() || list.as_array().is_some_and(|list| !list.is_empty());
    if !is_tracked {
        return;
    }
    let writer = Writer {
        manager: manager(resource, change.manager, Operation::Update, change.subresource),
        now: change.now,
        ignored: &ignored(resource, change.subresource),
    };
    let blank;
    let live = match live {
        Some(live) => live,
        None => {
            blank = empty(resource);
            &blank
        }
    };
    let Some(changes) = managed::changes(live, new, &writer, &*types(resource)) else {
        // Read and written as it is: what there is stays to the letter.
        if list.is_array() {
            new["metadata"]["managedFields"] = list.clone();
        }
        return;
    };
    let mut managers = Managers::parse(list).unwrap_or_default();
    managers.note(&changes, &writer);
    put_managers(new, &managers);
}

/// Gives `new` the managers of `old` if nothing differs but the times in them: a write that changes nothing in the
/// end is none.
pub fn keep_if_unchanged(new: &mut Value, old: &Value) {
    let Some(known) = old.pointer("/metadata/managedFields") else { return };
    let Some(list) = new.pointer("/metadata/managedFields").filter(|list| *list != known) else { return };
    if alike_but_for(list, known, |_, name| name == "time") && is_same_otherwise(new, old) {
        new["metadata"]["managedFields"] = known.clone();
    }
}

/// Whether two objects differ in nothing but version and managers.
fn is_same_otherwise(new: &Value, old: &Value) -> bool {
    let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else { return false };
    new.len() == old.len()
        && new.iter().all(|(name, value)| match (name.as_str(), old.get(name)) {
            (_, None) => false,
            ("metadata", Some(was)) => alike_but_for(value, was, |depth, name| {
                depth == 0 && matches!(name, "resourceVersion" | "managedFields")
            }),
            (_, Some(was)) => value == was,
        })
}

/// Whether two values are equal, leaving out members that `skipped` names by their depth and name.
fn alike_but_for(one: &Value, other: &Value, skipped: fn(usize, &str) -> bool) -> bool {
    fn alike(one: &Value, other: &Value, depth: usize, skipped: fn(usize, &str) -> bool) -> bool {
        match (one, other) {
            (Value::Object(one), Value::Object(other)) => {
                let counted = |map: &serde_json::Map<String, Value>| map.keys().filter(|k| !skipped(depth, k)).count();
                counted(one) == counted(other)
                    && one.iter().filter(|(name, _)| !skipped(depth, name)).all(|(name, value)| {
                        other.get(name).is_some_and(|other| alike(value, other, depth + 1, skipped))
                    })
            }
            (Value::Array(one), Value::Array(other)) => {
                one.len() == other.len() && one.iter().zip(other).all(|(a, b)| alike(a, b, depth, skipped))
            }
            _ => one == other,
        }
    }
    alike(one, other, 0, skipped)
}

/// Whether a client asks to forget all managers: one entry that says nothing.
fn is_reset(list: &Value) -> bool {
    matches!(list.as_array().map(Vec::as_slice), Some([Value::Object(entry)]) if entry.is_empty())
}

/// A manager of the resource's version.
fn manager(resource: &Resource, name: &str, operation: Operation, subresource: &str) -> Manager {
    Manager {
        operation,
        name: name.to_owned(),
        api_version: resource.api_version(),
        subresource: subresource.to_owned(),
    }
}

/// What a write through this subresource cannot change.
fn ignored(resource: &Resource, subresource: &str) -> FieldSet {
    match subresource {
        "status" if resource.group.is_empty() && resource.kind == "Pod" => {
            FieldSet::of_paths(&[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]])
        }
        "status" => FieldSet::of_paths(&[&["spec"]]),
        _ if resource.has_status() => FieldSet::of_paths(&[&["status"]]),
        _ => FieldSet::default(),
    }
}

/// An object of the kind that nobody has written anything into.
fn empty(resource: &Resource) -> Value {
    let mut object = json!({"apiVersion": resource.api_version(), "kind": resource.kind, "metadata": {}});
    decode::normalize(resource, &mut object);
    object
}

/// Takes a field out of an object's metadata.
fn take_metadata(object: &mut Value, name: &str) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove(name)
}

/// Puts the managers into an object.
fn put_managers(object: &mut Value, managers: &Managers) {
    if !managers.is_empty() {
        object["metadata"]["managedFields"] = managers.to_value();
    }
}

/// Checks what a manager wants before anything is merged.
fn check_config(resource: &Resource, config: &Value) -> Result<(), Status> {
    if !config.is_object() {
        return Err(Status::bad_request("the configuration to apply must be an object"));
    }
    let version = config["apiVersion"].as_str().unwrap_or_default();
    let expected = resource.api_version();
    if version != expected {
        return Err(Status::bad_request(format!(
            "Incorrect version specified in apply patch. Specified patch version: {version}, expected: {expected}"
        )));
    }
    let kind = config["kind"].as_str().unwrap_or_default();
    if kind != resource.kind {
        return Err(Status::bad_request(format!(
            "Incorrect kind specified in apply patch. Specified patch kind: {kind}, expected: {}",
            resource.kind
        )));
    }
    if config.pointer("/metadata/managedFields").is_some_and(|list| !list.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    Ok(())
}

/// The answer to an apply that was not done.
fn answer(config: &Value, error: managed::Error) -> Status {
    match error {
        managed::Error::Conflicts(ref conflicts) => {
            let mut status = Status::new(409, "Conflict", error.to_string()).with_details(Details::default());
            for conflict in conflicts {
                let message = format!("conflict with {}", conflict.manager);
                status = status.with_cause("FieldManagerConflict", message, &conflict.field);
            }
            status
        }
        managed::Error::Config(why) => {
            let text = |pointer: &str| config.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            Status::bad_request(format!(
                "failed to create typed patch object ({}/{}; {}, Kind={}): {why}",
                text("/metadata/namespace"),
                text("/metadata/name"),
                text("/apiVersion"),
                text("/kind")
            ))
        }
        managed::Error::Managers(why) => Status::bad_request(format!("metadata.managedFields: {why}")),
    }
}

/// What the objects of a resource merge by.
fn types(resource: &Resource) -> Box<dyn TypeSchema + '_> {
    match &resource.custom {
        Some(custom) => Box::new(structural::Types::new(&custom.schema)),
        None => Box::new(Types::named(&resource.type_name)),
    }
}

/// The schema as the crate `patch` asks for it. A place is a field of a struct, or a type that no
/// field says anything about.
pub(crate) struct Types {
    schema: &'static Schema,
    root: Option<NodeId>,
}

impl Types {
    /// The type of this name and those that it refers to.
    pub(crate) fn named(type_name: &str) -> Self {
        let schema = Schema::builtin();
        Types { schema, root: schema.find(type_name) }
    }

    /// The place of the whole, if its type is known.
    pub(crate) fn known_root(&self) -> Option<Place> {
        self.root.map(plain)
    }

    /// The type at a place, and the field that holds it.
    fn resolve(&self, place: Place) -> Option<(NodeId, Option<&Field>)> {
        let (owner, index) = ((place.0 >> 32) as u32, place.0 as u32);
        match owner.checked_sub(1) {
            None => ((index as usize) < self.schema.len()).then_some((NodeId(index), None)),
            Some(owner) => {
                let field = self.schema.as_struct(NodeId(owner))?.fields.get(index as usize)?;
                Some((field.node, Some(field)))
            }
        }
    }
}

/// The place of a type that no field says anything about.
fn plain(node: NodeId) -> Place {
    Place(u64::from(node.0))
}

impl TypeSchema for Types {
    fn root(&self) -> Place {
        self.root.map_or(Place(u64::from(u32::MAX)), plain)
    }

    fn shape(&self, place: Place) -> Shape<'_> {
        let Some((node, field)) = self.resolve(place) else { return Shape::Leaf };
        let is_atomic = |by_type| field.and_then(|f| f.atomic).unwrap_or(by_type);
        match self.schema.node(node) {
            Node::Struct(s) if !is_atomic(s.atomic) => Shape::Struct,
            Node::Map(value) if !is_atomic(false) => Shape::Map(plain(*value)),
            Node::List(item) => match field.and_then(|f| f.list.as_ref()) {
                Some(ListType::Set) => Shape::Set,
                Some(ListType::Map(keys)) => {
                    let default = |key: &str| self.schema.as_struct(*item)?.field(key)?.default.clone();
                    Shape::Keyed(plain(*item), keys.iter().map(|key| (key.clone(), default(key))).collect())
                }
                _ => Shape::Leaf,
            },
            _ => Shape::Leaf,
        }
    }

    fn field(&self, place: Place, name: &str) -> Option<Place> {
        let (node, _) = self.resolve(place)?;
        let s = self.schema.as_struct(node)?;
        let index = s.fields.binary_search_by(|f| f.name.as_ref().cmp(name)).ok()?;
        Some(Place((u64::from(node.0) + 1) << 32 | index as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Registry;

    /// A configuration of a config map.
    fn config(data: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data})
    }

    /// Applies to a config map.
    fn applied(live: Option<&Value>, config: Value, name: &str) -> Result<Value, Status> {
        let maps = Registry::builtin().find("", "v1", "configmaps").unwrap();
        let change = Change { manager: name, subresource: "", now: "2021-01-01T00:00:00Z" };
        apply(&maps, live, config, &change, false)
    }

    #[test]
    fn a_conflict_names_field_and_manager() {
        let live = applied(None, config(json!({"a": "1"})), "alice").unwrap();
        let status = applied(Some(&live), config(json!({"a": "2"})), "bob").unwrap_err();
        let answer = status.to_value();
        assert_eq!(status.code, 409);
        assert_eq!(
            answer["details"]["causes"],
            json!([{"reason": "FieldManagerConflict", "message": "conflict with \"alice\"", "field": ".data.a"}])
        );
    }

    #[test]
    fn objects_without_managers_get_one_for_what_is_there() {
        let live =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "uid": "u"}, "data": {"a": "1"}});
        let new = applied(Some(&live), config(json!({"b": "1"})), "alice").unwrap();
        let list = &new["metadata"]["managedFields"];
        assert_eq!(list[1]["manager"], "before-first-apply");
        assert_eq!(list[1]["fieldsV1"], json!({"f:data": {".": {}, "f:a": {}}}));
    }

    #[test]
    fn configurations_are_checked_first() {
        for (config, text) in [
            (json!([1]), "must be an object"),
            (json!({"kind": "ConfigMap"}), "Incorrect version"),
            (json!({"apiVersion": "v1"}), "Incorrect kind"),
            (json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"managedFields": []}}), "must be nil"),
            (json!({"apiVersion": "v1", "kind": "ConfigMap", "bogus": 1}), ".bogus: field not declared in schema"),
        ] {
            let status = applied(None, config, "alice").unwrap_err();
            assert!(status.code == 400 && status.message.contains(text), "{status}");
        }
    }

    #[test]
    fn untracked_objects_stay_so() {
        let maps = Registry::builtin().find("", "v1", "configmaps").unwrap();
        let change = Change { manager: "m", subresource: "", now: "2021-01-01T00:00:00Z" };
        let live = json!({"metadata": {"name": "c"}, "data": {"a": "1"}});
        let mut new = json!({"metadata": {"name": "c"}, "data": {"a": "2"}});
        track(&maps, Some(&live), &mut new, &change);
        assert!(new["metadata"].get("managedFields").is_none());
        track(&maps, None, &mut new, &change);
        assert_eq!(new["metadata"]["managedFields"][0]["fieldsV1"], json!({"f:data": {".": {}, "f:a": {}}}));
    }

    /// Tracks an update of a config map's data.
    fn updated(live: &Value, list: Value, subresource: &str) -> Value {
        let maps = Registry::builtin().find("", "v1", "configmaps").unwrap();
        let change = Change { manager: "m", subresource, now: "2022-02-02T00:00:00Z" };
        let mut new = live.clone();
        new["data"]["a"] = "2".into();
        new["metadata"]["managedFields"] = list;
        track(&maps, Some(live), &mut new, &change);
        new["metadata"]["managedFields"].clone()
    }

    #[test]
    fn clients_write_managers_but_not_by_accident_and_not_through_subresources() {
        let live = applied(None, config(json!({"a": "1", "b": "1"})), "alice").unwrap();
        let known = live["metadata"]["managedFields"].clone();
        let names = |list: &Value| -> Vec<String> {
            list.as_array().into_iter().flatten().map(|e| e["manager"].as_str().unwrap().to_owned()).collect()
        };
        // What a client does not know, cannot read or leaves out stays; one empty entry takes it off.
        for list in [Value::Null, json!([]), json!([{"operation": "Dance"}]), known.clone()] {
            assert_eq!(names(&updated(&live, list.clone(), "")), ["alice", "m"], "{list}");
        }
        assert_eq!(updated(&live, json!([{}]), ""), Value::Null);
        assert_eq!(names(&updated(&live, json!([{}]), "status")), ["alice", "m"]);
        let mut renamed = known;
        renamed[0]["manager"] = "bob".into();
        assert_eq!(names(&updated(&live, renamed, "")), ["bob", "m"]);
    }

    #[test]
    fn what_changes_only_times_changes_nothing() {
        let old = applied(None, config(json!({"a": "1"})), "alice").unwrap();
        let mut new = old.clone();
        new["metadata"]["managedFields"][0]["time"] = "2030-01-01T00:00:00Z".into();
        let mut other = new.clone();
        keep_if_unchanged(&mut new, &old);
        assert_eq!(new, old);
        other["data"]["a"] = "2".into();
        keep_if_unchanged(&mut other, &old);
        assert_eq!(other["metadata"]["managedFields"][0]["time"], "2030-01-01T00:00:00Z");
    }
}
