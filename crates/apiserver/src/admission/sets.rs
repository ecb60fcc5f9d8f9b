//! What a StatefulSet's annotations have the server add or refuse, where it takes more than the set itself to tell:
//! the finalizer of ordered deletion, protection, sizes, and ordinals that are reserved or released.

use api::beyond::{self, Asked};
use api::quantity::Quantity;
use api::status::{FieldError, Status};
use serde_json::Value;

use crate::errors::Outcome;
use crate::handler::Call;
use crate::respond;
use crate::verbs::create::{metadata, text};
use crate::verbs::options::Propagation;
use crate::verbs::write::Extra;

/// Ordinals that are looked at when they are reserved or released.
const ORDINALS_LIMIT: usize = 10_000;
/// Where the annotation of reserved ordinals is, for findings.
const RESERVED_PATH: &str = "metadata.annotations[statefuld.io/reserve-ordinals]";

/// A new set.
pub(super) fn create(object: &mut Value, extra: &mut Extra) {
    follow_deletion(object);
    warn_of_no_grace(object, extra);
}

/// A changed set.
pub(super) fn update(call: &Call, new: &mut Value, old: &Value, extra: &mut Extra) -> Outcome<()> {
    follow_deletion(new);
    if new["spec"]["template"] != old["spec"]["template"] {
        warn_of_no_grace(new, extra);
    }
    let (now, before) = (asked(new), asked(old));
    if now.protect == Some(true) {
        keeps_claims(call, new, old, &now, &before)?;
    }
    let mut errors = Vec::new();
    if now.reserved != before.reserved {
        reserving(call, new, &now, &before, &mut errors);
    }
    if now.expansion && new["spec"]["volumeClaimTemplates"] != old["spec"]["volumeClaimTemplates"] {
        sizes(call, new, old, &mut errors);
    }
    respond::invalid(&call.resource, text(new, "name"), errors)
}

