//! Running a program inside a container that runs already.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::start::{Never, bind_to_shim, execute, give_stdio, give_up, take_stdio};
use super::users::Users;
use super::{During, Program, StartFailure, Stdio};
use crate::cgroup::Group;
use crate::sys::{self, Forked};

/// A program on its way in a container. It runs when `report` closes in silence.
#[derive(Debug)]
pub struct Joined {
    /// On the machine; a child of the shim and leader of its own session and process group.
    pub pid: i32,
    /// Its descriptor: readable when it ended.
    pub pidfd: OwnedFd,
    /// Non-blocking; holds a [`StartFailure`] or nothing.
    pub report: OwnedFd,
}

/// Starts a program in the namespaces of the process behind `init`, and in its cgroup; as one of the pod's users, where it
/// has its own.
pub fn join(
    init: BorrowedFd<'_>,
    program: &Program,
    group: &Group,
    users: Option<&Users>,
    stdio: Stdio,
) -> io::Result<Joined> {
    let namespaces = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP;
    fork_inside(init, namespaces, group, |told| {
        bind_to_shim(told)?;
        give_stdio(&stdio, &program.user, users)?;
        take_stdio(&stdio)?;
        if let Some(users) = users {
            users.enter()?;
        }
        execute(program)
    })
}

/// Copies the shim into those namespaces of the process behind `of`, and into a cgroup. The copy is the shim's child and
/// lives as `life` says, which gets the pipe that its failure is told through.
pub(super) fn fork_inside(
    of: BorrowedFd<'_>,
    namespaces: ThreadNameSpaceType,
    group: &Group,
    life: impl FnOnce(&OwnedFd) -> Result<Never, StartFailure>,
) -> io::Result<Joined> {
    let go = || move_into_thread_name_spaces(of, namespaces).during("entering the container");
    fork_beyond(Some(group), go, life)
}

/// The same, into wherever `go` moves the process that it is copied from.
pub(super) fn fork_beyond(
    group: Option<&Group>,
    go: impl FnOnce() -> Result<(), StartFailure>,
    life: impl FnOnce(&OwnedFd) -> Result<Never, StartFailure>,
) -> io::Result<Joined> {
    let (report, told) = pipe_with(PipeFlags::CLOEXEC)?;
    let (pid_out, pid_in) = pipe_with(PipeFlags::CLOEXEC)?;
    match sys::fork_into(0)? {
        Forked::Child => {
            drop((report, pid_out));
            match enter(group, go, life, &told, pid_in) {
                Ok(()) => sys::exit_now(0),
                Err(failure) => give_up(told, &failure),
            }
        }
        Forked::Parent { pidfd: joiner, .. } => {
            drop((told, pid_in));
            // The joiner does nothing that can hang: it moves between cgroups and namespaces and forks.
            let mut bytes = [0; 4];
            let got = File::from(pid_out).read_exact(&mut bytes);
            let joiner = joiner.expect("fork_into always asks for it");
            waitid(WaitId::PidFd(joiner.as_fd()), WaitIdOptions::EXITED)?;
            if got.is_err() {
                let mut text = Vec::new();
                File::from(report).read_to_end(&mut text)?;
                let failure = StartFailure::from_bytes(&text);
                return Err(io::Error::other(failure.map_or("the container is gone".into(), |f| f.message)));
            }
            let pid = i32::from_ne_bytes(bytes);
            // Its parent is this process, which has not waited for it: the number is still its own.
            let pidfd = pidfd_open(Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?, PidfdFlags::empty())?;
            rustix::io::ioctl_fionbio(&report, true)?;
            Ok(Joined { pid, pidfd, report })
        }
    }
}

/// The joiner: enters and leaves a sibling there, because only a child can be in another pid namespace.
fn enter(
    group: Option<&Group>,
    go: impl FnOnce() -> Result<(), StartFailure>,
    life: impl FnOnce(&OwnedFd) -> Result<Never, StartFailure>,
    told: &OwnedFd,
    pid_in: OwnedFd,
) -> Result<(), StartFailure> {
    if let Some(group) = group {
        group.enter(false).map_err(|e| StartFailure { code: 128, message: e.to_string() })?;
    }
    let alone = sys::Alone::check().during("copying the process")?;
    go()?;
    match sys::fork_sibling(&alone).during("copying the process")? {
        Forked::Child => {
            drop(pid_in);
            let failure = match life(told) {
                Ok(never) => match never {},
                Err(failure) => failure,
            };
            // A copy of the joiner's descriptor: the joiner's own closes with its exit.
            let copy = told.try_clone().during("telling")?;
            give_up(copy, &failure)
        }
        Forked::Parent { pid, .. } => File::from(pid_in).write_all(&pid.to_ne_bytes()).during("telling"),
    }
}
