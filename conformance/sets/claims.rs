//! Claims and who owns them.

use serde_json::{Value, json};

use super::{Act, all_ready, ensure, set};
use crate::players::objects::{Kind, uid};
use crate::players::stage::Stage;
use crate::players::world::Seen;
use crate::runner::Verdict;

pub(super) const CASES: &[(&str, Act)] = &[
    ("retain_and_retain", |s| Box::pin(policies(s, "Retain", "Retain"))),
    ("delete_with_the_set", |s| Box::pin(policies(s, "Delete", "Retain"))),
    ("delete_when_scaled", |s| Box::pin(policies(s, "Retain", "Delete"))),
    ("delete_both", |s| Box::pin(policies(s, "Delete", "Delete"))),
    ("claims_of_another_controller_stay", |s| Box::pin(foreign(s))),
    ("another_owner_that_controls_nothing_stays_beside_the_set", |s| Box::pin(beside(s))),
    ("claims_go_with_the_set_after_it_adopted_a_pod", |s| Box::pin(adopted(s, true))),
    ("claims_go_when_scaled_after_the_set_adopted_a_pod", |s| Box::pin(adopted(s, false))),
    ("a_missing_claim_is_made_again", |s| Box::pin(missing(s))),
    ("a_claim_in_use_goes_after_its_pod", |s| Box::pin(protected(s))),
    ("a_template_written_again_changes_nothing", |s| Box::pin(noop(s))),
];

fn with_claims(replicas: u32, deleted: &str, scaled: &str) -> Value {
    let policy = json!({"whenDeleted": deleted, "whenScaled": scaled});
    let mut set = set("web", replicas, json!({"persistentVolumeClaimRetentionPolicy": policy}));
    set["spec"]["volumeClaimTemplates"] = json!([crate::players::objects::claim("data", &Value::Null)]);
    set
}

fn claims(seen: &Seen) -> Vec<String> {
    seen.all(Kind::Claims).map(|(name, _)| name.clone()).collect()
}

/// "Non-retain StatefulSetPersistentVolumeClaimPolicy", and test/integration: "TestAutodeleteOwnerRefs".
async fn policies(stage: &Stage, deleted: &str, scaled: &str) -> Verdict {
    stage.create(Kind::Sets, &with_claims(3, deleted, scaled)).await?;
    stage.wait("three are ready", |seen| all_ready(seen, &["web-0", "web-1", "web-2"])).await?;
    let owned_by_set = deleted == "Delete";
    stage
        .wait("each claim has the owners that the policy asks for", |seen| {
            seen.all(Kind::Claims).count() == 3
                && seen.all(Kind::Claims).all(|(_, claim)| {
                    let owners = claim["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
                    owners.iter().any(|owner| owner["kind"] == "StatefulSet") == owned_by_set && owners.len() <= 1
                })
        })
        .await?;
    stage.patch(Kind::Sets, "web", &json!({"spec": {"replicas": 2}})).await?;
    stage.wait("web-2 is gone", |seen| seen.get(Kind::Pods, "web-2").is_none()).await?;
    if scaled == "Delete" {
        stage.wait("and its claim", |seen| claims(seen) == ["data-web-0", "data-web-1"]).await?;
    } else {
        stage.quiet().await?;
        let left = claims(&stage.world.look());
        ensure(left.len() == 3, || format!("all claims stay: {left:?}"))?;
    }
    let before = claims(&stage.world.look());
    stage.delete(Kind::Sets, "web").await?;
    stage.wait("the pods are gone", |seen| seen.all(Kind::Pods).next().is_none()).await?;
    if deleted == "Delete" {
        return stage.wait("and the claims", |seen| claims(seen).is_empty()).await;
    }
    stage.quiet().await?;
    let left = claims(&stage.world.look());
    ensure(left == before, || format!("the claims stay: {left:?}"))
}

/// "should not delete PVCs when there is another controller"
async fn foreign(stage: &Stage) -> Verdict {
    stage.create(Kind::Sets, &with_claims(2, "Retain", "Retain")).await?;
    stage.wait("two are ready", |seen| all_ready(seen, &["web-0", "web-1"])).await?;
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner"}});
    let path = format!("/api/v1/namespaces/{}/configmaps", stage.namespace);
    let owner = stage.client.expect("POST", &path, Some(&owner)).await?;
    let reference =
        json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid(&owner), "controller": true}]);
    stage.patch(Kind::Claims, "data-web-1", &json!({"metadata": {"ownerReferences": reference}})).await?;
    let both =
        json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"}}});
    stage.patch(Kind::Sets, "web", &both).await?;
    stage
        .wait("the first claim has the set as its owner", |seen| {
            seen.get(Kind::Claims, "data-web-0")
                .is_some_and(|claim| claim["metadata"]["ownerReferences"][0]["kind"] == "StatefulSet")
        })
        .await?;
    stage.patch(Kind::Sets, "web", &json!({"spec": {"replicas": 1}})).await?;
    stage.wait("web-1 is gone", |seen| seen.get(Kind::Pods, "web-1").is_none()).await?;
    stage.delete(Kind::Sets, "web").await?;
    stage.wait("what the set owned is gone", |seen| claims(seen) == ["data-web-1"]).await?;
    stage.quiet().await?;
    ensure(claims(&stage.world.look()) == ["data-web-1"], || "the other controller's claim stays".into())
}

