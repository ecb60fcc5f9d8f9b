//! Plays the steps of one scenario in a namespace of its own, and gives the trace that the server under test left.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::compare::Trace;
use crate::cluster::Case;
use crate::players::objects::{
    self, Kind, REVISION_LABEL, controller, image, matches, merge, natural, ready, tagged, terminating, text,
};
use crate::players::stage::Stage;
use crate::players::world::Seen;

/// How long the last events may take to arrive: they are written behind the work that they tell of.
const EVENTS: Duration = Duration::from_secs(20);

/// Plays a scenario in the namespace of a case.
pub(super) async fn play(case: &Case, scenario: &Value) -> Result<Trace, String> {
    let stage = Stage::start(case).await?;
    let mut run = Run { stage, scenario, segments: Vec::new(), answers: Vec::new(), snapshots: Map::new(), cut: 0 };
    let outcome = run.steps().await;
    let Run { stage, segments, .. } = run;
    let events = event_lines(&stage.world.look(), &stage.namespace);
    stage.stop().await?;
    outcome?;
    Ok(Trace { segments, events })
}

struct Run<'a> {
    stage: Stage,
    scenario: &'a Value,
    segments: Vec<Value>,
    answers: Vec<String>,
    snapshots: Map<String, Value>,
    cut: usize,
}

