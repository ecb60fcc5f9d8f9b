//! What a container has in `/dev`.

use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Gid, Mode, Uid};
use rustix::mount::MountFlags;

use super::mounts::{attach, kernel_fs, tmpfs};
use super::root::{NO_PROGRAMS, make_folder};
use super::users::Users;
use super::{During, StartFailure};

const SHM_SIZE: u64 = 64 << 20;

/// The group of terminals, by old custom.
const TTY: u32 = 5;

/// Most devices of the machine that are shown.
const MAX_NODES: usize = 4096;

/// Below the machine's `/dev`, what is no device or not for others.
const LEFT_OUT: [&str; 7] = ["console", "fd", "mqueue", "pts", "shm", ".udev", ".lxc"];

/// A device of the machine.
#[derive(Debug)]
pub(super) struct Node {
    path: PathBuf,
    block: bool,
    device: u64,
    mode: u32,
    owner: (u32, u32),
}

/// The machine's devices, for a privileged container.
pub(super) fn of_machine() -> Vec<Node> {
    let mut nodes = Vec::new();
    let mut folders = vec![PathBuf::from("/dev")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let top = folder == Path::new("/dev");
            if nodes.len() >= MAX_NODES || (top && LEFT_OUT.iter().any(|left_out| name == *left_out)) {
                continue;
            }
            // Links lead nowhere they may not: they are left out.
            let Ok(meta) = entry.metadata() else { continue };
            let kind = meta.file_type();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_char_device() || kind.is_block_device() {
                let (block, device) = (kind.is_block_device(), meta.rdev());
                let (mode, owner) = (meta.mode() & 0o7777, (meta.uid(), meta.gid()));
                nodes.push(Node { path: entry.path(), block, device, mode, owner });
            }
        }
    }
    nodes
}

/// Fills `/dev`: what every program expects, and those devices. `shm` takes the place of a shared memory of its own.
pub(super) fn fill(machine: &[Node], shm: Option<&OwnedFd>, users: Option<&Users>) -> Result<(), StartFailure> {
    make_folder(Path::new("/dev"), 0o755)?;
    tmpfs(Path::new("/dev"), 0o755, Some(64 << 10), MountFlags::NOSUID | MountFlags::NOEXEC).during("mounting /dev")?;
    let nodes = [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    for (name, major, minor) in nodes {
        let path = format!("/dev/{name}");
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), device).during(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).during(&path)?;
    }
    let group = users.map_or(Ok(TTY), |users| users.on_machine(TTY))?;
    let pts = CString::new(format!("newinstance,ptmxmode=0666,mode=0620,gid={group}")).during("mounting /dev/pts")?;
    kernel_fs("devpts", "/dev/pts", MountFlags::NOSUID | MountFlags::NOEXEC, &pts).during("mounting /dev/pts")?;
    kernel_fs("mqueue", "/dev/mqueue", NO_PROGRAMS, c"").during("mounting /dev/mqueue")?;
    make_folder(Path::new("/dev/shm"), 0o1777)?;
    match shm {
        Some(shared) => attach(shared, Path::new("/dev/shm")).during("mounting /dev/shm")?,
        None => tmpfs(Path::new("/dev/shm"), 0o1777, Some(SHM_SIZE), NO_PROGRAMS).during("mounting /dev/shm")?,
    }
    let links = [
        ("pts/ptmx", "/dev/ptmx"),
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ];
    for (to, path) in links {
        symlink(to, path).during(path)?;
    }
    machine.iter().try_for_each(show)
}

/// Makes a device of the machine, unless there is something of that name.
fn show(node: &Node) -> Result<(), StartFailure> {
    let doing = format!("showing {}", node.path.display());
    if fs::symlink_metadata(&node.path).is_ok() {
        return Ok(());
    }
    if let Some(folder) = node.path.parent() {
        fs::create_dir_all(folder).during(&doing)?;
    }
    let kind = if node.block { FileType::BlockDevice } else { FileType::CharacterDevice };
    rustix::fs::mknodat(CWD, &node.path, kind, Mode::empty(), node.device).during(&doing)?;
    let (uid, gid) = (Uid::from_raw(node.owner.0), Gid::from_raw(node.owner.1));
    rustix::fs::chown(&node.path, Some(uid), Some(gid)).during(&doing)?;
    fs::set_permissions(&node.path, fs::Permissions::from_mode(node.mode)).during(&doing)
}
