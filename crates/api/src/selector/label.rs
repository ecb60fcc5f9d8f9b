//! Label selectors.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Map, Value};

use super::ParseError;
use super::lexer::{Token, scan};
use crate::names;
use crate::status::FieldError;

/// What a word of a selector's text is parsed as; kept for callers that index by single labels.
pub type Label<'a> = (&'a str, &'a str);

/// All requirements must hold; none at all selects everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct LabelSelector {
    /// Sorted by key.
    requirements: Vec<Requirement>,
    /// Selects nothing, whatever the requirements say: an absent selector of an object.
    nothing: bool,
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// How the values are compared.
    pub operator: Operator,
    /// What with; sorted.
    pub values: BTreeSet<String>,
}

/// How a [`Requirement`] compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    /// `=`, `==`: the label has the one value.
    Equals,
    /// `!=`: the label is absent or has another value.
    NotEquals,
    /// The label has one of the values.
    In,
    /// The label is absent or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
    /// The label is an integer above the value.
    GreaterThan,
    /// The label is an integer below the value.
    LessThan,
}

/// Where labels can be looked up.
pub trait Labels {
    /// The value of one label.
    fn label(&self, key: &str) -> Option<&str>;
}

impl Labels for BTreeMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl Labels for Map<String, Value> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }
}

impl Labels for Value {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }
}

/// The labels of an object (JSON null if it has none), to be given to [`LabelSelector::matches`].
pub fn labels(object: &Value) -> &Value {
    &object["metadata"]["labels"]
}

impl LabelSelector {
    /// Selects everything.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Selects nothing.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Reads a query's text, such as `app=web,tier in (a,b),!old`.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let requirements = Parser { words: scan(text), at: 0 }.parse().map_err(ParseError)?;
        Ok(Self::from_requirements(requirements))
    }

    /// Reads an object's LabelSelector. Absent (JSON null) selects nothing, empty selects everything.
    pub fn from_json(selector: &Value) -> Result<Self, ParseError> {
        if selector.is_null() {
            return Ok(Self::nothing());
        }
        let mut requirements = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            let values = value.as_str().map(str::to_owned).into_iter().collect();
            requirements.push(Requirement::new(key, Operator::Equals, values).map_err(ParseError)?);
        }
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            let operator = match expression["operator"].as_str().unwrap_or("") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    let quoted = crate::status::quote(other);
                    return Err(ParseError(format!("{quoted} is not a valid label selector operator")));
                }
            };
            let values = expression["values"].as_array().into_iter().flatten();
            let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
            let key = expression["key"].as_str().unwrap_or("");
            requirements.push(Requirement::new(key, operator, values).map_err(ParseError)?);
        }
        Ok(Self::from_requirements(requirements))
    }

    /// Requires these labels with these values: the selector of services and replication.
    pub fn from_labels(labels: &BTreeMap<String, String>) -> Self {
        let equals = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            operator: Operator::Equals,
            values: BTreeSet::from([value.clone()]),
        };
        Self::from_requirements(labels.iter().map(equals).collect())
    }

    fn from_requirements(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements, nothing: false }
    }

    /// Whether labels satisfy the selector.
    pub fn matches<L: Labels + ?Sized>(&self, labels: &L) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels.label(&r.key)))
    }

    /// Whether an object's labels satisfy the selector.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches(labels(object))
    }

    /// Whether every object is selected.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// The conditions, sorted by key.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// A label that every selected object must carry, if the selector pins one: a start for an index.
    pub fn pinned(&self) -> Option<Label<'_>> {
        self.requirements.iter().find_map(|r| match (r.operator, r.values.first()) {
            (Operator::Equals | Operator::In, Some(value)) if r.values.len() == 1 => {
                Some((r.key.as_str(), value.as_str()))
            }
            _ => None,
        })
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{requirement}")?;
        }
        Ok(())
    }
}

