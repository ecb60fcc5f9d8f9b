//! Cgroups of a pod: limits, whole-pod kill, counts of OOM kills.
//!
//! ```text
//!   <root>/<pod>/shim            the shim itself
//!   <root>/<pod>/c/<container>   everything a container runs, execs included
//! ```
//!
//! The same relative path is made in every hierarchy in use. Two drivers know the two versions' files:
//! [`v1`] writes controllers that are mounted one by one, [`v2`] the unified tree; a hybrid machine has both,
//! the second for kill and tracking only. Nothing outside the pod's own path is ever written, except the
//! `cgroup.subtree_control` of its ancestors on v2.
//!
//! Run for real: v1 with a v2 tree beside it. The pure v2 driver is checked against fake trees only.

mod devices;
mod layout;
mod v1;
mod v2;

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};

pub use layout::{Kind, Layout};

use crate::shim::spec::Limits;

/// What the version-specific files of one hierarchy (or set of hierarchies) are.
trait Driver: std::fmt::Debug + Send + Sync {
    /// The folders that make up the group at `path`, one per hierarchy.
    fn folders(&self, path: &Path) -> Vec<PathBuf>;
    /// The file of a folder through which a process with one thread enters by itself.
    fn entrance(&self) -> &'static str;
    /// Makes the group usable: folders exist, controllers are switched on. Returns what was refused, in words.
    fn create(&self, path: &Path) -> Result<Vec<String>, CgroupError>;
    /// Sets limits. Returns what was refused, in words.
    fn limit(&self, path: &Path, limits: &Limits) -> Vec<String>;
    /// Forbids all devices but the harmless ones. False where this driver cannot.
    fn restrict_devices(&self, path: &Path) -> bool;
    /// OOM kills in the group so far; None where this driver does not count them.
    fn oom_kills(&self, path: &Path) -> Option<u64>;

    /// Processor time that the group has used, in nanoseconds; None where this driver does not count it.
    fn cpu_ns(&self, path: &Path) -> Option<u64>;

    /// Memory that the group needs: what it uses, without files that nothing has looked at for long. None where
    /// this driver does not count it.
    fn memory_bytes(&self, path: &Path) -> Option<u64>;
}

/// What a group uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Processor time so far, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory that it needs now.
    pub memory_bytes: u64,
}

/// The cgroup of a pod, whether it exists or not.
#[derive(Clone, Debug)]
pub struct PodCgroup {
    group: Group,
}

impl PodCgroup {
    /// The pod's group at a path relative to each hierarchy's mount, e.g. `statefuld-1a2b/pod-<uid>`.
    pub fn new(layout: &Layout, path: &str) -> Result<Self, CgroupError> {
        let path = PathBuf::from(path);
        let plain = path.components().all(|c| matches!(c, std::path::Component::Normal(_)));
        if !plain || path.as_os_str().is_empty() {
            return Err(CgroupError::Path { path });
        }
        let mut drivers: Vec<Box<dyn Driver>> = Vec::new();
        if !layout.v1.is_empty() {
            drivers.push(Box::new(v1::V1::new(layout)));
        }
        if let Some(mount) = &layout.unified {
            drivers.push(Box::new(v2::V2::new(mount.clone(), layout.kind() == Kind::V2)));
        }
        let unified = layout.unified.clone();
        Ok(Self { group: Group { drivers: drivers.into(), unified, path, untouched: false } })
    }

    /// The same, and whether nothing of it is there: then nothing can have been killed in it, and processes may be born
    /// in its groups ([`Group::birthplace`]). Ask before [`PodCgroup::create`].
    pub fn look(mut self) -> Self {
        self.group.untouched = self.group.folders().iter().all(|folder| !folder.exists());
        self
    }

    /// Makes the pod's groups. The limits hold for the containers together: the shim is not the pod's doing, and must
    /// not be what is killed when they need too much. Returns limits that could not be set, in words.
    pub fn create(&self, limits: &Limits) -> Result<Vec<String>, CgroupError> {
        let mut warnings = self.group.create()?;
        warnings.extend(self.containers().create()?);
        warnings.extend(self.containers().limit(limits));
        Ok(warnings)
    }

