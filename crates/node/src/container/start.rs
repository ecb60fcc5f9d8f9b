//! Starting a container's first process.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, Uid};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;
use rustix::thread::UnshareFlags;
use rustix::time::Timespec;

use super::root::Builder;
use super::{During, Program, StartFailure, Stdio, credentials};
use crate::cgroup::Group;
use crate::shim::spec::{ContainerSpec, ShimSpec, User};
use crate::sys::{self, Forked};

/// A first process on its way. It runs its program when `report` closes in silence.
#[derive(Debug)]
pub struct Started {
    /// On the machine.
    pub pid: i32,
    /// Its descriptor: readable when it ended.
    pub pidfd: OwnedFd,
    /// Non-blocking; holds a [`StartFailure`] or nothing.
    pub report: OwnedFd,
}

/// Starts a container's first process. `stage` is an empty folder for its use, `start` numbers the container's starts.
pub fn start(
    pod: &ShimSpec,
    container: &ContainerSpec,
    program: &Program,
    group: &Group,
    stdio: Stdio,
    stage: &Path,
    start: u32,
) -> io::Result<Started> {
    let (report, told) = pipe_with(PipeFlags::CLOEXEC)?;
    match sys::fork_into(sys::NEW_PID_AND_MOUNT)? {
        Forked::Child => {
            drop(report);
            let failure = match become_init(pod, container, program, group, &stdio, stage, start, &told) {
                Ok(never) => match never {},
                Err(failure) => failure,
            };
            give_up(told, &failure)
        }
        Forked::Parent { pid, pidfd } => {
            rustix::io::ioctl_fionbio(&report, true)?;
            Ok(Started { pid, pidfd: pidfd.expect("fork_into always asks for it"), report })
        }
    }
}

/// Nothing: a function with this result has replaced the program, or failed.
pub(super) enum Never {}

#[allow(clippy::too_many_arguments, reason = "a process cannot be born with less")]
fn become_init(
    pod: &ShimSpec,
    container: &ContainerSpec,
    program: &Program,
    group: &Group,
    stdio: &Stdio,
    stage: &Path,
    start: u32,
    told: &OwnedFd,
) -> Result<Never, StartFailure> {
    bind_to_shim(told)?;
    // 0: whoever writes. The pid that this process has for itself means nothing outside.
    group.add(0).map_err(|e| StartFailure { code: 128, message: e.to_string() })?;
    unshare_cgroup()?;
    if let Some(wanted) = container.oom_score_adj {
        // Lowering it takes a capability that even root may lack; the shim tells that as a warning.
        let _ = std::fs::write("/proc/self/oom_score_adj", wanted.to_string());
    }
    take_stdio(stdio, &program.user)?;
    Builder::new(pod, container, stage, start).build()?;
    execute(program)
}

/// Dies with the shim from here on; and at once, if that happened before.
pub(super) fn bind_to_shim(told: &OwnedFd) -> Result<(), StartFailure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).during("binding to the shim's life")?;
    let mut fds = [PollFd::new(told, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).during("looking for the shim")?;
    if fds[0].revents().contains(PollFlags::ERR) {
        sys::exit_now(128);
    }
    Ok(())
}

#[allow(deprecated, reason = "the flag given does not touch the descriptors that the safe call worries about")]
fn unshare_cgroup() -> Result<(), StartFailure> {
    rustix::thread::unshare(UnshareFlags::NEWCGROUP).during("making a cgroup namespace")
}

/// A session of its own, with the given descriptors, and the terminal if they are one.
pub(super) fn take_stdio(stdio: &Stdio, user: &User) -> Result<(), StartFailure> {
    for fd in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(fd).during("looking at its descriptors")?.st_mode);
        // So that the user can open them again by name (/dev/stdout). The null device stays root's.
        if stdio.tty || kind == FileType::Fifo {
            rustix::fs::fchown(fd, Some(Uid::from_raw(user.uid)), None).during("giving it its descriptors")?;
        }
    }
    rustix::process::setsid().during("making a session")?;
    rustix::stdio::dup2_stdin(&stdio.stdin).during("taking stdin")?;
    rustix::stdio::dup2_stdout(&stdio.stdout).during("taking stdout")?;
    rustix::stdio::dup2_stderr(&stdio.stderr).during("taking stderr")?;
    if stdio.tty {
        rustix::process::ioctl_tiocsctty(&stdio.stdin).during("taking the terminal")?;
    }
    Ok(())
}

/// Gives up what the program must not have, and executes it.
pub(super) fn execute(program: &Program) -> Result<Never, StartFailure> {
    sys::reset_signals().during("resetting signals")?;
    credentials::take_on(program)?;
    let cwd = if program.cwd.is_empty() { "/" } else { &program.cwd };
    rustix::process::chdir(cwd).during(format!("working directory {cwd}"))?;
    sys::cloexec_from(3).during("closing descriptors")?;
    let (name, arguments) =
        program.argv.split_first().ok_or_else(|| StartFailure { code: 128, message: "no program is given".into() })?;
    let error = Command::new(name)
        .args(arguments)
        .env_clear()
        .envs(program.env.iter().map(|(name, value)| (name, value)))
        .exec();
    let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
    Err(StartFailure { code, message: format!("executing {name:?}: {error}") })
}

/// Tells why, and ends.
pub(super) fn give_up(told: OwnedFd, failure: &StartFailure) -> ! {
    // If nobody listens any more, nobody needs to know.
    let _ = File::from(told).write_all(&failure.to_bytes());
    sys::exit_now(failure.code)
}