impl Requirement {
    /// A condition whose key and values follow the rules; else what is wrong.
    fn new(key: &str, operator: Operator, values: BTreeSet<String>) -> Result<Self, String> {
        let mut errors = check_key(key, "key");
        let list = || Value::from(values.iter().cloned().collect::<Vec<_>>());
        let count = match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                Some("for 'in', 'notin' operators, values set can't be empty")
            }
            Operator::Equals | Operator::NotEquals if values.len() != 1 => {
                Some("exact-match compatibility requires one single value")
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                Some("values set must be empty for exists and does not exist")
            }
            Operator::GreaterThan | Operator::LessThan if values.len() != 1 => {
                Some("for 'Gt', 'Lt' operators, exactly one value is required")
            }
            _ => None,
        };
        errors.extend(count.map(|text| FieldError::invalid("values", list(), text)));
        for (index, value) in values.iter().enumerate() {
            let numeric = matches!(operator, Operator::GreaterThan | Operator::LessThan);
            if numeric && value.parse::<i64>().is_err() {
                let text = "for 'Gt', 'Lt' operators, the value must be an integer";
                errors.push(FieldError::invalid(format!("values[{index}]"), value.as_str(), text));
            }
            let wrong = names::label_value(value);
            if !wrong.is_empty() {
                errors.push(FieldError::invalid(format!("values[{index}][{key}]"), value.as_str(), wrong.join("; ")));
            }
        }
        if errors.is_empty() {
            return Ok(Self { key: key.into(), operator, values });
        }
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Err(if lines.len() == 1 { lines[0].clone() } else { format!("[{}]", lines.join(", ")) })
    }

    /// Whether a label's value (or its absence) satisfies the condition.
    pub fn matches(&self, value: Option<&str>) -> bool {
        match self.operator {
            Operator::Equals | Operator::In => value.is_some_and(|v| self.values.contains(v)),
            Operator::NotEquals | Operator::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let bound = self.values.first().and_then(|v| v.parse::<i64>().ok());
                match (value.and_then(|v| v.parse::<i64>().ok()), bound) {
                    (Some(value), Some(bound)) if self.operator == Operator::GreaterThan => value > bound,
                    (Some(value), Some(bound)) => value < bound,
                    _ => false,
                }
            }
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = || self.values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        let key = &self.key;
        match self.operator {
            Operator::Equals => write!(f, "{key}={}", joined()),
            Operator::NotEquals => write!(f, "{key}!={}", joined()),
            Operator::In => write!(f, "{key} in ({})", joined()),
            Operator::NotIn => write!(f, "{key} notin ({})", joined()),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{}", joined()),
            Operator::LessThan => write!(f, "{key}<{}", joined()),
        }
    }
}

/// What is wrong with a label key, as one finding at `path`.
fn check_key(key: &str, path: &str) -> Vec<FieldError> {
    let wrong = names::qualified_name(key);
    if wrong.is_empty() { Vec::new() } else { vec![FieldError::invalid(path, key, wrong.join("; "))] }
}

/// Reads the words of a selector.
struct Parser {
    words: Vec<(Token, String)>,
    at: usize,
}

impl Parser {
    /// The next word; keywords count as identifiers, which they are where keys and values stand.
    fn look(&self) -> (Token, &str) {
        let (token, text) = &self.words[self.at.min(self.words.len() - 1)];
        (as_identifier(*token), text)
    }

    /// Takes the next word, keywords as identifiers.
    fn take(&mut self) -> (Token, String) {
        let (token, text) = self.take_raw();
        (as_identifier(token), text)
    }

    /// Takes the next word as it is.
    fn take_raw(&mut self) -> (Token, String) {
        let word = self.words[self.at.min(self.words.len() - 1)].clone();
        self.at += 1;
        word
    }

