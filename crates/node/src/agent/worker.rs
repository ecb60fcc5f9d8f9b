//! One pod's life, driven by one task.
//!
//! ```text
//!                  ┌───────── held: volume, config or image missing ◀────────┐
//!                  │  (status says why; again after a pause or a change)      │
//!                  ▼                                                          │
//!   seen ──▶ bringing up ─────────────────────────────────────────────────────┘
//!     │        1 what it names is read from the API         nothing made yet: again
//!     │        2 address recorded (fsync); users, too       kept, sticky
//!     │        3 volumes, files, spec.json (fsync)          kept, made again
//!     │        4 shim launched: sandbox                     cleaned up, again
//!     │        5 eth0 attached                              cleaned up, again
//!     │        6 Start
//!     │          │
//!     │ living   ▼                      shim lost (killed, machine restarted): what is left is killed,
//!     └──────▶ following ──────────────▶ new sandbox in place: same uid, address and epoch, incarnation + 1
//!                │  │
//!                │  └─ everything ended by itself (restartPolicy) ──▶ over: status Succeeded or Failed is
//!                │                                                    written, then the sandbox removed
//!                │ deletion asked for, or the object is gone                        │
//!                ▼                                                                  ▼
//!              leaving ◀────────────────────────────────────────────────── (deletion asked for)
//!                │  Stop with the grace period; a shorter one later shortens it; a silent shim is killed
//!                │  nothing of it is left: processes, cgroups, mounts, folder, logs, address
//!                ▼
//!              gone ── DELETE with grace period 0 and its uid: the node's report that nothing is left
//! ```
//!
//! The worker owns the pod's folder and decides alone. It may die at any moment: everything is found again
//! from the folder, the address record and the API. While the agent ends (`term`) workers return between
//! two steps, and the pod goes on without them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use super::Shared;
use super::again;
use super::follow::{Follow, Patience};
use super::images;
use super::limits;
use super::raise::Raised;
use super::report::Reporter;
use super::resize::Resize;
use super::status::{self, Carried, Ending, Facts, Health, Hold, Verdict};
use super::timeline::Stopwatch;
use super::tokens::Due;
use super::translate;
use crate::fault::{self, Point};
use crate::shim::Shim;
use crate::shim::client::ClientError;
use crate::shim::spec::ShimSpec;
use crate::shim::state::{Phase, PodState};

/// First pause of a held pod; it doubles.
const HOLD_FIRST: Duration = Duration::from_millis(250);
/// Longest pause of a held pod.
const HOLD_MAX: Duration = Duration::from_secs(60);

/// How often a pod looks whether the node's stop was given up.
const STOP_POLL: Duration = Duration::from_millis(500);

/// How long a leaving pod's last status is tried to be written: a server that cannot write (a full disk) must not keep
/// what the pod occupies.
const LAST_STATUS: Duration = Duration::from_secs(10);

/// How long an ending agent tries to get a last status written.
const LAST_WORD: Duration = Duration::from_secs(2);

/// Who a pod is. Known even where its object is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
}

/// The task of one pod.
#[derive(Debug)]
pub struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) id: Identity,
    /// The object as last seen; none when it is gone.
    pub(super) pod: watch::Receiver<Option<Arc<Pod>>>,
    /// Resolves when the pod that is started before this one has had its first try.
    pub(super) after: Option<oneshot::Receiver<()>>,
    /// Dropped when this pod has had its first try.
    pub(super) before: Option<oneshot::Sender<()>>,
    pub(super) reporter: Reporter,
    /// When it began.
    pub(super) beginning: limits::Beginning,
    /// How long its start takes.
    pub(super) stopwatch: Stopwatch,
    pub(super) address: Option<Ipv4Addr>,
    pub(super) state: Option<PodState>,
    pub(super) health: BTreeMap<String, Health>,
    pub(super) carried: BTreeMap<String, Carried>,
    pub(super) hold: Option<Hold>,
    /// Containers that cannot be started in a pod that runs, and why.
    pub(super) refused: BTreeMap<String, Hold>,
    /// Containers that ask what they are to be and could not be answered.
    pub(super) again: again::Due,
    pub(super) leaving: bool,
    pub(super) tries: u32,
    /// What its containers run from.
    pub(super) images: BTreeMap<String, images::Noted>,
    /// Images that could not be fetched.
    pub(super) pulls: images::BackOffs,
    /// How long the next hold lasts, where that is known.
    pub(super) pause: Option<Duration>,
    /// When its files are to be written anew; none where nothing in them ends.
    pub(super) renew_at: Option<Due>,
    /// Labels and annotations that its files were last made of.
    pub(super) described: Option<Described>,
    /// Why it is ended for good.
    pub(super) verdict: Option<Verdict>,
    /// What it has been given, and what it asks for besides.
    pub(super) resize: Resize,
}

