//! Quotas and limits of a namespace, kept for every object that comes or grows.
//!
//! A quota is charged in the transaction that writes the object: two requests never share the last of it. What is
//! given back (deleted objects, ended pods) the quota controller counts.

use api::amounts::{self, Amounts};
use api::status::Status;
use api::{limits, quota};
use serde_json::{Map, Value};
use tokio::sync::MutexGuard;

use crate::cache::store_key;
use crate::errors::Outcome;
use crate::handler::Call;
use crate::object::{self, Object};
use crate::verbs::create::text;
use crate::verbs::write::Extra;

/// How many namespaces with quotas are written to at once.
pub(crate) const TURNS: usize = 64;

/// Kinds whose updates can make them count for more.
const GROWING: [&str; 3] = ["persistentvolumeclaims", "pods", "services"];

/// Waits for the turn to create an object where a quota has to be charged. Those who charge one quota would only beat
/// each other to it, and one after the other is quicker.
pub(crate) async fn turn(call: &Call) -> Option<MutexGuard<'_, ()>> {
    if !call.resource.namespaced || ranges(call, "resourcequotas").is_empty() {
        return None;
    }
    let at = call.target.namespace.bytes().fold(0usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    Some(call.shared.quota_turns[at % TURNS].lock().await)
}

/// Fills in what a new pod leaves open and the namespace's limit ranges say.
pub(super) fn fill_in(call: &Call, pod: &mut Value) {
    for range in ranges(call, "limitranges") {
        limits::fill_in(&range.1, pod);
    }
}

/// Refuses what no limit range of the namespace allows.
pub(super) fn within_limits(call: &Call, object: &Value, name: &str) -> Outcome<()> {
    let plural = &*call.resource.plural;
    for (_, range) in ranges(call, "limitranges") {
        let why =
            if plural == "pods" { limits::refuse_pod(&range, object) } else { limits::refuse_claim(&range, object) };
        if let Some(why) = why {
            return Err(Box::new(Status::forbidden("", plural, name, why)));
        }
    }
    Ok(())
}

/// Charges every quota of the namespace that covers the object, or says which has no room.
pub(super) fn charge(call: &Call, new: &Value, old: Option<&Value>, extra: &mut Extra) -> Outcome<()> {
    let (group, plural) = (&*call.resource.group, &*call.resource.plural);
    if !call.resource.namespaced || (old.is_some() && !(group.is_empty() && GROWING.contains(&plural))) {
        return Ok(());
    }
    let quotas = ranges(call, "resourcequotas");
    if quotas.is_empty() {
        return Ok(());
    }
    let now = call.shared.ambient.now();
    let mut more = quota::usage(group, plural, new, now);
    if let Some(old) = old {
        let before = quota::usage(group, plural, old, now);
        more = more
            .into_iter()
            .map(|(name, amount)| {
                let rest = before.get(&name).map_or_else(|| amount.clone(), |was| amount.sub(was));
                (name, rest)
            })
            .filter(|(_, amount)| !amount.is_zero() && !amount.is_negative())
            .collect();
    }
    for (found, value) in quotas {
        if quota::covers(&value, group, plural, new) {
            charge_one(call, &found, value, &more, new, extra)?;
        }
    }
    Ok(())
}

/// Charges one quota.
fn charge_one(
    call: &Call,
    found: &Object,
    mut value: Value,
    more: &Amounts,
    new: &Value,
    extra: &mut Extra,
) -> Outcome<()> {
    let resource = &call.resource;
    let name = text(&value, "name").to_owned();
    let forbidden =
        |why: String| Box::new(Status::forbidden(&resource.group, &resource.plural, text(new, "name"), why));
    let hard = &value["spec"]["hard"];
    if resource.group.is_empty()
        && resource.plural == "pods"
        && let Some(why) = quota::unsaid(hard, new)
    {
        return Err(forbidden(format!("failed quota: {name}: {why}")));
    }
    let bounds = amounts::read(hard);
    if !more.keys().any(|key| bounds.contains_key(key)) {
        return Ok(());
    }
    let used = used_so_far(call, &value, &bounds);
    let after = quota::charge(&name, &bounds, &used, more).map_err(forbidden)?;
    if after == used {
        return Ok(());
    }
    let written: Map<String, Value> = after.into_iter().map(|(key, amount)| (key, amount.to_string().into())).collect();
    value["status"]["hard"] = value["spec"]["hard"].clone();
    value["status"]["used"] = Value::Object(written);
    let Some(shelf) = call.shared.cache.named("", "resourcequotas") else { return Ok(()) };
    let key = store_key(shelf.resource(), &call.target.namespace, &name);
    extra.unchanged(key.clone(), found.revision);
    extra.put(key, object::stored_bytes(value));
    Ok(())
}

/// What is used of a quota: as its status says; what that does not know yet is counted.
fn used_so_far(call: &Call, value: &Value, bounds: &Amounts) -> Amounts {
    let mut used = amounts::read(&value["status"]["used"]);
    used.retain(|name, _| bounds.contains_key(name));
    let unknown: Map<String, Value> = value["spec"]["hard"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| !used.contains_key(*name))
        .map(|(name, amount)| (name.clone(), amount.clone()))
        .collect();
    if unknown.is_empty() {
        return used;
    }
    let now = call.shared.ambient.now();
    let unknown = Value::Object(unknown);
    let mut open = value.clone();
    open["spec"]["hard"] = unknown.clone();
    for (group, plural) in quota::counted_kinds(&unknown) {
        let Some(shelf) = call.shared.cache.named(&group, &plural) else { continue };
        let objects: Vec<Value> =
            shelf.all(&call.target.namespace).iter().map(|object| object.value(shelf.resource())).collect();
        amounts::add(&mut used, &quota::total(&open, (&group, &plural), objects.iter(), now));
    }
    used
}

/// The namespace's objects of a kind of the core group.
fn ranges(call: &Call, plural: &str) -> Vec<(std::sync::Arc<Object>, Value)> {
    let Some(shelf) = call.shared.cache.named("", plural) else { return Vec::new() };
    let found = shelf.all(&call.target.namespace).into_iter();
    found.map(|object| (object.clone(), object.value(shelf.resource()))).collect()
}
