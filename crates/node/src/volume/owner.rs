//! Giving a volume's files to the pod's group, while a pod that writes there may swap them for links.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Gives a tree to the pod's group: readable, and writable where `write`; links are left alone. Each file is opened
/// once, without following any link below `path`, and everything is done to what was opened.
pub(super) fn own(path: &Path, group: Option<u32>, write: bool) -> io::Result<()> {
    let Some(group) = group.map(Gid::from_raw) else { return Ok(()) };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty())?;
    // By path from the root, so that a deep tree takes neither descriptors nor stack.
    let mut left = own_one(&root, Path::new(""), group, write)?;
    let look = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    while let Some(inner) = left.pop() {
        match rustix::fs::openat2(&root, &inner, flags, Mode::empty(), look) {
            Ok(file) => left.extend(own_one(&file, &inner, group, write)?),
            // Removed meanwhile.
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Does so with one file; answers what lies in it, where it is a folder.
fn own_one(file: &OwnedFd, path: &Path, group: Gid, write: bool) -> io::Result<Vec<PathBuf>> {
    rustix::fs::chownat(file, "", None, Some(group), AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)?;
    let stat = rustix::fs::fstat(file)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind.is_symlink() {
        return Ok(Vec::new());
    }
    let bits = match (kind.is_dir(), write) {
        (true, true) => 0o2770,
        (true, false) => 0o2550,
        (false, true) => 0o660,
        (false, false) => 0o440,
    };
    // The descriptor's own entry leads to what is open, whatever has its name now.
    let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::chmodat(CWD, itself, Mode::from_raw_mode(stat.st_mode & 0o7777 | bits), AtFlags::empty())?;
    if !kind.is_dir() {
        return Ok(Vec::new());
    }
    let folder = rustix::fs::openat(file, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut inner = Vec::new();
    for entry in Dir::new(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            inner.push(path.join(std::ffi::OsStr::from_bytes(name)));
        }
    }
    Ok(inner)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn whole_tree_changes_hands_and_links_stay_what_they_are() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (volume, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        fs::create_dir_all(volume.join("a/b")).expect("folder");
        fs::create_dir(&outside).expect("folder");
        fs::write(volume.join("a/b/file"), "").expect("written");
        symlink(&outside, volume.join("a/link")).expect("link");
        own(&volume, Some(4711), true).expect("owned");
        for (path, bits) in [("", 0o2770), ("a/b", 0o2770), ("a/b/file", 0o660)] {
            let meta = fs::metadata(volume.join(path)).expect("there");
            assert_eq!((meta.gid(), meta.mode() & bits), (4711, bits), "{path}");
        }
        assert_eq!(fs::symlink_metadata(volume.join("a/link")).expect("there").gid(), 4711);
        assert_ne!(fs::metadata(&outside).expect("there").gid(), 4711);
    }

    #[test]
    fn folder_swapped_for_a_link_is_not_followed() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (volume, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        for folder in [&volume.join("a"), &outside] {
            fs::create_dir_all(folder).expect("folder");
            fs::write(folder.join("file"), "").expect("written");
        }
        symlink(&outside, dir.path().join("link")).expect("link");
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let (link, place) = (dir.path().join("link"), volume.join("a"));
                    let _ = rustix::fs::renameat_with(CWD, link, CWD, place, rustix::fs::RenameFlags::EXCHANGE);
                }
            });
            for _ in 0..3000 {
                // An error is fine: it is tried again later.
                let _ = own(&volume, Some(4711), true);
            }
            over.store(true, Ordering::Relaxed);
        });
        assert_ne!(fs::metadata(&outside).expect("there").gid(), 4711);
        assert_ne!(fs::metadata(outside.join("file")).expect("there").gid(), 4711);
    }
}
