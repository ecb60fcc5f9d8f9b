//! Deployments: rollouts and what is told of them.

use serde_json::{Value, json};

use super::{Act, DEPLOYMENT, POD, Play, REPLICA_SET, condition, count, ensure, image, template};
use crate::players::objects::{Kind as Seen, name, ready, terminating, text, uid};
use crate::runner::Verdict;

pub(super) const CASES: &[(&str, Act)] = &[
    ("a_rollout_gives_each_template_a_set_and_tells_how_far_it_is", |p| Box::pin(rollout(p))),
    ("undo_makes_an_old_template_the_newest_revision", |p| Box::pin(undo(p))),
    ("a_restart_replaces_every_pod", |p| Box::pin(restart(p))),
    ("a_rollout_keeps_to_its_surge_and_what_may_be_unavailable", |p| Box::pin(bounds(p))),
    ("a_rollout_that_stands_still_is_told_at_its_deadline", |p| Box::pin(deadline(p))),
    ("a_paused_deployment_scales_and_rolls_nothing_out", |p| Box::pin(paused(p))),
    ("history_is_limited", |p| Box::pin(history(p))),
    ("recreate_ends_all_before_it_starts_one", |p| Box::pin(recreate(p))),
    ("it_is_scaled_through_its_subresource_and_takes_its_pods_along", |p| Box::pin(scale(p))),
];

/// Where a deployment and its sets note their revision.
const REVISION: &str = "deployment.kubernetes.io/revision";
/// Where a set notes those that it had before.
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Names the template that a set and its pods are of.
const HASH: &str = "pod-template-hash";

/// A deployment of that many; `more` is put into its spec.
async fn create(play: &Play, replicas: u32, more: Value) -> Verdict {
    let mut spec = json!({"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
        "template": template("v1", "Always")});
    for (field, value) in more.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    play.create(DEPLOYMENT, "web", spec).await.map(drop)
}

/// What `kubectl rollout status` waits for.
async fn rolled_out(play: &Play, replicas: u64) -> Result<Value, String> {
    let is_done = |web: &Value| {
        let all = ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"];
        web["status"]["observedGeneration"] == web["metadata"]["generation"]
            && all.iter().all(|field| count(web, field) == replicas)
            && condition(web, "Progressing") == "True NewReplicaSetAvailable"
    };
    play.until(DEPLOYMENT, "web", "it is rolled out", is_done).await
}

/// What `kubectl rollout history` lists: revisions with the images and numbers of pods of their sets, oldest first.
async fn revisions(play: &Play) -> Result<Vec<(u64, String, u64)>, String> {
    let sets = play.list(REPLICA_SET).await?;
    let row = |set: &Value| {
        let revision = text(&set["metadata"]["annotations"][REVISION]).parse().unwrap_or(0);
        let image = text(&set["spec"]["template"]["spec"]["containers"][0]["image"]);
        (
            revision,
            image.rsplit(':').next().unwrap_or_default().to_owned(),
            set["spec"]["replicas"].as_u64().unwrap_or(0),
        )
    };
    let mut rows: Vec<_> = sets.iter().map(row).collect();
    rows.sort();
    Ok(rows)
}

fn row(revision: u64, image: &str, replicas: u64) -> (u64, String, u64) {
    (revision, image.to_owned(), replicas)
}

async fn rollout(play: &Play) -> Verdict {
    create(play, 3, Value::Null).await?;
    let web = rolled_out(play, 3).await?;
    ensure(condition(&web, "Available") == "True MinimumReplicasAvailable", || format!("{:#}", web["status"]))?;
    ensure(web["metadata"]["annotations"][REVISION] == "1", || format!("{:#}", web["metadata"]))?;
    let sets = play.list(REPLICA_SET).await?;
    let [set] = sets.as_slice() else { return Err(format!("one set, not {sets:#?}")) };
    let hash = text(&set["metadata"]["labels"][HASH]);
    ensure(!hash.is_empty() && name(set) == format!("web-{hash}"), || format!("{:#}", set["metadata"]))?;
    ensure(set["spec"]["selector"]["matchLabels"] == json!({"app": "web", HASH: hash}), || {
        format!("{:#}", set["spec"])
    })?;
    for pod in play.list(POD).await? {
        let owner = &pod["metadata"]["ownerReferences"][0];
        let is_own = owner["uid"] == uid(set) && owner["controller"] == true && pod["metadata"]["labels"][HASH] == hash;
        ensure(is_own && name(&pod).starts_with(&format!("web-{hash}-")), || format!("{:#}", pod["metadata"]))?;
    }
    play.patch(DEPLOYMENT, "web", image("v2")).await?;
    let web = rolled_out(play, 3).await?;
    ensure(web["metadata"]["annotations"][REVISION] == "2", || format!("{:#}", web["metadata"]))?;
    let rows = revisions(play).await?;
    ensure(rows == [row(1, "v1", 0), row(2, "v2", 3)], || format!("{rows:?}"))
}

