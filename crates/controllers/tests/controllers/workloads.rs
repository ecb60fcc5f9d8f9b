//! Deployments, jobs and cron jobs on a server in this process, with a kubelet that is played.

use std::time::Duration;

use ambient::Ambient;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::support::Cluster;

/// How long the played kubelet takes to look again.
const BEAT: Duration = Duration::from_millis(10);

/// Starts every pod; ends those whose annotation `end` says how. Runs until it is dropped.
async fn kubelet(cluster: &Cluster) {
    loop {
        for pod in cluster.list("Pod", "default").await {
            let name = pod["metadata"]["name"].as_str().expect("a name");
            let phase = match (pod["status"]["phase"].as_str(), pod["metadata"]["annotations"]["end"].as_str()) {
                _ if !pod["metadata"]["deletionTimestamp"].is_null() => continue,
                (Some("Pending"), None) => "Running",
                (Some("Pending"), Some(end)) => end,
                _ => continue,
            };
            let ready = if phase == "Running" { "True" } else { "False" };
            let since = jiff_now();
            let status = json!({"phase": phase,
                "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": since}]});
            let patch = kube::api::Patch::Merge(json!({"status": status}));
            // It may be gone by now.
            let _ = cluster.api("Pod", "default").patch_status(name, &Default::default(), &patch).await;
        }
        tokio::time::sleep(BEAT).await;
    }
}

/// The time as objects hold it.
fn jiff_now() -> String {
    Ambient::system().now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Runs a story while the kubelet plays.
async fn play(cluster: &Cluster, story: impl Future<Output = ()>) {
    tokio::select! {
        () = kubelet(cluster) => unreachable!("it never ends"),
        () = story => {}
    }
}

fn template(restart: &str, annotations: Value) -> Value {
    json!({"metadata": {"labels": {"app": "web"}, "annotations": annotations},
        "spec": {"restartPolicy": restart, "containers": [{"name": "main", "image": "i:1"}]}})
}

fn object(version: &str, kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn deployment(replicas: i32) -> Value {
    let spec = json!({"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
        "template": template("Always", json!({}))});
    object("apps/v1", "Deployment", "web", spec)
}

fn has_condition(object: &Value, kind: &str, reason: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|c| c["type"] == kind && c["status"] == "True" && c["reason"] == reason)
}

/// Whether every pod is of the newest template and available.
fn is_rolled_out(object: &Value, replicas: i32) -> bool {
    let status = &object["status"];
    status["observedGeneration"] == object["metadata"]["generation"]
        && ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|field| status[field] == replicas)
}