/// "should not delete PVC when there is another controller", its second half: an owner that is no controller, and a
/// reference of the set's that is not the controller's.
async fn beside(stage: &Stage) -> Verdict {
    stage.create(Kind::Sets, &with_claims(1, "Delete", "Retain")).await?;
    stage.wait("web-0 is ready", |seen| all_ready(seen, &["web-0"])).await?;
    let path = format!("/api/v1/namespaces/{}/configmaps", stage.namespace);
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner"}});
    let owner = stage.client.expect("POST", &path, Some(&owner)).await?;
    let owners = |seen: &Seen| {
        let claim = seen.get(Kind::Claims, "data-web-0")?;
        Some(claim["metadata"]["ownerReferences"].as_array()?.clone())
    };
    stage.wait("the set owns the claim", |seen| owners(seen).is_some_and(|all| all.len() == 1)).await?;
    let mut ours = owners(&stage.world.look()).ok_or("the claim is gone")?.remove(0);
    ours["controller"] = false.into();
    let other = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid(&owner)});
    stage.patch(Kind::Claims, "data-web-0", &json!({"metadata": {"ownerReferences": [other, ours]}})).await?;
    // Upstream too looks at claims when something else of the set changes.
    stage.patch(Kind::Sets, "web", &json!({"metadata": {"annotations": {"look": "again"}}})).await?;
    stage
        .wait("the set controls the claim again, beside the other owner", |seen| {
            let all = owners(seen).unwrap_or_default();
            let set = all.iter().find(|owner| owner["kind"] == "StatefulSet");
            all.len() == 2
                && all.iter().any(|owner| owner["kind"] == "ConfigMap")
                && set.is_some_and(|set| set["controller"] == true)
        })
        .await
}

