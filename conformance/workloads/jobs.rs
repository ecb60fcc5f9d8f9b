//! Jobs: pods that run to their end, each counted once.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Act, JOB, POD, Play, condition, count, ensure, template};
use crate::players::objects::{Kind as Seen, name, terminating, text};
use crate::runner::Verdict;

pub(super) const CASES: &[(&str, Act)] = &[
    ("it_completes_with_so_many_at_once_and_holds_no_pod", |p| Box::pin(completes(p))),
    ("an_indexed_one_gives_each_index_to_one_pod", |p| Box::pin(indexed(p))),
    ("without_completions_the_first_success_is_the_last_start", |p| Box::pin(queue(p))),
    ("it_waits_after_a_failure_and_gives_up_at_its_limit", |p| Box::pin(back_off(p))),
    ("a_deadline_ends_it_with_its_pods", |p| Box::pin(deadline(p))),
    ("a_suspended_one_ends_its_pods_and_goes_on_later", |p| Box::pin(suspended(p))),
    ("parallelism_follows_its_change", |p| Box::pin(parallelism(p))),
    ("a_finished_one_goes_after_its_time", |p| Box::pin(clean_up(p))),
];

/// A job of pods of this image.
async fn create(play: &Play, image: &str, more: Value) -> Result<Value, String> {
    let mut spec = json!({"template": template(image, "Never")});
    for (field, value) in more.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    play.create(JOB, "job", spec).await
}

async fn complete(play: &Play) -> Result<Value, String> {
    let is_done = |job: &Value| condition(job, "Complete") == "True CompletionsReached";
    play.until(JOB, "job", "it is complete", is_done).await
}

async fn failed(play: &Play, reason: &str) -> Result<Value, String> {
    play.until(JOB, "job", reason, |job| condition(job, "Failed") == format!("True {reason}")).await
}

async fn completes(play: &Play) -> Verdict {
    create(play, "v1", json!({"completions": 3, "parallelism": 2})).await?;
    // Two run, and no third before one of them has ended.
    let both = |job: &Value| count(job, "active") == 2 && count(job, "ready") == 2;
    play.until(JOB, "job", "two are active", both).await?;
    play.stage.quiet().await?;
    let pods = play.list(POD).await?;
    ensure(pods.len() == 2, || format!("{pods:#?}"))?;
    let holds = |pod: &Value| pod["metadata"]["finalizers"] == json!(["batch.kubernetes.io/job-tracking"]);
    ensure(pods.iter().all(holds), || format!("what runs is not lost: {pods:#?}"))?;
    for round in 1..=3 {
        let pods = play.list(POD).await?;
        let running = pods.iter().find(|pod| pod["status"]["phase"] == "Running").ok_or("one runs")?;
        play.stage.report(name(running), "Succeeded", false).await?;
        play.until(JOB, "job", "it is counted", |job| count(job, "succeeded") == round).await?;
        let wanted = 3 - round;
        let running = |pods: &[Value]| pods.iter().filter(|pod| pod["status"]["phase"] == "Running").count() as u64;
        play.until_all(POD, "as many run as are lacking", |pods| running(pods) == wanted.min(2)).await?;
    }
    let job = complete(play).await?;
    let ended = condition(&job, "SuccessCriteriaMet") == "True CompletionsReached";
    ensure(ended && job["status"]["completionTime"].is_string(), || format!("{:#}", job["status"]))?;
    ensure(count(&job, "active") == 0 && count(&job, "failed") == 0, || format!("{:#}", job["status"]))?;
    let free = |pods: &[Value]| pods.len() == 3 && pods.iter().all(|pod| pod["metadata"]["finalizers"].is_null());
    play.until_all(POD, "its pods stay, and nothing holds them", free).await.map(drop)
}

