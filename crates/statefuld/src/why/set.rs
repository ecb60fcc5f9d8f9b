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

/// What is wrong with a set's governing service. Nothing waits for it; but its pods may not find each other.
pub fn governing_service(facts: &Facts, set: &DynamicObject) -> Option<Finding> {
    let wanted = set.data["spec"]["serviceName"].as_str().filter(|name| !name.is_empty())?;
    let service = facts.services.as_ref()?.iter().find(|service| service.name_any() == wanted);
    let words = controllers::governing::trouble(wanted, service)?;
    Some(Finding::of(Link::new(format!("sts/{}", set.name_any()), format!("has no service as it should be: {words}"))))
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
    fn a_service_that_is_missing_or_not_headless_is_told() {
        let mut facts = facts(Vec::new());
        let web = set(json!({"serviceName": "web"}));
        assert_eq!(governing_service(&facts, &web), None, "services could not be read");
        facts.services = Some(Vec::new());
        let told = governing_service(&facts, &web).expect("a finding").sentence(facts.now);
        assert!(told.starts_with("sts/web has no service as it should be: service \"web\""), "{told}");
        let service = json!([{"metadata": {"name": "web", "uid": "u"}, "spec": {"clusterIP": "10.96.0.7"}}]);
        facts.services = Some(serde_json::from_value(service).unwrap());
        assert!(governing_service(&facts, &web).is_some_and(|f| f.sentence(facts.now).contains("not headless")));
        assert_eq!(governing_service(&facts, &set(json!({}))), None);
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

    /// A pod that a probe fails, as its node tells it.
    fn failing(ordinal: i32) -> Value {
        let mut pod = member(ordinal, false, Value::Null);
        let probe = json!({"httpGet": {"path": "/healthz", "port": 8080}});
        pod["spec"]["containers"] = json!([{"name": "app", "readinessProbe": probe}]);
        pod["status"]["containerStatuses"] = json!([{"name": "app", "ready": false, "started": true, "restartCount": 0,
            "image": "", "imageID": "", "state": {"running": {}}}]);
        pod
    }

    #[test]
    fn the_chain_goes_down_to_the_probe_its_answers_and_the_last_log_line() {
        let mut facts = facts(vec![member(0, true, Value::Null), failing(1)]);
        facts.now = Timestamp::from_second(252).unwrap();
        facts.lines.insert(("web-1".into(), "app".into()), "waiting for the primary".into());
        facts.events = serde_json::from_value(json!([{"metadata": {}, "reason": "Unhealthy", "count": 51,
            "message": "Readiness probe failed: HTTP probe failed with statuscode: 503",
            "involvedObject": {"uid": "p1", "fieldPath": "spec.containers{app}"}}]))
        .unwrap();
        let all = explain_member_of(&facts, "web-2");
        assert_eq!(
            all,
            "web-2 is not created: web-1 is not Ready for 4m12s: readiness GET :8080/healthz answered 503, 51 times; \
             last log line: waiting for the primary"
        );
    }

    fn explain_member_of(facts: &Facts, pod: &str) -> String {
        let found = explain(facts, &set(json!({}))).unwrap();
        let one = found.iter().find(|finding| finding.chain[0].object == format!("pod/{pod}")).expect("it waits");
        one.sentence(facts.now)
    }

    #[test]
    fn a_pod_that_never_worked_under_a_corrected_template_is_named_as_stuck() {
        let label = json!({"name": "web-0", "namespace": "default", "uid": "p0", "resourceVersion": "5",
            "annotations": {"statefuld.io/epoch": "1"},
            "labels": {"app": "web", "statefulset.kubernetes.io/pod-name": "web-0", "controller-revision-hash": "web-old"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "s", "controller": true}]});
        let mut facts = facts(vec![member(0, false, json!({"metadata": label}))]);
        facts.revisions = serde_json::from_value(json!([{"revision": 1, "data": {"spec": {"template": {"$patch": "replace"}}},
            "metadata": {"name": "web-old", "namespace": "default", "uid": "r", "resourceVersion": "3", "labels": {"app": "web"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "s", "controller": true}]}}]))
        .unwrap();
        let mut corrected = set(json!({}));
        corrected.data["status"]["currentRevision"] = "web-old".into();
        let found = explain(&facts, &corrected).unwrap();
        let text = found[0].sentence(facts.now);
        assert!(text.contains("which is the old one"), "{text}");
        assert!(text.contains("an ordered update does not replace a pod that never became Ready"), "{text}");
        assert_eq!(found[0].unblock[0], "kubectl delete pod web-0");
    }

    #[test]
    fn peers_that_no_name_leads_to_are_named_as_a_deadlock() {
        let peers =
            json!({"spec": {"nodeName": "n", "containers": [{"name": "app", "args": ["--join=web-1.web:7000"]}]}});
        // OnDelete, so that the pods are not about to be replaced for their revision.
        let parallel =
            json!({"podManagementPolicy": "Parallel", "serviceName": "web", "updateStrategy": {"type": "OnDelete"}});
        let mut facts = facts((0..3).map(|n| member(n, false, peers.clone())).collect());
        let told = |facts: &Facts| {
            let found = explain(facts, &set(parallel.clone())).unwrap();
            let all = found.iter().map(|finding| format!("{} {:?}", finding.sentence(facts.now), finding.unblock));
            all.collect::<Vec<_>>().join("\n")
        };
        assert!(!told(&facts).contains("service web"), "nobody looked for services");
        facts.services = Some(Vec::new());
        assert!(told(&facts).contains("service web, which does not exist"), "{}", told(&facts));
        let service =
            |publish: bool| json!([{"metadata": {"name": "web"}, "spec": {"publishNotReadyAddresses": publish}}]);
        facts.services = serde_json::from_value(service(false)).unwrap();
        assert!(told(&facts).contains("gives names of Ready pods only"), "{}", told(&facts));
        assert!(told(&facts).contains("kubectl patch service web"), "{}", told(&facts));
        facts.services = serde_json::from_value(service(true)).unwrap();
        assert!(!told(&facts).contains("service web"), "{}", told(&facts));
    }
}