    fn parse(mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        loop {
            match self.look() {
                (Token::Identifier | Token::Not, _) => {
                    let requirement = self.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?;
                    requirements.push(requirement);
                    match self.take() {
                        (Token::End, _) => return Ok(requirements),
                        (Token::Comma, _) => match self.look() {
                            (Token::Identifier | Token::Not, _) => {}
                            (_, text) => return Err(format!("found '{text}', expected: identifier after ','")),
                        },
                        (_, text) => return Err(format!("found '{text}', expected: ',' or 'end of string'")),
                    }
                }
                (Token::End, _) => return Ok(requirements),
                (_, text) => return Err(format!("found '{text}', expected: !, identifier, or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let (mut token, mut key) = self.take();
        let negated = token == Token::Not;
        if negated {
            (token, key) = self.take();
        }
        if token != Token::Identifier {
            return Err(format!("found '{key}', expected: identifier"));
        }
        if let Some(error) = check_key(&key, "<nil>").first() {
            return Err(error.to_string());
        }
        if negated {
            return Requirement::new(&key, Operator::DoesNotExist, BTreeSet::new());
        }
        if matches!(self.look().0, Token::End | Token::Comma) {
            return Requirement::new(&key, Operator::Exists, BTreeSet::new());
        }
        let operator = self.operator()?;
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => BTreeSet::from([self.exact_value()?]),
        };
        Requirement::new(&key, operator, values)
    }

    fn operator(&mut self) -> Result<Operator, String> {
        Ok(match self.take_raw() {
            (Token::In, _) => Operator::In,
            (Token::NotIn, _) => Operator::NotIn,
            (Token::Equals | Token::DoubleEquals, _) => Operator::Equals,
            (Token::NotEquals, _) => Operator::NotEquals,
            (Token::Greater, _) => Operator::GreaterThan,
            (Token::Less, _) => Operator::LessThan,
            (_, text) => return Err(format!("found '{text}', expected: in, notin, =, ==, !=, gt, lt")),
        })
    }

    fn exact_value(&mut self) -> Result<String, String> {
        if matches!(self.look().0, Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.take() {
            (Token::Identifier, text) => Ok(text),
            (_, text) => Err(format!("found '{text}', expected: identifier")),
        }
    }

    /// `(a,b)`; an empty place stands for the empty value.
    fn values(&mut self) -> Result<BTreeSet<String>, String> {
        match self.take() {
            (Token::Open, _) => {}
            (_, text) => return Err(format!("found '{text}' expected: '('")),
        }
        match self.look() {
            (Token::Identifier | Token::Comma, _) => {}
            (Token::Close, _) => {
                self.take();
                return Ok(BTreeSet::from([String::new()]));
            }
            (_, text) => return Err(format!("found '{text}', expected: ',', ')' or identifier")),
        }
        let mut values = BTreeSet::new();
        // Whether a value may stand next; two values in a row are an error, two commas an empty value.
        let mut expects_value = true;
        loop {
            match self.take() {
                (Token::Identifier, text) if expects_value => {
                    values.insert(text);
                    expects_value = false;
                }
                (Token::Comma, _) => {
                    if expects_value {
                        values.insert(String::new());
                    }
                    expects_value = true;
                }
                (Token::Close, _) => {
                    if expects_value {
                        values.insert(String::new());
                    }
                    return Ok(values);
                }
                (_, text) if expects_value => return Err(format!("found '{text}', expected: ',', or identifier")),
                (_, text) => return Err(format!("found '{text}', expected: ',' or ')'")),
            }
        }
    }
}

/// Keywords are identifiers where a key or value stands.
fn as_identifier(token: Token) -> Token {
    if matches!(token, Token::In | Token::NotIn) { Token::Identifier } else { token }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn selects(text: &str, labels: &Value) -> bool {
        LabelSelector::parse(text).expect(text).matches(labels)
    }

    fn error(text: &str) -> String {
        LabelSelector::parse(text).expect_err(text).0
    }

    #[test]
    fn every_operator_selects() {
        let l = json!({"n": "2", "half": "high", "odd": ""});
        for good in [
            "",
            "n=2",
            "n==2",
            "n!=1",
            "missing!=1",
            "n in (1,2)",
            "n notin (1,3)",
            "missing notin (1)",
            "odd",
            "odd=",
            "!even",
            "n>1",
            "n<3",
            "n=2,half=high",
            "odd in ()",
            "odd in (,x)",
            "in notin (x)",
            " n = 2 ,  odd ",
        ] {
            assert!(selects(good, &l), "{good}");
        }
        for bad in ["n=1", "n!=2", "missing", "!odd", "n>2", "n<2", "half>1", "n in (1,3)", "n notin (2)", "n=2,!half"]
        {
            assert!(!selects(bad, &l), "{bad}");
        }
    }

    #[test]
    fn sentences_are_upstreams() {
        assert_eq!(error("a=b=c"), "found '=', expected: ',' or 'end of string'");
        assert_eq!(error("n in (1),"), "found '', expected: identifier after ','");
        assert_eq!(error(",a"), "found ',', expected: !, identifier, or 'end of string'");
        assert_eq!(error("a b"), "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt");
        assert_eq!(error("a in b"), "unable to parse requirement: found 'b' expected: '('");
        assert!(error("a>b").contains("the value must be an integer"));
        assert!(error("-a=b").starts_with("unable to parse requirement: <nil>: Invalid value: \"-a\": name part must"));
        assert!(
            error("a=-b")
                .starts_with("unable to parse requirement: values[0][a]: Invalid value: \"-b\": a valid label")
        );
    }

    #[test]
    fn json_selectors_match_as_their_text() {
        let json = json!({"matchLabels": {"app": "web"}, "matchExpressions": [
            {"key": "tier", "operator": "In", "values": ["b", "a"]}, {"key": "old", "operator": "DoesNotExist"}]});
        let selector = LabelSelector::from_json(&json).expect("well-formed");
        assert_eq!(selector.to_string(), "app=web,!old,tier in (a,b)");
        assert_eq!(selector.pinned(), Some(("app", "web")));
        assert!(selector.matches(&json!({"app": "web", "tier": "a"})));
        assert!(!selector.matches(&json!({"app": "web"})));
        assert!(LabelSelector::from_json(&json!({})).expect("empty").is_everything());
        assert!(!LabelSelector::from_json(&Value::Null).expect("absent").matches(&json!({})));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-c=!(),<>in \t/.-]{0,24}") {
            if let Ok(selector) = LabelSelector::parse(&text) {
                let again = LabelSelector::parse(&selector.to_string()).expect("what we print we can read");
                prop_assert_eq!(again, selector);
            }
        }
    }
}
