//! From what the API says of a namespace to what a person looks at. Pure.

use std::collections::{BTreeMap, BTreeSet};

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::core::DynamicObject;
use planner::Observed;

use super::usage::Usage;
use super::{Overview, Rollout, Row, Set, State, Undo, Volume, Waiting};
use crate::why::facts::Facts;
use crate::why::{self, pod};

/// The label with a pod's revision.
const REVISION: &str = "controller-revision-hash";

/// Puts it together.
pub fn overview(facts: &Facts, usage: &Usage) -> Overview {
    let mut waiting: Vec<Waiting> = why::everything(facts).iter().map(|f| Waiting::of(f, facts.now)).collect();
    let mut shown = BTreeSet::new();
    let mut sets: Vec<Set> = facts
        .sets
        .iter()
        .map(|object| {
            let set = set(facts, usage, object, &mut waiting);
            shown.extend(set.rows.iter().map(|row| row.pod.clone()));
            set
        })
        .collect();
    sets.sort_by(|a, b| a.name.cmp(&b.name));
    let rest = facts.pods.iter().filter(|pod| !shown.contains(&pod.name_any()));
    let mut pods: Vec<Row> = rest
        .map(|pod| {
            let mut row = row(facts, usage, pod);
            row.owner = controller(pod);
            row.waiting = take(&mut waiting, &row.pod).or_else(|| {
                // Those that another controller made are not among what the sets wait for.
                let own = pod::explain(facts, pod).into_iter().next()?;
                Some(Waiting::of(&own, facts.now))
            });
            row
        })
        .collect();
    pods.sort_by(|a, b| a.pod.cmp(&b.pod));
    Overview { namespace: facts.namespace.clone(), time: facts.now, sets, pods, waiting }
}

fn set(facts: &Facts, usage: &Usage, object: &DynamicObject, waiting: &mut Vec<Waiting>) -> Set {
    let name = object.name_any();
    let about = format!("sts/{name}");
    let own = |waiting: &mut Vec<Waiting>| waiting.extract_if(.., |waits| waits.object == about).collect();
    let Ok(observed) = controllers::statefulset::observe(object, &facts.pods, &facts.claims, &facts.revisions) else {
        // What keeps it from being carried out is among what waits.
        let rollout = Rollout { revision: String::new(), done: 0, says: None };
        let replicas = object.data["spec"]["replicas"].as_i64().unwrap_or(1);
        return Set {
            name,
            replicas,
            ready: 0,
            ordered: true,
            rollout,
            undo: None,
            rows: Vec::new(),
            waiting: own(waiting),
        };
    };
    let newest = planner::plan(&observed, facts.now.as_millisecond()).status.update_revision;
    let mut rows = rows(facts, usage, &observed, &newest);
    for row in &mut rows {
        row.waiting = take(waiting, &row.pod);
    }
    let is_ready = |row: &&Row| row.state == State::Ready && !row.surplus;
    let ready = rows.iter().filter(is_ready).count();
    let done = rows.iter().filter(is_ready).filter(|row| !row.outdated).count();
    let outdated = rows.iter().filter(|row| row.outdated && !row.surplus).count();
    let says = (outdated > 0).then(|| {
        let of = observed.set.wanted();
        format!("{done} of {of} have revision {} and are Ready, {outdated} have an older one", short(&name, &newest))
    });
    Set {
        replicas: observed.set.wanted(),
        ready,
        ordered: observed.set.is_ordered(),
        rollout: Rollout { revision: short(&name, &newest), done, says },
        undo: undo(&observed, &newest),
        rows,
        waiting: own(waiting),
        name,
    }
}

/// The wanted ordinals, and those that are there.
fn rows(facts: &Facts, usage: &Usage, observed: &Observed, newest: &str) -> Vec<Row> {
    let set = &observed.set;
    let wanted: BTreeSet<i32> = (0..set.wanted()).map_while(|index| set.ordinal_at(index)).collect();
    let mut all: BTreeMap<i32, Option<&Pod>> = wanted.iter().map(|ordinal| (*ordinal, None)).collect();
    for member in observed.pods.iter().filter(|member| member.pod.controller().is_some_and(|o| o.uid == set.uid)) {
        let own = planner::parent_and_ordinal(&member.pod.name).filter(|(parent, _)| *parent == set.name);
        if let Some((_, ordinal)) = own {
            all.insert(ordinal, facts.pod(&member.pod.name));
        }
    }
    let place = |(ordinal, pod): (i32, Option<&Pod>)| {
        let mut row = match pod {
            Some(pod) => row(facts, usage, pod),
            None => absent(facts, usage, set, ordinal),
        };
        row.ordinal = Some(ordinal);
        row.surplus = !wanted.contains(&ordinal);
        if let Some(pod) = pod {
            let revision = pod.labels().get(REVISION).cloned().unwrap_or_default();
            row.outdated = !newest.is_empty() && revision != newest;
            row.revision = short(&set.name, &revision);
        }
        row
    };
    all.into_iter().map(place).collect()
}

