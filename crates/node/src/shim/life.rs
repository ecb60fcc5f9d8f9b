//! One container of a pod: from its first start to its last end.
//!
//! ```text
//!            start               program executed
//!   Idle ─────────▶ Starting ──────────────────────▶ Running
//!    ▲                 │ failed                        │ ended
//!    │                 └──────────────┬────────────────┘
//!    │ delay over                     ▼
//!  BackOff ◀──────────── restarted by policy? ──no──▶ Done
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use ambient::Ambient;
use jiff::Timestamp;

use super::input::Input;
use super::spec::{Asks, BackOff, ContainerSpec, RestartPolicy, Role};
use super::state::{ContainerState, Status, Termination};
use crate::cgroup::Group;
use crate::container::StartFailure;
use crate::log::{LineCutter, LogFile};

/// A container and everything that the shim holds of it.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) spec: ContainerSpec,
    pub(super) group: Group,
    pub(super) life: Life,
    /// Over the life of the pod object.
    pub(super) restart_count: u32,
    /// Restarts since it last ran long enough; decides the next delay.
    pub(super) streak: u32,
    pub(super) last_termination: Option<Termination>,
    pub(super) id: String,
    pub(super) incarnation: u64,
    pub(super) log_lines_dropped: u64,
    pub(super) post_start_failures: u32,
    pub(super) pre_stop_failures: u32,
    /// Somebody said that its startup probe succeeded.
    pub(super) startup_succeeded: bool,
    /// It is due and waits for what it is to be.
    pub(super) asks: bool,
    /// It was told so for its next start.
    pub(super) told: bool,
}

/// Where a container is in its life.
#[derive(Debug)]
pub(super) enum Life {
    /// Not started yet.
    Idle,
    /// A process exists and builds the container around itself.
    Starting(Process),
    /// The program runs.
    Running(Process),
    /// It ended and will be started again.
    BackOff {
        /// Since boot.
        until: Duration,
        message: String,
    },
    /// It ended for good.
    Done(Termination),
}

/// A container's first process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    /// Open until the program was executed, or could not be.
    pub(super) report: Option<OwnedFd>,
    pub(super) failure: Vec<u8>,
    pub(super) outputs: Vec<Output>,
    /// Its first output is a terminal.
    pub(super) tty: bool,
    pub(super) log: LogFile,
    /// Where the container asked for a stdin.
    pub(super) input: Input,
    pub(super) started_at: Timestamp,
    /// Since boot.
    pub(super) started: Duration,
    pub(super) oom_kills_before: u64,
    pub(super) program: crate::container::Program,
    /// Its postStart hook, until that succeeded.
    pub(super) post_start: Option<PostStart>,
    /// The file of its last words, on the machine.
    pub(super) last_words: Option<PathBuf>,
    pub(super) ending: Option<Ending>,
}

/// How far a postStart hook has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PostStart {
    /// The program is not executed yet.
    Due,
    /// It runs, as that exec.
    Exec(u64),
    /// It sleeps until then (since boot).
    Sleep(Duration),
    /// It failed: the container is being ended.
    Failed,
}

/// One output of a program.
#[derive(Debug)]
pub(super) struct Output {
    /// Non-blocking; None after its end.
    pub(super) fd: Option<OwnedFd>,
    pub(super) cutter: LineCutter,
}

/// An end that was asked for.
#[derive(Debug)]
pub(super) struct Ending {
    /// Since boot; when the next harder means is taken.
    pub(super) deadline: Duration,
    pub(super) stage: Stage,
    /// Why, for the termination's message.
    pub(super) message: String,
}

/// How far an asked-for end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The preStop hook runs, as that exec.
    Hook(u64),
    /// The preStop hook sleeps until then (since boot).
    Sleep(Duration),
    /// The stop signal was sent.
    Signalled,
    /// SIGKILL was sent.
    Killed,
}

/// What is read from a program's output at once, and at most per turn, so that a chatty one does not keep others waiting.
const CHUNK: usize = 64 * 1024;

