//! A folder copied as it is: owners, modes, times, extended attributes, links, holes. Shared blocks where the file system
//! can share them.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, SeekFrom, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

/// How much is copied in one call.
const STEP: u64 = 64 << 20;
/// No list or value of extended attributes is longer (the kernel's own limit).
const XATTR_MAX: usize = 64 << 10;

/// What a folder holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Regular files.
    pub files: u64,
    /// Bytes that they occupy on the disk.
    pub bytes: u64,
}

/// Counts what a folder holds, without following links.
pub fn content(folder: &Path) -> io::Result<Content> {
    let mut total = Content::default();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_dir() {
            let below = content(&entry.path())?;
            total = Content { files: total.files + below.files, bytes: total.bytes + below.bytes };
        } else if meta.is_file() {
            total = Content { files: total.files + 1, bytes: total.bytes + meta.blocks() * 512 };
        }
    }
    Ok(total)
}

/// A copy under way.
pub struct Copy<'a> {
    /// Called with the bytes that were copied since the last call.
    pub progress: &'a mut dyn FnMut(u64),
    /// All files get this owner instead of their own.
    pub owner: Option<(u32, u32)>,
    /// Where files with several names were copied to first, by device and inode.
    linked: HashMap<(u64, u64), PathBuf>,
    /// What was left out: sockets belong to the program that made them.
    pub left_out: Vec<PathBuf>,
}

impl<'a> Copy<'a> {
    /// Nothing copied yet.
    pub fn new(owner: Option<(u32, u32)>, progress: &'a mut dyn FnMut(u64)) -> Self {
        Self { progress, owner, linked: HashMap::new(), left_out: Vec::new() }
    }

    /// Copies a folder to a place where nothing is. When this returns well, the disk has all of it.
    pub fn folder(&mut self, from: &Path, to: &Path) -> Result<(), Error> {
        let meta = fs::symlink_metadata(from).map_err(|e| Error::io("read", from, e))?;
        self.entry(from, to, &meta)?;
        let synced = File::open(to).and_then(|folder| Ok(rustix::fs::syncfs(folder)?));
        synced.map_err(|e| Error::io("sync", to, e))
    }

    fn entry(&mut self, from: &Path, to: &Path, meta: &Metadata) -> Result<(), Error> {
        let kind = meta.file_type();
        if kind.is_socket() {
            self.left_out.push(from.to_owned());
            return Ok(());
        }
        if kind.is_dir() {
            fs::DirBuilder::new().mode(0o700).create(to).map_err(|e| Error::io("make", to, e))?;
            for entry in fs::read_dir(from).map_err(|e| Error::io("read", from, e))? {
                let entry = entry.map_err(|e| Error::io("read", from, e))?;
                let meta = entry.metadata().map_err(|e| Error::io("read", &entry.path(), e))?;
                self.entry(&entry.path(), &to.join(entry.file_name()), &meta)?;
            }
        } else if kind.is_symlink() {
            let target = fs::read_link(from).map_err(|e| Error::io("read", from, e))?;
            std::os::unix::fs::symlink(target, to).map_err(|e| Error::io("make", to, e))?;
        } else if kind.is_fifo() {
            let made = rustix::fs::mknodat(CWD, to, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0);
            made.map_err(|e| Error::io("make", to, e.into()))?;
        } else if kind.is_file() {
            if meta.nlink() > 1 {
                let first = self.linked.entry((meta.dev(), meta.ino())).or_insert_with(|| to.to_owned());
                if first != to {
                    return fs::hard_link(&*first, to).map_err(|e| Error::io("link", to, e));
                }
            }
            self.file(from, to, meta.len())?;
        } else {
            return Err(Error::Device { path: from.to_owned() });
        }
        self.attributes(from, to, meta)
    }

    fn file(&mut self, from: &Path, to: &Path, length: u64) -> Result<(), Error> {
        let source = File::open(from).map_err(|e| Error::io("read", from, e))?;
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
        let target = made.map_err(|e| Error::io("make", to, e))?;
        if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
            (self.progress)(length);
            return Ok(());
        }
        self.data(&source, &target).and_then(|()| target.set_len(length)).map_err(|e| Error::io("copy", from, e))
    }

    /// Copies what is not a hole.
    fn data(&mut self, source: &File, target: &File) -> io::Result<()> {
        let mut at = 0;
        loop {
            let start = match rustix::fs::seek(source, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let end = rustix::fs::seek(source, SeekFrom::Hole(start))?;
            at = start;
            while at < end {
                let (mut read_at, mut write_at) = (at, at);
                let step = usize::try_from((end - at).min(STEP)).unwrap_or(usize::MAX);
                let copied =
                    match rustix::fs::copy_file_range(source, Some(&mut read_at), target, Some(&mut write_at), step) {
                        Ok(copied) => copied,
                        // Some file systems cannot; bytes can always be read and written.
                        Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                            by_hand(source, target, at, step)?
                        }
                        Err(error) => return Err(error.into()),
                    };
                if copied == 0 {
                    return Ok(());
                }
                at += copied as u64;
                (self.progress)(copied as u64);
            }
        }
    }

    /// Owner first: changing it takes bits away that the mode brings back.
    fn attributes(&self, from: &Path, to: &Path, meta: &Metadata) -> Result<(), Error> {
        let failed = |what| move |e: io::Error| Error::io(what, to, e);
        let (uid, gid) = self.owner.unwrap_or((meta.uid(), meta.gid()));
        std::os::unix::fs::lchown(to, Some(uid), Some(gid)).map_err(failed("change the owner of"))?;
        if !meta.is_symlink() {
            let mode = fs::Permissions::from_mode(meta.mode() & 0o7777);
            fs::set_permissions(to, mode).map_err(failed("change the mode of"))?;
        }
        xattrs(from, to).map_err(failed("set the attributes of"))?;
        let time = |seconds, nanos| Timespec { tv_sec: seconds, tv_nsec: nanos };
        let times = Timestamps {
            last_access: time(meta.atime(), meta.atime_nsec()),
            last_modification: time(meta.mtime(), meta.mtime_nsec()),
        };
        let set = rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW);
        set.map_err(|e| Error::io("set the times of", to, e.into()))
    }
}

