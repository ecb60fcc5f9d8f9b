//! JSON patch, RFC 6902: a list of operations, each with a pointer (RFC 6901) to a place.

use std::borrow::Cow;

use serde_json::Value;

use crate::Error;

/// Most operations that one patch may hold.
pub const MAX_OPERATIONS: usize = 10_000;

/// Most values that `copy` operations of one patch may duplicate in sum; copying a list into
/// itself doubles it each time.
const MAX_COPIED: usize = 100_000;

/// Deepest nesting that a patch may bring about: recursion over a document must end.
const MAX_DEPTH: usize = 256;

/// Applies the operations of `patch` in order. Errors name the operation and its path.
pub fn apply(target: &mut Value, patch: &Value) -> Result<(), Error> {
    let Value::Array(operations) = patch else {
        return Err(Error::Malformed("a JSON patch must be a list of operations".to_owned()));
    };
    if operations.len() > MAX_OPERATIONS {
        return Err(Error::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    // Read all before carrying out any: a malformed patch is refused as such whatever the document.
    let operations =
        operations.iter().enumerate().map(|(i, value)| Operation::read(i, value)).collect::<Result<Vec<_>, _>>()?;
    let mut copied = 0;
    for operation in &operations {
        operation.carry_out(target, &mut copied)?;
    }
    Ok(())
}

/// One operation of a patch.
struct Operation<'a> {
    /// Position in the patch, for messages.
    index: usize,
    op: Op<'a>,
    path: Pointer<'a>,
}

/// What an operation does.
enum Op<'a> {
    Add(&'a Value),
    Remove,
    Replace(&'a Value),
    Move(Pointer<'a>),
    Copy(Pointer<'a>),
    Test(&'a Value),
}

impl<'a> Operation<'a> {
    /// Reads one member of a patch.
    fn read(index: usize, value: &'a Value) -> Result<Self, Error> {
        let malformed = |why: &str| Error::Malformed(format!("JSON patch operation {index}: {why}"));
        if !value.is_object() {
            return Err(malformed("is not an object"));
        }
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        let pointer = |name: &str| {
            let text = text(name).ok_or_else(|| malformed(&format!("{name:?} is missing or not a string")))?;
            Pointer::parse(text)
                .ok_or_else(|| malformed(&format!("{name:?} must be empty or begin with a slash, got {text:?}")))
        };
        let given = || value.get("value").ok_or_else(|| malformed("\"value\" is missing"));
        let name = text("op").ok_or_else(|| malformed("\"op\" is missing or not a string"))?;
        let op = match name {
            "add" => Op::Add(given()?),
            "remove" => Op::Remove,
            "replace" => Op::Replace(given()?),
            "move" => Op::Move(pointer("from")?),
            "copy" => Op::Copy(pointer("from")?),
            "test" => Op::Test(given()?),
            _ => return Err(malformed(&format!("unknown op {name:?}"))),
        };
        Ok(Operation { index, op, path: pointer("path")? })
    }

    /// Carries it out on `target`; `copied` counts what `copy` duplicated so far.
    fn carry_out(&self, target: &mut Value, copied: &mut usize) -> Result<(), Error> {
        match &self.op {
            Op::Add(value) => self.add(target, (*value).clone()),
            Op::Remove => self.remove(target, &self.path).map(drop),
            Op::Replace(value) => {
                self.check_depth(value)?;
                let place = self.path.find_mut(target).ok_or_else(|| self.absent(&self.path))?;
                *place = (*value).clone();
                Ok(())
            }
            Op::Move(from) => {
                if self.path.text != from.text && self.path.is_below(from) {
                    return Err(self.mismatch("a value cannot be moved into itself"));
                }
                let value = self.remove(target, from)?;
                self.add(target, value)
            }
            Op::Copy(from) => {
                let value = from.find(target).ok_or_else(|| self.absent(from))?.clone();
                *copied = copied.saturating_add(count(&value));
                if *copied > MAX_COPIED {
                    return Err(Error::TooLarge(format!(
                        "JSON patch operation {}: the copies of this patch hold more than {MAX_COPIED} values",
                        self.index
                    )));
                }
                self.add(target, value)
            }
            Op::Test(expected) => {
                let found = self.path.find(target).ok_or_else(|| self.absent(&self.path))?;
                if equal(found, expected) { Ok(()) } else { Err(self.mismatch("testing the value failed")) }
            }
        }
    }

    /// Puts a value at the operation's path.
    fn add(&self, target: &mut Value, value: Value) -> Result<(), Error> {
        self.check_depth(&value)?;
        let Some((parent, last)) = self.path.split() else {
            *target = value;
            return Ok(());
        };
        match parent.find_mut(target) {
            Some(Value::Object(object)) => {
                object.insert(last.into_owned(), value);
                Ok(())
            }
            Some(Value::Array(items)) => {
                let place = if last == "-" { Some(items.len()) } else { index(&last) };
                match place.filter(|place| *place <= items.len()) {
                    Some(place) => {
                        items.insert(place, value);
                        Ok(())
                    }
                    None => Err(self.absent(&self.path)),
                }
            }
            _ => Err(self.absent(&self.path)),
        }
    }

    /// Refuses a value that would make the document nest too deep at the operation's path.
    fn check_depth(&self, value: &Value) -> Result<(), Error> {
        if self.path.parts().count() + depth(value) <= MAX_DEPTH {
            return Ok(());
        }
        Err(Error::TooLarge(format!(
            "JSON patch operation {}: the document would nest deeper than {MAX_DEPTH} levels",
            self.index
        )))
    }

    /// Takes the value at `path` away.
    fn remove(&self, target: &mut Value, path: &Pointer<'_>) -> Result<Value, Error> {
        let Some((parent, last)) = path.split() else {
            return Ok(std::mem::take(target));
        };
        let removed = match parent.find_mut(target) {
            Some(Value::Object(object)) => object.remove(last.as_ref()),
            Some(Value::Array(items)) => {
                index(&last).filter(|place| *place < items.len()).map(|place| items.remove(place))
            }
            _ => None,
        };
        removed.ok_or_else(|| self.absent(path))
    }

    /// Name of the operation.
    fn name(&self) -> &'static str {
        match self.op {
            Op::Add(_) => "add",
            Op::Remove => "remove",
            Op::Replace(_) => "replace",
            Op::Move(_) => "move",
            Op::Copy(_) => "copy",
            Op::Test(_) => "test",
        }
    }

    /// The document has no such place.
    fn absent(&self, path: &Pointer<'_>) -> Error {
        self.mismatch(&format!("the document has no place {:?}", path.text))
    }

    /// The operation does not fit the document.
    fn mismatch(&self, why: &str) -> Error {
        Error::Mismatch(format!("JSON patch operation {} ({} {:?}): {why}", self.index, self.name(), self.path.text))
    }
}

/// A JSON pointer.
#[derive(Clone, Copy)]
struct Pointer<'a> {
    text: &'a str,
}

impl<'a> Pointer<'a> {
    /// A pointer is empty or begins with a slash.
    fn parse(text: &'a str) -> Option<Self> {
        (text.is_empty() || text.starts_with('/')).then_some(Pointer { text })
    }

    /// The pointer to the parent, and the last part unescaped; `None` for the whole document.
    fn split(&self) -> Option<(Pointer<'a>, Cow<'a, str>)> {
        let (parent, last) = self.text.rsplit_once('/')?;
        Some((Pointer { text: parent }, unescape(last)))
    }

    /// Whether this place lies in the value at `other`.
    fn is_below(&self, other: &Pointer<'_>) -> bool {
        self.text.strip_prefix(other.text).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The parts from the root, unescaped.
    fn parts(&self) -> impl Iterator<Item = Cow<'a, str>> + use<'a> {
        self.text.split('/').skip(1).map(unescape)
    }

    /// The value there.
    fn find<'v>(&self, document: &'v Value) -> Option<&'v Value> {
        self.parts().try_fold(document, |value, part| match value {
            Value::Object(object) => object.get(part.as_ref()),
            Value::Array(items) => items.get(index(&part)?),
            _ => None,
        })
    }

    /// The value there, to change it.
    fn find_mut<'v>(&self, document: &'v mut Value) -> Option<&'v mut Value> {
        self.parts().try_fold(document, |value, part| match value {
            Value::Object(object) => object.get_mut(part.as_ref()),
            Value::Array(items) => items.get_mut(index(&part)?),
            _ => None,
        })
    }
}

