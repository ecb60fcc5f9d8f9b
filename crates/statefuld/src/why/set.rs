//! Why the pods of a set do not move, in the planner's own reasons, followed down to the root. Pure.

use std::collections::BTreeSet;

use anyhow::Result;
use k8s_openapi::api::core::v1::Event;
use kube::ResourceExt as _;
use kube::core::DynamicObject;
use planner::{Cause, Reason};

use super::facts::Facts;
use super::{Finding, Link, claim, deadlock, pod};

/// Why a set is not as its spec says. Empty: it waits for nothing.
pub fn explain(facts: &Facts, set: &DynamicObject) -> Result<Vec<Finding>> {
    let observed = controllers::statefulset::observe(set, &facts.pods, &facts.claims, &facts.revisions)?;
    let plan = planner::plan(&observed, facts.now.as_millisecond());
    let mut found: Vec<Finding> = plan.reasons.iter().map(|reason| follow(facts, set, reason)).collect();
    if let Some(refused) = refused_creation(facts, set, &plan) {
        found.insert(0, refused);
    }
    for trap in deadlock::find(facts, set, &observed, &plan) {
        for finding in found.iter_mut().filter(|finding| finding.chain.iter().any(|link| link.object == trap.root)) {
            finding.unblock.clone_from(&trap.unblock);
            finding.chain.push(Link::new(&trap.root, &trap.says));
        }
    }
    Ok(found)
}

/// Why one pod of a set waits, whether it exists or not.
pub fn explain_member(facts: &Facts, name: &str) -> Result<Vec<Finding>> {
    let object = format!("pod/{name}");
    let Some((parent, _)) = planner::parent_and_ordinal(name) else { return Ok(Vec::new()) };
    let Some(set) = facts.set(parent) else { return Ok(Vec::new()) };
    let all = explain(facts, set)?;
    Ok(all.into_iter().filter(|finding| finding.chain.first().is_some_and(|link| link.object == object)).collect())
}

/// From what the planner waits for to what is behind it.
pub fn follow(facts: &Facts, set: &DynamicObject, reason: &Reason) -> Finding {
    let this = format!("pod/{}", reason.pod);
    // "web-1 is not Ready: because it is not Ready" helps nobody: a pod that is itself the cause begins the chain.
    let waits = Link::new(&this, reason.why.to_string());
    match &reason.cause {
        Cause::NotReady { pod: other, .. } | Cause::Terminating { pod: other } | Cause::Finished { pod: other, .. } => {
            let deeper = facts.pod(other).and_then(|pod| pod::explain(facts, pod).into_iter().next());
            match deeper {
                Some(finding) if *other == reason.pod => finding,
                Some(finding) => finding.under(waits),
                None => Finding::of(Link::new(&this, reason.cause.about(&reason.pod))).under(waits),
            }
        }
        Cause::ClaimDeleted { claim: name } | Cause::ClaimStale { claim: name } => {
            let found = facts.claim(name);
            match found.and_then(|found| claim::explain(facts, found).into_iter().next()) {
                Some(finding) => finding.under(waits),
                None => Finding::of(Link::new(&this, reason.cause.about(&reason.pod))).under(waits),
            }
        }
        cause => {
            let finding = Finding::of(Link::new(&this, cause.about(&reason.pod))).under(waits);
            match remedy(set, reason) {
                Some(remedy) => finding.helped_by(remedy),
                None => finding,
            }
        }
    }
}

/// What a person does about a cause that time does not resolve.
fn remedy(set: &DynamicObject, reason: &Reason) -> Option<String> {
    let (set, pod) = (set.name_any(), &reason.pod);
    match &reason.cause {
        Cause::OnDelete => Some(format!("kubectl delete pod {pod}")),
        Cause::Partition { .. } => Some(format!("lower spec.updateStrategy.rollingUpdate.partition of sts/{set}")),
        _ => None,
    }
}

