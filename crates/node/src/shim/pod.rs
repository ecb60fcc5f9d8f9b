//! The pod: which container is started when, what its end means, and how the whole comes to its end.
//!
//! Nothing here waits. [`Pod::advance`] does what is due and [`Pod::next_deadline`] tells when something will be;
//! the loop in [`super::serve`] calls them, and tells of every process that ended.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use ambient::Ambient;
use jiff::Timestamp;

use super::exec::{Exec, Wanted};
use super::file::FileError;
use super::life::{Container, Ending, Exit, Life, Process, Stage};
use super::protocol::{ExecExit, ExecRequest};
use super::spec::{ContainerSpec, Hook, Role, ShimSpec};
use super::state::{Phase, PodState, Termination};
use crate::cgroup::PodCgroup;
use crate::container::Keeper;
use crate::sys;

/// What a container always gets between its stop signal and SIGKILL, even if its preStop hook used up the grace
/// period. As a kubelet does.
const LEAST_AFTER_HOOK: Duration = Duration::from_secs(2);

/// Most programs run in a pod's containers at the same time.
const MAX_EXECS: usize = 64;

/// Most ephemeral containers of one pod.
const MAX_EPHEMERAL: usize = 64;

/// Most warnings kept.
const MAX_WARNINGS: usize = 50;

/// The pod.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) dir: PathBuf,
    pub(super) spec: ShimSpec,
    pub(super) cgroup: PodCgroup,
    pub(super) keeper: Keeper,
    pub(super) containers: Vec<Container>,
    pub(super) execs: BTreeMap<u64, Exec>,
    pub(super) phase: Phase,
    next_exec: u64,
    /// When what still runs is killed; since boot.
    stop_deadline: Option<Duration>,
    boot_id: String,
    created_at: Timestamp,
    sequence: u64,
    warnings: Vec<String>,
    changed: bool,
    /// What changed has to be known after a loss of power.
    lasting: bool,
}

impl Pod {
    /// A pod whose sandbox is up; writes its first state.
    pub(super) fn new(
        dir: PathBuf,
        spec: ShimSpec,
        cgroup: PodCgroup,
        keeper: Keeper,
        warnings: Vec<String>,
        ambient: &Ambient,
    ) -> Result<Self, FileError> {
        let containers = spec.containers.iter().map(|c| Container::new(c.clone(), cgroup.container(&c.name))).collect();
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let pod = Self {
            dir,
            spec,
            cgroup,
            keeper,
            containers,
            execs: BTreeMap::new(),
            phase: Phase::Created,
            next_exec: 0,
            stop_deadline: None,
            boot_id,
            created_at: ambient.now(),
            sequence: 1,
            warnings,
            changed: false,
            lasting: false,
        };
        pod.state().write_for_now(&pod.dir)?;
        Ok(pod)
    }

    /// As reported.
    pub(super) fn state(&self) -> PodState {
        PodState {
            uid: self.spec.uid.clone(),
            shim_pid: std::process::id().cast_signed(),
            boot_id: self.boot_id.clone(),
            sequence: self.sequence,
            phase: self.phase,
            epoch: self.spec.epoch,
            incarnation: self.containers.iter().map(|c| c.incarnation).max().unwrap_or(0),
            created_at: self.created_at,
            containers: self.containers.iter().map(Container::state).collect(),
            warnings: self.warnings.clone(),
        }
    }

    /// Counts changes; subscribers compare it.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Records the state if it changed. A full disk does not stop the pod: the next change tries again.
    pub(super) fn record(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        self.sequence += 1;
        let state = self.state();
        let written = if self.lasting { state.write(&self.dir) } else { state.write_for_now(&self.dir) };
        match written {
            Ok(()) => self.lasting = false,
            Err(error) => eprintln!("the state is not recorded: {error}"),
        }
    }

    /// What changes now has to be known after a loss of power.
    pub(super) fn will_last(&mut self) {
        self.lasting = true;
    }

    pub(super) fn touch(&mut self) {
        self.changed = true;
    }

