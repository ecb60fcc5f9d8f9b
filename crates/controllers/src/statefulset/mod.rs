//! The driver of the pure planner: API objects in, API calls out.
//!
//! ```text
//!  informers (sets, pods, claims, revisions) ──▶ queue ──▶ worker
//!       ▲                                                    │ project ▶ planner::step ▶ calls
//!       └──────────── API server ◀───────────────────────────┘
//! ```
//!
//! Invariant: a set is planned only from views that hold this controller's own last writes for it
//! (`Seen`). What a stale view could still get wrong is stopped by preconditions on every call.

mod calls;
mod meaning;
mod pace;
mod project;
mod render;
mod seen;
mod trouble;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ambient::Ambient;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeClaim};
use kube::core::{ApiResource, DynamicObject, SelectorExt};
use kube::{Api, Client};
use planner::{Claim, ExecState, Observed, Response, Verdict, step};
use tokio::task::JoinSet;
use tracing::{debug, warn};

pub use project::{
    PodView, RevisionView, SetView, Source, observe, project_claim, project_pod, project_revision, project_set,
};

use crate::Term;
use crate::events::{Level, Recorder};
use crate::informer::{Informer, Key};
use crate::lean::LeanPod;
use crate::queue::{Outcome, Queue};
use calls::Caller;
use pace::Paces;
use seen::Seen;

/// Wait before a set is looked at again whose view has not caught up; changes wake it earlier.
const CATCH_UP: Duration = Duration::from_millis(20);

/// What the controller acts on, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Group of the sets.
    pub group: String,
    /// Version of the sets.
    pub version: String,
    /// Plural name of the sets.
    pub plural: String,
    /// Kind of the sets.
    pub kind: String,
    /// Only this namespace, if given.
    pub namespace: Option<String>,
    /// Sets worked on at the same time.
    pub workers: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            group: "apps".into(),
            version: "v1".into(),
            plural: "statefulsets".into(),
            kind: "StatefulSet".into(),
            namespace: None,
            workers: 32,
        }
    }
}

impl Options {
    /// The sets as kube names them.
    pub fn resource(&self) -> ApiResource {
        let api_version =
            if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) };
        ApiResource {
            group: self.group.clone(),
            version: self.version.clone(),
            api_version,
            kind: self.kind.clone(),
            plural: self.plural.clone(),
        }
    }
}

/// Runs the controller until the term ends; returns when all its requests are settled.
pub async fn run(client: Client, term: Term, ambient: Ambient, options: Options) -> Result<(), Error> {
    let controller = Arc::new(Controller::start(client, &term, &ambient, options));
    for ready in [
        controller.sets.synced().await,
        controller.pods.synced().await,
        controller.claims.synced().await,
        controller.revisions.synced().await,
    ] {
        if !ready {
            return Ok(());
        }
    }
    controller.clone().enqueue_on_changes();
    let mut workers = JoinSet::new();
    for _ in 0..controller.caller.options.workers.max(1) {
        workers.spawn(controller.clone().work());
    }
    while let Some(ended) = workers.join_next().await {
        ended.map_err(|source| Error::Worker { source })?;
    }
    Ok(())
}

struct Controller {
    caller: Caller,
    term: Term,
    ambient: Ambient,
    sets: Informer<SetView>,
    pods: Informer<PodView>,
    claims: Informer<(String, Claim)>,
    revisions: Informer<RevisionView>,
    queue: Queue<Key>,
    recorder: Recorder,
    seen: Seen,
    paces: Paces,
}

