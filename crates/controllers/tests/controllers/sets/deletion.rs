//! Ordered deletion in every combination: three cascades, four retention policies, pods broken or missing, whole
//! namespaces; then the same sets again under their names.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams, ListParams, ObjectList, PostParams, PropagationPolicy};
use serde_json::{Value, json};

use super::cluster::{self, Cluster, eventually};

/// What else it takes to delete a set.
const AROUND: &str = "garbagecollector,namespace,pvc-protection";
const RETENTION: [(&str, &str); 4] =
    [("Retain", "Retain"), ("Delete", "Retain"), ("Retain", "Delete"), ("Delete", "Delete")];
const CONDITIONS: [Condition; 3] = [Condition::BrokenTop, Condition::BrokenBottom, Condition::Missing];

/// How a set is when it is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    BrokenTop,
    BrokenBottom,
    /// The pod in the middle is not there, and nobody has made it again yet.
    Missing,
}

/// One combination, and the set that is in it.
#[derive(Clone, Debug)]
struct Case {
    name: String,
    when_deleted: &'static str,
    when_scaled: &'static str,
    condition: Condition,
}

impl Case {
    fn all(stem: &str) -> Vec<Self> {
        let mut cases = Vec::new();
        for (when_deleted, when_scaled) in RETENTION {
            for condition in CONDITIONS {
                let name = format!("{stem}{}", cases.len());
                cases.push(Self { name, when_deleted, when_scaled, condition });
            }
        }
        cases
    }

    fn set(&self) -> StatefulSet {
        let mut set = cluster::web(3);
        set["metadata"] = json!({"name": self.name, "annotations": {"statefuld.io/deletion": "ordered"}});
        let labels = json!({"app": self.name});
        set["spec"]["selector"]["matchLabels"] = labels.clone();
        set["spec"]["template"]["metadata"]["labels"] = labels;
        set["spec"]["persistentVolumeClaimRetentionPolicy"] =
            json!({"whenDeleted": self.when_deleted, "whenScaled": self.when_scaled});
        serde_json::from_value(set).expect("a set")
    }

    /// The pods that exist when it is deleted, from the top.
    fn pods(&self) -> Vec<String> {
        let there = |n: &i32| self.condition != Condition::Missing || *n != 1;
        [2, 1, 0].iter().filter(|n| there(n)).map(|n| format!("{}-{n}", self.name)).collect()
    }

    /// Puts it in its condition, while no controller mends it.
    async fn break_it(&self, cluster: &Cluster, space: &str) {
        let pod = |n: u32| format!("{}-{n}", self.name);
        match self.condition {
            Condition::BrokenTop => cluster.kubelet.hold_in(cluster, space, &pod(2)).await,
            Condition::BrokenBottom => cluster.kubelet.hold_in(cluster, space, &pod(0)).await,
            Condition::Missing => {
                let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), space);
                pods.delete(&pod(1), &DeleteParams::default()).await.expect("it is there");
                eventually("it is gone", async || pods.get_opt(&pod(1)).await.expect("an answer").is_none()).await;
            }
        }
    }

    /// Pods of the set that went since a moment, in the order in which they did.
    fn gone(&self, cluster: &Cluster, since: usize) -> Vec<String> {
        let prefix = format!("-{}-", self.name);
        let history = cluster.kubelet.history();
        history[since..].iter().filter(|line| line.starts_with(&prefix)).map(|line| line[1..].to_owned()).collect()
    }
}

fn sets(cluster: &Cluster, space: &str) -> Api<StatefulSet> {
    Api::namespaced(cluster.client.clone(), space)
}

async fn claims(cluster: &Cluster, space: &str, set: &str) -> ObjectList<PersistentVolumeClaim> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client.clone(), space);
    claims.list(&ListParams::default().labels(&format!("app={set}"))).await.expect("the API answers")
}

async fn all_ready(cluster: &Cluster, space: &str, cases: &[Case]) {
    for case in cases {
        eventually("the set is whole", async || {
            let set = sets(cluster, space).get(&case.name).await.expect("it is there");
            set.status.is_some_and(|s| (s.replicas, s.ready_replicas) == (3, Some(3)))
        })
        .await;
    }
}

fn uids(claims: ObjectList<PersistentVolumeClaim>) -> Vec<Option<String>> {
    claims.items.into_iter().map(|claim| claim.metadata.uid).collect()
}

async fn all_cases_with(cascade: PropagationPolicy) {
    let cluster = Cluster::start().await;
    cluster.start_around(AROUND);
    let space = cluster::NAMESPACE;
    let cases = Case::all("s");
    for case in &cases {
        sets(&cluster, space).create(&PostParams::default(), &case.set()).await.expect("it is valid");
    }
    all_ready(&cluster, space, &cases).await;
    let mut before = Vec::new();
    for case in &cases {
        before.push(uids(claims(&cluster, space, &case.name).await));
    }
    cluster.stop_controller().await;
    for case in &cases {
        case.break_it(&cluster, space).await;
    }
    let since = cluster.kubelet.history().len();
    for case in &cases {
        let params = DeleteParams { propagation_policy: Some(cascade.clone()), ..DeleteParams::default() };
        sets(&cluster, space).delete(&case.name, &params).await.expect("it is there");
        if !matches!(cascade, PropagationPolicy::Orphan) {
            let again = sets(&cluster, space).create(&PostParams::default(), &case.set()).await;
            let refused = again.expect_err("its name is taken while its pods stop");
            assert!(matches!(&refused, kube::Error::Api(status) if status.code == 409), "{refused}");
        }
    }
    cluster.start_controller();
    for case in &cases {
        eventually("the set is gone", async || {
            sets(&cluster, space).get_opt(&case.name).await.expect("the API answers").is_none()
        })
        .await;
        after(&cluster, space, case, &cascade, since).await;
    }
    for (case, before) in cases.iter().zip(before) {
        for n in [0, 2] {
            cluster.kubelet.release_in(&cluster, space, &format!("{}-{n}", case.name)).await;
        }
        sets(&cluster, space).create(&PostParams::default(), &case.set()).await.expect("the name is free");
        all_ready(&cluster, space, std::slice::from_ref(case)).await;
        let kept = matches!(cascade, PropagationPolicy::Orphan) || case.when_deleted == "Retain";
        let same = uids(claims(&cluster, space, &case.name).await) == before;
        assert_eq!(same, kept, "{case:?}: its claims are found again, or are new");
    }
}

