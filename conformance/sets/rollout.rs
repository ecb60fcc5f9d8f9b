//! Updates, partitions and history.

use serde_json::{Value, json};

use super::{Act, all_ready, ensure, image, observed, revision_of, revisions, set, status, traced};
use crate::players::objects::{Kind, ready, terminating, uid};
use crate::players::stage::Stage;
use crate::runner::Verdict;

pub(super) const CASES: &[(&str, Act)] = &[
    ("rolling_update_and_rollback_from_the_top", |s| Box::pin(update_and_rollback(s))),
    ("canary_and_phased_updates", |s| Box::pin(canary(s))),
    ("a_deleted_pod_below_the_partition_comes_back_old", |s| Box::pin(partition_one(s))),
    ("a_pod_with_finalizer_below_the_partition_comes_back_old", |s| Box::pin(partition_one_finalizer(s))),
    ("on_delete_updates_nothing_by_itself", |s| Box::pin(on_delete(s))),
    ("max_unavailable_ordered", |s| Box::pin(max_unavailable(s, "OrderedReady"))),
    ("max_unavailable_parallel", |s| Box::pin(max_unavailable(s, "Parallel"))),
    ("recreate_ends_all_before_it_starts_one", |s| Box::pin(recreate(s))),
    ("recreate_frees_a_stuck_pod_and_keeps_the_claims", |s| Box::pin(recreate_stuck(s))),
    ("a_change_of_replicas_makes_no_revision", |s| Box::pin(no_revision(s))),
    ("history_is_limited", |s| Box::pin(history(s))),
];

const THREE: [&str; 3] = ["web-0", "web-1", "web-2"];

/// All three ready and of the update revision, which is the current one.
async fn settled(stage: &Stage) -> Verdict {
    stage
        .wait("all are ready at one revision", |seen| {
            let (current, update) = revisions(seen, "web");
            all_ready(seen, &THREE)
                && observed(seen, "web")
                && current == update
                && THREE.iter().all(|pod| revision_of(seen, pod) == update)
        })
        .await
}

/// "should perform rolling updates and roll backs of template modifications"
async fn update_and_rollback(stage: &Stage) -> Verdict {
    stage.create(Kind::Sets, &set("web", 3, json!({}))).await?;
    settled(stage).await?;
    let first = revisions(&stage.world.look(), "web").0;
    stage.make_ready("web-1", false).await?;
    stage.patch(Kind::Sets, "web", &image("v2")).await?;
    stage
        .wait("the update revision is another", |seen| {
            let (current, update) = revisions(seen, "web");
            current == first && update != first
        })
        .await?;
    stage.quiet().await?;
    stage.make_ready("web-1", true).await?;
    settled(stage).await?;
    let second = revisions(&stage.world.look(), "web").1;
    ensure(second != first, || "another revision".into())?;
    let gone = traced(&stage.world.look(), "-");
    ensure(gone == ["web-2", "web-1", "web-0"], || format!("replaced from the top, not {gone:?}"))?;
    stage.patch(Kind::Sets, "web", &image("v1")).await?;
    stage.wait("the first revision is the target again", |seen| revisions(seen, "web").1 == first).await?;
    settled(stage).await
}

/// "should perform canary updates and phased rolling updates of template modifications"
async fn canary(stage: &Stage) -> Verdict {
    stage.create(Kind::Sets, &set("web", 3, partition(3))).await?;
    settled(stage).await?;
    let first = revisions(&stage.world.look(), "web").0;
    stage.patch(Kind::Sets, "web", &image("v2")).await?;
    stage.wait("there is a new revision", |seen| revisions(seen, "web").1 != first).await?;
    stage.quiet().await?;
    let second = revisions(&stage.world.look(), "web").1;
    at(stage, [&first, &first, &first])?;
    lower(stage, 2).await?;
    stage.wait("the canary is new", |seen| all_ready(seen, &THREE) && revision_of(seen, "web-2") == second).await?;
    stage.quiet().await?;
    at(stage, [&first, &first, &second])?;
    for pod in ["web-0", "web-2"] {
        let before = stage.pod_uid(pod)?;
        stage.delete(Kind::Pods, pod).await?;
        stage.wait("it is back", |seen| back(seen, pod, &before) && all_ready(seen, &THREE)).await?;
    }
    at(stage, [&first, &first, &second])?;
    lower(stage, 1).await?;
    stage.wait("web-1 follows", |seen| all_ready(seen, &THREE) && revision_of(seen, "web-1") == second).await?;
    stage.quiet().await?;
    at(stage, [&first, &second, &second])?;
    lower(stage, 0).await?;
    settled(stage).await
}

