//! How a container is ended, and what is run on its behalf when it begins and ends.
//!
//! ```text
//!   program executed ──▶ postStart ──ok──▶ counts as running ──end──▶ preStop ──▶ stop signal ──▶ SIGKILL
//!                            └──failed──▶ (the same end as any other) ─────▲         at the deadline
//! ```

use std::time::Duration;

use ambient::Ambient;

use super::exec::Wanted;
use super::life::{Ending, Life, PostStart, Stage};
use super::pod::Pod;
use super::protocol::ExecExit;
use super::spec::Hook;
use crate::fault::{self, Point};
use crate::sys;

/// What a container always gets between its stop signal and SIGKILL, even if its preStop hook used up the grace
/// period. As a kubelet does.
const LEAST_AFTER_HOOK: Duration = Duration::from_secs(2);

/// A hook that was begun.
enum Begun {
    Exec(u64),
    Sleep(Duration),
}

impl Pod {
    /// The program of a container was executed: its postStart hook, where it has one, begins.
    pub(super) fn begin_post_start(&mut self, index: usize, ambient: &Ambient) {
        let Some(hook) = self.containers[index].spec.post_start.clone() else { return };
        match self.begin_hook(index, hook, ambient.boottime()) {
            Ok(Begun::Exec(exec)) => self.set_post_start(index, Some(PostStart::Exec(exec))),
            Ok(Begun::Sleep(until)) => self.set_post_start(index, Some(PostStart::Sleep(until))),
            Err(why) => self.post_start_failed(index, &why, ambient),
        }
    }

    fn begin_hook(&mut self, index: usize, hook: Hook, now: Duration) -> Result<Begun, String> {
        match hook {
            Hook::Sleep { ms } => Ok(Begun::Sleep(now.saturating_add(Duration::from_millis(ms)))),
            Hook::Exec { argv } => self.start_exec(index, Wanted { argv, ..Wanted::default() }).map(Begun::Exec),
            Hook::Http(request) => self.start_request(&request).map(Begun::Exec),
        }
    }

    fn set_post_start(&mut self, index: usize, stage: Option<PostStart>) {
        if let Some(process) = self.containers[index].process_mut() {
            process.post_start = stage;
        }
    }

    /// A postStart hook that only sleeps is over in time.
    pub(super) fn advance_post_start(&mut self, index: usize, now: Duration) {
        let process = self.containers[index].process();
        if matches!(process.and_then(|p| p.post_start), Some(PostStart::Sleep(until)) if until <= now) {
            self.set_post_start(index, None);
            self.touch();
        }
    }

    /// The container ends as by any other request, and its restart policy decides what follows.
    fn post_start_failed(&mut self, index: usize, why: &str, ambient: &Ambient) {
        let container = &mut self.containers[index];
        container.post_start_failures = container.post_start_failures.saturating_add(1);
        let name = container.spec.name.clone();
        self.set_post_start(index, Some(PostStart::Failed));
        self.warn(format!("the postStart hook of {name} failed: {why}"));
        self.touch();
        let grace = Duration::from_millis(self.spec.grace_ms);
        self.end(index, ambient.boottime().saturating_add(grace), String::new(), ambient);
    }

    /// The program or request of a hook is over.
    pub(super) fn hook_ended(&mut self, exec: u64, exit: &ExecExit, ambient: &Ambient) {
        let failed = exit.code != 0;
        let why = || format!("it ended with {}: {}", exit.code, exit.message);
        for index in 0..self.containers.len() {
            let Some(process) = self.containers[index].process() else { continue };
            if process.post_start == Some(PostStart::Exec(exec)) {
                if failed {
                    return self.post_start_failed(index, &why(), ambient);
                }
                self.set_post_start(index, None);
                return self.touch();
            }
            if failed && process.ending.as_ref().is_some_and(|e| e.stage == Stage::Hook(exec)) {
                return self.pre_stop_failed(index, &why());
            }
        }
    }

    fn pre_stop_failed(&mut self, index: usize, why: &str) {
        let container = &mut self.containers[index];
        container.pre_stop_failures = container.pre_stop_failures.saturating_add(1);
        let name = container.spec.name.clone();
        self.warn(format!("the preStop hook of {name} failed: {why}"));
        self.touch();
    }

    /// Begins to end a container, or brings an end that has begun forward.
    pub(super) fn end(&mut self, index: usize, deadline: Duration, message: String, ambient: &Ambient) {
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
        let Some(hook) = pre_stop else { return self.signal_container(index) };
        match self.begin_hook(index, hook, now) {
            Ok(Begun::Exec(exec)) => self.set_stage(index, Stage::Hook(exec)),
            Ok(Begun::Sleep(until)) => self.set_stage(index, Stage::Sleep(until)),
            Err(why) => {
                self.pre_stop_failed(index, &why);
                self.signal_container(index);
            }
        }
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
        fault::point(Point::ContainerSignalled);
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

    /// Takes the next means to end a container, if its time has come.
    pub(super) fn advance_ending(&mut self, index: usize, now: Duration) {
        let Some(ending) = self.containers[index].process_mut().and_then(|p| p.ending.as_mut()) else { return };
        let late = ending.deadline <= now;
        match ending.stage {
            Stage::Killed => {}
            Stage::Signalled if late => self.kill_container(index),
            Stage::Signalled => {}
            Stage::Sleep(until) if late || until <= now => self.pre_stop_over(index, now),
            Stage::Sleep(_) => {}
            Stage::Hook(exec) => match (self.execs.get(&exec), late) {
                (Some(exec), true) => {
                    exec.kill();
                    self.pre_stop_failed(index, "it did not end within the grace period");
                    self.pre_stop_over(index, now);
                }
                (Some(_), false) => {}
                (None, _) => self.pre_stop_over(index, now),
            },
        }
    }

    /// The preStop hook is over, or its time is: the stop signal, and at least a moment to heed it.
    fn pre_stop_over(&mut self, index: usize, now: Duration) {
        if let Some(ending) = self.containers[index].process_mut().and_then(|p| p.ending.as_mut()) {
            ending.deadline = ending.deadline.max(now.saturating_add(LEAST_AFTER_HOOK));
        }
        self.signal_container(index);
    }
}
