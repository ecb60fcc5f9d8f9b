//! A running pod: its shim's states and its probes' reports become statuses, events and restarts.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use ambient::Ambient;
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::mpsc;

use super::limits;
use super::live::Watching;
use super::status::{Health, Verdict};
use super::timeline::Step;
use super::translate::{self, DEFAULT_GRACE_S};
use super::worker::Worker;
use crate::probe::run::{Report, Running, Subject};
use crate::probe::{self, Kind};
use crate::shim::Shim;
use crate::shim::client::{Changes, ClientError};
use crate::shim::state::{ContainerState, Phase, PodState, Status};

/// Reports of probes that wait for the worker.
const REPORTS: usize = 32;
/// First pause before a shim that could not be asked is asked again; it doubles.
const RETRY_FIRST: Duration = Duration::from_millis(20);
/// Longest pause before a shim is asked again.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// A shim that lives and was silent so often is stuck; with the client's own limit that is half a minute.
const MAX_SILENCES: u32 = 3;

/// Why following ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Follow {
    /// The pod is to be deleted, or its object is gone.
    Leaving,
    /// The shim is dead.
    Lost,
    /// Everything ended by itself.
    Over,
    /// The pod broke a limit and is to be ended for good; the worker has the verdict.
    Condemned,
    /// The agent ends; the pod goes on.
    AgentEnds,
}

/// Tells a dead shim from one that cannot be asked just now. Taking a living shim for dead would kill its pod.
#[derive(Debug, Default)]
pub(super) struct Patience {
    silences: u32,
    pauses: u32,
}

impl Patience {
    /// Whether this error shows that the shim is dead, or stuck for good.
    pub(super) fn is_dead(&mut self, error: &ClientError) -> bool {
        match error {
            // Nothing listens there: a socket ends with its process. Anything else (no descriptors left, a full
            // queue, no permission) says nothing about the shim.
            ClientError::Unreachable { source, .. } => {
                matches!(source.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused)
            }
            ClientError::Silent => {
                self.silences += 1;
                self.silences >= MAX_SILENCES
            }
            _ => false,
        }
    }

    /// How long to wait before asking again.
    pub(super) fn pause(&mut self) -> Duration {
        let pause = RETRY_FIRST.saturating_mul(1 << self.pauses.min(10)).min(RETRY_MAX);
        self.pauses += 1;
        pause
    }
}

impl Worker {
    /// Follows the pod until something has to be decided.
    pub(super) async fn follow(&mut self, shim: &Shim) -> Follow {
        let (reports, mut incoming) = mpsc::channel(REPORTS);
        let mut probes: BTreeMap<String, Running> = BTreeMap::new();
        let mut patience = Patience::default();
        let mut outside = Outside::new(self);
        loop {
            match shim.subscribe_and_answer().await {
                Ok(mut changes) => {
                    patience = Patience::default();
                    self.resize(shim).await;
                    let ended = self
                        .follow_connection(shim, &mut changes, &mut probes, &reports, &mut incoming, &mut outside)
                        .await;
                    if let Some(ended) = ended {
                        return ended;
                    }
                }
                Err(error) if patience.is_dead(&error) => return Follow::Lost,
                Err(error) => tracing::debug!(pod = %self.id.name, %error, "the shim cannot be asked; trying again"),
            }
            if self.nap(patience.pause()).await {
                return Follow::AgentEnds;
            }
            if self.must_leave() {
                return Follow::Leaving;
            }
        }
    }