impl Run<'_> {
    async fn steps(&mut self) -> Result<(), String> {
        for (at, step) in self.scenario["steps"].as_array().into_iter().flatten().enumerate() {
            let step = step.as_array().ok_or("a step is not a list")?;
            let argument = |n: usize| step.get(n).unwrap_or(&Value::Null);
            self.step(text(argument(0)), argument(1), argument(2), argument(3))
                .await
                .map_err(|why| format!("step {} {}: {why}", at + 1, Value::from(step.clone())))?;
        }
        let (namespace, expected) = (&self.stage.namespace, &self.scenario["expected"]["events"]);
        self.stage
            .world
            .wait(EVENTS, |seen| json!(event_lines(seen, namespace)) == *expected || self.forgives_events())
            .await;
        Ok(())
    }

    /// Events that are not compared need not be waited for.
    fn forgives_events(&self) -> bool {
        let tolerated = self.scenario["tolerates"].as_array().into_iter().flatten();
        tolerated.map(text).any(|rule| matches!(rule, "event-limit"))
    }

    async fn step(&mut self, verb: &str, first: &Value, second: &Value, third: &Value) -> Result<(), String> {
        let name = text(first);
        match verb {
            "set" => {
                self.send(&format!("create set {name}"), "POST", Kind::Sets, "", "", objects::set(name, second)).await
            }
            "pod" => self.make_pod(name, second).await,
            "service" => {
                self.send(&format!("create service {name}"), "POST", Kind::Services, "", "", objects::service(name))
                    .await
            }
            "claim" => {
                self.send(&format!("create claim {name}"), "POST", Kind::Claims, "", "", objects::claim(name, second))
                    .await
            }
            "scale" => self.patch(Kind::Sets, name, json!({"spec": {"replicas": second}})).await,
            "scale_subresource" => {
                let change = json!({"spec": {"replicas": second}});
                self.send(&format!("scale {name}"), "PATCH", Kind::Sets, name, "scale", change).await;
            }
            "patch" => self.patch(Kind::parse(name), text(second), third.clone()).await,
            "image" => self.image(name, text(second), third).await,
            "delete" => self.delete(Kind::parse(name), text(second), third).await,
            "orphan" => self.patch(Kind::Pods, name, json!({"metadata": {"ownerReferences": null}})).await,
            "finalizers" => {
                let list = if third.as_array().is_some_and(Vec::is_empty) { &Value::Null } else { third };
                self.patch(Kind::parse(name), text(second), json!({"metadata": {"finalizers": list}})).await;
            }
            "kubelet" => self.stage.kubelet.rule(first.clone()),
            "ready" => self.stage.report(name, "Running", second.as_bool().unwrap_or(true)).await?,
            "fail" => self.stage.report(name, "Failed", false).await?,
            "succeed" => self.stage.report(name, "Succeeded", false).await?,
            "wait" => self.wait(name, second, third).await?,
            "snapshot" => self.snapshot(Kind::parse(name), name, text(second))?,
            "quiet" => self.quiet(first).await?,
            other => return Err(format!("the suite knows no step {other:?}")),
        }
        Ok(())
    }

    /// Sends what a user would, and keeps what was refused.
    async fn send(&mut self, what: &str, method: &str, kind: Kind, name: &str, sub: &str, body: Value) {
        let path = kind.path(&self.stage.namespace, name, sub);
        let (code, answer) = self.stage.client.call(method, &path, Some(&body)).await;
        self.keep(what, code, &answer);
    }

    fn keep(&mut self, what: &str, code: u16, answer: &Value) {
        if code >= 300 {
            self.answers.push(format!("{what}: {code} {}", text(&answer["reason"])));
        }
    }

    async fn patch(&mut self, kind: Kind, name: &str, change: Value) {
        let word = match kind {
            Kind::Pods => "pods",
            Kind::Claims => "claims",
            Kind::Services => "services",
            Kind::Sets => "sets",
            Kind::Revisions => "revisions",
            Kind::Events => "events",
        };
        self.send(&format!("patch {word} {name}"), "PATCH", kind, name, "", change).await;
    }

    /// A pod made by the user; `owner` [kind, name] makes that object its controller.
    async fn make_pod(&mut self, name: &str, options: &Value) {
        let mut pod = objects::pod(name, options);
        if let Some(owner) = options["owner"].as_array() {
            let (kind, owner) = (Kind::parse(text(&owner[0])), text(&owner[1]));
            let (_, found) = self.stage.client.call("GET", &kind.path(&self.stage.namespace, owner, ""), None).await;
            pod["metadata"]["ownerReferences"] = json!([kind.controller_reference(owner, &found["metadata"]["uid"])]);
        }
        self.send(&format!("create pod {name}"), "POST", Kind::Pods, "", "", pod).await;
    }

    /// Changes the template's image; `more` goes into the same patch.
    async fn image(&mut self, name: &str, tag: &str, more: &Value) {
        let mut change =
            json!({"spec": {"template": {"spec": {"containers": [{"name": "app", "image": tagged(tag)}]}}}});
        if more.is_object() {
            merge(&mut change, more);
        }
        let path = Kind::Sets.path(&self.stage.namespace, name, "");
        let (code, answer) = self.stage.client.strategic(&path, &change).await;
        self.keep(&format!("image of {name}"), code, &answer);
    }

    /// `options`: propagation (Background, Foreground, Orphan), grace (seconds).
    async fn delete(&mut self, kind: Kind, name: &str, options: &Value) {
        let mut body = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
        for (option, field) in [("propagation", "propagationPolicy"), ("grace", "gracePeriodSeconds")] {
            if let Some(value) = options.get(option) {
                body[field] = value.clone();
            }
        }
        let word = if kind == Kind::Pods {
            "pods"
        } else if kind == Kind::Sets {
            "sets"
        } else {
            "claims"
        };
        self.send(&format!("delete {word} {name}"), "DELETE", kind, name, "", body).await;
    }

    async fn wait(&self, what: &str, first: &Value, second: &Value) -> Result<(), String> {
        self.stage.wait(what, |seen| holds(seen, what, first, second)).await
    }

    /// Records an object whole, in normal form.
    fn snapshot(&mut self, kind: Kind, word: &str, name: &str) -> Result<(), String> {
        let seen = self.stage.world.look();
        let object = seen.get(kind, name).ok_or_else(|| format!("no {word} {name}"))?;
        let normal = normal(&seen, kind, object);
        drop(seen);
        self.snapshots.insert(format!("{word} {name}"), normal);
        Ok(())
    }

    /// Waits until nothing changes and the kubelet has nothing to do, then closes a segment of the trace.
    async fn quiet(&mut self, options: &Value) -> Result<(), String> {
        self.stage.quiet().await?;
        let order = options.get("order").unwrap_or(&self.scenario["order"]);
        let seen = self.stage.world.look();
        let lines = |kind: Kind| {
            let mut lines = seen.lines(kind, self.cut);
            if order == "set" || kind == Kind::Claims {
                lines.sort_by_key(|line| natural(line));
            }
            lines
        };
        self.segments.push(json!({
            "trace": {"pods": lines(Kind::Pods), "claims": lines(Kind::Claims), "sets": lines(Kind::Sets)},
            "answers": std::mem::take(&mut self.answers),
            "snapshots": std::mem::take(&mut self.snapshots),
            "state": seen.state(),
        }));
        self.cut = seen.trace.len();
        Ok(())
    }
}