    pub(super) fn warn(&mut self, warning: String) {
        if self.warnings.len() < MAX_WARNINGS && !self.warnings.contains(&warning) {
            self.warnings.push(warning);
            self.changed = true;
        }
    }

    /// The agent said that the network is in place.
    pub(super) fn start(&mut self) {
        if self.phase == Phase::Created {
            self.phase = Phase::Running;
            self.changed = true;
        }
    }

    /// Ends the pod within `grace`. Sidecars come last.
    pub(super) fn stop(&mut self, grace: Duration, ambient: &Ambient) {
        let deadline = ambient.boottime().saturating_add(grace);
        self.stop_deadline = Some(self.stop_deadline.map_or(deadline, |old| old.min(deadline)));
        self.enter_stopping();
        for index in 0..self.containers.len() {
            if self.containers[index].spec.role != Role::Sidecar || grace.is_zero() {
                self.end(index, deadline, String::new(), ambient);
            }
        }
    }

    fn enter_stopping(&mut self) {
        if self.phase < Phase::Stopping {
            self.phase = Phase::Stopping;
            self.changed = true;
        }
    }

    /// SIGKILL for everything, now.
    pub(super) fn kill(&mut self, ambient: &Ambient) {
        self.stop(Duration::ZERO, ambient);
        if let Err(error) = self.cgroup.containers().kill() {
            eprintln!("killing by cgroup: {error}");
        }
    }

    /// Adds an ephemeral container; it is started when it is due.
    pub(super) fn add(&mut self, spec: ContainerSpec) -> Result<(), String> {
        if let Ok(index) = self.index(&spec.name) {
            return match self.containers[index].spec.role {
                Role::Ephemeral => Ok(()),
                _ => Err(format!("there is a container {} already", spec.name)),
            };
        }
        if spec.role != Role::Ephemeral {
            return Err(format!("container {} is not ephemeral", spec.name));
        }
        if self.phase > Phase::Running {
            return Err("the pod is ending".into());
        }
        let ephemeral = self.containers.iter().filter(|c| c.spec.role == Role::Ephemeral).count();
        if ephemeral >= MAX_EPHEMERAL {
            return Err(format!("the pod has {MAX_EPHEMERAL} ephemeral containers already"));
        }
        let group = self.cgroup.container(&spec.name);
        self.containers.push(Container::new(spec, group));
        self.changed = true;
        Ok(())
    }

    /// A running container's index, to take part in its streams.
    pub(super) fn attach(&self, name: &str) -> Result<usize, String> {
        self.running_named(name)?;
        self.index(name)
    }

    /// The process of the running container of that name.
    pub(super) fn running_named(&self, name: &str) -> Result<&Process, String> {
        let container = &self.containers[self.index(name)?];
        container.running().ok_or_else(|| format!("container {name} is not running"))
    }

    /// Ends one container; the restart policy decides what then.
    pub(super) fn restart(
        &mut self,
        name: &str,
        grace: Duration,
        message: String,
        ambient: &Ambient,
    ) -> Result<(), String> {
        let index = self.index(name)?;
        if self.containers[index].process().is_none() {
            return Err(format!("container {name} is not running"));
        }
        self.end(index, ambient.boottime().saturating_add(grace), message, ambient);
        Ok(())
    }

    fn index(&self, name: &str) -> Result<usize, String> {
        let found = self.containers.iter().position(|c| c.spec.name == name);
        found.ok_or_else(|| format!("there is no container {name}"))
    }