async fn undo(play: &Play) -> Verdict {
    create(play, 1, Value::Null).await?;
    rolled_out(play, 1).await?;
    play.patch(DEPLOYMENT, "web", image("v2")).await?;
    rolled_out(play, 1).await?;
    // `kubectl rollout undo` puts the template of an older set in place.
    play.patch(DEPLOYMENT, "web", image("v1")).await?;
    let web = rolled_out(play, 1).await?;
    ensure(web["metadata"]["annotations"][REVISION] == "3", || format!("{:#}", web["metadata"]))?;
    let rows = revisions(play).await?;
    ensure(rows == [row(2, "v2", 0), row(3, "v1", 1)], || format!("the old set serves again: {rows:?}"))?;
    let before: Vec<String> = play
        .list(REPLICA_SET)
        .await?
        .iter()
        .filter_map(|set| set["metadata"]["annotations"][HISTORY].as_str().map(str::to_owned))
        .collect();
    ensure(before == ["1"], || format!("it says which revision it was: {before:?}"))
}

async fn restart(play: &Play) -> Verdict {
    create(play, 2, Value::Null).await?;
    rolled_out(play, 2).await?;
    let before: Vec<String> = play.list(POD).await?.iter().map(|pod| uid(pod).to_owned()).collect();
    // What `kubectl rollout restart` writes.
    const RESTARTED: &str = "kubectl.kubernetes.io/restartedAt";
    let now = json!({RESTARTED: "2021-01-01T00:00:00Z"});
    play.patch(DEPLOYMENT, "web", json!({"spec": {"template": {"metadata": {"annotations": now}}}})).await?;
    rolled_out(play, 2).await?;
    let is_new = |pods: &[Value]| pods.len() == 2 && pods.iter().all(|pod| !before.contains(&uid(pod).to_owned()));
    let pods = play.until_all(POD, "every pod is another", is_new).await?;
    let marked = |pod: &Value| pod["metadata"]["annotations"][RESTARTED] == now[RESTARTED];
    ensure(pods.iter().all(marked), || format!("{pods:#?}"))?;
    let rows = revisions(play).await?;
    ensure(rows == [row(1, "v1", 0), row(2, "v1", 2)], || format!("{rows:?}"))
}

async fn bounds(play: &Play) -> Verdict {
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": "25%"}});
    create(play, 4, json!({"strategy": strategy})).await?;
    rolled_out(play, 4).await?;
    play.stage.kubelet.rule(json!({"image": "v2", "ready": false}));
    play.patch(DEPLOYMENT, "web", image("v2")).await?;
    // One more than wanted, and one fewer available: then it waits for the first of the new ones.
    let stands = |web: &Value| {
        web["status"]["observedGeneration"] == web["metadata"]["generation"]
            && [count(web, "replicas"), count(web, "updatedReplicas"), count(web, "availableReplicas")] == [5, 2, 3]
    };
    let web = play.until(DEPLOYMENT, "web", "it waits for the new ones", stands).await?;
    ensure(count(&web, "unavailableReplicas") == 2, || format!("{:#}", web["status"]))?;
    play.stage.quiet().await?;
    let rows = revisions(play).await?;
    ensure(rows == [row(1, "v1", 3), row(2, "v2", 2)], || format!("{rows:?}"))?;
    play.stage.kubelet.rule(json!({"image": "v2", "ready": true}));
    let waiting: Vec<String> = {
        let seen = play.stage.world.look();
        seen.all(Seen::Pods).filter(|(_, pod)| !ready(pod)).map(|(name, _)| name.clone()).collect()
    };
    for pod in waiting {
        play.stage.make_ready(&pod, true).await?;
    }
    rolled_out(play, 4).await.map(drop)
}

