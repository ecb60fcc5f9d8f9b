//! The v2 driver: the unified tree, with controllers or (on a hybrid machine) for tracking and kill alone.

use std::fs;
use std::path::{Path, PathBuf};

use super::{CgroupError, Driver, devices, keyed_number, number, write};
use crate::shim::spec::Limits;

const WANTED: [&str; 3] = ["cpu", "memory", "pids"];

const DEFAULT_PERIOD_US: u64 = 100_000;

/// The unified tree.
#[derive(Debug)]
pub(super) struct V2 {
    mount: PathBuf,
    controllers: bool,
}

impl V2 {
    pub(super) fn new(mount: PathBuf, controllers: bool) -> Self {
        Self { mount, controllers }
    }

    /// Switches the wanted controllers on for the children of `folder`. A group with processes of its own cannot
    /// (the root excepted), and some machines delegate only a few.
    fn enable(&self, folder: &Path, warnings: &mut Vec<String>) {
        let on = fs::read_to_string(folder.join("cgroup.subtree_control")).unwrap_or_default();
        for controller in WANTED.iter().filter(|c| !on.split_whitespace().any(|have| have == **c)) {
            if let Err(error) = write(&folder.join("cgroup.subtree_control"), &format!("+{controller}")) {
                warnings.push(format!("the {controller} controller cannot be switched on: {error}"));
            }
        }
    }
}

impl Driver for V2 {
    fn folders(&self, path: &Path) -> Vec<PathBuf> {
        vec![self.mount.join(path)]
    }

    fn entrance(&self) -> &'static str {
        "cgroup.procs"
    }

    fn create(&self, path: &Path) -> Result<Vec<String>, CgroupError> {
        let folder = self.mount.join(path);
        fs::create_dir_all(&folder).map_err(|source| CgroupError::Io { path: folder, source })?;
        let mut warnings = Vec::new();
        if self.controllers {
            let mut ancestor = self.mount.clone();
            for part in path.parent().into_iter().flat_map(Path::components) {
                self.enable(&ancestor, &mut warnings);
                ancestor.push(part);
            }
            self.enable(&ancestor, &mut warnings);
        }
        Ok(warnings)
    }

    fn limit(&self, path: &Path, limits: &Limits) -> Vec<String> {
        if !self.controllers {
            return Vec::new();
        }
        let folder = self.mount.join(path);
        let mut wanted: Vec<(&str, String)> = Vec::new();
        if let Some(bytes) = limits.memory_bytes {
            wanted.push(("memory.max", bytes.to_string()));
            // Best effort: swap accounting may be off, and group kill is newer than v2.
            let _ = write(&folder.join("memory.swap.max"), "0");
            let _ = write(&folder.join("memory.oom.group"), "1");
        }
        if let Some(pids) = limits.pids {
            wanted.push(("pids.max", pids.to_string()));
        }
        if let Some(quota) = limits.cpu_quota_us {
            wanted.push(("cpu.max", format!("{quota} {}", limits.cpu_period_us.unwrap_or(DEFAULT_PERIOD_US))));
        }
        if let Some(shares) = limits.cpu_shares {
            wanted.push(("cpu.weight", weight(shares).to_string()));
        }
        let mut warnings = Vec::new();
        for (file, value) in wanted {
            if let Err(error) = write(&folder.join(file), &value) {
                warnings.push(format!("{file} = {value} is not enforced: {error}"));
            }
        }
        warnings
    }

    fn restrict_devices(&self, path: &Path) -> bool {
        devices::restrict_v2(&self.mount.join(path)).is_ok()
    }

    fn oom_kills(&self, path: &Path) -> Option<u64> {
        keyed_number(&self.mount.join(path).join("memory.events"), "oom_kill")
    }

    fn cpu_ns(&self, path: &Path) -> Option<u64> {
        if !self.controllers {
            return None;
        }
        Some(keyed_number(&self.mount.join(path).join("cpu.stat"), "usage_usec")?.saturating_mul(1000))
    }

    fn memory_bytes(&self, path: &Path) -> Option<u64> {
        let folder = self.mount.join(path);
        let used = number(&folder.join("memory.current"))?;
        let idle = keyed_number(&folder.join("memory.stat"), "inactive_file").unwrap_or(0);
        Some(used.saturating_sub(idle))
    }
}

