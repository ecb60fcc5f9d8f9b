//! Who should own a claim. Retention is carried out by the garbage collector, by owner references:
//! a claim that the set owns goes with the set, one that its condemned pod owns goes with the pod.

use crate::types::{Claim, Owner, Retention, Set};

/// Owner references that a claim should have, if others than it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// All of them.
    pub(crate) owners: Vec<Owner>,
    /// Somebody else manages the claim, so that the policy is not applied.
    pub(crate) conflict: bool,
}

/// Owner references of a claim that is created for a wanted ordinal.
pub(crate) fn of_new(set: &Set) -> Vec<Owner> {
    match set.when_deleted {
        Retention::Delete => vec![set.as_owner()],
        Retention::Retain => Vec::new(),
    }
}

/// True if the claim belongs to an earlier pod of that name, which is gone or going: with
/// `whenScaled: Delete` the claim is about to go too and must not be used.
pub(crate) fn is_stale(set: &Set, claim: &Claim, pod: &str, uid: Option<&str>) -> bool {
    set.when_scaled == Retention::Delete && has_stale(claim, "v1", "Pod", pod, uid)
}

/// What to change about a claim's owners; none if they are as the policy says. `uid` is that of the pod,
/// if it exists; `condemned` says that its ordinal is not wanted.
pub(crate) fn change(set: &Set, claim: &Claim, pod: &str, uid: Option<&str>, condemned: bool) -> Option<Change> {
    // Owned by a namesake that is gone: the garbage collector is on its way, hands off.
    if has_stale(claim, &set.api_version, &set.kind, &set.name, Some(&set.uid))
        || has_stale(claim, "v1", "Pod", pod, uid)
    {
        return None;
    }
    let ours = |o: &Owner| o.uid == set.uid || Some(o.uid.as_str()) == uid;
    let others: Vec<Owner> = claim.owners.iter().filter(|o| !ours(o)).cloned().collect();
    if others.iter().any(|o| o.controller) {
        let change = Change { owners: others, conflict: true };
        return claim.owners.iter().any(ours).then_some(change);
    }
    let by_pod = set.when_scaled == Retention::Delete && condemned;
    let by_set = set.when_deleted == Retention::Delete && !by_pod;
    let has = |uid: &str| claim.owners.iter().any(|o| o.uid == uid);
    let right = has(&set.uid) == by_set
        && uid.is_none_or(|uid| has(uid) == by_pod)
        && claim.owners.iter().filter(|o| ours(o)).all(|o| o.controller);
    if right {
        return None;
    }
    let mut owners = others;
    if by_set {
        owners.push(set.as_owner());
    }
    if by_pod && let Some(uid) = uid {
        owners.push(Owner {
            api_version: "v1".into(),
            kind: "Pod".into(),
            name: pod.into(),
            uid: uid.into(),
            controller: true,
            block: true,
        });
    }
    Some(Change { owners, conflict: false })
}

fn has_stale(claim: &Claim, api_version: &str, kind: &str, name: &str, uid: Option<&str>) -> bool {
    let group = |v: &str| v.split_once('/').map_or(String::new(), |(g, _)| g.to_owned());
    claim.owners.iter().any(|o| {
        o.kind == kind && group(&o.api_version) == group(api_version) && o.name == name && Some(o.uid.as_str()) != uid
    })
}
