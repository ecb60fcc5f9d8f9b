//! Waits that no time resolves, by the shape of what is there. Pure.

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt as _;
use kube::core::DynamicObject;
use planner::{Cause, Management, Observed, Plan, PodPhase, Strategy};

use super::facts::Facts;

/// How long an unready pod may take before it is suspected: quorum systems need a moment to start, too.
const SUSPECT_AFTER_SECONDS: i64 = 20;

/// A wait that needs a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trap {
    /// `pod/web-0`: what everything waits for.
    pub root: String,
    /// Why waiting does not help, as the rest of a sentence about it.
    pub says: String,
    /// What does.
    pub unblock: Vec<String>,
}

/// The deadlocks of a set that are known by their shape.
pub fn find(facts: &Facts, set: &DynamicObject, observed: &Observed, plan: &Plan) -> Vec<Trap> {
    if observed.set.deleting {
        return Vec::new();
    }
    let root = plan.reasons.iter().find_map(|reason| match &reason.cause {
        Cause::NotReady { pod, phase: PodPhase::Pending | PodPhase::Running, .. } => facts.pod(pod),
        _ => None,
    });
    let ordered = observed.set.management == Management::OrderedReady;
    let failed = if ordered { two_failed(set, observed) } else { None };
    let Some(pod) = root.filter(|pod| stands(facts, pod)) else { return failed.into_iter().collect() };
    let by_order = if ordered {
        [quorum(facts, set, observed, plan, pod), stuck_rollout(set, observed, plan, pod)]
    } else {
        [None, None]
    };
    let by_name = if by_order[0].is_none() { unresolved(facts, set, observed, pod) } else { None };
    by_order.into_iter().chain([failed, by_name]).flatten().collect()
}

/// Not ready for long enough.
fn stands(facts: &Facts, pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready");
    let since = ready.and_then(|condition| condition.last_transition_time.as_ref());
    since.is_some_and(|since| facts.now.duration_since(since.0).as_secs() >= SUSPECT_AFTER_SECONDS)
}

/// The pod's command or environment names a later pod, which order creates only once this one is Ready.
fn quorum(facts: &Facts, set: &DynamicObject, observed: &Observed, plan: &Plan, pod: &Pod) -> Option<Trap> {
    let name = pod.name_any();
    let waiting = plan.reasons.iter().filter(|reason| reason.why == planner::Why::NotCreated).map(|reason| &reason.pod);
    let spec = pod.spec.as_ref()?;
    let said = facts.lines.iter().filter(|((of, _), _)| *of == name).map(|(_, line)| line.clone());
    let words: Vec<String> = spec.containers.iter().flat_map(words).chain(said).collect();
    let peer = waiting.into_iter().find(|peer| words.iter().any(|text| names(text, peer)))?;
    Some(Trap {
        root: format!("pod/{name}"),
        says: format!(
            "it refers to {peer}, which is created only once {name} is Ready: with podManagementPolicy OrderedReady a \
             quorum whose first member waits for the others never starts"
        ),
        unblock: vec![
            format!(
                "set podManagementPolicy: Parallel: kubectl delete sts {} --cascade=orphan, then apply the changed manifest",
                set.name_any()
            ),
            format!(
                "or let {name} become Ready without its peers, and give the service {} publishNotReadyAddresses: true",
                service(set).unwrap_or(&observed.set.name)
            ),
        ],
    })
}

/// A rolling update stops at a pod of an older revision than the template, which was broken before.
fn stuck_rollout(set: &DynamicObject, observed: &Observed, plan: &Plan, pod: &Pod) -> Option<Trap> {
    if !matches!(observed.set.strategy, Strategy::RollingUpdate { .. }) {
        return None;
    }
    let name = pod.name_any();
    let revision = pod.labels().get("controller-revision-hash")?;
    let (current, target) = (&plan.status.current_revision, &plan.status.update_revision);
    let never = observed.pods.iter().any(|member| member.pod.name == name && member.pod.was_never_ready());
    // A pod of the current revision that worked once may work again.
    if revision == target || target.is_empty() || revision == current && !never || observed.set.beyond.replace_broken {
        return None;
    }
    let which = if revision == current { "the old one" } else { "neither the current one nor the target" };
    Some(Trap {
        root: format!("pod/{name}"),
        says: format!(
            "it runs revision {revision}, which is {which} (the target is {target}): an ordered update does not replace a \
             pod that never became Ready"
        ),
        unblock: vec![
            format!("kubectl delete pod {name}"),
            format!("or annotate sts/{} with statefuld.io/rollout-recovery: replace-broken", set.name_any()),
        ],
    })
}