    /// The shim's own group.
    pub fn shim(&self) -> Group {
        self.group.child("shim")
    }

    /// The group of a container.
    pub fn container(&self, name: &str) -> Group {
        self.containers().child(name)
    }

    /// The group of all containers, the shim not among them.
    pub fn containers(&self) -> Group {
        self.group.child("c")
    }

    /// The group of everything.
    pub fn all(&self) -> &Group {
        &self.group
    }

    /// Kills everything in the pod, shim included, waits until nothing is left, and removes the groups and,
    /// where it is empty then, their parent.
    pub fn destroy(&self) -> Result<(), CgroupError> {
        self.group.kill()?;
        self.group.wait_empty()?;
        self.group.remove()?;
        if let Some(parent) = self.group.path.parent().filter(|p| !p.as_os_str().is_empty()) {
            for driver in self.group.drivers.iter() {
                for folder in driver.folders(parent) {
                    // Others' pods may live there: then it stays.
                    let _ = fs::remove_dir(folder);
                }
            }
        }
        Ok(())
    }
}

/// How often emptiness and removal are tried, with 1 to 20 ms between: about ten seconds in all.
const ATTEMPTS: u32 = 500;

/// One group, in all hierarchies.
#[derive(Clone, Debug)]
pub struct Group {
    drivers: Arc<[Box<dyn Driver>]>,
    unified: Option<PathBuf>,
    path: PathBuf,
    /// The pod's groups were not there before.
    untouched: bool,
}

impl Group {
    fn child(&self, name: &str) -> Group {
        Group { path: self.path.join(name), ..self.clone() }
    }

    /// Makes the group in every hierarchy. Returns what was refused, in words.
    pub fn create(&self) -> Result<Vec<String>, CgroupError> {
        let mut warnings = Vec::new();
        for driver in self.drivers.iter() {
            warnings.extend(driver.create(&self.path)?);
        }
        Ok(warnings)
    }

    /// Sets limits. Returns those that could not be set, in words.
    pub fn limit(&self, limits: &Limits) -> Vec<String> {
        match self.drivers.first() {
            Some(driver) => driver.limit(&self.path, limits),
            None if *limits == Limits::default() => Vec::new(),
            None => vec!["no cgroup hierarchy is mounted: limits are not enforced".into()],
        }
    }

    /// Forbids all devices but null, zero, full, random, urandom, tty and terminals. False where the machine cannot.
    pub fn restrict_devices(&self) -> bool {
        self.drivers.iter().any(|driver| driver.restrict_devices(&self.path))
    }