    async fn follow_connection(
        &mut self,
        shim: &Shim,
        changes: &mut Changes,
        probes: &mut BTreeMap<String, Running>,
        reports: &mpsc::Sender<Report>,
        incoming: &mut mpsc::Receiver<Report>,
        outside: &mut Outside,
    ) -> Option<Follow> {
        let term = self.shared.term.clone();
        let mut images = self.shared.sample_id.subscribe();
        loop {
            if self.must_leave() {
                return Some(Follow::Leaving);
            }
            let (renewal, resize, again) = (self.until_renewal(), self.until_resize(), self.until_again());
            tokio::select! {
                state = changes.next() => match state {
                    Ok(Some(state)) => {
                        if self.take_state(shim, state, probes, reports) {
                            return Some(Follow::Over);
                        }
                        self.tell_started(shim).await;
                        self.start_ephemeral(shim).await;
                        self.answer_containers(shim).await;
                    }
                    Ok(None) | Err(_) => return None,
                },
                Some(report) = incoming.recv() => {
                    self.take_report(shim, report).await;
                    self.tell_started(shim).await;
                }
                () = outside.config.changed() => self.renew().await,
                verdict = &mut outside.verdict => {
                    self.verdict = Some(verdict);
                    return Some(Follow::Condemned);
                }
                changed = self.pod.changed() => match changed {
                    Ok(()) => {
                        self.publish();
                        self.resize(shim).await;
                        if self.describes_itself_anew() {
                            self.renew().await;
                        }
                        self.start_ephemeral(shim).await;
                    }
                    Err(_) => return Some(Follow::AgentEnds),
                },
                // It lives as long as the agent.
                Ok(()) = images.changed() => self.publish(),
                () = renewal => self.renew().await,
                () = resize => self.resize(shim).await,
                () = again => self.answer_containers(shim).await,
                () = term.cancelled() => return Some(Follow::AgentEnds),
            }
        }
    }

    /// Takes a new state of the shim. Answers whether everything has ended.
    fn take_state(
        &mut self,
        shim: &Shim,
        state: PodState,
        probes: &mut BTreeMap<String, Running>,
        reports: &mpsc::Sender<Report>,
    ) -> bool {
        let Some(pod) = self.object() else { return false };
        let spec = pod.spec.clone().unwrap_or_default();
        for container in translate::containers(&spec) {
            let Some(now) = state.container(&container.name) else { continue };
            self.tell_events(&pod, container, &state);
            if !now.state.is_running() {
                probes.remove(&container.name);
                continue;
            }
            if probes.get(&container.name).is_some_and(|p| p.run() == now.id) {
                continue;
            }
            let health = self.first_health(container, &now.id);
            let subject = Subject {
                shim: shim.clone(),
                address: self.address.unwrap_or(self.shared.host),
                run: now.id.clone(),
                started: started(now, &self.shared.ambient),
                startup_done: health.started,
            };
            self.health.insert(container.name.clone(), health);
            let running = Running::start(container, &subject, &self.shared.ambient, reports);
            probes.insert(container.name.clone(), running);
        }
        let over = state.phase == Phase::Finished;
        let runs = |container: &Container| state.container(&container.name).is_some_and(|c| c.state.is_running());
        if spec.containers.iter().all(runs) {
            self.stopwatch.reach(Step::Containers);
        }
        self.state = Some(state);
        self.publish();
        over
    }

    /// Tells the shim of startup probes that succeeded, where something waits for them. Said again until it is known
    /// there: this agent may have taken over from one that died in between.
    async fn tell_started(&self, shim: &Shim) {
        for container in self.state.iter().flat_map(|s| &s.containers).filter(|c| c.awaited) {
            let health = self.health.get(&container.name).filter(|h| h.run == container.id);
            if health.is_some_and(|h| h.started)
                && let Err(error) = shim.started(&container.name).await
            {
                tracing::warn!(pod = %self.id.name, container = %container.name, %error, "a start was not told");
            }
        }
    }

    /// What holds for a run before its probes have said anything. A run that the API knows keeps what was
    /// reported last: readiness does not flicker because an agent was replaced.
    fn first_health(&self, container: &Container, run: &str) -> Health {
        let known = self.health.get(&container.name).filter(|h| h.run == run);
        // What no probe asks about is so, whatever was reported before it could be told.
        Health {
            run: run.to_owned(),
            started: container.startup_probe.is_none() || known.is_some_and(|h| h.started),
            ready: container.readiness_probe.is_none() || known.is_some_and(|h| h.ready),
        }
    }

