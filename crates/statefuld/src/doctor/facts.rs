//! What `doctor` knows of a machine: read from /proc, /sys and the data directory, nothing judged.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ambient::Ambient;
use node::cgroup::{Kind, Layout};

use super::system;

/// What was found. `None` where it cannot be read.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Whether the program runs as root.
    pub root: bool,
    /// Version of the kernel, such as 6.1.0-18-amd64.
    pub kernel: String,
    /// Control groups.
    pub cgroups: Option<Cgroups>,
    /// Namespaces that the kernel has, by their names in /proc/self/ns.
    pub namespaces: Vec<String>,
    /// Whether overlayfs is there.
    pub overlay: bool,
    /// Whether seccomp filters are there.
    pub seccomp: bool,
    /// Hard limit of open files.
    pub open_files: Option<u64>,
    /// vm.max_map_count.
    pub map_count: Option<u64>,
    /// fs.inotify.max_user_instances.
    pub inotify: Option<u64>,
    /// Kind of file system at /dev/shm.
    pub shm: Option<String>,
    /// Somebody listens on port 53 of every address: TCP or UDP.
    pub port_53_taken: bool,
    /// What else on the machine filters what is forwarded.
    pub firewalls: Vec<Firewall>,
    /// What a person has to do so that pods pass other firewalls; `None` where their rules cannot be read.
    pub obstacles: Option<Vec<String>>,
    /// The data directory's disk.
    pub disk: Option<Disk>,
    /// How long the disk takes to say that 4 KiB are safe, median.
    pub fsync: Option<Duration>,
    /// Whether something keeps the clock right; `None` where no known service was found.
    pub clock: Option<String>,
    /// The clock itself, seconds since 1970.
    pub now: i64,
}

/// Control groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroups {
    /// Which versions there are.
    pub kind: Kind,
    /// The v2 controllers that the root offers.
    pub controllers: Vec<String>,
    /// Where one is mounted read-only.
    pub read_only: Option<PathBuf>,
}

/// A firewall that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firewall {
    /// Docker, whose rules drop what it does not know where it set the policy of forwarding to DROP.
    Docker,
    /// Ubuntu's ufw, whose forwarding policy is DROP unless changed.
    Ufw,
    /// firewalld.
    Firewalld,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Kind of file system.
    pub kind: String,
    /// Bytes free for root.
    pub free: u64,
    /// All bytes.
    pub size: u64,
    /// Share of free file entries, percent; 100 where the file system has no such limit.
    pub free_inodes: u64,
}

impl Facts {
    /// Looks at this machine. Where the disk is measured, that writes a small file into the data directory, or the nearest
    /// folder above it that is there, and removes it.
    pub fn read(data: &Path, ambient: &Ambient, measure: bool) -> Self {
        let there = system::nearest(data);
        let cgroups = Layout::detect().ok().map(|layout| Cgroups {
            kind: layout.kind(),
            controllers: system::v2_controllers(&layout),
            read_only: layout.read_only().map(Path::to_owned),
        });
        Self {
            root: rustix::process::geteuid().is_root(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cgroups,
            namespaces: system::names("/proc/self/ns"),
            overlay: system::file_systems().iter().any(|f| f == "overlay"),
            seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
            open_files: system::open_files(),
            map_count: system::number("/proc/sys/vm/max_map_count"),
            inotify: system::number("/proc/sys/fs/inotify/max_user_instances"),
            shm: system::mounted_at("/dev/shm"),
            port_53_taken: system::port_53_taken(),
            firewalls: system::firewalls(),
            obstacles: system::obstacles(data),
            disk: system::disk(&there),
            fsync: if measure { system::fsync_median(&there, ambient).ok() } else { None },
            clock: system::clock_keeper(),
            now: ambient.now().as_second(),
        }
    }
}