/// The place of a pod that is not there; its claims may be.
fn absent(facts: &Facts, usage: &Usage, set: &planner::Set, ordinal: i32) -> Row {
    let claims = set.claim_templates.iter().map(|template| planner::claim_name(template, &set.name, ordinal));
    let volumes = claims.filter(|name| facts.claim(name).is_some()).map(|name| volume(facts, usage, &name)).collect();
    Row {
        pod: planner::pod_name(&set.name, ordinal),
        uid: None,
        ordinal: Some(ordinal),
        owner: None,
        state: State::Absent,
        created: None,
        surplus: false,
        revision: String::new(),
        outdated: false,
        node: String::new(),
        ip: String::new(),
        restarts: 0,
        containers: Vec::new(),
        cpu_millis: None,
        memory_bytes: None,
        volumes,
        waiting: None,
    }
}

/// A pod that is there.
fn row(facts: &Facts, usage: &Usage, pod: &Pod) -> Row {
    let spec = pod.spec.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let used = usage.pods.get(&uid).copied().unwrap_or_default();
    let name = pod.name_any();
    let claims = spec.volumes.iter().flatten().filter_map(|volume| match &volume.persistent_volume_claim {
        Some(source) => Some(source.claim_name.clone()),
        None => volume.ephemeral.as_ref().map(|_| format!("{name}-{}", volume.name)),
    });
    let statuses = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    Row {
        uid: Some(uid),
        ordinal: None,
        owner: None,
        state: state(pod),
        created: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
        surplus: false,
        revision: String::new(),
        outdated: false,
        node: spec.node_name.clone().unwrap_or_default(),
        ip: status.pod_ip.clone().unwrap_or_default(),
        restarts: statuses.map(|container| container.restart_count).sum(),
        containers: containers.map(|container| container.name.clone()).collect(),
        cpu_millis: used.cpu_millis,
        memory_bytes: used.memory_bytes,
        volumes: claims.map(|claim| volume(facts, usage, &claim)).collect(),
        waiting: None,
        pod: name,
    }
}

fn state(pod: &Pod) -> State {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    match phase {
        _ if pod.metadata.deletion_timestamp.is_some() => State::Stopping,
        "Failed" => State::Failed,
        "Succeeded" => State::Ended,
        _ if pod::is_ready(pod) => State::Ready,
        _ => State::Unready,
    }
}

fn volume(facts: &Facts, usage: &Usage, name: &str) -> Volume {
    let capacity =
        facts.claim(name).and_then(|claim| claim.status.as_ref()?.capacity.as_ref()?.get("storage").cloned());
    let promised = capacity.and_then(|quantity| Quantity::parse(&quantity.0).ok()?.units().try_into().ok());
    let used = usage.claims.get(name);
    let (used, available) = (used.map(|usage| usage.used), used.and_then(|usage| usage.available));
    Volume {
        claim: name.to_owned(),
        promised_bytes: promised,
        used_bytes: used,
        available_bytes: available,
        percent: used.and_then(|used| percent(promised, used, available)),
    }
}

/// How full a volume is, in hundredths. More than a hundred where a claim holds more than it was promised.
fn percent(promised: Option<u64>, used: u64, available: Option<u64>) -> Option<u64> {
    let room = [promised, available.map(|left| used.saturating_add(left))].into_iter().flatten().min();
    Some(used.saturating_mul(100).div_ceil(room.filter(|room| *room > 0)?))
}

/// The newest revision of the history that is not the one in use.
fn undo(observed: &Observed, newest: &str) -> Option<Undo> {
    let older = observed.revisions.iter().filter(|revision| revision.name != newest);
    older.max_by_key(|revision| revision.number).map(|r| Undo { name: r.name.clone(), number: r.number })
}

/// Takes what is said of a pod out of the list.
fn take(waiting: &mut Vec<Waiting>, pod: &str) -> Option<Waiting> {
    let object = format!("pod/{pod}");
    let mut own = waiting.extract_if(.., |waits| waits.object == object).collect::<Vec<_>>().into_iter();
    own.next()
}

/// Who made a pod.
fn controller(pod: &Pod) -> Option<String> {
    let owner = pod.owner_references().iter().find(|owner| owner.controller == Some(true))?;
    Some(format!("{}/{}", owner.kind.to_lowercase(), owner.name))
}