async fn deadline(play: &Play) -> Verdict {
    create(play, 1, json!({"progressDeadlineSeconds": 1})).await?;
    rolled_out(play, 1).await?;
    play.stage.kubelet.rule(json!({"image": "v2", "ready": false}));
    play.patch(DEPLOYMENT, "web", image("v2")).await?;
    let late = |web: &Value| condition(web, "Progressing") == "False ProgressDeadlineExceeded";
    let web = play.until(DEPLOYMENT, "web", "the deadline is over", late).await?;
    ensure(condition(&web, "Available") == "True MinimumReplicasAvailable", || format!("{:#}", web["status"]))?;
    // Nothing is given up: a template that works goes on.
    play.patch(DEPLOYMENT, "web", image("v3")).await?;
    rolled_out(play, 1).await.map(drop)
}

async fn paused(play: &Play) -> Verdict {
    create(play, 1, Value::Null).await?;
    rolled_out(play, 1).await?;
    play.patch(DEPLOYMENT, "web", json!({"spec": {"paused": true}})).await?;
    let is_paused = |web: &Value| condition(web, "Progressing") == "Unknown DeploymentPaused";
    play.until(DEPLOYMENT, "web", "it is paused", is_paused).await?;
    play.patch(DEPLOYMENT, "web", image("v2")).await?;
    play.patch(DEPLOYMENT, "web", json!({"spec": {"replicas": 3}})).await?;
    let scaled = |web: &Value| count(web, "availableReplicas") == 3 && count(web, "updatedReplicas") == 0;
    play.until(DEPLOYMENT, "web", "the old ones are three", scaled).await?;
    let rows = revisions(play).await?;
    ensure(rows == [row(1, "v1", 3)], || format!("{rows:?}"))?;
    play.patch(DEPLOYMENT, "web", json!({"spec": {"paused": false}})).await?;
    rolled_out(play, 3).await?;
    let rows = revisions(play).await?;
    ensure(rows == [row(1, "v1", 0), row(2, "v2", 3)], || format!("{rows:?}"))
}

async fn history(play: &Play) -> Verdict {
    create(play, 1, json!({"revisionHistoryLimit": 1})).await?;
    rolled_out(play, 1).await?;
    for tag in ["v2", "v3", "v4"] {
        play.patch(DEPLOYMENT, "web", image(tag)).await?;
        rolled_out(play, 1).await?;
    }
    play.until_all(REPLICA_SET, "one old set is kept", |sets| sets.len() == 2).await?;
    let rows = revisions(play).await?;
    ensure(rows == [row(3, "v3", 0), row(4, "v4", 1)], || format!("{rows:?}"))
}

async fn recreate(play: &Play) -> Verdict {
    let mut graceful = template("v1", "Always");
    graceful["spec"]["terminationGracePeriodSeconds"] = 30.into();
    create(play, 2, json!({"strategy": {"type": "Recreate"}, "template": graceful})).await?;
    rolled_out(play, 2).await?;
    play.stage.kubelet.rule(json!({"image": "v1", "stop": false}));
    play.patch(DEPLOYMENT, "web", image("v2")).await?;
    let ending = |pods: &[Value]| pods.len() == 2 && pods.iter().all(terminating);
    play.until_all(POD, "the old ones end", ending).await?;
    play.stage.quiet().await?;
    play.stage.kubelet.rule(json!({"image": "v1", "stop": true}));
    rolled_out(play, 2).await?;
    let trace = play.stage.world.look().lines(Seen::Pods, 0);
    let last_end = trace.iter().rposition(|line| line.starts_with('-'));
    let first_new = trace.iter().enumerate().filter(|(_, line)| line.starts_with('+')).nth(2).map(|(at, _)| at);
    ensure(last_end.is_some() && last_end < first_new, || format!("{trace:#?}"))
}

async fn scale(play: &Play) -> Verdict {
    create(play, 1, Value::Null).await?;
    rolled_out(play, 1).await?;
    let scale = play.stage.client.expect("GET", &play.path(DEPLOYMENT, "web/scale"), None).await?;
    ensure(scale["kind"] == "Scale" && scale["status"]["selector"] == "app=web", || format!("{scale:#}"))?;
    play.patch(DEPLOYMENT, "web/scale", json!({"spec": {"replicas": 3}})).await?;
    rolled_out(play, 3).await?;
    play.delete(DEPLOYMENT, "web", "Foreground").await?;
    play.gone(DEPLOYMENT, "web").await?;
    let left = (play.list(REPLICA_SET).await?.len(), play.list(POD).await?.len());
    ensure(left == (0, 0), || format!("sets and pods that are left: {left:?}"))
}