#[tokio::test]
async fn a_deployment_rolls_forward_and_back_scales_and_takes_its_pods_along() {
    let cluster = Cluster::start().await;
    play(&cluster, async {
        cluster.create("Deployment", "default", deployment(3)).await;
        let first = cluster.until("Deployment", "default", "web", |d| is_rolled_out(d, 3)).await;
        assert_eq!(first["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "1");
        cluster
            .until("Deployment", "default", "web", |d| has_condition(d, "Progressing", "NewReplicaSetAvailable"))
            .await;
        let sets = cluster.list("ReplicaSet", "default").await;
        assert_eq!(sets.len(), 1);
        let hash = sets[0]["metadata"]["labels"]["pod-template-hash"].clone();
        assert_eq!(sets[0]["spec"]["selector"]["matchLabels"], json!({"app": "web", "pod-template-hash": hash}));
        for pod in cluster.list("Pod", "default").await {
            assert_eq!(pod["metadata"]["labels"]["pod-template-hash"], hash);
            assert_eq!(pod["metadata"]["ownerReferences"][0]["uid"], sets[0]["metadata"]["uid"]);
        }

        let image =
            |image: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": image}]}}}});
        cluster.patch("Deployment", "default", "web", image("i:2")).await;
        cluster.until("Deployment", "default", "web", |d| is_rolled_out(d, 3)).await;
        assert_eq!(cluster.list("ReplicaSet", "default").await.len(), 2);
        cluster.patch("Deployment", "default", "web", image("i:1")).await;
        let back = cluster.until("Deployment", "default", "web", |d| is_rolled_out(d, 3)).await;
        assert_eq!(back["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "3");
        assert_eq!(cluster.list("ReplicaSet", "default").await.len(), 2, "the old set serves again");

        cluster.patch("Deployment", "default", "web", json!({"spec": {"replicas": 1}})).await;
        cluster.until("Deployment", "default", "web", |d| is_rolled_out(d, 1)).await;
        cluster.delete("Deployment", "default", "web", DeleteParams::foreground()).await;
        cluster.until_gone("Deployment", "default", "web").await;
        assert_eq!(cluster.list("ReplicaSet", "default").await.len() + cluster.list("Pod", "default").await.len(), 0);
    })
    .await;
    cluster.stop().await;
}

#[tokio::test]
async fn what_a_quota_refuses_is_told_of_set_and_deployment_and_made_up_for() {
    let cluster = Cluster::start().await;
    play(&cluster, async {
        let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"},
            "spec": {"hard": {"pods": "1"}}});
        cluster.create("ResourceQuota", "default", quota).await;
        cluster.create("Deployment", "default", deployment(2)).await;
        let hindered = |d: &Value| has_condition(d, "ReplicaFailure", "FailedCreate");
        cluster.until("Deployment", "default", "web", hindered).await;
        cluster.patch("ResourceQuota", "default", "q", json!({"spec": {"hard": {"pods": "5"}}})).await;
        let free = cluster.until("Deployment", "default", "web", |d| is_rolled_out(d, 2) && !hindered(d)).await;
        assert_eq!(free["status"]["readyReplicas"], 2);
    })
    .await;
    cluster.stop().await;
}

#[tokio::test]
async fn jobs_complete_or_fail_count_each_pod_once_and_hold_none() {
    let cluster = Cluster::start().await;
    play(&cluster, async {
        let spec = json!({"completions": 3, "parallelism": 2, "completionMode": "Indexed",
            "template": template("Never", json!({"end": "Succeeded"}))});
        cluster.create("Job", "default", object("batch/v1", "Job", "good", spec)).await;
        let good =
            cluster.until("Job", "default", "good", |job| has_condition(job, "Complete", "CompletionsReached")).await;
        assert_eq!((&good["status"]["succeeded"], &good["status"]["completedIndexes"]), (&json!(3), &json!("0-2")));
        assert!(good["status"]["active"].is_null() && !good["status"]["completionTime"].is_null());
        let pods = cluster.list("Pod", "default").await;
        assert_eq!(pods.len(), 3);
        for pod in &pods {
            assert!(pod["metadata"]["finalizers"].is_null(), "{pod:#}");
            let index = pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"].as_str();
            assert_eq!(pod["spec"]["hostname"], format!("good-{}", index.expect("an index")));
            assert_eq!(pod["spec"]["containers"][0]["env"][0]["name"], "JOB_COMPLETION_INDEX");
        }

        let spec = json!({"backoffLimit": 0, "template": template("Never", json!({"end": "Failed"}))});
        cluster.create("Job", "default", object("batch/v1", "Job", "bad", spec)).await;
        let bad =
            cluster.until("Job", "default", "bad", |job| has_condition(job, "Failed", "BackoffLimitExceeded")).await;
        assert_eq!((&bad["status"]["failed"], &bad["status"]["succeeded"]), (&json!(1), &Value::Null));
    })
    .await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_job_goes_when_its_time_is_over_and_a_suspended_one_waits() {
    let cluster = Cluster::start().await;
    play(&cluster, async {
        let spec = json!({"ttlSecondsAfterFinished": 0, "template": template("Never", json!({"end": "Succeeded"}))});
        cluster.create("Job", "default", object("batch/v1", "Job", "brief", spec)).await;
        cluster.until_gone("Job", "default", "brief").await;
        assert_eq!(cluster.list("Pod", "default").await.len(), 0);
        let spec = json!({"suspend": true, "template": template("Never", json!({"end": "Succeeded"}))});
        cluster.create("Job", "default", object("batch/v1", "Job", "later", spec)).await;
        cluster.until("Job", "default", "later", |job| has_condition(job, "Suspended", "JobSuspended")).await;
        assert_eq!(cluster.list("Pod", "default").await.len(), 0);
        cluster.patch("Job", "default", "later", json!({"spec": {"suspend": false}})).await;
        cluster.until("Job", "default", "later", |job| has_condition(job, "Complete", "CompletionsReached")).await;
        // Deleted without a word about its pods: they stay, and nothing holds them.
        cluster.delete("Job", "default", "later", DeleteParams::default()).await;
        cluster.until_gone("Job", "default", "later").await;
        let pods = cluster.list("Pod", "default").await;
        assert_eq!((pods.len(), &pods[0]["metadata"]["ownerReferences"]), (1, &Value::Null));
    })
    .await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_cron_job_starts_what_is_due_notes_it_and_forgets_it() {
    // For the controllers it is two hours later than for the server, which notes when the cron job was made.
    let later = Ambient::system().now() + Duration::from_secs(7200);
    let (ambient, _clock) = Ambient::manual(later, 1);
    let cluster = Cluster::start_with(ambient).await;
    play(&cluster, async {
        let job = json!({"spec": {"template": template("Never", json!({"end": "Succeeded"}))}});
        let spec = json!({"schedule": "0 * * * *", "timeZone": "Etc/UTC", "jobTemplate": job});
        cluster.create("CronJob", "default", object("batch/v1", "CronJob", "dump", spec)).await;
        let due = later.as_second() / 3600 * 60;
        let name = format!("dump-{due}");
        let job =
            cluster.until("Job", "default", &name, |job| has_condition(job, "Complete", "CompletionsReached")).await;
        assert_eq!(job["metadata"]["ownerReferences"][0]["kind"], "CronJob");
        let scheduled = &job["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"];
        let noted =
            |cron: &Value| !cron["status"]["lastSuccessfulTime"].is_null() && cron["status"]["active"].is_null();
        let cron = cluster.until("CronJob", "default", "dump", noted).await;
        assert_eq!(&cron["status"]["lastScheduleTime"], scheduled);
        let limit = json!({"spec": {"successfulJobsHistoryLimit": 0}});
        cluster.patch("CronJob", "default", "dump", limit).await;
        cluster.until_gone("Job", "default", &name).await;
        assert_eq!(cluster.list("Job", "default").await.len(), 0, "what was due was started once");
    })
    .await;
    cluster.stop().await;
}
