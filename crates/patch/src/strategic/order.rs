//! The order of merged lists: items that the patch names stand in the patch's order, items that
//! only the server has keep theirs, and both are interleaved by where they stood before.

use serde_json::Value;

use crate::Error;

/// Brings `merged` into order. `wanted` is the patch's order, `before` the list as it was; `key`
/// tells items apart, scalars by themselves.
pub(super) fn arrange(
    merged: Vec<Value>,
    wanted: &[Value],
    before: &[Value],
    key: Option<&str>,
) -> Result<Vec<Value>, Error> {
    if let Some(key) = key {
        for item in merged.iter().chain(wanted) {
            key_of(item, key)?;
        }
    }
    let (mut named, mut server_only): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| position(wanted, item, key).is_some());
    named.sort_by_key(|item| position(wanted, item, key).unwrap_or(usize::MAX));
    server_only.sort_by_key(|item| position(before, item, key).unwrap_or(usize::MAX));
    Ok(interleave(server_only, named, before, key))
}

/// Merges two sorted lists: a server's item goes first only where both stood in the old list, in
/// that order.
fn interleave(server_only: Vec<Value>, named: Vec<Value>, before: &[Value], key: Option<&str>) -> Vec<Value> {
    let mut out = Vec::with_capacity(server_only.len() + named.len());
    let mut left = server_only.into_iter().peekable();
    let mut right = named.into_iter().peekable();
    loop {
        let take_left = match (left.peek(), right.peek()) {
            (None, None) => return out,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(l), Some(r)) => match (position(before, l, key), position(before, r, key)) {
                (Some(l), Some(r)) => l < r,
                _ => false,
            },
        };
        out.extend(if take_left { left.next() } else { right.next() });
    }
}

/// Checks that the patched items stand in the order that `$setElementOrder` names.
pub(super) fn check_consistent(name: &str, patch: &[Value], wanted: &[Value], key: Option<&str>) -> Result<(), Error> {
    let mut rest = wanted.iter();
    let plain = patch.iter().filter(|item| item.get("$patch").is_none());
    for item in plain {
        if let Some(key) = key {
            key_of(item, key)?;
        }
        if !rest.any(|w| same(w, item, key)) {
            return Err(Error::Malformed(format!(
                "the order in the patch of list {name} does not match its $setElementOrder list"
            )));
        }
    }
    Ok(())
}

/// The value that tells this item apart.
pub(super) fn key_of<'a>(item: &'a Value, key: &str) -> Result<&'a Value, Error> {
    item.get(key).ok_or_else(|| Error::Malformed(format!("map: {item} does not contain declared merge key: {key}")))
}

/// Where an item stands in a list.
fn position(list: &[Value], item: &Value, key: Option<&str>) -> Option<usize> {
    list.iter().position(|other| same(other, item, key))
}

/// Whether two items are about the same thing.
fn same(a: &Value, b: &Value, key: Option<&str>) -> bool {
    match key {
        Some(key) => a.get(key).is_some() && a.get(key) == b.get(key),
        None => a == b,
    }
}
