//! Creation, scaling and failure.

use serde_json::json;

use super::{Act, all_ready, ensure, set, status, traced};
use crate::players::objects::Kind;
use crate::players::stage::Stage;
use crate::players::world::Seen;
use crate::runner::Verdict;

pub(super) const CASES: &[(&str, Act)] = &[
    ("adopts_matching_orphans_and_releases_what_no_longer_matches", |s| Box::pin(adopts_and_releases(s))),
    ("a_failed_predecessor_is_no_deadlock", |s| Box::pin(predecessor_fails(s))),
    ("scaling_is_ordered_and_halts_at_an_unhealthy_pod", |s| Box::pin(scaling_halts(s))),
    ("burst_scaling_goes_on_with_unhealthy_pods", |s| Box::pin(burst_scaling(s))),
    ("an_evicted_pod_is_made_again", |s| Box::pin(evicted(s))),
    ("a_terminating_pod_is_waited_for", |s| Box::pin(terminating_is_waited_for(s))),
    ("status_counts_pods_although_others_are_refused", |s| Box::pin(refused_pods(s))),
];

/// "should adopt matching orphans and release non-matching pods"
async fn adopts_and_releases(stage: &Stage) -> Verdict {
    stage.create(Kind::Sets, &set("web", 1, json!({}))).await?;
    stage.wait("web-0 is ready", |seen| all_ready(seen, &["web-0"])).await?;
    let uid = stage.pod_uid("web-0")?;
    stage.patch(Kind::Pods, "web-0", &json!({"metadata": {"ownerReferences": null}})).await?;
    stage.wait("it is adopted", |seen| traced(seen, "adopted ") == ["web-0"]).await?;
    let labels = json!({"metadata": {"labels": {"app": "other"}}});
    stage.patch(Kind::Pods, "web-0", &labels).await?;
    stage
        .wait("it is released", |seen| {
            seen.get(Kind::Pods, "web-0").is_some_and(|pod| crate::players::objects::controller(pod).is_none())
        })
        .await?;
    stage.patch(Kind::Pods, "web-0", &json!({"metadata": {"labels": {"app": "web"}}})).await?;
    stage
        .wait("it is adopted again", |seen| {
            seen.get(Kind::Pods, "web-0").is_some_and(|pod| crate::players::objects::controller(pod).is_some())
        })
        .await?;
    ensure(stage.pod_uid("web-0")? == uid, || "it was never replaced".into())
}

/// "should not deadlock when a pod's predecessor fails"
async fn predecessor_fails(stage: &Stage) -> Verdict {
    stage.kubelet.rule(json!({"pod": "web-1", "ready": false}));
    stage.create(Kind::Sets, &set("web", 2, json!({}))).await?;
    stage.wait("both run, web-1 is not ready", |seen| seen.all(Kind::Pods).count() == 2).await?;
    stage.quiet().await?;
    let before = stage.pod_uid("web-0")?;
    stage.delete(Kind::Pods, "web-0").await?;
    stage
        .wait("web-0 is made again although web-1 is not ready", |seen| {
            seen.get(Kind::Pods, "web-0")
                .is_some_and(|pod| crate::players::objects::uid(pod) != before && crate::players::objects::ready(pod))
        })
        .await?;
    stage.make_ready("web-1", true).await?;
    stage.wait("both are ready", |seen| all_ready(seen, &["web-0", "web-1"])).await
}