    async fn take_report(&mut self, shim: &Shim, report: Report) {
        let Some(pod) = self.object() else { return };
        let current = self.state.as_ref().and_then(|s| s.container(&report.container)).map(|c| c.id.clone());
        if current.as_deref() != Some(&report.run) {
            // A word about a run that is over.
            return;
        }
        let name = report.container.as_str();
        if let Some(failure) = &report.failure {
            let message = format!("{} probe failed: {failure}", report.kind.name());
            self.shared.events.warning(&pod, Some(name), "Unhealthy", &message);
        }
        if let Some(health) = self.health.get_mut(name) {
            match (report.kind, report.verdict) {
                (Kind::Readiness, probe::Verdict::Succeeds) => health.ready = true,
                (Kind::Readiness, probe::Verdict::Fails) => health.ready = false,
                (Kind::Startup, probe::Verdict::Succeeds) => health.started = true,
                _ => {}
            }
        }
        self.publish();
        if report.verdict == probe::Verdict::Fails && report.kind != Kind::Readiness {
            self.restart(shim, &pod, &report).await;
        }
    }

    /// Liveness or startup failed for good.
    async fn restart(&self, shim: &Shim, pod: &Pod, report: &Report) {
        let kind = report.kind.name().to_lowercase();
        let message = format!("Container {} failed {kind} probe, will be restarted", report.container);
        self.shared.events.normal(pod, Some(&report.container), "Killing", &message);
        let grace = probe_grace(pod, &report.container, report.kind);
        if let Err(error) = shim.restart_container(&report.container, grace, &message).await {
            tracing::warn!(pod = %self.id.name, container = %report.container, %error, "a restart was not begun");
        }
    }

    fn tell_events(&self, pod: &Pod, container: &Container, state: &PodState) {
        let Some(now) = state.container(&container.name) else { return };
        let before = self.state.as_ref().and_then(|s| s.container(&container.name));
        let name = Some(container.name.as_str());
        // A run has its id before its program is executed, so the id alone does not tell that it began.
        let ran_before = before.is_some_and(|b| b.id == now.id && began(b));
        if began(now) && !ran_before && !self.known_run(&container.name, &now.id) {
            if now.restart_count == 0 {
                let image = container.image.as_deref().unwrap_or_default();
                let message = format!("Container image \"{image}\" already present on machine");
                self.shared.events.normal(pod, name, "Pulled", &message);
            }
            let message = format!("Container created: {}", container.name);
            self.shared.events.normal(pod, name, "Created", &message);
            let message = format!("Container started: {}", container.name);
            self.shared.events.normal(pod, name, "Started", &message);
        }
        if let Some(before) = before {
            self.tell_failed_hooks(pod, before, now);
        }
        if let Status::Waiting { reason, .. } = &now.state
            && reason == "CrashLoopBackOff"
            && before.is_none_or(|b| b.state != now.state)
        {
            let (pod_name, namespace) = (&self.id.name, &self.id.namespace);
            let message = format!(
                "Back-off restarting failed container {} in pod {pod_name}_{namespace}({})",
                container.name, self.id.uid
            );
            self.shared.events.warning(pod, name, "BackOff", &message);
        }
    }

    /// Events of hooks that failed since. What they printed is not told: it may hold secrets.
    pub(super) fn tell_failed_hooks(&self, pod: &Pod, before: &ContainerState, now: &ContainerState) {
        let name = Some(now.name.as_str());
        if now.post_start_failures > before.post_start_failures {
            self.shared.events.warning(pod, name, "FailedPostStartHook", "PostStartHook failed");
            self.shared.events.normal(pod, name, "Killing", "FailedPostStartHook");
        }
        if now.pre_stop_failures > before.pre_stop_failures {
            self.shared.events.warning(pod, name, "FailedPreStopHook", "PreStopHook failed");
        }
    }

    /// Whether the API knew this run before the agent started.
    fn known_run(&self, container: &str, run: &str) -> bool {
        self.state.is_none() && self.health.get(container).is_some_and(|h| h.run == run)
    }
}