/// The pod asks for peers by the names that the set's service gives, and the service gives none: it does not exist, or
/// tells only of pods that are Ready while none is.
fn unresolved(facts: &Facts, set: &DynamicObject, observed: &Observed, pod: &Pod) -> Option<Trap> {
    let service = service(set)?;
    let (name, own) = (pod.name_any(), format!(".{service}"));
    let spec = pod.spec.as_ref()?;
    // `web-1.web`, or a script's `$NAME-$i.web`.
    let refers = |text: &str| {
        let part = |c: char| c.is_ascii_alphanumeric() || c == '-';
        text.match_indices(&own).any(|(at, _)| at > 0 && !text[at + own.len()..].starts_with(part))
    };
    if !spec.containers.iter().flat_map(words).any(|text| refers(&text)) {
        return None;
    }
    let root = format!("pod/{name}");
    let Some(found) = facts.services.as_ref()?.iter().find(|found| found.name_any() == service) else {
        let says = format!("it asks for names in the service {service}, which does not exist, so none resolves");
        let remedy =
            format!("create the headless service {service} (clusterIP: None) that sts/{} names", set.name_any());
        return Some(Trap { root, says, unblock: vec![remedy] });
    };
    let publishes = found.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
    let alone = observed.set.wanted() > 1 && !observed.pods.iter().any(|member| member.pod.is_ready());
    (!publishes && alone).then(|| Trap {
        root,
        says: format!(
            "it asks for its peers by name, no pod of the set is Ready, and the service {service} gives names of Ready pods \
             only: peers that must find each other to become Ready never do"
        ),
        unblock: vec![format!(
            "kubectl patch service {service} --type merge -p '{{\"spec\":{{\"publishNotReadyAddresses\":true}}}}'"
        )],
    })
}

/// Two pods that are to go have both failed: each waits for the other to become ready.
fn two_failed(set: &DynamicObject, observed: &Observed) -> Option<Trap> {
    let end = i64::from(observed.set.start) + i64::from(observed.set.replicas.max(0));
    let condemned = observed.pods.iter().map(|member| &member.pod).filter(|pod| {
        let ordinal = planner::parent_and_ordinal(&pod.name).map(|(_, ordinal)| i64::from(ordinal));
        ordinal.is_some_and(|ordinal| ordinal >= end) && pod.phase == PodPhase::Failed && !pod.terminating
    });
    let names: Vec<&str> = condemned.map(|pod| pod.name.as_str()).collect();
    let (first, second) = (names.first()?, names.get(1)?);
    Some(Trap {
        root: format!("pod/{first}"),
        says: format!(
            "{first} and {second} have both failed and are both to go; an ordered scale-down of sts/{} waits at each for the other",
            set.name_any()
        ),
        unblock: vec![format!("kubectl delete pod {}", names.join(" "))],
    })
}

/// What a container is told.
fn words(container: &Container) -> Vec<String> {
    let told = container.command.iter().flatten().chain(container.args.iter().flatten()).cloned();
    let env = container.env.iter().flatten().filter_map(|variable| variable.value.clone());
    told.chain(env).collect()
}

/// Whether a text names that pod, and not one whose name is longer.
fn names(text: &str, pod: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    text.match_indices(pod).any(|(at, _)| !text[..at].ends_with(part) && !text[at + pod.len()..].starts_with(part))
}

fn service(set: &DynamicObject) -> Option<&str> {
    set.data["spec"]["serviceName"].as_str().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_name_is_another_pod() {
        assert!(names("http://web-1.web:2380", "web-1"));
        assert!(!names("http://web-10.web:2380", "web-1"));
        assert!(!names("http://my-web-1.web:2380", "web-1"));
    }
}
