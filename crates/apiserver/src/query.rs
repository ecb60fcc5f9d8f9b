//! The query string, taken apart.

use std::time::Duration;

use api::status::{FieldError, Status};

use crate::errors::Outcome;

/// Names and values in the order in which they came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// From the part of a URL after the question mark.
    pub(crate) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|part| !part.is_empty()).map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name, true), decode(value, true))
        });
        Self(pairs.collect())
    }

    /// The first value of a name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The first value of a name, or nothing at all.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    /// All values of a name.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Whether a switch is on. Everything but `0`, `f` and `false` is; an absent one is off.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|v| !matches!(v.to_ascii_lowercase().as_str(), "0" | "f" | "false"))
    }

    /// A number, if there is one.
    pub(crate) fn number(&self, name: &str) -> Outcome<Option<i64>> {
        match self.get(name).filter(|v| !v.is_empty()) {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                let why = format!("{}: parsing {text:?}: invalid syntax", "strconv.ParseInt");
                Box::new(Status::bad_request(why))
            }),
        }
    }

    /// `dryRun=All`, the only value there is.
    pub(crate) fn dry_run(&self, kind: &str) -> Outcome<bool> {
        let values: Vec<&str> = self.all("dryRun").filter(|v| !v.is_empty()).collect();
        match values.iter().find(|v| **v != "All") {
            None => Ok(!values.is_empty()),
            Some(other) => {
                let error = FieldError::not_supported("dryRun", *other, &["All"]);
                Err(Box::new(Status::invalid("meta.k8s.io", kind, "", vec![error])))
            }
        }
    }
}

/// Takes percent signs (and, in queries, plus signs) back. What is not valid stays as it is.
pub(crate) fn decode(text: &str, plus: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3).and_then(|pair| u8::from_str_radix(pair, 16).ok()))
            .flatten();
        match hex {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(if plus && bytes[at] == b'+' { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A duration as Go programs write them, such as `1m30s` or `500ms`; `None` if it is none.
pub(crate) fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u32 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return None,
        };
        total = total.checked_add(unit.checked_mul(number)?)?;
        rest = &rest[end..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        assert_eq!(go_duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(go_duration("500ms"), Some(Duration::from_millis(500)));
        for wrong in ["", "5", "s", "1x", "99999999999s", "1s2"] {
            assert_eq!(go_duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn escapes_are_taken_back() {
        let query = Query::parse("labelSelector=a%3Db%2Cc+in+%28d%29&watch&x=%zz&y=%");
        assert_eq!(query.text("labelSelector"), "a=b,c in (d)");
        assert!(query.flag("watch"));
        assert_eq!(query.text("x"), "%zz");
        assert_eq!(query.text("y"), "%");
    }

    #[test]
    fn switches_read_as_upstream_reads_them() {
        let query = Query::parse("a=1&b=0&c=False&d=&e=yes");
        let on: Vec<bool> = ["a", "b", "c", "d", "e", "f"].iter().map(|n| query.flag(n)).collect();
        assert_eq!(on, [true, false, false, true, true, false]);
    }

    #[test]
    fn an_unknown_dry_run_is_refused() {
        assert!(Query::parse("dryRun=All").dry_run("CreateOptions").unwrap());
        assert!(!Query::parse("").dry_run("CreateOptions").unwrap());
        assert_eq!(Query::parse("dryRun=Some").dry_run("CreateOptions").unwrap_err().code, 422);
    }

    proptest! {
        #[test]
        fn no_query_panics(text in "\\PC*") {
            let _ = Query::parse(&text);
        }
    }
}
