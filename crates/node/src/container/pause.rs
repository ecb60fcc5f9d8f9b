//! The first process of a pid namespace that a pod's containers share.
//!
//! Whoever is first in a pid namespace ends it, and takes in what others leave behind. No container may be that: it would
//! end the others with itself. So a process that does nothing is first. Containers see it; therefore it has an empty
//! root, a user that nobody is, no capabilities, and nothing of the shim but its program.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use caps::CapSet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, MountPropagationFlags, mount_change};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::{Gid, Uid, UnshareFlags};

use super::join::fork_beyond;
use super::mounts::{pivot, tmpfs};
use super::start::unshare;
use super::users::Users;
use super::{During, StartFailure};
use crate::sys::{self, Forked};

/// User and group that images of pause processes have agreed on.
const NOBODY: u32 = 65535;

/// A shared pid namespace, as the shim holds it.
#[derive(Debug)]
pub struct Pause {
    pidfd: OwnedFd,
    /// Closed by the shim's end, and by nothing else.
    _held: OwnedFd,
}

impl Pause {
    /// Makes it, as one of the pod's users where it has its own. `stage` is an empty folder for its use.
    pub fn start(stage: &Path, users: Option<&Users>) -> io::Result<Self> {
        let (watched, held) = pipe_with(PipeFlags::CLOEXEC)?;
        if let Some(users) = users {
            return Self::start_among(users, stage, watched, held);
        }
        match sys::fork_into(sys::NEW_PID_AND_MOUNT)? {
            Forked::Child => {
                drop(held);
                let end = be_nowhere(stage).and_then(|()| idle(watched));
                sys::exit_now(i32::from(end.is_err()))
            }
            Forked::Parent { pidfd, .. } => {
                Ok(Self { pidfd: pidfd.expect("fork_into always asks for it"), _held: held })
            }
        }
    }

    /// The folder is the machine's, so it is left before the pod's users are entered.
    fn start_among(users: &Users, stage: &Path, watched: OwnedFd, held: OwnedFd) -> io::Result<Self> {
        // Given up in the copy of this process that must not hold it.
        let mut held = Some(held);
        let go = || {
            unshare(UnshareFlags::NEWNS, "making a mount namespace")?;
            be_nowhere(stage).during("making an empty root")?;
            users.enter()?;
            unshare(UnshareFlags::NEWPID, "making a pid namespace")
        };
        let joined = fork_beyond(None, go, |_| {
            drop(held.take());
            match idle(watched) {
                Ok(()) => sys::exit_now(0),
                Err(error) => Err(StartFailure::step("being the first process", error)),
            }
        })?;
        let Some(held) = held else { unreachable!("only the copy gave it up") };
        Ok(Self { pidfd: joined.pidfd, _held: held })
    }

    /// Whether it lives.
    pub fn alive(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
        !poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }

    /// Its descriptor.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Leaves the machine's files for an empty root.
fn be_nowhere(stage: &Path) -> io::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    tmpfs(stage, 0o555, Some(0), MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC)?;
    pivot(stage)
}

fn idle(watched: OwnedFd) -> io::Result<()> {
    sys::forget_children()?;
    rustix::stdio::dup2_stdin(&watched)?;
    // Its other descriptors are the shim's: the lock of the pod's folder among them.
    sys::close_from(1)?;
    std::mem::forget(watched);
    for capability in caps::all() {
        if caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false) {
            caps::drop(None, CapSet::Bounding, capability).map_err(io::Error::other)?;
        }
    }
    rustix::thread::set_thread_groups(&[])?;
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    rustix::thread::set_no_new_privs(true)?;
    // It ends with the shim, and its namespace with it.
    let mut buffer = [0u8; 1];
    while rustix::io::retry_on_intr(|| rustix::io::read(rustix::stdio::stdin(), &mut buffer))? > 0 {}
    Ok(())
}
