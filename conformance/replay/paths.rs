//! Values by path: `a.b[0].c`, `[*]` for every item; a key with dots stands in brackets.

use serde_json::Value;

/// The parts of a path.
fn parts(path: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        let end = match rest.strip_prefix('[') {
            Some(inner) => inner.find(']').map_or(rest.len(), |at| at + 2),
            None => rest.find(['.', '[']).unwrap_or(rest.len()),
        };
        let (part, after) = rest.split_at(end);
        if !part.is_empty() {
            parts.push(part);
        }
        rest = after.strip_prefix('.').unwrap_or(after);
    }
    parts
}

/// Every value at a path.
pub(super) fn find<'a>(value: &'a Value, path: &str) -> Vec<&'a Value> {
    let mut found = vec![value];
    for part in parts(path) {
        found = found.into_iter().flat_map(|value| step(value, part)).collect();
    }
    found
}

/// The values that one part leads to.
fn step<'a>(value: &'a Value, part: &str) -> Vec<&'a Value> {
    match part.strip_prefix('[').and_then(|p| p.strip_suffix(']')) {
        Some("*") => value.as_array().into_iter().flatten().collect(),
        Some(index) => index.parse::<usize>().ok().and_then(|at| value.get(at)).into_iter().collect(),
        None => value.get(part).into_iter().collect(),
    }
}

/// Changes every value at a path.
pub(super) fn change(value: &mut Value, path: &str, how: &dyn Fn(&mut Value)) {
    fn go(value: &mut Value, parts: &[&str], how: &dyn Fn(&mut Value)) {
        let Some((part, rest)) = parts.split_first() else { return how(value) };
        match part.strip_prefix('[').and_then(|p| p.strip_suffix(']')) {
            Some("*") => value.as_array_mut().into_iter().flatten().for_each(|item| go(item, rest, how)),
            Some(index) => {
                if let Some(item) = index.parse::<usize>().ok().and_then(|at| value.get_mut(at)) {
                    go(item, rest, how);
                }
            }
            None => {
                if let Some(member) = value.get_mut(*part) {
                    go(member, rest, how);
                }
            }
        }
    }
    go(value, &parts(path), how);
}

/// Removes every value at a path.
pub(super) fn remove(value: &mut Value, path: &str) {
    let (holder, last) = path.rsplit_once('.').unwrap_or(("", path));
    change(value, holder, &|holder| {
        if let Some(map) = holder.as_object_mut() {
            map.remove(last);
        }
    });
}