impl Controller {
    fn start(client: Client, term: &Term, ambient: &Ambient, options: Options) -> Self {
        let resource = options.resource();
        let namespace = options.namespace.as_deref();
        let sets: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        let types = kube::core::TypeMeta { api_version: resource.api_version.clone(), kind: resource.kind.clone() };
        let project = move |mut set: DynamicObject| {
            // Items of a list come without their own type.
            set.types = Some(types.clone());
            project_set(set).map_err(|error| warn!(%error, "a set is left alone")).ok()
        };
        Self {
            sets: Informer::builder(sets, project).start(term, ambient),
            pods: Informer::builder(api::<LeanPod>(&client, namespace), |p| Some(project_pod(p.into())))
                .index(|p| vec![owner_key(&p.namespace, p.pod.controller())])
                .start(term, ambient),
            claims: Informer::builder(api::<PersistentVolumeClaim>(&client, namespace), |c| Some(project_claim(c)))
                .start(term, ambient),
            revisions: Informer::builder(api::<ControllerRevision>(&client, namespace), |r| Some(project_revision(r)))
                .index(|r| vec![owner_key(&r.namespace, r.revision.controller())])
                .start(term, ambient),
            queue: Queue::new(term, ambient),
            recorder: Recorder::start(client.clone(), "statefulset-controller", term, ambient),
            seen: Seen::new(ambient),
            paces: Paces::new(ambient),
            caller: Caller { client, options, ambient: ambient.clone() },
            term: term.clone(),
            ambient: ambient.clone(),
        }
    }

    fn enqueue_on_changes(self: Arc<Self>) {
        let this = self.clone();
        self.sets.on_change(move |old, new| {
            if let Some(view) = new.or(old) {
                this.queue.add(Key::new(&view.set.namespace, &view.set.name));
            }
        });
        let this = self.clone();
        self.pods.on_change(move |old, new| {
            for view in [old, new].into_iter().flatten() {
                this.enqueue_for_pod(view);
            }
        });
        let this = self.clone();
        // A claim that went may be what a pod's creation waits for.
        self.claims.on_change(move |old, new| {
            if let (Some(claim), None) = (old, new) {
                this.enqueue_for_claim(&claim.0, &claim.1.name);
            }
        });
    }

    fn enqueue_for_pod(&self, view: &PodView) {
        match view.pod.controller() {
            Some(owner) => {
                let found = self.sets.get(&view.namespace, &owner.name);
                if owner.kind == self.caller.options.kind && found.is_some_and(|s| s.set.uid == owner.uid) {
                    self.queue.add(Key::new(&view.namespace, &owner.name));
                }
            }
            None => {
                let sets = self.sets.in_namespace(&view.namespace);
                for set in sets.iter().filter(|s| s.selector.matches(&view.labels)) {
                    self.queue.add(Key::new(&view.namespace, &set.set.name));
                }
            }
        }
    }

    fn enqueue_for_claim(&self, namespace: &str, claim: &str) {
        let Some((stem, _)) = planner::parent_and_ordinal(claim) else { return };
        for set in self.sets.in_namespace(namespace) {
            let set = &set.set;
            if set.claim_templates.iter().any(|t| stem.strip_prefix(t) == Some(&format!("-{}", set.name))) {
                self.queue.add(Key::new(namespace, &set.name));
            }
        }
    }

    async fn work(self: Arc<Self>) {
        while let Some(key) = self.queue.next().await {
            let outcome = self.sync(&key).await;
            self.queue.finish(key, outcome);
        }
    }

    async fn sync(&self, key: &Key) -> Outcome {
        let Some(view) = self.sets.get(&key.namespace, &key.name) else {
            self.seen.forget(key);
            self.paces.forget(key);
            return Outcome::Done;
        };
        if !self.seen.is_caught_up(key, self) {
            return Outcome::After(CATCH_UP);
        }
        if let Some(wait) = self.paces.before_plan(key) {
            return Outcome::After(wait);
        }
        let begun = self.ambient.boottime();
        let observed = self.observe(&view);
        let state = ExecState::new(observed, self.ambient.now().as_millisecond());
        if state.plan().is_status_alone() {
            self.paces.planned(key, begun);
        }
        let state = if self.paces.before_status(key).is_some() { state.putting_off_status() } else { state };
        for reason in &state.plan().reasons {
            debug!(set = %key.name, namespace = %key.namespace, %reason, "waiting");
        }
        let Some(state) = self.carry_out(&view, key, state).await else { return Outcome::Done };
        let Some(outcome) = state.outcome() else { return Outcome::Retry };
        match outcome.verdict {
            Verdict::Settled => {
                let look_again = outcome.look_again.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
                let status = outcome.owes_status.then(|| self.paces.before_status(key).unwrap_or_default());
                look_again.into_iter().chain(status).min().map_or(Outcome::Done, Outcome::After)
            }
            Verdict::Stale => Outcome::Retry,
            Verdict::Failed(error) => {
                debug!(set = %key.name, namespace = %key.namespace, %error, "will be tried again");
                Outcome::Retry
            }
        }
    }