/// `~1` is a slash and `~0` a tilde.
fn unescape(part: &str) -> Cow<'_, str> {
    if part.contains('~') { Cow::Owned(part.replace("~1", "/").replace("~0", "~")) } else { Cow::Borrowed(part) }
}

/// A position in a list: digits without leading zeros.
fn index(part: &str) -> Option<usize> {
    let plain = part == "0" || (part.bytes().all(|b| b.is_ascii_digit()) && !part.starts_with('0'));
    plain.then(|| part.parse().ok()).flatten()
}

/// Whether two values are equal; numbers by value, so that 1 is 1.0.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        _ => a == b,
    }
}

/// How many values a value consists of.
fn count(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
        Value::Object(object) => 1 + object.values().map(count).sum::<usize>(),
        _ => 1,
    }
}

/// How deep a value nests.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(object) => 1 + object.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// The document after the patch.
    fn patched(mut document: Value, patch: Value) -> Result<Value, Error> {
        apply(&mut document, &patch).map(|()| document)
    }

    #[test]
    fn every_operation_does_its_work() {
        for (before, patch, after) in [
            (json!({"a": 1}), json!([{"op": "add", "path": "/b", "value": 2}]), json!({"a": 1, "b": 2})),
            (json!({"a": [1, 3]}), json!([{"op": "add", "path": "/a/1", "value": 2}]), json!({"a": [1, 2, 3]})),
            (json!({"a": [1]}), json!([{"op": "add", "path": "/a/-", "value": 2}]), json!({"a": [1, 2]})),
            (json!({"a": 1}), json!([{"op": "add", "path": "", "value": []}]), json!([])),
            (json!({"a": 1, "b": 2}), json!([{"op": "remove", "path": "/a"}]), json!({"b": 2})),
            (json!({"a": [1, 2]}), json!([{"op": "remove", "path": "/a/0"}]), json!({"a": [2]})),
            (json!({"a": 1}), json!([{"op": "replace", "path": "/a", "value": null}]), json!({"a": null})),
            (json!({"a": {"b": 1}}), json!([{"op": "move", "from": "/a/b", "path": "/c"}]), json!({"a": {}, "c": 1})),
            (json!({"a": [1]}), json!([{"op": "copy", "from": "/a", "path": "/b"}]), json!({"a": [1], "b": [1]})),
            (
                json!({"a/b": 1, "t~t": 2}),
                json!([{"op": "test", "path": "/a~1b", "value": 1.0},
                {"op": "replace", "path": "/t~0t", "value": 3}]),
                json!({"a/b": 1, "t~t": 3}),
            ),
            (json!({"": 1}), json!([{"op": "remove", "path": "/"}]), json!({})),
            (json!({"a": 1}), json!([]), json!({"a": 1})),
        ] {
            assert_eq!(patched(before, patch), Ok(after));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let error = patched(json!({"a": 1}), json!([{"op": "test", "path": "/a", "value": 2}])).unwrap_err();
        assert_eq!(error, Error::Mismatch("JSON patch operation 0 (test \"/a\"): testing the value failed".to_owned()));
        for patch in [
            json!([{"op": "replace", "path": "/b", "value": 1}]),
            json!([{"op": "remove", "path": "/b"}]),
            json!([{"op": "add", "path": "/b/c", "value": 1}]),
            json!([{"op": "add", "path": "/l/5", "value": 1}]),
            json!([{"op": "add", "path": "/l/01", "value": 1}]),
            json!([{"op": "copy", "from": "/b", "path": "/c"}]),
            json!([{"op": "test", "path": "/b", "value": 1}]),
            json!([{"op": "move", "from": "/o", "path": "/o/x"}]),
        ] {
            let result = patched(json!({"a": 1, "l": [1], "o": {}}), patch.clone());
            assert!(matches!(result, Err(Error::Mismatch(_))), "{patch}: {result:?}");
        }
    }

    #[test]
    fn malformed_patches_are_refused_before_anything_is_done() {
        for patch in [
            json!({"op": "add"}),
            json!([1]),
            json!([{"path": "/a"}]),
            json!([{"op": "add", "path": "/a"}]),
            json!([{"op": "add", "path": "a", "value": 1}]),
            json!([{"op": "move", "path": "/a"}]),
            json!([{"op": "remove", "path": "/missing"}, {"op": "explode", "path": "/a"}]),
        ] {
            let result = patched(json!({"a": 1}), patch.clone());
            assert!(matches!(result, Err(Error::Malformed(_))), "{patch}: {result:?}");
        }
    }

    #[test]
    fn doubling_copies_reach_a_limit() {
        let double = json!({"op": "copy", "from": "", "path": "/-"});
        let patch = Value::Array(vec![double; 64]);
        assert!(matches!(patched(json!([1]), patch), Err(Error::TooLarge(_))));
    }

    #[test]
    fn nesting_reaches_a_limit() {
        let deep = |level: usize| json!({"op": "copy", "from": "", "path": "/a".repeat(level)});
        let patch = Value::Array((0..9).map(|i| deep(1 << i)).collect());
        assert!(matches!(patched(json!({}), patch), Err(Error::TooLarge(_))));
    }

    #[test]
    fn too_many_operations_are_refused() {
        let patch = Value::Array(vec![json!({"op": "test", "path": "", "value": 1}); MAX_OPERATIONS + 1]);
        assert!(matches!(patched(json!(1), patch), Err(Error::TooLarge(_))));
    }

    proptest! {
        #[test]
        fn any_text_as_a_path_is_answered(path in "[/~a01-]{0,8}", op in "add|remove|replace|move|copy|test") {
            let patch = json!([{"op": op, "path": path, "from": path, "value": 1}]);
            let _ = patched(json!({"a": [0, {"": 1}], "~": 1}), patch);
        }

        #[test]
        fn an_added_field_is_removed_without_trace(key in "[a-z/~]{1,6}", value in any::<i32>()) {
            let path = format!("/{}", key.replace('~', "~0").replace('/', "~1"));
            let document = json!({"A": 1});
            let patch = json!([{"op": "add", "path": path, "value": value},
                {"op": "test", "path": path, "value": value}, {"op": "remove", "path": path}]);
            prop_assert_eq!(patched(document.clone(), patch), Ok(document));
        }
    }
}
