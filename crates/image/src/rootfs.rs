//! Looking into an image before anything runs from it.

use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use crate::overlay::Stack;

/// A file of a stack of layers (the lowest first), or None where there is none. To the lookup the image's root is the
/// root: no link leads out. More than `max` bytes, or anything but a file, is an error.
pub fn read_file(layers: &[impl AsRef<Path>], path: &str, max: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(root) = open(layers)? else { return Ok(None) };
    let look = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    // Not blocking, or opening a pipe would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match openat2(&root, path, flags, Mode::empty(), look) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let stat = fstat(&file)?;
    let refuse = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidData, format!("{path} of the image {why}")));
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return refuse("is no file");
    }
    let mut text = Vec::new();
    std::fs::File::from(file).take(max + 1).read_to_end(&mut text)?;
    if text.len() as u64 > max { refuse("is too long") } else { Ok(Some(text)) }
}

fn open(layers: &[impl AsRef<Path>]) -> io::Result<Option<OwnedFd>> {
    match layers {
        [] => Ok(None),
        [only] => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            Ok(Some(rustix::fs::open(only.as_ref(), flags, Mode::empty())?))
        }
        several => Stack { lower: several, upper: None }.mount(MountAttrFlags::MOUNT_ATTR_NODEV).map(Some),
    }
}
