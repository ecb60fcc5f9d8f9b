//! Values made from seeds: valid ones along the schema, hostile ones, and mutations of both.

use serde_json::{Map, Value};
use statefuld_api::schema::{Node, NodeId, Schema};

/// Deepest nesting of generated values.
const DEPTH: usize = 12;
/// What a type within itself counts for: such trees grow fast.
const AGAIN: usize = 5;

/// Texts that have caused trouble somewhere.
const HOSTILE: [&str; 24] = [
    "",
    " ",
    "\0",
    "a\u{0}b",
    "-",
    ".",
    "..",
    "/",
    "a/b/c",
    "%",
    "%zz",
    "ünïcödé",
    "\u{202e}",
    "\u{10ffff}",
    "NaN",
    "1e999",
    "-9223372036854775809",
    "18446744073709551616",
    "9e18Ei",
    "0x10",
    "{}",
    "[]",
    "$patch",
    "xn--",
];

/// A source of numbers: the same seed gives the same ones.
pub(crate) struct Rng(u64);

impl Rng {
    /// From a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Whether something with one chance in `n` happens.
    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of these.
    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// A short word.
    pub(crate) fn word(&mut self) -> String {
        (0..=self.below(8)).map(|_| char::from(b'a' + self.below(26) as u8)).collect()
    }

    /// A text, now and then a hostile one.
    pub(crate) fn text(&mut self) -> String {
        match self.below(8) {
            0 => (*self.pick(&HOSTILE)).to_owned(),
            1 => format!("{}.{}/{}", self.word(), self.word(), self.word()),
            2 => self.next().to_string(),
            3 => "x".repeat(self.below(300)),
            _ => self.word(),
        }
    }

    /// A number of 32 bits, small ones and borders first.
    pub(crate) fn int32(&mut self) -> i64 {
        match self.below(6) {
            0 => i64::from(i32::MIN),
            1 => i64::from(i32::MAX),
            2 => -1,
            3 => i64::from(self.next() as i32),
            _ => self.below(100) as i64,
        }
    }
}

/// A value that decodes as its type.
pub(crate) fn valid(schema: &Schema, id: NodeId, rng: &mut Rng, depth: usize) -> Value {
    match schema.node(id) {
        Node::Duration => format!("{}s", rng.below(10_000) as f64 / 100.0).into(),
        Node::String => rng.text().replace('\0', "").into(),
        Node::Enum(e) => e.values[rng.below(e.values.len())].as_ref().into(),
        Node::Bool => rng.one_in(2).into(),
        Node::Int32 => rng.int32().into(),
        Node::Int64 => if rng.one_in(4) { rng.next() as i64 } else { rng.int32() }.into(),
        Node::Number => (f64::from(rng.int32() as i32) / 8.0).into(),
        Node::OrBool(_) if rng.one_in(2) => rng.one_in(2).into(),
        // An empty list in a struct's place is nothing to the binary form, upstream too.
        Node::OrList(_, item) if rng.one_in(2) => {
            (0..=rng.below(2)).map(|_| valid(schema, *item, rng, depth + 1)).collect::<Vec<_>>().into()
        }
        Node::OrBool(inner) | Node::OrList(inner, _) => valid(schema, *inner, rng, depth + 1),
        Node::Bytes => (*rng.pick(&["", "Yg==", "AAECAwQF", "////"])).into(),
        Node::Quantity => quantity(rng).into(),
        Node::IntOrString => {
            if rng.one_in(2) {
                rng.int32().into()
            } else {
                rng.word().into()
            }
        }
        Node::Time => time(rng).into(),
        Node::MicroTime => format!("{}.{:06}Z", time(rng).trim_end_matches('Z'), rng.below(1_000_000)).into(),
        Node::FieldsV1 => serde_json::json!({"f:spec": {format!("f:{}", rng.word()): {}}}),
        Node::Raw => serde_json::json!({rng.word(): [rng.int32(), rng.text(), null, true, 1.5]}),
        Node::List(item) => {
            let len = if depth > DEPTH { 0 } else { rng.below(4) };
            (0..len).map(|_| valid(schema, *item, rng, depth + 1)).collect::<Vec<_>>().into()
        }
        Node::Map(inner) => {
            let len = if depth > DEPTH { 0 } else { rng.below(4) };
            let entries = (0..len).map(|_| (rng.word(), valid(schema, *inner, rng, depth + 1)));
            Value::Object(entries.collect::<Map<_, _>>())
        }
        Node::Struct(s) => {
            let mut object = Map::new();
            for field in &s.fields {
                let is_header = matches!(field.name.as_ref(), "apiVersion" | "kind") && field.proto.is_empty();
                if !is_header && depth <= DEPTH && !rng.one_in(3) {
                    let step = if is_within(schema, field.node, id) { AGAIN } else { 1 };
                    object.insert(field.name.to_string(), valid(schema, field.node, rng, depth + step));
                }
            }
            Value::Object(object)
        }
    }
}

