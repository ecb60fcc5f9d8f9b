//! Cron jobs: jobs that are due, and which old ones go.

use ambient::Ambient;
use jiff::tz::TimeZone;
use kube::Client;
use kube::api::PropagationPolicy;
use serde_json::{Value, json};
use workloads::Event;
use workloads::cron_job::{CronJob, Ended, Job, Plan, Start, Status, plan};

use super::calls::{JOBS, why};
use super::project::{CronView, JobView, time_text};
use super::{CATCH_UP, Driver, Informers, controls, settled};
use crate::Term;
use crate::informer::Key;
use crate::queue::{Outcome, Queue};
use crate::work::Stop;

/// Annotation of a job: when it was due.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// Runs until the term ends and its requests are settled. Schedules without a time zone follow the machine's.
pub async fn run(client: Client, term: Term, ambient: Ambient, informers: Informers) -> kube::Result<()> {
    let driver =
        Driver::new(CronJobs { zone: TimeZone::system() }, "cronjob-controller", client, term, ambient, informers);
    let Informers { cron_jobs, jobs, .. } = &driver.informers;
    if cron_jobs.synced().await && jobs.synced().await {
        driver.run(|queue| driver.listen(queue), |key| driver.sync(key)).await;
    }
    Ok(())
}

/// Looks after cron jobs.
struct CronJobs {
    /// Of schedules that name none.
    zone: TimeZone,
}

impl Driver<CronJobs> {
    fn listen(&self, queue: &Queue<Key>) {
        let own = queue.clone();
        self.informers.cron_jobs.on_change(move |old, new| {
            if let Some(view) = new.or(old) {
                own.add(view.meta.key());
            }
        });
        let (queue, cron_jobs) = (queue.clone(), self.informers.cron_jobs.clone());
        self.informers.jobs.on_change(move |old, new| {
            for view in [old, new].into_iter().flatten() {
                let Some(owner) = &view.meta.owner else { continue };
                let found = cron_jobs.get(&view.meta.namespace, &owner.name);
                if found.is_some_and(|cron| controls(owner, "CronJob", &cron.meta)) {
                    queue.add(Key::new(&view.meta.namespace, &owner.name));
                }
            }
        });
    }

    async fn sync(&self, key: Key) -> Result<Outcome, Stop> {
        let Some(view) = self.informers.cron_jobs.get(&key.namespace, &key.name) else {
            self.ledger.forget(&key);
            return Ok(Outcome::Done);
        };
        let Informers { cron_jobs, jobs, .. } = &self.informers;
        let stays = |name: &str, uid: &str| {
            jobs.get(&key.namespace, name).is_some_and(|job| job.meta.uid == uid && !job.meta.deleting)
        };
        if !self.ledger.is_caught_up(&key, cron_jobs.revision(), jobs.revision(), stays) {
            return Ok(Outcome::After(CATCH_UP));
        }
        let zone = if view.has_zone { view.cron.zone.clone() } else { Ok(self.own.zone.clone()) };
        let cron = CronJob { zone, ..view.cron.clone() };
        let own = jobs.by_index(&format!("owner:{}", view.meta.uid));
        // What is on its way out is not counted, nor deleted again.
        let own: Vec<Job> = own.iter().filter(|job| !job.meta.deleting).map(|job| seen(job)).collect();
        let now = self.ambient.now().as_millisecond();
        let plan = plan(&cron, &own, now);
        self.carry_out(&view, &key, &cron, &plan).await?;
        Ok(settled(plan.look_again, now))
    }

    async fn carry_out(&self, view: &CronView, key: &Key, cron: &CronJob, plan: &Plan) -> Result<(), Stop> {
        let meta = &view.meta;
        plan.events.iter().for_each(|event| self.tell(meta, event));
        for (name, uid) in &plan.delete {
            let at = (name.as_str(), uid.as_str(), 0);
            match self.caller.delete(JOBS, &meta.namespace, at, PropagationPolicy::Background).await {
                Ok(()) => self.ledger.deleted(key, name, uid),
                Err(stop) => {
                    let message = format!("Deleted job: {}", why(&stop));
                    self.tell(meta, &Event::warning("FailedDelete", message));
                    return Err(stop);
                }
            }
            self.tell(meta, &Event::normal("SuccessfulDelete", format!("Deleted job {name}")));
        }
        let mut made = None;
        if let Some(start) = &plan.start {
            made = self.start(view, key, start).await?.map(|uid| (start, uid));
        }
        let status = plan.status_after(made.as_ref().map(|(start, uid)| (*start, uid.as_str())));
        if status != cron.status {
            // At the version that was seen: a list of jobs that somebody changed meanwhile is not written over.
            let written = self.caller.write_status(meta, meta.version, render(&status, &meta.namespace)).await?;
            self.ledger.own(key, written);
        }
        Ok(())
    }

    /// Makes the job of one time; its uid. None if a stranger has its name. One that was made before, and not noted,
    /// is the one.
    async fn start(&self, view: &CronView, key: &Key, start: &Start) -> Result<Option<String>, Stop> {
        let meta = &view.meta;
        match self.caller.create(JOBS, &meta.namespace, body(view, start)).await {
            Ok(job) => {
                self.ledger.child(key, job.version);
                self.tell(meta, &Event::normal("SuccessfulCreate", format!("Created job {}", job.name)));
                Ok(Some(job.uid))
            }
            Err(stop) if stop.code() == Some(409) => {
                let found = self.caller.read(JOBS, &meta.namespace, &start.name).await?.unwrap_or_default();
                let owners = found["metadata"]["ownerReferences"].as_array().into_iter().flatten();
                let own = owners.into_iter().any(|o| o["controller"] == true && o["uid"] == meta.uid.as_str());
                Ok(found["metadata"]["uid"].as_str().filter(|_| own).map(str::to_owned))
            }
            Err(stop) => {
                let message = format!("Error creating job: {}", why(&stop));
                self.tell(meta, &Event::warning("FailedCreate", message));
                Err(stop)
            }
        }
    }
}

/// A job as the planner sees it.
fn seen(view: &JobView) -> Job {
    let holds =
        |kind: &str| view.job.status.conditions.iter().any(|c| c.kind == kind && c.truth == workloads::Truth::True);
    Job {
        name: view.meta.name.clone(),
        uid: view.meta.uid.clone(),
        ended: match () {
            () if holds("Complete") => Some(Ended::Complete),
            () if holds("Failed") => Some(Ended::Failed),
            () => None,
        },
        started: view.job.status.start.unwrap_or(view.meta.created),
        completed: view.job.status.completion,
    }
}

/// The job of one time.
fn body(view: &CronView, start: &Start) -> Value {
    let template = &view.template["metadata"];
    let mut job = json!({"metadata": {"name": start.name, "namespace": view.meta.namespace,
        "ownerReferences": [view.meta.as_owner()]}, "spec": view.template["spec"]});
    for field in ["labels", "annotations"] {
        if !template[field].is_null() {
            job["metadata"][field] = template[field].clone();
        }
    }
    job["metadata"]["annotations"][SCHEDULED] = start.due_text.as_str().into();
    job
}

/// The status as a patch.
fn render(status: &Status, namespace: &str) -> Value {
    let job = |(name, uid): &(String, String)| json!({"apiVersion": "batch/v1", "kind": "Job", "namespace": namespace, "name": name, "uid": uid});
    let active: Vec<Value> = status.active.iter().map(job).collect();
    json!({
        "active": if active.is_empty() { Value::Null } else { active.into() },
        "lastScheduleTime": status.last_schedule.map(time_text),
        "lastSuccessfulTime": status.last_success.map(time_text),
    })
}
