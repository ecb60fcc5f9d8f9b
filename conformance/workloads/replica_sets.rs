//! ReplicaSets: as many pods as are wanted, and whose they are.

use serde_json::{Value, json};

use super::{Act, POD, Play, REPLICA_SET, count, ensure, template};
use crate::players::objects::{self as players, controller, name, uid};
use crate::runner::Verdict;

pub(super) const CASES: &[(&str, Act)] = &[
    ("pods_of_nobody_that_match_are_taken_and_those_that_no_longer_do_are_let_go", |p| Box::pin(adoption(p))),
    ("those_that_matter_least_go_first", |p| Box::pin(choice(p))),
    ("a_deleted_pod_is_made_up_for_and_orphans_stay", |p| Box::pin(orphans(p))),
];

async fn create(play: &Play, replicas: u32) -> Result<Value, String> {
    let spec = json!({"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
        "template": template("v1", "Always")});
    play.create(REPLICA_SET, "web", spec).await
}

/// Waits until all pods are ready, and their number is told.
async fn settled(play: &Play, replicas: u64) -> Verdict {
    let is_so = |set: &Value| {
        let all = ["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas"];
        set["status"]["observedGeneration"] == set["metadata"]["generation"]
            && all.iter().all(|field| count(set, field) == replicas)
    };
    play.until(REPLICA_SET, "web", &format!("{replicas} are available"), is_so).await.map(drop)
}

async fn adoption(play: &Play) -> Verdict {
    let stray = players::pod("stray", &json!({"labels": {"app": "web"}, "grace": 0}));
    play.stage.create(players::Kind::Pods, &stray).await?;
    let set = create(play, 2).await?;
    settled(play, 2).await?;
    let pods = play.list(POD).await?;
    ensure(pods.len() == 2 && pods.iter().any(|pod| name(pod) == "stray"), || format!("{pods:#?}"))?;
    let is_own = |pod: &Value| controller(pod).is_some_and(|owner| owner["uid"] == set["metadata"]["uid"]);
    ensure(pods.iter().all(is_own), || format!("{pods:#?}"))?;
    play.patch(POD, "stray", json!({"metadata": {"labels": {"app": "other"}}})).await?;
    play.until(POD, "stray", "it is let go", |pod| controller(pod).is_none()).await?;
    play.until_all(POD, "another took its place", |pods| pods.iter().filter(|pod| is_own(pod)).count() == 2).await?;
    settled(play, 2).await
}

async fn choice(play: &Play) -> Verdict {
    create(play, 4).await?;
    settled(play, 4).await?;
    let pods = play.list(POD).await?;
    let names: Vec<&str> = pods.iter().map(name).collect();
    // One that is not ready goes before those that are; of these the one whose deletion costs least.
    play.stage.make_ready(names[2], false).await?;
    let cost = |cost: &str| json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": cost}}});
    play.patch(POD, names[0], cost("100")).await?;
    play.patch(POD, names[1], cost("-1")).await?;
    play.until(REPLICA_SET, "web", "it knows of the one that is not ready", |set| count(set, "readyReplicas") == 3)
        .await?;
    for (replicas, goes) in [(3, names[2]), (2, names[1]), (1, names[3])] {
        play.patch(REPLICA_SET, "web", json!({"spec": {"replicas": replicas}})).await?;
        play.gone(POD, goes).await?;
        settled(play, replicas).await?;
    }
    let left = play.list(POD).await?;
    ensure(left.len() == 1 && name(&left[0]) == names[0], || format!("{left:#?}"))
}

async fn orphans(play: &Play) -> Verdict {
    create(play, 2).await?;
    settled(play, 2).await?;
    let pods = play.list(POD).await?;
    play.stage.delete(players::Kind::Pods, name(&pods[0])).await?;
    let replaced = |now: &[Value]| now.len() == 2 && now.iter().all(|pod| uid(pod) != uid(&pods[0]));
    let pods = play.until_all(POD, "another took its place", replaced).await?;
    settled(play, 2).await?;
    play.delete(REPLICA_SET, "web", "Orphan").await?;
    play.gone(REPLICA_SET, "web").await?;
    let left = play.list(POD).await?;
    let same = left.iter().map(uid).eq(pods.iter().map(uid));
    ensure(same && left.iter().all(|pod| controller(pod).is_none()), || format!("{left:#?}"))
}