/// "…phased rolling updates … for partiton1 and delete pod-0 without failing container"
async fn partition_one(stage: &Stage) -> Verdict {
    let (first, second) = updated_to_partition_one(stage).await?;
    let before = stage.pod_uid("web-0")?;
    stage.delete(Kind::Pods, "web-0").await?;
    stage.wait("web-0 is back", |seen| back(seen, "web-0", &before) && all_ready(seen, &THREE)).await?;
    at(stage, [&first, &second, &second])
}

/// "… with failing container": its object lingers behind a finalizer.
async fn partition_one_finalizer(stage: &Stage) -> Verdict {
    let (first, _) = updated_to_partition_one(stage).await?;
    stage.patch(Kind::Pods, "web-0", &json!({"metadata": {"finalizers": ["example.com/hold"]}})).await?;
    let before = stage.pod_uid("web-0")?;
    stage.delete(Kind::Pods, "web-0").await?;
    stage.report("web-0", "Failed", false).await?;
    stage.patch(Kind::Pods, "web-0", &json!({"metadata": {"finalizers": null}})).await?;
    stage.wait("web-0 is back", |seen| back(seen, "web-0", &before) && all_ready(seen, &THREE)).await?;
    let revision = revision_of(&stage.world.look(), "web-0");
    ensure(revision == first, || format!("web-0 came back at {revision}, not at the old {first}"))
}

