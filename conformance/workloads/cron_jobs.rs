//! CronJobs. What is due is due some time ago: their status is made to say that they last started before that, so that nobody
//! has to wait for a minute to come.

use ambient::Ambient;
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use serde_json::{Value, json};

use super::{Act, CRON_JOB, JOB, POD, Play, condition, ensure, template};
use crate::players::objects::{self as players, name, terminating, text, uid};
use crate::runner::Verdict;

pub(super) const CASES: &[(&str, Act)] = &[
    ("what_was_due_is_started_once_under_a_name_of_its_minute", |p| Box::pin(due(p))),
    ("a_time_zone_says_when_it_is_due", |p| Box::pin(zone(p))),
    ("what_is_missed_by_more_than_its_deadline_is_left_out", |p| Box::pin(deadline(p))),
    ("what_runs_is_not_joined_where_that_is_forbidden", |p| Box::pin(forbid(p))),
    ("what_runs_makes_place_where_that_is_wanted", |p| Box::pin(replace(p))),
    ("a_suspended_one_starts_nothing", |p| Box::pin(suspended(p))),
    ("of_those_that_ended_the_newest_are_kept", |p| Box::pin(history(p))),
];

/// Annotation of a job: when it was due.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// A minute of every hour that is far from now: when it last came, and its schedule.
fn some_minutes_ago(minutes: i64) -> (Timestamp, String) {
    let ago = Ambient::system().now() - SignedDuration::from_mins(minutes);
    let minute = Timestamp::from_second(ago.as_second() / 60 * 60).expect("a time of today");
    (minute, format!("{} * * * *", minute.as_second() / 60 % 60))
}

/// The name of what was due then.
fn job_of(due: Timestamp) -> String {
    format!("cron-{}", due.as_second() / 60)
}

/// A cron job that starts pods of this image. It is suspended at first.
async fn create(play: &Play, schedule: &str, image: &str, more: Value) -> Result<Value, String> {
    let mut spec = json!({"schedule": schedule, "suspend": true,
        "jobTemplate": {"metadata": {"labels": {"of": "cron"}}, "spec": {"template": template(image, "Never")}}});
    for (field, value) in more.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    play.create(CRON_JOB, "cron", spec).await
}

/// Says that it last started hours ago, and lets it go.
async fn resume(play: &Play) -> Verdict {
    let long_ago = (Ambient::system().now() - SignedDuration::from_hours(3)).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    play.patch(CRON_JOB, "cron/status", json!({"status": {"lastScheduleTime": long_ago}})).await?;
    play.patch(CRON_JOB, "cron", json!({"spec": {"suspend": false}})).await.map(drop)
}

/// Waits until it has started what was due then.
async fn started(play: &Play, due: Timestamp) -> Result<Value, String> {
    let when = due.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    play.until(CRON_JOB, "cron", "it has started what was due", |cron| {
        cron["status"]["lastScheduleTime"] == when.as_str()
    })
    .await
}

async fn due(play: &Play) -> Verdict {
    let (due, schedule) = some_minutes_ago(30);
    let cron = create(play, &schedule, "v1", Value::Null).await?;
    resume(play).await?;
    let noted = started(play, due).await?;
    let jobs = play.list(JOB).await?;
    let [job] = jobs.as_slice() else { return Err(format!("one job, not {jobs:#?}")) };
    let owner = &job["metadata"]["ownerReferences"][0];
    ensure(name(job) == job_of(due) && owner["uid"] == uid(&cron) && owner["controller"] == true, || {
        format!("{job:#}")
    })?;
    ensure(job["metadata"]["labels"]["of"] == "cron", || format!("{:#}", job["metadata"]))?;
    let when = text(&job["metadata"]["annotations"][SCHEDULED]).parse::<Timestamp>();
    ensure(when.ok() == Some(due), || format!("{:#}", job["metadata"]))?;
    let active = |cron: &Value| cron["status"]["active"][0]["uid"] == uid(job);
    let noted = if active(&noted) { noted } else { play.until(CRON_JOB, "cron", "it runs", active).await? };
    ensure(noted["status"]["lastSuccessfulTime"].is_null(), || format!("{:#}", noted["status"]))?;
    let pods =
        play.until_all(POD, "its pod runs", |pods| pods.iter().any(|p| p["status"]["phase"] == "Running")).await?;
    play.stage.report(name(&pods[0]), "Succeeded", false).await?;
    let ended = |cron: &Value| cron["status"]["active"].is_null() && cron["status"]["lastSuccessfulTime"].is_string();
    play.until(CRON_JOB, "cron", "its success is noted", ended).await?;
    ensure(play.list(JOB).await?.len() == 1, || "it was started once".to_owned())
}

