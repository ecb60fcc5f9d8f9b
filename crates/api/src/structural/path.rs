//! JSON paths: which part of an object a column, a scale or a selectable field shows.
//!
//! Understands what definitions use: `.a.b`, `['a.b']`, `[0]`, `[-1]`, `[*]`, `.*`, slices, filters that compare
//! (`[?(@.type=="Ready")].status`), unions of names and indices, and `..name`.

use serde_json::Value;

/// Most values that a path finds.
const MAX_FOUND: usize = 1000;

/// A path, read.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonPath {
    steps: Vec<Step>,
}

/// One step of a path.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// A field.
    Field(String),
    /// Fields or items by name or number.
    Union(Vec<Step>),
    /// An item, from the end if negative.
    Index(i64),
    /// All fields or items.
    All,
    /// Items from one to before another.
    Slice(Option<i64>, Option<i64>),
    /// Items that compare so.
    Filter(Vec<Step>, Option<(Comparison, Value)>),
    /// A field at any depth.
    Deep(String),
}

/// How a filter compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl JsonPath {
    /// Reads a path such as `.spec.replicas`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut reader = Reader { text, at: 0 };
        let steps = reader.steps()?;
        match reader.rest() {
            "" => Ok(JsonPath { steps }),
            rest => Err(format!("unrecognized text {rest:?} at position {}", reader.at)),
        }
    }

    /// The parts of an object that the path leads to.
    pub fn find<'v>(&self, object: &'v Value) -> Vec<&'v Value> {
        follow(&self.steps, vec![object])
    }
}

/// The fields of a path of the simple notation `.spec.replicas`.
pub fn simple(path: &str) -> Vec<String> {
    path.trim_start_matches('.').split('.').filter(|p| !p.is_empty()).map(str::to_owned).collect()
}

/// Follows steps from several values.
fn follow<'v>(steps: &[Step], mut from: Vec<&'v Value>) -> Vec<&'v Value> {
    for step in steps {
        let mut next = Vec::new();
        for value in from {
            take(step, value, &mut next);
            if next.len() > MAX_FOUND {
                next.truncate(MAX_FOUND);
                break;
            }
        }
        from = next;
    }
    from
}

/// Takes one step.
fn take<'v>(step: &Step, value: &'v Value, out: &mut Vec<&'v Value>) {
    match (step, value) {
        (Step::Field(name), Value::Object(object)) => out.extend(object.get(name)),
        (Step::Union(steps), value) => steps.iter().for_each(|step| take(step, value, out)),
        (Step::Index(index), Value::Array(items)) => {
            let place = if *index < 0 { index + items.len() as i64 } else { *index };
            out.extend(usize::try_from(place).ok().and_then(|place| items.get(place)));
        }
        (Step::All, Value::Array(items)) => out.extend(items),
        (Step::All, Value::Object(object)) => out.extend(object.values()),
        (Step::Slice(from, to), Value::Array(items)) => {
            let place = |n: i64| {
                let n = if n < 0 { n + items.len() as i64 } else { n };
                usize::try_from(n).unwrap_or(0).min(items.len())
            };
            let (from, to) = (place(from.unwrap_or(0)), to.map_or(items.len(), place));
            out.extend(items.get(from..to).unwrap_or_default());
        }
        (Step::Filter(path, wanted), Value::Array(items)) => {
            out.extend(items.iter().filter(|item| {
                let found = follow(path, vec![item]);
                match wanted {
                    None => !found.is_empty(),
                    Some((how, with)) => found.iter().any(|value| compares(value, *how, with)),
                }
            }));
        }
        (Step::Deep(name), value) => deep(name, value, out),
        _ => {}
    }
}

/// A field at any depth.
fn deep<'v>(name: &str, value: &'v Value, out: &mut Vec<&'v Value>) {
    if out.len() > MAX_FOUND {
        return;
    }
    match value {
        Value::Object(object) => {
            out.extend(object.get(name));
            object.values().for_each(|inner| deep(name, inner, out));
        }
        Value::Array(items) => items.iter().for_each(|inner| deep(name, inner, out)),
        _ => {}
    }
}

/// Whether a value compares so with another.
fn compares(value: &Value, how: Comparison, with: &Value) -> bool {
    let order = match (value, with) {
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        _ => None,
    };
    match how {
        Comparison::Equal => order.is_some_and(|o| o.is_eq()),
        Comparison::Unequal => order.is_none_or(|o| o.is_ne()),
        Comparison::Less => order.is_some_and(|o| o.is_lt()),
        Comparison::LessOrEqual => order.is_some_and(|o| o.is_le()),
        Comparison::Greater => order.is_some_and(|o| o.is_gt()),
        Comparison::GreaterOrEqual => order.is_some_and(|o| o.is_ge()),
    }
}

