//! Unpacking a layer onto what lies below it.
//!
//! The folder given is the image's root as far as it is known: an overlay of the layers below with this layer's own
//! folder on top, or for the lowest layer that folder alone. So the kernel itself turns removals into
//! whiteouts and shows links and folders of lower layers. It also keeps everything inside: every path is
//! looked up by `openat2` with that folder as the root of the lookup, so that neither `..` nor a link, however it came
//! there, leads out; and nothing is ever opened through a last link.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fchmod, fchown, fsetxattr, futimens, linkat, mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;

use super::Limits;
use super::plan::{Action, MAX_DEPTH, Meta, Node, Refused, plan, shown};
use crate::tar::{Archive, TarError};

/// How a path is looked up: the image's root is the root, and no other file system is entered.
const LOOKUP: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);
/// How often a lookup is tried again that a rename elsewhere on the machine disturbed.
const LOOKUP_TRIES: usize = 64;
/// Mode of folders that a layer needs and does not list.
const IMPLIED_MODE: u32 = 0o755;
/// Bytes copied at a time.
const CHUNK: usize = 256 << 10;

/// Unpacks an uncompressed layer; returns how many bytes its files have.
pub fn apply(root: BorrowedFd<'_>, layer: impl Read, limits: &Limits) -> Result<u64, ApplyError> {
    let mut unpacking =
        Unpacking { root, seen: HashSet::new(), folders: Vec::new(), parent: None, buffer: vec![0; CHUNK], bytes: 0 };
    let mut archive = Archive::new(layer);
    let mut entries = 0u64;
    while let Some(entry) = archive.next_entry()? {
        entries += 1;
        if entries > limits.entries {
            return Err(ApplyError::Entries(limits.entries));
        }
        let action = plan(&entry)?;
        let failed = |error: Failure| error.at(&entry.path);
        unpacking.carry_out(action, &mut archive).map_err(failed)?;
    }
    unpacking.finish();
    // What follows the archive's end belongs to the layer's digest.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(TarError::Io)?;
    Ok(unpacking.bytes)
}

/// A layer on its way.
struct Unpacking<'a> {
    root: BorrowedFd<'a>,
    /// What this layer made, and the folders above: whiteouts are about lower layers only.
    seen: HashSet<PathBuf>,
    /// Times of folders, set at the end: making things in them changes them.
    folders: Vec<(PathBuf, (i64, u32))>,
    /// The folder that the last entry lay in; the next one mostly lies there too.
    parent: Option<(PathBuf, OwnedFd)>,
    buffer: Vec<u8>,
    bytes: u64,
}

