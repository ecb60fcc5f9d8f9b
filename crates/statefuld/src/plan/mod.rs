//! `statefuld plan`: what applying manifests would lead to, step by step. Nothing is written.
//!
//! Every object is tried as a dry run; of a StatefulSet the shipped planner is then carried out on an imagined
//! world (`sim::imagine`), in which everything that is started becomes ready. What is broken now stays broken: that is
//! how a plan shows what would block.

mod fields;
mod kubernetes;

use std::collections::BTreeMap;
use std::process::ExitCode;

use ambient::Ambient;
use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use kube::core::DynamicObject;
use serde::Serialize;
use serde_json::Value;
use sim::{Imagined, Step, Stop};

use crate::apply::{self, Coming, Outcome};
use crate::cli::{Output, Plan};
use crate::manifest::{Object, Rules, Sorted};
use crate::why::Finding;
use crate::why::facts::Facts;
use crate::{connect, say, served, why};

/// The exit code that says that something would change. 0: nothing would; 1: it cannot be said.
const CHANGES: u8 = 2;

/// What would become of one object.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Change {
    object: String,
    namespace: String,
    /// `created`, `configured` or `unchanged`.
    change: &'static str,
    /// What differs, field by field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fields: Vec<String>,
    /// Of a StatefulSet: what follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    rollout: Option<Rollout>,
    /// What the same manifest means otherwise on plain Kubernetes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    on_kubernetes: Vec<String>,
}

/// What a StatefulSet's controller would do.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Rollout {
    /// In order.
    steps: Vec<String>,
    /// Pods that exist and would be replaced.
    restarts: Vec<String>,
    /// What would stand still until somebody acts.
    blocked: Vec<Sentence>,
    /// What stays as it is because the manifest says so: a partition, OnDelete.
    held: Vec<String>,
    /// False: there are more steps than are listed.
    complete: bool,
}

#[derive(Debug, Serialize)]
struct Sentence {
    sentence: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unblock: Vec<String>,
}

/// Runs the command.
pub async fn run(args: Plan) -> Result<ExitCode> {
    if args.files.is_empty() {
        bail!("no manifest is named; use -f FILE, -f DIRECTORY or -f -");
    }
    let rules = Rules { namespace: &args.namespace, strict: args.strict };
    let documents = served::read(&args.files, rules)?;
    if documents.is_empty() {
        bail!("the files hold no objects");
    }
    let client = connect::client(&args.server).await?;
    let Sorted { objects, skipped, mut warnings } = served::sort(&client, documents, rules).await?;
    let now = Ambient::system().now();
    let mut facts: BTreeMap<String, Facts> = BTreeMap::new();
    let mut changes = Vec::new();
    let mut coming = Coming::find(&client, &objects).await?;
    for (namespace, first) in apply::missing_namespaces(&client, &objects, &coming).await? {
        let title = format!("{}: {}", first.place, first.title());
        warnings.push(format!("{title}: namespace {namespace:?} does not exist: `up` wants --create-namespaces"));
    }
    let namespaces = objects.iter().filter(|object| object.resource.namespaced).map(|object| object.namespace.clone());
    for namespace in namespaces.collect::<std::collections::BTreeSet<_>>() {
        if !apply::exists(&client, &format!("/api/v1/namespaces/{namespace}")).await? {
            coming.namespaces.insert(namespace);
        }
    }
    for object in &objects {
        let mut change = match coming.holds(object) {
            // The server cannot try an object in a namespace or of a kind that is not there.
            true => Change::of(object, Outcome::Created, None, &object.value),
            false => {
                let written = apply::preview(&client, object).await?;
                Change::of(object, written.outcome, written.before.as_ref(), &written.after)
            }
        };
        if object.resource.kind == "StatefulSet" {
            if !facts.contains_key(&object.namespace) {
                facts.insert(object.namespace.clone(), Facts::read(&client, &object.namespace, now).await?);
            }
            let rollout = rollout(&facts[&object.namespace], &change.after)?;
            change.shown.rollout = Some(rollout);
        }
        if args.target.is_some() {
            change.shown.on_kubernetes = kubernetes::differences(&object.value);
        }
        changes.push(change.shown);
    }
    let any = changes.iter().any(Change::is_change);
    match args.output {
        Output::Json => {
            say::print(serde_json::to_string_pretty(
                &serde_json::json!({"changes": any, "objects": changes, "skipped": skipped, "warnings": warnings}),
            )?);
        }
        Output::Table => {
            changes.iter().for_each(tell);
            skipped.iter().for_each(|skipped| say::print(format_args!("skipped: {skipped}")));
            warnings.iter().for_each(|warning| say::print(format_args!("warning: {warning}")));
        }
    }
    Ok(if any { ExitCode::from(CHANGES) } else { ExitCode::SUCCESS })
}

