//! The v1 driver: one hierarchy per controller.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{CgroupError, Driver, Layout, devices, keyed_number, number, write};
use crate::shim::spec::Limits;

const DEFAULT_PERIOD_US: u64 = 100_000;

/// Controllers and where they are mounted.
#[derive(Debug)]
pub(super) struct V1 {
    mounts: BTreeMap<String, PathBuf>,
}

impl V1 {
    pub(super) fn new(layout: &Layout) -> Self {
        Self { mounts: layout.v1.clone() }
    }

    fn set(&self, controller: &str, path: &Path, file: &str, value: u64, warnings: &mut Vec<String>) {
        let result = match self.mounts.get(controller) {
            Some(mount) => write(&mount.join(path).join(file), &value.to_string()).map_err(|e| e.to_string()),
            None => Err(format!("no {controller} controller is mounted")),
        };
        if let Err(why) = result {
            warnings.push(format!("{file} = {value} is not enforced: {why}"));
        }
    }
}

impl Driver for V1 {
    fn folders(&self, path: &Path) -> Vec<PathBuf> {
        // Controllers that are mounted together share a folder.
        let mut all: Vec<PathBuf> = self.mounts.values().map(|mount| mount.join(path)).collect();
        all.sort();
        all.dedup();
        all
    }

    fn entrance(&self) -> &'static str {
        // One thread that moves itself needs no lock of the whole machine.
        "tasks"
    }

    fn create(&self, path: &Path) -> Result<Vec<String>, CgroupError> {
        for folder in self.folders(path) {
            fs::create_dir_all(&folder).map_err(|source| CgroupError::Io { path: folder, source })?;
        }
        Ok(Vec::new())
    }

    fn limit(&self, path: &Path, limits: &Limits) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(bytes) = limits.memory_bytes {
            // Memory with swap may never be less than memory: so it is set before one that grows, and after one that
            // shrinks. Without swap accounting the file is missing, and swap is not limited: as on any such machine.
            let with_swap = "memory.memsw.limit_in_bytes";
            self.set("memory", path, with_swap, bytes, &mut Vec::new());
            self.set("memory", path, "memory.limit_in_bytes", bytes, &mut warnings);
            self.set("memory", path, with_swap, bytes, &mut Vec::new());
        }
        if let Some(pids) = limits.pids {
            self.set("pids", path, "pids.max", pids, &mut warnings);
        }
        if let Some(quota) = limits.cpu_quota_us {
            let period = limits.cpu_period_us.unwrap_or(DEFAULT_PERIOD_US);
            self.set("cpu", path, "cpu.cfs_period_us", period, &mut warnings);
            self.set("cpu", path, "cpu.cfs_quota_us", quota, &mut warnings);
        }
        if let Some(shares) = limits.cpu_shares {
            self.set("cpu", path, "cpu.shares", shares, &mut warnings);
        }
        warnings
    }

    fn restrict_devices(&self, path: &Path) -> bool {
        let Some(mount) = self.mounts.get("devices") else { return false };
        devices::restrict_v1(&mount.join(path)).is_ok()
    }

    fn oom_kills(&self, path: &Path) -> Option<u64> {
        keyed_number(&self.mounts.get("memory")?.join(path).join("memory.oom_control"), "oom_kill")
    }

    fn cpu_ns(&self, path: &Path) -> Option<u64> {
        number(&self.mounts.get("cpuacct")?.join(path).join("cpuacct.usage"))
    }

    fn memory_bytes(&self, path: &Path) -> Option<u64> {
        let folder = self.mounts.get("memory")?.join(path);
        let used = number(&folder.join("memory.usage_in_bytes"))?;
        let idle = keyed_number(&folder.join("memory.stat"), "total_inactive_file").unwrap_or(0);
        Some(used.saturating_sub(idle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake(files: &[&str]) -> (tempfile::TempDir, V1) {
        let dir = tempfile::tempdir().unwrap();
        let mounts = ["memory", "cpu", "pids"].map(|c| (c.to_owned(), dir.path().join(c))).into();
        let driver = V1 { mounts };
        driver.create(Path::new("p")).unwrap();
        for file in files {
            fs::write(dir.path().join(file), "").unwrap();
        }
        (dir, driver)
    }

    #[test]
    fn limits_become_the_files_of_version_1() {
        let (dir, driver) = fake(&[
            "memory/p/memory.limit_in_bytes",
            "cpu/p/cpu.cfs_period_us",
            "cpu/p/cpu.cfs_quota_us",
            "cpu/p/cpu.shares",
            "pids/p/pids.max",
        ]);
        let limits = Limits {
            memory_bytes: Some(1 << 20),
            cpu_quota_us: Some(50_000),
            cpu_shares: Some(512),
            pids: Some(7),
            cpu_period_us: None,
        };
        assert_eq!(driver.limit(Path::new("p"), &limits), Vec::<String>::new());
        let read = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
        assert_eq!(read("memory/p/memory.limit_in_bytes"), "1048576");
        assert_eq!(read("cpu/p/cpu.cfs_quota_us"), "50000");
        assert_eq!(read("cpu/p/cpu.cfs_period_us"), "100000");
        assert_eq!(read("cpu/p/cpu.shares"), "512");
        assert_eq!(read("pids/p/pids.max"), "7");
    }

    #[test]
    fn a_missing_controller_is_a_warning() {
        let (_dir, driver) = fake(&[]);
        let warnings = driver.limit(Path::new("p"), &Limits { pids: Some(7), ..Limits::default() });
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("pids.max"), "{warnings:?}");
    }

    #[test]
    fn usage_is_read_without_idle_files() {
        let (dir, mut driver) = fake(&[]);
        driver.mounts.insert("cpuacct".to_owned(), dir.path().join("cpuacct"));
        driver.create(Path::new("p")).unwrap();
        assert_eq!((driver.cpu_ns(Path::new("p")), driver.memory_bytes(Path::new("p"))), (None, None));
        fs::write(dir.path().join("cpuacct/p/cpuacct.usage"), "12345\n").unwrap();
        fs::write(dir.path().join("memory/p/memory.usage_in_bytes"), "1000\n").unwrap();
        fs::write(dir.path().join("memory/p/memory.stat"), "cache 1\ntotal_inactive_file 300\n").unwrap();
        assert_eq!((driver.cpu_ns(Path::new("p")), driver.memory_bytes(Path::new("p"))), (Some(12345), Some(700)));
    }

    #[test]
    fn oom_kills_are_read() {
        let (dir, driver) = fake(&[]);
        assert_eq!(driver.oom_kills(Path::new("p")), None);
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        fs::write(dir.path().join("memory/p/memory.oom_control"), text).unwrap();
        assert_eq!(driver.oom_kills(Path::new("p")), Some(3));
    }
}