/// Whether values of a type hold one of another directly, or in a list or map.
fn is_within(schema: &Schema, outer: NodeId, wanted: NodeId) -> bool {
    match schema.node(outer) {
        Node::List(inner) | Node::Map(inner) | Node::OrBool(inner) | Node::OrList(inner, _) => {
            is_within(schema, *inner, wanted)
        }
        _ => outer == wanted,
    }
}

/// An amount.
fn quantity(rng: &mut Rng) -> String {
    let suffix = *rng.pick(&["", "m", "k", "M", "G", "Ki", "Mi", "Gi", "Ti", "e3", "E-2", "u", "n"]);
    let sign = if rng.one_in(6) { "-" } else { "" };
    let fraction = if rng.one_in(3) { format!(".{}", rng.below(1000)) } else { String::new() };
    format!("{sign}{}{fraction}{suffix}", rng.below(100_000))
}

/// A time in whole seconds.
fn time(rng: &mut Rng) -> String {
    let second = rng.below(4_000_000_000) as i64 - 500_000_000;
    jiff::Timestamp::from_second(second).expect("within a few centuries").strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Any JSON at all.
pub(crate) fn any(rng: &mut Rng, depth: usize) -> Value {
    match rng.below(if depth > DEPTH { 5 } else { 8 }) {
        0 => Value::Null,
        1 => rng.one_in(2).into(),
        2 => rng.int32().into(),
        3 => (rng.next() as f64 / 1e3).into(),
        4 => rng.text().into(),
        5 => (0..rng.below(4)).map(|_| any(rng, depth + 1)).collect::<Vec<_>>().into(),
        _ => Value::Object((0..rng.below(5)).map(|_| (key(rng), any(rng, depth + 1))).collect()),
    }
}

/// A key, often one that means something.
fn key(rng: &mut Rng) -> String {
    const KNOWN: [&str; 18] = [
        "metadata",
        "name",
        "spec",
        "status",
        "labels",
        "containers",
        "ports",
        "env",
        "volumes",
        "$patch",
        "$retainKeys",
        "$setElementOrder/containers",
        "$deleteFromPrimitiveList/finalizers",
        "finalizers",
        "template",
        "data",
        "value",
        "key",
    ];
    if rng.one_in(2) { (*rng.pick(&KNOWN)).to_owned() } else { rng.text() }
}

/// Changes a value somewhere.
pub(crate) fn mutate(value: &mut Value, rng: &mut Rng) {
    match value {
        Value::Object(object) if !object.is_empty() && !rng.one_in(6) => {
            let at = rng.below(object.len());
            let name = object.keys().nth(at).cloned().expect("within the length");
            match rng.below(8) {
                0 => drop(object.remove(&name)),
                1 => drop(object.insert(key(rng), any(rng, DEPTH - 2))),
                2 => {
                    let moved = object.remove(&name).unwrap_or_default();
                    object.insert(key(rng), moved);
                }
                _ => mutate(object.get_mut(&name).expect("it is there"), rng),
            }
        }
        Value::Array(items) if !items.is_empty() && !rng.one_in(6) => {
            let at = rng.below(items.len());
            match rng.below(6) {
                0 => drop(items.remove(at)),
                1 => items.push(items[at].clone()),
                2 => items.insert(at, any(rng, DEPTH - 2)),
                _ => mutate(&mut items[at], rng),
            }
        }
        _ => *value = any(rng, DEPTH - 2),
    }
}

/// Changes bytes: flips, cuts, repeats, inserts.
pub(crate) fn scramble(bytes: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..=rng.below(4) {
        let at = rng.below(bytes.len() + 1);
        match rng.below(5) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, rng.next() as u8),
            2 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            3 if at < bytes.len() => drop(bytes.remove(at)),
            _ => {
                let part: Vec<u8> = bytes[at..].iter().take(rng.below(30)).copied().collect();
                bytes.extend(part);
            }
        }
    }
}
