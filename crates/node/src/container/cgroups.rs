//! What a container sees of its own limits in `/sys/fs/cgroup`.
//!
//! Programs that size themselves (Java, Go, databases) read their limits there. A container has a cgroup namespace, so
//! each hierarchy that is mounted anew begins with the container's own group.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rustix::mount::{MountFlags, mount};

use super::mounts::tmpfs;
use super::root::NO_PROGRAMS;
use super::{During, StartFailure};
use crate::cgroup::{Kind, Layout};
use crate::sys;

const FOLDER: &str = "/sys/fs/cgroup";

/// Mounts the machine's hierarchies, read-only unless the container is privileged.
pub(super) fn show(layout: &Layout, writable: bool) -> Result<(), StartFailure> {
    let folder = Path::new(FOLDER);
    if !folder.is_dir() {
        return Ok(());
    }
    let flags = if writable { NO_PROGRAMS } else { NO_PROGRAMS | MountFlags::RDONLY };
    if layout.kind() == Kind::V2 {
        return mount("cgroup2", folder, "cgroup2", flags, None).during("mounting /sys/fs/cgroup");
    }
    let shown = v1(layout);
    if shown.is_empty() {
        return Ok(());
    }
    tmpfs(folder, 0o755, Some(0), NO_PROGRAMS).during("mounting /sys/fs/cgroup")?;
    for (name, controllers) in shown {
        let target = folder.join(&name);
        let options = std::ffi::CString::new(controllers).during("mounting a cgroup hierarchy")?;
        fs::create_dir(&target).during(format!("making {}", target.display()))?;
        mount("cgroup", &target, "cgroup", flags, Some(options.as_c_str()))
            .during(format!("mounting {}", target.display()))?;
    }
    sys::read_only_mount(folder).during("mounting /sys/fs/cgroup")
}

/// Name of each v1 hierarchy as the machine has it, and its controllers.
fn v1(layout: &Layout) -> BTreeMap<String, String> {
    let mut shown: BTreeMap<String, String> = BTreeMap::new();
    for (controller, mount) in &layout.v1 {
        let Some(name) = mount.file_name().and_then(|name| name.to_str()) else { continue };
        let controllers = shown.entry(name.to_owned()).or_default();
        if !controllers.is_empty() {
            controllers.push(',');
        }
        controllers.push_str(controller);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_that_are_mounted_together_are_shown_together() {
        let mounts = [("cpu", "/c/cpu,cpuacct"), ("cpuacct", "/c/cpu,cpuacct"), ("memory", "/c/memory")];
        let v1 = mounts.map(|(controller, path)| (controller.to_owned(), path.into())).into();
        let shown = super::v1(&Layout { v1, unified: None });
        let pairs: Vec<(&str, &str)> = shown.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(pairs, [("cpu,cpuacct", "cpu,cpuacct"), ("memory", "memory")]);
    }
}
