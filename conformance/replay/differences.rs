//! Where two answers differ, and which differences are intended.

use std::collections::HashSet;
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::Deserialize;
use serde_json::Value;

/// One place where two answers differ.
#[derive(Debug)]
pub(super) struct Difference {
    /// Where in the answer.
    pub(super) path: String,
    /// `missing`, `extra` or `differs`.
    pub(super) what: &'static str,
    /// What was recorded.
    pub(super) expected: Value,
    /// What was answered now.
    pub(super) actual: Value,
}

/// Every difference between two answers.
pub(super) fn between(expected: &Value, actual: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    compare(expected, actual, String::new(), &mut found);
    found
}

fn compare(expected: &Value, actual: &Value, path: String, found: &mut Vec<Difference>) {
    let mut note = |path, what, expected: &Value, actual: &Value| {
        found.push(Difference { path, what, expected: expected.clone(), actual: actual.clone() });
    };
    match (expected, actual) {
        (Value::Object(before), Value::Object(now)) => {
            let below = |key: &String| if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            for (key, value) in now.iter().filter(|(key, _)| !before.contains_key(*key)) {
                note(below(key), "extra", &Value::Null, value);
            }
            for (key, value) in before {
                match now.get(key) {
                    Some(other) => compare(value, other, below(key), found),
                    None => note_missing(found, below(key), value),
                }
            }
        }
        (Value::Array(before), Value::Array(now)) => {
            for at in 0..before.len().max(now.len()) {
                let below = format!("{path}[{at}]");
                match (before.get(at), now.get(at)) {
                    (Some(value), Some(other)) => compare(value, other, below, found),
                    (Some(value), None) => note_missing(found, below, value),
                    (None, other) => found.push(Difference {
                        path: below,
                        what: "extra",
                        expected: Value::Null,
                        actual: other.cloned().unwrap_or_default(),
                    }),
                }
            }
        }
        _ if expected == actual => {}
        _ => note(path, "differs", expected, actual),
    }
}

fn note_missing(found: &mut Vec<Difference>, path: String, expected: &Value) {
    found.push(Difference { path, what: "missing", expected: expected.clone(), actual: Value::Null });
}

/// The intended differences, from `differences.json`, and which of them there were in this run.
#[derive(Debug)]
pub(crate) struct Differences {
    file: File,
    used: Mutex<HashSet<usize>>,
}

/// What the file holds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    renamed: Vec<Renamed>,
    differences: Vec<Intended>,
}

/// An API version that is served under a newer name now.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Renamed {
    /// As recorded.
    pub(super) old: String,
    /// As it is now.
    pub(super) new: String,
    reason: String,
}

/// Answers that may differ from the recorded ones. `*` stands for anything; what is absent matches all.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Intended {
    scenario: Option<String>,
    step: Option<String>,
    path: Option<String>,
    what: Option<String>,
    /// Recorded text that must be there, where the path alone would excuse too much.
    expected: Option<String>,
    /// Text that must be there now.
    actual: Option<String>,
    reason: String,
}

impl Differences {
    /// The one list.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Differences> = OnceLock::new();
        SHARED.get_or_init(|| {
            let path = super::folder().join("differences.json");
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let file: File = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let reasons = file.differences.iter().map(|d| &d.reason).chain(file.renamed.iter().map(|r| &r.reason));
            reasons.for_each(|reason| assert!(!reason.trim().is_empty(), "a difference without a reason"));
            Self { file, used: Mutex::default() }
        })
    }

    /// API versions that have new names.
    pub(super) fn renamed(&self) -> &[Renamed] {
        &self.file.renamed
    }

    /// Whether a difference is intended.
    pub(super) fn excuse(&self, scenario: &str, step: &str, difference: &Difference) -> bool {
        let mut excused = false;
        for (at, entry) in self.file.differences.iter().enumerate() {
            let fits = [
                (&entry.scenario, scenario),
                (&entry.step, step),
                (&entry.path, &difference.path),
                (&entry.what, difference.what),
                (&entry.expected, &plain(&difference.expected)),
                (&entry.actual, &plain(&difference.actual)),
            ];
            if fits.iter().all(|(pattern, text)| pattern.as_ref().is_none_or(|pattern| matches(pattern, text))) {
                self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(at);
                excused = true;
            }
        }
        excused
    }

    /// Entries that excused nothing, after all scenarios ran.
    pub(crate) fn unused(&self) -> Option<String> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let left = self.file.differences.iter().enumerate().filter(|(at, _)| !used.contains(at));
        let lines: Vec<String> = left.map(|(_, entry)| format!("  {entry:?}")).collect();
        let what = "entries of differences.json that no answer needs; take them out:";
        (!lines.is_empty()).then(|| format!("{what}\n{}", lines.join("\n")))
    }
}

/// A value as text: a text without its quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Whether a text fits a pattern with asterisks.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}