async fn zone(play: &Play) -> Verdict {
    let (due, _) = some_minutes_ago(30);
    // Zones of this kind count westwards.
    let there = due.to_zoned(TimeZone::fixed(jiff::tz::offset(5)));
    let schedule = format!("{} {} * * *", there.minute(), there.hour());
    create(play, &schedule, "done", json!({"timeZone": "Etc/GMT-5"})).await?;
    resume(play).await?;
    started(play, due).await?;
    let jobs = play.list(JOB).await?;
    ensure(jobs.len() == 1 && name(&jobs[0]) == job_of(due), || format!("{jobs:#?}"))
}

async fn deadline(play: &Play) -> Verdict {
    let (due, schedule) = some_minutes_ago(30);
    create(play, &schedule, "done", json!({"startingDeadlineSeconds": 60})).await?;
    resume(play).await?;
    play.stage.quiet().await?;
    ensure(play.list(JOB).await?.is_empty(), || "it was too late".to_owned())?;
    play.patch(CRON_JOB, "cron", json!({"spec": {"startingDeadlineSeconds": 3600}})).await?;
    started(play, due).await?;
    ensure(play.list(JOB).await?.len() == 1, || "within an hour it is not".to_owned())
}

/// Starts one, and has another one be due that was so a little later.
async fn second(play: &Play, policy: &str) -> Result<(Timestamp, Timestamp), String> {
    let (first, schedule) = some_minutes_ago(40);
    create(play, &schedule, "v1", json!({"concurrencyPolicy": policy})).await?;
    resume(play).await?;
    started(play, first).await?;
    play.until(CRON_JOB, "cron", "it runs", |cron| cron["status"]["active"].is_array()).await?;
    let (second, schedule) = some_minutes_ago(20);
    play.patch(CRON_JOB, "cron", json!({"spec": {"schedule": schedule}})).await?;
    Ok((first, second))
}

async fn forbid(play: &Play) -> Verdict {
    let (first, second) = second(play, "Forbid").await?;
    let events = format!("/api/v1/namespaces/{}/events", play.case.namespace);
    let ask = crate::cluster::Ask::new("GET", &events).query("fieldSelector", "reason=JobAlreadyActive");
    let told = |answer: &crate::cluster::Answer| answer.body["items"].as_array().is_some_and(|all| !all.is_empty());
    play.case.until(ask, "it says that one runs already", told).await;
    ensure(play.list(JOB).await?.len() == 1, || "the first alone runs".to_owned())?;
    let pods =
        play.until_all(POD, "its pod runs", |pods| pods.iter().any(|p| p["status"]["phase"] == "Running")).await?;
    play.stage.report(name(&pods[0]), "Succeeded", false).await?;
    // When it has ended, what was due meanwhile is made up for.
    play.until(JOB, &job_of(first), "it ends", |job| condition(job, "Complete").starts_with("True")).await?;
    play.until(JOB, &job_of(second), "the second comes", |_| true).await.map(drop)
}

async fn replace(play: &Play) -> Verdict {
    let (first, second) = second(play, "Replace").await?;
    started(play, second).await?;
    let alone = |jobs: &[Value]| {
        let there: Vec<&str> = jobs.iter().filter(|job| !terminating(job)).map(name).collect();
        there == [job_of(second)]
    };
    play.until_all(JOB, &format!("{} made place", job_of(first)), alone).await.map(drop)
}

async fn suspended(play: &Play) -> Verdict {
    let (due, schedule) = some_minutes_ago(30);
    create(play, &schedule, "done", Value::Null).await?;
    let long_ago = (due - SignedDuration::from_hours(2)).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    play.patch(CRON_JOB, "cron/status", json!({"status": {"lastScheduleTime": long_ago}})).await?;
    play.stage.quiet().await?;
    ensure(play.list(JOB).await?.is_empty(), || "nothing was started".to_owned())?;
    play.patch(CRON_JOB, "cron", json!({"spec": {"suspend": false}})).await?;
    started(play, due).await.map(drop)
}

async fn history(play: &Play) -> Verdict {
    let limits = json!({"successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0});
    let cron = create(play, "@yearly", "done", limits).await?;
    // What `kubectl create job --from=cronjob/cron` makes.
    let owner =
        json!({"apiVersion": "batch/v1", "kind": "CronJob", "name": "cron", "uid": uid(&cron), "controller": true});
    for (job, image) in [("by-hand-a", "done"), ("by-hand-b", "done"), ("by-hand-c", "broken"), ("by-hand-d", "done")] {
        let object = json!({"apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": job, "ownerReferences": [owner], "annotations": {"cronjob.kubernetes.io/instantiate": "manual"}},
            "spec": {"backoffLimit": 0, "template": template(image, "Never")}});
        play.stage.client.expect("POST", &play.path(JOB, ""), Some(&object)).await?;
    }
    let kept = |jobs: &[Value]| jobs.iter().map(players::name).eq(["by-hand-d"]);
    play.until_all(JOB, "the newest success alone is kept", kept).await.map(drop)
}
