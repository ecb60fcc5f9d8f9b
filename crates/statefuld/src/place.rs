//! The data directory: what lies where in it, and the lock that lets one statefuld use it at a time.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

/// Where everything lies when nothing else is said.
pub const DEFAULT: &str = "/var/lib/statefuld";

/// Paths below one data directory.
#[derive(Clone, Debug)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// The directory, made absolute; it need not exist yet.
    pub fn new(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).with_context(|| format!("{}: not a usable path", path.display()))?;
        Ok(Self(path))
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The admin's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.0.join("kubeconfig")
    }

    /// The running daemon's process id.
    pub fn pid_file(&self) -> PathBuf {
        self.0.join("statefuld.pid")
    }

    /// The socket over which `down` speaks to the daemon.
    pub fn control_socket(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    /// What a daemon in the background prints.
    pub fn log(&self) -> PathBuf {
        self.0.join("statefuld.log")
    }

    /// The embedded store's file.
    pub fn store(&self) -> PathBuf {
        self.0.join("store").join("statefuld.redb")
    }

    /// The folders of further nodes than the first.
    pub fn nodes(&self) -> PathBuf {
        self.0.join("nodes")
    }

    /// The authority's and the server's keys.
    pub fn pki(&self) -> PathBuf {
        self.0.join("pki")
    }

    /// The process id of the daemon that holds the directory, if one does.
    pub fn owner(&self) -> Option<i32> {
        let file = OpenOptions::new().read(true).write(true).open(self.0.join("statefuld.lock")).ok()?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => None,
            Err(_) => Some(self.recorded_pid().unwrap_or(0)),
        }
    }

    fn recorded_pid(&self) -> Option<i32> {
        std::fs::read_to_string(self.pid_file()).ok()?.trim().parse().ok()
    }

    /// Makes the directory and takes its lock; the kernel gives it back when the process ends.
    pub fn lock(&self) -> Result<Lock> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.0).with_context(|| {
            format!("the data directory {} cannot be made; choose another with --data-dir", self.0.display())
        })?;
        let path = self.0.join("statefuld.lock");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).with_context(|| {
                format!("{} cannot be written; run as root, or choose another --data-dir", path.display())
            })?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let who = self.recorded_pid().map_or_else(String::new, |pid| format!(" (process {pid})"));
            bail!(
                "the data directory {dir} is in use by another statefuld{who}; \
                 stop it with `statefuld down --data-dir {dir}`, or choose another --data-dir",
                dir = self.0.display()
            );
        }
        Ok(Lock { _file: file, pid_file: self.pid_file() })
    }
}

/// The directory's lock. Dropping it removes the pid file.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    pid_file: PathBuf,
}

impl Lock {
    /// Says who holds the lock, for people and scripts.
    pub fn write_pid(&self) -> Result<()> {
        let mut file =
            File::create(&self.pid_file).with_context(|| format!("{} cannot be written", self.pid_file.display()))?;
        writeln!(file, "{}", std::process::id())
            .with_context(|| format!("{} cannot be written; is the disk full?", self.pid_file.display()))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Absent, if nothing was written: then there is nothing to remove.
        let _ = std::fs::remove_file(&self.pid_file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_has_one_owner() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let data = DataDir::new(dir.path()).expect("a path");
        let lock = data.lock().expect("nobody has it");
        lock.write_pid().expect("the pid file");
        assert_eq!(data.owner(), Some(i32::try_from(std::process::id()).expect("pids are small")));
        let refused = data.lock().expect_err("it is taken").to_string();
        assert!(refused.contains("is in use by another statefuld (process"), "{refused}");
        drop(lock);
        assert_eq!(data.owner(), None);
        assert!(!data.pid_file().exists());
    }
}
