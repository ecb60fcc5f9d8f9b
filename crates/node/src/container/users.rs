//! Users that are a pod's own: its user namespace, and the namespaces that this owns.
//!
//! ```text
//!   shim ──clone3(user, net, ipc, uts)──▶ founder    waits until its users are mapped to a range of the machine's,
//!     │ uid_map, gid_map ──────────────────▶           becomes their root, settles what the namespaces begin with
//!     └─setns(net, ipc, uts of founder)                and ends; a descriptor keeps the user namespace
//! ```
//!
//! The shim itself stays a user of the machine, with all its rights, and so does whoever builds a container's root: only
//! such a process may stack layers and show files by mapped mounts. On disk everything belongs to users by the numbers
//! that they have in the pod ([`map`]); what is made in memory belongs to the pod's root from the start ([`make_for`]).
//! Whoever will execute a program then moves over ([`Users::enter`]), and from there is no way back.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use caps::CapSet;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::thread::{
    Gid, LinkNameSpaceType, ThreadNameSpaceType, Uid, move_into_link_name_space, move_into_thread_name_spaces,
};

use super::{During, StartFailure, host};
use crate::shim::spec::{Root, ShimSpec, Source, UserRange};
use crate::sys::{self, Forked};

/// Most that a founder has to tell, bytes: what a pipe takes whole.
const MAX_WORDS: usize = 4096;

/// What a founder says first when all is settled; warnings follow, one a line.
const SETTLED: char = '+';

/// A pod's users, as its shim holds them.
#[derive(Debug)]
pub struct Users {
    namespace: OwnedFd,
    range: UserRange,
}

impl Users {
    /// Makes the namespace, and moves the caller into the namespaces of network, queues and names that it owns. `settle`
    /// runs in these as the pod's root, before; the warnings that it answers are passed on.
    pub fn found(
        range: UserRange,
        settle: impl FnOnce() -> Result<Vec<String>, String>,
    ) -> Result<(Self, Vec<String>), UsersError> {
        let (mapped, map) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        let (answer, told) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        match sys::fork_into(sys::NEW_POD_OF_USERS).map_err(|source| UsersError::Refused { source })? {
            Forked::Child => {
                drop((map, answer));
                sys::exit_now(i32::from(be_founder(mapped, told, settle).is_err()))
            }
            Forked::Parent { pid, pidfd } => {
                drop((mapped, told));
                let founder = pidfd.expect("fork_into always asks for it");
                let result = Self::take_over(range, pid, founder.as_fd(), &map, answer);
                // It ends with the pipe.
                drop(map);
                waitid(WaitId::PidFd(founder.as_fd()), WaitIdOptions::EXITED).map_err(io::Error::from)?;
                result
            }
        }
    }

    fn take_over(
        range: UserRange,
        pid: i32,
        founder: BorrowedFd<'_>,
        map: &OwnedFd,
        answer: OwnedFd,
    ) -> Result<(Self, Vec<String>), UsersError> {
        let line = format!("0 {} {}\n", range.first, range.count);
        for file in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{pid}/{file}"), &line).map_err(|source| UsersError::Mapping { range, source })?;
        }
        rustix::io::write(map, b"1").map_err(io::Error::from)?;
        let mut words = vec![0; MAX_WORDS];
        let length = File::from(answer).read(&mut words)?;
        words.truncate(length);
        let words = String::from_utf8_lossy(&words);
        let Some(warnings) = words.strip_prefix(SETTLED) else {
            let silent = "it ended without a word";
            return Err(UsersError::Founder(if words.is_empty() { silent.to_owned() } else { words.into_owned() }));
        };
        let namespace = File::open(format!("/proc/{pid}/ns/user"))?.into();
        let owned = ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
        move_into_thread_name_spaces(founder, owned).map_err(io::Error::from)?;
        Ok((Self { namespace, range }, warnings.lines().map(str::to_owned).collect()))
    }

    /// Who stands for them.
    pub fn range(&self) -> UserRange {
        self.range
    }

    /// Its descriptor.
    pub fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// Makes the caller the pod's root, for good.
    pub(super) fn enter(&self) -> Result<(), StartFailure> {
        move_into_link_name_space(self.namespace(), Some(LinkNameSpaceType::User))
            .during("entering the pod's user namespace")?;
        become_root().during("becoming the pod's root")
    }

    /// Who a user of the pod is on the machine.
    pub(super) fn on_machine(&self, id: u32) -> Result<u32, StartFailure> {
        self.range.on_machine(id).ok_or_else(|| StartFailure {
            code: 128,
            message: format!("there is no user {id} among the pod's {} (hostUsers: false)", self.range.count),
        })
    }

    /// Tries whether everything on disk that the containers are to see can be shown to these users.
    pub fn check(&self, spec: &ShimSpec) -> Result<(), UsersError> {
        for path in shown(spec) {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let tree = match open_tree(CWD, &path, flags) {
                Ok(tree) => tree,
                // Whoever needs it will say so.
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(error) => return Err(UsersError::Unmappable { path, source: error.into() }),
            };
            sys::map_mount(tree.as_fd(), self.namespace(), false)
                .map_err(|source| UsersError::Unmappable { path, source })?;
        }
        Ok(())
    }
}