/// "Scaling should happen in predictable order and halt if any stateful pod is unhealthy"
async fn scaling_halts(stage: &Stage) -> Verdict {
    stage.create(Kind::Sets, &set("web", 1, json!({}))).await?;
    let told = |seen: &Seen| status(seen, "web", "readyReplicas");
    stage.wait("web-0 is ready", |seen| all_ready(seen, &["web-0"]) && told(seen) == 1).await?;
    stage.make_ready("web-0", false).await?;
    // It learns of pods and of sets on two ways: first of the pod.
    stage.wait("it is known that web-0 is not", |seen| told(seen) == 0).await?;
    stage.patch(Kind::Sets, "web", &json!({"spec": {"replicas": 3}})).await?;
    stage.quiet().await?;
    ensure(stage.world.look().all(Kind::Pods).count() == 1, || "nothing is created behind an unready pod".into())?;
    stage.make_ready("web-0", true).await?;
    stage.wait("three are ready", |seen| all_ready(seen, &["web-0", "web-1", "web-2"]) && told(seen) == 3).await?;
    ensure(traced(&stage.world.look(), "+") == ["web-0", "web-1", "web-2"], || "created in order".into())?;
    for pod in ["web-0", "web-1", "web-2"] {
        stage.make_ready(pod, false).await?;
    }
    stage.wait("it is known that none is ready", |seen| told(seen) == 0).await?;
    stage.patch(Kind::Sets, "web", &json!({"spec": {"replicas": 0}})).await?;
    stage.quiet().await?;
    ensure(stage.world.look().all(Kind::Pods).count() == 3, || "nothing is removed while all are unready".into())?;
    for pod in ["web-0", "web-1", "web-2"] {
        stage.make_ready(pod, true).await?;
    }
    stage.wait("all are gone", |seen| seen.all(Kind::Pods).next().is_none()).await?;
    let gone = traced(&stage.world.look(), "-");
    ensure(gone == ["web-2", "web-1", "web-0"], || format!("gone in reverse order, not {gone:?}"))
}

/// "Burst scaling should run to completion even with unhealthy pods"
async fn burst_scaling(stage: &Stage) -> Verdict {
    stage.create(Kind::Sets, &set("web", 1, json!({"podManagementPolicy": "Parallel"}))).await?;
    stage.wait("web-0 is ready", |seen| all_ready(seen, &["web-0"])).await?;
    stage.make_ready("web-0", false).await?;
    stage.kubelet.rule(json!({"ready": false}));
    stage.patch(Kind::Sets, "web", &json!({"spec": {"replicas": 3}})).await?;
    stage.wait("three exist", |seen| seen.all(Kind::Pods).count() == 3).await?;
    stage.patch(Kind::Sets, "web", &json!({"spec": {"replicas": 0}})).await?;
    stage.wait("all are gone", |seen| seen.all(Kind::Pods).next().is_none()).await
}

/// "Should recreate evicted statefulset": a pod that failed is made again under another uid.
async fn evicted(stage: &Stage) -> Verdict {
    stage.kubelet.rule(json!({"start": false}));
    stage.create(Kind::Sets, &set("web", 1, json!({}))).await?;
    stage.wait("web-0 exists", |seen| seen.get(Kind::Pods, "web-0").is_some()).await?;
    let before = stage.pod_uid("web-0")?;
    stage.report("web-0", "Failed", false).await?;
    stage.kubelet.rule(json!({"start": true}));
    stage.wait("another web-0 is ready", |seen| all_ready(seen, &["web-0"])).await?;
    ensure(stage.pod_uid("web-0")? != before, || "it is another pod".into())
}

/// test/integration/statefulset: "TestDeletingAndTerminatingPods"
async fn terminating_is_waited_for(stage: &Stage) -> Verdict {
    stage.create(Kind::Sets, &set("web", 3, json!({}))).await?;
    stage.wait("three are ready", |seen| all_ready(seen, &["web-0", "web-1", "web-2"])).await?;
    stage.kubelet.rule(json!({"pod": "web-1", "stop": false}));
    stage.delete(Kind::Pods, "web-1").await?;
    stage.quiet().await?;
    let status = stage.get(Kind::Sets, "web").await?["status"].clone();
    ensure(status["replicas"] == 3, || format!("a terminating pod is still one of the replicas: {status}"))?;
    ensure(traced(&stage.world.look(), "+").len() == 3, || "no second web-1 beside the first".into())?;
    stage.kubelet.rule(json!({"pod": "web-1", "stop": true}));
    stage.wait("web-1 is back", |seen| all_ready(seen, &["web-0", "web-1", "web-2"])).await
}

/// test/integration/statefulset: "TestStatefulSetStatusWithPodFail"
async fn refused_pods(stage: &Stage) -> Verdict {
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "two"}, "spec": {"hard": {"pods": "2"}}});
    let path = format!("/api/v1/namespaces/{}/resourcequotas", stage.namespace);
    stage.client.expect("POST", &path, Some(&quota)).await?;
    stage.create(Kind::Sets, &set("web", 4, json!({"podManagementPolicy": "Parallel"}))).await?;
    stage
        .wait("two pods exist and are counted", |seen| {
            seen.all(Kind::Pods).count() == 2 && super::status(seen, "web", "replicas") == 2
        })
        .await
}