/// A change, and the object that it leads to.
struct Previewed {
    shown: Change,
    after: Value,
}

impl std::ops::Deref for Previewed {
    type Target = Change;
    fn deref(&self) -> &Change {
        &self.shown
    }
}

impl Change {
    fn of(object: &Object, outcome: Outcome, before: Option<&Value>, after: &Value) -> Previewed {
        let fields = before.map(|before| fields::differences(before, after)).unwrap_or_default();
        let shown = Change {
            object: format!("{}/{}", object.resource.singular, object.name),
            namespace: object.namespace.clone(),
            change: outcome.word(),
            fields,
            rollout: None,
            on_kubernetes: Vec::new(),
        };
        Previewed { shown, after: after.clone() }
    }

    fn is_change(&self) -> bool {
        self.change != Outcome::Unchanged.word()
            || self.rollout.as_ref().is_some_and(|rollout| !rollout.steps.is_empty())
    }
}

/// What the controller would do about a set that is as `after` says.
fn rollout(facts: &Facts, after: &Value) -> Result<Rollout> {
    let set: DynamicObject = serde_json::from_value(after.clone()).context("the set cannot be read")?;
    let observed = controllers::statefulset::observe(&set, &facts.pods, &facts.claims, &facts.revisions)?;
    let imagined = sim::imagine(&observed, facts.now.as_millisecond());
    let exists = |pod: &str| facts.pod(pod).is_some();
    let mut restarts: Vec<String> = Vec::new();
    for step in &imagined.steps {
        if let Step::StopPod { pod, why: Stop::Replaced | Stop::Ended } = step
            && exists(pod)
            && !restarts.contains(pod)
        {
            restarts.push(pod.clone());
        }
    }
    let (held, stuck): (Vec<_>, Vec<_>) = imagined.blocked.iter().partition(|reason| sim::is_wish(reason));
    let mut blocked: Vec<Sentence> =
        imagined.refused.iter().map(|words| Sentence { sentence: words.clone(), unblock: Vec::new() }).collect();
    let mut held: Vec<String> = held.into_iter().map(ToString::to_string).collect();
    held.extend(undone(&observed, facts.now.as_millisecond()));
    blocked.extend(stuck.into_iter().map(|reason| sentence(&why::set::follow(facts, &set, reason), facts.now)));
    Ok(Rollout {
        steps: imagined.steps.iter().map(|step| told(step, &imagined)).collect(),
        restarts,
        blocked,
        held,
        complete: imagined.complete || !imagined.refused.is_empty(),
    })
}

/// A template that goes back to an older revision takes the overrides of single ordinals not along.
fn undone(observed: &planner::Observed, now: i64) -> Option<String> {
    let overrides: Vec<String> = observed.set.beyond.overrides.keys().map(ToString::to_string).collect();
    match planner::plan(observed, now).prologue.revision {
        Some(planner::RevisionAct::Number { name, .. }) if !overrides.is_empty() => Some(format!(
            "the template goes back to revision {name}; the overrides of ordinals {} stay as they are",
            overrides.join(", ")
        )),
        _ => None,
    }
}

fn sentence(finding: &Finding, now: Timestamp) -> Sentence {
    Sentence { sentence: finding.sentence(now), unblock: finding.unblock.clone() }
}