/// "should delete PVCs after adopting pod (WhenDeleted)", "… (WhenScaled)"
async fn adopted(stage: &Stage, with_set: bool) -> Verdict {
    let (deleted, scaled) = if with_set { ("Delete", "Retain") } else { ("Retain", "Delete") };
    stage.create(Kind::Sets, &with_claims(2, "Retain", "Retain")).await?;
    stage.wait("two are ready", |seen| all_ready(seen, &["web-0", "web-1"])).await?;
    stage.patch(Kind::Pods, "web-1", &json!({"metadata": {"ownerReferences": null}})).await?;
    stage
        .wait("web-1 is adopted", |seen| {
            seen.get(Kind::Pods, "web-1").is_some_and(|pod| crate::players::objects::controller(pod).is_some())
        })
        .await?;
    let policy = json!({"persistentVolumeClaimRetentionPolicy": {"whenDeleted": deleted, "whenScaled": scaled}});
    stage.patch(Kind::Sets, "web", &json!({"spec": policy})).await?;
    if with_set {
        let owned = |claim: &Value| claim["metadata"]["ownerReferences"][0]["kind"] == "StatefulSet";
        stage.wait("the set owns both claims", |seen| seen.all(Kind::Claims).all(|(_, claim)| owned(claim))).await?;
        stage.delete(Kind::Sets, "web").await?;
        return stage.wait("all claims are gone", |seen| claims(seen).is_empty()).await;
    }
    stage.patch(Kind::Sets, "web", &json!({"spec": {"replicas": 1}})).await?;
    stage.wait("the claim of web-1 is gone", |seen| claims(seen) == ["data-web-0"]).await
}

/// "PVC should be recreated when pod is pending due to missing PVC"
async fn missing(stage: &Stage) -> Verdict {
    stage.kubelet.rule(json!({"bind": false}));
    stage.create(Kind::Sets, &with_claims(1, "Retain", "Retain")).await?;
    stage
        .wait("pod and claim exist", |seen| seen.get(Kind::Pods, "web-0").is_some() && claims(seen) == ["data-web-0"])
        .await?;
    stage.patch(Kind::Claims, "data-web-0", &json!({"metadata": {"finalizers": null}})).await?;
    let before = stage.world.look().get(Kind::Claims, "data-web-0").map(|claim| uid(claim).to_owned());
    stage.delete(Kind::Claims, "data-web-0").await?;
    stage
        .wait("there is another claim", |seen| {
            seen.get(Kind::Claims, "data-web-0").is_some_and(|claim| Some(uid(claim)) != before.as_deref())
        })
        .await?;
    stage.kubelet.rule(json!({"bind": true}));
    stage.wait("web-0 is ready", |seen| all_ready(seen, &["web-0"])).await
}

/// storage/pvc_protection.go: a claim that is used stays, terminating, until its pod has gone.
async fn protected(stage: &Stage) -> Verdict {
    stage.create(Kind::Sets, &with_claims(1, "Retain", "Retain")).await?;
    stage.wait("web-0 is ready", |seen| all_ready(seen, &["web-0"])).await?;
    stage
        .wait("the claim is protected", |seen| {
            let claim = seen.get(Kind::Claims, "data-web-0");
            claim.is_some_and(|claim| {
                claim["metadata"]["finalizers"].to_string().contains("kubernetes.io/pvc-protection")
            })
        })
        .await?;
    stage.delete(Kind::Claims, "data-web-0").await?;
    stage.quiet().await?;
    ensure(claims(&stage.world.look()) == ["data-web-0"], || "a claim in use stays".into())?;
    stage.patch(Kind::Sets, "web", &json!({"spec": {"replicas": 0}})).await?;
    stage.wait("pod and claim are gone", |seen| seen.all(Kind::Pods).next().is_none() && claims(seen).is_empty()).await
}

/// test/integration/statefulset: "TestVolumeTemplateNoopUpdate"
async fn noop(stage: &Stage) -> Verdict {
    stage.create(Kind::Sets, &with_claims(1, "Retain", "Retain")).await?;
    stage.wait("web-0 is ready", |seen| all_ready(seen, &["web-0"])).await?;
    stage.quiet().await?;
    let before = stage.get(Kind::Sets, "web").await?;
    let same = json!({"spec": {"volumeClaimTemplates": [crate::players::objects::claim("data", &Value::Null)]}});
    let after = stage.patch(Kind::Sets, "web", &same).await?;
    ensure(after["metadata"]["generation"] == before["metadata"]["generation"], || {
        format!("the same template is no change: {} {}", before["spec"], after["spec"])
    })
}