    /// Begins to end a container, or brings an end that has begun forward.
    fn end(&mut self, index: usize, deadline: Duration, message: String, ambient: &Ambient) {
        let now = ambient.boottime();
        let pre_stop = self.containers[index].spec.pre_stop.clone();
        let Some(process) = self.containers[index].process_mut() else { return };
        if let Some(ending) = &mut process.ending {
            ending.deadline = ending.deadline.min(deadline);
            if deadline <= now {
                self.kill_container(index);
            }
            return;
        }
        process.ending = Some(Ending { deadline, stage: Stage::Signalled, message });
        if deadline <= now || matches!(self.containers[index].life, Life::Starting(_)) {
            // A program that does not run yet cannot be asked.
            return self.kill_container(index);
        }
        let stage = match pre_stop {
            None => return self.signal_container(index),
            Some(Hook::Sleep { ms }) => Stage::Sleep(now.saturating_add(Duration::from_millis(ms))),
            Some(Hook::Exec { argv }) => match self.start_exec(index, Wanted { argv, ..Wanted::default() }) {
                Ok(exec) => Stage::Hook(exec),
                Err(error) => {
                    self.warn(format!("the preStop hook of {} failed: {error}", self.containers[index].spec.name));
                    return self.signal_container(index);
                }
            },
        };
        self.set_stage(index, stage);
    }

    fn set_stage(&mut self, index: usize, stage: Stage) {
        if let Some(ending) = self.containers[index].process_mut().and_then(|p| p.ending.as_mut()) {
            ending.stage = stage;
        }
    }

    fn signal_container(&mut self, index: usize) {
        let container = &self.containers[index];
        if let Some(process) = container.process() {
            // An error says that it has ended already: its descriptor tells that, too.
            let _ = sys::signal_pidfd(process.pidfd(), container.spec.stop_signal);
        }
        self.set_stage(index, Stage::Signalled);
    }

    fn kill_container(&mut self, index: usize) {
        let container = &self.containers[index];
        if let Some(process) = container.process() {
            let _ = sys::signal_pidfd(process.pidfd(), libc::SIGKILL);
        }
        if let Err(error) = container.group.kill() {
            eprintln!("killing by cgroup: {error}");
        }
        self.set_stage(index, Stage::Killed);
    }

    /// Does what is due.
    pub(super) fn advance(&mut self, ambient: &Ambient) {
        let now = ambient.boottime();
        self.expire_execs(now);
        for index in 0..self.containers.len() {
            self.advance_ending(index, now);
        }
        if self.phase == Phase::Running {
            self.start_due(now, ambient);
        }
        if self.phase == Phase::Stopping {
            self.advance_stopping(ambient);
        }
    }

    fn expire_execs(&mut self, now: Duration) {
        for exec in self.execs.values_mut().filter(|e| e.deadline.is_some_and(|d| d <= now)) {
            exec.time_out();
        }
    }

    /// Takes the next means to end a container, if its time has come.
    fn advance_ending(&mut self, index: usize, now: Duration) {
        let Some(ending) = self.containers[index].process_mut().and_then(|p| p.ending.as_mut()) else { return };
        let late = ending.deadline <= now;
        match ending.stage {
            Stage::Killed => {}
            Stage::Signalled if late => self.kill_container(index),
            Stage::Signalled => {}
            Stage::Sleep(until) if late || until <= now => self.hook_ended(index, now),
            Stage::Sleep(_) => {}
            Stage::Hook(exec) => {
                let running = self.execs.get(&exec);
                match (running, late) {
                    (Some(exec), true) => {
                        exec.kill();
                        self.hook_ended(index, now);
                    }
                    (Some(_), false) => {}
                    (None, _) => self.hook_ended(index, now),
                }
            }
        }
    }

    /// The hook is over, or its time is: the stop signal, and at least a moment to heed it.
    fn hook_ended(&mut self, index: usize, now: Duration) {
        if let Some(ending) = self.containers[index].process_mut().and_then(|p| p.ending.as_mut()) {
            ending.deadline = ending.deadline.max(now.saturating_add(LEAST_AFTER_HOOK));
        }
        self.signal_container(index);
    }

    /// Starts what may be started: init containers one by one, then all others; and again what waited long enough.
    fn start_due(&mut self, now: Duration, ambient: &Ambient) {
        self.start_ephemeral(ambient);
        for index in 0..self.containers.len() {
            let container = &self.containers[index];
            let due = match &container.life {
                Life::Idle => container.spec.role != Role::Ephemeral,
                Life::BackOff { until, .. } => *until <= now,
                _ => false,
            };
            if due {
                self.start_container(index, ambient);
            }
            let container = &self.containers[index];
            let passed = match container.spec.role {
                Role::Main | Role::Ephemeral => true,
                Role::Init => container.completed(),
                // Once it ran, it holds nobody back, whatever becomes of it.
                Role::Sidecar => container.running().is_some() || container.last_termination.is_some(),
            };
            if !passed {
                if container.done() {
                    // An init container failed for good.
                    self.enter_stopping();
                }
                return;
            }
        }
        if self.containers.iter().filter(|c| c.spec.role == Role::Main).all(Container::done) {
            self.enter_stopping();
        }
    }