fn by_hand(source: &File, target: &File, at: u64, step: usize) -> io::Result<usize> {
    use std::os::unix::fs::FileExt as _;
    let mut buffer = vec![0; step.min(1 << 20)];
    let read = source.read_at(&mut buffer, at)?;
    target.write_all_at(&buffer[..read], at)?;
    Ok(read)
}

/// Copies extended attributes, as far as the target's file system has them.
fn xattrs(from: &Path, to: &Path) -> io::Result<()> {
    let mut names = vec![0; XATTR_MAX];
    let length = match rustix::fs::llistxattr(from, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut value = vec![0; XATTR_MAX];
    for name in names[..length].split_inclusive(|b| *b == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        let length = rustix::fs::lgetxattr(from, name, &mut value[..])?;
        match rustix::fs::lsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Why a folder cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk refused something. Check room and permissions.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A device is no data. Remove it from the folder first.
    #[error("{} is a device; a volume holds files only, remove it first", path.display())]
    Device {
        /// The device.
        path: PathBuf,
    },
}

impl Error {
    fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn copy(from: &Path, to: &Path, owner: Option<(u32, u32)>) -> Vec<PathBuf> {
        let mut nothing = |_| {};
        let mut copy = Copy::new(owner, &mut nothing);
        copy.folder(from, to).expect("copied");
        copy.left_out
    }

    #[test]
    fn everything_about_a_folder_is_kept() {
        let dir = tempfile::tempdir().expect("a folder");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("deep")).expect("made");
        fs::write(from.join("deep/file"), "data").expect("written");
        fs::hard_link(from.join("deep/file"), from.join("same")).expect("linked");
        std::os::unix::fs::symlink("deep/file", from.join("link")).expect("linked");
        std::os::unix::fs::chown(from.join("deep/file"), Some(1234), Some(2345)).expect("owned");
        fs::set_permissions(from.join("deep/file"), fs::Permissions::from_mode(0o4640)).expect("mode");
        fs::set_permissions(from.join("deep"), fs::Permissions::from_mode(0o1711)).expect("mode");
        rustix::fs::lsetxattr(from.join("deep/file"), c"user.note", b"kept", XattrFlags::empty())
            .expect("an attribute");
        let mut sparse = File::create(from.join("sparse")).expect("made");
        sparse.set_len(8 << 20).expect("long");
        sparse.write_all(b"begin").expect("written");
        let _socket = UnixListener::bind(from.join("socket")).expect("a socket");
        let left_out = copy(&from, &to, None);

        assert_eq!(left_out, [from.join("socket")]);
        let meta = |path: &str| fs::symlink_metadata(to.join(path)).expect("copied");
        assert_eq!(fs::read_to_string(to.join("same")).expect("read"), "data");
        assert_eq!(meta("same").ino(), meta("deep/file").ino());
        assert_eq!((meta("same").uid(), meta("same").gid(), meta("same").mode() & 0o7777), (1234, 2345, 0o4640));
        assert_eq!(meta("deep").mode() & 0o7777, 0o1711);
        assert_eq!(fs::read_link(to.join("link")).expect("a link"), Path::new("deep/file"));
        let mut value = [0; 16];
        let length = rustix::fs::lgetxattr(to.join("same"), c"user.note", &mut value[..]).expect("the attribute");
        assert_eq!(&value[..length], b"kept");
        assert_eq!(meta("sparse").len(), 8 << 20);
        assert!(meta("sparse").blocks() * 512 < 1 << 20, "holes stay holes");
        let time = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).expect("a time");
        assert_eq!(time(&to.join("deep")), time(&from.join("deep")));
    }

    #[test]
    fn a_new_owner_gets_everything() {
        let dir = tempfile::tempdir().expect("a folder");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).expect("made");
        fs::write(from.join("file"), "data").expect("written");
        copy(&from, &to, Some((999, 998)));
        for path in [to.clone(), to.join("file")] {
            let meta = fs::metadata(path).expect("copied");
            assert_eq!((meta.uid(), meta.gid()), (999, 998));
        }
        assert_eq!(content(&to).expect("counted").files, 1);
    }

    #[test]
    fn a_device_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let from = dir.path().join("from");
        fs::create_dir(&from).expect("made");
        let device = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(CWD, from.join("null"), FileType::CharacterDevice, Mode::RUSR, device).expect("a device");
        let mut nothing = |_| {};
        let refused = Copy::new(None, &mut nothing).folder(&from, &dir.path().join("to"));
        assert!(matches!(refused, Err(Error::Device { .. })));
    }
}