    /// Moves a process into the group, in every hierarchy. 0 is the caller.
    pub fn add(&self, pid: i32) -> Result<(), CgroupError> {
        for folder in self.folders() {
            write(&folder.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// Moves the calling process, which has one thread, into the group. `born` says that it was born in its unified part
    /// ([`Group::birthplace`]). Then nothing has to wait for other processors, as any other move does.
    pub fn enter(&self, born: bool) -> Result<(), CgroupError> {
        let birthplace = self.unified.as_ref().map(|mount| mount.join(&self.path)).filter(|_| born);
        for driver in self.drivers.iter() {
            let mut folders = driver.folders(&self.path);
            folders.retain(|folder| Some(folder) != birthplace.as_ref());
            for folder in folders {
                write(&folder.join(driver.entrance()), "0")?;
            }
        }
        Ok(())
    }

    /// The group's folder in the unified tree, for processes that are to be born there; none where something may have
    /// been killed in it before.
    pub fn birthplace(&self) -> Option<OwnedFd> {
        let folder = self.unified.as_ref().filter(|_| self.untouched)?.join(&self.path);
        rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
    }

    /// OOM kills in the group so far.
    pub fn oom_kills(&self) -> u64 {
        self.drivers.iter().find_map(|driver| driver.oom_kills(&self.path)).unwrap_or(0)
    }

    /// What the group uses; None if it does not exist, or nothing counts it.
    pub fn usage(&self) -> Option<Usage> {
        Some(Usage {
            cpu_ns: self.drivers.iter().find_map(|driver| driver.cpu_ns(&self.path))?,
            memory_bytes: self.drivers.iter().find_map(|driver| driver.memory_bytes(&self.path))?,
        })
    }

    /// SIGKILL for every process in the group and below it. Returns before they are dead.
    pub fn kill(&self) -> Result<(), CgroupError> {
        if let Some(mount) = &self.unified {
            match fs::write(mount.join(&self.path).join("cgroup.kill"), "1") {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(source) => return Err(CgroupError::Io { path: mount.join(&self.path), source }),
            }
        }
        // Before 5.14, or v1 alone. A process that forks faster than this loop is met again by the caller,
        // who repeats until the group is empty.
        for pid in self.processes()? {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        Ok(())
    }

    /// Process ids in the group and below it, in any hierarchy.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        let mut pids = Vec::new();
        for folder in self.folders() {
            collect(&folder, &mut pids)?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Waits until no process is left, killing again and again.
    pub fn wait_empty(&self) -> Result<(), CgroupError> {
        for attempt in 0..ATTEMPTS {
            let left = self.processes()?;
            if left.is_empty() {
                return Ok(());
            }
            self.kill()?;
            pause(attempt);
        }
        Err(CgroupError::Busy { path: self.path.clone(), pids: self.processes()? })
    }

    /// Removes the empty group and those below it, in every hierarchy.
    pub fn remove(&self) -> Result<(), CgroupError> {
        for folder in self.folders() {
            remove_tree(&folder)?;
        }
        Ok(())
    }

    fn folders(&self) -> Vec<PathBuf> {
        let mut all: Vec<PathBuf> = self.drivers.iter().flat_map(|d| d.folders(&self.path)).collect();
        all.dedup();
        all
    }
}

fn pause(attempt: u32) {
    std::thread::sleep(Duration::from_millis(u64::from(attempt + 1).min(20)));
}

fn collect(folder: &Path, pids: &mut Vec<i32>) -> Result<(), CgroupError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(CgroupError::Io { path: folder.to_owned(), source }),
    };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        collect(&entry.path(), pids)?;
    }
    // The group may go while it is read (ENODEV), as another cleaner's work.
    if let Ok(text) = fs::read_to_string(folder.join("cgroup.procs")) {
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    Ok(())
}

fn remove_tree(folder: &Path) -> Result<(), CgroupError> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        remove_tree(&entry.path())?;
    }
    for attempt in 0..ATTEMPTS {
        match fs::remove_dir(folder) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            // Dead processes count until they are reaped, by someone else.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => pause(attempt),
            Err(source) => return Err(CgroupError::Io { path: folder.to_owned(), source }),
        }
    }
    Err(CgroupError::Io { path: folder.to_owned(), source: io::Error::from_raw_os_error(libc::EBUSY) })
}

/// Writes a control file, which must exist: writing must not create one in a folder that is no cgroup.
fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    let result = fs::OpenOptions::new().write(true).truncate(true).open(path);
    result
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|source| CgroupError::Io { path: path.to_owned(), source })
}

