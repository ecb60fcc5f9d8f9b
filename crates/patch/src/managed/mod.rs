//! Server-side apply: who manages which fields of an object, and what happens when a manager says
//! what it wants.
//!
//! Every entry of `metadata.managedFields` is a [`Manager`] with the set of fields that it
//! manages. [`apply`] merges what a manager wants into the object, refuses to change fields of
//! others unless forced, and removes what this manager wanted before, wants no more, and nobody
//! else manages. [`update`] notes what any other write changed: the writer manages it from then.
//!
//! ```text
//! apply:   live ─merge─ config ─▶ merged ─prune(last set)─▶ new ─compare(live)─▶ conflicts?
//! update:  live ─compare─ new ─▶ added, modified: mine; removed: nobody's
//! ```
//!
//! What lists and maps merge by comes from the caller's [`TypeSchema`].

mod fields;
mod typed;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

pub use fields::FieldSet;
use typed::Typed;
pub use typed::{Place, Shape, TypeSchema};

/// Most managers by update that an object carries; the oldest are merged beyond it.
const MAX_UPDATE_MANAGERS: usize = 10;

/// Name of the manager that older updates are merged into.
const ANCIENT_CHANGES: &str = "ancient-changes";

/// How a manager writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// It says what it wants.
    Apply,
    /// It writes objects.
    Update,
}

/// Who manages fields.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Manager {
    /// How it writes.
    pub operation: Operation,
    /// Its name, such as `kubectl`.
    pub name: String,
    /// Group and version in which it knows the object.
    pub api_version: String,
    /// The subresource that it writes through; empty for the object itself.
    pub subresource: String,
}

/// The managers of an object.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Managers {
    entries: BTreeMap<Manager, Entry>,
}

/// What a manager manages.
#[derive(Debug, Clone, Default, PartialEq)]
struct Entry {
    time: Option<String>,
    fields: FieldSet,
}

/// A field that another manager manages and that an apply would change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The other manager.
    pub manager: Manager,
    /// Path, such as `.spec.replicas`.
    pub field: String,
}

impl Managers {
    /// Reads `metadata.managedFields`; null or absent is nobody.
    pub fn parse(list: &Value) -> Result<Self, Error> {
        let mut managers = Managers::default();
        for (index, value) in list.as_array().into_iter().flatten().enumerate() {
            let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            let operation = match text("operation").as_str() {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                other => return Err(Error::Managers(format!("entry {index} has the unknown operation {other:?}"))),
            };
            let fields =
                value.get("fieldsV1").filter(|v| !v.is_null()).map_or(Some(FieldSet::default()), FieldSet::parse);
            let fields = fields.ok_or_else(|| Error::Managers(format!("entry {index} has malformed fieldsV1")))?;
            let time = value.get("time").and_then(Value::as_str).map(str::to_owned);
            let (name, api_version, subresource) = (text("manager"), text("apiVersion"), text("subresource"));
            let entry = managers.entries.entry(Manager { operation, name, api_version, subresource });
            let entry = entry.or_default();
            entry.fields = std::mem::take(&mut entry.fields).union(&fields);
            entry.time = entry.time.take().max(time);
        }
        Ok(managers)
    }

    /// Writes `metadata.managedFields`: appliers first, then by time and name.
    pub fn to_value(&self) -> Value {
        let mut entries: Vec<(&Manager, &Entry)> = self.entries.iter().collect();
        entries.sort_by(|(a, one), (b, other)| {
            (a.operation, &one.time, &a.name, &a.api_version, &a.subresource).cmp(&(
                b.operation,
                &other.time,
                &b.name,
                &b.api_version,
                &b.subresource,
            ))
        });
        entries.into_iter().map(|(manager, entry)| entry.to_value(manager)).collect()
    }

    /// Whether nobody manages anything.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Gives a manager exactly these fields; the time changes if they do.
    fn set(&mut self, manager: &Manager, fields: FieldSet, now: &str) {
        match self.entries.get_mut(manager) {
            Some(entry) if entry.fields == fields => {}
            Some(entry) => *entry = Entry { time: Some(now.to_owned()), fields },
            None => {
                self.entries.insert(manager.clone(), Entry { time: Some(now.to_owned()), fields });
            }
        }
    }

    /// Takes fields away from everyone but `except`.
    fn release(&mut self, fields: &FieldSet, except: &Manager) {
        for (_, entry) in self.entries.iter_mut().filter(|(manager, _)| *manager != except) {
            entry.fields = entry.fields.difference(fields);
        }
    }

