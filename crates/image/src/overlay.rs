//! Layers put on top of one another by the kernel (overlayfs).

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

/// Longest text that the kernel takes in one setting.
const MAX_SETTING: usize = 255;

/// A stack of layers under a folder that takes the writes.
#[derive(Clone, Copy, Debug)]
pub struct Stack<'a, P> {
    /// Read-only layers, the lowest first.
    pub lower: &'a [P],
    /// Folder that takes the writes, and an empty one on the same file system for the kernel's use. None for a stack
    /// that is only read; then there are at least two layers.
    pub upper: Option<(&'a Path, &'a Path)>,
}

impl<P: AsRef<Path>> Stack<'_, P> {
    /// The stack as a mount that is not attached anywhere: whoever holds the descriptor sees it, nobody else.
    pub fn mount(&self, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
        // Layers are named by descriptor: such names are short, need no escapes, and are the same to every process.
        let open = |path: &Path| -> io::Result<OwnedFd> {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).map_err(|e| about(path, e.into()))
        };
        let lower: Vec<OwnedFd> = self.lower.iter().rev().map(|p| open(p.as_ref())).collect::<Result<_, _>>()?;
        let upper = self.upper.map(|(upper, work)| Ok::<_, io::Error>((open(upper)?, open(work)?))).transpose()?;
        let names: Vec<String> = lower.iter().map(name).collect();
        match configure(&names, upper.as_ref(), true, attributes) {
            // Before 6.5 the kernel takes all layers in one setting only.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                if names.join(":").len() > MAX_SETTING {
                    let message = format!("stacking {} layers needs Linux 6.5 or newer", names.len());
                    return Err(io::Error::new(io::ErrorKind::Unsupported, message));
                }
                configure(&names, upper.as_ref(), false, attributes)
            }
            result => result,
        }
    }
}

fn configure(
    lower: &[String],
    upper: Option<&(OwnedFd, OwnedFd)>,
    one_by_one: bool,
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: &str| fsconfig_set_string(context.as_fd(), key, value);
    if one_by_one {
        for name in lower {
            set("lowerdir+", name)?;
        }
    } else {
        set("lowerdir", &lower.join(":"))?;
    }
    match upper {
        Some((upper, work)) => {
            set("upperdir", &name(upper))?;
            set("workdir", &name(work))?;
        }
        None => fsconfig_set_flag(context.as_fd(), "ro")?,
    }
    // Layers come from strangers: nothing in them may say that a file's content or a folder lies elsewhere.
    set("metacopy", "off")?;
    set("redirect_dir", "nofollow")?;
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn name(folder: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", folder.as_raw_fd())
}

/// An error that names what it is about.
fn about(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
