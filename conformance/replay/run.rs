//! One run of one scenario, in a namespace of its own.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::differences::{self, Difference, Differences};
use super::normal::{Normalizer, manager_key};
use super::paths;
use super::scenario::{Scenario, Step};
use crate::cluster::{Answer, Ask, Case, PATIENCE, Watch, pause};
use crate::runner::Verdict;

/// How long collecting waits for the events of a step that does not say.
const COLLECT: Duration = Duration::from_secs(10);
/// After the last expected event: time for unexpected ones to show. Nothing marks their absence on the wire.
const QUIET: Duration = Duration::from_millis(300);
/// Bytes of a mebibyte.
const MEBIBYTE: usize = 1 << 20;
/// Characters of a value that a report shows.
const SHOWN: usize = 600;

/// Asks everything, compares everything; the error tells every difference that is not intended.
pub(super) async fn replay(scenario: Scenario, case: Case) -> Verdict {
    let mut run = Run::new(&scenario, case);
    let mut report = Vec::new();
    for (number, step) in scenario.steps.iter().enumerate() {
        let answer = match run.step(step).await {
            Ok(answer) => answer,
            Err(why) => {
                report.push(format!("step {number} {:?}: {why}", step.name));
                break;
            }
        };
        let found = differences::between(&expected(step), &answer).into_iter();
        let all = Differences::shared();
        let bad: Vec<_> = found.filter(|d| !all.excuse(&scenario.name, &step.name, d)).collect();
        if !bad.is_empty() {
            let method = step.method.as_deref().unwrap_or_default();
            report.push(format!("step {number} {:?}: {method} {}", step.name, step.path));
            report.extend(bad.iter().map(tell));
        }
    }
    run.clean_up(&scenario.cleanup).await;
    if report.is_empty() { Ok(()) } else { Err(report.join("\n")) }
}

/// A difference in words.
fn tell(difference: &Difference) -> String {
    let Difference { path, what, expected, actual } = difference;
    let mut text = format!("  {path}: {what}");
    if *what != "extra" {
        text += &format!("\n    expected {}", shown(expected));
    }
    if *what != "missing" {
        text += &format!("\n    actual   {}", shown(actual));
    }
    text
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{} …", &text[..at]),
        None => text,
    }
}

/// What was recorded, with lists that have no order of their own in ours.
fn expected(step: &Step) -> Value {
    fn sort(value: &mut Value) {
        match value {
            Value::Array(list) => list.iter_mut().for_each(sort),
            Value::Object(map) => {
                for (key, member) in map {
                    sort(member);
                    if let Some(list) = member.as_array_mut().filter(|_| key == "managedFields") {
                        list.sort_by_key(manager_key);
                    }
                }
            }
            _ => {}
        }
    }
    let mut expected = step.expect.clone();
    sort(&mut expected);
    if step.any_order && step.only.is_none() {
        for path in ["body.items", "body.details.causes"] {
            paths::change(&mut expected, path, &|list| {
                if let Some(list) = list.as_array_mut() {
                    list.sort_by_key(Value::to_string);
                }
            });
        }
    }
    expected
}

/// A scenario under way.
struct Run {
    case: Case,
    variables: HashMap<String, Value>,
    watches: HashMap<String, Watch>,
    normalizer: Normalizer,
}

impl Run {
    fn new(scenario: &Scenario, case: Case) -> Self {
        let mebibyte = "x".repeat(MEBIBYTE + 1);
        let variables = [("ns".to_owned(), json!(&*case.namespace)), ("mebibyte".to_owned(), mebibyte.into())];
        let normalizer = Normalizer::new(scenario, &case.namespace);
        Self { case, variables: variables.into(), watches: HashMap::new(), normalizer }
    }

    /// Does a step; gives what is to be compared.
    async fn step(&mut self, step: &Step) -> Result<Value, String> {
        if let Some(name) = &step.collect {
            return self.collect(name, step).await;
        }
        let ask = self.ask(step)?;
        if let Some(name) = &step.watch {
            return Ok(match self.case.cluster.watch(&ask.query("watch", "1")).await? {
                Ok(watch) => {
                    self.watches.insert(name.clone(), watch);
                    json!({"status": 200})
                }
                Err(answer) => self.normalized(step, &answer),
            });
        }
        let repeat = async {
            loop {
                let mut answer = self.case.cluster.send(&ask).await?;
                restore(&mut answer.body);
                if step.until.as_ref().is_none_or(|until| until.holds(answer.code, &answer.body)) {
                    return Ok::<_, String>(answer);
                }
                pause().await;
            }
        };
        let answer = match tokio::time::timeout(PATIENCE, repeat).await {
            Ok(answer) => answer?,
            // The comparison tells what it was instead.
            Err(_) => self.case.cluster.send(&ask).await?,
        };
        for (name, path) in &step.capture {
            let value = paths::find(&answer.body, path).first().map_or(Value::Null, |v| (*v).clone());
            self.variables.insert(name.clone(), value);
        }
        Ok(self.normalized(step, &answer))
    }

