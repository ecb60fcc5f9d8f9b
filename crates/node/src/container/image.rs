//! The root of a container that runs from an image.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};

use image::overlay::Stack;
use rustix::mount::MountAttrFlags;

use super::mounts::{attach, copy_tree, make_target};
use super::{During, StartFailure};
use crate::shim::spec::Mount;

/// Folders that kernel file systems are mounted on.
const KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Puts the layers (the lowest first) at `stage`, under an overlay that writes to a fresh folder in `layers_folder`. Device
/// nodes in it mean nothing: the container's devices are mounted on top. `stacked` is called before it is put there.
pub(super) fn mount(
    layers: &[PathBuf],
    layers_folder: &Path,
    stage: &Path,
    stacked: impl FnOnce() -> Result<(), StartFailure>,
) -> Result<(), StartFailure> {
    let (upper, work, empty) = (layers_folder.join("upper"), layers_folder.join("work"), layers_folder.join("empty"));
    for folder in [&upper, &work, &empty] {
        fs::create_dir(folder).during(format!("making {}", folder.display()))?;
    }
    let lower = if layers.is_empty() { std::slice::from_ref(&empty) } else { layers };
    let top = lower.last().unwrap_or(&empty);
    // The upper's own owner and mode are what the container sees of its root.
    let doing = format!("opening the image's layer {}", top.display());
    let meta = fs::metadata(top).during(&doing)?;
    chown(&upper, Some(meta.uid()), Some(meta.gid())).during(&doing)?;
    fs::set_permissions(&upper, meta.permissions()).during(&doing)?;
    let stack = Stack { lower, upper: Some((&upper, &work)) };
    let tree = stack.mount(MountAttrFlags::MOUNT_ATTR_NODEV).during("stacking the image's layers")?;
    rustix::fs::fstat(tree.as_fd()).during("stacking the image's layers")?;
    stacked()?;
    attach(&tree, stage).during("mounting the root")
}

/// Stacks layers, the lowest first, that nobody writes to and no program of is executed. There are at least two.
pub(super) fn read_only(layers: &[PathBuf]) -> Result<OwnedFd, StartFailure> {
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Stack { lower: layers, upper: None }.mount(attributes).during("stacking the layers of a volume's image")
}

/// What kernel file systems are mounted on are folders, whatever the image has in their place: a link there would put
/// them elsewhere.
pub(super) fn plain_folders() -> Result<(), StartFailure> {
    for path in KERNEL {
        let doing = format!("making {path}");
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() => continue,
            Ok(_) => fs::remove_file(path).during(&doing)?,
            Err(_) => {}
        }
        fs::create_dir(path).during(&doing)?;
    }
    Ok(())
}

/// Keeps the folders that the image wants to write to writable in a root that is not, unless something of the pod is
/// mounted there.
pub(super) fn volumes(volumes: &[PathBuf], mounts: &[Mount]) -> Result<(), StartFailure> {
    for path in volumes.iter().filter(|v| !mounts.iter().any(|m| m.target == **v)) {
        let doing = format!("keeping the image's volume {} writable", path.display());
        make_target(path, true).during(&doing)?;
        let tree = copy_tree(path, false).during(&doing)?;
        attach(&tree, path).during(&doing)?;
    }
    Ok(())
}