impl Unpacking<'_> {
    fn carry_out(&mut self, action: Action, data: &mut impl Read) -> Result<(), Failure> {
        match action {
            Action::Nothing => Ok(()),
            Action::Root(meta) => {
                let root = openat(self.root, ".", folder_flags(), Mode::empty())?;
                self.folders.push((PathBuf::from("."), meta.mtime));
                dress(&root, &meta)
            }
            Action::Make { path, node, meta } => self.make(&path, &node, &meta, data),
            Action::Whiteout(path) => self.hide(&path),
            Action::Opaque(path) => self.empty(&path),
        }
    }

    fn make(&mut self, path: &Path, node: &Node, meta: &Meta, data: &mut impl Read) -> Result<(), Failure> {
        let (above, name) = split(path);
        let parent = self.parent_of(above)?;
        let there = match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error.into()),
        };
        let stays = *node == Node::Folder && there == Some(FileType::Directory);
        // A hard link to what the new name stands for would remove its own target; `plan` saw to equal names only.
        if there.is_some() && !stays {
            remove(&parent, name, 0)?;
        }
        match node {
            Node::File => self.file(&parent, name, meta, data)?,
            Node::Folder => {
                if !stays {
                    mkdirat(&parent, name, Mode::from_raw_mode(0o700))?;
                }
                let folder = openat(&parent, name, folder_flags(), Mode::empty())?;
                dress(&folder, meta)?;
                self.folders.push((path.to_owned(), meta.mtime));
            }
            Node::Symlink(target) => {
                symlinkat(target, &parent, name)?;
                dress_by_name(&parent, name, meta, None)?;
            }
            Node::HardLink(target) => {
                let (above, target) = split(target);
                let from = self.look_up(above)?.ok_or(Failure::NoTarget)?;
                match linkat(&from, target, &parent, name, AtFlags::empty()) {
                    Err(Errno::NOENT) => return Err(Failure::NoTarget),
                    result => result?,
                }
            }
            Node::Fifo => {
                mknodat(&parent, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
                dress_by_name(&parent, name, meta, Some(meta.mode))?;
            }
        }
        // Only these leave the folder that was remembered what it was.
        if there.is_none() && !matches!(node, Node::Symlink(_)) {
            self.parent = Some((above.to_owned(), parent));
        }
        self.note(path);
        Ok(())
    }

    fn file(&mut self, parent: &OwnedFd, name: &OsStr, meta: &Meta, data: &mut impl Read) -> Result<(), Failure> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = std::fs::File::from(openat(parent, name, flags, Mode::from_raw_mode(0o600))?);
        loop {
            let n = match data.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::Layer(error)),
            };
            file.write_all(&self.buffer[..n])?;
            self.bytes += n as u64;
        }
        dress(&file, meta)?;
        Ok(futimens(&file, &times(meta.mtime))?)
    }

    /// The folder that something is to be made in; made where it is missing.
    fn parent_of(&mut self, path: &Path) -> Result<OwnedFd, Failure> {
        if let Some((known, folder)) = self.parent.take()
            && known == path
        {
            return Ok(folder);
        }
        let folder = match self.look_up(path)? {
            Some(folder) => folder,
            None => self.imply(path)?,
        };
        // Through links, folders could come to lie in one another without end.
        let real = std::fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd())).map_err(|_| Failure::TooDeep)?;
        if real.components().count() > MAX_DEPTH { Err(Failure::TooDeep) } else { Ok(folder) }
    }

    /// A folder of the image, links followed; None where there is none.
    fn look_up(&self, path: &Path) -> Result<Option<OwnedFd>, Failure> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        for _ in 0..LOOKUP_TRIES {
            match openat2(self.root, path, flags, Mode::empty(), LOOKUP) {
                Ok(folder) => return Ok(Some(folder)),
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// Makes a folder that no entry listed, and those above it.
    fn imply(&mut self, path: &Path) -> Result<OwnedFd, Failure> {
        let mut made = PathBuf::new();
        let mut current = self.look_up(&made)?.ok_or(Failure::NoTarget)?;
        for name in path.iter() {
            made.push(name);
            if let Some(folder) = self.look_up(&made)? {
                current = folder;
                continue;
            }
            match mkdirat(&current, name, Mode::from_raw_mode(IMPLIED_MODE)) {
                Err(Errno::EXIST) => return Err(Failure::Dangling),
                result => result?,
            }
            let folder = openat(&current, name, folder_flags(), Mode::empty())?;
            fchmod(&folder, Mode::from_raw_mode(IMPLIED_MODE))?;
            current = folder;
        }
        Ok(current)
    }

    /// What lower layers have there is gone; what this layer made stays.
    fn hide(&mut self, path: &Path) -> Result<(), Failure> {
        self.parent = None;
        if self.seen.contains(path) {
            return self.empty(path);
        }
        let (above, name) = split(path);
        match self.look_up(above)? {
            Some(parent) => Ok(remove(&parent, name, 0)?),
            None => Ok(()),
        }
    }

    /// What lower layers have in a folder is gone.
    fn empty(&mut self, path: &Path) -> Result<(), Failure> {
        self.parent = None;
        let mut folders = vec![path.to_owned()];
        while let Some(folder) = folders.pop() {
            let (above, name) = split(&folder);
            let Some(parent) = self.look_up(above)? else { continue };
            let name = if name.is_empty() { OsStr::new(".") } else { name };
            let opened = match openat(&parent, name, folder_flags(), Mode::empty()) {
                Ok(opened) => opened,
                // A file or a link that this layer made took its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(error) => return Err(error.into()),
            };
            for name in names_in(&opened)? {
                let child = folder.join(&name);
                if self.seen.contains(&child) {
                    folders.push(child);
                } else {
                    remove(&opened, &name, 0)?;
                }
            }
        }
        Ok(())
    }

    /// Remembers that this layer made it.
    fn note(&mut self, path: &Path) {
        for path in path.ancestors() {
            if path.as_os_str().is_empty() || !self.seen.insert(path.to_owned()) {
                return;
            }
        }
    }

    /// Folders get their times, the inner ones first. One that was replaced meanwhile does not matter.
    fn finish(&mut self) {
        for (path, mtime) in std::mem::take(&mut self.folders).into_iter().rev() {
            let (above, name) = split(&path);
            if let Ok(Some(parent)) = self.look_up(above)
                && let Ok(folder) = openat(&parent, name, folder_flags(), Mode::empty())
            {
                let _ = futimens(&folder, &times(mtime));
            }
        }
    }
}

fn folder_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// The folder above and the name in it.
fn split(path: &Path) -> (&Path, &OsStr) {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => (parent, name),
        _ => (Path::new(""), path.as_os_str()),
    }
}