/// "should implement legacy replacement when the update strategy is OnDelete"
async fn on_delete(stage: &Stage) -> Verdict {
    stage
        .create(Kind::Sets, &set("web", 3, json!({"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}})))
        .await?;
    settled(stage).await?;
    let first = revisions(&stage.world.look(), "web").0;
    for pod in THREE {
        let before = stage.pod_uid(pod)?;
        stage.delete(Kind::Pods, pod).await?;
        stage.wait("it is back", |seen| back(seen, pod, &before) && all_ready(seen, &THREE)).await?;
    }
    at(stage, [&first, &first, &first])?;
    stage.patch(Kind::Sets, "web", &image("v2")).await?;
    stage.wait("there is a new revision", |seen| revisions(seen, "web").1 != first).await?;
    stage.quiet().await?;
    at(stage, [&first, &first, &first])?;
    let second = revisions(&stage.world.look(), "web").1;
    for pod in THREE {
        let before = stage.pod_uid(pod)?;
        stage.delete(Kind::Pods, pod).await?;
        stage.wait("it is back", |seen| back(seen, pod, &before) && all_ready(seen, &THREE)).await?;
    }
    at(stage, [&second, &second, &second])
}

/// maxUnavailable, since 1.35 for both policies: that many go at once, never more.
async fn max_unavailable(stage: &Stage, policy: &str) -> Verdict {
    let strategy = json!({"podManagementPolicy": policy,
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2}}});
    stage.create(Kind::Sets, &set("web", 3, strategy)).await?;
    settled(stage).await?;
    stage.kubelet.rule(json!({"image": "v2", "ready": false}));
    stage.patch(Kind::Sets, "web", &image("v2")).await?;
    stage.wait("two are replaced", |seen| traced(seen, "-").len() == 2 && seen.all(Kind::Pods).count() >= 2).await?;
    stage.quiet().await?;
    let gone = traced(&stage.world.look(), "-");
    let web_0 = stage.world.look().get(Kind::Pods, "web-0").cloned();
    ensure(gone.len() == 2 && !gone.contains(&"web-0".to_owned()), || format!("the two topmost went: {gone:?}"))?;
    ensure(web_0.is_some_and(|pod| ready(&pod) && !terminating(&pod)), || "web-0 stays available".into())?;
    stage.kubelet.rule(json!({"image": "v2", "ready": true}));
    for _ in 0..3 {
        stage.quiet().await?;
        let unready: Vec<String> = {
            let seen = stage.world.look();
            seen.all(Kind::Pods).filter(|(_, pod)| !ready(pod)).map(|(name, _)| name.clone()).collect()
        };
        for pod in unready {
            stage.make_ready(&pod, true).await?;
        }
    }
    settled(stage).await
}

/// KEP-3541, 1.37: Recreate.
async fn recreate(stage: &Stage) -> Verdict {
    stage
        .create(Kind::Sets, &set("web", 3, json!({"updateStrategy": {"type": "Recreate", "rollingUpdate": null}})))
        .await?;
    settled(stage).await?;
    stage.kubelet.rule(json!({"pod": "web-1", "stop": false}));
    let from = stage.world.look().trace.len();
    stage.patch(Kind::Sets, "web", &image("v2")).await?;
    stage.wait("two have gone", |seen| traced(seen, "-").len() == 2).await?;
    stage.quiet().await?;
    let created = stage.world.look().lines(Kind::Pods, from).into_iter().filter(|line| line.starts_with('+')).count();
    ensure(created == 0, || "nothing starts before the last old pod has gone".into())?;
    stage.kubelet.rule(json!({"pod": "web-1", "stop": true}));
    settled(stage).await
}

/// KEP-3541: a pod that never becomes ready holds up no Recreate, and claims are left alone.
async fn recreate_stuck(stage: &Stage) -> Verdict {
    let mut recreate = set("web", 2, json!({"updateStrategy": {"type": "Recreate", "rollingUpdate": null}}));
    recreate["spec"]["volumeClaimTemplates"] = json!([crate::players::objects::claim("data", &Value::Null)]);
    stage.kubelet.rule(json!({"pod": "web-0", "ready": false}));
    stage.create(Kind::Sets, &recreate).await?;
    stage.wait("web-0 is there", |seen| seen.get(Kind::Pods, "web-0").is_some()).await?;
    stage.quiet().await?;
    let before = stage.world.look().get(Kind::Claims, "data-web-0").map(|claim| uid(claim).to_owned());
    let pod = stage.pod_uid("web-0")?;
    stage.kubelet.rule(json!({"pod": "web-0", "ready": true}));
    stage.patch(Kind::Sets, "web", &image("v2")).await?;
    stage.wait("both are ready", |seen| all_ready(seen, &["web-0", "web-1"])).await?;
    let after = stage.world.look().get(Kind::Claims, "data-web-0").map(|claim| uid(claim).to_owned());
    ensure(stage.pod_uid("web-0")? != pod, || "web-0 is another pod".into())?;
    ensure(before.is_some() && before == after, || format!("its claim stays: {before:?}, {after:?}"))
}

/// test/integration/statefulset: "TestSpecReplicasChange"
async fn no_revision(stage: &Stage) -> Verdict {
    stage.create(Kind::Sets, &set("web", 2, json!({}))).await?;
    stage.wait("two are ready", |seen| all_ready(seen, &["web-0", "web-1"])).await?;
    let before = revisions(&stage.world.look(), "web");
    for replicas in [0, 3] {
        stage.patch(Kind::Sets, "web", &json!({"spec": {"replicas": replicas}})).await?;
        let field = "replicas";
        stage.wait("it is scaled", |seen| observed(seen, "web") && status(seen, "web", field) == replicas).await?;
    }
    stage.wait("three are ready", |seen| all_ready(seen, &THREE)).await?;
    ensure(revisions(&stage.world.look(), "web") == before, || "the revisions are the same".into())?;
    ensure(stage.world.look().all(Kind::Revisions).count() == 1, || "there is one".into())
}

/// revisionHistoryLimit: live revisions do not count, the oldest others go.
async fn history(stage: &Stage) -> Verdict {
    stage.create(Kind::Sets, &set("web", 1, json!({"revisionHistoryLimit": 2}))).await?;
    for tag in ["v2", "v3", "v4", "v5"] {
        let update = revisions(&stage.world.look(), "web").1;
        stage.patch(Kind::Sets, "web", &image(tag)).await?;
        stage
            .wait("it is rolled out", |seen| {
                let (current, next) = revisions(seen, "web");
                next != update && current == next && all_ready(seen, &["web-0"])
            })
            .await?;
    }
    stage.wait("two old ones and the live one are left", |seen| seen.all(Kind::Revisions).count() == 3).await?;
    let numbers: Vec<u64> = {
        let seen = stage.world.look();
        let mut numbers: Vec<u64> =
            seen.all(Kind::Revisions).filter_map(|(_, item)| item["revision"].as_u64()).collect();
        numbers.sort_unstable();
        numbers
    };
    ensure(numbers == [3, 4, 5], || format!("the newest are kept, not {numbers:?}"))
}

fn partition(at: u32) -> Value {
    json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": at}}})
}

async fn lower(stage: &Stage, at: u32) -> Verdict {
    stage.patch(Kind::Sets, "web", &json!({"spec": partition(at)})).await.map(drop)
}

async fn updated_to_partition_one(stage: &Stage) -> Result<(String, String), String> {
    stage.create(Kind::Sets, &set("web", 3, partition(1))).await?;
    settled(stage).await?;
    let first = revisions(&stage.world.look(), "web").0;
    stage.patch(Kind::Sets, "web", &image("v2")).await?;
    stage
        .wait("1 and 2 are new", |seen| {
            let update = revisions(seen, "web").1;
            update != first
                && all_ready(seen, &THREE)
                && ["web-1", "web-2"].iter().all(|pod| revision_of(seen, pod) == update)
        })
        .await?;
    Ok((first, revisions(&stage.world.look(), "web").1))
}

fn back(seen: &crate::players::world::Seen, pod: &str, before: &str) -> bool {
    seen.get(Kind::Pods, pod).is_some_and(|pod| uid(pod) != before)
}

/// Whether the three pods are of these revisions.
fn at(stage: &Stage, wanted: [&str; 3]) -> Verdict {
    let seen = stage.world.look();
    let found: Vec<String> = THREE.iter().map(|pod| revision_of(&seen, pod)).collect();
    ensure(found == wanted, || format!("pods are of {found:?}, not of {wanted:?}"))
}