    /// Ephemeral containers wait for nobody but the one whose processes they are to see.
    fn start_ephemeral(&mut self, ambient: &Ambient) {
        for index in 0..self.containers.len() {
            let container = &self.containers[index];
            let idle = container.spec.role == Role::Ephemeral && matches!(container.life, Life::Idle);
            let waits = container.spec.target.as_deref().is_some_and(|target| self.running_named(target).is_err());
            if idle && !waits {
                self.start_container(index, ambient);
            }
        }
    }

    fn advance_stopping(&mut self, ambient: &Ambient) {
        let now = ambient.boottime();
        for container in &mut self.containers {
            if let (Life::BackOff { .. }, Some(last)) = (&container.life, &container.last_termination) {
                container.life = Life::Done(last.clone());
                self.changed = true;
            }
        }
        let busy = |role: fn(Role) -> bool| {
            move |c: &Container| role(c.spec.role) && matches!(c.life, Life::Starting(_) | Life::Running(_))
        };
        if self.containers.iter().any(busy(|role| !matches!(role, Role::Sidecar | Role::Ephemeral))) {
            return;
        }
        let grace = Duration::from_millis(self.spec.grace_ms);
        let deadline = *self.stop_deadline.get_or_insert(now.saturating_add(grace));
        for index in (0..self.containers.len()).rev() {
            self.end(index, deadline, String::new(), ambient);
        }
        if !self.containers.iter().any(busy(|_| true)) {
            // What is left, if anything, are programs on their way into a container.
            if let Err(error) = self.cgroup.containers().kill() {
                eprintln!("killing by cgroup: {error}");
            }
            self.phase = Phase::Finished;
            self.changed = true;
        }
    }