fn holds(seen: &Seen, what: &str, first: &Value, second: &Value) -> bool {
    let count = |test: &dyn Fn(&Value) -> bool| {
        let pattern = second.as_str().unwrap_or("*");
        seen.all(Kind::Pods).filter(|(name, pod)| matches(name, pattern) && test(pod)).count() as u64
    };
    let pod = |name: &Value| seen.get(Kind::Pods, text(name));
    match what {
        "ready" => Some(count(&|pod| ready(pod) && !terminating(pod))) == first.as_u64(),
        "pods" => Some(count(&|_| true)) == first.as_u64(),
        "terminating" => pod(first).is_some_and(|pod| terminating(pod)),
        "gone" => seen.get(Kind::parse(text(first)), text(second)).is_none(),
        "there" => seen.get(Kind::parse(text(first)), text(second)).is_some(),
        "image" => pod(first).is_some_and(|pod| image(pod) == text(second) && ready(pod) && !terminating(pod)),
        "owned" => pod(first).and_then(|pod| controller(pod)).is_some_and(|owner| owner["name"] == *second),
        other => panic!("the suite cannot wait for {other:?}"),
    }
}

/// An object without what every server chooses for itself, and without what admission, scheduling and storage write.
fn normal(seen: &Seen, kind: Kind, object: &Value) -> Value {
    let mut object = object.clone();
    let mut forget = |pointer: &str, fields: &[&str]| {
        if let Some(Value::Object(parent)) = object.pointer_mut(pointer) {
            parent.retain(|field, _| !fields.contains(&field.as_str()));
        }
    };
    forget("", &["status"]);
    let own = ["uid", "resourceVersion", "creationTimestamp", "managedFields", "selfLink", "namespace", "generation"];
    forget("/metadata", &own);
    match kind {
        Kind::Pods => {
            let admitted =
                ["nodeName", "tolerations", "priority", "preemptionPolicy", "serviceAccount", "serviceAccountName"];
            forget("/spec", &admitted);
        }
        Kind::Claims => forget("/metadata", &["finalizers", "annotations"]),
        _ => {}
    }
    forget_our_annotations(&mut object);
    let owners = object.pointer_mut("/metadata/ownerReferences").and_then(Value::as_array_mut);
    for owner in owners.into_iter().flatten() {
        owner["uid"] = json!("UID");
    }
    if let Some(Value::String(revision)) = object.pointer_mut(&format!("/metadata/labels/{REVISION_LABEL}")) {
        *revision = seen.revision(revision);
    }
    if let Some(Value::Array(volumes)) = object.pointer_mut("/spec/volumes") {
        // The recorded server adds claims in random order.
        volumes.sort_by_key(|volume| objects::text(&volume["name"]).to_owned());
    }
    object
}

/// Ours say what Kubernetes has no place for (the epoch of a binding); plain Kubernetes has none of them.
fn forget_our_annotations(object: &mut Value) {
    let Some(Value::Object(metadata)) = object.pointer_mut("/metadata") else { return };
    let Some(Value::Object(annotations)) = metadata.get_mut("annotations") else { return };
    annotations.retain(|key, _| !key.starts_with("statefuld.io/"));
    if annotations.is_empty() {
        metadata.remove("annotations");
    }
}

/// The events of each set, without counts; the server's own wording after `error:` is left out.
fn event_lines(seen: &Seen, namespace: &str) -> BTreeMap<String, Vec<String>> {
    let line = |(kind, reason, message): &(String, String, String)| {
        let message = message.replace(namespace, "NAMESPACE");
        let message = match message.split_once("error: ") {
            Some((before, _)) => format!("{before}error: ..."),
            None => message,
        };
        format!("{kind} {reason}: {message}")
    };
    let lines = |all: &BTreeSet<(String, String, String)>| {
        let combined = |event: &&(String, String, String)| !event.2.starts_with("(combined from");
        let mut lines: Vec<_> = all.iter().filter(combined).map(line).collect();
        lines.sort_by_key(|line| natural(line));
        lines.dedup();
        lines
    };
    seen.events.iter().map(|(set, all)| (set.clone(), lines(all))).collect()
}