/// A revision without its set's name.
fn short(set: &str, revision: &str) -> String {
    revision.strip_prefix(set).and_then(|rest| rest.strip_prefix('-')).unwrap_or(revision).to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::overview::usage::{ClaimUsage, PodUsage};

    fn facts(replicas: i64, pods: Value) -> Facts {
        let mut facts = Facts::none();
        facts.namespace = "default".to_owned();
        facts.now = jiff::Timestamp::from_second(60).unwrap();
        facts.sets = serde_json::from_value(json!([{"apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "web", "namespace": "default", "uid": "s", "generation": 1},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}],
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "app"}]}}},
            "status": {"observedGeneration": 1}}]))
        .unwrap();
        facts.pods = serde_json::from_value(pods).unwrap();
        facts
    }

    fn member(ordinal: i32, ready: bool) -> Value {
        let status = if ready { "True" } else { "False" };
        json!({"metadata": {"name": format!("web-{ordinal}"), "namespace": "default", "uid": format!("p{ordinal}"),
                "resourceVersion": "5",
                "labels": {"app": "web", "controller-revision-hash": "web-old"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "s",
                    "controller": true}]},
            "spec": {"nodeName": "n", "containers": [{"name": "app"}],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": format!("data-web-{ordinal}")}}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1",
                "containerStatuses": [{"name": "app", "ready": ready, "restartCount": 2, "image": "", "imageID": ""}],
                "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": "1970-01-01T00:00:00Z"}]}})
    }

    #[test]
    fn a_set_is_its_wanted_ordinals_and_those_that_are_there_each_with_what_it_waits_for() {
        let facts = facts(3, json!([member(0, true), member(1, false), member(5, true)]));
        let seen = overview(&facts, &Usage::default());
        let set = &seen.sets[0];
        let rows: Vec<_> = set.rows.iter().map(|row| (row.ordinal, row.state, row.surplus)).collect();
        assert_eq!(
            rows,
            [
                (Some(0), State::Ready, false),
                (Some(1), State::Unready, false),
                (Some(2), State::Absent, false),
                (Some(5), State::Ready, true)
            ]
        );
        assert_eq!((set.ready, set.replicas), (1, 3));
        let told = |at: usize| set.rows[at].waiting.as_ref().map(|waits| waits.sentence.clone()).unwrap_or_default();
        assert!(told(1).starts_with("web-1 is not Ready for 1m0s"), "{}", told(1));
        assert!(told(2).starts_with("web-2 is not created: web-1 is not Ready"), "{}", told(2));
        assert_eq!(seen.waiting, []);
    }

    #[test]
    fn what_nodes_tell_is_beside_pods_and_claims() {
        let mut facts = facts(1, json!([member(0, true)]));
        facts.claims = serde_json::from_value(json!([{"metadata": {"name": "data-web-0", "namespace": "default"},
            "status": {"phase": "Bound", "capacity": {"storage": "1Ki"}}}]))
        .unwrap();
        let mut usage = Usage::default();
        usage.pods.insert("p0".into(), PodUsage { cpu_millis: Some(3), memory_bytes: Some(9) });
        usage.claims.insert("data-web-0".into(), ClaimUsage { used: 512, available: Some(10_000) });
        let seen = overview(&facts, &usage);
        let row = &seen.sets[0].rows[0];
        assert_eq!((row.cpu_millis, row.memory_bytes, row.restarts), (Some(3), Some(9), 2));
        assert_eq!((row.volumes[0].promised_bytes, row.volumes[0].percent), (Some(1024), Some(50)));
    }

    #[test]
    fn a_volume_is_as_full_as_what_is_scarcer_promise_or_disk() {
        assert_eq!(percent(Some(100), 50, Some(1000)), Some(50));
        assert_eq!(percent(Some(1000), 50, Some(50)), Some(50));
        assert_eq!(percent(None, 1, None), None);
        assert_eq!(percent(Some(100), 150, Some(1000)), Some(150));
    }

    #[test]
    fn pods_of_others_say_whose_they_are_and_what_they_wait_for() {
        let mut other = member(0, false);
        other["metadata"]["name"] = "cache-x".into();
        other["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "cache",
            "uid": "r", "controller": true}]);
        let seen = overview(&facts(0, json!([other])), &Usage::default());
        assert_eq!(seen.pods[0].owner.as_deref(), Some("replicaset/cache"));
        assert!(seen.pods[0].waiting.as_ref().is_some_and(|waits| waits.sentence.starts_with("cache-x is not Ready")));
        assert_eq!(seen.sets[0].rows.len(), 0);
    }

    #[test]
    fn an_older_revision_is_what_undo_returns_to() {
        let mut facts = facts(1, json!([member(0, true)]));
        let owner =
            json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "s", "controller": true}]);
        facts.revisions = serde_json::from_value(json!([{"revision": 4, "data": {"spec": {"template": {"$patch": "replace"}}},
            "metadata": {"name": "web-old", "namespace": "default", "uid": "r", "resourceVersion": "3", "labels": {"app": "web"},
                "ownerReferences": owner}}]))
        .unwrap();
        let set = overview(&facts, &Usage::default()).sets.remove(0);
        assert_eq!(set.undo, Some(Undo { name: "web-old".into(), number: 4 }));
        assert!(set.rows[0].outdated);
        assert!(set.rollout.says.is_some_and(|says| says.contains("1 have an older one")));
    }
}