/// v1 shares (2..=262144) as v2 weight (1..=10000), by the mapping that container runtimes share.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_the_files_of_version_2() {
        let dir = tempfile::tempdir().unwrap();
        let driver = V2::new(dir.path().to_owned(), true);
        for (folder, files) in [
            ("", &["cgroup.subtree_control"][..]),
            ("a", &["cgroup.subtree_control"]),
            ("a/p", &["memory.max", "memory.swap.max", "memory.oom.group", "cpu.max", "cpu.weight", "pids.max"]),
        ] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
            files.iter().for_each(|file| fs::write(dir.path().join(folder).join(file), "").unwrap());
        }
        let path = Path::new("a/p");
        assert_eq!(driver.create(path).unwrap(), Vec::<String>::new());
        let limits = Limits {
            memory_bytes: Some(4096),
            cpu_quota_us: Some(50_000),
            cpu_period_us: Some(20_000),
            cpu_shares: Some(1024),
            pids: Some(7),
        };
        assert_eq!(driver.limit(path, &limits), Vec::<String>::new());
        let read = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
        assert_eq!(read("a/p/memory.max"), "4096");
        assert_eq!(read("a/p/memory.swap.max"), "0");
        assert_eq!(read("a/p/memory.oom.group"), "1");
        assert_eq!(read("a/p/cpu.max"), "50000 20000");
        assert_eq!(read("a/p/cpu.weight"), "39");
        assert_eq!(read("a/p/pids.max"), "7");
        // The last of the three writes; a real file adds them up.
        assert_eq!(read("cgroup.subtree_control"), "+pids");
        assert_eq!(read("a/cgroup.subtree_control"), "+pids");
    }

    /// Not with a fake tree: a v2 tree without controllers has filters, too.
    #[test]
    fn a_real_process_opens_harmless_devices_only() {
        let layout = super::super::Layout::detect().unwrap();
        let Some(mount) = layout.unified else { return };
        let driver = V2::new(mount.clone(), false);
        let path = Path::new("statefuld-test-devices").join(std::process::id().to_string());
        driver.create(&path).unwrap();
        // Twice is once: a container that starts again finds its filter.
        assert!(driver.restrict_devices(&path) && driver.restrict_devices(&path));
        let join = format!("echo $$ > {}/cgroup.procs && exec 3</dev/null && echo in", mount.join(&path).display());
        let run = |then: &str| {
            let script = format!("{join} && {then}");
            std::process::Command::new("sh").arg("-c").arg(script).output().unwrap()
        };
        let node = tempfile::tempdir().unwrap();
        let kmsg = node.path().join("kmsg");
        let harmless = run("echo out");
        assert_eq!(String::from_utf8_lossy(&harmless.stdout), "in\nout\n", "{harmless:?}");
        let other = run(&format!("mknod {0} c 1 11 && exec 3<{0} && echo out", kmsg.display()));
        assert_eq!(String::from_utf8_lossy(&other.stdout), "in\n", "{other:?}");
        assert!(kmsg.exists() && String::from_utf8_lossy(&other.stderr).contains("not permitted"), "{other:?}");
        fs::remove_dir(mount.join(&path)).unwrap();
        fs::remove_dir(mount.join("statefuld-test-devices")).unwrap();
    }

    #[test]
    fn usage_is_read_without_idle_files() {
        let dir = tempfile::tempdir().unwrap();
        let driver = V2::new(dir.path().to_owned(), true);
        fs::create_dir(dir.path().join("p")).unwrap();
        let path = Path::new("p");
        assert_eq!((driver.cpu_ns(path), driver.memory_bytes(path)), (None, None));
        fs::write(dir.path().join("p/cpu.stat"), "usage_usec 12\nuser_usec 5\n").unwrap();
        fs::write(dir.path().join("p/memory.current"), "1000\n").unwrap();
        fs::write(dir.path().join("p/memory.stat"), "anon 1\ninactive_file 300\n").unwrap();
        assert_eq!((driver.cpu_ns(path), driver.memory_bytes(path)), (Some(12_000), Some(700)));
    }

    #[test]
    fn a_tree_for_tracking_alone_is_never_given_controllers() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.subtree_control"), "").unwrap();
        let driver = V2::new(dir.path().to_owned(), false);
        driver.create(Path::new("a")).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap(), "");
        assert!(driver.limit(Path::new("a"), &Limits { pids: Some(7), ..Limits::default() }).is_empty());
    }

    #[test]
    fn shares_map_onto_the_whole_range_of_weights() {
        assert_eq!((weight(0), weight(2), weight(1024), weight(262_144), weight(u64::MAX)), (1, 1, 39, 10_000, 10_000));
    }
}
