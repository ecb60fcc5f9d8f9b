//! Drivers of the pure planners of crate `workloads`: Deployments, ReplicaSets, Jobs and CronJobs.
//!
//! ```text
//!  informers ──▶ queue ──▶ worker: view ▶ workloads::…::plan ▶ calls, in the order of the plan
//!      ▲                                                         │
//!      └───────────────────── API server ◀───────────────────────┘
//! ```
//!
//! Invariant: an object is planned only from views that hold this controller's own last writes for it
//! ([`ledger::Ledger`]). Each call carries the uid that was seen, so that none acts on a namesake.

mod calls;
pub mod cron_job;
pub mod deployment;
pub mod job;
mod ledger;
mod project;
pub mod replica_set;
pub mod ttl;

use std::time::Duration;

use ambient::Ambient;
use k8s_openapi::api::core::v1::Pod;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind, Selector, SelectorExt};
use kube::{Api, Client};
use workloads::{Event, Level, Millis};

use crate::Term;
use crate::events::{self, Recorder};
use crate::informer::{Informer, Key};
use crate::queue::{Outcome, Queue};
use crate::work::{self, Stop};
use calls::Caller;
use ledger::Ledger;
use project::{CronView, DeploymentView, JobView, Meta, Owner, PodView, SetView};

/// Objects of one kind worked on at the same time.
const WORKERS: usize = 5;
/// Wait before an object is looked at again whose view has not caught up; changes wake it earlier.
const CATCH_UP: Duration = Duration::from_millis(20);

/// Local copies of what these controllers look at. Cheap to clone.
#[derive(Clone)]
pub struct Informers {
    /// All pods, by `owner:UID` or `orphan:NAMESPACE`, and those of jobs by `job:NAMESPACE/NAME`.
    pods: Informer<PodView>,
    /// All replica sets, by `owner:UID` or `orphan:NAMESPACE`.
    sets: Informer<SetView>,
    deployments: Informer<DeploymentView>,
    /// All jobs, by `owner:UID` or `orphan:NAMESPACE`.
    jobs: Informer<JobView>,
    cron_jobs: Informer<CronView>,
}

impl Informers {
    /// Starts all of them; they run until the term ends.
    pub fn start(client: &Client, term: &Term, ambient: &Ambient) -> Self {
        let all = |group: &str, kind: &str| -> Api<DynamicObject> {
            Api::all_with(client.clone(), &ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind)))
        };
        let pods: Api<Pod> = Api::all(client.clone());
        Self {
            pods: Informer::builder(pods, |p| Some(project::pod(p))).index(pod_keys).start(term, ambient),
            sets: Informer::builder(all("apps", "ReplicaSet"), project::set)
                .index(|set| vec![owner_key(&set.meta)])
                .start(term, ambient),
            deployments: Informer::builder(all("apps", "Deployment"), project::deployment).start(term, ambient),
            jobs: Informer::builder(all("batch", "Job"), project::job)
                .index(|job| vec![owner_key(&job.meta)])
                .start(term, ambient),
            cron_jobs: Informer::builder(all("batch", "CronJob"), project::cron_job).start(term, ambient),
        }
    }

    /// The pods of an object, and those of nobody that its selector takes, as its planner sees them.
    fn pods_of(&self, meta: &Meta, selector: &Selector) -> Vec<workloads::Pod> {
        let own = self.pods.by_index(&format!("owner:{}", meta.uid));
        let orphans = self.pods.by_index(&format!("orphan:{}", meta.namespace));
        let orphans = orphans.into_iter().filter(|pod| selector.matches(&pod.meta.labels));
        let seen = own.into_iter().chain(orphans).map(|view| workloads::Pod {
            owned: view.meta.owner.is_some(),
            matches: selector.matches(&view.meta.labels),
            ..view.pod.clone()
        });
        seen.collect()
    }
}

/// What a driver works with; `K` is what it looks after, with what it alone needs for that.
struct Driver<K> {
    own: K,
    caller: Caller,
    ledger: Ledger,
    informers: Informers,
    recorder: Recorder,
    ambient: Ambient,
}

impl<K> Driver<K> {
    /// `component` is its name in events.
    fn new(own: K, component: &str, client: Client, term: Term, ambient: Ambient, informers: Informers) -> Self {
        let recorder = Recorder::start(client.clone(), component, &term, &ambient);
        Self { own, caller: Caller { client, term }, ledger: Ledger::new(&ambient), informers, recorder, ambient }
    }

    /// Looks after one object after the other as they come into the queue, until the term ends and its requests are
    /// settled. `listen` puts there what changes.
    async fn run<F>(&self, listen: impl FnOnce(&Queue<Key>), look: impl Fn(Key) -> F)
    where
        F: Future<Output = Result<Outcome, Stop>>,
    {
        let queue = Queue::new(&self.caller.term, &self.ambient);
        listen(&queue);
        work::run(&queue, WORKERS, look).await;
    }

    /// Tells people something about an object.
    fn tell(&self, meta: &Meta, event: &Event) {
        let level = match event.level {
            Level::Normal => events::Level::Normal,
            Level::Warning => events::Level::Warning,
        };
        self.recorder.event(&meta.reference(), level, event.reason, event.message.clone());
    }
}

/// Where a pod is found.
fn pod_keys(pod: &PodView) -> Vec<String> {
    let of_job = pod.meta.owner.as_ref().filter(|owner| owner.kind == "Job");
    let of_job = of_job.map(|owner| format!("job:{}/{}", pod.meta.namespace, owner.name));
    std::iter::once(owner_key(&pod.meta)).chain(of_job).collect()
}

/// Where what an object controls is found, and what nobody does.
fn owner_key(meta: &Meta) -> String {
    match &meta.owner {
        Some(owner) => format!("owner:{}", owner.uid),
        None => format!("orphan:{}", meta.namespace),
    }
}

/// Whether an object is the one that controls another.
fn controls(owner: &Owner, kind: &str, meta: &Meta) -> bool {
    owner.kind == kind && owner.uid == meta.uid
}

/// Done until the next change, or until a moment.
fn settled(look_again: Option<Millis>, now: Millis) -> Outcome {
    match look_again.map(|at| u64::try_from(at - now).unwrap_or(0)) {
        Some(wait) => Outcome::After(Duration::from_millis(wait.max(1))),
        None => Outcome::Done,
    }
}