impl Container {
    pub(super) fn new(spec: ContainerSpec, group: Group) -> Self {
        Self {
            restart_count: spec.restart_count_base,
            spec,
            group,
            life: Life::Idle,
            streak: 0,
            last_termination: None,
            id: String::new(),
            incarnation: 0,
            log_lines_dropped: 0,
            post_start_failures: 0,
            pre_stop_failures: 0,
            startup_succeeded: false,
            asks: false,
            told: false,
        }
    }

    /// The process, starting or running.
    pub(super) fn process(&self) -> Option<&Process> {
        match &self.life {
            Life::Starting(process) | Life::Running(process) => Some(process),
            _ => None,
        }
    }

    /// The process, starting or running.
    pub(super) fn process_mut(&mut self) -> Option<&mut Process> {
        match &mut self.life {
            Life::Starting(process) | Life::Running(process) => Some(process),
            _ => None,
        }
    }

    /// The process, once its program runs.
    pub(super) fn running(&self) -> Option<&Process> {
        match &self.life {
            Life::Running(process) => Some(process),
            _ => None,
        }
    }

    /// Whether what comes after it may start: its program runs and its postStart hook is over, and for a sidecar its
    /// startup probe has succeeded. A sidecar that got so far once holds nobody back, whatever becomes of it.
    pub(super) fn lets_pass(&self) -> bool {
        let hooking = self.process().is_some_and(|process| process.post_start.is_some());
        match self.spec.role {
            Role::Main => !hooking,
            Role::Ephemeral => true,
            Role::Init => self.completed(),
            Role::Sidecar if self.spec.awaits_startup => self.startup_succeeded,
            Role::Sidecar => self.last_termination.is_some() || (self.running().is_some() && !hooking),
        }
    }

    /// Whether it may start now that it is due, or asks first. `answered`: somebody is there who answers.
    pub(super) fn starts(&mut self, answered: bool) -> bool {
        let again = self.last_termination.is_some();
        self.asks = !self.told
            && match self.spec.asks {
                Asks::Never => false,
                Asks::Again => again && answered,
                Asks::Always => answered || !again,
            };
        !self.asks
    }

    /// Ended for good, successfully.
    pub(super) fn completed(&self) -> bool {
        matches!(&self.life, Life::Done(end) if end.exit_code == 0)
    }

    /// Ended for good.
    pub(super) fn done(&self) -> bool {
        matches!(self.life, Life::Done(_))
    }

    /// As reported.
    pub(super) fn state(&self) -> ContainerState {
        let waiting = |reason: &str, message: &str| Status::Waiting { reason: reason.into(), message: message.into() };
        let state = match &self.life {
            Life::Idle => waiting("PodInitializing", ""),
            Life::Starting(_) => waiting("ContainerCreating", ""),
            Life::Running(process) if process.post_start.is_some() => waiting("ContainerCreating", ""),
            Life::Running(process) => Status::Running { started_at: process.started_at, pid: process.pid },
            Life::BackOff { .. } if self.asks => waiting("ContainerCreating", ""),
            Life::BackOff { message, .. } => waiting("CrashLoopBackOff", message),
            Life::Done(termination) => Status::Terminated(termination.clone()),
        };
        ContainerState {
            name: self.spec.name.clone(),
            state,
            last_termination: self.last_termination.clone(),
            restart_count: self.restart_count,
            id: self.id.clone(),
            incarnation: self.incarnation,
            log_lines_dropped: self.log_lines_dropped,
            started_boot_ms: self.running().and_then(|process| u64::try_from(process.started.as_millis()).ok()),
            hooking: self.running().is_some_and(|process| process.post_start.is_some()),
            post_start_failures: self.post_start_failures,
            pre_stop_failures: self.pre_stop_failures,
            asks: self.asks,
            awaited: self.spec.awaits_startup && !self.startup_succeeded && self.running().is_some(),
        }
    }