/// One step in words.
fn told(step: &Step, imagined: &Imagined) -> String {
    match step {
        Step::CreateClaim { claim } => format!("create claim {claim}"),
        Step::DeleteClaim { claim } => format!("delete claim {claim} WITH ITS DATA"),
        Step::OwnClaim { claim, owners } if owners.is_empty() => {
            format!("claim {claim} is kept whatever happens to pod and set")
        }
        Step::OwnClaim { claim, owners } => format!("claim {claim} will go with its {}", owners.join(" and ")),
        Step::StopPod { pod, why: Stop::ScaledAway } => format!("stop {pod}: it is no longer wanted"),
        Step::StopPod { pod, why: Stop::Ended } => format!("remove {pod}: it has ended"),
        Step::StopPod { pod, why: Stop::SetDeleted } => format!("stop {pod}: the set is being deleted"),
        Step::StopPod { pod, why: Stop::Replaced } => {
            let next = imagined.steps.iter().find_map(|step| match step {
                Step::StartPod { pod: started, revision } if started == pod => Some(revision.as_str()),
                _ => None,
            });
            match next {
                Some(revision) => format!("stop {pod}: it is replaced by one of revision {revision}"),
                None => format!("stop {pod}: it is replaced"),
            }
        }
        Step::StartPod { pod, revision } => format!("start {pod} (revision {revision})"),
        Step::AwaitReady { pod } => format!("wait until {pod} is Ready"),
        Step::AdoptPod { pod } => format!("take over {pod}, which nobody controls"),
        Step::ReleasePod { pod } => format!("let go of {pod}, whose labels no longer match"),
    }
}

fn tell(change: &Change) {
    say::print(format_args!("{} {}", change.object, change.change));
    for field in &change.fields {
        say::print(format_args!("    {field}"));
    }
    if let Some(rollout) = &change.rollout {
        for (at, step) in rollout.steps.iter().enumerate() {
            say::print(format_args!("  {:>3}. {step}", at + 1));
        }
        if !rollout.complete {
            say::print("       … and more of the same");
        }
        match rollout.restarts.as_slice() {
            [] => {}
            pods => say::print(format_args!("  restarts: {}", pods.join(", "))),
        }
        for held in &rollout.held {
            say::print(format_args!("  as asked: {held}"));
        }
        for blocked in &rollout.blocked {
            say::print(format_args!("  would block: {}", blocked.sentence));
            for remedy in &blocked.unblock {
                say::print(format_args!("    to unblock: {remedy}"));
            }
        }
    }
    for difference in &change.on_kubernetes {
        say::print(format_args!("  on plain Kubernetes: {difference}"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_template_that_goes_back_leaves_overrides_as_they_are_and_says_so() {
        let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "app"}]}});
        let owner =
            json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "s", "controller": true}]);
        let revision = |name: &str, number: i64, of: &Value| {
            let mut data = json!({"spec": {"template": of}});
            data["spec"]["template"]["$patch"] = "replace".into();
            json!({"revision": number, "data": data, "metadata": {"name": name, "namespace": "default", "uid": name,
                "resourceVersion": "3", "labels": {"app": "web"}, "ownerReferences": owner}})
        };
        let mut newer = template.clone();
        newer["spec"]["containers"][0]["image"] = "b".into();
        let mut facts = Facts::none();
        facts.namespace = "default".to_owned();
        facts.revisions =
            serde_json::from_value(json!([revision("web-a", 1, &template), revision("web-b", 2, &newer)])).unwrap();
        let set = |overrides: &str| {
            json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web", "namespace": "default",
                    "uid": "s", "generation": 3, "annotations": {"statefuld.io/overrides": overrides}},
                "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": template},
                "status": {"observedGeneration": 2, "currentRevision": "web-b", "updateRevision": "web-b"}})
        };
        let told = rollout(&facts, &set("0: {spec: {terminationGracePeriodSeconds: 5}}")).unwrap().held;
        let expected = "the template goes back to revision web-a; the overrides of ordinals 0 stay as they are";
        assert_eq!(told, [expected]);
        assert!(rollout(&facts, &set("")).unwrap().held.is_empty(), "nothing is overridden");
    }
}