/// Labels and annotations.
pub(super) type Described = (Option<BTreeMap<String, String>>, Option<BTreeMap<String, String>>);

/// What is there of a pod when its worker starts.
enum Found {
    /// Its shim answers.
    Living(Shim),
    /// Its shim lives and cannot be talked to: it is another version's. It is left alone.
    Foreign(String),
    /// It had a sandbox, or part of one.
    Remains,
    /// Nothing.
    Nothing,
}

impl Worker {
    /// A worker for that pod.
    pub fn new(shared: Arc<Shared>, id: Identity, pod: watch::Receiver<Option<Arc<Pod>>>) -> Self {
        let recorded = pod.borrow().as_ref().is_some_and(|pod| {
            pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(super::report::FIRST_READY))
        });
        let beginning = limits::Beginning::of(pod.borrow().as_deref(), &shared.ambient);
        let stopwatch = Stopwatch::new(shared.metrics.clone(), shared.ambient.clone());
        let reporter = Reporter::start(shared.client.clone(), &id, recorded, stopwatch.clone());
        Self {
            shared,
            id,
            pod,
            after: None,
            before: None,
            reporter,
            beginning,
            stopwatch,
            address: None,
            state: None,
            health: BTreeMap::new(),
            carried: BTreeMap::new(),
            hold: None,
            refused: BTreeMap::new(),
            again: again::Due::new(),
            leaving: false,
            tries: 0,
            images: BTreeMap::new(),
            pulls: images::BackOffs::default(),
            pause: None,
            renew_at: None,
            described: None,
            verdict: None,
            resize: Resize::default(),
        }
    }

    /// Drives the pod until it is gone or the agent ends.
    pub async fn run(mut self) {
        let mut found = self.find().await;
        while !self.shared.term.is_cancelled() {
            if self.must_leave() {
                return self.leave(found_shim(found)).await;
            }
            if self.is_over() && !matches!(found, Found::Living(_) | Found::Foreign(_)) {
                self.clear_sandbox().await;
                self.shared.ledger.release(&self.id.uid);
                self.release_order();
                self.wait_for_change(None).await;
                continue;
            }
            let shim = match std::mem::replace(&mut found, Found::Remains) {
                Found::Living(shim) => shim,
                Found::Foreign(why) => {
                    self.be_held(hold("FailedCreatePodSandBox", why)).await;
                    found = self.find().await;
                    continue;
                }
                earlier => match self.bring_up(matches!(earlier, Found::Remains)).await {
                    Raised::Up(shim) => shim,
                    Raised::Held(hold) => {
                        self.be_held(hold).await;
                        continue;
                    }
                    Raised::Interrupted => continue,
                    Raised::Forbidden => {
                        self.release_order();
                        self.wait_for_change(Some(STOP_POLL)).await;
                        continue;
                    }
                },
            };
            self.release_order();
            self.tries = 0;
            self.hold = None;
            match self.follow(&shim).await {
                Follow::Leaving | Follow::AgentEnds => found = Found::Living(shim),
                Follow::Lost => self.note_lost().await,
                Follow::Over => self.be_over(&shim).await,
                Follow::Condemned => self.be_ended(&shim).await,
            }
        }
    }

    /// Looks for what an earlier agent left of the pod.
    async fn find(&mut self) -> Found {
        let dir = self.dir();
        self.address = self.shared.addresses.lock().await.of(&self.id.uid);
        if !dir.exists() {
            return Found::Nothing;
        }
        self.remember_reported();
        self.images = images::noted(&dir);
        let mut patience = Patience::default();
        loop {
            let error = match Shim::connect(&dir).await {
                Ok(shim) => {
                    self.state = shim.state().await.ok();
                    // How old its tokens are is not known any more.
                    self.renew_at = Some(Due::after(&self.shared.ambient, Duration::ZERO));
                    // Created and never started, because the agent died in between: it may have no network.
                    let unborn = self.state.as_ref().is_some_and(|s| s.phase == Phase::Created);
                    return if unborn { Found::Remains } else { Found::Living(shim) };
                }
                Err(ClientError::Protocol(error)) => return Found::Foreign(error.to_string()),
                Err(error) => error,
            };
            if patience.is_dead(&error) {
                self.note_lost().await;
                return Found::Remains;
            }
            tracing::warn!(pod = %self.id.name, %error, "the shim cannot be asked; trying again");
            if self.nap(patience.pause()).await {
                return Found::Foreign(error.to_string());
            }
        }
    }

    /// What the API says of earlier ends and of readiness, for a pod that runs on while the agent was away.
    fn remember_reported(&mut self) {
        let Some(pod) = self.pod.borrow().clone() else { return };
        let Some(status) = &pod.status else { return };
        for reported in status.container_statuses.iter().chain(&status.init_container_statuses).flatten() {
            let run = reported.container_id.as_deref().and_then(|id| id.rsplit('/').next()).unwrap_or_default();
            let started = reported.started == Some(true);
            let health = Health { run: run.to_owned(), started, ready: reported.ready };
            self.health.insert(reported.name.clone(), health);
        }
    }

    /// Its shim is dead: remember how its containers ended.
    async fn note_lost(&mut self) {
        let read = PodState::read(&self.dir());
        match read {
            Ok(Some(state)) => {
                // Ended by itself, by its restart policy: that is the end of the pod, not of the sandbox.
                let by_itself = state.phase == Phase::Finished && self.ends_for_good();
                self.carried = status::carry(&state, self.shared.ambient.now());
                self.state = by_itself.then_some(state);
                self.publish();
                if by_itself {
                    self.flush().await;
                }
                self.state = None;
            }
            Ok(None) => self.state = None,
            Err(error) => {
                tracing::warn!(pod = %self.id.name, %error, "the state of a lost sandbox cannot be read");
                self.state = None;
            }
        }
        self.health.clear();
        fault::point(Point::LossNoted);
    }

    /// Everything ended by itself: the end is written before the sandbox, which remembers it, is removed.
    async fn be_over(&mut self, shim: &Shim) {
        if !self.ends_for_good() {
            // The node is being stopped, or somebody told the shim to end: up again in place, when that is allowed.
            let _ = shim.acknowledge().await;
            self.note_lost().await;
            return;
        }
        self.publish();
        if self.flush().await {
            fault::point(Point::EndWritten);
            let _ = shim.acknowledge().await;
            fault::point(Point::EndAcknowledged);
            self.clear_sandbox().await;
        }
    }

    /// The pod broke a limit: it is stopped, and has failed.
    async fn be_ended(&mut self, shim: &Shim) {
        let (Some(pod), Some(verdict)) = (self.object(), self.verdict.clone()) else { return };
        self.shared.events.warning(&pod, None, &verdict.reason, &verdict.message);
        self.tell_killing();
        if !self.stop(shim).await {
            // The next agent finds the limit broken as this one did.
            return;
        }
        if self.state.as_ref().is_none_or(|s| s.phase != Phase::Finished) {
            // Its shim is lost: nothing is said to be over while something may run.
            self.clear_sandbox().await;
            self.note_lost().await;
        }
        self.publish();
        if self.flush().await {
            let _ = shim.acknowledge().await;
            self.clear_sandbox().await;
        }
    }

    /// Says why, and waits for a change or a pause.
    async fn be_held(&mut self, mut hold: Hold) {
        self.release_order();
        self.state = None;
        let pod = self.object();
        if hold.container.is_empty()
            && let Some(first) =
                pod.as_ref().and_then(|p| p.spec.as_ref()).and_then(|s| translate::containers(s).next())
        {
            hold.container.clone_from(&first.name);
        }
        if let Some(pod) = &pod {
            let container = (!hold.container.is_empty()).then_some(hold.container.as_str());
            match hold.reason.as_str() {
                "FailedMount" => self.shared.events.warning(pod, None, "FailedMount", &hold.message),
                "FailedCreatePodSandBox" => self.shared.events.warning(pod, None, &hold.reason, &hold.message),
                // What exactly was said when it happened.
                reason if reason.contains("Image") => {
                    self.shared.events.warning(pod, container, "Failed", &format!("Error: {reason}"));
                }
                _ => self.shared.events.warning(pod, container, "Failed", &format!("Error: {}", hold.message)),
            }
        }
        match hold.reason.as_str() {
            // Upstream leaves the container's reason alone for what lies outside of it.
            "FailedMount" | "FailedCreatePodSandBox" => hold.reason = "ContainerCreating".to_owned(),
            _ => {}
        }
        self.hold = Some(hold);
        self.publish();
        let pause = HOLD_FIRST.saturating_mul(1 << self.tries.min(10)).min(HOLD_MAX);
        self.tries = self.tries.saturating_add(1);
        let pause = self.pause.take().unwrap_or_else(|| self.shared.ambient.jitter(pause, 0.2));
        self.wait_for_change(Some(pause)).await;
    }

    /// Waits for another version of the object, the agent's end, or the time.
    pub(super) async fn wait_for_change(&mut self, limit: Option<Duration>) {
        let pause = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        let before = self.object().and_then(|p| p.metadata.generation);
        let changed = async {
            // Our own status writes come back as changes too: they are no reason to try again.
            while self.pod.changed().await.is_ok() {
                let now = self.pod.borrow().clone();
                let Some(now) = now else { return };
                if now.metadata.deletion_timestamp.is_some() || now.metadata.generation != before {
                    return;
                }
            }
        };
        tokio::select! {
            () = changed => {}
            () = pause => {}
            () = self.shared.term.cancelled() => {}
        }
    }

    /// Leaves the status, as things are now, to be written.
    pub(super) fn publish(&self) {
        let Some(mut pod) = self.object().map(|p| (*p).clone()) else { return };
        // What we last said is newer than what came back.
        if let Some(newest) = self.reporter.newest() {
            let theirs = pod.status.take().unwrap_or_default();
            let mut merged = (*newest).clone();
            let foreign = theirs.conditions.into_iter().flatten().filter(|c| !status::is_ours(&c.type_));
            let kept = merged.conditions.take().into_iter().flatten().filter(|c| status::is_ours(&c.type_));
            merged.conditions = Some(kept.chain(foreign).collect());
            pod.status = Some(merged);
        }
        let built = status::build(&Facts {
            pod: &pod,
            state: self.state.as_ref(),
            health: &self.health,
            carried: &self.carried,
            hold: self.hold.as_ref(),
            refused: &self.refused,
            ends: self.leaving || self.ends_for_good(),
            verdict: self.verdict.as_ref(),
            resize: &self.resize,
            address: self.address,
            host: self.shared.host,
            sample_id: &self.shared.sample_id.borrow(),
            images: &self.images,
            now: self.shared.ambient.now(),
        });
        self.reporter.publish(built);
    }

    /// Waits until the newest status is written, or the pod is gone. False where the agent ends first, or the pod is to
    /// leave and the status could not be written for too long.
    pub(super) async fn flush(&mut self) -> bool {
        let term = self.shared.term.clone();
        // The server is usually still there when the agent ends: a moment for the last word.
        let too_late = async {
            term.cancelled().await;
            tokio::time::sleep(LAST_WORD).await;
        };
        let mut pod = self.pod.clone();
        let given_up = async {
            let leaves = |p: &Option<Arc<Pod>>| p.as_ref().is_none_or(|p| p.metadata.deletion_timestamp.is_some());
            if pod.wait_for(leaves).await.map(drop).is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(LAST_STATUS).await;
        };
        tokio::select! {
            () = self.reporter.flush() => true,
            () = given_up => {
                tracing::warn!(pod = %self.id.name, "the pod leaves, and its last status was not written");
                false
            }
            () = too_late => false,
        }
    }

    /// Waits a moment. True where the agent ends meanwhile.
    pub(super) async fn nap(&self, pause: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(pause) => false,
            () = self.shared.term.cancelled() => true,
        }
    }

    /// The pod as last seen.
    pub(super) fn object(&self) -> Option<Arc<Pod>> {
        self.pod.borrow().clone()
    }

    /// The pod's folder.
    pub(super) fn dir(&self) -> PathBuf {
        self.shared.config.pod_dir(&self.id.uid)
    }

    /// Whether its deletion was asked for, or its object is gone.
    pub(super) fn must_leave(&self) -> bool {
        self.object().is_none_or(|p| p.metadata.deletion_timestamp.is_some())
    }

    pub(super) fn interrupted(&self) -> bool {
        self.must_leave() || self.shared.term.is_cancelled()
    }

    fn is_over(&self) -> bool {
        let said = self.reporter.newest().and_then(|s| s.phase.clone());
        let said = matches!(said.as_deref(), Some("Succeeded" | "Failed"));
        said || self.object().is_some_and(|p| status::is_terminal(&p))
    }

    /// Whether the end of all containers is the end of the pod: by its restart policies, and because a stop of the
    /// node ([`super::stop::stop_pods`]) is no failure of its own.
    fn ends_for_good(&self) -> bool {
        let pod = self.object();
        match pod.as_ref().and_then(|p| p.spec.as_ref()).map(status::ending) {
            Some(Ending::Always) => true,
            Some(Ending::Perhaps) => !self.dir().join(super::stop::MARK).exists(),
            Some(Ending::Never) | None => false,
        }
    }

    /// Above everything that any container of this pod was given.
    pub(super) fn next_incarnation(&self) -> u64 {
        let state = PodState::read(&self.dir()).ok().flatten().map_or(0, |s| s.incarnation);
        let spec = ShimSpec::read(&self.dir()).ok().map_or(0, |s| s.incarnation_base);
        state.max(spec) + 1
    }

    /// Lets the next pod in line start.
    fn release_order(&mut self) {
        self.before = None;
        self.after = None;
    }
}

pub(super) fn hold(reason: &str, message: String) -> Hold {
    Hold::of("", reason, message)
}

fn found_shim(found: Found) -> Option<Shim> {
    match found {
        Found::Living(shim) => Some(shim),
        Found::Foreign(_) | Found::Remains | Found::Nothing => None,
    }
}