/// Reads a path from left to right.
struct Reader<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Reader<'t> {
    /// What is not read yet.
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    /// Reads a fixed text if it is next.
    fn eat(&mut self, text: &str) -> bool {
        let found = self.rest().starts_with(text);
        if found {
            self.at += text.len();
        }
        found
    }

    /// Reads up to the first character that `stop` knows.
    fn until(&mut self, stop: impl Fn(char) -> bool) -> &'t str {
        let rest = self.rest();
        let end = rest.find(stop).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    /// All steps up to something else.
    fn steps(&mut self) -> Result<Vec<Step>, String> {
        let mut steps = Vec::new();
        loop {
            if self.eat("..") {
                steps.push(Step::Deep(self.name()?));
            } else if self.eat(".") {
                match self.rest().chars().next() {
                    None => {}
                    Some('[') => {}
                    Some('*') => {
                        self.at += 1;
                        steps.push(Step::All);
                    }
                    Some(_) => steps.push(Step::Field(self.name()?)),
                }
            } else if self.eat("[") {
                steps.push(self.bracket()?);
            } else {
                return Ok(steps);
            }
        }
    }

    /// A name of a field; a backslash takes the meaning of the next character.
    fn name(&mut self) -> Result<String, String> {
        let mut name = String::new();
        let mut chars = self.rest().char_indices();
        let mut end = self.rest().len();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => name.extend(chars.next().map(|(_, c)| c)),
                '.' | '[' | ']' | ' ' | '=' | '!' | '<' | '>' | ')' | '(' | '@' | '?' | ',' | '{' | '}' => {
                    end = at;
                    break;
                }
                c => name.push(c),
            }
        }
        self.at += end;
        if name.is_empty() { Err(format!("a name is missing at position {}", self.at)) } else { Ok(name) }
    }

    /// What stands between brackets.
    fn bracket(&mut self) -> Result<Step, String> {
        if self.eat("?(") {
            return self.filter();
        }
        let mut parts = Vec::new();
        loop {
            parts.push(self.part()?);
            if self.eat("]") {
                break;
            }
            if !self.eat(",") {
                return Err("unterminated array".to_owned());
            }
        }
        match parts.len() {
            1 => parts.pop().ok_or_else(|| "empty brackets".to_owned()),
            _ => Ok(Step::Union(parts)),
        }
    }

    /// One of the parts between brackets.
    fn part(&mut self) -> Result<Step, String> {
        self.until(|c| c != ' ');
        for quote in ['\'', '"'] {
            if self.eat(&quote.to_string()) {
                return Ok(Step::Field(self.quoted(quote)?));
            }
        }
        let text = self.until(|c| c == ']' || c == ',').trim();
        if text == "*" {
            return Ok(Step::All);
        }
        let number = |text: &str| text.trim().parse::<i64>().map_err(|_| format!("invalid array index {text}"));
        let maybe = |text: &str| if text.trim().is_empty() { Ok(None) } else { number(text).map(Some) };
        match text.split_once(':') {
            Some((from, to)) => Ok(Step::Slice(maybe(from)?, maybe(to)?)),
            None => Ok(Step::Index(number(text)?)),
        }
    }

    /// A text up to its closing quote.
    fn quoted(&mut self, quote: char) -> Result<String, String> {
        let text = self.until(|c| c == quote).to_owned();
        if self.eat(&quote.to_string()) { Ok(text) } else { Err("unterminated quoted string".to_owned()) }
    }

    /// A filter, up to its end.
    fn filter(&mut self) -> Result<Step, String> {
        self.until(|c| c != ' ');
        if !self.eat("@") {
            return Err("a filter compares something of @".to_owned());
        }
        let path = self.steps()?;
        self.until(|c| c != ' ');
        let known = [
            ("==", Comparison::Equal),
            ("!=", Comparison::Unequal),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        let mut wanted = None;
        for (text, how) in known {
            if self.eat(text) {
                wanted = Some((how, self.literal()?));
                break;
            }
        }
        self.until(|c| c != ' ');
        if self.eat(")]") { Ok(Step::Filter(path, wanted)) } else { Err("unterminated filter".to_owned()) }
    }

    /// What a filter compares with.
    fn literal(&mut self) -> Result<Value, String> {
        self.until(|c| c != ' ');
        for quote in ['\'', '"'] {
            if self.eat(&quote.to_string()) {
                return Ok(self.quoted(quote)?.into());
            }
        }
        let text = self.until(|c| c == ')').trim();
        serde_json::from_str(text).map_err(|_| format!("{text:?} is neither a number nor a quoted text"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_lead_where_they_say() {
        let object = json!({"spec": {"a.b": 1, "list": [{"n": 1, "v": "x"}, {"n": 2, "v": "y"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]}});
        for (path, found) in [
            (".spec.list[0].v", json!(["x"])),
            (".spec.list[-1].v", json!(["y"])),
            (".spec.list[*].n", json!([1, 2])),
            (".spec.list[1:].n", json!([2])),
            (".spec['a.b']", json!([1])),
            (r".spec.a\.b", json!([1])),
            (r#".status.conditions[?(@.type=="Ready")].status"#, json!(["True"])),
            (".status.conditions[?(@.type == 'Other')].status", json!(["False"])),
            (".spec.list[?(@.n>1)].v", json!(["y"])),
            ("..v", json!(["x", "y"])),
            (".nothing.here", json!([])),
            (".spec.list[0,1].n", json!([1, 2])),
        ] {
            let path = JsonPath::parse(path).unwrap_or_else(|why| panic!("{path}: {why}"));
            assert_eq!(json!(path.find(&object)), found, "{path:?}");
        }
    }

    #[test]
    fn malformed_paths_are_refused() {
        for path in [".a[", ".a[x]", "a b", ".a[?(@.b==)]", ".a['x]", "...", ".a]"] {
            assert!(JsonPath::parse(path).is_err(), "{path}");
        }
    }
}
