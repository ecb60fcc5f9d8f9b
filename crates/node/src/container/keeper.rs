//! The process that ends a pod's containers when its shim is killed.
//!
//! A parent-death signal alone does not bind a container to its shim: the kernel forgets it when the program changes
//! its user, as database start scripts do. So a sleeping copy of the shim waits for the end of a pipe that only the
//! shim holds open, and then kills the containers' cgroup. If both are killed together, the agent does it, before
//! anything of the pod is started again.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::cgroup::Group;
use crate::sys::{self, Forked};

/// A pod's keeper, as its shim holds it.
#[derive(Debug)]
pub struct Keeper {
    pidfd: OwnedFd,
    /// Closed by the shim's end, and by nothing else.
    _held: OwnedFd,
}

impl Keeper {
    /// Starts it. Signals that the caller has blocked stay blocked in it: the end of the machine must not end the
    /// keeper before the shim.
    pub fn start(containers: &Group) -> io::Result<Self> {
        let (watched, held) = pipe_with(PipeFlags::CLOEXEC)?;
        match sys::fork_into(0)? {
            Forked::Child => {
                drop(held);
                sys::exit_now(i32::from(keep(watched, containers).is_err()))
            }
            Forked::Parent { pidfd, .. } => {
                Ok(Self { pidfd: pidfd.expect("fork_into always asks for it"), _held: held })
            }
        }
    }

    /// Whether it lives.
    pub fn alive(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
        !poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }
}

fn keep(watched: OwnedFd, containers: &Group) -> io::Result<()> {
    rustix::stdio::dup2_stdin(&watched)?;
    // Everything else that it was copied with is the shim's, the lock of the pod's folder among it.
    sys::close_from(3)?;
    std::mem::forget(watched);
    let mut buffer = [0u8; 1];
    while rustix::io::retry_on_intr(|| rustix::io::read(rustix::stdio::stdin(), &mut buffer))? > 0 {}
    containers.kill().and_then(|()| containers.wait_empty()).map_err(io::Error::other)
}