    /// The request of a step.
    fn ask(&self, step: &Step) -> Result<Ask, String> {
        let text = |text: &str| Ok::<_, String>(rename(&scalar(&self.substitute(&json!(text)))));
        let mut ask = Ask::new(step.method.as_deref().unwrap_or("GET"), &text(&step.path)?);
        for (name, value) in &step.query {
            match self.substitute(value) {
                Value::Array(all) => {
                    for value in all {
                        ask = ask.query(name, &scalar(&value));
                    }
                }
                value => ask = ask.query(name, &scalar(&value)),
            }
        }
        let headers: BTreeMap<_, _> = step.headers.iter().collect();
        for (name, value) in headers {
            let value = value.as_deref().map(text).transpose()?;
            ask = ask.header(name, value.as_deref());
        }
        if let Some(body) = &step.body {
            ask = ask.raw(rename(&self.substitute(body).to_string()).into_bytes());
        } else if let Some(raw) = &step.raw {
            ask = ask.raw(rename(&scalar(&self.substitute(&json!(raw)))).into_bytes());
        }
        Ok(ask)
    }

    /// An answer in the form of the recorded ones.
    fn normalized(&mut self, step: &Step, answer: &Answer) -> Value {
        let mut out = Map::from_iter([("status".to_owned(), json!(answer.code))]);
        if step.compare.as_deref() == Some("status") {
            return Value::Object(out);
        }
        if let Some(media) = answer.headers.get("content-type") {
            out.insert("contentType".to_owned(), media.clone().into());
        }
        if let Some(warning) = answer.headers.get("warning") {
            out.insert("warning".to_owned(), self.normalizer.text(warning).into());
        }
        if step.compare.as_deref() != Some("headers") {
            let body = self.normalizer.document(&answer.body);
            out.insert("body".to_owned(), step.project(body));
        }
        Value::Object(out)
    }

    /// What a watch has seen since it was last asked.
    async fn collect(&mut self, name: &str, step: &Step) -> Result<Value, String> {
        let watch = self.watches.get_mut(name).ok_or_else(|| format!("watch {name:?} was not opened"))?;
        let patience = step.timeout_seconds.map_or(COLLECT, Duration::from_secs);
        let is_event = |event: &&Value| event.get("type") != Some(&json!("BOOKMARK"));
        let enough = |events: &[Value]| step.events.is_some_and(|n| events.iter().filter(is_event).count() >= n);
        let mut events = watch.until(patience, enough).await;
        if step.events.is_some() {
            events.extend(watch.until(QUIET, |_| false).await);
        }
        let ended = watch.ended();
        let mut seen = Vec::new();
        for event in events.iter().filter(is_event) {
            let mut object = event["object"].clone();
            restore(&mut object);
            seen.push(json!({"type": event["type"], "object": self.normalizer.document(&object)}));
        }
        let mut out = step.project(json!({"events": seen}));
        if step.events.is_none() {
            out["ended"] = ended.into();
        }
        if step.bookmarks {
            out["bookmark"] = events.iter().any(|event| !is_event(&event)).into();
        }
        Ok(out)
    }

    /// Puts variables in the place of `${name}`; a text that is only that takes the variable's own type.
    fn substitute(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => {
                let whole = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
                if let Some(value) = whole.and_then(|name| self.variables.get(name)) {
                    return value.clone();
                }
                let mut text = text.clone();
                for (name, value) in &self.variables {
                    text = text.replace(&format!("${{{name}}}"), &scalar(value));
                }
                text.into()
            }
            Value::Array(list) => list.iter().map(|item| self.substitute(item)).collect(),
            Value::Object(map) => {
                let entry = |(k, v): (&String, &Value)| (scalar(&self.substitute(&json!(k))), self.substitute(v));
                Value::Object(map.iter().map(entry).collect())
            }
            other => other.clone(),
        }
    }

    /// Deletes what lies outside the namespace. How that is answered does not matter.
    async fn clean_up(&self, paths: &[String]) {
        let now = json!({"gracePeriodSeconds": 0, "propagationPolicy": "Background"});
        for path in paths {
            let path = rename(&scalar(&self.substitute(&json!(path))));
            let ask = match path.strip_suffix("#finalizers") {
                Some(path) => Ask::new("PATCH", path)
                    .header("content-type", Some("application/merge-patch+json"))
                    .json(&json!({"metadata": {"finalizers": null}})),
                None => Ask::new("DELETE", &path).json(&now),
            };
            let _ = self.case.cluster.send(&ask).await;
        }
    }
}

/// A text without quotes, anything else as JSON.
fn scalar(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Recorded API versions by the names under which they are served now.
fn rename(text: &str) -> String {
    Differences::shared().renamed().iter().fold(text.to_owned(), |text, r| text.replace(&r.old, &r.new))
}

/// The other way round, in answers: whole texts only, as in `apiVersion`.
fn restore(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some(renamed) = Differences::shared().renamed().iter().find(|r| r.new == *text) {
                text.clone_from(&renamed.old);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(restore),
        Value::Object(map) => map.values_mut().for_each(restore),
        _ => {}
    }
}