    /// Carries an execution out. None if the term ended before its end; what was started is settled.
    async fn carry_out(&self, view: &SetView, key: &Key, state: ExecState) -> Option<ExecState> {
        let mut flying = FuturesUnordered::new();
        let (mut state, mut requests) = step(state, None);
        loop {
            for event in state.take_events() {
                self.tell(view, event);
            }
            if !self.term.is_over() {
                flying.extend(requests.into_iter().map(|request| async move {
                    let answer = self.caller.call(view, request.call.clone()).await;
                    self.seen.note(key, &request.call, &answer);
                    self.paces.called(key, &request.call);
                    Response { id: request.id, answer }
                }));
            }
            let Some(response) = flying.next().await else { break };
            (state, requests) = step(state, Some(response));
        }
        state.outcome().is_some().then_some(state)
    }

    fn observe(&self, view: &SetView) -> Observed {
        let set = &view.set;
        let own = format!("owner:{}", set.uid);
        let orphans = format!("orphan:{}", set.namespace);
        let pods: Vec<_> = [&own, &orphans].into_iter().flat_map(|k| self.pods.by_index(k)).collect();
        let revisions: Vec<_> = [&own, &orphans].into_iter().flat_map(|k| self.revisions.by_index(k)).collect();
        let mut observed = view.observe(pods.iter().map(|p| &**p), Default::default(), revisions.iter().map(|r| &**r));
        if set.claim_templates.is_empty() {
            return observed;
        }
        let wanted = 0..set.wanted();
        let existing = observed.pods.iter().filter_map(|m| planner::parent_and_ordinal(&m.pod.name)).map(|(_, n)| n);
        // The planner looks at few more absent ordinals than there are pods.
        let near = wanted.take(observed.pods.len() + CLAIMS_AHEAD).filter_map(|index| set.ordinal_at(index));
        let reserved = set.beyond.reserved.ranges().iter().flat_map(|(first, last)| *first..=*last);
        let ordinals: BTreeSet<i32> = existing.chain(near).chain(reserved.take(CLAIMS_AHEAD)).collect();
        for ordinal in ordinals {
            for template in &set.claim_templates {
                let name = planner::claim_name(template, &set.name, ordinal);
                if let Some(claim) = self.claims.get(&set.namespace, &name) {
                    observed.claims.insert(name, claim.1.clone());
                }
            }
        }
        observed
    }

    fn tell(&self, view: &SetView, event: planner::Event) {
        let set = &view.set;
        let about = ObjectReference {
            api_version: Some(set.api_version.clone()),
            kind: Some(set.kind.clone()),
            namespace: Some(set.namespace.clone()),
            name: Some(set.name.clone()),
            uid: Some(set.uid.clone()),
            resource_version: Some(view.version.to_string()),
            field_path: None,
        };
        let level = match event.level {
            planner::Level::Normal => Level::Normal,
            planner::Level::Warning => Level::Warning,
        };
        self.recorder.event(&about, level, event.reason, event.message);
    }
}

/// Absent ordinals whose claims are looked up beyond the number of pods; the planner creates fewer at once.
const CLAIMS_AHEAD: usize = 2001;

fn owner_key(namespace: &str, owner: Option<&planner::Owner>) -> String {
    match owner {
        Some(owner) => format!("owner:{}", owner.uid),
        None => format!("orphan:{namespace}"),
    }
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Why the controller or a projection failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A set that the server should have refused; it is left alone until it is changed.
    #[error("StatefulSet {object}: {field} {why}; correct the manifest and apply it again")]
    Malformed {
        /// Namespace and name.
        object: String,
        /// Path of the field.
        field: String,
        /// What is wrong.
        why: String,
    },
    /// A worker panicked: a defect of the controller. Restarting it is safe.
    #[error("a worker of the statefulset controller stopped unexpectedly")]
    Worker {
        /// How it ended.
        source: tokio::task::JoinError,
    },
}