    /// Drops managers of nothing, and merges the oldest updates where there are too many: into one per version, once
    /// two of a version are to go.
    fn tidy(&mut self) {
        self.entries.retain(|_, entry| !entry.fields.is_empty());
        let mut updates: Vec<Manager> =
            self.entries.keys().filter(|m| m.operation == Operation::Update).cloned().collect();
        let mut left = updates.len();
        if left <= MAX_UPDATE_MANAGERS {
            return;
        }
        updates.sort_by_cached_key(|manager| (self.entries[manager].time.clone(), manager.clone()));
        let mut first_of: BTreeMap<String, Manager> = BTreeMap::new();
        for manager in updates {
            if left <= MAX_UPDATE_MANAGERS {
                return;
            }
            let bucket = Manager {
                operation: Operation::Update,
                name: ANCIENT_CHANGES.to_owned(),
                api_version: manager.api_version.clone(),
                subresource: String::new(),
            };
            let Some(first) = first_of.get(&manager.api_version) else {
                first_of.insert(manager.api_version.clone(), manager);
                continue;
            };
            if !self.entries.contains_key(&bucket)
                && let Some(entry) = self.entries.remove(first)
            {
                self.entries.insert(bucket.clone(), entry);
            }
            let Some(old) = self.entries.remove(&manager) else { continue };
            let entry = self.entries.entry(bucket).or_default();
            entry.fields = std::mem::take(&mut entry.fields).union(&old.fields);
            // The one that is merged is the younger.
            entry.time = old.time;
            left -= 1;
        }
    }
}

impl Entry {
    /// As it stands in the object.
    fn to_value(&self, manager: &Manager) -> Value {
        let operation = match manager.operation {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        };
        let mut out = Map::new();
        out.insert("manager".to_owned(), manager.name.as_str().into());
        out.insert("operation".to_owned(), operation.into());
        out.insert("apiVersion".to_owned(), manager.api_version.as_str().into());
        if let Some(time) = &self.time {
            out.insert("time".to_owned(), time.as_str().into());
        }
        out.insert("fieldsType".to_owned(), "FieldsV1".into());
        out.insert("fieldsV1".to_owned(), self.fields.to_value());
        if !manager.subresource.is_empty() {
            out.insert("subresource".to_owned(), manager.subresource.as_str().into());
        }
        Value::Object(out)
    }
}

/// Who writes, and when.
#[derive(Debug, Clone)]
pub struct Writer<'a> {
    /// The manager.
    pub manager: Manager,
    /// The time, as it is to stand in the object.
    pub now: &'a str,
    /// Fields that this write cannot change, such as `status` outside of its subresource.
    pub ignored: &'a FieldSet,
}

/// Applies what a manager wants to the object as it is. Gives the object as it should become and
/// its managers; neither object carries `metadata.managedFields`.
pub fn apply(
    live: &Value,
    config: &Value,
    mut managers: Managers,
    writer: &Writer<'_>,
    force: bool,
    schema: &dyn TypeSchema,
) -> Result<(Value, Managers), Error> {
    let typed = Typed { schema };
    let root = Some(schema.root());
    typed.check(root, config, "").map_err(Error::Config)?;
    let manager = &writer.manager;
    let last = last_applied(&managers, manager);
    let stated = typed.fields(root, config);
    let wanted = tracked(stated.clone(), writer);
    let merged = typed.merge(root, Some(live), Some(config)).unwrap_or_default();
    // A manager that applies is the same whatever version it applies in.
    managers.entries.retain(|m, _| !is_same_applier(m, manager) || m == manager);
    managers.set(manager, wanted, writer.now);
    let new = prune(&typed, &merged, &managers, &last, &stated).unwrap_or_else(|| json!({}));

    let difference = typed.compare(root, Some(live), Some(&new));
    let changed = difference.added.union(&difference.modified).without(writer.ignored);
    if let (true, Some(entry)) = (live != &new, managers.entries.get_mut(manager)) {
        entry.time = Some(writer.now.to_owned());
    }
    let mut conflicts = Vec::new();
    let mut contested = FieldSet::default();
    for (other, entry) in managers.entries.iter().filter(|(other, _)| *other != manager) {
        let both = entry.fields.intersection(&changed);
        conflicts.extend(both.paths().into_iter().map(|field| Conflict { manager: other.clone(), field }));
        contested = contested.union(&both);
    }
    if !conflicts.is_empty() && !force {
        return Err(Error::Conflicts(conflicts));
    }
    managers.release(&contested, manager);
    managers.release(&difference.removed, manager);
    managers.tidy();
    Ok((new, managers))
}

/// What a write other than an apply changed of what is tracked.
#[derive(Debug, Clone)]
pub struct Changes {
    /// Added or changed: the writer's from now on.
    changed: FieldSet,
    /// Gone: nobody's any longer.
    removed: FieldSet,
}

