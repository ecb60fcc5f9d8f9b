//! Status, its conditions, and minReadySeconds.

use serde_json::json;

use super::{Act, all_ready, ensure, observed, set, status};
use crate::players::objects::Kind;
use crate::players::stage::Stage;
use crate::runner::Verdict;

pub(super) const CASES: &[(&str, Act)] = &[
    ("available_replicas_follow_min_ready_seconds", |s| Box::pin(available(s))),
    ("min_ready_seconds_hold_an_ordered_set_back", |s| Box::pin(min_ready(s))),
    ("each_counter_counts_its_own", |s| Box::pin(counters(s))),
    ("the_status_is_written_and_watched", |s| Box::pin(endpoints(s))),
];

/// "AvailableReplicas should get updated accordingly when MinReadySeconds is enabled"
async fn available(stage: &Stage) -> Verdict {
    stage.create(Kind::Sets, &set("web", 2, json!({"minReadySeconds": 1, "podManagementPolicy": "Parallel"}))).await?;
    stage.wait("two are available", |seen| status(seen, "web", "availableReplicas") == 2).await?;
    stage.patch(Kind::Sets, "web", &json!({"spec": {"minReadySeconds": 3600}})).await?;
    stage
        .wait("none is, for an hour", |seen| observed(seen, "web") && status(seen, "web", "availableReplicas") == 0)
        .await?;
    stage.patch(Kind::Sets, "web", &json!({"spec": {"minReadySeconds": 0}})).await?;
    stage.wait("two are again", |seen| observed(seen, "web") && status(seen, "web", "availableReplicas") == 2).await
}

/// "MinReadySeconds should be honored when enabled"
async fn min_ready(stage: &Stage) -> Verdict {
    stage.create(Kind::Sets, &set("web", 2, json!({"minReadySeconds": 3600}))).await?;
    stage.wait("web-0 is ready", |seen| all_ready(seen, &["web-0"])).await?;
    stage.quiet().await?;
    ensure(stage.world.look().all(Kind::Pods).count() == 1, || "web-1 waits until web-0 is available".into())?;
    stage.patch(Kind::Sets, "web", &json!({"spec": {"minReadySeconds": 0}})).await?;
    stage.wait("both are there", |seen| all_ready(seen, &["web-0", "web-1"])).await
}

/// test/integration/statefulset: "TestStatefulSetAvailable"
async fn counters(stage: &Stage) -> Verdict {
    stage.kubelet.rule(json!({"pod": "web-3", "ready": false}));
    stage
        .create(Kind::Sets, &set("web", 4, json!({"minReadySeconds": 3600, "podManagementPolicy": "Parallel"})))
        .await?;
    stage
        .wait("four pods, three ready, none available", |seen| {
            let count = |field: &str| status(seen, "web", field);
            observed(seen, "web")
                && (count("replicas"), count("readyReplicas"), count("availableReplicas")) == (4, 3, 0)
        })
        .await?;
    stage.patch(Kind::Sets, "web", &json!({"spec": {"minReadySeconds": 0}})).await?;
    stage.wait("three are available", |seen| status(seen, "web", "availableReplicas") == 3).await
}

/// "should validate Statefulset Status endpoints": the status of a user's condition is kept and seen.
async fn endpoints(stage: &Stage) -> Verdict {
    stage.create(Kind::Sets, &set("web", 1, json!({}))).await?;
    stage.wait("web-0 is ready", |seen| all_ready(seen, &["web-0"])).await?;
    stage.quiet().await?;
    let path = Kind::Sets.path(&stage.namespace, "web", "status");
    let mut object = stage.client.expect("GET", &path, None).await?;
    let condition = json!({"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "Set from e2e test"});
    let mut conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.push(condition);
    object["status"]["conditions"] = json!(conditions);
    stage.client.expect("PUT", &path, Some(&object)).await?;
    let there = |seen: &crate::players::world::Seen, kind: &str| {
        let set = seen.get(Kind::Sets, "web");
        set.is_some_and(|set| {
            set["status"]["conditions"].as_array().is_some_and(|all| all.iter().any(|c| c["type"] == kind))
        })
    };
    stage.wait("a watch shows the condition", |seen| there(seen, "StatusUpdate")).await?;
    // Foreign conditions outlive the controller's own writes of the status.
    stage.patch(Kind::Sets, "web", &json!({"spec": {"replicas": 2}})).await?;
    stage.wait("two are ready", |seen| status(seen, "web", "readyReplicas") == 2 && observed(seen, "web")).await?;
    ensure(there(&stage.world.look(), "StatusUpdate"), || "the controller keeps a foreign condition".into())
}
