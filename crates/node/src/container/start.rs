//! Starting a container's first process.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, Uid};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};
use rustix::time::Timespec;

use super::join::{fork_beyond, fork_inside};
use super::root::Builder;
use super::users::Users;
use super::{During, Program, StartFailure, Stdio, credentials, handing};
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

/// What a container's first process is made from.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// Its pod.
    pub pod: &'a ShimSpec,
    /// The container.
    pub container: &'a ContainerSpec,
    /// What is executed at last.
    pub program: &'a Program,
    /// Its pod's users, where they are not the machine's.
    pub users: Option<&'a Users>,
    /// Its cgroup.
    pub group: &'a Group,
    /// An empty folder for its use.
    pub stage: &'a Path,
    /// Number of this start.
    pub start: u32,
    /// Nothing ever ran in its cgroup.
    pub first: bool,
}

/// Starts a container's first process.
pub fn start(start: &Start<'_>, stdio: Stdio) -> io::Result<Started> {
    if let Some(users) = start.users {
        return start_among(start, users, stdio);
    }
    let (report, told) = pipe_with(PipeFlags::CLOEXEC)?;
    // Later starts are into a group that may have been killed.
    let birthplace = start.first.then(|| start.group.birthplace()).flatten();
    let namespaces = if start.pod.sharing.host_pid { sys::NEW_MOUNT } else { sys::NEW_PID_AND_MOUNT };
    let (forked, born) = sys::fork_into_group(namespaces, birthplace.as_ref())?;
    match forked {
        Forked::Child => {
            drop(report);
            let failure = match become_init(start, born, &stdio, &told) {
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

/// The same, where it sees and is seen by the processes of another pid namespace, whose first one is behind `target`:
/// with that one it ends.
pub fn start_beside(start: &Start<'_>, stdio: Stdio, target: BorrowedFd<'_>) -> io::Result<Started> {
    let joined = fork_inside(target, ThreadNameSpaceType::PROCESS_ID, start.group, |told| {
        unshare(UnshareFlags::NEWNS, "making a mount namespace")?;
        become_init(start, false, &stdio, told)
    })?;
    Ok(Started { pid: joined.pid, pidfd: joined.pidfd, report: joined.report })
}

/// The same, where the pod has users of its own. The namespaces of processes and mounts belong to them, so the first process
/// is one of theirs from its birth, and waits for its root; another that is still the machine's builds it:
///
/// ```text
///   shim ──▶ joiner ──user──▶ first process, among the pod's users, in a new pid namespace
///     └────▶ joiner ──pid───▶ builder: the root, in a mount namespace of its own; then one of the pod's users, too,
///                              with a copy of that namespace which is theirs, and hands it over
/// ```
fn start_among(start: &Start<'_>, users: &Users, stdio: Stdio) -> io::Result<Started> {
    let (hand, taken) = handing::pair()?;
    // Given up in the copy of this process that must not hold it.
    let mut spare = Some(hand);
    let go = || {
        set_oom_score(start);
        give_stdio(&stdio, &start.program.user, Some(users))?;
        users.enter()?;
        unshare(UnshareFlags::NEWPID, "making a pid namespace")
    };
    let first = fork_beyond(Some(start.group), go, |told| {
        drop(spare.take());
        bind_to_shim(told)?;
        take_stdio(&stdio)?;
        handing::take_root(&taken)?;
        unshare(UnshareFlags::NEWCGROUP, "making a cgroup namespace")?;
        execute(start.program)
    })?;
    let Some(hand) = spare else { unreachable!("only the copy gave it up") };
    fork_inside(first.pidfd.as_fd(), ThreadNameSpaceType::PROCESS_ID, start.group, |_| {
        let built = build_for(start, users).and_then(|()| handing::give_root(&hand));
        if let Err(failure) = &built {
            handing::give_failure(&hand, failure);
        }
        // It lives no longer than the first process: that ends the pid namespace.
        sys::exit_now(i32::from(built.is_err()))
    })?;
    Ok(Started { pid: first.pid, pidfd: first.pidfd, report: first.report })
}

/// Builds the root in a mount namespace of the caller's own, which becomes one of the pod's users.
fn build_for(start: &Start<'_>, users: &Users) -> Result<(), StartFailure> {
    // So that what is mounted of the cgroups begins with the container's.
    unshare(UnshareFlags::NEWNS | UnshareFlags::NEWCGROUP, "making a mount namespace")?;
    Builder::new(start.pod, start.container, start.stage, start.start).for_users(users).build()?;
    users.enter()?;
    unshare(UnshareFlags::NEWNS, "making a mount namespace")
}

/// Nothing: a function with this result has replaced the program, or failed.
pub(super) enum Never {}

fn become_init(start: &Start<'_>, born: bool, stdio: &Stdio, told: &OwnedFd) -> Result<Never, StartFailure> {
    bind_to_shim(told)?;
    // 0: whoever writes. The pid that this process has for itself means nothing outside.
    start.group.enter(born).map_err(|e| StartFailure { code: 128, message: e.to_string() })?;
    unshare(UnshareFlags::NEWCGROUP, "making a cgroup namespace")?;
    set_oom_score(start);
    give_stdio(stdio, &start.program.user, start.users)?;
    take_stdio(stdio)?;
    match start.users {
        None => Builder::new(start.pod, start.container, start.stage, start.start).build()?,
        Some(users) => {
            build_for(start, users)?;
            unshare(UnshareFlags::NEWCGROUP, "making a cgroup namespace")?;
        }
    }
    execute(start.program)
}

fn set_oom_score(start: &Start<'_>) {
    if let Some(wanted) = start.container.oom_score_adj {
        // Lowering it takes a capability that even root may lack; the shim tells that as a warning.
        let _ = std::fs::write("/proc/self/oom_score_adj", wanted.to_string());
    }
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

#[allow(deprecated, reason = "the flags given do not touch the descriptors that the safe call worries about")]
pub(super) fn unshare(flags: UnshareFlags, doing: &str) -> Result<(), StartFailure> {
    rustix::thread::unshare(flags).during(doing)
}

/// Gives the descriptors to the program's user, so that it can open them again by name (/dev/stdout).
pub(super) fn give_stdio(stdio: &Stdio, user: &User, users: Option<&Users>) -> Result<(), StartFailure> {
    let owner = users.map_or(Ok(user.uid), |users| users.on_machine(user.uid))?;
    for fd in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(fd).during("looking at its descriptors")?.st_mode);
        // The null device stays root's.
        if stdio.tty || kind == FileType::Fifo {
            rustix::fs::fchown(fd, Some(Uid::from_raw(owner)), None).during("giving it its descriptors")?;
        }
    }
    Ok(())
}

/// A session of its own, with the given descriptors, and the terminal if they are one.
pub(super) fn take_stdio(stdio: &Stdio) -> Result<(), StartFailure> {
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
    credentials::install_filter(program)?;
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