    /// Whether an end with this code is followed by another start, nobody having asked for the pod's end. Its own rules
    /// come first, then its own policy, then the pod's.
    pub(super) fn restarts(&self, exit_code: i32, policy: RestartPolicy) -> bool {
        let may_run_again = match self.spec.role {
            Role::Ephemeral => false,
            Role::Init => exit_code != 0,
            Role::Main | Role::Sidecar => true,
        };
        if may_run_again && self.spec.restart_on.iter().any(|codes| codes.contains(exit_code)) {
            return true;
        }
        match (self.spec.role, self.spec.restart_policy.unwrap_or(policy)) {
            (Role::Sidecar, _) => true,
            (Role::Ephemeral, _) | (_, RestartPolicy::Never) => false,
            (Role::Init, _) | (Role::Main, RestartPolicy::OnFailure) => exit_code != 0,
            (Role::Main, RestartPolicy::Always) => true,
        }
    }

    /// The delay before the next start, after a run of that length; counts it.
    pub(super) fn next_delay(&mut self, ran: Duration, back_off: &BackOff) -> Duration {
        if ran >= Duration::from_millis(back_off.reset_after_ms) {
            self.streak = 0;
        }
        let delay = back_off.delay(self.streak);
        self.streak = self.streak.saturating_add(1);
        delay
    }
}

impl Process {
    /// Reads what the starting process has to tell. True when the program was executed.
    pub(super) fn read_report(&mut self) -> bool {
        let Some(report) = &self.report else { return false };
        let mut buffer = [0; 4096];
        loop {
            match rustix::io::read(report, &mut buffer) {
                Ok(0) => break,
                Ok(n) => self.failure.extend_from_slice(&buffer[..n]),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return false,
                Err(_) => break,
            }
        }
        self.report = None;
        self.failure.is_empty()
    }

    /// Copies a turn's worth of output into the log, and gives it to be passed on.
    pub(super) fn copy_output(&mut self, index: usize, ambient: &Ambient) -> Vec<u8> {
        let Some(output) = self.outputs.get_mut(index) else { return Vec::new() };
        let Some(fd) = &output.fd else { return Vec::new() };
        let mut buffer = vec![0; CHUNK];
        match rustix::io::read(fd, &mut buffer) {
            Ok(n @ 1..) => {
                buffer.truncate(n);
                output.cutter.push(&buffer, ambient.now(), &mut self.log);
                return buffer;
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // The end; a terminal whose last user has left says EIO.
            Ok(_) | Err(_) => output.fd = None,
        }
        Vec::new()
    }

    /// After the process's end: copies what is left, gives it to be passed on, and closes. Nothing can write any more
    /// except descriptors that were handed out of the container, for which nobody waits.
    pub(super) fn drain_output(&mut self, ambient: &Ambient) -> Vec<(usize, Vec<u8>)> {
        let mut last = Vec::new();
        for (number, output) in self.outputs.iter_mut().enumerate() {
            let mut buffer = vec![0; CHUNK];
            while let Some(fd) = &output.fd {
                match rustix::io::read(fd, &mut buffer) {
                    Ok(n) if n > 0 => {
                        output.cutter.push(&buffer[..n], ambient.now(), &mut self.log);
                        last.push((number, buffer[..n].to_vec()));
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    _ => output.fd = None,
                }
            }
            output.cutter.finish(ambient.now(), &mut self.log);
        }
        last
    }

    /// Tells its terminal, where it has one, the size.
    pub(super) fn resize(&self, columns: u16, rows: u16) {
        if let (true, Some(terminal)) = (self.tty, self.outputs.first().and_then(|o| o.fd.as_ref())) {
            super::exec::resize(terminal, columns, rows);
        }
    }

    /// Why the program was never executed.
    pub(super) fn start_failure(&self) -> Option<StartFailure> {
        StartFailure::from_bytes(&self.failure)
    }

    /// When something is due for it next, since boot.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let hook = match self.post_start {
            Some(PostStart::Sleep(until)) => Some(until),
            _ => None,
        };
        let end = self.ending.as_ref().and_then(|ending| match ending.stage {
            Stage::Killed => None,
            Stage::Sleep(until) => Some(ending.deadline.min(until)),
            Stage::Hook(_) | Stage::Signalled => Some(ending.deadline),
        });
        hook.into_iter().chain(end).min()
    }