/// What is left of a set that is gone.
async fn after(cluster: &Cluster, space: &str, case: &Case, cascade: &PropagationPolicy, since: usize) {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), space);
    let own = ListParams::default().labels(&format!("app={}", case.name));
    let left = pods.list(&own).await.expect("the API answers").items;
    let orphans = matches!(cascade, PropagationPolicy::Orphan);
    if orphans {
        assert_eq!(case.gone(cluster, since), Vec::<String>::new(), "{case:?}: nothing stops");
        assert_eq!(left.len(), case.pods().len(), "{case:?}");
        let owned = |pod: &Pod| pod.metadata.owner_references.as_ref().is_some_and(|owners| !owners.is_empty());
        assert!(!left.iter().any(owned), "{case:?}");
    } else {
        assert_eq!(left.len(), 0, "{case:?}: the set goes last");
        assert_eq!(case.gone(cluster, since), case.pods(), "{case:?} {cascade:?}: from the top");
    }
    if orphans || case.when_deleted == "Retain" {
        let claims = claims(cluster, space, &case.name).await.items;
        let going = claims.iter().filter(|claim| claim.metadata.deletion_timestamp.is_some()).count();
        assert_eq!((claims.len(), going), (3, 0), "{case:?} {cascade:?}: retained");
    } else {
        eventually("its claims are gone", async || claims(cluster, space, &case.name).await.items.is_empty()).await;
    }
}

#[tokio::test]
async fn ordered_deletion_in_the_background_with_each_retention_and_broken_or_missing_pods() {
    all_cases_with(PropagationPolicy::Background).await;
}

#[tokio::test]
async fn ordered_deletion_in_the_foreground_with_each_retention_and_broken_or_missing_pods() {
    all_cases_with(PropagationPolicy::Foreground).await;
}

#[tokio::test]
async fn orphaning_stops_nothing_with_each_retention_and_broken_or_missing_pods() {
    all_cases_with(PropagationPolicy::Orphan).await;
}

#[tokio::test]
async fn a_namespace_that_is_deleted_stops_its_ordered_sets_from_the_top() {
    let cluster = Cluster::start().await;
    cluster.start_around(AROUND);
    let spaces: Api<Namespace> = Api::all(cluster.client.clone());
    let space = "leaving";
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": space}})).expect("a namespace");
    spaces.create(&PostParams::default(), &namespace).await.expect("it is valid");
    let cases = Case::all("n");
    for case in &cases {
        sets(&cluster, space).create(&PostParams::default(), &case.set()).await.expect("it is valid");
    }
    all_ready(&cluster, space, &cases).await;
    cluster.stop_controller().await;
    for case in &cases {
        case.break_it(&cluster, space).await;
    }
    let since = cluster.kubelet.history().len();
    spaces.delete(space, &DeleteParams::default()).await.expect("nothing protects it");
    cluster.start_controller();
    eventually("the namespace is gone", async || spaces.get_opt(space).await.expect("an answer").is_none()).await;
    for case in &cases {
        eventually("all that went was told", async || case.gone(&cluster, since).len() == case.pods().len()).await;
        assert_eq!(case.gone(&cluster, since), case.pods(), "{case:?}: from the top");
    }
    let again: Value = serde_json::to_value(&namespace).expect("JSON");
    let again: Namespace = serde_json::from_value(again).expect("a namespace");
    spaces.create(&PostParams::default(), &again).await.expect("the name is free");
}

#[tokio::test]
async fn without_its_annotation_a_set_that_goes_falls_back_to_no_order() {
    let cluster = Cluster::start().await;
    cluster.start_around(AROUND);
    let case = &Case::all("f")[0];
    let space = cluster::NAMESPACE;
    sets(&cluster, space).create(&PostParams::default(), &case.set()).await.expect("it is valid");
    all_ready(&cluster, space, std::slice::from_ref(case)).await;
    // Nobody deletes its pods: the set is held by its finalizer alone.
    cluster.stop_controller().await;
    sets(&cluster, space).delete(&case.name, &DeleteParams::background()).await.expect("it is there");
    let held = sets(&cluster, space).get(&case.name).await.expect("it is held");
    assert_eq!(held.metadata.finalizers.unwrap_or_default(), ["statefuld.io/ordered-deletion"]);
    cluster.patch(&case.name, json!({"metadata": {"annotations": {"statefuld.io/deletion": null}}})).await;
    eventually("the set and its pods are gone without a controller's doing", async || {
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), space);
        let own = ListParams::default().labels(&format!("app={}", case.name));
        let left = pods.list(&own).await.expect("the API answers").items;
        left.is_empty() && sets(&cluster, space).get_opt(&case.name).await.expect("an answer").is_none()
    })
    .await;
}
