//! The object and its subresources.

use serde_json::json;

use super::{Act, all_ready, ensure, observed, set, status};
use crate::players::objects::Kind;
use crate::players::stage::Stage;
use crate::runner::Verdict;

pub(super) const CASES: &[(&str, Act)] = &[
    ("the_scale_subresource_works", |s| Box::pin(scale(s))),
    ("list_patch_and_delete_a_collection", |s| Box::pin(collection(s))),
    ("controller_revisions_are_served_in_full", |s| Box::pin(controller_revisions(s))),
];

/// "should have a working scale subresource"
async fn scale(stage: &Stage) -> Verdict {
    stage.create(Kind::Sets, &set("web", 1, json!({}))).await?;
    stage.wait("web-0 is ready", |seen| all_ready(seen, &["web-0"])).await?;
    let path = Kind::Sets.path(&stage.namespace, "web", "scale");
    let mut scale = stage.client.expect("GET", &path, None).await?;
    ensure(scale["spec"]["replicas"] == 1 && scale["kind"] == "Scale", || format!("a scale of one: {scale}"))?;
    scale["metadata"]["resourceVersion"] = json!("");
    scale["spec"]["replicas"] = json!(2);
    stage.client.expect("PUT", &path, Some(&scale)).await?;
    stage.wait("two are ready", |seen| all_ready(seen, &["web-0", "web-1"])).await?;
    let (code, answer) = stage.client.strategic(&path, &json!({"spec": {"replicas": 4}})).await;
    ensure(code == 200 && answer["spec"]["replicas"] == 4, || format!("a patch of the scale: {code} {answer}"))?;
    stage.wait("four are ready", |seen| status(seen, "web", "readyReplicas") == 4).await
}

/// "should list, patch and delete a collection of StatefulSets"
async fn collection(stage: &Stage) -> Verdict {
    stage.create(Kind::Sets, &set("web", 2, json!({}))).await?;
    stage.wait("two are ready", |seen| all_ready(seen, &["web-0", "web-1"])).await?;
    let selector = "/apis/apps/v1/statefulsets?labelSelector=set%3Dweb";
    let all = stage.client.expect("GET", &selector.replace("%3D", "="), None).await?;
    let ours = all["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|item| item["metadata"]["namespace"] == stage.namespace.as_str());
    ensure(ours.count() == 1, || "a list over all namespaces finds it by its label".into())?;
    let change = json!({"metadata": {"labels": {"patched": "yes"}}, "spec": {"replicas": 1, "template": {"spec": {
        "terminationGracePeriodSeconds": 5, "containers": [{"name": "app", "image": crate::players::objects::tagged("v2")}]}}}});
    let path = Kind::Sets.path(&stage.namespace, "web", "");
    let (code, answer) = stage.client.strategic(&path, &change).await;
    let containers = &answer["spec"]["template"]["spec"]["containers"];
    ensure(code == 200 && containers.as_array().map(Vec::len) == Some(1), || {
        format!("containers merge by name: {code} {answer}")
    })?;
    stage
        .wait("it is rolled out", |seen| {
            observed(seen, "web") && all_ready(seen, &["web-0"]) && status(seen, "web", "updatedReplicas") == 1
        })
        .await?;
    let all = format!("{}?labelSelector=patched=yes", Kind::Sets.path(&stage.namespace, "", ""));
    stage.client.expect("DELETE", &all, None).await?;
    stage
        .wait("it is gone, and its pods", |seen| {
            seen.all(Kind::Sets).next().is_none() && seen.all(Kind::Pods).next().is_none()
        })
        .await
}

/// controller_revision.go: create, list, patch, update, delete, delete by label, whoever made them.
async fn controller_revisions(stage: &Stage) -> Verdict {
    let revision = |name: &str, number: u64| {
        json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": name, "labels": {"e2e": "cr"}},
            "revision": number, "data": {"anything": [1, 2]}})
    };
    stage.create(Kind::Revisions, &revision("first", 1)).await?;
    stage.create(Kind::Revisions, &revision("second", 2)).await?;
    let path = |name: &str| Kind::Revisions.path(&stage.namespace, name, "");
    let (code, patched) =
        stage.client.strategic(&path("first"), &json!({"metadata": {"labels": {"first": "patched"}}})).await;
    ensure(code == 200 && patched["metadata"]["labels"]["first"] == "patched", || format!("{code} {patched}"))?;
    let mut second = stage.get(Kind::Revisions, "second").await?;
    second["revision"] = json!(3);
    let second = stage.client.expect("PUT", &path("second"), Some(&second)).await?;
    ensure(second["revision"] == 3, || format!("the number may change: {second}"))?;
    let mut changed = second.clone();
    changed["data"] = json!({"other": true});
    let (code, _) = stage.client.call("PUT", &path("second"), Some(&changed)).await;
    ensure(code == 422, || format!("the data may not: {code}"))?;
    stage.client.expect("DELETE", &path("first"), None).await?;
    stage.client.expect("DELETE", &format!("{}?labelSelector=e2e=cr", path("").trim_end_matches('/')), None).await?;
    stage.wait("none is left", |seen| seen.all(Kind::Revisions).next().is_none()).await
}