    /// Its descriptor.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exit {
    pub(super) code: i32,
    pub(super) signal: Option<i32>,
}

/// Takes the exit of a child behind a descriptor; None while it lives.
pub(super) fn reap(pidfd: BorrowedFd<'_>) -> io::Result<Option<Exit>> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let Some(status) = waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED | WaitIdOptions::NOHANG)? else {
        return Ok(None);
    };
    Ok(Some(match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit { code, signal: None },
        (None, Some(signal)) => Exit { code: 128 + signal, signal: Some(signal) },
        (None, None) => Exit { code: 255, signal: None },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::{Layout, PodCgroup};
    use crate::shim::spec::{ExitCodes, Root};

    fn container(role: Role) -> Container {
        let spec = ContainerSpec {
            role,
            ..serde_json::from_value(serde_json::json!({ "name": "c", "root": Root::Host, "argv": ["x"] })).unwrap()
        };
        Container::new(spec, PodCgroup::new(&Layout::default(), "p").unwrap().container("c"))
    }

    #[test]
    fn policies_decide_as_upstream() {
        use RestartPolicy::{Always, Never, OnFailure};
        for (role, policy, after_success, after_failure) in [
            (Role::Main, Always, true, true),
            (Role::Main, OnFailure, false, true),
            (Role::Main, Never, false, false),
            (Role::Init, Always, false, true),
            (Role::Init, OnFailure, false, true),
            (Role::Init, Never, false, false),
            (Role::Sidecar, Never, true, true),
        ] {
            let container = container(role);
            assert_eq!(container.restarts(0, policy), after_success, "{role:?} {policy:?}");
            assert_eq!(container.restarts(1, policy), after_failure, "{role:?} {policy:?}");
        }
    }

    #[test]
    fn own_rules_come_before_the_own_policy_and_that_before_the_pods() {
        use RestartPolicy::{Always, Never, OnFailure};
        let mut main = container(Role::Main);
        main.spec.restart_policy = Some(Never);
        assert!(!main.restarts(1, Always));
        main.spec.restart_on = vec![ExitCodes { not: false, codes: vec![42] }];
        assert!(main.restarts(42, Always) && !main.restarts(1, Always));
        let mut init = container(Role::Init);
        init.spec.restart_policy = Some(OnFailure);
        assert!(init.restarts(1, Never));
        // Done is done, whatever a rule says.
        init.spec.restart_on = vec![ExitCodes { not: true, codes: vec![1] }];
        assert!(!init.restarts(0, Never) && init.restarts(2, Never));
    }

    #[test]
    fn who_asks_waits_for_an_answer_as_long_as_somebody_may_give_one() {
        let mut container = container(Role::Main);
        for (asks, first, first_alone, again, again_alone) in [
            (Asks::Never, true, true, true, true),
            (Asks::Again, true, true, false, true),
            (Asks::Always, false, false, false, true),
        ] {
            container.spec.asks = asks;
            container.last_termination = None;
            assert_eq!((container.starts(true), container.starts(false)), (first, first_alone), "{asks:?}");
            container.last_termination = Some(
                serde_json::from_value(serde_json::json!({"exitCode": 1, "reason": "Error",
                "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:00Z", "id": "r"}))
                .unwrap(),
            );
            assert_eq!((container.starts(true), container.starts(false)), (again, again_alone), "{asks:?}");
            container.told = true;
            assert!(container.starts(true) && !container.asks, "{asks:?}");
            container.told = false;
        }
    }

    #[test]
    fn a_long_run_forgives_earlier_crashes() {
        let mut container = container(Role::Main);
        let back_off = BackOff::default();
        let second = Duration::from_secs(1);
        let delays: Vec<u64> = (0..3).map(|_| container.next_delay(second, &back_off).as_secs()).collect();
        assert_eq!(delays, [0, 10, 20]);
        assert_eq!(container.next_delay(Duration::from_secs(600), &back_off).as_secs(), 0);
        assert_eq!(container.next_delay(second, &back_off).as_secs(), 10);
    }
}