/// Refuses the deletion of what is protected: a set unless its pods stay, a claim, a namespace that holds either.
pub(super) fn delete(call: &Call, object: &Value, propagation: Option<Propagation>) -> Outcome<()> {
    let (group, plural) = (&*call.resource.group, &*call.resource.plural);
    let refuse = |why: String| Err(Box::new(Status::forbidden(group, plural, text(object, "name"), why)));
    let remedy = "clear the annotation statefuld.io/protect first";
    match (group, plural) {
        ("apps", "statefulsets") if propagation == Some(Propagation::Orphan) => Ok(()),
        ("apps", "statefulsets") | ("", "persistentvolumeclaims") if is_protected(object) => {
            refuse(format!("it is protected; {remedy}"))
        }
        ("", "namespaces") if text(object, "deletionTimestamp").is_empty() => {
            let namespace = text(object, "name");
            for (group, plural) in [("apps", "statefulsets"), ("", "persistentvolumeclaims")] {
                let Some(shelf) = call.shared.cache.named(group, plural) else { continue };
                let all = shelf.all(namespace);
                let found = all.iter().find(|found| is_protected(&found.value(shelf.resource())));
                if let Some(found) = found {
                    return refuse(format!("its {plural}/{} is protected; {remedy}", found.key.name));
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A set that begins to go. Its pods stay under `orphan`, so there is nothing to order; else somebody should know
/// that nothing orders them. Tells whether it changed anything.
pub(super) fn leaves(call: &Call, object: &mut Value, propagation: Option<Propagation>, extra: &mut Extra) -> bool {
    if (&*call.resource.group, &*call.resource.plural) != ("apps", "statefulsets") {
        return false;
    }
    if propagation == Some(Propagation::Orphan) {
        return set_finalizer(object, false);
    }
    let pods = object["status"]["replicas"].as_i64().unwrap_or(0);
    if pods > 0 && text(object, "deletionTimestamp").is_empty() && !has_finalizer(object) {
        extra.warnings.push(format!(
            "the {pods} pods of {} are stopped in no order; to stop them one after another, annotate the set with \
             statefuld.io/deletion=ordered before it is deleted",
            text(object, "name")
        ));
    }
    false
}

/// Whether the object carries the annotation of protection.
fn is_protected(object: &Value) -> bool {
    object["metadata"]["annotations"][beyond::PROTECT] == "true"
}

fn asked(set: &Value) -> Asked {
    beyond::read(&set["metadata"]["annotations"]).0
}

/// The finalizer comes and goes with the annotation; it does not come back to a set that is going.
fn follow_deletion(object: &mut Value) {
    let ordered = asked(object).ordered_deletion;
    if !ordered || text(object, "deletionTimestamp").is_empty() {
        set_finalizer(object, ordered);
    }
}

fn has_finalizer(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|list| list.iter().any(|f| f == beyond::ORDERED_DELETION))
}

/// Adds the finalizer or takes it off; tells whether that changed anything.
fn set_finalizer(object: &mut Value, wanted: bool) -> bool {
    if has_finalizer(object) == wanted {
        return false;
    }
    let meta = metadata(object);
    let list = meta.entry("finalizers").or_insert_with(|| Value::Array(Vec::new()));
    if let Some(list) = list.as_array_mut() {
        list.retain(|f| f != beyond::ORDERED_DELETION);
        if wanted {
            list.push(beyond::ORDERED_DELETION.into());
        }
        if list.is_empty() {
            meta.remove("finalizers");
        }
    }
    true
}

/// A database that is killed at once on every restart deserves a word.
fn warn_of_no_grace(set: &Value, extra: &mut Extra) {
    let claims = set["spec"]["volumeClaimTemplates"].as_array().is_some_and(|c| !c.is_empty());
    if claims && set["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 0 {
        extra.warnings.push(
            "spec.template.spec.terminationGracePeriodSeconds: 0 kills pods that have claims without letting them \
             finish their writes; give them some seconds"
                .into(),
        );
    }
}

/// A protected set deletes no claims: not by scaling down, and its policy does not turn to Delete.
fn keeps_claims(call: &Call, new: &Value, old: &Value, now: &Asked, before: &Asked) -> Outcome<()> {
    let refuse = |why: &str| {
        let why = format!("it is protected: {why}; clear the annotation statefuld.io/protect first");
        Err(Box::new(Status::forbidden("apps", "statefulsets", text(new, "name"), why)))
    };
    let deletes = |set: &Value, when: &str| set["spec"]["persistentVolumeClaimRetentionPolicy"][when] == "Delete";
    for when in ["whenDeleted", "whenScaled"] {
        if deletes(new, when) && !deletes(old, when) {
            return refuse(&format!("spec.persistentVolumeClaimRetentionPolicy.{when} may not become Delete"));
        }
    }
    if !deletes(new, "whenScaled") || call.target.subresource == "status" {
        return Ok(());
    }
    let wanted: std::collections::HashSet<i32> = beyond::ordinals_of(&new["spec"], now).take(ORDINALS_LIMIT).collect();
    let dropped = beyond::ordinals_of(&old["spec"], before).take(ORDINALS_LIMIT).find(|n| !wanted.contains(n));
    let reserved = |n: i32| now.reserved.iter().any(|(first, last)| (*first..=*last).contains(&n));
    match dropped.filter(|n| !reserved(*n)) {
        Some(ordinal) => refuse(&format!("scaling ordinal {ordinal} away would delete its claims")),
        None => Ok(()),
    }
}

/// One live ordinal is reserved at a time, and none is released whose old data would come back by accident.
fn reserving(call: &Call, set: &Value, now: &Asked, before: &Asked, errors: &mut Vec<FieldError>) {
    let contains = |ranges: &[(i32, i32)], n: i32| ranges.iter().any(|(first, last)| (*first..=*last).contains(&n));
    let ordinals = |ranges: &[(i32, i32)], not_in: &[(i32, i32)]| -> Vec<i32> {
        let all = ranges.iter().flat_map(|(first, last)| *first..=*last).take(ORDINALS_LIMIT);
        all.filter(|n| !contains(not_in, *n)).collect()
    };
    let (name, namespace) = (text(set, "name"), text(set, "namespace"));
    let find = |plural: &str, name: &str| {
        let found = call.shared.cache.get("", plural, namespace, name)?;
        Some(found.value(call.shared.cache.named("", plural)?.resource()))
    };
    let is_live = |n: &i32| find("pods", &format!("{name}-{n}")).is_some();
    let live: Vec<i32> = ordinals(&now.reserved, &before.reserved).into_iter().filter(is_live).collect();
    if live.len() > 1 {
        let why =
            format!("reserves {} ordinals that have pods, {live:?}; reserve one, wait, then the next", live.len());
        errors.push(FieldError::invalid(RESERVED_PATH, annotation(set), why));
    }
    for ordinal in ordinals(&before.reserved, &now.reserved) {
        for template in set["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten() {
            let claim = format!("{}-{name}-{ordinal}", template["metadata"]["name"].as_str().unwrap_or_default());
            let kept = find("persistentvolumeclaims", &claim);
            if kept.is_some_and(|c| c["metadata"]["annotations"][beyond::REUSE] != "true") {
                let why = format!(
                    "releases ordinal {ordinal}, whose claim {claim} was kept; delete it, or annotate it \
                     statefuld.io/reuse=true to use its data again"
                );
                errors.push(FieldError::invalid(RESERVED_PATH, annotation(set), why));
            }
        }
    }
}

fn annotation(set: &Value) -> String {
    set["metadata"]["annotations"][beyond::RESERVE_ORDINALS].as_str().unwrap_or_default().to_owned()
}

/// A template grows only where its class lets it, and shrinks only to what its claims have.
fn sizes(call: &Call, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let size = |template: &Value| parse(&template["spec"]["resources"]["requests"]["storage"]);
    let before = old["spec"]["volumeClaimTemplates"].as_array().cloned().unwrap_or_default();
    for (index, template) in new["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten().enumerate() {
        let name = &template["metadata"]["name"];
        let was = before.iter().find(|t| t["metadata"]["name"] == *name);
        let (Some(now), Some(was)) = (size(template), was.and_then(size)) else { continue };
        let path = format!("spec.volumeClaimTemplates[{index}].spec.resources.requests.storage");
        if now > was && !may_grow(call, template["spec"]["storageClassName"].as_str()) {
            let why = "its storage class does not allow volumes to grow (allowVolumeExpansion)";
            errors.push(FieldError::forbidden(path, why));
        } else if now < was
            && let Some(claim) = larger(call, new, name.as_str().unwrap_or_default(), &now)
        {
            let why = format!("may not be less than what claim {claim} has already");
            errors.push(FieldError::forbidden(path, why));
        }
    }
}

fn parse(quantity: &Value) -> Option<Quantity> {
    Quantity::parse(quantity.as_str()?).ok()
}

/// A claim of the template that has more than this.
fn larger(call: &Call, set: &Value, template: &str, size: &Quantity) -> Option<String> {
    let shelf = call.shared.cache.named("", "persistentvolumeclaims")?;
    let stem = format!("{template}-{}-", text(set, "name"));
    let all = shelf.all(text(set, "namespace"));
    let own = all.iter().filter(|c| {
        c.key.name.strip_prefix(&*stem).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    });
    own.filter(|c| parse(&c.value(shelf.resource())["status"]["capacity"]["storage"]).is_some_and(|has| has > *size))
        .map(|c| c.key.name.to_string())
        .next()
}

/// Whether volumes of a class may grow; of the default one if none is named.
pub(super) fn may_grow(call: &Call, class: Option<&str>) -> bool {
    let name = class.map(str::to_owned).or_else(|| super::claims::default_class(call));
    let allows = |name: String| {
        let shelf = call.shared.cache.named("storage.k8s.io", "storageclasses")?;
        let class = call.shared.cache.get("storage.k8s.io", "storageclasses", "", &name)?;
        Some(class.value(shelf.resource())["allowVolumeExpansion"] == true)
    };
    name.and_then(allows).unwrap_or(false)
}