/// Owner, mode and attributes of something open. In this order: each change takes away what the kernel trusts less after it.
fn dress(file: impl AsFd, meta: &Meta) -> Result<(), Failure> {
    fchown(&file, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))?;
    fchmod(&file, Mode::from_raw_mode(meta.mode))?;
    for (name, value) in &meta.xattrs {
        match fsetxattr(&file, name.as_os_str(), value, XattrFlags::empty()) {
            // As container runtimes do: not every file system has them.
            Err(Errno::OPNOTSUPP) => {}
            result => result?,
        }
    }
    Ok(())
}

/// The same for what cannot be opened.
fn dress_by_name(parent: &OwnedFd, name: &OsStr, meta: &Meta, mode: Option<u32>) -> Result<(), Failure> {
    let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
    chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if let Some(mode) = mode {
        chmodat(parent, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
    }
    Ok(utimensat(parent, name, &times(meta.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Removes a file, or a folder with all in it; links are removed, never followed.
fn remove(parent: impl AsFd, name: &OsStr, depth: usize) -> io::Result<()> {
    match unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    if depth > MAX_DEPTH {
        return Err(io::Error::other("folders lie too deep in one another to be removed"));
    }
    let folder = openat(&parent, name, folder_flags(), Mode::empty())?;
    for child in names_in(&folder)? {
        remove(&folder, &child, depth + 1)?;
    }
    Ok(unlinkat(&parent, name, AtFlags::REMOVEDIR)?)
}

fn names_in(folder: &OwnedFd) -> io::Result<Vec<std::ffi::OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

/// Why one entry could not be unpacked.
enum Failure {
    Io(io::Error),
    /// The layer itself cannot be read further.
    Layer(io::Error),
    NoTarget,
    Dangling,
    TooDeep,
}

impl Failure {
    fn at(self, path: &[u8]) -> ApplyError {
        let refused = |why: &str| ApplyError::Refused(Refused { path: shown(path), why: why.to_owned() });
        match self {
            Self::Io(source) => ApplyError::Io { path: shown(path), source },
            Self::Layer(source) => ApplyError::Archive(TarError::Io(source)),
            Self::NoTarget => refused("its hard link leads to nothing"),
            Self::Dangling => refused("a link that leads nowhere, or a file, is in the place of a folder above it"),
            Self::TooDeep => refused("it lies in too many folders"),
        }
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A layer that was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It is no archive, or one that is not taken.
    #[error(transparent)]
    Archive(#[from] TarError),
    /// An entry is not taken.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// More entries than any real layer has.
    #[error("it has more than {0} entries")]
    Entries(u64),
    /// The file system says no. Look for its space and kind.
    #[error("unpacking {path:?}: {source}")]
    Io {
        /// The entry.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}