/// The number after `key` in a file of `key value` lines.
fn keyed_number(path: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// The number that is all of a file.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A cgroup could not be made, filled or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The file system said no: no permission, or not a cgroup file system.
    #[error("cgroup {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A pod's path must be relative and plain.
    #[error("cgroup path {:?} is not plain", path)]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// Processes do not die, most likely stuck in I/O on a dead device.
    #[error("cgroup {} still holds processes {pids:?}, though they were killed", path.display())]
    Busy {
        /// The group.
        path: PathBuf,
        /// What is left.
        pids: Vec<i32>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(root: &Path) -> Layout {
        let v1 = ["memory", "pids"].map(|c| (c.to_owned(), root.join(c))).into();
        Layout { v1, unified: Some(root.join("unified")) }
    }

    #[test]
    fn a_path_that_leaves_the_tree_is_refused() {
        for path in ["", "/x", "../x", "a/../../b"] {
            assert!(matches!(PodCgroup::new(&Layout::default(), path), Err(CgroupError::Path { .. })), "{path}");
        }
    }

    #[test]
    fn a_pod_has_the_same_groups_in_every_hierarchy_and_leaves_none() {
        let dir = tempfile::tempdir().unwrap();
        let pod = PodCgroup::new(&layout(dir.path()), "root/pod").unwrap();
        pod.create(&Limits::default()).unwrap();
        pod.container("db").create().unwrap();
        for hierarchy in ["memory", "pids", "unified"] {
            assert!(dir.path().join(hierarchy).join("root/pod/c/db").is_dir(), "{hierarchy}");
        }
        pod.all().remove().unwrap();
        assert!(!dir.path().join("memory/root/pod").exists());
        assert!(!dir.path().join("unified/root/pod").exists());
    }

    #[test]
    fn a_process_joins_every_hierarchy_and_is_found_below() {
        let dir = tempfile::tempdir().unwrap();
        let pod = PodCgroup::new(&layout(dir.path()), "root/pod").unwrap();
        pod.create(&Limits::default()).unwrap();
        let group = pod.container("db");
        group.create().unwrap();
        for hierarchy in ["memory", "pids", "unified"] {
            fs::write(dir.path().join(hierarchy).join("root/pod/c/db/cgroup.procs"), "").unwrap();
        }
        group.add(4321).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("memory/root/pod/c/db/cgroup.procs")).unwrap(), "4321");
        assert_eq!(pod.all().processes().unwrap(), [4321]);
    }

    #[test]
    fn a_process_enters_by_its_thread_and_not_again_where_it_was_born() {
        let dir = tempfile::tempdir().unwrap();
        let pod = PodCgroup::new(&layout(dir.path()), "root/pod").unwrap();
        let shim = pod.shim();
        shim.create().unwrap();
        let file = |hierarchy: &str, name: &str| dir.path().join(hierarchy).join("root/pod/shim").join(name);
        for (hierarchy, name) in [("memory", "tasks"), ("pids", "tasks"), ("unified", "cgroup.procs")] {
            fs::write(file(hierarchy, name), "").unwrap();
        }
        let said = || {
            let read = |hierarchy, name| fs::read_to_string(file(hierarchy, name)).unwrap();
            [read("memory", "tasks"), read("pids", "tasks"), read("unified", "cgroup.procs")]
        };
        shim.enter(true).unwrap();
        assert_eq!(said(), ["0", "0", ""]);
        shim.enter(false).unwrap();
        assert_eq!(said(), ["0", "0", "0"]);
    }

    #[test]
    fn processes_are_born_only_where_nothing_was_before() {
        let dir = tempfile::tempdir().unwrap();
        let look = || PodCgroup::new(&layout(dir.path()), "root/pod").unwrap().look();
        let first = look();
        first.create(&Limits::default()).unwrap();
        first.shim().create().unwrap();
        assert!(first.shim().birthplace().is_some());
        let second = look();
        second.shim().create().unwrap();
        assert!(second.shim().birthplace().is_none());
    }

    #[test]
    fn limits_without_any_hierarchy_are_told() {
        let pod = PodCgroup::new(&Layout::default(), "root/pod").unwrap();
        let limits = Limits { pids: Some(5), ..Limits::default() };
        assert_eq!(pod.create(&limits).unwrap().len(), 1);
        assert!(pod.create(&Limits::default()).unwrap().is_empty());
    }

    #[test]
    fn a_real_process_is_limited_killed_and_its_group_removed() {
        let layout = Layout::detect().unwrap();
        let pod = PodCgroup::new(&layout, &format!("statefuld-test-{}/pod", std::process::id())).unwrap();
        assert_eq!(pod.create(&Limits::default()).unwrap(), Vec::<String>::new());
        let group = pod.container("db");
        group.create().unwrap();
        let warnings = group.limit(&Limits { memory_bytes: Some(64 << 20), pids: Some(9), ..Limits::default() });
        assert_eq!(warnings, Vec::<String>::new());
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        group.add(child.id().cast_signed()).unwrap();
        assert_eq!(group.processes().unwrap(), [child.id().cast_signed()]);
        assert!(group.usage().is_some(), "this machine counts what groups use");
        group.kill().unwrap();
        assert!(!child.wait().unwrap().success());
        pod.destroy().unwrap();
        assert!(group.folders().iter().all(|folder| !folder.exists()));
    }
}
