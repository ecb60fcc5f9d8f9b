//! A path inside of a volume that may be full of somebody else's links.

use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};

use super::Error;

/// Makes the folders that `sub` means inside of `volume`, where they are missing, and answers their plain path in it.
/// Links may be followed as long as they stay inside: to the kernel, the volume is the root while it looks. A link may
/// come in the way at any time after, so the shim looks in the same manner again when it mounts.
pub(super) fn make(volume: &Path, sub: &str) -> Result<PathBuf, Error> {
    let relative = plain(sub)?;
    let failed = |e: rustix::io::Errno| Error::io("open the subPath in", volume, e.into());
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(volume, flags | OFlags::DIRECTORY, Mode::empty()).map_err(failed)?;
    let mut at = root.try_clone().map_err(|e| Error::io("open the subPath in", volume, e))?;
    let mut walked = PathBuf::new();
    for component in relative.components() {
        let Component::Normal(name) = component else { continue };
        walked.push(name);
        let open = || {
            rustix::fs::openat2(
                &root,
                &walked,
                flags,
                Mode::empty(),
                ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            )
        };
        at = match open() {
            Ok(found) => found,
            Err(rustix::io::Errno::NOENT) => {
                match rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(e) => return Err(failed(e)),
                }
                inherit(&at, name);
                open().map_err(failed)?
            }
            Err(e) => return Err(failed(e)),
        };
    }
    Ok(if walked.as_os_str().is_empty() { PathBuf::from(".") } else { walked })
}

/// A path that says itself that it stays inside.
pub(super) fn plain(sub: &str) -> Result<PathBuf, Error> {
    let relative = Path::new(sub);
    if relative.is_absolute() || relative.components().any(|c| c == Component::ParentDir) {
        return Err(Error::Escape { sub: sub.to_owned() });
    }
    Ok(relative.to_owned())
}

/// A folder that we make belongs to whom its parent belongs to, so that the pod's user can write there.
fn inherit(parent: &impl std::os::fd::AsFd, name: &std::ffi::OsStr) {
    let Ok(stat) = rustix::fs::statat(parent, ".", AtFlags::empty()) else { return };
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    let owner = rustix::fs::Uid::from_raw(stat.st_uid);
    let group = rustix::fs::Gid::from_raw(stat.st_gid);
    let _ = rustix::fs::chownat(parent, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW);
    let _ = rustix::fs::chmodat(parent, name, mode, AtFlags::empty());
}
