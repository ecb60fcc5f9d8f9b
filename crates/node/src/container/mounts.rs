//! Single mounts, by descriptor where the kernel lets us: no path is looked up twice.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount, open_tree, unmount,
};

use crate::sys;

/// How a copy of a mount differs from what it was copied from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seal {
    /// Nothing can be written to it.
    pub(super) read_only: bool,
    /// Nor to what is mounted below it.
    pub(super) recursive: bool,
    /// Later mounts are seen as the namespace has it, in place of nowhere.
    pub(super) propagates: bool,
}

impl Seal {
    /// Nothing is seen of later mounts, and what is read-only is so with all that is mounted below it.
    pub(super) fn private(read_only: bool) -> Self {
        Self { read_only, recursive: true, propagates: false }
    }

    fn on(self, tree: &OwnedFd) -> io::Result<()> {
        if !self.propagates {
            sys::privatise_mount_tree(tree.as_fd())?;
        }
        if self.read_only { sys::freeze_mount(tree.as_fd(), self.recursive) } else { Ok(()) }
    }
}

/// A copy of what is mounted at a path, with everything below, not yet attached anywhere.
pub(super) fn copy_tree(path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    copy_sealed(path, Seal::private(read_only))
}

/// The same, sealed as asked for.
pub(super) fn copy_sealed(path: &Path, seal: Seal) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, path, flags)?;
    seal.on(&tree)?;
    Ok(tree)
}

/// As [`copy_sealed`], of a place in a folder that may be full of somebody else's links: to the kernel the folder is the
/// root while it looks, and what it found is mounted, whatever has that name afterwards.
pub(super) fn copy_tree_in(root: &Path, sub: &Path, seal: Seal) -> io::Result<OwnedFd> {
    let look = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = openat2(open_folder(root)?, sub, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), look)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(&found, "", flags | OpenTreeFlags::AT_EMPTY_PATH)?;
    seal.on(&tree)?;
    Ok(tree)
}

/// Attaches a mount at a path that exists.
pub(super) fn attach(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// Makes what is mounted at a path the root, and lets the old root go.
pub(super) fn pivot(stage: &Path) -> io::Result<()> {
    rustix::process::chdir(stage)?;
    // Old and new root at the same place: the old one then lies on top and is let go.
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Whether an unattached mount is of a folder.
pub(super) fn is_folder(tree: &OwnedFd) -> io::Result<bool> {
    let stat = rustix::fs::fstat(tree)?;
    Ok(rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// A memory file system at a path that exists.
pub(super) fn tmpfs(target: &Path, mode: u32, size: Option<u64>, flags: MountFlags) -> io::Result<()> {
    let mut options = format!("mode={mode:o}");
    if let Some(size) = size {
        options.push_str(&format!(",size={size}"));
    }
    let options = std::ffi::CString::new(options)?;
    mount("tmpfs", target, "tmpfs", flags, options.as_c_str())?;
    Ok(())
}

/// A kernel file system (proc, sysfs, mqueue, devpts) at a path, which is made where missing.
pub(super) fn kernel_fs(kind: &str, target: &str, flags: MountFlags, options: &std::ffi::CStr) -> io::Result<()> {
    fs::create_dir_all(target)?;
    mount(kind, target, kind, flags, options)?;
    Ok(())
}

/// Overlay of a writable folder over a read-only one, unattached. `spare` is an empty folder on another file
/// system than both, for the case that the upper lies inside the lower.
pub(super) fn overlay(lower: &Path, upper: &Path, work: &Path, spare: &Path) -> io::Result<OwnedFd> {
    let (lower, upper, work) = (open_folder(lower)?, open_folder(upper)?, open_folder(work)?);
    match overlay_of(&[&lower], Some((&upper, &work))) {
        // The kernel refuses layers that contain each other, as when the data directory lies below /var. It looks
        // at each layer's own file system only, so a read-only overlay of the lower alone passes for another place.
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {}
        result => return result,
    }
    let (empty, stage) = (spare.join("empty"), spare.join("stage"));
    fs::create_dir_all(&empty)?;
    fs::create_dir_all(&stage)?;
    let veiled = overlay_of(&[&lower, &open_folder(&empty)?], None)?;
    // Before kernel 6.15 only an attached mount can be a layer.
    attach(&veiled, &stage)?;
    let result = overlay_of(&[&open_folder(&stage)?], Some((&upper, &work)));
    rustix::mount::unmount(&stage, rustix::mount::UnmountFlags::DETACH)?;
    result
}

fn overlay_of(lower: &[&OwnedFd], upper: Option<(&OwnedFd, &OwnedFd)>) -> io::Result<OwnedFd> {
    // Layers are named by descriptor: such names are short, need no escapes and tell the container nothing.
    let name = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let layers: Vec<String> = lower.iter().map(|fd| name(fd)).collect();
    fsconfig_set_string(context.as_fd(), "lowerdir", layers.join(":"))?;
    match upper {
        Some((upper, work)) => {
            fsconfig_set_string(context.as_fd(), "upperdir", name(upper))?;
            fsconfig_set_string(context.as_fd(), "workdir", name(work))?;
        }
        None => fsconfig_set_flag(context.as_fd(), "ro")?,
    }
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes what a mount needs to stand on: a folder or an empty file, with the folders above it.
pub(super) fn make_target(target: &Path, folder: bool) -> io::Result<()> {
    if folder {
        return fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::symlink_metadata(target) {
        // A link such as resolv.conf's may point to where nothing is here.
        Ok(meta) if meta.is_symlink() && fs::metadata(target).is_err() => {
            fs::remove_file(target)?;
            fs::File::create(target)?;
        }
        Ok(_) => {}
        Err(_) => {
            fs::File::create(target)?;
        }
    }
    Ok(())
}

/// Hides a folder or file where it exists: as an empty read-only folder, or as an empty device.
pub(super) fn mask(target: &Path) -> io::Result<()> {
    let Ok(meta) = fs::metadata(target) else { return Ok(()) };
    if meta.is_dir() {
        return tmpfs(
            target,
            0o000,
            Some(0),
            MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        );
    }
    let null = copy_tree(Path::new("/dev/null"), true)?;
    attach(&null, target)
}

/// Makes a folder or file read-only where it exists, by a mount of it onto itself.
pub(super) fn freeze(target: &Path) -> io::Result<()> {
    if fs::symlink_metadata(target).is_err() {
        return Ok(());
    }
    let tree = copy_tree(target, true)?;
    attach(&tree, target)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn link_that_came_after_the_preparation_leads_nowhere_else() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (volume, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        for folder in [&volume.join("inside"), &outside] {
            fs::create_dir_all(folder).expect("folder");
        }
        fs::write(volume.join("inside/mine"), "").expect("written");
        symlink(&outside, volume.join("absolute")).expect("link");
        symlink("../outside", volume.join("relative")).expect("link");
        symlink("/inside", volume.join("within")).expect("link");
        for link in ["absolute", "relative"] {
            assert!(copy_tree_in(&volume, Path::new(link), Seal::private(false)).is_err(), "{link}");
        }
        let tree =
            copy_tree_in(&volume, Path::new("within"), Seal::private(true)).expect("a place of the volume's own");
        assert!(rustix::fs::statat(&tree, "mine", rustix::fs::AtFlags::empty()).is_ok());
    }
}