/// Everything of the machine's disks that a pod's containers see, each once.
fn shown(spec: &ShimSpec) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        [&spec.hosts_file, &spec.resolv_conf, &spec.shared_memory].into_iter().filter_map(Clone::clone).collect();
    for container in &spec.containers {
        match &container.root {
            Root::Image { layers, .. } => paths.extend(layers.iter().cloned()),
            Root::Host => {
                let names = host::PROGRAMS.iter().chain(&host::OVERLAID);
                paths.extend(names.map(|name| Path::new("/").join(name)));
            }
            Root::Sample => {}
        }
        for mount in &container.mounts {
            match &mount.source {
                Source::Bind { path, .. } => paths.push(path.clone()),
                Source::Layers { layers, .. } => paths.extend(layers.iter().cloned()),
                Source::Tmpfs { .. } => {}
            }
        }
    }
    paths.sort();
    paths.dedup();
    paths
}

fn be_founder(mapped: OwnedFd, told: OwnedFd, settle: impl FnOnce() -> Result<Vec<String>, String>) -> io::Result<()> {
    let (mut mapped, mut told) = (File::from(mapped), File::from(told));
    let mut signal = [0; 1];
    // The end of the pipe: the shim is gone, or could not map the users.
    mapped.read_exact(&mut signal)?;
    let settled = become_root().map_err(|e| e.to_string()).and_then(|()| settle());
    let mut words = match settled {
        Ok(warnings) => format!("{SETTLED}{}", warnings.join("\n")),
        Err(why) => why,
    };
    while words.len() > MAX_WORDS {
        words.pop();
    }
    told.write_all(words.as_bytes())?;
    // Its namespaces are there as long as it is, until the shim has them.
    mapped.read(&mut signal).map(drop)
}

fn become_root() -> io::Result<()> {
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    Ok(())
}

/// From here on what the calling process makes belongs to the root of these users; it may do all that it could before.
pub(super) fn make_for(range: UserRange) -> io::Result<()> {
    let permitted = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    let (uid, gid) = (Uid::from_raw(range.first), Gid::from_raw(range.first));
    rustix::thread::set_thread_res_gid(Gid::ROOT, gid, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, uid, Uid::ROOT)?;
    // The kernel took them with the effective user.
    caps::set(None, CapSet::Effective, &permitted).map_err(io::Error::other)
}

/// Shows an unattached copy of a mount to the pod's users. What is mounted below it may be of a kind that cannot be shown
/// so: there everything is nobody's.
pub(super) fn map(tree: &OwnedFd, users: &Users) -> io::Result<()> {
    match sys::map_mount(tree.as_fd(), users.namespace(), true) {
        Ok(()) => Ok(()),
        Err(_) => sys::map_mount(tree.as_fd(), users.namespace(), false),
    }
}

/// A pod cannot have users of its own here.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// The kernel has no user namespaces, or no more of them. Look at `user.max_user_namespaces`.
    #[error("hostUsers: false: this machine makes no user namespace for the pod: {source}")]
    Refused {
        /// What the system said.
        source: io::Error,
    },
    /// The statefuld that runs here may not map users, as in a container that is not privileged.
    #[error("hostUsers: false: users {} to {} cannot be mapped: {source}", range.first, range.first.saturating_add(range.count.saturating_sub(1)))]
    Mapping {
        /// The machine's.
        range: UserRange,
        /// What the system said.
        source: io::Error,
    },
    /// A file system, or the kernel, lacks mounts that map users. Use another one (ext4, xfs, btrfs, tmpfs from 6.3).
    #[error(
        "hostUsers: false: {} cannot be shown to the pod's users: its file system or this kernel maps no users of mounts: {source}",
        path.display()
    )]
    Unmappable {
        /// What was to be shown.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What the namespaces begin with could not be settled.
    #[error("{0}")]
    Founder(String),
    /// Anything else of the system's.
    #[error("making the pod's user namespace: {0}")]
    Io(#[from] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_knows_its_own_and_no_others() {
        let range = UserRange { first: 2_000_224_256, count: 65_536 };
        assert_eq!(range.on_machine(0), Some(2_000_224_256));
        assert_eq!(range.on_machine(65_535), Some(2_000_289_791));
        assert_eq!(range.on_machine(65_536), None);
    }
}