/// The server refuses the pods of a set: none of them will come by waiting.
fn refused_creation(facts: &Facts, set: &DynamicObject, plan: &planner::Plan) -> Option<Finding> {
    let creates = plan.phases.iter().flat_map(|phase| &phase.tasks);
    let wanted: BTreeSet<&str> = creates.map(|task| task.pod.as_str()).filter(|pod| facts.pod(pod).is_none()).collect();
    let newest = facts.event(set.metadata.uid.as_deref(), "FailedCreate")?;
    let (name, why) = refused(newest)?;
    if !wanted.contains(name.as_str()) {
        return None;
    }
    let link = Link::new(format!("pod/{name}"), format!("cannot be created: {why}"));
    Some(Finding::of(link).helped_by(format!("correct what the server refuses in sts/{}", set.name_any())))
}

/// The pod and the reason in the words of the controller: `create Pod web-0 in StatefulSet web failed error: …`.
fn refused(event: &Event) -> Option<(String, String)> {
    let (before, why) = event.message.as_deref()?.split_once(" error: ")?;
    let name = before.strip_prefix("create Pod ")?.split(' ').next()?;
    Some((name.to_owned(), why.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;

    fn set(spec: Value) -> DynamicObject {
        let mut object = json!({"apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "web", "namespace": "default", "uid": "s", "generation": 1},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "app"}]}}},
            "status": {"observedGeneration": 1}});
        for (field, value) in spec.as_object().unwrap() {
            object["spec"][field] = value.clone();
        }
        serde_json::from_value(object).unwrap()
    }

    fn member(ordinal: i32, ready: bool, more: Value) -> Value {
        let status = if ready { "True" } else { "False" };
        let mut pod = json!({"metadata": {"name": format!("web-{ordinal}"), "namespace": "default", "uid": format!("p{ordinal}"),
                "resourceVersion": "5", "labels": {"app": "web", "statefulset.kubernetes.io/pod-name": format!("web-{ordinal}")},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "s", "controller": true}]},
            "spec": {"nodeName": "n", "containers": [{"name": "app"}]},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": status, "lastTransitionTime": "1970-01-01T00:00:00Z"}]}});
        if let Some(more) = more.as_object() {
            for (field, value) in more {
                pod[field] = value.clone();
            }
        }
        pod
    }

    fn facts(pods: Vec<Value>) -> Facts {
        let mut facts = Facts::none();
        facts.namespace = "default".to_owned();
        facts.now = Timestamp::from_second(60).unwrap();
        facts.pods = serde_json::from_value(Value::Array(pods)).unwrap();
        facts
    }

    #[test]
    fn a_pod_that_is_not_created_leads_to_the_one_that_is_not_ready() {
        let facts = facts(vec![member(0, false, Value::Null)]);
        let found = explain(&facts, &set(json!({}))).unwrap();
        let sentences: Vec<_> = found.iter().map(|finding| finding.sentence(facts.now)).collect();
        assert!(
            sentences.iter().any(|s| s == "web-1 is not created: web-0 is not Ready for 1m0s: starts"),
            "{sentences:?}"
        );
        assert!(sentences.iter().any(|s| s == "web-0 is not Ready for 1m0s: starts"), "{sentences:?}");
    }

    #[test]
    fn a_refused_pod_is_told_in_the_servers_words() {
        let mut facts = facts(Vec::new());
        facts.events =
            serde_json::from_value(json!([{"metadata": {}, "reason": "FailedCreate", "involvedObject": {"uid": "s"},
            "message": "create Pod web-0 in StatefulSet web failed error: exceeded quota"}]))
            .unwrap();
        let found = explain(&facts, &set(json!({}))).unwrap();
        assert_eq!(found[0].sentence(facts.now), "web-0 cannot be created: exceeded quota");
    }

    #[test]
    fn a_quorum_that_waits_for_members_which_order_keeps_back_is_named() {
        let peers = json!({"spec": {"nodeName": "n", "containers": [{"name": "app",
            "args": ["--initial-cluster=web-0=http://web-0.web:2380,web-1=http://web-1.web:2380"]}]}});
        let facts = facts(vec![member(0, false, peers)]);
        let found = explain(&facts, &set(json!({}))).unwrap();
        let web_1 = found.iter().find(|finding| finding.chain[0].object == "pod/web-1").unwrap();
        let text = web_1.sentence(facts.now);
        assert!(text.contains("refers to web-1, which is created only once web-0 is Ready"), "{text}");
        assert!(web_1.unblock[0].contains("podManagementPolicy: Parallel"), "{:?}", web_1.unblock);
    }
}
