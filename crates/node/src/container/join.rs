//! Running a program inside a container that runs already.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::start::{Never, bind_to_shim, execute, give_up, take_stdio};
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

/// Starts a program in the namespaces of the process behind `init`, and in its cgroup.
pub fn join(init: BorrowedFd<'_>, program: &Program, group: &Group, stdio: Stdio) -> io::Result<Joined> {
    let namespaces = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP;
    fork_inside(init, namespaces, group, |told| {
        bind_to_shim(told)?;
        take_stdio(&stdio, &program.user)?;
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
    let (report, told) = pipe_with(PipeFlags::CLOEXEC)?;
    let (pid_out, pid_in) = pipe_with(PipeFlags::CLOEXEC)?;
    match sys::fork_into(0)? {
        Forked::Child => {
            drop((report, pid_out));
            match enter(of, namespaces, group, life, &told, pid_in) {
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
    of: BorrowedFd<'_>,
    namespaces: ThreadNameSpaceType,
    group: &Group,
    life: impl FnOnce(&OwnedFd) -> Result<Never, StartFailure>,
    told: &OwnedFd,
    pid_in: OwnedFd,
) -> Result<(), StartFailure> {
    group.enter(false).map_err(|e| StartFailure { code: 128, message: e.to_string() })?;
    let alone = sys::Alone::check().during("copying the process")?;
    move_into_thread_name_spaces(of, namespaces).during("entering the container")?;
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