/// What happens to a pod from outside of it while it runs.
struct Outside {
    /// What its files are made of changed.
    config: Watching,
    /// It broke a limit.
    verdict: Pin<Box<dyn Future<Output = Verdict> + Send>>,
}

impl Outside {
    fn new(worker: &Worker) -> Self {
        let pod = worker.object();
        Self {
            config: Watching::start(&worker.shared.configs, pod.as_deref()),
            verdict: Box::pin(limits::broken(
                worker.shared.ambient.clone(),
                worker.pod.clone(),
                worker.beginning,
                worker.places(),
            )),
        }
    }
}

/// The start of a run on the monotonic clock, which its delays are counted on. Only a shim of an earlier version does not
/// tell it: then as the wall clock has it.
fn started(container: &ContainerState, ambient: &Ambient) -> Duration {
    if let Some(ms) = container.started_boot_ms {
        return Duration::from_millis(ms);
    }
    let now = ambient.boottime();
    let Status::Running { started_at, .. } = container.state else { return now };
    now.saturating_sub(Duration::try_from(ambient.now().duration_since(started_at)).unwrap_or_default())
}

/// Whether a run's program was executed.
fn began(container: &ContainerState) -> bool {
    container.hooking || container.state.is_running()
}

/// Grace period of a restart: the probe's own, else the pod's.
fn probe_grace(pod: &Pod, container: &str, kind: Kind) -> Duration {
    let spec = pod.spec.clone().unwrap_or_default();
    let found = translate::containers(&spec).find(|c| c.name == container);
    let probe = found.and_then(|c| match kind {
        Kind::Startup => c.startup_probe.as_ref(),
        Kind::Liveness => c.liveness_probe.as_ref(),
        Kind::Readiness => None,
    });
    let own = probe.and_then(|p| p.termination_grace_period_seconds);
    let seconds = own.or(spec.termination_grace_period_seconds).unwrap_or(DEFAULT_GRACE_S);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::*;

    fn unreachable(kind: ErrorKind) -> ClientError {
        ClientError::Unreachable { pod_dir: "/pod".into(), source: Error::from(kind) }
    }

    #[test]
    fn only_a_socket_without_listener_shows_death() {
        let mut patience = Patience::default();
        assert!(patience.is_dead(&unreachable(ErrorKind::ConnectionRefused)));
        assert!(patience.is_dead(&unreachable(ErrorKind::NotFound)));
        for alive in [ErrorKind::WouldBlock, ErrorKind::PermissionDenied, ErrorKind::Other] {
            assert!(!patience.is_dead(&unreachable(alive)), "{alive}");
        }
        assert!(!patience.is_dead(&ClientError::Closed));
    }

    #[test]
    fn a_clock_that_jumps_moves_no_probe() {
        let (ambient, clock) = Ambient::manual("2026-01-01T00:00:00Z".parse().expect("a time"), 1);
        clock.advance(Duration::from_secs(50));
        let state = serde_json::json!({"name": "c", "state": {"kind": "running", "started_at": "2026-01-01T00:00:20Z",
            "pid": 7}, "restartCount": 0, "id": "r", "incarnation": 1, "startedBootMs": 20_000});
        let told: ContainerState = serde_json::from_value(state.clone()).expect("a state");
        let began = started(&told, &ambient);
        clock.jump("2030-01-01T00:00:00Z".parse().expect("a time"));
        assert_eq!((began, started(&told, &ambient)), (Duration::from_secs(20), Duration::from_secs(20)));
    }

    #[test]
    fn silence_is_forgiven_a_few_times() {
        let mut patience = Patience::default();
        let verdicts: Vec<bool> = (0..3).map(|_| patience.is_dead(&ClientError::Silent)).collect();
        assert_eq!(verdicts, [false, false, true]);
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        let mut patience = Patience::default();
        let pauses: Vec<Duration> = (0..20).map(|_| patience.pause()).collect();
        assert!(pauses.windows(2).all(|w| w[0] <= w[1]));
        assert_eq!(pauses.last(), Some(&RETRY_MAX));
    }
}
