//! The pod: which container is started when, what its end means, and how the whole comes to its end.
//!
//! Nothing here waits. [`Pod::advance`] does what is due and [`Pod::next_deadline`] tells when something will be;
//! the loop in [`super::serve`] calls them, and tells of every process that ended.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use ambient::Ambient;
use jiff::Timestamp;

use super::exec::{Exec, Wanted};
use super::file::FileError;
use super::last_words;
use super::life::{Container, Exit, Life, PostStart, Process};
use super::process::Separated;
use super::protocol::{ExecExit, ExecRequest};
use super::spec::{ContainerSpec, HttpHook, Limits, Role, ShimSpec};
use super::state::{Phase, PodState, Termination};
use crate::cgroup::PodCgroup;
use crate::container::{Keeper, Pause, Users};
use crate::fault::{self, Point};

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
    /// The machine's network, for the requests of hooks; none where the pod is in it.
    pub(super) host_network: Option<OwnedFd>,
    /// Whom its containers run as, where these are not the machine's users.
    pub(super) users: Option<Users>,
    /// Where the containers see each other's processes.
    pub(super) pause: Option<Pause>,
    pub(super) containers: Vec<Container>,
    pub(super) execs: BTreeMap<u64, Exec>,
    pub(super) phase: Phase,
    /// Somebody is there who answers containers that ask.
    pub(super) answered: bool,
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
        (keeper, pause): (Keeper, Option<Pause>),
        Separated { host_network, users }: Separated,
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
            host_network,
            users,
            pause,
            containers,
            execs: BTreeMap::new(),
            phase: Phase::Created,
            answered: false,
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
        if self.phase == Phase::Finished {
            fault::point(Point::ShimFinished);
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

    /// A container's startup probe succeeded: what waits for it may start.
    pub(super) fn startup_succeeded(&mut self, name: &str) -> Result<(), String> {
        let index = self.index(name)?;
        let container = &mut self.containers[index];
        self.changed |= !std::mem::replace(&mut container.startup_succeeded, true);
        Ok(())
    }

    /// What a container that asks is to be.
    pub(super) fn respecify(&mut self, spec: ContainerSpec) -> Result<(), String> {
        let index = self.index(&spec.name)?;
        let container = &mut self.containers[index];
        if !container.asks {
            return Ok(());
        }
        if spec.role != container.spec.role {
            return Err(format!("container {} has another role", spec.name));
        }
        let (limits, restart_count_base) = (container.spec.limits.clone(), container.spec.restart_count_base);
        container.spec = ContainerSpec { limits, restart_count_base, ..spec };
        (container.asks, container.told) = (false, true);
        self.changed = true;
        Ok(())
    }

    /// Changes the limits of a container, and of all of them together. What the machine does not limit at all is no
    /// reason to refuse; what the kernel did not take is.
    pub(super) fn resize(&mut self, name: &str, limits: Limits, whole: Limits) -> Result<(), String> {
        let index = self.index(name)?;
        let all = self.cgroup.containers();
        let grows = whole.memory_bytes.is_none_or(|now| self.spec.limits.memory_bytes.is_some_and(|was| now >= was));
        let mut refused = Vec::new();
        if grows {
            refused.extend(all.limit(&whole));
        }
        let group = self.containers[index].group.clone();
        group.create().map_err(|e| e.to_string())?;
        refused.extend(group.limit(&limits));
        if !grows {
            // The whole is made smaller when its parts are: the kernel takes back from the parts only.
            refused.extend(all.limit(&whole));
        }
        refused.retain(|why| !self.warnings.contains(why));
        if !refused.is_empty() {
            return Err(refused.join("; "));
        }
        self.containers[index].spec.limits = limits;
        self.spec.limits = whole;
        Ok(())
    }

    fn index(&self, name: &str) -> Result<usize, String> {
        let found = self.containers.iter().position(|c| c.spec.name == name);
        found.ok_or_else(|| format!("there is no container {name}"))
    }

    /// Does what is due.
    pub(super) fn advance(&mut self, ambient: &Ambient) {
        let now = ambient.boottime();
        self.expire_execs(now);
        for index in 0..self.containers.len() {
            self.advance_post_start(index, now);
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
            if due && self.starts(index) {
                self.start_container(index, ambient);
            }
            let container = &self.containers[index];
            if !container.lets_pass() {
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

    /// Whether a container that is due may start, or asks first what it is to be.
    fn starts(&mut self, index: usize) -> bool {
        let container = &mut self.containers[index];
        let asked = container.asks;
        let starts = container.starts(self.answered);
        self.changed |= asked != container.asks;
        starts
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
            Life::BackOff { until, .. } if self.phase == Phase::Running && !c.asks => Some(*until),
            Life::Starting(process) | Life::Running(process) => process.next_deadline(),
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
        fault::point(Point::ContainerRuns);
        process.started_at = ambient.now();
        process.started = ambient.boottime();
        let life = std::mem::replace(&mut container.life, Life::Idle);
        container.life = match life {
            Life::Starting(process) => Life::Running(process),
            other => other,
        };
        self.changed = true;
        self.begin_post_start(index, ambient);
    }

    /// A container's process was reaped. Gives what it printed last, by output.
    pub(super) fn container_ended(&mut self, index: usize, exit: Exit, ambient: &Ambient) -> Vec<(usize, Vec<u8>)> {
        let container = &mut self.containers[index];
        let life = std::mem::replace(&mut container.life, Life::Idle);
        let (Life::Starting(mut process) | Life::Running(mut process)) = life else {
            container.life = life;
            return Vec::new();
        };
        // Only in a pid namespace of its own does the kernel end the rest with the first.
        let shares = container.spec.target.is_some() || self.spec.sharing.host_pid || self.spec.sharing.pod_pid;
        if shares && let Err(error) = container.group.kill() {
            eprintln!("killing by cgroup: {error}");
        }
        if let Some(PostStart::Exec(hook)) = process.post_start
            && let Some(hook) = self.execs.get(&hook)
        {
            hook.kill();
        }
        process.read_report();
        let last = process.drain_output(ambient);
        container.log_lines_dropped += process.log.dropped();
        // Whichever of its processes it was, and whatever the first one made of it: as containerd tells it.
        let oom_killed = container.group.oom_kills() > process.oom_kills_before;
        fault::point(Point::ContainerEnded);
        let words = last_words::read(&container.spec, &process, exit.code);
        let termination = termination(&process, exit, oom_killed, words, &container.id, ambient.now());
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

    pub(super) fn start_exec(&mut self, index: usize, wanted: Wanted) -> Result<u64, String> {
        let container = &self.containers[index];
        let Some(process) = container.running() else {
            return Err(format!("container {} is not running", container.spec.name));
        };
        let make = || Exec::start(wanted, process, &container.group, self.users.as_ref());
        let exec = if self.execs.len() < MAX_EXECS { make().map_err(|error| error.to_string()) } else { too_many() };
        Ok(self.keep_exec(exec?))
    }

    /// Makes the request of a hook.
    pub(super) fn start_request(&mut self, hook: &HttpHook) -> Result<u64, String> {
        if self.execs.len() >= MAX_EXECS {
            return too_many();
        }
        let exec = Exec::request(hook, self.host_network.as_ref()).map_err(|error| error.to_string())?;
        Ok(self.keep_exec(exec))
    }

    fn keep_exec(&mut self, exec: Exec) -> u64 {
        self.next_exec += 1;
        self.execs.insert(self.next_exec, exec);
        self.next_exec
    }

    /// An exec was reaped: what to tell its client, where it has one.
    pub(super) fn exec_ended(&mut self, id: u64, exit: Exit, ambient: &Ambient) -> Option<(u64, ExecExit)> {
        let exec = self.execs.remove(&id)?;
        let exit = exec.exit(exit);
        if let Some(client) = exec.client {
            return Some((client, exit));
        }
        if exec.hook {
            self.hook_ended(id, &exit, ambient);
        }
        None
    }

    /// Whether that process is one of ours, to be reaped by its descriptor.
    pub(super) fn owns(&self, pid: i32) -> bool {
        self.containers.iter().any(|c| c.process().is_some_and(|p| p.pid == pid))
            || self.execs.values().any(|exec| exec.pid() == pid)
    }
}

fn too_many<T>() -> Result<T, String> {
    Err(format!("{MAX_EXECS} programs are being run in this pod already"))
}

fn termination(
    process: &Process,
    exit: Exit,
    oom_killed: bool,
    words: String,
    id: &str,
    now: Timestamp,
) -> Termination {
    let asked = process.ending.as_ref().map(|e| e.message.clone()).unwrap_or_default();
    let asked = if words.is_empty() { asked } else { words };
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