    /// When something is due next, since boot.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let of_containers = self.containers.iter().filter_map(|c| match &c.life {
            Life::BackOff { until, .. } if self.phase == Phase::Running => Some(*until),
            Life::Starting(process) | Life::Running(process) => match process.ending.as_ref()? {
                Ending { stage: Stage::Killed, .. } => None,
                Ending { stage: Stage::Sleep(until), deadline, .. } => Some(*deadline.min(until)),
                ending => Some(ending.deadline),
            },
            _ => None,
        });
        of_containers.chain(self.execs.values().filter_map(|e| e.deadline)).min()
    }

    /// A container's process told that its program was executed, or why it is not.
    pub(super) fn container_reported(&mut self, index: usize, ambient: &Ambient) {
        let container = &mut self.containers[index];
        let Some(process) = container.process_mut() else { return };
        if !process.read_report() {
            // Not told yet, or a failure: then its end follows, and tells.
            return;
        }
        process.started_at = ambient.now();
        process.started = ambient.boottime();
        let life = std::mem::replace(&mut container.life, Life::Idle);
        container.life = match life {
            Life::Starting(process) => Life::Running(process),
            other => other,
        };
        self.changed = true;
    }

    /// A container's process was reaped. Gives what it printed last, by output.
    pub(super) fn container_ended(&mut self, index: usize, exit: Exit, ambient: &Ambient) -> Vec<(usize, Vec<u8>)> {
        let container = &mut self.containers[index];
        let life = std::mem::replace(&mut container.life, Life::Idle);
        let (Life::Starting(mut process) | Life::Running(mut process)) = life else {
            container.life = life;
            return Vec::new();
        };
        if container.spec.target.is_some()
            && let Err(error) = container.group.kill()
        {
            // In another container's pid namespace the kernel does not end the rest with the first.
            eprintln!("killing by cgroup: {error}");
        }
        process.read_report();
        let last = process.drain_output(ambient);
        container.log_lines_dropped += process.log.dropped();
        let oom_killed = exit.signal == Some(libc::SIGKILL) && container.group.oom_kills() > process.oom_kills_before;
        let termination = termination(&process, exit, oom_killed, &container.id, ambient.now());
        let ran = ambient.boottime().saturating_sub(process.started);
        self.settle(index, termination, ran, ambient);
        last
    }

    /// Decides what follows an end.
    pub(super) fn settle(&mut self, index: usize, termination: Termination, ran: Duration, ambient: &Ambient) {
        self.will_last();
        let stopping = self.phase >= Phase::Stopping;
        let container = &mut self.containers[index];
        container.last_termination = Some(termination.clone());
        let again = !stopping && container.restarts(termination.exit_code, self.spec.restart_policy);
        container.life = if again {
            let delay = container.next_delay(ran, &self.spec.back_off);
            let message = format!(
                "back-off {}s restarting failed container={} pod={}_{}({})",
                delay.as_secs(),
                container.spec.name,
                self.spec.name,
                self.spec.namespace,
                self.spec.uid
            );
            Life::BackOff { until: ambient.boottime().saturating_add(delay), message }
        } else {
            Life::Done(termination)
        };
        self.changed = true;
    }

    /// A client asks for a program to be run.
    pub(super) fn exec(&mut self, request: ExecRequest, client: u64, ambient: &Ambient) -> Result<u64, String> {
        let index = self.index(&request.container)?;
        if request.argv.is_empty() {
            return Err("no program is given".into());
        }
        let wanted = Wanted {
            argv: request.argv,
            tty: request.tty,
            stdin: request.stdin,
            size: request.size,
            deadline: request.timeout_ms.map(|ms| ambient.boottime().saturating_add(Duration::from_millis(ms))),
            client: Some(client),
        };
        self.start_exec(index, wanted)
    }

    fn start_exec(&mut self, index: usize, wanted: Wanted) -> Result<u64, String> {
        let container = &self.containers[index];
        let Some(process) = container.running() else {
            return Err(format!("container {} is not running", container.spec.name));
        };
        if self.execs.len() >= MAX_EXECS {
            return Err(format!("{MAX_EXECS} programs are being run in this pod already"));
        }
        let exec = Exec::start(wanted, process, &container.group).map_err(|error| error.to_string())?;
        self.next_exec += 1;
        self.execs.insert(self.next_exec, exec);
        Ok(self.next_exec)
    }

    /// An exec was reaped: what to tell its client, where it has one.
    pub(super) fn exec_ended(&mut self, id: u64, exit: Exit) -> Option<(u64, ExecExit)> {
        let exec = self.execs.remove(&id)?;
        let exit = exec.exit(exit);
        match exec.client {
            Some(client) => return Some((client, exit)),
            None if exec.hook && exit.code != 0 => {
                self.warn(format!("a preStop hook ended with {}: {}", exit.code, exit.message));
            }
            None => {}
        }
        None
    }

    /// Whether that process is one of ours, to be reaped by its descriptor.
    pub(super) fn owns(&self, pid: i32) -> bool {
        self.containers.iter().any(|c| c.process().is_some_and(|p| p.pid == pid))
            || self.execs.values().any(|exec| exec.pid() == pid)
    }
}

fn termination(process: &Process, exit: Exit, oom_killed: bool, id: &str, now: Timestamp) -> Termination {
    let asked = process.ending.as_ref().map(|e| e.message.clone()).unwrap_or_default();
    let (exit_code, reason, message) = match process.start_failure() {
        Some(failure) => (128, "StartError", failure.message),
        None if oom_killed => (exit.code, "OOMKilled", asked),
        None if exit.code == 0 => (0, "Completed", asked),
        None => (exit.code, "Error", asked),
    };
    Termination {
        exit_code,
        signal: exit.signal,
        reason: reason.into(),
        message,
        started_at: process.started_at,
        finished_at: now,
        id: id.into(),
    }
}
