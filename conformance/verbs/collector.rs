//! The garbage collector: what becomes of objects whose owners go.

use serde_json::{Value, json};

use super::{config, names, text};
use crate::cluster::{Ask, Case};

/// How often a race is run.
const RACES: usize = 8;

/// A config map that others own.
fn owned(name: &str, owners: &[&Value]) -> Value {
    let reference = |owner: &&Value| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"], "blockOwnerDeletion": true})
    };
    let mut map = config(name);
    map["metadata"]["ownerReferences"] = owners.iter().map(reference).collect();
    map
}

/// A delete with a policy.
fn delete(path: &str, policy: &str) -> Ask {
    Ask::new("DELETE", path).json(&json!({"propagationPolicy": policy}))
}

pub(super) async fn an_owner_without_a_solid_reference_takes_its_dependents_along(case: Case) {
    let maps = case.core("configmaps");
    let path = |name: &str| format!("{maps}/{name}");
    let one = case.create(&maps, config("one")).await;
    let two = case.create(&maps, config("two")).await;
    let both = case.create(&maps, owned("both", &[&one, &two])).await;
    case.create(&maps, owned("below", &[&both])).await;
    // Its owner is gone under that name, and another one has the name now.
    let mut stranger = two.clone();
    stranger["metadata"]["uid"] = "00000000-1111-2222-3333-444444444444".into();
    case.create(&maps, owned("strange", &[&stranger])).await;
    case.gone(&path("strange")).await;
    case.ask(delete(&path("one"), "Background")).await;
    let kept = |answer: &crate::cluster::Answer| {
        answer.body["metadata"]["ownerReferences"].as_array().is_some_and(|o| o.len() == 1)
    };
    case.until(Ask::new("GET", &path("both")), "it forgets the owner that has gone", kept).await;
    case.ask(delete(&path("two"), "Background")).await;
    case.gone(&path("both")).await;
    case.gone(&path("below")).await;
}

pub(super) async fn foreground_waits_for_those_that_block(case: Case) {
    let maps = case.core("configmaps");
    let path = |name: &str| format!("{maps}/{name}");
    let owner = case.create(&maps, config("owner")).await;
    let mut blocks = owned("blocks", &[&owner]);
    blocks["metadata"]["finalizers"] = json!(["example.com/x"]);
    case.create(&maps, blocks).await;
    let mut free = owned("free", &[&owner]);
    free["metadata"]["ownerReferences"][0]["blockOwnerDeletion"] = false.into();
    free["metadata"]["finalizers"] = json!(["example.com/x"]);
    case.create(&maps, free).await;
    let marked = case.ask(delete(&path("owner"), "Foreground")).await;
    assert_eq!(marked.body["metadata"]["finalizers"], json!(["foregroundDeletion"]), "{}", marked.body);
    let deleting = |answer: &crate::cluster::Answer| !text(&answer.body, "/metadata/deletionTimestamp").is_empty();
    case.until(Ask::new("GET", &path("blocks")), "it is deleted", deleting).await;
    case.until(Ask::new("GET", &path("free")), "it is deleted", deleting).await;
    assert_eq!(case.get(&path("owner")).await.code, 200);
    case.merge(&path("blocks"), json!({"metadata": {"finalizers": null}})).await;
    case.gone(&path("owner")).await;
    assert_eq!(case.get(&path("free")).await.code, 200, "nobody waited for it");
    case.merge(&path("free"), json!({"metadata": {"finalizers": null}})).await;
}

pub(super) async fn an_orphan_survives_even_if_it_was_made_just_before(case: Case) {
    let maps = case.core("configmaps");
    for n in 0..RACES {
        let (owner, dependent) = (format!("owner-{n}"), format!("dependent-{n}"));
        let object = case.create(&maps, config(&owner)).await;
        case.create(&maps, owned(&dependent, &[&object])).await;
        let answer = case.ask(delete(&format!("{maps}/{owner}"), "Orphan")).await;
        assert_eq!(answer.code, 200, "{}", answer.body);
    }
    for n in 0..RACES {
        case.gone(&format!("{maps}/owner-{n}")).await;
        let free = case.get(&format!("{maps}/dependent-{n}")).await;
        assert_eq!(free.code, 200, "{}", free.body);
        assert_eq!(free.body["metadata"].get("ownerReferences"), None, "{}", free.body);
    }
}

pub(super) async fn a_circle_is_collected_in_the_foreground(case: Case) {
    let maps = case.core("configmaps");
    let path = |name: &str| format!("{maps}/{name}");
    let one = case.create(&maps, config("one")).await;
    let two = case.create(&maps, owned("two", &[&one])).await;
    let owners = owned("one", &[&two])["metadata"]["ownerReferences"].clone();
    case.merge(&path("one"), json!({"metadata": {"ownerReferences": owners}})).await;
    case.ask(delete(&path("one"), "Foreground")).await;
    case.gone(&path("one")).await;
    case.gone(&path("two")).await;
}

/// Waits for the warning about an owner that is elsewhere.
async fn warned(case: &Case, namespace: &str, dependent: &Value, owner: &Value) {
    let uid = text(dependent, "/metadata/uid");
    let selector = format!("reason=OwnerRefInvalidNamespace,involvedObject.uid={uid}");
    let ask = Ask::new("GET", &format!("/api/v1/namespaces/{namespace}/events")).query("fieldSelector", &selector);
    let found = case.until(ask, "a warning", |answer| !names(answer).is_empty()).await;
    let event = &found.body["items"][0];
    let (name, uid) = (text(owner, "/metadata/name"), text(owner, "/metadata/uid"));
    let within = text(dependent, "/metadata/namespace");
    let says = format!(
        "ownerRef [v1/ConfigMap, namespace: {within}, name: {name}, uid: {uid}] does not exist in namespace \"{within}\""
    );
    assert_eq!((text(event, "/type"), text(event, "/message")), ("Warning", &*says), "{event}");
}

pub(super) async fn an_owner_in_another_namespace_is_none(case: Case) {
    let there = case.cluster.case().await.expect("another namespace");
    let owner = there.create(&there.core("configmaps"), config("owner")).await;
    let maps = case.core("configmaps");
    let dependent = case.create(&maps, owned("dependent", &[&owner])).await;
    case.gone(&format!("{maps}/dependent")).await;
    warned(&case, &case.namespace, &dependent, &owner).await;
    there.clean_up().await;
}

pub(super) async fn an_owner_in_a_namespace_has_no_cluster_wide_dependents(case: Case) {
    let owner = case.create(&case.core("configmaps"), config("owner")).await;
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let name = format!("owned-{}", case.namespace);
    let mut role = owned(&name, &[&owner]);
    role.as_object_mut().expect("an object").remove("data");
    role["apiVersion"] = "rbac.authorization.k8s.io/v1".into();
    role["kind"] = "ClusterRole".into();
    role["rules"] = json!([]);
    let role = case.create(roles, role).await;
    warned(&case, "default", &role, &owner).await;
    let path = format!("{roles}/{name}");
    let kept = case.get(&path).await;
    assert_eq!((kept.code, kept.body["metadata"].get("deletionTimestamp")), (200, None), "{}", kept.body);
    case.ask(Ask::new("DELETE", &path)).await;
}