/// What a write that makes `live` into `new` changes; `None` if it is nothing that is tracked. Managers need not
/// be read then, which is why this is apart from [`Managers::note`].
pub fn changes(live: &Value, new: &Value, writer: &Writer<'_>, schema: &dyn TypeSchema) -> Option<Changes> {
    let typed = Typed { schema };
    let difference = typed.compare(Some(schema.root()), Some(live), Some(new));
    let changed = tracked(difference.added.union(&difference.modified), writer);
    let removed = tracked(difference.removed, writer);
    (!changed.is_empty() || !removed.is_empty()).then_some(Changes { changed, removed })
}

impl Managers {
    /// Notes who made these changes.
    pub fn note(&mut self, changes: &Changes, writer: &Writer<'_>) {
        let manager = &writer.manager;
        self.release(&changes.changed, manager);
        self.release(&changes.removed, manager);
        if let Some(own) = self.entries.get_mut(manager) {
            own.fields = own.fields.difference(&changes.removed);
        }
        if !changes.changed.is_empty() {
            let own = self.entries.entry(manager.clone()).or_default();
            own.fields = std::mem::take(&mut own.fields).union(&changes.changed);
            own.time = Some(writer.now.to_owned());
        }
        self.tidy();
    }
}

/// The part of a set that is tracked at all.
fn tracked(set: FieldSet, writer: &Writer<'_>) -> FieldSet {
    static HEADER: LazyLock<FieldSet> = LazyLock::new(|| {
        FieldSet::of_paths(&[
            &["apiVersion"],
            &["kind"],
            &["metadata", "name"],
            &["metadata", "namespace"],
            &["metadata", "creationTimestamp"],
            &["metadata", "selfLink"],
            &["metadata", "uid"],
            &["metadata", "clusterName"],
            &["metadata", "generation"],
            &["metadata", "managedFields"],
            &["metadata", "resourceVersion"],
        ])
    });
    let mut set = set.without(&HEADER).without(writer.ignored);
    if let Some(metadata) = set.children.get_mut("f:metadata") {
        metadata.member = false;
        if metadata.is_empty() {
            set.children.remove("f:metadata");
        }
    }
    set
}

/// What this manager applied last, in whatever version.
fn last_applied(managers: &Managers, manager: &Manager) -> FieldSet {
    managers
        .entries
        .iter()
        .filter(|(other, _)| is_same_applier(other, manager))
        .fold(FieldSet::default(), |all, (_, entry)| all.union(&entry.fields))
}

/// Whether two appliers are the same one.
fn is_same_applier(a: &Manager, b: &Manager) -> bool {
    a.operation == Operation::Apply && a.operation == b.operation && a.name == b.name && a.subresource == b.subresource
}

/// Removes what the manager applied last and nobody manages now. What the configuration states stays, also
/// where it is not tracked: the object's name keeps its metadata in place.
fn prune(typed: &Typed<'_>, merged: &Value, managers: &Managers, last: &FieldSet, stated: &FieldSet) -> Option<Value> {
    let root = Some(typed.schema.root());
    if last.is_empty() {
        return Some(merged.clone());
    }
    let last = typed.with_structs(root, last);
    let fields_of = |value: Option<&Value>| {
        value.map(|value| typed.with_structs(root, &typed.fields(root, value))).unwrap_or_default()
    };
    let all = fields_of(Some(merged));
    // Take away all that was applied last, then find what is gone with it that somebody manages.
    let pruned = typed.remove(root, merged, &last);
    let managed = managers.entries.values().fold(stated.clone(), |all, entry| all.union(&entry.fields));
    let kept = fields_of(pruned.as_ref()).union(&typed.with_structs(root, &managed));
    let pruned = typed.remove(root, merged, &all.difference(&kept));
    // What nobody managed, and only went because it lay below, stays.
    let gone = all.difference(&fields_of(pruned.as_ref())).intersection(&last);
    typed.remove(root, merged, &gone)
}

/// Why an apply was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// What the manager wants is not of the object's form: correct the configuration.
    #[error("{0}")]
    Config(String),
    /// The object's managers cannot be read: clear `metadata.managedFields`.
    #[error("metadata.managedFields: {0}")]
    Managers(String),
    /// Others manage fields that would change: leave them out, agree on the value, or force.
    #[error("{}", conflict_text(.0))]
    Conflicts(Vec<Conflict>),
}

impl std::fmt::Display for Manager {
    /// As conflicts name it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.name)?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {:?}", self.subresource)?;
        }
        match self.operation {
            Operation::Apply => Ok(()),
            Operation::Update => write!(f, " using {}", self.api_version),
        }
    }
}

/// All conflicts in one text, by manager.
fn conflict_text(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", one.manager, one.field);
    }
    let mut lines = Vec::new();
    let mut current = None;
    for conflict in conflicts {
        if current != Some(&conflict.manager) {
            lines.push(format!("conflicts with {}:", conflict.manager));
            current = Some(&conflict.manager);
        }
        lines.push(format!("- {}", conflict.field));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

#[cfg(test)]
mod tests;