async fn indexed(play: &Play) -> Verdict {
    create(play, "done", json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed"})).await?;
    let job = complete(play).await?;
    ensure(job["status"]["completedIndexes"] == "0-2", || format!("{:#}", job["status"]))?;
    let pods = play.list(POD).await?;
    let index =
        |pod: &Value| text(&pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"]).to_owned();
    let indexes: BTreeSet<String> = pods.iter().map(index).collect();
    ensure(pods.len() == 3 && indexes == ["0", "1", "2"].map(str::to_owned).into(), || format!("{indexes:?}"))?;
    for pod in &pods {
        let host = format!("job-{}", index(pod));
        ensure(pod["spec"]["hostname"] == host.as_str() && name(pod).starts_with(&format!("{host}-")), || {
            format!("{pod:#}")
        })?;
        let variable = pod["spec"]["containers"][0]["env"].as_array().into_iter().flatten();
        let given = variable.into_iter().any(|one| one["name"] == "JOB_COMPLETION_INDEX");
        ensure(given, || format!("{:#}", pod["spec"]))?;
    }
    Ok(())
}

async fn queue(play: &Play) -> Verdict {
    create(play, "v1", json!({"parallelism": 2})).await?;
    play.until(JOB, "job", "two are active", |job| count(job, "active") == 2).await?;
    let running = |pods: &[Value]| pods.len() == 2 && pods.iter().all(|pod| pod["status"]["phase"] == "Running");
    let pods = play.until_all(POD, "both run", running).await?;
    play.stage.report(name(&pods[0]), "Succeeded", false).await?;
    play.until(JOB, "job", "the other is waited for", |job| count(job, "active") == 1).await?;
    play.stage.report(name(&pods[1]), "Succeeded", false).await?;
    let job = complete(play).await?;
    ensure(count(&job, "succeeded") == 2, || format!("{:#}", job["status"]))?;
    ensure(play.list(POD).await?.len() == 2, || "no other was started".to_owned())
}

async fn back_off(play: &Play) -> Verdict {
    create(play, "broken", json!({"backoffLimit": 1})).await?;
    let waits =
        |job: &Value| count(job, "failed") == 1 && count(job, "active") == 0 && condition(job, "Failed").is_empty();
    play.until(JOB, "job", "it waits before it tries again", waits).await?;
    let job = failed(play, "BackoffLimitExceeded").await?;
    ensure(count(&job, "failed") == 2 && count(&job, "succeeded") == 0, || format!("{:#}", job["status"]))?;
    let mut pods = play.list(POD).await?;
    ensure(pods.len() == 2, || format!("as often as the limit says, and once more: {pods:#?}"))?;
    pods.sort_by_key(|pod| text(&pod["metadata"]["creationTimestamp"]).to_owned());
    let made = pods.iter().map(|pod| text(&pod["metadata"]["creationTimestamp"]).parse::<jiff::Timestamp>());
    let made = made.collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    // Ten seconds after the first one's end; times are written in whole seconds.
    let waited = made[1].duration_since(made[0]).as_secs();
    ensure(waited >= 9, || format!("it waited {waited} s only"))
}

async fn deadline(play: &Play) -> Verdict {
    create(play, "v1", json!({"activeDeadlineSeconds": 1, "parallelism": 2})).await?;
    failed(play, "DeadlineExceeded").await?;
    play.until_all(POD, "its pods are ended", |pods| pods.is_empty()).await.map(drop)
}

async fn suspended(play: &Play) -> Verdict {
    create(play, "v1", json!({"suspend": true})).await?;
    let is_suspended = |job: &Value| condition(job, "Suspended") == "True JobSuspended";
    let job = play.until(JOB, "job", "it is suspended", is_suspended).await?;
    ensure(job["status"]["startTime"].is_null() && play.list(POD).await?.is_empty(), || {
        format!("{:#}", job["status"])
    })?;
    play.patch(JOB, "job", json!({"spec": {"suspend": false}})).await?;
    let goes_on = |job: &Value| condition(job, "Suspended") == "False JobResumed" && count(job, "ready") == 1;
    play.until(JOB, "job", "it goes on", goes_on).await?;
    play.patch(JOB, "job", json!({"spec": {"suspend": true}})).await?;
    play.until(JOB, "job", "it is suspended again", |job| is_suspended(job) && count(job, "active") == 0).await?;
    play.until_all(POD, "its pod is ended", |pods| pods.is_empty()).await?;
    play.patch(JOB, "job", json!({"spec": {"suspend": false}})).await?;
    let running = |pods: &[Value]| pods.len() == 1 && pods[0]["status"]["phase"] == "Running";
    let pods = play.until_all(POD, "another runs", running).await?;
    play.stage.report(name(&pods[0]), "Succeeded", false).await?;
    complete(play).await.map(drop)
}

async fn parallelism(play: &Play) -> Verdict {
    create(play, "v1", json!({"completions": 10, "parallelism": 1})).await?;
    for wanted in [3, 1, 0] {
        play.patch(JOB, "job", json!({"spec": {"parallelism": wanted}})).await?;
        let is_so = |job: &Value| count(job, "active") == wanted;
        play.until(JOB, "job", &format!("{wanted} are active"), is_so).await?;
        let there = |pods: &[Value]| pods.iter().filter(|pod| !terminating(pod)).count() as u64 == wanted;
        play.until_all(POD, &format!("{wanted} are there"), there).await?;
    }
    // Those that were taken back count neither as done nor as failed.
    let job = play.until(JOB, "job", "nothing is counted", |job| count(job, "active") == 0).await?;
    ensure(count(&job, "succeeded") == 0 && count(&job, "failed") == 0, || format!("{:#}", job["status"]))?;
    let made = play.stage.world.look().lines(Seen::Pods, 0).iter().filter(|line| line.starts_with('+')).count();
    ensure(made == 3, || format!("{made} pods were made"))
}

async fn clean_up(play: &Play) -> Verdict {
    create(play, "done", json!({"ttlSecondsAfterFinished": 0})).await?;
    play.gone(JOB, "job").await?;
    play.until_all(POD, "its pods went along", |pods| pods.is_empty()).await.map(drop)
}
